"""What a model package says of itself: `manifest.json`, as types.

A package is a folder: `manifest.json`, the model file and the labels. The manifest holds everything
that turns a frame into objects, so the same package gives the same numbers wherever it runs. Besides the
model file, which is the reference, it may carry the same model in other forms: its variants.

Decoders are a tagged union by `kind`: adding one is a struct here and a function in
`skerry.inference.decoders`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from skerry.messages import Fraction, Name
from skerry.settings import Positive, Settings

Text = Annotated[str, Meta(min_length=1)]
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_. -]*$(?!\n)", max_length=128)]
"""A file inside the package's folder: no path, so a package cannot reach outside itself."""
Version = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.+-]+$(?!\n)", min_length=1, max_length=64)]
Size = Annotated[int, Meta(ge=1, le=8192)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]


Format = Literal["onnx", "openvino"]
Precision = Literal["fp32", "fp16", "int8"]
RuntimeId = Literal["onnxruntime", "openvino"]

READERS: dict[Format, tuple[RuntimeId, ...]] = {
    "onnx": ("onnxruntime", "openvino"),
    "openvino": ("openvino",),
}
"""Which runtimes read a format."""
REFERENCE = "reference"
"""What the package's own artifact is called among its variants."""


class File(Settings, frozen=True, kw_only=True):
    """A file that belongs to another."""

    file: FileName
    sha256: Sha256


class Artifact(Settings, frozen=True, kw_only=True):
    """The model file."""

    file: FileName = "model.onnx"
    sha256: Sha256
    format: Format = "onnx"
    precision: Precision = "fp32"
    """Of its weights, and of what it computes with where the processor can."""
    weights: File | None = None
    """The second file of OpenVINO's format, which has the first one's name with `.bin` for `.xml`."""

    def __post_init__(self) -> None:
        if self.format == "openvino":
            wanted = f"{self.file.removesuffix('.xml')}.bin"
            if not self.file.endswith(".xml") or self.weights is None or self.weights.file != wanted:
                seen = self.weights.file if self.weights is not None else None
                raise ValueError(
                    f"file: expected NAME.xml with weights NAME.bin for openvino, got {self.file} and {seen}"
                )
        elif self.weights is not None:
            raise ValueError(f"weights: expected none for {self.format}, got {self.weights.file}")


