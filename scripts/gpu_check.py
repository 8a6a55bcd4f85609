"""Run packages on every CUDA and TensorRT provider of this machine and hold them against the CPU.

    python scripts/gpu_check.py models/parts [PACKAGE ...] [--json]

Needs numpy, msgspec and onnxruntime-gpu only. Exit codes: 0 all agree, 69 no GPU or no provider for it,
70 outputs differ.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "modules"))

from skerry.errors import PackageError, SkerryError, Unavailable
from skerry.inference.runtimes import Place, Session, SessionFailed, first_line, open_session, runtime_version
from skerry.inference.settings import DEVICES
from skerry.models.package import Package, load

_DEVICES = [d for d in DEVICES["onnxruntime"] if d in ("cuda", "tensorrt")]
_TOLERANCE = 2e-2
"""Of any output number, as a share of the output's largest: TensorRT chooses its own order of sums."""
_RUNS = 200
_FAILED = 70


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packages", nargs="+", type=Path, metavar="PACKAGE")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    try:
        packages = [load(folder) for folder in arguments.packages]
    except PackageError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{runtime_version('onnxruntime')}, numpy {np.__version__}")
    print(f"{'package':24} {'device':9} {'batch':>5} {'load ms':>8} {'p50 ms':>8} {'p99 ms':>8}  vs CPU")
    rows = [row for package in packages for row in _rows(package)]
    if arguments.json:
        print(json.dumps({"runtime": runtime_version("onnxruntime"), "rows": rows}))
    on_gpu = [row for row in rows if row["device"] != "cpu"]
    if all("error" in row for row in on_gpu):
        print("no package ran on a GPU: is there one, and onnxruntime-gpu with its CUDA?", file=sys.stderr)
        return Unavailable.exit_code
    return _FAILED if any(row.get("difference", 0) > _TOLERANCE for row in on_gpu) else 0


def _rows(package: Package) -> list[dict[str, Any]]:
    """A row per batch size and device, printed as it comes; the CPU's first."""
    rows: list[dict[str, Any]] = []
    for batch in sorted({1, package.manifest.input.batch}):
        feeds = _feeds(package, batch)
        reference: dict[str, Any] | None = None
        for device in ("cpu", *_DEVICES):
            row, outputs = _row(package, device, batch, feeds)
            if reference is None:
                reference = outputs
            elif outputs is not None:
                row["difference"] = _difference(reference, outputs)
            rows.append(row)
            _print(row)
    return rows


def _row(
    package: Package, device: str, batch: int, feeds: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    row: dict[str, Any] = {"package": package.title, "device": device, "batch": batch}
    with tempfile.TemporaryDirectory(prefix="skerry-") as cache:
        try:
            begin = time.perf_counter()
            session = open_session("onnxruntime", package, Place(device, 4, Path(cache)))
            outputs = {name: array.copy() for name, array in session.run(feeds).items()}
            row["load_ms"] = round((time.perf_counter() - begin) * 1000, 1)
            row["p50_ms"], row["p99_ms"] = _timed(session, feeds)
        except (SkerryError, SessionFailed) as error:
            row["error"] = first_line(error)
            return row, None
    return row, outputs


def _timed(session: Session, feeds: dict[str, Any]) -> tuple[float, float]:
    for _ in range(10):
        session.run(feeds)
    times = []
    for _ in range(_RUNS):
        begin = time.perf_counter()
        session.run(feeds)
        times.append((time.perf_counter() - begin) * 1000)
    return round(statistics.median(times), 3), round(statistics.quantiles(times, n=100)[98], 3)


def _feeds(package: Package, batch: int) -> dict[str, Any]:
    """Seeded pictures of coloured blocks with grain, pre-processed without OpenCV."""
    spec = package.manifest.input
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 220, (batch, spec.channels, spec.height // 16 + 1, spec.width // 16 + 1))
    planes = blocks.repeat(16, axis=2).repeat(16, axis=3)[:, :, : spec.height, : spec.width]
    pixels = planes + rng.integers(0, 36, planes.shape)
    mean, scale = (np.array(v, np.float64).reshape(1, -1, 1, 1) for v in (spec.mean, spec.scale))
    tensor = ((pixels - mean) / scale).astype(spec.dtype)
    return {
        spec.name: tensor if spec.layout == "nchw" else np.ascontiguousarray(tensor.transpose(0, 2, 3, 1))
    }


def _difference(expected: dict[str, Any] | None, got: dict[str, Any]) -> float:
    worst = 0.0
    for name, want in (expected or {}).items():
        if not np.isfinite(got[name]).all():
            return float("inf")
        worst = max(worst, float(np.abs(want - got[name]).max()) / max(1.0, float(np.abs(want).max())))
    return worst


def _print(row: dict[str, Any]) -> None:
    head = f"{row['package']:24} {row['device']:9} {row['batch']:5}"
    if "error" in row:
        print(f"{head} {row['error']}")
        return
    figures = f"{row['load_ms']:8.0f} {row['p50_ms']:8.3f} {row['p99_ms']:8.3f}"
    verdict = "reference"
    if row["device"] != "cpu":
        verdict = f"differs by {row['difference']:.1e}" + (
            "" if row["difference"] <= _TOLERANCE else "  TOO MUCH"
        )
    print(f"{head} {figures}  {verdict}")


if __name__ == "__main__":
    sys.exit(main())
