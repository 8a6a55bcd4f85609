"""The rendered conveyor: the same time gives the same pixels, and the truth is what the pixels show."""

from __future__ import annotations

import math
import tracemalloc

import cv2
import numpy as np
import pytest

from skerry.capture.scene import (
    KINDS,
    Conditions,
    PartView,
    Scene,
    crossings,
    in_zone,
    zone_counts,
)
from skerry.capture.scene.motion import KNOT_S, PERIOD_S, Motion
from skerry.errors import ConfigError

CLEAN = Conditions(noise=0.0, clutter=0.0, shade=0.0, flicker=0.0, exposure_s=0.0)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene(seed=1, width=320, height=240)


def test_the_same_time_gives_the_same_pixels_whatever_was_rendered_before() -> None:
    fresh = Scene(seed=5, width=320, height=240).render(37.21)
    used = Scene(seed=5, width=320, height=240)
    for t_s in (0.0, 900.0, 36.9, 37.3, 5.0):
        used.render(t_s)

    assert np.array_equal(used.render(37.21), fresh)


def test_the_same_time_gives_the_same_pixels_with_any_number_of_threads() -> None:
    before = cv2.getNumThreads()
    pictures = []
    for threads in (1, 4):
        cv2.setNumThreads(threads)
        pictures.append(Scene(seed=6, width=320, height=240).render(11.0))
    cv2.setNumThreads(before)

    assert np.array_equal(pictures[0], pictures[1])


def test_another_seed_gives_another_belt() -> None:
    one, two = (Scene(seed=seed, width=160, height=120).parts(0.0, 60.0) for seed in (1, 2))

    assert [part.kind for part in one] != [part.kind for part in two]


def test_noise_goes_on_while_the_belt_stands_still(scene: Scene) -> None:
    stop = scene.stops(60.0)[0]
    one, two = scene.render(stop.start_s + 0.1), scene.render(stop.start_s + 0.2)

    assert not np.array_equal(one, two)


def test_a_picture_is_a_new_array_of_the_size_asked_for(scene: Scene) -> None:
    first = scene.render(1.0)
    kept = first.copy()
    first[:] = 0

    assert kept.shape == (240, 320, 3)
    assert kept.dtype == np.uint8
    assert np.array_equal(scene.render(1.0), kept)


def test_a_picture_too_small_is_refused_with_the_size_wanted() -> None:
    with pytest.raises(ConfigError, match=r"scene: expected at least 160x120 pixels, got 100x100"):
        Scene(width=100, height=100)


def test_a_belt_without_speed_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected a speed above 0, got 0"):
        Scene(conditions=Conditions(speed=0.0))


def metal(scene: Scene, t_s: float) -> np.ndarray:
    """(h, w) whether a pixel is metal: the belt is green, in a part's shadow too."""
    _, green, red = np.moveaxis(scene.render(t_s).astype(float), 2, 0)
    return red > 0.8 * green


def as_dict(conditions: Conditions) -> dict[str, float]:
    return {name: getattr(conditions, name) for name in conditions.__dataclass_fields__}


def pixels(view: PartView) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = view.box
    return round(x1 * 640), round(y1 * 480), round(x2 * 640), round(y2 * 480)


@pytest.mark.parametrize("t_s", [2.0, 15.0, 33.0])
def test_a_box_holds_a_part_s_pixels_and_not_one_more(t_s: float) -> None:
    whole = Conditions(**(as_dict(CLEAN) | {"touching": 0.0, "defect_rate": 0.0}))
    scene = Scene(seed=3, conditions=whole)
    found, views = metal(scene, t_s), scene.truth(t_s)
    found[:50], found[-50:] = False, False
    for view in views:
        x1, y1, x2, y2 = pixels(view)
        rows, columns = np.nonzero(found[y1:y2, x1:x2])
        assert max(columns.min(), rows.min()) <= 1
        assert columns.max() >= x2 - x1 - 2
        assert rows.max() >= y2 - y1 - 2
        found[max(y1 - 1, 0) : y2 + 1, max(x1 - 1, 0) : x2 + 1] = False

    assert len(views) >= 3
    assert not found.any()


