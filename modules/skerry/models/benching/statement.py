"""An attestation: that one package was measured on one class of devices, and what came of it.

An in-toto statement about the digest of a package. It proves what somebody measured and signed, not what
another device of the class will do: see ADR 34.

Source: in-toto Attestation Framework 1.0, "Statement" and "Predicate".
"""

from __future__ import annotations

import hashlib
import math
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from skerry.deploy.devices import Budget, Device
from skerry.errors import ConfigError, PackageError
from skerry.messages import Name
from skerry.models.benching.percentiles import Percentile, percentile
from skerry.models.manifest import Sha256
from skerry.settings import parse_json
from skerry.trust.packages import Attested, Verdict

STATEMENT_TYPE: Literal["https://in-toto.io/Statement/v1"] = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Literal["urn:skerry:device-class-bench:v1"] = "urn:skerry:device-class-bench:v1"
MOST_BYTES = 64 * 1024
"""Of a statement."""
LEAST_S = 600.0
"""How long a scenario is measured. Source: MLPerf Inference rules, single-stream and multi-stream."""
SCENARIOS = ("single-stream", "multi-stream")
Scenario = Literal["single-stream", "multi-stream"]
_OFFERED = 0.95
"""Share of the load that must have been there."""
Share = Annotated[float, Meta(ge=0)]


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """A percentile in milliseconds."""

    value: float | None
    """None: that many were never answered."""
    upper: float | None
    """Upper confidence bound, 99 %; None: too few samples, or it is one that was never answered."""


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """How long something took."""

    samples: Annotated[int, Meta(ge=0)]
    p50: Bound
    p90: Bound
    p95: Bound
    p99: Bound


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured."""

    frame_to_event_ms: Latency
    """From when a camera's frame was taken to when its event was at whoever keeps events."""
    unanswered: Annotated[int, Meta(ge=0)]
    """Frames that no result was seen of. As many of them as would have led to an event, at the share of those
    that were answered, are samples of `frame_to_event_ms` that are infinitely late."""
    p95_by_tenth_ms: tuple[float, float] | None
    """Least and greatest p95 among the tenths of the time, where they have enough samples: how steady the
    machine was."""
    load_frames_per_s: Share
    """Results of all cameras, while that was measured."""
    offered_frames_per_s: Share
    """Frames that the cameras gave meanwhile."""
    frames_per_s: Share
    """Results of all cameras, with sources that wait for nothing but them."""
    session_ms: Latency
    """Inside the model's session, in the pipeline."""
    model_ms: Latency
    """Pre-processing, session and decoder of one frame, in a process that does nothing else."""
    memory_mib: Annotated[int, Meta(ge=0)]
    """Peak of what inference had resident (VmHWM)."""
    start_s: Share
    """From the start of the processes to the first result; the runtime had been chosen before."""
    first_start_s: Share
    """The same where it had to be chosen, as after an installation."""
    image_mb: Annotated[int, Meta(ge=0)] | None = None
    """As it was said with --image-mb, not measured."""
    power_w: float | None = None
    """Mean while frame_to_event_ms was measured."""
    power_source: str = ""
    """What was read; empty: nothing there to read."""


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """One figure against the budget."""

    figure: str
    """A field of `Budget`."""
    budget: float
    measured: float | None
    verdict: Literal["met", "missed", "not measured"]


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """What it was measured on."""

    cpu: str
    isa: tuple[str, ...]
    """Instruction sets that matter to a model, of those that the kernel lists."""
    architecture: str
    cores: Annotated[int, Meta(ge=1)]
    """That the processes might use."""
    memory_mib: Annotated[int, Meta(ge=1)]
    kernel: str
    python: str
    virtual: bool
    """Whether a hypervisor is below, so that others may share the processor."""
    load_before: Share
    """Processes that wanted to run in the minute before; on an idle machine near 0."""
    runtime: str
    """Distribution and version."""
    form: str
    """Which form of the package ran: the reference, or a variant's name."""
    device: str
    threads: Annotated[int, Meta(ge=1)]
    source: str
    """What the cameras were."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A measurement, whatever it is judged by."""

    scenario: Scenario
    cameras: Annotated[int, Meta(ge=1)]
    fps: float | None
    """Of each; None: the next frame when the result of the one before is there."""
    seconds: Share
    """How long was measured, without the warm-up."""
    figures: Figures
    environment: Environment
    tool: str
    """Name and version."""
    measured_at: Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$(?!\n)")]


