"""A store that is damaged, emptied or full under a device that runs: what serves goes on, and it heals."""

from __future__ import annotations

import errno
import hashlib
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import needs
from delivery import THOROUGH, Device, Maker, balanced
from skerry import audit
from skerry.bus import Bus
from skerry.service import Host
from skerry.testing import running
from skerry.trust.packages import TrustedPackage
from skerry.updater.module import Updater
from skerry.updater.settings import UpdaterSettings
from skerry.updater.store import Store
from small_disks import fill, small_disk
from store_disks import FailingDisk
from tiny_models import bright_model, write_package

FLIPS = 40 if THOROUGH else 3
WELL = {"received", "inferred", "dropped/superseded", "dropped/restart", "dropped/stopping"}
"""Terms of a ledger in which nothing was lost to damage; devices are stopped and started in these tests."""
AT_ONCE = {"shadow_frames": 1, "probation_s": 0}
OFTEN = {"check_s": 0.2, "scrub_s": 0.3}


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path)


def made(maker: Maker, path: Path | None = None) -> tuple[Device, TrustedPackage, TrustedPackage]:
    """A device that has taken two versions, one after the other, and is off."""
    path = path or maker.room / "device"
    device = Device(path, sources=[{"kind": "folder", "path": str(maker.folder)}])
    write_package(path / "bundled", bright_model(), version="1.0.0")
    maker.publish_root(device)
    old = maker.release("1.1.0", bright_model(box=(0.5, 0.5, 0.251, 0.5)))
    with on(device):
        device.frames()
        device.until(lambda: device.serves(old))
        new = maker.release("1.2.0", bright_model(box=(0.5, 0.5, 0.252, 0.5)))
        device.until(lambda: device.serves(new))
    device.results.clear()
    return device, old, new


@contextmanager
def on(device: Device, **updater: object) -> Iterator[Device]:
    with device.on(device.use(exchange=AT_ONCE), updater={**OFTEN, **updater}):
        yield device


def sound(device: Device) -> bool:
    """Whether every blob is what its name says, and every package folder is whole."""
    for path in (device.store / "blobs" / "sha256").iterdir():
        if hashlib.sha256(path.read_bytes()).hexdigest() != path.name:
            return False
    return True


def flip(path: Path, draw: random.Random) -> None:
    """Another bit, in place: as a disk does it, and all names of the file show it."""
    at = draw.randrange(path.stat().st_size)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << draw.randrange(8)]))


@pytest.mark.timeout(600)
def test_any_byte_of_the_store_that_flips_under_a_device_is_found_and_healed(maker: Maker) -> None:
    device, _, new = made(maker)
    draw = random.Random(6)
    with on(device):
        device.frames()
        device.until(lambda: device.results)
        for _ in range(FLIPS):
            blobs = sorted((device.store / "blobs" / "sha256").iterdir())
            damaged = draw.choice(blobs)
            seen = len(device.results)
            flip(damaged, draw)

            def healed() -> bool:
                return device.serves(new) and sound(device) and device.ailment == ""

            device.until(healed)
            assert {r.model for r in device.results[seen:]} <= {"tiny@1.2.0", "tiny@1.1.0", "tiny@1.0.0"}
    assert device.audited("scrubbed"), "it was said"
    terms = device.terms()
    assert balanced(terms)
    assert set(terms) <= WELL
    with Store.open(device.store) as store:
        assert (store.found, store.scrub()) == ((), ())


@pytest.mark.parametrize("both", [False, True], ids=["current", "current and previous"])
def test_a_device_that_starts_with_a_damaged_store_serves_the_one_before_and_heals(
    maker: Maker, both: bool
) -> None:
    device, old, new = made(maker)
    for package in (new, old) if both else (new,):
        flip(device.store / "packages" / package.manifest.digest / "model.onnx", random.Random(1))
    with device.inferring(device.use(exchange=AT_ONCE)):
        assert device.use_of().digest == ("" if both else old.manifest.digest)
        assert "current: " in device.use_of().passed_over
        device.frames()
        device.until(lambda: len(device.results) > 3)
        assert {result.model for result in device.results} == {"tiny@1.0.0" if both else "tiny@1.1.0"}
        with device.updating(**OFTEN):
            device.until(lambda: device.serves(new) and sound(device))
        device.still()
    assert device.audited("scrubbed", "fell_back")


