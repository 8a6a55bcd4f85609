"""What the answer of an HTTP server means for the records that were sent to it. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from skerry.errors import LinkDown, Rejected

Meaning = Literal["taken", "later", "credentials", "moved", "address", "refused", "odd"]

_LATER = frozenset({408, 425, 429})
_CREDENTIALS = frozenset({401, 403, 407})
_ADDRESS = frozenset({404, 405, 410, 415, 421, 426})
"""Said of the address or of the way of asking, so of every event alike. An ingress says 404 while what is
behind it is exchanged; to put a whole backlog in quarantine over that would be wrong."""
_EXCERPT = 160
_LONGEST_S = 366 * 86400.0


class Answer(NamedTuple):
    """What came back: the status, what else matters of the head, and the beginning of the body."""

    status: int
    retry_after: str = ""
    date: str = ""
    location: str = ""
    body: bytes = b""


def meaning(status: int) -> Meaning:
    """What a status says of the records. Source: RFC 9110, section 15; RFC 6585, section 4."""
    if 200 <= status < 300:
        return "taken"
    if 300 <= status < 400:
        return "moved"
    if status in _LATER or 500 <= status < 600:
        return "later"
    if status in _CREDENTIALS:
        return "credentials"
    if status in _ADDRESS:
        return "address"
    return "refused" if 400 <= status < 500 else "odd"


def retry_after_s(value: str, date: str, now: datetime) -> float:
    """Seconds of a `Retry-After`; 0 where there is none, or it is unreadable or past.

    Source: RFC 9110, section 10.2.3.

    Args:
        value: seconds, or an HTTP date.
        date: the `Date` of the same answer, which an HTTP date is measured from: our clock may be wrong.
        now: the wall clock, for an answer without.
    """
    value = value.strip()
    if re.fullmatch(r"[0-9]+", value):
        return min(float(value), _LONGEST_S)
    until = _time(value)
    if until is None:
        return 0.0
    return min(max((until - (_time(date) or now)).total_seconds(), 0.0), _LONGEST_S)


def judge(where: str, answer: Answer, now: datetime) -> None:
    """Return when the far end has what was sent.

    Args:
        where: the address as it may be shown.
        answer: what it said.
        now: the wall clock.

    Raises:
        LinkDown: it has not, and may have it later.
        Rejected: it never will.
    """
    status, kind = answer.status, meaning(answer.status)
    if kind == "taken":
        return
    said = f": {text}" if (text := excerpt(answer.body)) else ""
    if kind == "refused":
        raise Rejected(f"{where}: refused with {status}{said}")
    asked_s = retry_after_s(answer.retry_after, answer.date, now)
    raise LinkDown(f"{where}: {_what(kind, answer, asked_s)}", retry_after_s=asked_s)


def excerpt(body: bytes) -> str:
    """The beginning of what a far end says, fit to be shown on one line."""
    text = body[: 4 * _EXCERPT].decode("utf-8", "replace")
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _EXCERPT else f"{line[:_EXCERPT]}..."


def _what(kind: Meaning, answer: Answer, asked_s: float) -> str:
    status = answer.status
    if kind == "credentials" and status == 407:
        return "the proxy answered 407: it wants credentials (use one that knows this device by its address)"
    if kind == "credentials":
        return (
            f"the credentials are refused with {status} "
            "(renew link.token_file, link.header_files or link.tls.certificate; they are read again)"
        )
    if kind == "moved":
        to = _shown(answer.location)
        return f"answered {status}, a redirect{to}, which is not followed (put the address into link.url)"
    if kind == "address":
        return f"answered {status} (check link.url, link.format and link.compression)"
    asked = f", asks to be left alone for {asked_s:.0f} s" if asked_s else ""
    return f"answered {status}{asked} (try again later)"


def _shown(location: str) -> str:
    """Where a redirect leads, without what may be secret of it."""
    try:
        parts = urlsplit(location)
    except ValueError:
        return ""
    text = excerpt(f"{parts.netloc.rpartition('@')[2]}{parts.path}".encode())
    scheme = f"{parts.scheme}://" if parts.scheme else ""
    return f" to {scheme}{text}" if text else ""


def _time(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
