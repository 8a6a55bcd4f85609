"""Whether a package is ready to be released, and where it would run: from what it carries and who signed it.

Pure: what was read comes in. "Yes" says that something is there and fits, not that it is good.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from skerry.deploy.devices import Device
from skerry.errors import ConfigError, PackageError
from skerry.inference.settings import DEVICES as RUNTIME_DEVICES
from skerry.models import provenance
from skerry.models.benching.statement import Predicate
from skerry.models.building.record import RECORD, BuildRecord
from skerry.models.manifest import Manifest, Variant, name_of, runtimes_of
from skerry.settings import parse_json
from skerry.trust.packages import Attested

State = Literal["yes", "partly", "no"]
_MATRIX = """\
From formats, runtimes and classes as they are said; no form was loaded for this. What is attested was
measured."""
DOCUMENTS = (provenance.CARD, provenance.BOM, provenance.PROVENANCE, RECORD)
"""Files of a package that are read."""
_ACCELERATED = {"nvidia": ("cuda", "tensorrt"), "intel-gpu": ("gpu",), "intel-npu": ("npu",)}
"""What a runtime calls an accelerator."""
_ABOUT = {
    "signed": "a device installs nothing that the keys it trusts have not signed",
    "golden pictures": "a device compares: other colours, moved labels or overflowing integers show there",
    "baseline": "without it no device can say that what its camera shows has changed",
    "budget": "a device where it costs more does not serve with it",
    "evaluation": "how good each form is, measured; a smaller form may have lost what the model is for",
    "attestations": "somebody measured it on each class and signed that; devices may ask for it",
    "model card": "what it is for, what it was made from, and where it fails",
    "bill of materials": "which software, data and licences are in it, for whoever looks for a bad one",
    "provenance": "from which sources, data and steps each file came",
    "licence": "who may use it",
}


@dataclass(frozen=True)
class Signed:
    """What a device that trusts the repository's root makes of it.

    Attributes:
        said: how many keys signed, and until when; or why it is refused.
        good: whether it is accepted now.
        classes: that the package is for; empty is any.
        attestations: that were signed with it.
    """

    said: str
    good: bool
    classes: tuple[str, ...] = ()
    attestations: tuple[Attested, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What was found of a package.

    Attributes:
        title: name@version.
        digest: sha256: and 64 hexadecimal digits.
        manifest: what it says of itself.
        files: sha256 by path in it.
        documents: content of `DOCUMENTS` that are there.
        signed: None of a layout that nobody signed.
        statements: predicates of attestations whose statements are there, by the statement's digest.
    """

    title: str
    digest: str
    manifest: Manifest
    files: Mapping[str, str]
    documents: Mapping[str, bytes] = field(default_factory=dict)
    signed: Signed | None = None
    statements: Mapping[str, Predicate] = field(default_factory=dict)


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the checklist."""

    name: str
    state: State
    found: str
    why: str
    """It matters."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the compatibility matrix: a package on a class of devices with a runtime."""

    package: str
    device_class: str
    runtime: str
    devices: tuple[str, ...]
    """What the runtime runs on there."""
    forms: tuple[str, ...]
    """Of the package, that the runtime reads."""
    obstacle: str = ""
    """Why it does not run there; empty where nothing is against it."""
    attested: Literal["yes", "other runtime", "no"] = "no"
    budget: Literal["met", "missed", ""] = ""


def checklist(facts: Facts, classes: Sequence[str]) -> tuple[Check, ...]:
    """Every line for one package.

    Args:
        facts: of the package.
        classes: that it is to be attested for.
    """
    found = {
        "signed": _signed(facts),
        "golden pictures": _golden(facts.manifest),
        "baseline": _baseline(facts.manifest),
        "budget": _budget(facts.manifest),
        "evaluation": _evaluation(facts),
        "attestations": _attestations(facts, classes),
        "model card": _card(facts),
        "bill of materials": _bom(facts),
        "provenance": _provenance(facts),
        "licence": ("yes", facts.manifest.licence) if facts.manifest.licence else ("no", "not stated"),
    }
    return tuple(
        Check(name=name, state=state, found=text, why=_ABOUT[name]) for name, (state, text) in found.items()
    )


