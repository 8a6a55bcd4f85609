"""Pictures kept for somebody to label: what may be seen in them, and the folder that they are in.

A sample is two files, `NAME.jpg` and `NAME.json`; without the second one it does not exist. The folder is
bounded in bytes and in age. Knows no bus and no model.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

from skerry import durable
from skerry.messages import Detection, Name

Pixels = npt.NDArray[np.uint8]
Privacy = Literal["crop", "blur", "full"]

_COARSE = 32
"""Pixels that are left of the longer side where details are taken away: as in a blurred snapshot."""
_MARGIN = 0.1
"""Around an object, as a share of its sides: labels are drawn at its edge."""
_WHOLE = 0.9
"""An object that takes more of the picture than this is no part of it: to show it is to show the picture."""
_QUALITY = 92
_FLOOR_BYTES = 64 * 1024 * 1024
"""Room on the disk that samples leave for everything else."""
_MOST_JSON = 256 * 1024


class Suggestion(msgspec.Struct, frozen=True, kw_only=True):
    """What the model made of it, for somebody to correct.

    Attributes:
        label: of the object.
        score: 0 to 1.
        bbox: x, y, width and height in pixels, as COCO has them.
    """

    label: str
    score: float
    bbox: tuple[float, float, float, float]


class About(msgspec.Struct, frozen=True, kw_only=True):
    """The second file of a sample.

    Attributes:
        camera: that it is of.
        time: of the frame, RFC 3339.
        number: of the frame.
        model: name@version that looked at it.
        digest: of its package.
        labels: the model's, in their order.
        trigger: setting that asked for it.
        why: in words.
        privacy: what was left in the picture.
        details: False: taken away everywhere, because the camera's snapshots are blurred.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        objects: what the model saw.
        concealed: objects that the model saw and nobody is to see; they are not in `objects`.
        kept_at: by the device's clock, RFC 3339.
        erase_after: likewise; it goes then.
    """

    schema: Literal[1] = 1
    camera: Name
    time: str
    number: int
    model: str
    digest: str
    labels: tuple[str, ...]
    trigger: str
    why: str
    privacy: Privacy
    details: bool
    width: int
    height: int
    objects: tuple[Suggestion, ...]
    concealed: int
    kept_at: str
    erase_after: str


@dataclass(frozen=True)
class Shown:
    """What may be seen of a frame.

    Attributes:
        pixels: of the frame's own size and shape.
        objects: those that can be seen.
        concealed: how many cannot.
    """

    pixels: Pixels
    objects: tuple[Detection, ...]
    concealed: int


def shown(
    pixels: Pixels,
    objects: Sequence[Detection],
    privacy: Privacy,
    *,
    details: bool = True,
    conceal: Collection[str] = (),
) -> Shown | None:
    """Take away what is not to be seen; None where nothing would be left.

    The picture keeps its size: an object is as large as the model saw it. One that fills the picture, as
    all that a classifier says does, is not shown but in a full one.

    Args:
        pixels: (height, width, 3) bgr24, or (height, width) grey; not changed.
        objects: what the model saw.
        privacy: what is left.
        details: False: not even of what is left.
        conceal: labels of objects that are taken away.
    """
    coarse = _coarse(pixels)
    sharp = pixels if details else coarse
    hidden = tuple(each for each in objects if each.label in conceal)
    seen = tuple(
        each for each in objects if each not in hidden and (privacy == "full" or _share(each) < _WHOLE)
    )
    if privacy == "crop":
        if not seen:
            return None
        around = _plain(pixels)
    else:
        around = coarse
    out = (sharp if privacy == "full" else around).copy()
    for each in seen:
        part = _part(pixels, each)
        out[part] = sharp[part]
    for each in hidden:  # last: what is to be hidden is hidden where it overlaps
        part = _part(pixels, each)
        out[part] = around[part]
    return Shown(out, seen, len(objects) - len(seen))


def _plain(pixels: Pixels) -> Pixels:
    """The picture's mean colour everywhere: beside another one a model sees objects that are none."""
    mean = cv2.mean(pixels)[: 1 if pixels.ndim == 2 else 3]
    return np.full_like(pixels, np.round(mean).astype(np.uint8))


