"""What becomes of a desired state. Pure: knows no bus, no clock and no disk.

It is judged whole, then given to the modules, and taken back whole if one of them will not have it.

The states of the newest desired state are `waiting` (it names a module that nobody has heard of yet),
`refused`, `applying` and `applied`. What counts meanwhile is always a state that was found to be valid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from skerry.desired import adjusted, depth, digest
from skerry.errors import ConfigError
from skerry.kinds import kind_of
from skerry.messages import Desired, Inventory, Name, Reported
from skerry.settings import Settings, convert, parse
from skerry.uplink.downlink import Proposal

_MODULES = 64
"""Modules of one site that are known here; more are somebody's mistake."""
_LONGEST_VERSION = 64
_MOST_ERRORS = 20
_DEEPEST = 24

Verdict = Literal["none", "waiting", "refused", "applying", "applied"]


class Document(Settings, frozen=True, kw_only=True):
    """A desired state as an operator writes it, the same on every platform."""

    schema: Literal[1] = 1
    version: Annotated[int, Meta(ge=0)] | Annotated[str, Meta(max_length=40)] = ""
    """Told back in the reported state. A twin and a shadow have their own number, which is told if this is
    left out."""
    modules: dict[Name, dict[str, Any]] = msgspec.field(default_factory=dict)
    """Name of a module to what is desired of it: see `Desired` in messages.md."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A desired state, parsed."""

    version: str = ""
    patches: dict[str, dict[str, Any]] = {}

    def patch(self, module: str) -> dict[str, Any]:
        """What is desired of a module."""
        return self.patches.get(module, {})

    def message(self, module: str) -> Desired:
        """The same, as the module hears it."""
        patch = self.patch(module)
        return Desired(module=module, version=self.version, digest=digest(patch), patch=patch)


