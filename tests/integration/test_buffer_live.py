"""Lanes and waits of the buffer changed while it runs: the ledger holds, and what is given up is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from events import event, submission
from oracle import check_ledger
from skerry.channels import DESIRED, REPORTED
from skerry.desired import digest
from skerry.messages import Desired, Reported, Submission
from skerry.service import Host
from skerry.testing import eventually
from unit.buffer.test_buffer_module import World, count

SEGMENT = 256 * 1024


class Steered(World):
    """A buffer that is steered."""

    def __init__(self, folder: Path, **changes: object) -> None:
        super().__init__(folder, **{"segment_bytes": SEGMENT, "resend_s": 60, **changes})
        self.reports: list[Reported] = []
        self.outside.subscribe(REPORTED, self.reports.append)

    def apply(self, version: str, **patch: Any) -> Reported:
        """Have it applied."""
        message = Desired(module="buffer", version=version, digest=digest(patch), patch=patch)
        self.outside.publish(DESIRED, message, "buffer")
        eventually(lambda: self.reports and self.reports[-1].version == version)
        assert self.reports[-1].state == "applied", self.reports[-1]
        return self.reports[-1]

    def fill(self, first: int, last: int, *, wait: bool = True) -> None:
        """Submit events of about 4 KB, fifty at a time, as a producer does that waits for acceptance."""
        for at in range(first, last + 1, 50):
            end = min(at + 49, last)
            made = tuple(event(n, size=4000) for n in range(at, end + 1))
            self.submit(Submission(producer="decision", epoch="e1", oldest=1, events=made))
            if wait:
                eventually(lambda end=end: self.watermark() >= end)


def balanced(host: Host) -> dict[str, int]:
    """The tally, which must be in balance."""
    terms = host.tally.snapshot()
    evicted = {k.removeprefix("evicted/"): n for k, n in terms.items() if k.startswith("evicted/")}
    check_ledger(terms["accepted"], terms["delivered"], terms["waiting"], evicted, lost=None)
    return terms


def test_a_lower_limit_holds_at_once_and_what_is_given_up_is_told(tmp_path):
    world = Steered(tmp_path)
    with world.up() as host:
        world.fill(1, 800)
        eventually(lambda: world.watermark() == 800)
        assert balanced(host)["waiting"] == 800
        world.apply("1", lanes={"event": {"limit_bytes": 4 * SEGMENT}})
        terms = balanced(host)
        assert terms["evicted/capacity"] > 400
        assert sum(path.stat().st_size for path in (tmp_path / "log").glob("event-*")) <= 4 * SEGMENT
        world.receipt_all()
        world.inside.disconnect()
        world.inside.reconnect()  # everything is sent anew, gaps in their places
        eventually(lambda: balanced(host)["waiting"] == 0)
        terms = balanced(host)
    told = {n for gap in world.gaps() for r in gap.ranges for n in range(r.first, r.last + 1)}
    assert len(told) == terms["evicted/capacity"]
    assert told | world.sent() == set(range(1, 801))


def test_a_lane_that_blocks_takes_nothing_beyond_its_limit_and_goes_on_when_it_is_raised(tmp_path):
    world = Steered(tmp_path)
    with world.up() as host:
        world.apply("1", lanes={"event": {"limit_bytes": 4 * SEGMENT, "when_full": "block"}})
        world.fill(1, 200)
        world.fill(201, 800, wait=False)
        eventually(lambda: count(host, "skerry_submissions_refused_total") > 0)
        held = world.watermark()
        assert 0 < held < 800
        assert balanced(host)["waiting"] == held
        world.apply("2", lanes={"event": {"limit_bytes": 40 * SEGMENT, "when_full": "block"}})
        world.fill(held + 1, 800)
        eventually(lambda: world.watermark() == 800)
        eventually(lambda: host.condition == ("ready", ""))
        assert balanced(host)["waiting"] == 800
        world.apply("3")
        assert balanced(host)["waiting"] == 800


def test_a_lower_limit_of_a_lane_that_blocks_gives_nothing_up(tmp_path):
    world = Steered(tmp_path)
    with world.up() as host:
        world.fill(1, 800)
        eventually(lambda: world.watermark() == 800)
        world.apply("1", lanes={"event": {"limit_bytes": 2 * SEGMENT, "when_full": "block"}})
        assert balanced(host)["waiting"] == 800


def test_a_longer_linger_holds_events_back_and_no_alarm(tmp_path):
    world = Steered(tmp_path, linger_ms=0)
    with world.up():
        world.apply("1", linger_ms=1000)
        world.submit(submission(1, 1))
        for seq in (1, 2):
            world.submit(submission(seq, seq, oldest=1, epoch="a1", lane="alarm"))
            eventually(lambda seq=seq: world.watermark(epoch="a1") == seq)
        eventually(lambda: world.watermark() == 1)
    assert [told.epoch for told in world.accepted] == ["a1", "a1", "e1"]


def test_a_shorter_backlog_is_told_with_the_next_batch(tmp_path):
    world = Steered(tmp_path, backlog_s=1000)
    with world.up():
        world.submit(submission(1, 1))
        eventually(lambda: world.outbound)
        world.apply("1", backlog_s=0.001)
        world.submit(submission(2, 2, oldest=1))
        eventually(lambda: len(world.outbound) == 2)
    assert [batch.backlog for batch in world.outbound] == [False, True]


def test_the_ledger_holds_under_a_flood_of_limits(tmp_path):
    world = Steered(tmp_path)
    with world.up() as host:
        for n in range(200):
            if n % 5 == 0:
                world.fill(n * 10 + 1, n * 10 + 50)
            patch = {"lanes": {"event": {"limit_bytes": (2 + n % 5) * SEGMENT}}, "linger_ms": n % 3}
            wanted = Desired(module="buffer", version=str(n), digest=digest(patch), patch=patch)
            world.outside.publish(DESIRED, wanted, "buffer")
        eventually(lambda: world.reports and world.reports[-1].version == "199")
        eventually(lambda: world.watermark() == 2000)
        terms = balanced(host)
        assert terms["accepted"] == 2000
        assert terms["evicted/capacity"] > 1000


def test_what_is_kept_outlives_a_restart(tmp_path):
    world = Steered(tmp_path)
    with world.up():
        world.fill(1, 800)
        eventually(lambda: world.watermark() == 800)
        world.apply("1", lanes={"event": {"limit_bytes": 4 * SEGMENT}})
    with world.up() as host:
        world.fill(801, 1600)
        eventually(lambda: world.watermark() == 1600)
        balanced(host)
        assert sum(path.stat().st_size for path in (tmp_path / "log").glob("event-*")) <= 4 * SEGMENT


@pytest.mark.parametrize(
    "patch", [{"limit_bytes": 64 * 1024 * 1024}, {"link": "other"}, {"lanes": {"odd": {}}}]
)
def test_what_makes_no_sense_is_refused(tmp_path, patch):
    world = Steered(tmp_path)
    with world.up():
        message = Desired(module="buffer", version="1", digest=digest(patch), patch=patch)
        world.outside.publish(DESIRED, message, "buffer")
        eventually(lambda: world.reports)
    assert world.reports[-1].state == "refused"
