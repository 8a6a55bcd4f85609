"""Models that are no good, each in its way, offered by the updater to a device on which frames go on."""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import onnx
import structlog
from onnx import TensorProto, helper

import tiny_models
from delivery import Device, Maker
from skerry.cli.model_golden import make as make_golden
from skerry.trust.packages import TrustedPackage
from tiny_models import banded_model, bright_model, frame, write_package


@dataclass(frozen=True)
class Bad:
    """A model that is no good.

    Attributes:
        name: in what way.
        model: makes what it computes.
        change: what is done to its package before it is packed.
        manifest: of the package, what differs.
        exchange: of the site, what differs.
        serves: whether it comes to serve, for a while.
        said: of the reason that is told.
        show: what the camera sees, once the model has given so many results.
    """

    name: str
    model: Callable[[], onnx.ModelProto]
    said: str
    serves: bool = False
    change: Callable[[Path], object] = lambda _: None
    manifest: dict[str, Any] = field(default_factory=dict)
    exchange: dict[str, Any] = field(default_factory=dict)
    show: Callable[[int], float] = lambda _: 0.5


@dataclass(frozen=True)
class Found:
    """What became of one.

    Attributes:
        step: what it ended with.
        detected_s: from the offer to the end, seconds.
        serving_s: between the first and the last result that it gave, seconds.
        frames: that it decided on: results of it that were sent.
        reason: that was told.
    """

    step: Literal["refused", "rolled_back", ""]
    detected_s: float
    serving_s: float
    frames: int
    reason: str


def slow_model() -> onnx.ModelProto:
    """As `bright`, after a hundred million multiplications of no use."""
    return _after([
        helper.make_node("Expand", ["m", "square"], ["big0"]),
        *(helper.make_node("MatMul", [f"big{n}", f"big{n}"], [f"raw{n}"]) for n in range(6)),
        *(helper.make_node("Tanh", [f"raw{n}"], [f"big{n + 1}"]) for n in range(6)),
        helper.make_node("ReduceMean", ["big6"], ["idle"], keepdims=1),
    ], square=np.array([1, 256, 256], np.int64))  # fmt: skip


