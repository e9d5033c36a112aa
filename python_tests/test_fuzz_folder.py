"""Mutated checkpoint folders: each loads and generates, or is refused by a sentence that names the place.

A few hundred cases by default; EDLM_FUZZ=20000 tries so many others. They run in a process of their own,
whose death, slowness and hunger are findings like any other.
"""

import json
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from checkpoints import config_dict, write_ar_checkpoint, write_checkpoint
from folder_mutations import apply, mutations
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import edlm_engine
from edlm_engine.tools.quantize import quantize_checkpoint

ENVIRONMENT = {  # arenas of malloc would count as memory
    "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MALLOC_ARENA_MAX": "1",
    "PYTHONPATH": str(Path(edlm_engine.__file__).parents[1]),
}  # fmt: skip
COUNT = int(os.environ.get("EDLM_FUZZ") or 300)
SECONDS = 20  # that a case may take; most take a fiftieth of one
MOST_BYTES = 512 << 20  # that the process may take beyond what it has after its imports
LONGEST_MESSAGE = 1500
QUOTES = (
    "cannot be read as a tokenizer",
    "do not fit together",
)  # messages that quote a library's, unescaped
TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


def everything(folder: Path) -> Path:
    """All kinds of files that a folder can hold, beside the model."""
    tokens = {"eos_token": "w126", "mask_token": {"content": "w127", "special": True}}
    files = {
        "generation_config.json": {"eos_token_id": [126, 90], "temperature": 0.6},
        "tokenizer_config.json": {
            **tokens, "chat_template": TEMPLATE, "add_bos_token": False, "model_max_length": 10**30,
            "added_tokens_decoder": {"126": {"content": "w126", "special": True}},
        },
        "special_tokens_map.json": tokens,
        "added_tokens.json": {"w126": 126, "w127": 127},
        "vocab.json": {"0123456789w"[i] if i < 11 else f"w{i}": i for i in range(128)},
    }  # fmt: skip
    for name, data in files.items():
        (folder / name).write_text(json.dumps(data))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def write_bases(parent: Path, sentencepiece_model: bytes) -> list[Path]:
    """One of each way to keep a model and its tokenizer."""
    single = everything(write_checkpoint(parent / "single"))
    shards = everything(write_checkpoint(parent / "shards", config_dict("qwen2")))
    weights, weight_map = load_file(shards / "model.safetensors"), {}
    for i in (1, 2):
        part = {name: weights[name] for name in sorted(weights)[i - 1 :: 2]}
        save_file(part, shards / f"model-{i}.safetensors")
        weight_map |= dict.fromkeys(part, f"model-{i}.safetensors")
    (shards / "model.safetensors").unlink()
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (shards / "tokenizer.json").unlink()
    plain = write_checkpoint(parent / "plain", tokenizer=False)
    (plain / "tokenizer.model").write_bytes(sentencepiece_model)
    (plain / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True, "bos_token": "<s>"}))
    return [single, shards, quantize_checkpoint(plain, parent / "int8"), write_ar_checkpoint(parent / "ar")]


class Worker:
    """The process that opens the folders, begun again whenever it ends, and from time to time."""

    def __init__(self, errors: Path):
        self._process, self._asked, self._errors = None, 0, errors

    def ask(self, kind: str, path: Path) -> dict:
        if self._process is None or self._process.poll() is not None or self._asked == 2000:
            self._start()
        self._asked += 1
        self._process.stdin.write(json.dumps([kind, str(path)]).encode() + b"\n")
        self._process.stdin.flush()
        if line := self._answer(SECONDS):
            return json.loads(line)
        hangs = self._process.poll() is None
        self.close()
        said = self._errors.read_text(errors="replace")[-500:]
        return {"error": "hang" if hangs else f"abort {self._process.returncode}", "message": said}

    def _start(self):
        self.close()
        self._asked = 0
        script = Path(__file__).with_name("fuzz_worker.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(MOST_BYTES)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors.open("w"),
            env=os.environ | ENVIRONMENT,
        )  # fmt: skip
        assert self._answer(120) == b"ready\n", self._errors.read_text()

    def _answer(self, seconds: float) -> bytes:
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        return self._process.stdout.readline() if ready else b""

    def close(self):
        if self._process:
            self._process.kill()
            self._process.communicate()


@pytest.fixture(scope="module")
def bases(tmp_path_factory, sentencepiece_model):
    return write_bases(tmp_path_factory.mktemp("bases"), sentencepiece_model)


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    worker = Worker(tmp_path_factory.mktemp("worker") / "errors")
    yield worker
    worker.close()


def fault(report: dict, path: Path, changed: list[tuple[str, str]]) -> str | None:
    """What is wrong with what became of a case."""
    if "outcome" in report:
        return None
    message = report["message"]
    if not report.get("clean"):
        return f"{report['error']}: {message[:500]}"
    if len(message) > LONGEST_MESSAGE or not (message.isprintable() or any(w in message for w in QUOTES)):
        return f"long or not printable: {message[:100]}"
    if report["request"]:
        return None
    if str(path) not in message:
        return f"names no file: {message[:300]}"
    if len(changed) == 1 and changed[0][0] == "config.json" and changed[0][1].startswith("set "):
        key = changed[0][1].removeprefix("set ")
        if not (
            key.isdigit() or any(name in message for name in (key, "key '", "asks for", "tensor '", "dtype"))
        ):
            return f"names no key: {message[:300]}"
    return None


def kind_of(text: str, path: Path) -> str:
    """Faults that differ by numbers and names alone are one."""
    return re.sub(r"\d+|'[^']*'|\"[^\"]*\"", "_", text.replace(str(path), "_"))[:120]


def run(cases, check):
    """Try all cases; then fail with one example of each kind of fault."""
    options = settings(
        max_examples=COUNT, deadline=None, database=None, derandomize="EDLM_FUZZ" not in os.environ,
        phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    found: dict[str, str] = {}

    @options
    @given(cases)
    def try_all(case):
        with tempfile.TemporaryDirectory() as parent:
            wrong, what, where = check(case, Path(parent))
        if wrong and (kind := kind_of(wrong, where)) not in found:
            found[kind] = f"{wrong}\n    {what}\n    {case!r}"[:3000]
            print(found[kind], flush=True)

    try_all()
    assert not found, f"{len(found)} kinds of faults\n" + "\n".join(found.values())


def test_what_is_not_changed_loads(bases, worker):
    for folder in bases:
        report = worker.ask("folder", folder)
        assert "outcome" in report or report["request"], report


@pytest.mark.timeout(120 + COUNT)
def test_folders(bases, worker):
    def check(case, parent: Path):
        number, changes = case
        folder = parent / "folder"
        shutil.copytree(bases[number], folder)
        changed = apply(folder, changes)
        return fault(worker.ask("folder", folder), folder, changed), changed, folder

    run(st.tuples(st.integers(0, len(bases) - 1), mutations), check)


@pytest.mark.timeout(120 + COUNT)
def test_settings(worker):
    sampling = {"threshold": 0.9, "policy": "threshold:0.9", "block_length": 8, "stop": ["a"], "seed": 3}

    def check(changes, parent: Path):
        path = parent / "edlm_settings.json"
        path.write_text(json.dumps({"sampling": sampling, "model": "x", "tried": [{"threshold": 0.5}]}))
        changed = apply(parent, [change for change in changes if change[0] != "file"])
        return fault(worker.ask("settings", path), path, changed), changed, path

    run(mutations, check)
