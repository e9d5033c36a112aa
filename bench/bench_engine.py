"""End-to-end latency on one thread: the bundled model on its examples, random weights of the 0.6B shape.

Random weights are never sure of anything, so the 0.6B runs the fixed schedule: its tokens per forward are set
here, and the time per forward is what is measured. Columns beside the time (printed, and in
`--benchmark-json`) are medians of the rounds.
"""

import json
import statistics

import pytest
from shapes import write_config

from edlm_engine import Engine
from edlm_engine.checkpoints.folder import ASSETS
from edlm_engine.tools.metering import Meter


@pytest.fixture
def report(benchmark, request):
    """report(meter, prompts, columns, rounds=…, **params): benchmarks meter.run and notes the medians."""

    def run(meter: Meter, prompts, *columns: str, rounds: int, **params):
        measured = []
        benchmark.pedantic(
            lambda: measured.append(meter.run(prompts, **params)), rounds=rounds, warmup_rounds=1
        )
        measured = measured[1:] or measured  # without the warm-up
        for name in columns:
            benchmark.extra_info[name] = round(statistics.median(r[name] for r in measured), 4)
        benchmark.extra_info["dtype"] = meter.engine.dtype
        told = ", ".join(f"{name} {value}" for name, value in benchmark.extra_info.items())
        print(f"\n{request.node.name}: {told}", end="")

    return run


GENERATION = (
    "tokens_per_s",
    "forwards_per_s",
    "tokens_per_forward",
    "ms_per_forward",
    "head_and_unmask_share",
    "scheduler_and_python_share",
    "outside_forward_share",
)
PREFILL = ("prompt_tokens_per_s", "outside_forward_share")


@pytest.fixture(scope="module")
def tiny():
    examples = ASSETS / "edlm-tiny" / "examples.json"
    if not examples.exists():
        pytest.skip("edlm-tiny is not in the package")
    with Engine("edlm-tiny", num_threads=1) as engine:
        yield Meter(engine), [example["prompt"] for example in json.loads(examples.read_text())]


@pytest.fixture(scope="module")
def dummy(tmp_path_factory):
    folder = write_config(tmp_path_factory.mktemp("shapes") / "0.6B", "0.6B")
    with Engine(folder, load_format="dummy", num_threads=1, kv_cache_tokens=8192) as engine:
        yield Meter(engine)


@pytest.mark.parametrize("threshold", (0.9, None), ids=("threshold 0.9", "one token per step"))
def bench_tiny_alone(tiny, report, benchmark, threshold):
    meter, prompts = tiny
    benchmark.group = "edlm-tiny, one request"
    report(meter, prompts[:1], *GENERATION, rounds=5, max_new_tokens=96, threshold=threshold)


def bench_tiny_batch(tiny, report, benchmark):
    meter, prompts = tiny
    benchmark.group = "edlm-tiny, all examples at once"
    report(meter, prompts, *GENERATION, rounds=5, max_new_tokens=96)


@pytest.mark.parametrize("prefix", (64, 1024))
def bench_06b_alone(dummy, report, benchmark, prefix):
    """One block of 32 in 8 steps: the first forward carries the prompt, the median one does not."""
    benchmark.group = "0.6B, one request, 32 new tokens in 8 forwards"
    params = {"max_new_tokens": 32, "threshold": None, "steps_per_block": 8, "ignore_eos": True}
    report(dummy, [_ids(prefix)], *GENERATION, rounds=3 if prefix < 512 else 1, **params)


def bench_06b_batch(dummy, report, benchmark):
    benchmark.group = "0.6B, four requests, 32 new tokens each in 8 forwards"
    params = {"max_new_tokens": 32, "threshold": None, "steps_per_block": 8, "ignore_eos": True}
    report(dummy, [_ids(64, seed) for seed in range(4)], *GENERATION, rounds=2, **params)


def bench_06b_prefill(dummy, report, benchmark):
    """A prompt of 512 and one token: prompt tokens per second, in one forward."""
    benchmark.group = "0.6B, prompt of 512, one new token"
    report(dummy, [_ids(512)], *PREFILL, rounds=2, max_new_tokens=1, threshold=None, ignore_eos=True)


def _ids(count: int, seed: int = 0) -> list[int]:
    return [(31 * i + 7919 * seed) % 151000 for i in range(count)]
