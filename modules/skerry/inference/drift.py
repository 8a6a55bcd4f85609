"""Whether what a camera shows, and what a model makes of it, is still what the model was packaged for.

A package can bring a baseline: histograms of what its makers saw, in windows of so many sampled frames. Here
the same is counted for a camera, window by window, and each window is compared with the baseline.

A window is suspicious when it is further from the baseline than each of the K windows of the baseline itself
is from the others. If nothing has changed, a window is as likely to be the furthest of all as any other, so
that happens to one in K + 1, whatever the distribution; to several in a row as rarely as the product says, as
far as windows are independent of each other. Frames of one moment are not, so few are sampled.

Memory is a fixed number of integers a signal. Histograms of one signal merge by adding.

Source: Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World, section 2 (conformal p-values); Lin,
Divergence measures based on the Shannon entropy, IEEE Trans. Inf. Theory 37 (1991).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from skerry.errors import ConfigError
from skerry.messages import Detection
from skerry.models.manifest import Baseline, SignalBaseline

Pixels = npt.NDArray[np.uint8]

SAMPLED_BYTES = 160 * 120
"""A picture is looked at on about so many points."""
_FEWEST = 20
"""Values that a window must have of a signal to be compared."""
_SMOOTHING = 0.5
"""Added to each bin: one that the baseline never saw is unlikely, not impossible."""


@dataclass(frozen=True)
class Signal:
    """Something that is counted in bins: which bin a value falls into."""

    name: str
    bins: int
    bin_of: Callable[[float], int]


def _linear(lowest: float, highest: float, bins: int) -> Callable[[float], int]:
    def bin_of(value: float) -> int:
        if not math.isfinite(value):
            return 0
        return min(max(int((value - lowest) / (highest - lowest) * bins), 0), bins - 1)

    return bin_of


def signals(labels: int) -> dict[str, Signal]:
    """All that is watched, for a model with so many labels."""
    listed = (
        Signal("brightness", 32, _linear(0, 256, 32)),  # mean grey level
        Signal("sharpness", 32, _linear(-1, 4, 32)),  # log10 of the mean squared step to the next pixel
        Signal("objects", 17, _linear(0, 17, 17)),  # in a frame; the last bin is 16 and more
        Signal("score", 20, _linear(0, 1, 20)),
        Signal("size", 21, _linear(-7, 0, 21)),  # log2 of the square root of the box's share of the frame
        Signal("label", max(labels, 1), _linear(0, max(labels, 1), max(labels, 1))),
    )
    return {signal.name: signal for signal in listed}


@dataclass
class Sample:
    """What one frame adds: values by name of the signal."""

    values: dict[str, list[float]] = field(default_factory=dict)


def sample(pixels: Pixels, objects: Sequence[Detection], labels: Sequence[str]) -> Sample:
    """Measure one frame and what was found in it.

    Args:
        pixels: (height, width, 3) bgr24, or (height, width) grey.
        objects: what the model found.
        labels: the model's, in their order.
    """
    return sampled(picture(pixels), objects, labels)


def sampled(looks: tuple[float, float], objects: Sequence[Detection], labels: Sequence[str]) -> Sample:
    """`sample` of a picture that was measured already: its brightness and sharpness."""
    brightness, sharpness = looks
    number = {label: n for n, label in enumerate(labels)}
    sides = [math.sqrt(max((d.box[2] - d.box[0]) * (d.box[3] - d.box[1]), 2.0**-14)) for d in objects]
    return Sample({
        "brightness": [brightness], "sharpness": [sharpness], "objects": [float(len(objects))],
        "score": [d.score for d in objects], "size": [math.log2(side) for side in sides],
        "label": [float(number[d.label]) for d in objects if d.label in number],
    })  # fmt: skip


def picture(pixels: Pixels) -> tuple[float, float]:
    """Brightness and sharpness of a picture: mean grey level, and log10 of the mean squared step.

    A step is that of the green channel to the next pixel on the right, on rows that are spread over the
    picture: what a lens out of focus or under dirt takes away first.
    """
    height, width = pixels.shape[:2]
    rows = pixels[:: max(height * width // SAMPLED_BYTES, 1)]
    rows = (rows if pixels.ndim == 2 else rows[..., 1]).astype(np.int16)
    steps = np.diff(rows, axis=1)
    energy = float(np.mean(np.square(steps, dtype=np.int32))) if steps.size else 0.0
    return float(rows.mean()), math.log10(max(energy, 0.1))


class Histogram:
    """Counts of one signal."""

    def __init__(self, signal: Signal, counts: Sequence[int] | None = None) -> None:
        self.signal = signal
        self.counts = np.zeros(signal.bins, np.int64) if counts is None else np.array(counts, np.int64)

    def add(self, values: Iterable[float]) -> None:
        """Count some values."""
        for value in values:
            self.counts[self.signal.bin_of(value)] += 1

    def merge(self, other: Histogram) -> None:
        """Add what another one of the same signal has counted: another window, camera or device."""
        self.counts += other.counts

    @property
    def total(self) -> int:
        """How many values there were."""
        return int(self.counts.sum())


def distance(counts: npt.NDArray[np.int64], baseline: npt.NDArray[np.int64]) -> float:
    """Jensen-Shannon distance of a window from a baseline, 0 (alike) to 1 (nothing in common).

    The baseline counts as one of the window's own total, or the smoothing would weigh more on one than on the
    other, and what never varies would be far from itself.
    """
    total = int(counts.sum())
    whole = total + _SMOOTHING * counts.size
    p = (counts + _SMOOTHING) / whole
    q = (baseline * (total / max(int(baseline.sum()), 1)) + _SMOOTHING) / whole
    middle = (p + q) / 2
    divergence = float(np.sum(p * np.log2(p / middle)) + np.sum(q * np.log2(q / middle))) / 2
    return round(math.sqrt(max(divergence, 0.0)), 6)


class Recording(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen in one place, window by window: all that a baseline is made of.

    Recordings of several cameras, lines or days are one after `merged`.

    Attributes:
        model: sha256 of the model's file: what another model sees is another thing.
        labels: the model's, in their order.
        every_s: seconds between two samples.
        window: samples in a window.
        samples: seen so far, those of a window that was not finished with it.
        windows: counts of each signal.
    """

    schema: Literal[1] = 1
    model: str
    labels: tuple[str, ...]
    every_s: float
    window: Annotated[int, msgspec.Meta(ge=1)]
    samples: int
    windows: tuple[dict[str, tuple[Annotated[int, msgspec.Meta(ge=0)], ...]], ...]

    def problem(self) -> str:
        """Why it is none, empty if it is one: a file may say anything."""
        known = signals(len(self.labels))
        for n, window in enumerate(self.windows):
            for name, counts in window.items():
                wanted = known[name].bins if name in known else 0
                if len(counts) != wanted:
                    return f"windows[{n}].{name}: expected {wanted} bins, got {len(counts)}"
        return ""


