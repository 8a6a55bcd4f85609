"""Links: ways out of the site. One file each; `tests/contract/test_link.py` holds for all of them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from skerry.messages import Event
from skerry.uplink import settings as given


class Link(Protocol):
    """A way to one far end, used by one thread at a time.

    The life of a link is `open`, `send` as often as there is something, `close`; and again from
    `open` after a `LinkDown`.
    """

    def open(self) -> None:
        """Reach the far end.

        Raises:
            LinkDown: not now.
        """

    def send(self, batch: Sequence[Event]) -> None:
        """Hand over events, in order; returns when the far end has every one of them.

        After any error the far end may have some of them, so they are sent again: it must tell
        repeats (`skerry.receiver`), or stand them.

        Raises:
            LinkDown: the far end did not confirm them all. Close and open the link, then send again.
            Rejected: it will never take at least one of them. Sent one by one, that one is found.
        """

    def close(self) -> None:
        """Let go at once, confirmed or not. Never raises; may be called at any time, and again."""


def make(settings: given.UplinkSettings, stop: threading.Event) -> Link:
    """The link that the settings ask for.

    Args:
        settings: of the uplink.
        stop: set when the process has no more time: no `send` may wait any longer.
    """
    if isinstance(settings.link, given.FileLink):
        from skerry.uplink.links.file import FileLink  # noqa: PLC0415 - only the one that is used

        return FileLink(Path(settings.link.path))
    from skerry.uplink.links.mqtt import MqttLink  # noqa: PLC0415 - only the one that is used

    return MqttLink(settings.link, settings.site, settings.name, stop)
