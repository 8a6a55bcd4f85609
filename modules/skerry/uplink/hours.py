"""When a lane may be sent, by the hour of the day."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, tzinfo

from skerry.messages import Lane

_SPAN = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-(?:([01]\d|2[0-3]):([0-5]\d)|24:00)", re.ASCII)


def span(text: str) -> tuple[int, int]:
    """Minutes of the day from and to, of `22:00-06:00`; the end is not part of it.

    Raises:
        ValueError: it is written otherwise, or of no length.
    """
    match = _SPAN.fullmatch(text)
    if match is None:
        raise ValueError(f"expected hours like 22:00-06:00, got {text!r}")
    first = int(match[1]) * 60 + int(match[2])
    last = int(match[3]) * 60 + int(match[4]) if match[3] else 24 * 60
    if first == last:
        raise ValueError(f"expected an end that is not the beginning, got {text!r}")
    return first, last


def zone(name: str) -> tzinfo:
    """A time zone of the IANA database.

    Raises:
        ValueError: this machine does not know it.
    """
    if name == "UTC":
        return UTC
    from zoneinfo import ZoneInfo  # noqa: PLC0415 - a megabyte, and only where there are schedules

    try:
        return ZoneInfo(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"expected a name like Europe/Oslo, got {name!r} ({error})") from error
    except KeyError as error:  # ZoneInfoNotFoundError
        raise ValueError(
            f"expected a name like Europe/Oslo, got {name!r} (is the system's tzdata installed?)"
        ) from error


class Hours:
    """Lanes that are sent only in given hours. Pure: wall time comes in, and is used for nothing else.

    A clock that nobody set may be wrong by years, so with one every lane is sent at any hour: rather
    a transfer at the wrong time than a disk that fills.

    Args:
        schedules: lane to spans such as `22:00-06:00`; a lane that is not in it is sent at any hour.
        zone: in which the hours are meant.
    """

    def __init__(self, schedules: Mapping[Lane, Sequence[str]], zone: tzinfo) -> None:
        self._spans = {lane: [span(text) for text in texts] for lane, texts in schedules.items()}
        self._zone = zone

    def __bool__(self) -> bool:
        return bool(self._spans)

    def held(self, unix_s: float, synchronised: bool) -> frozenset[Lane]:
        """The lanes that must wait at this POSIX time."""
        if not self._spans or not synchronised:
            return frozenset()
        local = datetime.fromtimestamp(unix_s, self._zone)
        minute = local.hour * 60 + local.minute
        return frozenset(
            lane for lane, spans in self._spans.items() if not any(_within(minute, *s) for s in spans)
        )


def _within(minute: int, first: int, last: int) -> bool:
    return first <= minute < last if first < last else minute >= first or minute < last
