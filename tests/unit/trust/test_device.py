"""What a device keeps, what it goes on from, and how roots follow one another offline."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

import needs
from publisher import DAY, NOW, Publisher, Refused, package, resigned, some_keys
from skerry import durable
from skerry.errors import Unavailable
from skerry.trust import device as devices
from skerry.trust import state as states
from skerry.trust.device import Trust
from skerry.trust.packages import order
from skerry.trust.refusals import Forged, Frozen, Malformed, MixedUp, RolledBack, RootExpired, WrongSoftware
from skerry.trust.sources import Folder, Memory, Source
from skerry.trust.times import Floor, Running, later, raised, reference

# Roots


def test_a_device_follows_many_roots_from_a_stick_without_a_clock_or_network(
    tmp_path: Path, publisher: Publisher, trust: Trust
) -> None:
    for n in range(5):
        publisher.renew(days=700).exchange("root", *(["targets"] if n % 2 else ["timestamp", "snapshot"]))
    assert trust.refresh(Folder(publisher.folder), 5.0, clock_trusted=False) == (package("1.0.0"),)
    assert trust.root_version == 6
    assert trust.floor_s == publisher.now
    again = Trust(tmp_path / "state", publisher.anchor)
    assert (again.root_version, again.packages) == (6, (package("1.0.0"),))


def test_a_root_that_skips_one_is_not_followed(publisher: Publisher, trust: Trust) -> None:
    files = publisher.exchange("root").exchange("timestamp").files
    del files["2.root.json"]
    with pytest.raises(Forged):
        trust.refresh(Memory(files), NOW, clock_trusted=True)
    assert trust.root_version == 1


def test_a_root_further_on_under_the_name_of_the_next_is_refused(
    publisher: Publisher, refused: Refused
) -> None:
    files = publisher.exchange("timestamp").exchange("timestamp").files
    error = refused(MixedUp, files | {"2.root.json": files["3.root.json"]})
    assert "expected root 2, got 3" in str(error)


def test_a_root_that_only_its_own_keys_signed_is_refused(publisher: Publisher, refused: Refused) -> None:
    strangers = some_keys()
    value = json.loads(publisher.anchor)
    value["signed"]["version"] = 2
    value["signed"]["keys"] = {
        s.public_key.keyid: s.public_key.to_dict() for k in strangers.values() for s in k
    }
    for role, keys in strangers.items():
        value["signed"]["roles"][role]["keyids"] = [s.public_key.keyid for s in keys]
    content = resigned(value, strangers["root"])
    refused(Forged, publisher.files | {"2.root.json": content})


def test_a_root_that_only_the_keys_before_signed_is_refused(publisher: Publisher, refused: Refused) -> None:
    old = publisher.keys["root"]
    value = json.loads(publisher.exchange("root").file("2.root.json"))
    refused(Forged, publisher.files | {"2.root.json": resigned(value, old)})


def test_a_new_root_is_kept_though_the_rest_is_refused(publisher: Publisher, trust: Trust) -> None:
    old = publisher.file("timestamp.json")
    files = publisher.exchange("timestamp").files | {"timestamp.json": old}
    with pytest.raises(Forged):
        trust.refresh(Memory(files), NOW, clock_trusted=True)
    assert Trust(trust._folder, publisher.anchor).root_version == 2
    assert trust.packages == (package("1.0.0"),), "the targets' keys are the same"


def test_exchanged_targets_keys_leave_nothing_trusted_until_the_next_refresh(
    publisher: Publisher, trust: Trust
) -> None:
    files = publisher.exchange("targets").files
    with pytest.raises(Unavailable):
        trust.refresh(Memory({n: c for n, c in files.items() if n != "timestamp.json"}), NOW, True)
    assert (trust.root_version, trust.packages) == (2, ())
    with pytest.raises(WrongSoftware):
        trust.admit(package("1.0.0"))
    assert trust.refresh(Memory(files), NOW, clock_trusted=True)


def test_one_refresh_follows_so_many_roots_and_the_next_goes_on(
    publisher: Publisher, trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "MOST_ROOTS", 3)
    for _ in range(4):
        publisher.exchange("timestamp")
    with pytest.raises(Forged):  # the timestamp is signed by keys of the root after
        trust.refresh(publisher.source, NOW, clock_trusted=True)
    assert trust.root_version == 4
    assert trust.refresh(publisher.source, NOW, clock_trusted=True)


def test_a_root_that_has_ended_vouches_for_nothing_until_the_next_one(
    publisher: Publisher, trust: Trust, refused: Refused
) -> None:
    publisher.renew(days=800)
    error = refused(RootExpired, publisher.files, now=publisher.now)
    assert "expired keys" in str(error)
    publisher.exchange("snapshot")
    assert trust.refresh(publisher.source, publisher.now, clock_trusted=True) == (package("1.0.0"),)


def test_another_anchor_starts_anew_and_forgets_the_time_that_lost_keys_stated(
    tmp_path: Path, publisher: Publisher, trust: Trust
) -> None:
    trust.refresh(publisher.renew(10).source, NOW, clock_trusted=False)
    trust.refresh(publisher.add(package("2.0.0", epoch=7)).source, NOW, False)
    trust.confirm(package("2.0.0", epoch=7))
    other = Publisher(tmp_path / "other", now=NOW + DAY).add(package("3.0.0", epoch=1))
    device = Trust(tmp_path / "state", other.anchor)
    assert (device.floor_s, device.packages) == (NOW + DAY, ())
    assert device.refresh(other.source, NOW, clock_trusted=False) == (package("3.0.0", epoch=1),)
    assert device.epoch("parts") == 1
    with pytest.raises(RolledBack):
        Trust(tmp_path / "state", other.anchor).refresh(Memory(_older(other)), NOW, clock_trusted=False)


def _older(publisher: Publisher) -> dict[str, bytes]:
    value = json.loads(publisher.file("timestamp.json"))
    value["signed"]["version"] -= 1
    return publisher.files | {"timestamp.json": resigned(value, publisher.keys["timestamp"])}


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[" * 5000])
def test_an_anchor_that_is_none_is_refused_at_once(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(Malformed, match=r"^root\.json: "):
        Trust(tmp_path, content)


# State


@pytest.mark.parametrize("name", states.FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "bit", "nonsense", "folder"])
def test_one_damaged_copy_loses_nothing_and_is_mended(
    tmp_path: Path, publisher: Publisher, trust: Trust, name: str, damage: str
) -> None:
    trust.refresh(publisher.add(package("2.0.0", epoch=3)).source, NOW, clock_trusted=True)
    trust.confirm(package("2.0.0", epoch=3))
    path = tmp_path / "state" / name
    good = path.read_bytes()
    _damage(path, damage)
    device = Trust(tmp_path / "state", publisher.anchor)
    assert (device.epoch("parts"), device.packages) == (3, (package("2.0.0", epoch=3), package("1.0.0")))
    if damage == "folder":
        path.rmdir()
    device.refresh(publisher.source, NOW, clock_trusted=True)
    assert states.load(tmp_path / "state")[1], "both are there and the same"
    assert len(path.read_bytes()) == len(good)


def _damage(path: Path, damage: str) -> None:
    content = path.read_bytes()
    match damage:
        case "missing":
            path.unlink()
        case "folder":
            path.unlink()
            path.mkdir()
        case _:
            damaged = {
                "empty": b"",
                "half": content[: len(content) // 2],
                "bit": content.replace(b'"parts":3', b'"parts":2'),  # an epoch one lower, and still JSON
                "nonsense": b"[" * 100_000,
            }
            path.write_bytes(damaged[damage])


def test_a_copy_that_is_older_is_not_the_one_that_counts(
    tmp_path: Path, publisher: Publisher, trust: Trust
) -> None:
    first, second = (tmp_path / "state" / name for name in states.FILES)
    old = second.read_bytes()
    trust.refresh(publisher.add(package("2.0.0")).source, NOW, clock_trusted=True)
    for path in (first, second):
        new = path.read_bytes()
        path.write_bytes(old)
        assert Trust(tmp_path / "state", publisher.anchor).packages[0].version == "2.0.0"
        path.write_bytes(new)


def test_a_device_that_has_lost_both_copies_goes_on_from_its_anchor_and_says_so(
    tmp_path: Path, publisher: Publisher, trust: Trust
) -> None:
    for name in states.FILES:
        (tmp_path / "state" / name).write_bytes(b"?")
    with capture_logs() as logs:
        device = Trust(tmp_path / "state", publisher.anchor)
    assert "trust.state_lost" in [line["event"] for line in logs]
    assert device.packages == ()
    assert device.refresh(publisher.source, NOW, clock_trusted=True) == (package("1.0.0"),)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_what_cannot_be_kept_is_not_trusted(
    tmp_path: Path, publisher: Publisher, trust: Trust, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    before = [(tmp_path / "state" / name).read_bytes() for name in states.FILES]

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    publisher.add(package("2.0.0"))
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(Unavailable, match="cannot keep what is trusted"):
        trust.refresh(publisher.source, NOW, clock_trusted=True)
    assert trust.packages == (package("1.0.0"),)
    assert [(tmp_path / "state" / name).read_bytes() for name in states.FILES] == before
    monkeypatch.undo()
    assert trust.refresh(publisher.source, NOW, clock_trusted=True)[0] == package("2.0.0")


def test_nothing_is_written_where_nothing_is_new(tmp_path: Path, publisher: Publisher, trust: Trust) -> None:
    paths = [tmp_path / "state" / name for name in states.FILES]
    before = [path.stat().st_ino for path in paths]
    trust.refresh(publisher.source, NOW, clock_trusted=True)
    assert [path.stat().st_ino for path in paths] == before


def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path: Path, publisher: Publisher) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="file"):
        Trust(tmp_path / "file" / "state", publisher.anchor)


def test_a_refused_refresh_still_notes_the_time_that_went_by(tmp_path: Path, publisher: Publisher) -> None:
    device = Trust(tmp_path / "state", publisher.anchor)
    device.refresh(publisher.source, 0.0, clock_trusted=False, running=Running("one", 0.0))
    with pytest.raises(Frozen):
        device.refresh(publisher.source, 0.0, clock_trusted=False, running=Running("one", 40 * DAY))
    again = Trust(tmp_path / "state", publisher.anchor)
    with pytest.raises(Frozen):
        again.refresh(publisher.source, 0.0, clock_trusted=False, running=Running("two", 1.0))


# Without cryptography


def test_verdicts_are_the_same_without_cryptography(tmp_path: Path, publisher: Publisher) -> None:
    """In a process of its own, in which it cannot be imported."""
    program = """
