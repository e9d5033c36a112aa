"""advance: the CUDA kernel under host_sim against the reference."""

import pytest
import torch
from host_sim import HostSim
from op_cases import ADVANCE_CASES, advance_state
from reference import ops as reference

READ_ONLY = {"end", "full_length", "stop_ids", "snapshot"}


@pytest.fixture(scope="module", params=["plain", "sanitized"])
def simulator(request) -> HostSim:
    return HostSim(request.param)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("case", ADVANCE_CASES.values(), ids=ADVANCE_CASES)
def test_random_states(simulator, case, seed):
    slots, batch, max_block, switches = case
    got = advance_state(slots, batch, max_block, seed, **switches)
    want = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in got.items()}
    reference.advance(**want)
    sizes = {
        "slots": slots, "batch": batch, "max_block": max_block, "stop_ids_per_slot": got["stop_ids"].shape[1],
        "ring_size": len(got["ring"]), "snapshot_bytes": len(got["snapshot"]),
    }  # fmt: skip
    tensors = {name for name, value in got.items() if isinstance(value, torch.Tensor)}
    flags = {name: int(value) for name, value in got.items() if name not in tensors}
    simulator.run(
        "advance", seed, tensors - READ_ONLY, **{n: got[n] for n in got if n in tensors}, **flags, **sizes
    )
    for name in tensors:
        assert torch.equal(got[name], want[name]), name
