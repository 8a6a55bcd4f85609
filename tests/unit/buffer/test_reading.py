"""A store that somebody else has open, or nobody: what its files say is what the store says."""

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from needs import ROOT
from skerry.buffer import reading
from skerry.buffer.blocks import Stamp
from skerry.buffer.chain import Chain
from skerry.buffer.gaps import GapFile, Hole
from skerry.buffer.reading import Clocks, Item, Lenient, Unread, age_s, look, look_at
from skerry.buffer.seal import Seal
from skerry.buffer.settings import LaneSettings
from skerry.buffer.times import Anchors
from skerry.errors import ConfigError, Unavailable
from skerry.testing import eventually
from unit.buffer.stores import contents, fill, holes, kill, open_chain, open_store, payload, record

KEY, OTHER = b"k" * 32, b"o" * 32


def read_all(folder: Path, seal: Seal | None = None) -> tuple[dict[int, bytes], list[tuple[int, int, str]]]:
    """Records by offset, and holes, as the reader has them."""
    seal = seal or Seal()
    found: dict[int, bytes] = {}
    missing = []
    for entry in reading.read(look_at(folder, "event", seal), seal):
        if isinstance(entry, Item):
            found[entry.offset] = entry.payload
        else:
            assert isinstance(entry, Hole)
            missing.append((entry.first, entry.last, entry.reason))
    return found, missing


def check(folder: Path, chain: Chain, seal: Seal | None = None, *, told: bool = True) -> None:
    """The files say what the chain says."""
    view = look_at(folder, "event", seal or Seal())
    assert view.steady
    assert not view.troubles
    assert (view.last, view.upto, view.delivered) == (chain.last, chain.upto, chain.delivered)
    assert (view.waiting, view.evicted, view.stated) == (chain.waiting, chain.evicted, chain.stated)
    assert view.last == view.delivered + view.waiting + sum(view.evicted.values())
    assert view.space == chain.space
    assert view.marks == len(chain.watermarks())
    found, missing = read_all(folder, seal)
    if told:  # telling makes a hole final, which changes the store
        assert found == contents(chain)
        assert missing == holes(chain)
    assert len(found) == view.waiting


