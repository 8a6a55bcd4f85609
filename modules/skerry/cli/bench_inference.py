"""Every installed runtime on one package, and a package opened outside a module."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from skerry.inference.choose import fastest, measure
from skerry.inference.cores import default_threads, usable_cores
from skerry.inference.measure import picture
from skerry.inference.model import Model
from skerry.inference.preprocess import Pixels
from skerry.inference.runtimes import Place, installed
from skerry.inference.settings import ModelUse
from skerry.messages import Detection
from skerry.models.package import load

_ROOT = Path(__file__).resolve().parents[3]
_FRAMES = 200


def run(*, package: Path | None, runs: int) -> dict[str, Any]:
    """Median session time of each runtime, and the time of the steps around it."""
    folder = (package or _ROOT / "models" / "parts").resolve()
    loaded = load(folder)
    place = Place("cpu", default_threads(usable_cores()), None)
    rounds = [measure(loaded, place, installed()) for _ in range(runs)]
    runtimes = {}
    for n, first in enumerate(rounds[0]):
        rows = [r[n] for r in rounds]
        runtimes[first.runtime] = {
            "version": first.version,
            "session_ms": round(statistics.median(m.ms for m in rows), 3),
            "session_cpu_ms": round(statistics.median(m.cpu_ms for m in rows), 3),
            "load_ms": round(statistics.median(m.load_ms for m in rows), 1),
            "rss_mb": round(statistics.median(m.rss_mb for m in rows), 1),
            "difference": first.difference,
            "error": first.error,
        }
    winner = fastest(rounds[-1])
    return {
        "package": loaded.title,
        "threads": place.threads,
        "runtimes": runtimes,
        "fastest": winner,
        "frame_640x480": _steps(folder, winner),
    }


def open_model(package: Path, runtime: str) -> Callable[[Pixels], tuple[Detection, ...]]:
    """The package as a function from a BGR frame to objects: the same code the module runs."""
    model = _model(package, runtime)

    def infer(pixels: Pixels) -> tuple[Detection, ...]:
        (result,), _ = model.infer([model.prepare(pixels)])
        return result.objects

    return infer


def _model(package: Path, runtime: str) -> Model:
    with tempfile.TemporaryDirectory(prefix="skerry-") as cache:
        return Model(ModelUse(package=str(package), runtime=runtime), Path(cache), 0.5)  # type: ignore[arg-type] # a name from `installed()`


def _steps(package: Path, runtime: str) -> dict[str, float]:
    """Medians in milliseconds of what happens to one 640x480 frame."""
    model, frame = _model(package, runtime), picture(640, 480)
    rows: list[tuple[float, float, float]] = []
    for _ in range(_FRAMES):
        begin = time.perf_counter()
        placement = model.prepare(frame)
        prepared = (time.perf_counter() - begin) * 1000
        _, timing = model.infer([placement])
        rows.append((prepared, timing.session, timing.decode))
    names = ("preprocess_ms", "session_ms", "decode_ms")
    return {name: round(statistics.median(r[n] for r in rows), 3) for n, name in enumerate(names)}
