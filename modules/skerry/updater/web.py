"""One request over HTTP(S) at a time, on the standard library's client, with bounds on all that comes.

A far end may be slow to connect, drip its head or its body, send headers, interim answers or trailers
without an end, announce one length and send another, or point elsewhere. Each costs no more than its
bound, and is told in our words. Who asks says what a status means.

Source: RFC 9110 (semantics), RFC 9112 (messages).
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn
from urllib.parse import urljoin, urlsplit

from skerry.errors import ConfigError, LinkDown, PackageError, Unavailable
from skerry.updater.fetch import NotThere

PIECE = 64 * 1024
_AROUND = 512 * 1024
"""Bytes of an answer that may be something else than its body: heads, frames of chunks, trailers."""
_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*")
_SENDABLE = re.compile(r"[!-~]+")


class Forbidden(Unavailable):
    """The far end knows who asks, and does not answer."""


@dataclass(frozen=True)
class Address:
    """What a URL says.

    Attributes:
        secure: https.
        host: name or address.
        port: None is the scheme's own.
        target: path and query; the query may hold a secret.
    """

    secure: bool
    host: str
    port: int | None
    target: str

    @property
    def origin(self) -> tuple[bool, str, int]:
        """Who is asked: two addresses of one origin may see the same login."""
        return self.secure, self.host, self.port or (443 if self.secure else 80)

    @property
    def base(self) -> str:
        """scheme://host[:port]."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' * self.secure}://{host}{f':{self.port}' * (self.port is not None)}"

    @property
    def shown(self) -> str:
        """The address for messages: without its query."""
        return f"{self.base}{self.target.partition('?')[0]}"

    @property
    def keeps_secrets(self) -> bool:
        """Whether nobody in between reads what is sent: https, or this machine."""
        if self.secure or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def joined(self, target: str) -> Address:
        """Another target of the same origin."""
        return Address(self.secure, self.host, self.port, target)

    def elsewhere(self, location: str) -> Address:
        """Where an answer from here points to.

        Raises:
            Unavailable: nowhere that we go: another scheme, from https to http, a login in it.
        """
        try:
            if not _SENDABLE.fullmatch(location):
                raise ValueError  # urljoin would leave out what does not belong there
            there = address(urljoin(f"{self.base}{self.target}", location), query=True)
        except (ConfigError, ValueError):
            # Without the cause: a location may hold a secret.
            raise Unavailable(
                f"{self.shown}: expected to be sent to an http or https address, got another one"
            ) from None
        if self.secure and not there.secure:
            raise Unavailable(f"{self.shown}: expected to stay with https, got sent to {there.base}")
        return there


