"""Go-back-N: bounded, patient, and never behind what is confirmed."""

from hypothesis import given
from hypothesis import strategies as st

from skerry.buffer.window import Window


def test_room_shrinks_with_what_is_sent_and_grows_with_what_is_confirmed() -> None:
    window = Window(max_records=10, max_bytes=1000, resend_s=5)
    assert window.room() == (10, 1000)
    window.note(4, 4, 400, now=0)
    assert window.room() == (6, 600)
    window.note(10, 6, 10, now=0)
    assert window.room() == (0, 0)
    window.confirm(4, now=1)
    assert window.room() == (4, 990)


def test_one_batch_may_be_larger_than_the_window_and_then_all_others_wait() -> None:
    window = Window(10, 1000, 5)
    window.note(1, 1, 5000, now=0)
    assert window.room() == (0, 0)


def test_it_is_time_to_go_back_when_nothing_was_confirmed_for_long() -> None:
    window = Window(10, 1000, resend_s=5)
    assert window.due(now=100) == float("inf")
    window.note(3, 3, 30, now=100)
    assert window.due(now=104) == 1
    assert window.due(now=105) == 0


def test_a_confirmation_restarts_the_clock() -> None:
    window = Window(10, 1000, 5)
    window.note(3, 3, 30, now=0)
    window.note(6, 3, 30, now=0)
    window.confirm(3, now=4)
    assert window.due(now=5) == 4


def test_each_repetition_in_vain_waits_twice_as_long_up_to_eight_times() -> None:
    window = Window(10, 1000, 1)
    waits = []
    for _ in range(6):
        window.note(1, 1, 1, now=0)
        waits.append(window.due(now=0))
        window.go_back(0, in_vain=True)
    assert waits == [1, 2, 4, 8, 8, 8]
    window.go_back(0)
    window.note(1, 1, 1, now=0)
    assert window.due(now=0) == 1


def test_receipts_can_still_come_for_what_was_sent_before_going_back() -> None:
    window = Window(10, 1000, 1)
    window.note(8, 8, 80, now=0)
    window.go_back(0)
    assert (window.sent, window.highest) == (0, 8)
    window.confirm(8, now=1)
    assert window.sent == 8
    assert window.room() == (10, 1000)


@given(st.lists(st.tuples(st.sampled_from(["send", "confirm", "back"]), st.integers(0, 50)), max_size=80))
def test_the_window_never_holds_more_than_its_bound(steps: list[tuple[str, int]]) -> None:
    window, upto = Window(20, 10_000, 1), 0
    for what, number in steps:
        records, _ = window.room()
        if what == "send" and records:
            window.note(window.sent + min(number % 9 + 1, records), min(number % 9 + 1, records), 5, now=0)
        elif what == "confirm":
            upto = max(upto, min(number, window.highest))
            window.confirm(upto, now=0)
        elif what == "back":
            window.go_back(upto)
        assert 0 <= window.room()[0] <= 20
        assert upto <= window.sent <= max(window.highest, upto)
