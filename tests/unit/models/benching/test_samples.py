"""What of all that came over the bus is a sample, and what was never answered."""

from skerry.models.benching.samples import Answer, Seen, between

S = 1_000_000_000


def filmed(camera: str = "one", *, fps: int = 10, seconds: int = 10, ms: float = 5.0, lost: int = 0) -> Seen:
    """A camera from 0 s on: every frame answered and decided but the last `lost` of each second."""
    seen = Seen()
    for n in range(fps * seconds):
        if n % fps >= fps - lost:
            continue
        captured = n * S // fps
        seen.answers[camera].append(Answer(n + 1, captured, 2.0))
        seen.event(camera, n + 1, captured, captured + int(ms * 1e6))
    return seen


def test_frames_of_the_warm_up_and_after_the_end_are_no_samples() -> None:
    found = between(filmed(), ["one"], 2 * S, 8 * S, 10)
    assert len(found.frame_to_event_ms) == 60
    assert found.unanswered == 0
    assert (found.answered_per_s, found.offered_per_s) == (10, 10)
    assert set(found.session_ms) == {2.0}


def test_a_frame_is_done_with_its_last_event() -> None:
    seen = Seen()
    seen.answers["one"].append(Answer(1, 0, 2.0))
    for here in (5, 9, 7):
        seen.event("one", 1, 0, here * 1_000_000)
    found = between(seen, ["one"], 0, S)
    assert (found.frame_to_event_ms, found.p95_by_tenth_ms) == ([9.0], None)


def test_frames_that_were_dropped_on_the_way_are_unanswered() -> None:
    found = between(filmed(lost=3), ["one"], 0, 10 * S)
    assert found.unanswered == 9 * 3  # those of the last second are not known to have been
    assert found.answered_per_s == 7


def test_of_unanswered_frames_as_many_are_endless_as_would_have_led_to_events() -> None:
    seen = filmed(lost=3)
    for n in [n for n in seen.events if n[1] % 2]:
        del seen.events[n]
    found = between(seen, ["one"], 0, 10 * S)
    answered = len(seen.answers["one"])
    assert found.endless == -(-27 * len(found.frame_to_event_ms) // answered)
    assert 0 < found.endless < found.unanswered
    assert between(Seen(), ["one"], 0, 10 * S, 10).endless == 99


def test_frames_that_nobody_took_though_they_were_due_are_unanswered() -> None:
    found = between(filmed(fps=8), ["one"], 0, 10 * S, 10)
    assert found.unanswered == 100 - 1 - 80
    assert found.offered_per_s == 8


def test_a_camera_that_was_never_seen_is_unanswered_whole() -> None:
    assert between(filmed(), ["one", "two"], 0, 10 * S, 10).unanswered == 99


def test_a_failed_result_is_no_answer() -> None:
    seen = filmed()
    seen.answers["one"][50] = Answer(51, 5 * S, 2.0, ok=False)
    assert between(seen, ["one"], 0, 10 * S, 10).unanswered == 1


def test_a_bad_tenth_shows_though_the_whole_looks_good() -> None:
    seen = filmed(fps=50)
    for n in range(450, 500):
        captured = n * S // 50
        seen.event("one", n + 1, captured, captured + 80_000_000)
    assert between(seen, ["one"], 0, 10 * S).p95_by_tenth_ms == (5.0, 80.0)


def test_events_that_are_repeated_were_here_when_they_first_came() -> None:
    seen = Seen()
    seen.answers["one"] += [Answer(1, 0, 2.0), Answer(2, 100_000_000, 2.0)]
    said = [(n, {"camera": "one", "frame": n, "captured_ns": (n - 1) * 100_000_000}) for n in (1, 2)]
    assert seen.submitted("e", said[:1], 5_000_000) == 1
    assert seen.submitted("e", said, 105_000_000) == 2
    assert seen.submitted("e", said, 900_000_000) == 2
    assert seen.submitted("f", [(1, {"camera": "one"})], 900_000_000) == 1
    assert between(seen, ["one"], 0, S).frame_to_event_ms == [5.0, 5.0]
