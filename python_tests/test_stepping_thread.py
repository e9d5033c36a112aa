"""The stepping thread: what comes in while it works, what fails in a step, and its end."""

import os
import threading
import time

import pytest
import torch
from test_scheduler import build, commit_whole_blocks, request

from edlm_engine import EngineBusyError, EngineClosedError
from edlm_engine.core import stepping_thread
from edlm_engine.core.observers import Observers
from edlm_engine.core.stepping_thread import SteppingThread

pytestmark = pytest.mark.timeout(60)
SOON = 10  # seconds that a result may take at most


class Runner:
    """Runs the steps of test_scheduler's runner; before each of them `on_step` is called."""

    def __init__(self, fake):
        commit_whole_blocks(fake)
        self.state, self._step = fake.state, fake.step
        self.steps, self.on_step = 0, lambda: None

    def step(self, inputs, selecting):
        self.steps += 1
        self.on_step()
        self._step(inputs)


class Leader:
    """Leads one step after the other as the host would, until it is interrupted."""

    stepping = "led"

    def __init__(self, scheduler, runner):
        self._scheduler, self._runner = scheduler, runner
        self.began, self.before_asking = 0, lambda: None

    def run(self, interrupted):
        self.began += 1
        while self._scheduler.running:
            self.before_asking()
            if interrupted():
                return
            plan = self._scheduler.plan()
            self._runner.step(self._scheduler.lay_out(plan), {})
            self._scheduler.finish(plan)


@pytest.fixture
def made():
    """Makes a thread with its scheduler and runner; all are closed at the end."""
    threads = []

    def make(num_threads=1, led=False, max_waiting=None, **options):
        scheduler, fake = build(**options)
        runner = Runner(fake)
        leader = Leader(scheduler, runner) if led else None
        threads.append(SteppingThread(scheduler, runner, num_threads, leader, None, max_waiting))
        return threads[-1], scheduler, runner, leader

    yield make
    for thread in threads:
        close(thread)


def close(thread: SteppingThread):
    """thread.close(), which must come to an end."""
    closing = threading.Thread(target=thread.close, daemon=True)
    closing.start()
    closing.join(SOON)
    assert not closing.is_alive()


def until_closed(thread: SteppingThread):
    """Wait until close() has said what it wants."""
    end = time.monotonic() + SOON
    with pytest.raises(EngineClosedError):
        while time.monotonic() < end:
            thread.submit()
            time.sleep(0.001)


def alive() -> int:
    return sum(thread.name == "edlm-engine" for thread in threading.enumerate())


def test_results_come_whenever_a_request_comes(made):
    """The thread sleeps between them."""
    thread, _, runner, _ = made()
    for _ in range(3):
        thread.submit(r := request(5, 20, ignore_eos=True))
        assert len(r.future.result(SOON).token_ids) == 20
        time.sleep(0.02)
    assert runner.steps == 9 and thread.stepping == "eager"


def test_the_threads_own_settings(made, threads):
    threads(3)
    thread, _, runner, _ = made(num_threads=2)
    seen = []
    runner.on_step = lambda: seen.append((torch.get_num_threads(), torch.is_inference_mode_enabled()))
    thread.submit(r := request(5, 3))
    r.future.result(SOON)
    assert seen == [(2, True)] and torch.get_num_threads() == 3 and thread.num_threads == 2


@pytest.mark.parametrize(("of_torch", "cores", "want"), [(3, 1, 1), (2, 8, 2)])
def test_no_more_threads_than_there_are_cores_to_use(made, threads, monkeypatch, of_torch, cores, want):
    threads(of_torch)
    monkeypatch.setattr(stepping_thread, "default_threads", lambda: cores)
    assert made(num_threads=None)[0].num_threads == want


def test_a_step_that_fails_fails_all_that_run_and_no_other(made, caplog):
    thread, scheduler, runner, _ = made(slots=2)
    requests = [request(5, 20) for _ in range(3)]  # the third has no slot yet

    def fail():
        runner.on_step = lambda: None
        raise MemoryError("no room")

    runner.on_step = fail
    thread.submit(*requests)
    for r in requests[:2]:
        assert isinstance(r.future.exception(SOON), MemoryError)
    assert requests[2].future.result(SOON).token_ids
    assert "a step failed, and with it 2 requests" in caplog.text
    assert scheduler.cache.free_tokens == 512


def test_a_leader_that_fails_does_so_too(made):
    thread, _, _, leader = made(led=True)

    def fail():
        leader.before_asking = lambda: None
        raise MemoryError("no room")

    leader.before_asking = fail
    thread.submit(*(requests := [request(5, 60, ignore_eos=True) for _ in range(2)]))
    for r in requests:
        assert isinstance(r.future.exception(SOON), MemoryError)


