"""Which shift of the demo's belt each drift monitor finds, in how many samples: behind docs/inference.md.

    python scripts/measure_drift.py [--windows 6] [--unchanged 60] [--seeds 99 100]

Frames of the belt, a second apart and of other seeds than the package's baseline was made of, go through the
demo's model and the monitors, as on a device. Unchanged ones count how often a window is suspicious.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from skerry.capture.geometry import Geometry
from skerry.capture.pictures import SyntheticFeed
from skerry.capture.settings import Camera, SyntheticSource
from skerry.inference import drift
from skerry.inference.model import Model
from skerry.inference.settings import ModelUse

Pixels = npt.NDArray[np.uint8]
PACKAGE = Path(__file__).resolve().parent.parent / "models" / "parts"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=6, help="of each shift (default %(default)s)")
    parser.add_argument("--unchanged", type=int, default=60, help="windows of no shift (default %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[99, 100], help="belts (default 99 100)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        model = Model(ModelUse(package=str(PACKAGE), runtime="onnxruntime"), Path(cache), 1.0)
        baseline = model.package.manifest.baseline
        assert baseline is not None, "the demo's package has one"
        names = list(baseline.signals)
        print(f"| shift | {' | '.join(names)} |")
        print(f"|---|{'---:|' * len(names)}")
        for title, change, conditions in shifts():
            found = [
                found_after(model, belt(model, seed, arguments.windows, change, conditions))
                for seed in arguments.seeds
            ]
            cells = [" / ".join(str(each.get(name, "-")) for each in found) for name in names]
            print(f"| {title} | {' | '.join(cells)} |", flush=True)
        suspicious, drifted, judged = unchanged(model, arguments.unchanged)
        stated = {n: f"{1 / (baseline.signals[n].windows + 1):.3f}" for n in names}
        print(f"| suspicious windows, stated | {' | '.join(stated[n] for n in names)} |")
        counted = [f"{suspicious[n]} of {judged[n]}" for n in names]
        print(f"| suspicious windows, counted | {' | '.join(counted)} |")
        days = {
            n: baseline.every_s * baseline.window / drift.false_alarms(baseline, n) / 86_400 for n in names
        }
        print(f"| a false alarm in, stated | {' | '.join(f'{days[n]:,.0f} days' for n in names)} |")
        print(f"| false alarms, counted | {' | '.join(str(drifted[n]) for n in names)} |")
    return 0


def shifts() -> Iterator[tuple[str, Callable[[Pixels, int], Pixels], dict[str, Any]]]:
    for light in (0.95, 0.9, 0.8, 0.6):
        yield f"light at {light:g}", _same, {"light": light}
    for sigma in (0.5, 0.8, 1.5):
        yield f"lens blurred by {sigma:g} px", _blurred(sigma), {}
    for every in (10, 3, 1):
        said = "each picture" if every == 1 else f"each {every}th picture"
        yield f"unknown part in {said}", _with_squares(every), {}
    for noise in (8, 16):
        yield f"sensor noise of {noise} grey levels", _same, {"noise": noise}


def _same(pixels: Pixels, _number: int) -> Pixels:
    return pixels


def _blurred(sigma: float) -> Callable[[Pixels, int], Pixels]:
    return lambda pixels, _number: np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma), np.uint8)


def _with_squares(every: int) -> Callable[[Pixels, int], Pixels]:
    """A part that the model was never shown: square, with a hole."""

    def change(pixels: Pixels, number: int) -> Pixels:
        if number % every:
            return pixels
        changed = pixels.copy()
        x, y = 40 + number * 97 % (pixels.shape[1] - 150), 180 + number * 53 % 60
        cv2.rectangle(changed, (x, y), (x + 70, y + 70), (200, 200, 205), -1)
        cv2.circle(changed, (x + 35, y + 35), 12, (60, 60, 60), -1)
        return changed

    return change


def belt(
    model: Model,
    seed: int,
    windows: int,
    change: Callable[[Pixels, int], Pixels],
    conditions: dict[str, Any],
) -> Iterator[drift.Sample]:
    """What is measured of a belt that is shown a frame a second."""
    baseline = model.package.manifest.baseline
    assert baseline is not None, "the demo's package has one"
    source = SyntheticSource(seed=seed, fps=1 / baseline.every_s, **conditions)
    feed, camera = SyntheticFeed(source), Camera(name="belt", source=source)
    pixels = np.empty((source.height, source.width, 3), np.uint8)
    for number, picture in enumerate(islice(iter(feed.read, None), windows * baseline.window)):
        picture.into(pixels, Geometry.of(camera, picture.width, picture.height))
        changed = change(pixels, number)
        yield drift.sample(changed, model.look(changed).objects, model.package.labels)


def found_after(model: Model, samples: Iterator[drift.Sample]) -> dict[str, int]:
    """Samples after which each signal is called drifted, of those that are."""
    baseline = model.package.manifest.baseline
    assert baseline is not None, "the demo's package has one"
    watch, found = drift.Watch(baseline, model.package.labels), {}
    for n, sample in enumerate(samples, 1):
        watch.take(sample)
        for name in watch.drifted:
            found.setdefault(name, n)
    return found


def unchanged(model: Model, windows: int) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Windows that are suspicious, drifted, and judged at all, of belts as they were; 10 windows a belt."""
    baseline = model.package.manifest.baseline
    assert baseline is not None, "the demo's package has one"
    suspicious, drifted, judged = Counter[str](), Counter[str](), Counter[str]()
    for seed in range(200, 200 + windows // 10):
        watch = drift.Watch(baseline, model.package.labels)
        for sample in belt(model, seed, 10, _same, {}):
            for verdict in watch.take(sample):
                judged[verdict.signal] += 1
                suspicious[verdict.signal] += verdict.suspicious > 0
                drifted[verdict.signal] += verdict.drifted
    return suspicious, drifted, judged


if __name__ == "__main__":
    raise SystemExit(main())
