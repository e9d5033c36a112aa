"""Steps that the device leads: the same tokens as the host's own steps, and step for step the same rows."""

import json
import queue
import random
import threading
from dataclasses import replace

import pytest
import torch
from checkpoints import TEXT_IDS, config_dict, random_weights, write_ar_checkpoint, write_checkpoint
from engine_tools import assert_dropped, eventually, idle, running_request, slow_down
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_engine_reference import PREFILLS, RULES, SHAPES, prompts

from edlm_engine import Engine, EngineClosedError, NumericalError, SamplingParams, ops
from edlm_engine.checkpoints.folder import resolve
from edlm_engine.core.runner import Runner
from edlm_engine.device_led.run_ahead import RunAhead, bucket
from edlm_engine.device_led.static_step import StaticStep
from edlm_engine.options import choose_stepping
from edlm_engine.steps.inputs import StepBuffer

MIXED = [
    SamplingParams(max_new_tokens=3 + 11 * i % 64, ignore_eos=bool(i % 2), **rule)
    for i, rule in enumerate([*RULES.values(), *RULES.values()][:12])
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    made = {shape: write_checkpoint(root / shape, config_dict(shape)) for shape in SHAPES}
    made["dream"] = write_checkpoint(root / "dream", config_dict(dlm_type="dream"))
    made["ar"] = write_ar_checkpoint(root / "ar", "qwen3")
    return made


def facts(result) -> tuple:
    return (
        result.text,
        result.token_ids,
        result.commit_steps,
        result.finish_reason,
        result.nfe,
        result.forwards,
    )


def both(folder, prompt, params, **options) -> tuple[list, list]:
    results = []
    for stepping in ("eager", "direct"):
        with Engine(folder, dtype="float32", stepping=stepping, **options) as engine:
            assert engine.stepping == stepping
            results.append(engine.generate(prompt, params))
    return results


def assert_same(folder, prompt, params, **options):
    want, got = both(folder, prompt, params, **options)
    for one, other in zip(got, want, strict=True):
        assert facts(one) == facts(other)
        assert one.confidences == pytest.approx(other.confidences, abs=1e-5)


@pytest.mark.parametrize("prefill", PREFILLS)
@pytest.mark.parametrize("block_length", (1, 4, 16, 32))
@pytest.mark.parametrize("name", ("qwen2", "qwen3", "dream"))
def test_blocks_and_prefills(folders, name, block_length, prefill):
    params = SamplingParams(max_new_tokens=37, threshold=0.5)
    assert_same(folders[name], prompts(4), params, block_length=block_length, prefill=prefill)


@pytest.mark.parametrize("rule", RULES)
def test_commit_rules(folders, rule):
    params = SamplingParams(max_new_tokens=50, ignore_eos=True, **RULES[rule])
    assert_same(folders["qwen3"], prompts(3, seed=1), params)


@pytest.mark.parametrize("name", ("qwen3", "dream"))
@pytest.mark.parametrize("slots", (1, 3, 4))
def test_more_requests_than_slots_each_with_other_parameters(folders, name, slots):
    """They come and go while others are in the middle of a block."""
    assert_same(folders[name], prompts(12), MIXED, max_batch_size=slots, kv_cache_tokens=512)


def test_autoregressive(folders):
    assert_same(folders["ar"], prompts(5), SamplingParams(max_new_tokens=30))


def test_shorter_blocks_of_some_requests(folders):
    every = [SamplingParams(max_new_tokens=29, block_length=n, threshold=0.6) for n in (1, 3, 8, 16)]
    assert_same(folders["qwen3"], prompts(4), every)


@pytest.mark.parametrize("count", (1, 12))
def test_stop_ids(folders, count):
    """More of them than the device is told of, too."""
    with Engine(folders["qwen3"], dtype="float32") as engine:
        free = engine.generate(prompts(3)[2], max_new_tokens=40, threshold=0.6, ignore_eos=True)
    stops = [*(i for i in range(1, 120) if i not in free.token_ids), free.token_ids[10]][-count:]
    params = SamplingParams(max_new_tokens=40, threshold=0.6, stop_token_ids=stops, ignore_eos=True)
    assert_same(folders["qwen3"], [prompts(3)[2]], params)


def test_stop_strings_and_streams_of_a_bundled_model():
    examples = ["Q: Sort [31, 4, 15] in ascending order.\nA: ", "Q: What is 17 + 25?\nA: "]
    every = [SamplingParams(threshold=None, stop=stop) for stop in ((", 1",), ())]
    assert_same("edlm-tiny", examples, every)
    chunks = {}
    for stepping in ("eager", "direct"):
        with Engine("edlm-tiny", dtype="float32", stepping=stepping) as engine:
            chunks[stepping] = [
                (c.positions, c.token_ids, c.text, c.block)
                for c in engine.stream(examples[0], threshold=None)
            ]
    assert chunks["eager"] == chunks["direct"] and len(chunks["eager"]) > 2


def test_int8(folders):
    assert_same(
        "edlm-tiny", ["Q: What is 17 + 25?\nA: "], SamplingParams(max_new_tokens=40), quantization="int8"
    )


def rows_of(inputs, slot: int) -> tuple:
    """What a forward computes for a slot, wherever its rows lie: (token, position, keys seen) of each, and
    for the positions whose tokens are wanted the position of the row that predicts them."""
    tokens, positions = inputs.token_ids.tolist(), inputs.positions.tolist()
    rows = []
    for block_slot, start, length, kv_len, causal, row in inputs.query_blocks.tolist():
        if block_slot == slot:
            assert inputs.slots[row : row + length].eq(slot).all()
            assert positions[row : row + length] == list(range(start, start + length)) and not causal
            rows += [(tokens[row + i], start + i, kv_len) for i in range(length)]
    first = int(inputs.first_row[slot])
    heads = [] if first < 0 else range(first, len(inputs.head_rows))
    wanted = [
        (int(inputs.head_positions[i]), positions[inputs.head_rows[i]])
        for i in heads
        if inputs.head_slots[i] == slot
    ]
    return sorted(rows), wanted


@pytest.mark.parametrize("name", ("qwen3", "dream", "ar"))
def test_step_for_step_what_the_host_would_lay_out(folders, name, monkeypatch):
    """After every step the host follows at once. From the snapshot it must come to the state that the device
    has come to, and, without padding, to the same rows."""
    compared, plain = [], StaticStep.run
    count_steps = RunAhead._replay

    def replay(self):
        count = count_steps(self)
        scheduler, state = self._scheduler, self._runner.state
        for step, _ in self._ways.values():
            running = [s for s in scheduler.running if state.active[s.slot]]
            assert len(running) == len(scheduler.running)
            if not count or not running:
                continue
            shift = ops.SHIFT if scheduler.decoding.token_shift else 0
            records, control = state.host_records.clone(), torch.zeros(ops.CONTROL_WORDS, dtype=torch.int32)
            ops.advance(records, None, control, None, ops.TAKE | shift)
            buffer = StepBuffer(*state.tokens.shape, len(records), bool(shift))
            ops.advance(records, buffer.buffer, control, None, ops.LAY_OUT | ops.COMPACT | shift)
            inputs = buffer.leading(*control[4:7].tolist())
            for sequence in running:
                assert torch.equal(records[sequence.slot], state.records[sequence.slot])
                assert rows_of(step._buffer.inputs, sequence.slot) == rows_of(inputs, sequence.slot)
                compared.append(sequence.slot)
        return count

    monkeypatch.setattr(RunAhead, "_replay", replay)
    monkeypatch.setattr("edlm_engine.device_led.launches.DirectSteps.launch_steps", 1)
    monkeypatch.setattr("edlm_engine.device_led.run_ahead._LAUNCHES", 1)
    with Engine(folders[name], dtype="float32", stepping="direct", max_batch_size=4) as engine:
        results = engine.generate(prompts(7), MIXED[:7])
    assert (
        plain is StaticStep.run and len(results) == 7 and len(compared) > 30 and set(compared) == {0, 1, 2, 3}
    )


def test_steps_leave_the_clean_rows_out_where_there_are_none(folders, monkeypatch):
    ran, plain = [], StaticStep.run
    monkeypatch.setattr(StaticStep, "run", lambda self, commit: (ran.append(commit), plain(self, commit)))
    with Engine(folders["qwen3"], dtype="float32", stepping="direct", block_length=8) as engine:
        engine.generate(prompts(1)[0], max_new_tokens=24, threshold=None, ignore_eos=True)
    assert ran == [False] * 7 + ([True] + [False] * 7) * 2  # the first step went with the prompt


def test_cancelled_and_left_early(folders):
    with Engine(folders["qwen3"], dtype="float32", stepping="direct", max_batch_size=2) as engine:
        slow_down(engine)
        stream = engine.stream(prompts(3)[2], max_new_tokens=480, threshold=None, ignore_eos=True)
        next(stream)
        request = running_request(engine)
        other = threading.Thread(target=lambda: engine.generate(prompts(3)[1], max_new_tokens=30))
        other.start()
        stream.close()
        assert_dropped(engine, request)
        other.join(20)
        eventually(lambda: idle(engine))


def test_requests_that_come_later_join_the_batch(folders):
    with Engine(folders["qwen3"], dtype="float32") as engine:
        want = [engine.generate(p, max_new_tokens=60, ignore_eos=True).token_ids for p in prompts(3)]
    got: list = [None] * 3
    with Engine(folders["qwen3"], dtype="float32", stepping="direct") as engine:
        stream = engine.stream(prompts(3)[0], max_new_tokens=60, ignore_eos=True)
        next(stream)

        def ask(i: int):
            got[i] = engine.generate(prompts(3)[i], max_new_tokens=60, ignore_eos=True).token_ids

        threads = [threading.Thread(target=ask, args=(i,)) for i in (1, 2)]
        for thread in threads:
            thread.start()
        got[0] = list(stream)[-1].generation.token_ids
        for thread in threads:
            thread.join(30)
    assert got == want


def test_close_ends_the_loop(folders):
    engine = Engine(folders["qwen3"], dtype="float32", stepping="direct")
    slow_down(engine)
    stream = engine.stream(prompts(3)[2], max_new_tokens=480, threshold=None, ignore_eos=True)
    next(stream)
    engine.close()
    with pytest.raises(EngineClosedError):
        list(stream)


def test_a_listener_that_fails_takes_no_other_down(folders):
    def bad(chunk):
        raise RuntimeError("listener")

    with Engine(folders["qwen3"], dtype="float32", stepping="direct") as engine:
        want = engine.generate(prompts(3)[1], max_new_tokens=40).token_ids
        request = engine._intake.request(prompts(3)[2], SamplingParams(max_new_tokens=40, ignore_eos=True))
        request.on_chunk = bad
        engine._loop.submit(request)
        assert engine.generate(prompts(3)[1], max_new_tokens=40).token_ids == want
        assert "listener" in str(request.future.exception(20))
        eventually(lambda: idle(engine))


def test_numbers_that_are_none(tmp_path):
    config = config_dict()
    weights = random_weights(config)
    weights["model.layers.0.mlp.down_proj.weight"][0, 0] = torch.nan
    folder = write_checkpoint(tmp_path / "nan", config, weights)
    with Engine(folder, stepping="direct") as engine, pytest.raises(NumericalError, match="NaN or infinite"):
        engine.generate([5, 6, 7], max_new_tokens=8)


def test_a_device_that_does_nothing_is_noticed(folders, monkeypatch):
    launched = []
    launch = "edlm_engine.device_led.launches.DirectSteps.launch"
    monkeypatch.setattr(launch, lambda self: launched.append(self))
    with Engine(folders["qwen3"], dtype="float32", stepping="direct") as engine:
        with pytest.raises(RuntimeError, match="does no steps though sequences run"):
            engine.generate([5, 6, 7], max_new_tokens=40, threshold=None)
        assert idle(engine) and len(launched) == 8


class Queue:
    """A GPU's stream, in a thread: launches return at once and run one after the other, while the host
    follows.

    kind: "loop" is a launch of up to 64 steps, as of a loop on the GPU; "graph" one step with clean rows
    always.
    """

    def __init__(self, step: StaticStep, link, kind: str):
        self._step, self._link, self._kind = step, link, kind
        self._launches: queue.SimpleQueue = queue.SimpleQueue()
        self._queued = self._done = 0
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self):
        torch.set_num_threads(1)
        with torch.inference_mode():
            while True:
                self._launches.get()
                if self._kind == "graph":
                    self._step.run(True)
                for _ in range(64 if self._kind == "loop" else 0):
                    go_on, commit = self._link.control[:2].tolist()
                    if not go_on:
                        break
                    self._step.run(bool(commit))
                self._done += 1

    def launch(self):
        self._queued += 1
        self._launches.put(None)

    def pending(self) -> int:
        return self._queued - self._done

    def wait(self):
        eventually(lambda: not self.pending())


