from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.decision.settings import TrackerSettings
from skerry.decision.tracker import MAX_SIGHTINGS, MAX_TRACKS, Row, Sighting, Tracker, merged
from skerry.messages import Detection
from unit.decision.scenes import Belt, every, thing


def tracker(**changes: float) -> Tracker:
    return Tracker(TrackerSettings(**({"confirm_s": 0.0} | changes)))


def ids(tracks: Tracker) -> list[int]:
    return [t.id for t in tracks.tracks]


def test_an_object_keeps_its_id_while_it_moves() -> None:
    tracks = tracker()
    for t in every(1 / 15, 3.0):
        tracks.update(t, [thing(0.1 + 0.25 * t)])
    assert ids(tracks) == [1]
    assert tracks.tracks[0].vx == pytest.approx(0.25, abs=1e-6)


def test_two_objects_that_pass_each_other_keep_their_ids() -> None:
    tracks = tracker()
    for t in every(1 / 15, 4.0):
        tracks.update(t, [thing(0.1 + 0.2 * t, 0.45), thing(0.9 - 0.2 * t, 0.55)])
    right = {t.id: t.x for t in tracks.tracks}
    assert right == {1: pytest.approx(0.9), 2: pytest.approx(0.1)}


@pytest.mark.parametrize("fps", [5, 15, 30])
def test_an_object_out_of_sight_for_less_than_lost_s_keeps_its_id(fps: int) -> None:
    tracks = tracker(lost_s=1.0)
    for t in every(1 / fps, 4.0):
        hidden = 1.5 < t < 2.4
        tracks.update(t, [] if hidden else [thing(0.1 + 0.2 * t)])
    assert ids(tracks) == [1]


@pytest.mark.parametrize("fps", [5, 15, 30])
def test_a_track_ends_when_results_have_not_shown_it_for_lost_s(fps: int) -> None:
    tracks = tracker(lost_s=1.0)
    ended_s = 0.0
    for t in every(1 / fps, 4.0):
        tracks.update(t, [thing(0.4)] if t <= 1.0 + 1e-9 else [])
        if not tracks.tracks and not ended_s:
            ended_s = t
    assert 2.0 < ended_s <= 2.0 + 2 / fps + 1e-9


def test_failed_results_neither_end_nor_age_a_track() -> None:
    tracks = tracker(lost_s=1.0, blind_s=10.0)
    for t in every(0.1, 1.0):
        tracks.update(t, [thing(0.1 + 0.1 * t)])
    for t in every(0.1, 4.0, 1.1):
        tracks.fail(t)
    tracks.update(4.1, [])
    assert ids(tracks) == [1]
    tracks.update(4.2, [thing(0.1 + 0.42)])
    assert ids(tracks) == [1]
    assert tracks.tracks[0].seen


def test_after_a_long_blindness_all_tracks_are_new() -> None:
    tracks = tracker(blind_s=3.0)
    tracks.update(0.0, [thing(0.5)])
    tracks.update(3.5, [thing(0.5)])
    assert ids(tracks) == [2]


def test_an_object_that_leaves_the_picture_ends_at_once() -> None:
    tracks = tracker(lost_s=5.0)
    for t in every(0.1, 4.0):
        x = 0.1 + 0.5 * t
        tracks.update(t, [thing(x)] if x < 1.0 else [])
    assert tracks.tracks == []


@pytest.mark.parametrize("fps", [5, 15, 60])
def test_a_track_is_believed_after_its_time_whatever_the_frame_rate(fps: int) -> None:
    tracks = tracker(confirm_s=0.4)
    believed_s = -1.0
    for t in every(1 / fps, 1.0):
        tracks.update(t, [thing(0.5)])
        if tracks.tracks[0].confirmed and believed_s < 0:
            believed_s = t
    assert 0.4 - 1e-6 <= believed_s < 0.4 + 1 / fps


