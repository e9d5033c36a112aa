"""edlm_engine.tools.environment: every variable that the sources read is known, and shown where it is set."""

import re
from pathlib import Path

from edlm_engine.tools.environment import VARIABLES, set_variables

ROOT = Path(__file__).parents[1]


def test_every_variable_that_is_read_is_listed():
    sources = [*(ROOT / "edlm_engine").rglob("*.py"), *(ROOT / "csrc").rglob("*.cpp")]
    reading = re.compile(r"""(?:getenv|environ(?:\.get|\.setdefault|\.pop)?)[\[(]["'](\w+)["']""")
    read = {name for path in sources for name in reading.findall(path.read_text(encoding="utf-8"))}
    assert "EDLM_ISA" in read and read <= VARIABLES.keys()


def test_what_is_set(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert set_variables() == []
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "3\x1b")
    assert set_variables() == ["OMP_NUM_THREADS=3\\x1b", "HF_TOKEN is set"]
