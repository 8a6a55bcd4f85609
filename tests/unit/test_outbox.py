from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from skerry.errors import Unavailable
from skerry.messages import LANES, Event, Lane
from skerry.outbox import Outbox, Outboxes

SOURCE = "skerry/test/decision"


class Epochs:
    """Names of epochs: e1, e2, ..."""

    def __init__(self) -> None:
        self.drawn = 0

    def __call__(self) -> str:
        self.drawn += 1
        return f"e{self.drawn}"


def open_outbox(
    folder: Path, draw: Epochs, capacity: int = 1000, boot: str = "boot", max_bytes: int = 1 << 28
) -> Outbox:
    return Outbox.open(folder, "event", SOURCE, capacity, boot=boot, draw=draw, max_bytes=max_bytes)


def add(outbox: Outbox, n: int = 0, pad: int = 0) -> Event | None:
    return outbox.add(
        type_="skerry.test", subject="belt/rule", time="2026-01-01T00:00:00.000Z", monotonic=n,
        data={"n": n, "pad": "x" * pad},
    )  # fmt: skip


def names(events: list[Event]) -> list[tuple[str, int]]:
    return [(e.epoch, e.seq) for e in events]


def test_an_event_has_its_name_and_says_what_was_added(tmp_path: Path) -> None:
    with open_outbox(tmp_path, Epochs()) as outbox:
        event = add(outbox, 7)
        assert event is not None
        assert (event.id, event.epoch, event.seq, event.source) == ("e1-1", "e1", 1, SOURCE)
        assert (event.bootid, event.lane, event.data["n"]) == ("boot", "event", 7)
        assert outbox.pending(10) == [event]


def test_what_waits_is_there_after_opening_again_with_the_same_names(tmp_path: Path) -> None:
    draw = Epochs()
    with open_outbox(tmp_path, draw) as outbox:
        events = [add(outbox, n) for n in range(5)]
        outbox.accepted("e1", 2)
    with open_outbox(tmp_path, draw) as again:
        assert again.pending(10) == events[2:]
        assert (again.epoch, again.seq, again.oldest, again.added) == ("e1", 5, 3, 5)
        assert names([add(again)]) == [("e1", 6)]


def test_a_full_outbox_refuses_without_taking_a_number(tmp_path: Path) -> None:
    with open_outbox(tmp_path, Epochs(), capacity=2) as outbox:
        assert [add(outbox) is not None for _ in range(4)] == [True, True, False, False]
        assert (outbox.seq, outbox.refused, len(outbox)) == (2, 2, 2)
        outbox.accepted("e1", 1)
        assert names([add(outbox)]) == [("e1", 3)]


def test_waiting_bytes_have_a_bound_too(tmp_path: Path) -> None:
    with open_outbox(tmp_path, Epochs(), max_bytes=10_000) as outbox:
        taken = sum(add(outbox, pad=2000) is not None for _ in range(20))
        assert taken == 4
        outbox.accepted("e1", 4)
        assert add(outbox, pad=2000) is not None


@pytest.mark.parametrize(("epoch", "seq"), [("e1", 4), ("e1", 10**30), ("another", 1), ("", 0)])
def test_a_watermark_that_cannot_be_true_changes_nothing(tmp_path: Path, epoch: str, seq: int) -> None:
    with open_outbox(tmp_path, Epochs()) as outbox:
        for n in range(3):
            add(outbox, n)
        assert outbox.accepted(epoch, seq) is None
        assert len(outbox) == 3


def test_a_watermark_again_or_below_frees_nothing(tmp_path: Path) -> None:
    with open_outbox(tmp_path, Epochs()) as outbox:
        for n in range(3):
            add(outbox, n)
        assert [outbox.accepted("e1", seq) for seq in (2, 2, 1, 3, 3)] == [2, 0, 0, 1, 0]


