"""What the buffer is told."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from skerry.messages import Name
from skerry.settings import ModuleSettings, Positive

_MIB = 1024 * 1024


class BufferSettings(ModuleSettings, frozen=True, kw_only=True):
    """Settings of the buffer module. The log is in the folder `log` of `state`."""

    link: Name = "uplink"
    """The link that the records leave by: the key of `outbound` and `receipts`."""
    limit_bytes: Annotated[int, Meta(ge=32 * _MIB)] = 256 * _MIB
    """Bound of the bytes on disk. When it is reached, the oldest segment is given up, and counted."""
    segment_bytes: Annotated[int, Meta(ge=256 * 1024, le=8 * _MIB)] = 8 * _MIB
    """Size of one file of the log: what is freed, or given up, at a time."""
    linger_ms: Annotated[float, Meta(ge=0, le=1000)] = 5.0
    """How long a commit waits for more events. One flush of the disk is shared by all of them;
    an alarm does not wait."""
    max_batch: Annotated[int, Meta(ge=1, le=10_000)] = 1000
    """Events in one commit, beyond which it does not wait for more."""
    inbox_bytes: Annotated[int, Meta(ge=64 * 1024, le=64 * _MIB)] = 4 * _MIB
    """Events that may wait in memory for the disk; more is not accepted, and repeated by producers."""
    batch_records: Annotated[int, Meta(ge=1, le=1000)] = 100
    """Records in one outbound message."""
    batch_bytes: Annotated[int, Meta(ge=1024, le=_MIB)] = 128 * 1024
    """Bytes in one outbound message; a record that is larger goes alone."""
    window_batches: Annotated[int, Meta(ge=1, le=64)] = 4
    """Outbound messages that may be unconfirmed."""
    resend_s: Positive = 5.0
    """Without a receipt for this long, what is unconfirmed is sent again."""
