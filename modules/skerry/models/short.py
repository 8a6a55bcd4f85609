"""The short manifest: what an ONNX file does not say of itself, written by a person."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec import Meta

from skerry.errors import ConfigError, PackageError
from skerry.messages import Name
from skerry.models.fold import GraphInput
from skerry.models.manifest import Artifact, Decoder, Input, Manifest, Output, Version, misfits
from skerry.models.package import parse_labels
from skerry.settings import Settings, parse

_CHANNELS = {1, 3}


class ShortInput(Settings, frozen=True, kw_only=True):
    """See `manifest.Input`; what is left out is read from the graph, or has the default there."""

    width: Annotated[int, Meta(ge=1)] | None = None
    height: Annotated[int, Meta(ge=1)] | None = None
    layout: Literal["nchw", "nhwc"] | None = None
    colour: Literal["bgr", "rgb", "gray"] = "bgr"
    resize: Literal["stretch", "letterbox"] = "stretch"
    interpolation: Literal["linear", "nearest", "area"] = "linear"
    mean: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    pad: Annotated[int, Meta(ge=0, le=255)] = 114
    batch: Annotated[int, Meta(ge=1, le=64)] = 1


class Short(Settings, frozen=True, kw_only=True):
    """`sites/models/*.yaml`."""

    name: Name | None = None
    """Default: the ONNX file's name."""
    version: Version = "1"
    description: str = ""
    licence: str = ""
    input: ShortInput = ShortInput()
    decoder: Decoder
    labels: tuple[str, ...] | str = ()
    """The labels, or a file with one a line, relative to this one."""


def read_short(path: Path) -> tuple[Short, dict[str, Any]]:
    """Parse a short manifest; also the plain data, for options of the command line to override.

    Raises:
        ConfigError: with every problem.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the short manifest: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: expected YAML ({str(error).splitlines()[0]})") from error
    return parse(Short, raw, str(path)), raw


def read_labels(path: Path) -> tuple[str, ...]:
    """A labels file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return parse_labels(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected one label a line ({error})") from error


def full_input(short: ShortInput, graph: GraphInput, where: str) -> Input:
    """The input's description, from the graph and the person.

    Raises:
        PackageError: they contradict one another, or leave something open.
    """
    if len(graph.shape) != 4:
        raise PackageError(f"{where}: expected an input of 4 dimensions, got {list(graph.shape)}")
    layout = short.layout or (
        "nhwc" if graph.shape[3] in _CHANNELS and graph.shape[1] not in _CHANNELS else "nchw"
    )
    rows, columns = graph.shape[2:] if layout == "nchw" else graph.shape[1:3]
    for field, given, seen in (("height", short.height, rows), ("width", short.width, columns)):
        if given is None and seen is None:
            raise PackageError(f"{where}: input.{field}: expected pixels, the graph leaves it open (add it)")
        if given is not None and seen is not None and given != seen:
            raise PackageError(f"{where}: input.{field}: expected {seen} as in the graph, got {given}")
    raw = msgspec.to_builtins(short) | {
        "name": graph.name, "layout": layout, "dtype": graph.dtype,
        "height": short.height or rows, "width": short.width or columns,
    }  # fmt: skip
    return parse(Input, raw, f"{where}: input")


def full_manifest(
    short: Short, spec: Input, outputs: dict[str, tuple[int, ...]], labels: tuple[str, ...], sha256: str
) -> Manifest:
    """The package's manifest.

    Raises:
        PackageError: outputs, decoder and labels do not fit; every problem.
    """
    manifest = Manifest(
        name=short.name or "model",
        version=short.version,
        description=short.description,
        licence=short.licence,
        artifact=Artifact(sha256=sha256),
        input=spec,
        outputs=tuple(Output(name=name, shape=shape) for name, shape in outputs.items()),
        decoder=short.decoder,
    )
    found = misfits(manifest, len(labels)) if labels else ["labels: expected some (add --labels FILE)"]
    if found:
        raise PackageError("\n".join(f"{manifest.name}: {text}" for text in found))
    return manifest