@pytest.mark.parametrize("seed", range(4))
def test_at_any_moment_of_its_life_the_files_say_what_the_store_says(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    store, chain = open_chain(tmp_path / "store")
    seq = evicted = 0
    for step in range(150):
        match draw.choice("aaaaaaarrtck"):
            case "a":
                count = draw.randint(1, 30)
                chain.append([record(seq + n, size=draw.randint(20, 900)) for n in range(1, count + 1)])
                seq += count
            case "r":
                chain.receipt(draw.randint(chain.upto, min(chain.upto + 20, chain.last)))
            case "t":
                holes(chain)
            case "c" if step % 3 == 0:
                store.close()
                store, chain = open_chain(tmp_path / "store")
            case "k" if step % 3 == 0:
                kill(store)
                store, chain = open_chain(tmp_path / "store")
        check(tmp_path / "store", chain, told=step % 10 == 0)
        evicted = max(evicted, sum(chain.evicted.values()))
    assert evicted > 20
    assert chain.delivered > 20


def test_lanes_are_told_apart_and_added_up(tmp_path: Path) -> None:
    store = open_store(tmp_path, lanes={"bulk": LaneSettings(limit_bytes=8192)})
    fill(store.chain("alarm"), 1, 3)
    fill(store.chain("bulk"), 1, 300, batch=10)
    store.chain("alarm").receipt(2)
    view = look(tmp_path)
    assert [view.lanes[lane].waiting for lane in ("alarm", "event", "telemetry", "bulk")] == [
        1, 0, 0, store.chain("bulk").waiting
    ]  # fmt: skip
    assert view.lanes["bulk"].evicted == store.chain("bulk").evicted
    assert view.space == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert not view.closed
    store.close()
    assert look(tmp_path).closed
    assert {lane: v.id for lane, v in look(tmp_path).lanes.items()} == {c.lane: c.id for c in store.chains}


def test_damage_is_found_by_a_scan_and_told_where_the_record_was(tmp_path: Path) -> None:
    store, chain = open_chain(tmp_path / "store")
    fill(chain, 1, 200, batch=3)
    chain.receipt(5)
    store.close()
    draw = random.Random(1)
    for n in range(40):
        copy = tmp_path / "copy"
        shutil.copytree(tmp_path / "store", copy)
        path = draw.choice(sorted(copy.glob("*.segment")))
        content = bytearray(path.read_bytes())
        content[draw.randrange(view_size(copy, path))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        view = look(copy, scan=True).lanes["event"]
        found, missing = read_all(copy)
        assert all(found[k] == payload(k) for k in found), n
        gone = [k for first, last, _ in missing for k in range(first, last + 1)]
        assert sorted([*found, *gone]) == list(range(6, 201)), n
        assert view.damage or not gone, n
        assert all(spot.file == path.name for spot in view.damage), n
        assert view.waiting + len(gone) == 195, n
        store, chain = open_chain(copy, committed=200)
        assert contents(chain) == found
        kill(store)
        shutil.rmtree(copy)


def view_size(folder: Path, path: Path) -> int:
    """Bytes of blocks in a segment."""
    return next(s.size for s in look_at(folder, "event", Seal()).segments if s.path == path)


def test_what_is_lost_with_a_file_or_the_cursor_is_counted_as_the_store_would(tmp_path: Path) -> None:
    store, chain = open_chain(tmp_path / "store")
    fill(chain, 1, 200, batch=3)
    chain.receipt(60)
    store.close()
    for pattern in ("*.segment", "event.cursor", "event.gaps"):
        for path in sorted((tmp_path / "store").glob(pattern)):
            content = path.read_bytes()
            path.unlink()
            compare(tmp_path / "store", tmp_path / "copy")
            path.write_bytes(content)


@pytest.mark.parametrize("told", [False, True])
def test_a_segment_that_outlived_its_own_gap_record_counts_as_for_the_store(
    tmp_path: Path, told: bool
) -> None:
    store, chain = open_chain(tmp_path / "store")
    fill(chain, 1, 200, batch=3)
    oldest = segments(tmp_path / "store")[0]
    content = oldest.read_bytes()
    chain.evict()
    if told:
        holes(chain)
    oldest.write_bytes(content)  # as a kill leaves it between the gap record and the removal
    kill(store)
    compare(tmp_path / "store", tmp_path / "copy")
    found, missing = read_all(tmp_path / "store")
    assert (1 in found, bool(missing)) == (not told, told)


def test_counts_that_a_damaged_gap_file_lacks_are_reckoned_as_by_the_store(tmp_path: Path) -> None:
    store, chain = open_chain(tmp_path / "store")
    fill(chain, 1, 200, batch=3)
    chain.evict()
    ((_, last, _),) = holes(chain)
    chain.receipt(last - 2)
    kill(store)
    content = bytearray((tmp_path / "store" / "event.gaps").read_bytes())
    content[20] ^= 1
    (tmp_path / "store" / "event.gaps").write_bytes(content)
    compare(tmp_path / "store", tmp_path / "copy")
    view = look(tmp_path / "store").lanes["event"]
    assert view.evicted == {"corrupt": last}
    assert view.troubles


def compare(folder: Path, copy: Path) -> None:
    """What the files say is what a store says that is opened on a copy of them."""
    shutil.copytree(folder, copy)
    view = look(folder).lanes["event"]
    found, missing = read_all(folder)
    store, chain = open_chain(copy)
    assert (view.last, view.upto, view.delivered, view.waiting, view.evicted) == (
        chain.last, chain.upto, chain.delivered, chain.waiting, chain.evicted
    )  # fmt: skip
    assert found == contents(chain)
    assert missing == holes(chain)
    kill(store)
    shutil.rmtree(copy)


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.segment"))


def test_a_torn_cursor_is_named(tmp_path: Path) -> None:
    store, chain = open_chain(tmp_path)
    fill(chain, 1, 20)
    chain.receipt(10)
    store.close()
    with (tmp_path / "event.cursor").open("r+b") as file:
        file.seek(30)
        file.write(b"\xff" * 5)
        file.seek(4096 + 30)
        file.write(b"\xff" * 5)
    view = look(tmp_path).lanes["event"]
    assert view.troubles == ["event.cursor or event.gaps is damaged: some counts are reckoned"]
    assert view.last == view.delivered + view.waiting + sum(view.evicted.values())


class TestSealed:
    def test_with_the_key_everything_is_read(self, tmp_path: Path) -> None:
        seal = Seal(compress=True, key=KEY)
        _, chain = open_chain(tmp_path, seal=seal)
        for n in range(20):
            fill(chain, 20 * n + 1, 20 * n + 20, batch=20)
        chain.receipt(30)
        check(tmp_path, chain, Seal(old_keys=[OTHER, KEY]))
        view = look(tmp_path, [KEY])
        assert view.compressed
        assert view.encrypted
        assert view.missing_keys == []
        assert view.lanes["event"].oldest is not None

    @pytest.mark.parametrize("scan", [False, True])
    def test_without_the_key_the_counts_are_known_all_the_same(self, tmp_path: Path, scan: bool) -> None:
        store, chain = open_chain(tmp_path, seal=Seal(key=KEY))
        fill(chain, 1, 3000, batch=30)
        holes(chain)
        chain.receipt(2800)
        whole, view = look(tmp_path, [KEY]), look(tmp_path, [OTHER], scan=scan)
        a, b = whole.lanes["event"], view.lanes["event"]
        assert (a.last, a.upto, a.waiting, a.delivered, a.evicted) == (
            b.last, b.upto, b.waiting, b.delivered, b.evicted
        )  # fmt: skip
        assert chain.evicted
        assert (b.marks, b.oldest) == (None, None)
        assert view.encrypted
        assert len(view.missing_keys) == 1
        assert not b.damage
        del store

    def test_reading_records_without_the_key_names_the_key(self, tmp_path: Path) -> None:
        store, chain = open_chain(tmp_path, seal=Seal(key=KEY))
        fill(chain, 1, 5)
        (key,) = look(tmp_path).missing_keys
        with pytest.raises(ConfigError, match=f"expected key {key}, got none"):
            look_at(tmp_path, "event", Seal())
        del store


class TestReadOnly:
    def test_nothing_is_opened_for_writing_nor_changed(self, tmp_path: Path) -> None:
        store, chain = open_chain(tmp_path)
        fill(chain, 1, 3000, batch=30)
        kill(store)
        before = state(tmp_path)
        with opened_for_writing() as written:
            look(tmp_path, scan=True)
            read_all(tmp_path)
            reading.holder(tmp_path)
            Anchors(tmp_path / "anchors", reading.ReadOnlyDisk())
        assert not [path for path in written if path.startswith(str(tmp_path))]
        assert state(tmp_path) == before

    def test_the_process_that_has_it_open_is_told(self, tmp_path: Path) -> None:
        assert reading.holder(tmp_path) is None
        store, _ = open_chain(tmp_path)
        assert reading.holder(tmp_path) == os.getpid()
        store.close()
        assert reading.holder(tmp_path) is None


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file: when it was changed, and what is in it."""
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


_written: list[str] | None = None


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _written is None:
        return
    if (
        event == "open"
        and isinstance(arguments[2], int)
        and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    ):
        _written.append(str(arguments[0]))
    elif event in {"os.rename", "os.remove", "os.mkdir", "os.truncate", "fcntl.flock"}:
        _written.append(f"{arguments[0]}")


@contextmanager
def opened_for_writing() -> Iterator[list[str]]:
    """Paths that are opened for writing, or renamed or removed, meanwhile."""
    global _written
    if not getattr(_hook, "added", False):
        sys.addaudithook(_hook)
        _hook.added = True  # type: ignore[attr-defined]  # it is added once
    _written = found = []
    try:
        yield found
    finally:
        _written = None


class TestLive:
    def test_a_store_at_work_is_read_right_while_it_appends_evicts_and_recycles(self, tmp_path: Path) -> None:
        folder = tmp_path / "store"
        writer = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "busy_store.py"), str(folder)], stdout=subprocess.PIPE
        )
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"open\n"
            last, looks, moved, files = 0, 0, 0, set()
            while looks < 60 or last < 3000:
                view = look(folder).lanes["event"]
                looks += 1
                files |= {part.path.name for part in view.segments}
                assert not view.troubles
                assert view.last >= last, "it went back"
                last = view.last
                if not view.steady:
                    moved += 1
                    continue
                assert view.last == view.delivered + view.waiting + sum(view.evicted.values())
                assert set(view.evicted) <= {"capacity"}
                at = view.upto
                for entry in reading.read(view, Seal()):
                    begins = entry.offset if isinstance(entry, Item) else entry.first
                    # A hole that was told stays as it is, although some of it arrived all the same.
                    told = isinstance(entry, Hole) and entry.told and begins <= at + 1 <= entry.last
                    assert begins == at + 1 or told
                    at = entry.last if not isinstance(entry, Item) else entry.offset
                    if isinstance(entry, Item):
                        assert entry.payload == payload(entry.offset, size=200)
                    elif isinstance(entry, Hole):
                        assert entry.reason == "capacity"
                    else:
                        moved += 1
                assert at == view.last
            assert len(files) > 20, "hardly a file came and went"
            assert reading.holder(folder) == writer.pid
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            writer.stdout.close()
        eventually(lambda: reading.holder(folder) is None)
        assert not look(folder).closed

    def test_a_store_that_moves_on_between_two_reads_is_looked_at_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store, chain = open_chain(tmp_path)
        fill(chain, 1, 300, batch=3)
        loads = 0

        class Meanwhile(GapFile):
            """Lets the store work on after the cursor and the gaps were read, and before the segments are."""

            def load(self) -> list[Hole]:
                nonlocal loads
                found = super().load()
                loads += 1
                if loads == 1:
                    chain.evict()
                    holes(chain)
                    chain.receipt(150)
                return found

        monkeypatch.setattr(reading, "GapFile", Meanwhile)
        view = look_at(tmp_path, "event", Seal())
        assert loads == 2
        assert view.evicted == chain.evicted == {"capacity": view.evicted["capacity"]}
        assert (view.waiting, view.delivered) == (chain.waiting, chain.delivered)
        del store

    def test_what_went_away_after_the_look_is_not_called_lost(self, tmp_path: Path) -> None:
        store, chain = open_chain(tmp_path)
        fill(chain, 1, 200, batch=3)
        view = look_at(tmp_path, "event", Seal())
        chain.receipt(150)
        fill(chain, 201, 203)
        entries = list(reading.read(view, Seal()))
        assert not [e for e in entries if isinstance(e, Hole)]
        assert [e for e in entries if isinstance(e, Unread)]
        covered = [
            n for e in entries for n in ([e.offset] if isinstance(e, Item) else range(e.first, e.last + 1))
        ]
        assert covered == list(range(1, 201))
        del store


def test_delivered_records_that_are_still_there_can_be_read(tmp_path: Path) -> None:
    store, chain = open_chain(tmp_path)
    fill(chain, 1, 30)
    chain.receipt(10)
    view = look_at(tmp_path, "event", Seal())
    found = [e for e in reading.read(view, Seal(), 1) if isinstance(e, Item)]
    assert [(e.offset, e.payload) for e in found] == [(n, payload(n)) for n in range(1, 31)]
    del store


class TestFind:
    def test_a_store_is_found_by_its_own_folder_its_state_and_a_runs_output(self, tmp_path: Path) -> None:
        folder = tmp_path / "out" / "state" / "buffer" / "log"
        open_store(folder)
        (tmp_path / "out" / "state" / "lock").touch()
        for given in (folder, folder.parent, folder.parent.parent, tmp_path / "out"):
            assert reading.find(given) == folder

    def test_of_several_none_is_taken(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            open_store(tmp_path / "state" / name / "log")
        with pytest.raises(ConfigError, match=r"expected one store, got 2 \(name one of .*a/log, .*b/log\)"):
            reading.find(tmp_path)

    @pytest.mark.parametrize("name", [".", "gone"])
    def test_where_there_is_none_it_says_what_to_give(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(Unavailable, match="give the folder log"):
            reading.find(tmp_path / name)


def test_ages_are_reckoned_by_the_monotonic_clock_within_a_boot(tmp_path: Path) -> None:
    (tmp_path / "anchors").write_bytes(b'[["before",5000000000,1700000000000000000]]')
    anchors = Anchors(tmp_path / "anchors", reading.ReadOnlyDisk())
    now = Clocks("now", 100_000_000_000, 1_700_000_100_000_000_000)
    assert age_s(Stamp("now", 40_000_000_000, 1, False), anchors, now) == 60.0
    assert age_s(Stamp("before", 15_000_000_000, 1, False), anchors, now) == 90.0
    assert age_s(Stamp("before", 0, 1_700_000_050_000_000_000, True), anchors, now) == 50.0
    assert age_s(Stamp("before", 0, 1_800_000_000_000_000_000, True), anchors, now) == 0.0


def test_a_lenient_seal_opens_what_it_can() -> None:
    flags, body = Seal(key=KEY).close(b"content", b"about")
    assert Lenient([KEY]).open(flags, body, b"about") == b"content"
    seal = Lenient([OTHER])
    assert seal.open(flags, body, b"about") == b""
    assert seal.missing == {body[:4].hex()}