def test_a_leader_leads_once_the_prompts_are_in_the_cache(made):
    thread, _, runner, leader = made(led=True, max_rows=16)
    thread.submit(r := request(40, 24, ignore_eos=True))
    assert len(r.future.result(SOON).token_ids) == 24
    assert leader.began == 1 and runner.steps == 5 and thread.stepping == "led"


@pytest.mark.parametrize("room", (True, False))
def test_a_leader_is_interrupted_by_what_can_begin_and_by_that_alone(made, room):
    thread, _, _, leader = made(led=True, slots=2 if room else 1)
    late = request(5, 16, ignore_eos=True)

    def come():
        leader.before_asking = lambda: None
        thread.submit(late)

    first, ends = request(5, 60, ignore_eos=True), []
    first.future.add_done_callback(lambda _: ends.append("first"))
    late.future.add_done_callback(lambda _: ends.append("late"))
    leader.before_asking = come
    thread.submit(first)
    assert len(first.future.result(SOON).token_ids) == 60
    assert len(late.future.result(SOON).token_ids) == 16
    assert ends == (["late", "first"] if room else ["first", "late"])
    assert leader.began == 2  # once for each: the late one is begun by the host


def test_a_request_that_comes_while_others_are_taken_in_is_not_lost(made):
    thread, scheduler, _, leader = made(led=True)
    first, second, late = (request(5, 40, ignore_eos=True) for _ in range(3))
    add = scheduler.add

    def add_slowly(one):
        add(one)
        if one is second:
            caller = threading.Thread(target=thread.submit, args=(late,))
            caller.start()
            caller.join(0.2)

    def come():
        leader.before_asking = lambda: None
        thread.submit(second)

    scheduler.add, leader.before_asking = add_slowly, come
    thread.submit(first)
    for r in (first, second, late):
        assert len(r.future.result(SOON).token_ids) == 40


def test_cancelled_before_the_next_step(made, caplog):
    thread, scheduler, runner, _ = made()
    runner.on_step = lambda: runner.steps == 2 and thread.cancel(r)
    r = request(5, 400, ignore_eos=True)
    thread.submit(r)
    assert type(r.future.exception(SOON)).__name__ == "CancelledError"
    thread.cancel(r)  # harmless
    close(thread)
    assert runner.steps == 2 and scheduler.cache.free_tokens == 512
    assert not caplog.records  # nor does a step of nobody fail


def test_close_waits_for_the_step_under_way(made):
    thread, _, runner, _ = made()
    begun, ended = threading.Event(), []
    runner.on_step = lambda: (begun.set(), until_closed(thread), time.sleep(0.1), ended.append(1))
    before = alive()
    thread.submit(r := request(5, 400, ignore_eos=True))
    assert begun.wait(SOON)
    close(thread)
    assert ended == [1] and alive() == before and runner.steps == 1
    with pytest.raises(EngineClosedError, match="closed before the request finished"):
        r.future.result(0)
    with pytest.raises(EngineClosedError, match="the engine is closed"):
        thread.submit(request(1, 1))


def test_close_wakes_a_thread_that_sleeps(made):
    thread, *_ = made()
    before = alive()
    thread.submit(r := request(5, 3))
    r.future.result(SOON)
    time.sleep(0.02)
    assert alive() == before + 1
    close(thread)
    assert alive() == before


@pytest.mark.parametrize("led", (False, True))
def test_close_leaves_nobody_waiting(made, led):
    """Who runs, who has no slot yet, and who has just come; a future that was cancelled stays so."""
    thread, scheduler, runner, _ = made(slots=2, led=led)
    first, second, waiting, gone, new = (request(5, 200, ignore_eos=True) for _ in range(5))
    begun = threading.Event()
    runner.on_step = lambda: runner.steps == 3 and (begun.set(), until_closed(thread))
    thread.submit(first, second, waiting, gone)
    assert begun.wait(SOON)
    assert gone.future.cancel()
    thread.submit(new)
    close(thread)
    for r in (first, second, waiting, new):
        assert isinstance(r.future.exception(SOON), EngineClosedError)
    assert gone.future.cancelled() and runner.steps == 3 and not scheduler.waiting


def test_a_listener_may_close(made):
    """On the stepping thread itself, which cannot wait for its own end."""
    thread, *_ = made()
    r = request(5, 400, ignore_eos=True)
    r.on_chunk = lambda chunk: thread.close()
    thread.submit(r)
    assert isinstance(r.future.exception(SOON), EngineClosedError)


