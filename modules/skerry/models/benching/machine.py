"""What this machine is, and what it draws, as far as the kernel tells."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""From the kernel's names to those of containers."""
_ISA = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16",
    "amx_int8", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
"""Flags of `/proc/cpuinfo` that change how fast, or what, a model computes."""
_RAPL = "class/powercap"
_HWMON = "class/hwmon"


def architecture() -> str:
    """Of this machine, as containers call it."""
    return ARCHITECTURES.get(platform.machine(), platform.machine())


def instruction_sets(cpuinfo: str) -> tuple[str, ...]:
    """Those that matter to a model, of what `/proc/cpuinfo` lists."""
    listed = _flags(cpuinfo)
    return tuple(name for name in _ISA if name in listed)


def is_virtual(cpuinfo: str) -> bool:
    """Whether a hypervisor says that it is there; on ARM none does."""
    return "hypervisor" in _flags(cpuinfo)


def _flags(cpuinfo: str) -> set[str]:
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


def memory_mib(meminfo: str) -> int:
    """All of it, from `/proc/meminfo`; 1 where it does not say."""
    for line in meminfo.splitlines():
        if line.startswith("MemTotal:"):
            return max(1, int(line.split()[1]) // 1024)
    return 1


def read(path: Path) -> str:
    """A file of the kernel's; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@dataclass(frozen=True)
class _Counter:
    """Energy that only grows, in microjoules, until it begins again at `most`."""

    path: Path
    most: int
    began: int


class Power:
    """Watts, from what the kernel has: RAPL's counters, or sensors that are asked now and then.

    The platform's own domain (psys) is preferred, then the package's (the processor alone: less than what the
    device draws), then sensors of the board (INA3221's VDD_IN on a Jetson).

    Source: Linux, Documentation/power/powercap/powercap.rst and Documentation/hwmon/sysfs-interface.rst.

    Args:
        sys: where sysfs is.
        now_s: monotonic time, seconds.
    """

    def __init__(self, sys: Path, now_s: float) -> None:
        self._began = now_s
        self._counters, self.source = _energy(sys)
        self._sensor: tuple[Path, ...] = ()
        self._seen: list[float] = []
        if not self._counters:
            self._sensor, self.source = _sensor(sys)

    def sample(self) -> None:
        """Ask the sensor; call it about once a second."""
        if not self._sensor:
            return
        values = [_number(path) for path in self._sensor]
        if None in values:
            return
        known = [v for v in values if v is not None]
        # One file in microwatts, or millivolts and milliamperes.
        self._seen.append(known[0] / 1e6 if len(known) == 1 else known[0] * known[1] / 1e6)

    def mean_w(self, now_s: float) -> float | None:
        """Since this was made; None where nothing could be read.

        Args:
            now_s: monotonic time, seconds.
        """
        if self._counters:
            used = 0
            for each in self._counters:
                now = _number(each.path)
                if now is None:
                    return None
                used += (now - each.began) % (each.most + 1)
            return round(used / 1e6 / max(now_s - self._began, 1e-9), 2)
        return round(sum(self._seen) / len(self._seen), 2) if self._seen else None


def _energy(sys: Path) -> tuple[tuple[_Counter, ...], str]:
    domains: dict[str, list[_Counter]] = {}
    for folder in _listed(sys / _RAPL):
        name = read(folder / "name").strip()
        now, most = _number(folder / "energy_uj"), _number(folder / "max_energy_range_uj")
        if now is not None and most is not None and (name == "psys" or name.startswith("package-")):
            kind = name.partition("-")[0]
            domains.setdefault(kind, []).append(_Counter(folder / "energy_uj", most, now))
    if "psys" in domains:
        return tuple(domains["psys"]), "RAPL psys: the platform"
    if "package" in domains:
        return tuple(domains["package"]), "RAPL package: the processor alone"
    return (), ""


def _sensor(sys: Path) -> tuple[tuple[Path, ...], str]:
    for folder in _listed(sys / _HWMON):
        name = read(folder / "name").strip()
        for label in sorted(folder.glob("in*_label")) if folder.is_dir() else ():
            n = label.name.removeprefix("in").removesuffix("_label")
            if read(label).strip() == "VDD_IN":
                return (folder / f"in{n}_input", folder / f"curr{n}_input"), f"hwmon {name} VDD_IN: the board"
        for file in ("power1_average", "power1_input"):
            if _number(folder / file) is not None:
                return (folder / file,), f"hwmon {name} {file}: whatever it measures"
    return (), ""


def _listed(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(folder.iterdir())
    except OSError:
        return


def _number(path: Path) -> int | None:
    text = read(path).strip()
    return int(text) if text.isdecimal() else None
