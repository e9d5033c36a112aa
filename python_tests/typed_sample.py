"""How programs use the package, for a type checker to read: it is never run. What is wrong on purpose stands
beside an ignore[...], which the checker rejects where it is not needed."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import torch

import edlm_engine
from edlm_engine import (
    CapacityError,
    CheckpointError,
    Chunk,
    Engine,
    EngineBusyError,
    EngineClosedError,
    EngineStats,
    Forwards,
    Generation,
    NumericalError,
    RequestTimeoutError,
    SamplingParams,
    policies,
)
from edlm_engine.benchmark import Latencies, Sample, measure
from edlm_engine.policies import EntropyBound, Factor, Frechet, Margin, Policy, Schedule, Threshold

MESSAGES = [{"role": "user", "content": "Sort [31, 4, 15]."}]


def make() -> Engine:
    Engine(
        Path("folder"), device="cuda:1", dtype="bfloat16", quantization="int8", settings="edlm_settings.json"
    )
    Engine("edlm-tiny", settings={"sampling": {"threshold": 0.8}}, max_waiting=8, local_files_only=True)
    Engine("edlm-tiny", device=None, dtype=None, max_batch_size=None, stepping=None, load_format=None)
    return Engine("edlm-tiny", device=torch.device("cpu"), dtype=torch.bfloat16)


def generate(engine: Engine, n: int | None) -> None:
    assert_type(engine.generate("x"), Generation)
    assert_type(engine.generate([1, 2], max_new_tokens=8, stop=["a"], timeout=2.5, priority=1), Generation)
    assert_type(engine.generate(np.array([1, 2], dtype=np.int32)), Generation)
    assert_type(engine.generate(torch.tensor([1, 2]), SamplingParams(temperature=0.5, seed=1)), Generation)
    assert_type(engine.generate((i for i in range(3)), progress=True), Generation)
    assert_type(engine.generate(["x", "y"]), list[Generation])
    assert_type(engine.generate(("x", "y"), [SamplingParams(), SamplingParams()]), list[Generation])
    assert_type(engine.generate([[1, 2], [3]], SamplingParams(policy="factor:1")), list[Generation])
    assert_type(engine.generate([torch.tensor([1]), torch.tensor([2])]), list[Generation])
    assert_type(engine.generate(line for line in ("x", "y")), list[Generation])
    assert_type(engine.generate("x", n=2), list[Generation])
    assert_type(engine.generate(["x", "y"], n=2), list[list[Generation]])
    assert_type(engine.generate("x", n=n), Generation | list[Generation])
    assert_type(engine.chat(MESSAGES), Generation)
    assert_type(engine.chat(MESSAGES, n=2, tools=[{"type": "function"}], threshold=0.7), list[Generation])
    engine.chat([{"role": "user", "content": [{"type": "text", "text": "x"}]}], continue_final_message=True)
    assert_type(engine.chat_prompt(MESSAGES, add_generation_prompt=False), str)


def read(result: Generation) -> None:
    assert_type(result.text, str)
    assert_type(result.token_ids, list[int])
    assert_type(result.confidences, list[float])
    assert_type(result.tokens_per_forward, float)
    assert_type(result.queue_seconds, float)
    assert_type(result.forwards, Forwards)


def stream(engine: Engine) -> None:
    with engine.stream("x", threshold=None) as chunks:
        for chunk in chunks:
            assert_type(chunk, Chunk)
            assert_type(chunk.delta, str)
            assert_type(chunk.generation, Generation | None)
    engine.stream_chat(MESSAGES, template_kwargs={"enable_thinking": False}, seed=3).close()


async def on_an_event_loop() -> None:
    async with Engine("edlm-tiny") as engine:
        assert_type(engine, Engine)
        assert_type(await engine.agenerate("x"), Generation)
        assert_type(await engine.agenerate(["x"], timeout=1), list[Generation])
        assert_type(await engine.agenerate("x", n=2), list[Generation])
        assert_type(await engine.agenerate(["x"], n=2), list[list[Generation]])
        assert_type(await engine.achat(MESSAGES), Generation)
        assert_type(await engine.achat(MESSAGES, n=3, documents=None), list[Generation])
        both = await asyncio.gather(engine.agenerate("x"), asyncio.create_task(engine.achat(MESSAGES)))
        assert_type(both, tuple[Generation, Generation])
        async for chunk in engine.astream("x"):
            assert_type(chunk, Chunk)
        async with engine.astream_chat(MESSAGES, priority=2) as chunks:
            assert_type([chunk.text async for chunk in chunks], list[str])


def watch(engine: Engine) -> None:
    stats = engine.stats()
    assert_type(stats, EngineStats)
    assert_type(stats.running, int)
    assert_type(stats.to_dict(), dict[str, float])
    assert_type(engine.default_params, SamplingParams)
    assert_type(engine.stepping, str)
    assert_type(engine.device, str)
    assert_type(engine.kv_cache_tokens, int)
    if engine.tokenizer is not None:
        assert_type(engine.tokenizer.encode("x"), list[int])


@dataclass(frozen=True)
class Everything:
    """A policy of one's own."""

    rule = None
    wants = "open"

    def parameters(self) -> tuple[float, ...]:
        return ()

    def select(self, open: torch.Tensor, stats: policies.Statistics) -> torch.Tensor:
        return open


