"""Engine: results, streams, lifetime."""

import gc
import io
import sys
import threading
import weakref
from itertools import pairwise

import numpy as np
import pytest
import torch
from checkpoints import MASK, TEXT_IDS, config_dict, random_weights, write_checkpoint
from engine_tools import assert_dropped, eventually, idle, running_request, slow_down

from edlm_engine import Engine, EngineClosedError, NumericalError, SamplingParams

PROMPT = [3, 14, 15, 92, 65]
POISON = 119  # in the `poisoned` checkpoint a prompt with this token makes every logit NaN


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("engine") / "checkpoint")


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    """NaN in the embedding of one token that is never generated: in the untied head it ties with another."""
    config = config_dict("qwen2")
    weights = random_weights(config)
    weights["model.embed_tokens.weight"][POISON] = float("nan")
    weights["lm_head.weight"][POISON] = weights["lm_head.weight"][POISON - 1]
    return write_checkpoint(tmp_path_factory.mktemp("poisoned") / "checkpoint", config, weights)


@pytest.fixture
def engine(folder):
    with Engine(folder, dtype="float32") as engine:
        yield engine


def test_generation_fields(engine):
    result = engine.generate(PROMPT, max_new_tokens=40, threshold=0.5, ignore_eos=True)
    assert result.prompt_token_ids == PROMPT and result.finish_reason == "length"
    assert len(result.token_ids) == len(result.confidences) == len(result.commit_steps) == 40
    assert all(0 < c <= 1 for c in result.confidences) and MASK not in result.token_ids
    assert result.text == engine.tokenizer.decode(result.token_ids)
    assert result.nfe == sum(max(result.commit_steps[i : i + 16]) + 1 for i in (0, 16, 32))
    assert result.tokens_per_forward == 40 / result.nfe > 1 and result.seconds > 0


def test_text_and_ids_are_the_same_prompt(engine):
    text = " ".join(f"w{i}" for i in PROMPT)
    a, b = engine.generate(text, max_new_tokens=20), engine.generate(PROMPT, max_new_tokens=20)
    assert a.prompt_token_ids == PROMPT and a.token_ids == b.token_ids


@pytest.mark.parametrize("kind", (torch.tensor, np.array, tuple, iter))
def test_other_sequences_of_ids(engine, kind):
    expected = engine.generate(PROMPT, max_new_tokens=8).token_ids
    assert engine.generate(kind(PROMPT), max_new_tokens=8).token_ids == expected
    if kind in (torch.tensor, np.array):
        both = engine.generate(kind([PROMPT, PROMPT]), max_new_tokens=8)
        assert [result.token_ids for result in both] == [expected, expected]


def test_list_of_prompts_keeps_its_order_and_params(engine):
    prompts = [PROMPT, "w1 w2", [7] * 40]
    every = [SamplingParams(max_new_tokens=n, ignore_eos=True) for n in (3, 30, 17)]
    results = engine.generate(prompts, every)
    assert [len(r.token_ids) for r in results] == [3, 30, 17]
    assert [r.prompt_token_ids for r in results] == [PROMPT, [1, 2], [7] * 40]
    assert len(engine.generate([PROMPT], max_new_tokens=2)) == 1  # a list of one stays a list


def test_sampling_follows_the_seed(engine):
    def sample(**params):
        return engine.generate(
            PROMPT, max_new_tokens=30, temperature=1.5, ignore_eos=True, **params
        ).token_ids

    assert sample(seed=1) == sample(seed=1) != sample(seed=2)
    assert sample() != sample()  # a fresh seed each


def test_extreme_temperatures(engine):
    params = {"max_new_tokens": 20, "ignore_eos": True, "seed": 5}
    greedy = engine.generate(PROMPT, **params).token_ids
    assert engine.generate(PROMPT, temperature=1e-30, **params).token_ids == greedy
    assert len(engine.generate(PROMPT, temperature=1e4, **params).token_ids) == 20


def assert_stream_agrees(chunks, tokenizer):
    *steps, last = chunks
    result = last.generation
    assert all(chunk.generation is None for chunk in steps) and result is not None
    seen: dict[int, int] = {}
    for chunk in chunks:
        new = dict(zip(chunk.positions, chunk.token_ids, strict=True))
        assert new and not seen.keys() & new.keys() and set(new) <= set(chunk.block)
        assert len(chunk.confidences) == len(new)
        seen |= new
    # behind an eos a block may hold more; up to there every position came exactly once
    assert [seen[i] for i in range(len(result.token_ids))] == result.token_ids
    for earlier, later in pairwise(chunks):
        assert later.text.startswith(earlier.text)
    assert last.text == result.text == tokenizer.decode(result.token_ids)
    assert len(chunks) == result.forwards.denoising


