"""The audit log: what it keeps, what it finds, and what it cannot."""

import errno
import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from skerry import audit
from skerry.audit import LEAST_BYTES, SEGMENTS, WAITING, AuditLog, Entry, Head, Stamp, entries, verify
from skerry.errors import Unavailable
from store_disks import FailingDisk, QuickDisk

LONG = "x" * 3000
"""Two such reasons fill a segment of the smallest log."""


class Clock:
    """A second later at each look."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> Stamp:
        self.now += 1
        return Stamp(
            f"2026-01-01T00:{self.now // 60 % 60:02}:{self.now % 60:02}.000Z", "boot-1", self.now * 1000
        )


def opened(folder: Path, disk: QuickDisk | None = None, limit: int = LEAST_BYTES) -> AuditLog:
    return AuditLog(folder, limit, stamp=Clock(), disk=disk or QuickDisk())


def filled(folder: Path, count: int = 5, reason: str = "as asked for") -> Head:
    log = opened(folder)
    for n in range(count):
        assert log.append("step", slot="gate", model="parts", step=f"{n}", reason=reason)
    log.close()
    return log.head


def lines(folder: Path) -> list[bytes]:
    (path,) = folder.iterdir()
    return path.read_bytes().splitlines(keepends=True)


def write(folder: Path, content: list[bytes]) -> None:
    (path,) = folder.iterdir()
    path.write_bytes(b"".join(content))


def test_an_entry_carries_the_hash_of_the_one_before_and_its_own(tmp_path: Path) -> None:
    head = filled(tmp_path)
    previous = "0" * 64
    for number, line in enumerate(lines(tmp_path), 1):
        content = json.loads(line)
        claimed = content.pop("hash")
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert claimed == hashlib.sha256(text.encode()).hexdigest()
        assert (content["number"], content["previous"]) == (number, previous)
        previous = claimed
    assert head == Head(5, previous)


def test_what_was_appended_is_read_again(tmp_path: Path) -> None:
    log = opened(tmp_path / "deep" / "audit")
    entry = log.append(
        "refused",
        slot="gate",
        model="parts",
        version="1.2.0",
        digest="ab" * 32,
        reason='é\n"\\\0\ud800',
        spare=None,
    )
    assert entry is not None
    assert log.entries() == (entry,)
    assert entry.fields["reason"] == 'é\n"\\\0\\ud800'
    assert "spare" not in entry.fields
    again = opened(tmp_path / "deep" / "audit")
    assert again.fault is not None, "one process at a time"
    log.close()
    assert again.append("refreshed", root=3, targets=7) is not None
    assert [e.number for e in entries(tmp_path / "deep" / "audit")] == [1, 2]


def test_entries_tell_the_boot_and_how_long_it_had_lasted(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, disk=QuickDisk())
    one, two = log.append("scrubbed"), log.append("scrubbed")
    assert one is not None
    assert two is not None
    assert one.boot == two.boot != ""
    assert one.monotonic_ms <= two.monotonic_ms
    assert one.at.endswith("Z")


@pytest.mark.parametrize("what", [*audit.OWN, "", "Step", "a b", "step\n"])
def test_words_of_the_log_itself_and_what_is_no_word_are_not_taken(tmp_path: Path, what: Any) -> None:
    with pytest.raises(ValueError, match="expected a word"):
        opened(tmp_path).append(what)


def test_text_that_is_too_long_is_cut_and_too_much_of_it_refused(tmp_path: Path) -> None:
    log = opened(tmp_path)
    entry = log.append("refused", reason="é" * 5000, model="parts")
    assert entry is not None
    assert entry.fields == {"model": "parts", "reason": "é" * 399 + "…"}
    with pytest.raises(ValueError, match="at most"):
        log.append("refused", **{f"f{n}": "x" * 100 for n in range(60)})
    with pytest.raises(ValueError, match="expected text and numbers"):
        log.append("refused", reason=object())  # type: ignore[arg-type]  # what the test is about
    assert log.append("refused", reason=float("nan")) is not None
    assert not verify(tmp_path).problems


def test_every_byte_that_is_changed_is_found(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        report = verify(tmp_path)
        assert report.problems or (report.unfinished and at == len(whole) - 1), f"byte {at}"
    path.write_bytes(whole)
    assert verify(tmp_path).problems == ()


def removed(content: list[bytes]) -> None:
    del content[2]


def removed_first(content: list[bytes]) -> None:
    del content[0]


def swapped(content: list[bytes]) -> None:
    content[1], content[2] = content[2], content[1]


def repeated(content: list[bytes]) -> None:
    content.insert(2, content[1])


def inserted(content: list[bytes]) -> None:
    first = json.loads(content[1])
    stamp = Stamp(first["at"], first["boot"], first["monotonic_ms"])
    content.insert(2, audit.seal(Head(2, first["hash"]), stamp, "confirmed", {"model": "other"})[1])


def resealed(content: list[bytes]) -> None:
    """Changed, and given the hash that goes with it."""
    old = msgspec.json.decode(content[1], type=Entry)
    stamp = Stamp(old.at, old.boot, old.monotonic_ms)
    content[1] = audit.seal(Head(1, old.previous), stamp, "confirmed", {"model": "other"})[1]


def rooted(content: list[bytes]) -> None:
    """The first one follows something."""
    old = msgspec.json.decode(content[0], type=Entry)
    stamp = Stamp(old.at, old.boot, old.monotonic_ms)
    content[:] = [audit.seal(Head(0, "ab" * 32), stamp, old.what, old.fields)[1]]


def renumbered(content: list[bytes]) -> None:
    old = msgspec.json.decode(content[-1], type=Entry)
    stamp = Stamp(old.at, old.boot, old.monotonic_ms)
    content[-1] = audit.seal(Head(8, old.previous), stamp, old.what, old.fields)[1]


def spaced(content: list[bytes]) -> None:
    content[1] = content[1].replace(b",", b", ", 1)


def doubled(content: list[bytes]) -> None:
    content[1] = content[1].replace(b'"at":', b'"at":"2020-01-01T00:00:00.000Z","at":', 1)


@pytest.mark.parametrize(
    "change",
    [removed, removed_first, swapped, repeated, inserted, resealed, rooted, renumbered, spaced, doubled],
)
def test_an_entry_removed_reordered_or_inserted_is_found(
    tmp_path: Path, change: Callable[[list[bytes]], None]
) -> None:
    filled(tmp_path)
    content = lines(tmp_path)
    change(content)
    write(tmp_path, content)
    assert verify(tmp_path).problems


def test_entries_missing_at_the_end_are_found_by_a_head_that_was_reported_and_by_nothing_else(
    tmp_path: Path,
) -> None:
    head = filled(tmp_path)
    write(tmp_path, lines(tmp_path)[:-1])
    assert verify(tmp_path).problems == ()
    assert verify(tmp_path, head).problems == ("expected entry 5, which was reported, got 4 as the last",)


def test_a_chain_written_anew_is_found_by_a_head_that_was_reported_and_by_nothing_else(
    tmp_path: Path,
) -> None:
    head = filled(tmp_path / "true")
    log = opened(tmp_path / "false")
    for _ in range(9):
        log.append("confirmed", model="other")
    assert verify(tmp_path / "false").problems == ()
    (problem,) = verify(tmp_path / "false", head).problems
    assert problem.startswith(f"entry 5: expected {head.hash[:16]}, as was reported")


def test_a_log_verifies_against_every_head_it_has_had(tmp_path: Path) -> None:
    log = opened(tmp_path)
    heads = [Head(), *(entry.head for n in range(60) if (entry := log.append("step", reason=LONG)))]
    first = entries(tmp_path)[0].number
    for head in heads:
        if head.number in (0, *range(first - 1, 99)):
            assert verify(tmp_path, head).problems == ()
        else:
            assert "what it names is dropped" in verify(tmp_path, head).problems[0]


def test_the_log_stays_within_its_limit_and_tells_what_it_dropped(tmp_path: Path) -> None:
    log = opened(tmp_path)
    for n in range(200):
        assert log.append("step", step=str(n), reason=LONG[: n * 17 % 3000])
        assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= LEAST_BYTES
    assert len(list(tmp_path.iterdir())) == SEGMENTS
    there = entries(tmp_path)
    assert verify(tmp_path, log.head).problems == ()
    assert there[0].number > 1
    drops = [e.fields for e in there if e.what == "dropped"]
    assert {"through": there[0].number - 1, "hash": there[0].previous} in drops


def test_an_oldest_segment_that_nobody_dropped_is_missed(tmp_path: Path) -> None:
    log = opened(tmp_path)
    for _ in range(40):
        log.append("step", reason=LONG)
    min(tmp_path.iterdir()).unlink()
    (problem,) = verify(tmp_path).problems
    assert problem.startswith("expected entry 1, or word of what was dropped")


@pytest.mark.parametrize(
    "change", ["removed", "renamed", "emptied", "swapped", "link", "folder", "stranger", "alias"]
)
def test_segments_removed_renamed_or_added_are_found(tmp_path: Path, change: str) -> None:
    head = filled(tmp_path / "log", 8, LONG)
    one, two, *_ = paths = sorted((tmp_path / "log").iterdir())
    assert len(paths) > 2
    match change:
        case "removed":
            two.unlink()
        case "renamed":
            two.rename(two.with_name("00000099.jsonl"))
        case "emptied":
            two.write_bytes(b"")
        case "swapped":
            content = one.read_bytes()
            one.write_bytes(two.read_bytes())
            two.write_bytes(content)
        case "link":
            two.rename(tmp_path / "elsewhere")
            two.symlink_to(tmp_path / "elsewhere")
        case "folder":
            two.unlink()
            two.mkdir()
        case "stranger":
            (tmp_path / "log" / "notes.txt").write_bytes(b"")
        case "alias":
            shutil.copy(two, two.with_name("0000000003.jsonl"))
    assert verify(tmp_path / "log", head).problems


def test_what_a_power_cut_left_of_an_entry_is_cut_off_and_said(tmp_path: Path) -> None:
    head = filled(tmp_path)
    content = lines(tmp_path)
    write(tmp_path, [*content[:-1], content[-1][:100]])
    report = verify(tmp_path)
    assert (report.problems, report.unfinished, report.head.number) == ((), 100, 4)
    with capture_logs() as logs:
        log = opened(tmp_path)
    assert [e["event"] for e in logs] == ["audit.cut"]
    last = log.entries()[-1]
    assert (last.number, last.what) == (5, "cut")
    assert last.fields == {"bytes": 100, "sha256": hashlib.sha256(content[-1][:100]).hexdigest()}
    assert verify(tmp_path).problems == ()
    assert verify(tmp_path, head).problems, "an entry that was durable is no torn one"


def test_a_damaged_log_goes_on_and_says_so_once(tmp_path: Path) -> None:
    filled(tmp_path, 3, LONG)
    path = min(tmp_path.iterdir())
    path.write_bytes(path.read_bytes().replace(b"xxx", b"xyx", 1))
    for start in range(4):
        with capture_logs():
            log = opened(tmp_path)
        assert log.append("step", step=str(start)) is not None
        log.close()
    there = entries(tmp_path)
    assert [e.what for e in there].count("damaged") == 1
    assert [e.fields.get("step") for e in there[-3:]] == ["1", "2", "3"]
    assert verify(tmp_path).problems


@pytest.mark.parametrize("what", ["garbage", "link", "folder", "long"])
def test_a_log_whose_end_is_beyond_repair_goes_on_beside_it(tmp_path: Path, what: str) -> None:
    filled(tmp_path / "log", 3, LONG)
    path = max((tmp_path / "log").iterdir())
    match what:
        case "garbage":
            path.write_bytes(b"a\nb\nc")
        case "long":
            path.write_bytes(path.read_bytes() + bytes(9000))
        case _:
            path.unlink()
            path.symlink_to("/etc/hostname") if what == "link" else path.mkdir()
    for start in range(3):
        with capture_logs():
            log = opened(tmp_path / "log")
        assert log.append("step", step=str(start)) is not None
        assert log.fault is None
        log.close()
    assert entries(tmp_path / "log")[-1].fields == {"step": "2"}
    assert len(list((tmp_path / "log").iterdir())) == 3, "one more, and not one at each start"
    assert verify(tmp_path / "log").problems


def test_a_full_disk_stops_nobody_and_what_waited_is_kept_in_order(tmp_path: Path) -> None:
    full = {"full": False}
    disk = FailingDisk(lambda name, _nth: errno.ENOSPC * (full["full"] and name == "write"))
    log = opened(tmp_path, disk)
    first = log.append("step", step="0")
    full["full"] = True
    with capture_logs() as logs:
        assert [log.append("step", step=str(n)) for n in range(1, 4)] == [None] * 3
    assert [e["event"] for e in logs] == ["audit.not_kept"], "once"
    assert log.fault is not None
    assert "No space left" in log.fault
    assert first is not None
    assert (log.head, log.waiting) == (first.head, 3)
    full["full"] = False
    with capture_logs():
        last = log.append("step", step="4")
    assert last == log.entries()[-1]
    assert [e.fields["step"] for e in log.entries()] == list("01234")
    assert (log.fault, log.waiting) == (None, 0)
    assert verify(tmp_path, log.head).problems == ()


@pytest.mark.parametrize("what", ["folder", "segment"])
def test_a_log_that_is_removed_under_its_writer_goes_on_with_what_is_there(tmp_path: Path, what: str) -> None:
    log = opened(tmp_path / "log")
    for _ in range(3):
        assert log.append("step", reason=LONG) is not None
    head = log.head
    shutil.rmtree(tmp_path / "log") if what == "folder" else max((tmp_path / "log").iterdir()).unlink()
    with capture_logs():
        assert log.append("step", step="lost from sight") is None
        assert log.append("step", step="last") is not None
    assert [e.fields.get("step") for e in log.entries()][-2:] == ["lost from sight", "last"]
    assert verify(tmp_path / "log").problems == ()
    assert verify(tmp_path / "log", head).problems, "it is noticed elsewhere"


def test_entries_beyond_what_can_wait_are_counted(tmp_path: Path) -> None:
    full = {"full": True}
    log = opened(tmp_path, FailingDisk(lambda _name, _nth: errno.EIO * full["full"]), 4 * 1024 * 1024)
    for n in range(WAITING + 7):
        assert log.append("step", step=str(n)) is None
    full["full"] = False
    assert log.flush()
    there = log.entries()
    assert [e.fields.get("step") for e in there[:-1]] == [str(n) for n in range(WAITING)]
    assert (there[-1].what, there[-1].fields) == ("missed", {"count": 7})


def test_entries_of_many_threads_make_one_chain(tmp_path: Path) -> None:
    log = opened(tmp_path, limit=1024 * 1024)
    threads = [
        threading.Thread(target=lambda: [log.append("step") for _ in range(50)], daemon=True)
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verify(tmp_path, log.head) == replace(verify(tmp_path), entries=200)


def test_a_log_verifies_while_it_is_written_and_drops_its_oldest(tmp_path: Path) -> None:
    log = opened(tmp_path)
    assert log.append("step") is not None
    writer = threading.Thread(
        target=lambda: [log.append("step", reason=LONG) for _ in range(150)], daemon=True
    )
    writer.start()
    reports = [verify(tmp_path)]
    while writer.is_alive():
        reports.append(verify(tmp_path))
        writer.join(0.005)  # or the interpreter's lock is all that is tested
    assert [each.problems for each in reports if each.problems] == []
    assert verify(tmp_path, log.head).problems == ()


def test_a_limit_that_holds_no_segments_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected 65536 or more, got 65535"):
        AuditLog(tmp_path, LEAST_BYTES - 1)


def test_no_folder_is_told_apart_from_an_empty_one(tmp_path: Path) -> None:
    assert verify(tmp_path).head == Head()
    with pytest.raises(Unavailable, match="expected the folder of an audit log"):
        verify(tmp_path / "none")


def test_a_head_is_written_and_read_as_text() -> None:
    head = Head(12, "ab" * 32)
    assert Head.parse(str(head)) == head
    for text in ("", "12", f"x:{'ab' * 32}", f"12:{'ab' * 31}", f"12:{'AB' * 32}", f"{'9' * 40}:{'ab' * 32}"):
        with pytest.raises(ValueError, match="expected NUMBER:HASH"):
            Head.parse(text)


def test_a_line_is_read_as_what_it_was_written_as() -> None:
    entry, line = audit.seal(Head(), Clock()(), "step", {"n": 1.0, "flag": True})
    assert isinstance(entry, Entry)
    assert audit._parsed(line) == entry
