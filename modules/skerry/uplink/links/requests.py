"""Commands on topics: `PREFIX/requests/NAME` in, `PREFIX/responses` out.

A request is `{"id": "...", "arguments": {...}}`, its answer has `id`, `name`, `status` and `body`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import msgspec
import structlog

from skerry.uplink.downlink import BUSY, Downlink

_LONGEST_ID, _LONGEST_NAME = 128, 64
_MOST_BYTES = 64 * 1024
"""Of a request."""
_MOST_ANSWER_BYTES = 120 * 1024
_MOST_UNDER_WAY = 1024 * 1024
"""Bytes of answers that may be on their way; one may be in any case."""
_BAD, _TOO_LARGE = 400, 413
_REFUSALS = (_BAD, _TOO_LARGE, BUSY)
"""A storm of these leaves half of the room to answers that somebody waits for."""

log = structlog.get_logger()
Publish = Callable[[bytes, Callable[[], None]], None]
"""Sends an answer, and calls back, once, when it is sent or given up; raises anything when it cannot."""


class _Asked(msgspec.Struct):
    id: str = ""
    arguments: msgspec.Raw = msgspec.Raw(b"")


class _Answer(msgspec.Struct):
    id: str
    name: str
    status: int
    body: msgspec.Raw


class Requests:
    """One connection's commands. Never raises, never blocks; from any thread.

    Args:
        prefix: of the topics.
        downlink: where they are put.
        publish: sends an answer; from whatever thread.
    """

    def __init__(self, prefix: str, downlink: Downlink, publish: Publish) -> None:
        self.filter = f"{prefix}/requests/+"
        self.answers = f"{prefix}/responses"
        self._start = f"{prefix}/requests/"
        self._downlink = downlink
        self._publish = publish
        self._lock = threading.Lock()
        self._under_way = 0
        self._dropping = False

    def take(self, topic: str, payload: bytes, *, retained: bool) -> bool:
        """Put a message into the downlink; False when it is not about a command.

        A retained one is ignored: it would come again with each connection, for ever.
        """
        if not topic.startswith(self._start):
            return False
        name = topic[len(self._start) :]
        if retained or not name or len(name) > _LONGEST_NAME or "/" in name:
            log.warning(
                "command.ignored", name=name[:_LONGEST_NAME], reason="retained" if retained else "name"
            )
            return True
        try:
            asked = self._read(payload)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            status = _TOO_LARGE if len(payload) > _MOST_BYTES else _BAD
            self._reply("", name, status, msgspec.json.encode({"error": str(error)[:300]}))
            return True
        self._downlink.request(
            name, bytes(asked.arguments), lambda status, body: self._reply(asked.id, name, status, body)
        )
        return True

    def _read(self, payload: bytes) -> _Asked:
        if len(payload) > _MOST_BYTES:
            raise ValueError(f"expected at most {_MOST_BYTES} bytes, got {len(payload)}")
        asked = msgspec.json.decode(payload, type=_Asked) if payload.strip() else _Asked()
        if len(asked.id) > _LONGEST_ID:
            raise ValueError(f"id: expected at most {_LONGEST_ID} characters, got {len(asked.id)}")
        return asked

    def _reply(self, request: str, name: str, status: int, body: bytes) -> None:
        answer = msgspec.json.encode(_Answer(request, name, status, msgspec.Raw(body or b"null")))
        if len(answer) > _MOST_ANSWER_BYTES:
            said = msgspec.json.encode(
                {"error": f"the answer has {len(answer)} bytes, too many for a message"}
            )
            answer = msgspec.json.encode(_Answer(request, name, _TOO_LARGE, msgspec.Raw(said)))
        size = len(answer)
        with self._lock:
            most = _MOST_UNDER_WAY // 2 if status in _REFUSALS else _MOST_UNDER_WAY
            full = self._under_way > 0 and self._under_way + size > most
            self._under_way += 0 if full else size
            known, self._dropping = self._dropping, full
        if full:
            if not known:  # once a storm: a line an answer would be a storm of its own
                log.warning("answer.dropped", name=name, status=status, reason="too many are on their way")
            return
        sent = partial(self._sent, size)
        try:
            self._publish(answer, sent)
        except Exception as error:  # noqa: BLE001 - of many types, in a callback: whoever asked asks again
            sent()
            log.warning("answer.dropped", name=name, status=status, reason=str(error)[:200])

    def _sent(self, size: int) -> None:
        with self._lock:
            self._under_way -= size