def recorded(
    samples: Iterable[Sample], labels: Sequence[str], *, every_s: float, window: int, model: str = ""
) -> Recording:
    """Count samples, window by window, in the order in which they were seen. Holds one window at a time.

    Args:
        samples: of frames that were `every_s` apart.
        labels: the model's.
        every_s: seconds between two samples, here and on the device.
        window: samples in a window.
        model: sha256 of its file.
    """
    known = signals(len(labels))
    windows = []
    counts = {name: Histogram(signal) for name, signal in known.items()}
    n = 0
    for n, each in enumerate(samples, 1):
        for name, values in each.values.items():
            counts[name].add(values)
        if n % window == 0:
            windows.append({name: tuple(int(c) for c in its.counts) for name, its in counts.items()})
            counts = {name: Histogram(signal) for name, signal in known.items()}
    return Recording(
        model=model, labels=tuple(labels), every_s=every_s, window=window, samples=n, windows=tuple(windows)
    )


def merged(recordings: Sequence[Recording]) -> Recording:
    """Several recordings as one, exactly as if one device had seen it all.

    Raises:
        ConfigError: they were made by another model, or at another pace.
    """
    first = recordings[0]
    for other in recordings[1:]:
        for name in ("model", "labels", "every_s", "window"):
            wanted, got = getattr(first, name), getattr(other, name)
            if wanted != got:
                raise ConfigError(
                    f"recordings: expected the {name} {wanted} in all of them, got {got} in one"
                )
    return msgspec.structs.replace(
        first,
        samples=sum(each.samples for each in recordings),
        windows=tuple(window for each in recordings for window in each.windows),
    )


