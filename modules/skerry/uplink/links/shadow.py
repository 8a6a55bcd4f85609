"""A device shadow: what its service tells of it, and what it is to be told.

Source: AWS IoT Core developer guide, Device Shadow service documents.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from skerry.uplink.downlink import Downlink

MOST_MESSAGE_BYTES = 128 * 1024
"""Of a message of the service: twice the document, and a timestamp for each value."""
MOST_DESIRED_BYTES = 64 * 1024
MOST_SHADOW_BYTES = 8 * 1024
_ENVELOPE_BYTES = 192
"""Of a shadow that is neither desired nor reported; with something to spare."""
_LEAST_BYTES = 1000
"""Of a report, whatever is desired: a smaller one says nothing."""
_MOST_DEPTH = 64
NOT_FOUND = 404


class State(NamedTuple):
    """A shadow at one version."""

    version: int
    desired: dict[str, Any]
    reported: dict[str, Any]


class Refusal(NamedTuple):
    """What the service says no to, and why."""

    token: str
    code: int
    message: str


def read(payload: bytes) -> State:
    """The shadow in an answer to `get`.

    Raises:
        ValueError: it is none, or too large.
    """
    return _state(_object(payload))


def read_documents(payload: bytes) -> State:
    """The shadow, as it is now, in a message of `update/documents`.

    Raises:
        ValueError: it is none, or too large.
    """
    return _state(_object(payload).get("current"))


def read_token(payload: bytes) -> str:
    """The client's token in an answer; "" where there is none."""
    token = _object(payload).get("clientToken")
    return token if isinstance(token, str) else ""


def read_refusal(payload: bytes) -> Refusal:
    """What is in an answer that says no.

    Raises:
        ValueError: it is none.
    """
    found = _object(payload)
    token, code, message = found.get("clientToken"), found.get("code"), found.get("message")
    return Refusal(
        token if isinstance(token, str) else "", code if isinstance(code, int) else 0, str(message)[:300]
    )


def update(before: Mapping[str, Any], after: Mapping[str, Any], token: str) -> bytes:
    """The request that makes `after` of the reported state that was `before`; nothing when it is that.

    Raises:
        ValueError: it is more than a shadow takes.
    """
    reported = difference(before, after)
    if not reported:
        return b""
    size = len(msgspec.json.encode(after))
    if size > MOST_SHADOW_BYTES:
        raise ValueError(f"reported: expected at most {MOST_SHADOW_BYTES} bytes, got {size}")
    return msgspec.json.encode({"state": {"reported": reported}, "clientToken": token})


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What a shadow must be told so that `after` is in the place of `before`: null takes a key away."""
    changes: dict[str, Any] = {}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            if inner := difference(old, value):
                changes[key] = inner
        elif value is not None and (key not in before or not _same(old, value)):
            changes[key] = value
    gone = (key for key in before if after.get(key) is None and before[key] is not None)
    return changes | dict.fromkeys(gone)


class Shadow:
    """What is known of a shadow, over all connections. From any thread.

    Args:
        downlink: is told what is desired, whenever that changes.
    """

    def __init__(self, downlink: Downlink) -> None:
        self._downlink = downlink
        self._lock = threading.Lock()
        self._version = -1
        self._desired: dict[str, Any] | None = None
        self._reported: dict[str, Any] = {}

    @property
    def reported(self) -> dict[str, Any]:
        """As the platform has it."""
        return self._reported

    @property
    def version(self) -> int:
        """The newest that is known; -1 before there is one."""
        return self._version

    @property
    def room(self) -> int:
        """Bytes that are left for what is reported."""
        return max(
            MOST_SHADOW_BYTES - len(msgspec.json.encode(self._desired)) - _ENVELOPE_BYTES, _LEAST_BYTES
        )

    def learn(self, state: State, asked_at: int | None = None) -> bool:
        """Take a newer state; whether it was as new as what is known, or newer.

        Args:
            state: as the service told it.
            asked_at: of an answer, the version that was known when it was asked for: a lower one, or the
                same with something else in it, is that of a shadow that was deleted and made anew.
        """
        with self._lock:
            known = state.version == self._version and _same(self._desired, state.desired)
            anew = asked_at is not None and state.version < asked_at
            anew |= state.version == asked_at == self._version and not known
            if state.version <= self._version and not anew:
                return known
            self._version, self._reported = state.version, state.reported
            # Our own report is a version of the shadow, too: told of it, we would report for ever.
            new = not _same(self._desired, state.desired)
            self._desired = state.desired
            if new:
                self._downlink.propose("shadow", str(state.version), state.desired)
            return True

    def told(self, reported: dict[str, Any]) -> None:
        """The platform has taken a report."""
        with self._lock:
            self._reported = reported


def _object(payload: bytes) -> dict[str, Any]:
    if len(payload) > MOST_MESSAGE_BYTES:
        raise ValueError(f"shadow: expected at most {MOST_MESSAGE_BYTES} bytes, got {len(payload)}")
    try:
        found = msgspec.json.decode(payload)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"shadow: expected JSON ({str(error)[:100]})") from error
    if not isinstance(found, dict):
        raise ValueError("shadow: expected an object")  # noqa: TRY004 - of a message, not of a caller
    return found


def _state(found: Any) -> State:
    state = found.get("state") if isinstance(found, dict) else None
    version = found.get("version") if isinstance(found, dict) else None
    if not isinstance(state, dict) or not isinstance(version, int) or version < 0:
        raise ValueError("shadow: expected a state and a version")
    desired, reported = state.get("desired") or {}, state.get("reported") or {}
    if not isinstance(desired, dict) or not isinstance(reported, dict):
        raise ValueError("shadow: expected objects in the state")  # noqa: TRY004 - the same
    if _depth(desired) > _MOST_DEPTH:
        raise ValueError(f"shadow: desired: expected at most {_MOST_DEPTH} levels")
    size = len(msgspec.json.encode(desired))
    if size > MOST_DESIRED_BYTES:
        raise ValueError(f"shadow: desired: expected at most {MOST_DESIRED_BYTES} bytes, got {size}")
    return State(version, desired, reported)


def _depth(value: Any) -> int:
    """Levels of a document, without recursion; one more than the most is enough."""
    level, depth = [value], 0
    while depth <= _MOST_DEPTH:
        level = [
            item
            for one in level
            if isinstance(one, dict | list)
            for item in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            break
        depth += 1
    return depth


def _same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON: to Python `True` equals 1."""
    return msgspec.json.encode(one, order="sorted") == msgspec.json.encode(other, order="sorted")
