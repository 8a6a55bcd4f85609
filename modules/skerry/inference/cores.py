"""How many cores this process may use, and which kind they are."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_CPUINFO = Path("/proc/cpuinfo")


def usable_cores() -> int:
    """Cores that the affinity mask and the container's CPU quota leave to this process, at least 1."""
    cores = len(os.sched_getaffinity(0))
    try:
        return max(1, min(cores, quota(_QUOTA.read_text(encoding="ascii"))))
    except OSError:
        return cores


def quota(text: str) -> int:
    """Whole cores that a `cpu.max` grants, rounded up.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst, "CPU Interface Files".
    """
    limit, _, period = text.strip().partition(" ")
    if limit == "max" or not period:
        return 1 << 16
    return math.ceil(int(limit) / int(period))


def default_threads(cores: int) -> int:
    """Threads of one run of a session.

    Half of the cores: a camera's frames are decoded, tracked and stored on the others. On two cores a
    second thread bought 0 to 30 % of latency for 10 to 50 % more CPU time (docs/inference.md).
    """
    return max(1, cores // 2)


def cpu_model(text: str) -> str:
    """Name of the processor from `/proc/cpuinfo`, its part number where it has no name (ARM)."""
    rows = (line.partition(":") for line in reversed(text.splitlines()))
    fields = {key.strip(): value.strip() for key, _, value in rows}
    for name in ("model name", "CPU part"):
        if fields.get(name):
            return f"{platform.machine()} {fields[name]}"
    return platform.machine()


def this_cpu() -> str:
    """`cpu_model` of this machine."""
    try:
        return cpu_model(_CPUINFO.read_text(encoding="utf-8"))
    except OSError:
        return platform.machine()
