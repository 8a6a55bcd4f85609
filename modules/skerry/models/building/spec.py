"""What a build is asked for: `SPEC.yaml`, as types."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import yaml
from msgspec import Meta

from skerry.errors import ConfigError
from skerry.messages import Fraction, Name
from skerry.models.manifest import Budget, Decoder, Format, Precision, Text
from skerry.models.oci import Semver
from skerry.models.short import Short, ShortInput, read_labels
from skerry.settings import Positive, Settings, parse

Kind = Literal["onnx-fp32", "onnx-fp16", "onnx-int8", "openvino-fp16", "openvino-int8"]
RuntimeId = Literal["onnxruntime", "openvino"]
Count = Annotated[int, Meta(ge=0, le=1_000_000)]
Isa = Literal["avx2"]

KINDS: dict[Kind, tuple[Format, Precision]] = {
    "onnx-fp32": ("onnx", "fp32"),
    "onnx-fp16": ("onnx", "fp16"),
    "onnx-int8": ("onnx", "int8"),
    "openvino-fp16": ("openvino", "fp16"),
    "openvino-int8": ("openvino", "int8"),
}
"""Format and precision of what may be asked for, in the order in which it is made."""
REFERENCE_KIND: Kind = "onnx-fp32"
"""What is always made, and what everything else is compared with."""


class From(Settings, frozen=True, kw_only=True):
    """An ONNX file, or a hook that writes one: `def FUNCTION(path, **arguments)`, in a process of its own."""

    onnx: str = ""
    """The file; or else:"""
    python: str = ""
    """The hook's file."""
    function: Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$(?!\n)")] = "export"
    arguments: dict[str, str | int | float | bool] = msgspec.field(default_factory=dict)
    interpreter: str = ""
    """The Python that has what the hook needs, PyTorch for one; empty: this one."""
    timeout_s: Positive = 1800.0

    def __post_init__(self) -> None:
        if bool(self.onnx) == bool(self.python):
            raise ValueError(f"from: expected onnx or python, got {'both' if self.onnx else 'neither'}")

    @property
    def file(self) -> str:
        """The one that is named."""
        return self.onnx or self.python


class Pictures(Settings, frozen=True, kw_only=True):
    """Some pictures of a folder, in the order of their names."""

    folder: Text
    skip: Count = 0
    """So many of the first ones are left out."""
    take: Annotated[int, Meta(ge=1)] | None = None
    """So many; null: all the others."""


class GoldenWish(Settings, frozen=True, kw_only=True):
    """Pictures whose answers are kept in the package."""

    folder: str = ""
    """Empty: pictures of the evaluation set, evenly spread."""
    take: Annotated[int, Meta(ge=1, le=32)] = 4


class Data(Settings, frozen=True, kw_only=True):
    """Pictures. Nothing may be in both of the first two."""

    evaluation: Pictures
    """Labelled: COCO, Pascal VOC, or a folder a label."""
    calibration: Pictures | None = None
    """For whatever is made in int8; labels are not looked at."""
    golden: GoldenWish = GoldenWish()


class Wish(Settings, frozen=True, kw_only=True):
    """An artifact that is asked for."""

    most_loss: Fraction = 0.01
    """Of mAP50-95, or top-1 of a classifier, against the reference on the same runtime; absolute."""
    least: Fraction | None = None
    """mAP50-95 or top-1 that it must have, whatever the reference has."""
    runtimes: tuple[RuntimeId, ...] = ()
    """It must do on these; empty: on all that read it and are installed."""
    recipes: Annotated[int, Meta(ge=1, le=100)] = 100
    """Ways of quantising that are tried at most."""
    through: Literal["auto", "onnx", "nncf"] = "auto"
    """openvino-int8: from the int8 ONNX, or by NNCF; `auto`: by NNCF where it is installed."""


class Pruning(Settings, frozen=True, kw_only=True):
    """Weights that are set to 0 before anything else is made."""

    share: Annotated[float, Meta(gt=0, lt=1)]
    """Of each layer's weights, the smallest ones."""
    most_loss: Fraction = 0.01
    """Of the reference, against the model as it came."""


