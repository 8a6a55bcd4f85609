from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.channels import EVENTS, MAX_PAYLOAD
from skerry.decision.delivery import CHUNK, WINDOW, WINDOW_BYTES, Delivery
from skerry.messages import Submission
from skerry.mqtt import MAX_BACKLOG
from skerry.outbox import Outbox


def open_outbox(folder: Path, boot: str = "boot", epoch: str = "e1") -> Outbox:
    return Outbox.open(folder, "event", "skerry/test/decision", 100_000, boot=boot, draw=lambda: epoch)


def fill(outbox: Outbox, count: int, size: int = 0) -> None:
    for n in range(count):
        added = outbox.add(
            type_="skerry.test",
            subject="belt/r",
            time="t",
            monotonic=n,
            data={"n": n, "pad": "x" * size},
        )
        assert added is not None


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with open_outbox(tmp_path) as opened:
        yield opened


def all_of(delivery: Delivery, now_s: float) -> list[Submission]:
    """Everything that may be sent now."""
    sent = []
    while (submission := delivery.next(now_s)) is not None:
        delivery.sent(submission.events, now_s)
        sent.append(submission)
    return sent


def seqs(sent: list[Submission]) -> list[int]:
    return [event.seq for submission in sent for event in submission.events]


def test_events_go_out_once_while_acceptance_moves(outbox: Outbox) -> None:
    delivery = Delivery(outbox, "decision", 1.0)
    fill(outbox, 250)
    assert seqs(all_of(delivery, 0.0)) == list(range(1, 251))
    assert delivery.accepted("e1", 100, 0.9) == 100
    assert all_of(delivery, 1.5) == []
    fill(outbox, 1)
    assert seqs(all_of(delivery, 1.6)) == [251]


def test_no_acceptance_for_resend_s_begins_again_at_the_oldest(outbox: Outbox) -> None:
    delivery = Delivery(outbox, "decision", 1.0)
    fill(outbox, 3)
    all_of(delivery, 0.0)
    delivery.accepted("e1", 1, 0.5)
    assert all_of(delivery, 1.4) == []
    again = all_of(delivery, 1.6)
    assert seqs(again) == [2, 3]
    assert again[0].oldest == 2
    assert again[0].events[0].id == "e1-2"
    assert delivery.repeats == 1


def test_silence_is_measured_while_events_wait_and_since_the_last_that_was_accepted(outbox: Outbox) -> None:
    delivery = Delivery(outbox, "decision", 1.0)
    assert [delivery.silent_s(now) for now in (5.0, 9.0)] == [0.0, 0.0]
    fill(outbox, 2)
    assert delivery.silent_s(12.0) == 3.0
    delivery.accepted("e1", 1, 12.0)
    delivery.accepted("e1", 1, 14.0)
    assert delivery.silent_s(15.0) == 3.0
    delivery.accepted("e1", 2, 16.0)
    assert delivery.silent_s(17.0) == 0.0


def test_a_new_connection_begins_again_at_the_oldest(outbox: Outbox) -> None:
    delivery = Delivery(outbox, "decision", 60.0)
    fill(outbox, 3)
    all_of(delivery, 0.0)
    delivery.restart()
    assert seqs(all_of(delivery, 0.1)) == [1, 2, 3]


def test_no_more_than_a_window_is_on_its_way(outbox: Outbox) -> None:
    delivery = Delivery(outbox, "decision", 1.0)
    fill(outbox, 2 * WINDOW)
    sent = all_of(delivery, 0.0)
    assert seqs(sent) == list(range(1, WINDOW + 1))
    assert max(len(s.events) for s in sent) <= CHUNK
    delivery.accepted("e1", 10, 0.1)
    assert seqs(all_of(delivery, 0.2)) == list(range(WINDOW + 1, WINDOW + 11))


def test_a_message_stays_below_what_a_broker_takes(outbox: Outbox) -> None:
    delivery = Delivery(outbox, "decision", 1.0)
    fill(outbox, 60, size=20_000)
    for submission in all_of(delivery, 0.0):
        assert len(msgspec.json.encode(submission)) < min(MAX_PAYLOAD, EVENTS.max_bytes)


def test_three_lanes_on_their_way_leave_the_bus_room_for_a_fourth(outbox: Outbox) -> None:
    delivery = Delivery(outbox, "decision", 1.0)
    fill(outbox, 300, size=20_000)
    sent = all_of(delivery, 0.0)
    assert 1_900_000 < sum(len(msgspec.json.encode(s)) for s in sent) < 1.1 * WINDOW_BYTES
    assert 3 * WINDOW_BYTES < MAX_BACKLOG
    assert seqs(sent) == list(range(1, len(seqs(sent)) + 1))
    delivery.accepted("e1", 10, 0.1)
    assert seqs(all_of(delivery, 0.2)) == [len(seqs(sent)) + n for n in range(1, 11)]


def test_an_event_larger_than_a_message_should_be_goes_alone(outbox: Outbox) -> None:
    delivery = Delivery(outbox, "decision", 1.0)
    fill(outbox, 2, size=300_000)
    assert [len(s.events) for s in all_of(delivery, 0.0)] == [1, 1]


def test_events_of_two_epochs_never_share_a_message(tmp_path: Path) -> None:
    with open_outbox(tmp_path) as before:
        fill(before, 3)
    with open_outbox(tmp_path, boot="another", epoch="e2") as outbox:
        fill(outbox, 2)
        sent = all_of(Delivery(outbox, "decision", 1.0), 0.0)
        assert [(s.epoch, s.oldest, len(s.events)) for s in sent] == [("e1", 1, 3), ("e2", 1, 2)]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_whatever_is_lost_on_the_way_everything_is_accepted_in_order(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    rng, now = random.Random(seed), 0.0
    with open_outbox(tmp_path_factory.mktemp("outbox")) as outbox:
        delivery, kept = Delivery(outbox, "decision", 1.0), 0
        left = 300
        for _ in range(3000):
            now += rng.uniform(0.0, 0.3)
            batch = min(left, rng.randrange(4))
            fill(outbox, batch)
            left -= batch
            if rng.random() < 0.05:
                delivery.restart()
            for submission in all_of(delivery, now):
                first = submission.events[0].seq
                assert submission.oldest <= kept + 1  # nothing was let go before it was kept
                if rng.random() < 0.7 and first <= kept + 1:
                    kept = max(kept, submission.events[-1].seq)
            if rng.random() < 0.5:
                delivery.accepted("e1", kept, now)
            if not left and not len(outbox):
                break
        assert kept == 300
        assert len(outbox) == 0
