"""`MODEL_CARD.md`: a package for people: what it is for, what it was made from, and how good it is.

Source: Mitchell et al., Model Cards for Model Reporting, FAT* 2019, for what belongs in one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from skerry.models.building.record import ArtifactRecord, BuildRecord, Figure
from skerry.models.evidence.bom import limits, task
from skerry.models.package import Package


def card(package: Package, record: BuildRecord) -> str:
    """The content of `MODEL_CARD.md`.

    Args:
        package: what was built.
        record: what the build did.
    """
    return "\n".join(_lines(package, record)) + "\n"


def _lines(package: Package, record: BuildRecord) -> Iterator[str]:
    manifest = package.manifest
    kind, least = type(manifest.decoder).__struct_config__.tag, manifest.decoder.score_threshold
    yield from (f"# {_text(package.title)}", "")
    yield from (_text(manifest.description or "What it is for, its manifest does not say."), "")
    rows = [
        ("task", task(package)),
        ("labels", _labels(package.labels)),
        ("licence", record.licence or manifest.licence or "not stated"),
        ("security epoch", str(record.security_epoch)),
        ("input", _input(package)),
        ("decoder", f"{kind}, score from {least:g}"),
    ]
    yield from _table(("", ""), rows)
    yield from ("", "## Made from", "")
    yield from _table(("what", "sha256", ""), _sources(record))
    if record.steps:
        yield from ("", "## Steps", "")
        for n, step in enumerate(record.steps, 1):
            told = "; ".join((*(f"{k} {v}" for k, v in sorted(step.parameters.items())), *step.said))
            line = f"{step.name} ({step.tool} {step.version}){': ' * bool(told)}{told}"
            yield f"{n}. {_text(line)}"
    yield from ("", "## Forms, and how good they are", "")
    yield from _table(
        (
            "form",
            "runtime",
            "computes with",
            "metric",
            "value",
            "less the reference's",
            "right",
            "wrong",
            "missed",
        ),
        _figures(record.artifacts),
    )
    yield from ("", "## Limits", "")
    yield from (f"* {_text(each)}" for each in limits(record))
    yield from ("", "## Fits", "")
    yield from _table(("", ""), _fits(package, record))
    yield from ("", "## Proof", "")
    yield (
        "`provenance.json` (in-toto, SLSA) tells how each file came to be, `bom.json` (CycloneDX) what is "
        "in here, `build.json` what the build recorded. The package's digest covers them and this card."
    )


def _sources(record: BuildRecord) -> Iterator[Sequence[str]]:
    yield record.spec.name, record.spec.sha256, "what was asked for"
    yield record.source.file, record.source.sha256, f"the model, {record.source.form}"
    for each in record.data:
        yield f"{each.role} set", each.sha256, f"{each.pictures} pictures, {each.form}"


def _figures(artifacts: Iterable[ArtifactRecord]) -> Iterator[Sequence[str]]:
    for artifact in artifacts:
        if artifact.status == "refused":
            yield artifact.name, f"refused: {artifact.reason}", *[""] * 7
        elif not artifact.figures:
            yield artifact.name, "not measured", *[""] * 7
        for figure in artifact.figures:
            yield _figure(artifact, figure)


def _figure(artifact: ArtifactRecord, figure: Figure) -> Sequence[str]:
    name = f"{artifact.name}{' (reference)' * (artifact.status == 'reference')}"
    metric = {"map": "mAP50-95", "top1": "top-1"}[figure.metric]
    counts = ("" if n is None else str(n) for n in (figure.right, figure.wrong, figure.missed))
    value, delta = f"{figure.value:.4f}", f"{figure.delta:+.4f}"
    return name, f"{figure.runtime} {figure.version}", figure.isa, metric, value, delta, *counts


def _fits(package: Package, record: BuildRecord) -> Iterator[Sequence[str]]:
    budget, golden = package.manifest.budget, package.manifest.golden
    yield "latency", "no budget" if budget.latency_ms is None else f"at most {budget.latency_ms:g} ms a frame"
    yield "memory", "no budget" if budget.memory_mb is None else f"at most {budget.memory_mb} MiB"
    measured = {f"{f.runtime} {f.version} ({f.isa})" for a in record.artifacts for f in a.figures}
    yield "measured on", ", ".join(sorted(measured)) or "nothing"
    pictures = len(golden.pictures) if golden is not None else 0
    yield "golden pictures", f"{pictures}, compared on every device before it serves" if pictures else "none"


def _input(package: Package) -> str:
    spec = package.manifest.input
    return (
        f"{spec.name}: {spec.width} x {spec.height} {spec.colour}, {spec.dtype}, {spec.layout}, {spec.resize}"
    )


def _labels(labels: Sequence[str]) -> str:
    shown = ", ".join(labels[:12])
    return f"{shown}, ... ({len(labels)} in all)" if len(labels) > 12 else shown


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(map(_text, row))} |"


def _text(text: str) -> str:
    """On one line, without what Markdown would take for more."""
    plain = " ".join(text.split())
    return plain.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
