"""The way down of an MQTT link: a desired state on a retained topic, commands on others.

Below the prefix: `desired` (retained, a JSON object, the whole of it), `reported` (retained),
`requests/NAME` and `responses`.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import structlog

from skerry.uplink.downlink import Downlink
from skerry.uplink.links.requests import Publish, Requests

_MOST_BYTES = 64 * 1024
"""Of a desired state."""
_LONGEST_VERSION = 64

log = structlog.get_logger()


class Remote:
    """What comes down one connection. Never raises, never blocks; on the client's thread.

    Args:
        prefix: of the topics.
        downlink: where to put it.
        publish: sends the answer to a command.

    Attributes:
        trouble: why the last desired state was not taken; "" when it was.
    """

    def __init__(self, prefix: str, downlink: Downlink, publish: Publish) -> None:
        self._desired = f"{prefix}/desired"
        self._downlink = downlink
        self._requests = Requests(prefix, downlink, publish)
        self.answers = self._requests.answers
        self.reported = f"{prefix}/reported"
        self.filters = [self._desired, self._requests.filter]
        self.trouble = ""

    def take(self, topic: str, payload: bytes, *, retained: bool) -> None:
        """Something came."""
        if topic != self._desired:
            self._requests.take(topic, payload, retained=retained)
            return
        if not payload:  # how a retained message is taken away: it says nothing of what is desired now
            log.info("desired.gone", topic=topic)
            return
        try:
            document = _read(payload)
        except ValueError as error:
            self.trouble = f"{topic}: {error}"
            log.warning("desired.ignored", topic=topic, reason=str(error))
            return
        self.trouble = ""
        self._downlink.propose("topic", version(document, payload), document)


def version(document: dict[str, Any], payload: bytes) -> str:
    """What tells a desired state from another: the one that it gives itself, else a digest."""
    own = document.get("version")
    if isinstance(own, str | int) and not isinstance(own, bool) and 0 < len(str(own)) <= _LONGEST_VERSION:
        return str(own)
    return hashlib.sha256(payload).hexdigest()[:12]


def _read(payload: bytes) -> dict[str, Any]:
    if len(payload) > _MOST_BYTES:
        raise ValueError(f"expected at most {_MOST_BYTES} bytes, got {len(payload)}")
    try:
        document = msgspec.json.decode(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"expected JSON ({str(error)[:100]})") from error
    if not isinstance(document, dict):
        raise ValueError("expected an object")  # noqa: TRY004 - of a message, not of a caller
    return document
