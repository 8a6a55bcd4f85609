"""What a build did, as types: `build.json` in the package, and what evidence is made from.

Nothing in it depends on when, where or how fast the build ran: the same spec, files and tools give the same
record, byte for byte.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from skerry.models.manifest import FileName, Format, Precision, Sha256, Text, Version
from skerry.settings import Settings, parse_json

RECORD = "build.json"
"""The record's file in a package."""

Count = Annotated[int, Meta(ge=0)]


class Content(Settings, frozen=True, kw_only=True):
    """Some bytes that went into a step, or came out."""

    name: Text
    """A file's name without a path, or what it is: `calibration`."""
    sha256: Sha256
    """Of a folder: see `DataSet.sha256`."""


class Source(Settings, frozen=True, kw_only=True):
    """Where the model came from."""

    form: Literal["onnx", "python"]
    """An ONNX file, or a hook that wrote one."""
    file: Text
    """Name of the ONNX file, or of the hook's."""
    sha256: Sha256
    """Of that file."""
    function: str = ""
    """In the hook's file."""
    onnx_sha256: Sha256
    """Of the ONNX file, before anything was done to it but for remarks that a hook left in it."""


class DataSet(Settings, frozen=True, kw_only=True):
    """A folder of pictures: labelled, or only to calibrate on."""

    role: Literal["calibration", "evaluation", "golden"]
    form: Literal["coco", "voc", "folders", "pictures"]
    sha256: Sha256
    """Of the sorted lines `SHA256  NAME` of its files, annotations too, as sha256sum writes them."""
    files: Count
    """In that list."""
    pictures: Count
    """That were used."""


class Step(Settings, frozen=True, kw_only=True):
    """Something that was done, in order."""

    name: Text
    """`export`, `clean`, `onnx-int8`, ..., `golden`, `evaluate`."""
    tool: Text
    """Distribution that did it, e.g. onnxruntime."""
    version: Text
    parameters: dict[str, str] = msgspec.field(default_factory=dict)
    inputs: tuple[Content, ...] = ()
    outputs: tuple[Content, ...] = ()
    said: tuple[str, ...] = ()
    """What was changed, and what the gate found, in words."""


class Figure(Settings, frozen=True, kw_only=True):
    """How good an artifact is on the evaluation set, on one runtime and instruction set."""

    runtime: Text
    version: Text
    """Of the runtime."""
    isa: Text
    """What it computed with: `avx512_vnni`, `avx2`, ...; `emulated` stands before one that was not there."""
    pictures: Count
    metric: Literal["map", "top1"]
    """mAP50-95 of a detector, top-1 of a classifier."""
    value: float
    delta: float
    """`value` less that of the reference on the same runtime and instruction set: negative is a loss."""
    map50: float | None = None
    right: Count | None = None
    """At the operating threshold, of a detector."""
    wrong: Count | None = None
    missed: Count | None = None


class ArtifactRecord(Settings, frozen=True, kw_only=True):
    """An artifact that was asked for, and what came of it."""

    name: Text
    """`onnx-fp32`, `openvino-int8`, ..."""
    format: Format
    precision: Precision
    status: Literal["reference", "shipped", "refused"]
    reason: str = ""
    """Why it was refused."""
    files: tuple[Content, ...] = ()
    """In the package; of a refused one none."""
    bytes: Count = 0
    figures: tuple[Figure, ...] = ()


class BuildRecord(Settings, frozen=True, kw_only=True):
    """`build.json`."""

    schema: Literal[1] = 1
    name: Text
    version: Version
    security_epoch: Count = 0
    licence: str = ""
    spec: Content
    """The file that asked for the build."""
    source: Source
    data: tuple[DataSet, ...] = ()
    steps: tuple[Step, ...] = ()
    artifacts: tuple[ArtifactRecord, ...] = ()
    labels: FileName = "labels.txt"
    tools: dict[str, str] = msgspec.field(default_factory=dict)
    """Distribution to version, of all that took part; `python` too."""

    def data_of(self, role: str) -> DataSet | None:
        """The data set of a role."""
        return next((each for each in self.data if each.role == role), None)


def encode(record: BuildRecord) -> bytes:
    """The file's content."""
    return msgspec.json.format(msgspec.json.encode(record, order="sorted"), indent=2) + b"\n"


def read(folder: Path) -> BuildRecord | None:
    """The record in a package; None where it was not built by `skerry model build`.

    Raises:
        ConfigError: the file is not one.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    return parse_json(BuildRecord, path.read_bytes(), str(path))
