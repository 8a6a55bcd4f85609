"""What the far end refuses is kept with its reason, once, in bounded space."""

from pathlib import Path

import msgspec

from events import event
from skerry.uplink.quarantine import Quarantine, Quarantined


def entry(seq: int, size: int = 0) -> Quarantined:
    return Quarantined(time="t", reason="too large", store="s", offset=seq, event=event(seq, size=size))


def listed(path: Path) -> list[int]:
    return [msgspec.json.decode(line, type=Quarantined).offset for line in path.read_bytes().splitlines()]


def test_a_record_is_kept_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    assert Quarantine(path, 10_000).add(entry(7))
    assert msgspec.json.decode(path.read_bytes(), type=Quarantined) == entry(7)


def test_a_repeat_after_a_kill_is_kept_once(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    Quarantine(path, 10_000).add(entry(7))
    again = Quarantine(path, 10_000)
    assert not again.add(entry(7))
    assert again.add(entry(9))
    assert listed(path) == [7, 9]


def test_the_space_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(path, 4000)
    for seq in range(1, 60):
        assert quarantine.add(entry(seq, size=200))
        assert path.stat().st_size <= 4000
    assert listed(path)[-1] == 59
    assert listed(quarantine.old)[-1] == listed(path)[0] - 1
    assert len(list(tmp_path.iterdir())) == 2


def test_foreign_lines_are_in_nobodys_way(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    path.write_bytes(b"hello\n{}\ntorn")
    assert Quarantine(path, 10_000).add(entry(1))
    assert path.read_bytes().startswith(b"hello\n{}\n{")
