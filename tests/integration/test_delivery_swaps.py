"""Many swaps under load, several slots, and what one of them has to do with another: nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from delivery import THOROUGH, Device, Maker, balanced, gaps
from skerry.service import rss_mb
from tiny_models import bright_model, write_package

SWAPS = 50 if THOROUGH else 6
AT_ONCE = {"shadow_frames": 1, "probation_s": 0}


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path)


def made(maker: Maker, *names: str, **changes: Any) -> Device:
    """A device that came with version 1.0.0 of these."""
    device = Device(maker.room / "device", **changes)
    device.sources = [{"kind": "folder", "path": str(maker.folder)}]
    for name in names or ("tiny",):
        folder = "bundled" if name == "tiny" else f"bundled-{name}"
        write_package(device.path / folder, bright_model(), name=name, version="1.0.0")
    maker.publish_root(device)
    return device


def desire(device: Device, number: int, **slots: str) -> None:
    """Have these slots at these versions."""
    patch = {"slots": {slot: {"version": version} for slot, version in slots.items()}}
    device.desire("updater", str(number), patch)


@pytest.mark.timeout(600)
def test_swaps_under_load_lose_no_frame_and_keep_no_memory(maker: Maker) -> None:
    """Between two versions, there and back, by what is desired of the slot; frames come 50 times a second."""
    two = [maker.release("1.1.0"), maker.release("1.2.0", bright_model(box=(0.5, 0.5, 0.251, 0.5)))]
    device = made(maker)
    sizes = []
    with device.on(device.use(exchange=AT_ONCE), updater={"check_s": 0.2}):
        frames = device.frames(period_s=0.02)
        device.until(lambda: device.serves(two[1]))
        for n in range(SWAPS):
            package = two[n % 2]
            desire(device, n, belt=package.version)
            device.until(lambda package=package: device.serves(package))
            sizes.append(rss_mb())
        device.still()
        last = frames.camera.number
        device.until(lambda: device.results[-1].number == last)
        confirmed = device.hosts["inference"].telemetry.values()[
            "skerry_model_exchanges_total{outcome=confirmed}"
        ]
    assert confirmed == SWAPS + 1
    assert device.models() == [f"tiny@1.{n}.0" for n in (0, 2, *(1 + n % 2 for n in range(SWAPS)))]
    terms = device.terms()
    assert balanced(terms)
    assert terms["received"] == last
    assert set(terms) <= {"received", "inferred", "dropped/superseded"}
    longest = max(gaps(device.results, "gate"))
    print("longest gap, frame periods:", longest / 0.02, "memory, MB:", sizes)
    # Loaded anew each time, and given back: what is left after the first few is left for good.
    assert sizes[-1] - sizes[min(5, SWAPS // 2)] < 20, sizes


def test_each_slot_of_two_has_a_model_of_its_own_and_one_that_goes_back_leaves_the_other_alone(
    maker: Maker,
) -> None:
    first = maker.release("1.1.0")
    other = maker.release("2.1.0", name="other")
    device = made(maker, "tiny", "other", slots={"belt": {"model": "tiny"}, "hall": {"model": "other"}})
    uses = (
        device.use(cameras=["gate"], exchange=AT_ONCE),
        device.use("hall", "bundled-other", cameras=["door"], exchange=AT_ONCE),
    )
    with device.on(*uses, updater={"check_s": 0.2}):
        device.frames("gate")
        device.frames("door")
        device.until(lambda: device.serves(first) and device.serves(other, "hall"))
        newer = maker.release("1.2.0")
        device.until(lambda: device.serves(newer))
        before = len(device.results), len(device.audited())
        desire(device, 1, belt="1.1.0")
        device.until(lambda: device.serves(first))
        results = device.results[before[0] :]
        told = device.audited()[before[1] :]
    assert device.models("gate") == ["tiny@1.0.0", "tiny@1.1.0", "tiny@1.2.0", "tiny@1.1.0"]
    assert device.models("door") == ["other@1.0.0", "other@2.1.0"]
    assert {r.model for r in results if r.camera == "door"} == {"other@2.1.0"}
    assert {entry.fields["slot"] for entry in told if "slot" in entry.fields} == {"belt"}
    for camera in ("gate", "door"):
        terms = device.terms(camera)
        assert balanced(terms)
        assert set(terms) <= {"received", "inferred", "dropped/superseded"}
        numbers = [r.sequence for r in device.results if r.camera == camera]
        assert numbers == list(range(1, len(numbers) + 1))


def test_one_model_serves_many_cameras_and_is_exchanged_for_all_of_them_at_once(maker: Maker) -> None:
    package = maker.release("1.1.0")
    device = made(maker)
    cameras = [f"camera-{n}" for n in range(4)]
    with device.on(device.use(exchange=AT_ONCE), updater={"check_s": 0.2}):
        for camera in cameras:
            device.frames(camera, period_s=0.04)
        device.until(lambda: device.serves(package))
        seen = len(device.results) + 20
        device.until(lambda: len(device.results) > seen)
    for camera in cameras:
        assert device.models(camera) == ["tiny@1.0.0", "tiny@1.1.0"]
        assert balanced(device.terms(camera))
    models = [result.model for result in device.results]
    assert models == sorted(models), "one after the other for all of them, never back"


def test_two_slots_have_the_same_model_at_two_versions_and_each_is_moved_alone(maker: Maker) -> None:
    old, new = maker.release("1.1.0"), maker.release("1.2.0")
    slots = {"belt": {"model": "tiny"}, "hall": {"model": "tiny", "version": "1.1.0"}}
    device = made(maker, slots=slots)
    uses = (
        device.use(cameras=["gate"], exchange=AT_ONCE),
        device.use("hall", cameras=["door"], exchange=AT_ONCE),
    )
    with device.on(*uses, updater={"check_s": 0.2}):
        device.frames("gate")
        device.frames("door")
        device.until(lambda: device.serves(new) and device.serves(old, "hall"))
        desire(device, 1, hall="1.2.0")
        device.until(lambda: device.serves(new, "hall"))
        assert device.serves(new)
        desire(device, 2, belt="1.1.0", hall="1.2.0")
        device.until(lambda: device.serves(old))
        assert device.serves(new, "hall")
        packages = sorted(p.name for p in (device.store / "packages").iterdir())
    assert packages == sorted([old.manifest.digest, new.manifest.digest]), "each is there once"
    assert device.models("gate") == ["tiny@1.0.0", "tiny@1.2.0", "tiny@1.1.0"]
    assert device.models("door") == ["tiny@1.0.0", "tiny@1.1.0", "tiny@1.2.0"]


def test_what_is_not_desired_any_more_is_taken_back_while_it_is_on_probation(maker: Maker) -> None:
    old, new = maker.release("1.1.0"), maker.release("1.2.0", bright_model(box=(0.5, 0.5, 0.251, 0.5)))
    device = made(maker, slots={"belt": {"model": "tiny", "version": "1.1.0"}})
    exchange = {"shadow_frames": 1, "probation_s": 1.5}
    with device.on(device.use(exchange=exchange), updater={"check_s": 0.2}):
        device.frames()
        device.until(lambda: device.serves(old))
        desire(device, 1, belt="1.2.0")
        device.until(
            lambda: (device.use_of().offered, device.use_of().step) == (new.manifest.digest, "probation")
        )
        desire(device, 2, belt="1.1.0")
        device.until(lambda: "taken back" in device.use_of().reason and device.serves(old))
        device.until(lambda: device.results[-1].model == "tiny@1.1.0")
        device.until(lambda: device.audited("withdrawn"))
        # It has not failed: it is tried again when it is desired again.
        desire(device, 3, belt="1.2.0")
        device.until(lambda: device.serves(new))
        # What has served before is gone back to at once, whatever it differs in.
        desire(device, 4, belt="1.1.0")
        device.until(lambda: device.serves(old))
        steps = [e.fields for e in device.audited("step") if e.fields["step"] == "probation"]
        assert [fields["reason"] for fields in steps[-2:]] == ["for 1.5 s", "for 0 s"]
    assert device.models() == [f"tiny@1.{n}.0" for n in (0, 1, 2, 1, 2, 1)]
    assert balanced(device.terms())