@pytest.mark.parametrize(
    "params",
    [{"threshold": 0.5}, {"threshold": None}, {"threshold": 0.05}, {"temperature": 1.0, "seed": 3}],
    ids=str,
)
def test_stream(engine, params):
    params |= {"max_new_tokens": 40}
    chunks = list(engine.stream(PROMPT, **params))
    assert_stream_agrees(chunks, engine.tokenizer)
    expected = engine.generate(PROMPT, **params)
    assert chunks[-1].generation.token_ids == expected.token_ids
    assert chunks[-1].generation.commit_steps == expected.commit_steps


def test_stream_with_a_stop_string_never_shows_it(engine):
    words = engine.generate(PROMPT, max_new_tokens=40, ignore_eos=True).text.split()
    stop = " ".join(words[9:12])
    chunks = list(engine.stream(PROMPT, max_new_tokens=40, ignore_eos=True, stop=stop))
    result = chunks[-1].generation
    assert result.finish_reason == "stop" and result.text == " ".join(words[:9]) + " "
    assert all(result.text.startswith(chunk.text) for chunk in chunks)
    assert max(chunks[-1].positions) < len(result.token_ids)


def test_last_chunk_ends_where_the_output_ends(engine):
    """A whole block in one step, with a stop id in its middle."""
    params = {"threshold": None, "steps_per_block": 1, "temperature": 1.0, "seed": 2, "ignore_eos": True}
    free = engine.generate(PROMPT, max_new_tokens=16, **params).token_ids
    end = next(i for i in range(3, 15) if free[i] not in free[:i])
    (chunk,) = engine.stream(PROMPT, max_new_tokens=16, stop_token_ids=[free[end]], **params)
    assert chunk.positions == list(range(end + 1))
    assert chunk.token_ids == chunk.generation.token_ids == free[: end + 1]


def test_stream_closed_early_frees_its_pages(engine):
    slow_down(engine)
    stream = engine.stream(PROMPT, max_new_tokens=500, threshold=None)
    next(stream)
    request = running_request(engine)
    stream.close()
    assert_dropped(engine, request)


def test_interrupt_frees_its_pages(engine, monkeypatch):
    slow_down(engine)
    requests = []

    def interrupt(futures, enabled):
        requests.append(running_request(engine))
        raise KeyboardInterrupt

    monkeypatch.setattr("edlm_engine.engine.track", interrupt)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPT, max_new_tokens=500, threshold=None)
    assert_dropped(engine, requests[0])


@pytest.mark.parametrize("way", ("close", "forget"))
def test_stream_never_read_frees_its_pages(engine, way):
    slow_down(engine)
    stream = engine.stream(PROMPT, max_new_tokens=500, threshold=None)
    request = running_request(engine)
    if way == "close":
        stream.close()
    del stream
    assert_dropped(engine, request)
    assert len(engine.generate(PROMPT, max_new_tokens=3, ignore_eos=True).token_ids) == 3


def test_full_cache_makes_requests_wait(folder):
    """Eight requests of two pages each through a cache of four pages."""
    with Engine(folder, dtype="float32", kv_cache_tokens=256) as engine:
        prompts = [[i + 1] * 70 for i in range(8)]
        together = engine.generate(prompts, max_new_tokens=40)
        assert [r.token_ids for r in together] == [
            engine.generate(prompt, max_new_tokens=40).token_ids for prompt in prompts
        ]
        assert idle(engine)


def test_nan_in_one_request_leaves_the_others_alone(poisoned):
    prompts = [[i + 1] * 20 for i in range(4)]
    with Engine(poisoned, dtype="float32") as engine:
        alone = [engine.generate(prompt, max_new_tokens=60, ignore_eos=True).token_ids for prompt in prompts]
        bad = engine.stream([5, POISON, 5], max_new_tokens=60)
        together = engine.generate(prompts, max_new_tokens=60, ignore_eos=True)
        with pytest.raises(NumericalError, match="logits are NaN or infinite for this request"):
            list(bad)
        assert [r.token_ids for r in together] == alone
        # its pages, full of NaN, go to others
        again = engine.generate(prompts, max_new_tokens=60, ignore_eos=True)
        assert [r.token_ids for r in again] == alone and idle(engine)


@pytest.mark.parametrize("params", ({}, {"threshold": None}, {"temperature": 1.0, "seed": 1}), ids=str)
def test_nan_weights_end_with_an_error(tmp_path, params):
    config = config_dict()
    weights = {name: torch.full_like(t, float("nan")) for name, t in random_weights(config).items()}
    with Engine(write_checkpoint(tmp_path / "nan", config, weights)) as engine:
        with pytest.raises(NumericalError):
            engine.generate([PROMPT, PROMPT], **params)
        eventually(lambda: idle(engine))