@pytest.mark.parametrize("kind", ("loop", "graph"))
@pytest.mark.parametrize("name", ("qwen3", "dream", "ar"))
def test_a_device_that_runs_ahead(folders, name, kind, monkeypatch):
    params = [replace(p, stop_token_ids=(40,)) for p in MIXED] * 2
    with Engine(folders[name], dtype="float32", num_threads=1) as engine:
        want = [facts(r) for r in engine.generate(prompts(12) * 2, params)]
    monkeypatch.setattr(RunAhead, "_make_way", lambda self, step: Queue(step, self._link, kind))
    options = {"stepping": "direct", "max_batch_size": 4, "kv_cache_tokens": 512, "num_threads": 1}
    with Engine(folders[name], dtype="float32", **options) as engine:
        got = engine.generate(prompts(12) * 2, params)
        assert [facts(r) for r in got] == want
        stream = engine.stream(prompts(3)[2], max_new_tokens=480, threshold=None, ignore_eos=True)
        next(stream)
        stream.close()
        eventually(lambda: idle(engine))


def test_the_device_is_told_of_a_sequence_that_the_host_has_ended(monkeypatch):
    """Here by a stop string, while another sequence goes on."""
    monkeypatch.setattr("edlm_engine.device_led.launches.DirectSteps.launch_steps", 1)
    active, plain = [], StaticStep.run
    monkeypatch.setattr(
        StaticStep,
        "run",
        lambda self, commit: (active.append(int(self._runner.state.active.sum())), plain(self, commit)),
    )
    examples = [e["prompt"] for e in json.loads((resolve("edlm-tiny") / "examples.json").read_text())]
    with Engine("edlm-tiny", dtype="float32", stepping="direct") as engine:
        texts = engine.generate(examples, threshold=None)
        longest = max(range(len(texts)), key=lambda i: texts[i].nfe)
        active.clear()
        every = [SamplingParams(threshold=None, stop=stop) for stop in ((texts[0].text[:3],), ())]
        short, long = engine.generate([examples[0], examples[longest]], every)
    assert short.finish_reason == "stop" and short.nfe < long.nfe - 10
    assert active.count(2) <= short.nfe + 2  # it may be two launches ahead
    assert active.count(1) >= long.nfe - active.count(2) - 1  # the first step went with the prompts


