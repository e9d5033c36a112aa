"""A program that forks after each of many things that it has done: run by test_processes.py.

It prints a line for every child: the name of what the parent had done, and how the child ended. A child says
what it did by its exit status; it leaves as programs do, with everything that happens at their exit.
"""

import asyncio
import faulthandler
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial

import torch

from edlm_engine import Engine, EngineClosedError

PROMPT = "Q: Sort [31, 4, 15] in ascending order.\nA: "
TEXT = "The result is [4, 15, 31]."
KINDS = ({"dtype": "float32"}, {"dtype": "bfloat16"}, {"dtype": "float32", "quantization": "int8"})
SECONDS = 15  # for a child


def make(**options) -> Engine:
    return Engine("edlm-tiny", num_threads=2, kv_cache_tokens=2048, **options)


def answers(engine: Engine) -> bool:
    return engine.generate(PROMPT, max_new_tokens=24).text == TEXT


def makes_its_own(**options) -> bool:
    """What a child can do whatever the parent ran."""
    with make(**options) as engine:
        left_open = make(**options)  # to be closed at exit
        return answers(engine) and answers(left_open)


def refuses(engine: Engine) -> bool:
    """A used engine says to whom it belongs, whatever it is asked, and never hangs."""
    messages = [{"role": "user", "content": "Sort [31, 4, 15] in ascending order."}]

    async def on_a_loop(call):
        return await call(PROMPT)

    calls = [
        lambda: engine.generate(PROMPT), lambda: engine.generate([PROMPT]), lambda: engine.stream(PROMPT),
        lambda: engine.chat(messages), lambda: engine.stream_chat(messages), engine.stats,
        lambda: asyncio.run(on_a_loop(engine.agenerate)), lambda: asyncio.run(on_a_loop(engine.astream)),
    ]  # fmt: skip
    for call in calls:
        try:
            call()
            return False
        except EngineClosedError as error:
            if "of another process; create the Engine after forking" not in str(error):
                return False
    engine.close()
    return "of another process" in repr(engine)


def refuses_the_rest(stream) -> bool:
    try:
        list(stream)
    except EngineClosedError as error:
        return "of another process" in str(error)
    return False


def in_child(name: str, *checks):
    """Fork; the child is well if every check is true."""
    child = os.fork()
    if not child:
        sys.exit(0 if all(check() for check in checks) else 1)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return report(name, os.waitstatus_to_exitcode(status))
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    report(name, "hangs")


def report(name: str, end):
    print(f"{name}: {'well' if end == 0 else end}", flush=True)


@contextmanager
def many_callers(engine: Engine):
    """Threads that ask the engine, one request after the other."""
    stop, count = threading.Event(), []

    def ask():
        while not stop.is_set():
            count.append(answers(engine))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    while not count:
        time.sleep(0.001)
    yield
    stop.set()
    for thread in threads:
        thread.join()
    report("parent, whose threads went on", 0 if all(count) else "wrong text")


@contextmanager
def held_by_another_thread(lock):
    held, release = threading.Event(), threading.Event()

    def hold():
        with lock:
            held.set()
            release.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    yield
    release.set()
    thread.join()


def main():
    faulthandler.enable()
    # Without torch.set_num_threads(): after that and a parallel op a child that computes nothing crashes as
    # it ends, in torch itself, which joins threads that are the parent's.
    x = torch.ones(512, 512)
    (x @ x + x).exp_().sum()
    in_child("parallel ops of torch", *(partial(makes_its_own, **options) for options in KINDS))
    for options in KINDS:
        kind, engine = options.get("quantization", options["dtype"]), make(**options)
        in_child(f"an engine not yet used, {kind}", partial(answers, engine))
        report(f"parent, who uses it later, {kind}", 0 if answers(engine) else "wrong text")
        in_child(f"a used engine, {kind}", partial(refuses, engine), partial(makes_its_own, **options))
        engine.close()
    in_child("closed engines", makes_its_own)
    engine = make(dtype="float32")
    with many_callers(engine):
        in_child("requests under way", partial(refuses, engine), makes_its_own)
    stream = engine.stream(PROMPT, max_new_tokens=200, threshold=None, ignore_eos=True)
    next(stream)
    with held_by_another_thread(engine._loop._wake):
        in_child("a lock that is held", partial(refuses_the_rest, stream), partial(refuses, engine))
    report("parent, who reads on", 0 if list(stream)[-1].generation else "no end")


if __name__ == "__main__":
    main()