class Input(Settings, frozen=True, kw_only=True):
    """The one input: a frame, `(pixel - mean) / scale` per channel, in the order of `colour`."""

    name: Text
    width: Size
    """Pixels."""
    height: Size
    """Pixels."""
    layout: Literal["nchw", "nhwc"] = "nchw"
    dtype: Literal["float32", "uint8"] = "float32"
    colour: Literal["bgr", "rgb", "gray"] = "bgr"
    resize: Literal["stretch", "letterbox"] = "stretch"
    """`letterbox` keeps the aspect ratio, centred, the rest filled with `pad`."""
    interpolation: Literal["linear", "nearest", "area"] = "linear"
    mean: tuple[float, ...] = (0.0,)
    """Per channel, or one for all; in grey levels, 0 to 255."""
    scale: tuple[float, ...] = (1.0,)
    """Per channel, or one for all; in grey levels, not 0."""
    pad: Annotated[int, Meta(ge=0, le=255)] = 114
    batch: Annotated[int, Meta(ge=1, le=64)] = 1
    """The most frames that the graph takes at once; above 1 its first dimension is dynamic."""

    def __post_init__(self) -> None:
        for field, values in (("mean", self.mean), ("scale", self.scale)):
            if len(values) not in (1, self.channels):
                raise ValueError(f"{field}: expected 1 or {self.channels} numbers, got {len(values)}")
        if 0 in self.scale:
            raise ValueError("scale: expected numbers other than 0, got 0")
        if self.dtype == "uint8" and (set(self.mean) != {0.0} or set(self.scale) != {1.0}):
            raise ValueError("dtype: expected float32 where mean or scale change the pixels, got uint8")

    @property
    def channels(self) -> int:
        return 1 if self.colour == "gray" else 3

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of one frame."""
        if self.layout == "nchw":
            return 1, self.channels, self.height, self.width
        return 1, self.height, self.width, self.channels


class Output(Settings, frozen=True, kw_only=True):
    """One output, for one frame; 0 stands for a dimension that depends on the frame."""

    name: Text
    shape: tuple[Annotated[int, Meta(ge=0)], ...]


class Decoding(Settings, frozen=True, kw_only=True, tag_field="kind"):
    """What every decoder is told."""

    score_threshold: Fraction = 0.4
    """Objects below are not reported."""
    iou_threshold: Fraction = 0.5
    """Of two objects of one class that overlap more than this, the better one stays."""
    max_objects: Annotated[int, Meta(ge=1, le=300)] = 300
    """The best ones stay."""


class Parts(Decoding, frozen=True, kw_only=True, tag="parts"):
    """One output [1, N, 5 + labels + attributes], all activated: cx, cy, w, h as fractions of the input, objectness, p(label) ..., p(attribute) ...; score = objectness * highest p(label)."""  # noqa: E501 - one sentence, shown in the documentation

    attributes: tuple[Name, ...] = ("defect",)


class YoloV5(Decoding, frozen=True, kw_only=True, tag="yolov5"):
    """One output [1, N, 5 + labels], activated: cx, cy, w, h in input pixels, objectness, p(label) ...; score = objectness * highest p(label)."""  # noqa: E501 - one sentence, shown in the documentation


class YoloV8(Decoding, frozen=True, kw_only=True, tag="yolov8"):
    """One output [1, 4 + labels, N], activated: cx, cy, w, h in input pixels, p(label) ...; score = highest p(label)."""  # noqa: E501 - one sentence, shown in the documentation


class FastestDet(Decoding, frozen=True, kw_only=True, tag="fastestdet"):
    """One output [1, 5 + labels, rows, columns]: objectness, box offsets x, y (before tanh), sizes w, h (before sigmoid), p(label) ...; score = objectness^0.6 * highest p(label)^0.4."""  # noqa: E501 - one sentence, shown in the documentation


class UltraFace(Decoding, frozen=True, kw_only=True, tag="ultraface"):
    """Two outputs, activated: [1, N, 1 + labels] scores of background and each label, [1, N, 4] x1, y1, x2, y2 as fractions of the input."""  # noqa: E501 - one sentence, shown in the documentation

    scores: Text = "scores"
    boxes: Text = "boxes"


class Ssd(Decoding, frozen=True, kw_only=True, tag="ssd"):
    """`rows`: one output [1, 1, N, 7] (or [1, N, 7], [N, 7]) of image, class, score, x1, y1, x2, y2 as fractions, ended by a negative image. `pairs`: boxes [1, N, 4] and activated scores [1, N, classes]."""  # noqa: E501 - one sentence, shown in the documentation

    form: Literal["rows", "pairs"] = "rows"
    scores: Text = "scores"
    """Name of the output of scores, where `form` is pairs."""
    boxes: Text = "boxes"
    """Name of the output of boxes, where `form` is pairs."""
    order: Literal["xyxy", "yxyx"] = "xyxy"
    background: bool = True
    """Class 0 is the background and has no label."""


class Classification(Decoding, frozen=True, kw_only=True, tag="classification"):
    """One output [1, labels]: one object, the whole frame, with the best label."""

    activation: Literal["none", "softmax", "sigmoid"] = "softmax"
    """What the graph left to do."""
    background: bool = False
    """Class 0 is the background and has no label."""


Decoder = Parts | YoloV5 | YoloV8 | FastestDet | UltraFace | Ssd | Classification


class Sighting(Settings, frozen=True, kw_only=True):
    """One object in a golden picture, as the package's decoder reports it."""

    label: Text
    score: Fraction
    box: tuple[float, float, float, float]
    """x1, y1, x2, y2 as fractions of the picture."""
    attributes: dict[str, float] = msgspec.field(default_factory=dict)


