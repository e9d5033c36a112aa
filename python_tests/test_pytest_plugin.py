"""The pytest plugin: its fixtures in suites of their own, with and without pytest-benchmark."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

import edlm_engine.benchmark  # an inner session drops what it imports, and torch bears no second import
import edlm_engine.engine

pytest_plugins = "pytester"
pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parents[1]
PLUGIN = "edlm_engine.pytest_plugin"
ALONE = ("-p", PLUGIN, "-p", "no:cacheprovider")
BOTH = ("-p", "benchmark", *ALONE)
FAKE_ENGINE = """
    import time
    from types import SimpleNamespace
    import pytest

    class FakeEngine:
        def stream(self, prompt, params=None, **overrides):
            if prompt == "bad":
                raise ValueError("bad prompt")
            time.sleep(0.001)
            yield SimpleNamespace(text="a", generation=None)
            yield SimpleNamespace(text="ab", generation=SimpleNamespace(token_ids=[0] * 6, nfe=2))

    @pytest.fixture(scope="session")
    def edlm_engine():
        return FakeEngine()
"""


@pytest.fixture(autouse=True)
def few_plugins(monkeypatch):
    """Sessions load the plugins that they name: others take seconds."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    # pytest-benchmark measures nothing in the workers of xdist, one of which this session may be
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)


@pytest.fixture
def suite(pytester):
    """suite(test_file, *options) runs it in a session of this process, with a made-up engine."""
    pytester.makeconftest(FAKE_ENGINE)

    def run(text, *options, plugins=BOTH):
        pytester.makepyfile(test_suite=text)
        return pytester.runpytest_inprocess(*plugins, *options)

    return run


def in_subprocess(*options, cwd, site="", **env):
    env = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(site)))} | env
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=100)


MEASURES = """
    import pytest

    @pytest.mark.parametrize("concurrency", [1, 2])
    @pytest.mark.benchmark(group="ours")
    def test_latency(edlm_latency, concurrency):
        found = edlm_latency(["x", "bad"], requests=8, concurrency=concurrency, warmup=2)
        assert len(found.samples) == 4 and len(found.failures) == 4
        assert found.concurrency == concurrency and found.tokens_per_forward == 3
        print(f"SECONDS{concurrency}", [sample.seconds for sample in found.samples])

    def test_other():
        pass
"""


def test_table_at_the_end(suite):
    result = suite(MEASURES)
    result.assert_outcomes(passed=3)
    result.stdout.re_match_lines_random(
        [
            r"=+ edlm_engine: latencies =+",
            r"test +requests +at a time +p50 ms +p90 ms +p99 ms +first text p50 ms +tokens/s +TPF$",
            r"test_suite.py::test_latency\[1\] +4 +1( +\d+\.\d\d){5} +3\.00$",
            r"test_suite.py::test_latency\[2\] +4 +2( +\d+\.\d\d){5} +3\.00$",
            r"test_suite.py::test_latency\[2\]: 4 failed: ValueError: bad prompt$",
        ]
    )


def test_no_table_without_measurements(suite):
    assert "latencies" not in suite("def test_nothing(edlm_engine): pass").stdout.str()


def test_a_failing_suite_keeps_its_measurement(suite):
    result = suite(
        """
        def test_slow(edlm_latency):
            found = edlm_latency('x')
            print(f"P50 {1e3 * found.p50:.2f} ms")
            assert found.p99 < 0
        """
    )
    result.assert_outcomes(failed=1)
    out = result.stdout.str()
    (p50,) = re.findall(r"^P50 (\d+\.\d\d) ms$", out, re.M)
    assert re.findall(r"^test_suite.py::test_slow +1 +1 +(\S+).* 3\.00$", out, re.M) == [p50]  # in one row


def test_benchmark_has_the_latencies_as_rounds(suite, pytester):
    result = suite(MEASURES, "--benchmark-json=out.json", "-s")
    result.assert_outcomes(passed=3)
    out, saved = result.stdout.str(), json.loads((pytester.path / "out.json").read_text())["benchmarks"]
    assert [b["name"] for b in saved] == ["test_latency[1]", "test_latency[2]"]
    for concurrency, kept in enumerate(saved, 1):
        printed = next(line for line in out.splitlines() if f"SECONDS{concurrency}" in line)
        seconds = json.loads(printed.partition(f"SECONDS{concurrency} ")[2])
        assert kept["stats"]["rounds"] == 4 and kept["stats"]["data"] == pytest.approx(seconds)
        assert kept["stats"]["median"] == pytest.approx(kept["extra_info"]["p50"])
        assert kept["extra_info"]["concurrency"] == concurrency and kept["extra_info"]["failures"] == 4
        assert kept["group"] == "ours" and kept["options"]["timer"] == "latency of a request"


@pytest.mark.parametrize(
    ("option", "outcomes"),
    [
        ("--benchmark-disable", {"passed": 3}),
        ("--benchmark-only", {"passed": 2, "skipped": 1}),
        ("--benchmark-skip", {"passed": 1, "skipped": 2}),
    ],
)
def test_options_of_pytest_benchmark(suite, option, outcomes):
    result = suite(MEASURES, "-W", "error", option)
    result.assert_outcomes(**outcomes)
    assert ("edlm_engine: latencies" in result.stdout.str()) == (option != "--benchmark-skip")


