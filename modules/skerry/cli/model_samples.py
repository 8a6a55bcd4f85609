"""`skerry model samples`: what a device kept for somebody to label; a labelling set of it; away with it."""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerry.errors import ConfigError, Unavailable

if TYPE_CHECKING:
    from skerry.inference.samples import Kept, Shelf

_ANNOTATIONS, _PICTURES, _SHEET = "annotations.json", "pictures", "contact-sheet.jpg"
_TILE, _COLUMNS, _MOST_TILES, _CAPTION = 320, 5, 200, 40


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of `skerry model samples`."""
    parser = commands.add_parser(
        "samples",
        help="pictures that a device kept for somebody to label",
        description="Show what inference kept in its folder of samples (`samples` in its state folder, see "
        "the setting `models.N.samples`), make a labelling set of it (pictures, COCO annotations as the "
        "model suggests them, a contact sheet), or erase it. `skerry model evaluate` reads the set once "
        "somebody has corrected it.",
        epilog="example: skerry model samples /var/lib/skerry/inference/samples --out to-label",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of the samples, or a copy of it")
    parser.add_argument("--out", type=Path, metavar="DATASET", help="folder to make, with the labelling set")
    parser.add_argument("--camera", action="append", default=[], metavar="NAME", help="only of this camera")
    parser.add_argument("--why", action="append", default=[], metavar="WHY", help="only drift, or low_score")
    parser.add_argument(
        "--erase", action="store_true", help="erase them; with --out, after the set was written"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Show, fetch, erase; returns the exit code.

    Raises:
        ConfigError: the folder or an option is wrong.
        Unavailable: something cannot be read or written.
    """
    try:
        samples: Any = import_module("skerry.inference.samples")
    except ModuleNotFoundError as error:
        raise ConfigError(f"model samples needs {error.name} (pip install 'skerry[inference]')") from error
    if not arguments.folder.is_dir():
        raise ConfigError(f"{arguments.folder}: expected a folder of samples, found none")
    shelf: Shelf = samples.Shelf(arguments.folder)
    try:
        found = [each for each in shelf.kept() if _asked(each, arguments)]
        report = _report(found)
        if arguments.out is not None:
            if not found:
                raise ConfigError(f"{arguments.folder}: expected samples, found none that were asked for")
            report |= _export(shelf, found, arguments.out)
        if arguments.erase:
            for each in found:
                shelf.erase(each.name)
            report["erased"] = len(found)
    except OSError as error:
        raise Unavailable(f"{error.filename or arguments.folder}: {error.strerror}") from error
    if arguments.json:
        print(json.dumps(report))
    else:
        _print(report, found, arguments)
    return 0


def _asked(each: Kept, arguments: argparse.Namespace) -> bool:
    cameras, reasons = arguments.camera, arguments.why
    return (not cameras or each.about.camera in cameras) and (not reasons or each.about.trigger in reasons)


def _report(found: Sequence[Kept]) -> dict[str, Any]:
    counts = Counter((each.about.camera, each.about.trigger) for each in found)
    return {
        "samples": len(found),
        "bytes": sum(each.size for each in found),
        "from": found[0].about.time if found else None,
        "until": found[-1].about.time if found else None,
        "next_erased": min((each.about.erase_after for each in found), default=None),
        "of": [{"camera": c, "why": w, "samples": n} for (c, w), n in sorted(counts.items())],
    }


def _print(report: dict[str, Any], found: Sequence[Kept], arguments: argparse.Namespace) -> None:
    print(f"{arguments.folder}: {report['samples']} samples, {report['bytes'] / 1000:.0f} kB")
    if not found:
        return
    print(f"from {report['from']} until {report['until']}; the next goes at {report['next_erased']}")
    for row in report["of"]:
        print(f"  {row['camera']:20} {row['why']:10} {row['samples']:>6}")
    if "out" in report:
        print(f"{report['out']}: {report['pictures']} pictures, {report['suggestions']} suggestions")
        for name in report["damaged"]:
            print(f"  {name}: no picture, left out")
        print(
            f"look at {arguments.out / _SHEET}; correct {arguments.out / _ANNOTATIONS}, and take `suggested`"
        )
        print("out of its `info` when that is done")
    if "erased" in report:
        print(f"erased {report['erased']}")


