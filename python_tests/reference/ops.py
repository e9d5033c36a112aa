"""Every op and the generation loop again in plain fp32 torch, readable like the paper. Only tests import
this.

The ops return their results instead of writing into buffers (unmask alone changes its state in place, as its
native twin does); shapes and meanings are those of `edlm_engine.ops`.
"""

import math

import torch
from torch import Tensor

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
    hidden: Tensor,
    weight: Tensor,
    slots: Tensor,
    positions: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seed: Tensor,
    step: Tensor,
    forbidden_id: int,
) -> tuple[Tensor, Tensor]:
    """ids int32 [n, 2] and stats fp32 [n, 5]; rows with slot -1 are 0 in both."""
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
        if (t := float(temperature[slot])) > 0:
            noisy = z / t + gumbel(len(z), int(seed[slot]), int(positions[row]), int(step[slot]))
            kept = kept_ids(z, t, int(top_k[slot]), float(top_p[slot]))
            chosen = int(noisy.masked_fill(~kept, -INFINITY).argmax())
        second = p.topk(2).values[1] if len(p) > 1 else 0.0
        entropy = -(p * log_p.nan_to_num(neginf=0)).sum()
        ids[row] = torch.tensor([best, chosen])
        stats[row] = torch.tensor([p[best], second, entropy, z.logsumexp(-1), p[chosen]])
    return ids, stats


def unmask(
    ids: Tensor,
    stats: Tensor,
    first_row: Tensor,
    threshold: Tensor,
    steps_per_block: Tensor,
    block_length: Tensor,
    tokens: Tensor,
    confidence: Tensor,
    commit_step: Tensor,
    masked: Tensor,
    num_masked: Tensor,
    step: Tensor,
    status: Tensor,
) -> None:
    for s in torch.where(first_row >= 0)[0].tolist():
        positions = masked[s].nonzero().flatten()
        rows = slice(int(first_row[s]), int(first_row[s]) + len(positions))
        chosen, sure, now = ids[rows, 1], stats[rows, 4], int(step[s])
        if bool((chosen < 0).any()) or bool(sure.isnan().any()):
            status[s] = -1
            continue
        left, n = len(positions), max(1, int(steps_per_block[s]))
        if threshold[s].isnan():  # fixed schedule
            k, extra = divmod(int(block_length[s]), n)
            k += now < extra
        else:
            k = int((sure >= threshold[s]).sum())
            if steps_per_block[s] > 0 and now >= steps_per_block[s] - 1:
                k = left
        best = sure.sort(descending=True, stable=True).indices[: max(1, k)]  # ties: lowest position first
        at = positions[best]
        tokens[s, at], confidence[s, at], commit_step[s, at], masked[s, at] = chosen[best], sure[best], now, 0
        num_masked[s] -= len(at)
        step[s] += 1
        status[s] = int(num_masked[s] == 0)


def advance(
    tokens, masked, clean, num_masked, block_length, step, status, active, start, pending, end, full_length,
    stop_ids, token_ids, row_slots, positions, query_blocks, head_rows, head_slots, head_positions, first_row,
    control, snapshot, ring, host, mask_id: int, shift: bool, lay_out_only: bool,
) -> None:  # fmt: skip
    """ops.advance()."""
    slots, width = tokens.shape
    batch = len(head_rows) // width
    if not lay_out_only:
        ring[int(control[3]) % len(ring)] = snapshot
        control[3] += 1
        host[0] = control[3]
    for s in range(slots):
        if active[s] and not lay_out_only:
            _take_step(
                s, tokens, masked, clean, num_masked, block_length, step, status, active, start, pending, end,
                full_length, stop_ids, mask_id, shift,
            )  # fmt: skip
        active[s] = int(bool(active[s]) and s < batch and host[2 + s] == 0)
    first_row[:] = torch.where(active > 0, torch.arange(slots) * width, -1)
    control[0] = int(bool(active.any()) and host[1] == 0)
    control[1] = int(bool(((active > 0) & (pending > 0)).any()))
    for padding in (row_slots, head_slots, query_blocks[:, 0]):
        padding.fill_(-1)
    for unused in (token_ids, positions, head_rows, head_positions, query_blocks[:, 1:5]):
        unused.zero_()
    clean_rows = batch * width if mask_id >= 0 else 0
    noisy_row = (torch.arange(batch) * width) * int(mask_id >= 0)
    query_blocks[:, 5] = torch.cat((noisy_row, clean_rows + torch.arange(batch) * width))
    for s in torch.where(active[:batch] > 0)[0].tolist():
        length, before, begin = int(block_length[s]), int(pending[s]), int(start[s])
        groups = [(batch + s, clean_rows + s * width, clean[s, :before], begin - before)]
        if mask_id >= 0:
            groups.append((s, s * width, tokens[s, :length], begin))
        for index, row, content, first in groups:
            if count := len(content):
                rows = slice(row, row + count)
                token_ids[rows], row_slots[rows] = content, s
                positions[rows] = torch.arange(first, first + count)
                query_blocks[index, :4] = torch.tensor([s, first, count, first + count])
        predicting = torch.arange(length) + (s * width - shift if mask_id >= 0 else 0)
        if shift:
            predicting[0] = clean_rows + s * width + before - 1
        wanted = torch.where(masked[s, :length] > 0)[0]
        heads = slice(s * width, s * width + len(wanted))
        head_rows[heads], head_slots[heads] = predicting[wanted].int(), s
        head_positions[heads] = begin + wanted.int()


def _take_step(s, tokens, masked, clean, num_masked, block_length, step, status, active, start, pending, end,
               full_length, stop_ids, mask_id, shift):  # fmt: skip
    length = int(block_length[s])
    if shift:
        clean[s, 0] = clean[s, int(pending[s]) - 1].clone()
    pending[s] = int(shift)
    gap_free = int((masked[s, :length].cumsum(0) == 0).sum())
    if status[s] < 0 or bool(torch.isin(tokens[s, :gap_free], stop_ids[s]).any()):
        active[s] = 0
    elif status[s] > 0:
        clean[s, :length] = tokens[s, :length]
        pending[s] = length
        start[s] += length
        left = int(end[s] - start[s])
        if left <= 0:
            active[s] = 0
            return
        new = min(left, int(full_length[s]))
        tokens[s], masked[s], step[s], status[s] = max(mask_id, 0), 0, 0, 0
        masked[s, :new] = 1
        num_masked[s] = block_length[s] = new
