"""Days offline, in little: what a limit gives up is named in its place; a lane that blocks loses nothing."""

from pathlib import Path

import pytest

import needs
from suite import Lines, Suite

pytestmark = [needs.mosquitto, pytest.mark.timeout(120)]
LANES = {
    "bulk": {"limit_bytes": 1 << 20, "when_full": "evict"},
    "telemetry": {"limit_bytes": 1 << 20, "when_full": "block"},
}


def test_evicted_events_are_named_and_counted_and_a_blocking_lane_keeps_all(tmp_path: Path) -> None:
    options = {"lanes": LANES, "segment_bytes": 256 * 1024}
    with Suite(tmp_path, buffer=options, load={"rate": 400, "pad": 6000}) as suite:
        suite.wait_for(lambda: suite.delivered() > 50)
        suite.hold("uplink")
        suite.wait_for(lambda: suite.evicted().get("capacity", 0) > 200, 40, "the lane's limit is reached")
        suite.kill("buffer")
        more = suite.evicted()["capacity"] + 100
        suite.wait_for(lambda: suite.evicted().get("capacity", 0) > more, 40)
        suite.loads["decision"].quiet()
        suite.release("uplink")
        account = suite.settle(60)
        print(account, suite.tally())
        assert account.accepted == account.sent == account.delivered + account.named["capacity"]
        assert set(account.named) == {"capacity"}
        assert {gap.lane for gap in suite.arrived.gaps} == {"bulk"}
        assert all(gap.bytes > 6000 * gap.count for gap in suite.arrived.gaps)
        assert all(gap.time_from <= gap.time_to for gap in suite.arrived.gaps)
        assert len(suite.arrived.gaps) < 20, "one long hole is not told in crumbs"
        lanes = {event.lane for event in Lines(tmp_path / "far.jsonl").fresh()}
        assert lanes == {"alarm", "event", "telemetry", "bulk"}
