"""Frames to input tensors, as the package says; the same numbers on every machine.

Three passes, each over the smaller picture and into memory that is kept: resize into an 8-bit canvas,
split the channels, and look each grey level up in a table of its 256 possible results. The table is
computed in float64 and rounded once, so that a value never depends on how a compiler vectorised an
expression; it is also the fastest way measured (docs/inference.md).
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from skerry.inference.placement import Placement, place
from skerry.models.manifest import Input

Pixels = npt.NDArray[np.uint8]
Tensor = npt.NDArray[np.float32] | npt.NDArray[np.uint8]

_INTERPOLATION = {
    # The fixed-point variant: bit-exact on every CPU, which plain INTER_LINEAR does not promise.
    "linear": cv2.INTER_LINEAR_EXACT,
    "nearest": cv2.INTER_NEAREST_EXACT,
    "area": cv2.INTER_AREA,
}


class Preprocessor:
    """Fills one tensor, again and again. Not thread-safe.

    Attributes:
        tensor: the input, (batch, C, H, W) or (batch, H, W, C); valid until the next call.
    """

    def __init__(self, spec: Input, batch: int = 1) -> None:
        self._spec = spec
        self.tensor: Tensor = np.zeros((batch, *spec.shape[1:]), spec.dtype)
        self._canvas = np.full((spec.height, spec.width, 3), spec.pad, np.uint8)
        self._gray = np.full((spec.height, spec.width), spec.pad, np.uint8)
        self._planes = [np.empty((spec.height, spec.width), np.uint8) for _ in range(3)]
        self._tables = _tables(spec)
        self._last: tuple[int, int, bool] | None = None
        self._placement = place(spec.width, spec.height, spec.width, spec.height, "stretch")

    def __call__(self, pixels: Pixels, index: int = 0) -> Placement:
        """Put a frame into `tensor[index]`.

        Args:
            pixels: (H, W, 3) BGR or (H, W) grey; only read.
            index: which of the batch.

        Returns:
            Where the frame is in the input.
        """
        gray = pixels.ndim == 2
        height, width = pixels.shape[:2]
        if self._last != (width, height, gray):
            self._last = width, height, gray
            spec = self._spec
            self._placement = place(width, height, spec.width, spec.height, spec.resize)
            (self._gray if gray else self._canvas)[...] = spec.pad
        self._resize(pixels, self._gray if gray else self._canvas)
        self._fill(self.tensor[index], gray)
        return self._placement

    def _resize(self, pixels: Pixels, canvas: Pixels) -> None:
        at = self._placement
        inside = canvas[at.top : at.top + at.height, at.left : at.left + at.width]
        if pixels.shape == inside.shape:
            np.copyto(inside, pixels)
            return
        cv2.resize(
            pixels,
            (at.width, at.height),
            dst=inside,
            interpolation=_INTERPOLATION[self._spec.interpolation],
        )

    def _fill(self, tensor: Tensor, gray: bool) -> None:
        """Canvas to tensor: colour order, layout and values."""
        spec = self._spec
        if spec.colour == "gray":
            if not gray:
                cv2.cvtColor(self._canvas, cv2.COLOR_BGR2GRAY, dst=self._planes[0])
            plane = self._gray if gray else self._planes[0]
            self._look_up(plane, tensor.reshape(spec.height, spec.width), 0)
            return
        if gray:
            planes = [self._gray] * 3
        else:
            cv2.split(self._canvas, self._planes)
            planes = self._planes if spec.colour == "bgr" else self._planes[::-1]
        for channel, plane in enumerate(planes):
            target = tensor[channel] if spec.layout == "nchw" else tensor[:, :, channel]
            self._look_up(plane, target, channel)

    def _look_up(self, plane: Pixels, target: Tensor, channel: int) -> None:
        if self._spec.dtype == "uint8":
            np.copyto(target, plane)
        elif target.flags.c_contiguous:
            cv2.LUT(plane, self._tables[channel], dst=target)
        else:
            np.copyto(target, cv2.LUT(plane, self._tables[channel]))


def _tables(spec: Input) -> list[npt.NDArray[np.float32]]:
    """(pixel - mean) / scale of the 256 grey levels, per channel."""
    levels = np.arange(256, dtype=np.float64)
    means = spec.mean * (spec.channels if len(spec.mean) == 1 else 1)
    scales = spec.scale * (spec.channels if len(spec.scale) == 1 else 1)
    return [((levels - m) / s).astype(np.float32) for m, s in zip(means, scales, strict=True)]