def address(url: str, *, query: bool = False) -> Address:
    """Parse a URL.

    Args:
        url: http or https, without user and fragment.
        query: whether it may have a query.

    Raises:
        ConfigError: it is none of these. Nothing of it that may be a secret is repeated.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError("expected an http or https address, got none") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or port == 0:
        raise ConfigError(f"expected an http or https address without a user, got {parts.scheme[:20]}://...")
    if parts.fragment or (parts.query and not query):
        raise ConfigError(f"{parts.scheme}://{parts.netloc}: expected an address without ? and #")
    if not _SENDABLE.fullmatch(url):
        raise ConfigError(
            f"{parts.scheme}://...: expected an address of visible ASCII (percent-encode the rest)"
        )
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    return Address(parts.scheme == "https", parts.hostname, port, target)


@dataclass(frozen=True)
class Patience:
    """How long a far end is waited for.

    Attributes:
        timeout_s: for a connection, and for each piece.
        least_bytes_per_s: it is given up where it sends less over `patience_s`.
        patience_s: see there; time that the caller spends between two pieces does not count.
        clock: monotonic seconds.
    """

    timeout_s: float = 15.0
    least_bytes_per_s: int = 256
    patience_s: float = 60.0
    clock: Callable[[], float] = time.monotonic


class Web:
    """Asks servers.

    Args:
        patience: with them.
        tls: whom to trust, and who we are; the system's authorities otherwise.
    """

    def __init__(self, patience: Patience, tls: ssl.SSLContext | None = None) -> None:
        self._patience = patience
        self._tls = tls

    def by(self, seconds: float) -> float:
        """The end of so many seconds from now, for `ask`."""
        return self._patience.clock() + seconds

    @contextmanager
    def ask(
        self, method: str, where: Address, headers: Mapping[str, str], most: int, *,
        until: float | None = None, body: Iterable[bytes] | None = None,
    ) -> Iterator[http.client.HTTPResponse]:  # fmt: skip
        """The answer to one request, its head read and not judged.

        Args:
            method: e.g. GET.
            where: the address.
            headers: of the request, beside our own; with a body, its Content-Length.
            most: bytes that a good body has at most; the reader still has to count.
            until: when it has to be over, as `by` gives it.
            body: of the request, in pieces.

        Raises:
            LinkDown: the far end cannot be reached, went away, or is too slow.
            PackageError: what it sends has no end.
        """
        own = {"Accept-Encoding": "identity", "Connection": "close", "User-Agent": "skerry"}
        try:
            with closing(self._connection(where, until)) as connection:
                pace = _Pace(self._patience, where.shown, most, until)
                connection.response_class = partial(_Response, pace=pace)  # type: ignore[assignment]  # called, no more
                # Who does not like a request may answer and hang up before it has all of it.
                with suppress(BrokenPipeError, ConnectionResetError):
                    connection.request(
                        method,
                        where.target or "/",
                        headers={**own, **headers},
                        body=body,
                        encode_chunked=False,
                    )
                answer = connection.getresponse()
                try:
                    yield answer
                finally:
                    answer.close()
        except (OSError, http.client.HTTPException) as error:
            raise LinkDown(f"{where.shown}: {_why(error)} (try again)") from error

    def _connection(self, where: Address, until: float | None) -> http.client.HTTPConnection:
        timeout = self._patience.timeout_s
        if until is not None:
            timeout = min(timeout, until - self._patience.clock())
            if timeout <= 0:
                raise LinkDown(f"{where.shown}: expected an end to it by now (try again)")
        if not where.secure:
            return http.client.HTTPConnection(where.host, where.port, timeout=timeout)
        context = self._tls or ssl.create_default_context()
        return http.client.HTTPSConnection(where.host, where.port, timeout=timeout, context=context)


class _Pace:
    """What one far end has sent, and in what time."""

    def __init__(self, patience: Patience, where: str, most: int, until: float | None) -> None:
        self._patience = patience
        self._where = where
        self._until = until
        # A chunk of one byte takes six on the wire.
        self._left = _AROUND + 8 * most
        self._waited, self._came = 0.0, 0

    def read(self, into: Callable[[], int | None], connected: socket.socket) -> int:
        """Read once, and judge."""
        patience, began = self._patience, self._patience.clock()
        if self._until is not None:
            if began >= self._until:
                raise LinkDown(f"{self._where}: expected an end to it by now (try again)")
            connected.settimeout(min(patience.timeout_s, self._until - began))
        size = into() or 0
        self._waited += patience.clock() - began
        self._came += size
        self._left -= size
        if self._left < 0:
            raise PackageError(f"{self._where}: expected an answer with an end, got one without")
        if size and self._waited >= patience.patience_s:
            least = patience.least_bytes_per_s
            if self._came < least * self._waited:
                raise LinkDown(
                    f"{self._where}: expected {least} bytes a second, got {self._came / self._waited:.0f}"
                )
            self._waited, self._came = 0.0, 0
        return size


class _Paced(io.RawIOBase):
    """What a socket receives, counted."""

    def __init__(self, raw: io.RawIOBase, connected: socket.socket, pace: _Pace) -> None:
        self._raw = raw
        self._connected = connected
        self._pace = pace

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        return self._pace.read(lambda: self._raw.readinto(into), self._connected)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """An answer whose every byte, of its head too, is counted."""

    def __init__(self, connected: socket.socket, *args: Any, pace: _Pace, **options: Any) -> None:
        super().__init__(connected, *args, **options)
        assert isinstance(self.fp, io.BufferedReader)
        self.fp = io.BufferedReader(_Paced(self.fp.detach(), connected, pace))


def pieces(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    """A body, as it comes; it may end early."""
    while piece := answer.read1(PIECE):
        yield piece


def whole(answer: http.client.HTTPResponse, most: int, where: str, *, cut: bool = False) -> bytes:
    """A small body.

    Args:
        answer: has it.
        most: bytes that it may have.
        where: names it.
        cut: return one byte more than `most` of what is larger, in place of the error.

    Raises:
        PackageError: it is larger.
        LinkDown: it ended early.
    """
    content = bytearray()
    for piece in pieces(answer):
        content += piece
        if len(content) > most:
            if cut:
                return bytes(content[: most + 1])
            raise PackageError(f"{where}: expected at most {most} bytes, got more")
    if answer.length:
        raise LinkDown(f"{where}: expected {len(content) + answer.length} bytes, got {len(content)}")
    return bytes(content)


def check_plain(answer: http.client.HTTPResponse, where: str) -> None:
    """That an answer is a file as it is.

    Raises:
        PackageError: it is compressed.
        LinkDown: it is a page for people, as whoever wants a login first shows it in place of anything.
    """
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise PackageError(f"{where}: expected the file as it is, got it compressed")
    if answer.headers.get_content_type() in ("text/html", "application/xhtml+xml") and answer.headers.get(
        "Content-Type"
    ):
        raise LinkDown(f"{where}: expected a file, got a page for people (is a portal in between?)")


def check_name(name: str, where: str) -> None:
    """That a name is one of a file below a folder.

    Raises:
        PackageError: it is not.
    """
    if not _NAME.fullmatch(name):
        raise PackageError(f"{where}: expected a path inside it, got {name[:80]!r}")


def refuse(answer: http.client.HTTPResponse, where: str, more: str = "") -> NoReturn:
    """Say what a status means that is not the one wanted.

    Args:
        answer: its head.
        where: what was asked for.
        more: what the far end says of it, made harmless.

    Raises:
        NotThere: 404 or 410.
        Forbidden: 403.
        LinkDown: try later.
        Unavailable: somebody has to do something about it.
    """
    got = f"{answer.status}{f' {more}' if more else ''}"
    if answer.status in (404, 410):
        raise NotThere(f"{where}: expected it, got {got} (is the copy complete?)")
    if answer.status in _LATER:
        after = answer.headers.get("Retry-After", "")
        seconds = float(after) if after.isdecimal() and len(after) < 6 else 0.0
        raise LinkDown(f"{where}: expected it, got {got} (try later)", retry_after_s=seconds)
    if answer.status == 401:
        raise Unavailable(f"{where}: expected it, got {got} (it wants a login, or another one)")
    if answer.status == 403:
        raise Forbidden(f"{where}: expected it, got {got} (see who may read it)")
    if 300 <= answer.status < 400:
        raise Unavailable(f"{where}: expected it, got {got}, a redirect (name where it is)")
    raise Unavailable(
        f"{where}: expected it, got {got if more else f'{got} {answer.reason[:40]}'} "
        "(name where it is, and see who may read it)"
    )


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__
