"""What was asked and set from outside, and what came of it: lines that are only ever added."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog

from skerry.clock import utc
from skerry.redact import redacted

_LONGEST_LINE = 8 * 1024

log = structlog.get_logger()


class Audit:
    """JSON lines in two files, `audit.jsonl` and the one before it, `audit.1.jsonl`. Thread-safe.

    A line is in the page cache when `write` returns, so it outlives a kill of this process, not a power
    cut. While the disk is full, nothing is written and nothing stops; the next line says how many are
    missing.

    Args:
        folder: of the files; made if missing.
        most_bytes: of one file.
        now: the time of a line.
    """

    def __init__(self, folder: Path, most_bytes: int = 1024 * 1024, now: Callable[[], str] = utc) -> None:
        self.path = folder / "audit.jsonl"
        self.before = folder / "audit.1.jsonl"
        self._most_bytes = most_bytes
        self._now = now
        self._lock = threading.Lock()
        self._missing = 0
        self._failed = ""

    def write(self, **fields: Any) -> None:
        """Add a line; secrets are taken out of it. Never raises."""
        line = self._line(fields)
        with self._lock:
            try:
                if self._missing:
                    self._append(self._line({"what": "audit.gap", "missing": self._missing}))
                    self._missing = 0
                self._append(line)
            except OSError as error:
                self._missing += 1
                reason = f"{error.strerror or error}"
                if reason != self._failed:
                    self._failed = reason
                    log.error("audit.not_written", path=str(self.path), error=reason)  # noqa: TRY400 - says all
                return
            if self._failed:
                self._failed = ""
                log.info("audit.written_again", path=str(self.path))

    def _line(self, fields: dict[str, Any]) -> bytes:
        entry = {"time": self._now(), **fields}
        line = _encoded(entry)
        if len(line) > _LONGEST_LINE:
            start = line[: _LONGEST_LINE // 4].decode(errors="replace")
            line = _encoded({"time": entry["time"], "what": "audit.cut", "bytes": len(line), "start": start})
        return line + b"\n"

    def _append(self, line: bytes) -> None:
        """Opened each time: whoever clears the folder, or moves a file away, need not tell us.

        Raises:
            OSError: the line is not there, nor half of it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._size() and self._size() + len(line) > self._most_bytes:
            self.path.rename(self.before)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        file = os.open(self.path, flags, 0o600)
        try:
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":
                line = b"\n" + line  # a power cut tore the last one
            if os.write(file, line) != len(line):
                os.ftruncate(file, size)
                raise OSError("the disk is full")
        finally:
            os.close(file)

    def _size(self) -> int:
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0


def _encoded(entry: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(redacted(entry), enc_hook=str)
    except (TypeError, ValueError, RecursionError, UnicodeError) as error:
        return msgspec.json.encode(
            {"time": str(entry.get("time")), "what": "audit.unwritable", "error": str(error)}
        )
