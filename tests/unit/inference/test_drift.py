"""Drift: rare while nothing changes, and seen soon when the light, the lens or the parts change."""

import math
from functools import cache
from itertools import islice, permutations
from pathlib import Path
from tempfile import mkdtemp

import cv2
import msgspec
import numpy as np
import pytest

from needs import ROOT
from skerry.capture.geometry import Geometry
from skerry.capture.pictures import SyntheticFeed
from skerry.capture.settings import Camera, SyntheticSource
from skerry.errors import ConfigError
from skerry.inference import drift
from skerry.inference.drift import (
    Histogram,
    Recording,
    Sample,
    Watch,
    baseline,
    baseline_of,
    distance,
    false_alarms,
    merged,
    recorded,
    signals,
)
from skerry.inference.model import Model
from skerry.inference.settings import ModelUse
from skerry.messages import Detection
from skerry.models.manifest import Baseline
from skerry.models.package import load

LABELS = ("bolt", "nut", "washer")
WINDOW, EVERY_S = 30, 1.0


def drawn(random: np.random.Generator, n: int, shift: float = 0.0) -> list[Sample]:
    """Samples whose every signal is drawn anew."""
    return [
        Sample({
            "brightness": [random.normal(120 + 40 * shift, 20)],
            "sharpness": [random.normal(2 + shift, 0.3)],
            "objects": [float(random.poisson(3 + 3 * shift))],
            "score": list(random.beta(8, 2 + 6 * shift, 3)),
            "size": list(random.normal(-3 + shift, 0.5, 3)),
            "label": [float(v) for v in random.choice(3, 3, p=(0.4 - 0.3 * shift, 0.3, 0.3 + 0.3 * shift))],
        })
        for _ in range(n)
    ]  # fmt: skip


def watch(its: Baseline, samples: list[Sample]) -> tuple[Watch, list[drift.Verdict]]:
    """Feed samples as they are, without pictures."""
    found = Watch(its, LABELS)
    verdicts: list[drift.Verdict] = []
    for each in samples:
        verdicts += found.take(each)
    return found, verdicts


def test_without_change_a_window_is_suspicious_as_rarely_as_is_said():
    random = np.random.default_rng(7)
    suspicious: dict[str, int] = {}
    for _ in range(10):
        its = baseline(drawn(random, 39 * WINDOW), 3, every_s=1, window=WINDOW, in_a_row=1)
        assert false_alarms(its, "score") == pytest.approx(1 / 40)
        _, verdicts = watch(its, drawn(random, 40 * WINDOW))
        for verdict in verdicts:
            suspicious[verdict.signal] = suspicious.get(verdict.signal, 0) + verdict.drifted
    # 400 windows at 1 in 40: 10 expected for each signal; 4 standard deviations above is 22.
    assert set(suspicious) == set(signals(3))
    assert max(suspicious.values()) <= 22, suspicious
    assert sum(suspicious.values()) > 0, "a limit that nothing ever passes finds nothing"


@pytest.mark.parametrize("name", signals(3))
def test_a_shift_of_one_signal_is_drift_of_that_signal_alone(name):
    random = np.random.default_rng(3)
    its = baseline(drawn(random, 60 * WINDOW), 3, every_s=1, window=WINDOW)
    samples = [
        Sample({**calm.values, name: moved.values[name]})
        for calm, moved in zip(drawn(random, 3 * WINDOW), drawn(random, 3 * WINDOW, 1.0), strict=True)
    ]
    found, _ = watch(its, samples)
    assert found.drifted == (name,)


def test_drift_wants_several_windows_in_a_row_and_ends_with_a_good_one():
    random = np.random.default_rng(5)
    its = baseline(drawn(random, 60 * WINDOW), 3, every_s=1, window=WINDOW, in_a_row=3)
    two = drawn(random, 2 * WINDOW, 1.0)
    assert watch(its, two)[0].drifted == ()
    assert watch(its, [*two, *drawn(random, WINDOW), *two])[0].drifted == ()
    three = [*two, *drawn(random, WINDOW, 1.0)]
    assert "score" in watch(its, three)[0].drifted
    assert watch(its, [*three, *drawn(random, WINDOW)])[0].drifted == ()


