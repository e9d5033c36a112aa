"""Every op again in plain fp32 torch, readable like the paper.

The ops return their results instead of writing into buffers; unmask and advance change a BlockState and the
inputs of a step in place, as their native twins do. Shapes and meanings are those of `edlm_engine.ops`.
"""

import math
from dataclasses import fields
from types import SimpleNamespace

import torch
from torch import Tensor

from edlm_engine import ops, policies
from edlm_engine.steps.block_state import BlockState, fields_of
from edlm_engine.steps.inputs import StepBuffer
from edlm_engine.steps.selecting import statistics_of

INFINITY = math.inf


def rms_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The new x (rounded to its dtype) and its norm in fp32."""
    if delta is not None:
        x = (x.float() + delta.float()).to(x.dtype)
    wide = x.float()
    return x, wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()


def silu_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.float().chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """q uint8 [rows, columns], 128 being 0, and scale fp32 [rows]."""
    x = x.float()
    largest = x.abs().amax(1)
    inverse = torch.where(largest > 0, torch.tensor(127.0) / largest, 0.0)  # a number / x is not rounded once
    return ((x * inverse[:, None]).round() + 128).to(torch.uint8), largest / 127


def quantize_rows_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """q float8_e4m3fn [rows, columns] and scale fp32 [rows]."""
    x = x.float()
    largest = x.abs().amax(1)
    inverse = torch.where(largest > 0, torch.tensor(448.0) / largest, 0.0)
    return (x * inverse[:, None]).clamp(-448, 448).to(torch.float8_e4m3fn), largest / 448


def int8_linear(q: Tensor, q_scale: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """fp32 [rows, outputs] of quantised rows and an int8 weight [outputs, inputs] with scales [outputs]."""
    sums = (q.double() - 128) @ weight.double().T  # exact
    return sums.float() * (scale * q_scale[:, None])


def fp8_linear(q: Tensor, q_scale: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """The same of float8 rows and an fp8 weight, the sums in fp64."""
    return (q.double() @ weight.double().T * (scale * q_scale[:, None]).double()).float()


def rotate(x: Tensor, cos_sin: Tensor) -> Tensor:
    """x: [rows, heads, D]; cos_sin: [rows, D]. The halves (a, b) of a head become (a cos - b sin, b cos + a
    sin)."""
    cos, sin = cos_sin[:, None].chunk(2, dim=-1)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def qkv_prepare(
    qkv: Tensor,
    bias: Tensor | None,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    cos_sin: Tensor,
    slots: Tensor,
    positions: Tensor,
    page_table: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """q [rows, H, D] in fp32 and the new caches (dtype as given); rows with slot -1 are left out of all
    three."""
    kv_heads, page_size, dim = k_cache.shape[1:]
    x = qkv.float() if bias is None else qkv.float() + bias.float()
    q, k, v = x.view(len(x), -1, dim).split((heads, kv_heads, kv_heads), dim=1)
    if q_norm is not None:
        q = rms_norm(q, None, q_norm, eps)[1]
    if k_norm is not None:
        k = rms_norm(k, None, k_norm, eps)[1]
    cos_sin = cos_sin[positions.long()]
    q, k = rotate(q, cos_sin), rotate(k, cos_sin)
    k_cache, v_cache = k_cache.clone(), v_cache.clone()
    for row in torch.where(slots >= 0)[0].tolist():
        page, offset = divmod(int(positions[row]), page_size)
        page = page_table[slots[row], page]
        k_cache[page, :, offset] = k[row].to(k_cache.dtype)
        v_cache[page, :, offset] = v[row].to(v_cache.dtype)
    return q, k_cache, v_cache


def block_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, query_blocks: Tensor, page_table: Tensor, scale: float
) -> Tensor:
    """fp32 [rows, H, D]; rows of no query block are 0."""
    heads, page_size = q.shape[1], k_cache.shape[2]
    out = torch.zeros(q.shape)
    for slot, _, length, kv_len, causal, row in query_blocks.tolist():
        if slot < 0:
            continue
        pages = page_table[slot, : -(-kv_len // page_size)].long()
        k, v = (cache[pages].float().transpose(1, 2).flatten(0, 1)[:kv_len] for cache in (k_cache, v_cache))
        k, v = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (k, v))  # [kv_len, H, D]
        scores = scale * torch.einsum("qhd,khd->hqk", q[row : row + length].float(), k)
        if causal:
            visible = torch.arange(kv_len) <= torch.arange(kv_len - length, kv_len)[:, None]
            scores = scores.masked_fill(~visible, -INFINITY)
        out[row : row + length] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)
    return out


def philox(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """Philox4x32-10 (Salmon et al., SC 2011): counter int64 [..., 4] of 32-bit words to four words each."""
    low = 0xFFFFFFFF
    x0, x1, x2, x3 = counter.unbind(-1)
    key0, key1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * x0, 0xCD9E8D57 * x2  # wrap around, but keep all 64 bits
        x0, x1, x2, x3 = (p1 >> 32 & low) ^ x1 ^ key0, p1 & low, (p0 >> 32 & low) ^ x3 ^ key1, p0 & low
        key0, key1 = (key0 + 0x9E3779B9) & low, (key1 + 0xBB67AE85) & low
    return torch.stack((x0, x1, x2, x3), dim=-1)


def gumbel(vocab: int, seed: int, position: int, step: int) -> Tensor:
    """Standard Gumbel numbers fp32 [vocab] of one row, keyed by (seed, position, step) alone."""
    quads = torch.arange(-(-vocab // 4))
    counter = torch.stack((quads, *(torch.full_like(quads, x) for x in (position, step, 0))), dim=-1)
    bits = philox(counter, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)).flatten()[:vocab]
    u = ((bits >> 9).double() + 0.5) * 2.0**-23
    return -torch.log(-torch.log(u)).float()


def kept_ids(z: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Mask [V] of the ids that top-k leaves, then top-p of the renormalised softmax(z / temperature)."""
    order = z.sort(descending=True, stable=True).indices  # ties: lowest id first
    if top_k > 0:
        order = order[:top_k]
    if top_p < 1:
        held = (z[order].double() / temperature).softmax(-1).cumsum(-1)
        order = order[: int((held < top_p).sum()) + 1]
    return torch.zeros(len(z), dtype=torch.bool).index_fill(0, order, True)


