import pytest
from op_cases import unmask_state
from reference import ops as reference

from edlm_engine import ops


@pytest.mark.parametrize("slots", [1, 32])
@pytest.mark.parametrize("implementation", ["edlm", "reference"])
def bench(slots, implementation, benchmark, measure):
    benchmark.group = f"unmask, {slots} blocks of 32"
    state = unmask_state(slots, 32, seed=3)
    way = {"edlm": ops.unmask, "reference": reference.unmask}[implementation]

    def work():
        way(**{name: tensor.clone() for name, tensor in state.items()})

    measure(work)