def test_that_nothing_drifts_is_known_after_as_many_windows_as_drift_takes():
    random = np.random.default_rng(5)
    its = baseline(drawn(random, 60 * WINDOW), 3, every_s=1, window=WINDOW, in_a_row=3)
    assert not watch(its, drawn(random, 3 * WINDOW - 1))[0].settled
    assert watch(its, drawn(random, 3 * WINDOW))[0].settled


def test_a_window_with_few_values_of_a_signal_says_nothing_of_it():
    random = np.random.default_rng(5)
    its = baseline(drawn(random, 60 * WINDOW), 3, every_s=1, window=WINDOW)
    empty = [Sample({**each.values, "score": [], "size": [], "label": []}) for each in drawn(random, WINDOW)]
    assert {v.signal for v in watch(its, empty)[1]} == {"brightness", "sharpness", "objects"}


def test_a_baseline_of_too_few_windows_is_refused():
    with pytest.raises(ConfigError, match="expected 570 samples or more in whole windows, got 90 of 100"):
        baseline(drawn(np.random.default_rng(1), 100), 3, every_s=1, window=WINDOW)


def test_histograms_of_parts_merge_to_that_of_the_whole():
    signal = signals(3)["score"]
    values = [0.0, 0.1, 0.5, 0.95, 1.0]
    whole, first, second = Histogram(signal), Histogram(signal), Histogram(signal)
    whole.add(values)
    first.add(values[:2])
    second.add(values[2:])
    first.merge(second)
    assert list(first.counts) == list(whole.counts)
    assert whole.total == 5


def test_recordings_of_several_devices_make_the_baseline_of_one_that_saw_it_all():
    random = np.random.default_rng(11)
    said = {"every_s": 1.0, "window": WINDOW, "model": "m"}
    days = [drawn(random, n * WINDOW) for n in (7, 11, 4)]
    parts = [recorded(day, LABELS, **said) for day in days]
    whole = recorded([each for day in days for each in day], LABELS, **said)
    for order in permutations(parts):
        both = merged([merged(order[:2]), order[2]])
        assert baseline_of(both) == baseline_of(whole), "in whichever order, and however they are paired"
    there_and_back = msgspec.json.decode(msgspec.json.encode(whole), type=Recording)
    assert there_and_back == whole == merged(parts)
    assert there_and_back.problem() == ""


def test_recordings_of_different_models_or_paces_are_not_merged():
    one = recorded([], LABELS, every_s=1.0, window=WINDOW, model="m")
    for name, value in {"model": "n", "labels": ("bolt",), "every_s": 2.0, "window": 60}.items():
        with pytest.raises(ConfigError, match=f"expected the {name} "):
            merged([one, msgspec.structs.replace(one, **{name: value})])


def test_a_window_that_was_not_finished_is_in_no_baseline():
    found = recorded([Sample({"objects": [1.0]})] * (2 * WINDOW + 5), LABELS, every_s=1, window=WINDOW)
    assert (found.samples, len(found.windows)) == (65, 2)


@pytest.mark.parametrize("value", [-math.inf, math.inf, math.nan, -1e300, 1e300])
def test_any_number_falls_into_a_bin(value):
    for signal in signals(3).values():
        assert 0 <= signal.bin_of(value) < signal.bins


def test_distance_is_none_between_likes_and_nearly_one_between_strangers():
    one, other = np.array([1000, 0, 0]), np.array([0, 0, 1000])
    assert distance(one, one) == 0
    assert 0.95 < distance(one, other) <= 1
    assert distance(one, other) == distance(other, one)


def test_what_never_varies_is_not_far_from_itself():
    always = np.array([0, 20, 0])
    assert distance(always, always * 37) == 0
    its = baseline([Sample({"objects": [1.0]})] * 20 * WINDOW, 3, every_s=1, window=WINDOW, in_a_row=1)
    assert watch(its, [Sample({"objects": [1.0]})] * WINDOW)[0].drifted == ()
    assert watch(its, [Sample({"objects": [2.0]})] * WINDOW)[0].drifted == ("objects",)


def test_memory_does_not_grow_with_frames():
    random = np.random.default_rng(9)
    its = baseline(drawn(random, 20 * WINDOW), 3, every_s=1, window=WINDOW)
    found, _ = watch(its, drawn(random, 5 * WINDOW))
    cells = sum(h.counts.size for h in found._window.values())
    assert cells == sum(signal.bins for signal in signals(3).values())


