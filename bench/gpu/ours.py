"""The engine in models.py: its steps by themselves, generations end to end, and the ways of its loop."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import torch
from paper import PaperModel
from stopwatch import Stopwatch

from edlm_engine import Engine
from edlm_engine.core.scheduler import Plan
from edlm_engine.device_led.run_ahead import RunAhead
from edlm_engine.policies import Schedule
from edlm_engine.steps.block_state import OPEN
from edlm_engine.steps.inputs import ForwardInputs
from edlm_engine.tools.metering import Meter
from edlm_engine.tools.profiling import gpu_activity

PROFILED_BLOCKS = 4


def with_engine(
    model: PaperModel, folder: Path, device: str, quantization: str | None, measure: Callable, *,
    batch: int, tokens: int,
) -> None:  # fmt: skip
    """measure(meter) on an engine with random weights, of which nothing is left afterwards. tokens: positions
    of its cache, or as many as there is memory for."""
    options = {"load_format": "dummy", "device": device, "dtype": "bfloat16", "quantization": quantization,
               "max_batch_size": batch}  # fmt: skip
    path = model.write_config(folder)
    try:
        engine = Engine(path, kv_cache_tokens=tokens, **options)
    except torch.OutOfMemoryError:
        engine = Engine(path, **options)
    with engine:
        cache = engine._loop._runner.cache
        for tensor in (*cache.keys, *cache.values):  # what lies there by chance may be zeros or NaN
            tensor.normal_()
        measure(Meter(engine))


def release() -> None:
    """Give back the memory of what is no longer used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@torch.inference_mode()
def step_seconds(meter: Meter, watch: Stopwatch, prefix: int, batch: int) -> dict[str, float]:
    """{"step_ms", "forward_ms"} of `batch` blocks of masks behind so many positions each: with head,
    statistics and unmasking, and the model alone. No prompt is computed for them: the cache holds random
    numbers.

    Raises ValueError if the cache has no room.
    """
    runner = meter.engine._loop._runner
    cache, block = runner.cache, meter.engine.decoding.block_length
    slots = []
    try:
        for _ in range(batch):
            slot = cache.reserve(prefix + block)
            if slot is None:
                raise ValueError(f"no memory for {batch} x {prefix + block} positions of keys and values")
            slots.append(slot)
        inputs = masked_blocks(meter.engine, slots, prefix, block)
        return {
            "step_ms": 1e3 * watch.seconds([lambda: runner.compute(inputs)]),
            "forward_ms": 1e3 * watch.seconds([lambda: runner.model.forward(inputs, cache)]),
        }
    finally:
        for slot in slots:
            runner.state.host.active[slot] = 0
            cache.release(slot)


def masked_blocks(engine: Engine, slots: list[int], prefix: int, block: int) -> ForwardInputs:
    scheduler, state = engine._loop._scheduler, engine._loop._runner.state
    for slot in slots:
        state.begin_request(slot, Schedule())
        state.begin_sequence(slot, prefix, [1] * engine.decoding.token_shift, prefix + block, block, ())
        state.begin_block(slot, [OPEN] * block)
        state.host.active[slot] = 1
    state.upload()
    return scheduler.lay_out(Plan())


def lead_by(engine: Engine, stepping: str) -> None:
    """Let another side lead the engine's steps from now on. It must be idle."""
    loop = engine._loop
    leader = stepping != "eager" and RunAhead(stepping, loop._scheduler, loop._runner, engine.decoding)
    loop._leader = leader or None


def prompts(model: PaperModel, prefix: int, batch: int) -> list[list[int]]:
    return [[(31 * i + 7919 * seed) % (model.vocab - 2) for i in range(prefix)] for seed in range(batch)]


def schedule(model: PaperModel, tokens: int) -> dict:
    """Parameters that make the paper's tokens per forward whatever the tokens are."""
    return {"max_new_tokens": tokens, "threshold": None, "steps_per_block": model.steps, "ignore_eos": True}


def generation(meter: Meter, model: PaperModel, prefix: int, batch: int, tokens: int) -> dict:
    """tokens/s of a batch, its prompts' forwards included, as measured and as it would be at exactly the
    paper's tokens per forward; and the figures of Meter.run."""
    asked, params = prompts(model, prefix, batch), schedule(model, tokens)
    meter.run(asked, **(params | {"max_new_tokens": 2 * model.block}))  # captures, and grows buffers
    found = meter.run(asked, **params)
    found["stepping"] = meter.engine.stepping  # it may have fallen back from what was asked for
    return found | at_paper_tpf(model, found["tokens_per_s"], found["tokens_per_forward"])


def at_paper_tpf(model: PaperModel, tokens_per_s: float, tpf: float) -> dict:
    return {"tokens_per_s": tokens_per_s, "tokens_per_forward": tpf,
            "tokens_per_s_scaled_to_paper_tpf": tokens_per_s * model.tpf / tpf}  # fmt: skip


def loop_figures(meter: Meter, model: PaperModel, stepping: str, prefix: int, tokens: int) -> dict:
    """generation() of one sequence, led so."""
    lead_by(meter.engine, stepping)
    return generation(meter, model, prefix, 1, tokens)


def loop_activity(meter: Meter, model: PaperModel, stepping: str, prefix: int) -> dict:
    """The same under torch's profiler: gpu_activity's figures."""
    lead_by(meter.engine, stepping)
    asked, params = prompts(model, prefix, 1), schedule(model, PROFILED_BLOCKS * model.block)
    meter.run(asked, **params)  # captures
    return gpu_activity(meter.engine, asked, params)
