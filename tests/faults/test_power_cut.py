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
TOY_CUTS = 40


def hunt(engine: str, cuts: int, *options: str, timeout_s: float = 110) -> dict[str, Any]:
    command = [sys.executable, "-m", "faults.power.hunt", f"faults.power.{engine}", "--cuts", f"{cuts}"]
    done = subprocess.run(
        [*command, *options], cwd=needs.ROOT / "tests", stdout=subprocess.PIPE, timeout=timeout_s, check=False
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
