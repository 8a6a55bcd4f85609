"""Every attack of the TUF specification (1.5.2), and more: refused for its reason, and nothing changed."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.exceptions import FormatError
from securesystemslib.signer import CryptoSigner

from publisher import DAY, NOW, Publisher, Refused, linked, package, resigned, some_keys
from skerry.errors import PackageError, Unavailable
from skerry.trust.device import Trust
from skerry.trust.documents import LIMITS
from skerry.trust.packages import choose
from skerry.trust.refusals import (
    Altered,
    Endless,
    Forged,
    Frozen,
    Malformed,
    MixedUp,
    PostDated,
    RolledBack,
    RootExpired,
    Untrusted,
    WrongSoftware,
)
from skerry.trust.sources import Folder, Memory
from skerry.trust.times import Running

SIGNED = ["timestamp.json", "2.snapshot.json", "2.targets.json"]


# Arbitrary installation


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_metadata_signed_by_strangers_is_refused(publisher: Publisher, refused: Refused, role: str) -> None:
    publisher.add(package("2.0.0"))
    strangers = some_keys()
    name = "timestamp.json" if role == "timestamp" else f"3.{role}.json"
    files = publisher.files | {name: publisher.changed(name, lambda _: None, strangers[role])}
    refused(Forged if role == "timestamp" else Altered, files)
    publisher.keys |= {r: k for r, k in some_keys().items() if r == role}  # even if the rest names it
    above = linked(
        {**files, name: publisher.changed(name, lambda _: None, strangers[role])}, publisher, from_role=role
    )
    error = refused(Forged, above)
    assert f"expected signatures of 1 {role} keys of root 1, got 0" in str(error)


def test_a_package_slipped_into_targets_is_refused(publisher: Publisher, refused: Refused) -> None:
    publisher.add(package("2.0.0"))
    files = publisher.files
    files["3.targets.json"] = files["3.targets.json"].replace(b"2.0.0", b"9.0.0")
    refused(Altered, files)


# Endless data


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_endless_metadata_is_read_no_further_than_its_limit(
    publisher: Publisher, refused: Refused, tmp_path: Path, role: str
) -> None:
    publisher.add(package("2.0.0"))
    name = {"root": "2.root.json", "timestamp": "timestamp.json"}.get(role, f"3.{role}.json")
    with (publisher.folder / "metadata" / name).open("wb") as file:
        file.truncate(1 << 40)  # sparse: reading it would end this process
    error = refused(Endless if role in ("root", "timestamp") else Altered, Folder(publisher.folder))
    assert name in str(error)


def test_a_source_that_gives_more_than_it_was_asked_for_is_refused(
    publisher: Publisher, refused: Refused
) -> None:
    class Chatty(Memory):
        def read(self, name: str, most: int) -> bytes | None:
            content = super().read(name, most)
            return content and content + b" " * LIMITS["targets"]

    refused(Endless, Chatty(publisher.add(package("2.0.0")).files))


# Fast-forward


def test_a_fast_forward_by_a_thief_is_undone_by_new_keys(
    publisher: Publisher, trust: Trust, refused: Refused
) -> None:
    def forward(signed: dict[str, Any]) -> None:
        signed["version"] = 2**52

    trust.refresh(Memory(publisher.stolen("timestamp", forward)), NOW, clock_trusted=True)
    publisher.add(package("2.0.0"))
    refused(RolledBack, publisher.files)  # devices that met the thief are cut off
    publisher.exchange("timestamp", "snapshot")
    assert trust.refresh(publisher.source, NOW, clock_trusted=True) == (package("2.0.0"), package("1.0.0"))


def test_a_version_beyond_any_count_is_refused(publisher: Publisher, refused: Refused) -> None:
    for version in (2**53, 2**64, 10**4000):
        error = refused(Malformed, publisher.stolen("timestamp", lambda s, v=version: s.update(version=v)))
        assert len(str(error)) < 400


def test_time_signed_far_ahead_is_undone_by_new_keys(
    publisher: Publisher, trust: Trust, refused: Refused
) -> None:
    def ahead(signed: dict[str, Any]) -> None:
        signed.update(signed_at="2028-10-01T00:00:00Z", expires="2028-11-01T00:00:00Z", version=9)
        # Beyond snapshot and targets, before the end of the root.

    refused(PostDated, publisher.stolen("timestamp", ahead))  # a clock that is believed sees it
    with pytest.raises(Frozen):  # without one the timestamp is good, and the rest is not
        trust.refresh(Memory(publisher.stolen("timestamp", ahead)), NOW, clock_trusted=False)
    assert trust.floor_s == NOW


def test_no_time_of_signing_reaches_beyond_the_root(publisher: Publisher, refused: Refused) -> None:
    def ahead(signed: dict[str, Any]) -> None:
        signed.update(signed_at="2038-10-01T00:00:00Z", expires="2038-11-01T00:00:00Z", version=9)

    refused(PostDated, publisher.stolen("timestamp", ahead), clock_trusted=False)


def test_a_floor_that_a_thief_has_raised_is_lowered_by_new_keys(
    publisher: Publisher, trust: Trust, refused: Refused
) -> None:
    def ahead(signed: dict[str, Any]) -> None:
        signed.update(signed_at="2027-02-01T00:00:00Z", expires="2028-11-01T00:00:00Z", version=9)

    trust.refresh(Memory(publisher.stolen("timestamp", ahead)), NOW, clock_trusted=False)
    assert trust.floor_s > NOW + 60 * DAY
    publisher.renew(days=1).exchange("timestamp", "snapshot")
    trust.refresh(publisher.source, NOW, clock_trusted=False)
    assert trust.floor_s == publisher.now


def test_an_epoch_that_a_thief_has_raised_is_lowered_by_new_keys(publisher: Publisher, trust: Trust) -> None:
    evil = package("6.6.6", epoch=2**31)
    publisher.add(evil)
    trust.refresh(publisher.source, NOW, clock_trusted=True)
    trust.confirm(evil)
    publisher.repository.remove(evil.digest, publisher.signers, NOW)
    publisher.add(package("2.0.0", epoch=1))
    trust.refresh(publisher.source, NOW, clock_trusted=True)
    with pytest.raises(RolledBack, match="expected security epoch 2147483648 or later, got 1"):
        trust.admit(package("2.0.0", epoch=1))
    publisher.exchange("targets")
    trust.refresh(publisher.source, NOW, clock_trusted=True)
    trust.admit(package("2.0.0", epoch=1))
    assert trust.epoch("parts") == 1
    with pytest.raises(RolledBack):
        trust.admit(package("1.0.0"))


# Freeze


def test_a_frozen_repository_is_refused_by_a_clock_that_is_believed(
    publisher: Publisher, refused: Refused
) -> None:
    old = publisher.files
    error = refused(Frozen, old, now=NOW + 31 * DAY)
    assert "timestamp.json: expected it to last beyond 2026-12-22" in str(error)


@pytest.mark.parametrize(("role", "days"), [("snapshot", 91), ("targets", 366)])
def test_a_snapshot_or_targets_that_have_ended_are_refused(
    publisher: Publisher, refused: Refused, role: str, days: int
) -> None:
    publisher.now += days * DAY  # only the timestamp is signed anew, and whatever else needs be
    later = Memory(publisher.files)
    publisher.renew()

    def young(signed: dict[str, Any]) -> None:
        signed.update(expires="2029-01-01T00:00:00Z")

    value = json.loads(later.files["2.snapshot.json"])
    if role == "targets":
        young(value["signed"])
    later.files["2.snapshot.json"] = resigned(value, publisher.keys["snapshot"])
    timestamp = json.loads(later.files["timestamp.json"])
    young(timestamp["signed"])
    later.files["timestamp.json"] = resigned(timestamp, publisher.keys["timestamp"])
    error = refused(
        Frozen, linked(later.files, publisher_of(publisher, 2), from_role="snapshot"), now=publisher.now
    )
    assert f"2.{role}.json" in str(error)


def publisher_of(publisher: Publisher, version: int) -> Publisher:
    class Fixed(Publisher):
        def __init__(self) -> None:
            self.keys = publisher.keys

        def version(self, role: str) -> int:
            return version

    return Fixed()


def test_an_endless_freeze_is_noticed_without_any_clock(
    publisher: Publisher, trust: Trust, tmp_path: Path
) -> None:
    """The device has only ever run for five days at a time, and its clock says 1970 each morning."""
    frozen = publisher.source
    outcome = []
    for boot in range(8):
        device = Trust(tmp_path / "state", publisher.anchor)
        for day in range(6):
            try:
                device.refresh(
                    frozen, 5.0, clock_trusted=False, running=Running(f"boot-{boot}", day * DAY + 60.0)
                )
                outcome.append(True)
            except Frozen:
                outcome.append(False)
    good = outcome.index(False)
    assert 30 < good <= 38, "the timestamp lasts 30 days, and the device notices after 30 days of its own"
    assert not any(outcome[good:]), "no restart makes it forget"
    publisher.renew(days=40)
    assert device.refresh(publisher.source, 5.0, clock_trusted=False, running=Running("boot-9", 60.0))


def test_a_clock_nobody_set_does_not_make_old_metadata_good(publisher: Publisher, trust: Trust) -> None:
    old = publisher.source
    publisher.renew(days=40)
    trust.refresh(publisher.source, 0.0, clock_trusted=False)
    assert trust.floor_s == publisher.now
    with pytest.raises(RolledBack):
        trust.refresh(old, 0.0, clock_trusted=False)
    device = Trust(publisher.folder / "other-state", publisher.file("1.root.json"))
    assert device.refresh(old, 0.0, clock_trusted=False), "a device that never saw newer ones cannot know"


# Clocks


@pytest.mark.parametrize("trusted", [False, True])
def test_a_clock_of_1970_neither_refuses_nor_lowers_anything(
    publisher: Publisher, trust: Trust, trusted: bool
) -> None:
    publisher.renew(days=40).add(package("2.0.0"))
    assert trust.refresh(publisher.source, 5.0, clock_trusted=trusted) == (package("2.0.0"), package("1.0.0"))
    assert trust.floor_s == publisher.now


def test_a_clock_14_years_ahead_refuses_only_where_it_is_believed_and_leaves_nothing(
    publisher: Publisher, trust: Trust, refused: Refused
) -> None:
    ahead = NOW + 14 * 365 * DAY
    publisher.add(package("2.0.0"))
    error = refused(RootExpired, publisher.files, now=ahead)
    assert "1.root.json" in str(error)
    assert trust.refresh(publisher.source, ahead, clock_trusted=False) == (package("2.0.0"), package("1.0.0"))
    assert trust.floor_s == NOW
    assert trust.refresh(publisher.renew(1).source, NOW + DAY, clock_trusted=True)


# Malicious mirrors


@pytest.mark.parametrize("name", ["timestamp.json", "3.snapshot.json", "3.targets.json"])
def test_a_mirror_that_withholds_a_file_is_unavailable(publisher: Publisher, trust: Trust, name: str) -> None:
    files = publisher.add(package("2.0.0")).files
    del files[name]
    with pytest.raises(Unavailable, match=name.replace(".", r"\.")):
        trust.refresh(Memory(files), NOW, clock_trusted=True)
    assert trust.packages == (package("1.0.0"),)


def test_a_mirror_that_withholds_new_roots_cannot_use_stolen_keys_for_long(
    publisher: Publisher, trust: Trust
) -> None:
    before = publisher.files
    publisher.exchange("timestamp")
    assert trust.refresh(Memory(before), NOW, clock_trusted=True), "until the timestamp ends"
    with pytest.raises(Frozen):
        trust.refresh(Memory(before), NOW + 31 * DAY, clock_trusted=True)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "device"])
def test_what_is_no_file_on_a_stick_is_refused(
    publisher: Publisher, trust: Trust, tmp_path: Path, kind: str
) -> None:
    import os

    path = publisher.folder / "metadata" / "timestamp.json"
    elsewhere = tmp_path / "elsewhere.json"
    path.rename(elsewhere)
    match kind:
        case "link":
            path.symlink_to(elsewhere)
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case _:
            path.symlink_to("/dev/zero")
    with pytest.raises(Malformed, match="expected a file, got"):
        trust.refresh(Folder(publisher.folder), NOW, clock_trusted=True)


# Mix-and-match


def test_parts_that_were_never_published_together_are_refused(publisher: Publisher, refused: Refused) -> None:
    older = publisher.add(package("2.0.0")).files
    newer = publisher.add(package("3.0.0")).files
    error = refused(MixedUp, newer | {"4.snapshot.json": older["3.snapshot.json"]})
    assert "4.snapshot.json: expected version 4, which timestamp 4 names, got 3" in str(error)
    refused(MixedUp, newer | {"4.targets.json": older["3.targets.json"]})


def test_a_version_that_is_not_that_of_what_it_names_is_refused(
    publisher: Publisher, refused: Refused
) -> None:
    def lie(signed: dict[str, Any]) -> None:
        signed["version"] = signed["meta"]["snapshot.json"]["version"] = 9

    files = publisher.add(package("2.0.0")).stolen("timestamp", lie)
    error = refused(MixedUp, files | {"9.snapshot.json": files["3.snapshot.json"]})
    assert "9.snapshot.json: expected version 9, which timestamp 9 names, got 3" in str(error)


def test_two_timestamps_of_one_version_are_refused(publisher: Publisher, refused: Refused) -> None:
    refused(MixedUp, publisher.stolen("timestamp", lambda s: s.update(expires="2026-12-01T00:00:00Z")))


# Rollback


def test_an_older_repository_is_refused(publisher: Publisher, trust: Trust, refused: Refused) -> None:
    old = publisher.files
    trust.refresh(publisher.add(package("2.0.0")).source, NOW, clock_trusted=True)
    error = refused(RolledBack, old)
    assert "expected timestamp 3 or later, got 2" in str(error)


def test_an_older_snapshot_under_a_new_timestamp_is_refused(
    publisher: Publisher, trust: Trust, refused: Refused
) -> None:
    old = json.loads(publisher.file("timestamp.json"))
    trust.refresh(publisher.add(package("2.0.0")).source, NOW, clock_trusted=True)
    old["signed"]["version"] = 9
    thief = publisher.files | {"timestamp.json": resigned(old, publisher.keys["timestamp"])}
    error = refused(RolledBack, thief)
    assert "expected snapshot 3 or later, got 2" in str(error)


def test_older_targets_under_a_new_snapshot_are_refused(
    publisher: Publisher, trust: Trust, refused: Refused
) -> None:
    old = json.loads(publisher.file("2.snapshot.json"))
    trust.refresh(publisher.add(package("2.0.0")).source, NOW, clock_trusted=True)
    old["signed"]["version"] = 4
    files = publisher.add(package("3.0.0")).files | {
        "4.snapshot.json": resigned(old, publisher.keys["snapshot"])
    }
    error = refused(RolledBack, linked(files, publisher, from_role="snapshot"))
    assert "expected targets 3 or later, got 2" in str(error)


def test_an_old_root_under_a_new_name_is_refused(publisher: Publisher, refused: Refused) -> None:
    error = refused(RolledBack, publisher.files | {"2.root.json": publisher.anchor})
    assert "expected root 2, got 1" in str(error)


def test_a_package_of_an_epoch_that_is_over_is_refused_and_one_within_it_is_not(
    publisher: Publisher, trust: Trust
) -> None:
    first, second, third = package("2.0.0", epoch=1), package("2.1.0", epoch=1), package("1.0.0")
    trust.refresh(publisher.add(first, second).source, NOW, clock_trusted=True)
    trust.admit(third)  # until the new epoch has proved itself
    trust.confirm(second)
    with pytest.raises(RolledBack, match="expected security epoch 1 or later, got 0"):
        trust.admit(third, serving=second, back=True)
    with pytest.raises(RolledBack, match=r"expected version 2\.1\.0 or later, got 2\.0\.0"):
        trust.admit(first, serving=second)
    trust.admit(first, serving=second, back=True)
    device = Trust(trust._folder, publisher.anchor)
    assert device.epoch("parts") == 1


# Key compromise


def test_one_of_two_root_keys_makes_no_root(publisher: Publisher, refused: Refused) -> None:
    def usurp(signed: dict[str, Any]) -> None:
        signed["version"] = 2
        signed["roles"]["root"]["threshold"] = 1

    stolen = publisher.keys["root"][:1]
    error = refused(
        Forged, publisher.files | {"2.root.json": publisher.changed("1.root.json", usurp, stolen)}
    )
    assert "expected signatures of 2 root keys of root 1, got 1" in str(error)


def test_a_signature_counts_once_under_however_many_names(publisher: Publisher, refused: Refused) -> None:
    stolen = publisher.keys["root"][0]
    value = json.loads(publisher.anchor)
    value["signed"]["version"] = 2
    once = json.loads(resigned(value, [stolen]))
    signature = once["signatures"][0]
    twice = {**once, "signatures": [signature, signature]}
    refused(Malformed, publisher.files | {"2.root.json": json.dumps(twice).encode()})
    borrowed = {**signature, "keyid": publisher.keys["root"][1].public_key.keyid}
    both = {**once, "signatures": [signature, borrowed]}
    refused(Forged, publisher.files | {"2.root.json": json.dumps(both).encode()})


def test_one_key_under_two_names_does_not_reach_a_threshold_of_two(
    tmp_path: Path, publisher: Publisher
) -> None:
    value = json.loads(publisher.anchor)
    keys, role = value["signed"]["keys"], value["signed"]["roles"]["root"]
    one = publisher.keys["root"][0]
    other = CryptoSigner(
        one._private_key, type(one.public_key)("twin", "ed25519", "ed25519", dict(one.public_key.keyval))
    )
    keys["twin"] = {
        **keys[one.public_key.keyid],
        "keyval": {"public": one.public_key.keyval["public"].upper()},
    }
    role["keyids"] = [one.public_key.keyid, "twin"]
    with pytest.raises(Malformed, match="root: expected at least 2 different keys, got 1"):
        Trust(tmp_path / "new", resigned(value, [one, other]))
    role["keyids"].append(publisher.keys["root"][1].public_key.keyid)
    with pytest.raises(Forged, match="expected signatures of 2 root keys of root 1, got 1"):
        Trust(tmp_path / "new", resigned(value, [one, other]))


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_the_keys_of_one_online_role_add_no_package(
    publisher: Publisher, refused: Refused, role: str
) -> None:
    """Each thief signs a listing of their own; without the other keys nothing names it, or it is none."""
    evil = json.loads(publisher.add(package("6.6.6")).file("3.targets.json"))
    forged = resigned(evil, publisher.keys[role])
    name = {"targets": "3.targets.json"}.get(role, "3.targets.json")
    files = publisher.files | {name: forged + b" "}
    assert type(refused(Altered, files)) is Altered
    if role != "targets":
        refused(Forged, linked(publisher.files | {name: forged}, publisher, from_role="targets"))


def test_exchanged_keys_are_of_no_use_to_who_stole_them(
    publisher: Publisher, trust: Trust, refused: Refused
) -> None:
    stolen = dict(publisher.keys)
    trust.refresh(publisher.exchange("targets", "snapshot", "timestamp").source, NOW, clock_trusted=True)
    publisher.add(package("2.0.0"))
    good = publisher.files
    name = "timestamp.json"
    refused(Forged, good | {name: publisher.changed(name, lambda _: None, stolen["timestamp"])})
    fresh, publisher.keys["targets"] = publisher.keys["targets"], stolen["targets"]
    name = f"{publisher.version('targets')}.targets.json"
    files = good | {name: publisher.changed(name, lambda _: None, stolen["targets"])}
    refused(Forged, linked(files, publisher, from_role="targets"))
    publisher.keys["targets"] = fresh
    assert trust.refresh(Memory(good), NOW, clock_trusted=True)


# Wrong software


def test_a_package_for_other_devices_or_models_is_not_taken(publisher: Publisher, trust: Trust) -> None:
    mine, theirs = package("1.1.0", classes=["jetson"]), package("1.2.0", classes=["arm64-4gb", "x86"])
    offered = trust.refresh(publisher.add(mine, theirs, package("9.0.0", name="faces")).source, NOW, True)
    assert choose(offered, "parts", "jetson") == mine
    assert choose(offered, "parts", "hailo") == package("1.0.0")
    assert choose(offered, "parts") == package("1.0.0")
    with pytest.raises(WrongSoftware, match=r"model people: expected a package of this model, got none"):
        choose(offered, "people", "jetson")
    with pytest.raises(WrongSoftware, match=r"\(jetson\), got arm64-4gb, x86"):
        choose(offered, "parts", "jetson", version="1.2.0")
    with pytest.raises(WrongSoftware, match="expected a package of model parts, got faces"):
        trust.admit(package("9.0.0", name="faces"), serving=mine)


def test_a_package_that_is_listed_no_more_is_not_admitted(publisher: Publisher, trust: Trust) -> None:
    publisher.add(package("2.0.0")).repository.remove(package("1.0.0").digest, publisher.signers, NOW)
    trust.refresh(publisher.source, NOW, clock_trusted=True)
    with pytest.raises(WrongSoftware, match="expected a package that is vouched for now"):
        trust.admit(package("1.0.0"))


# Lies, and things that are no metadata


@pytest.mark.parametrize("name", SIGNED)
def test_no_flipped_bit_changes_what_is_trusted(
    publisher: Publisher, trust: Trust, tmp_path: Path, name: str
) -> None:
    """A flip that leaves the meaning alone (a digit's case in a signature) may pass; any other is refused."""
    files = publisher.files
    rng = random.Random(name)
    refusals = 0
    for n in range(0, len(files[name]), 17):
        flipped = bytearray(files[name])
        flipped[n] ^= 1 << rng.randrange(8)
        device = Trust(tmp_path / f"new-{n}", publisher.anchor)
        try:
            assert device.refresh(Memory(files | {name: bytes(flipped)}), NOW, True) == (package("1.0.0"),)
        except Untrusted:
            refusals += 1
            assert device.packages == ()
    assert refusals > len(files[name]) / 17 * 0.9


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b'"signed"',
        b"{}",
        b'{"signed": {}, "signatures": []}',
        b'{"signed": [], "signatures": {}}',
        b'{"signed": {"_type": "timestamp"}, "signatures": [1]}',
        b"[" * 16000,
        b'{"signed":' * 1400 + b"1" + b"}" * 1400,
        b'{"a":' * 1600,
        b'{"version": ' + b"9" * 16000 + b"}",
        b"1e99999",
        b"NaN",
    ],
    ids=lambda c: c[:12].decode("latin-1"),
)
def test_what_is_no_metadata_is_refused_whatever_it_is(
    publisher: Publisher, refused: Refused, content: bytes
) -> None:
    error = refused(Malformed, publisher.files | {"timestamp.json": content})
    assert len(str(error)) < 400


