"""The only door to native code: the operators `torch.ops.edlm.*`, loaded from the library beside this file.

Every op writes into tensors that the caller allocated and returns nothing. Tensors are contiguous and on one
device; `T` is float32 or bfloat16 (on a GPU also float16), the same for all tensors marked so; sums and
statistics are float32. Rows whose slot is -1 are padding: skipped, and their outputs left alone. Shapes:
`rows` query rows of one forward, over all sequences; `H` query heads, `K` key/value heads, `D` head size (a
multiple of 16; on a GPU 64 or 128), `P` page size (a power of two, at least 16). A wrong argument raises
ValueError with the argument's name, what it must be and what it is. On a GPU the work is queued on the
current stream and the values of integer tensors are not looked at: a wrong slot, position, page or length is
undefined behaviour there.
"""

import ctypes
import json
from pathlib import Path

import torch
from torch import Tensor

from .packing import PANEL, pack_fp8_weight, pack_int8_weight, pack_weight, unpack_weight

__all__ = ["PANEL", "pack_fp8_weight", "pack_int8_weight", "pack_weight", "unpack_weight"]  # beside the ops

_LIBRARY = Path(__file__).with_name("_C.so")
if not _LIBRARY.exists():
    raise ImportError(f"{_LIBRARY} is missing: build it with `pip install --no-build-isolation -e .`")
torch.ops.load_library(_LIBRARY)
_edlm = torch.ops.edlm


def build_info() -> dict:
    """What the native library is: version, isa (in use), compiled_isas, cuda (whether it has CUDA kernels),
    cuda_architectures (as CMAKE_CUDA_ARCHITECTURES names them), torch_target, compiler."""
    return json.loads(_library_says("edlm_build_info"))


def _library_says(function: str) -> str | None:
    describe = getattr(ctypes.CDLL(str(_LIBRARY)), function)
    describe.restype = ctypes.c_char_p
    text = describe()
    return None if text is None else text.decode()


if _reason := _library_says("edlm_why_unusable"):
    raise ValueError(_reason)


def rms_norm(
    x: Tensor,
    delta: Tensor | None,
    weight: Tensor,
    eps: float,
    out: Tensor,
    q: Tensor | None = None,
    scale: Tensor | None = None,
) -> None:
    """Residual add and RMS norm: x += delta (rounded to T), out = x / sqrt(mean(x²) + eps) · weight.

    x, delta, out: T [rows, hidden]; weight: T [hidden]; q, scale: where given, what quantize_rows() makes of
    out. Source: Zhang and Sennrich, arXiv:1910.07467, eq. 4.
    """
    _edlm.rms_norm.default(x, delta, weight, eps, out, q, scale)


def silu_mul(gate_up: Tensor, out: Tensor, q: Tensor | None = None, scale: Tensor | None = None) -> None:
    """out = silu(gate) · up, for gate_up: T [rows, 2 · inner] (gate first) and out: T [rows, inner].

    q, scale: where given, what quantize_rows() makes of out. Source: SwiGLU, Shazeer, arXiv:2002.05202, eq.
    6.
    """
    _edlm.silu_mul.default(gate_up, out, q, scale)


def quantize_rows(x: Tensor, q: Tensor, scale: Tensor) -> None:
    """Rows in one byte per element: scale = max |x| / 127 and q = round(x / scale) + 128, ties to even, if q
    is uint8; scale = max |x| / 448 and q = x / scale rounded, if it is float8_e4m3fn (on a GPU of compute
    capability 8.9 or later). The same bytes on every device.

    x: T [rows, columns]; q: of the same shape; scale: float32 [rows]. A row that is not finite gets the scale
    NaN. Source: dynamic quantisation per token, Yao et al., arXiv:2206.01861, sect. 4.1; float8: Micikevicius
    et al., arXiv:2209.05433.
    """
    _edlm.quantize_rows.default(x, q, scale)


