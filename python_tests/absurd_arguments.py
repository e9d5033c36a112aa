"""Arguments of the ops that are valid but for some absurdity: what op_fuzzer.py tries."""

from contextlib import suppress
from typing import NamedTuple

import torch
from op_cases import (
    ADVANCE_CASES,
    ATTENTION_CASES,
    QKV_CASES,
    STATS_CASES,
    advance_state,
    tensor,
    unmask_state,
)

from edlm_engine import ops
from edlm_engine.models.quantization import quantize_weight
from edlm_engine.steps.block_state import SLOT_WORDS, fields_of

INTEGERS = [
    0,
    1,
    -1,
    2,
    -2,
    3,
    8,
    64,
    2**15,
    2**24,
    2**31 - 1,
    2**31 - 1,
    2**31 - 2,
    -(2**31),
    2**30,
    -(2**30),
]
FLOATS = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    1e-45,
    1e-30,
    1e30,
    3e38,
    -3e38,
    float("inf"),
    -float("inf"),
    float("nan"),
    0.5,
]
WIDE = [2**32, -(2**32), 2**40, 2**62, 2**63 - 1, -(2**63)]  # of scalars
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int16,
          torch.int32, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn]  # fmt: skip


class Change(NamedTuple):
    """Of one argument: its place, what is done to it, and a number whose parts choose among many ways."""

    argument: int
    kind: str
    choice: int

    a = property(lambda self: self.choice & 0xFFFF)
    b = property(lambda self: self.choice >> 16 & 0xFFFF)
    c = property(lambda self: self.choice >> 32)


def _row_ops():
    for dtype in (torch.float32, torch.bfloat16):
        x = tensor((3, 40), dtype, 0)
        quantised = {"q": torch.zeros(3, 40, dtype=torch.uint8), "scale": torch.zeros(3)}
        norm = {"x": x, "delta": x + 1, "weight": x[0].clone(), "eps": 1e-6, "out": torch.zeros_like(x)}
        yield "rms_norm", norm | quantised
        yield "rms_norm", norm | {"delta": None, "q": None, "scale": None}
        yield "silu_mul", {"gate_up": tensor((3, 80), dtype, 1), "out": torch.zeros_like(x), **quantised}
        yield "quantize_rows", {"x": x, **quantised}
        weight = tensor((70, 40), dtype, 2)
        out = torch.zeros(3, 70, dtype=dtype)
        yield "linear", {"x": x, "x_scale": None, "weight": ops.pack_weight(weight), "out": out}
        packed, rows = ops.pack_int8_weight(*quantize_weight(weight)), torch.full((3, 40), 130).byte()
        yield "linear", {"x": rows, "x_scale": torch.ones(3), "weight": packed, "out": out}


def _cache_ops():
    for dtype in (torch.float32, torch.bfloat16):
        for case in (QKV_CASES["plain"], QKV_CASES["both"]):
            inputs = case.inputs(dtype)
            q = torch.zeros(len(inputs["slots"]), case.heads, case.cache.head_dim, dtype=dtype)
            yield "qkv_prepare", inputs | {"q": q, "eps": 1e-6}
        for name in ("one_row", "fused", "causal_suffix", "long"):
            case = ATTENTION_CASES[name]
            out = torch.zeros(case.rows, case.heads, case.cache.head_dim, dtype=dtype)
            yield "block_attention", case.inputs(dtype) | {"scale": case.scale, "out": out}


def _stats_ops():
    for name in ("odd", "two_ids", "sampled", "top_k", "top_p", "top_k_p"):
        case = STATS_CASES[name]
        inputs = case.inputs(torch.float32)
        inputs |= {"ids": torch.zeros(case.rows, 2, dtype=torch.int32), "stats": torch.zeros(case.rows, 5)}
        yield "row_stats", inputs
        if case.hidden_size % 4 == 0:
            q, scale = torch.full((case.rows, case.hidden_size), 131).byte(), torch.ones(case.rows)
            weight = ops.pack_int8_weight(*quantize_weight(inputs["weight"]))
            changed = {"hidden": q, "hidden_scale": scale, "weight": weight, "vocab": case.vocab}
            yield "row_stats_quantized", inputs | changed


def _state_ops():
    for number in range(8):
        state, *rest = unmask_state(slots=6, max_block=(1, 4, 8, 9)[number % 4], seed=number)
        yield "unmask", {"state": state.records} | dict(zip(("ids", "stats", "first_row"), rest, strict=True))
    names = ("state", "inputs", "control", "link", "flags")
    for slots, batch, max_block, switches in ADVANCE_CASES.values():
        a = advance_state(slots, batch, max_block, 1, **switches)
        yield "advance", dict(zip(names, a.arguments(), strict=True))
        compact = (a.flags | ops.COMPACT) & ~ops.SNAPSHOT
        yield "advance", dict(zip(names, (*a.clone().arguments()[:3], None, compact), strict=True))


SEEDS = [*_row_ops(), *_cache_ops(), *_stats_ops(), *_state_ops()]