def test_deep_json_in_what_is_signed_is_refused(publisher: Publisher, refused: Refused) -> None:
    for depth in (500, 900, 5000, 100_000):
        deep = b'{"signatures":[],"signed":{"_type":"targets","x":' + b"[" * depth + b"]" * depth + b"}}"
        refused(
            Altered,
            publisher.add(package(f"2.0.{depth}")).files
            | {f"{publisher.version('targets')}.targets.json": deep},
        )


@pytest.mark.parametrize(
    "sig", ["", "zz", "ab", "00" * 64, "ff" * 64, "00" * 100_0, 7, None, {"a": 1}, ["x"]]
)
def test_a_signature_that_is_none_counts_for_nothing(
    publisher: Publisher, refused: Refused, sig: Any
) -> None:
    value = json.loads(publisher.add(package("2.0.0")).file("timestamp.json"))
    value["signatures"][0]["sig"] = sig
    content = json.dumps(value).encode()
    refused(Forged, publisher.files | {"timestamp.json": content})


def test_a_signature_in_another_form_counts_for_nothing(publisher: Publisher, refused: Refused) -> None:
    """S + L is as good as S to some implementations (RFC 8032, 8.4)."""
    value = json.loads(publisher.add(package("2.0.0")).file("timestamp.json"))
    raw = bytes.fromhex(value["signatures"][0]["sig"])
    moved = int.from_bytes(raw[32:], "little") + 2**252 + 27742317777372353535851937790883648493
    value["signatures"][0]["sig"] = (raw[:32] + moved.to_bytes(32, "little")).hex()
    refused(Forged, publisher.files | {"timestamp.json": json.dumps(value).encode()})


