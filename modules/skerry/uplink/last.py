"""The last state of each rule, as its events tell it. Pure, but for `Kept`, which outlives the process.

What is sent again after an outage is older than what is known, and changes nothing: within an epoch
`seq` tells which of two events is newer, within a boot the monotonic clock, and otherwise an epoch that
was left behind does not come back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import structlog

from skerry.durable import replace
from skerry.uplink.plain import Told, Value, flat, place

_MOST_RULES = 500
_MOST_TRACKS = 100
"""That one rule follows at a time."""
_MOST_EPOCHS = 8
"""That a rule remembers to have left behind."""
_MOST_LABELS = 50

log = structlog.get_logger()


class State(msgspec.Struct, kw_only=True):
    """What is known of a rule."""

    epoch: str
    seq: int
    bootid: str
    monotonic: int
    left: tuple[str, ...] = ()
    """Epochs before this one."""
    bounds: tuple[str, ...] = ()
    """Which are passed, of a rule that is on or off."""
    tracks: tuple[str, ...] = ()
    """Which stay too long."""
    totals: dict[str, dict[str, int]] = {}
    """Of each direction, by label."""
    said: dict[str, Value] = {}
    """The payload."""


class Last:
    """The states of all rules.

    Args:
        states: what is known, by camera and rule.
    """

    def __init__(self, states: dict[str, State] | None = None) -> None:
        self.states = {} if states is None else states

    def take(self, event: Told) -> str | None:
        """The rule that an event changes, `camera/rule`; None: the event is old, or of no rule.

        The event that is the newest known counts again, since it may not have been told.
        """
        if event.retryof:  # by an operator's wish, of long ago
            return None
        kind = event.data.get("kind")
        camera, rule = place(event.subject)
        if not isinstance(kind, str) or event.data.get("rule") != rule:
            return None
        name = f"{camera}/{rule}"
        before = self.states.get(name)
        if before is None and len(self.states) >= _MOST_RULES:
            log.warning("state.not_kept", rule=name, reason=f"more than {_MOST_RULES} rules")
            return None
        if before is not None and (before.epoch, before.seq) == (event.epoch, event.seq):
            return name
        if before is not None and not _newer(event, before):
            return None
        self.states[name] = _after(event, kind, before)
        return name


def _newer(event: Told, than: State) -> bool:
    if event.epoch == than.epoch:
        return event.seq > than.seq
    if event.epoch in than.left:
        return False
    return event.monotonic >= than.monotonic if event.bootid == than.bootid else True


def _after(event: Told, kind: str, before: State | None) -> State:
    state = State(epoch=event.epoch, seq=event.seq, bootid=event.bootid, monotonic=event.monotonic)
    if before is not None:
        state.bounds, state.totals, state.left = before.bounds, before.totals, before.left
        if before.epoch != event.epoch:
            state.left = (*before.left, before.epoch)[-_MOST_EPOCHS:]
        if before.bootid == event.bootid:  # of what was there in another boot nothing is known
            state.tracks = before.tracks
    said = flat(event)
    if kind == "line":
        _count(state, said, event.data)
    elif kind == "dwell":
        _stay(state, said, event)
    elif isinstance(event.data.get("active"), bool):
        _switch(state, said, event.data)
    else:
        said["state"] = event.type.rpartition(".")[2]
    state.said = said
    return state


def _switch(state: State, said: dict[str, Value], data: dict[str, Any]) -> None:
    """On while any of its bounds is passed; most rules have just one."""
    bound = str(data.get("bound", ""))
    others = tuple(one for one in state.bounds if one != bound)
    state.bounds = (*others, bound) if data["active"] else others
    said["state"] = "on" if state.bounds else "off"


def _stay(state: State, said: dict[str, Value], event: Told) -> None:
    """On while anybody stays too long."""
    track = str(event.data.get("track", ""))
    others = tuple(one for one in state.tracks if one != track)
    ended = event.type.endswith(".ended")
    state.tracks = others if ended else (*others, track)[-_MOST_TRACKS:]
    said["state"] = "on" if state.tracks else "off"
    said["count"] = len(state.tracks)


def _count(state: State, said: dict[str, Value], data: dict[str, Any]) -> None:
    """The totals of both directions; an event tells those of one."""
    direction, totals = str(data.get("direction")), data.get("totals")
    if direction in {"forward", "backward"} and isinstance(totals, dict):
        counted = {str(k): n for k, n in totals.items() if isinstance(n, int)}
        state.totals = {**state.totals, direction: dict(list(counted.items())[: _MOST_LABELS + 1])}
    for name in [name for name in said if name.startswith("totals_")]:
        del said[name]
    sums = {way: sum(state.totals.get(way, {}).values()) for way in ("forward", "backward")}
    said |= sums
    for way, by_label in state.totals.items():
        said |= {f"{way}_{label}": n for label, n in by_label.items()}
    said["total"] = said["state"] = sum(sums.values())


class Kept:
    """The states in a file, so that a new process, or one after a power cut, goes on with them.

    Args:
        file: where they are; None: they are not kept.

    Attributes:
        last: the states.
        trouble: why they could not be written; "" when they were.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self.last = Last(_read(file) if file is not None else None)
        self.trouble = ""

    def write(self) -> None:
        """Make what is known outlive a power cut; before it is told to anyone."""
        if self._file is None:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            replace(self._file, msgspec.json.encode(self.last.states))
            self.trouble = ""
        except OSError as error:
            self.trouble = f"{self._file}: cannot write the states of rules: {error.strerror or error}"


def _read(file: Path) -> dict[str, State]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, State])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        log.warning("states.not_read", file=str(file), error=str(error)[:200])
        return {}
