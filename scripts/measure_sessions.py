"""Latency and CPU time of one run of a model, by runtime, threads and spinning: behind docs/inference.md.

    python scripts/measure_sessions.py MODEL.onnx [MODEL.onnx ...] [--rounds 3] [--frames 60]

Frames come at 15 a second, as from a camera: what threads do while they wait is part of the cost. Every
setting runs in a process of its own, in turn, several rounds, and the median round is shown.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

SETTINGS = [
    *(("onnxruntime", threads, spin) for threads in (1, 2) for spin in (False, True)),
    *(("openvino", threads, False) for threads in (1, 2)),
]
_FPS = 15


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--child", metavar="JSON", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        runtime, threads, spin = json.loads(arguments.child)
        print(json.dumps(_measure(arguments.models[0], runtime, threads, spin, arguments.frames)))
        return 0
    print(f"{'model':28} {'runtime':12} threads spin   p50 ms   p95 ms  CPU ms/frame  RSS MB")
    for model in arguments.models:
        results: dict[Any, list[dict[str, float]]] = {setting: [] for setting in SETTINGS}
        for _ in range(arguments.rounds):
            for setting in SETTINGS:
                results[setting].append(_child(model, setting, arguments.frames))
        for (runtime, threads, spin), rounds in results.items():
            figures = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
            print(
                f"{model.parent.name + '/' + model.name:28} {runtime:12} {threads:7} {spin!s:5} "
                f"{figures['p50']:8.2f} {figures['p95']:8.2f} {figures['cpu']:13.2f} {figures['rss']:7.0f}"
            )
    return 0


def _child(model: Path, setting: tuple[str, int, bool], frames: int) -> dict[str, float]:
    command = [sys.executable, __file__, str(model), "--frames", str(frames), "--child", json.dumps(setting)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure(model: Path, runtime: str, threads: int, spin: bool, frames: int) -> dict[str, float]:
    run = _onnxruntime(model, threads, spin) if runtime == "onnxruntime" else _openvino(model, threads)
    for _ in range(5):
        run()
    times = []
    cpu = time.process_time()
    for _ in range(frames):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
        time.sleep(max(0.0, 1 / _FPS - times[-1]))
    cpu = (time.process_time() - cpu) / frames
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return {
        "p50": float(np.median(times)) * 1000,
        "p95": float(np.percentile(times, 95)) * 1000,
        "cpu": cpu * 1000,
        "rss": pages * 4096 / 2**20,
    }


def _onnxruntime(model: Path, threads: int, spin: bool) -> Any:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # its wheels report to their makers unless told not to
    import onnxruntime as ort  # noqa: PLC0415 - one runtime a process

    ort.set_default_logger_severity(3)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    feed = session.get_inputs()[0]
    values = _values([n if isinstance(n, int) else 1 for n in feed.shape])
    return lambda: session.run(None, {feed.name: values})


def _openvino(model: Path, threads: int) -> Any:
    from skerry.inference.runtimes.openvino import ov  # noqa: PLC0415 - one runtime a process

    compiled = ov.Core().compile_model(
        str(model), "CPU",
        {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1,
         "INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False},
    )  # fmt: skip
    request = compiled.create_infer_request()
    shape = [d.get_length() if d.is_static else 1 for d in compiled.inputs[0].get_partial_shape()]
    values = _values(shape)
    return lambda: request.infer({0: values}, share_inputs=True, share_outputs=True)


def _values(shape: list[int]) -> Any:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


if __name__ == "__main__":
    sys.exit(main())
