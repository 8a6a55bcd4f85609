"""What a build tells people: a table, the same as Markdown, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from xml.sax.saxutils import escape

import cv2
import numpy as np
import numpy.typing as npt

from skerry.models.building.record import ArtifactRecord, BuildRecord, Figure

TEXT = "report.md"
PICTURE = "report.svg"
"""Both in the package, without times, and beside it, with them."""

Ms = Mapping[tuple[str, str, str], tuple[float, float]]
"""Artifact, runtime and instruction set to milliseconds by the clock, and of the processor."""
_METRICS = {"map": "mAP50-95", "top1": "top-1"}


def rows(record: BuildRecord, ms: Ms) -> list[tuple[str, ...]]:
    """The table: head, and a row for each artifact on each runtime and instruction set."""
    figures = [f for artifact in record.artifacts for f in artifact.figures]
    metric = _METRICS[figures[0].metric] if figures else "figure"
    head = (
        "artifact",
        "MB",
        "runtime",
        "instruction set",
        "pictures",
        metric,
        "delta",
        "mAP50",
        "ms",
        "CPU ms",
    )
    found = [head[: None if ms else -2]]
    for artifact in record.artifacts:
        found += [_row(artifact, figure, ms)[: len(found[0])] for figure in artifact.figures]
        if not artifact.figures:
            found.append((artifact.name, "-", "refused", *["-"] * (len(found[0]) - 3)))
    return found


def table(record: BuildRecord, ms: Ms) -> str:
    """For a screen."""
    found = rows(record, ms)
    widths = [max(len(row[n]) for row in found) for n in range(len(found[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if n in (1, *range(4, 10)) else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in found
    ]
    return "\n".join([*lines, *(f"{name}: refused: {reason}" for name, reason in _refused(record))])


def text(record: BuildRecord, ms: Ms) -> str:
    """`report.md`."""
    head, *rest = rows(record, ms)
    lines = [
        f"# {record.name} {record.version}",
        "",
        f"From {record.source.file} (`{record.source.onnx_sha256[:16]}`), "
        + ", ".join(f"{each.role} on {each.pictures} pictures (`{each.sha256[:16]}`)" for each in record.data)
        + ".",
        "",
        f"| {' | '.join(head)} |",
        f"|{'|'.join('---' for _ in head)}|",
        *(f"| {' | '.join(row)} |" for row in rest),
        "",
        "`delta` is against the first artifact on the same runtime, instruction set and pictures."
        + (" Times: median of a picture, from pixels to objects, one thread." if ms else ""),
        "",
        f"![{record.name}]({PICTURE})",
        "",
        "## What was done",
        "",
    ]
    for step in record.steps:
        settings = ", ".join(f"{key} {value}" for key, value in step.parameters.items())
        lines.append(f"* **{step.name}** ({step.tool} {step.version}{', ' if settings else ''}{settings})")
        lines += [f"  * {line}" for line in step.said]
    refused = _refused(record)
    if refused:
        lines += ["", "## Refused", ""]
        lines += [f"* {name}: {reason}" for name, reason in refused]
    return "\n".join(lines) + "\n"


def picture(record: BuildRecord, ms: Ms) -> str:
    """`report.svg`: a bar for each row, and one for its time where that is known."""
    bars = [(a.name, f) for a in record.artifacts for f in a.figures]
    times = [ms.get((name, f.runtime, f.isa), (None, None))[1] for name, f in bars]
    slowest = max((t for t in times if t is not None), default=1.0)
    height = 24 * len(bars) + 40
    width = 900 if ms else 620
    space = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
    lines = [
        f'<svg {space} width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="20" font-weight="bold">{escape(record.name)} {escape(record.version)}</text>',
    ]
    if bars:
        lines.append(f'<text x="320" y="20">{_METRICS[bars[0][1].metric]}</text>')
    if ms:
        lines.append('<text x="620" y="20">CPU ms a picture</text>')
    for n, ((name, figure), its) in enumerate(zip(bars, times, strict=True)):
        y = 32 + 24 * n
        colour = "#2a7f62" if name == record.artifacts[0].name else "#3b6ea5"
        label = f"{name}  {figure.runtime}  {figure.isa}"
        lines.append(f'<text x="10" y="{y + 14}">{escape(label)}</text>')
        lines += _bar(320, y, figure.value * 200, f"{figure.value:.4f}", colour)
        if its is not None:
            lines += _bar(620, y, its / slowest * 200, f"{its:.1f}", "#b5762a")
    return "\n".join([*lines, "</svg>"]) + "\n"


def plain(record: BuildRecord, ms: Ms, digest: str) -> dict[str, Any]:
    """`report.json`, which stands beside the package."""
    return {
        "package": f"{record.name}@{record.version}",
        "digest": f"sha256:{digest}",
        "artifacts": [
            {
                "name": artifact.name, "status": artifact.status, "reason": artifact.reason,
                "bytes": artifact.bytes,
                "figures": [
                    {
                        "runtime": f.runtime, "version": f.version, "isa": f.isa, "pictures": f.pictures,
                        f.metric: f.value, "delta": f.delta, "map50": f.map50,
                        "right": f.right, "wrong": f.wrong, "missed": f.missed,
                        **dict(zip(("ms", "cpu_ms"), _of(artifact, f, ms), strict=True)),
                    }
                    for f in artifact.figures
                ],
            }
            for artifact in record.artifacts
        ],
    }  # fmt: skip


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """The same pixels as a file."""
    return bytes(cv2.imencode(".png", pixels)[1].tobytes())


def version_of(distribution: str) -> str:
    """Of what is installed; empty where it is not."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def _row(artifact: ArtifactRecord, figure: Figure, ms: Ms) -> tuple[str, ...]:
    return (
        artifact.name, f"{artifact.bytes / 1e6:.2f}", figure.runtime, figure.isa, str(figure.pictures),
        f"{figure.value:.4f}",
        "reference" if artifact.status == "reference" else f"{figure.delta:+.4f}",
        "-" if figure.map50 is None else f"{figure.map50:.4f}",
        *("-" if its is None else f"{its:.1f}" for its in _of(artifact, figure, ms)),
    )  # fmt: skip


def _of(artifact: ArtifactRecord, figure: Figure, ms: Ms) -> tuple[float | None, float | None]:
    return ms.get((artifact.name, figure.runtime, figure.isa), (None, None))


def _refused(record: BuildRecord) -> Sequence[tuple[str, str]]:
    return [(each.name, each.reason) for each in record.artifacts if each.status == "refused"]


def _bar(x: float, y: float, length: float, label: str, colour: str) -> list[str]:
    return [
        f'<rect x="{x}" y="{y + 3}" width="{max(length, 1):.1f}" height="14" fill="{colour}"/>',
        f'<text x="{x + max(length, 1) + 6:.1f}" y="{y + 14}">{label}</text>',
    ]
