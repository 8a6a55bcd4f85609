"""Labelled folders: COCO, Pascal VOC, and a folder of pictures a label. Build side only.

    COCO    FOLDER/*.json with images, annotations, categories; pictures beside it or in a folder below
    VOC     FOLDER/Annotations/*.xml and FOLDER/JPEGImages
    folders FOLDER/LABEL/*.jpg: one label a picture, for classifiers

Source: cocodataset.org/#format-data; The PASCAL VOC development kit, section 8.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET  # expat 2.4.1 and later bound what entities can grow to

from skerry.errors import ConfigError
from skerry.models.evaluation import Truth

SUGGESTED = "suggested"
"""In the `info` of COCO annotations: a model made them, and nobody has corrected them yet."""
PICTURES = (".jpg", ".jpeg", ".png", ".bmp")


@dataclass(frozen=True)
class Labelled:
    """A picture and what is in it."""

    path: Path
    truths: tuple[Truth, ...]
    """Of a picture that has one label: one that fills it."""


@dataclass(frozen=True)
class Dataset:
    """A labelled folder."""

    form: str
    """coco, voc or folders."""
    pictures: tuple[Labelled, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label that is in it."""
        return tuple(sorted({truth.label for picture in self.pictures for truth in picture.truths}))


def read(folder: Path) -> Dataset:
    """Read a labelled folder, whichever form it has.

    Raises:
        ConfigError: it has none of them, or what it says is wrong, with the file and the place.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: expected a folder of labelled pictures, found none")
    if (folder / "Annotations").is_dir():
        pictures = tuple(_voc(folder))
        form = "voc"
    elif files := sorted(folder.glob("*.json")):
        if len(files) > 1:
            names = ", ".join(path.name for path in files)
            raise ConfigError(f"{folder}: expected one file of annotations, got {names}")
        pictures, form = tuple(_coco(files[0])), "coco"
    else:
        pictures, form = tuple(_folders(folder)), "folders"
    if not pictures:
        raise ConfigError(
            f"{folder}: expected COCO (*.json), VOC (Annotations/) or a folder a label, found none"
        )
    return Dataset(form, pictures)


def _coco(path: Path) -> Iterator[Labelled]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        names = {category["id"]: str(category["name"]) for category in raw["categories"]}
        truths: dict[Any, list[Truth]] = {}
        sizes = {image["id"]: (float(image["width"]), float(image["height"])) for image in raw["images"]}
        for each in raw["annotations"]:
            width, height = sizes[each["image_id"]]
            x, y, w, h = each["bbox"]
            box = (x / width, y / height, (x + w) / width, (y + h) / height)
            said = Truth(names[each["category_id"]], box, bool(each.get("iscrowd", 0)))
            truths.setdefault(each["image_id"], []).append(said)
        images = [(image["id"], str(image["file_name"])) for image in raw["images"]]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: expected COCO annotations ({error})") from error
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise ConfigError(f"{path}: expected COCO annotations, missing or wrong: {error}") from error
    if isinstance(info := raw.get("info"), dict) and info.get(SUGGESTED):
        wanted = "expected annotations that somebody has corrected, got a model's suggestions"
        raise ConfigError(f"{path}: {wanted} (correct them, and take `{SUGGESTED}` out of `info`)")
    below = {p.name: p for p in sorted(path.parent.rglob("*")) if p.suffix.lower() in PICTURES}
    for number, name in images:
        file = below.get(Path(name).name)
        if file is None:
            raise ConfigError(f"{path}: expected the picture {name} below {path.parent}, found none")
        yield Labelled(file, tuple(truths.get(number, ())))


def _voc(folder: Path) -> Iterator[Labelled]:
    for path in sorted((folder / "Annotations").glob("*.xml")):
        try:
            root = ET.parse(path).getroot()  # noqa: S314 - see the import
            name = root.findtext("filename") or f"{path.stem}.jpg"
            width, height = (float(root.findtext(f"size/{side}") or 0) for side in ("width", "height"))
            truths = tuple(_voc_truth(each, width, height) for each in root.iter("object"))
        except (ET.ParseError, ValueError, ZeroDivisionError) as error:
            raise ConfigError(f"{path}: expected a VOC annotation ({error})") from error
        file = folder / "JPEGImages" / Path(name).name
        if not file.is_file():
            raise ConfigError(f"{path}: expected the picture {file}, found none")
        yield Labelled(file, truths)


def _voc_truth(each: ET.Element, width: float, height: float) -> Truth:
    """VOC counts pixels from 1, and its last pixel belongs to the box."""
    x1, y1, x2, y2 = (
        float(each.findtext(f"bndbox/{side}") or "nan") for side in ("xmin", "ymin", "xmax", "ymax")
    )
    if not x1 <= x2 or not y1 <= y2:
        raise ValueError("an object without a box")
    box = ((x1 - 1) / width, (y1 - 1) / height, x2 / width, y2 / height)
    return Truth(each.findtext("name") or "", box, each.findtext("difficult") == "1")


def _folders(folder: Path) -> Iterator[Labelled]:
    for below in sorted(path for path in folder.iterdir() if path.is_dir()):
        for path in sorted(below.iterdir()):
            if path.suffix.lower() in PICTURES:
                yield Labelled(path, (Truth(below.name, (0.0, 0.0, 1.0, 1.0)),))
