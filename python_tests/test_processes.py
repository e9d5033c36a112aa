"""Engines in every process model: forks, multiprocessing, gunicorn, uvicorn."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(120)
PROMPT = "Q: Sort [31, 4, 15] in ascending order.\nA: "
TEXT = "The result is [4, 15, 31]."
SECONDS = 50  # for a program, or for a server to begin, to answer or to end


@contextmanager
def program(*command, **options):
    """A running program; at the end it is gone, with all that it has started."""
    # more threads than one, so that ops of torch are parallel
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "2"}
    running = subprocess.Popen(
        [sys.executable, "-W", "ignore", *map(str, command)], env=environment, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options,
    )  # fmt: skip
    try:
        yield running
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.communicate()


def output(*command, **options) -> list[str]:
    """The lines that a program prints, which must end well and in time."""
    with program(*command, **options) as running:
        text, _ = running.communicate(timeout=SECONDS)
        assert running.returncode == 0, text
        return text.splitlines()


def test_forked_children_whatever_the_parent_did():
    lines = output(Path(__file__).with_name("forking_program.py"))
    assert [line for line in lines if not line.endswith(": well")] == []
    assert lines[-1] == "parent, who reads on: well"


WORKERS = """
import multiprocessing, sys, torch
from concurrent.futures import ProcessPoolExecutor
from edlm_engine import Engine

def begin():
    global engine
    engine = Engine("edlm-tiny", num_threads=2)

def answer(prompt):
    return engine.generate(prompt, max_new_tokens=24).text

if __name__ == "__main__":
    torch.ones(512, 512) @ torch.ones(512, 512)
    with Engine("edlm-tiny") as engine:
        answer(sys.argv[2])
        with ProcessPoolExecutor(int(sys.argv[3]), multiprocessing.get_context(sys.argv[1]), begin) as pool:
            print(*pool.map(answer, [sys.argv[2]] * 4), answer(sys.argv[2]), sep="\\n")
"""


@pytest.mark.parametrize("method, workers", (("fork", 2), ("spawn", 1), ("forkserver", 1)))
def test_multiprocessing(tmp_path, method, workers):
    (tmp_path / "workers.py").write_text(WORKERS)
    assert output(tmp_path / "workers.py", method, PROMPT, workers) == [TEXT] * 5


class UnixConnection(http.client.HTTPConnection):
    """HTTP through a socket in a folder: no port that another program may take."""

    def __init__(self, path: Path):
        super().__init__("localhost", timeout=SECONDS)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def answer(path: Path) -> tuple[str, str]:
    """The text that a server answers, and which of its processes it is from."""
    with closing(UnixConnection(path)) as connection:
        connection.request("POST", "/", PROMPT)
        response = connection.getresponse()
        assert response.status == 200
        return response.read().decode(), response.getheader("X-Process")


def wait_until_it_answers(running, path: Path, processes: int, but=()) -> set[str]:
    """The processes that have answered, the text always being right, once there are so many others."""
    seen, end = set(), time.monotonic() + SECONDS
    while len(seen - set(but)) < processes:
        assert running.poll() is None, running.stdout.read()
        assert time.monotonic() < end, f"only {seen} answered"
        try:
            text, process = answer(path)
        except (ConnectionError, FileNotFoundError, http.client.HTTPException):
            time.sleep(0.05)  # not there yet, or about to be another process
            continue
        assert text == TEXT
        seen.add(process)
    return seen


def assert_ends_gracefully(running, path: Path):
    """What was begun is answered to its end, and the server ends."""
    with closing(UnixConnection(path)) as connection:
        connection.request("GET", "/")
        response = connection.getresponse()
        assert response.read(1) == b"b"  # under way
        running.terminate()
        assert response.read().decode() == "egun\n" + TEXT
    running.communicate(timeout=SECONDS)
    assert running.returncode == 0


WSGI = """
import os
from edlm_engine import Engine
{begin}
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Process", str(os.getpid()))])
    if environ["REQUEST_METHOD"] == "POST":
        prompt = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])).decode()
        return [engine.generate(prompt, max_new_tokens=24).text.encode()]
    return slowly()

def slowly():
    yield b"begun\\n"
    for _ in range(20):
        engine.generate({prompt!r}, max_new_tokens=24)
    yield engine.generate({prompt!r}, max_new_tokens=24).text.encode()
"""
AT_IMPORT = "engine = Engine('edlm-tiny', num_threads=2)"
PER_WORKER = """
import torch
torch.ones(512, 512) @ torch.ones(512, 512)
first = Engine("edlm-tiny", num_threads=2)
first.generate("Q: x", max_new_tokens=4)
engine = None

def post_worker_init(worker):
    global engine
    engine = Engine("edlm-tiny", num_threads=2)
"""
HOOK = """
def post_worker_init(worker):
    import served
    if served.engine is None:
        served.post_worker_init(worker)
"""


@pytest.mark.parametrize(
    "begin, options",
    [
        (AT_IMPORT, ("--worker-class=sync",)),
        (AT_IMPORT, ("--preload", "--worker-class=gthread", "--threads=3")),
        (PER_WORKER, ("--preload", "--worker-class=sync")),
    ],
    ids=("sync", "preload-gthread", "preload-used-sync"),
)
def test_gunicorn(tmp_path, begin, options):
    (tmp_path / "served.py").write_text(WSGI.format(begin=begin, prompt=PROMPT))
    (tmp_path / "conf.py").write_text(HOOK)
    path = tmp_path / "socket"
    command = ("-m", "gunicorn", "--workers=2", f"--bind=unix:{path}", "--config=conf.py", *options)
    with program(*command, "served:app", cwd=tmp_path) as running:
        processes = wait_until_it_answers(running, path, 2)
        if "--preload" in options:  # else a reload is another start
            running.send_signal(signal.SIGHUP)
            wait_until_it_answers(running, path, 2, but=processes)
        assert_ends_gracefully(running, path)


ASGI = """
import asyncio, os
from edlm_engine import Engine

async def app(scope, receive, send):
    global engine
    if scope["type"] == "lifespan":
        await receive()
        engine = await asyncio.to_thread(Engine, "edlm-tiny", num_threads=2)
        await send({{"type": "lifespan.startup.complete"}})
        await receive()
        await engine.aclose()
        return await send({{"type": "lifespan.shutdown.complete"}})
    headers = [(b"content-type", b"text/plain"), (b"x-process", str(os.getpid()).encode())]
    await send({{"type": "http.response.start", "status": 200, "headers": headers}})
    if scope["method"] == "POST":
        prompt = (await receive())["body"].decode()
    else:
        prompt = {prompt!r}
        await send({{"type": "http.response.body", "body": b"begun\\n", "more_body": True}})
        await engine.agenerate([prompt] * 20, max_new_tokens=24)
    async for chunk in engine.astream(prompt, max_new_tokens=24):
        pass
    await send({{"type": "http.response.body", "body": chunk.generation.text.encode()}})
"""


def test_uvicorn(tmp_path):
    (tmp_path / "served.py").write_text(ASGI.format(prompt=PROMPT))
    path = tmp_path / "socket"
    command = ("-m", "uvicorn", "served:app", "--workers=2", f"--uds={path}")
    with program(*command, cwd=tmp_path) as running:
        wait_until_it_answers(running, path, 2)
        assert_ends_gracefully(running, path)
