import pytest
from op_cases import advance_state
from reference import ops as reference

from edlm_engine import ops


@pytest.mark.parametrize("slots", [1, 16])
@pytest.mark.parametrize("implementation", ["edlm", "reference"])
def bench(slots, implementation, benchmark, measure):
    benchmark.group = f"advance, {slots} blocks of 32"
    arguments = advance_state(slots, slots, 32, seed=3)
    way = {"edlm": ops.advance, "reference": reference.advance}[implementation]
    changing = ("active", "start", "pending", "control")
    before = {name: arguments[name].clone() for name in changing}

    def work():
        for name, value in before.items():
            arguments[name].copy_(value)
        way(**arguments)

    measure(work)