def row_stats(
    hidden: Tensor, weight: Tensor, state: Tensor, slots: Tensor, positions: Tensor, forbidden_id: int
) -> tuple[Tensor, Tensor]:
    """ids int32 [n, 2] and stats fp32 [n, 5]; rows with slot -1 are 0 in both."""
    settings = SimpleNamespace(**fields_of(state, 1))  # those of slots lie before those of positions
    ids, stats = torch.zeros(len(hidden), 2, dtype=torch.int32), torch.zeros(len(hidden), 5)
    logits = hidden.float() @ weight.float().T
    for row in torch.where(slots >= 0)[0].tolist():
        z, slot = logits[row], int(slots[row])
        if forbidden_id >= 0:
            z[forbidden_id] = -INFINITY
        if bool((z.isnan() | (z == INFINITY)).any()) or bool((z == -INFINITY).all()):
            ids[row], stats[row] = -1, math.nan
            continue
        log_p = z.log_softmax(-1)
        p = log_p.exp()
        best, chosen = int(z.argmax()), int(z.argmax())
        if (t := float(settings.temperature[slot])) > 0:
            low, high = settings.seed[slot].tolist()
            seed = low & 0xFFFFFFFF | (high & 0xFFFFFFFF) << 32
            noisy = z / t + gumbel(len(z), seed, int(positions[row]), int(settings.step[slot]))
            kept = kept_ids(z, t, int(settings.top_k[slot]), float(settings.top_p[slot]))
            chosen = int(noisy.masked_fill(~kept, -INFINITY).argmax())
        second = p.topk(2).values[1] if len(p) > 1 else 0.0
        entropy = -(p * log_p.nan_to_num(neginf=0)).sum()
        ids[row] = torch.tensor([best, chosen])
        stats[row] = torch.tensor([p[best], second, entropy, z.logsumexp(-1), p[chosen]])
    return ids, stats


def policy_of(state: BlockState, slot: int) -> policies.Policy | None:
    """The policy that a slot's rule and its numbers stand for; None: Rule::selected."""
    name = list(ops.RULES)[int(state.rule[slot])]
    if name == "selected":
        return None
    numbers = [None if math.isinf(x) else x for x in state.rule_parameters[slot].tolist()]
    whole = [int(x) if x is not None and float(x).is_integer() else x for x in numbers]
    return policies.BY_NAME[name](*whole[: len(fields(policies.BY_NAME[name]))])


def unmask(state: BlockState, ids: Tensor, stats: Tensor, first_row: Tensor) -> None:
    for s in torch.where(first_row >= 0)[0].tolist():
        inside = torch.arange(state.tokens.shape[1]) < state.block_length[s]
        wanted = (state.wanted[s] != 0) & inside
        row = int(first_row[s]) + wanted.cumsum(0) - 1  # of each wanted position
        if bool((ids[row[wanted], 1] < 0).any()) or bool(stats[row[wanted]].isnan().any()):
            state.status[s] = -1
            continue
        candidates = wanted & (state.open[s] != 0)
        seen = statistics_of(state, [s], stats, first_row)
        if policy := policy_of(state, s):
            selected = policy.select(candidates[None], seen)[0]
        else:
            selected = candidates & (state.selected[s] != 0)
            if not bool(selected.any()):
                surest = seen.p_chosen[0].masked_fill(~candidates, -INFINITY).argmax()
                selected = candidates & (torch.arange(len(candidates)) == surest)
        at = torch.where(selected)[0]
        state.tokens[s, at], state.confidence[s, at] = ids[row[at], 1], stats[row[at], 4]
        state.entropy[s, at] = stats[row[at], ops.STAT_COLUMNS["entropy"]]
        state.commit_step[s, at], state.open[s, at] = state.step[s].clone(), 0
        if not state.keep_wanted[s]:
            state.wanted[s, at] = 0
        state.step[s] += 1
        state.status[s] = int(not bool((state.open[s] != 0)[inside].any()))