def matrix(facts: Facts, devices: Mapping[str, Device]) -> tuple[Place, ...]:
    """Every class with every runtime for one package. Nothing is loaded: a form may yet fail to load."""
    return tuple(
        _place(facts, name, device, runtime)
        for name, device in devices.items()
        for runtime in RUNTIME_DEVICES
    )


Found = tuple[State, str]


def _signed(facts: Facts) -> Found:
    if facts.signed is None:
        return "no", "a layout, or a folder, without signatures"
    return ("yes" if facts.signed.good else "no"), facts.signed.said


def _golden(manifest: Manifest) -> Found:
    if manifest.golden is None:
        return "no", "none (skerry model golden)"
    seen = sum(len(p.objects) for p in manifest.golden.pictures)
    text = f"{len(manifest.golden.pictures)} pictures, {seen} objects"
    return ("yes", text) if seen else ("partly", f"{text}: nothing to see in any of them")


def _baseline(manifest: Manifest) -> Found:
    if manifest.baseline is None:
        return "no", "none (skerry model baseline)"
    return "yes", f"{manifest.baseline.windows} windows of {manifest.baseline.window} frames"


def _budget(manifest: Manifest) -> Found:
    said = [
        text
        for text, value in (
            (f"{manifest.budget.latency_ms} ms", manifest.budget.latency_ms),
            (f"{manifest.budget.memory_mb} MiB", manifest.budget.memory_mb),
        )
        if value is not None
    ]
    states: tuple[State, ...] = ("no", "partly", "yes")
    return states[len(said)], ", ".join(said) or "none in manifest.json"


def _evaluation(facts: Facts) -> Found:
    """Every form that ships has a figure, from the build's record of that very file, or in the manifest."""
    record, problem = _record(facts)
    if problem:
        return "no", problem
    by_file = {
        content.sha256: each.figures
        for each in (record.artifacts if record is not None else ())
        for content in each.files
    }
    values: list[float] = []
    deltas: list[float] = []
    missing: list[str] = []
    for form in facts.manifest.forms:
        figures = by_file.get(form.sha256, ())
        measured = form.measured if isinstance(form, Variant) else ()
        if not figures and not measured:
            missing.append(name_of(form))
        values += [*(each.value for each in figures), *(each.value for each in measured)]
        deltas += [*(each.delta for each in figures), *(each.delta for each in measured)]
    if not values:
        return "no", "no figures (skerry model build measures each form)"
    count = len(facts.manifest.forms)
    text = f"{count - len(missing)} of {count} forms, {min(values):.4f} to {max(values):.4f}, "
    text += f"greatest loss {max(0.0, -min(deltas)):.4f}"
    return ("partly", f"{text}; none of {', '.join(missing)}") if missing else ("yes", text)


def _record(facts: Facts) -> tuple[BuildRecord | None, str]:
    content = facts.documents.get(RECORD)
    if content is None:
        return None, ""
    try:
        return parse_json(BuildRecord, content, RECORD), ""
    except ConfigError as error:
        return None, error.problems[0]


def _attestations(facts: Facts, classes: Sequence[str]) -> Found:
    there = {a.device_class: a for a in (facts.signed.attestations if facts.signed is not None else ())}
    if not classes:
        return "no", "for no class"
    good, bad = [], []
    for name in classes:
        attested = there.get(name)
        if attested is None:
            bad.append(f"{name}: none")
        elif attested.verdict != "met":
            bad.append(f"{name}: budget {attested.verdict}")
        elif (predicate := facts.statements.get(attested.statement)) is None:
            bad.append(f"{name}: met, its statement is not there")
        elif predicate.shortfalls:
            bad.append(f"{name}: met, but {predicate.shortfalls[0]}")
        else:
            good.append(f"{name}: met")
    state: State = "yes" if not bad else "partly" if good else "no"
    return state, "; ".join([*good, *bad])


def _card(facts: Facts) -> Found:
    content = facts.documents.get(provenance.CARD, b"")
    lines = [line for line in content.decode(errors="replace").splitlines() if line.strip()]
    if not lines:
        return "no", f"no {provenance.CARD}"
    return ("yes" if len(lines) > 2 else "partly"), f"{provenance.CARD}, {len(lines)} lines"


