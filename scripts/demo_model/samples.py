"""Pictures to learn from and to be judged by: scenes rendered under drawn conditions, kept on disk.

The four sets draw their scenes from disjoint seeds, and none from 1 to 99, which belong to the demo and
to the acceptance tests.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from demo_model.grid import HEIGHT, WIDTH
from skerry.capture import scene as scene_package
from skerry.capture.scene import KINDS, Conditions, PartView, Scene

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

MOST_PARTS = 24
FIELDS = 7
"""cx, cy, w, h (fractions), kind (index), defective (0 or 1), visible (share)."""

SHOWN = 0.25
"""A part of which less is visible is neither asked for nor held against a detector."""

SLIVER = 0.12
"""A part of which less is visible need not be told from the belt."""

WHOLE = 0.9
"""A defect is asked for only where this share of the part is visible: it may be on the hidden rest."""

_SIZES = ((640, 480), (640, 480), (640, 480), (800, 600), (512, 384), (960, 720))


@dataclass(frozen=True)
class SampleSet:
    """Pictures and what is in them.

    images: (n, HEIGHT, WIDTH, 3) uint8 BGR. truth: (n, MOST_PARTS, FIELDS) float32, NaN where no part.
    """

    images: Bytes
    truth: Floats


Draw = Callable[[np.random.Generator], Conditions]


@dataclass(frozen=True)
class Recipe:
    """How a set is drawn: scenes `first_seed`, `first_seed + 1`, ... with `frames` pictures each."""

    name: str
    first_seed: int
    scenes: int
    frames: int
    draw: Draw
    sizes: tuple[tuple[int, int], ...] = ((640, 480),)


def varied(rng: np.random.Generator) -> Conditions:
    """Training: far wider than the demo, so that the demo lies well inside."""
    return Conditions(
        speed=rng.uniform(0.08, 0.32),
        density=rng.uniform(0.5, 1.0),
        defect_rate=0.42,
        touching=rng.uniform(0.05, 0.4),
        clutter=rng.uniform(0.0, 2.6),
        light=rng.uniform(0.62, 1.22),
        flicker=rng.uniform(0.0, 0.12),
        warmth=rng.uniform(-1.0, 1.0),
        shade=rng.uniform(0.0, 0.5),
        noise=rng.uniform(1.0, 9.0),
        exposure_s=rng.uniform(0.002, 0.030),
    )


def as_demo(rng: np.random.Generator) -> Conditions:
    """The demo's own conditions with more defects, for narrower figures."""
    del rng
    return Conditions(defect_rate=0.35)


def harsh(rng: np.random.Generator) -> Conditions:
    """Light, noise and blur at the rim of what was trained, and beyond."""
    return Conditions(
        speed=rng.uniform(0.2, 0.36),
        defect_rate=0.35,
        touching=0.3,
        clutter=rng.uniform(1.5, 3.0),
        light=rng.choice([rng.uniform(0.48, 0.62), rng.uniform(1.22, 1.38)]),
        flicker=0.1,
        warmth=rng.choice([-1.2, 1.2]),
        shade=rng.uniform(0.4, 0.65),
        noise=rng.uniform(7.0, 12.0),
        exposure_s=rng.uniform(0.020, 0.036),
    )


TRAINING = Recipe("training", 100_000, 400, 15, varied, _SIZES)
VALIDATION = Recipe("validation", 200_000, 40, 12, varied, _SIZES)
HELD_OUT = Recipe("held-out", 300_000, 60, 15, as_demo)
HARSH = Recipe("held-out-harsh", 400_000, 50, 12, harsh)
TRANSIT_SEEDS = range(500_000, 500_006)


def load(recipe: Recipe, cache: Path) -> SampleSet:
    """The set of `recipe`, from `cache` where it lies there already, else rendered on two processes."""
    path = cache / f"{recipe.name}-{_fingerprint(recipe)}.npz"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        seeds = range(recipe.first_seed, recipe.first_seed + recipe.scenes)
        with ProcessPoolExecutor(2) as pool:
            scenes = list(pool.map(partial(_render, recipe), seeds, chunksize=4))
        images = np.concatenate([images for images, _ in scenes])
        truth = np.concatenate([truth for _, truth in scenes])
        np.savez(path, images=images, truth=truth)
    with np.load(path) as file:
        return SampleSet(file["images"], file["truth"])


def shrink(picture: Bytes) -> Bytes:
    """(HEIGHT, WIDTH, 3) `picture`, stretched as the package's manifest says."""
    return np.asarray(cv2.resize(picture, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR), np.uint8)


def to_rows(views: tuple[PartView, ...]) -> Floats:
    """(MOST_PARTS, FIELDS) of the parts in one picture."""
    rows = np.full((MOST_PARTS, FIELDS), np.nan, np.float32)
    for row, view in zip(rows, views, strict=False):
        x1, y1, x2, y2 = view.box
        row[:4] = (x1 + x2) / 2.0, (y1 + y2) / 2.0, x2 - x1, y2 - y1
        row[4:] = KINDS.index(view.kind), view.defective, view.visible
    return rows


def _render(recipe: Recipe, seed: int) -> tuple[Bytes, Floats]:
    cv2.setNumThreads(1)
    rng = np.random.default_rng([seed, 3])
    width, height = recipe.sizes[int(rng.integers(len(recipe.sizes)))]
    conditions = recipe.draw(rng)
    scene = Scene(seed, width, height, conditions)
    times = list(_times(rng, conditions.speed, recipe.frames))
    images = np.stack([shrink(scene.render(t_s)) for t_s in times])
    return images, np.stack([to_rows(scene.truth(t_s)) for t_s in times])


def _times(rng: np.random.Generator, speed: float, count: int) -> Iterator[float]:
    """Times between which about 0.4 of a frame of new belt arrives, in seconds."""
    t_s = rng.uniform(1.0, 60.0)
    for _ in range(count):
        yield t_s
        t_s += rng.uniform(0.3, 0.5) / speed


def _fingerprint(recipe: Recipe) -> str:
    """Changes with the recipe, with this file and with the scene's source."""
    digest = hashlib.sha256(repr((recipe.name, recipe.first_seed, recipe.scenes, recipe.frames)).encode())
    folder = Path(inspect.getfile(scene_package)).parent
    for source in [Path(__file__), *sorted(folder.glob("*.py"))]:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]
