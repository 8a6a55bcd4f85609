"""A far end that drops what is at or below the watermark sees each event once."""

from hypothesis import given
from hypothesis import strategies as st

from skerry.receiver import Watermarks


def test_an_event_is_fresh_once() -> None:
    marks = Watermarks()
    assert marks.fresh("/a", "x", 1)
    assert not marks.fresh("/a", "x", 1)


def test_sources_and_epochs_are_apart() -> None:
    marks = Watermarks()
    assert all([marks.fresh("/a", "x", 3), marks.fresh("/a", "y", 3), marks.fresh("/b", "x", 3)])


def test_what_an_earlier_run_saw_is_known() -> None:
    first = Watermarks()
    first.fresh("/a", "x", 5)
    second = Watermarks(first.seen)
    assert not second.fresh("/a", "x", 5)
    assert second.fresh("/a", "x", 6)


def test_asking_changes_nothing() -> None:
    marks = Watermarks()
    assert not marks.repeated("/a", "x", 1)
    assert marks.fresh("/a", "x", 1)
    assert marks.repeated("/a", "x", 1)


@given(st.lists(st.integers(0, 40), max_size=30))
def test_going_back_any_number_of_times_delivers_each_once_in_order(restarts: list[int]) -> None:
    marks = Watermarks()
    seen, at = [], 1
    for back in restarts:
        at = max(1, at - back)
        for _ in range(5):
            if marks.fresh("/a", "x", at):
                seen.append(at)
            at += 1
    assert seen == list(range(1, len(seen) + 1))