def test_without_pytest_benchmark(suite):
    result = suite(MEASURES, plugins=ALONE)
    result.assert_outcomes(passed=3)
    assert "edlm_engine: latencies" in result.stdout.str()


def test_a_benchmark_of_the_test_itself_stays_its_own(suite, pytester):
    result = suite(
        """
        def test_before(benchmark, edlm_latency):
            benchmark.pedantic(lambda: None, rounds=7)
            edlm_latency(["x"], requests=3)

        def test_after(benchmark, edlm_latency):
            edlm_latency(["x"], requests=3)
            edlm_latency(["x"], requests=4)
            benchmark.pedantic(lambda: None, rounds=7)

        def test_first_of_two(edlm_latency):
            edlm_latency(["x"], requests=3)
            edlm_latency(["x"], requests=4)
        """,
        "--benchmark-json=out.json",
    )
    result.assert_outcomes(passed=3)
    saved = json.loads((pytester.path / "out.json").read_text())["benchmarks"]
    assert [b["stats"]["rounds"] for b in saved] == [7, 7, 3]
    assert [b["extra_info"]["requests"] for b in saved] == [3, 3, 3]
    assert [b["options"]["timer"] == "perf_counter" for b in saved] == [True, True, False]


def test_measurements_leave_a_process_with_the_report(suite, pytester):
    suite(MEASURES)
    run = pytester.inline_run(*BOTH, "-k", "latency")
    reports = [r for r in run.getreports("pytest_runtest_logreport") if r.when == "call"]
    for report, concurrency in zip(reports, (1, 2), strict=True):
        ((name, value),) = json.loads(json.dumps(report.user_properties, allow_nan=False))
        assert name == "edlm_latency" and value["concurrency"] == concurrency
        assert value["errors"] == {"ValueError: bad prompt": 4} and value["p50"] <= value["p99"]


@pytest.fixture
def engines(monkeypatch):
    """The engines that are made, none of which is real."""
    made = []

    class Engine:
        def __init__(self, model, **options):
            self.told = SimpleNamespace(model=model, options=options, closed=False, requests=0)
            made.append(self.told)

        def stream(self, prompt, params=None, **overrides):
            self.told.requests += 1
            return iter([SimpleNamespace(text="a", generation=SimpleNamespace(token_ids=[1], nfe=1))])

        def __enter__(self):
            return self

        def __exit__(self, *exc):
            self.told.closed = True

    monkeypatch.setattr(edlm_engine.engine, "Engine", Engine)
    return made


TWO_TESTS = """
    def test_one(edlm_engine, edlm_latency):
        edlm_latency(["x"], warmup=0)
        assert not edlm_engine.told.closed

    def test_two(edlm_latency):
        edlm_latency(["x"], requests=2, warmup=0)
"""


def test_one_engine_for_the_session(pytester, engines):
    pytester.makepyfile(TWO_TESTS)
    pytester.runpytest_inprocess(*BOTH).assert_outcomes(passed=2)
    assert engines == [SimpleNamespace(model="edlm-tiny", options={}, closed=True, requests=3)]


def test_model_and_options_are_the_suite_s(pytester, engines):
    pytester.makeconftest(
        """
        import pytest

        @pytest.fixture(scope="session", params=["float32", "bfloat16"])
        def edlm_engine_options(request):
            return {"dtype": request.param}
        """
    )
    pytester.makepyfile(TWO_TESTS)
    run = pytester.runpytest_inprocess(*BOTH, "--edlm-model=./mine")
    run.assert_outcomes(passed=4)
    assert [(e.model, e.options["dtype"], e.closed, e.requests) for e in engines] == [
        ("./mine", "float32", True, 3),
        ("./mine", "bfloat16", True, 3),
    ]


def test_other_people_s_sessions_do_not_import_torch(tmp_path):
    (tmp_path / "test_theirs.py").write_text(
        "import sys\n\n"
        "def test_light():\n"
        "    heavy = {'torch', 'numpy', 'edlm_engine.engine', 'edlm_engine.benchmark'}\n"
        "    assert 'edlm_engine.pytest_plugin' in sys.modules and not heavy & sys.modules.keys()\n"
    )
    result = in_subprocess("-p", PLUGIN, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


def test_pytest_finds_the_plugin_where_the_package_is_installed(tmp_path):
    """By the entry point of pyproject.toml, once even if it is named on the command line, too."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    info = tmp_path / "site" / "edlm_engine_as_installed-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: edlm_engine_as_installed\nVersion: 1.0\n")
    lines = ["[pytest11]", *(f"{name} = {module}" for name, module in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))
    for options in ([], ["-p", PLUGIN]):
        env = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": ""}
        result = in_subprocess(
            "--fixtures", *options, "-p", "no:hypothesispytest", cwd=tmp_path, site=info.parent, **env
        )
        assert result.returncode == 0, result.stdout + result.stderr
        for fixture in ("edlm_engine [session scope]", "edlm_engine_options [session scope]", "edlm_latency"):
            assert f"\n{fixture} -- " in result.stdout
