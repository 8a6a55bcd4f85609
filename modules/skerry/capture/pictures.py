"""Sources that are pictures already: a folder of images, and a scene drawn on the spot."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np

from skerry.capture.check import PICTURES
from skerry.capture.feed import ArrayPicture, NoFrames, Pixels, Unreachable, milliseconds_since, place
from skerry.capture.geometry import Geometry
from skerry.capture.scene import Conditions, Scene
from skerry.capture.settings import ImagesSource, SyntheticSource

_S = 1_000_000_000


class ImagesFeed:
    """The images of a folder as they are when it is opened, by name.

    Raises:
        Unreachable: the folder cannot be listed.
        NoFrames: no image is in it.
    """

    def __init__(self, source: ImagesSource) -> None:
        self._source = source
        self.corrupt = 0
        self.note = ""
        self._number = 0
        self._read_in_this_round = 0
        try:
            self._paths = sorted(p for p in Path(source.folder).iterdir() if p.suffix.lower() in PICTURES)
        except OSError as error:
            raise Unreachable(f"{source.folder}: {error.strerror}") from error
        if not self._paths:
            raise NoFrames(f"{source.folder}: expected pictures ({', '.join(PICTURES)}), found none")

    def read(self) -> ArrayPicture | None:
        while True:
            place_in_round = self._number % len(self._paths)
            if self._number and place_in_round == 0:
                if not self._read_in_this_round:
                    raise NoFrames(f"{self._source.folder}: expected pictures, none can be decoded")
                if not self._source.loop:
                    return None
                self._read_in_this_round = 0
            start = time.perf_counter()
            media_ns = round(self._number * _S / self._source.fps)
            self._number += 1
            pixels = _decode(self._paths[place_in_round])
            if pixels is not None:
                self._read_in_this_round += 1
                return ArrayPicture(pixels, media_ns, milliseconds_since(start))
            self.corrupt += 1

    def interrupt(self) -> None:
        """Reading a file never waits."""

    def close(self) -> None:
        """Nothing is held open."""


def _decode(path: Path) -> Pixels | None:
    """The image as BGR, None when it is damaged or gone."""
    try:
        content = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError:
        return None  # counted by the caller, like any image that cannot be decoded
    if not content.size:
        return None
    pixels = cv2.imdecode(content, cv2.IMREAD_COLOR)
    return None if pixels is None else np.asarray(pixels, np.uint8)


class ScenePicture:
    """One moment of a scene, drawn when it is loaded and not before: a skipped one costs nothing."""

    upright = 0

    def __init__(self, scene: Scene, number: int, fps: float) -> None:
        self.media_ns = round(number * _S / fps)
        self.width, self.height = scene.width, scene.height
        self.decode_ms = 0.0
        self._scene = scene
        self._t_s = number / fps
        self._pixels: Pixels | None = None

    def load(self) -> None:
        start = time.perf_counter()
        self._pixels = self._scene.render(self._t_s)
        self.decode_ms = milliseconds_since(start)

    def into(self, out: Pixels, geometry: Geometry) -> None:
        if self._pixels is None:
            self.load()
        assert self._pixels is not None
        place(self._pixels, out, geometry)


class SyntheticFeed:
    """Frame `n` shows the scene at `n / fps` seconds: the same frames for the same settings, always."""

    corrupt = 0
    note = ""

    def __init__(self, source: SyntheticSource) -> None:
        self._source = source
        self._number = 0
        self._frames = None if source.seconds is None else round(source.seconds * source.fps)
        self._scene = Scene(
            seed=source.seed, width=source.width, height=source.height, conditions=conditions(source)
        )

    def read(self) -> ScenePicture | None:
        if self._frames is not None and self._number >= self._frames:
            return None
        picture = ScenePicture(self._scene, self._number, self._source.fps)
        self._number += 1
        return picture

    def interrupt(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is held open."""


def conditions(source: SyntheticSource) -> Conditions:
    """The scene's conditions that a source's settings ask for."""
    return Conditions(
        speed=source.speed, stopping=source.stopping, density=source.density, defect_rate=source.defect_rate,
        light=source.light, flicker=source.flicker, noise=source.noise,
    )  # fmt: skip