class GoldenPicture(Settings, frozen=True, kw_only=True):
    """A picture, and what the model sees in it."""

    file: FileName
    """PNG: the same pixels everywhere."""
    sha256: Sha256
    objects: tuple[Sighting, ...] = ()


class Golden(Settings, frozen=True, kw_only=True):
    """What the package answers, through pre-processing, model and decoder: `skerry model golden` writes it.

    A device that answers otherwise does not run the model that was packaged, and does not serve with it.
    """

    pictures: Annotated[tuple[GoldenPicture, ...], Meta(min_length=1, max_length=32)]
    score_tolerance: Fraction = 0.02
    """Largest difference of a score or attribute. A device that computes in 16 bits is within 0.02."""
    box_tolerance: Fraction = 0.01
    """Largest difference of a box's side, as a fraction of the picture."""


class Delta(Settings, frozen=True, kw_only=True):
    """What was measured of a variant when it was built, and how it stands to the reference."""

    runtime: Text
    isa: Text
    """What it computed with: avx512_vnni, avx2, ..."""
    metric: Literal["map", "top1"]
    """mAP50-95 of a detector, top-1 of a classifier."""
    value: Fraction
    delta: Annotated[float, Meta(ge=-1, le=1)]
    """`value` less the reference's: negative is a loss."""


class Variant(Artifact, frozen=True, kw_only=True):
    """The same model in another form: another format, or with fewer bits."""

    name: Name
    """`onnx-int8`, ..."""
    runtimes: tuple[RuntimeId, ...] = ()
    """Those that may load it; empty: all that read its format."""
    golden: Golden | None = None
    """What this form answers; null: what the package's own `golden` says."""
    tolerance: Fraction | None = None
    """Largest difference from the reference's outputs, as a share of the largest value of each; of one that
    has fewer bits. Looked at where there are no golden pictures."""
    measured: tuple[Delta, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name == REFERENCE:
            raise ValueError(f"name: expected another name than that of the artifact, got {self.name}")
        strange = [runtime for runtime in self.runtimes if runtime not in READERS[self.format]]
        if strange:
            readers = ", ".join(READERS[self.format])
            raise ValueError(
                f"runtimes: expected those that read {self.format} ({readers}), got {', '.join(strange)}"
            )


class Budget(Settings, frozen=True, kw_only=True):
    """What the package may cost on a device; what is left out is not looked at."""

    latency_ms: Positive | None = None
    """Median of one frame through pre-processing, model and decoder, in milliseconds."""
    memory_mb: Annotated[int, Meta(ge=1)] | None = None
    """What the process grows by with it, in MiB."""


class SignalBaseline(Settings, frozen=True, kw_only=True):
    """What was seen of one signal when the package was made."""

    counts: Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(min_length=1, max_length=1024)]
    """How often each bin was hit, see `skerry.inference.drift`."""
    furthest: Fraction
    """Jensen-Shannon distance from the others of that window which was furthest from them."""
    windows: Annotated[int, Meta(ge=1)]
    """How many windows had enough values to be compared."""


class Baseline(Settings, frozen=True, kw_only=True):
    """What cameras showed, and what the model made of it, when the package was made."""

    every_s: Positive
    """Seconds between two frames that are looked at."""
    window: Annotated[int, Meta(ge=20, le=10_000)]
    """Frames that are compared at a time."""
    in_a_row: Annotated[int, Meta(ge=1, le=100)]
    """Windows in a row that must be further from the baseline than each of its own."""
    windows: Annotated[int, Meta(ge=1)]
    signals: dict[Name, SignalBaseline]


class Manifest(Settings, frozen=True, kw_only=True):
    """`manifest.json`."""

    schema: Literal[1] = 1
    name: Name
    version: Version
    description: str = ""
    licence: str = ""
    artifact: Artifact
    input: Input
    outputs: Annotated[tuple[Output, ...], Meta(min_length=1)]
    decoder: Decoder
    labels: FileName = "labels.txt"
    golden: Golden | None = None
    budget: Budget = Budget()
    baseline: Baseline | None = None
    variants: Annotated[tuple[Variant, ...], Meta(max_length=16)] = ()
    """The same model in other forms, of which a device takes the fastest that is right there."""

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"variants: expected each name once, got {', '.join(twice)} again")

    @property
    def forms(self) -> tuple[Artifact, ...]:
        """The artifact, and then its variants."""
        return self.artifact, *self.variants