@pytest.mark.parametrize(
    ("role", "change", "why"),
    [
        ("timestamp", lambda s: s.pop("signed_at"), "time of signing"),
        ("timestamp", lambda s: s.update(signed_at="yesterday"), "time of signing"),
        ("timestamp", lambda s: s.update(signed_at="2027-11-21T00:00:00Z"), "before it expires"),
        ("timestamp", lambda s: s["meta"]["snapshot.json"].pop("hashes"), "sha256"),
        ("timestamp", lambda s: s["meta"]["snapshot.json"].pop("length"), "length"),
        ("timestamp", lambda s: s["meta"]["snapshot.json"].update(length=True), "length"),
        ("timestamp", lambda s: s.update(version=True), "version"),
        ("timestamp", lambda s: s.update(spec_version="2.0.0"), "spec_version"),
        ("snapshot", lambda s: s["meta"].pop("targets.json"), "targets.json"),
        ("snapshot", lambda s: s["meta"]["targets.json"].update(hashes={"md5": "00"}), "sha256"),
        ("targets", lambda s: s.update(delegations={"keys": {}, "roles": []}), "delegations"),
        ("targets", lambda s: one(s).update(length=0), "bytes"),
        ("targets", lambda s: one(s).update(length=2**40), "bytes"),
        ("targets", lambda s: one(s).update(hashes={"sha256": "00" * 32}), "sha256"),
        ("targets", lambda s: one(s).pop("custom"), "object"),
        ("targets", lambda s: one(s)["custom"].update(version="1"), "version"),
        ("targets", lambda s: one(s)["custom"].update(security_epoch=-1), "security_epoch"),
        ("targets", lambda s: one(s)["custom"].update(name="../../etc"), "name"),
        ("targets", lambda s: s["targets"].update({"../../etc/passwd": one(s)}), "blobs/sha256/"),
    ],
)  # fmt: skip
def test_metadata_that_signers_got_wrong_is_refused(
    publisher: Publisher, refused: Refused, role: str, change: Any, why: str
) -> None:
    files = publisher.add(package("2.0.0")).stolen(role, change)
    error = refused(Malformed, linked(files, publisher, from_role=role))
    assert why in str(error)


