"""Every topic of the bus, one line each.

A channel is a topic with a type, and with who writes and who reads it: a broker's access rules are made of
that (`skerry.deploy.acl`), so a module that uses a channel and is not named there hears nothing on a secured
bus. `docs/messages.md`, the JSON Schemas and the AsyncAPI document are generated from `CHANNELS`; run
`make generate` after a change.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar, get_args

from skerry import messages as m

T = TypeVar("T")

MAX_PAYLOAD = 256 * 1024
"""Default bound of a payload, in bytes; what is larger is counted and dropped unread."""

Kind = Literal["capture", "inference", "decision", "buffer", "uplink", "updater"]
"""What a module may be."""
KINDS: tuple[Kind, ...] = get_args(Kind)

Whose = Literal["own", "every", "capture", "inference", "decision", "buffer", "uplink", "updater"]
"""Which keys of a channel: what is the module's own (its name, its link, its cameras), those of every module
of the site, or those of the modules of one kind."""
Parties = Mapping[Kind, Whose | tuple[Whose, ...]]


@dataclass(frozen=True, kw_only=True)
class Channel(Generic[T]):
    """A topic and what it carries.

    `{site}` and at most one more `{key}` in `address` stand for one topic level each.
    """

    name: str
    address: str
    payload: type[T]
    qos: Literal[0, 1]
    retain: bool
    doc: str
    max_bytes: int = MAX_PAYLOAD
    writers: Parties = field(default_factory=dict, hash=False)
    """Which modules publish it, under which keys."""
    readers: Parties = field(default_factory=dict, hash=False)
    """Which modules subscribe to it, and to which keys; screens and operators read all there is."""

    @property
    def key(self) -> str | None:
        """The name of the level that varies inside a site, e.g. `camera`."""
        found = [k for k in re.findall(r"\{(\w+)\}", self.address) if k != "site"]
        return found[0] if found else None

    def topic(self, site: str, key: str = "") -> str:
        """The topic for one site and one value of `key`."""
        assert bool(key) == (self.key is not None), f"{self.name}: key {key!r}"
        return self.address.format_map({"site": site, self.key or "": key})

    def filter(self, site: str) -> str:
        """The MQTT topic filter that matches every value of `key`."""
        return self.address.format_map({"site": site, self.key or "": "+"})


_EACH_ITS_OWN: Parties = dict.fromkeys(KINDS, "own")

FRAMES = Channel(
    name="frames", address="skerry/{site}/frames/{camera}", payload=m.FrameRef, qos=0, retain=False,
    doc="A frame waits in the frame store. QoS 0: only the newest matters, and `number` shows a loss.",
    writers={"capture": "own"}, readers={"inference": "own"},
)  # fmt: skip
DETECTIONS = Channel(
    name="detections", address="skerry/{site}/detections/{camera}", payload=m.Detections, qos=0, retain=False,
    doc="What inference found in a frame, or why it failed. QoS 0: `sequence` shows a loss.",
    writers={"inference": "own"}, readers={"decision": "own", "capture": "own"},
)  # fmt: skip
EVENTS = Channel(
    name="events", address="skerry/{site}/events/{producer}", payload=m.Submission, qos=1, retain=False,
    doc="Events to be kept. The producer repeats them until `accepted` covers them.",
    max_bytes=4 * 1024 * 1024,
    writers={"decision": "own"}, readers={"buffer": "every"},
)  # fmt: skip
ACCEPTED = Channel(
    name="accepted", address="skerry/{site}/accepted/{producer}", payload=m.Accepted, qos=1, retain=True,
    doc="Cumulative watermark of an epoch, sent only after the events are on disk; the last one is retained.",
    writers={"buffer": "every"}, readers={"decision": "own"},
)  # fmt: skip
OUTBOUND = Channel(
    name="outbound", address="skerry/{site}/outbound/{link}", payload=m.Outbound, qos=1, retain=False,
    doc="Records for the far end, repeated from the oldest unreceipted one until a receipt comes.",
    max_bytes=4 * 1024 * 1024,
    writers={"buffer": "own"}, readers={"uplink": "own"},
)  # fmt: skip
RECEIPTS = Channel(
    name="receipts", address="skerry/{site}/receipts/{link}", payload=m.Receipt, qos=1, retain=False,
    doc="Cumulative: the far end has confirmed every record up to here.",
    writers={"uplink": "own"}, readers={"buffer": "own"},
)  # fmt: skip
STATUS = Channel(
    name="status", address="skerry/{site}/status/{module}", payload=m.Status, qos=1, retain=True,
    doc="State of a module; its last will says `lost`.",
    writers=_EACH_ITS_OWN,
    readers={"capture": ("inference", "decision"), "buffer": "uplink", "uplink": "every"},
)  # fmt: skip
CAMERAS = Channel(
    name="cameras", address="skerry/{site}/cameras/{camera}", payload=m.CameraStatus, qos=1, retain=True,
    doc="State of a camera and the number of its last frame.",
    writers={"capture": "own"}, readers={"inference": "own"},
)  # fmt: skip
METRICS = Channel(
    name="metrics", address="skerry/{site}/metrics/{module}", payload=m.Metrics, qos=0, retain=False,
    doc="What a module counts, every second.",
    writers=_EACH_ITS_OWN, readers={"uplink": "buffer"},
)  # fmt: skip
DELIVERED = Channel(
    name="delivered", address="skerry/{site}/delivered/{link}", payload=m.Delivered, qos=0, retain=False,
    doc="Events that the far end has just confirmed, for screens.",
    max_bytes=4 * 1024 * 1024,
    writers={"uplink": "own"},
)  # fmt: skip
INVENTORY = Channel(
    name="inventory", address="skerry/{site}/inventory/{module}", payload=m.Inventory, qos=1, retain=True,
    doc="What a module is and how it was deployed; the uplink checks desired settings against it.",
    writers=_EACH_ITS_OWN, readers={"uplink": "every"},
)  # fmt: skip
DESIRED = Channel(
    name="desired", address="skerry/{site}/desired/{module}", payload=m.Desired, qos=1, retain=True,
    doc="What a module's settings should be; only ever one that was found to be valid.",
    writers={"uplink": "every"}, readers=_EACH_ITS_OWN,
)  # fmt: skip
REPORTED = Channel(
    name="reported", address="skerry/{site}/reported/{module}", payload=m.Reported, qos=1, retain=True,
    doc="What a module has made of its desired settings.",
    writers=_EACH_ITS_OWN, readers={"uplink": "every"},
)  # fmt: skip
COMMANDS = Channel(
    name="commands", address="skerry/{site}/commands/{module}", payload=m.Command, qos=1, retain=False,
    doc="Something for a module to do once. Never repeated: who gave it hears that there was no answer.",
    writers={"uplink": "every"}, readers=_EACH_ITS_OWN,
)  # fmt: skip
ANSWERS = Channel(
    name="answers", address="skerry/{site}/answers/{module}", payload=m.Answer, qos=1, retain=False,
    doc="What came of a command.",
    max_bytes=1024 * 1024,
    writers=_EACH_ITS_OWN, readers={"uplink": "every"},
)  # fmt: skip
OFFERS = Channel(
    name="offers", address="skerry/{site}/offers/{module}", payload=m.Offer, qos=1, retain=True,
    doc="What an inference module should serve its slots with: verified packages that are there.",
    writers={"updater": "inference"}, readers={"inference": "own"},
)  # fmt: skip
ACTIVATIONS = Channel(
    name="activations", address="skerry/{site}/activations/{module}", payload=m.Activations, qos=1,
    retain=True,
    doc="What serves in each slot, and what became of what was offered.",
    writers={"inference": "own"}, readers={"updater": "inference"},
)  # fmt: skip

CHANNELS = (
    FRAMES, DETECTIONS, EVENTS, ACCEPTED, OUTBOUND, RECEIPTS, STATUS, CAMERAS, METRICS, DELIVERED,
    INVENTORY, DESIRED, REPORTED, COMMANDS, ANSWERS, OFFERS, ACTIVATIONS,
)  # fmt: skip