def test_two_blinks_far_apart_are_not_believed() -> None:
    tracks = tracker(confirm_s=0.2)
    for n in range(4):
        tracks.update(n / 15, [thing(0.5)] if n in (0, 3) else [])
    assert not any(t.confirmed for t in tracks.tracks)


def test_a_weak_sighting_continues_a_track_but_starts_none() -> None:
    tracks = tracker(start_score=0.5)
    tracks.update(0.0, [thing(0.3, score=0.2)])
    assert ids(tracks) == []
    tracks.update(0.1, [thing(0.3, score=0.9)])
    tracks.update(0.2, [thing(0.3, score=0.2)])
    assert ids(tracks) == [1]
    assert tracks.tracks[0].seen


def test_a_flickering_label_makes_one_track_with_the_label_of_most_weight() -> None:
    tracks, rng = tracker(), random.Random(3)
    for t in every(1 / 15, 4.0):
        label = rng.choices(["nut", "bolt", "washer"], [6, 3, 1])[0]
        tracks.update(t, [thing(0.1 + 0.2 * t, label=label)])
    assert ids(tracks) == [1]
    assert tracks.tracks[0].label == "nut"


def test_boxes_of_two_labels_on_one_spot_are_one_track() -> None:
    tracks = tracker()
    for t in every(1 / 15, 1.0):
        tracks.update(t, [thing(0.5, score=0.6), thing(0.505, label="washer", score=0.5)])
    assert ids(tracks) == [1]
    assert tracks.tracks[0].label == "nut"


def test_boxes_of_one_label_that_overlap_are_two_objects() -> None:
    spots = [(0.1, "nut"), (0.14, "nut"), (0.7, "bolt")]
    near = [Sighting((x, 0.1, x + 0.2, 0.3), label, 0.9, {}) for x, label in spots]
    assert len(merged(near, 0.5)) == 3


def test_a_track_in_the_shadow_of_a_confirmed_one_is_not_believed() -> None:
    tracks = tracker(confirm_s=0.2)
    for t in every(1 / 15, 2.0):
        near = [thing(0.5), thing(0.52)] if t > 1.0 else [thing(0.5)]
        tracks.update(t, near)
    assert sum(t.confirmed for t in tracks.tracks) == 1


def test_a_track_is_not_pulled_off_its_way_by_a_box_beside_it() -> None:
    tracks = tracker()
    for t in every(1 / 15, 1.0):
        tracks.update(t, [thing(0.2 + 0.16 * t)])
    tracks.update(16 / 15, [thing(0.2 + 0.16 * 16 / 15 + 0.07)])
    assert tracks.tracks[0].vx == pytest.approx(0.16, abs=0.01)
    assert not tracks.tracks[0].seen


def test_an_attribute_is_its_mean_over_time_not_over_frames() -> None:
    tracks = tracker()
    for t in [0.0, *every(0.01, 1.0, 0.01), *every(0.5, 3.0, 1.5)]:
        tracks.update(t, [thing(0.5, defect=1.0 if t <= 1.0 else 0.0)])
    assert tracks.tracks[0].attribute("defect") == pytest.approx(1 / 3, abs=0.08)


def test_an_attribute_of_a_cut_box_counts_nothing() -> None:
    tracks = tracker()
    for t in every(0.1, 1.0):
        tracks.update(t, [thing(0.02, defect=1.0)])
    assert tracks.tracks[0].attribute("defect") is None
    assert tracks.tracks[0].evidence_s == 0.0


def test_the_velocity_of_a_part_that_enters_is_not_halved_by_the_edge() -> None:
    tracks = tracker()
    for t in every(1 / 15, 0.5):
        tracks.update(t, [thing(0.0 + 0.16 * t)])
    assert tracks.tracks[0].vx == pytest.approx(0.16, abs=0.01)


