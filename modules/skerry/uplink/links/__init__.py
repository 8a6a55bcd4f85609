"""Links: ways out of the site. One file each; `tests/contract/test_link.py` holds for all of them."""

from __future__ import annotations

import math
import threading
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from skerry.uplink import settings as given
from skerry.uplink.downlink import Downlink
from skerry.uplink.record import Record


class Cost(NamedTuple):
    """What a batch took of the way out."""

    messages: int
    bytes: int


class Link(Protocol):
    """A way to one far end, used by one thread at a time.

    The life of a link is `open`, batches, `close`; and again from `open` after a `LinkDown`. Batches
    are handed over with `start` and confirmed, in the same order, with `finish`; `send` is both. Any
    number up to `window` may be started and not finished.

    Attributes:
        window: batches that may be under way, 1 or more. A far end that may refuse a batch when it
            already has the next one must have 1: what is not refused of the first would come after
            the second, and be taken for a repeat.
        whole: whether a batch is one message; else each event is one.
        max_bytes: of the events of a batch, each counted with a byte more: a batch of several within
            it is never refused for its size. Infinity: any.
        steered: whether desired states and commands come down this link too, into the `Downlink` that it
            was made with, while it is open. The uplink keeps such a link open with nothing to send, and
            calls `finish(0)` now and then to hear that it is lost.
        report_bytes: of a report, at most. It may change: a shadow holds what is desired as well.
        trouble: what does not work of the way down while batches go out, and what to do; "" when all does.
    """

    window: int
    whole: bool = True
    max_bytes: float = math.inf
    steered: bool = False

    @property
    def report_bytes(self) -> int:
        return 8000

    @property
    def certificates(self) -> Sequence[Path]:
        """Files of certificates that the link got for itself; they need not be there yet."""
        return ()

    @property
    def trouble(self) -> str:
        return ""

    @abstractmethod
    def open(self) -> None:
        """Reach the far end.

        Raises:
            LinkDown: not now.
        """

    @abstractmethod
    def start(self, batch: Sequence[Record]) -> Cost:
        """Hand over records, in order, behind those of the batches before. Does not wait for the far end.

        Raises:
            LinkDown: they could not be handed over; nothing that is under way counts any more.
            Rejected: the far end will never take at least one of them. None of this batch is sent;
                what was started before is under way still.
        """

    @abstractmethod
    def finish(self, timeout_s: float = math.inf) -> bool:
        """Wait until the far end has every record of the oldest batch under way.

        After any error the far end may have some of what was under way, so it is sent again: the far
        end must tell repeats (`skerry.receiver`), or stand them.

        Args:
            timeout_s: how long to wait at most. What the far end itself is given is the link's own setting.

        Returns:
            False when it is not confirmed yet, or nothing is under way.

        Raises:
            LinkDown: the far end did not confirm it: nothing that is under way counts. Close and open
                the link, then start all of it again.
            Rejected: the far end refused it, and has none of it; only where `window` is 1.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go at once, confirmed or not. Never raises; may be called at any time, and again."""

    def report(self, document: dict[str, Any], timeout_s: float) -> None:
        """Tell the platform the state of the site, in the place of what it was told before.

        The one call that comes from another thread than the rest, at any time. A link that is not
        `steered` has nobody to tell.

        Args:
            document: JSON, its keys without `.`, `$` and spaces; at most `report_bytes` of it.
            timeout_s: until the platform must have confirmed it.

        Raises:
            LinkDown: it did not, or the link is not open. It is told again when the link is.
        """
        del document, timeout_s

    def send(self, batch: Sequence[Record]) -> None:
        """Hand over records and return when the far end has every one of them. Nothing else is under way.

        Raises:
            LinkDown: the far end did not confirm them all. Close and open the link, then send again.
            Rejected: it will never take at least one of them. Sent one by one, that one is found.
        """
        self.start(batch)
        while not self.finish():
            pass


def make(settings: given.UplinkSettings, stop: threading.Event, downlink: Downlink | None = None) -> Link:
    """The link that the settings ask for.

    Args:
        settings: of the uplink.
        stop: set when the process has no more time: no `finish` may wait any longer.
        downlink: where to put desired states and commands; None: the link brings none down.

    Raises:
        ConfigError: a file that it needs cannot be read, or a package is missing.
    """
    if isinstance(settings.link, given.FileLink):
        from skerry.uplink.links.file import FileLink  # noqa: PLC0415 - only the one that is used

        return FileLink(Path(settings.link.path))
    if isinstance(settings.link, given.HttpLink):
        from skerry.uplink.links.http import HttpLink  # noqa: PLC0415 - only the one that is used

        return HttpLink(settings.link, stop, settings.sending.limits.all)
    if isinstance(settings.link, given.AwsLink):
        from skerry.uplink.links.aws import AwsLink  # noqa: PLC0415 - only the one that is used

        return AwsLink(
            settings.link, settings.site, settings.name, stop, settings.bounds,
            downlink=downlink, state=Path(settings.state),
        )  # fmt: skip
    if isinstance(settings.link, given.AzureLink):
        from skerry.uplink.links.azure import AzureLink  # noqa: PLC0415 - only the one that is used

        folder = Path(settings.state)
        return AzureLink(settings.link, settings.site, folder, stop, settings.bounds, downlink=downlink)
    if isinstance(settings.link, given.GreengrassLink):
        from skerry.uplink.links.greengrass import GreengrassLink  # noqa: PLC0415 - only the one that is used

        return GreengrassLink(settings.link, settings.site, stop, settings.bounds, downlink=downlink)
    from skerry.uplink.links.mqtt import MqttLink  # noqa: PLC0415 - only the one that is used

    return MqttLink(
        settings.link, settings.site, settings.name, stop, settings.sending.limits.all,
        downlink=downlink, state=Path(settings.state),
    )  # fmt: skip
