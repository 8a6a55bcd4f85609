"""The model store on disks that are full, fail, or lie."""

import errno
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from model_folders import NAME
from skerry.errors import Unavailable
from skerry.updater.fetch import fetch
from skerry.updater.store import Store
from store_disks import FailingDisk, QuickDisk
from store_life import Far, check, live

STRIDE = int(os.environ.get("SKERRY_STORE_STEPS", "24"))
FLIPS = 576 // STRIDE
"""Bytes that are flipped, of the 10 kB of a store."""


def failing(step: int, code: int, *, forever: bool) -> FailingDisk:
    return FailingDisk(lambda _name, nth: code if nth == step or (forever and nth > step) else 0)


def cases(count: int) -> Iterator[tuple[int, int, bool]]:
    """Every step, with the two errors, and once or from then on."""
    kinds = [(c, f) for c in (errno.ENOSPC, errno.EIO) for f in (False, True)]
    for step in range(1, count + 1):
        for n, (code, forever) in enumerate(kinds):
            if STRIDE == 1 or (step + 7 * n) % (2 * STRIDE) == 0:
                yield step, code, forever


@pytest.mark.timeout(900)
def test_a_disk_that_fails_at_any_call_leaves_one_whole_package_serving(tmp_path: Path) -> None:
    far = Far(tmp_path / "far")
    counted, folder = FailingDisk(), tmp_path / "store"
    live(far, tmp_path / "counted", counted)
    said: list[str] = []
    for step, code, forever in cases(len(counted.calls)):
        promised = [""]
        with capture_logs():
            try:
                live(far, folder, failing(step, code, forever=forever), promised.append)
            except Unavailable as error:
                said.append(str(error))
            with far.open(folder, QuickDisk()) as store:
                ahead = [*far.order, far.order[-1]][len(promised) - 1]
                # What cannot be read is fallen back from, as far as to what served before.
                check(far, store, {*promised, ahead} if code == errno.EIO else {promised[-1], ahead})
            if step % 20 == 0:
                live(far, folder, QuickDisk())
                with far.open(folder, QuickDisk()) as store:
                    check(far, store, {far.order[-1]})
        shutil.rmtree(folder)
    assert len(said) > len(counted.calls) // STRIDE // 2, "it failed"
    assert [text for text in said if str(tmp_path) not in text] == [], "it says where"


@pytest.fixture
def far(tmp_path: Path) -> Far:
    return Far(tmp_path / "far")


@pytest.fixture
def store(far: Far, tmp_path: Path) -> Iterator[Store]:
    """The second version serves, the first did before."""
    with far.open(tmp_path / "store", QuickDisk()) as store:
        for each in far.packed[:2]:
            fetch(store, far.source, each.listing.manifest)
            store.activate(NAME, each.listing.digest)
        yield store


def reopened(far: Far, store: Store) -> Store:
    store.close()
    return far.open(store.folder, QuickDisk())


def heal(far: Far, store: Store) -> None:
    """Fetch again what the desired state says, and see that all is well."""
    two = far.packed[1].listing
    fetch(store, far.source, two.manifest)
    store.activate(NAME, two.digest)
    check(far, store, {two.digest})
    assert store.scrub() == ()


