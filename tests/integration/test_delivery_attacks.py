"""Every way of attacking a delivery, tried on a device that runs: the old model serves on, and the device
says why; what comes next and is good is taken.

What each rule refuses, and that nothing of it is kept, is tested in tests/unit/trust and tests/unit/models.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from delivery import QUICK, THOROUGH, Device, Maker
from publisher import resigned, some_keys
from skerry import audit
from skerry.models import oci
from skerry.trust.packages import TrustedPackage
from skerry.trust.sources import METADATA
from tiny_models import bright_model, write_package

BLOBS = Path("blobs/sha256")


@dataclass
class World:
    """A device that runs and has taken every good version so far, and the stick that it looks at."""

    maker: Maker
    device: Device
    stick: Path
    good: TrustedPackage
    released: int = 0

    def release(self, **changes: Any) -> TrustedPackage:
        """The next version; nobody has seen it yet."""
        self.released += 1
        box = (0.5, 0.5, 0.25 + self.released / 10_000, 0.5)  # no two have the same weights
        return self.maker.release(f"1.{self.released}.0", bright_model(box=box), **changes)

    def copied(self) -> Path:
        """A copy of the repository, to be tampered with."""
        copy = self.stick.with_name("tampered")
        shutil.copytree(self.maker.folder, copy)
        return copy

    def plug(self, copy: Path) -> None:
        """Have the device see this copy, all of it at once."""
        old = self.stick.with_name("unplugged")
        if self.stick.exists():
            self.stick.rename(old)
        copy.rename(self.stick)
        shutil.rmtree(old, ignore_errors=True)

    def give_good(self) -> None:
        """A good version is taken, whatever came before."""
        self.good = self.release()
        self.plug(self.copied())
        self.device.until(lambda: self.device.serves(self.good))
        self.device.until(lambda: self.device.ailment == "")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    room = tmp_path_factory.mktemp("attacked")
    maker = Maker(room)
    device = Device(room / "device", sources=[{"kind": "folder", "path": str(room / "stick")}])
    write_package(device.path / "bundled", bright_model(), version="1.0.0")
    maker.publish_root(device)
    world = World(maker, device, room / "stick", maker.release("0.0.1"))
    exchange = {**QUICK, "shadow_frames": 1, "probation_s": 0}
    with device.on(device.use(exchange=exchange), updater={"check_s": 0.2}):
        device.frames()
        world.give_good()
        yield world


def metadata(copy: Path, name: str) -> Path:
    return copy / METADATA / name


def stolen(role: str, **signed: Any) -> Callable[[World, Path], None]:
    """A thief of one role's keys signs something else."""

    def attack(world: World, copy: Path) -> None:
        files = world.maker.publisher.stolen(role, lambda s: s.update(signed))
        for name, content in files.items():
            metadata(copy, name).write_bytes(content)

    return attack


def strangers(world: World, copy: Path) -> None:
    content = world.maker.publisher.changed("timestamp.json", lambda _: None, some_keys()["timestamp"])
    metadata(copy, "timestamp.json").write_bytes(content)


def another_repository(world: World, copy: Path) -> None:
    """The folder of another publisher under the name of ours."""
    shutil.rmtree(copy)
    other = Maker(world.maker.room / "other")
    other.release("9.0.0")
    shutil.copytree(other.folder, copy)
    shutil.rmtree(other.room)


def slipped_in(world: World, copy: Path) -> None:
    path = metadata(copy, f"{world.maker.publisher.version('targets')}.targets.json")
    path.write_bytes(path.read_bytes().replace(world.good.version.encode(), b"9.9.9"))


def mixed(world: World, copy: Path) -> None:
    version = world.maker.publisher.version("snapshot")
    shutil.copy(metadata(copy, f"{version - 1}.snapshot.json"), metadata(copy, f"{version}.snapshot.json"))


def endless(_world: World, copy: Path) -> None:
    os.truncate(metadata(copy, "timestamp.json"), 1 << 40)


def rolled_back(world: World, copy: Path) -> None:
    publisher = world.maker.publisher
    value = json.loads(publisher.file("timestamp.json"))
    value["signed"]["version"] -= 2
    metadata(copy, "timestamp.json").write_bytes(resigned(value, publisher.keys["timestamp"]))


def usurped(world: World, copy: Path) -> None:
    """One of two root keys makes a root."""
    publisher = world.maker.publisher
    newest = publisher.version("root")

    def change(signed: dict[str, Any]) -> None:
        signed["version"] = newest + 1

    content = publisher.changed(f"{newest}.root.json", change, publisher.keys["root"][:1])
    metadata(copy, f"{newest + 1}.root.json").write_bytes(content)


def old_root(world: World, copy: Path) -> None:
    newest = world.maker.publisher.version("root")
    shutil.copy(metadata(copy, f"{newest}.root.json"), metadata(copy, f"{newest + 1}.root.json"))


