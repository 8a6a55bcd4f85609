"""Settings of the inference module."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from skerry.messages import NAME, Fraction, Name
from skerry.settings import LIVE, RESTART, ModuleSettings, Positive, Settings

NAME_OR_NONE = rf"^$(?!\n)|{NAME}"
RuntimeName = Literal["auto", "onnxruntime", "openvino"]
Precision = Literal["auto", "fp32", "fp16", "int8"]
Why = Literal["drift", "low_score"]
Device = Literal["cpu", "cuda", "tensorrt", "openvino", "gpu", "npu"]

DEVICES: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("cpu", "cuda", "tensorrt", "openvino"),
    "openvino": ("cpu", "gpu", "npu"),
}
"""What each runtime can run on. For ONNX Runtime these are its execution providers."""


class BatchSettings(Settings, frozen=True, kw_only=True):
    """Frames of several cameras in one run of the session; only for a package with `input.batch` above 1."""

    max: Annotated[int, Meta(ge=1, le=64)] = 1
    """Frames in one run at most, of as many cameras. 1: no batching."""
    deadline_ms: Annotated[float, Meta(ge=0, le=1000)] = 5.0
    """How long the first frame waits for the others."""


class ExchangeSettings(Settings, frozen=True, kw_only=True):
    """How a model is exchanged for another while it serves."""

    memory: Literal["keep", "unload"] = "keep"
    """`keep`: the old model serves until the new one has proved itself, which takes memory for both.
    `unload`: it goes first, and frames that come meanwhile are dropped as `exchange`."""
    labels: tuple[str, ...] | None = None
    """Labels that a new package must have; null: those of the one that serves, and its attributes."""
    prove_s: Positive = 300.0
    """A package that has not got through its checks after so long is refused."""
    latency_ms: Positive | None = None
    """What a frame may take (median), in milliseconds, besides what the package's own budget says."""
    shadow_frames: Annotated[int, Meta(ge=0, le=10000)] = 30
    """Live frames on which the new model is compared with the one that serves before it serves; 0: none."""
    shadow_s: Positive = 30.0
    """Where fewer frames come within this, they will do."""
    shadow_share: Annotated[float, Meta(gt=0, le=1)] = 0.25
    """Of one core, for the model that only looks on, and while it is checked before."""
    least_agreement: Fraction = 0.5
    """Objects that both models see, as a share of those that one of them sees; 0 asks for none."""
    probation_s: Annotated[float, Meta(ge=0)] = 30.0
    """How long the new model is watched while it serves, and the old one kept to go back to."""
    growth_mb_per_1000: Positive | None = 10.0
    """MiB that the process may grow by in 1000 results of the new model, while it is watched; null: any. From
    16 MiB on, and 40 results after the first 20, a leak is told from what only grows once."""
    force: Annotated[str, Meta(pattern=r"^([0-9a-f]{8,64})?$(?!\n)")] = ""
    """Digest, or its first digits, of a package that failed here and is to be tried all the same."""


class SamplesSettings(Settings, frozen=True, kw_only=True):
    """Pictures that are kept on the device for somebody to label. They leave it when somebody fetches them.

    Only of cameras whose `snapshots` is `blurred` or `allowed`, and with their masks. Nothing from outside
    changes these settings: they count as deployed.
    """

    when: Annotated[tuple[Why, ...], Meta(min_length=1)]
    """`drift`: while something of that camera drifts. `low_score`: the model saw an object with a score below
    `low_score`."""
    privacy: Literal["crop", "blur", "full"] = "crop"
    """`crop`: the objects, and one colour in the place of everything else. `blur`: all of it, but details of
    the objects alone. `full`: the picture. A camera that allows blurred snapshots has no details in any of
    them."""
    conceal: tuple[str, ...] = ()
    """Labels of objects whose details are not kept, whatever `privacy` says."""
    low_score: Fraction | None = None
    """null: halfway from the package's own threshold to 1."""
    per_hour: Annotated[float, Meta(gt=0, le=3600)] = 6.0
    """Of one camera and for one reason; evenly."""
    keep_bytes: Annotated[int, Meta(ge=64 * 1024)] = 64 * 1024 * 1024
    """The oldest go when there are more."""
    keep_s: Positive = 1_209_600.0
    """None is kept for longer, two weeks by default."""


