"""The soak itself, for half a minute: it ends, it counts, and it would say what is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import needs
from faults.soak import Sample, slope, sparkline

SCRIPT = Path(__file__).with_name("soak.py")


@needs.mosquitto
@pytest.mark.slow
@pytest.mark.timeout(200)
def test_half_a_minute_of_soak_ends_with_an_exact_ledger(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(SCRIPT),
        "--minutes",
        "0.4",
        "--seed",
        "7",
        "--folder",
        str(tmp_path / "soak"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])["soak"]
    assert result["sent"] == result["accepted"] == result["delivered"] > 1000
    assert sum(result["faults"].values()) >= 4
    assert not needs.FORBIDDEN or result["left_out"] == []


def samples(pid: int, level: float, growth_per_s: float) -> list[Sample]:
    return [Sample(pid * 100 + t, pid, t, level + growth_per_s * t, 12) for t in range(100)]


def test_the_slope_is_that_of_each_life_whatever_its_level() -> None:
    lives = [*samples(1, 30.0, 0.01), *samples(2, 50.0, 0.01), *samples(3, 20.0, 0.01)]
    assert slope(lives, lambda s: s.rss_mb, 20) == pytest.approx(36.0)
    assert slope(lives, lambda s: s.handles, 20) == 0.0
    assert slope([], lambda s: s.rss_mb, 20) == 0.0


def test_a_course_is_shown_in_one_line() -> None:
    assert sparkline([1.0, 2.0, 3.0]) == "▁▅█"
    assert len(sparkline([float(n) for n in range(1000)])) == 60
    assert sparkline([]) == ""