# Each of these takes a tensor and a change, and gives another tensor.


def _one_value(t, change):
    if not t.numel():
        return t
    at = change.a % t.numel()
    t.view(-1)[at] = _extreme(t.dtype, change.b, t.view(-1)[at].item() if change.c % 3 == 0 else 0)
    return t


def _extreme(dtype: torch.dtype, choice: int, near=0):
    if dtype.is_floating_point:
        return FLOATS[choice % len(FLOATS)]
    if dtype == torch.int32:
        return max(-(2**31), min(2**31 - 1, INTEGERS[choice % len(INTEGERS)] + near))
    return choice % 2 if dtype == torch.bool else choice % 256


def _a_field(t, change):
    """Of the block state, by its name; of other tensors any value."""
    block_length = (t.shape[-1] - SLOT_WORDS) // len(ops.POSITION_FIELDS) if t.dim() == 2 else 0
    if t.dtype != torch.int32 or block_length < 1 or not len(t):
        return _one_value(t, change)
    fields = list(fields_of(t, block_length).values())
    field = fields[change.a % len(fields)][change.b % len(t)]
    field.fill_(_extreme(field.dtype, change.c))
    return t


def _all_values(t, change):
    return t.fill_(_extreme(t.dtype, change.a))


def _no_elements(t, change):
    """Of many rows or columns."""
    shape = list(t.shape) or [1]
    shape[change.a % len(shape)] = 0
    if change.b % 2:
        shape[change.c % len(shape)] = (0, 1, 2**31 - 1, 2**31, 2**40, 2**62)[change.b % 6]
    return torch.empty(shape if 0 in shape else [0], dtype=t.dtype)


def _another_size(t, change):
    if not t.dim():
        return t[None]
    dim = change.a % t.dim()
    size = (0, 1, t.shape[dim] - 1, t.shape[dim] + 1, 2 * t.shape[dim])[change.b % 5]
    return torch.cat((t, t), dim).narrow(dim, 0, max(0, min(size, 2 * t.shape[dim]))).clone()


def _another_form(t, change):
    if not t.dim():
        return t
    dim = change.a % t.dim()
    forms = (
        lambda: t.flatten(),
        lambda: t.flatten()[: t.numel() // 2],
        lambda: t[None],
        lambda: t.unsqueeze(-1),
        lambda: t.flip(dim),
        lambda: t.transpose(0, dim),
        lambda: torch.cat((t, t), dim)[..., ::2],
        lambda: t.narrow(dim, 0, min(1, t.shape[dim])).expand(t.shape),
        lambda: t.to_sparse(),
        lambda: t.to_mkldnn(),
        lambda: t.to("meta"),
    )
    return forms[change.b % len(forms)]()


def _another_type(t, change):
    dtype = DTYPES[change.a % len(DTYPES)]
    if change.b % 2 and t.dim() and t.shape[-1] * t.element_size() % dtype.itemsize == 0:
        return t.view(dtype)
    return t.to(dtype)


CHANGES = {
    "one value": _one_value, "a field": _a_field, "all values": _all_values, "no elements": _no_elements,
    "another size": _another_size, "another form": _another_form, "another type": _another_type,
}  # fmt: skip
OTHERS = ("none", "another's", "another's memory")  # of these arguments, and for scalars


def _changed_scalar(value, change):
    if isinstance(value, float):
        return FLOATS[change.a % len(FLOATS)]
    return (INTEGERS + WIDE)[change.a % len(INTEGERS + WIDE)]


def _is(value, dtype: torch.dtype) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == dtype


def changed(arguments: dict, changes: list[Change]) -> dict:
    names = list(arguments)
    for change in changes:
        # Half of the changes are made to what the kernels find their way by.
        guides = [name for name in names if _is(arguments[name], torch.int32)] if change.argument % 2 else []
        chosen = guides or names
        name, other = chosen[change.argument // 2 % len(chosen)], names[change.a % len(names)]
        value = arguments[name]
        with suppress(RuntimeError, NotImplementedError):  # where torch does not do that to such a tensor
            arguments[name] = _changed(value, change, arguments[other])
    return arguments


def _changed(value, change: Change, other):
    if change.kind == "none":
        return None
    if change.kind == "another's":
        return other
    if change.kind == "another's memory":
        return _in_memory_of(value, other)
    if isinstance(value, torch.Tensor):
        return CHANGES[change.kind](value, change) if value.layout == torch.strided else value
    return None if value is None else _changed_scalar(value, change)


def _in_memory_of(value, other):
    """A tensor like `value` at the beginning of `other`'s memory."""
    if not isinstance(value, torch.Tensor) or not isinstance(other, torch.Tensor) or value.is_sparse:
        return value
    if not other.is_contiguous() or other.is_meta or other.nbytes < value.nbytes or not value.nbytes:
        return value
    return other.view(-1).view(torch.uint8)[: value.nbytes].view(value.dtype).view(value.shape)
