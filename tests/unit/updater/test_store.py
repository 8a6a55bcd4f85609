"""What the store keeps, refuses, gives up and goes back to, on a disk that works."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from forged_layouts import Forger
from model_folders import NAME, package_folder, packed
from skerry.errors import LinkDown, PackageError, Unavailable
from skerry.models import layout
from skerry.models.oci import Blob, Limits, Listing
from skerry.updater.disk import StoreFull
from skerry.updater.fetch import Budget, FolderSource, fetch
from skerry.updater.settings import StoreSettings
from skerry.updater.slots import Slots
from skerry.updater.store import Store
from store_disks import QuickDisk


class Bench:
    """A store, a source, and what to put from one into the other."""

    def __init__(self, room: Path, **settings: int) -> None:
        self.room = room
        self.source = FolderSource(room / "layout")
        self.bundled = package_folder(room / "bundled", "0.1.0")
        self.settings = StoreSettings(**{"floor_bytes": 0, **settings})
        self.store = self.open()

    def open(self) -> Store:
        return Store.open(self.room / "store", self.settings, bundled={NAME: self.bundled}, disk=QuickDisk())

    def fetched(self, version: str, **changes: object) -> str:
        if (self.room / version).exists():
            listing = layout.pack(self.room / version, self.room / "layout").listing
        else:
            listing = packed(self.room, version, **changes).listing
        fetch(self.store, self.source, listing.manifest)
        return listing.digest

    def active(self, version: str) -> str:
        digest = self.fetched(version)
        self.store.activate(NAME, digest)
        return digest


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.store.close()


def test_a_new_store_serves_the_bundled_model(bench: Bench) -> None:
    serving = bench.store.resolve(NAME)
    assert (serving.folder, serving.digest, serving.origin) == (bench.bundled, "", "bundled")
    assert bench.store.models() == (NAME,)
    with pytest.raises(PackageError, match="expected a package of other, got none"):
        bench.store.resolve("other")


def test_a_fetched_package_serves_only_once_it_is_active(bench: Bench) -> None:
    digest = bench.fetched("1.0.0")
    assert bench.store.packages() == (digest,)
    assert bench.store.resolve(NAME).origin == "bundled"
    bench.store.activate(NAME, digest)
    serving = bench.store.resolve(NAME)
    assert (serving.digest, serving.origin) == (digest, "current")
    assert bench.store.config(digest).title == "tiny@1.0.0"
    link = bench.store.folder / "slots" / NAME / "current" / "model.onnx"
    assert link.read_bytes() == (bench.room / "1.0.0" / "model.onnx").read_bytes()


def test_files_are_links_to_blobs_and_two_versions_share_what_is_the_same(bench: Bench) -> None:
    one, two = bench.fetched("1.0.0"), bench.fetched("2.0.0")
    folders = [bench.store.folder / "packages" / d for d in (one, two)]
    assert len({(f / "labels.txt").stat().st_ino for f in folders}) == 1
    assert (folders[0] / "labels.txt").stat().st_nlink == 3
    assert bench.store.used() < 2 * bench.store.listing(one).total


def test_a_trial_changes_nothing_until_it_is_confirmed(bench: Bench) -> None:
    one, two = bench.active("1.0.0"), bench.fetched("2.0.0")
    assert bench.store.offer(NAME, two).name == two
    assert bench.store.slots(NAME) == Slots(one, None, two)
    assert bench.store.resolve(NAME).digest == one
    bench.store.withdraw(NAME)
    assert bench.store.slots(NAME) == Slots(one, None, None)
    with pytest.raises(PackageError, match="expected a package on trial, got none"):
        bench.store.confirm(NAME)
    bench.store.offer(NAME, two)
    bench.store.confirm(NAME)
    assert bench.store.slots(NAME) == Slots(two, one, None)


def test_rolling_back_goes_to_the_previous_and_then_to_the_bundled_model(bench: Bench) -> None:
    one, two = bench.active("1.0.0"), bench.active("2.0.0")
    bench.store.activate(NAME, two)
    assert bench.store.slots(NAME) == Slots(two, one, None), "activating it again forgets nothing"
    assert bench.store.roll_back(NAME) == one
    assert bench.store.slots(NAME) == Slots(one, None, None)
    assert bench.store.roll_back(NAME) is None
    assert bench.store.resolve(NAME).origin == "bundled"
    assert set(bench.store.packages()) == {one, two}, "both can be activated again without a fetch"


def test_a_reader_of_the_slot_sees_the_old_state_or_the_new_one(bench: Bench) -> None:
    one, two = bench.active("1.0.0"), bench.fetched("2.0.0")
    slot = bench.store.folder / "slots" / NAME
    state = slot.resolve()
    bench.store.activate(NAME, two)
    assert {p.name: p.resolve().name for p in slot.iterdir()} == {"current": two, "previous": one}
    assert not state.exists(), "the old state is gone, not changed"


def test_a_package_of_another_model_or_none_is_refused(bench: Bench) -> None:
    one, other = bench.active("1.0.0"), bench.fetched("2.0.0", name="other")
    with pytest.raises(PackageError, match="expected one of tiny, got one of other"):
        bench.store.activate(NAME, other)
    with pytest.raises(PackageError, match="expected it, got nothing"):
        bench.store.activate(NAME, "0" * 64)
    with pytest.raises(PackageError, match="expected a slot's name"):
        bench.store.activate("../tiny", one)
    assert bench.store.slots(NAME) == Slots(one, None, None)


def test_a_package_that_no_decoder_fits_is_refused_at_activation(bench: Bench) -> None:
    forger = Forger(bench.room)
    labels = forger.put(b"one\ntwo\nthree\n")
    forger.layer("labels.txt").update(digest=f"sha256:{labels.digest}", size=labels.size)
    forger.name()
    entry = layout.select(forger.there)
    fetch(bench.store, bench.source, Blob(entry.hexadecimal, entry.size))
    with pytest.raises(PackageError, match=r"expected \[1, 3\] \(3 labels\), got \[1, 2\]"):
        bench.store.activate(NAME, entry.hexadecimal)
    assert bench.store.resolve(NAME).origin == "bundled"


def test_a_small_blob_that_was_damaged_is_fetched_again(bench: Bench) -> None:
    listing = packed(bench.room, "1.0.0").listing
    with pytest.raises(LinkDown):
        fetch(bench.store, Interrupted(bench.room / "layout", 2000), listing.manifest)
    for digest in (listing.digest, listing.config.digest):
        path = bench.store.folder / "blobs" / "sha256" / digest
        path.write_bytes(bytes(path.stat().st_size))
    fetch(bench.store, bench.source, listing.manifest)
    bench.store.activate(NAME, listing.digest)


def test_a_damaged_current_that_is_made_active_again_falls_back_at_once(bench: Bench) -> None:
    one, two = bench.active("1.0.0"), bench.active("2.0.0")
    (bench.store.folder / "packages" / two / "model.onnx").write_bytes(bytes(3000))
    with capture_logs(), pytest.raises(PackageError, match=r"model\.onnx: expected sha256"):
        bench.store.activate(NAME, two)
    assert bench.store.slots(NAME) == Slots(one, None, None), "no link leads nowhere"
    assert bench.active("2.0.0") == two
    assert bench.store.scrub() == ()


def test_another_process_cannot_have_the_store_meanwhile(bench: Bench) -> None:
    with pytest.raises(Unavailable, match="another process has this store"):
        bench.open()
    bench.store.close()
    bench.store = bench.open()


def test_what_no_slot_needs_goes_for_something_new_the_oldest_first(tmp_path: Path) -> None:
    bench = Bench(tmp_path, quota_bytes=21_000)
    one, two, three, four = (bench.active(f"{n}.0.0") for n in range(1, 5))
    assert bench.store.packages() == (one, two, three, four)
    five = bench.fetched("5.0.0")
    assert bench.store.packages() == (two, three, four, five)
    assert bench.store.slots(NAME) == Slots(four, three, None)
    bench.store.offer(NAME, five)
    six = bench.fetched("6.0.0")
    assert bench.store.packages() == (three, four, five, six)
    assert bench.store.scrub() == ()
    blobs = {p.name for p in (bench.store.folder / "blobs" / "sha256").iterdir()}
    wanted = [bench.store.listing(d) for d in (three, four, five, six)]
    assert blobs == {b.digest for each in wanted for b in (each.manifest, *each.blobs)}
    bench.store.close()


def test_what_slots_need_is_never_given_up(tmp_path: Path) -> None:
    bench = Bench(tmp_path, quota_bytes=13_000)
    one, two = bench.active("1.0.0"), bench.active("2.0.0")
    with pytest.raises(StoreFull, match=r"expected room for .* of the quota"):
        bench.fetched("3.0.0")
    assert bench.store.slots(NAME) == Slots(two, one, None)
    assert bench.store.scrub() == ()
    bench.store.close()


def test_the_floor_of_the_disk_is_kept_free(tmp_path: Path) -> None:
    class Small(QuickDisk):
        def free(self, folder: Path) -> int:
            return 50_000

    listing = packed(tmp_path).listing
    settings = StoreSettings(floor_bytes=48_000)
    with Store.open(tmp_path / "store", settings, disk=Small()) as store:
        with pytest.raises(StoreFull, match=r"and 2000 of the disk above its floor"):
            fetch(store, FolderSource(tmp_path / "layout"), listing.manifest)
        assert store.used() < 2000, "nothing was begun that cannot end"


def test_half_fetched_files_go_first(bench: Bench) -> None:
    stray = bench.store.folder / "partial" / ("0" * 64)
    stray.write_bytes(bytes(5000))
    kept = bench.active("1.0.0")
    bench.store.close()
    bench.settings = StoreSettings(quota_bytes=12_000, floor_bytes=0)
    bench.store = bench.open()
    assert stray.exists(), "it may go on"
    bench.fetched("2.0.0")
    assert not stray.exists()
    assert bench.store.resolve(NAME).digest == kept


class Interrupted(FolderSource):
    """Ends after so many bytes of each blob, and counts what it gave."""

    def __init__(self, folder: Path, most: int) -> None:
        super().__init__(folder)
        self.most, self.given = most, 0

    def blob(self, blob, start):
        left = self.most
        for chunk in super().blob(blob, start):
            self.given += len(chunk[:left])
            yield chunk[:left]
            left -= len(chunk[:left])
            if not left:
                return


def test_a_fetch_that_is_interrupted_again_and_again_fetches_each_byte_once(bench: Bench) -> None:
    listing = packed(bench.room, "1.0.0").listing
    source = Interrupted(bench.room / "layout", 700)
    attempts = 0
    while True:
        attempts += 1
        try:
            fetch(bench.store, source, listing.manifest)
            break
        except LinkDown:
            bench.store.close()
            bench.store = bench.open()
    assert attempts > 4
    assert source.given == listing.total
    bench.store.activate(NAME, listing.digest)


def test_limits_hold_before_anything_large_is_fetched(bench: Bench) -> None:
    listing = packed(bench.room, "1.0.0").listing
    source = Interrupted(bench.room / "layout", 10**6)
    with pytest.raises(PackageError, match="expected at most 1000 bytes a file"):
        fetch(bench.store, source, listing.manifest, limits=Limits(file_bytes=1000))
    assert source.given == listing.size
    with pytest.raises(PackageError, match="expected a manifest of at most 262144 bytes"):
        fetch(bench.store, source, Blob(listing.digest, 10**6))


def test_a_config_of_another_package_is_refused_before_the_weights_come(bench: Bench) -> None:
    forger = Forger(bench.room)
    forger.config["manifest"]["description"] = "another"
    forger.name()
    entry = layout.select(forger.there)
    source = Interrupted(forger.there, 10**6)
    with pytest.raises(PackageError, match="expected what the package's config says"):
        fetch(bench.store, source, Blob(entry.hexadecimal, entry.size))
    assert source.given < 3000
    assert bench.store.packages() == ()


def test_a_package_is_published_only_with_all_its_blobs(bench: Bench) -> None:
    listing: Listing = packed(bench.room, "1.0.0").listing
    with pytest.raises(PackageError, match=r"expected blob .*, got none"):
        bench.store.publish(listing)
    assert bench.store.packages() == ()


def test_a_budget_spreads_bytes_over_time_and_saves_up_one_second() -> None:
    now = 0.0
    budget = Budget(1000, lambda: now)
    assert budget.spend(500) == pytest.approx(0.5)
    assert budget.spend(500) == pytest.approx(1.0)
    now = 100.0
    assert budget.spend(1000) == 0.0
    assert budget.spend(1000) == pytest.approx(1.0)
    assert Budget(None, lambda: now).spend(10**12) == 0.0


def test_a_fetch_waits_where_its_budget_is_spent_and_can_be_stopped_there(bench: Bench) -> None:
    listing = packed(bench.room, "1.0.0").listing
    now = 0.0

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds

    fetch(bench.store, bench.source, listing.manifest, budget=Budget(100, lambda: now), wait=wait)
    assert now == pytest.approx(listing.total / 100)

    def stop(_seconds: float) -> None:
        raise LinkDown("stopping")

    other = packed(bench.room, "2.0.0").listing
    with pytest.raises(LinkDown, match="stopping"):
        fetch(bench.store, bench.source, other.manifest, budget=Budget(100, lambda: now), wait=stop)
