"""Kill -9 of buffer, uplink, producer and broker, again and again under load, in a seeded random order."""

import os
import random
import time
from pathlib import Path

import pytest

import needs
from oracle import check_dense
from suite import Lines, Suite

SECONDS = float(os.environ.get("SKERRY_KILL_SECONDS", "20"))
"""Longer for a soak."""
SEED = os.environ.get("SKERRY_KILL_SEED", "")
VICTIMS = ("buffer", "uplink", "decision", "broker")


@needs.mosquitto
@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 100)
def test_killed_again_and_again_under_load_nothing_is_lost_or_repeated(tmp_path: Path) -> None:
    seed = SEED or "1"
    print(f"SKERRY_KILL_SEED={seed}")
    draw = random.Random(seed)
    kills = dict.fromkeys(VICTIMS, 0)
    with Suite(tmp_path, load={"rate": 300}) as suite:
        suite.wait_for(lambda: suite.delivered() > 50)
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            for victim in draw.sample(VICTIMS, draw.choice((1, 1, 1, 2, 4))):
                suite.kill(victim)
                kills[victim] += 1
            suite.look()
            time.sleep(draw.choice((0.0, 0.2, 0.5, 1.0)) * draw.random())  # the moment of the next kill
        account = suite.settle(60)
        print(kills, account)
        assert sum(kills.values()) >= SECONDS / 2, kills
        assert min(kills.values()) > 0, kills
        assert account.delivered == account.sent == account.accepted
        assert account.repeats == 0
        check_dense(Lines(tmp_path / "far.jsonl").fresh())