def linear(x: Tensor, x_scale: Tensor | None, weight: Tensor, out: Tensor) -> None:
    """out = x wᵀ for a weight that pack_weight(), pack_int8_weight() or pack_fp8_weight() packed.

    out: T [rows, outputs]; x: T [rows, inputs] with x_scale None (on a GPU bfloat16 or float16, and out may
    be float32), or as quantize_rows() wrote them: uint8 for an int8 weight, float8_e4m3fn for such a weight.
    Products of int8 are summed exactly, in int32, and scaled once. A row's result does not depend on the
    others. On a GPU the weight is read before the kernel ahead of this one in the stream has ended: whatever
    writes a weight must be waited for, as the functions that pack it do.
    """
    _edlm.linear.default(x, x_scale, weight, out)


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
    q: Tensor,
    eps: float,
) -> None:
    """Split the fused projection, add the bias, norm q and k per head, rotate them, append k and v to the
    paged cache.

    qkv: T [rows, (H + 2K) · D], heads of q, then k, then v; bias: T [(H + 2K) · D]; q_norm, k_norm: T [D].
    cos_sin: float32 [max_positions, D], cosines of the D/2 angles, then their sines; halves are rotated (NEOX
    style). slots, positions: int32 [rows]; page_table: int32 [slots, max_pages]. Row r goes to page
    page_table[slots[r], positions[r] // P], offset positions[r] % P of k_cache and v_cache: T [pages, K, P,
    D]. q: T [rows, H, D]. Source of the rotation: RoPE, Su et al., arXiv:2104.09864, eq. 34.
    """
    _edlm.qkv_prepare.default(
        qkv, bias, q_norm, k_norm, cos_sin, slots, positions, page_table, k_cache, v_cache, q, eps
    )


def block_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    query_blocks: Tensor,
    page_table: Tensor,
    scale: float,
    out: Tensor,
) -> None:
    """Attention of query blocks over the paged cache: softmax(scale · q kᵀ) v per head, grouped-query heads.

    q, out: T [rows, H, D]; k_cache, v_cache: T [pages, K, P, D]; page_table: int32 [slots, max_pages].
    query_blocks: int32 [n, 6] with columns slot (-1 = padding), start, length, kv_len, causal, row. A block's
    rows are q[row : row + length]. Each sees the keys [0, kv_len) of its slot; if causal, the last row sees
    kv_len keys and each earlier row one fewer. Nothing beyond them is used, whatever lies there. With
    bfloat16 the softmax weights are rounded to bfloat16 before they meet v.
    """
    _edlm.block_attention.default(q, k_cache, v_cache, query_blocks, page_table, scale, out)


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
    ids: Tensor,
    stats: Tensor,
) -> None:
    """The language-model head and the statistics of its logits z = hidden · weightᵀ, which are never written
    out.

    hidden: T [n, hidden_size]; weight: T [V, hidden_size]; slots, positions: int32 [n]. Per slot: temperature
    float32 (0 = greedy), top_k int32 (0 = off), top_p float32 (1 = off), seed int64, step int32. forbidden_id
    (-1 = none): its logit counts as -inf, in the choice and in the normaliser.
    ids: int32 [n, 2] = argmax, chosen. stats: float32 [n, 5] = probability of the argmax, of the runner-up,
    entropy (nats), log-sum-exp, probability of the chosen id; all under the raw logits, without temperature.
    Chosen: the argmax, or with temperature the argmax of z / temperature + g over what top-k, then top-p
    leave (the shortest prefix of the sorted, renormalised softmax(z / temperature) that holds top_p). g =
    -log(-log(u)), u = ((bits >> 9) + 0.5) · 2⁻²³ from word id % 4 of Philox4x32-10 with key seed (low word,
    high word) and counter (id // 4, position, step, 0): Gumbel-max. Ties go to the lowest id.
    A NaN or +inf logit, or no finite one, makes the row's ids -1 and its stats NaN.
    """
    _edlm.row_stats.default(
        hidden, weight, slots, positions, temperature, top_k, top_p, seed, step, forbidden_id, ids, stats
    )


