"""What it costs to watch a model: drift monitors, shadow and samples by frame; and its forms side by side.

Times are CPU times of this thread: other work on the machine does not count.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np

from skerry.cli.bench_bus import quiet
from skerry.clock import utc
from skerry.inference import drift
from skerry.inference.agreement import compare
from skerry.inference.drifting import Drifting
from skerry.inference.model import Model, Result
from skerry.inference.runtimes import installed
from skerry.inference.samples import encoded, shown
from skerry.inference.sampling import Sampling
from skerry.inference.settings import DEVICES, InferenceSettings, ModelUse, SamplesSettings
from skerry.messages import Detection, FrameRef
from skerry.models.manifest import REFERENCE, Baseline
from skerry.models.package import Package, load
from skerry.settings import parse
from skerry.telemetry import Telemetry

FPS = 15
WANTED_MS = 0.2
"""Of drift monitors, a frame."""
_SIZES = ((640, 480), (1920, 1080))
_OBJECTS = 8
_MEDIA_S = 600
_SHADOWED = 60
_CAMERA = "belt"


def run(package: Path, *, runs: int = 3) -> dict[str, Any]:
    """Measure drift monitors, samples and shadow on one thread.

    Args:
        package: with a baseline.
        runs: rounds; medians are reported.

    Returns:
        Milliseconds of CPU time, by size of the frame.
    """
    cv2.setNumThreads(1)
    with _model(package) as model, quiet():
        rounds = [{_name(size): _of_size(model, size) for size in _SIZES} for _ in range(runs)]
    return {
        size: {name: round(statistics.median(r[size][name] for r in rounds), 4) for name in rounds[0][size]}
        for size in rounds[0]
    } | {"wanted_of_drift_a_frame_ms": WANTED_MS}  # fmt: skip


def _of_size(model: Model, size: tuple[int, int]) -> dict[str, float]:
    pixels = _picture(*size)
    return _drift(model, pixels) | _shadow(model, pixels) | _samples(model, pixels)


def _drift(model: Model, pixels: drift.Pixels) -> dict[str, float]:
    """Ten minutes of a camera, frame by frame, through what inference does with each."""
    drifting = Drifting(Telemetry(), lambda: None)
    result = Result(objects=_objects(model.package))
    baseline = model.package.manifest.baseline
    assert baseline is not None, "it was given one"
    taken: list[float] = []
    for n in range(FPS * _MEDIA_S):
        ref = _frame(pixels, n)
        begin = time.thread_time_ns()
        drifting.look(ref, pixels, model)
        drifting.judge(ref, result, model)
        taken.append((time.thread_time_ns() - begin) / 1e6)
    every = round(FPS * baseline.every_s)
    sampled = taken[::every]
    return {
        "drift_a_frame_ms": statistics.fmean(taken),
        "drift_a_sampled_frame_ms": statistics.median(sampled),
        "drift_the_last_frame_of_a_window_ms": statistics.median(
            sampled[baseline.window - 1 :: baseline.window]
        ),
    }


def _shadow(model: Model, pixels: drift.Pixels) -> dict[str, float]:
    """A frame that another model looks on: the loop copies it, a thread runs the model and compares."""
    serving = model.look(pixels)
    copied, looked, compared = [], [], []
    for _ in range(_SHADOWED):
        copied.append(_ms(lambda: np.array(pixels)))
        begin = time.process_time()  # a runtime may have threads of its own
        seen = model.look(pixels)
        looked.append((time.process_time() - begin) * 1000)
        compared.append(_ms(partial(compare, serving.objects, seen.objects)))
    return {
        "shadow_on_the_loop_ms": statistics.median(copied),
        "shadow_beside_it_ms": statistics.median(looked) + statistics.median(compared),
    }


def _samples(model: Model, pixels: drift.Pixels) -> dict[str, float]:
    """A frame of which no sample is taken, as nearly all; and a sample, on its thread, without the disk."""
    settings = parse(
        InferenceSettings,
        {
            "site": "bench", "module": "inference", "state": "/nowhere", "frames": "/nowhere",
            "models": [{"package": "x", "samples": {"when": ["drift", "low_score"]}}],
            "snapshots": {_CAMERA: "allowed"},
        },
        "bench",
    )  # fmt: skip
    result = Result(objects=_objects(model.package))
    ref = _frame(pixels, 0)
    sampling = Sampling(settings, Path("/nowhere"), Telemetry())
    passed = [_ms(lambda: sampling.note(0, ref, result, model, ())) for _ in range(1000)]
    privacy = SamplesSettings(when=("drift",)).privacy

    def one() -> None:
        seen = shown(pixels, result.objects, privacy)
        assert seen is not None, "it has objects"
        encoded(seen.pixels)

    return {
        "samples_a_frame_ms": statistics.fmean(passed),
        "a_sample_beside_the_loop_ms": statistics.median(_ms(one) for _ in range(20)),
    }


def forms(package: Path, labelled: Path | None) -> dict[str, Any]:
    """Every form of a package on every runtime here that may load it: speed, and how good it is.

    Args:
        package: of the model.
        labelled: pictures to judge on; None: speed alone.
    """
    found = load(package)
    names = [name for name in installed() if "cpu" in DEVICES[name]]
    rows = {
        f"{name} {'fp32' if form == REFERENCE else form}": _form(name, form, found, labelled)
        for name in names
        for form in found.forms_for(name)
    }
    return {"package": found.title, "labelled": str(labelled) if labelled else "", **rows}


def _form(runtime: str, form: str, package: Package, labelled: Path | None) -> dict[str, Any]:
    from skerry.models import datasets, judging  # noqa: PLC0415 - only where forms are judged

    pixels = _picture(*_SIZES[0])
    with judging.opened(runtime, package, form=form, threads=1) as model:
        for _ in range(5):
            model.look(pixels)
        times, cpu = [], []
        for _ in range(_SHADOWED):
            begin, began = time.perf_counter(), time.process_time()
            model.look(pixels)
            times.append((time.perf_counter() - begin) * 1000)
            cpu.append((time.process_time() - began) * 1000)
        said: dict[str, Any] = {
            "ms": round(statistics.median(times), 2), "cpu_ms": round(statistics.median(cpu), 2)
        }  # fmt: skip
        if labelled is not None:
            its = judging.figures(model, package, datasets.read(labelled), None)
            said |= {
                name: round(its[name], 4) for name in ("map50", "map", "top1") if its.get(name) is not None
            }
    return said


@contextmanager
def _model(package: Path) -> Iterator[Model]:
    """The model, with a baseline even if its package has none."""
    with tempfile.TemporaryDirectory() as cache:
        model = Model(ModelUse(package=str(package), runtime="onnxruntime", threads=1), Path(cache), 1.0)
        if model.package.manifest.baseline is None:
            manifest = msgspec.structs.replace(model.package.manifest, baseline=_baseline(model.package))
            model.package = replace(model.package, manifest=manifest)
        try:
            yield model
        finally:
            model.close()


def _baseline(package: Package) -> Baseline:
    samples = [drift.sample(_picture(64, 48), _objects(package), package.labels)] * 20 * 30
    return drift.baseline(samples, len(package.labels), every_s=1.0, window=30)


def _objects(package: Package) -> tuple[Detection, ...]:
    return tuple(
        Detection(package.labels[n % len(package.labels)], 0.9, (0.1 * n, 0.2, 0.1 * n + 0.09, 0.4))
        for n in range(_OBJECTS)
    )


def _frame(pixels: drift.Pixels, number: int) -> FrameRef:
    return FrameRef(
        camera=_CAMERA, number=number + 1, time=utc(0.0), captured_ns=1, media_ns=number * 10**9 // FPS,
        ring="none", slot=0, generation=2, width=pixels.shape[1], height=pixels.shape[0],
    )  # fmt: skip


def _picture(width: int, height: int) -> drift.Pixels:
    from skerry.capture.scene import Scene  # noqa: PLC0415 - only where a scene is drawn

    return np.asarray(cv2.resize(Scene(seed=1).render(1.0), (width, height)), np.uint8)


def _name(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _ms(act: Callable[[], object]) -> float:
    begin = time.thread_time_ns()
    act()
    return (time.thread_time_ns() - begin) / 1e6
