"""What the machine has to give, where the kernel says it and where it does not."""

import os

import pytest

from edlm_engine.hardware import machine


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Writes the kernel's files; those that are not written do not exist, as on macOS."""
    monkeypatch.setattr(machine, "Path", lambda path: tmp_path / str(path).lstrip("/"))

    def write(path: str, text: str):
        file = tmp_path / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    return write


def test_memory_without_files_of_the_kernel(files):
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert machine.available_memory() == physical // 2


def test_memory_is_what_the_kernel_calls_available(files):
    files("/proc/meminfo", "MemTotal:  4000 kB\nMemFree:  1000 kB\nMemAvailable:  3000 kB\n")
    assert machine.available_memory() == 3000 * 1024
    files("/sys/fs/cgroup/memory.current", "1024\n")
    for limit, left in (("max", 3000 * 1024), ("5120", 4096), ("100", 0), (str(2**60), 3000 * 1024)):
        files("/sys/fs/cgroup/memory.max", f"{limit}\n")
        assert machine.available_memory() == left


def test_threads_without_affinity(files, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert machine.default_threads() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.default_threads() == 1


def test_threads_are_cores_within_the_share_of_time(files, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)
    for cpu in range(4):  # two hardware threads per core
        files(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{cpu // 2}\n")
    assert machine.default_threads() == 2
    files("/sys/fs/cgroup/cpu.max", "100000 100000\n")
    assert machine.default_threads() == 1
    files("/sys/fs/cgroup/cpu.max", "max 100000\n")
    assert machine.default_threads() == 2


def test_memory_is_trimmed_where_the_c_library_can():
    machine.trim_memory()


def test_this_machine():
    assert machine.available_memory() > 0
    assert 1 <= machine.default_threads() <= (os.cpu_count() or 1)
