"""A far end that drops what is at or below the watermark sees each event once."""

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.receiver import Account, Watermarks


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


def test_the_watermarks_survive_a_restart() -> None:
    first = Watermarks()
    first.fresh("/a", "x", 5)
    first.fresh('/b"\n', "ü", 7)
    second = Watermarks.load(first.dump())
    assert second.seen == first.seen
    assert Watermarks.load(b"").seen == {}


@pytest.mark.parametrize("saved", [b"{}", b"[[1,2,3]]", b'[["a","b"]]', b"torn"])
def test_what_is_no_dump_is_refused(saved: bytes) -> None:
    with pytest.raises(ValueError, match=r"expected what Watermarks\.dump gave, got"):
        Watermarks.load(saved)


def test_memory_is_bounded_and_the_epoch_that_was_quiet_for_longest_makes_room() -> None:
    marks = Watermarks(max_epochs=3)
    for epoch in ("x", "y", "z"):
        marks.fresh("/a", epoch, 1)
    marks.fresh("/a", "x", 2)
    marks.fresh("/a", "new", 1)
    assert {epoch for _, epoch in marks.seen} == {"z", "x", "new"}
    assert {epoch for _, epoch in Watermarks.load(marks.dump(), max_epochs=2).seen} == {"x", "new"}


def item(seq: int, epoch: str = "x", **more: Any) -> dict[str, Any]:
    return {"source": "/a", "epoch": epoch, "seq": seq, "type": "io.skerry.count", "data": {}, **more}


def gap(seq: int, *ranges: tuple[str, int, int], reason: str = "capacity") -> dict[str, Any]:
    rows = [{"producer": "p", "epoch": e, "first": a, "last": b, "count": b - a + 1} for e, a, b in ranges]
    data = {
        "lane": "event",
        "reason": reason,
        "count": sum(r["count"] for r in rows),
        "bytes": 0,
        "ranges": rows,
    }
    return {"source": "/buffer", "epoch": "chain", "seq": seq, "type": "skerry.gap", "data": data}


def test_an_account_without_holes_is_clean_whatever_was_repeated() -> None:
    account = Account()
    taken = [account.take(item(n)) for n in (1, 2, 1, 2, 3)]
    assert taken == [True, True, False, False, True]
    assert account.unexplained() == {}


def test_a_hole_that_nobody_explains_is_a_loss() -> None:
    account = Account()
    for n in (1, 5, 9):
        account.take(item(n))
    assert account.unexplained() == {"x": [(2, 4), (6, 8)]}


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_gap_record_explains_a_hole_whichever_comes_first(order: tuple[int, ...]) -> None:
    account = Account()
    account.take(item(1))
    coming = [item(9), gap(7, ("x", 2, 5)), gap(8, ("x", 6, 8))]
    for n in order:
        account.take(coming[n])
    gaps = [n for n in order if n]
    if gaps == [1, 2]:
        assert account.unexplained() == {}
        assert account.lost == {"capacity": 7}
    else:  # the seq of gap records ascends: one that comes late was repeated
        assert account.unexplained() == {"x": [(2, 5)]}


def test_a_part_of_a_hole_that_is_not_explained_remains() -> None:
    account = Account()
    account.take(item(1))
    account.take(item(100))
    account.take(gap(5, ("x", 10, 20), ("y", 2, 99)))
    account.take(gap(6, ("x", 90, 200), reason="corrupt"))
    assert account.unexplained() == {"x": [(2, 9), (21, 89)]}
    assert set(account.lost) == {"capacity", "corrupt"}


def test_gap_records_and_retries_open_no_holes() -> None:
    account = Account()
    account.take(gap(100))
    account.take(gap(200))
    account.take(item(7, "retries", retryof="x-3"))
    assert account.unexplained() == {}


def test_a_repeated_gap_record_counts_once() -> None:
    account = Account()
    for _ in range(3):
        account.take(gap(5, ("x", 1, 10)))
    assert account.lost == {"capacity": 10}


def test_an_account_goes_on_where_it_was_saved() -> None:
    first = Account()
    first.take(item(1))
    first.take(item(5))
    second = Account(Watermarks.load(first.marks.dump()), first.unexplained())
    assert not second.take(item(5))
    second.take(gap(1, ("x", 2, 4)))
    assert second.unexplained() == {}


def test_what_an_account_remembers_is_bounded() -> None:
    account = Account(max_holes=10)
    for n in range(1, 100, 2):
        account.take(item(n))
    assert sum(map(len, account.unexplained().values())) == 10
    assert account.forgotten == 39


@pytest.mark.parametrize("odd", [{}, {"source": "/a", "epoch": "x", "seq": "1"}, {**gap(1), "data": {}}])
def test_what_is_no_event_of_ours_is_refused(odd: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected "):
        Account().take(odd)
