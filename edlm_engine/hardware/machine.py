"""What this machine has to give."""

import ctypes
import os
from pathlib import Path


def available_memory() -> int:
    """Bytes that a process can still take: what the kernel calls available, within the cgroup's limit. Where
    the kernel does not say (macOS), half of the memory that there is."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    else:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - used))


def trim_memory() -> None:
    """Give memory that was freed back to the machine, where the C library can (glibc keeps it otherwise)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def default_threads() -> int:
    """Threads that pay: the physical cores that this process may use, within the cgroup's share of time."""
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = {_core(cpu) for cpu in cpus}
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        quota, period = "max", "0"
    allowed = len(cores) if quota == "max" else max(1, round(int(quota) / int(period)))
    return min(len(cores), allowed)


def _core(cpu: int) -> str:
    """What the hardware threads of one core have in common."""
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    return path.read_text().strip() if path.exists() else str(cpu)