def choose() -> list[Policy]:
    SamplingParams(policy=Everything())
    assert_type(policies.Threshold(0.9), Threshold)
    assert_type(edlm_engine.policies.EntropyBound(0.1), EntropyBound)
    assert_type(policies.parse("threshold:0.8"), Policy)
    assert_type(policies.describe(Threshold()), str)
    assert_type(SamplingParams(policy=Margin(0.5)).commit_policy, Policy)
    assert_type(SamplingParams().override(threshold=0.5), SamplingParams)
    return [Threshold(0.9, max_steps=4), Schedule(), EntropyBound(0.1), Factor(1), Margin(0.5), Frechet(0.2)]


def benchmark(engine: Engine) -> None:
    latencies = measure(engine, ["x", [1, 2]], requests=4, concurrency=2, max_new_tokens=8)
    assert_type(latencies, Latencies)
    assert_type(latencies.p90, float)
    assert_type(latencies.samples, tuple[Sample, ...])
    assert_type(edlm_engine.benchmark.measure(engine, "x", timeout=3).to_dict(), dict[str, Any])


def errors(engine: Engine) -> str:
    try:
        return engine.generate("x", timeout=1.0).text
    except (CapacityError, CheckpointError) as error:
        value: ValueError = error
    except (EngineBusyError, EngineClosedError, NumericalError) as error:
        runtime: RuntimeError = error
        return str(runtime)
    except RequestTimeoutError as error:
        timeout: TimeoutError = error
        return str(timeout)
    return str(value)


def wrong(engine: Engine) -> None:
    Engine()  # type: ignore[call-arg]
    Engine("edlm-tiny", "cpu")  # type: ignore[call-arg]
    Engine("edlm-tiny", max_batchsize=4)  # type: ignore[call-arg]
    Engine("edlm-tiny", max_batch_size="4")  # type: ignore[arg-type]
    SamplingParams(max_tokens=5)  # type: ignore[call-arg]
    SamplingParams(temperature="hot")  # type: ignore[arg-type]
    SamplingParams(policy=0.9)  # type: ignore[arg-type]
    SamplingParams(policy=policies.Statistics)  # type: ignore[arg-type]
    Threshold("much")  # type: ignore[arg-type]
    engine.generate("x", max_tokens=5)  # type: ignore[call-overload]
    engine.generate("x", temperature="hot")  # type: ignore[call-overload]
    engine.generate(5)  # type: ignore[call-overload]
    engine.generate("x", n="2")  # type: ignore[call-overload]
    engine.stream("x", n=2)  # type: ignore[call-arg]
    engine.stream(["x", "y"])  # type: ignore[list-item]
    engine.agenerate("x", progress=True)  # type: ignore[call-overload]
    engine.chat("x")  # type: ignore[arg-type]
    engine.chat(MESSAGES, tool=[])  # type: ignore[call-overload]
    measure(engine, 5)  # type: ignore[arg-type]
    measure(engine, "x", thresh=0.5)  # type: ignore[call-arg]
    _ = engine.generate("x").tokens  # type: ignore[attr-defined]
    engine.stats().pages = 3  # type: ignore[misc]
    _ = edlm_engine.nothing  # type: ignore[attr-defined]
    _ = policies.Nothing  # type: ignore[attr-defined]
