"""The model store through crashes: killed at any step, or the power cut at any step.

Every step of every kind: SKERRY_STORE_STEPS=1 .venv/bin/python -m pytest tests/faults/test_store_*.py
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import needs
from faults.test_power_cut import hunt
from skerry.errors import PackageError
from store_disks import Mode, QuickDisk, RecordedDisk
from store_life import Far, check, live

STRIDE = int(os.environ.get("SKERRY_STORE_STEPS", "24"))
"""Of the steps at which a process is killed or a call fails, every how manieth; of cuts, all are tried."""


@pytest.mark.timeout(600)
def test_a_store_killed_at_any_step_serves_one_whole_package_and_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "faults.store_kills", str(tmp_path), str(STRIDE)]
    done = subprocess.run(
        command, cwd=needs.ROOT / "tests", capture_output=True, timeout=590, check=False, text=True
    )
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert report["wrong"] == []
    assert report["killed"] == len(range(1, report["steps"] + 1, STRIDE)), report


class Life:
    """A recorded life, to be cut."""

    def __init__(self, room: Path, forgets: str = "") -> None:
        class Disk(RecordedDisk):
            def sync(self, file: int) -> None:
                if forgets != "sync":
                    super().sync(file)

            def sync_folder(self, folder: Path) -> None:
                if forgets not in ("sync_folder", folder.name):
                    super().sync_folder(folder)

        self.room = room
        self.far = Far(room / "far")
        folder = room / "recorded"
        folder.mkdir()
        self.disk = Disk(folder)
        live(self.far, folder, self.disk, self.disk.note)

    def cut(self, after: int, mode: Mode, seed: int, *, again: bool = False) -> str:
        """What is wrong after a cut; empty when nothing is."""
        into = self.room / f"cut-{after}-{mode}-{seed}"
        facts, ahead = self.disk.cut(after, mode, random.Random(f"{seed}/{after}"), into)
        allowed = {facts[-1] if facts else "", ahead if ahead is not None else facts[-1]}
        try:
            with self.far.open(into, QuickDisk()) as store:
                check(self.far, store, allowed)
                assert not store.found, store.found
            if again:
                live(self.far, into, QuickDisk())
        except (AssertionError, PackageError) as error:
            return f"{mode} after {after}: {type(error).__name__}: {error}"
        return ""


@pytest.mark.timeout(600)
def test_whatever_a_power_cut_leaves_one_whole_package_serves(tmp_path: Path) -> None:
    life = Life(tmp_path)
    steps = range(len(life.disk.steps) + 1)
    wrong = [life.cut(n, "dropped", 0, again=n % 40 == 0) for n in steps]
    drawn = [(n, seed) for n in steps[:: 1 + (STRIDE > 1) * 2] for seed in range(24 // STRIDE)]
    wrong += [life.cut(n, "drawn", seed, again=n % 40 == 20) for n, seed in drawn]
    assert list(filter(None, wrong)) == []


@pytest.mark.parametrize("forgets", ["sync", "sync_folder", "slots", "packages", "states", "sha256"])
def test_a_store_that_forgets_a_flush_is_caught(tmp_path: Path, forgets: str) -> None:
    life = Life(tmp_path, forgets)
    steps = range(len(life.disk.steps), 0, -1)
    assert any(life.cut(n, "dropped", 0) or life.cut(n, "drawn", n) for n in steps), "nothing was noticed"


@needs.recorded_disk
@pytest.mark.timeout(600)
def test_a_power_cut_under_a_real_file_system_leaves_one_whole_package_serving() -> None:
    report = hunt("models:Models", 480 // STRIDE, timeout_s=590)
    assert report["with_loss"] == report["wrong"] == 0, report["examples"]


@needs.recorded_disk
def test_a_real_file_system_finds_a_store_that_forgets_to_flush_files() -> None:
    report = hunt("models:Careless:sync", 20)
    assert report["with_loss"] + report["wrong"] > 0, report


def test_a_blob_that_has_come_is_not_fetched_again_after_a_power_cut(tmp_path: Path) -> None:
    far, root = Far(tmp_path / "far"), tmp_path / "recorded"
    root.mkdir()
    disk, blobs = RecordedDisk(root), far.packed[0].listing.blobs
    with far.open(root, disk) as store:
        for blob in blobs:
            store.receive(blob, lambda start, blob=blob: far.source.blob(blob, start))
    disk.cut(len(disk.steps), "dropped", random.Random(1), tmp_path / "cut")
    with far.open(tmp_path / "cut", QuickDisk()) as store:
        assert store.missing(blobs) == 0
