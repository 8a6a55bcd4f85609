"""From the picture that a source delivers to the picture that is captured: which pixels, how large."""

from __future__ import annotations

from dataclasses import dataclass

from skerry.capture.settings import Camera, SyntheticSource


@dataclass(frozen=True)
class Geometry:
    """Cut, turn and resize for one size of source picture; all in pixels.

    The cut is taken first, then resized, then turned by `rotate` degrees clockwise: turning last moves
    the fewest pixels and gives the same picture as turning first.
    """

    left: int
    top: int
    cut_width: int
    cut_height: int
    rotate: int
    width: int
    """Of the captured picture, after turning."""
    height: int

    @classmethod
    def of(cls, camera: Camera, width: int, height: int, upright: int = 0) -> Geometry:
        """For source pictures of `width` x `height` that need `upright` degrees clockwise to be upright.

        `roi` is meant in the upright picture, so it is turned back here.
        """
        rotate = (camera.rotate + upright) % 360
        x1, y1, x2, y2 = _turned_back(camera.roi or (0.0, 0.0, 1.0, 1.0), upright % 360)
        left, top = min(round(x1 * width), width - 1), min(round(y1 * height), height - 1)
        cut_width = max(min(round(x2 * width), width) - left, 1)
        cut_height = max(min(round(y2 * height), height) - top, 1)
        turned = (cut_height, cut_width) if rotate in (90, 270) else (cut_width, cut_height)
        target = _fit(camera.width, camera.height, *turned)
        return cls(left, top, cut_width, cut_height, rotate, *target)

    @property
    def before_turning(self) -> tuple[int, int]:
        """(width, height) to resize the cut to."""
        return (self.height, self.width) if self.rotate in (90, 270) else (self.width, self.height)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, 3) of the captured picture."""
        return self.height, self.width, 3

    @property
    def nbytes(self) -> int:
        """Size of the captured picture as bgr24."""
        return self.height * self.width * 3

    def cuts(self, width: int, height: int) -> bool:
        """Whether anything of a `width` x `height` source picture is cut away."""
        return (self.cut_width, self.cut_height) != (width, height)


def known_size(camera: Camera) -> tuple[int, int] | None:
    """(width, height) of what will be captured, where the settings alone say it."""
    if camera.width is not None and camera.height is not None:
        return camera.width, camera.height
    if isinstance(camera.source, SyntheticSource):
        geometry = Geometry.of(camera, camera.source.width, camera.source.height)
        return geometry.width, geometry.height
    return None


def mask_points(camera: Camera, width: int, height: int) -> list[list[tuple[int, int]]]:
    """The masks' corners in pixels of the captured picture; of all masks, whoever set them."""
    masks = (*camera.masks, *camera.more_masks)
    return [[(round(x * width), round(y * height)) for x, y in polygon] for polygon in masks]


def _fit(want_width: int | None, want_height: int | None, width: int, height: int) -> tuple[int, int]:
    """The captured size; a side left out keeps the aspect ratio."""
    if want_width is not None and want_height is not None:
        return want_width, want_height
    if want_width is not None:
        return want_width, max(round(want_width * height / width), 1)
    if want_height is not None:
        return max(round(want_height * width / height), 1), want_height
    return width, height


def _turned_back(box: tuple[float, float, float, float], upright: int) -> tuple[float, float, float, float]:
    """A box of the upright picture as a box of the picture before it was turned clockwise."""
    x1, y1, x2, y2 = box
    match upright:
        case 90:
            return y1, 1 - x2, y2, 1 - x1
        case 180:
            return 1 - x2, 1 - y2, 1 - x1, 1 - y1
        case 270:
            return 1 - y2, x1, 1 - y1, x2
        case _:
            return box
