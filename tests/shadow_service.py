"""What the Device Shadow service does with a document: merges, versions, and says no.

Source: AWS IoT Core developer guide, Device Shadow service documents.
"""

from __future__ import annotations

import json
from typing import Any

MOST_BYTES = 8 * 1024
_MOST_DEPTH = 6


class Refused(Exception):  # noqa: N818 - what the service says
    """The service says no."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class ShadowService:
    """One shadow.

    Attributes:
        refuse: what the next update is refused with; None: it is taken.
        updates: the states that were taken, as they were asked for.
    """

    def __init__(self) -> None:
        self.state: dict[str, Any] | None = None
        self.version = 0
        self.refuse: Refused | None = None
        self.updates: list[dict[str, Any]] = []

    def get(self) -> dict[str, Any]:
        """The whole of it."""
        if self.state is None:
            raise Refused(404, "No shadow exists with name: skerry")
        return {"state": self.state, "version": self.version, "timestamp": 1}

    def update(self, request: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The answer, and what is told to all."""
        if self.refuse is not None:
            refused, self.refuse = self.refuse, None
            raise refused
        before = {"state": self.state or {}, "version": self.version}
        merged = _merged(self.state or {}, request["state"])
        if len(json.dumps(merged, separators=(",", ":"))) > MOST_BYTES:
            raise Refused(413, "The payload exceeds the maximum size allowed")
        if _depth(merged) > _MOST_DEPTH:
            raise Refused(400, f"JSON contains too many levels of nesting; maximum is {_MOST_DEPTH}")
        self.state = merged
        self.version += 1
        self.updates.append(request["state"])
        token = {"clientToken": request["clientToken"]} if request.get("clientToken") else {}
        told = {"previous": before, "current": {"state": merged, "version": self.version}, **token}
        return {"state": request["state"], "version": self.version, **token}, told

    def delete(self) -> None:
        """Made anew, it starts at 1 again."""
        self.state, self.version = None, 0


def _depth(value: Any) -> int:
    """Levels below `desired` and `reported`."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return max((1 + _depth(item) for item in inner if isinstance(item, dict | list)), default=0)


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    found = dict(old)
    for key, value in new.items():
        if value is None:
            found.pop(key, None)
        elif isinstance(value, dict):
            before = found.get(key)
            found[key] = _merged(before if isinstance(before, dict) else {}, value)
        else:
            found[key] = value
    return found