def test_pending_comes_in_parts(tmp_path: Path) -> None:
    with open_outbox(tmp_path, Epochs()) as outbox:
        for n in range(10):
            add(outbox, n, pad=1000)
        assert [e.seq for e in outbox.pending(3)] == [1, 2, 3]
        assert [e.seq for e in outbox.pending(3, skip=8)] == [9, 10]
        assert [e.seq for e in outbox.pending(10, max_bytes=3000)] == [1, 2]
        assert [e.seq for e in outbox.pending(10, max_bytes=1)] == [1]
        assert outbox.pending(3, skip=10) == []


def test_another_boot_begins_an_epoch_and_the_old_events_keep_their_names(tmp_path: Path) -> None:
    draw = Epochs()
    with open_outbox(tmp_path, draw) as outbox:
        for n in range(3):
            add(outbox, n)
    with open_outbox(tmp_path, draw, boot="another") as outbox:
        add(outbox)
        assert names(outbox.pending(10)) == [("e1", 1), ("e1", 2), ("e1", 3)]
        assert outbox.oldest == 1
        assert outbox.accepted("e1", 3) == 3
        assert names(outbox.pending(10)) == [("e2", 1)]
        assert outbox.added == 4
    with open_outbox(tmp_path, draw, boot="another") as outbox:
        assert (outbox.epoch, outbox.seq, outbox.added) == ("e2", 1, 4)


def test_another_source_begins_an_epoch(tmp_path: Path) -> None:
    draw = Epochs()
    with open_outbox(tmp_path, draw) as outbox:
        add(outbox)
    with Outbox.open(tmp_path, "event", "skerry/renamed/decision", 10, boot="boot", draw=draw) as outbox:
        add(outbox)
        assert [(e.epoch, e.source) for e in (*outbox.pending(9), *outbox.pending(9, skip=1))] == [
            ("e1", SOURCE), ("e2", "skerry/renamed/decision"),
        ]  # fmt: skip


def test_a_later_epoch_may_be_accepted_first(tmp_path: Path) -> None:
    draw = Epochs()
    with open_outbox(tmp_path, draw) as outbox:
        add(outbox)
    with open_outbox(tmp_path, draw, boot="b2") as outbox:
        add(outbox)
        add(outbox)
        assert outbox.accepted("e2", 1) == 1
        assert names(outbox.pending(9)) == [("e1", 1)]
    with open_outbox(tmp_path, draw, boot="b2") as outbox:
        assert names([*outbox.pending(9), *outbox.pending(9, skip=1)]) == [("e1", 1), ("e2", 2)]
        assert (outbox.epoch, outbox.seq) == ("e2", 2)


def test_a_journal_that_is_gone_begins_an_epoch_with_the_count_it_is_given(tmp_path: Path) -> None:
    outbox = Outbox.open(tmp_path, "event", SOURCE, 10, boot="b", draw=lambda: "fresh", added_before=41)
    assert (outbox.epoch, outbox.seq, outbox.added) == ("fresh", 0, 41)
    outbox.close()


@pytest.mark.parametrize("cut", [1, 5, 9, 50, 200])
def test_a_torn_end_is_dropped_and_no_number_names_two_events(tmp_path: Path, cut: int) -> None:
    draw = Epochs()
    with open_outbox(tmp_path, draw) as outbox:
        events = [add(outbox, n) for n in range(4)]
    path = tmp_path / "journal"
    os.truncate(path, path.stat().st_size - cut)
    with open_outbox(tmp_path, draw) as outbox:
        assert outbox.pending(9) == events[:3]
        assert outbox.damaged > 0
        again = add(outbox)
        assert again is not None
        assert again.id not in {e.id for e in events if e}


def test_whatever_byte_is_wrong_the_outbox_opens_with_what_came_before(tmp_path: Path) -> None:
    draw, rng = Epochs(), random.Random(4)
    with open_outbox(tmp_path, draw) as outbox:
        events = [add(outbox, n) for n in range(6)]
    whole = (tmp_path / "journal").read_bytes()
    for _ in range(200):
        at = rng.randrange(len(whole))
        damaged = whole[:at] + bytes([whole[at] ^ rng.randrange(1, 256)]) + whole[at + 1 :]
        (tmp_path / "journal").write_bytes(damaged)
        with open_outbox(tmp_path, draw) as outbox:
            kept = outbox.pending(9)
            assert kept == events[: len(kept)]
            assert len(kept) < 6
            assert names([add(outbox)])[0][0] == f"e{draw.drawn}"


