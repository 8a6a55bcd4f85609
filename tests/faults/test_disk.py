"""Disks that are full, that fail to flush, and that are slow, under the real buffer."""

import random
import time
from pathlib import Path

import pytest

import needs
from oracle import check_dense
from small_disks import Glutton, small_disk
from suite import Lines, Suite

pytestmark = [needs.mosquitto, pytest.mark.timeout(150)]
SMALL = {"segment_bytes": 256 * 1024, "limit_bytes": 32 << 20}
BUSY = {"rate": 400, "pad": 600}


@needs.small_disks
@pytest.mark.parametrize("kind", ["tmpfs", pytest.param("ext4", marks=needs.loop_devices)])
def test_a_full_disk_loses_nothing_goes_on_draining_and_recovers_by_itself(tmp_path: Path, kind) -> None:
    draw = random.Random(kind)
    with small_disk(tmp_path / "disk", 16, kind) as disk:
        glutton = Glutton(disk)
        with Suite(tmp_path, state=disk, buffer=SMALL, load=BUSY) as suite:
            suite.wait_for(lambda: suite.delivered() > 100)
            for _ in range(3):
                glutton.eat(leave=draw.randrange(0, 64 * 1024))
                try:
                    suite.hold("uplink")  # so that what is on disk grows until the disk refuses
                    held = _refused(suite)
                    suite.release("uplink")
                    suite.wait_for(
                        lambda n=held: suite.delivered() >= n, why="what was accepted drains from a full disk"
                    )
                finally:
                    glutton.let_go()
            account = suite.settle(60)
            print(account)
            assert account.delivered == account.sent == account.accepted
            check_dense(Lines(tmp_path / "far.jsonl").fresh())


def _refused(suite: Suite) -> int:
    """Wait until nothing more is accepted; how much was."""
    accepted, since = -1, time.monotonic()
    deadline = since + 40
    while time.monotonic() - since < 1.0:
        assert time.monotonic() < deadline, "the disk never became full"
        now = suite.tally()["accepted"]
        if now != accepted:
            accepted, since = now, time.monotonic()
        time.sleep(0.05)
    return accepted


@needs.strace
@pytest.mark.parametrize(
    "fault",
    ["error=EIO:when=12+17", "error=EIO:when=30..33", "delay_exit=60000"],
    ids=["eio", "eio-run", "slow"],
)
def test_a_disk_that_fails_to_flush_or_is_slow_loses_nothing(tmp_path: Path, fault: str) -> None:
    wrap = ["strace", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=fdatasync,fsync"]
    wrap += ["-e", f"inject=fdatasync,fsync:{fault}"]
    with Suite(tmp_path, wrappers={"buffer": wrap}, buffer=SMALL, load={"rate": 150}) as suite:
        suite.wait_for(lambda: suite.delivered() > 300, 30)
        suite.kill("buffer")
        before = suite.delivered()
        suite.wait_for(lambda: suite.delivered() > before + 200, 30)
        account = suite.settle(40)
        print(account)
        assert account.delivered == account.sent == account.accepted
        check_dense(Lines(tmp_path / "far.jsonl").fresh())