def one(signed: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(iter(signed["targets"].values()))
    return found


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda s: s["roles"].update(operator=s["roles"]["root"]), "top-level"),
        (lambda s: s["roles"].pop("timestamp"), "top-level"),
        (lambda s: s["roles"]["targets"].update(threshold=2), "expected at least 2 different keys, got 1"),
        (lambda s: s["roles"]["targets"].update(threshold=0), "threshold"),
        (
            lambda s: next(iter(s["keys"].values())).update(scheme="rsassa-pss-sha256", keytype="rsa"),
            "Ed25519",
        ),
        (lambda s: next(iter(s["keys"].values()))["keyval"].update(public="00"), "Ed25519"),
    ],
)
def test_a_root_that_no_device_could_go_on_from_is_refused(
    publisher: Publisher, refused: Refused, change: Any, why: str
) -> None:
    value = json.loads(publisher.anchor)
    value["signed"]["version"] = 2
    signed = json.loads(resigned(value, publisher.keys["root"]))
    change(signed["signed"])
    error = refused(Malformed, publisher.files | {"2.root.json": json.dumps(signed).encode()})
    assert why in str(error)


def test_metadata_of_another_role_is_refused(publisher: Publisher, refused: Refused) -> None:
    error = refused(Malformed, publisher.files | {"timestamp.json": publisher.file("2.snapshot.json")})
    assert "expected timestamp metadata, got snapshot" in str(error)


