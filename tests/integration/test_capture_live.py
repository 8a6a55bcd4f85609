"""The settings of cameras, changed while they run: between two frames, and no frame is lost or torn."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capture_site import Site, gate
from skerry.capture.camera import CameraWorker
from skerry.capture.feed import ArrayPicture
from skerry.capture.module import run
from skerry.capture.window import Consumers
from skerry.channels import DESIRED, FRAMES, REPORTED
from skerry.desired import digest
from skerry.frames import RingReader
from skerry.ledger import read_tally
from skerry.messages import Desired, FrameRef, Reported
from skerry.service import Host
from skerry.testing import eventually, running

SCENE = {"kind": "synthetic", "width": 160, "height": 120, "fps": 60, "noise": 0, "light": 3}
LEFT = [[0, 0], [0.3, 0], [0.3, 1], [0, 1]]
RIGHT = [[0.7, 0], [1, 0], [1, 1], [0.7, 1]]
WIDE = [[0.2, 0.2], [1, 0.2], [1, 0.8], [0.2, 0.8]]


class Steered(Site):
    """A capture module with one camera that is steered; looks at every frame as it comes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.frames_seen: list[tuple[int, bool, bool]] = []
        """(number, whether the left is black, whether the right is) of each frame."""
        self.reports: list[tuple[Reported, int]] = []
        """With the number of the last frame that was written when it came."""
        self.host: Host | None = None
        self._eyes = RingReader(self.frames)
        self.other.subscribe(FRAMES, self._see)
        self.other.subscribe(REPORTED, self._hear)

    def _see(self, ref: FrameRef) -> None:
        with self._eyes.frame(ref) as pixels:
            left, right = pixels[:, :40], pixels[:, 120:]
            self.frames_seen.append((ref.number, not left.any(), not right.any()))

    def _hear(self, report: Reported) -> None:
        assert self.host is not None
        self.reports.append((report, self.host.tally["gate/captured"]))

    def desire(self, version: int, **camera: Any) -> None:
        patch = {"cameras": {"gate": camera}}
        message = Desired(module="capture", version=str(version), digest=digest(patch), patch=patch)
        self.other.publish(DESIRED, message, "capture")

    def applied(self, version: int) -> int:
        """Wait until it is said to be applied; the number of the last frame written by then."""
        eventually(lambda: self.reports and self.reports[-1][0].version == str(version))
        report, number = self.reports[-1]
        assert (report.state, report.restart) == ("applied", ()), report
        return number

    def more(self, count: int) -> list[tuple[int, bool, bool]]:
        """The next frames."""
        seen = len(self.frames_seen)
        eventually(lambda: len(self.frames_seen) >= seen + count)
        return self.frames_seen[seen:]


@pytest.fixture
def site(tmp_path: Path) -> Steered:
    return Steered(tmp_path)


@contextmanager
def steered(site: Steered, **camera: Any) -> Iterator[Host]:
    with running(run, site.settings(gate(SCENE, **camera)), site.bus, "capture") as host:
        site.host = host
        eventually(lambda: len(site.refs) >= 3)
        yield host
    numbers = [ref.number for ref in site.refs]
    assert numbers == list(range(1, len(numbers) + 1))
    assert read_tally(site.folder / "state" / "tally") == {"gate/captured": len(numbers)}


def test_a_mask_holds_from_the_first_frame_written_after_it_is_said_to_be_applied(site):
    with steered(site):
        assert site.frames_seen[-1][1:] == (False, False)
        site.desire(1, more_masks=[LEFT])
        first = site.applied(1)
        site.more(5)
        site.desire(2, more_masks=[LEFT, RIGHT])
        second = site.applied(2)
        site.more(5)
        site.desire(3)
        third = site.applied(3)
        site.more(5)
    assert {seen[1:] for seen in site.frames_seen if seen[0] > third} == {(False, False)}
    assert {seen[1:] for seen in site.frames_seen if first < seen[0] < second - 20} <= {(True, False)}
    assert all(left for number, left, _ in site.frames_seen if first < number <= second)


