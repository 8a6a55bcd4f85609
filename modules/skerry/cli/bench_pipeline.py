"""The five-process suite against the best single script: same cores, same video, same model.

Two parts. Throughput: the suite reads a file as fast as possible, keeping every frame; so does the script
(`skerry.cli.baseline`). They alternate, and rates are taken between the first and the last result, so neither
pays for its start. Latency: the belt at 15 fps in real time, with many counting lines so that there are
many events; what is reported is the time from capture to event less that frame's own session time.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skerry.errors import SkerryError

_LINES = 24
_ROOT = Path(__file__).resolve().parents[3]


def run(*, video: Path | None, package: Path | None, runs: int, seconds: float) -> dict[str, Any]:
    """Measure; see `skerry bench pipeline --help`."""
    package = (package or _ROOT / "models" / "parts").resolve()
    with tempfile.TemporaryDirectory(prefix="skerry-bench-") as folder:
        work = Path(folder)
        film = video.resolve() if video else render_belt(work / "belt.mp4", seconds=40)
        suites, scripts = [], []
        warm = _suite(work, film, package)
        for _ in range(runs):
            suites.append(_suite(work, film, package))
            scripts.append(_script(film, package, warm["runtime"]))
        latency = _latency(work, seconds)
    return {
        "video": film.name,
        "package": package.name,
        "runtime": warm["runtime"],
        "runs": runs,
        "suite": _medians(suites),
        "script": _medians(scripts),
        "throughput_ratio": round(
            statistics.median(a["fps"] / b["fps"] for a, b in zip(suites, scripts, strict=True)), 3
        ),
        "latency": latency,
    }


def render_belt(path: Path, *, seconds: float, fps: int = 15, seed: int = 1) -> Path:
    """Render the demo's belt into an H.264 file."""
    import av  # noqa: PLC0415 - only benchmarks need an encoder

    from skerry.capture.scene import Scene  # noqa: PLC0415

    scene = Scene(seed=seed, width=640, height=480)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "20", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for n in range(int(seconds * fps)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(scene.render(n / fps), format="bgr24")))
        container.mux(stream.encode())
    return path


def _suite(work: Path, film: Path, package: Path) -> dict[str, Any]:
    """One run of the whole suite over the file."""
    rule = {"name": "crossed", "kind": "line", "camera": "film", "line": [[0.5, 0.0], [0.5, 1.0]]}
    site = {
        "site": "bench",
        "cameras": [{"name": "film", "source": {"kind": "file", "path": str(film), "pace": "fast"}}],
        "models": [{"package": str(package)}],
        "rules": [rule],
    }
    result = _skerry_run(work, site, out=work / "suite")
    camera = result["cameras"]["film"]
    return {
        "fps": camera["fps"],
        "cpu_ms_per_frame": sum(result["cpu_s"].values()) * 1000 / camera["inferred"],
        "cpu_ms_per_frame_by_process": {
            name: round(s * 1000 / camera["inferred"], 3) for name, s in result["cpu_s"].items()
        },
        "frames": camera["inferred"],
        "runtime": next(iter(result["runtimes"].values()))["used"],
    }


def _script(film: Path, package: Path, runtime: str) -> dict[str, Any]:
    """One run of the hand-written script over the same file."""
    command = [sys.executable, "-m", "skerry.cli.baseline", str(film), str(package), runtime]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**figures, "cpu_ms_per_frame": cpu * 1000 / figures["frames"]}


def _latency(work: Path, seconds: float) -> dict[str, Any]:
    """The belt at 15 fps with many lines: what the pipeline adds to the session's own time."""
    places = [0.08 + 0.84 * n / (_LINES - 1) for n in range(_LINES)]
    site = {
        "site": "bench",
        "cameras": [{"name": "belt", "source": {"kind": "synthetic", "fps": 15, "stopping": False}}],
        "models": [{"package": str(_ROOT / "models" / "parts")}],
        "rules": [
            {"name": f"line-{n}", "kind": "line", "camera": "belt", "line": [[x, 0.0], [x, 1.0]]}
            for n, x in enumerate(places)
        ],
    }
    result = _skerry_run(work, site, out=work / "latency", seconds=seconds)
    return {
        "fps": result["cameras"]["belt"]["fps"],
        "dropped": result["cameras"]["belt"]["dropped"],
        "beyond_session_ms": result["latency_ms"]["beyond_session"],
        "session_ms": result["latency_ms"]["session"],
        "capture_to_event_ms": result["latency_ms"]["capture_to_event"],
        "event_to_delivered_ms": result["latency_ms"]["event_to_delivered"],
        "first_detection_s": result["first_detection_s"],
        "memory_mb": result["memory_mb"],
        "memory_mb_total": round(sum(result["memory_mb"].values()), 1),
    }


def _skerry_run(
    work: Path, site: Mapping[str, Any], out: Path, seconds: float | None = None
) -> dict[str, Any]:
    """`skerry run --json` in a process of its own; adds its CPU time and what the modules measured."""
    path = work / "bench.yaml"
    path.write_text(json.dumps(site), encoding="utf-8")
    command = [sys.executable, "-m", "skerry", "run", str(path), "--json", "--out", str(out)]
    command += ["--seconds", str(seconds)] if seconds else []
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise SkerryError(f"skerry run: exit code {done.returncode}: {done.stderr.strip()[-500:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _medians(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each number."""
    found: dict[str, Any] = {}
    for name, value in rows[0].items():
        if isinstance(value, dict):
            found[name] = _medians([row[name] for row in rows])
        elif isinstance(value, int | float):
            found[name] = round(statistics.median(row[name] for row in rows), 3)
    return found