import sys
sys.modules["cryptography"] = None
from pathlib import Path
from skerry.trust.device import Trust
from skerry.trust.sources import Folder
from skerry.errors import PackageError
folder, state = Path(sys.argv[1]), Path(sys.argv[2])
try:
    print([p.title for p in Trust(state, Path(sys.argv[3]).read_bytes()).refresh(Folder(folder), 0.0, False)])
except PackageError as error:
    print(type(error).__name__)
assert not [m for m in sys.modules if m.startswith(("cryptography.", "urllib3", "skerry.models.signing"))]
"""
    anchor = tmp_path / "root.json"
    anchor.write_bytes(publisher.anchor)
    publisher.exchange("root", "timestamp")

    def verdict(state: str) -> str:
        command = [sys.executable, "-c", program, str(publisher.folder), str(tmp_path / state), str(anchor)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=needs.ROOT)
        return done.stdout.splitlines()[-1]

    assert verdict("good") == "['parts@1.0.0']"
    path = publisher.folder / "metadata" / "timestamp.json"
    value = json.loads(path.read_bytes())
    sig = value["signatures"][0]["sig"]
    value["signatures"][0]["sig"] = sig[:-4] + ("0000" if sig[-4:] != "0000" else "1111")
    path.write_text(json.dumps(value))
    assert verdict("bad") == "Forged"
    # S + L: pure Python by itself would take it, OpenSSL would not.
    moved = (
        int.from_bytes(bytes.fromhex(sig)[32:], "little") + 2**252 + 27742317777372353535851937790883648493
    )
    value["signatures"][0]["sig"] = sig[:64] + moved.to_bytes(32, "little").hex()
    path.write_text(json.dumps(value))
    assert verdict("moved") == "Forged"


# Sources


@pytest.fixture(params=["folder", "memory"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    files = {"timestamp.json": b"0123456789", "1.root.json": b""}
    if request.param == "memory":
        return Memory(files)
    (tmp_path / "stick" / "metadata").mkdir(parents=True)
    for name, content in files.items():
        (tmp_path / "stick" / "metadata" / name).write_bytes(content)
    return Folder(tmp_path / "stick")


def test_a_source_gives_one_byte_more_than_asked_for_at_most(source: Source) -> None:
    assert source.read("timestamp.json", 4) == b"01234"
    assert source.read("timestamp.json", 10) == b"0123456789"
    assert source.read("1.root.json", 10) == b""


def test_a_source_has_nothing_of_what_is_not_there(source: Source) -> None:
    assert source.read("2.root.json", 10) is None


# Time and versions


def test_time_is_the_latest_of_what_was_signed_and_a_clock_that_is_believed() -> None:
    floor = Floor(1000.0)
    assert reference(floor, 5.0, clock_trusted=True) == 1000.0
    assert reference(floor, 2000.0, clock_trusted=True) == 2000.0
    assert reference(floor, 2000.0, clock_trusted=False) == 1000.0
    assert raised(floor, 500.0) == floor
    assert raised(floor, 1500.0).utc_s == 1500.0


def test_time_goes_by_while_the_device_runs_in_this_boot_or_the_next() -> None:
    floor = later(Floor(1000.0), Running("one", 100.0))
    assert floor.utc_s == 1000.0, "how much of this boot was before is not known"
    floor = later(floor, Running("one", 160.0))
    assert floor.utc_s == 1060.0
    floor = later(floor, Running("two", 40.0))
    assert floor.utc_s == 1100.0
    assert later(floor, None) == floor
    assert later(floor, Running("two", 30.0)).utc_s == 1100.0, "a clock that went back counts for nothing"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1e9)), max_size=20))
def test_the_floor_never_goes_down(steps: list[tuple[str, float]]) -> None:
    floor = Floor(1000.0)
    for boot, seconds in steps:
        new = later(floor, Running(boot, seconds))
        assert new.utc_s >= floor.utc_s
        floor = new


def test_versions_sort_by_precedence() -> None:
    versions = (
        "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11",
        "1.0.0-rc.1", "1.0.0", "1.0.1", "1.2.0", "1.10.0", "2.0.0",
    )  # fmt: skip
    assert sorted(versions, key=order) == list(versions)
    assert order("1.0.0+one") == order("1.0.0+two")


def test_state_is_written_through_the_durable_replace(trust: Trust) -> None:
    """The kill and power-cut tests in tests/faults hang on it."""
    assert states.durable is durable