@pytest.mark.parametrize("content", [b"", b"E", b"\0" * 4096, b"hello, world" * 99, os.urandom(5000)])
def test_a_file_that_is_no_journal_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "journal").write_bytes(content)
    with open_outbox(tmp_path, Epochs()) as outbox:
        assert names([add(outbox)]) == [("e1", 1)]


def test_accepted_events_do_not_stay_in_the_file(tmp_path: Path) -> None:
    draw = Epochs()
    with open_outbox(tmp_path, draw) as outbox:
        for n in range(20_000):
            add(outbox, n)
            outbox.accepted("e1", n - 9)
            assert (tmp_path / "journal").stat().st_size < 3 * 1024 * 1024
        waiting = outbox.pending(99)
    with open_outbox(tmp_path, draw) as again:
        assert again.pending(99) == waiting
        assert [e.seq for e in waiting] == list(range(19_991, 20_001))
        assert (again.seq, again.added) == (20_000, 20_000)


def test_one_process_at_a_time_has_an_outbox(tmp_path: Path) -> None:
    with open_outbox(tmp_path, Epochs()), pytest.raises(Unavailable, match="expected to be alone"):
        open_outbox(tmp_path, Epochs())
    open_outbox(tmp_path, Epochs()).close()


def test_a_disk_that_takes_no_more_refuses_and_leaves_the_journal_whole(tmp_path: Path) -> None:
    """A limit on the file's size stands for a full disk; the child ignores the signal that comes with it."""
    code = f"""
import resource, signal, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from skerry.outbox import Outbox
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
outbox = Outbox.open(Path({str(tmp_path)!r}), "event", {SOURCE!r}, 1000, boot="boot", draw=lambda: "e1")
def add():
    return outbox.add(type_="t", subject="s", time="t", monotonic=1, data={{"pad": "x" * 900}})
taken = sum(add() is not None for _ in range(50))
print(taken, outbox.refused, outbox.seq)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    taken, refused, seq = map(int, done.stdout.splitlines()[-1].split())
    assert 5 < taken < 20
    assert (taken + refused, seq) == (50, taken)
    with open_outbox(tmp_path, Epochs()) as outbox:
        assert (outbox.damaged, len(outbox), outbox.seq) == (0, taken, taken)


CHILD = """
import itertools, secrets, sys
sys.path[:0] = {path!r}
from pathlib import Path
from skerry.outbox import Outbox
def draw():
    return secrets.token_hex(4)
outbox = Outbox.open(Path(sys.argv[1]), "event", "skerry/test/decision", 10**6, boot="boot", draw=draw)
for n in itertools.count():
    data = {{"pad": "x" * (n * 97 % 5000)}}
    event = outbox.add(type_="t", subject="s", time="t", monotonic=n, data=data)
    sys.stdout.write(f"{{event.epoch}} {{event.seq}}\\n")
    sys.stdout.flush()
    if n % 7 == 0 and event.seq > 40:
        sys.stdout.write(f"accepted {{event.epoch}} {{event.seq - 40}}\\n")
        sys.stdout.flush()
        outbox.accepted(event.epoch, event.seq - 40)
