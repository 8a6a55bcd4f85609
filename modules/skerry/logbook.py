"""The last lines that this process logged, for who asks for them from afar."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog

_LONGEST_LINE = 8 * 1024


class Logbook:
    """A bounded ring of lines, each a JSON object. Thread-safe.

    Args:
        most_lines: that are kept.
        most_bytes: of all lines together.
    """

    def __init__(self, most_lines: int = 2000, most_bytes: int = 256 * 1024) -> None:
        self._most_lines = most_lines
        self._most_bytes = most_bytes
        self._lines: deque[str] = deque()
        self._size = 0
        self._lock = threading.Lock()

    def add(self, line: str) -> None:
        """Keep a line; the oldest make room."""
        if len(line) > _LONGEST_LINE:
            # Still a JSON object, as all of them are.
            line = json.dumps({"event": "line.cut", "bytes": len(line), "start": line[: _LONGEST_LINE // 4]})
        with self._lock:
            self._lines.append(line)
            self._size += len(line)
            while self._size > self._most_bytes or len(self._lines) > self._most_lines:
                self._size -= len(self._lines.popleft())

    def last(self, lines: int) -> list[str]:
        """The last so many lines, oldest first."""
        with self._lock:
            return list(self._lines)[-lines:] if lines > 0 else []

    def __call__(self, logger: Any, method: str, entry: MutableMapping[str, Any]) -> Mapping[str, Any]:
        """A processor of structlog: keep the entry, and pass it on as it is."""
        self.add(str(_rendered(logger, method, entry)))
        return entry

    def rendered(self, logger: Any, method: str, entry: MutableMapping[str, Any]) -> str:
        """A last processor of structlog: the entry as JSON, kept and passed on."""
        line = str(_rendered(logger, method, entry))
        self.add(line)
        return line


_rendered = structlog.processors.JSONRenderer()

LOGBOOK = Logbook()
"""Of this process, as structlog's configuration is."""
