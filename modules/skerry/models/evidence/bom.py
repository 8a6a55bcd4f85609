"""`bom.json`: what a package is made of, as a CycloneDX ML-BOM with a model card.

The same record and package give the same bytes: no time, and the serial number is drawn from their hash.

Source: CycloneDX 1.6, JSON schema (ECMA-424, 1st edition): `component`, `modelCard`, `componentData`.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote

from skerry.models.building.record import ArtifactRecord, BuildRecord, DataSet, Figure, encode
from skerry.models.manifest import Classification
from skerry.models.manifest import encode as encode_manifest
from skerry.models.oci import canonical
from skerry.models.package import Package

_IDS = frozenset({
    "AFL-3.0", "AGPL-3.0-only", "AGPL-3.0-or-later", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0",
    "CC-BY-4.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC-BY-SA-4.0", "CC0-1.0", "EPL-2.0", "EUPL-1.2",
    "GPL-2.0-only", "GPL-2.0-or-later", "GPL-3.0-only", "GPL-3.0-or-later", "ISC", "LGPL-2.1-only",
    "LGPL-2.1-or-later", "LGPL-3.0-only", "LGPL-3.0-or-later", "MIT", "MIT-0", "MPL-2.0", "PSF-2.0",
    "Unlicense", "Zlib",
})  # fmt: skip
"""Of the SPDX list those that models come under; another licence goes by its name."""
_MODEL = "model"


def bom(package: Package, record: BuildRecord) -> bytes:
    """The content of `bom.json`.

    Args:
        package: what was built.
        record: what the build did.
    """
    manifest = package.manifest
    shipped = [each for each in record.artifacts if each.status != "refused"]
    files = list(_files(shipped))
    data = [_data(each) for each in record.data]
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": manifest.name,
        "version": manifest.version,
        **_said("description", manifest.description),
        **_licences(record.licence or manifest.licence),
        "hashes": _hashes(manifest.artifact.sha256),
        "modelCard": _card(package, record, data),
        "properties": _properties(package, record),
    }
    value = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{_serial(package, record)}",
        "version": 1,
        "metadata": {"tools": {"components": _tools(record)}, "component": component},
        "components": [*files, *data],
        "dependencies": [
            {"ref": _MODEL, "dependsOn": [each["bom-ref"] for each in (*files, *data)]},
            *({"ref": each["bom-ref"]} for each in (*files, *data)),
        ],
    }
    return canonical(value) + b"\n"


def task(package: Package) -> str:
    """What the model does, in the words of model catalogues."""
    return (
        "image-classification" if isinstance(package.manifest.decoder, Classification) else "object-detection"
    )


def purl(name: str, version: str) -> str:
    """The address of a tool as package URL; ours are in no public index."""
    kind = "generic" if name in ("python", "skerry") else "pypi"
    return f"pkg:{kind}/{name}@{quote(version, safe='')}"


def _serial(package: Package, record: BuildRecord) -> uuid.UUID:
    """Of what the document says; RFC 9562, version 8."""
    content = hashlib.sha256(encode(record) + encode_manifest(package.manifest)).digest()
    drawn = bytearray(content[:16])
    drawn[6] = drawn[6] & 0x0F | 0x80
    drawn[8] = drawn[8] & 0x3F | 0x80
    return uuid.UUID(bytes=bytes(drawn))


def _card(package: Package, record: BuildRecord, data: list[dict[str, Any]]) -> dict[str, Any]:
    manifest = package.manifest
    spec = manifest.input
    inputs = f"{spec.width} x {spec.height} {spec.colour}, {spec.dtype}, {spec.layout}, {spec.resize}"
    card: dict[str, Any] = {
        "modelParameters": {
            "task": task(package),
            "datasets": [{"ref": each["bom-ref"]} for each in data],
            "inputs": [{"format": inputs}],
            "outputs": [{"format": f"{o.name} {list(o.shape)}"} for o in manifest.outputs],
        },
        "considerations": {
            **({"useCases": [manifest.description]} if manifest.description else {}),
            "technicalLimitations": list(limits(record)),
        },
    }
    metrics = [m for artifact in record.artifacts for f in artifact.figures for m in _metrics(artifact, f)]
    if metrics:
        card["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    return card


def limits(record: BuildRecord) -> Iterator[str]:
    """What the figures do not say, and what did not make it."""
    measured = record.data_of("evaluation")
    if measured is None:
        yield "Nothing was measured on labelled pictures."
    else:
        yield (
            f"Measured on {measured.pictures} labelled pictures; the figures say nothing of pictures "
            "that are unlike them."
        )
    isas = sorted({f.isa for artifact in record.artifacts for f in artifact.figures})
    if isas:
        yield f"Measured with {', '.join(isas)} alone: int8 may answer otherwise on other processors."
    for each in record.artifacts:
        if each.status == "refused":
            yield f"{each.name} was made and refused: {each.reason}."


def _metrics(artifact: ArtifactRecord, figure: Figure) -> Iterator[dict[str, str]]:
    where = f"{artifact.name} on {figure.runtime} {figure.version}, {figure.isa}, {figure.pictures} pictures"
    name = {"map": "mAP50-95", "top1": "top-1 accuracy"}[figure.metric]
    yield {"type": name, "value": f"{figure.value:.4f}", "slice": where}
    yield {"type": f"{name} less the reference's", "value": f"{figure.delta:+.4f}", "slice": where}
    if figure.map50 is not None:
        yield {"type": "mAP50", "value": f"{figure.map50:.4f}", "slice": where}
    for kind, count in (("true positives", figure.right), ("false positives", figure.wrong),
                        ("false negatives", figure.missed)):  # fmt: skip
        if count is not None:
            yield {"type": kind, "value": str(count), "slice": where}


def _files(artifacts: Iterable[ArtifactRecord]) -> Iterator[dict[str, Any]]:
    seen = set()
    for artifact in artifacts:
        for file in artifact.files:
            if file.name not in seen:
                seen.add(file.name)
                yield {
                    "type": "file",
                    "bom-ref": f"file:{_ref(file.name)}",
                    "name": file.name,
                    "hashes": _hashes(file.sha256),
                    "properties": [
                        _property("skerry:form", artifact.name),
                        _property("skerry:format", artifact.format),
                        _property("skerry:precision", artifact.precision),
                    ],
                }


def _data(data: DataSet) -> dict[str, Any]:
    return {
        "type": "data",
        "bom-ref": f"data:{data.role}",
        "name": data.role,
        "hashes": _hashes(data.sha256),
        "data": [
            {
                "type": "dataset",
                "name": data.role,
                "description": f"{data.pictures} pictures, {data.form}; the hash is of the sorted lines "
                f"`SHA256  NAME` of its {data.files} files",
            }
        ],
    }


def _tools(record: BuildRecord) -> list[dict[str, Any]]:
    return [
        {
            "type": "platform" if name == "python" else "library",
            "bom-ref": f"tool:{_ref(name)}",
            "name": name,
            "version": version,
            "purl": purl(name, version),
        }
        for name, version in sorted(record.tools.items())
    ]


def _properties(package: Package, record: BuildRecord) -> list[dict[str, str]]:
    budget = package.manifest.budget
    found = [
        _property("skerry:security_epoch", record.security_epoch),
        _property("skerry:spec:sha256", record.spec.sha256),
        _property("skerry:source:sha256", record.source.sha256),
        _property("skerry:labels", len(package.labels)),
        _property("skerry:decoder", type(package.manifest.decoder).__struct_config__.tag),
    ]
    if budget.latency_ms is not None:
        found.append(_property("skerry:budget:latency_ms", f"{budget.latency_ms:g}"))
    if budget.memory_mb is not None:
        found.append(_property("skerry:budget:memory_mb", budget.memory_mb))
    return found


def _property(name: str, value: object) -> dict[str, str]:
    return {"name": name, "value": str(value)}


def _hashes(sha256: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": sha256}]


def _licences(licence: str) -> dict[str, Any]:
    if not licence:
        return {}
    return {"licenses": [{"license": {"id" if licence in _IDS else "name": licence}}]}


def _said(name: str, value: str) -> dict[str, str]:
    return {name: value} if value else {}


def _ref(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)
