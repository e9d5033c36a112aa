"""The operators `torch.ops.edlm.*` and the tables that they share with this package, from the library beside
this file. (device_led/device_loop.py loads it, too: its functions are no tensor functions.)

Every op writes into tensors that the caller allocated and returns nothing. Tensors are contiguous and on one
device; `T` is float32 or bfloat16 (on a GPU also float16), the same for all tensors marked so; sums and
statistics are float32. Rows whose slot is -1 are padding: skipped, and their outputs left alone. Shapes:
`rows` query rows of one forward, over all sequences; `H` query heads, `K` key/value heads, `D` head size (a
multiple of 16, up to 1024; on a GPU 64 or 128), `P` page size (a power of two, at least 16). What an op
writes shares no memory with the integers that tell it where to write and to read. A wrong argument raises
ValueError with the argument's name, what it must be and what it is, before anything is written. On a GPU the
work is queued on the current stream and the values of integer tensors are not looked at: a wrong slot,
position, page or length is undefined behaviour there.
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
    _root = Path(__file__).parents[1]
    if (_root / "csrc").is_dir():
        raise ImportError(
            f"{_LIBRARY} is missing, since this is edlm_engine's source tree, which was not built: start "
            f"Python in another folder to use an installed edlm_engine, or build this one with "
            f"`pip install --no-build-isolation -e {_root}`"
        )
    raise ImportError(f"{_LIBRARY} is missing: install edlm_engine anew, which builds it")
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

# The lists that the kernels and this package share; csrc/tables.h writes them.
_tables = json.loads(_library_says("edlm_tables"))
SLOT_FIELDS: list[tuple[str, str, int]] = [tuple(field) for field in _tables["slot_fields"]]
POSITION_FIELDS: list[tuple[str, str]] = [tuple(field) for field in _tables["position_fields"]]
ID_COLUMNS: dict[str, int] = {name: i for i, name in enumerate(_tables["id_columns"])}
STAT_COLUMNS: dict[str, int] = {name: i for i, name in enumerate(_tables["stat_columns"])}
RULES: dict[str, int] = {name: i for i, name in enumerate(_tables["rules"])}
CONTROL_WORDS: int = _tables["control_words"]
TAKE, LAY_OUT, SNAPSHOT, COMPACT, SHIFT = (1 << bit for bit in range(5))  # of advance()


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
    query_blocks: int32 [n, 6] with columns slot (-1 = padding), start, length, kv_len, causal, row. A
    block's rows are q[row : row + length]; all blocks together have at most the rows of q. Each sees the
    keys [0, kv_len) of its slot; if causal, the last row sees kv_len keys and each earlier row one fewer.
    Nothing beyond them is used, whatever lies there. With bfloat16 the softmax weights are rounded to
    bfloat16 before they meet v.
    """
    _edlm.block_attention.default(q, k_cache, v_cache, query_blocks, page_table, scale, out)


def row_stats(
    hidden: Tensor,
    weight: Tensor,
    state: Tensor,
    slots: Tensor,
    positions: Tensor,
    forbidden_id: int,
    ids: Tensor,
    stats: Tensor,
) -> None:
    """The language-model head and the statistics of its logits z = hidden · weightᵀ, which are never written
    out.

    hidden: T [n, hidden_size]; weight: T [V, hidden_size]; slots, positions: int32 [n]. Of each slot's record
    in `state` (BlockState.records) temperature (0 = greedy), top_k (0 = off), top_p (1 = off), seed and step
    count. forbidden_id (-1 = none): its logit counts as -inf, in the choice and in the normaliser.
    ids: int32 [n, ID_COLUMNS] = argmax, chosen. stats: float32 [n, STAT_COLUMNS] = probability of the argmax,
    of the runner-up, entropy (nats), log-sum-exp, probability of the chosen id; all under the raw logits,
    without temperature.
    Chosen: the argmax, or with temperature the argmax of z / temperature + g over what top-k, then top-p
    leave (the shortest prefix of the sorted, renormalised softmax(z / temperature) that holds top_p). g =
    -log(-log(u)), u = ((bits >> 9) + 0.5) · 2⁻²³ from word id % 4 of Philox4x32-10 with key seed (low word,
    high word) and counter (id // 4, position, step, 0): Gumbel-max. Ties go to the lowest id.
    A NaN or +inf logit, or no finite one, makes the row's ids -1 and its stats NaN.
    """
    _edlm.row_stats.default(hidden, weight, state, slots, positions, forbidden_id, ids, stats)


