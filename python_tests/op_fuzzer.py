"""Calls the ops with absurd arguments; a process of its own, since what it looks for may end it.

`python op_fuzzer.py <cases> <seed> <file>`: the file holds the case under way, as JSON; printed is how many
calls of each op did their work, and how many were refused. `python op_fuzzer.py <case>` runs one case again.
"""

import json
import resource
import signal
import sys
from collections import Counter
from pathlib import Path

import torch
from absurd_arguments import CHANGES, OTHERS, SEEDS, Change, changed
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

GUARD = 256  # bytes around every tensor; a sanitizer's red zones lie closer without them
SENTINEL = 0x5A
SECONDS = 20  # for one call
MEMORY = 4 << 30  # more than the process has before the first call
REFUSALS = (ValueError, RuntimeError, TypeError, NotImplementedError, MemoryError)
OPS = sorted({op for op, _ in SEEDS})


class Guarded:
    """A tensor's copy between bands that no op may write."""

    def __init__(self, value: torch.Tensor, guard: int):
        raw = value.contiguous().view(-1).view(torch.uint8)
        self.memory = torch.full((guard + len(raw) + guard,), SENTINEL, dtype=torch.uint8)
        self.inside = self.memory[guard : guard + len(raw)]
        self.inside.copy_(raw)
        self.tensor = self.inside.view(value.dtype).view(value.shape)
        self.bands = self.memory[:guard], self.memory[guard + len(raw) :]
        self.before = raw.clone()

    def intact(self) -> bool:
        return all(bool((band == SENTINEL).all()) for band in self.bands)


def _lies_dense(t: torch.Tensor) -> bool:
    return t.layout == torch.strided and not t.is_meta and t.is_contiguous() and t.numel() > 0


def call(case: dict, guard: int = GUARD) -> bool:
    """Whether the op did its work; False: it refused. Anything else is an AssertionError, or the end."""
    op, arguments = SEEDS[case["seed"]]
    arguments = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    arguments = changed(arguments, [Change(*change) for change in case["changes"]])
    guarded = {}
    if not any(change[1].startswith("another's") for change in case["changes"]):
        for name, value in arguments.items():
            if isinstance(value, torch.Tensor) and _lies_dense(value):
                guarded[name] = Guarded(value, guard)
    native = getattr(torch.ops.edlm, op).default
    values = arguments | {name: g.tensor for name, g in guarded.items()}
    try:
        native(*(values[argument.name] for argument in native._schema.arguments))
        done = True
    except REFUSALS as error:
        done = False
        assert not isinstance(error, ValueError) or str(error).startswith(f"edlm::{op}: "), error
    writable = {a.name for a in native._schema.arguments if a.alias_info and a.alias_info.is_write}
    for name, g in guarded.items():
        assert g.intact(), f"{op} wrote outside of {name}"
        assert name in writable or torch.equal(g.inside, g.before), f"{op} changed {name}"
    return done


def limit_memory():
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)


def run(cases: int, number: int, log, guard: int) -> dict[str, Counter]:
    counts = {op: Counter() for op in OPS}
    kinds = st.sampled_from([*CHANGES, *["one value", "a field"] * 3, *OTHERS])
    change = st.tuples(st.integers(0, 31), kinds, st.integers(0, 2**48 - 1))
    op_seeds = {op: [i for i, (name, _) in enumerate(SEEDS) if name == op] for op in OPS}
    seeds = st.sampled_from(OPS).flatmap(lambda op: st.sampled_from(op_seeds[op]))

    @seed(number)
    @settings(max_examples=cases, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.fixed_dictionaries({"seed": seeds, "changes": st.lists(change, max_size=4)}))
    def every(case):
        log.seek(0)
        log.write(json.dumps(case).ljust(1000))
        log.flush()
        signal.alarm(SECONDS)
        done = call(case, guard)
        signal.alarm(0)
        counts[SEEDS[case["seed"]][0]]["done" if done else "refused"] += 1

    every()
    return counts


if __name__ == "__main__":
    limit_memory()
    if len(sys.argv) == 2:
        print(call(json.loads(sys.argv[1])))
    else:
        cases, number, log = sys.argv[1:4]
        guard = int(sys.argv[4]) if len(sys.argv) > 4 else GUARD
        with open(log, "w") as file:
            print(json.dumps(run(int(cases), int(number), file, guard)))