_AS_DEPLOYED = Wanted(version="as deployed")
"""Where no desired state is left to go back to."""


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What outlives the process."""

    current: Wanted = Wanted()
    """What counts."""
    before: Wanted = Wanted()
    """What counted before it."""
    refused: Wanted | None = None
    """The newest desired state, where it was refused: it is not tried again."""
    errors: tuple[str, ...] = ()
    """Why."""


class Judgement:
    """One site's desired state.

    Args:
        memory: of an earlier life.
        settled_by: monotonic time, in seconds, until which modules may still be starting.
    """

    def __init__(self, memory: Memory, settled_by: float) -> None:
        self.memory = memory
        self.inventories: dict[str, Inventory] = {}
        self._settled_by = settled_by
        self._proposal: Proposal | None = None
        self._waiting: tuple[str, ...] = ()
        self._reports: dict[str, Reported] = {}
        self._due: set[str] = set()

    # What is heard

    def propose(self, proposal: Proposal) -> None:
        """The newest desired state; one that nobody has looked at yet is forgotten."""
        self._proposal = proposal
        self._waiting = ()

    def heard(self, inventory: Inventory) -> None:
        """A module is there, or there again: it is told what counts."""
        name = inventory.module
        if name not in self.inventories and len(self.inventories) >= _MODULES:
            return
        before = self.inventories.get(name)
        self.inventories[name] = inventory
        self._due.add(name)
        refused = self.memory.refused
        if refused is None:
            return
        anew = before is not None and before.settings != inventory.settings
        if anew or _unknown(name) in {error.partition(" (")[0] for error in self.memory.errors}:
            # Deployed anew, or not heard of before: what did not fit may fit now.
            self._consider(refused)

    def reported(self, report: Reported) -> None:
        """What a module has made of it."""
        current = self.memory.current
        message = current.message(report.module)
        if (report.version, report.digest) != (message.version, message.digest):
            return  # of another one
        self._reports[report.module] = report
        if report.state == "applied" or not current.patches:
            return
        back = self.memory.before
        if not back.version or back.patches == current.patches:
            back = _AS_DEPLOYED
        refused, errors = self.memory.refused, self.memory.errors
        if refused is None:
            refused, errors = current, report.errors or (f"modules.{report.module}: refused",)
        self._count(Memory(current=back, before=back, refused=refused, errors=errors[:_MOST_ERRORS]))

    # What to do

    def step(self, now: float) -> list[Desired]:
        """Judge what there is to judge; what modules are to be told now.

        Args:
            now: monotonic time, in seconds.
        """
        if self._proposal is not None:
            self._judge(self._proposal, now)
        due, self._due = self._due & self.inventories.keys(), set()
        if not self.memory.current.version:
            return []
        return [self.memory.current.message(name) for name in sorted(due)]

    @property
    def verdict(self) -> Verdict:
        """On the newest desired state."""
        if self._waiting:
            return "waiting"
        if self.memory.refused is not None:
            return "refused"
        if not self.memory.current.version:
            return "none"
        return "applying" if self.missing else "applied"

    @property
    def missing(self) -> tuple[str, ...]:
        """Modules that have not said yet what they made of what counts."""
        current, before = self.memory.current, self.memory.before
        named = current.patches.keys() | before.patches.keys()
        return tuple(sorted(name for name in named if not self._said(name)))

    def document(self) -> dict[str, Any]:
        """What to report: the version asked for, what became of it, and which one counts."""
        memory = self.memory
        asked = memory.refused or memory.current
        told: dict[str, Any] = {"version": asked.version, "state": self.verdict}
        if self._waiting:
            told["waiting_for"] = list(self._waiting)
        elif memory.refused is not None:
            told["errors"] = list(memory.errors)
        elif self.missing:
            told["waiting_for"] = list(self.missing)
        if asked is not memory.current:
            told["counts"] = memory.current.version
        restart = {n: list(r.restart) for n, r in self._reports.items() if r.restart and self._said(n)}
        if restart:
            told["restart"] = restart
        return told

    # Judging

    def _judge(self, proposal: Proposal, now: float) -> None:
        try:
            wanted = _parsed(proposal)
        except ConfigError as error:
            self._proposal, self._waiting = None, ()
            self._refuse(Wanted(version=_version(proposal, "")), error.problems)
            return
        unknown = tuple(sorted(wanted.patches.keys() - self.inventories.keys()))
        if unknown and now < self._settled_by:
            self._waiting = unknown
            return
        self._proposal, self._waiting = None, ()
        if wanted != self.memory.refused:
            self._consider(wanted)

    def _consider(self, wanted: Wanted) -> None:
        """Refuse it, or let it count."""
        if errors := list(self._problems(wanted)):
            self._refuse(wanted, errors)
            return
        memory = self.memory
        if wanted.patches == memory.current.patches:
            before = memory.before
        else:
            # One that nobody has confirmed is not what to go back to.
            before = memory.before if self.missing else memory.current
        if wanted != memory.current or memory.refused is not None:
            self._count(Memory(current=wanted, before=before))

    def _problems(self, wanted: Wanted) -> Iterator[str]:
        for name, patch in wanted.patches.items():
            inventory = self.inventories.get(name)
            if inventory is None:
                known = ", ".join(sorted(self.inventories)) or "none"
                yield f"{_unknown(name)} (known: {known})"
                continue
            kind = kind_of(inventory.kind)
            if kind is None:
                yield f"modules.{name}: nobody here knows the settings of a {inventory.kind}"
                continue
            try:
                deployed = convert(kind.settings, inventory.settings, f"modules.{name}")
                adjusted(deployed, deployed, patch, kind.check, f"modules.{name}")
            except ConfigError as error:
                yield from error.problems

    def _refuse(self, wanted: Wanted, errors: Any) -> None:
        told = tuple(errors)
        if len(told) > _MOST_ERRORS:
            told = (*told[: _MOST_ERRORS - 1], f"and {len(told) - _MOST_ERRORS + 1} more")
        self.memory = msgspec.structs.replace(self.memory, refused=wanted, errors=told)

    def _count(self, memory: Memory) -> None:
        """This counts from now on; everybody is told."""
        self.memory = memory
        self._reports = {}
        self._due |= self.inventories.keys()

    def _said(self, name: str) -> bool:
        """Whether a module has applied what counts."""
        report, message = self._reports.get(name), self.memory.current.message(name)
        return report is not None and (report.version, report.digest) == (message.version, message.digest)


def _unknown(name: str) -> str:
    return f"modules.{name}: no such module on this site"


def _parsed(proposal: Proposal) -> Wanted:
    """A proposal as a desired state.

    Raises:
        ConfigError: with every problem of its outer form.
    """
    if depth(proposal.document) > _DEEPEST:
        raise ConfigError(f"{proposal.source}: expected at most {_DEEPEST} levels, got more")
    document = parse(Document, proposal.document, proposal.source)
    return Wanted(version=_version(proposal, document.version), patches=dict(document.modules))


def _version(proposal: Proposal, said: str | int) -> str:
    own = str(said) if said != "" else proposal.version
    return f"{proposal.source}/{own}"[:_LONGEST_VERSION]


_WHOLE = ("audit",)
"""What says nothing once it is shortened."""


def fitted(document: Mapping[str, Any], most_bytes: int) -> dict[str, Any]:
    """A report that is small enough: what says least is shortened first, then left out.

    Args:
        document: the report.
        most_bytes: of its JSON.
    """
    told = dict(document)
    for longest in (300, 120, 40):
        if len(msgspec.json.encode(told)) <= most_bytes:
            return told
        whole = {key: told[key] for key in _WHOLE if key in told}
        told = {**_shortened(told, longest), **whole}
    for key in ("runtimes", "models", "device", "modules", "credentials", "updates", "audit"):
        if len(msgspec.json.encode(told)) <= most_bytes:
            return told
        told.pop(key, None)
        told["left_out"] = [*told.get("left_out", []), key]
    while len(msgspec.json.encode(told)) > most_bytes and told.get("desired", {}).get("errors"):
        desired = told["desired"]
        told["desired"] = {**desired, "errors": desired["errors"][: len(desired["errors"]) // 2]}
    return told


def _shortened(data: Any, longest: int) -> Any:
    if isinstance(data, Mapping):
        return {key: _shortened(value, longest) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_shortened(value, longest) for value in data]
    return data[: longest - 3] + "..." if isinstance(data, str) and len(data) > longest else data
