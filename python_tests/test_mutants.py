"""bench/mutants: its tables name what there is, and it plants what it says."""

import tomllib
from pathlib import Path

import pytest
from scripts import scripts_of

ROOT = Path(__file__).parents[1]
HERE = ROOT / "bench/mutants"


@pytest.mark.parametrize("table", ("tests.toml", "equivalent.toml"))
def test_tables(table):
    for module, entries in tomllib.loads((HERE / table).read_text()).items():
        assert (ROOT / "edlm_engine" / module).exists(), module
        for entry in entries:
            if table == "tests.toml":
                assert (ROOT / "python_tests" / entry.partition("::")[0]).exists(), entry
            else:
                assert set(entry) == {"before", "after", "reason"} and entry["before"] != entry["after"]


SOURCE = '''
LIMIT: int | None = 7


def f(a: int | None, *, b=True) -> int | None:
    """With a docstring of 3 words."""
    if a < 2:
        note(a)
        return a + 1
    raise ValueError
'''


def test_faults(tmp_path):
    pytest.importorskip("cosmic_ray")
    with scripts_of(HERE):
        from faults import faults_of

    (tmp_path / "module.py").write_text(SOURCE)
    found = faults_of(tmp_path / "module.py")
    changes = {(fault.before, fault.after.replace("  ", " ")) for fault in found}
    assert {
        ("LIMIT: int | None = 7", "LIMIT: int | None = 8"),
        ("if a < 2:", "if a <= 2:"),
        ("if a < 2:", "if not a < 2:"),
        ("note(a)", "pass"),
        ("return a + 1", "return a - 1"),
        ("return a + 1", "pass"),
        ("raise ValueError", "pass"),
    } <= changes
    assert not any("&" in after or "docstring" in before or "/, b" in after for before, after in changes)
    assert len({fault.source for fault in found}) == len(found)
    for fault in found:
        compile(fault.source, "", "exec")
