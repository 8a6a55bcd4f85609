"""The broker freezes; the way to the far end is cut, swallows everything, or is slow."""

import os
import signal
import time
from pathlib import Path

import pytest

import needs
from clocks import YEAR_S, WallClock
from far_network import FarNetwork
from oracle import check_dense
from suite import Lines, Suite

pytestmark = [needs.mosquitto, pytest.mark.timeout(150)]


def test_a_frozen_broker_buffer_or_uplink_delays_and_loses_nothing(tmp_path: Path) -> None:
    with Suite(tmp_path) as suite:
        suite.wait_for(lambda: suite.delivered() > 50)
        buffer, uplink = suite.process("buffer").pid, suite.process("uplink").pid
        for pid, seconds in ((suite.broker.pid, 4.0), (buffer, 1.5), (uplink, 1.5)):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(seconds)  # this long nothing moves
            os.kill(pid, signal.SIGCONT)
            before = suite.delivered()
            suite.wait_for(lambda n=before: suite.delivered() > n + 100)
        account = suite.settle()
        assert account.delivered == account.sent
        assert account.repeats == 0
        check_dense(Lines(tmp_path / "far.jsonl").fresh())


@needs.network
@needs.compiler
def test_a_link_that_is_cut_swallowed_and_throttled_loses_nothing_and_recovers(
    tmp_path: Path, clock: WallClock
) -> None:
    with FarNetwork(tmp_path / "far") as far:
        options = {
            "uplink": {"link": far.link(), "backoff": {"first_s": 0.5, "last_s": 1.5}},
            "far": far.arrived,
            "repeats": True,
        }
        options["environment"] = clock.environment
        with Suite(tmp_path, load={"rate": 200, "pad": 400}, **options) as suite:
            suite.wait_for(lambda: suite.delivered() > 50)

            far.down()
            time.sleep(1.5)  # the outage
            suite.kill("uplink")  # with its hands full of what nobody has confirmed
            time.sleep(1.5)
            clock.jump(-30 * YEAR_S)  # while it waits for its next try
            suite.look()
            far.up()
            before = suite.delivered()
            suite.wait_for(lambda: suite.delivered() > before + 300, why="it recovers from a cut")

            far.swallow()
            time.sleep(3)
            far.answer()
            before = suite.delivered()
            suite.wait_for(lambda: suite.delivered() > before + 300, why="it recovers from silence")

            far.throttle(256)  # less than what comes: 200 events of 700 bytes are 1,100 kbit/s
            time.sleep(4)
            waiting = suite.tally()["waiting"]
            far.unthrottle()

            account = suite.settle(60)
            print(f"waited at most {waiting}", account)
            assert waiting > 100, "the throttle was felt"
            assert account.delivered == account.sent
            for kind in ("buffer", "uplink"):
                memory = suite.process(kind).memory_info().rss / 2**20
                assert memory < 60, f"{kind}: {memory:.0f} MB"
