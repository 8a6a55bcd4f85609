"""`provenance.json`: how the files of a package came to be, as an in-toto statement with SLSA's predicate.

The package's digest covers it, so whoever signs the package has signed it. The same record and files give
the same bytes; times are in it only if they are given.

Source: in-toto Attestation Framework, Statement v1; SLSA Provenance v1 (slsa.dev/provenance/v1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from skerry.models import provenance as form
from skerry.models.building.record import BuildRecord, Content, DataSet
from skerry.models.evidence.bom import purl
from skerry.models.oci import canonical
from skerry.models.provenance import (
    BUILD,
    BUILDER,
    PREDICATE,
    STATEMENT,
    Builder,
    Definition,
    External,
    Internal,
    Made,
    Predicate,
    Resource,
    Run,
    Statement,
)


def provenance(
    record: BuildRecord, subjects: Mapping[str, str], *, metadata: Mapping[str, str] | None = None
) -> bytes:
    """The content of `provenance.json`.

    Args:
        record: what the build did.
        subjects: sha256 of every other file of the package, by its path there.
        metadata: `startedOn`, `finishedOn` (RFC 3339), `invocationId`; without it, two builds of the same
            give the same bytes.
    """
    definition = Definition(
        build_type=BUILD,
        external_parameters=External(
            spec=_content(record.spec),
            name=record.name,
            version=record.version,
            security_epoch=record.security_epoch,
        ),
        internal_parameters=Internal(
            steps=tuple(
                form.Step(
                    name=each.name, tool=each.tool, version=each.version, parameters=each.parameters,
                    inputs=_contents(each.inputs), outputs=_contents(each.outputs), said=each.said,
                )
                for each in record.steps
            ),
            artifacts=tuple(
                Made(name=each.name, precision=each.precision, files=_contents(each.files))
                for each in record.artifacts
                if each.status != "refused"
            ),
        ),
        resolved_dependencies=(
            *_sources(record),
            *(_data(each) for each in record.data),
            *(_tool(name, version) for name, version in sorted(record.tools.items())),
        ),
    )  # fmt: skip
    software: dict[str, str] = {n: record.tools[n] for n in ("skerry", "python") if n in record.tools}
    statement = Statement(
        type=STATEMENT,
        subject=tuple(
            Resource(name=name, digest={"sha256": sha256}) for name, sha256 in sorted(subjects.items())
        ),
        predicate_type=PREDICATE,
        predicate=Predicate(
            build_definition=definition,
            run_details=Run(builder=Builder(id=BUILDER, version=software), metadata=dict(metadata or {})),
        ),
    )
    return canonical(msgspec.to_builtins(statement)) + b"\n"


def _sources(record: BuildRecord) -> Iterable[Resource]:
    source = record.source
    yield Resource(
        name=source.file,
        digest={"sha256": source.sha256},
        annotations={"role": "source", "form": source.form, **_named("function", source.function)},
    )
    made = {each.sha256 for step in record.steps for each in step.outputs}
    if source.onnx_sha256 not in {source.sha256, *made}:
        digest = {"sha256": source.onnx_sha256}
        yield Resource(name="model.onnx", digest=digest, annotations={"role": "exported"})


def _data(data: DataSet) -> Resource:
    return Resource(
        name=data.role,
        digest={"sha256": data.sha256},
        annotations={
            "role": data.role, "form": data.form, "files": data.files, "pictures": data.pictures,
            "digestOf": "the sorted lines `SHA256  NAME` of its files",
        },
    )  # fmt: skip


def _tool(name: str, version: str) -> Resource:
    return Resource(uri=purl(name, version))


def _content(content: Content) -> Resource:
    return Resource(name=content.name, digest={"sha256": content.sha256})


def _contents(contents: Iterable[Content]) -> tuple[Resource, ...]:
    return tuple(_content(each) for each in contents)


def _named(name: str, value: str) -> dict[str, str]:
    return {name: value} if value else {}