def _export(shelf: Shelf, found: Sequence[Kept], out: Path) -> dict[str, Any]:
    """Write pictures, annotations and the contact sheet."""
    cv2: Any = import_module("cv2")
    if out.exists():
        raise ConfigError(f"{out}: expected a folder that is not there yet, found one")
    pictures = out / _PICTURES
    pictures.mkdir(parents=True, mode=0o700)
    good, damaged = [], []
    for each in found:
        pixels = cv2.imread(str(shelf.picture(each.name)))
        if pixels is None or pixels.shape[:2] != (each.about.height, each.about.width):
            damaged.append(each.name)
            continue
        shutil.copyfile(shelf.picture(each.name), pictures / f"{each.name}.jpg")
        good.append(each)
    coco = _coco(good)
    (out / _ANNOTATIONS).write_text(json.dumps(coco, indent=1) + "\n", encoding="utf-8")
    shown = good[-_MOST_TILES:]
    cv2.imwrite(str(out / _SHEET), _sheet(pictures, shown), [cv2.IMWRITE_JPEG_QUALITY, 85])
    return {
        "out": str(out), "pictures": len(good), "suggestions": len(coco["annotations"]),
        "damaged": damaged, "on_the_sheet": len(shown),
    }  # fmt: skip


def _coco(found: Sequence[Kept]) -> dict[str, Any]:
    """COCO's object detection format, with what else is known of each picture.

    Source: cocodataset.org/#format-data.
    """
    suggested: str = import_module("skerry.models.datasets").SUGGESTED
    labels = list(dict.fromkeys(label for each in found for label in each.about.labels))
    number = {label: n for n, label in enumerate(labels, 1)}
    models = sorted({each.about.model for each in found})
    images = [
        {
            "id": n, "file_name": f"{_PICTURES}/{each.name}.jpg", "width": each.about.width,
            "height": each.about.height, "date_captured": each.about.time, "camera": each.about.camera,
            "model": each.about.model, "why": each.about.why, "privacy": each.about.privacy,
            "details": each.about.details, "concealed": each.about.concealed,
        }
        for n, each in enumerate(found, 1)
    ]  # fmt: skip
    seen = [(n, one) for n, each in enumerate(found, 1) for one in each.about.objects]
    annotations = [
        {
            "id": n, "image_id": image, "category_id": number[one.label], "bbox": list(one.bbox),
            "area": round(one.bbox[2] * one.bbox[3], 1), "iscrowd": 0, "score": one.score,
        }
        for n, (image, one) in enumerate(seen, 1)
    ]  # fmt: skip
    return {
        "info": {
            "description": f"kept on a device; objects as {', '.join(models)} saw them",
            suggested: True,
        },
        "images": images,
        "annotations": annotations,
        "categories": [{"id": n, "name": label} for label, n in number.items()],
    }


def _sheet(pictures: Path, found: Sequence[Kept]) -> Any:
    """All pictures, small, with what the model saw."""
    numpy: Any = import_module("numpy")
    tiles = list(_tiles(pictures, found))
    columns = min(_COLUMNS, max(math.ceil(math.sqrt(len(tiles))), 1))
    rows = max(math.ceil(len(tiles) / columns), 1)
    height = max((tile.shape[0] for tile in tiles), default=1)
    sheet = numpy.full((rows * height, columns * _TILE, 3), 32, numpy.uint8)
    for n, tile in enumerate(tiles):
        y, x = n // columns * height, n % columns * _TILE
        sheet[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    return sheet


def _tiles(pictures: Path, found: Sequence[Kept]) -> Iterator[Any]:
    cv2: Any = import_module("cv2")
    numpy: Any = import_module("numpy")
    for each in found:
        about = each.about
        pixels = cv2.imread(str(pictures / f"{each.name}.jpg"))
        factor = (_TILE - 4) / max(about.width, about.height)
        size = max(round(about.width * factor), 1), max(round(about.height * factor), 1)
        small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        for one in about.objects:
            x, y, width, height = (side * factor for side in one.bbox)
            corners = (round(x), round(y)), (round(x + width), round(y + height))
            cv2.rectangle(small, *corners, (0, 220, 255), 1)
            _write(
                cv2, small, f"{one.label} {one.score:.2f}", (corners[0][0], max(corners[0][1] - 3, 9)), 0.35
            )
        tile = numpy.full((size[1] + _CAPTION, _TILE, 3), 32, numpy.uint8)
        tile[: small.shape[0], : small.shape[1]] = small
        _write(cv2, tile, f"{about.camera} {about.time[:19]}", (4, size[1] + 14), 0.4)
        _write(cv2, tile, about.why[:48], (4, size[1] + 30), 0.4)
        yield tile


def _write(cv2: Any, pixels: Any, text: str, where: tuple[int, int], size: float) -> None:
    cv2.putText(pixels, text, where, cv2.FONT_HERSHEY_SIMPLEX, size, (255, 255, 255), 1, cv2.LINE_AA)
