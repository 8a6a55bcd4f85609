"""`skerry model audit`, as a person calls it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from evidenced import CALIBRATION, built
from skerry.audit import AuditLog, Head
from skerry.cli import main
from skerry.models import layout
from skerry.models.evidence.files import add
from skerry.updater.fetch import FolderSource, fetch
from skerry.updater.settings import StoreSettings
from skerry.updater.store import Store
from store_disks import QuickDisk

Read = Callable[..., dict[str, Any]]


@dataclass
class Device:
    """A device on which two versions were installed, the second of which serves in slot gate."""

    room: Path
    head: Head
    digests: tuple[str, str]

    @property
    def log(self) -> Path:
        return self.room / "audit"

    @property
    def store(self) -> Path:
        return self.room / "store"

    def append(self, what: Any, **fields: Any) -> None:
        with AuditLog(self.log, disk=QuickDisk()) as log:
            assert log.append(what, **fields) is not None
            self.head = log.head


def opened(folder: Path) -> Store:
    return Store.open(folder, StoreSettings(quota_bytes=1_000_000, floor_bytes=0), disk=QuickDisk())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Device:
    tmp_path = tmp_path_factory.mktemp("device")
    digests = []
    with (
        opened(tmp_path / "store") as store,
        AuditLog(tmp_path / "audit", disk=QuickDisk()) as log,
    ):
        for n, version in enumerate(("1.0.0", "2.0.0"), 1):
            folder, record = built(tmp_path / version, version)
            add(folder, record)
            packed = layout.pack(folder, tmp_path / "layout", security_epoch=2)
            digest = packed.listing.digest
            digests.append(digest)
            about = {"slot": "gate", "model": "tiny", "version": version, "digest": digest}
            log.append("refreshed", root=1, targets=n)
            log.append("chosen", reason="the site asks for it", **about)
            fetch(store, FolderSource(tmp_path / "layout"), packed.listing.manifest)
            log.append("fetched", model="tiny", version=version, digest=digest)
            store.offer("gate", digest, model="tiny")
            log.append("offered", **about)
            for step in ("compatible", "proved", "confirmed"):
                log.append("step", step=step, reason=f"as \x1b[31m{step}", **about)
            store.confirm("gate", model="tiny")
            log.append("confirmed", **about)
        head = log.head
    return Device(tmp_path, head, (digests[0], digests[1]))


@pytest.fixture
def device(made: Device, tmp_path: Path) -> Device:
    room = tmp_path / "device"
    shutil.copytree(made.room, room, symlinks=True)
    return replace(made, room=room)


@pytest.fixture
def audit(capsys: pytest.CaptureFixture[str]) -> Read:
    def run(*options: object, code: int = 0) -> dict[str, Any]:
        assert main(["model", "audit", *map(str, options), "--json"]) == code
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert found["good"] is (code == 0)
        return found

    return run


def states(found: dict[str, Any]) -> dict[str, str]:
    (trail,) = found["trails"]
    return {link["name"]: link["state"] for link in trail["links"]}


def broken(found: dict[str, Any]) -> dict[str, str]:
    (trail,) = found["trails"]
    return {link["name"]: link["text"] for link in trail["links"] if link["state"] != "found"}


WHOLE = "calibration", "build", "package", "signed", "fetched", "activation", "confirmed", "slot"


def test_it_follows_a_package_from_its_calibration_set_to_its_slot(device: Device, audit: Read) -> None:
    found = audit(device.log, "--store", device.store, "--head", device.head)
    assert states(found) == dict.fromkeys(WHOLE, "found")
    (trail,) = found["trails"]
    assert (trail["slot"], trail["digest"]) == ("gate", device.digests[1])
    text = {link["name"]: link["text"] for link in trail["links"]}
    assert CALIBRATION in text["calibration"]
    assert "onnx-int8 (onnxruntime 1.31.1)" in text["build"]
    assert device.digests[1] in text["package"]
    assert text["signed"].startswith("root 1, targets 2 (entry 9")
    assert text["activation"].startswith("compatible, proved, confirmed")
    assert len(found["log"]) == 16


def test_it_tells_what_happened_and_lets_no_text_command_the_terminal(
    device: Device, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model", "audit", str(device.log), "--store", str(device.store), "--last", "2"]) == 0
    shown = capsys.readouterr().out
    assert "step confirmed       as ?[31mconfirmed" in shown
    assert "\x1b" not in shown
    assert "gate       tiny@2.0.0       confirmed" in shown
    assert "tiny@1.0.0" not in shown
    assert f"head       {device.head}" in shown
    assert "log        16 entries from 1 on: each follows the one before" in shown


@pytest.mark.parametrize("form", ["folder", "layout"])
def test_a_package_is_followed_in_the_log_without_a_store(device: Device, audit: Read, form: str) -> None:
    named = ["2.0.0"] if form == "folder" else ["layout", "--digest", device.digests[1][:12]]
    found = audit(device.log, "--package", device.room / named[0], *named[1:])
    assert states(found) == dict.fromkeys(WHOLE[:-1], "found")
    assert found["trails"][0]["digest"] == device.digests[1]


def test_a_package_that_serves_nowhere_says_so(device: Device, audit: Read) -> None:
    found = audit(device.log, "--package", device.room / "1.0.0", "--store", device.store, code=65)
    assert broken(found) == {"slot": "it is current in no slot of the store"}


def test_a_changed_log_ends_with_65_and_says_where(device: Device, audit: Read) -> None:
    (path,) = device.log.iterdir()
    path.write_bytes(path.read_bytes().replace(b'"targets":2', b'"targets":3'))
    found = audit(device.log, code=65)
    assert found["problems"][0].startswith("00000001.jsonl, line 9: expected an entry as it was written")


def test_a_log_that_was_cut_short_is_found_by_its_head(device: Device, audit: Read) -> None:
    (path,) = device.log.iterdir()
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    audit(device.log)
    found = audit(device.log, "--head", device.head, code=65)
    assert found["problems"] == ["expected entry 16, which was reported, got 15 as the last"]


def test_a_slot_that_was_changed_behind_the_log_is_wrong(device: Device, audit: Read) -> None:
    with Store.open(
        device.store, StoreSettings(quota_bytes=1_000_000, floor_bytes=0), disk=QuickDisk()
    ) as store:
        store.roll_back("gate")
    found = audit(device.log, "--store", device.store, code=65)
    one, two = device.digests
    assert broken(found) == {"slot": f"entry 16 confirmed {two[:16]}, current is {one[:16]}"}
    device.append("rolled_back", slot="gate", digest=two, reason="it drifted")
    assert states(audit(device.log, "--store", device.store))["slot"] == "found"


def test_a_package_that_the_log_says_was_rolled_back_must_not_serve(device: Device, audit: Read) -> None:
    device.append("rolled_back", slot="gate", digest=device.digests[1])
    found = audit(device.log, "--store", device.store, code=65)
    assert broken(found) == {"slot": "entry 17: it was rolled_back, and is current still"}


def test_what_the_log_does_not_tell_is_missing(device: Device, audit: Read) -> None:
    shutil.rmtree(device.log)
    device.append("scrubbed", reason="nothing")
    found = audit(device.log, "--store", device.store, code=65)
    assert set(broken(found)) == {"signed", "fetched", "activation", "confirmed", "slot"}


def test_a_changed_file_of_the_package_breaks_its_links(device: Device, audit: Read) -> None:
    path = device.store / "packages" / device.digests[1] / "model.onnx"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1] + b"?")
    found = audit(device.log, "--store", device.store, code=65)
    assert set(broken(found)) == {"package"}
    assert "model.onnx: expected sha256" in broken(found)["package"]


def test_a_package_without_evidence_has_no_calibration_and_no_build(device: Device, audit: Read) -> None:
    built(device.room / "3.0.0", "3.0.0")
    found = audit(device.log, "--package", device.room / "3.0.0", code=65)
    assert {"calibration", "build"} <= set(broken(found))
    assert "tiny@3.0.0 has no provenance.json" in broken(found)["build"]


def test_a_store_whose_manifest_is_gone_is_wrong_and_no_crash(device: Device, audit: Read) -> None:
    (device.store / "blobs" / "sha256" / device.digests[1]).unlink()
    found = audit(device.log, "--store", device.store, code=65)
    assert {"calibration", "build", "package"} <= set(broken(found))


def test_what_is_not_there_ends_with_69(device: Device, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "audit", str(device.room / "none")]) == 69
    assert "expected the folder of an audit log" in capsys.readouterr().err
    assert main(["model", "audit", str(device.log), "--store", str(device.room / "none")]) == 69
    assert "expected the slots of a model store" in capsys.readouterr().err


def test_a_head_that_is_none_is_no_option(device: Device, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["model", "audit", str(device.log), "--head", "16"])
    assert "expected NUMBER:HASH" in capsys.readouterr().err
