"""`runtime: auto`: measure what is installed, check that it agrees, take the fastest, remember.

Each runtime is measured in a process of its own: the loser leaves no memory behind, and one that
crashes on this CPU loses instead of taking the module with it.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import numpy as np
import structlog

from skerry.errors import ConfigError
from skerry.inference.cores import this_cpu
from skerry.inference.measure import Measurement, Request
from skerry.inference.runtimes import Place, installed, runtime_version
from skerry.inference.settings import DEVICES
from skerry.models.package import Package

log = structlog.get_logger()

TOLERANCE = 1e-3
"""Largest difference between two runtimes' outputs, as a share of the output's largest value."""
_TOLERANCE_HALF = 2e-2
"""The same where a device computes in 16 bits."""
_TIE = 1.05
"""Within this ratio of the fastest, the runtime that takes less memory wins."""
_TIMEOUT_S = 60.0
_FILE = "runtimes.json"


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured, and what won."""

    runtime: str
    package: str
    device: str
    threads: int
    cpu: str
    measurements: tuple[Measurement, ...]


def choose(package: Package, place: Place, beat: Callable[[], None] = lambda: None) -> Choice:
    """The runtime to use for a package, remembered in `place.cache`.

    Args:
        package: the model.
        place: where it will run.
        beat: called between measurements, which take about a second each.

    Raises:
        ConfigError: no installed runtime can run it; says why for each.
    """
    names = [n for n in installed() if place.device in DEVICES[n]]
    if not names:
        wanted = ", ".join(n for n, devices in DEVICES.items() if place.device in devices)
        raise ConfigError(f"runtime: none for device {place.device} is installed (install one of {wanted})")
    key = _key(package, place, names)
    known = remembered(place.cache).get(key)
    if known is not None:
        return known
    measurements = measure(package, place, names, beat) if len(names) > 1 else (_only(names[0]),)
    for m in measurements:
        if m.error:
            log.warning("runtime.unfit", package=package.title, runtime=m.runtime, error=m.error)
    choice = Choice(
        runtime=fastest(measurements), package=package.title, device=place.device,
        threads=place.threads, cpu=this_cpu(), measurements=measurements,
    )  # fmt: skip
    if place.cache is not None and len(names) > 1:
        _remember(place.cache, key, choice)
    return choice


def fastest(measurements: Iterable[Measurement]) -> str:
    """The winner's name.

    Raises:
        ConfigError: none can be used; says why for each.
    """
    measurements = tuple(measurements)
    fit = [m for m in measurements if not m.error]
    if not fit:
        raise ConfigError([f"runtime: {m.runtime}: {m.error}" for m in measurements])
    best = min(m.ms for m in fit)
    return min((m for m in fit if m.ms <= best * _TIE), key=lambda m: (m.rss_mb, m.ms)).runtime


def measure(
    package: Package, place: Place, names: Iterable[str], beat: Callable[[], None] = lambda: None
) -> tuple[Measurement, ...]:
    """Measure runtimes in turn, each in its own process; the first one that works is the reference."""
    found: list[Measurement] = []
    with tempfile.TemporaryDirectory(prefix="skerry-") as folder:
        reference: Path | None = None
        for name in names:
            outputs = Path(folder) / f"{name}.npz"
            result = _in_child(package, place, name, outputs)
            if not result.error and reference is None:
                reference = outputs
            elif not result.error and reference is not None:
                result = _compared(result, reference, outputs, place.device)
            found.append(result)
            beat()
    return tuple(found)


def remembered(cache: Path | None) -> dict[str, Choice]:
    """What was measured before; empty where nothing was, or the file cannot be read."""
    if cache is None:
        return {}
    try:
        return msgspec.json.decode((cache / _FILE).read_bytes(), type=dict[str, Choice])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as error:
        log.warning("runtime.memory_unreadable", path=str(cache / _FILE), error=str(error))
        return {}


def difference(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> float:
    """Largest difference between two runs' outputs, as a share of each output's largest value."""
    worst = 0.0
    for name, expected in first.items():
        got = second.get(name)
        if got is None or got.shape != expected.shape or not np.isfinite(got).all():
            return float("inf")
        scale = max(1.0, float(np.abs(expected).max(initial=0)))
        worst = max(worst, float(np.abs(expected.astype(np.float64) - got).max(initial=0)) / scale)
    return worst


def _in_child(package: Package, place: Place, name: str, outputs: Path) -> Measurement:
    request = Request(
        package=str(package.folder), runtime=name, device=place.device, threads=place.threads,
        cache="" if place.cache is None else str(place.cache), outputs=str(outputs),
    )  # fmt: skip
    try:
        done = subprocess.run(
            [sys.executable, "-m", "skerry.inference.measure"],
            input=msgspec.json.encode(request), capture_output=True, timeout=_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Measurement(
            runtime=name, version=runtime_version(name), error=f"no result in {_TIMEOUT_S:g} s"
        )
    try:
        return msgspec.json.decode(done.stdout.splitlines()[-1], type=Measurement)
    except (IndexError, msgspec.DecodeError):
        said = done.stderr.decode(errors="replace").strip().splitlines()
        reason = f"ended with {done.returncode}: {said[-1][:200] if said else 'no message'}"
        return Measurement(runtime=name, version=runtime_version(name), error=reason)


def _compared(result: Measurement, reference: Path, outputs: Path, device: str) -> Measurement:
    with np.load(reference) as first, np.load(outputs) as second:
        worst = difference(dict(first), dict(second))
    limit = TOLERANCE if device == "cpu" else _TOLERANCE_HALF
    error = "" if worst <= limit else f"outputs differ: expected at most {limit:g}, got {worst:.3g}"
    return msgspec.structs.replace(result, difference=worst if np.isfinite(worst) else -1.0, error=error)


def _only(name: str) -> Measurement:
    """The only candidate needs no measurement."""
    return Measurement(runtime=name, version=runtime_version(name))


def _key(package: Package, place: Place, names: Iterable[str]) -> str:
    """What a measurement depends on; a change of any of it means measuring again."""
    versions = ", ".join(runtime_version(n) for n in names)
    sha = hashlib.sha256(msgspec.json.encode(package.manifest.input)).hexdigest()[:8]
    model = package.manifest.artifact.sha256[:16]
    return " | ".join((model, sha, place.device, str(place.threads), versions, this_cpu()))


def _remember(cache: Path, key: str, choice: Choice) -> None:
    """Add to the file, replacing it as a whole."""
    cache.mkdir(parents=True, exist_ok=True)
    content = msgspec.json.format(msgspec.json.encode({**remembered(cache), key: choice}), indent=1)
    partial = cache / f"{_FILE}.{os.getpid()}"
    partial.write_bytes(content)
    partial.replace(cache / _FILE)
