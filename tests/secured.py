"""A site on a secured bus, and its rules as a person would write them down."""

from __future__ import annotations

from pathlib import Path

from needs import ROOT
from skerry.deploy.plan import Place, Plan, plan
from skerry.deploy.site import Site, load_site
from skerry.settings import BusSettings

SITE = f"""
site: gate2
cameras:
  - {{name: gate, source: {{kind: synthetic, scene: belt, seed: 1, fps: 10, width: 320, height: 240}}}}
  - {{name: hall, source: {{kind: synthetic, scene: belt, seed: 2, fps: 10, width: 320, height: 240}}}}
captures: {{capture-gate: [gate], capture-hall: [hall]}}
models:
  - package: {ROOT / "models" / "parts"}
"""

CHANNELS_OF = {
    "capture": (
        {"frames", "cameras", "status", "metrics", "inventory", "reported", "answers"},
        {"detections", "status", "desired", "commands"},
    ),
    "inference": (
        {"detections", "activations", "status", "metrics", "inventory", "reported", "answers"},
        {"frames", "cameras", "offers", "desired", "commands"},
    ),
    "decision": (
        {"events", "status", "metrics", "inventory", "reported", "answers"},
        {"detections", "accepted", "desired", "commands"},
    ),
    "buffer": (
        {"accepted", "outbound", "status", "metrics", "inventory", "reported", "answers"},
        {"events", "receipts", "status", "desired", "commands"},
    ),
    "uplink": (
        {"receipts", "delivered", "desired", "commands"}
        | {"status", "metrics", "inventory", "reported", "answers"},
        {"outbound", "status", "metrics", "inventory", "reported", "answers", "desired", "commands"},
    ),
    "updater": (
        {"offers", "status", "metrics", "inventory", "reported", "answers"},
        {"activations", "desired", "commands"},
    ),
}  # fmt: skip
"""Kind of module to the channels that it writes and reads."""

MODULES = ("capture-gate", "capture-hall", "inference", "decision", "buffer", "uplink")


def expected(site: str) -> dict[str, tuple[set[str], set[str]]]:
    """Who may write and read what at the site above, under another name."""
    both, everyone = ("gate", "hall"), MODULES
    own = ("status", "metrics", "inventory", "reported", "answers")
    mine = ("desired", "commands")
    fed = ["status/inference", "status/decision"]
    table: dict[str, tuple[list[str], list[str]]] = {
        "capture-gate": (["frames/gate", "cameras/gate"], ["detections/gate", *fed]),
        "capture-hall": (["frames/hall", "cameras/hall"], ["detections/hall", *fed]),
        "inference": (
            [f"detections/{c}" for c in both],
            [f"{x}/{c}" for c in both for x in ("frames", "cameras")],
        ),
        "decision": (["events/decision"], [*(f"detections/{c}" for c in both), "accepted/decision"]),
        "buffer": (
            ["accepted/decision", "outbound/uplink"],
            ["events/decision", "receipts/uplink", "status/uplink"],
        ),
        "uplink": (
            ["receipts/uplink", "delivered/uplink", *(f"{x}/{m}" for m in everyone for x in mine)],
            [
                "outbound/uplink", "metrics/buffer",
                *(f"{x}/{m}" for m in everyone for x in ("status", "inventory", "reported", "answers")),
            ],
        ),
    }  # fmt: skip
    prefix = f"skerry/{site}/"
    found = {
        name: (
            {prefix + topic for topic in [*writes, *(f"{x}/{name}" for x in own)]},
            {prefix + topic for topic in [*reads, *(f"{x}/{name}" for x in mine)]},
        )
        for name, (writes, reads) in table.items()
    }
    return found | {name: (set(), {f"{prefix}#"}) for name in ("observer", "operator")}


def load(folder: Path, text: str = SITE) -> Site:
    """The site, read from a file in this folder."""
    path = folder / "site.yaml"
    path.write_text(text, encoding="utf-8")
    return load_site(path)


def two_captures(folder: Path) -> Plan:
    """The plan of the site above."""
    place = Place(state="/state", frames="/frames", output="/output", bus=BusSettings())
    return plan(load(folder), place)