def _bom(facts: Facts) -> Found:
    content = facts.documents.get(provenance.BOM)
    if content is None:
        return "no", f"no {provenance.BOM} (skerry model build writes it)"
    try:
        raw = json.loads(content)
        kinds = [raw["metadata"]["component"]["type"], *(c["type"] for c in raw.get("components", ()))]
        said = f"{raw['bomFormat']} {raw['specVersion']}, {len(kinds)} components"
    except (ValueError, KeyError, TypeError, RecursionError):
        return "no", f"{provenance.BOM}: no CycloneDX"
    if "machine-learning-model" not in kinds:
        return "partly", f"{said}, none of them a model"
    return "yes", said


def _provenance(facts: Facts) -> Found:
    content = facts.documents.get(provenance.PROVENANCE)
    if content is None:
        return "no", f"no {provenance.PROVENANCE} (skerry model build writes it)"
    try:
        statement = provenance.read(content, provenance.PROVENANCE)
    except PackageError as error:
        return "no", str(error).splitlines()[0][:120]
    wrong = [*provenance.misfits(statement, facts.files), *provenance.loose_ends(statement)]
    steps = len(statement.definition.internal_parameters.steps)
    return ("partly", wrong[0][:120]) if wrong else ("yes", f"{steps} steps, every file accounted for")


def _place(facts: Facts, name: str, device: Device, runtime: str) -> Place:
    forms = tuple(name_of(form) for form in facts.manifest.forms if runtime in runtimes_of(form))
    classes = facts.signed.classes if facts.signed is not None else ()
    known = ["cpu", *(d for a in device.accelerators for d in _ACCELERATED[a])]
    places = tuple(d for d in RUNTIME_DEVICES[runtime] if d in known)
    obstacle = ""
    if classes and name not in classes:
        obstacle = "not for this class"
    elif not forms:
        obstacle = f"no form that {runtime} reads"
    attested = next(
        (
            a
            for a in (facts.signed.attestations if facts.signed is not None else ())
            if a.device_class == name
        ),
        None,
    )
    if attested is None:
        return Place(
            package=facts.title, device_class=name, runtime=runtime, devices=places, forms=forms,
            obstacle=obstacle,
        )  # fmt: skip
    predicate = facts.statements.get(attested.statement)
    here = predicate is not None and predicate.environment.runtime.startswith(runtime)
    return Place(
        package=facts.title, device_class=name, runtime=runtime, devices=places, forms=forms,
        obstacle=obstacle, attested="yes" if here else "other runtime",
        budget=attested.verdict if here else "",
    )  # fmt: skip


def page(lists: Mapping[str, tuple[Check, ...]], places: Iterable[Place], digests: Mapping[str, str]) -> str:
    """Markdown: which package has what, why it matters, and where each runs.

    Args:
        lists: checklist by title.
        places: the matrix.
        digests: of packages, by title.
    """
    titles = list(lists)
    names = [check.name for check in lists[titles[0]]] if titles else []
    parts = ["# Release readiness", "", "`yes` is there and fits, which does not make it good.", ""]
    parts += _table(
        ["", *titles],
        [[n, *(_one(lists[t], n).state for t in titles)] for n in names]
        + [["**ready**", *(f"**{'yes' if ready(lists[t]) else 'no'}**" for t in titles)]],
    )
    for title in titles:
        parts += ["", f"## {title}", "", f"`{digests[title]}`", ""]
        parts += _table(
            ["", "", "found", "why it matters"],
            [[c.name, c.state, _plain(c.found), c.why] for c in lists[title]],
        )
    parts += ["", "## Where it runs", "", _MATRIX, ""]
    parts += _table(
        ["package", "class", "runtime", "on", "compatible", "attested", "budget"],
        [
            [
                p.package, p.device_class, p.runtime, ", ".join(p.devices) or "-",
                f"no: {p.obstacle}" if p.obstacle else ", ".join(p.forms), p.attested, p.budget or "-",
            ]
            for p in places
        ],
    )  # fmt: skip
    return "\n".join(parts) + "\n"


def ready(checks: Iterable[Check]) -> bool:
    """Whether nothing is missing."""
    return all(check.state == "yes" for check in checks)


def _one(checks: Iterable[Check], name: str) -> Check:
    return next(check for check in checks if check.name == name)


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    every = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(row)} |" for row in every]


def _plain(text: str) -> str:
    """Text that means nothing in Markdown: a package's own words are in it."""
    clean = "".join(c if c.isprintable() else " " for c in text).replace("<", "&lt;")
    return re.sub(r"([\\|\[\]*`])", r"\\\1", clean)
