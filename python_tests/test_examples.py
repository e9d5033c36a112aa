"""The examples do what they say, with the bundled model."""

import asyncio
import http.client
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.timeout(180)

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SORT = "Q: Sort [31, 4, 15] in ascending order.\nA: "
SORTED = "The result is [4, 15, 31]."
ENV = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
ENV.pop("PYTEST_XDIST_WORKER", None)  # pytest-benchmark measures nothing in a worker


def start(name, *arguments, **options):
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.Popen(
        command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def run(name, *arguments, **options):
    process = start(name, *arguments, **options)
    out, err = process.communicate(timeout=150)
    return process.returncode, out, err


def load(name):
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_here():
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == {
        "batch_job.py", "latency_suite.py", "notebook.ipynb", "service.py",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["batch_job.py", "service.py"])
def test_help_does_not_load_a_model(name):
    code, out, err = run(name, "--help")
    assert code == 0 and "--model" in out and f"python examples/{name}" in out, err


# The service


@contextmanager
def service():
    """The port of a service, and its process, which is killed if it is still there at the end."""
    process = start("service.py", "--port", 0)
    try:
        port = int(re.fullmatch(r"listening on http://127.0.0.1:(\d+)\n", process.stdout.readline())[1])
        yield port, process
    finally:
        process.kill()
        process.communicate()


def ask(port, body, path="/v1/completions"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", path, body if isinstance(body, str) else json.dumps(body))
    return connection


def post(*request):
    return ask(*request).getresponse()


def events(response):
    """The data of its events as they come."""
    for line in response:
        if data := line.decode().removeprefix("data: ").strip():
            yield data


def test_service():
    with service() as (port, _):
        request = {"prompt": SORT, "model": "any", "max_tokens": 64}
        response = post(port, request)
        (choice,) = json.load(response)["choices"]
        assert response.status == 200 and choice == {"index": 0, "text": SORTED, "finish_reason": "stop"}

        response = post(port, request | {"stream": True, "policy": "schedule"})
        assert response.headers["Content-Type"] == "text/event-stream"
        *data, end = events(response)
        pieces = [json.loads(item)["choices"][0] for item in data]
        assert end == "[DONE]" and "".join(piece["text"] for piece in pieces) == SORTED
        assert sum(bool(piece["text"]) for piece in pieces) > 1
        assert [piece["finish_reason"] for piece in pieces] == [None] * (len(pieces) - 1) + ["stop"]

        (choice,) = json.load(post(port, {"prompt": SORT, "max_new_tokens": 2}))["choices"]
        assert choice["finish_reason"] == "length"
        for stream in (False, True):
            response = post(port, {"prompt": SORT, "heat": 1, "stream": stream})
            assert response.status == 400
            assert "unknown sampling parameter 'heat'" in json.load(response)["error"]["message"]
        assert post(port, "{").status == post(port, "[1]").status == post(port, {}).status == 400
        assert "there is only POST" in json.load(post(port, {}, "/elsewhere"))["error"]["message"]


def test_service_answers_what_it_has_taken_before_it_ends():
    with service() as (port, process):
        idle = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        idle.connect()  # says nothing, and must hold nothing up
        long = {"prompt": SORT, "max_new_tokens": 400, "policy": "schedule", "ignore_eos": True}
        whole, stream = ask(port, long), events(post(port, long | {"stream": True}))
        next(stream)
        process.send_signal(signal.SIGTERM)
        data = list(stream)
        assert json.loads(data[-2])["choices"][0]["finish_reason"] == "length" and data[-1] == "[DONE]"
        assert json.load(whole.getresponse())["choices"][0]["finish_reason"] == "length"
        assert process.wait(timeout=60) == 0 and process.stderr.read() == ""


def test_service_cancels_what_nobody_reads():
    closed = asyncio.Event()

    async def astream(prompt, **params):
        try:
            while True:
                yield SimpleNamespace(text=prompt, generation=None)
                await asyncio.sleep(0.001)
        finally:
            closed.set()

    async def leave_a_stream():
        engine, answering = SimpleNamespace(astream=astream), set()
        handler = partial(load("service").answer, engine, answering)
        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        body = json.dumps({"prompt": "a", "stream": True})
        writer.write(f"POST /v1/completions HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        assert b"data: " in await reader.readuntil(b'"text": "a"')
        assert answering and not closed.is_set()
        writer.transport.abort()
        await asyncio.wait_for(closed.wait(), 20)
        while answering:
            await asyncio.sleep(0.001)
        server.close()

    asyncio.run(leave_a_stream())


# The batch job


@pytest.fixture
def job(tmp_path, monkeypatch, capsys):
    """job() runs it in this process over records.jsonl, and returns what it wrote to stderr."""
    module = load("batch_job")
    monkeypatch.chdir(tmp_path)

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["batch_job.py", "records.jsonl", "answers.jsonl", *options])
        module.main()
        return capsys.readouterr().err

    return run


def answers(name="answers.jsonl"):
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").split("\n")[:-1]]


RECORDS = [
    {"prompt": SORT, "id": "a"},
    {"prompt": ""},
    {"id": "line\u2028break"},
    {"prompt": "Q: Sort [56, 41, 19] in ascending order.\nA: "},
]


def write_records(records=RECORDS):
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    Path("records.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n\n".join(lines).encode())


def test_batch_job(job):
    write_records()
    assert job().startswith("4/4, ")
    first, empty, missing, last = answers()
    assert first == RECORDS[0] | {"text": SORTED, "finish_reason": "eos"}
    assert empty == {"prompt": "", "error": "prompt is empty; at least one token is needed"}
    assert missing["id"] == "line\u2028break" and "prompt must be" in missing["error"]
    assert last["text"].endswith("[19, 41, 56].")
    assert sorted(path.name for path in Path().iterdir()) == ["answers.jsonl", "records.jsonl"]
    job("--max-new-tokens=2")
    assert answers()[0]["finish_reason"] == "length"


def test_batch_job_goes_on_where_it_stopped(job):
    write_records()
    kept = RECORDS[0] | {"text": "from the first run"}
    Path("answers.jsonl.partial").write_text(json.dumps(kept) + '\n{"prompt": "", "err')
    assert job().startswith("4/4, ")
    assert [record.get("prompt") for record in answers()] == [record.get("prompt") for record in RECORDS]
    assert answers()[0] == kept and "error" in answers()[1] and answers()[3]["text"].endswith("[19, 41, 56].")
    assert not Path("answers.jsonl.partial").exists()


def test_batch_job_refuses_what_it_cannot_use(job):
    write_records()
    Path("answers.jsonl.partial").write_text('{"prompt": "another"}\n')
    with pytest.raises(SystemExit, match=r"answers\.jsonl\.partial: answers other prompts; delete it"):
        job()
    assert Path("answers.jsonl.partial").read_text() == '{"prompt": "another"}\n'
    for line in ("{", "[1]"):
        Path("records.jsonl").write_text('{"prompt": "a"}\n\n' + line)
        with pytest.raises(SystemExit, match=r"records\.jsonl:3: no JSON object: "):
            job()


# The suite and the notebook


def test_latency_suite(tmp_path):
    plugins = ("-p", "edlm_engine.pytest_plugin", "-p", "no:cacheprovider")
    code, out, err = run("latency_suite.py", *plugins, f"--rootdir={tmp_path}", "-c", os.devnull)
    assert code == 0, out + err
    assert "benchmark: 2 tests" in out and "edlm_engine: latencies" in out
    assert re.search(r"test_latency\[4\] +32 +4( +\d+\.\d\d){6}\n", out)


@pytest.mark.filterwarnings("ignore:.*non-interactive")
def test_notebook(monkeypatch, capsys):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.close("all")  # what other tests have left open
    book = json.loads((EXAMPLES / "notebook.ipynb").read_text(encoding="utf-8"))
    cells, names = [cell for cell in book["cells"] if cell["cell_type"] == "code"], {}
    assert (book["nbformat"], len({cell["id"] for cell in book["cells"]})) == (4, len(book["cells"]))
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    for cell in cells:
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    (figure,) = map(pyplot.figure, pyplot.get_fignums())
    bars = figure.axes[0].patches
    pyplot.close(figure)
    out = capsys.readouterr().out
    plain = re.sub(r"\033\[\d+m", "", out)
    result = names["result"]
    assert f"{len(bars)} tokens in {result.nfe} forwards" in plain and len(bars) == len(result.token_ids)
    passes = re.findall(r"^ ?\d+  (.*)$", plain, re.M)
    assert len(passes) == result.nfe and "▒" in passes[0]
    assert passes[-1] == result.text.replace("\n", "↵")
    assert len(re.findall(r"^\w+(?::\S+)? +\d+ forwards", plain, re.M)) == 5
    assert "32 requests, 4 at a time" in plain