def row_stats_int8(
    hidden: Tensor,
    hidden_scale: Tensor,
    weight: Tensor,
    vocab: int,
    slots: Tensor,
    positions: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seed: Tensor,
    step: Tensor,
    forbidden_id: int,
    ids: Tensor,
    stats: Tensor,
) -> None:
    """row_stats() in int8, or on a GPU in float8, as hidden's type says: hidden and hidden_scale as
    quantize_rows() wrote them, weight of `vocab` outputs from pack_int8_weight() or pack_fp8_weight()."""
    _edlm.row_stats_int8.default(
        hidden, hidden_scale, weight, vocab, slots, positions, temperature, top_k, top_p, seed, step,
        forbidden_id, ids, stats,
    )  # fmt: skip


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
    """Commit tokens of every slot's block from the statistics of its still-masked positions, in place.

    ids: int32 [n, 2] and stats: float32 [n, 5] as row_stats wrote them. Slot s with first_row[s] >= 0 (int32
    [slots]; -1 = not denoising, left alone) owns num_masked[s] of their rows from there on, one for each j
    with masked[s, j], in order. Per slot: threshold float32, steps_per_block int32 (0 = no bound),
    block_length int32. A threshold t commits every position with confidence stats[:, 4] >= t, and the most
    confident one always; at step steps_per_block - 1 whatever is left. Threshold NaN is the fixed schedule:
    of m = block_length positions in n = steps_per_block steps, floor(m / n) per step, one more in the first m
    mod n, at least one, the most confident. Ties go to the lowest position.
    Changes tokens int32, confidence float32, commit_step int32 (the step of the commit) and masked uint8,
    each [slots, max_block]; num_masked, step (+= 1) and status (1 = block finished, 0 = masks left), int32
    [slots]. A NaN confidence or an id below 0 in any of its rows sets status -1 and changes nothing else of
    the slot.
    """
    _edlm.unmask.default(
        ids,
        stats,
        first_row,
        threshold,
        steps_per_block,
        block_length,
        tokens,
        confidence,
        commit_step,
        masked,
        num_masked,
        step,
        status,
    )


def advance(
    tokens: Tensor,
    masked: Tensor,
    clean: Tensor,
    num_masked: Tensor,
    block_length: Tensor,
    step: Tensor,
    status: Tensor,
    active: Tensor,
    start: Tensor,
    pending: Tensor,
    end: Tensor,
    full_length: Tensor,
    stop_ids: Tensor,
    token_ids: Tensor,
    row_slots: Tensor,
    positions: Tensor,
    query_blocks: Tensor,
    head_rows: Tensor,
    head_slots: Tensor,
    head_positions: Tensor,
    first_row: Tensor,
    control: Tensor,
    snapshot: Tensor,
    ring: Tensor,
    host: Tensor,
    mask_id: int,
    shift: bool,
    lay_out_only: bool,
) -> None:
    """From one denoising step to the next without the host: take what unmask() left, lay out the next rows.

    State, int32 but for masked (uint8), in place. Per position, [slots, max_block]: tokens, masked, clean
    (the first `pending` are the tokens before the block). Per slot: num_masked, block_length, step, status as
    in unmask(); active (1: denoises), start (position of the block), pending (positions before it whose keys
    and values are still to be written: "clean rows"), end (position behind the last block), full_length (of
    every block but the last); stop_ids [slots, n], -1 = none. Of every active slot the pending rows are taken
    as written. It becomes inactive when its status is negative, when one of its stop_ids has no mask before
    it, when a block is finished and `end` reached, or when host says so; else a finished block's tokens
    become clean and a block of mask_id begins behind it. shift: the token at a position is predicted by the
    row before it, so the last clean row stays pending. mask_id -1 (autoregressive models): blocks of 1, and
    no noisy rows.

    Inputs of the next step for the slots [0, batch), as in ForwardInputs, with fixed places: row slot *
    max_block + j is position j of its block, behind all of these (batch * max_block) come as many clean rows;
    query_blocks int32 [2 * batch, 6], noisy ones first; head_rows, head_slots, head_positions int32 [batch *
    max_block], a slot's masked positions from slot * max_block on; first_row int32 [slots]. What is not used
    is padding (slot -1).

    control: int32 [4]: whether another step follows, whether it has clean rows, one that is left alone,
    snapshots written. snapshot: uint8 [n], memory of the state as it came, is copied to ring[written % rows],
    uint8 [rows, n] on the host, and host[0] = written follows. host: int32 [2 + slots] on the host: written,
    the host's wish to pause, and for every slot its wish to end it. lay_out_only: nothing ran since the last
    call: only lay out. On a GPU, ring and host must be pinned memory.
    """
    _edlm.advance.default(
        tokens, masked, clean, num_masked, block_length, step, status, active, start, pending, end,
        full_length, stop_ids, token_ids, row_slots, positions, query_blocks, head_rows, head_slots,
        head_positions, first_row, control, snapshot, ring, host, mask_id, shift, lay_out_only,
    )  # fmt: skip


for _name in (
    "rms_norm", "silu_mul", "quantize_rows", "linear", "qkv_prepare", "block_attention", "row_stats",
    "row_stats_int8", "unmask", "advance",
):  # fmt: skip
    torch.library.register_fake(f"edlm::{_name}", lambda *args: None)  # all results are in the arguments