def _coarse(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    factor = min(1.0, _COARSE / max(height, width))
    small = max(round(width * factor), 1), max(round(height * factor), 1)
    blots = cv2.resize(pixels, small, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(blots, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def _share(each: Detection) -> float:
    """Of the picture."""
    x1, y1, x2, y2 = each.box
    return (x2 - x1) * (y2 - y1)


def _part(pixels: Pixels, each: Detection) -> tuple[slice, slice]:
    """Where an object is, with a margin."""
    height, width = pixels.shape[:2]
    x1, y1, x2, y2 = each.box
    dx, dy = _MARGIN * (x2 - x1), _MARGIN * (y2 - y1)
    left, right = max(int((x1 - dx) * width), 0), min(int((x2 + dx) * width) + 1, width)
    top, bottom = max(int((y1 - dy) * height), 0), min(int((y2 + dy) * height) + 1, height)
    return slice(top, max(bottom, top)), slice(left, max(right, left))


def suggestions(objects: Sequence[Detection], width: int, height: int) -> tuple[Suggestion, ...]:
    """Boxes as COCO has them."""

    def bbox(each: Detection) -> tuple[float, float, float, float]:
        x1, y1, x2, y2 = each.box
        sides = x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height
        return tuple(round(side, 1) for side in sides)  # type: ignore[return-value]  # four of four

    return tuple(Suggestion(label=o.label, score=round(o.score, 4), bbox=bbox(o)) for o in objects)


def encoded(pixels: Pixels) -> bytes:
    """As JPEG.

    Raises:
        ValueError: it cannot be.
    """
    done, found = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    if not done:
        raise ValueError(f"expected a picture that can be a JPEG, got {pixels.shape}")
    return bytes(found.tobytes())


@dataclass(frozen=True)
class Kept:
    """A sample in the folder.

    Attributes:
        name: of its files, without what follows the dot; they sort by time.
        about: what is said of it.
        size: of both files, in bytes.
    """

    name: str
    about: About
    size: int


class Shelf:
    """The folder. One process writes it; anybody may take files away.

    Args:
        folder: made when there is something to keep.
        free: bytes that may still be written on the disk that a folder is on.
    """

    def __init__(self, folder: Path, free: Callable[[Path], int] | None = None) -> None:
        self.folder = folder
        self._free = free or _free
        self._known: dict[str, About] = {}

    def kept(self) -> tuple[Kept, ...]:
        """What there is, the oldest first; what has no second file, or one that says nothing, is not.

        Raises:
            OSError: the folder cannot be read.
        """
        sizes = self._sizes()
        found = []
        for name in sorted(name[:-5] for name in sizes if name.endswith(".json")):
            about = self._about(name) if f"{name}.jpg" in sizes else None
            if about is not None:
                found.append(Kept(name, about, sizes[f"{name}.jpg"] + sizes[f"{name}.json"]))
        self._known = {each.name: each.about for each in found}
        return tuple(found)

    def sweep(self, now: str) -> tuple[Kept, ...]:
        """Take away what is too old, and what is no sample: of that nobody knows how old it is.

        Args:
            now: RFC 3339.

        Returns:
            What is left.

        Raises:
            OSError: something that should go is there still.
        """
        left = tuple(each for each in self.kept() if each.about.erase_after > now)
        names = {f"{each.name}{end}" for each in left for end in (".jpg", ".json")}
        for name in self._sizes():
            if name not in names:
                (self.folder / name).unlink(missing_ok=True)
        return left

    def keep(self, name: str, about: About, picture: bytes, *, most_bytes: int) -> int:
        """Add a sample; the oldest go for it.

        Args:
            name: of its files.
            about: what is said of it.
            picture: JPEG.
            most_bytes: of all samples.

        Returns:
            How many went for it.

        Raises:
            OSError: there is no room on the disk, or it fails; then nothing of it is there.
        """
        said = msgspec.json.encode(about)
        need = len(said) + len(picture)
        if need > most_bytes:
            raise OSError(errno.EFBIG, f"expected at most {most_bytes} bytes, got {need}")
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        there = list(self.kept())
        went = 0
        while there and sum(each.size for each in there) + need > most_bytes:
            self.erase(there.pop(0).name)
            went += 1
        if self._free(self.folder) < need + _FLOOR_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        try:
            durable.replace(self.folder / f"{name}.jpg", picture)
            durable.replace(self.folder / f"{name}.json", said)
        except OSError:
            self.erase(name)
            raise
        return went

    def erase(self, name: str) -> None:
        """Take a sample away, what says that it is one first.

        Raises:
            OSError: it is there still.
        """
        for end in (".json", ".json.new", ".jpg", ".jpg.new"):
            (self.folder / f"{name}{end}").unlink(missing_ok=True)

    def picture(self, name: str) -> Path:
        """File of a sample's picture."""
        return self.folder / f"{name}.jpg"

    def _sizes(self) -> dict[str, int]:
        """Files by name."""
        return dict(_files(self.folder))

    def _about(self, name: str) -> About | None:
        known = self._known.get(name)
        if known is not None:
            return known
        try:
            with (self.folder / f"{name}.json").open("rb") as file:
                return msgspec.json.decode(file.read(_MOST_JSON), type=About)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    if not folder.is_dir():
        return
    with os.scandir(folder) as found:
        for each in found:
            with suppress(FileNotFoundError):  # somebody takes them away
                if each.is_file(follow_symlinks=False):
                    yield each.name, each.stat(follow_symlinks=False).st_size


def _free(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
