"""Where a package came from, as it says in `provenance.json`: an in-toto statement, read by whoever audits.

Source: in-toto Attestation Framework, Statement v1 and ResourceDescriptor v1; SLSA Provenance v1.
`skerry.models.evidence` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from skerry.errors import PackageError

PROVENANCE, BOM, CARD = "provenance.json", "bom.json", "MODEL_CARD.md"
"""Files of evidence in a package."""
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD = "urn:skerry:model-build:v1"
"""`buildType`: what the parameters below mean."""
BUILDER = "urn:skerry:model-build"
MOST_BYTES = 1024 * 1024


class Resource(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something by its hash."""

    name: str = ""
    uri: str = ""
    digest: dict[str, str] = {}
    annotations: dict[str, Any] = {}

    @property
    def sha256(self) -> str:
        """Hexadecimal; empty where it has none."""
        return self.digest.get("sha256", "")


class Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Of a build, in order: what did it, with what, to what."""

    name: str
    tool: str
    version: str
    parameters: dict[str, str] = {}
    inputs: tuple[Resource, ...] = ()
    outputs: tuple[Resource, ...] = ()
    said: tuple[str, ...] = ()


class Made(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A form of the model, and its files in the package."""

    name: str
    precision: str = ""
    files: tuple[Resource, ...] = ()


class External(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What was asked for."""

    spec: Resource
    name: str
    version: str
    security_epoch: int = 0


class Internal(msgspec.Struct, frozen=True, kw_only=True):
    """What was done."""

    steps: tuple[Step, ...] = ()
    artifacts: tuple[Made, ...] = ()


class Definition(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """`buildDefinition`."""

    build_type: str
    external_parameters: External
    internal_parameters: Internal = Internal()
    resolved_dependencies: tuple[Resource, ...] = ()


class Builder(msgspec.Struct, frozen=True, kw_only=True):
    """Who ran it, and with what software."""

    id: str
    version: dict[str, str] = {}


class Run(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`runDetails`."""

    builder: Builder
    metadata: dict[str, str] = {}
    """`startedOn`, `finishedOn`, `invocationId`, where they are wanted: no two builds are the same then."""


class Predicate(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """SLSA's."""

    build_definition: Definition
    run_details: Run


class Statement(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """`provenance.json`."""

    type: str = msgspec.field(name="_type")
    subject: tuple[Resource, ...]
    predicate_type: str
    predicate: Predicate

    @property
    def definition(self) -> Definition:
        return self.predicate.build_definition

    def dependency(self, role: str) -> Resource | None:
        """What went in under a role: `source`, `calibration`, `evaluation`, ..."""
        found = (
            each for each in self.definition.resolved_dependencies if each.annotations.get("role") == role
        )
        return next(found, None)


def read(content: bytes, where: str) -> Statement:
    """A statement of ours.

    Args:
        content: of the file.
        where: names it in messages.

    Raises:
        PackageError: it is none.
    """
    try:
        found = msgspec.json.decode(content, type=Statement)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PackageError(f"{where}: expected the provenance of a package ({error})") from error
    for wanted, seen in (
        (STATEMENT, found.type),
        (PREDICATE, found.predicate_type),
        (BUILD, found.definition.build_type),
    ):
        if seen != wanted:
            raise PackageError(f"{where}: expected {wanted}, got {seen[:100]!r}")
    return found


def misfits(statement: Statement, files: Mapping[str, str]) -> list[str]:
    """What of a package's files is not what its provenance is about; empty when all is.

    Args:
        statement: of the package.
        files: sha256 of each file in it, by its path there.
    """
    wanted = {each.name: each.sha256 for each in statement.subject}
    there = {name: digest for name, digest in files.items() if name != PROVENANCE}
    found = [f"provenance: expected {name}, got no such file" for name in sorted(wanted.keys() - there)]
    found += [f"provenance: expected it to name {name}" for name in sorted(there.keys() - wanted)]
    found += [
        f"{name}: expected sha256 {wanted[name][:16]}, as its provenance says, got {there[name][:16]}"
        for name in sorted(wanted.keys() & there)
        if wanted[name] != there[name]
    ]
    return found


def loose_ends(statement: Statement) -> list[str]:
    """What of the forms of a model no step has made, and what a step took that nobody named; empty for none.

    Every file of a form is what the build was given, or what a step put out; every input of a step is a
    dependency, or what a step before it put out.
    """
    definition = statement.definition
    known = {each.sha256 for each in definition.resolved_dependencies}
    known.add(definition.external_parameters.spec.sha256)
    found = []
    for step in definition.internal_parameters.steps:
        found += [
            f"step {step.name}: expected {each.name} to come from a step before it, or to be a dependency"
            for each in step.inputs
            if each.sha256 not in known
        ]
        known |= {each.sha256 for each in step.outputs}
    for made in definition.internal_parameters.artifacts:
        found += [
            f"{made.name}: expected a step that has made {each.name}"
            for each in made.files
            if each.sha256 not in known
        ]
    return found
