"""The commands that can be given from outside, one table: what each takes, and how long it may take.

A command comes as a direct method, over Greengrass IPC or over MQTT, always by its name with these
arguments, and is answered with a status in the manner of HTTP and a JSON object.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

from msgspec import Meta

from skerry.messages import Name
from skerry.settings import LogLevel, Settings

MOST_ANSWER_BYTES = 96 * 1024
"""Of an answer's body, as JSON: with what goes around it, it fits into any platform's message (128 KB)."""


class Ping(Settings, frozen=True, kw_only=True):
    """Whether modules are there, and how they are."""

    module: Name | None = None
    """Asks this one to answer by itself; null: what the uplink has heard of all of them."""


class Snapshot(Settings, frozen=True, kw_only=True):
    """The newest picture of a camera, as JPEG. Only where the site file allows it for this camera."""

    camera: Name
    width: Annotated[int, Meta(ge=64, le=1920)] = 640
    """At most this wide, in pixels; narrower still where the picture would be too large for the answer."""


class Flush(Settings, frozen=True, kw_only=True):
    """Try the far end now, whatever the waits and hours, until nothing waits any more."""

    wait_s: Annotated[float, Meta(gt=0, le=60)] = 15.0
    """The answer comes after this long at most and says how much waits still."""


class Diagnostics(Settings, frozen=True, kw_only=True):
    """Logs, ledger, counts and settings of every module, secrets taken out, as a .tar.gz."""

    modules: tuple[Name, ...] = ()
    """Of these only; empty: all."""
    lines: Annotated[int, Meta(ge=0, le=2000)] = 300
    """The last lines of each module's log."""


class ChangeLogLevel(Settings, frozen=True, kw_only=True):
    """Log more, or less, for a time. For good, set `log_level` in the desired state."""

    level: LogLevel
    module: Name | None = None
    """null: every module."""
    seconds: Annotated[float, Meta(gt=0, le=86_400)] = 600.0
    """Then the level is again what the settings say."""


class Restart(Settings, frozen=True, kw_only=True):
    """End a module, drained, for its supervisor to start it again; settings that wait for that count then."""

    module: Name


class Kind(NamedTuple):
    """One command."""

    arguments: type[Settings]
    timeout_s: float
    """Until it is answered with 504."""


KINDS: dict[str, Kind] = {
    "ping": Kind(Ping, 5.0),
    "snapshot": Kind(Snapshot, 10.0),
    "flush": Kind(Flush, 65.0),
    "diagnostics": Kind(Diagnostics, 20.0),
    "log_level": Kind(ChangeLogLevel, 5.0),
    "restart": Kind(Restart, 5.0),
}