def test_a_part_enters_grows_is_whole_and_leaves(scene: Scene) -> None:
    part = next(p for p in scene.parts(30.0, 60.0) if p.under is None)
    start = scene.motion.when(-0.2 - scene.centre(part)[0])
    end = scene.motion.when(1.2 - scene.centre(part)[0])
    shares = []
    for t_s in np.linspace(start, end, 400):
        views = {view.id: view for view in scene.truth(float(t_s))}
        shares.append(views[part.id].visible if part.id in views else 0.0)
    peak = shares.index(1.0)

    assert shares[0] == shares[-1] == 0.0
    assert shares[:peak] == sorted(shares[:peak])
    assert shares[peak:] == sorted(shares[peak:], reverse=True)


def test_every_part_seen_in_a_span_is_listed_and_no_other(scene: Scene) -> None:
    seen = {view.id for t_s in np.arange(20.0, 30.0, 0.02) for view in scene.truth(float(t_s))}

    assert seen == {part.id for part in scene.parts(20.0, 30.0)}


def test_a_part_is_in_the_picture_for_at_least_25_frames_at_15_a_second() -> None:
    for seed in (1, 2, 3):
        scene = Scene(seed=seed, width=160, height=120)
        fastest = max(scene.belt_speed(t_s) for t_s in np.arange(0.0, 400.0, KNOT_S))

        assert 15.0 / fastest >= 25.0 * 1.5


def test_a_part_under_another_is_never_hidden_by_more_than_a_quarter_and_never_defective() -> None:
    covered = 0
    for seed in range(1, 5):
        scene = Scene(seed=seed, width=320, height=240, conditions=Conditions(touching=0.5))
        for part in scene.parts(0.0, 120.0):
            if part.under is None:
                continue
            views = {v.id: v for v in scene.truth(scene.motion.when(0.5 - scene.centre(part)[0]))}
            covered += 1
            assert views[part.id].visible >= 0.75
            assert not part.defective

    assert covered > 50


def test_boxes_of_neighbours_never_share_half_their_area() -> None:
    for seed in range(1, 6):
        scene = Scene(seed=seed, width=320, height=240, conditions=Conditions(touching=0.5))
        for t_s in range(0, 60, 3):
            boxes = [view.box for view in scene.truth(float(t_s)) if view.visible > 0.5]
            pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
            assert all(shared(a, b) < 0.4 for a, b in pairs)


