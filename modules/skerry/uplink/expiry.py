"""When credentials end: certificates and tokens in files, told in time. Nothing is verified here.

The standard library reads the dates of an authority's certificate only, so a few lines walk through DER
to the validity of any.

Source: RFC 5280, sections 4.1 and 4.1.2.5; ITU-T X.690, section 8.1; RFC 7468; RFC 7519, section 4.1.
"""

from __future__ import annotations

import base64
import binascii
import calendar
import math
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import structlog

from skerry.clock import utc
from skerry.service import Host
from skerry.uplink.credentials import Stamp, stamp

_DAY_S = 86_400.0
WARN_DAYS = (30, 7, 1, 0)
"""Days left at which a credential is spoken of; 0: it is over."""
FAULT_DAYS = 7
"""From here on the module is degraded."""
_YEAR_10000 = 253_402_300_800
_EVERY_S = 60.0
"""How often files are looked at."""
_MOST_BYTES = 1024 * 1024
"""Of a file; a system's bundle of authorities has a quarter of it."""
_PEM = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END")
_SEQUENCE, _UTC_TIME, _GENERALIZED_TIME, _VERSION = 0x30, 0x17, 0x18, 0xA0
_JWT = re.compile(rb"(?:Bearer\s+)?[A-Za-z0-9_-]+\.([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]*\s*", re.ASCII)

log = structlog.get_logger()
Kind = Literal["certificate", "authority", "token"]


class Source(NamedTuple):
    """A file that holds a credential."""

    file: str
    kind: Kind


class Validity(NamedTuple):
    """From when and until when a credential is good, POSIX time in seconds."""

    begins: float
    """Minus infinity where it is not said."""
    ends: float


class Notice(NamedTuple):
    """What is to be said of a file now."""

    file: str
    days: float
    """That are left; negative when it is over."""
    ends: float
    """POSIX time in seconds."""
    level: int
    """Which of `WARN_DAYS` it is."""


# What a file says


def validity(kind: Kind, content: bytes) -> Validity | None:
    """How long a credential is good; None where it does not say so. Never raises.

    Of a certificate and its chain it is the first that counts, of a bundle of authorities the one that
    ends last: which of them the far end needs nobody knows, and during an exchange there are two.
    """
    if kind == "token":
        return _of_token(content)
    found = [one for one in map(_of_certificate, _blocks(content)) if one is not None]
    if not found:
        return None
    return found[0] if kind == "certificate" else max(found, key=lambda one: one.ends)


def _blocks(pem: bytes) -> Iterator[bytes]:
    for match in _PEM.finditer(pem):
        try:
            yield base64.b64decode(b"".join(match[1].split()), validate=True)
        except binascii.Error:
            log.debug("certificate.not_read", reason="no base64")


def _of_certificate(der: bytes) -> Validity | None:
    try:
        return _read_validity(der)
    except ValueError as error:
        log.debug("certificate.not_read", reason=str(error))
        return None


def _read_validity(der: bytes) -> Validity:
    """The dates of a certificate in DER.

    Raises:
        ValueError: it is none.
    """
    at, _ = _enter(der, 0, _SEQUENCE)  # Certificate
    at, end = _enter(der, at, _SEQUENCE)  # TBSCertificate
    if at < end and der[at] == _VERSION:
        at = _value(der, at)[2]
    for _ in range(3):  # serialNumber, signature, issuer
        at = _value(der, at)[2]
    at, _ = _enter(der, at, _SEQUENCE)
    begins, at = _time(der, at)
    ends, _ = _time(der, at)
    return Validity(begins, ends)


def _enter(der: bytes, at: int, tag: int) -> tuple[int, int]:
    found, start, end = _value(der, at)
    if found != tag:
        raise ValueError(f"expected tag {tag:#x} at {at}, got {found:#x}")
    return start, end


def _value(der: bytes, at: int) -> tuple[int, int, int]:
    """Tag, start and end of the value that begins here.

    Raises:
        ValueError: it is not all there.
    """
    head = der[at : at + 2]
    if len(head) < 2:
        raise ValueError(f"expected a value at {at}, got nothing")
    size, start = head[1], at + 2
    if size & 0x80:
        octets = size & 0x7F
        if not 1 <= octets <= 4:
            raise ValueError(f"expected a length of 1 to 4 bytes at {at}, got {octets}")
        start += octets
        size = int.from_bytes(der[at + 2 : start], "big")
    if start + size > len(der):
        raise ValueError(f"expected {size} bytes at {start}, got fewer")
    return head[0], start, start + size


def _time(der: bytes, at: int) -> tuple[float, int]:
    """A time as POSIX time in seconds, and where the next value begins.

    Raises:
        ValueError: it is none.
    """
    tag, start, end = _value(der, at)
    text = der[start:end].decode("ascii", "replace")
    if tag == _UTC_TIME and re.fullmatch(r"[0-9]{12}Z", text):
        text = ("19" if text[0] >= "5" else "20") + text  # RFC 5280: 50 and above is 19YY
    elif tag != _GENERALIZED_TIME or not re.fullmatch(r"[0-9]{14}Z", text):
        raise ValueError(f"expected a time at {at}, got tag {tag:#x}")
    return float(calendar.timegm(datetime.strptime(text, "%Y%m%d%H%M%SZ").timetuple())), end  # noqa: DTZ007 - the Z says UTC


class _Claims(msgspec.Struct):
    exp: float | None = None
    iat: float | None = None
    nbf: float | None = None