def expired_keys(world: World, copy: Path) -> None:
    """What keys that were exchanged sign."""
    publisher = world.maker.publisher
    stale = dict(publisher.keys)
    publisher.exchange("timestamp")
    shutil.rmtree(copy / METADATA)
    shutil.copytree(publisher.folder / METADATA, copy / METADATA)
    content = publisher.changed("timestamp.json", lambda _: None, stale["timestamp"])
    metadata(copy, "timestamp.json").write_bytes(content)


def linked_metadata(_world: World, copy: Path) -> None:
    path = metadata(copy, "timestamp.json")
    away = copy / "elsewhere.json"
    path.rename(away)
    path.symlink_to(away)


SAMPLED = (
    "another repository under this name", "parts of two days", "endless metadata", "an older timestamp",
    "keys that were exchanged", "a link in the place of metadata",
)  # fmt: skip
"""For every run of the suite; the rules are tested alone, and the module treats all of them alike."""
METADATA_ATTACKS: list[tuple[str, Callable[[World, Path], None], str]] = [
    ("strangers sign", strangers, "arbitrary installation"),
    ("another repository under this name", another_repository, "arbitrary installation"),
    ("a package slipped in", slipped_in, "altered: not what was signed"),
    ("parts of two days", mixed, "mix-and-match"),
    ("endless metadata", endless, "endless data"),
    ("an older timestamp", rolled_back, "rollback: older than what this device has already accepted"),
    ("fast-forward", stolen("timestamp", version=2**53), "not the metadata of a repository"),
    (
        "signed in the future",
        stolen("timestamp", signed_at="2099-01-01T00:00:00Z", expires="2099-02-01T00:00:00Z"),
        "fast-forward of time",
    ),
    (
        "frozen",
        stolen("timestamp", signed_at="2019-12-01T00:00:00Z", expires="2020-01-01T00:00:00Z"),
        "freeze: ",
    ),
    ("one of two root keys", usurped, "arbitrary installation"),
    ("an old root under a new name", old_root, "rollback"),
    ("keys that were exchanged", expired_keys, "arbitrary installation"),
    ("a link in the place of metadata", linked_metadata, "expected a file, got a symbolic link"),
]


TRIED = [a for a in METADATA_ATTACKS if THOROUGH or a[0] in SAMPLED]


@pytest.mark.parametrize(("attack", "said"), [a[1:] for a in TRIED], ids=[a[0] for a in TRIED])
def test_metadata_that_is_not_to_be_trusted_is_refused_and_a_good_one_is_taken_after_it(
    world: World, attack: Callable[[World, Path], None], said: str
) -> None:
    device, before = world.device, world.good
    known, results = len(device.audited("refused")), len(device.results)
    world.release()
    copy = world.copied()
    attack(world, copy)
    world.plug(copy)
    device.until(lambda: said in device.ailment)
    device.until(lambda: len(device.audited("refused")) > known)
    refused = device.audited("refused")[known:]
    assert [said in str(entry.fields["reason"]) for entry in refused] == [True]
    assert device.serves(before)
    assert {result.model for result in device.results[results:]} == {before.title}
    world.give_good()


# What a signed package consists of


def blob(package: TrustedPackage, copy: Path, title: str = "model.onnx") -> Path:
    manifest = json.loads((copy / BLOBS / package.manifest.digest).read_bytes())
    layer = next(x for x in manifest["layers"] if x["annotations"][oci.TITLE] == title)
    return copy / BLOBS / layer["digest"].removeprefix("sha256:")


def flipped(new: TrustedPackage, copy: Path) -> None:
    path = blob(new, copy)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def shortened(new: TrustedPackage, copy: Path) -> None:
    os.truncate(blob(new, copy), 100)


def lengthened(new: TrustedPackage, copy: Path) -> None:
    os.truncate(blob(new, copy), 1 << 40)


def link_out_of_the_tree(new: TrustedPackage, copy: Path) -> None:
    path = blob(new, copy, "manifest.json")
    away = copy.parent / "away.json"
    shutil.move(path, away)
    path.symlink_to(away)


def folder_that_is_a_link(_new: TrustedPackage, copy: Path) -> None:
    away = copy.parent / "away"
    shutil.rmtree(away, ignore_errors=True)
    (copy / BLOBS).rename(away)
    (copy / BLOBS).symlink_to(away)


def manifest_flipped(new: TrustedPackage, copy: Path) -> None:
    path = copy / BLOBS / new.manifest.digest
    path.write_bytes(path.read_bytes().replace(b"labels.txt", b"labels.txT"))


def incomplete(new: TrustedPackage, copy: Path) -> None:
    blob(new, copy).unlink()


COPIES: list[tuple[str, Callable[[TrustedPackage, Path], None], str]] = [
    ("a flipped byte", flipped, "expected that sha256, got "),
    ("a file that is too short", shortened, "bytes of "),
    ("a file that is too long", lengthened, "bytes of "),
    ("a link out of the tree", link_out_of_the_tree, "got a link or something else"),
    ("a folder that is a link", folder_that_is_a_link, "got a link or something else"),
    ("a manifest that was changed", manifest_flipped, "expected "),
    ("a file that is not there", incomplete, "is the copy complete?"),
]


SOME = COPIES if THOROUGH else COPIES[::2]


