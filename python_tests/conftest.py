import pytest
import torch

GUARD = 64  # elements before and after
SENTINEL = 77


@pytest.fixture
def guarded():
    """Makes output tensors that lie between guard bands; fails at the end if anything was written there."""
    bands = []

    def make(*shape: int, dtype: torch.dtype, fill: float | None = None) -> torch.Tensor:
        size = torch.Size(shape).numel()
        memory = torch.full((GUARD + size + GUARD,), SENTINEL, dtype=dtype)
        bands.extend((memory[:GUARD], memory[GUARD + size :]))
        out = memory[GUARD : GUARD + size].view(shape)
        return out if fill is None else out.fill_(fill)

    yield make
    for band in bands:
        assert bool((band == SENTINEL).all()), "an op wrote outside of its output"


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request) -> torch.dtype:
    return request.param


@pytest.fixture
def threads():
    """Sets torch's number of threads; the old one comes back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