def name_of(form: Artifact) -> str:
    """A variant's name, or `REFERENCE`."""
    return form.name if isinstance(form, Variant) else REFERENCE


def runtimes_of(form: Artifact) -> tuple[RuntimeId, ...]:
    """The runtimes that may load it."""
    return (form.runtimes if isinstance(form, Variant) else ()) or READERS[form.format]


def files_of(form: Artifact) -> tuple[File, ...]:
    """Its files, as they are in the package."""
    first = File(file=form.file, sha256=form.sha256)
    return (first,) if form.weights is None else (first, form.weights)


def encode(manifest: Manifest) -> bytes:
    """The content of `manifest.json`.

    What was added to the format since its first version is left out where it says nothing, so that a
    package without it is also read where it is not known.
    """
    raw = msgspec.to_builtins(manifest)
    if not raw["variants"]:
        del raw["variants"]
    for form in (raw["artifact"], *raw.get("variants", ())):
        for field, usual in (("precision", "fp32"), ("weights", None)):
            if form[field] == usual:
                del form[field]
    return msgspec.json.format(msgspec.json.encode(raw), indent=2) + b"\n"


def misfits(manifest: Manifest, labels: int) -> list[str]:
    """What the decoder cannot make of these outputs with this many labels; empty when they fit."""
    decoder, outputs = manifest.decoder, {o.name: o.shape for o in manifest.outputs}
    match decoder:
        case Parts(attributes=extra):
            wanted = f"5 + {labels} labels + {len(extra)} attributes"
            return _single(outputs, (1, None, 5 + labels + len(extra)), wanted)
        case YoloV5():
            return _single(outputs, (1, None, 5 + labels), f"5 + {labels} labels")
        case YoloV8():
            return _single(outputs, (1, 4 + labels, None), f"4 + {labels} labels")
        case FastestDet():
            return _single(outputs, (1, 5 + labels, None, None), f"5 + {labels} labels")
        case UltraFace(scores=scores, boxes=boxes):
            return _pair(outputs, scores, boxes, 1 + labels, f"background + {labels} labels")
        case Ssd(form="pairs", scores=scores, boxes=boxes, background=background):
            classes = labels + background
            return _pair(outputs, scores, boxes, classes, f"{'background + ' * background}{labels} labels")
        case Ssd():
            return _single(outputs, (7,), "7 numbers a row", tail=True)
        case Classification(background=background):
            wanted = f"{'background + ' * background}{labels} labels"
            return _single(outputs, (1, labels + background), wanted)


Shape = tuple[int, ...]
Wanted = tuple[int | None, ...]


def _single(outputs: dict[str, Shape], wanted: Wanted, why: str, tail: bool = False) -> list[str]:
    if len(outputs) != 1:
        return [f"outputs: expected 1, got {len(outputs)} ({', '.join(outputs)})"]
    name, shape = next(iter(outputs.items()))
    return _shape(name, shape[-1:] if tail else shape, wanted, why)


def _pair(outputs: dict[str, Shape], scores: str, boxes: str, classes: int, why: str) -> list[str]:
    found = []
    for role, name, last, text in (("scores", scores, classes, why), ("boxes", boxes, 4, "4 corners")):
        if name not in outputs:
            found.append(f"decoder.{role}: expected one of {', '.join(outputs)}, got {name!r}")
        else:
            found += _shape(name, outputs[name], (1, None, last), text)
    return found


def _shape(name: str, shape: Shape, wanted: Wanted, why: str) -> list[str]:
    fits = len(shape) == len(wanted) and all(
        w is None or h in (0, w) for w, h in zip(wanted, shape, strict=True)
    )
    if fits:
        return []
    want = ", ".join("N" if w is None else str(w) for w in wanted)
    return [f"output {name!r}: expected [{want}] ({why}), got {list(shape)} (are the labels complete?)"]
