"""This engine: a job's forwards and generations, with random weights; edlm-tiny's problems."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from cases import steps_per_block, way, write_config
from timing import answer

from edlm_engine import Engine
from edlm_engine.tools.metering import step_times


def open_engine(job: dict, architecture: str = "EfficientDLM", **options) -> Engine:
    with tempfile.TemporaryDirectory() as folder:
        path = write_config(Path(folder) / job["size"], job["size"], architecture)
        return Engine(
            path, load_format="dummy", num_threads=job["threads"], kv_cache_tokens=4096, max_batch_size=1,
            quantization=job.get("quantization"), dtype="bfloat16", **options,
        )  # fmt: skip


def prompt(length: int) -> list[int]:
    return [(31 * i) % 151000 for i in range(length)]


def forwards(job: dict) -> dict:
    """{rows: ms} of a denoising step of so many masked rows behind the prefix, with head and unmasking."""
    times = step_times(open_engine(job, block_length=64), job["rows"], job["prefix"], seconds=2.0, at_least=5)
    return {rows: 1e3 * seconds for rows, seconds in times.items()}


def tokens_per_second(engine: Engine, prefix: int, count: int, **params) -> float:
    """Of a generation behind a prompt, the time of whose forward is left out."""
    steps, runner = [], engine._loop._runner
    plain = runner.step

    def timed(inputs):
        start = time.perf_counter()
        plain(inputs)
        steps.append(time.perf_counter() - start)

    runner.step = timed
    rates = []
    for _ in range(3):
        steps.clear()
        start = time.perf_counter()
        engine.generate(prompt(prefix), max_new_tokens=count, threshold=None, ignore_eos=True, **params)
        seconds = time.perf_counter() - start
        # the first step carries the prompt, too: count a usual one in its place
        rates.append(count / (seconds - steps[0] + statistics.median(steps[1:])))
    runner.step = plain
    return statistics.median(rates)


def generations(job: dict) -> dict:
    """{"AR": tokens/s, "block B, TPF t": tokens/s}."""
    with open_engine(job, "Qwen3ForCausalLM") as engine:
        found = {"AR": tokens_per_second(engine, job["prefix"], job["tokens"])}
    for block in job["blocks"]:
        with open_engine(job, block_length=block) as engine:
            for tpf in job["tpfs"]:
                steps = steps_per_block(block, tpf)
                rate = tokens_per_second(engine, job["prefix"], job["tokens"], steps_per_block=steps)
                found[way(block, steps)] = rate
    return found


def tiny(job: dict) -> dict:
    """{model: {"seconds_per_problem", "exact"}} of the bundled models on held-out problems, one at a time."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes" / "tiny"))
    import tasks
    from quick import sample

    problems, found = sample(job["count"]), {}
    for name, threshold in (("edlm-tiny", 0.99), ("edlm-tiny", 0.9), ("edlm-tiny-ar", None)):
        with Engine(name, num_threads=job["threads"], quantization=job.get("quantization")) as engine:
            engine.generate(problems[0].prompt, max_new_tokens=8)
            start = time.perf_counter()
            results = [engine.generate(p.prompt, max_new_tokens=80, threshold=threshold) for p in problems]
            seconds = (time.perf_counter() - start) / len(problems)
        exact = sum(tasks.score(p, r.text) for p, r in zip(problems, results, strict=True)) / len(problems)
        label = name if threshold is None else f"{name}, threshold {threshold}"
        found[label] = {"seconds_per_problem": seconds, "exact": exact}
    return found


if __name__ == "__main__":
    answer(lambda job: {"forwards": forwards, "generations": generations, "tiny": tiny}[job["what"]](job))