"""


def test_nothing_that_was_added_is_missing_after_kill_9(tmp_path: Path) -> None:
    rng = random.Random(9)
    added: set[tuple[str, int]] = set()
    accepted: dict[str, int] = {}
    for _ in range(8):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD.format(path=sys.path), str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(rng.uniform(0.02, 0.2))  # the moment of the kill is what is varied
        child.send_signal(signal.SIGKILL)
        for line in [first, *child.stdout.read().splitlines(keepends=True)]:
            words = line.split()
            if not line.endswith("\n"):
                continue  # the kill cut what it said
            if words[0] == "accepted":
                accepted[words[1]] = int(words[2])
            else:
                added.add((words[0], int(words[1])))
        child.wait()
        child.stdout.close()
        with open_outbox(tmp_path, Epochs(), capacity=10**6) as outbox:
            waiting = [(e.epoch, e.seq) for e in outbox.latest(10**6)]
        left = {name for name in added if name[1] > accepted.get(name[0], 0)}
        assert left <= set(waiting)
        assert len(set(waiting)) == len(waiting)
        by_epoch: dict[str, list[int]] = {}
        for epoch, seq in waiting:
            by_epoch.setdefault(epoch, []).append(seq)
        assert all(s == list(range(s[0], s[0] + len(s))) for s in by_epoch.values())
    assert len(added) > 100


def test_events_that_wait_are_not_held_in_memory(tmp_path: Path) -> None:
    code = f"""
import resource, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from skerry.outbox import Outbox
outbox = Outbox.open(Path({str(tmp_path)!r}), "event", {SOURCE!r}, 10**6, boot="boot", draw=lambda: "e1")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for n in range(20_000):
    outbox.add(type_="t", subject="s", time="t", monotonic=1, data={{"pad": "x" * 2000}})
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 10.0  # 45 MB of events


def open_all(
    folder: Path, *lanes: Lane, draw: Epochs, capacity: int = 1000, before: dict[Lane, int] | None = None
) -> Outboxes:
    return Outboxes.open(folder, lanes, SOURCE, capacity, boot="boot", draw=draw, added_before=before or {})


def test_each_lane_has_an_epoch_and_a_numbering_of_its_own(tmp_path: Path) -> None:
    with open_all(tmp_path, "event", "alarm", "bulk", draw=Epochs()) as boxes:
        for box in (boxes["event"], boxes["alarm"], boxes["event"], boxes["bulk"], boxes["event"]):
            add(box)
        assert [box.lane for box in boxes] == ["alarm", "event", "bulk"], "highest first"
        waiting = [(e.lane, e.epoch, e.seq) for box in boxes for e in box.pending(9)]
        assert waiting == [
            ("alarm", "e1", 1), ("event", "e2", 1), ("event", "e2", 2), ("event", "e2", 3), ("bulk", "e3", 1),
        ]  # fmt: skip
        assert (boxes.waiting, boxes.added) == (5, 5)
        assert boxes.lane_of == {"e1": "alarm", "e2": "event", "e3": "bulk"}


def test_a_lane_that_is_not_used_any_more_is_opened_for_what_waits_in_it(tmp_path: Path) -> None:
    draw = Epochs()
    with open_all(tmp_path, "event", draw=draw) as boxes:
        left = add(boxes["event"])
    with open_all(tmp_path, "alarm", draw=draw) as boxes:
        assert [box.lane for box in boxes] == ["alarm", "event"]
        assert boxes["event"].pending(9) == [left]
        assert boxes.lane_of == {"e1": "event", "e2": "alarm"}


def test_a_lane_that_nobody_ever_used_has_no_file(tmp_path: Path) -> None:
    with open_all(tmp_path, "event", draw=Epochs()) as boxes, pytest.raises(KeyError):
        boxes["alarm"]
    assert [path.name for path in tmp_path.iterdir()] == ["outbox-event"]


def test_a_full_lane_refuses_alone(tmp_path: Path) -> None:
    with open_all(tmp_path, *LANES, draw=Epochs(), capacity=2) as boxes:
        for _ in range(5):
            add(boxes["bulk"])
        assert all(add(boxes[lane]) is not None for lane in ("alarm", "event", "telemetry"))
        assert [box.refused for box in boxes] == [0, 0, 0, 3]
        assert [box.seq for box in boxes] == [1, 1, 1, 2]


