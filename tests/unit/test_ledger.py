import os
import random
import signal
import subprocess
import sys
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from skerry.errors import Unavailable
from skerry.ledger import CameraLedger, EventLedger, Tally, balanced, read_tally

SLOT = 128 * 1024

EVENTS = EventLedger(decided=10, accepted=8, delivered=5, waiting=2, evicted={"full": 1}, unaccepted=2)
CAMERA = CameraLedger(captured=10, inferred=6, failed=1, dropped={"stale": 2, "gone": 1})


def test_counts_are_there_after_reopening(tmp_path):
    with Tally(tmp_path / "deep" / "tally") as tally:
        tally.add({"a": 1, "b": 2})
        tally.add({"a": 1})
        tally.set({"c": -5})
    with Tally(tmp_path / "deep" / "tally") as tally:
        assert tally.snapshot() == {"a": 2, "b": 2, "c": -5}
        assert tally["never"] == 0
    assert read_tally(tmp_path / "deep" / "tally") == {"a": 2, "b": 2, "c": -5}


def test_missing_file_reads_as_empty_and_is_not_made(tmp_path):
    assert read_tally(tmp_path / "none") == {}
    assert not (tmp_path / "none").exists()


def test_fresh_file_reads_as_empty_without_complaint(tmp_path):
    with capture_logs() as logs, Tally(tmp_path / "tally"):
        assert read_tally(tmp_path / "tally") == {}
    assert logs == []


WRITER = """
import sys
from pathlib import Path
from skerry.ledger import Tally
tally = Tally(Path(sys.argv[1]))
n = 0
while True:
    tally.add({"left": 1, "right": 1, **{f"filler{i}": 1 for i in range(50)}})
    n += 1
    if n % 100 == 0:
        print(n, flush=True)
"""


@pytest.fixture
def writer(tmp_path):
    """A process that adds 1 to `left` and to `right` at once, for ever."""
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "tally")], stdout=subprocess.PIPE, text=True
    )
    yield child
    child.kill()
    child.wait()
    child.stdout.close()


def test_kill_with_9_leaves_both_sides_of_an_add_or_neither(tmp_path, writer):
    said = int(writer.stdout.readline())
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    rest = writer.stdout.read().split()
    counts = read_tally(tmp_path / "tally")
    assert counts["left"] == counts["right"]
    assert counts["left"] >= int(rest[-1] if rest else said)


def test_reading_beside_a_writer_at_full_speed_sees_whole_and_growing_counts(tmp_path, writer):
    writer.stdout.readline()
    before = 0
    for _ in range(300):
        counts = read_tally(tmp_path / "tally")
        assert counts["left"] == counts["right"]
        assert counts["left"] >= before
        before = counts["left"]
    assert before > 100


@pytest.mark.parametrize("damage", ["zeros", "noise", "cut"])
def test_torn_newest_slot_falls_back_to_the_one_before(tmp_path, damage):
    path = tmp_path / "tally"
    with Tally(path) as tally:
        for _ in range(5):
            tally.add({"a": 1})
    content = bytearray(path.read_bytes())
    at = (5 % 2) * SLOT
    if damage == "zeros":
        content[at : at + 64] = bytes(64)
    elif damage == "noise":
        content[at : at + 4096] = random.Random(1).randbytes(4096)
    else:
        content[at + 20 :] = b"" if at else bytes(len(content) - at - 20)
    path.write_bytes(content)
    assert read_tally(path) == {"a": 4}
    with Tally(path) as tally:
        tally.add({"a": 10})
    assert read_tally(path) == {"a": 14}


def test_one_digit_that_rotted_is_noticed(tmp_path):
    path = tmp_path / "tally"
    with Tally(path) as tally:
        tally.set({"a": 1111})
        tally.set({"a": 2222})
    path.write_bytes(path.read_bytes().replace(b"2222", b"2922"))
    assert read_tally(path) == {"a": 1111}


@pytest.mark.parametrize("content", [random.Random(2).randbytes(2 * SLOT), b"x" * 10, b"\xff" * 3 * SLOT])
def test_tally_damaged_beyond_use_starts_at_zero_and_says_so(tmp_path, content):
    path = tmp_path / "tally"
    path.write_bytes(content)
    with capture_logs() as logs, Tally(path) as tally:
        assert tally.snapshot() == {}
        tally.add({"a": 1})
    assert [entry["event"] for entry in logs] == ["tally.unreadable"]
    assert read_tally(path) == {"a": 1}


def test_whole_slot_that_is_no_table_of_counts_is_not_believed(tmp_path):
    payload = b'["not", "counts"]'
    head = (7).to_bytes(8, "little") + len(payload).to_bytes(4, "little")
    crc = zlib.crc32(payload, 7).to_bytes(4, "little")
    (tmp_path / "tally").write_bytes(head + crc + payload)
    with capture_logs() as logs:
        assert read_tally(tmp_path / "tally") == {}
    assert logs


def test_more_counts_than_fit_are_refused(tmp_path):
    with Tally(tmp_path / "tally") as tally, pytest.raises(ValueError, match="expected at most 131072 bytes"):
        tally.add({f"{n:0200}": 1 for n in range(1000)})


def test_place_that_cannot_hold_a_tally_is_unavailable(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="cannot keep the tally"):
        Tally(tmp_path / "file" / "tally")
    (tmp_path / "tally").mkdir()
    with pytest.raises(Unavailable, match="cannot keep the tally"):
        Tally(tmp_path / "tally")


def test_generation_beyond_32_bits_goes_on(tmp_path):
    """At 1,000 adds a second it takes 49 days to get there."""
    path = tmp_path / "tally"
    with Tally(path) as tally:
        tally._generation = 2**32 - 2
        for _ in range(4):
            tally.add({"a": 1})
    assert read_tally(path) == {"a": 4}


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(-5, 5), max_size=3), max_size=10))
def test_counts_are_the_sum_of_what_was_added(tmp_path_factory, changes):
    path = tmp_path_factory.mktemp("tally") / "tally"
    with Tally(path) as tally:
        for change in changes:
            tally.add(change)
    got = read_tally(path)
    assert all(got.get(name, 0) == sum(c.get(name, 0) for c in changes) for name in "abc")


def test_ledger_that_accounts_for_everything_balances():
    assert balanced({"gate": CAMERA}, EVENTS)


@pytest.mark.parametrize(
    "camera",
    [
        CameraLedger(captured=11, inferred=6, failed=1, dropped={"stale": 3}),
        CameraLedger(captured=9, inferred=6, failed=1, dropped={"stale": 3}),
        CameraLedger(captured=1, inferred=0, failed=0, dropped={}),
    ],
)
def test_one_frame_lost_or_doubled_unbalances_it(camera):
    assert not balanced({"gate": CAMERA, "hall": camera}, EVENTS)


@pytest.mark.parametrize(
    "term", ["decided", "accepted", "delivered", "waiting", "unaccepted", "refused", "carried_over"]
)
def test_one_event_more_in_any_term_unbalances_it(term):
    fields = {name: getattr(EVENTS, name) for name in EVENTS.__struct_fields__}
    assert not balanced({}, EventLedger(**{**fields, term: fields[term] + 1}))


def test_events_of_an_earlier_run_are_carried_over():
    assert balanced(
        {},
        EventLedger(
            decided=1, accepted=3, delivered=6, waiting=0, evicted={}, carried_over=3, unaccepted_before=2
        ),
    )