class Predicate(Measured, frozen=True, kw_only=True):
    """What is stated of the package."""

    device_class: Name
    device: Device
    """The class, as it was when this was measured."""
    judged: tuple[Judgement, ...]
    verdict: Verdict
    shortfalls: tuple[str, ...] = ()
    """What keeps this from being an attestation of the class; see `shortfalls`."""


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """The package."""

    name: str
    """name@version."""
    digest: dict[Literal["sha256"], Sha256]
    """Of its OCI image manifest."""


class Statement(msgspec.Struct, frozen=True, kw_only=True, rename={"type": "_type"}):
    """An in-toto statement."""

    type: Literal["https://in-toto.io/Statement/v1"] = STATEMENT_TYPE
    subject: Annotated[tuple[Subject, ...], Meta(min_length=1, max_length=1)]
    predicateType: Literal["urn:skerry:device-class-bench:v1"] = PREDICATE_TYPE  # noqa: N815 - in-toto's name
    predicate: Predicate

    @property
    def digest(self) -> str:
        """Of the package: sha256: and 64 hexadecimal digits."""
        return f"sha256:{self.subject[0].digest.get('sha256', '')}"


def latency(samples: list[float], unanswered: int = 0) -> Latency:
    """Percentiles of samples.

    Args:
        samples: milliseconds, in any order.
        unanswered: how many more there are that never ended.
    """
    ordered = sorted(samples) + [math.inf] * unanswered
    if not ordered:
        nothing = Bound(value=None, upper=None)
        return Latency(samples=0, p50=nothing, p90=nothing, p95=nothing, p99=nothing)
    found = [bound(percentile(ordered, q)) for q in (0.5, 0.9, 0.95, 0.99)]
    return Latency(samples=len(ordered), p50=found[0], p90=found[1], p95=found[2], p99=found[3])


def bound(found: Percentile) -> Bound:
    """In milliseconds, to the microsecond; what is infinite is None."""
    return Bound(value=_finite(found.value), upper=_finite(found.upper))


def _finite(value: float | None) -> float | None:
    return round(value, 3) if value is not None and math.isfinite(value) else None


def judge(figures: Figures, budget: Budget) -> tuple[Judgement, ...]:
    """Each figure of a budget against what was measured.

    A latency that has no bound is missed: too few answers prove nothing. Image and power are judged where
    they are known.
    """
    seen: tuple[tuple[str, float | None, bool], ...] = (
        ("p95_ms", figures.frame_to_event_ms.p95.upper, True),
        ("frames_per_s", figures.frames_per_s, True),
        ("memory_mib", figures.memory_mib, True),
        ("start_s", figures.start_s, True),
        ("image_mb", figures.image_mb, False),
        ("power_w", figures.power_w, False),
    )
    return tuple(_judged(name, value, needed, budget) for name, value, needed in seen)


def _judged(name: str, value: float | None, needed: bool, budget: Budget) -> Judgement:
    limit = float(getattr(budget, name))
    verdict: Literal["met", "missed", "not measured"]
    if value is None:
        verdict = "missed" if needed else "not measured"
    elif name == "frames_per_s":
        verdict = "met" if value >= limit else "missed"
    else:
        verdict = "met" if value <= limit else "missed"
    measured = None if value is None else float(value)
    return Judgement(figure=name, budget=limit, measured=measured, verdict=verdict)


def verdict_of(judged: tuple[Judgement, ...]) -> Verdict:
    """Whether the budget was met."""
    return "missed" if any(each.verdict == "missed" for each in judged) else "met"


