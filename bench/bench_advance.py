import pytest
from op_cases import advance_state
from reference import ops as reference

from edlm_engine import ops


@pytest.mark.parametrize("slots", [1, 16])
@pytest.mark.parametrize("implementation", ["edlm", "reference"])
def bench(slots, implementation, benchmark, measure):
    benchmark.group = f"advance, {slots} blocks of 32"
    a = advance_state(slots, slots, 32, seed=3)
    before, control = a.state.records.clone(), a.control.clone()

    def work():
        a.state.records.copy_(before)
        a.control.copy_(control)
        if implementation == "edlm":
            ops.advance(*a.arguments())
        else:
            reference.advance(a.state, a.buffer, a.control, a.link, a.flags)

    measure(work)
