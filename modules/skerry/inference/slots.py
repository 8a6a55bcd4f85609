"""Which packages of the model store serve in the slots, and what became of those that were offered.

Knows no bus and no session: the module hands in offers and outcomes, and asks what is to be exchanged.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from skerry.errors import ConfigError, PackageError, SkerryError
from skerry.inference.activation import Activation
from skerry.inference.settings import ExchangeSettings, InferenceSettings, ModelUse
from skerry.messages import Activations, Offer, OfferedModel, SlotUse
from skerry.models import package as packages
from skerry.models.slots import Candidate, Origin, candidates, check_sizes, package_folder

M = TypeVar("M")


@dataclass(frozen=True)
class Wanted:
    """A package that is to serve in the place of another.

    Attributes:
        index: place of the model in the settings.
        use: what is to serve there.
        offered: what it was offered as.
    """

    index: int
    use: ModelUse
    offered: OfferedModel


class SlotTable:
    """The slots of a module's models. `take` may be called on any thread, the rest on the loop's.

    Args:
        settings: of the module, as deployed.
    """

    def __init__(self, settings: InferenceSettings) -> None:
        self._store = Path(settings.store)
        self._deployed = settings.models
        self._slots = {n: use.slot for n, use in enumerate(settings.models) if use.slot}
        self._serving: dict[int, Candidate] = {}
        self._uses = {n: SlotUse(slot=slot, model="") for n, slot in self._slots.items()}
        self._lock = threading.Lock()
        self._offers: dict[str, OfferedModel] = {}
        self._done: dict[int, tuple[str, int]] = {}
        """Digest and attempt of what was tried last, by place."""

    def __bool__(self) -> bool:
        return bool(self._slots)

    # Serving

    def opened(self, index: int, use: ModelUse, load: Callable[[ModelUse], M]) -> tuple[ModelUse, M]:
        """Load the best package of a slot that can be loaded.

        Args:
            index: of the model.
            use: of the model; its `package` is the bundled one.
            load: makes a model.

        Raises:
            SkerryError: not even the bundled one can.
        """
        why: list[str] = []
        for candidate in self._candidates(use):
            used = msgspec.structs.replace(use, package=str(candidate.folder))
            try:
                if candidate.digest:
                    check_sizes(self._store, candidate.digest)
                model = load(used)
            except SkerryError as error:
                why.append(f"{candidate.origin}: {error}")
                if candidate.origin == "bundled":
                    raise
                continue
            self.serves(index, candidate)
            self._note(index, passed_over="; ".join(why)[:1000])
            return used, model
        raise PackageError("; ".join(why))

    def _candidates(self, use: ModelUse) -> Iterator[Candidate]:
        return candidates(self._store, use.slot, Path(use.package))

    def serves(self, index: int, candidate: Candidate) -> None:
        """This one serves from now on."""
        self._serving[index] = candidate
        self._note(index, digest=candidate.digest, passed_over="")

    def overlaid(self, settings: InferenceSettings) -> InferenceSettings:
        """The settings with the packages that serve in the slots.

        Raises:
            ConfigError: another package is desired by folder where a slot says which it is.
        """
        if not self._slots:
            return settings
        wrong = [
            f"modules.{settings.module}.models.{n}.package: expected the folder as deployed, because slot "
            f"{slot} says what serves (set slots.{slot}.version of the updater)"
            for n, slot in self._slots.items()
            if settings.models[n].package != self._deployed[n].package
        ]
        if wrong:
            raise ConfigError(wrong)
        models = tuple(
            msgspec.structs.replace(use, package=str(self._serving[n].folder)) if n in self._serving else use
            for n, use in enumerate(settings.models)
        )
        return msgspec.structs.replace(settings, models=models)

    # Offers

    def take(self, offer: Offer) -> None:
        """What is offered from now on."""
        with self._lock:
            self._offers = {model.slot: model for model in offer.models}

    def wanted(self, uses: Sequence[ModelUse]) -> Wanted | None:
        """The next package to exchange for: one at a time, those that are gone back to first."""
        with self._lock:
            offers = dict(self._offers)
        found = [
            (n, offers[slot])
            for n, slot in self._slots.items()
            if slot in offers
            and offers[slot].digest != self._serving[n].digest
            and self._done.get(n) != (offers[slot].digest, offers[slot].attempt)
        ]
        for n, offered in sorted(found, key=lambda each: not each[1].back):
            return Wanted(n, self._use(n, uses[n], offered), offered)
        return None

    def still(self, wanted: Wanted) -> bool:
        """Whether it is offered still."""
        with self._lock:
            now = self._offers.get(wanted.offered.slot)
        return now is not None and now.digest == wanted.offered.digest

    def begun(self, wanted: Wanted) -> None:
        """It is being exchanged for."""
        offered = wanted.offered
        self._note(
            wanted.index,
            offered=offered.digest,
            attempt=offered.attempt,
            step="offered",
            reason="",
            final=False,
        )

    def stepped(self, wanted: Wanted, activation: Activation) -> None:
        """It has taken a step."""
        step, reason = activation.said[-1]
        self._note(wanted.index, step=step, reason=reason)

    def ended(self, wanted: Wanted, *, served: bool, final: bool) -> None:
        """Nothing more comes of it.

        Args:
            wanted: what was exchanged for.
            served: whether it serves now.
            final: it would fail again.
        """
        offered = wanted.offered
        self._done[wanted.index] = offered.digest, offered.attempt
        if served:
            origin: Origin = "current" if offered.digest else "bundled"
            self.serves(wanted.index, Candidate(origin, offered.digest, Path(wanted.use.package)))
        self._note(wanted.index, final=final)

    def message(
        self,
        module: str,
        titles: Mapping[int, str],
        drift: Mapping[int, tuple[str, ...]],
        failing: Mapping[int, str],
        watched: Collection[int] = (),
    ) -> Activations:
        """What to tell.

        Args:
            module: name of this one.
            titles: name@version of what serves, by place.
            drift: what drifts, by place.
            failing: why most results are failures, by place.
            watched: places where drift would be known by now.
        """
        replace = msgspec.structs.replace
        return Activations(
            module=module,
            slots=tuple(
                replace(use, model=titles[n], drift=drift[n], failing=failing[n], watched=n in watched)
                for n, use in sorted(self._uses.items())
            ),
        )

    def _use(self, index: int, use: ModelUse, offered: OfferedModel) -> ModelUse:
        """How a package that is offered is to serve."""
        folder = Path(self._deployed[index].package)
        if offered.digest:
            folder = package_folder(self._store, offered.digest)
        exchange = use.exchange
        if offered.back:
            # It has proved itself here; what it differs in from the one that serves is why it is wanted.
            exchange = msgspec.structs.replace(
                exchange, least_agreement=0.0, shadow_frames=0, probation_s=0.0, labels=()
            )
        if offered.back or offered.force:
            exchange = msgspec.structs.replace(exchange, force=_manifest_digest(folder, exchange))
        return msgspec.structs.replace(use, package=str(folder), exchange=exchange)

    def _note(self, index: int, **changes: object) -> None:
        self._uses[index] = msgspec.structs.replace(self._uses[index], **changes)


def _manifest_digest(folder: Path, exchange: ExchangeSettings) -> str:
    try:
        return packages.digest(folder / packages.MANIFEST)
    except (OSError, PackageError):
        return exchange.force  # the exchange finds out, and says so
