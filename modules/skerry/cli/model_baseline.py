"""`skerry model baseline`: what a model sees when all is well, in its package for devices to compare with."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from skerry import durable
from skerry.errors import ConfigError
from skerry.models import package as packages

if TYPE_CHECKING:
    from skerry.capture.settings import Camera
    from skerry.inference.drift import Recording, Sample


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
) -> argparse.ArgumentParser:
    """Add the parser of `skerry model baseline`, and return it."""
    parser = commands.add_parser(
        "baseline",
        help="write what a model sees when all is well into its package",
        description="Look at the pictures of a site's camera, one every so many seconds, run the package's "
        "model on them, and write histograms of brightness, sharpness, number, score, size and label of "
        "objects into its manifest. A device compares what it sees with them and reports drift. Show it all "
        "that the model is meant for: each light, each product. Where that takes several cameras, lines or "
        "days, keep a recording of each (histograms, no pictures) and merge them.",
        epilog="examples: skerry model baseline models/parts sites/demo.yaml --seconds 3600; "
        "skerry model baseline models/parts --merge monday.json --merge tuesday.json",
    )
    parser.add_argument(
        "package", type=Path, metavar="PACKAGE", help="the folder; its manifest is written anew"
    )
    parser.add_argument(
        "site", type=Path, nargs="?", metavar="SITE", help="a site file with the camera, or a video"
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FILE",
        help="write the histograms of this recording to a file, and leave the package as it is",
    )
    parser.add_argument(
        "--merge", type=Path, action="append", default=[], metavar="FILE",
        help="recordings that were kept, as one, with what SITE shows if it is given; may be repeated",
    )  # fmt: skip
    parser.add_argument("--camera", default="", metavar="NAME", help="which, where there are several")
    parser.add_argument(
        "--seconds",
        type=float,
        default=3600.0,
        metavar="S",
        help="of the camera's time (default %(default)g)",
    )
    parser.add_argument(
        "--every", type=float, default=1.0, metavar="S", help="between two pictures (default %(default)g)"
    )
    parser.add_argument(
        "--window",
        type=int,
        default=30,
        metavar="N",
        help="pictures compared at a time (default %(default)s)",
    )
    parser.add_argument(
        "--in-a-row", type=int, default=3, metavar="N",
        help="windows beyond all of the baseline's own that are drift (default %(default)s)",
    )  # fmt: skip
    parser.set_defaults(func=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Write the baseline; returns the exit code.

    Raises:
        ConfigError: the site or the package is wrong, or the recording is too short.
    """
    drift: Any = import_module("skerry.inference.drift")
    package = packages.load(arguments.package)
    recording = _recording(arguments, package)
    if arguments.keep is not None:
        durable.replace(arguments.keep, msgspec.json.encode(recording) + b"\n")
        print(f"{arguments.keep}: {recording.samples} pictures in {len(recording.windows)} windows")
        return 0
    found = drift.baseline_of(recording, arguments.in_a_row)
    path = package.folder / packages.MANIFEST
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw["baseline"] = msgspec.to_builtins(found)
    mode = path.stat().st_mode
    durable.replace(path, (json.dumps(raw, indent=2) + "\n").encode())
    path.chmod(mode)  # whoever could read it still can: a container's user, say
    print(f"{path}: {recording.samples} pictures in {found.windows} windows")
    for name, its in found.signals.items():
        alarms = drift.false_alarms(found, name)
        days = found.every_s * found.window / alarms / 86_400
        said = f"furthest window {its.furthest:.3f}  a false alarm in {days:,.0f} days"
        print(f"  {name:12}{sum(its.counts):>8} values  {said}")
    for name in sorted(drift.signals(len(package.labels)).keys() - found.signals.keys()):
        print(f"  {name:12} too few values in too many windows: not watched")
    return 0


def _recording(arguments: argparse.Namespace, package: packages.Package) -> Recording:
    """What the camera shows, and what was kept before."""
    drift: Any = import_module("skerry.inference.drift")
    model = package.manifest.artifact.sha256
    found = [_kept(path, package) for path in arguments.merge]
    if arguments.site is not None:
        found.append(
            drift.recorded(
                _samples(arguments, package),
                package.labels,
                every_s=arguments.every,
                window=arguments.window,
                model=model,
            )
        )
    if not found:
        raise ConfigError("model baseline: expected SITE or --merge FILE, got neither")
    merged: Recording = drift.merged(found)
    return merged


def _kept(path: Path, package: packages.Package) -> Recording:
    """A recording from a file, which is of this package's model.

    Raises:
        ConfigError: it is not.
    """
    kind: Any = import_module("skerry.inference.drift").Recording
    try:
        found: Recording = msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise ConfigError(f"{path}: expected a recording, got {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: expected a recording of `skerry model baseline --keep` ({error})"
        ) from error
    wanted = package.manifest.artifact.sha256
    if (found.model, found.labels) != (wanted, package.labels):
        raise ConfigError(
            f"{path}: expected a recording with the model {wanted[:16]}, got {found.model[:16]}"
        )
    if problem := found.problem():
        raise ConfigError(f"{path}: {problem}")
    return found


def _samples(arguments: argparse.Namespace, package: packages.Package) -> Iterator[Sample]:
    """What the camera shows, measured, one picture every so many seconds."""
    drift: Any = import_module("skerry.inference.drift")
    model_module: Any = import_module("skerry.inference.model")
    feeds: Any = import_module("skerry.capture.feed")
    geometry: Any = import_module("skerry.capture.geometry")
    numpy: Any = import_module("numpy")
    camera = _camera(arguments)
    use_of: Any = import_module("skerry.inference.settings").ModelUse
    use = use_of(package=str(package.folder), runtime="onnxruntime")
    with tempfile.TemporaryDirectory() as cache:
        model = model_module.Model(use, Path(cache), 1.0)
        feed = feeds.open_feed(camera.source, 10.0)
        pixels, next_ns = numpy.empty((0, 0, 3), numpy.uint8), 0
        try:
            while (picture := feed.read()) is not None:
                media_ns = picture.media_ns or 0
                if media_ns > arguments.seconds * 1e9:
                    return
                if media_ns < next_ns:
                    continue
                next_ns += round(arguments.every * 1e9)
                shape = geometry.Geometry.of(camera, picture.width, picture.height, picture.upright)
                if pixels.shape != shape.shape:
                    pixels = numpy.empty(shape.shape, numpy.uint8)
                picture.into(pixels, shape)
                result = model.look(pixels)
                if result.reason:
                    raise ConfigError(f"{package.folder}: the model fails: {result.reason}")
                yield drift.sample(pixels, result.objects, package.labels)
        finally:
            feed.close()


def _camera(arguments: argparse.Namespace) -> Camera:
    """The one camera to look at; a synthetic scene goes on for as long as is asked."""
    load_site: Any = import_module("skerry.deploy.site").load_site
    synthetic: Any = import_module("skerry.capture.settings").SyntheticSource
    cameras = load_site(arguments.site, dict(arguments.arguments)).cameras
    names = ", ".join(camera.name for camera in cameras)
    named = [camera for camera in cameras if arguments.camera in ("", camera.name)]
    if len(named) != 1:
        raise ConfigError(f"--camera: expected one of {names}, got {arguments.camera or 'nothing'}")
    camera: Camera = named[0]
    if isinstance(camera.source, synthetic):
        # Frames that nobody looks at need not be drawn.
        source = msgspec.structs.replace(
            camera.source, fps=1 / arguments.every, seconds=arguments.seconds, pace="fast"
        )
        camera = msgspec.structs.replace(camera, source=source)
    return camera