def test_a_new_request_does_not_wait_for_the_end_of_a_launch(folders, monkeypatch):
    steps, plain = [], StaticStep.run
    monkeypatch.setattr(RunAhead, "_make_way", lambda self, step: Queue(step, self._link, "loop"))
    monkeypatch.setattr(StaticStep, "run", lambda self, commit: (steps.append(commit), plain(self, commit)))
    with Engine(folders["qwen3"], dtype="float32", stepping="direct", num_threads=1) as engine:
        slow_down(engine, 0.02)
        stream = engine.stream(prompts(3)[2], max_new_tokens=200, threshold=None, ignore_eos=True)
        eventually(lambda: len(steps) > 4)
        before = len(steps)
        engine.generate(prompts(3)[0], max_new_tokens=1)
        assert len(steps) - before < 32  # of the 128 that are queued
        stream.close()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6))
def test_any_mixture(folders, seed):
    rng = random.Random(seed)
    count = rng.randint(1, 6)
    asked = [[rng.choice(TEXT_IDS) for _ in range(rng.randint(1, 70))] for _ in range(count)]
    rules = [rng.choice(list(RULES.values())) for _ in range(count)]
    params = [
        SamplingParams(max_new_tokens=rng.randint(1, 40), block_length=rng.choice([None, 2, 5]), **rule)
        for rule in rules
    ]
    options = {"max_batch_size": rng.randint(1, 5), "block_length": rng.choice([5, 8, 16])}
    assert_same(folders[rng.choice(["qwen3", "dream"])], asked, params, **options)