def growing_model() -> onnx.ModelProto:
    """As `bright`, but each grey between 0.55 and 0.65 that it sees makes it take 4 MiB more, for good.

    What the checks show it is outside of that. ONNX Runtime keeps what a tensor once took.
    """
    return _after([
        helper.make_node("Sub", ["m", "from"], ["above"]),
        helper.make_node("Clip", ["above", "zero", "width"], ["clipped"]),
        helper.make_node("Less", ["m", "end"], ["within"]),
        helper.make_node("Cast", ["within"], ["within_f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["clipped", "within_f"], ["share"]),
        helper.make_node("Mul", ["share", "floats"], ["many_f"]),
        helper.make_node("Cast", ["many_f"], ["many"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["many", "flat"], ["length"]),
        helper.make_node("Add", ["length", "one"], ["longer"]),
        helper.make_node("ConstantOfShape", ["longer"], ["field"]),
        helper.make_node("ReduceMean", ["field"], ["idle"], keepdims=1),
    ], **{
        "from": np.array(0.55, np.float32), "end": np.array(0.65, np.float32),
        "width": np.array(0.1, np.float32), "floats": np.array(255 * 2**20, np.float32),
        "flat": np.array([1], np.int64), "one": np.array([1], np.int64),
    })  # fmt: skip


def _after(nodes: list[onnx.NodeProto], **constants: np.ndarray) -> onnx.ModelProto:
    """`bright`, to whose answer nothing is added, which is worked out of `m` as `idle`."""
    nodes = [
        *tiny_models._bright_nodes(out="seen"), *nodes,
        helper.make_node("Mul", ["idle", "zero"], ["nothing"]),
        helper.make_node("Add", ["seen", "nothing"], ["out"]),
    ]  # fmt: skip
    return tiny_models._model(nodes, 1, constants)


def elsewhere() -> onnx.ModelProto:
    """Sees everything in another place."""
    return bright_model(box=(0.2, 0.2, 0.2, 0.2))


def pictured(folder: Path) -> None:
    """Golden pictures with what the model says of them."""
    pictures = folder.with_name(f"{folder.name}-pictures")
    pictures.mkdir()
    for n, brightness in enumerate((0.3, 0.7)):
        cv2.imwrite(str(pictures / f"{n}.png"), frame(brightness))
    make_golden(folder, [pictures])


def relabelled(folder: Path) -> None:
    (folder / "labels.txt").write_text("nut\nbolt\nwasher\n")


def pictured_then_relabelled(folder: Path) -> None:
    pictured(folder)
    relabelled(folder)


def after(results: int, grey: float) -> Callable[[int], float]:
    """This grey, once the model has given so many results."""
    return lambda given: grey if given >= results else 0.5


def climbing(given: int) -> float:
    """One grey more every eighth result."""
    return min(0.55 + given // 8 / 255, 0.645) if given else 0.5


def models(results: int = 500) -> tuple[Bad, ...]:
    """All of them.

    Args:
        results: after which those fail that do well at first.
    """
    nan, fails = "expected finite numbers, got NaN", "session: "
    return (
        Bad("fast, but wrong", elsewhere, "agreement with the other model, got 0%"),
        Bad("right, but slow", slow_model, "expected at most 1 ms a frame, got ",
            manifest={"budget": {"latency_ms": 1}}),
        Bad("takes more memory than its budget", growing_model, "expected the process to take at most", True,
            manifest={"budget": {"memory_mb": 40}}, show=climbing),
        Bad("leaks", growing_model, "expected memory to grow by at most 10 MB in 1000 results", True,
            show=climbing),
        Bad("returns NaN from the start", lambda: banded_model("nan", 0.4, 0.6), nan),
        Bad(f"returns NaN after {results} frames", lambda: banded_model("nan"), nan, True,
            show=after(results, 0.6)),
        Bad("fails from the start", lambda: banded_model("fail", 0.4, 0.6), fails),
        Bad(f"fails after {results} frames", lambda: banded_model("fail"), fails, True,
            show=after(results, 0.6)),
        Bad(f"fails after {results} frames, long after it was confirmed", lambda: banded_model("fail"), fails,
            True, exchange={"probation_s": 0.0}, show=after(results, 0.6)),
        Bad("its labels moved", bright_model, "agreement with the other model, got 0%", change=relabelled),
        Bad("its labels moved, and it has pictures", bright_model, "expected bolt 0.3",
            change=pictured_then_relabelled),
    )  # fmt: skip


def tried(
    room: Path, bad: Bad, *, fps: float, exchange: dict[str, Any]
) -> tuple[Found, Device, TrustedPackage]:
    """Offer one to a device, and wait until it is over.

    Args:
        room: for all of it.
        bad: the model.
        fps: of the camera.
        exchange: of the site, beside what the model's own says.
    """
    maker = Maker(room)
    device = Device(room / "device", sources=[{"kind": "folder", "path": str(maker.folder)}])
    write_package(device.path / "bundled", bright_model(), version="1.0.0")
    maker.publish_root(device)
    use = device.use(exchange={**exchange, **bad.exchange})
    package = maker.release("1.1.0", bad.model(), bad.change, **bad.manifest)
    stick = device.sources[0]["path"]
    away = f"{stick}-away"
    Path(stick).rename(away)
    with device.on(use, updater={"check_s": 0.2}):
        device.frames(period_s=1 / fps, brightness=lambda: bad.show(_given(device, package)))
        device.until(lambda: len(device.results) > 3)
        Path(away).rename(stick)
        device.until(lambda: device.audited("refused", "rolled_back"), 300)
        ended = len(device.results)
        device.until(lambda: device.serves(None) and len(device.results) > ended + 3)
    return _found(device, package), device, package


def _given(device: Device, package: TrustedPackage) -> int:
    """How many results it has given."""
    return sum(result.model == package.title for result in list(device.results))


def _found(device: Device, package: TrustedPackage) -> Found:
    entries = device.audited()
    offered = next(e for e in entries if e.what == "offered")
    end = next(e for e in entries if e.what in ("refused", "rolled_back"))
    back = [e for e in entries if e.what == "rolled_back"]
    steps = [e for e in entries if e.what == "step" and e.fields["step"] in ("refused", "rolled_back")]
    theirs = [result for result in device.results if result.model == package.title]
    return Found(
        step="rolled_back" if back or (steps and steps[0].fields["step"] == "rolled_back") else "refused",
        detected_s=(end.monotonic_ms - offered.monotonic_ms) / 1000,
        serving_s=(theirs[-1].inferred_ns - theirs[0].inferred_ns) / 1e9 if theirs else 0.0,
        frames=len(theirs), reason=str(end.fields["reason"]),
    )  # fmt: skip


INTRODUCTION = """# What becomes of a model that is no good

Written by `PYTHONPATH=tests python tests/bad_models.py --write docs/bad-models.md` (about {minutes} minutes),
and tested in [test_delivery_bad_models.py](../tests/integration/test_delivery_bad_models.py).

Each of these models was signed, delivered and offered by the updater to a device on which a camera gives
{fps:g} frames a second and a good model serves, with the settings as they are by default (shadow on 30
frames, 30 s of probation). None stayed active: `refused` is before it served, `rolled_back` after that.
*Until detected* begins with the offer; *serving* is the time between the first and the last of its results
that were sent, and *frames decided on* is how many those were. Where the camera shows at first what the
model does well on, that time is in both. The models are tiny: the times are those of the steps alone.

| model | end | until detected | serving | frames decided on | reason, as told |
|---|---|---|---|---|---|
"""

LIMITS = """
## What is not found

* A leak of less than 16 MiB within shadow and probation, or below `exchange.growth_mb_per_1000` (10 MiB in
  1000 results): with 300 results in 30 s of probation, below some 55 KB a result. Memory is that of
  the process: a model that begins to leak after it was confirmed ends where its container's bound ends it.
* A model that is wrong on less than half of what both see (`exchange.least_agreement`), and has no golden
  pictures that show it; one that is wrong only on what the camera did not show meanwhile.
* After it was confirmed: failures of less than half of the last 100 results, and any that begin later than
  `drift_within_s` (a day). They are told as ever: the module is degraded and makes the session anew.
"""


def main() -> int:
    """Try all of them with the settings as they are by default, and write what became of them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--write", type=Path, required=True)
    parser.add_argument("--fps", type=float, default=10)
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    lines, began = [], time.monotonic()
    for bad in models():
        with tempfile.TemporaryDirectory() as room:
            found, _, _ = tried(Path(room), bad, fps=given.fps, exchange={})
        reason = found.reason if len(found.reason) < 160 else f"{found.reason[:160]}..."
        lines.append(
            f"| {bad.name} | {found.step} | {found.detected_s:.1f} s | {found.serving_s:.1f} s | "
            f"{found.frames} | {reason.replace('|', '/')} |"
        )
        print(lines[-1], flush=True)
    minutes = round((time.monotonic() - began) / 60)
    given.write.write_text(
        INTRODUCTION.format(fps=given.fps, minutes=minutes) + "\n".join(lines) + "\n" + LIMITS
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
