"""What a device trusts, and what a signer publishes, through kills and power cuts."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import needs
from faults.test_power_cut import hunt

CUTS = int(os.environ.get("SKERRY_POWER_CUTS", "40"))


@pytest.mark.parametrize("who", ["device", "signer"])
def test_whoever_is_killed_at_any_call_has_the_state_before_or_after_and_goes_on(
    tmp_path: Path, who: str
) -> None:
    # A kill leaves the page cache, so the disk behind it does not matter, and memory is quicker.
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else tmp_path) as room:
        command = [sys.executable, "-m", "faults.trust_kills", who, room]
        done = subprocess.run(
            command, cwd=needs.ROOT / "tests", capture_output=True, timeout=110, check=False, text=True
        )
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert report["wrong"] == []
    assert report["killed"] > 40, report


@needs.recorded_disk
def test_a_power_cut_takes_nothing_back_that_a_device_was_told() -> None:
    report = hunt("trust:Trusting", CUTS)
    assert report["with_loss"] == report["wrong"] == 0, report["examples"]


@needs.recorded_disk
def test_a_state_that_is_not_flushed_is_caught() -> None:
    report = hunt("trust:Careless", CUTS // 2)
    assert report["with_loss"] + report["wrong"] > 0, report
