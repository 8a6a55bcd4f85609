"""From the calibration set to the slot that serves: what an audit log, a package and a store prove together.

Pure: what was read comes in, links come out. A link is `found`; `missing`, where nothing says it; or
`wrong`, where two things say otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from skerry.audit import Entry
from skerry.models import provenance as provenances
from skerry.models.provenance import PROVENANCE, Statement
from skerry.models.slots import Slots

State = Literal["found", "missing", "wrong"]
_SHOWN = 16
"""Digits of a hash that are told."""
_ENDS = ("confirmed", "rolled_back", "fell_back")
"""After these a slot has another package, or the one it had before."""


class Link(NamedTuple):
    """One link of the chain.

    Attributes:
        name: `calibration`, `build`, `package`, `signed`, `fetched`, `activation`, `confirmed`, `slot`.
        state: whether it holds.
        text: what holds, or why not.
    """

    name: str
    state: State
    text: str


@dataclass(frozen=True)
class Evidence:
    """A package, as it was read.

    Attributes:
        digest: of the package, 64 hexadecimal digits.
        title: name@version.
        files: sha256 of each of its files, by path.
        provenance: content of its provenance.json; None where it has none.
        problems: what of the package is not what its digest says.
    """

    digest: str
    title: str
    files: Mapping[str, str]
    provenance: bytes | None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trail:
    """Of one package in one slot.

    Attributes:
        slot: its name; empty where only a package is asked about.
        digest: of the package; empty where the bundled one serves.
        links: in the order in which things happened.
    """

    slot: str
    digest: str
    links: tuple[Link, ...]

    @property
    def whole(self) -> bool:
        return all(each.state == "found" for each in self.links)


def of_package(evidence: Evidence) -> Iterator[Link]:
    """`calibration`, `build` and `package`: what a package shows by itself."""
    if evidence.provenance is None:
        missing = f"{evidence.title} has no {PROVENANCE} (skerry model build writes it)"
        yield from (Link(name, "missing", missing) for name in ("calibration", "build"))
    else:
        yield from _of_build(evidence)
    if evidence.problems:
        yield Link("package", "wrong", "; ".join(evidence.problems))
    else:
        yield Link("package", "found", f"{evidence.title} sha256:{evidence.digest}")


def of_log(
    entries: Sequence[Entry], digest: str, slot: str = "", slots: Slots | None = None
) -> Iterator[Link]:
    """`signed`, `fetched`, `activation`, `confirmed`, and with a store `slot`: what became of a package here.

    Args:
        entries: of the log, oldest first.
        digest: of the package.
        slot: the slot it is in; without it, what is logged of any counts.
        slots: what the store holds in that slot.
    """
    gone = f" (the log begins with entry {entries[0].number})" if entries and entries[0].number > 1 else ""
    ours = [each for each in entries if each.fields.get("digest") == digest]
    fetched = _last(ours, "fetched")
    before = entries if fetched is None else [e for e in entries if e.number < fetched.number]
    yield _signed(_last(before, "refreshed"), gone)
    yield _happened("fetched", fetched, f"nothing tells that it was fetched{gone}")
    here = [each for each in ours if not slot or each.fields.get("slot") == slot]
    steps = [each for each in here if each.what == "step"]
    if steps:
        told = ", ".join(str(each.fields.get("step")) for each in steps)
        yield Link("activation", "found", f"{told} (entries {steps[0].number} to {steps[-1].number})")
    else:
        yield Link("activation", "missing", f"nothing tells of its activation{gone}")
    yield _happened("confirmed", _last(here, "confirmed"), f"nothing tells that it was confirmed{gone}")
    if slots is not None:
        yield _slot([e for e in entries if e.fields.get("slot") == slot], digest, slots)


def _of_build(evidence: Evidence) -> Iterator[Link]:
    assert evidence.provenance is not None
    statement = provenances.read(evidence.provenance, f"{evidence.title}: {PROVENANCE}")
    steps = statement.definition.internal_parameters.steps
    yield _calibrated(statement)
    wrong = [*provenances.misfits(statement, evidence.files), *provenances.loose_ends(statement)]
    if wrong:
        yield Link("build", "wrong", "; ".join(wrong))
    elif not steps:
        yield Link("build", "missing", "its provenance tells of no step")
    else:
        spec = statement.definition.external_parameters.spec
        told = ", ".join(f"{each.name} ({each.tool} {each.version})" for each in steps)
        yield Link("build", "found", f"{spec.name} sha256:{spec.sha256[:_SHOWN]}: {told}")


def _calibrated(statement: Statement) -> Link:
    internal, data = statement.definition.internal_parameters, statement.dependency("calibration")
    fewer = [each.name for each in internal.artifacts if each.precision == "int8"]
    if not fewer:
        return Link("calibration", "found", "no form of the model needed any")
    if data is None:
        return Link("calibration", "missing", f"nothing tells what {', '.join(fewer)} was calibrated on")
    used = [step.name for step in internal.steps if any(i.sha256 == data.sha256 for i in step.inputs)]
    if not used:
        return Link("calibration", "wrong", f"no step took sha256:{data.sha256[:_SHOWN]}")
    pictures = data.annotations.get("pictures")
    return Link("calibration", "found", f"{pictures} pictures sha256:{data.sha256}, in {', '.join(used)}")


def _signed(refreshed: Entry | None, gone: str) -> Link:
    if refreshed is None:
        return Link("signed", "missing", f"nothing tells of signed metadata before it was fetched{gone}")
    told = ", ".join(f"{n} {refreshed.fields[n]}" for n in ("root", "targets") if n in refreshed.fields)
    state: State = "found" if "targets" in refreshed.fields else "missing"
    lacks = "" if state == "found" else ", of targets it tells nothing"
    return Link("signed", state, f"{told}{lacks} (entry {refreshed.number}, {refreshed.at})")


def _happened(name: str, entry: Entry | None, otherwise: str) -> Link:
    if entry is None:
        return Link(name, "missing", otherwise)
    reason = entry.fields.get("reason")
    return Link(name, "found", f"entry {entry.number}, {entry.at}{f': {reason}' if reason else ''}")


def _slot(entries: Sequence[Entry], digest: str, slots: Slots) -> Link:
    """Whether the store holds what the log says of it."""
    current = slots.current or ""
    last = next((each for each in reversed(entries) if each.what in _ENDS), None)
    told = str(last.fields.get("digest")) if last is not None else ""
    if current != digest:
        return Link(
            "slot", "wrong", f"expected {digest[:_SHOWN]} as current, got {current[:_SHOWN] or 'none'}"
        )
    if last is None:
        return Link("slot", "missing", "it is current, and nothing tells how it became so")
    if last.what == "confirmed" and told != digest:
        return Link(
            "slot", "wrong", f"entry {last.number} confirmed {told[:_SHOWN]}, current is {digest[:_SHOWN]}"
        )
    if last.what != "confirmed" and told == digest:
        return Link("slot", "wrong", f"entry {last.number}: it was {last.what}, and is current still")
    return Link("slot", "found", f"current, since entry {last.number}, {last.at}")


def _last(entries: Sequence[Entry], what: str) -> Entry | None:
    return next((each for each in reversed(entries) if each.what == what), None)
