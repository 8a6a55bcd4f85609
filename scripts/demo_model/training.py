"""Learning: which cell answers for which part, what an answer costs, and the loop."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from demo_model.grid import COLUMNS, ROWS
from demo_model.network import Detector
from demo_model.samples import SHOWN, SLIVER, WHOLE, SampleSet


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn."""

    epochs: int = 12
    batch: int = 32
    rate: float = 3e-3
    warm_up: int = 100
    """Steps over which the rate rises."""
    decay: float = 2e-4
    average: float = 0.998
    """Share of the running average of the weights that a step keeps."""
    seed: int = 7


@dataclass(frozen=True)
class Goal:
    """What the cells of a batch should say; n pictures, CELLS cells.

    owner: (n, CELLS) index of the part in its picture, -1 for belt, -2 for "do not care".
    rows: (n, CELLS, FIELDS) the owner's truth, zeros where there is none.
    """

    owner: Tensor
    rows: Tensor


def assign(truth: Tensor, grid: Tensor) -> Goal:
    """Gives each part the cells within 1.1 cells of its centre; those just outside are not asked.

    A cell not asked may still answer, so all of them can reach the centre with their box. Parts hardly
    visible are not asked for either, but a mere sliver is belt.

    Args:
        truth: (n, parts, FIELDS), NaN where no part.
        grid: (1, CELLS, 2) centres of the cells, fractions.
    """
    cells = torch.tensor([COLUMNS, ROWS], dtype=torch.float32)
    away = ((grid[:, :, None] - truth[:, None, :, :2]).abs() * cells).amax(-1).nan_to_num(1e3)
    shown = (truth[..., 6] >= SHOWN)[:, None]
    near, owner = torch.where(shown, away, 1e3).min(-1)
    hidden = torch.where(shown | (truth[..., 6] < SLIVER)[:, None], 1e3, away).amin(-1) < 1.4
    owner = torch.where(near <= 1.1, owner, torch.where((near <= 1.4) | hidden, -2, -1))
    index = owner.clamp(min=0)[..., None].expand(-1, -1, truth.shape[-1])
    rows = truth.nan_to_num(0.0).gather(1, index) * (owner >= 0)[..., None]
    return Goal(owner, rows)


def loss(network: Detector, images: Tensor, truth: Tensor) -> Tensor:
    """What a batch's answers cost, per cell that owns a part."""
    raw = network.raw(images)
    goal = assign(truth, network.grid)
    asked, mine = goal.owner != -2, goal.owner >= 0
    count = mine.sum().clamp(min=1)
    there = functional.binary_cross_entropy_with_logits(raw[..., 4], mine.float(), reduction="none")
    rows, answers = goal.rows[mine], raw[mine]
    boxes = network.boxes(raw)[mine]
    kinds = functional.one_hot(rows[:, 4].long(), 3).float()
    kind = functional.binary_cross_entropy_with_logits(answers[:, 5:8], kinds, reduction="sum")
    judged = ((rows[:, 5] == 0.0) | (rows[:, 6] >= WHOLE)).float()
    defect = functional.binary_cross_entropy_with_logits(answers[:, 8], rows[:, 5], judged, reduction="sum")
    box = (1.0 - shared(boxes, rows[:, :4])).sum()
    return ((there * asked).sum() + kind + 2.0 * defect + 2.5 * box) / count


def shared(one: Tensor, two: Tensor) -> Tensor:
    """(k,) generalised intersection over union, -1 to 1.

    Source: Rezatofighi et al., Generalized Intersection over Union (2019), algorithm 1.
    """
    low1, high1 = one[:, :2] - one[:, 2:] / 2, one[:, :2] + one[:, 2:] / 2
    low2, high2 = two[:, :2] - two[:, 2:] / 2, two[:, :2] + two[:, 2:] / 2
    inner = (torch.minimum(high1, high2) - torch.maximum(low1, low2)).clamp(min=0).prod(-1)
    union = one[:, 2:].prod(-1) + two[:, 2:].prod(-1) - inner
    hull = (torch.maximum(high1, high2) - torch.minimum(low1, low2)).prod(-1)
    return inner / union - (hull - union) / hull


def train(samples: SampleSet, schedule: Schedule) -> Detector:
    """A detector that has learnt `samples`; the running average of its weights, ready to use."""
    torch.manual_seed(schedule.seed)
    rng = np.random.default_rng(schedule.seed)
    network = Detector().to(memory_format=torch.channels_last)
    average = copy.deepcopy(network)
    optimiser = torch.optim.AdamW(network.parameters(), schedule.rate, weight_decay=schedule.decay)
    images, truth = torch.from_numpy(samples.images), torch.from_numpy(samples.truth)
    steps = schedule.epochs * (len(images) // schedule.batch)
    began, step = time.monotonic(), 0
    for epoch in range(schedule.epochs):
        order = torch.from_numpy(rng.permutation(len(images)))
        total = 0.0
        for picked in order[: len(order) // schedule.batch * schedule.batch].split(schedule.batch):
            for group in optimiser.param_groups:
                group["lr"] = schedule.rate * _rate(step, steps, schedule.warm_up)
            batch = vary(images[picked], rng)
            cost = loss(network, batch, truth[picked])
            optimiser.zero_grad(set_to_none=True)
            cost.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
            optimiser.step()
            step += 1
            follow(average, network, min(schedule.average, step / (step + 20.0)))
            total += float(cost.detach())
        mean = total / (steps / schedule.epochs)
        print(
            f"epoch {epoch + 1}/{schedule.epochs} loss {mean:.4f} {time.monotonic() - began:.0f} s",
            flush=True,
        )
    return average.eval()


def vary(images: Tensor, rng: np.random.Generator) -> Tensor:
    """(n, 3, HEIGHT, WIDTH) in 0 to 1, each picture with its own contrast, level and colour."""
    count = len(images)
    gain = torch.from_numpy(
        rng.uniform(0.85, 1.15, (count, 1, 1, 1)) * rng.uniform(0.94, 1.06, (count, 1, 1, 3))
    )
    lift = torch.from_numpy(rng.uniform(-12.0, 12.0, (count, 1, 1, 1)))
    varied = images.float().mul_(gain.float()).add_(lift.float()).clamp_(0.0, 255.0).mul_(1.0 / 255.0)
    return varied.permute(0, 3, 1, 2)


def follow(average: Detector, network: Detector, keep: float) -> None:
    """Moves `average` towards `network`; counters and statistics are copied the same way."""
    with torch.no_grad():
        for mean, now in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(now, 1.0 - keep)
            else:
                mean.copy_(now)


def _rate(step: int, steps: int, warm_up: int) -> float:
    """Rises linearly, then falls as a cosine, 0 to 1."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 + 0.5 * math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1))
