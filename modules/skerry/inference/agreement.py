"""How much two models say the same of a frame. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from skerry.messages import Detection

Box = tuple[float, float, float, float]

SAME = 0.5
"""Two boxes of one label that overlap by this much (intersection over union) are one object.

Source: Everingham et al., The PASCAL Visual Object Classes Challenge, IJCV 2010, section 4.2."""


@dataclass(frozen=True)
class Agreement:
    """What two models said of some frames; may be added up.

    Attributes:
        frames: that both looked at.
        both: objects that both saw.
        either: objects that at least one of them saw.
    """

    frames: int = 0
    both: int = 0
    either: int = 0

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(self.frames + other.frames, self.both + other.both, self.either + other.either)

    @property
    def share(self) -> float | None:
        """Objects that both saw, as a share of those that one of them saw; None while there were none."""
        return self.both / self.either if self.either else None

    def __str__(self) -> str:
        if self.share is None:
            return f"no objects in {self.frames} frames"
        return f"{self.share:.0%} of {self.either} objects in {self.frames} frames"


def compare(one: Sequence[Detection], other: Sequence[Detection]) -> Agreement:
    """What two models say of one frame, each object paired with at most one.

    Args:
        one: objects, the best first, which choose in this order.
        other: objects.
    """
    free: dict[str, list[Box]] = defaultdict(list)
    for seen in other:
        free[seen.label].append(seen.box)
    both = 0
    for seen in one:
        boxes = free[seen.label]
        best = max(range(len(boxes)), key=lambda n: overlap(seen.box, boxes[n]), default=None)
        if best is not None and overlap(seen.box, boxes[best]) >= SAME:
            both += 1
            del boxes[best]
    return Agreement(1, both, len(one) + len(other) - both)


def overlap(one: Box, other: Box) -> float:
    """Intersection over union, 0 to 1."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    common = width * height
    areas = (one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1])
    return common / (areas - common)
