"""The audit log through crashes and on disks that fail: nothing that was promised is missing.

Every step of every kind: SKERRY_STORE_STEPS=1 .venv/bin/python -m pytest tests/faults/test_audit_crash.py
"""

import errno
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

import needs
from audit_life import ENTRIES, check, live, opened
from faults.test_power_cut import hunt
from skerry.audit import entries
from store_disks import FailingDisk, Mode, QuickDisk, RecordedDisk

STRIDE = int(os.environ.get("SKERRY_STORE_STEPS", "24"))


@pytest.mark.timeout(600)
def test_a_log_killed_at_any_step_keeps_what_it_promised(tmp_path: Path) -> None:
    stride = max(1, STRIDE // 6)
    command = [sys.executable, "-m", "faults.audit_kills", str(tmp_path), str(stride)]
    done = subprocess.run(
        command, cwd=needs.ROOT / "tests", capture_output=True, timeout=590, check=False, text=True
    )
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert report["wrong"] == []
    assert report["killed"] == len(range(1, report["steps"] + 1, stride)), report


class Life:
    """A recorded life, to be cut."""

    def __init__(self, room: Path, forgets: str = "") -> None:
        class Disk(RecordedDisk):
            def sync(self, file: int) -> None:
                if forgets != "sync":
                    super().sync(file)

            def sync_folder(self, folder: Path) -> None:
                if forgets != "sync_folder":
                    super().sync_folder(folder)

        self.room = room
        folder = room / "recorded"
        folder.mkdir()
        self.disk = Disk(folder)
        live(folder / "log", self.disk, self.disk.note)

    def cut(self, after: int, mode: Mode, seed: int) -> str:
        """What is wrong after a cut; empty when nothing is."""
        into = self.room / f"cut-{after}-{mode}-{seed}"
        facts, _ = self.disk.cut(after, mode, random.Random(f"{seed}/{after}"), into)
        try:
            with capture_logs():
                check(into / "log", facts[-1] if facts else "")
        except AssertionError as error:
            return f"{mode} after {after}: {error}"
        return ""


@pytest.mark.timeout(900)
def test_a_power_cut_costs_nothing_that_was_promised(tmp_path: Path) -> None:
    life = Life(tmp_path)
    assert len([s for s in life.disk.steps if s[0] == "unname"]) > 2, "segments were dropped"
    steps = range(len(life.disk.steps) + 1)
    wrong = [life.cut(n, mode, 0) for n in steps for mode in ("dropped", "kept", "drawn")]
    wrong += [life.cut(n, "drawn", seed) for n in steps for seed in range(1, 24 // STRIDE)]
    assert list(filter(None, wrong)) == []


def test_an_entry_that_is_seen_after_a_kill_survives_a_power_cut_from_then_on(tmp_path: Path) -> None:
    class Killed(RecordedDisk):
        alive = False

        def sync(self, file: int) -> None:
            if not self.alive:
                raise OSError(errno.EIO, "as if killed here")
            super().sync(file)

    (tmp_path / "recorded").mkdir()
    disk = Killed(tmp_path / "recorded")
    with capture_logs(), opened(tmp_path / "recorded" / "log", disk) as log:
        assert log.append("step") is None
    disk.alive = True
    with opened(tmp_path / "recorded" / "log", disk) as log:
        assert log.head.number == 1
    disk.cut(len(disk.steps), "dropped", random.Random(1), tmp_path / "cut")
    check(tmp_path / "cut" / "log", str(log.head), torn=False)


@pytest.mark.parametrize("forgets", ["sync", "sync_folder"])
def test_a_log_that_forgets_a_flush_is_caught(tmp_path: Path, forgets: str) -> None:
    life = Life(tmp_path, forgets)
    steps = range(len(life.disk.steps), 0, -1)
    assert any(life.cut(n, "dropped", 0) for n in steps), "nothing was noticed"


@needs.recorded_disk
@pytest.mark.timeout(600)
def test_a_power_cut_under_a_real_file_system_costs_nothing_that_was_promised() -> None:
    report = hunt("audits:Audits", 480 // STRIDE, timeout_s=590)
    assert report["with_loss"] == report["wrong"] == 0, report["examples"]


@needs.recorded_disk
def test_a_real_file_system_finds_a_log_that_forgets_to_flush() -> None:
    report = hunt("audits:Careless", 20)
    assert report["with_loss"] + report["wrong"] > 0, report


def cases(count: int) -> Iterator[tuple[int, int, bool]]:
    """Every step, with the two errors, and once or from then on."""
    kinds = [(c, f) for c in (errno.ENOSPC, errno.EIO) for f in (False, True)]
    stride = max(1, STRIDE // 12)
    yield from ((s, *k) for s in range(1, count + 1) for n, k in enumerate(kinds) if (s + n) % stride == 0)


@pytest.mark.timeout(900)
def test_a_disk_that_fails_at_any_call_disturbs_nobody_and_loses_nothing_that_was_promised(
    tmp_path: Path,
) -> None:
    counted = FailingDisk()
    live(tmp_path / "counted", counted)
    for step, code, forever in cases(len(counted.calls)):
        folder = tmp_path / f"log-{step}-{code}-{forever}"
        failing = FailingDisk(lambda _name, nth: code * (nth == step or (forever and nth > step)))  # noqa: B023 - called in this round only
        promised = [""]
        with capture_logs():
            live(folder, failing, promised.append)
            check(folder, promised[-1])
        assert forever or len(promised) > ENTRIES - 4, "one failure costs no more than a wait"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_what_waited_for_a_disk_is_there_once_and_in_order(tmp_path: Path, code: int) -> None:
    counted = FailingDisk()
    live(tmp_path / "counted", counted)
    for step in range(1, len(counted.calls) + 1):
        folder = tmp_path / f"log-{step}"
        disk = FailingDisk(lambda _name, nth: code * (nth == step))  # noqa: B023 - called in this round only
        with capture_logs():
            log = opened(folder, disk)
            for n in range(8):
                log.append("step", step=str(n), reason="x" * 3000)
            log.flush()
        log.close()
        assert [e.fields["step"] for e in entries(folder)] == [str(n) for n in range(8)]
        check(folder, str(log.head), torn=False)


def test_a_log_on_a_disk_that_does_not_open_takes_entries_when_it_does(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"in the way")
    with capture_logs():
        log = opened(tmp_path / "log", QuickDisk())
        assert log.append("step", step="0") is None
        (tmp_path / "log").unlink()
        assert log.flush()
    assert [e.fields["step"] for e in log.entries()] == ["0"]
