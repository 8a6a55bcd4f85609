"""What the buffer is told."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from skerry.messages import Lane, Name
from skerry.settings import LIVE, ModuleSettings, Positive, Settings

_MIB = 1024 * 1024


class LaneSettings(Settings, frozen=True, kw_only=True):
    """What one lane may do."""

    limit_bytes: Annotated[int, Meta(ge=0)] = 0
    """Bound of this lane's bytes on disk; 0: the store's bound alone."""
    when_full: Literal["evict", "block"] = "evict"
    """evict: the oldest records make room, and a gap record says so; block: nothing more is accepted
    until the far end has taken some, and the producers keep what they have."""


class BufferSettings(ModuleSettings, frozen=True, kw_only=True):
    """Settings of the buffer module. The log is in the folder `log` of `state`."""

    link: Name = "uplink"
    """The link that the records leave by: the key of `outbound` and `receipts`."""
    limit_bytes: Annotated[int, Meta(ge=32 * _MIB)] = 256 * _MIB
    """Bound of the bytes on disk. When it is reached, the oldest segment of the lowest lane that may
    evict is given up, and a gap record says what was in it."""
    lanes: Annotated[dict[Lane, LaneSettings], LIVE] = field(default_factory=dict)
    """What is particular to a lane."""
    segment_bytes: Annotated[int, Meta(ge=256 * 1024, le=8 * _MIB)] = 8 * _MIB
    """Size of one file of the log: what is freed, or given up, at a time; at most a sixteenth of
    `limit_bytes`."""
    compression: Literal["none", "zstd"] = "none"
    """Of the blocks on disk. Worth it where events come in bursts or the card wears; costs 24 MB of disk."""
    key_file: str = ""
    """File that holds the key that blocks on disk are encrypted with (AES-256-GCM): 32 bytes, or 64
    hexadecimal digits. Empty: they are not encrypted."""
    old_key_files: tuple[str, ...] = ()
    """Keys that what is still on disk may be encrypted with, after a change of the key."""
    linger_ms: Annotated[float, Meta(ge=0, le=1000), LIVE] = 5.0
    """How long a commit waits for more events. One flush of the disk is shared by all of them;
    an alarm does not wait."""
    max_batch: Annotated[int, Meta(ge=1, le=10_000)] = 1000
    """Events in one commit, beyond which it does not wait for more."""
    inbox_bytes: Annotated[int, Meta(ge=64 * 1024, le=64 * _MIB)] = 4 * _MIB
    """Bytes of events that may wait in memory for the disk, a quarter of it in each lane; more is not
    accepted, and repeated by producers."""
    batch_records: Annotated[int, Meta(ge=1, le=1000)] = 100
    """Records in one outbound message."""
    batch_bytes: Annotated[int, Meta(ge=1024, le=_MIB)] = 128 * 1024
    """Bytes in one outbound message; a record that is larger goes alone."""
    window_batches: Annotated[int, Meta(ge=1, le=64)] = 8
    """Outbound messages of a lane that may be unconfirmed."""
    backlog_s: Annotated[Positive, LIVE] = 10.0
    """A lane whose oldest record has waited for longer has a backlog; the uplink lets what is new in
    other lanes share the pipe with it."""
    quarantine_bytes: Annotated[int, Meta(ge=64 * 1024)] = 16 * _MIB
    """Bound of the quarantine's file; a full one becomes the old one, of which there is one."""
    clock: Literal["kernel", "trusted"] = "kernel"
    """kernel: wall times count as right while the kernel says that its clock is disciplined (NTP, PTP);
    trusted: they are always right, because somebody else keeps the clock, as in many virtual machines."""
    resend_s: Positive = 5.0
    """Without a receipt for this long, what is unconfirmed is sent again."""
