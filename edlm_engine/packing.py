"""How ops.linear() wants its weights: laid out once, by where they are."""

import torch
from torch import Tensor

PANEL = 32  # CPU: outputs that lie together
GROUP = 64  # GPU: outputs that lie together, kGroupOutputs in csrc/plan_cuda.h
STEP = 64  # GPU: bytes along the inputs that lie together, kStepBytes
MOST_INPUTS = 66000  # of one byte: sums of 255 * 127 still fit into int32 (csrc/ops/linear.cpp)


def on_gpu(device: torch.device) -> bool:
    """Whether CUDA kernels work on tensors of that device."""
    return device.type != "cpu"


def pack_weight(weight: Tensor) -> Tensor:
    """T [outputs, inputs] -> int32 for ops.linear(), on the weight's device.

    CPU: [panels, inputs / n, PANEL], units of n = 4 bytes of neighbouring inputs in panels of PANEL outputs.
    GPU (bfloat16 and float16): [groups, words], see csrc/plan_cuda.h. The last panel, or group, is filled up
    with zeros. Raises ValueError where inputs are no multiple of 4 bytes.
    """
    return _fragments(weight) if on_gpu(weight.device) else _panels(weight, 0)


def pack_int8_weight(weight: Tensor, scale: Tensor) -> Tensor:
    """int8 [outputs, inputs] within ±127 and the outputs' scales, float32 [outputs] -> int32 for
    ops.linear().

    CPU: [panels, inputs / 4 + 2, PANEL], behind a panel's units the sums of its columns and the scales.
    GPU: [groups, words], behind a group's words the scales. Raises ValueError for more than MOST_INPUTS
    inputs.
    """
    _check_one_byte_inputs(weight)
    if on_gpu(weight.device):
        return _fragments(weight, scale)
    packed = _panels(weight, 2)
    sums, scales = torch.zeros(2, len(packed) * PANEL, dtype=torch.int32, device=weight.device)
    for rows, part in zip(weight.split(512), sums[: len(weight)].split(512), strict=True):
        torch.sum(
            rows, 1, dtype=torch.int32, out=part
        )  # torch widens a whole copy first: not of a whole head
    scales[: len(weight)] = scale.view(torch.int32)
    packed[:, -2], packed[:, -1] = sums.view(-1, PANEL), scales.view(-1, PANEL)
    return packed


def pack_fp8_weight(weight: Tensor, scale: Tensor) -> Tensor:
    """The same for float8_e4m3fn, on a GPU only."""
    if not on_gpu(weight.device):
        raise ValueError("a float8 weight is packed for a GPU only; the CPU has int8 kernels")
    _check_one_byte_inputs(weight)
    return _fragments(weight, scale)


def _check_one_byte_inputs(weight: Tensor):
    if weight.shape[1] > MOST_INPUTS:
        raise ValueError(
            f"a weight of one-byte elements has at most {MOST_INPUTS} inputs, so that sums fit into int32, "
            f"got {weight.shape[1]}; without quantization there is no such limit"
        )


def unpack_weight(packed: Tensor, outputs: int, inputs: int, dtype: torch.dtype) -> Tensor:
    """The weight [outputs, inputs] that pack_weight() packed on a GPU."""
    width = inputs * dtype.itemsize
    steps = -(-width // STEP)
    parts = packed.view(len(packed), steps, 4, 2, 8, 4, 2, 2)  # [group, step, p, s, g, t, r, h]
    rows = parts.permute(0, 2, 7, 4, 1, 5, 3, 6).reshape(-1, steps * STEP // 4)
    return rows.view(dtype)[:outputs, :inputs]


def _fragments(weight: Tensor, scale: Tensor | None = None) -> Tensor:
    """The GPU's layout (csrc/plan_cuda.h). Output 16 p + 8 h + g of a group, bytes 16 t + 8 s + 4 r and the
    three behind them of a step are register h + 2 r of lane 4 g + t of half s of panel p."""
    outputs, inputs = weight.shape
    width = inputs * weight.element_size()
    if width % 4:
        raise ValueError(f"a packed weight needs a multiple of 4 bytes along its inputs, got {inputs} inputs")
    groups, steps, words = -(-outputs // GROUP), -(-width // STEP), GROUP * STEP // 4
    filled = weight.new_zeros(groups * GROUP, steps * STEP // 4, dtype=torch.int32)
    filled[:outputs, : width // 4] = weight.contiguous().view(torch.int32)
    parts = filled.view(groups, 4, 2, 8, steps, 4, 2, 2)  # [group, p, h, g, step, t, s, r]
    packed = filled.new_zeros(groups, steps * words + (0 if scale is None else GROUP))
    fragments = packed[:, : steps * words].view(groups, steps, 4, 2, 8, 4, 2, 2)
    fragments.copy_(parts.permute(0, 4, 1, 6, 3, 5, 7, 2))
    if scale is not None:
        scales = filled.new_zeros(groups * GROUP)
        scales[:outputs] = scale.view(torch.int32)
        packed[:, steps * words :] = scales.view(groups, GROUP)
    if packed.is_cuda:  # linear() begins to read its weight before the kernel ahead of it has ended
        torch.cuda.synchronize(packed.device)
    return packed


def _panels(weight: Tensor, spare: int) -> Tensor:
    """The units in their panels, and room for `spare` rows behind each."""
    outputs, inputs = weight.shape
    if inputs * weight.element_size() % 4:
        raise ValueError(f"a packed weight needs a multiple of 4 bytes along its inputs, got {inputs} inputs")
    units = weight.contiguous().view(torch.int32)
    whole, depth = outputs // PANEL, units.shape[1]
    packed = units.new_empty(-(-outputs // PANEL), depth + spare, PANEL)
    packed[:whole, :depth] = units[: whole * PANEL].view(whole, PANEL, depth).transpose(1, 2)
    if outputs % PANEL:
        packed[-1].zero_()
        packed[-1, :depth, : outputs % PANEL] = units[whole * PANEL :].T
    return packed