class BuildSpec(Settings, frozen=True, kw_only=True, rename={"source": "from"}):
    """`SPEC.yaml`. Paths are relative to the file."""

    name: Name
    version: Semver
    security_epoch: Count = 0
    description: str = ""
    licence: str = ""
    source: From
    input: ShortInput = ShortInput()
    decoder: Decoder
    labels: tuple[str, ...] | str
    """The labels, or a file with one a line."""
    data: Data
    artifacts: dict[Kind, Wish] = msgspec.field(default_factory=dict)
    """The reference, onnx-fp32, is always made."""
    when_refused: Literal["fail", "leave_out"] = "fail"
    """What becomes of the build where an artifact is refused; without the reference it always fails."""
    instruction_sets: tuple[Isa, ...] = ()
    """Older processors on which everything must do too: emulated, on few pictures."""
    emulated_pictures: Annotated[int, Meta(ge=1, le=1000)] = 10
    prune: Pruning | None = None
    budget: Budget = Budget()
    baseline: str = ""
    """`manifest.json` of a package whose baseline this one takes over."""

    @property
    def wishes(self) -> dict[Kind, Wish]:
        """In the order in which they are made, the reference first."""
        asked = {**dict.fromkeys([REFERENCE_KIND], Wish()), **self.artifacts}
        return {kind: asked[kind] for kind in KINDS if kind in asked}

    def short(self) -> Short:
        """As a person would have written it for `skerry model import`."""
        return Short(
            name=self.name, version=self.version, description=self.description, licence=self.licence,
            input=self.input, decoder=self.decoder,
        )  # fmt: skip


def read_spec(path: Path) -> tuple[BuildSpec, tuple[str, ...]]:
    """A spec, with every file that it names there, and its labels.

    Raises:
        ConfigError: with every problem.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the spec: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected YAML ({str(error).splitlines()[0]})") from error
    spec = parse(BuildSpec, raw, str(path))
    found = _missing(spec, path.parent) + _contradictions(spec)
    labels: tuple[str, ...] = ()
    try:
        labels = read_labels(path.parent / spec.labels) if isinstance(spec.labels, str) else spec.labels
        if not labels:
            found.append("labels: expected some, got none")
    except ConfigError as error:
        found.append(f"labels: {error}")
    if found:
        raise ConfigError([f"{path}: {text}" for text in found])
    return spec, labels


def _missing(spec: BuildSpec, base: Path) -> list[str]:
    """Files and folders that are not there."""
    files = {"from.onnx" if spec.source.onnx else "from.python": spec.source.file}
    if spec.source.interpreter:
        files["from.interpreter"] = spec.source.interpreter
    if spec.baseline:
        files["baseline"] = spec.baseline
    folders = {"data.evaluation.folder": spec.data.evaluation.folder}
    if spec.data.calibration is not None:
        folders["data.calibration.folder"] = spec.data.calibration.folder
    if spec.data.golden.folder:
        folders["data.golden.folder"] = spec.data.golden.folder
    found = [
        f"{where}: expected a file, got none at {name}"
        for where, name in files.items()
        if not (base / name).is_file()
    ]
    return found + [
        f"{where}: expected a folder, got none at {name}"
        for where, name in folders.items()
        if not (base / name).is_dir()
    ]


def _contradictions(spec: BuildSpec) -> list[str]:
    found = []
    needs = [kind for kind in spec.wishes if KINDS[kind][1] == "int8"]
    if needs and spec.data.calibration is None:
        found.append(f"data.calibration: expected a folder for {', '.join(needs)}, got none")
    for kind, wish in spec.wishes.items():
        if KINDS[kind][0] == "openvino" and "onnxruntime" in wish.runtimes:
            found.append(f"artifacts.{kind}.runtimes: expected openvino, which reads it, got onnxruntime")
    through = spec.wishes.get("openvino-int8", Wish()).through
    if through == "onnx" and "onnx-int8" not in spec.wishes:
        found.append("artifacts.openvino-int8.through: expected artifacts.onnx-int8 too, which it is made of")
    return found
