"""Drift and the updater: a package that drifts soon after it was confirmed goes, where the site says so."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from delivery import SLOT, Device, Frames, Maker
from inference_site import Camera
from skerry.inference.drift import Sample, baseline
from skerry.messages import FrameRef
from skerry.models.slots import Slots
from tiny_models import LABELS, bright_model, write_package

WINDOW, IN_A_ROW = 20, 2
DRIFT = ("gate: brightness",)
OFTEN = {"check_s": 0.2}
ON = {SLOT: {"model": "tiny", "rollback_on_drift": True}}


def of(brightness: float) -> dict[str, Any]:
    """The baseline of a model that was made for this brightness."""
    level = float(round(brightness * 255))
    samples = [Sample({"brightness": [level], "objects": [1.0]})] * 20 * WINDOW
    return msgspec.to_builtins(baseline(samples, len(LABELS), every_s=1, window=WINDOW, in_a_row=IN_A_ROW))


@dataclass
class Ticking(Camera):
    """A second of the media between two frames."""

    def capture(self, brightness: float = 0.5, **changes: Any) -> FrameRef:
        return super().capture(brightness, **{**changes, "media_ns": self.number * 1_000_000_000})


@contextmanager
def device(
    path: Path, maker: Maker, slots: dict[str, Any], *cameras: str, shown: float = 0.5
) -> Iterator[tuple[Device, list[Frames]]]:
    """One that came with version 1.0.0, made for a brightness of 0.5, and sees that, a camera a slot."""
    if (path / "frames").exists():  # of an earlier life
        shutil.rmtree(path / "frames")
    made = Device(path, slots=slots)
    write_package(path / "bundled", bright_model(), version="1.0.0", baseline=of(0.5))
    maker.publish_root(made)
    made.sources = [{"kind": "folder", "path": str(maker.folder)}]
    names = cameras or ("gate",)
    uses = [made.use(slot, cameras=[camera]) for slot, camera in zip(slots, names, strict=True)]
    shows: list[Frames] = []
    with made.on(*uses, updater=OFTEN):
        try:
            for name in names:
                camera = Ticking(path / "frames", made.bus, name)
                shows.append(Frames(camera, 0.005, shown, kept=True))
            yield made, shows
        finally:
            for each in shows:
                each.stop()


def see(made: Device, windows: int = 3, camera: str = "gate") -> None:
    """Let so many windows go by."""

    def seen() -> int:
        return sum(result.camera == camera for result in list(made.results))

    wanted = seen() + windows * WINDOW
    made.until(lambda: seen() >= wanted)


def rolled_back(made: Device) -> list[tuple[Any, Any, Any]]:
    """Slot, version and reason of each rollback that is in the audit log."""
    return [
        tuple(entry.fields[name] for name in ("slot", "version", "reason"))  # type: ignore[misc]  # three
        for entry in made.audited("rolled_back")
    ]


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path / "maker")


def test_drift_soon_after_a_package_was_confirmed_rolls_back_where_the_site_says_so_and_only_there(
    tmp_path: Path, maker: Maker
) -> None:
    late = {"model": "tiny", "rollback_on_drift": True, "drift_within_s": 0.001}
    slots = {**ON, "ramp": {"model": "tiny"}, "yard": late}
    with device(tmp_path / "device", maker, slots, "gate", "ramp", "yard") as (made, _):
        good = maker.release("1.1.0", baseline=of(0.5))
        made.until(lambda: all(made.serves(good, slot) for slot in slots))
        bad = maker.release("1.2.0", baseline=of(0.9))
        made.until(lambda: rolled_back(made))
        made.until(lambda: made.serves(good) and made.serves(bad, "ramp") and made.serves(bad, "yard"))
        assert made.named() == Slots(current=good.manifest.digest), "there is nothing to go on to"
        reason = "drift soon after it was confirmed: gate: brightness"
        made.until(lambda: made.update().reason == f"it failed here: {reason}")
        # The package before is judged by its own baseline; where nothing is to follow, drift is reported.
        see(made)
        for slot in ("ramp", "yard"):
            made.until(lambda slot=slot: made.use_of(slot).drift == (f"{slot}: brightness",))
            made.until(lambda slot=slot: made.serves(bad, slot))
        assert made.use_of().drift == ()
        assert made.serves(good)
        assert rolled_back(made) == [(SLOT, "1.2.0", reason)]
        assert {entry.fields["slot"] for entry in made.audited("refused")} == {SLOT}
        assert made.models() == ["tiny@1.0.0", "tiny@1.1.0", "tiny@1.2.0", "tiny@1.1.0"]


def test_where_both_packages_drift_it_is_the_site_and_nothing_goes_to_and_fro(
    tmp_path: Path, maker: Maker
) -> None:
    with device(tmp_path / "device", maker, ON) as (made, (show,)):
        first = maker.release("1.1.0", baseline=of(0.5))
        made.until(lambda: made.serves(first))
        show.brightness = 0.3  # the lamp fails just after
        made.until(lambda: made.serves(None))
        made.until(lambda: made.use_of().drift == DRIFT)
        see(made, 2 * IN_A_ROW)
        assert made.serves(None)
        assert [version for _, version, _ in rolled_back(made)] == ["1.1.0"]
    # What drifted under the package before is not laid at the door of the next one, in another life either.
    second = maker.release("1.2.0", baseline=of(0.5))
    with device(tmp_path / "device", maker, ON, shown=0.3) as (made, _):
        made.until(lambda: made.serves(second))
        made.until(lambda: made.use_of().drift == DRIFT)
        see(made, IN_A_ROW)
        assert made.serves(second)
        assert len(rolled_back(made)) == 1