def advance(
    state: BlockState, buffer: StepBuffer | None, control: Tensor, link: Tensor | None, flags: int
) -> None:
    """ops.advance(), but for COMPACT."""
    width = state.tokens.shape[1]
    shift, batch = bool(flags & ops.SHIFT), len(state.active) if buffer is None else buffer.heads // width
    if flags & ops.SNAPSHOT:
        link[1 + int(control[3]) % (len(link) - 1)] = state.records.flatten()
        control[3] += 1
        link[0, 0] = control[3]
    for s in range(len(state.active)):
        if state.active[s] and flags & ops.TAKE:
            _take_step(state, s, shift)
        stopped = link is not None and link[0, 2 + s] != 0
        state.active[s] = int(bool(state.active[s]) and s < batch and not stopped)
    active = state.active > 0
    control[0] = int(bool(active.any()) and (link is None or link[0, 1] == 0))
    control[1] = int(bool((active & (state.pending > 0)).any()))
    if flags & ops.LAY_OUT:
        _lay_out(state, buffer, batch, shift)


def _lay_out(state: BlockState, buffer: StepBuffer, batch: int, shift: bool):
    inputs, noisy, width = buffer.inputs, buffer.noisy, state.tokens.shape[1]
    inputs.first_row[:] = torch.where(state.active > 0, torch.arange(len(state.active)) * width, -1)
    for padding in (inputs.slots, inputs.head_slots, inputs.query_blocks[:, 0]):
        padding.fill_(-1)
    for unused in (inputs.token_ids, inputs.positions, inputs.head_rows, inputs.head_positions):
        unused.zero_()
    clean_rows, first = batch * width if noisy else 0, torch.arange(batch) * width
    inputs.query_blocks[:, 1:5] = 0
    inputs.query_blocks[:, 5] = torch.cat((first * noisy, clean_rows + first))
    for s in torch.where(state.active[:batch] > 0)[0].tolist():
        length, before, begin = int(state.block_length[s]), int(state.pending[s]), int(state.start[s])
        groups = [(batch + s, clean_rows + s * width, state.clean[s, :before], begin - before)]
        if noisy:
            groups.append((s, s * width, state.tokens[s, :length], begin))
        for index, row, content, position in groups:
            if count := len(content):
                rows = slice(row, row + count)
                inputs.token_ids[rows], inputs.slots[rows] = content, s
                inputs.positions[rows] = torch.arange(position, position + count)
                inputs.query_blocks[index, :4] = torch.tensor([s, position, count, position + count])
        predicting = torch.arange(length) + (s * width - shift if noisy else 0)
        if shift:
            predicting[0] = clean_rows + s * width + before - 1
        wanted = torch.where(state.wanted[s, :length] > 0)[0]
        heads = slice(s * width, s * width + len(wanted))
        inputs.head_rows[heads], inputs.head_slots[heads] = predicting[wanted].int(), s
        inputs.head_positions[heads] = begin + wanted.int()


def _take_step(state: BlockState, s: int, shift: bool):
    length, pending = int(state.block_length[s]), int(state.pending[s])
    keeps = shift and pending > 0
    if keeps:
        state.clean[s, 0] = state.clean[s, pending - 1].clone()
    state.pending[s] = int(keeps)
    gap_free = int((state.open[s, :length].cumsum(0) == 0).sum())
    text = state.tokens[s, :gap_free][state.given[s, :gap_free] == 0]
    if state.status[s] < 0 or bool(torch.isin(text, state.stop_ids[s]).any()):
        state.active[s] = 0
    elif state.status[s] > 0:
        state.clean[s, :length] = state.tokens[s, :length]
        state.pending[s] = length
        state.start[s] += length
        left = int(state.end[s] - state.start[s])
        if left <= 0:
            state.active[s] = 0
            return
        new = min(left, int(state.full_length[s]))
        state.tokens[s] = state.mask_id[s]
        for field in (state.open, state.wanted, state.given):
            field[s] = 0
        state.open[s, :new] = state.wanted[s, :new] = 1
        state.step[s] = state.status[s] = 0
        state.block_length[s] = new
