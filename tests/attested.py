"""Measurements and attestations in the tests, without measuring."""

import copy
from typing import Any

import msgspec
from msgspec.structs import replace

from skerry.deploy.devices import DEVICES, Device
from skerry.models.benching import statement
from skerry.models.benching.statement import Environment, Figures, Measured, Statement

GATEWAY = "amd64-gateway"
DIGEST = f"sha256:{7:064x}"


def figures(**said: Any) -> Figures:
    """As a gateway has them that keeps its budget."""
    samples = [10.0 + n / 100 for n in range(1000)]
    return replace(
        Figures(
            frame_to_event_ms=statement.latency(samples),
            unanswered=0,
            p95_by_tenth_ms=(18.0, 22.0),
            load_frames_per_s=30.0,
            offered_frames_per_s=30.0,
            frames_per_s=110.0,
            session_ms=statement.latency(samples),
            model_ms=statement.latency(samples),
            memory_mib=130,
            start_s=1.5,
            first_start_s=3.0,
        ),
        **said,
    )


def measured(device: Device = DEVICES[GATEWAY], **said: Any) -> Measured:
    environment = Environment(
        cpu="a processor", isa=("avx2",), architecture=device.architecture, cores=device.cores,
        memory_mib=8000, kernel="Linux 6", python="3.11", virtual=False, load_before=0.0,
        runtime="onnxruntime 1", form="reference", device="cpu", threads=2, source="the belt",
    )  # fmt: skip
    return replace(
        Measured(
            scenario="multi-stream", cameras=device.load.cameras, fps=device.load.fps, seconds=600.0,
            figures=figures(), environment=environment, tool="skerry 0", measured_at="2026-11-21T12:00:00Z",
        ),
        **said,
    )  # fmt: skip


def attestation(
    digest: str = DIGEST, device_class: str = GATEWAY, device: Device | None = None, **said: Any
) -> Statement:
    its = device or DEVICES[device_class]
    return statement.make("parts@1.0.0", digest, measured(its, **said), device_class, its)


def changed(made: Statement, path: str, value: Any) -> bytes:
    """The statement with one value changed by hand."""
    raw = copy.deepcopy(msgspec.to_builtins(made))
    *names, last = path.split(".")
    at = raw
    for name in names:
        at = at[int(name) if name.isdecimal() else name]
    at[last] = value
    return msgspec.json.encode(raw)
