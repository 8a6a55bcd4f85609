"""Which shift of the demo's belt each drift monitor finds, in how many samples: behind docs/inference.md.

    python scripts/measure_drift.py [--windows 6] [--unchanged 60] [--seeds 99 100]

Frames of the belt, a second apart and of other seeds than the package's baseline was made of, go through the
demo's model and the monitors, as on a device. Unchanged ones count how often a window is suspicious: of the
belt that the baseline shows, in the time after it, and of other belts.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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
_SEED, _AFTER_S = 1, 3600
"""What the package's baseline was made of: the demo's belt, its first hour."""
_STRETCH = 10
"""Windows of one belt in a row."""
PACKAGE = Path(__file__).resolve().parent.parent / "models" / "parts"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=6, help="of each shift; 0: none (default %(default)s)")
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
        for title, change, conditions in shifts() if arguments.windows else ():
            found = [
                found_after(model, belt(model, seed, arguments.windows, change, conditions))
                for seed in arguments.seeds
            ]
            cells = [" / ".join(str(each.get(name, "-")) for each in found) for name in names]
            print(f"| {title} | {' | '.join(cells)} |", flush=True)
        stated = {n: f"{1 / (baseline.signals[n].windows + 1):.3f}" for n in names}
        print(f"| suspicious windows, stated | {' | '.join(stated[n] for n in names)} |")
        same = [
            (_SEED, _AFTER_S + n * _STRETCH * baseline.window) for n in range(arguments.unchanged // _STRETCH)
        ]
        others = [(200 + n, 0) for n in range(arguments.unchanged // _STRETCH)]
        alarms = []
        for title, belts in (("same belt", same), ("other belts", others)):
            suspicious, drifted, judged = unchanged(model, belts)
            counted = [f"{suspicious[n]} of {judged[n]}" for n in names]
            print(f"| counted, {title} | {' | '.join(counted)} |", flush=True)
            alarms.append(f"| false alarms, {title} | {' | '.join(str(drifted[n]) for n in names)} |")
        days = {
            n: baseline.every_s * baseline.window / drift.false_alarms(baseline, n) / 86_400 for n in names
        }
        print(f"| a false alarm in, stated | {' | '.join(f'{days[n]:,.0f} days' for n in names)} |")
        print("\n".join(alarms))
    return 0


def shifts() -> Iterator[tuple[str, Callable[[Pixels, int], Pixels], dict[str, Any]]]:
    for light in (0.95, 0.9, 0.8, 0.6):
        yield f"light at {light:g}", _same, {"light": light}
    for sigma in (0.5, 0.8, 1.5):
        yield f"lens blurred by {sigma:g} px", _blurred(sigma), {}
    for every in (10, 3, 1):
        said = "every picture" if every == 1 else f"one picture of {every}"
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
    *,
    first_s: int = 0,
) -> Iterator[drift.Sample]:
    """What is measured of a belt that is shown a frame a second."""
    baseline = model.package.manifest.baseline
    assert baseline is not None, "the demo's package has one"
    source = SyntheticSource(seed=seed, fps=1 / baseline.every_s, **conditions)
    feed, camera = SyntheticFeed(source), Camera(name="belt", source=source)
    pixels = np.empty((source.height, source.width, 3), np.uint8)
    first = round(first_s / baseline.every_s)
    frames = islice(iter(feed.read, None), first, first + windows * baseline.window)
    for number, picture in enumerate(frames):
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


def unchanged(
    model: Model, belts: Sequence[tuple[int, int]]
) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Windows that are suspicious, drifted, and judged, of belts as they were: seed and first second."""
    baseline = model.package.manifest.baseline
    assert baseline is not None, "the demo's package has one"
    suspicious, drifted, judged = Counter[str](), Counter[str](), Counter[str]()
    for seed, first_s in belts:
        watch = drift.Watch(baseline, model.package.labels)
        for sample in belt(model, seed, _STRETCH, _same, {}, first_s=first_s):
            for verdict in watch.take(sample):
                judged[verdict.signal] += 1
                suspicious[verdict.signal] += verdict.suspicious > 0
                drifted[verdict.signal] += verdict.drifted
    return suspicious, drifted, judged


if __name__ == "__main__":
    raise SystemExit(main())
