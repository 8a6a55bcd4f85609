"""Trains the demo's detector on rendered scenes and writes its package: one command, nothing downloaded.

.venv-train/bin/python scripts/train_demo_model.py --out models/parts
"""

from __future__ import annotations

import argparse
import platform
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "modules"), str(ROOT / "scripts")]

from demo_model import samples  # noqa: E402
from demo_model.card import Report, SetFigures, text  # noqa: E402
from demo_model.package import Exported, export, latency, write_manifest  # noqa: E402
from demo_model.samples import SampleSet  # noqa: E402
from demo_model.scoring import confusion, defect_figures, kind_precision  # noqa: E402
from demo_model.training import Schedule, train  # noqa: E402
from demo_model.transit import judge  # noqa: E402
from skerry.capture.scene import KINDS  # noqa: E402

DEFECT_THRESHOLD = 0.5
LOWEST = 0.02
"""Detections below this score are left out of every figure."""

TRANSIT_S = 60.0
WANTED_MEAN = 0.95


def main() -> int:
    options = _options()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    sets = {}
    for recipe in (samples.TRAINING, samples.VALIDATION, samples.HELD_OUT, samples.HARSH):
        sets[recipe.name] = samples.load(recipe, options.cache)
        print(
            f"{recipe.name}: {len(sets[recipe.name].images)} pictures, {time.monotonic() - began:.0f} s",
            flush=True,
        )
    schedule = Schedule(epochs=options.epochs)
    network = train(sets[samples.TRAINING.name], schedule)
    path = options.out / "model.onnx"
    export(network, path)
    exported = Exported(path, options.threads)
    threshold = best_threshold(exported, sets[samples.VALIDATION.name])
    write_manifest(options.out, threshold)
    transits = judge(exported, samples.TRANSIT_SEEDS, TRANSIT_S, threshold, DEFECT_THRESHOLD)
    report = Report(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        bytes=path.stat().st_size,
        pictures=len(sets[samples.TRAINING.name].images),
        epochs=schedule.epochs,
        seconds=time.monotonic() - began,
        cpu_seconds=_cpu_seconds(),
        machine=_machine(),
        score_threshold=threshold,
        defect_threshold=DEFECT_THRESHOLD,
        held_out=measure(exported, sets[samples.HELD_OUT.name], threshold),
        harsh=measure(exported, sets[samples.HARSH.name], threshold),
        transits=transits,
        latencies=tuple(latency(path, threads) for threads in (1, 2)),
    )
    card = text(report)
    (options.out / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    print(card)
    return 0 if report.held_out.mean >= WANTED_MEAN else 1


def measure(exported: Exported, held: SampleSet, threshold: float) -> SetFigures:
    """The figures of the written graph on one set."""
    found = exported.find(held.images, LOWEST)
    return SetFigures(
        pictures=len(held.images),
        precisions=tuple(kind_precision(found, held.truth, kind) for kind in range(len(KINDS))),
        defects=defect_figures(found, held.truth, threshold, DEFECT_THRESHOLD),
        confusion=confusion(found, held.truth, threshold),
    )


def best_threshold(exported: Exported, validation: SampleSet) -> float:
    """The score threshold with the best F1 over kinds, from 0.3 to 0.6 in steps of 0.05."""
    found = exported.find(validation.images, LOWEST)

    def f1(threshold: float) -> float:
        table = confusion(found, validation.truth, threshold)
        return 2.0 * float(np.trace(table[:-1, :-1])) / float(table[:-1].sum() + table[:, :-1].sum())

    return max((round(step * 0.05, 2) for step in range(6, 13)), key=f1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=ROOT / "models" / "parts")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "demo-model")
    parser.add_argument("--epochs", type=int, default=Schedule().epochs)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def _cpu_seconds() -> float:
    """User and system time of this process and of those that rendered for it."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _machine() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
    return f"{names[0]} ({len(names)} cores)" if names else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