ODD = [
    None, True, 0, -1, 2**63, 1e9, "", "x", "\ud800", "\x00", [], [[]], {}, {"": None},
    "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z",
]  # fmt: skip


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_nothing_that_is_signed_well_can_do_more_than_be_refused(
    publisher: Publisher, tmp_path: Path, role: str
) -> None:
    """Every value of every document in turn is something odd, signed by whoever may sign it."""
    publisher.add(package("2.0.0", classes=["x86"]))
    name = {"root": "1.root.json", "timestamp": "timestamp.json"}.get(role, f"3.{role}.json")
    signed = json.loads(publisher.file(name))["signed"]
    rng = random.Random(role)
    refusals: list[PackageError | Unavailable] = []
    for n, (place, key) in enumerate(places(signed)):
        if rng.random() < 0.5:
            continue
        value = json.loads(publisher.file(name))
        where = value["signed"]
        for step in place:
            where = where[step]
        if rng.random() < 0.2:
            del where[key]
        else:
            where[key] = rng.choice(ODD)
        if role == "root" and value["signed"].get("version") == 1:
            value["signed"]["version"] = 2
        try:
            changed = resigned(value, publisher.keys[role])
            files = {name: changed} if role != "root" else {"2.root.json": changed}
            files = publisher.files | files
            if role != "root":
                files = linked(files, publisher, from_role=role)
        except (TypeError, ValueError, KeyError, FormatError):
            continue  # no signer could write this
        device = Trust(tmp_path / f"{n}", publisher.anchor)
        try:
            device.refresh(Memory(files), NOW, clock_trusted=False)
        except (Untrusted, Unavailable) as error:
            refusals.append(error)
    assert Malformed in {type(each) for each in refusals}
    assert max(len(str(each)) for each in refusals) < 500


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    """Where every value in a document is: the way to what holds it, and its key there."""
    if not isinstance(value, dict | list):
        return []
    items = list(value.items() if isinstance(value, dict) else enumerate(value))
    return [each for key, inner in items for each in ((path, key), *places(inner, (*path, key)))]