def shortfalls(measured: Measured, device: Device) -> tuple[str, ...]:
    """Why this is no attestation of its class, whatever its figures; empty when it is one."""
    env = measured.environment
    found = []
    if measured.seconds < LEAST_S:
        found.append(f"seconds: expected {LEAST_S:g} or more, got {measured.seconds:g}")
    if measured.scenario != "multi-stream":
        found.append(f"scenario: expected multi-stream, the class's load, got {measured.scenario}")
    elif measured.cameras < device.load.cameras or (measured.fps or 0) < device.load.fps:
        found.append(
            f"load: expected {device.load.cameras} cameras x {device.load.fps:g} frames/s, "
            f"got {measured.cameras} x {measured.fps or 0:g}"
        )
    elif measured.figures.offered_frames_per_s < _OFFERED * device.load.cameras * device.load.fps:
        found.append(
            f"load: expected cameras that give {device.load.cameras * device.load.fps:g} frames/s, "
            f"got {measured.figures.offered_frames_per_s:g}"
        )
    if env.architecture != device.architecture:
        found.append(f"architecture: expected {device.architecture}, got {env.architecture}")
    if env.cores > device.cores:
        found.append(f"cores: expected at most {device.cores}, got {env.cores}")
    return tuple(found)


def make(title: str, digest: str, measured: Measured, device_class: str, device: Device) -> Statement:
    """A statement about a package.

    Args:
        title: name@version.
        digest: sha256: and 64 hexadecimal digits.
        measured: what to judge and to state.
        device_class: name of the class.
        device: what it is.
    """
    judged = judge(measured.figures, device.budget)
    predicate = Predicate(
        **{name: getattr(measured, name) for name in Measured.__struct_fields__},
        device_class=device_class,
        device=device,
        judged=judged,
        verdict=verdict_of(judged),
        shortfalls=shortfalls(measured, device),
    )
    subject = Subject(name=title, digest={"sha256": digest.removeprefix("sha256:")})
    return Statement(subject=(subject,), predicate=predicate)


def encode(statement: Statement) -> bytes:
    """The statement's one form: its digest is that of these bytes."""
    return msgspec.json.encode(statement, order="sorted") + b"\n"


def read(raw: bytes, where: str) -> Statement:
    """A statement that says what follows from its figures.

    Args:
        raw: its bytes.
        where: names it in messages.

    Raises:
        PackageError: it is none, or its verdict is not that of its figures.
    """
    if len(raw) > MOST_BYTES:
        raise PackageError(f"{where}: expected at most {MOST_BYTES} bytes, got {len(raw)}")
    try:
        statement = parse_json(Statement, raw, where)
    except ConfigError as error:
        raise PackageError("\n".join(error.problems)) from error
    predicate = statement.predicate
    judged = judge(predicate.figures, predicate.device.budget)
    for field, wanted, said in (
        ("verdict", verdict_of(judged), predicate.verdict),
        ("judged", judged, predicate.judged),
        ("shortfalls", shortfalls(predicate, predicate.device), predicate.shortfalls),
    ):
        if wanted != said:
            raise PackageError(
                f"{where}: $.predicate.{field}: expected what follows from its figures, got something else "
                "(measure again)"
            )
    return statement


def summary(statement: Statement, raw: bytes) -> Attested:
    """What is signed of a statement.

    Args:
        statement: of `raw`.
        raw: its bytes, which the signature names.
    """
    predicate = statement.predicate
    upper = predicate.figures.frame_to_event_ms.p95.upper
    return Attested(
        device_class=predicate.device_class,
        statement=f"sha256:{hashlib.sha256(raw).hexdigest()}",
        verdict=predicate.verdict,
        p95_us=None if upper is None else round(upper * 1000),
        memory_mib=predicate.figures.memory_mib,
    )


def objections(
    statement: Statement, *, digest: str, classes: tuple[str, ...], known: dict[str, Device]
) -> tuple[str, ...]:
    """Why a statement is not to be signed with a package, though it is one; empty when it is.

    Args:
        statement: read.
        digest: of the package.
        classes: that the package is for; empty is any.
        known: classes of devices, as they are now.
    """
    predicate = statement.predicate
    name = predicate.device_class
    found = []
    if statement.digest != digest:
        found.append(f"subject: expected {digest[:23]}, this package, got {statement.digest[:23]}")
    if classes and name not in classes:
        found.append(f"device_class: expected one that the package is for ({', '.join(classes)}), got {name}")
    if name in known and known[name] != predicate.device:
        found.append(f"device: expected class {name} as it is now, got another (measure again)")
    return tuple(found)
