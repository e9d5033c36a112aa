"""A step of the engine on a device that is not the CPU: torch's "meta" tensors have shapes, types and a
device, but no data. So nothing may look at a value, and no tensor may meet one that lies elsewhere."""

import pytest
import torch
from checkpoints import config_dict, write_checkpoint
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edlm_engine.checkpoints.checkpoint import Checkpoint
from edlm_engine.checkpoints.dummy import DummyTensors
from edlm_engine.core.runner import Runner
from edlm_engine.models.weights import load_transformer
from edlm_engine.steps.block_state import BlockState
from edlm_engine.steps.inputs import ForwardInputs, QueryBlock, append_blocks
from edlm_engine.steps.kv_cache import PagedKVCache

ELSEWHERE = torch.device("meta")
MOVES = ("_to_copy", "copy_", "_copy_from")
OPS = {"rms_norm", "silu_mul", "qkv_prepare", "block_attention", "unmask"}
PRODUCTS = {None: {"row_stats"}, "int8": {"quantize_rows", "linear", "row_stats_quantized"}}
PRODUCTS["fp8"] = PRODUCTS["int8"]


class Watch(TorchDispatchMode):
    """Notes the engine's ops; whatever runs must have all tensors on one device, but for moving them."""

    def __init__(self):
        super().__init__()
        self.ops = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        if func.namespace == "edlm":
            self.ops.add(func._opname)
        if func._opname not in MOVES:
            assert {tensor.device for tensor in tensors} <= {ELSEWHERE}, func
        return func(*args, **(kwargs or {}))


class DeviceState(BlockState):
    """A BlockState whose two sides cannot be copied into each other: one of them has no data."""

    def __init__(self, slots: int, length: int):
        super().__init__(slots, length, 127, ELSEWHERE)
        self.moves = []

    def upload(self):
        self.moves.append("up")

    def download(self):
        self.moves.append("down")


def some_inputs() -> ForwardInputs:
    """A block of masks in slot 1, all of it wanted, and a prompt in slot 0."""
    positions = torch.arange(16, 32, dtype=torch.int32)
    ones, rows = torch.ones(16, dtype=torch.int32), torch.arange(16, dtype=torch.int32)
    table = torch.tensor([[1, 16, 16, 32, 0, 0]], dtype=torch.int32)
    first_row = torch.tensor([-1, 0], dtype=torch.int32)
    block = ForwardInputs(127 * ones, ones, positions, table, rows, ones, positions, first_row)
    return append_blocks(block, [(QueryBlock(0, 0, 5, 5), list(range(5)))])


@pytest.mark.parametrize("arch", ["qwen3", "qwen2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("quantization", PRODUCTS)
def test_a_step(tmp_path, arch, dtype, quantization):
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "model", config_dict(arch, head_dim=64)))
    inputs = some_inputs()
    for name in inputs.__dataclass_fields__:
        setattr(inputs, name, getattr(inputs, name).to(ELSEWHERE))
    model = load_transformer(
        checkpoint.model, DummyTensors(), checkpoint.names, dtype, ELSEWHERE, quantization=quantization
    )
    cache = PagedKVCache(checkpoint.model, 256, 2, dtype, ELSEWHERE)
    state = DeviceState(2, 16)
    slot = cache.reserve(70)
    with Watch() as watch:
        Runner(model, cache, state).step(inputs)
    cache.release(slot)
    assert watch.ops == OPS | PRODUCTS[quantization]
    assert state.moves == ["up", "down"]  # the download is the one time that the host waits


def test_the_watch_sees_a_tensor_that_stayed_behind():
    with Watch(), pytest.raises(AssertionError):
        torch.ones(2, device=ELSEWHERE) + torch.ones(2)