@pytest.mark.timeout(900)
def test_a_flipped_byte_anywhere_is_found_told_and_healed(far: Far, store: Store) -> None:
    draw = random.Random(6)
    one, two, *_ = far.digests
    kept = store.folder.with_name("kept")
    shutil.copytree(store.folder, kept, symlinks=True)
    files = [p for p in sorted(store.folder.rglob("*")) if p.is_file() and p.stat().st_size]
    origins = set()
    for n in range(FLIPS):
        path = files[n % len(files)]
        content = bytearray(path.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        inode = path.stat().st_ino
        path.write_bytes(content)
        assert path.stat().st_ino == inode, "every name of it has the damage"
        with capture_logs() as logs:
            found = store.scrub()
            serving = check(far, store, {two, one, ""})
            origins.add(serving.digest)
            assert found, f"{path}: nothing was found"
            assert {e["event"] for e in logs} >= {"store.damaged"}
            for digest in (one, two):
                fetch(store, far.source, far.packed[far.digests.index(digest)].listing.manifest)
                store.activate(NAME, digest)
        heal(far, store)
    assert origins == {two, one, ""}, "each place to fall back to was needed"


def model_file(store: Store, digest: str) -> Path:
    return store.folder / "packages" / digest / "model.onnx"


def test_a_file_of_another_size_is_noticed_at_the_start_and_fallen_back_from(far: Far, store: Store) -> None:
    one, two, *_ = far.digests
    with model_file(store, two).open("ab") as file:
        file.write(b"!")
    with capture_logs():
        store = reopened(far, store)
        actions = {(f.action, f.digest) for f in store.found}
    assert actions == {("dropped", two), ("fell_back", two)}
    check(far, store, {one})
    heal(far, store)


def test_a_damaged_package_is_rebuilt_from_blobs_that_are_good(far: Far, store: Store) -> None:
    two = far.digests[1]
    path = model_file(store, two)
    path.unlink()
    path.write_bytes(b"?")
    with capture_logs():
        store = reopened(far, store)
    assert [(f.action, f.digest) for f in store.found] == [("rebuilt", two)]
    check(far, store, {two})


def test_a_lost_blob_is_made_of_a_package_that_has_it(far: Far, store: Store) -> None:
    for path in (store.folder / "blobs" / "sha256").iterdir():
        if path.name in {f.blob.digest for f in store.listing(far.digests[1]).files}:
            path.unlink()
    with capture_logs():
        found = store.scrub()
    assert {f.action for f in found} == {"rebuilt"}
    check(far, store, {far.digests[1]})
    assert store.scrub() == ()


@pytest.mark.parametrize("what", ["extra", "link", "folder", "pipe", "hidden"])
def test_what_does_not_belong_in_a_package_is_not_served(far: Far, store: Store, what: str) -> None:
    folder = store.folder / "packages" / far.digests[1]
    match what:
        case "extra":
            (folder / "more.onnx").write_bytes(b"x")
        case "link":
            (folder / "labels.txt").unlink()
            (folder / "labels.txt").symlink_to("/etc/hostname")
        case "folder":
            (folder / "labels.txt").unlink()
            (folder / "labels.txt").mkdir()
        case "pipe":
            (folder / "labels.txt").unlink()
            os.mkfifo(folder / "labels.txt")
        case "hidden":
            (folder / ".git").mkdir()
            (folder / ".git" / "config").write_bytes(b"x")
    serving = store.resolve(NAME)
    assert serving.origin == "previous"
    assert serving.passed_over[0].startswith("current: ")
    with capture_logs():
        store = reopened(far, store)
    assert store.found[0].action == "rebuilt"
    check(far, store, {far.digests[1]})


@pytest.mark.parametrize("what", ["gone", "dangling", "outside", "folder", "file", "other"])
def test_slots_that_lead_nowhere_fall_back_to_the_bundled_model(far: Far, store: Store, what: str) -> None:
    slot = store.folder / "slots" / NAME
    state = slot.resolve()
    slot.unlink()
    match what:
        case "dangling":
            slot.symlink_to(f"../states/{NAME}.99")
        case "outside":
            slot.symlink_to(state)
        case "folder":
            slot.mkdir()
            (slot / "current").symlink_to(f"../../packages/{far.digests[0]}")
        case "file":
            slot.write_bytes(b"x")
        case "other":
            (state / "current").unlink()
            (state / "current").symlink_to("../../packages/../../far/bundled")
            (state / "previous").unlink()
            slot.symlink_to(f"../states/{state.name}")
    with capture_logs():
        store = reopened(far, store)
        assert store.resolve(NAME).origin == "bundled"
        heal(far, store)


def test_a_slot_that_a_full_disk_does_not_let_change_is_read_around(far: Far, store: Store) -> None:
    one, two, *_ = far.digests
    with model_file(store, two).open("ab") as file:
        file.write(b"!")
    store.close()
    full = FailingDisk(lambda name, _nth: errno.ENOSPC * (name in ("make_folder", "symlink", "create")))
    with capture_logs(), far.open(store.folder, full) as narrow:
        assert {f.action for f in narrow.found} == {"dropped", "not_written"}
        serving = narrow.resolve(NAME)
        assert (serving.digest, serving.origin) == (one, "previous")
    with capture_logs(), far.open(store.folder, QuickDisk()) as again:
        check(far, again, {one})


def test_nothing_to_fall_back_to_is_an_error_that_says_why(far: Far, store: Store) -> None:
    for digest in far.digests[:2]:
        with model_file(store, digest).open("ab") as file:
            file.write(b"!")
    (far.bundled / "model.onnx").write_bytes(b"?")
    with pytest.raises(Exception, match=r"expected a package of tiny, got none\ncurrent: [^$]*bundled: "):
        store.resolve(NAME)


def test_what_is_fallen_back_to_is_compared_by_its_hashes_first(far: Far, store: Store) -> None:
    one, two, *_ = far.digests
    with model_file(store, two).open("ab") as file:
        file.write(b"!")
    model_file(store, one).write_bytes(bytes(3000))  # of the right size
    with capture_logs():
        store = reopened(far, store)
    assert {(f.action, f.digest) for f in store.found} == {
        (action, digest) for action in ("dropped", "fell_back") for digest in (one, two)
    }
    check(far, store, {""})


def test_a_scrub_compares_blobs_that_no_package_has_yet(far: Far, store: Store) -> None:
    blob = next(f.blob for f in far.packed[2].listing.files if f.title == "model.onnx")
    store.receive(blob, lambda start: far.source.blob(blob, start))
    assert store.scrub() == ()
    path = store.folder / "blobs" / "sha256" / blob.digest
    path.write_bytes(bytes(blob.size))
    with capture_logs():
        (found,) = store.scrub()
    assert (found.action, found.digest) == ("dropped", blob.digest)
    assert store.missing([blob]) == blob.size
    check(far, store, {far.digests[1]})