def baseline_of(recording: Recording, in_a_row: int = 3) -> Baseline:
    """Make a package's baseline of what its makers saw.

    Args:
        recording: of all that the model is meant for.
        in_a_row: suspicious windows in a row that are called drift.

    Raises:
        ConfigError: there are too few samples for `FEWEST_WINDOWS`.
    """
    known = signals(len(recording.labels))
    if len(recording.windows) < FEWEST_WINDOWS:
        wanted, got = FEWEST_WINDOWS * recording.window, len(recording.windows) * recording.window
        raise ConfigError(
            f"baseline: expected {wanted} samples or more in whole windows, got {got} of "
            f"{recording.samples} (a longer recording)"
        )
    said = {
        name: _baseline_of(signal, [Histogram(signal, w[name]) for w in recording.windows if name in w])
        for name, signal in known.items()
    }
    return Baseline(
        every_s=recording.every_s, window=recording.window, in_a_row=in_a_row,
        windows=len(recording.windows), signals={name: its for name, its in said.items() if its is not None},
    )  # fmt: skip


def baseline(
    samples: Iterable[Sample], labels: int, *, every_s: float, window: int = 60, in_a_row: int = 3
) -> Baseline:
    """`baseline_of` samples, for a model with so many labels.

    Raises:
        ConfigError: there are too few.
    """
    names = [str(n) for n in range(labels)]
    return baseline_of(recorded(samples, names, every_s=every_s, window=window), in_a_row)


FEWEST_WINDOWS = 19
"""Windows that a baseline needs: then one in 20 is suspicious while nothing has changed."""


def _baseline_of(signal: Signal, windows: Sequence[Histogram]) -> SignalBaseline | None:
    """All windows as one, and how far the furthest is from the others; None where too few had values."""
    compared = [w for w in windows if w.total >= _FEWEST]
    if len(compared) < FEWEST_WINDOWS:
        return None
    together = Histogram(signal)
    for each in compared:
        together.merge(each)
    furthest = max(distance(w.counts, together.counts - w.counts) for w in compared)
    return SignalBaseline(
        counts=tuple(int(n) for n in together.counts), furthest=furthest, windows=len(compared)
    )


@dataclass(frozen=True)
class Verdict:
    """What a window says of a signal."""

    signal: str
    distance: float
    furthest: float
    """Of the baseline's own windows."""
    suspicious: int
    """Windows in a row up to this one that were further."""
    drifted: bool


class Watch:
    """One camera with one model, against the package's baseline. Not thread-safe."""

    def __init__(self, baseline: Baseline, labels: Sequence[str]) -> None:
        known = signals(len(labels))
        self._baseline = baseline
        self._labels = labels
        self._signals = {name: known[name] for name in baseline.signals if name in known}
        self._reference = {name: np.array(baseline.signals[name].counts, np.int64) for name in self._signals}
        self._row = dict.fromkeys(self._signals, 0)
        self._last_ns: int | None = None
        self._windows = 0
        self._begin()

    def _begin(self) -> None:
        self._window = {name: Histogram(signal) for name, signal in self._signals.items()}
        self._taken = 0

    @property
    def drifted(self) -> tuple[str, ...]:
        """Signals that have been suspicious for as many windows in a row as the baseline wants."""
        return tuple(name for name, row in self._row.items() if row >= self._baseline.in_a_row)

    @property
    def settled(self) -> bool:
        """Whether so many windows went by that `drifted` says something if it is empty."""
        return self._windows >= self._baseline.in_a_row

    def due(self, media_ns: int) -> bool:
        """Whether the frame of this time is one to sample; a clock that went back begins anew."""
        if self._last_ns is not None and 0 <= media_ns - self._last_ns < self._baseline.every_s * 1e9:
            return False
        self._last_ns = media_ns
        return True

    def note(self, pixels: Pixels, objects: Sequence[Detection]) -> list[Verdict]:
        """Take in a frame that is due; a verdict for each signal at the end of a window, else none."""
        return self.take(sample(pixels, objects, self._labels))

    def take(self, measured: Sample) -> list[Verdict]:
        """`note` for what was measured already."""
        for name, values in measured.values.items():
            if name in self._window:
                self._window[name].add(values)
        self._taken += 1
        if self._taken < self._baseline.window:
            return []
        self._windows += 1
        verdicts = [self._judge(name) for name, counted in self._window.items() if counted.total >= _FEWEST]
        self._begin()
        return verdicts

    def _judge(self, name: str) -> Verdict:
        its = self._baseline.signals[name]
        far = distance(self._window[name].counts, self._reference[name])
        self._row[name] = self._row[name] + 1 if far > its.furthest else 0
        row = self._row[name]
        return Verdict(name, far, its.furthest, row, row >= self._baseline.in_a_row)


def false_alarms(baseline: Baseline, signal: str) -> float:
    """The share of windows at which a signal is called drifted although nothing has changed."""
    return float((baseline.signals[signal].windows + 1) ** -baseline.in_a_row)
