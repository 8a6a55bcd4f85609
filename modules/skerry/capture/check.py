"""What a site checker can say of cameras before anything runs. No OpenCV, no FFmpeg."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from skerry.capture.settings import (
    Camera,
    CaptureSettings,
    FileSource,
    ImagesSource,
    MjpegSource,
    RtspSource,
    V4l2Source,
)
from skerry.settings import Problem

PICTURES = (".jpg", ".jpeg", ".png", ".bmp")


def camera_problems(camera: Camera, path: str, *, here: bool = True) -> list[Problem]:
    """What is wrong with one camera's settings: contradictions, and files that are not there.

    Args:
        camera: the parsed settings.
        path: of the camera in its file, e.g. `$.cameras[0]`.
        here: whether it will be opened on this machine, so that its files and devices have to be there.
    """
    found = _shape_problems(camera, path)
    return [*found, *_source_problems(camera, f"{path}.source")] if here else found


def settings_problems(settings: CaptureSettings) -> list[Problem]:
    """What is wrong with settings that were changed from outside, said without looking at any file.

    Args:
        settings: of the module.
    """
    return [
        p for n, camera in enumerate(settings.cameras) for p in _shape_problems(camera, f"$.cameras[{n}]")
    ]


def _shape_problems(camera: Camera, path: str) -> list[Problem]:
    found: list[Problem] = []
    if camera.roi is not None:
        x1, y1, x2, y2 = camera.roi
        if x1 >= x2 or y1 >= y2:
            found.append((f"{path}.roi", f"expected x1 < x2 and y1 < y2, got {list(camera.roi)}"))
    for name, masks in (("masks", camera.masks), ("more_masks", camera.more_masks)):
        for n, polygon in enumerate(masks):
            if len(set(polygon)) < 3:
                found.append((f"{path}.{name}[{n}]", "expected 3 or more different corners"))
    return found


def cameras_problems(cameras: Sequence[Camera], path: str, *, here: bool = True) -> list[Problem]:
    """`camera_problems` of each, and names that are used twice.

    Args:
        cameras: all cameras of one site.
        path: of the list, e.g. `$.cameras`.
        here: whether they will be opened on this machine.
    """
    found = [
        p for n, camera in enumerate(cameras) for p in camera_problems(camera, f"{path}[{n}]", here=here)
    ]
    uses = Counter(camera.name for camera in cameras)
    seen: set[str] = set()
    for n, camera in enumerate(cameras):
        if uses[camera.name] > 1 and camera.name in seen:
            found.append((f"{path}[{n}].name", f"expected a name of its own, got {camera.name!r} again"))
        seen.add(camera.name)
    return found


def _source_problems(camera: Camera, path: str) -> list[Problem]:
    source = camera.source
    match source:
        case FileSource():
            return _file(source.path, f"{path}.path", "a video file")
        case V4l2Source():
            if not Path(source.device).exists():
                return [(f"{path}.device", f"expected a video device, found nothing at {source.device}")]
        case RtspSource() | MjpegSource():
            if source.password_file:
                return _file(source.password_file, f"{path}.password_file", "a file with the password")
        case ImagesSource():
            return _folder(source.folder, f"{path}.folder")
    return []


def _file(name: str, path: str, what: str) -> list[Problem]:
    if not Path(name).is_file():
        return [(path, f"expected {what}, found nothing at {name}")]
    if not os.access(name, os.R_OK):
        return [(path, f"expected {what}, got one that this user cannot read: {name}")]
    if Path(name).stat().st_size == 0:
        return [(path, f"expected {what}, got an empty one: {name}")]
    return []


def _folder(name: str, path: str) -> list[Problem]:
    try:
        with os.scandir(name) as entries:
            if any(entry.name.lower().endswith(PICTURES) for entry in entries):
                return []
    except OSError as error:
        return [(path, f"expected a folder of pictures: {name}: {error.strerror}")]
    return [(path, f"expected pictures ({', '.join(PICTURES)}), found none in {name}")]