def row_stats_quantized(
    hidden: Tensor,
    hidden_scale: Tensor,
    weight: Tensor,
    vocab: int,
    state: Tensor,
    slots: Tensor,
    positions: Tensor,
    forbidden_id: int,
    ids: Tensor,
    stats: Tensor,
) -> None:
    """row_stats() in int8, or on a GPU in float8, as hidden's type says: hidden and hidden_scale as
    quantize_rows() wrote them, weight of `vocab` outputs from pack_int8_weight() or pack_fp8_weight()."""
    _edlm.row_stats_quantized.default(
        hidden, hidden_scale, weight, vocab, state, slots, positions, forbidden_id, ids, stats
    )


def unmask(state: Tensor, ids: Tensor, stats: Tensor, first_row: Tensor) -> None:
    """Commit tokens of every slot's block from the statistics of its wanted positions, in place.

    state: int32 [slots, words], BlockState.records. ids: int32 [n, ID_COLUMNS] and stats: float32 [n,
    STAT_COLUMNS] as row_stats wrote them. Slot s with first_row[s] >= 0 (int32 [slots]; -1 = not denoising,
    left alone) owns one of their rows, from there on, for each j with wanted[s, j], in order.
    The slot's rule (RULES; csrc/step/commit_rule.h) orders the open positions among them by its key, ties by
    position, and commits a prefix of that order, at least the first: their chosen tokens, with confidence and
    the step as commit_step. step grows by 1; status becomes 1 where no position is open any more, else 0. A
    NaN or a chosen id below 0 in any of its rows sets status -1 and changes nothing else of the slot.
    """
    _edlm.unmask.default(state, ids, stats, first_row)


def advance(state: Tensor, inputs: Tensor | None, control: Tensor, link: Tensor | None, flags: int) -> None:
    """From one denoising step to the next: take what unmask() left, lay out the next rows.

    state: int32 [slots, words], BlockState.records, in place. flags: a sum of
    SNAPSHOT: first, the state as it came is copied to link[1 + written % ring_size], and link[0, 0] = written
      follows.
    TAKE: of every active slot the pending rows are taken as written. It becomes inactive when its status is
      negative, when one of its stop_ids has no open position before it and was not given, and when a block
      is finished and `end` reached; else a finished block's tokens become clean, and a block of masks begins
      behind it.
    LAY_OUT: the inputs of the next step, all parts of `inputs` in the order of ForwardInputs, int32, with
      room for `batch` slots. Row slot * max_block + j is position j of the slot's block; behind all of these
      come as many clean rows, in query blocks, too. A slot's wanted positions have their rows in head_rows
      from slot * max_block on. What is not used is padding (slot -1). Slots from `batch` on become inactive.
    COMPACT: the same without padding, one active slot behind the other, its clean rows first; control says
      how many rows, query blocks and head rows there are. On a CPU only.
    SHIFT: the token at a position is predicted by the row before it, so that the last clean row stays
      pending. Blocks of one position then have no rows of their own.
    control: int32 [CONTROL_WORDS]: whether another step follows, whether it has clean rows, one that is left
    alone, snapshots written, rows, query blocks, head rows. link: int32 [1 + ring_size, slots * words] on the
    host (None: nobody follows): its first row holds `written`, the host's wish to pause, and for every slot
    its wish to end it. On a GPU it must be pinned, and given.
    """
    _edlm.advance.default(state, inputs, control, link, flags)


for _name in (
    "rms_norm", "silu_mul", "quantize_rows", "linear", "qkv_prepare", "block_attention", "row_stats",
    "row_stats_quantized", "unmask", "advance",
):  # fmt: skip
    torch.library.register_fake(f"edlm::{_name}", lambda *args: None)  # all results are in the arguments
