"""`skerry buffer`: what an operator sees of a store, and the file that is left of a box that died."""

import json
import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from events import event
from skerry.batches import split
from skerry.buffer import quarantine
from skerry.buffer.blocks import Stamp
from skerry.buffer.disk import Disk
from skerry.buffer.quarantine import Entry, Quarantine
from skerry.buffer.records import Record
from skerry.buffer.seal import Seal
from skerry.buffer.store import Store
from skerry.cli import main
from skerry.messages import Event, Gap, Lane

KEY = "ab" * 32
DOUBTFUL_NS, TRUE_NS = 5_000_000_000, 1_700_000_000_000_000_000
SOURCE = "skerry/plant/decision"


def append(store: Store, lane: Lane, first: int, last: int, *, size: int = 0) -> None:
    chain = store.chain(lane)
    for n in range(first, last + 1):
        made = event(n, epoch=f"e-{lane}", source=SOURCE, lane=lane, size=size, bootid="box", monotonic=n)
        chain.append([Record("decision", f"e-{lane}", n, msgspec.json.encode(made))])


def open_store(
    folder: Path, *, seal: Seal | None = None, synchronised: bool = True, limit: int = 1 << 20
) -> Store:
    return Store.open(
        folder, limit_bytes=limit, segment_bytes=16384, seal=seal,
        stamp=lambda: Stamp("box", time.monotonic_ns(), time.time_ns(), synchronised),
    )  # fmt: skip


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The output folder of a run whose buffer was closed: 3 alarms, 20 events of which 5 are delivered."""
    store = open_store(tmp_path / "out" / "state" / "buffer" / "log")
    append(store, "alarm", 1, 3)
    append(store, "event", 1, 20)
    store.chain("event").receipt(5)
    store.close()
    return tmp_path / "out"


@pytest.fixture
def lossy(tmp_path: Path) -> Path:
    """A store that has given up its oldest events at its limit."""
    store = open_store(tmp_path / "lossy", limit=400_000)
    append(store, "event", 1, 500, size=800)
    assert store.evicted["capacity"] > 100
    store.close()
    return tmp_path / "lossy"


def lines(capsys: pytest.CaptureFixture[str]) -> list[Any]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


class TestStatus:
    def test_as_json_it_adds_up(self, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["buffer", "status", "--json", str(out)]) == 0
        (found,) = lines(capsys)
        assert found["folder"] == str(out / "state" / "buffer" / "log")
        assert (found["open_by"], found["closed"], found["steady"]) == (None, True, True)
        assert (found["accepted"], found["delivered"], found["waiting"]) == (23, 5, 18)
        event = found["lanes"]["event"]
        assert event["accepted"] == event["delivered"] + event["waiting"] + sum(event["evicted"].values())
        assert (event["waiting"], event["epochs"], event["segments"]) == (15, 1, 1)
        assert 0 <= event["oldest_age_s"] < 600
        assert found["lanes"]["bulk"]["oldest"] is None
        assert not found["damage"]

    def test_as_a_table_it_says_what_waits_and_what_was_lost(
        self, lossy: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["buffer", "status", "--scan", str(lossy)]) == 0
        text = capsys.readouterr().out
        assert "○ closed" in text
        assert "evicted: " in text
        assert " capacity" in text
        assert "every block was read: no damage" in text

    def test_an_open_store_names_its_process(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        store = open_store(tmp_path)
        append(store, "event", 1, 3)
        assert main(["buffer", "status", str(tmp_path)]) == 0
        assert f"● open in process {os.getpid()} (" in capsys.readouterr().out
        append(store, "event", 4, 5)
        store.close()

    def test_damage_is_named_with_its_place(self, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (path,) = (out / "state" / "buffer" / "log").glob("event-*.segment")
        content = bytearray(path.read_bytes())
        content[content.index(b'"e-event-10"')] ^= 1
        path.write_bytes(content)
        assert main(["buffer", "status", "--json", "--scan", str(out)]) == 0
        (found,) = lines(capsys)
        assert [d["file"] for d in found["damage"]] == [path.name]
        assert found["evicted"] == {"corrupt": 1}
        assert found["lanes"]["event"]["gaps_pending"] == 1
        assert main(["buffer", "status", "--scan", str(out)]) == 0
        assert f"damaged: {path.name} bytes" in capsys.readouterr().out

    def test_watching_goes_on_until_it_is_stopped(
        self, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        left = [True, True, False]
        monkeypatch.setattr("skerry.cli.buffer._slept", lambda: left.pop(0))
        assert main(["buffer", "status", "--json", "--watch", str(out)]) == 0
        assert [found["waiting"] for found in lines(capsys)] == [18, 18, 18]
        left += [True, False]
        assert main(["buffer", "status", "--watch", str(out)]) == 0
        assert "accepted" in capsys.readouterr().out


class TestPeek:
    def test_the_next_records_of_each_lane_are_shown(
        self, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["buffer", "peek", "--json", "--count", "2", str(out)]) == 0
        found = lines(capsys)
        assert [(r["lane"], r["offset"], r["id"]) for r in found] == [
            ("alarm", 1, "e-alarm-1"), ("alarm", 2, "e-alarm-2"),
            ("event", 6, "e-event-6"), ("event", 7, "e-event-7"),
        ]  # fmt: skip
        assert {(r["type"], r["subject"]) for r in found} == {("io.skerry.count", "gate/line")}

    def test_delivered_records_are_shown_on_demand(
        self, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert (
            main(["buffer", "peek", "--raw", "--lane", "event", "--first", "3", "--count", "2", str(out)])
            == 0
        )
        assert [e["id"] for e in lines(capsys)] == ["e-event-3", "e-event-4"]

    def test_a_gap_stands_in_its_place(self, lossy: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["buffer", "peek", "--json", "--count", "2", str(lossy)]) == 0
        gap, record = lines(capsys)
        assert (gap["offset"], gap["missing"]) == (1, "gap: capacity")
        assert record["offset"] == gap["last"] + 1
        assert main(["buffer", "peek", "--count", "2", str(lossy)]) == 0
        assert f"1 to {gap['last']}" in capsys.readouterr().out

    def test_an_empty_store_says_so(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        open_store(tmp_path).close()
        assert main(["buffer", "peek", str(tmp_path)]) == 0
        assert capsys.readouterr().out == "nothing waits\n"


def exported(path: Path) -> list[Event]:
    return [msgspec.json.decode(line, type=Event) for line in path.read_bytes().splitlines()]


class TestExport:
    def test_everything_that_waits_is_written_lane_by_lane(
        self, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "rescued.jsonl"
        assert main(["buffer", "export", "--out", str(path), str(out)]) == 0
        assert [e.id for e in exported(path)] == [
            *(f"e-alarm-{n}" for n in range(1, 4)), *(f"e-event-{n}" for n in range(6, 21))
        ]  # fmt: skip
        assert capsys.readouterr().err == f"{path}: 18 events, 0 gap records\n"
        assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "rescued.jsonl"]

    def test_with_all_what_was_delivered_and_is_still_there_is_written_too(
        self, out: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "all.jsonl"
        assert main(["buffer", "export", "--all", "--lane", "event", "--out", str(path), str(out)]) == 0
        assert [e.seq for e in exported(path)] == list(range(1, 21))

    def test_a_gap_is_written_as_the_buffer_would_tell_it(self, lossy: Path, tmp_path: Path) -> None:
        path = tmp_path / "x.jsonl"
        assert main(["buffer", "export", "--out", str(path), str(lossy)]) == 0
        first, second, *_ = exported(path)
        gap = msgspec.convert(first.data, Gap)
        assert (first.type, first.source, first.lane) == (
            "skerry.gap",
            f"skerry/plant/{tmp_path.name}",
            "event",
        )
        assert (gap.reason, gap.count) == ("capacity", second.seq - 1)
        assert [(r.producer, r.epoch, r.first, r.last) for r in gap.ranges] == [
            ("decision", "e-event", 1, second.seq - 1)
        ]
        store = open_store(lossy, limit=400_000)
        hole = store.chain("event").read(1, 1, 1)
        assert first.id == f"{hole.epoch}-{hole.seq}"  # type: ignore[union-attr]  # a hole is what comes first
        store.close()

    def test_batches_are_what_unbatch_reads(self, out: Path, tmp_path: Path) -> None:
        path = tmp_path / "x.batch"
        assert main(["buffer", "export", "--format", "batch", "--out", str(path), str(out)]) == 0
        assert sum(len(batch) for batch in split(path.read_bytes())) == 18

    def test_times_are_corrected_as_they_would_have_been(self, tmp_path: Path) -> None:
        store = open_store(tmp_path / "log", synchronised=False)
        append(store, "event", 1, 2)
        store.close()
        path = tmp_path / "x.jsonl"
        assert main(["buffer", "export", "--out", str(path), str(tmp_path / "log")]) == 0
        assert [e.timequality for e in exported(path)] == ["unsynchronised"] * 2
        (tmp_path / "log" / "anchors").write_text(f'[["box",{DOUBTFUL_NS},{TRUE_NS}]]')
        assert main(["buffer", "export", "--out", str(path), str(tmp_path / "log")]) == 0
        assert {(e.timequality, e.time[:10]) for e in exported(path)} == {("corrected", "2023-11-14")}

    def test_an_encrypted_store_wants_its_key_and_says_which(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        store = open_store(tmp_path / "log", seal=Seal(key=bytes.fromhex(KEY)))
        append(store, "event", 1, 5)
        store.close()
        path, key = tmp_path / "x.jsonl", tmp_path / "box.key"
        key.write_text(KEY)
        command = ["buffer", "export", "--out", str(path), str(tmp_path / "log")]
        assert main(command) == 78
        assert not path.exists()
        (line,) = capsys.readouterr().err.splitlines()
        assert "encrypted: expected key " in line
        assert "--key-file" in line
        assert main(["buffer", "status", "--json", str(tmp_path / "log")]) == 0
        (found,) = lines(capsys)
        assert found["missing_keys"] == [line.partition("expected key ")[2][:8]]
        assert found["waiting"] == 5
        assert main([*command, "--key-file", str(key)]) == 0
        assert [e.seq for e in exported(path)] == [1, 2, 3, 4, 5]

    def test_a_file_that_cannot_be_read_is_named_and_its_records_are_a_gap(
        self, lossy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        broken = sorted(lossy.glob("event-*.segment"))[3]
        broken.unlink()
        broken.mkdir()  # reading it fails, as on a disk with bad sectors
        path = tmp_path / "x.jsonl"
        assert main(["buffer", "export", "--out", str(path), str(lossy)]) == 0
        assert f"{broken.name}: cannot be read: Is a directory" in capsys.readouterr().err
        gaps = [e.data for e in exported(path) if e.type == "skerry.gap"]
        assert [gap["reason"] for gap in gaps] == ["capacity", "corrupt"]
        assert sum(gap["count"] for gap in gaps) + len(exported(path)) - 2 == 500
        assert main(["buffer", "status", "--json", "--scan", str(lossy)]) == 0
        (found,) = lines(capsys)
        assert found["troubles"] == [f"{broken.name}: cannot be read: Is a directory"]

    def test_what_cannot_be_written_leaves_what_was_there(
        self, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["buffer", "export", "--out", str(tmp_path / "gone" / "x"), str(out)]) == 69
        assert "cannot write it: No such file" in capsys.readouterr().err


@pytest.fixture
def refused(out: Path) -> Path:
    """The store of `out` with three refused events, the first of which was sent again."""
    folder = out / "state" / "buffer" / "log"
    aside = Quarantine(folder, Disk(), 1 << 20)
    for n in range(1, 4):
        content = b"null" if n == 3 else msgspec.json.encode(event(n, source=SOURCE))
        aside.add(
            Entry(
                id=f"e1-{n}", time="2026-03-01T12:00:00.000Z", lane="event", chain="c", offset=n,
                reason="too large", event=msgspec.Raw(content),
            )
        )  # fmt: skip
    aside.retried("e1-1", "c-9", "2026-03-01T12:00:01.000Z")
    aside.close()
    return out


class TestQuarantine:
    def test_what_was_refused_is_listed_with_its_reason(
        self, refused: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["buffer", "quarantine", "--json", str(refused)]) == 0
        found = lines(capsys)
        assert [(e["id"], e["reason"], e["again"]) for e in found] == [
            ("e1-1", "too large", "c-9"), ("e1-2", "too large", ""), ("e1-3", "too large", "")
        ]  # fmt: skip
        assert found[0]["event"]["id"] == "e1-1"
        assert main(["buffer", "quarantine", str(refused)]) == 0
        text = capsys.readouterr().out
        assert "not yet" in text
        assert "unreadable" in text

    def test_an_empty_one_says_so(self, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["buffer", "quarantine", str(out)]) == 0
        assert capsys.readouterr().out == "nothing is in quarantine\n"

    def test_a_retry_leaves_a_wish_for_the_next_start(
        self, refused: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["buffer", "retry", "--all", str(refused)]) == 0
        assert "it is done when one starts" in capsys.readouterr().out
        ((_, request),) = quarantine.requests(refused / "state" / "buffer" / "log")
        assert request.ids == ("e1-2",)
        assert main(["buffer", "status", "--json", str(refused)]) == 0
        (found,) = lines(capsys)
        assert (found["quarantined"], found["retries_pending"]) == (2, 1)

    def test_waiting_in_vain_says_so(self, refused: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["buffer", "retry", "--wait", "0.1", str(refused), "e1-2"]) == 0
        assert "not taken up so far" in capsys.readouterr().out

    def test_wrong_ids_are_all_named_before_anything_is_asked(
        self, refused: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["buffer", "retry", str(refused), "e1-1", "e1-2", "e1-3", "e1-7", "x"]) == 78
        assert capsys.readouterr().err.splitlines() == [
            "e1-7: not in quarantine (see skerry buffer quarantine)",
            "x: not in quarantine (see skerry buffer quarantine)",
            "e1-1: was sent again as c-9",
            "e1-3: cannot be read, nor sent again",
        ]
        assert not list((refused / "state" / "buffer" / "log").glob("retry-*"))

    @pytest.mark.parametrize("arguments", [[], ["--all", "e1-2"]])
    def test_ids_or_all_must_be_given(self, refused: Path, arguments: list[str]) -> None:
        assert main(["buffer", "retry", *arguments[:1], str(refused), *arguments[1:]]) == 78


@pytest.mark.parametrize("command", ["status", "peek", "quarantine"])
def test_a_folder_without_a_store_is_unavailable(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["buffer", command, str(tmp_path)]) == 69
    assert "no store in it (give the folder log" in capsys.readouterr().err