def _of_token(content: bytes) -> Validity | None:
    """The times of a JSON Web Token; None for a token of any other sort."""
    match = _JWT.fullmatch(content)
    if match is None:
        return None
    try:
        raw = base64.urlsafe_b64decode(match[1] + b"=" * (-len(match[1]) % 4))
        claims = msgspec.json.decode(raw, type=_Claims)
    except (ValueError, msgspec.MsgspecError, RecursionError):  # no JSON: a token of another sort
        return None
    if claims.exp is None or not 0 <= claims.exp <= _YEAR_10000:
        return None
    begins = claims.iat if claims.iat is not None else claims.nbf
    return Validity(-math.inf if begins is None else begins, claims.exp)


# What is to be said of it


def level(found: Validity, now: float) -> int | None:
    """Which of `WARN_DAYS` has been reached; None: none yet.

    One in which the whole life of a credential lies says nothing: what lives for a day is exchanged
    every day.

    Args:
        found: how long it is good.
        now: POSIX time in seconds.
    """
    left, life = (found.ends - now) / _DAY_S, (found.ends - found.begins) / _DAY_S
    reached = [days for days in WARN_DAYS if left <= days and (days == 0 or life > days)]
    return min(reached, default=None)


def sources(link: Any) -> list[Source]:
    """The files in a link's settings that may hold what ends."""
    found: list[Source] = []
    for name in link.__struct_fields__:
        value = getattr(link, name)
        if isinstance(value, msgspec.Struct):
            found += sources(value)
        elif name == "header_files":
            found += [Source(file, "token") for file in value.values()]
        elif isinstance(value, str) and value and (kind := _kind(name)):
            found.append(Source(value, kind))
    return list(dict.fromkeys(found))


def _kind(field: str) -> Kind | None:
    if field == "ca":
        return "authority"
    if field == "certificate" or field.endswith("_certificate"):
        return "certificate"
    return "token" if field == "token_file" else None


class _Known(NamedTuple):
    """What is known of a file."""

    stamp: Stamp | None
    found: Validity | None


class Watch:
    """Files, what they say, and what has been said of them.

    Args:
        sources: the files; they need not be there.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = tuple(sources)
        self._known: dict[str, _Known] = {}
        self._told: dict[str, int] = {}

    def look(self) -> None:
        """Read what has changed."""
        for source in self._sources:
            now = stamp(source.file)
            before = self._known.get(source.file)
            if before is not None and before.stamp == now:
                continue
            found = None if now is None else validity(source.kind, _content(source.file))
            if before is None or found != before.found:
                self._told.pop(source.file, None)
            self._known[source.file] = _Known(now, found)

    def days(self, now: float) -> dict[str, float]:
        """What each file has left, where it says so.

        Args:
            now: POSIX time in seconds.
        """
        return {f: (k.found.ends - now) / _DAY_S for f, k in self._known.items() if k.found is not None}

    def notices(self, now: float) -> list[Notice]:
        """What is to be said now and was not yet; of each file at most one.

        Args:
            now: POSIX time in seconds, of a clock that can be believed.
        """
        due = []
        for file, (_, found) in self._known.items():
            reached = None if found is None else level(found, now)
            if found is None or reached is None:
                self._told.pop(file, None)
            elif reached < self._told.get(file, math.inf):
                self._told[file] = reached
                due.append(Notice(file, round((found.ends - now) / _DAY_S, 2), found.ends, reached))
        return due

    def fault(self) -> str:
        """What is wrong, of what was said; empty: nothing."""
        bad = [
            f"{file}: {'ends' if told else 'ended'} {utc(known.found.ends)}"
            for file, known in self._known.items()
            if (told := self._told.get(file, math.inf)) <= FAULT_DAYS and known.found is not None
        ]
        return f"{'; '.join(bad)} (put a new one in its place, it is read again)" if bad else ""


class Expiry:
    """The credentials of a link, told in log, metrics and status.

    A clock that nobody set may be wrong by years, so with one nothing is said but that a file which
    was about to end has been exchanged.

    Args:
        link: its settings.
        host: of the process.
        more: files that the settings do not name.
    """

    def __init__(self, link: Any, host: Host, more: Sequence[Source] = ()) -> None:
        self._host = host
        self._watch = Watch([*sources(link), *more])
        self._next_s = -math.inf

    def due(self, now_s: float) -> bool:
        """Whether it is time for a `step`, at a monotonic time in seconds."""
        return now_s >= self._next_s

    def step(self, now_s: float, unix_s: float, synchronised: bool) -> None:
        """Look at the files, and say what is to be said.

        Args:
            now_s: monotonic time in seconds.
            unix_s: POSIX time in seconds.
            synchronised: whether that can be believed.
        """
        self._next_s = now_s + _EVERY_S
        self._watch.look()
        if synchronised:
            for notice in self._watch.notices(unix_s):
                tell = log.error if notice.level == 0 else log.warning
                tell("credentials.expiring", file=notice.file, ends=utc(notice.ends), days=notice.days)
            for file, days in self._watch.days(unix_s).items():
                self._host.telemetry.gauge("skerry_credential_days", round(days, 2), file=file)
        if reason := self._watch.fault():
            self._host.fault("credentials", reason)
        else:
            self._host.clear("credentials")


def _content(file: str) -> bytes:
    try:
        with Path(file).open("rb") as opened:
            return opened.read(_MOST_BYTES)
    except OSError as error:
        log.warning("credentials.not_read", error=f"{file}: {error.strerror or error}")
        return b""
