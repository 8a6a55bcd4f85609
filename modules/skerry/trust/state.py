"""What a device remembers of what it trusted, in two copies, each of them whole."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import structlog

from skerry import durable
from skerry.trust.documents import LIMITS
from skerry.trust.times import Floor

FILES = "trust-a.json", "trust-b.json"
_MOST_BYTES = 3 * sum(LIMITS.values())

log = structlog.get_logger()


class State(msgspec.Struct, frozen=True, kw_only=True):
    """One moment of trust: these documents belong together."""

    anchor: str
    """sha256 of the root that this device was given: another one starts another history."""
    root: str
    """The newest root, as it came. So are those below; empty where there is none yet."""
    floor: Floor
    timestamp: str = ""
    snapshot: str = ""
    targets: str = ""
    epochs: dict[str, int] = {}
    """Least security epoch by model."""
    recovering: bool = False
    """The targets' keys were exchanged: what the old ones said of epochs is judged by the next targets."""
    generation: int = 0
    """How often this was written."""


def load(folder: Path) -> tuple[State | None, bool]:
    """The newest whole copy, or None; and whether both are there and the same."""
    copies = [_read(folder / name) for name in FILES]
    there = [state for state in copies if state is not None]
    return max(there, key=lambda s: s.generation, default=None), len(there) == 2 and there[0] == there[1]


def keep(folder: Path, state: State) -> None:
    """Write both copies, one after the other: one of them is whole at any moment.

    Raises:
        OSError: the first may have it, the second the one before.
    """
    body = msgspec.json.encode(state)
    content = hashlib.sha256(body).hexdigest().encode() + b"\n" + body
    for name in FILES:
        durable.replace(folder / name, content)


def _read(path: Path) -> State | None:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES)
        digest, _, body = content.partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != digest:
            raise ValueError("its checksum does not fit")
        return msgspec.json.decode(body, type=State)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, RecursionError, ValueError) as error:
        log.warning("trust.copy_damaged", path=str(path), reason=str(error))
        return None
