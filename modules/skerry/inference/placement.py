"""Where a frame lies in a model's input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Placement:
    """The rectangle of the input that the frame fills, in input pixels.

    Attributes:
        left, top: its corner.
        width, height: its size.
        input_width, input_height: size of the whole input.
    """

    left: int
    top: int
    width: int
    height: int
    input_width: int
    input_height: int

    def to_frame(self, boxes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Boxes in fractions of the input as fractions of the frame, clipped to it.

        Args:
            boxes: (N, 4) x1, y1, x2, y2.
        """
        size = np.array([self.input_width, self.input_height] * 2, np.float32)
        corner = np.array([self.left, self.top] * 2, np.float32)
        extent = np.array([self.width, self.height] * 2, np.float32)
        scaled: npt.NDArray[np.float32] = (boxes * size - corner) / extent
        return scaled.clip(0.0, 1.0)


def place(
    width: int, height: int, input_width: int, input_height: int, resize: Literal["stretch", "letterbox"]
) -> Placement:
    """Where a frame of `width` x `height` goes; a letterbox is centred, the odd pixel right and below."""
    if resize == "stretch":
        return Placement(0, 0, input_width, input_height, input_width, input_height)
    ratio = min(input_width / width, input_height / height)
    inner_width = min(max(round(width * ratio), 1), input_width)
    inner_height = min(max(round(height * ratio), 1), input_height)
    left, top = (input_width - inner_width) // 2, (input_height - inner_height) // 2
    return Placement(left, top, inner_width, inner_height, input_width, input_height)