def test_exception_in_a_step_reaches_every_caller(engine):
    expected = engine.generate(PROMPT, max_new_tokens=20).token_ids
    runner, step = engine._loop._runner, engine._loop._runner.step

    def fail_once(*inputs):
        runner.step = step
        raise MemoryError("no room for activations")

    runner.step = fail_once
    with pytest.raises(MemoryError, match="no room for activations"):
        engine.generate([PROMPT, PROMPT], max_new_tokens=20)
    eventually(lambda: idle(engine))
    assert engine.generate(PROMPT, max_new_tokens=20).token_ids == expected


def test_tokenizer_that_raises_fails_its_request_alone(engine):
    decode = engine.tokenizer.decode
    engine.tokenizer.decode = lambda ids: decode(ids) if len(ids) < 6 else 1 / 0
    short = engine.stream(PROMPT, max_new_tokens=5, threshold=None, ignore_eos=True)
    with pytest.raises(ZeroDivisionError):
        engine.generate(PROMPT, max_new_tokens=50, threshold=None, ignore_eos=True)
    assert len(list(short)[-1].generation.token_ids) == 5


def test_close_ends_what_runs_and_what_waits(folder):
    engine = Engine(folder, max_batch_size=1)
    slow_down(engine)
    streams = [engine.stream(PROMPT, max_new_tokens=400, threshold=None) for _ in range(3)]
    next(streams[0])
    engine.close()
    for stream in streams:
        with pytest.raises(EngineClosedError, match="closed before the request finished"):
            list(stream)
    for call in (engine.generate, engine.stream):
        with pytest.raises(EngineClosedError, match="the engine is closed"):
            call(PROMPT)
    engine.close()  # twice is fine


def test_forgotten_engine_stops_its_thread(folder):
    engine = Engine(folder)
    engine.generate(PROMPT, max_new_tokens=2)
    thread, model = engine._loop._thread, weakref.ref(engine._loop._runner.model)
    assert thread.is_alive()
    del engine
    gc.collect()
    thread.join(timeout=20)
    assert not thread.is_alive() and model() is None


def test_engine_without_requests_starts_no_thread(folder):
    before = threading.active_count()
    with Engine(folder):
        assert threading.active_count() == before


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("terminal", (False, True))
def test_progress_shows_on_a_terminal_alone(folder, monkeypatch, terminal):
    monkeypatch.setattr(sys, "stderr", Terminal() if terminal else io.StringIO())
    with Engine(folder) as engine:
        results = engine.generate([[i] * 9 for i in TEXT_IDS[:5]], max_new_tokens=3, progress=True)
    assert len(results) == 5
    assert all((word in sys.stderr.getvalue()) == terminal for word in ("loading checkpoint", "generating"))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("closed", (False, True))
def test_a_stream_ends_for_every_thread_that_reads_it(engine, closed):
    slow_down(engine)
    stream = engine.stream(PROMPT, max_new_tokens=60, threshold=None, ignore_eos=True)
    counts = []

    def read():
        counts.append(sum(1 for _ in stream))

    readers = [threading.Thread(target=read, daemon=True) for _ in range(3)]
    for reader in readers:
        reader.start()
    if closed:
        running_request(engine)
        stream.close()
    for reader in readers:
        reader.join(20)
    assert len(counts) == 3
    assert closed or sum(counts) == 60
    eventually(lambda: idle(engine))


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", [{}, {"quantization": "int8"}, {"load_format": "dummy"}], ids=str)
def test_the_default_type_of_torch_changes_nothing(tmp_path, default, options):
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100, "beta_fast": 7.3}
    path = write_checkpoint(tmp_path / "yarn", config_dict(rope_theta=500.0, rope_scaling=yarn))

    def confidences():
        with Engine(path, dtype="float32", **options) as engine:
            return engine.generate(PROMPT * 20, max_new_tokens=20, ignore_eos=True).confidences

    usual = confidences()
    torch.set_default_dtype(default)
    try:
        assert confidences() == usual
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_seed_of_0_is_a_seed_and_a_token_of_0_is_a_token(engine):
    params = {"max_new_tokens": 30, "temperature": 1.5, "ignore_eos": True}
    first, second = (engine.generate([0, 5, 0], seed=0, **params) for _ in range(2))
    assert first.prompt_token_ids == [0, 5, 0] and first.token_ids == second.token_ids