def test_frames_are_sampled_by_the_clock_of_the_media():
    random = np.random.default_rng(9)
    found = Watch(baseline(drawn(random, 20 * WINDOW), 3, every_s=1, window=WINDOW), LABELS)
    assert [found.due(round(t * 1e9)) for t in (0, 0.5, 0.99, 1.0, 1.5, 2.1, 0.3)] == [
        True, False, False, True, False, True, True,
    ]  # fmt: skip


def test_a_picture_out_of_focus_is_less_sharp_and_a_dark_one_less_bright():
    sharp = np.random.default_rng(1).integers(0, 255, (240, 320, 3), np.uint8)
    soft = cv2.GaussianBlur(sharp, (0, 0), 2)
    assert drift.picture(soft)[1] < drift.picture(sharp)[1] - 0.5
    assert drift.picture(soft)[0] == pytest.approx(drift.picture(sharp)[0], abs=1)
    assert drift.picture(sharp // 2)[0] == pytest.approx(drift.picture(sharp)[0] / 2, abs=1)
    assert drift.picture(np.zeros((1, 1, 3), np.uint8)) == (0.0, -1.0)


def test_what_is_sampled_of_detections():
    pixels = np.zeros((8, 8, 3), np.uint8)
    objects = [
        Detection("nut", 0.75, (0.25, 0.25, 0.5, 0.5)),
        Detection("unheard of", 0.5, (0.5, 0.5, 0.5, 0.5)),
    ]
    values = drift.sample(pixels, objects, LABELS).values
    assert values["objects"] == [2.0]
    assert values["score"] == [0.75, 0.5]
    assert values["label"] == [1.0]
    assert values["size"] == [-2.0, -7.0]


@cache
def parts() -> Model:
    use = ModelUse(package=str(ROOT / "models" / "parts"), runtime="onnxruntime")
    return Model(use, Path(mkdtemp()), 1.0, lambda: None)


def belt(seed: int, frames: int, change=lambda pixels: pixels, **conditions) -> list[Sample]:
    """Frames of the demo's belt, `EVERY_S` apart, through the demo's model."""
    source = SyntheticSource(seed=seed, fps=1 / EVERY_S, **conditions)
    feed, camera = SyntheticFeed(source), Camera(name="belt", source=source)
    model, found = parts(), []
    pixels = np.empty((source.height, source.width, 3), np.uint8)
    for picture in islice(iter(feed.read, None), frames):
        picture.into(pixels, Geometry.of(camera, picture.width, picture.height))
        changed = change(pixels)
        result = model.look(changed)
        found.append(drift.sample(changed, result.objects, model.package.labels))
    return found


@pytest.fixture(scope="module")
def of_belt() -> Baseline:
    """The one that the demo's package brings: an hour of the belt of another seed."""
    its = load(ROOT / "models" / "parts").manifest.baseline
    assert its is not None
    assert (its.window, its.every_s) == (WINDOW, EVERY_S)
    return its


def with_squares(pixels: np.ndarray) -> np.ndarray:
    """A part that the model was never shown, again and again."""
    changed = pixels.copy()
    for x in (60, 260, 460):
        cv2.rectangle(changed, (x, 200), (x + 70, 270), (200, 200, 205), -1)
        cv2.circle(changed, (x + 35, 235), 12, (60, 60, 60), -1)
    return changed


def test_the_belt_as_it_was_is_no_drift(of_belt):
    found, verdicts = watch(of_belt, belt(99, 6 * WINDOW))
    assert found.drifted == ()
    assert len(verdicts) == 6 * len(of_belt.signals)


@pytest.mark.parametrize(
    ("change", "conditions", "expected"),
    [
        (lambda pixels: pixels, {"light": 0.6}, "brightness"),
        (lambda pixels: cv2.GaussianBlur(pixels, (0, 0), 1.5), {}, "sharpness"),
        (with_squares, {}, "objects"),
    ],
    ids=["dimmed light", "blurred lens", "new part"],
)
def test_a_change_of_the_belt_is_drift_after_three_windows(of_belt, change, conditions, expected):
    found, _ = watch(of_belt, belt(99, 3 * WINDOW, change, **conditions))
    assert expected in found.drifted
