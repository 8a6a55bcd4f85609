"""A device that asks for attestations, and what comes to it on a stick."""

from pathlib import Path

import pytest

from attested import GATEWAY, attestation, figures
from model_folders import package_folder
from publisher import NOW, Publisher
from skerry.models import layout
from skerry.models.benching.statement import encode, summary
from skerry.settings import parse
from skerry.trust.packages import TrustedPackage
from skerry.trust.refusals import Unattested
from skerry.updater.install import install
from skerry.updater.settings import UpdaterSettings


@pytest.fixture
def publisher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publisher:
    monkeypatch.setattr("time.time", lambda: NOW + 60)
    return Publisher(tmp_path / "stick")


def released(publisher: Publisher, version: str, *, attested: str = "", **said: object) -> TrustedPackage:
    """A package that is signed, and attested for a class."""
    folder = package_folder(publisher.folder.parent / f"made-{version}", version)
    packed = layout.pack(folder, publisher.folder)
    digest = f"sha256:{packed.listing.digest}"
    made = attestation(digest, attested or GATEWAY, **said)
    package = TrustedPackage(
        digest=digest, length=packed.listing.size, name=packed.config.name, version=version,
        attestations=(summary(made, encode(made)),) if attested else (),
    )  # fmt: skip
    publisher.add(package)
    return package


def device(publisher: Publisher, tmp_path: Path, *, asks: bool = True) -> UpdaterSettings:
    root = tmp_path / "root.json"
    root.write_bytes(publisher.anchor)
    return parse(
        UpdaterSettings,
        {
            "site": "s", "module": "updater", "state": str(tmp_path / "state"), "bus": {},
            "store": str(tmp_path / "store"), "root": str(root), "inference": "inference",
            "sources": [{"kind": "folder", "path": str(publisher.folder)}],
            "slots": {"belt": {"model": "tiny"}}, "device_class": GATEWAY, "require_attestation": asks,
        },
        "settings",
    )  # fmt: skip


def taken(publisher: Publisher, tmp_path: Path, *, asks: bool = True) -> str:
    (done,) = install(publisher.folder, device(publisher, tmp_path, asks=asks))
    return done.package.version


def test_an_unattested_package_stays_on_the_stick(publisher: Publisher, tmp_path: Path) -> None:
    released(publisher, "1.0.0")
    with pytest.raises(Unattested, match=r"tiny@1\.0\.0: expected an attestation for class amd64-gateway"):
        taken(publisher, tmp_path)
    assert taken(publisher, tmp_path, asks=False) == "1.0.0"


def test_one_that_was_measured_on_another_class_or_missed_the_budget_stays_there_too(
    publisher: Publisher, tmp_path: Path
) -> None:
    released(publisher, "1.0.0", attested="arm64-4gb")
    released(publisher, "1.1.0", attested=GATEWAY, figures=figures(memory_mib=900))
    with pytest.raises(Unattested, match=r"tiny@1\.1\.0: expected the budget of class amd64-gateway to be"):
        taken(publisher, tmp_path)


def test_the_newest_that_is_attested_for_this_class_is_taken(publisher: Publisher, tmp_path: Path) -> None:
    released(publisher, "1.0.0", attested=GATEWAY)
    released(publisher, "1.1.0")
    assert taken(publisher, tmp_path) == "1.0.0"


def test_a_package_is_taken_once_its_attestation_was_signed(publisher: Publisher, tmp_path: Path) -> None:
    package = released(publisher, "1.0.0")
    with pytest.raises(Unattested):
        taken(publisher, tmp_path)
    made = attestation(package.digest)
    publisher.repository.attest(package.digest, [summary(made, encode(made))], publisher.signers, NOW)
    assert taken(publisher, tmp_path) == "1.0.0"
