"""`runtime: auto`: measure what is installed, check that it agrees, take the fastest, remember.

A candidate is a runtime with a form of the package: the reference, or a variant. Each is measured in a
process of its own: the loser leaves no memory behind, and one that crashes on this CPU loses instead of
taking the module with it.

What computes in 32 bits must give the reference's numbers. A variant with fewer bits must see in its golden
pictures what it saw when it was built, or else be as near to the reference as its manifest says: integers
that overflow on this CPU show there.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import structlog

from skerry.errors import ConfigError
from skerry.inference.cores import this_cpu
from skerry.inference.measure import Measurement, Request
from skerry.inference.runtimes import Place, installed, runtime_version
from skerry.inference.settings import DEVICES
from skerry.models.manifest import REFERENCE, Artifact, Variant, name_of, runtimes_of
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


class Candidate(NamedTuple):
    """A runtime, and what of the package it would run."""

    runtime: str
    form: str = REFERENCE


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured, and what won."""

    runtime: str
    form: str = REFERENCE
    package: str
    device: str
    threads: int
    cpu: str
    measurements: tuple[Measurement, ...]


def candidates(
    package: Package, device: str, runtime: str = "auto", precision: str = "auto"
) -> list[Candidate]:
    """What is installed and could run a package: all references first, then by its number of bits.

    Args:
        package: the model.
        device: cpu, cuda, ...
        runtime: only this one, or `auto`.
        precision: only forms of this one, or `auto`.

    Raises:
        ConfigError: there is none, with what is missing.
    """
    having = [n for n, devices in DEVICES.items() if device in devices and runtime in ("auto", n)]
    names = [n for n in installed() if n in having]
    if not names:
        raise ConfigError(
            f"runtime: none for device {device} is installed (install one of {', '.join(having)})"
        )
    found = [Candidate(name, form) for name in names for form in package.forms_for(name, precision)]
    if not found:
        forms = ", ".join(
            f"{form.precision} for {'/'.join(runtimes_of(form))}" for form in package.manifest.forms
        )
        what = "any precision" if precision == "auto" else precision
        raise ConfigError(
            f"precision: expected {what} for {'/'.join(names)} in {package.title}, it has {forms} "
            "(set precision or runtime to auto)"
        )
    return sorted(found, key=lambda candidate: candidate.form != REFERENCE)


def choose(
    package: Package,
    place: Place,
    beat: Callable[[], None] = lambda: None,
    *,
    runtime: str = "auto",
    precision: str = "auto",
) -> Choice:
    """The runtime and form to use of a package, remembered in `place.cache`.

    Args:
        package: the model, with all its variants.
        place: where it will run.
        beat: called between measurements, which take about a second each.
        runtime: only this one, or `auto`.
        precision: only forms of this one, or `auto`.

    Raises:
        ConfigError: nothing that is installed can run it; says why for each.
    """
    found = candidates(package, place.device, runtime, precision)
    key = _key(package, place, found)
    known = remembered(place.cache).get(key)
    if known is not None:
        return known
    alone = len(found) == 1 and not _has_fewer_bits(_form(package, found[0].form))
    measurements = (_only(found[0]),) if alone else measure(package, place, found, beat)
    for m in measurements:
        if m.error:
            log.warning("runtime.unfit", package=package.title, runtime=m.title, error=m.error)
    winner = best(measurements)
    choice = Choice(
        runtime=winner.runtime, form=winner.form, package=package.title, device=place.device,
        threads=place.threads, cpu=this_cpu(), measurements=measurements,
    )  # fmt: skip
    if place.cache is not None and not alone:
        _remember(place.cache, key, choice)
    return choice


def best(measurements: Iterable[Measurement]) -> Measurement:
    """The fastest that can be used; of those about as fast, the one that takes least memory.

    Raises:
        ConfigError: none can be used; says why for each.
    """
    measurements = tuple(measurements)
    fit = [m for m in measurements if not m.error]
    if not fit:
        raise ConfigError([f"runtime: {m.title}: {m.error}" for m in measurements])
    least = min(m.ms for m in fit)
    return min((m for m in fit if m.ms <= least * _TIE), key=lambda m: (m.rss_mb, m.ms))


def fastest(measurements: Iterable[Measurement]) -> str:
    """The name of the best one's runtime.

    Raises:
        ConfigError: none can be used; says why for each.
    """
    return best(measurements).runtime


def measure(
    package: Package,
    place: Place,
    what: Iterable[str | Candidate],
    beat: Callable[[], None] = lambda: None,
) -> tuple[Measurement, ...]:
    """Measure in turn, each in its own process.

    The first runtime that runs the package's own artifact is what others are compared with. Where none of
    `what` does, one is run for that, and not told of.

    Args:
        package: the model, with all its variants.
        place: where it will run.
        what: candidates, or names of runtimes for the reference.
        beat: called after each.
    """
    wanted = [Candidate(each) if isinstance(each, str) else each for each in what]
    found: dict[Candidate, Measurement] = {}
    reference: Path | None = None
    with tempfile.TemporaryDirectory(prefix="skerry-") as folder:
        for n, each in enumerate([*_first(package, place, wanted), *wanted]):
            if each in found:
                continue
            outputs = Path(folder) / f"{n}.npz"
            result = _in_child(package, place, each, outputs)
            if not result.error and each.form == REFERENCE and reference is None:
                reference = outputs
            elif not result.error:
                result = _compared(result, package, place.device, reference, outputs)
            found[each] = result
            beat()
    return tuple(found[each] for each in wanted)


