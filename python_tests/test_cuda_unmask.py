"""unmask: the CUDA kernel under host_sim against the reference."""

import pytest
import torch
from host_sim import HostSim
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from op_cases import clone, unmask_state
from reference import ops as reference
from test_unmask import assert_same


@pytest.fixture(scope="module", params=["plain", "sanitized"])
def simulator(request) -> HostSim:
    return HostSim(request.param)


@pytest.mark.parametrize("max_block", [1, 8, 32, 130])
def test_random_states(simulator, max_block):
    @hypothesis_settings(max_examples=25, deadline=None, derandomize=True)
    @given(st.integers(0, 10**6))
    def check(seed):
        state, ids, stats, first_row = unmask_state(5, max_block, seed)
        if len(stats) and seed % 3 == 0:
            stats[seed % len(stats), 4] = torch.nan
        if len(ids) and seed % 5 == 0:
            ids[seed % len(ids), 1] = -1
        want = clone(state)
        reference.unmask(want, ids, stats, first_row)
        slots, words = state.records.shape
        simulator.run(
            "unmask", seed, ["state"], slots=slots, words=words, state=state.records, ids=ids, stats=stats,
            first_row=first_row,
        )  # fmt: skip
        assert_same(state, want)

    check()