def test_buckets():
    assert [bucket(n, 12) for n in (1, 2, 3, 4, 5, 8, 9, 12)] == [1, 2, 4, 4, 8, 8, 12, 12]


def test_choice(monkeypatch):
    assert choose_stepping("auto", "cpu") == "eager"
    for reason, stepping in ((None, "device"), ("too old a driver", "graph")):
        monkeypatch.setattr("edlm_engine.options.why_unsupported", lambda reason=reason: reason)
        assert choose_stepping("auto", "cuda") == stepping
    with pytest.raises(ValueError, match="stepping='device': too old a driver; use 'graph'"):
        choose_stepping("device", "cuda")
    with pytest.raises(ValueError, match="stepping='graph' needs a GPU; use 'eager' or 'direct'"):
        choose_stepping("graph", "cpu")
    with pytest.raises(ValueError, match="stepping must be one of auto, eager, direct, graph, device"):
        Engine(resolve("edlm-tiny"), stepping="fast")


def test_cancelled_while_the_device_leads(folders):
    """Though nothing else interrupts it."""
    with Engine(folders["qwen3"], dtype="float32", stepping="direct") as engine:
        slow_down(engine, 0.02)
        stream = engine.stream(prompts(3)[2], max_new_tokens=480, threshold=None, ignore_eos=True)
        for _ in range(4):
            next(stream)
        request = running_request(engine)
        stream.close()
        assert_dropped(engine, request)


