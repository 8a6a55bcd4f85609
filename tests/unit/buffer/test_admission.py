"""Repeats are dropped, jumps refused, gaps counted, whatever a producer says."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samples import EVENT
from skerry.buffer.admission import MAX_SEQ, Verdict, admit, flaw
from skerry.messages import Event, Submission


@pytest.mark.parametrize(
    ("watermark", "oldest", "first", "count", "verdict"),
    [
        (None, 1, 1, 3, Verdict(0, 3)),  # an epoch never heard of
        (None, 8, 8, 3, Verdict(0, 3)),  # ... whose beginning somebody else has
        (None, 8, 9, 3, Verdict(0, 0, jump=True)),  # ... and 8 was lost on its way
        (5, 1, 6, 2, Verdict(0, 2)),
        (5, 1, 3, 3, Verdict(3, 0)),  # repeats only
        (5, 1, 4, 4, Verdict(2, 2)),  # repeats, then new ones
        (5, 1, 7, 1, Verdict(0, 0, jump=True)),  # 6 is missing and may still come
        (5, 6, 7, 1, Verdict(0, 0, jump=True)),
        (5, 7, 7, 1, Verdict(0, 1, gap=1)),  # 6 will never come
        (5, 10, 10, 2, Verdict(0, 2, gap=4)),
    ],
)
def test_the_rule(watermark: int | None, oldest: int, first: int, count: int, verdict: Verdict) -> None:
    assert admit(watermark, oldest, first, count) == verdict


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 8), st.integers(0, 5)), max_size=40),
    st.integers(1, 10),
)
def test_whatever_arrives_nothing_is_kept_twice_and_every_gap_is_counted(
    arrivals: list[tuple[int, int, int]], start: int
) -> None:
    watermark: int | None = None
    kept: list[int] = []
    gaps = 0
    for first, count, held in arrivals:
        first += start - 1
        verdict = admit(watermark, max(first - held, 1), first, count)
        assert verdict.repeats + verdict.taken in (0, count)
        if verdict.taken:
            new = list(range(first + verdict.repeats, first + count))
            base = watermark if watermark is not None else max(first - held, 1) - 1
            gaps += verdict.gap
            assert new[0] == base + verdict.gap + 1
            kept += new
            watermark = new[-1]
    assert kept == sorted(set(kept))
    if kept:
        assert kept[-1] - kept[0] + 1 == len(kept) + gaps


def event(seq: int, **changes: object) -> Event:
    return msgspec.structs.replace(EVENT, **{"seq": seq, "id": f"e1-{seq}", **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("problem", "submission"),
    [
        ("", Submission(producer="p", epoch="e1", oldest=1, events=(event(3), event(4)))),
        ("seq", Submission(producer="p", epoch="e1", oldest=1, events=(event(3), event(5)))),
        ("seq", Submission(producer="p", epoch="e1", oldest=1, events=(event(4), event(3)))),
        ("seq", Submission(producer="p", epoch="e1", oldest=1, events=(event(MAX_SEQ + 1),))),
        ("oldest", Submission(producer="p", epoch="e1", oldest=4, events=(event(3),))),
        ("epoch", Submission(producer="p", epoch="e2", oldest=1, events=(event(3),))),
        ("epoch", Submission(producer="p", epoch="e" * 65, oldest=1, events=(event(3),))),
        ("epoch", Submission(producer="p", epoch="", oldest=1, events=(event(3),))),
        ("source", Submission(producer="p", epoch="e1", oldest=1, events=(event(3), event(4, source="/b")))),
        ("source", Submission(producer="p", epoch="e1", oldest=1, events=(event(3, source="x" * 257),))),
        ("id", Submission(producer="p", epoch="e1", oldest=1, events=(event(3, id="e1-4"),))),
    ],
)
def test_an_inconsistent_submission_is_named_by_what_is_wrong(problem: str, submission: Submission) -> None:
    assert flaw(submission) == problem