FOLDERS = ["packages", "blobs", "slots", "states", "partial", "."]


@pytest.mark.parametrize("what", FOLDERS if THOROUGH else ["blobs", "slots", "."])
def test_a_store_that_loses_a_folder_under_a_device_is_filled_again(maker: Maker, what: str) -> None:
    device, _, new = made(maker)
    with on(device):
        device.frames()
        device.until(lambda: len(device.results) > 3)
        victim = device.store / what
        for path in list(victim.iterdir()):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if what == "partial":
            victim.rmdir()
        device.until(lambda: len(device.results) > 10)
        assert device.results[-1].status == "ok"
    with on(device):
        device.frames()
        device.until(lambda: device.serves(new) and sound(device))
    terms = device.terms()
    assert balanced(terms)
    assert set(terms) <= WELL


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
def test_a_disk_that_fails_for_a_while_under_an_updater_costs_time_and_nothing_else(
    maker: Maker, code: int
) -> None:
    device, _, new = made(maker)
    draw = random.Random(code)
    well = [True]
    disk = FailingDisk(lambda name, _: code if not well[0] and name != "read" and draw.random() < 0.3 else 0)

    def run(settings: UpdaterSettings, bus: Bus, host: Host) -> None:
        with Store.open(device.store, settings.room, disk=disk) as store:
            Updater(settings, bus, host, store).run()

    with device.inferring(device.use(exchange=AT_ONCE)):
        with running(run, device.updater_settings(**OFTEN), device.another_bus(), "updater") as host:
            device.hosts["updater"] = host
            device.frames()
            device.until(lambda: device.serves(new) and host.condition[0] == "ready")
            well[0] = False
            newer = maker.release("1.3.0", bright_model(box=(0.5, 0.5, 0.253, 0.5)))
            device.until(lambda: device.ailment or device.serves(newer))
            seen = len(device.results)
            device.until(lambda: len(device.results) > seen + 20)
            well[0] = True
            device.until(lambda: device.serves(newer) and device.ailment == "")
        device.still()
    assert {result.status for result in device.results} == {"ok"}
    assert audit.verify(device.path / "updater" / "audit").problems == ()
    with Store.open(device.store) as store:
        assert (store.found, store.scrub()) == ((), ())


@needs.small_disks
@pytest.mark.parametrize("folder", ["store", "updater"])
def test_a_full_disk_under_an_updater_is_said_and_what_serves_goes_on_until_there_is_room(
    maker: Maker, folder: str
) -> None:
    """Of the store; and of trust, audit log and memory."""
    path = maker.room / "device"
    path.mkdir()
    with small_disk(path / folder, 8) as small:
        device, _, new = made(maker, path)
        with on(device):
            device.frames()
            device.until(lambda: device.serves(new))
            fill(small / "filler")
            newer = maker.release("1.3.0", bright_model(box=(0.5, 0.5, 0.253, 0.5)))
            device.until(lambda: device.ailment != "")
            said = "expected room for" if folder == "store" else "cannot keep what is trusted: No space left"
            device.until(lambda: said in device.ailment)
            seen = len(device.results)
            device.until(lambda: len(device.results) > seen + 20)
            assert {result.model for result in device.results} == {new.title}
            (small / "filler").unlink()
            device.until(lambda: device.serves(newer) and device.ailment == "")
            device.until(lambda: device.audited("confirmed")[-1].fields["version"] == "1.3.0")
        assert audit.verify(device.path / "updater" / "audit").problems == ()
        assert {result.status for result in device.results} == {"ok"}