def test_no_frame_is_torn_lost_or_counted_twice_under_a_flood_of_masks_and_rates(site):
    """Each version has one side masked or the other: a frame between the two would show both, or none."""
    with steered(site, more_masks=[LEFT]):
        for version in range(1, 301):
            site.desire(version, more_masks=[LEFT] if version % 2 else [RIGHT], fps=(60, 1, 20)[version % 3])
            if version % 20 == 0:
                site.applied(version)
        site.desire(999, more_masks=[RIGHT])
        site.applied(999)
        site.more(5)
    assert {seen[1:] for seen in site.frames_seen} == {(True, False), (False, True)}
    assert site.frames_seen[-1][1:] == (False, True)


def test_masks_that_overlap_hide_what_they_share_too(site):
    with steered(site, masks=[WIDE]):
        site.desire(1, more_masks=[[[0, 0], [1, 0], [1, 1], [0, 1]]])
        first = site.applied(1)
        site.more(3)
        assert site.pixels is not None
        assert not site.pixels.any()
        site.desire(2, more_masks=[])
        site.applied(2)
        site.more(3)
        assert not site.pixels[30:90, 40:].any()
        assert site.pixels.any()
    assert all(left and right for number, left, right in site.frames_seen if number == first + 1)


def test_a_rate_holds_from_the_next_frame_on(site):
    with steered(site):
        site.desire(1, fps=10)
        first = site.applied(1)
        site.more(4)
        site.desire(2)
        site.applied(2)
        site.more(4)
    refs = [ref for ref in site.refs if ref.number > first + 1][:3]
    assert [b.media_ns - a.media_ns for a, b in itertools.pairwise(refs)] == pytest.approx(
        [100_000_000] * 2, abs=26_000_000
    )
    last = site.refs[-3:]
    assert last[2].media_ns - last[1].media_ns < 90_000_000


def test_what_needs_a_restart_is_said_and_the_frames_stay_as_they_are(site):
    with steered(site):
        site.desire(1, width=80, rotate=90, fps=30)
        eventually(lambda: site.reports)
        assert set(site.reports[-1][0].restart) == {"cameras.gate.width", "cameras.gate.rotate"}
        site.more(5)
        assert {(ref.width, ref.height) for ref in site.refs} == {(160, 120)}


def test_a_mask_of_the_site_file_cannot_be_taken_away(site):
    with steered(site, masks=[LEFT]):
        site.desire(1, masks=[], more_masks=[])
        eventually(lambda: site.reports)
        assert site.reports[-1][0].state == "refused"
        assert all(left for _, left, _ in site.more(5))


class Slow:
    """A source that gives a frame and then nothing, until it is let go."""

    def __init__(self) -> None:
        self.corrupt, self.note = 0, ""
        self.free = threading.Event()
        self.given = False

    def read(self) -> ArrayPicture:
        if self.given:
            self.free.wait(60)
        self.given = True
        return ArrayPicture(np.zeros((120, 160, 3), np.uint8), None, 0.0)

    def interrupt(self) -> None:
        self.free.set()

    def close(self) -> None:
        self.free.set()


def test_a_shorter_wait_for_a_silent_source_counts_at_once(site):
    settings = site.settings(gate({"kind": "v4l2", "device": "/dev/video0"}, stall_s=600))
    host = Host(settings, "capture", site.bus)
    worker = CameraWorker(
        settings.cameras[0], settings, site.bus, host, open_feed=Slow, window=None, consumers=Consumers(0)
    )
    site.frames.mkdir()
    site.host = host
    worker.start()
    try:
        eventually(lambda: site.states() == ["live"])
        now = host._started
        worker.watch(now + 300)
        assert worker.state == "live"
        other = site.settings(gate({"kind": "v4l2", "device": "/dev/video0"}, stall_s=0.5, late_s=3))
        worker.adjust(other.cameras[0])
        eventually(lambda: worker.watch(now + 300) or "degraded" in site.states())
        assert "expected a frame every 0.5 s, got none" in [said.reason for said in site.said]
    finally:
        worker.end()
        worker.stop(5)
        host.tally.close()