class ModelUse(Settings, frozen=True, kw_only=True):
    """A model and the cameras it looks at."""

    package: Annotated[str, Meta(min_length=1), LIVE]
    """Folder of the package; where there is a `slot`, of the one that serves while the store has none."""
    slot: Annotated[str, Meta(pattern=NAME_OR_NONE)] = ""
    """Slot of the model store that the updater keeps a package in for this model; empty: `package` it is."""
    cameras: tuple[Name, ...] = ()
    """Empty: every camera that no other model names."""
    runtime: Annotated[RuntimeName, LIVE] = "auto"
    """`auto` measures what is installed on this device, once, and takes the fastest."""
    precision: Annotated[Precision, LIVE] = "auto"
    """Which forms of the package may serve; `auto`: of a named runtime those in 32 bits where it has them,
    else whichever is fastest and right here."""
    device: Annotated[Device, RESTART] = "cpu"
    """What it runs on; `auto` chooses among the runtimes that have it."""
    threads: Annotated[Annotated[int, Meta(ge=1, le=256)] | None, LIVE] = None
    """Threads of one run on the CPU. null: half of the cores this process may use, at least one."""
    score_threshold: Annotated[Fraction | None, LIVE] = None
    """In place of the package's own."""
    batch: Annotated[BatchSettings, RESTART] = BatchSettings()
    """Frames of several cameras in one run."""
    exchange: Annotated[ExchangeSettings, LIVE] = ExchangeSettings()
    """How it is exchanged for another, by a change of `package`, `runtime`, `precision` or `threads`."""
    samples: SamplesSettings | None = None
    """Which pictures are kept for somebody to label; null: none."""
    failures_before_recreate: Annotated[int, Meta(ge=1)] = 3
    """After this many failures in a row the module is degraded and makes the session anew."""

    def __post_init__(self) -> None:
        names = DEVICES if self.runtime == "auto" else {self.runtime: DEVICES[self.runtime]}
        known = [device for devices in names.values() for device in devices]
        if self.device not in known:
            raise ValueError(
                f"device: expected one of {', '.join(known)} with runtime {self.runtime}, got {self.device}"
            )


class InferenceSettings(ModuleSettings, frozen=True, kw_only=True):
    """`SKERRY_SETTINGS` of `python -m skerry.inference`."""

    frames: str
    """Folder of the frame store."""
    models: Annotated[tuple[ModelUse, ...], Meta(min_length=1)]
    store: str = ""
    """Folder of the model store, which is only read; only where a model has a slot."""
    cache: str = ""
    """Folder that remembers measurements and compiled models; empty: `cache` in the state folder."""
    snapshots: dict[Name, Literal["blurred", "allowed"]] = msgspec.field(default_factory=dict)
    """What may be kept of a camera, see `samples`: its own setting. Nothing of one that is not named, and
    what was kept of it goes at the start."""
    retry_s: Positive = 0.5
    """Before a failing session is made anew; doubles up to 30 s while it goes on failing."""

    def __post_init__(self) -> None:
        slots = [use.slot for use in self.models if use.slot]
        again = sorted({slot for slot in slots if slots.count(slot) > 1})
        if again:
            raise ValueError(f"models: expected a slot for one model only, got {again[0]} for several")
        seen: dict[str, int] = {}
        for n, use in enumerate(self.models):
            for camera in use.cameras or ("",):
                if camera in seen:
                    what = f"camera {camera!r}" if camera else "every other camera"
                    raise ValueError(
                        f"models: expected one model for {what}, got models[{seen[camera]}] and models[{n}]"
                    )
                seen[camera] = n