def shared(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0.0 or height <= 0.0:
        return 0.0
    areas = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
    return width * height / (areas - width * height)


def test_ids_are_unique_along_the_belt() -> None:
    ids = [part.id for part in Scene(seed=4, width=160, height=120).parts(0.0, 900.0)]

    assert len(set(ids)) == len(ids) > 500
    assert ids == sorted(ids)


def test_kinds_and_defects_come_at_the_rates_asked_for() -> None:
    scene = Scene(seed=9, width=160, height=120, conditions=Conditions(defect_rate=0.3, touching=0.0))
    parts = scene.parts(0.0, 1500.0)

    for kind in KINDS:
        assert sum(part.kind == kind for part in parts) / len(parts) == pytest.approx(1 / 3, abs=0.08)
    assert sum(part.defective for part in parts) / len(parts) == pytest.approx(0.3, abs=0.04)


def test_the_belt_stands_exactly_still_within_a_stop_and_nowhere_else(scene: Scene) -> None:
    stops = scene.stops(200.0)
    edges = np.array([edge for stop in stops for edge in (stop.start_s, stop.end_s)])

    assert len(stops) >= 5
    for stop in stops:
        assert scene.motion.distance(stop.start_s) == pytest.approx(
            scene.motion.distance(stop.end_s), abs=1e-12
        )
        assert 2.5 <= round(stop.end_s - stop.start_s, 6) <= 5.0
    for t_s in np.arange(0.0, 200.0, 0.013):
        if np.abs(edges - t_s).min() > 1e-6:
            inside = any(stop.start_s < t_s < stop.end_s for stop in stops)
            assert (scene.belt_speed(float(t_s)) == 0.0) == inside


def test_a_picture_in_a_stop_shows_the_belt_where_it_stood() -> None:
    scene = Scene(seed=1, width=320, height=240, conditions=CLEAN)
    stop = scene.stops(60.0)[0]

    assert scene.truth(stop.start_s) == scene.truth(stop.end_s)
    assert scene.truth(stop.start_s) != scene.truth(stop.end_s + 1.0)


def test_a_belt_told_not_to_stop_never_does() -> None:
    scene = Scene(seed=1, width=160, height=120, conditions=Conditions(stopping=False))

    assert scene.stops(1000.0) == ()
    assert min(scene.belt_speed(t_s) for t_s in np.arange(0.0, 200.0, 0.1)) > 0.05


def test_speed_is_continuous_across_periods() -> None:
    motion = Motion(seed=3, mean_speed=0.16)

    for number in range(1, 20):
        edge = number * PERIOD_S
        assert motion.speed(edge - 1e-6) == pytest.approx(motion.speed(edge + 1e-6), abs=1e-4)


def test_distance_is_the_integral_of_speed() -> None:
    motion = Motion(seed=3, mean_speed=0.16)
    times = np.arange(3.0, 63.0, 0.001) + 0.0005
    covered = sum(motion.speed(float(t_s)) for t_s in times) * 0.001

    assert motion.distance(63.0) - motion.distance(3.0) == pytest.approx(covered, abs=1e-5)


def test_when_is_the_inverse_of_distance_and_the_start_of_a_stop() -> None:
    motion = Motion(seed=3, mean_speed=0.16)
    for t_s in np.linspace(0.5, 99.5, 700):
        assert motion.distance(motion.when(motion.distance(float(t_s)))) == pytest.approx(
            motion.distance(float(t_s)), abs=1e-9
        )
    stop = next(iter(motion.stops(100.0)))

    assert motion.when(motion.distance(stop.end_s)) <= stop.start_s + KNOT_S


def test_a_part_crosses_a_line_when_the_middle_of_its_box_does(scene: Scene) -> None:
    found = crossings(scene, 0.5, 10.0, 40.0)

    assert len(found) > 10
    for crossing in found:
        view = next(v for v in scene.truth(crossing.at_s) if v.id == crossing.id)
        x, y = (view.box[0] + view.box[2]) / 2.0, (view.box[1] + view.box[3]) / 2.0
        assert (x, y) == pytest.approx(crossing.centre, abs=1.0 / 320)
        assert (view.kind, view.defective, view.defect) == (
            crossing.kind,
            crossing.defective,
            crossing.defect,
        )
        assert 10.0 <= crossing.at_s < 40.0


def test_spans_that_meet_count_each_part_once(scene: Scene) -> None:
    whole = crossings(scene, 0.5, 0.0, 60.0)
    pieces = [c for start in range(60) for c in crossings(scene, 0.5, float(start), float(start + 1))]

    assert sorted(c.id for c in pieces) == sorted({c.id for c in whole})


def test_zone_counts_agree_with_the_truth_at_any_time(scene: Scene) -> None:
    zone = (0.2, 0.1, 0.8, 0.7)
    steps = zone_counts(scene, zone, 0.0, 40.0)

    assert len(steps) > 10
    for t_s in np.arange(0.05, 40.0, 0.37):
        count = [step.count for step in steps if step.since_s <= t_s][-1]
        assert count == len(in_zone(scene, zone, float(t_s)))


def test_in_zone_takes_the_middle_of_the_box(scene: Scene) -> None:
    t_s, zone = 17.0, (0.25, 0.2, 0.75, 0.9)
    middles = {
        view.id: ((view.box[0] + view.box[2]) / 2.0, (view.box[1] + view.box[3]) / 2.0)
        for view in scene.truth(t_s)
        if view.visible == 1.0
    }
    expected = {i for i, (x, y) in middles.items() if 0.25 <= x < 0.75 and 0.2 <= y < 0.9}

    found = {part.id for part in in_zone(scene, zone, t_s)}

    assert expected
    assert found == expected


def test_memory_does_not_grow_with_the_time_the_belt_runs() -> None:
    scene = Scene(seed=2, width=160, height=120)
    for t_s in range(200):
        scene.render(t_s * 2.0)
        scene.truth(t_s * 2.0)
    tracemalloc.start()
    for t_s in range(200, 400):
        scene.render(t_s * 2.0)
        scene.truth(t_s * 2.0)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert grown < 16_000_000
    assert scene.render(36_000.0).any()


def test_a_belt_that_has_run_for_a_day_is_as_full_as_one_that_starts(scene: Scene) -> None:
    early, late = len(scene.parts(0.0, 300.0)), len(scene.parts(86_400.0, 86_700.0))

    assert math.isclose(early, late, rel_tol=0.25)
