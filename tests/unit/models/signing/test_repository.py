"""What signers can do with which keys, and what they cannot."""

import json
from pathlib import Path

import pytest

from publisher import DAY, NOW, Publisher, linked, package, some_keys
from skerry.errors import ConfigError, Unavailable
from skerry.models.signing import metadata as making
from skerry.models.signing.metadata import Lasting
from skerry.models.signing.repository import KEPT, Repository, create
from skerry.trust.device import Trust
from skerry.trust.refusals import Forged
from skerry.trust.sources import Folder, Memory


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    return Publisher(tmp_path_factory.mktemp("published") / "repository").add(package("1.0.0"))


@pytest.fixture
def publisher(tmp_path: Path, published: Publisher) -> Publisher:
    return published.copied(tmp_path / "repository")


def trusted(publisher: Publisher, folder: Path) -> list[str]:
    device = Trust(folder, publisher.anchor)
    return [p.title for p in device.refresh(Folder(publisher.folder), publisher.now, clock_trusted=True)]


def test_a_repository_is_an_image_layout_with_metadata_beside_its_blobs(publisher: Publisher) -> None:
    assert json.loads((publisher.folder / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    assert sorted(publisher.files) == [
        "1.root.json", "1.snapshot.json", "1.targets.json", "2.snapshot.json", "2.targets.json",
        "timestamp.json",
    ]  # fmt: skip
    targets = json.loads(publisher.file("2.targets.json"))["signed"]["targets"]
    digest = package("1.0.0").digest.removeprefix("sha256:")
    assert targets == {
        f"blobs/sha256/{digest}": {
            "length": 1000,
            "hashes": {"sha256": digest},
            "custom": {"name": "parts", "version": "1.0.0", "security_epoch": 0, "classes": []},
        }
    }


def test_timestamps_are_renewed_by_their_key_alone_until_the_rest_is_due(publisher: Publisher) -> None:
    online = publisher.keys["timestamp"]
    publisher.repository.renew(online, NOW + 20 * DAY)
    assert (publisher.version("timestamp"), publisher.version("snapshot")) == (3, 2)
    with pytest.raises(ConfigError, match="snapshot: expected 1 of its keys, got 0"):
        publisher.repository.renew(online, NOW + 61 * DAY)
    publisher.repository.renew([*online, *publisher.keys["snapshot"]], NOW + 61 * DAY)
    assert (publisher.version("timestamp"), publisher.version("snapshot"), publisher.version("targets")) == (
        4,
        3,
        2,
    )
    with pytest.raises(ConfigError, match="targets: expected 1 of its keys, got 0"):
        publisher.repository.renew([*online, *publisher.keys["snapshot"]], NOW + 250 * DAY)


def test_a_refused_signing_changes_nothing(publisher: Publisher) -> None:
    before = publisher.files
    for signers in ([], publisher.keys["targets"], publisher.keys["root"], some_keys()["targets"]):
        with pytest.raises(ConfigError, match="of its keys, got 0"):
            publisher.repository.add(package("2.0.0"), signers, NOW)
    assert publisher.files == before
    assert [p.version for p in publisher.repository.packages] == ["1.0.0"]


def test_one_name_and_version_stands_for_one_package_of_a_class(publisher: Publisher) -> None:
    publisher.add(package("2.0.0", classes=["jetson"]), package("2.0.0", classes=["arm"]))
    for again in (package("2.0.0", epoch=1), package("2.0.0", epoch=1, classes=["x86", "arm"])):
        with pytest.raises(
            ConfigError, match=r"parts@2\.0\.0: expected a new version, got one that is listed"
        ):
            publisher.add(again)
    with pytest.raises(ConfigError, match="listed already"):
        publisher.add(package("1.0.0"))


def test_a_package_is_removed_by_its_digest(publisher: Publisher, tmp_path: Path) -> None:
    publisher.add(package("2.0.0"))
    assert publisher.repository.remove(package("1.0.0").digest[:20], publisher.signers, NOW) == package(
        "1.0.0"
    )
    assert trusted(publisher, tmp_path / "state") == ["parts@2.0.0"]
    for digest in (package("1.0.0").digest, "", "sha256:"):
        with pytest.raises(ConfigError, match="expected one of the packages listed, got 0"):
            publisher.repository.remove(digest, publisher.signers, NOW)


def test_how_long_signatures_last_is_a_setting_that_is_kept(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path / "repository", lasting=Lasting(timestamp=3, root=100))
    assert Repository(publisher.folder).lasting == Lasting(timestamp=3, root=100)
    signed = json.loads(publisher.file("timestamp.json"))["signed"]
    assert (signed["signed_at"], signed["expires"]) == ("2026-11-21T00:00:00Z", "2026-11-24T00:00:00Z")
    (publisher.folder / "signing.json").write_text('{"timestamp": 0}')
    with pytest.raises(
        ConfigError, match=r"signing\.json: \$\.timestamp: expected a whole number from 1 to 7300"
    ):
        Repository(publisher.folder)


def test_old_versions_go_but_roots_stay(publisher: Publisher) -> None:
    for n in range(6):
        publisher.add(package(f"2.{n}.0"))
    publisher.exchange("root").exchange("timestamp")
    files = sorted(publisher.files)
    assert [f for f in files if f.endswith("root.json")] == ["1.root.json", "2.root.json", "3.root.json"]
    assert len([f for f in files if f.endswith("targets.json")]) == KEPT
    assert len([f for f in files if f.endswith("snapshot.json")]) == KEPT


def test_a_clock_behind_the_last_signature_signs_nothing(publisher: Publisher) -> None:
    with pytest.raises(ConfigError, match=r"clock: expected 2026-11-21T00:00:00Z or later"):
        publisher.renew(days=-1)


def test_a_repository_is_not_made_twice_nor_without_its_keys(tmp_path: Path, publisher: Publisher) -> None:
    keys = publisher.keys
    public = {role: [s.public_key for s in each] for role, each in keys.items()}
    made = {"thresholds": {"root": 2}, "lasting": Lasting()}
    with pytest.raises(ConfigError, match="expected a folder without a repository"):
        create(publisher.folder, public, publisher.signers, NOW, **made)
    with pytest.raises(ConfigError, match="root: expected 2 of its keys, got 1"):
        create(tmp_path / "new", public, keys["root"][:1], NOW, **made)
    with pytest.raises(ConfigError, match="snapshot: expected 1 more of its keys"):
        create(tmp_path / "new", public, [*keys["root"], *keys["targets"]], NOW, **made)
    with pytest.raises(ConfigError, match="root: expected at least 4 keys, got 3"):
        create(tmp_path / "new", public, publisher.signers, NOW, thresholds={"root": 4}, lasting=Lasting())
    assert not (tmp_path / "new" / "metadata").exists()
    with pytest.raises(ConfigError, match="expected a repository, got none"):
        Repository(tmp_path / "new")
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable):
        create(tmp_path / "file" / "new", public, publisher.signers, NOW, **made)


# The root


def draft_of(publisher: Publisher, **changes):
    return making.next_root(publisher.repository.root, lasting=Lasting(), now_s=NOW, **changes)


def test_a_root_is_published_once_enough_of_the_old_and_new_keys_approve(
    publisher: Publisher, tmp_path: Path
) -> None:
    lost, kept, third = publisher.keys["root"]
    (new,) = some_keys(root=1)["root"]
    draft = draft_of(publisher, add=[("root", new.public_key)], drop=[("root", lost.public_key.keyid[:8])])
    assert making.changes(publisher.repository.root, draft.signed) == [
        "root 1 -> 2, ends 2028-11-20",
        f"root: gets key {new.public_key.keyid}",
        f"root: loses key {lost.public_key.keyid}",
    ]
    before = publisher.files
    assert making.approve(draft, publisher.repository.root, [new, *publisher.keys["targets"]]) == [
        new.public_key.keyid
    ]
    making.approve(draft, publisher.repository.root, [kept])
    with pytest.raises(ConfigError, match="expected signatures of 2 root keys of root 1, got 1"):
        publisher.repository.publish(draft, publisher.signers, NOW)
    assert publisher.files == before
    making.approve(draft, publisher.repository.root, [third])
    publisher.repository.publish(draft, publisher.signers, NOW)
    assert trusted(publisher, tmp_path / "state") == ["parts@1.0.0"]


def test_a_root_with_new_keys_needs_them_at_hand(publisher: Publisher) -> None:
    (new,) = some_keys()["timestamp"]
    old = publisher.keys["timestamp"][0].public_key.keyid
    draft = draft_of(publisher, add=[("timestamp", new.public_key)], drop=[("timestamp", old)])
    making.approve(draft, publisher.repository.root, publisher.keys["root"])
    before = publisher.files
    with pytest.raises(ConfigError, match="timestamp: expected 1 of its keys, got 0"):
        publisher.repository.publish(draft, publisher.signers, NOW)
    assert publisher.files == before
    publisher.repository.publish(draft, [*publisher.signers, new], NOW)


def test_a_root_that_nobody_could_follow_is_not_drafted(publisher: Publisher) -> None:
    root = publisher.repository.root
    with pytest.raises(ConfigError, match="targets: expected at least 1 keys, got 0"):
        draft_of(publisher, drop=[("targets", root.roles["targets"].keyids[0])])
    with pytest.raises(ConfigError, match="snapshot: expected at least 2 keys, got 1"):
        draft_of(publisher, thresholds={"snapshot": 2})
    for start in ("", "no such key"):
        with pytest.raises(ConfigError, match="expected one key of this role, got 0"):
            draft_of(publisher, drop=[("root", start)])
    assert publisher.repository.root.version == 1


def test_changes_name_a_key_that_is_another_under_the_same_id(publisher: Publisher) -> None:
    """Ids need not be hashes of keys, so a draft from elsewhere may keep the id and change the key."""
    root = publisher.repository.root
    draft = draft_of(publisher)
    keyid = root.roles["targets"].keyids[0]
    (other,) = some_keys()["targets"]
    draft.signed.keys[keyid] = other.public_key
    assert f"targets: key {keyid} becomes another key" in making.changes(root, draft.signed)


def test_a_threshold_can_be_raised_and_holds(publisher: Publisher, tmp_path: Path) -> None:
    (second,) = some_keys()["targets"]
    draft = draft_of(publisher, add=[("targets", second.public_key)], thresholds={"targets": 2})
    assert "targets: 1 -> 2 of 2 keys have to sign" in making.changes(publisher.repository.root, draft.signed)
    making.approve(draft, publisher.repository.root, publisher.keys["root"])
    publisher.repository.publish(draft, [*publisher.signers, second], NOW)
    with pytest.raises(ConfigError, match="targets: expected 2 of its keys, got 1"):
        publisher.add(package("2.0.0"))
    files = linked(publisher.stolen("targets"), publisher, from_role="targets")
    with pytest.raises(Forged, match=r"expected signatures of 2 targets keys of root 2, got 1"):
        Trust(tmp_path / "state", publisher.anchor).refresh(Memory(files), NOW, clock_trusted=True)


def test_a_signing_that_was_cut_short_is_finished_by_the_next(publisher: Publisher, tmp_path: Path) -> None:
    folder = publisher.folder / "metadata"
    timestamp, snapshot = publisher.file("timestamp.json"), (folder / "3.snapshot.json")
    publisher.add(package("2.0.0"))
    (folder / "timestamp.json").write_bytes(timestamp)
    snapshot.unlink()
    assert trusted(publisher, tmp_path / "one") == ["parts@1.0.0"]
    again = Repository(publisher.folder)
    again.renew([*publisher.keys["snapshot"], *publisher.keys["timestamp"]], NOW)
    assert trusted(publisher, tmp_path / "two") == ["parts@2.0.0", "parts@1.0.0"]


@pytest.mark.parametrize("name", ["1.root.json", "timestamp.json", "2.targets.json"])
def test_a_damaged_repository_is_not_signed(publisher: Publisher, name: str) -> None:
    (publisher.folder / "metadata" / name).write_bytes(b"{}")
    with pytest.raises(ConfigError, match=name):
        Repository(publisher.folder)