@pytest.mark.parametrize(("damage", "said"), [c[1:] for c in SOME], ids=[c[0] for c in SOME])
def test_a_copy_that_is_bad_is_not_installed_and_a_good_one_of_the_same_package_is(
    world: World, damage: Callable[[TrustedPackage, Path], None], said: str
) -> None:
    device, before = world.device, world.good
    known = len(device.audited("refused"))
    new = world.release()
    copy = world.copied()
    damage(new, copy)
    world.plug(copy)
    device.until(lambda: "no source has it now" in device.ailment and said in device.ailment)
    # What is only not there is nobody's attack.
    refused = device.audited("refused")[known:]
    assert [said in str(entry.fields["reason"]) for entry in refused] == [True] * (damage is not incomplete)
    assert device.serves(before)
    assert new.manifest.digest not in {p.name for p in (device.store / "packages").iterdir()}
    world.plug(world.copied())
    device.until(lambda: device.serves(new))
    device.until(lambda: device.ailment == "")
    world.good = new


@pytest.mark.parametrize(
    ("signed", "said"),
    [
        ({"version": "7.7.7"}, "version: expected 7.7.7, which was signed"),
        ({"security_epoch": 7}, "security_epoch: expected 7, which was signed"),
        ({"length": 1}, "expected 1 bytes"),
    ],
)
def test_a_package_that_is_not_what_was_signed_of_it_does_not_serve(
    world: World, signed: dict[str, Any], said: str
) -> None:
    """As if parts of two packages were mixed: each of them signed, and not together."""
    device, before = world.device, world.good
    evil = world.release(said=signed)
    world.plug(world.copied())
    device.until(lambda: said in f"{device.update().reason} {device.ailment}")
    device.until(lambda: said in str(device.audited("refused")[-1].fields["reason"]))
    assert device.serves(before)
    world.maker.publisher.repository.remove(
        evil.digest, world.maker.publisher.signers, world.maker.publisher.now
    )
    world.give_good()


def forged_manifest(change: Callable[[dict[str, Any]], None]) -> Callable[[World], TrustedPackage]:
    """A manifest that says something else, whose digest whoever signs was made to sign."""

    def make(world: World) -> TrustedPackage:
        good = world.release()
        folder = world.maker.folder
        value = json.loads((folder / BLOBS / good.manifest.digest).read_bytes())
        change(value)
        raw = oci.canonical(value)
        digest = oci.sha256(raw)
        (folder / BLOBS / digest).write_bytes(raw)
        evil = TrustedPackage(digest=f"sha256:{digest}", length=len(raw), name=good.name, version="8.8.8")
        world.maker.publisher.add(evil)
        return evil

    return make


def titled(title: str) -> Callable[[dict[str, Any]], None]:
    def change(value: dict[str, Any]) -> None:
        value["layers"][-1]["annotations"][oci.TITLE] = title

    return change


def smuggled(value: dict[str, Any]) -> None:
    value["layers"].append(
        {**value["layers"][0], "annotations": {oci.TITLE: "evil.py"}, "urls": ["file:///x"]}
    )


def sized(value: dict[str, Any]) -> None:
    value["layers"][0]["size"] = 1 << 45


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (titled("../../../evil"), "../../../evil"), (titled("/etc/evil"), "/etc/evil"),
        (titled("a//b"), "a//b"), (smuggled, "urls"), (sized, "bytes"),
    ],
    ids=["traversal", "an absolute path", "an odd path", "a smuggled file", "a size that is a lie"],
)  # fmt: skip
def test_a_manifest_that_reaches_beyond_its_package_is_refused_whoever_signed_it(
    world: World, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    device, before = world.device, world.good
    evil = forged_manifest(change)(world)
    outside = sorted(p.name for p in device.path.iterdir())
    world.plug(world.copied())
    device.until(lambda: "slot belt: " in device.ailment and said in device.ailment)
    device.until(lambda: said in str(device.audited("refused")[-1].fields["reason"]))
    assert device.serves(before)
    assert sorted(p.name for p in device.path.iterdir()) == outside
    publisher = world.maker.publisher
    publisher.repository.remove(evil.digest, publisher.signers, publisher.now)
    world.give_good()


def test_roots_that_were_exchanged_while_the_device_was_away_are_followed_from_a_stick(world: World) -> None:
    """Three times, each time all of the keys of every role, the root's too."""
    publisher = world.maker.publisher
    for _ in range(3):
        publisher.renew(days=0.001).exchange("root", "timestamp", "snapshot", "targets")
    world.give_good()
    newest = publisher.version("root")
    assert newest >= 4
    assert world.device.audited("refreshed")[-1].fields["root"] == newest


def test_the_chain_of_all_that_was_refused_is_whole(world: World) -> None:
    """Last in this file: what the tests before it have left."""
    world.give_good()
    last = world.good.version
    world.device.until(lambda: world.device.audited("confirmed")[-1].fields["version"] == last)
    assert audit.verify(world.device.path / "updater" / "audit").problems == ()
    assert "tiny@1.0.0" not in {result.model for result in world.device.results[-5:]}