def test_earlier_epochs_that_wait_have_a_lane_too(tmp_path: Path) -> None:
    draw = Epochs()
    with open_all(tmp_path, "event", "alarm", draw=draw) as boxes:
        add(boxes["event"])
    with Outboxes.open(tmp_path, ["event"], SOURCE, 9, boot="another", draw=draw) as boxes:
        assert boxes.lane_of == {"e2": "event", "e3": "alarm", "e4": "event"}


def test_a_journal_that_is_gone_gets_its_own_lanes_count(tmp_path: Path) -> None:
    before: dict[Lane, int] = {"alarm": 3, "event": 41}
    with open_all(tmp_path, "alarm", "event", draw=Epochs(), before=before) as boxes:
        assert [box.added for box in boxes] == [3, 41]


def test_an_outbox_in_use_leaves_the_others_closed(tmp_path: Path) -> None:
    with (
        Outbox.open(tmp_path / "outbox-event", "event", SOURCE, 9, boot="boot", draw=lambda: "mine"),
        pytest.raises(Unavailable, match="expected to be alone"),
    ):
        open_all(tmp_path, "alarm", "event", draw=Epochs())
    open_all(tmp_path, "alarm", "event", draw=Epochs()).close()


class OutboxMachine(RuleBasedStateMachine):
    """The outbox against a list, with restarts, reboots and torn ends."""

    folder: Path

    @initialize()
    def begin(self) -> None:
        for path in self.folder.iterdir():
            path.unlink()
        self.draw, self.boot = Epochs(), 0
        self.waiting: list[Event] = []
        self.ever: set[str] = set()
        self.outbox = self.opened()

    def opened(self) -> Outbox:
        return open_outbox(self.folder, self.draw, capacity=12, boot=f"b{self.boot}", max_bytes=6000)

    @rule(count=st.integers(1, 8), pad=st.integers(0, 900))
    def add(self, count: int, pad: int) -> None:
        for _ in range(count):
            event = add(self.outbox, pad=pad)
            if event is not None:
                assert event.id not in self.ever
                self.ever.add(event.id)
                self.waiting.append(event)

    @rule(n=st.integers(0, 12))
    def accept(self, n: int) -> None:
        if n < len(self.waiting):
            mark = self.waiting[n]
            self.outbox.accepted(mark.epoch, mark.seq)
            self.waiting = [e for e in self.waiting if e.epoch != mark.epoch or e.seq > mark.seq]

    @rule()
    def compact(self) -> None:
        self.outbox._compact()

    @rule()
    def restart(self) -> None:
        self.outbox.close()
        self.outbox = self.opened()

    @rule()
    def reboot(self) -> None:
        self.boot += 1
        self.restart()

    @rule()
    def tear(self) -> None:
        event = add(self.outbox)
        if event is None:
            return
        self.outbox.close()
        path = self.folder / "journal"
        os.truncate(path, path.stat().st_size - 3)  # killed in the middle of writing it
        self.outbox = self.opened()

    @invariant()
    def what_waits_is_what_was_added_and_not_accepted(self) -> None:
        if hasattr(self, "outbox"):
            assert self.outbox.latest(99) == self.waiting
            assert len(self.outbox) == len(self.waiting)
            if self.waiting:
                run = self.outbox.pending(99)
                assert run == [e for e in self.waiting if e.epoch == run[0].epoch]
                assert self.outbox.oldest == self.waiting[0].seq

    def teardown(self) -> None:
        if hasattr(self, "outbox"):
            self.outbox.close()


def test_the_outbox_is_a_list_that_outlives_everything(tmp_path: Path) -> None:
    machine = type("Machine", (OutboxMachine,), {"folder": tmp_path})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=60, stateful_step_count=30, deadline=None)
    )


def test_the_journal_holds_cloudevents(tmp_path: Path) -> None:
    with open_outbox(tmp_path, Epochs()) as outbox:
        add(outbox)
        raw = msgspec.to_builtins(outbox.pending(1)[0])
        assert raw["specversion"] == "1.0"
        assert {"id", "source", "type", "time", "subject", "datacontenttype", "data"} <= set(raw)
