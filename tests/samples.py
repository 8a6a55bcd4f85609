"""One valid message for every channel."""

from typing import Any

import msgspec

from skerry import channels as c
from skerry import messages as m

WHEN = "2026-03-01T12:00:00.000Z"

EVENT = m.Event(
    id="e1-1", source="/skerry/test/decision", type="io.skerry.line", time=WHEN, subject="gate/line",
    lane="event", epoch="e1", seq=1, bootid="b1", monotonic=5, data={"count": 3, "label": "bolt"},
)  # fmt: skip

RAW = msgspec.Raw(msgspec.json.encode(EVENT))

DETECTION = m.Detection(label="bolt", score=0.5, box=(0.1, 0.2, 0.3, 0.4), attributes={"defect": 0.9})

SAMPLES: dict[str, Any] = {
    "frames": m.FrameRef(
        camera="gate", number=7, time=WHEN, captured_ns=1, media_ns=2, ring="gate.ring", slot=3,
        generation=4, width=640, height=480,
    ),
    "detections": m.Detections(
        camera="gate", number=7, sequence=7, status="ok", time=WHEN, captured_ns=1, media_ns=2,
        inferred_ns=3, width=640, height=480, model="parts@1", objects=(DETECTION,),
    ),
    "events": m.Submission(producer="decision", epoch="e1", oldest=1, events=(EVENT,)),
    "accepted": m.Accepted(producer="decision", epoch="e1", seq=1),
    "outbound": m.Outbound(store="s1", lane="event", first=1, last=1, events=(RAW,)),
    "receipts": m.Receipt(store="s1", upto=1, refused=(m.Refusal(1, "too large"),)),
    "status": m.Status(module="decision", kind="decision", state="ready", time=WHEN, pid=1),
    "cameras": m.CameraStatus(camera="gate", state="live", captured=7, time=WHEN),
    "metrics": m.Metrics(
        module="decision", kind="decision", uptime_s=1.0, rss_mb=30.0, cpu_s=0.5, counters={"a_total": 2},
        latency_ms={"decide": m.Quantiles(count=1, p50=1.0, p95=1.0, p99=1.0, max=1.0)},
    ),
    "delivered": m.Delivered(module="uplink", events=(RAW,)),
    "inventory": m.Inventory(
        module="inference", kind="inference", version="0.1.0", python="3.11.7",
        device=m.Device(machine="aarch64", processor="Cortex-A76", cores=4, memory_mb=8000),
        settings={"log_level": "info"}, runtimes={"onnxruntime": "1.20.0"},
        models=(m.ModelInUse(model="parts@1", digest="ab12", runtime="onnxruntime/cpu", cameras=("gate",)),),
    ),
    "desired": m.Desired(module="capture", version="twin/7", digest="0123", patch={"log_level": "debug"}),
    "reported": m.Reported(
        module="inference", version="twin/7", digest="0123", state="applied", restart=("models.0.package",)
    ),
    "commands": m.Command(
        module="capture", id="1", name="snapshot", arguments={"camera": "gate"}, timeout_s=5.0
    ),
    "answers": m.Answer(module="capture", id="1", status=200, body={"width": 640}),
    "offers": m.Offer(
        module="inference",
        models=(m.OfferedModel(slot="gate", model="parts@1.1.0", digest="a" * 64, attempt=1),),
    ),
    "activations": m.Activations(
        module="inference",
        slots=(
            m.SlotUse(
                slot="gate", model="parts@1.0.0", offered="a" * 64, attempt=1, step="refused",
                reason="on a test picture: numbers that are not finite", final=True,
            ),
        ),
    ),
}  # fmt: skip


def key_of(channel: c.Channel[Any]) -> str:
    """A key for a channel that has one."""
    return "one" if channel.key else ""


def metrics(number: float, module: str = "numbers") -> m.Metrics:
    """A message that carries a number."""
    return m.Metrics(module=module, kind="test", uptime_s=number, rss_mb=0.0, cpu_s=0.0)
