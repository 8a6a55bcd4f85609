"""A package from whoever signs it, by a stick, through trust, into the store of a device."""

import shutil
from pathlib import Path

import pytest

from model_folders import NAME, package_folder
from publisher import Publisher
from skerry.errors import PackageError
from skerry.models import layout
from skerry.trust.device import Trust
from skerry.trust.packages import TrustedPackage, choose
from skerry.trust.refusals import RolledBack, Untrusted, WrongSoftware
from skerry.trust.sources import Folder
from skerry.updater.fetch import FolderSource, fetch
from skerry.updater.store import Store


class Device:
    """What an updater does, in the order in which it does it."""

    def __init__(self, room: Path, publisher: Publisher) -> None:
        self.trust = Trust(room / "trust", publisher.anchor)
        self.store = Store.open(room / "store")

    def install(self, stick: Path) -> str:
        packages = self.trust.refresh(Folder(stick), 0.0, clock_trusted=False)
        package = choose(packages, NAME, "x86")
        self.trust.admit(package)
        fetch(self.store, FolderSource(stick), package.manifest)
        config = self.store.config(package.manifest.digest)
        package.require(
            name=config.name,
            version=config.version,
            security_epoch=config.security_epoch,
            length=package.length,
        )
        self.store.activate(NAME, package.manifest.digest)
        self.trust.confirm(package)
        return package.version

    @property
    def serves(self) -> str:
        current = self.store.slots(NAME).current
        return self.store.config(current).version if current else ""


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher(tmp_path / "repository")


@pytest.fixture
def device(tmp_path: Path, publisher: Publisher):
    made = Device(tmp_path / "device", publisher)
    yield made
    made.store.close()


def release(
    publisher: Publisher, room: Path, version: str, epoch: int = 0, said: dict[str, object] | None = None
) -> TrustedPackage:
    """Pack, and sign what was packed, or something else of it."""
    packed = layout.pack(package_folder(room / version, version), publisher.folder, security_epoch=epoch)
    about = {"name": NAME, "version": version, "security_epoch": epoch, "length": packed.listing.size}
    package = TrustedPackage(digest=f"sha256:{packed.listing.digest}", **(about | (said or {})))  # type: ignore[arg-type]
    publisher.add(package)
    return package


def test_a_released_package_serves_after_a_way_over_a_stick(
    tmp_path: Path, publisher: Publisher, device: Device
) -> None:
    for n, version in enumerate(("1.0.0", "1.1.0")):
        release(publisher, tmp_path, version, epoch=n)
        stick = tmp_path / f"stick-{n}"
        shutil.copytree(publisher.folder, stick)
        assert device.install(stick) == device.serves == version
    assert device.trust.epoch(NAME) == 1
    with pytest.raises(RolledBack):
        device.install(tmp_path / "stick-0")
    assert device.serves == "1.1.0"


def test_a_stick_with_any_changed_blob_changes_nothing(tmp_path: Path, publisher: Publisher) -> None:
    release(publisher, tmp_path, "1.0.0")
    for blob in sorted(p.name for p in (publisher.folder / "blobs" / "sha256").iterdir()):
        stick = tmp_path / f"stick-{blob}"
        shutil.copytree(publisher.folder, stick)
        path = stick / "blobs" / "sha256" / blob
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        device = Device(tmp_path / f"device-{blob}", publisher)
        with device.store:
            with pytest.raises(PackageError):
                device.install(stick)
            assert (device.serves, device.store.packages()) == ("", ())
            assert device.install(publisher.folder) == device.serves == "1.0.0"


@pytest.mark.parametrize("said", [{"version": "9.0.0"}, {"security_epoch": 7}, {"length": 1}])
def test_a_package_that_is_not_what_was_signed_of_it_is_not_installed(
    tmp_path: Path, publisher: Publisher, device: Device, said: dict[str, object]
) -> None:
    release(publisher, tmp_path, "1.0.0", said=said)
    with pytest.raises(PackageError) as caught:
        device.install(publisher.folder)
    assert isinstance(caught.value, WrongSoftware) or "length" in said
    assert (device.serves, device.trust.epoch(NAME)) == ("", 0)


def test_a_package_that_nobody_signed_is_not_even_fetched(
    tmp_path: Path, publisher: Publisher, device: Device
) -> None:
    release(publisher, tmp_path, "1.0.0")
    unsigned = layout.pack(package_folder(tmp_path / "evil", "6.6.6"), publisher.folder)
    assert device.install(publisher.folder) == "1.0.0"
    assert unsigned.listing.digest not in device.store.packages()
    with pytest.raises(Untrusted):
        device.trust.admit(
            TrustedPackage(
                digest=f"sha256:{unsigned.listing.digest}",
                length=unsigned.listing.size,
                name=NAME,
                version="6.6.6",
            )
        )
