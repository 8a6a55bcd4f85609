"""What a processor computes with, by name, and how to run as on an older one."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

from skerry.errors import Unavailable

_ISAS = (
    ("amx_int8", "amx_int8"), ("avx512_vnni", "avx512_vnni"), ("avx_vnni", "avx_vnni"),
    ("avx512bw", "avx512"), ("avx2", "avx2"), ("avx", "avx"), ("i8mm", "i8mm"), ("asimddp", "dotprod"),
    ("asimd", "neon"),
)  # fmt: skip
"""A processor's flag to the name; the first that it has counts for products of 8 bits."""
_EMULATORS = ("qemu-x86_64-static", "qemu-x86_64")
_MACHINES = {"avx2": "Haswell"}
"""Instruction set to the machine of QEMU's that has it, and nothing better for products of 8 bits."""


def instruction_set(cpuinfo: str) -> str:
    """The best for products of 8 bits in a `/proc/cpuinfo`; the machine's name where it lists none."""
    flags = {
        flag
        for line in cpuinfo.splitlines()
        if line.partition(":")[0].strip() in ("flags", "Features")
        for flag in line.partition(":")[2].split()
    }
    return next((name for flag, name in _ISAS if flag in flags), platform.machine())


def this_instruction_set() -> str:
    """`instruction_set` of this machine."""
    try:
        return instruction_set(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        return platform.machine()


def emulator(isa: str) -> list[str]:
    """What goes before a command so that it finds no more than this instruction set.

    Raises:
        Unavailable: it is not installed, or this is another kind of machine.
    """
    found = next((path for name in _EMULATORS if (path := shutil.which(name))), None)
    if found is None or platform.machine() != "x86_64":
        raise Unavailable(
            f"instruction_sets: {isa}: expected an x86-64 machine with qemu-x86_64-static, found none "
            "(apt-get install qemu-user-static)"
        )
    return [found, "-cpu", _MACHINES[isa]]