def test_a_hidden_part_stops_with_the_belt() -> None:
    belt = [0.2, 0.4, 0.6]
    tracks = tracker(lost_s=2.0)
    moved = 0.0
    for n, t in enumerate(every(1 / 15, 3.0)):
        moved += 0.16 / 15 if 0 < t <= 1.5 else 0.0
        shown = [thing(x + moved, y) for x, y in zip(belt, (0.2, 0.5, 0.8), strict=True)]
        tracks.update(t, shown[1:] if 1.4 < t < 2.9 else shown)
        assert n == 0 or tracks.next_id == 4
    assert sorted(t.x for t in tracks.tracks) == pytest.approx([x + moved for x in belt], abs=0.01)


def test_a_repeated_capture_time_changes_no_velocity() -> None:
    tracks = tracker()
    tracks.update(0.0, [thing(0.5)])
    tracks.update(0.0, [thing(0.52)])
    assert (tracks.tracks[0].vx, tracks.tracks[0].vy) == (0.0, 0.0)
    assert ids(tracks) == [1]


def test_ids_go_on_where_an_earlier_life_stopped() -> None:
    tracks = Tracker(TrackerSettings(), first_id=41)
    tracks.update(0.0, [thing(0.5)])
    assert ids(tracks) == [41]
    assert tracks.next_id == 42


def test_what_is_looked_at_and_kept_has_a_bound() -> None:
    tracks, rng = tracker(lost_s=60.0, blind_s=60.0), random.Random(1)
    for n in range(6):
        tracks.update(
            n / 15, [thing(rng.random(), rng.random(), size=0.01) for _ in range(MAX_SIGHTINGS + 100)]
        )
    assert len(tracks.tracks) <= MAX_TRACKS
    assert tracks.ignored >= 600


numbers = st.floats(allow_nan=False, allow_infinity=False)
wild = st.builds(
    Detection, st.text(max_size=3), st.floats(0, 1), st.tuples(numbers, numbers, numbers, numbers),
    st.dictionaries(st.sampled_from("ab"), numbers, max_size=2),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.floats(0.0, 5.0), st.booleans(), st.lists(wild, max_size=6)), max_size=8))
def test_no_box_however_wild_upsets_the_tracker(
    results: list[tuple[float, bool, list[Detection]]],
) -> None:
    tracks, now = tracker(), 0.0
    for step, good, objects in results:
        now += step
        if not good:
            tracks.fail(now)
            continue
        for track in tracks.update(now, objects):
            assert all(math.isfinite(v) for v in track.box)
        assert len(set(ids(tracks))) == len(tracks.tracks)


@given(st.lists(st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)), max_size=40), st.floats(0.0, 1.0))
def test_near_boxes_are_found_as_if_all_were_looked_at(centres: list[tuple[float, float]], x: float) -> None:
    boxes = [(a - 0.05, b - 0.05, a + 0.05, b + 0.05) for a, b in centres]
    box = (x - 0.1, 0.4, x + 0.1, 0.6)
    for reach in (0.0, 1.0):
        wide, high = 0.1 + 0.1 * reach, 0.1 + 0.1 * reach
        want = [
            n for n, (x1, y1, x2, y2) in enumerate(boxes)
            if abs((x1 + x2) / 2 - x) <= wide - 1e-12 and abs((y1 + y2) / 2 - 0.5) <= high - 1e-12
        ]  # fmt: skip
        assert set(want) <= set(Row(boxes).near(box, reach))


@pytest.mark.parametrize("seed", range(6))
def test_each_part_on_a_belt_is_one_believed_track(seed: int) -> None:
    belt = Belt(seed, clutter=0.0)
    tracks = Tracker(TrackerSettings())
    owners: dict[int, set[int]] = {}
    for t in every(1 / 15, 40.0):
        tracks.update(t, belt.detect(t))
        for track in tracks.tracks:
            near = [p.number for p, x in belt.truth(t) if abs(x - track.x) + abs(p.y - track.y) < 0.02]
            if track.confirmed and track.seen and 0.1 < track.x < 0.9 and len(near) == 1:
                owners.setdefault(near[0], set()).add(track.id)
    doubled = {part: found for part, found in owners.items() if len(found) > 1}
    assert not doubled
    assert len(owners) > 25
