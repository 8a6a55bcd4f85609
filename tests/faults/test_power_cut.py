"""The power is cut under a real file system, anywhere, and nothing that was promised is lost.

A disk that remembers every write and flush carries ext4 while an engine works; then every cut leaves what
a disk may leave, the kernel mounts it and the engine opens it (`faults/power`). More of the same:

    make soak, or: SKERRY_POWER_CUTS=10000 .venv/bin/python -m pytest tests/faults/test_power_cut.py
"""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

import needs

CUTS = int(os.environ.get("SKERRY_POWER_CUTS", "1000"))
"""Of the store, in all its variants together."""
SEED = int(os.environ.get("SKERRY_POWER_SEED", "1"))
TOY_CUTS = 40


def hunt(engine: str, cuts: int, *options: str, timeout_s: float = 110) -> dict[str, Any]:
    command = [sys.executable, "-m", "faults.power.hunt", f"faults.power.{engine}", "--cuts", f"{cuts}"]
    done = subprocess.run(
        [*command, "--workers", "1", *options],
        cwd=needs.ROOT / "tests",
        stdout=subprocess.PIPE,
        timeout=timeout_s,
        check=False,
    )
    assert done.stdout, "the hunt failed, see its errors"
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["cuts"] == cuts
    return report


@needs.recorded_disk
@pytest.mark.parametrize("engine", ["NoFlush", "NoFolderFlush", "RenameBeforeFlush"])
def test_the_recorder_catches_the_classic_mistakes(engine: str) -> None:
    report = hunt(f"toys:{engine}", TOY_CUTS)
    assert report["with_loss"] > 0, report


@needs.recorded_disk
@pytest.mark.parametrize("engine", ["Correct", "Whole", "Growing"])
def test_the_recorder_finds_no_loss_where_there_is_none(engine: str) -> None:
    report = hunt(f"toys:{engine}", TOY_CUTS)
    assert report["with_loss"] == report["wrong"] == 0, report["examples"]
    assert len(report["kinds"]) > 3, "hardly a cut met writes that were not flushed"


@needs.recorded_disk
@pytest.mark.parametrize(("synchronous", "loses"), [("Sqlite", False), ("SqliteNormal", True)])
def test_the_recorder_tells_a_database_that_flushes_from_one_that_does_not(
    synchronous: str, loses: bool
) -> None:
    report = hunt(f"peers:{synchronous}", TOY_CUTS)
    assert report["wrong"] == 0, report["examples"]
    assert (report["with_loss"] > 0) is loses, report["examples"]


@needs.recorded_disk
@pytest.mark.parametrize("forgotten", ["sync", "sync_folder"])
def test_a_store_that_forgets_a_flush_is_caught(forgotten: str) -> None:
    report = hunt(f"store:Careless:{forgotten}", TOY_CUTS)
    assert report["with_loss"] > 0, report


@needs.recorded_disk
@pytest.mark.slow
@pytest.mark.timeout(CUTS / 3 * 0.3 + 60)
@pytest.mark.parametrize("variant", ["Plain", "Sealed", "Wide"])
def test_a_power_cut_loses_nothing_that_the_store_accepted(variant: str) -> None:
    cuts = CUTS // 3 + 1
    options = ["--chain", "--rounds", f"{max(cuts // 80, 2)}", "--seed", f"{SEED}"]
    report = hunt(f"store:{variant}", cuts, *options, timeout_s=CUTS / 3 * 0.3 + 50)
    assert report["with_loss"] == report["wrong"] == 0, report["examples"]
