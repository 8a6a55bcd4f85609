import threading
import time
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.inbox import Inbox
from skerry.testing import eventually

steps = st.lists(st.tuples(st.sampled_from("abc"), st.booleans()) | st.just("get"), max_size=60)


@given(st.integers(1, 4), steps)
def test_every_item_is_taken_displaced_or_waiting_and_never_two_of_them(depth, script):
    inbox: Inbox[int] = Inbox(depth)
    put, taken, displaced = [], [], []
    for number, step in enumerate(script):
        if step == "get":
            item = inbox.get(0)
            taken += [] if item is None else [item]
        else:
            put.append(number)
            out = inbox.put(number, *step)
            displaced += [] if out is None else [out]
    while (item := inbox.get(0)) is not None:
        taken.append(item)
    assert sorted(taken + displaced) == put
    assert len(inbox) == 0


@given(st.integers(1, 4), steps)
def test_key_keeps_at_most_depth_of_its_newest_and_all_that_must_be_kept(depth, script):
    inbox: Inbox[tuple[str, int]] = Inbox(depth)
    model: dict[str, list[tuple[int, bool]]] = defaultdict(list)
    for number, step in enumerate(script):
        if step == "get":
            item = inbox.get(0)
            assert (item is None) == (not any(model.values()))
            if item is not None:
                key, n = item
                assert model[key][0][0] == n, "in order within a key"
                model[key].pop(0)
            continue
        key, keep = step
        model[key].append((number, keep))
        loose = [entry for entry in model[key] if not entry[1]]
        out = inbox.put((key, number), key, keep)
        if len(loose) > depth:
            assert out == (key, loose[0][0])
            model[key].remove(loose[0])
        else:
            assert out is None
    assert len(inbox) == sum(map(len, model.values()))


@given(st.permutations("aaaaabbbcc"))
def test_no_key_waits_longer_than_one_turn_of_every_other(order):
    inbox: Inbox[str] = Inbox(10)
    for key in order:
        inbox.put(key, key)
    taken = [inbox.get(0) for _ in order]
    for n, key in enumerate(taken):
        waiting = taken[n + 1 :]
        if key in waiting:
            between = waiting[: waiting.index(key)]
            assert set(between) == set(waiting) - {key}, "each of the others has had its turn"


def test_get_waits_for_what_another_thread_puts():
    inbox: Inbox[int] = Inbox()
    timer = threading.Timer(0.05, inbox.put, [7])
    timer.start()
    assert inbox.get(30) == 7
    timer.join()


def test_get_gives_up_after_its_timeout():
    began = time.monotonic()
    assert Inbox().get(0.05) is None
    assert time.monotonic() - began >= 0.05


def test_wake_ends_a_wait():
    inbox: Inbox[int] = Inbox()
    got: list[int | None] = []
    thread = threading.Thread(target=lambda: got.append(inbox.get(60)))
    thread.start()

    def woken() -> bool:
        inbox.wake()
        return bool(got)

    eventually(woken)
    thread.join()
    assert got == [None]


@pytest.mark.parametrize("readers", [1, 3])
def test_nothing_is_lost_or_doubled_between_threads(readers):
    inbox: Inbox[int] = Inbox(10_000)
    taken: list[int] = []

    def read() -> None:
        while (item := inbox.get(0.5)) is not None:
            taken.append(item)

    threads = [threading.Thread(target=read) for _ in range(readers)]
    for thread in threads:
        thread.start()
    for n in range(3000):
        inbox.put(n, str(n % 3))
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(3000))
