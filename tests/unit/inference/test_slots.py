"""Which package serves in a slot, and what is exchanged for, with a real store and no runtime."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from model_folders import NAME, package_folder, packed
from skerry.errors import ConfigError, PackageError
from skerry.inference.activation import Activation
from skerry.inference.settings import ExchangeSettings, InferenceSettings, ModelUse
from skerry.inference.slots import SlotTable
from skerry.messages import Offer, OfferedModel
from skerry.models import package as packages
from skerry.models.slots import check_sizes, read_slots
from skerry.models.slots import package_folder as folder_of
from skerry.updater.fetch import FolderSource, fetch
from skerry.updater.store import Store


class Room:
    """A store with packages, and a module that has two slots and a model without one."""

    def __init__(self, room: Path) -> None:
        self.room = room
        self.store = Store.open(room / "store")
        self.bundled = package_folder(room / "bundled", "1.0.0")
        self.uses = (
            ModelUse(package=str(self.bundled), slot="front", cameras=("a",)),
            ModelUse(package=str(self.bundled), slot="back", cameras=("b",)),
            ModelUse(package=str(self.bundled), cameras=("c",)),
        )
        self.settings = InferenceSettings(
            site="s", module="inference", state=str(room), frames=str(room), models=self.uses,
            store=str(self.store.folder),
        )  # fmt: skip
        self.table = SlotTable(self.settings)
        self.broken: set[str] = set()
        self.loaded: list[str] = []

    def add(self, version: str) -> str:
        """Bring a package into the store; its digest."""
        made = packed(self.room, version)
        fetch(self.store, FolderSource(self.room / "layout"), made.listing.manifest)
        return made.listing.digest

    def load(self, use: ModelUse) -> str:
        """In the place of a runtime: the version, if the package is whole and not `broken`."""
        package = packages.load(Path(use.package))
        self.loaded.append(package.manifest.version)
        if package.manifest.version in self.broken:
            raise PackageError(f"no runtime loads {package.title}")
        return package.manifest.version

    def opened(self, index: int = 0) -> tuple[ModelUse, str]:
        return self.table.opened(index, self.uses[index], self.load)

    def offer(self, *models: OfferedModel) -> None:
        self.table.take(Offer(module="inference", models=models))

    def said(self, index: int = 0):
        titles = dict.fromkeys(range(3), f"{NAME}@0")
        return self.table.message(
            "inference", titles, dict.fromkeys(range(3), ()), dict.fromkeys(range(3), "")
        ).slots[index]


@pytest.fixture
def room(tmp_path: Path):
    made = Room(tmp_path)
    yield made
    made.store.close()


class TestStart:
    def test_an_empty_store_leaves_it_to_the_bundled_package(self, room: Room) -> None:
        use, version = room.opened()
        assert (version, use.package) == ("1.0.0", str(room.bundled))
        assert (room.said().digest, room.said().passed_over) == ("", "")

    def test_current_comes_before_previous_and_both_before_the_bundled_one(self, room: Room) -> None:
        one, two = room.add("1.1.0"), room.add("1.2.0")
        room.store.activate("front", one, NAME)
        room.store.activate("front", two, NAME)
        assert room.opened()[1] == "1.2.0"
        room.broken = {"1.2.0"}
        assert room.opened()[1] == "1.1.0"
        assert room.said().digest == one
        assert "current: no runtime loads tiny@1.2.0" in room.said().passed_over
        room.broken = {"1.2.0", "1.1.0"}
        assert room.opened()[1] == "1.0.0"
        assert "previous: " in room.said().passed_over

    def test_a_package_on_trial_is_never_begun_with(self, room: Room) -> None:
        room.store.offer("front", room.add("1.1.0"), NAME)
        assert room.opened()[1] == "1.0.0"
        assert room.loaded == ["1.0.0"]

    def test_a_file_of_another_size_or_none_is_found_before_anything_is_loaded(self, room: Room) -> None:
        one = room.add("1.1.0")
        room.store.activate("front", one, NAME)
        folder = folder_of(room.store.folder, one)
        (folder / "labels.txt").unlink()
        (folder / "labels.txt").write_text("good\nuglier\n")
        with pytest.raises(PackageError, match=r"labels\.txt"):
            check_sizes(room.store.folder, one)
        assert room.opened()[1] == "1.0.0"
        assert room.loaded == ["1.0.0"]
        shutil.rmtree(room.store.folder / "blobs")
        assert room.opened()[1] == "1.0.0", "a manifest that is gone is damage too"

    def test_where_nothing_can_be_loaded_the_reason_is_that_of_the_bundled_one(self, room: Room) -> None:
        room.broken = {"1.0.0"}
        with pytest.raises(PackageError, match=r"no runtime loads tiny@1\.0\.0"):
            room.opened()

    def test_a_link_out_of_the_store_names_no_package(self, room: Room, tmp_path: Path) -> None:
        evil = package_folder(tmp_path / "evil", "6.6.6")
        state = room.store.folder / "states" / "front.1"
        state.mkdir()
        (state / "current").symlink_to(evil)
        (room.store.folder / "slots" / "front").symlink_to("../states/front.1")
        assert read_slots(room.store.folder, "front").current is None
        (room.store.folder / "slots" / "back").symlink_to(tmp_path)
        assert read_slots(room.store.folder, "back").current is None
        (state / "current").unlink()
        (state / "current").symlink_to(one := room.add("1.1.0"))
        assert read_slots(room.store.folder, "front").current is None
        (state / "current").unlink()
        (state / "current").symlink_to(f"../../packages/{one}")
        assert read_slots(room.store.folder, "front").current is not None
        (room.store.folder / "slots" / "front").unlink()
        (room.store.folder / "slots" / "front").symlink_to("/states/front.1")
        assert read_slots(room.store.folder, "front").current is None
        assert room.opened()[1] == "1.0.0"


class TestOffers:
    @pytest.fixture(autouse=True)
    def started(self, room: Room) -> None:
        room.one = room.add("1.1.0")
        for index in (0, 1):
            room.opened(index)

    def test_what_serves_already_is_not_wanted(self, room: Room) -> None:
        room.offer(OfferedModel(slot="front"), OfferedModel(slot="elsewhere", digest=room.one))
        assert room.table.wanted(room.uses) is None

    def test_what_is_offered_is_wanted_until_it_was_tried_and_again_with_another_attempt(
        self, room: Room
    ) -> None:
        room.offer(OfferedModel(slot="front", digest=room.one, attempt=1))
        wanted = room.table.wanted(room.uses)
        assert (wanted.index, wanted.use.package) == (0, str(folder_of(room.store.folder, room.one)))
        assert wanted.use.exchange == ExchangeSettings()
        room.table.begun(wanted)
        step = Activation(title="tiny@1.1.0").failed("it is slow")
        room.table.stepped(wanted, step)
        room.table.ended(wanted, served=False, final=True)
        said = room.said()
        assert (said.offered, said.attempt, said.step, said.reason) == (room.one, 1, "refused", "it is slow")
        assert (said.final, said.digest) == (True, "")
        assert room.table.wanted(room.uses) is None
        room.offer(OfferedModel(slot="front", digest=room.one, attempt=2))
        assert room.table.wanted(room.uses) is not None

    def test_what_was_confirmed_serves_and_is_what_settings_are_overlaid_with(self, room: Room) -> None:
        room.offer(OfferedModel(slot="back", digest=room.one))
        wanted = room.table.wanted(room.uses)
        room.table.ended(wanted, served=True, final=False)
        assert room.said(1).digest == room.one
        overlaid = room.table.overlaid(room.settings).models
        assert overlaid[1].package == wanted.use.package
        assert (overlaid[0], overlaid[2]) == (room.uses[0], room.uses[2])
        assert room.table.wanted(overlaid) is None

    def test_going_back_comes_first_and_asks_for_no_agreement(self, room: Room) -> None:
        room.offer(
            OfferedModel(slot="front", digest=room.one), OfferedModel(slot="back", digest=room.one, back=True)
        )
        wanted = room.table.wanted(room.uses)
        exchange = wanted.use.exchange
        assert wanted.index == 1
        assert (exchange.least_agreement, exchange.shadow_frames, exchange.probation_s) == (0, 0, 0)
        assert exchange.force == packages.digest(Path(wanted.use.package) / "manifest.json")

    def test_the_bundled_package_can_be_gone_back_to(self, room: Room) -> None:
        room.offer(OfferedModel(slot="front", digest=room.one))
        room.table.ended(room.table.wanted(room.uses), served=True, final=False)
        room.offer(OfferedModel(slot="front", back=True))
        wanted = room.table.wanted(room.uses)
        assert wanted.use.package == str(room.bundled)
        room.table.ended(wanted, served=True, final=False)
        assert room.said().digest == ""

    def test_an_offer_that_was_taken_back_is_seen(self, room: Room) -> None:
        room.offer(OfferedModel(slot="front", digest=room.one, attempt=1))
        wanted = room.table.wanted(room.uses)
        assert room.table.still(wanted)
        room.offer(OfferedModel(slot="front", digest=room.one, attempt=2))
        assert room.table.still(wanted)
        room.offer(OfferedModel(slot="front"))
        assert not room.table.still(wanted)
        room.offer()
        assert not room.table.still(wanted)

    def test_another_folder_is_refused_where_a_slot_says_what_serves(self, room: Room) -> None:
        other = msgspec.structs.replace(room.uses[0], package="/elsewhere")
        wrong = msgspec.structs.replace(room.settings, models=(other, *room.uses[1:]))
        with pytest.raises(ConfigError, match=r"models\.0\.package: .*set slots\.front\.version"):
            room.table.overlaid(wrong)
        other = msgspec.structs.replace(room.uses[2], package="/elsewhere")
        right = msgspec.structs.replace(room.settings, models=(*room.uses[:2], other))
        assert room.table.overlaid(right).models[2].package == "/elsewhere"


def test_a_slot_has_one_model(tmp_path: Path) -> None:
    use = ModelUse(package="p", slot="front", cameras=("a",))
    other = ModelUse(package="p", slot="front", cameras=("b",))
    with pytest.raises(ValueError, match="expected a slot for one model only, got front"):
        InferenceSettings(
            site="s", module="i", state=str(tmp_path), frames=str(tmp_path), models=(use, other)
        )
