import pytest
from op_cases import clone, unmask_state
from reference import ops as reference

from edlm_engine import ops


@pytest.mark.parametrize("slots", [1, 32])
@pytest.mark.parametrize("implementation", ["edlm", "reference"])
def bench(slots, implementation, benchmark, measure):
    benchmark.group = f"unmask, {slots} blocks of 32"
    before, *rows = unmask_state(slots, 32, seed=3)
    state = clone(before)

    def work():
        state.records.copy_(before.records)
        if implementation == "edlm":
            ops.unmask(state.records, *rows)
        else:
            reference.unmask(state, *rows)

    measure(work)