def _first(package: Package, place: Place, wanted: Iterable[Candidate]) -> list[Candidate]:
    """Who gives the numbers to compare with, where none of those who are wanted does."""
    wanted = list(wanted)
    if any(each.form == REFERENCE for each in wanted):
        return []
    if all(_by_pictures(package, each.form) for each in wanted):
        return []
    names = [n for n in installed() if place.device in DEVICES[n]]
    return [Candidate(n) for n in names if n in runtimes_of(package.manifest.artifact)][:1]


def _form(package: Package, name: str) -> Artifact:
    return next(form for form in package.manifest.forms if name_of(form) == name)


def _has_fewer_bits(form: Artifact) -> bool:
    """Whether it is a variant that cannot give the reference's numbers."""
    return isinstance(form, Variant) and form.precision != "fp32"


def _by_pictures(package: Package, name: str) -> bool:
    """Whether golden pictures say if it is right."""
    return _has_fewer_bits(_form(package, name)) and package.using(name).manifest.golden is not None


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


def _in_child(package: Package, place: Place, what: Candidate, outputs: Path) -> Measurement:
    request = Request(
        package=str(package.folder), runtime=what.runtime, device=place.device, threads=place.threads,
        cache="" if place.cache is None else str(place.cache), outputs=str(outputs),
        form=what.form, golden=_by_pictures(package, what.form),
    )  # fmt: skip
    try:
        done = subprocess.run(
            [sys.executable, "-m", "skerry.inference.measure"],
            input=msgspec.json.encode(request), capture_output=True, timeout=_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return _failed(what, f"no result in {_TIMEOUT_S:g} s")
    try:
        return msgspec.json.decode(done.stdout.splitlines()[-1], type=Measurement)
    except (IndexError, msgspec.DecodeError):
        said = done.stderr.decode(errors="replace").strip().splitlines()
        reason = f"ended with {done.returncode}: {said[-1][:200] if said else 'no message'}"
        return _failed(what, reason)


def _failed(what: Candidate, reason: str) -> Measurement:
    version = runtime_version(what.runtime)
    return Measurement(runtime=what.runtime, version=version, form=what.form, error=reason)


def _compared(
    result: Measurement, package: Package, device: str, reference: Path | None, outputs: Path
) -> Measurement:
    """With how far it is from the reference, and whether that is too far."""
    form, by_pictures = _form(package, result.form), _by_pictures(package, result.form)
    limit = TOLERANCE if device == "cpu" else _TOLERANCE_HALF
    if _has_fewer_bits(form):
        assert isinstance(form, Variant), "only variants are held to another tolerance"
        if form.tolerance is None and not by_pictures:
            error = "nothing tells if it is right: expected golden pictures or a tolerance (model golden)"
            return msgspec.structs.replace(result, error=error)
        limit = float("inf") if form.tolerance is None or by_pictures else form.tolerance
    if reference is None:
        error = "" if by_pictures else "nothing to compare it with: the reference runs on no runtime here"
        return msgspec.structs.replace(result, error=error)
    with np.load(reference) as first, np.load(outputs) as second:
        worst = difference(dict(first), dict(second))
    error = "" if worst <= limit else f"outputs differ: expected at most {limit:g}, got {worst:.3g}"
    return msgspec.structs.replace(result, difference=worst if np.isfinite(worst) else -1.0, error=error)


def _only(what: Candidate) -> Measurement:
    """The only candidate needs no measurement."""
    return Measurement(runtime=what.runtime, version=runtime_version(what.runtime), form=what.form)


def _key(package: Package, place: Place, found: Iterable[Candidate]) -> str:
    """What a measurement depends on; a change of any of it means measuring again."""
    found, manifest = list(found), package.manifest
    versions = ", ".join(runtime_version(n) for n in dict.fromkeys(each.runtime for each in found))
    sha = hashlib.sha256(msgspec.json.encode(manifest.input)).hexdigest()[:8]
    model = manifest.artifact.sha256[:16]
    parts = [model, sha, place.device, str(place.threads), versions, this_cpu()]
    if manifest.variants:
        about = msgspec.json.encode((found, manifest.variants, manifest.golden, manifest.decoder))
        parts.append(hashlib.sha256(about).hexdigest()[:16])
    return " | ".join(parts)


def _remember(cache: Path, key: str, choice: Choice) -> None:
    """Add to the file, replacing it as a whole."""
    cache.mkdir(parents=True, exist_ok=True)
    content = msgspec.json.format(msgspec.json.encode({**remembered(cache), key: choice}), indent=1)
    partial = cache / f"{_FILE}.{os.getpid()}"
    partial.write_bytes(content)
    partial.replace(cache / _FILE)
