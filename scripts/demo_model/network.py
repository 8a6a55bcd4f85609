"""The detector: a small convolutional network on one grid of stride 8, with its activations in the graph.

Plain 3x3 convolutions, batch normalisation (folded when exported) and ReLU. A coarse branch of stride 16
sees a whole part and its surroundings and is added back to the fine one. Each cell says one box:

    cx, cy, w, h   fractions of the input; the centre lies within 1.5 cells of the cell's own
    objectness     probability that the cell belongs to a part
    p_bolt, p_nut, p_washer
    p_defect       probability that the part is cracked or lacks a piece

Source: Tian et al., FCOS (2019), for dense boxes without anchors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from demo_model.grid import CELLS, COLUMNS, OUTPUTS, ROWS

FINE, COARSE = 48, 64
"""Channels of the two branches; multiples of 16 fill the vector units of a CPU."""

_OFFSET = 1.5
_TYPICAL = 0.12
"""Width and height that a raw output of 0 stands for, as a fraction of the input."""


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Residual(nn.Module):
    """x + two convolutions of it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _block(channels, channels)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.norm(self.second(self.first(x))))


class Detector(nn.Module):
    """(n, 3, HEIGHT, WIDTH) BGR divided by 255 -> (n, CELLS, OUTPUTS), rows of cells from the top left."""

    grid: Tensor
    cell: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_block(3, 16, 2), _block(16, 32, 2))
        self.fine = nn.Sequential(_block(32, FINE, 2), _block(FINE, FINE))
        self.coarse = nn.Sequential(_block(FINE, COARSE, 2), Residual(COARSE))
        self.back = nn.Conv2d(COARSE, FINE, 1)
        self.merge = nn.Sequential(_block(FINE, FINE), _block(FINE, FINE))
        self.head = nn.Conv2d(FINE, OUTPUTS, 1)
        nn.init.constant_(self.head.bias, 0.0)
        with torch.no_grad():
            self.head.bias[4] = -4.0
        y, x = torch.meshgrid(torch.arange(ROWS), torch.arange(COLUMNS), indexing="ij")
        centres = torch.stack([(x + 0.5) / COLUMNS, (y + 0.5) / ROWS], dim=-1)
        self.register_buffer("grid", centres.reshape(1, CELLS, 2).float(), persistent=False)
        self.register_buffer("cell", torch.tensor([1.0 / COLUMNS, 1.0 / ROWS]), persistent=False)

    def raw(self, images: Tensor) -> Tensor:
        """(n, CELLS, OUTPUTS) before the activations."""
        fine = self.fine(self.stem(images))
        coarse = self.back(self.coarse(fine))
        whole = fine + functional.interpolate(coarse, scale_factor=2.0, mode="nearest")
        return self.head(self.merge(whole)).reshape(-1, OUTPUTS, CELLS).transpose(1, 2)

    def boxes(self, raw: Tensor) -> Tensor:
        """(..., 4) cx, cy, w, h as fractions of the input."""
        reach = 2.0 * _OFFSET * self.cell
        centre = self.grid + (raw[..., 0:2].sigmoid() - 0.5) * reach
        size = raw[..., 2:4].clamp(-3.0, 3.0).exp() * _TYPICAL
        return torch.cat([centre, size], dim=-1)

    def forward(self, images: Tensor) -> Tensor:
        raw = self.raw(images)
        return torch.cat([self.boxes(raw), raw[..., 4:].sigmoid()], dim=-1)
