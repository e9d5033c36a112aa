"""Random requests through the scheduler, with a runner that commits at random positions."""

import random
from concurrent.futures import CancelledError

import pytest
import torch
from checkpoints import config_dict
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm_engine import NumericalError, RequestTimeoutError, SamplingParams
from edlm_engine.config import DecodingConfig
from edlm_engine.core.requests import Request, Sequence
from edlm_engine.core.scheduler import Scheduler
from edlm_engine.core.transcript import Transcript
from edlm_engine.models.families import read_config
from edlm_engine.steps.block_state import BlockState
from edlm_engine.steps.kv_cache import PAGE_LENGTH, PagedKVCache

CONFIG = read_config(config_dict(num_hidden_layers=1), "config.json")[0]
EOS, MASK = 126, 127


class FakeRunner:
    """Checks each forward against a shadow of the cache, then commits random positions.

    written: (page, offset) -> the token whose key and value lie there, None while noisy.
    """

    def __init__(self, scheduler: Scheduler, seed: int):
        self.scheduler, self.cache, self.state = scheduler, scheduler.cache, scheduler.state
        self.rng, self.written = random.Random(seed), {}
        self.committed: dict[Request, dict[int, int]] = {}

    def step(self, inputs):
        owner = {sequence.slot: sequence for sequence in self.scheduler.running}
        rows = list(
            zip(inputs.slots.tolist(), inputs.positions.tolist(), inputs.token_ids.tolist(), strict=True)
        )
        assert len({row[:2] for row in rows}) == len(rows), "a position has two rows"
        for slot, position, token in rows:
            known = self.known(owner[slot])
            clean = position < owner[slot].block_start
            assert position >= len(known) or token == known[position]
            self.written[self.address(slot, position)] = token if clean else None
        for slot, start, length, kv_len, _, row in inputs.query_blocks.tolist():
            assert rows[row][:2] == (slot, start) and rows[row + length - 1][:2] == (slot, start + length - 1)
            known = self.known(owner[slot])
            for position in range(min(kv_len, owner[slot].block_start)):
                assert self.written[self.address(slot, position)] == known[position]
        for slot, first in enumerate(inputs.first_row.tolist()):
            if first >= 0:
                self.commit(owner[slot], inputs, first)

    @staticmethod
    def known(sequence) -> list[int]:
        """The prompt and the finished blocks."""
        return max(sequence.tokens, sequence.request.prompt, key=len)

    def address(self, slot: int, position: int) -> tuple[int, int]:
        page = int(self.cache.page_table[slot, position // PAGE_LENGTH])
        assert page >= 0, "no page for this position"
        return page, position % PAGE_LENGTH

    def commit(self, sequence, inputs, first: int):
        host, slot = self.state.host, sequence.slot
        masked = host.open[slot].nonzero()[0]
        wanted = slice(first, first + len(masked))
        assert set(inputs.head_slots[wanted].tolist()) == {slot}
        assert inputs.head_positions[wanted].tolist() == (sequence.block_start + masked).tolist()
        chosen = self.rng.sample(masked.tolist(), self.rng.randint(1, len(masked)))
        done = self.committed.setdefault(sequence.request, {})
        for j in chosen:
            host.tokens[slot, j] = self.rng.choice([*range(1, 20), EOS])
            host.open[slot, j] = host.wanted[slot, j] = 0
            host.confidence[slot, j], host.commit_step[slot, j] = self.rng.random(), host.step[slot]
            position = sequence.output_start + j
            assert position >= 0 and position not in done, "committed twice, or given"
            done[position] = int(host.tokens[slot, j])
        host.step[slot] += 1
        host.status[slot] = int(not host.open[slot].any())


def build(seed=0, *, prefill="block_causal", block_length=8, shift=False, aligned=False, max_rows=64,
          slots=3, tokens=512):  # fmt: skip
    decoding = DecodingConfig(MASK, (EOS,), block_length, prefill, shift, aligned)
    cache = PagedKVCache(CONFIG, tokens, slots, torch.float32)
    state = BlockState(slots, block_length, MASK)
    scheduler = Scheduler(cache, state, decoding, max_rows=max(max_rows, block_length))
    return scheduler, FakeRunner(scheduler, seed)


def request(prompt: int, new: int, **options) -> Request:
    params = SamplingParams(max_new_tokens=new, **options)
    return Request([i % 100 for i in range(prompt)], params, 0, Transcript(params, (EOS,), None))


def run(scheduler, runner, arrivals, *, cancellations=(), on_step=lambda: None, limit=1500) -> list[Request]:
    """Step until nothing is left; returns the requests in the order of their admission.

    arrivals, cancellations: (step, request) pairs.
    """
    admitted, step = [], 0
    while step <= max([s for s, _ in arrivals], default=0) or scheduler.waiting or scheduler.running:
        assert step < limit, "does not terminate"
        for request in [r for s, r in arrivals if s == step]:
            scheduler.add(request)
        for when, cancelled in cancellations:
            cancelled.cancelled |= when == step
        scheduler.drop_ended()
        scheduler.admit()
        admitted += [s.request for s in scheduler.running if s.request not in admitted]
        if scheduler.running:
            before = scheduler.state.records.clone()
            plan = scheduler.plan()
            assert plan == scheduler.plan() and torch.equal(before, scheduler.state.records)  # no side effect
            scheduler.begin(plan)
            runner.step(scheduler.lay_out(plan))
            scheduler.finish(plan)
        on_step()
        step += 1
    return admitted


sizes = st.tuples(st.integers(1, 150), st.integers(1, 80), st.integers(0, 10), st.none() | st.integers(0, 30))


@given(
    st.lists(sizes, min_size=1, max_size=8), st.sampled_from(["block_causal", "bidirectional", "causal"]),
    st.sampled_from([1, 4, 16, 33]), st.booleans(), st.booleans(), st.integers(0, 2**32),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_requests(requests, prefill, block_length, aligned, shift, seed):
    scheduler, runner = build(seed, prefill=prefill, block_length=block_length, aligned=aligned, shift=shift)
    every = [
        (arrival, request(prompt, new, ignore_eos=bool(new % 2))) for prompt, new, arrival, _ in requests
    ]
    leaving = [(end, r) for (_, r), (*_, end) in zip(every, requests, strict=True) if end is not None]
    admitted = run(scheduler, runner, every, cancellations=leaving)

    assert scheduler.cache.free_tokens == 512 and not scheduler.running and not scheduler.waiting
    assert sorted(scheduler.cache._free_slots) == [0, 1, 2]
    order = [r for _, r in sorted(every, key=lambda pair: pair[0])]
    assert admitted == [r for r in order if r in admitted], "not first come, first served"
    for _, r in every:
        if r.cancelled and (r.future.cancelled() or r.future.exception(timeout=0)):
            continue
        result, committed = r.future.result(timeout=0), runner.committed[r]
        assert result.token_ids == [committed[i] for i in range(len(result.token_ids))]
        assert len(result.confidences) == len(result.commit_steps) == len(result.token_ids)
        assert result.finish_reason == "eos" or len(result.token_ids) == r.params.max_new_tokens
        assert (EOS in result.token_ids[:-1]) <= r.params.ignore_eos


def test_admission_waits_for_pages_and_keeps_its_order():
    """A small request behind a big one waits, though it would fit: else the big one might never run."""
    scheduler, runner = build(tokens=256)
    first, big, small = request(100, 28, ignore_eos=True), request(190, 60, ignore_eos=True), request(1, 1)
    assert run(scheduler, runner, [(0, first), (0, big), (0, small)]) == [first, big, small]
    assert big.future.result().token_ids and small.future.result().token_ids


def test_prompts_share_the_rows_of_a_forward():
    """Three prompts of 40 in forwards of 48 prompt rows, whole blocks of 8 each."""
    scheduler, runner = build(max_rows=48)
    counts, step = [], runner.step
    runner.step = lambda inputs: (counts.append(int((inputs.positions < 40).sum())), step(inputs))
    run(scheduler, runner, [(0, request(40, 8)) for _ in range(3)])
    assert counts[:3] == [48, 48, 24] and not any(counts[3:])


def test_sequences_join_between_steps():
    """No waiting for the slowest: what comes later runs beside what has begun."""
    scheduler, runner = build()
    together, counts = [], lambda: together.append(len(scheduler.running))
    long, short = request(5, 60, ignore_eos=True), request(5, 2, ignore_eos=True)
    run(scheduler, runner, [(0, long), (3, short)], on_step=counts)
    assert together[2] == 1 and together[3] >= 1 and max(together) == 2
    assert short.future.result().nfe < long.future.result().nfe


def test_cancelled_in_every_phase():
    scheduler, runner = build(slots=1)
    running, waiting = request(150, 40), request(5, 5)
    run(scheduler, runner, [(0, running), (0, waiting)], cancellations=[(1, running), (1, waiting)])
    assert isinstance(running.future.exception(timeout=0), CancelledError)
    assert waiting.future.cancelled() and waiting not in runner.committed


def test_cancelled_future_is_never_admitted():
    """asyncio cancels the future itself, maybe before the engine has seen the request."""
    scheduler, runner = build()
    gone = request(5, 5)
    assert gone.future.cancel()
    assert run(scheduler, runner, [(0, gone)]) == []
    assert scheduler.cache.free_tokens == 512


def broken(*args):
    raise RuntimeError("broken listener")


def test_one_listener_that_raises_takes_no_other_down():
    for where in ("step", "end"):
        scheduler, runner = build()
        bad, good = request(5, 40, ignore_eos=True), request(5, 40, ignore_eos=True)
        bad.on_chunk = lambda chunk, where=where: broken() if (where == "step" or chunk.generation) else None
        run(scheduler, runner, [(0, bad), (0, good)])
        with pytest.raises(RuntimeError, match="broken listener"):
            bad.future.result(timeout=0)
        assert len(good.future.result(timeout=0).token_ids) == 40
        assert scheduler.cache.free_tokens == 512


def test_numbers_that_are_none_fail_that_request_alone():
    scheduler, runner = build()
    bad, good = request(5, 40, ignore_eos=True), request(5, 40, ignore_eos=True)
    commit = runner.commit

    def poisoned(sequence, inputs, first):
        if sequence.request is bad:
            scheduler.state.host.status[sequence.slot] = -1
        else:
            commit(sequence, inputs, first)

    runner.commit = poisoned
    run(scheduler, runner, [(0, bad), (0, good)])
    assert isinstance(bad.future.exception(timeout=0), NumericalError)
    assert len(good.future.result(timeout=0).token_ids) == 40


def test_forwards_are_counted_by_purpose():
    """40 prompt rows in forwards of 16, the last of which is the first denoising step."""
    scheduler, runner = build(max_rows=16)
    r = request(40, 24, ignore_eos=True)
    run(scheduler, runner, [(0, r)])
    result = r.future.result()
    assert result.forwards.prefill == 2 and result.nfe == result.forwards.denoising
    assert result.tokens_per_forward == 24 / result.nfe


@pytest.mark.parametrize("prompt", (1, 7, 8, 9, 24))
def test_aligned_blocks(prompt):
    """The first block holds the end of the prompt, and all begin at multiples of the block length."""
    scheduler, runner = build(aligned=True)
    seen, step = set(), runner.step

    def watch(inputs):
        host = scheduler.state.host
        seen.add((int(host.start[0]), int(host.block_length[0]), int(host.given[0].sum())))
        step(inputs)

    runner.step = watch
    r = request(prompt, 20, ignore_eos=True)
    run(scheduler, runner, [(0, r)])
    assert len(r.future.result().token_ids) == 20
    first = prompt // 8 * 8
    want = {(start, min(8, prompt + 20 - start), 0) for start in range(first + 8, prompt + 20, 8)}
    assert seen == want | {(first, 8, prompt - first)}


def commit_whole_blocks(runner, token=lambda j: 5 + j):
    """The runner commits every open position at once: token(j) at place j of the block."""

    def commit(sequence, inputs, first):
        host, slot = runner.state.host, sequence.slot
        for j in host.open[slot].nonzero()[0].tolist():
            host.tokens[slot, j], host.open[slot, j], host.wanted[slot, j] = token(j), 0, 0
            host.confidence[slot, j], host.entropy[slot, j], host.commit_step[slot, j] = 0.5, 0.25, 0
        host.step[slot], host.status[slot] = 1, 1

    runner.commit = commit


def test_seconds_count_from_the_submission():
    scheduler, runner = build()
    r = request(5, 5)
    r.submitted -= 100
    run(scheduler, runner, [(0, r)])
    assert 100 < r.future.result(timeout=0).seconds < 200


def test_only_prompts_take_from_the_rows_of_prompts():
    scheduler, runner = build(max_rows=16)
    first, second = request(8, 60, ignore_eos=True), request(16, 8)
    run(scheduler, runner, [(0, first), (2, second)])
    assert second.future.result(timeout=0).forwards.prefill == 0


def test_a_bidirectional_prompt_beyond_the_rows_runs_without_other_prompts():
    scheduler, runner = build(prefill="bidirectional", max_rows=64)
    prompts, step = [], runner.step
    runner.step = lambda inputs: (prompts.append(int((inputs.query_blocks[:, 1] == 0).sum())), step(inputs))
    run(scheduler, runner, [(0, request(100, 8)) for _ in range(3)])
    assert prompts[:3] == [1, 1, 1] and not any(prompts[3:])


@pytest.mark.parametrize("end", ("result", "error", "cancelled"))
def test_pages_are_free_before_the_caller_hears_of_the_end(end):
    """Else a caller that asks again at once may find no room."""
    scheduler, runner = build()
    free, r = [], request(5, 20, ignore_eos=True)

    def note(_):
        free.append((scheduler.cache.free_tokens, len(scheduler.running)))

    r.future.add_done_callback(note)
    r.on_chunk = {"result": lambda chunk: chunk.generation and note(chunk), "error": broken}.get(end)
    run(scheduler, runner, [(0, r)], cancellations=[(1, r)] if end == "cancelled" else ())
    assert free == [(512, 0)] * (2 if end == "result" else 1)


def test_the_last_chunk_ends_where_the_output_ends():
    scheduler, runner = build()
    commit_whole_blocks(runner, lambda j: EOS if j == 2 else 5)
    chunks, r = [], request(5, 20)
    r.on_chunk = chunks.append
    run(scheduler, runner, [(0, r)])
    (last,) = chunks
    assert (last.positions, last.token_ids, last.confidences) == ([0, 1, 2], [5, 5, EOS], [0.5] * 3)
    result = r.future.result(timeout=0)
    assert last.generation is result and result.finish_reason == "eos"
    assert len(result.confidences) == len(result.entropies) == len(result.commit_steps) == 3


@pytest.mark.parametrize("where", ("step", "end"))
def test_who_comes_after_a_failed_one_misses_no_step(where):
    """Two of three fail in the very step that finishes a block of all."""
    scheduler, runner = build()
    commit_whole_blocks(runner)
    requests = [request(5, 8 if where == "end" else 24, ignore_eos=True) for _ in range(3)]
    requests[0].on_chunk = requests[1].on_chunk = broken
    run(scheduler, runner, [(0, r) for r in requests])
    for r in requests[:2]:
        assert str(r.future.exception(timeout=0)) == "broken listener"
    result = requests[2].future.result(timeout=0)
    count = 1 if where == "end" else 3
    assert result.token_ids == list(range(5, 13)) * count
    assert (result.nfe, result.commit_steps, result.entropies) == (count, [0] * 8 * count, [0.25] * 8 * count)


def test_a_stop_id_ends_the_output_though_it_is_an_eos_to_ignore():
    scheduler, runner = build()
    commit_whole_blocks(runner, lambda j: EOS if j == 2 else 5)
    r = request(5, 20, ignore_eos=True, stop_token_ids=(EOS,))
    run(scheduler, runner, [(0, r)])
    assert (r.future.result(timeout=0).finish_reason, r.future.result().token_ids) == ("stop", [5, 5, EOS])


def test_a_policy_that_cannot_say_its_numbers_fails_its_request_alone():
    class Broken:
        rule, wants, select = None, "open", None

        def parameters(self):
            return broken()

    scheduler, runner = build()
    bad, good = request(5, 5, policy=Broken()), request(5, 5)
    run(scheduler, runner, [(0, bad), (0, good)])
    assert str(bad.future.exception(timeout=0)) == "broken listener"
    assert good.future.result(timeout=0).token_ids and scheduler.cache.free_tokens == 512


def test_who_may_begin():
    scheduler, _ = build(slots=1)
    assert not scheduler.can_admit
    scheduler.waiting.extend([request(100, 28), request(1, 1)])
    assert scheduler.can_admit
    scheduler.admit()
    assert len(scheduler.running) == 1 and not scheduler.can_admit  # no slot


def test_who_is_cancelled_while_waiting_leaves_the_queue_at_once():
    scheduler, _ = build(slots=1)
    scheduler.waiting.extend(requests := [request(5, 5) for _ in range(3)])
    scheduler.admit()
    requests[1].cancelled = True
    scheduler.drop_ended()
    assert list(scheduler.waiting) == requests[2:] and requests[1].future.cancelled()
    assert not requests[2].future.cancelled() and len(scheduler.running) == 1


class Own:
    """A policy without a native rule."""

    rule, wants, select = None, "open", None

    def parameters(self):
        return ()


def test_when_the_host_must_lead():
    """While a prompt has rows of its own, and for policies that only it knows."""
    for policy, must in ((None, False), (Own(), True)):
        scheduler, runner = build(max_rows=16)
        commit_whole_blocks(runner)
        scheduler.waiting.append(request(40, 40, ignore_eos=True, policy=policy))
        scheduler.admit()
        assert not scheduler.state.host.active.any()
        found = []
        for _ in range(4):
            found.append((scheduler.prompts_due, scheduler.host_must_lead))
            scheduler.begin(plan := scheduler.plan())
            runner.step(scheduler.lay_out(plan))
            scheduler.finish(plan)
        assert found == [(True, True)] * 3 + [(False, must)]
        assert scheduler.state.host.active.tolist() == [1, 0, 0]


def test_slots_by_the_policies_that_select_in_them():
    scheduler, _ = build(slots=4)
    first, second = Own(), Own()
    policies = [first, None, second, first]
    scheduler.waiting.extend(request(5, 5, policy=policy) for policy in policies)
    scheduler.admit()
    slots = [sequence.slot for sequence in scheduler.running]
    assert scheduler.plan().selecting() == {first: [slots[0], slots[3]], second: [slots[2]]}


def test_reading_is_a_moment():
    moments = []
    scheduler, runner = build()
    scheduler._observers.begin = moments.append
    scheduler._observers.end = lambda moment: moments.append(f"/{moment}")
    run(scheduler, runner, [(0, request(5, 1))])
    assert moments == ["read", "/read"]


def test_what_a_request_asks_for_is_in_the_block_state():
    scheduler, _ = build()
    asked = {"temperature": 0.5, "top_k": 9, "top_p": 0.25, "block_length": 4, "stop_token_ids": (11,)}
    r = request(5, 20, policy="threshold:0.75,max_steps=3", **asked)
    r.seed = 77
    scheduler.waiting.append(r)
    scheduler.admit()
    host, slot = scheduler.state.host, scheduler.running[0].slot
    assert (host.temperature[slot], host.top_k[slot], host.top_p[slot]) == (0.5, 9, 0.25)
    assert host.seed[slot].tolist() == [77, 0] and host.rule_parameters[slot].tolist() == [0.75, 3, 0, 0]
    assert (host.full_length[slot], host.block_length[slot]) == (4, 4)
    assert (host.start[slot], host.end[slot], host.pending[slot]) == (5, 25, 0)
    assert sorted(host.stop_ids[slot].tolist()) == [-1] * 6 + [11, EOS]


def test_the_highest_priority_first_then_first_come():
    scheduler, _ = build(slots=1)
    requests = [request(5, 5) for _ in range(6)]
    for r, priority in zip(requests, (0, 2, 0, 2, -1, 1), strict=True):
        r.priority = priority
        scheduler.add(r)
    assert [requests.index(r) for r in scheduler.waiting] == [1, 3, 5, 0, 2, 4]
    scheduler.admit()
    assert [s.request for s in scheduler.running] == [requests[1]]


def test_whose_time_is_over():
    """One that runs, one that waits, one that has still time, and one whose caller has gone as well."""
    scheduler, runner = build(slots=2)
    commit_whole_blocks(runner)
    runs, stays, waits, gone = requests = [request(5, 60, ignore_eos=True) for _ in range(4)]
    for r in requests:
        r.timeout = 1000.0
        scheduler.add(r)
    scheduler.admit()
    scheduler.begin(plan := scheduler.plan())
    runner.step(scheduler.lay_out(plan))
    scheduler.finish(plan)
    for r in (runs, waits, gone):
        r.submitted -= 1001
    assert gone.future.cancel()
    scheduler.drop_ended()
    message = r"did not finish within timeout=1000 s; it ended"
    with pytest.raises(RequestTimeoutError, match=f"{message} with 8 tokens generated"):
        runs.future.result(timeout=0)
    with pytest.raises(RequestTimeoutError, match=f"{message} waiting for its turn"):
        waits.future.result(timeout=0)
    assert gone.future.cancelled() and not stays.future.done() and not scheduler.waiting
    assert [s.request for s in scheduler.running] == [stays] and scheduler.counters.failed == 2


def test_what_is_counted():
    scheduler, runner = build(slots=2)
    commit_whole_blocks(runner)
    long, short, bad, gone, left = (request(n, 8 * n, ignore_eos=True) for n in (3, 2, 5, 4, 1))
    for r in (long, short):
        r.submitted -= 10
    bad.on_chunk = broken
    gone.future.cancel()
    run(scheduler, runner, [(0, r) for r in (long, short, bad, gone, left)], cancellations=[(0, left)])
    counters = scheduler.counters
    assert (counters.finished, counters.failed, counters.cancelled) == (2, 1, 2)
    assert counters.tokens == 40 and counters.forwards == 5 and counters.prompt_tokens == 10
    assert counters.steps == 3  # two together, then the third beside the last one of the first
    assert 20 < counters.queue_seconds < 30 and 0 < counters.run_seconds < 10


def test_who_runs_counts_as_cancelled_as_well():
    scheduler, _ = build()
    gone, left, stays = requests = [request(5, 5) for _ in range(3)]
    gone.future.cancel()
    for r in requests:
        scheduler.add(r)
    scheduler.admit()
    assert [s.request for s in scheduler.running] == [left, stays]
    left.cancelled = True
    scheduler.drop_ended()
    assert (scheduler.counters.cancelled, scheduler.counters.failed) == (2, 0)


def test_one_that_cannot_begin_fails_alone(monkeypatch):
    scheduler, _ = build(slots=1)
    bad, good = requests = [request(5, 5) for _ in range(2)]
    error = MemoryError("no room")

    def make(owner, *args, **kwargs):
        if owner is bad:
            raise error
        return Sequence(owner, *args, **kwargs)

    monkeypatch.setattr("edlm_engine.core.scheduler.Sequence", make)
    for r in requests:
        scheduler.add(r)
    scheduler.admit()
    assert bad.future.exception(timeout=0) is error and scheduler.counters.failed == 1
    assert [s.request for s in scheduler.running] == [good] and not scheduler.waiting


def test_all_fail_together():
    scheduler, _ = build(slots=2)
    requests = [request(5, 5) for _ in range(5)]
    for r in requests:
        scheduler.add(r)
    scheduler.admit()
    assert requests[3].future.cancel()
    scheduler.fail_all(error := ValueError("all"))
    for r in requests[:3] + requests[4:]:
        assert r.future.exception(timeout=0) is error
    assert not scheduler.running and not scheduler.waiting and scheduler.cache.free_tokens == 512
    assert scheduler.counters.failed == 4
    scheduler.fail_all(error)  # of nobody


def test_a_future_that_its_caller_has_ended_already():
    scheduler, _ = build()
    scheduler.add(r := request(5, 5))
    scheduler.admit()
    r.future.set_result("of its own")
    scheduler.fail(scheduler.running[0], ValueError("late"))
    assert r.future.result(timeout=0) == "of its own" and scheduler.cache.free_tokens == 512
