"""unmask: the CUDA kernel under host_sim against the reference."""

import math

import pytest
import torch
from host_sim import HostSim
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from reference import ops as reference

STATE = ["tokens", "confidence", "commit_step", "masked", "num_masked", "step", "status"]


def random_state(seed: int, slots: int, max_block: int) -> dict:
    """Slots of all kinds: not denoising, without masks, thresholds and schedules, ties, a NaN in one."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low, high, *shape):
        return torch.randint(low, high, shape, generator=generator, dtype=torch.int32)

    masked = (torch.rand(slots, max_block, generator=generator) < 0.6).to(torch.uint8)
    num_masked = masked.sum(1, dtype=torch.int32)
    first_row = (num_masked.cumsum(0) - num_masked).to(torch.int32)
    rows = max(1, int(num_masked.sum()))
    first_row[torch.rand(slots, generator=generator) < 0.2] = -1
    stats = torch.rand(rows, 5, generator=generator)
    stats[:, 4] = (stats[:, 4] * 8).round() / 8  # ties
    threshold = torch.rand(slots, generator=generator)
    threshold[torch.rand(slots, generator=generator) < 0.5] = math.nan
    ids = integers(0, 1000, rows, 2)
    if seed % 3 == 0:
        stats[seed % rows, 4] = math.nan
    if seed % 5 == 0:
        ids[seed % rows, 1] = -1
    return {
        "ids": ids, "stats": stats, "first_row": first_row, "threshold": threshold,
        "steps_per_block": integers(0, 9, slots), "block_length": integers(1, max_block + 1, slots),
        "tokens": integers(0, 1000, slots, max_block),
        "confidence": torch.rand(slots, max_block, generator=generator),
        "commit_step": integers(0, 9, slots, max_block), "masked": masked, "num_masked": num_masked,
        "step": integers(0, 9, slots), "status": integers(-1, 2, slots),
    }  # fmt: skip


@pytest.fixture(scope="module", params=["plain", "sanitized"])
def simulator(request) -> HostSim:
    return HostSim(request.param)


@pytest.mark.parametrize("max_block", [1, 8, 32, 130])
def test_random_states(simulator, max_block):
    @hypothesis_settings(max_examples=25, deadline=None, derandomize=True)
    @given(st.integers(0, 10**6))
    def check(seed):
        state = random_state(seed, 5, max_block)
        want = {name: tensor.clone() for name, tensor in state.items()}
        reference.unmask(**want)
        simulator.run("unmask", seed, STATE, slots=5, max_block=max_block, **state)
        for name in STATE:
            assert torch.equal(state[name], want[name]), name

    check()
