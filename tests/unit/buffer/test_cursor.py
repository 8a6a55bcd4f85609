"""The cursor: the newest durable position outlives a torn write of the next."""

from pathlib import Path

from disks import QuickDisk
from skerry.buffer.cursor import SIZE, Cursor, Position


def position(upto: int) -> Position:
    return Position(store="s", upto=upto)


def test_the_newest_position_is_loaded(tmp_path: Path) -> None:
    cursor = Cursor(tmp_path / "cursor", QuickDisk())
    for n in range(10):
        cursor.save(position(n), durable=n % 3 == 0)
    assert Cursor(tmp_path / "cursor", QuickDisk()).load() == position(9)
    assert (tmp_path / "cursor").stat().st_size == SIZE


def test_only_the_slot_that_is_not_durable_is_written(tmp_path: Path) -> None:
    path = tmp_path / "cursor"
    cursor = Cursor(path, QuickDisk())
    cursor.save(position(1), durable=True)
    before = path.read_bytes()
    for n in range(2, 8):
        cursor.save(position(n))
    after = path.read_bytes()
    same = [before[i : i + 4096] == after[i : i + 4096] for i in (0, 4096)]
    assert sorted(same) == [False, True]
    torn = bytearray(after)
    at = same.index(False) * 4096
    torn[at : at + 4096] = bytes(4096)
    path.write_bytes(torn)
    assert Cursor(path, QuickDisk()).load() == position(1)


def test_the_slots_change_places_with_each_durable_position(tmp_path: Path) -> None:
    path = tmp_path / "cursor"
    cursor = Cursor(path, QuickDisk())
    for n in range(1, 6):
        cursor.save(position(n * 10), durable=True)
        durable = path.read_bytes()
        cursor.save(position(n * 10 + 1))
        changed = path.read_bytes()
        at = 0 if durable[:4096] != changed[:4096] else 4096
        path.write_bytes(changed[:at] + bytes(4096) + changed[at + 4096 :])
        assert Cursor(path, QuickDisk()).load() == position(n * 10)
        path.write_bytes(changed)


def test_a_missing_or_foreign_file_holds_no_position(tmp_path: Path) -> None:
    path = tmp_path / "cursor"
    assert Cursor(path, QuickDisk()).load() is None
    for content in (b"", b"x" * 100, bytes(SIZE), b"\xff" * 3 * SIZE):
        path.write_bytes(content)
        assert Cursor(path, QuickDisk()).load() is None
