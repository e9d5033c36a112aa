"""advance: the CUDA kernel under host_sim against the reference."""

import pytest
import torch
from host_sim import HostSim
from op_cases import ADVANCE_CASES, advance_state
from reference import ops as reference


@pytest.fixture(scope="module", params=["plain", "sanitized"])
def simulator(request) -> HostSim:
    return HostSim(request.param)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("case", ADVANCE_CASES.values(), ids=ADVANCE_CASES)
def test_random_states(simulator, case, seed):
    slots, batch, max_block, switches = case
    got = advance_state(slots, batch, max_block, seed, **switches)
    want = got.clone()
    reference.advance(want.state, want.buffer, want.control, want.link, want.flags)
    slots, words = got.state.records.shape
    simulator.run(
        "advance", seed, ["state", "inputs", "control", "link"], slots=slots, words=words, batch=batch,
        flags=got.flags, ring_size=len(got.link) - 1, state=got.state.records, inputs=got.buffer.buffer,
        control=got.control, link=got.link,
    )  # fmt: skip
    for name, value in got.tensors().items():
        assert torch.equal(value, want.tensors()[name]), name
