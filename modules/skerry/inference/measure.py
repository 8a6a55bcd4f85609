"""Measures one runtime with one form of a package: `python -m skerry.inference.measure`, asked on stdin."""

from __future__ import annotations

import resource
import sys
import time
from importlib import import_module
from pathlib import Path

import msgspec
import numpy as np

from skerry.errors import SkerryError
from skerry.inference.preprocess import Pixels, Preprocessor
from skerry.inference.runtimes import Place, Session, SessionFailed, open_session, runtime_version
from skerry.models import package as packages
from skerry.models.manifest import REFERENCE
from skerry.models.package import Package

_WARM_UP = 3
_LEAST_RUNS = 5
_MOST_RUNS = 100
_FOR_S = 0.3


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the measuring process is asked, as JSON on its standard input."""

    package: str
    runtime: str
    device: str
    threads: int
    cache: str
    outputs: str
    """File to leave the outputs in, .npz."""
    form: str = REFERENCE
    """Of the package."""
    golden: bool = False
    """Whether it must answer its golden pictures."""


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One runtime with one form of a model on this device."""

    runtime: str
    version: str
    form: str = REFERENCE
    """A variant's name, or `reference`."""
    ms: float = 0.0
    """Median time of one run."""
    cpu_ms: float = 0.0
    """CPU time of one run, all threads."""
    load_ms: float = 0.0
    """From import to the first result."""
    rss_mb: float = 0.0
    """Memory of a process that has only this runtime and model."""
    difference: float = 0.0
    """From the first runtime's outputs, as a share of the output's largest value."""
    error: str = ""
    """Why it cannot be used; empty when it can."""

    @property
    def title(self) -> str:
        """The runtime, and the variant if it is one."""
        return self.runtime if self.form == REFERENCE else f"{self.runtime} {self.form}"


def main() -> int:
    """Print a `Measurement` as one line of JSON."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    version = runtime_version(request.runtime)
    try:
        result = _measure(request, version)
    except (SkerryError, SessionFailed) as error:
        result = Measurement(runtime=request.runtime, version=version, form=request.form, error=str(error))
    sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
    return 0


def picture(width: int, height: int, seed: int = 0) -> Pixels:
    """A seeded picture, blocks of colour with grain: (height, width, 3) BGR."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 220, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    large = blocks.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]
    return large + rng.integers(0, 36, large.shape, dtype=np.uint8)


def timed(session: Session, feeds: dict[str, np.ndarray], for_s: float = _FOR_S) -> tuple[float, float]:
    """Median and CPU time of one run in milliseconds, after a warm-up; takes about `for_s` seconds."""
    for _ in range(_WARM_UP):
        session.run(feeds)
    times: list[float] = []
    cpu = time.process_time()
    until = time.perf_counter() + for_s
    while len(times) < _LEAST_RUNS or (time.perf_counter() < until and len(times) < _MOST_RUNS):
        begin = time.perf_counter()
        session.run(feeds)
        times.append(time.perf_counter() - begin)
    cpu = (time.process_time() - cpu) / len(times)
    return float(np.median(times)) * 1000, cpu * 1000


def _measure(request: Request, version: str) -> Measurement:
    package = packages.load(Path(request.package), only=request.form).using(request.form)
    spec = package.manifest.input
    prepare = Preprocessor(spec)
    prepare(picture(2 * spec.width, 2 * spec.height))
    feeds = {spec.name: prepare.tensor}
    place = Place(request.device, request.threads, Path(request.cache) if request.cache else None)
    begin = time.perf_counter()
    session = open_session(request.runtime, package, place)
    outputs = session.run(feeds)
    load_ms = (time.perf_counter() - begin) * 1000
    np.savez(request.outputs, **outputs)  # type: ignore[arg-type] # names of outputs are no keywords of savez
    ms, cpu_ms = timed(session, feeds)
    rss_mb = _rss_mb()
    return Measurement(
        runtime=request.runtime, version=version, form=request.form, ms=round(ms, 3),
        cpu_ms=round(cpu_ms, 3), load_ms=round(load_ms, 1), rss_mb=round(rss_mb, 1),
        error=_wrong(package, session, prepare) if request.golden else "",
    )  # fmt: skip


def _wrong(package: Package, session: Session, prepare: Preprocessor) -> str:
    """The first of its golden pictures that it answers otherwise; empty when it answers all of them."""
    golden = import_module("skerry.inference.golden")  # it knows the module's model, which knows this file
    result = import_module("skerry.inference.model").Result
    decoders = import_module("skerry.inference.decoders")

    def look(pixels: Pixels) -> object:
        placement = prepare(pixels)
        outputs = session.run({package.manifest.input.name: prepare.tensor})
        try:
            return result(decoders.decode(outputs, package.manifest, package.labels, placement))
        except decoders.BadOutput as error:
            return result(reason=str(error))

    found = golden.differences(package, look)
    return f"golden pictures: {found[0]}" if found else ""


def _rss_mb() -> float:
    """Resident memory in MiB, as `skerry.service.rss_mb`, without importing what only a module needs."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    sys.exit(main())