def test_moments_of_a_step():
    scheduler, fake = build()
    commit_whole_blocks(fake)
    moments, observers = [], Observers()

    class Note:
        def begin(self, moment):
            moments.append(moment)

        def end(self, moment):
            moments.append(f"/{moment}")

    thread = SteppingThread(scheduler, Runner(fake), 1, observers=observers)
    try:
        with observers.attached(Note()):
            thread.submit(r := request(5, 3))
            r.future.result(SOON)
            thread.close()
        assert moments == ["step", "layout", "/layout", "/step"]
    finally:
        thread.close()


def test_whatever_ends_the_thread_nobody_waits_in_vain(made, caplog):
    """Who runs, who waits, who has just come and who comes later."""
    thread, _, runner, _ = made(slots=1)
    running, waiting, late = (request(5, 40, ignore_eos=True) for _ in range(3))

    def end():
        thread.submit(late)
        raise SystemExit("enough")

    runner.on_step = end
    thread.submit(running, waiting)
    for r in (running, waiting, late):
        with pytest.raises(
            EngineClosedError, match="the engine has broken down: SystemExit: enough"
        ) as error:
            r.future.result(SOON)
        assert isinstance(error.value.__cause__, SystemExit)
    with pytest.raises(EngineClosedError, match="broken down: SystemExit: enough; create a new one"):
        thread.submit(request(1, 1))
    assert thread.closed and "the stepping thread has broken down" in caplog.text


def test_no_more_wait_than_may(made):
    """One runs, and two may wait; requests that come together are taken or refused together."""
    thread, scheduler, runner, _ = made(slots=1, max_waiting=2)
    begun, go_on = threading.Event(), threading.Event()
    runner.on_step = lambda: (begun.set(), go_on.wait(SOON))
    requests = [request(5, 8, ignore_eos=True) for _ in range(6)]
    with pytest.raises(EngineBusyError, match="4 more requests would make 3 wait; max_waiting is 2"):
        thread.submit(*requests[:4])
    thread.submit(requests[0])
    assert begun.wait(SOON)
    thread.submit(requests[1])
    with pytest.raises(EngineBusyError, match="2 more requests would make 3 wait"):
        thread.submit(*requests[2:4])
    thread.submit(requests[4])
    with pytest.raises(EngineBusyError, match="1 more request would make 3 wait"):
        thread.submit(requests[5])
    found = thread.stats()
    assert (found.running, found.waiting, found.finished) == (1, 2, 0)
    assert (found.pages, found.free_pages, found.page_tokens) == (8, 7, 64)
    go_on.set()
    for i in (0, 1, 4):
        assert len(requests[i].future.result(SOON).token_ids) == 8
    assert thread.stats().waiting == 0 and scheduler.cache.free_tokens == 512


def test_in_a_forked_process_it_says_so_and_nobody_waits(made, monkeypatch):
    """Its lock stays as it was when the process was forked: held, perhaps."""
    thread, *_ = made()
    thread.submit(r := request(5, 8))
    assert r.future.result(SOON).token_ids
    held, let_go = threading.Event(), threading.Event()

    def hold():
        with thread._wake:
            held.set()
            let_go.wait(SOON)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(SOON)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        for call in (thread.check_process, thread.stats, thread.submit, lambda: thread.submit(request(5, 8))):
            with pytest.raises(EngineClosedError, match="is of another process; create the Engine after"):
                call()
        assert thread.describe() == "of another process"
        close(thread)
        cancelling = threading.Thread(target=thread.cancel, args=[r], daemon=True)
        cancelling.start()
        cancelling.join(SOON / 2)
        assert not cancelling.is_alive()
    let_go.set()
    holder.join()
    thread.check_process()
    assert not thread.closed and thread.describe() == "0 running, 0 waiting"


def test_who_has_not_begun_may_be_forked(made, monkeypatch):
    thread, *_ = made()
    thread.submit()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    thread.submit(r := request(5, 8))
    assert r.future.result(SOON).token_ids


def test_closed_while_a_request_comes(made, monkeypatch):
    thread, *_ = made()
    check, calls = thread._check_alive, []

    def close_behind():
        check()
        calls.append(1)
        if len(calls) == 1:
            thread.close()

    monkeypatch.setattr(thread, "_check_alive", close_behind)
    with pytest.raises(EngineClosedError, match="the engine is closed"):
        thread.submit(request(5, 8))
    assert thread.describe() == "closed"