@pytest.mark.timeout(120)
def test_a_device_two_launches_ahead_overwrites_nothing_unread(folders, monkeypatch):
    """A listener keeps the host at its first snapshot until all that is queued has run."""
    steps, plain = [], StaticStep.run
    monkeypatch.setattr(RunAhead, "_make_way", lambda self, step: Queue(step, self._link, "loop"))
    monkeypatch.setattr(StaticStep, "run", lambda self, commit: (steps.append(commit), plain(self, commit)))
    params = SamplingParams(max_new_tokens=300, threshold=None, ignore_eos=True)
    chunks = {}
    for stepping in ("eager", "direct"):
        found = chunks[stepping] = []

        def listen(chunk, found=found, stepping=stepping):
            found.append((chunk.positions, chunk.token_ids))
            if stepping == "direct" and len(found) == 2:
                eventually(lambda: len(steps) >= 128)

        with Engine(folders["qwen3"], dtype="float32", stepping=stepping, num_threads=1) as engine:
            request = engine._intake.request(prompts(1)[0], params)
            request.on_chunk = listen
            engine._loop.submit(request)
            assert len(request.future.result(60).token_ids) == 300
    assert chunks["direct"] == chunks["eager"] and len(chunks["eager"]) == 300


def test_what_has_ended_takes_no_part_once_the_host_leads_again(folders, monkeypatch):
    """Two sequences end for the host while the device is still at them; then a third begins in the slot of
    one, and what the device had left of the other must not go on."""
    foreign, plain = [], Runner.step

    def step(runner, inputs, selecting):
        running = {sequence.slot for sequence in engine._loop._scheduler.running}
        foreign.append(set(inputs.slots.tolist()) - running)
        plain(runner, inputs, selecting)

    monkeypatch.setattr(Runner, "step", step)
    params = SamplingParams(max_new_tokens=200, threshold=None, ignore_eos=True)
    with Engine(folders["qwen3"], dtype="float32", stepping="direct") as engine:
        want = engine.generate(prompts(3)[1], max_new_tokens=40).token_ids
        late = engine._intake.request(prompts(3)[1], SamplingParams(max_new_tokens=40))
        heard = []

        def listen(chunk):
            heard.append(chunk)
            if len(heard) == 4:  # the device's first step, of the second sequence
                engine._loop.submit(late)
            if len(heard) >= 3:
                raise RuntimeError("listener")

        leaving = [engine._intake.request(prompt, params) for prompt in prompts(2)]
        for request in leaving:
            request.on_chunk = listen
        engine._loop.submit(*leaving)
        for request in leaving:
            assert "listener" in str(request.future.exception(20))
        assert late.future.result(20).token_ids == want
    assert not any(foreign)


def test_a_way_is_made_once_for_each_bucket(folders, monkeypatch):
    """On a GPU each of them is a graph to capture."""
    made, plain = [], RunAhead._make_way
    monkeypatch.setattr(RunAhead, "_make_way", lambda self, step: (made.append(step), plain(self, step))[1])
    with Engine(folders["qwen3"], dtype="float32", stepping="direct", max_batch_size=4) as engine:
        for count in (1, 2, 1, 2, 3, 4):
            engine.generate([[5, 6]] * count, max_new_tokens=40, ignore_eos=True)
    assert len(made) == 3
