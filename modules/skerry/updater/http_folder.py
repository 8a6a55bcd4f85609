"""A layout as files behind an HTTP(S) server: any server of files will do, with ranges or without."""

from __future__ import annotations

import http.client
import re
import ssl
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import NoReturn
from urllib.parse import urlsplit

from skerry.errors import ConfigError, LinkDown, PackageError, Unavailable
from skerry.models.oci import Blob
from skerry.updater.fetch import NotThere

PIECE = 64 * 1024
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*")
_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)")
_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})


class HttpSource:
    """A layout behind a URL. Redirects are not followed, compressed answers not taken.

    Args:
        url: of its folder, http or https, without user, query and fragment.
        timeout_s: how long to wait for a connection, and for each piece.
        least_bytes_per_s: the far end is given up where it sends less over `patience_s`.
        patience_s: see there; time that the caller spends between two pieces does not count.
        tls: whom to trust; the system's authorities otherwise.
        clock: monotonic seconds.

    Raises:
        ConfigError: the URL is none of these.
    """

    def __init__(
        self, url: str, *, timeout_s: float = 15.0, least_bytes_per_s: int = 256, patience_s: float = 60.0,
        tls: ssl.SSLContext | None = None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise ConfigError(f"expected an http or https address without a user, got {parts.scheme}://...")
        if parts.query or parts.fragment:
            raise ConfigError(f"{parts.scheme}://{parts.netloc}: expected an address without ? and #")
        self.where = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._host, self._port, self._path = parts.hostname, parts.port, parts.path.rstrip("/")
        self._tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        self._timeout_s = timeout_s
        self._least = least_bytes_per_s
        self._patience_s = patience_s
        self._clock = clock

    def document(self, name: str, most: int) -> bytes:
        if not _NAME.fullmatch(name):
            raise PackageError(f"{self.where}: expected a path inside it, got {name[:80]!r}")
        content = bytearray()
        with self._asked(name, 0) as answer:
            for piece in self._pieces(answer, name):
                content += piece
                if len(content) > most:
                    raise PackageError(f"{self.where}/{name}: expected at most {most} bytes, got more")
            self._check_end(answer, len(content), name)
        return bytes(content)

    def blob(self, blob: Blob, start: int) -> Generator[bytes, None, None]:
        name = f"blobs/sha256/{blob.digest}"
        with self._asked(name, start) as answer:
            skip, at = self._begins(answer, blob, start, name), start
            for piece in self._pieces(answer, name):
                if skip >= len(piece):
                    skip -= len(piece)
                    continue
                rest, skip = piece[skip:], 0
                at += len(rest)
                if at > blob.size:
                    raise PackageError(f"{self.where}/{name}: expected {blob.size} bytes, got more")
                yield rest

    def _begins(self, answer: http.client.HTTPResponse, blob: Blob, start: int, name: str) -> int:
        """How many bytes of the answer come before `start`: a server need not know ranges."""
        begins, size = 0, None
        if answer.status == 206:
            found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            if found is None or int(found[1]) != start:
                raise PackageError(f"{self.where}/{name}: expected bytes from {start}, got another range")
            begins, size = start, None if found[2] == "*" else int(found[2])
        elif answer.length is not None:
            size = answer.length
        if size is not None and size != blob.size:
            raise PackageError(f"{self.where}/{name}: expected {blob.size} bytes, got {size}")
        return start - begins

    @contextmanager
    def _asked(self, name: str, start: int) -> Iterator[http.client.HTTPResponse]:
        """The answer to one request, its head read and judged."""
        headers = {"Accept-Encoding": "identity", "Connection": "close", "User-Agent": "skerry"}
        if start:
            headers["Range"] = f"bytes={start}-"
        try:
            with closing(self._connection()) as connection:
                connection.request("GET", f"{self._path}/{name}", headers=headers)
                answer = connection.getresponse()
                if answer.status not in ((200, 206) if start else (200,)):
                    self._refuse(answer, name)
                if answer.headers.get("Content-Encoding", "identity") != "identity":
                    raise PackageError(f"{self.where}/{name}: expected the file as it is, got it compressed")
                yield answer
        except (OSError, http.client.HTTPException) as error:
            raise LinkDown(f"{self.where}/{name}: {error or type(error).__name__} (try again)") from error

    def _connection(self) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=self._tls)

    def _pieces(self, answer: http.client.HTTPResponse, name: str) -> Iterator[bytes]:
        """The body, as it comes, unless it comes too slowly."""
        waited, came = 0.0, 0
        while True:
            began = self._clock()
            piece = answer.read1(PIECE)
            waited += self._clock() - began
            came += len(piece)
            if not piece:
                return
            if waited >= self._patience_s:
                if came < self._least * waited:
                    raise LinkDown(
                        f"{self.where}/{name}: expected {self._least} bytes a second, got {came / waited:.0f}"
                    )
                waited, came = 0.0, 0
            yield piece

    def _check_end(self, answer: http.client.HTTPResponse, size: int, name: str) -> None:
        if answer.length:
            raise LinkDown(f"{self.where}/{name}: expected {size + answer.length} bytes, got {size}")

    def _refuse(self, answer: http.client.HTTPResponse, name: str) -> NoReturn:
        where = f"{self.where}/{name}"
        if answer.status in (404, 410):
            raise NotThere(f"{where}: expected it, got {answer.status} (is the copy complete?)")
        if answer.status in _LATER:
            after = answer.headers.get("Retry-After", "")
            seconds = float(after) if after.isdecimal() and len(after) < 6 else 0.0
            raise LinkDown(f"{where}: expected it, got {answer.status} (try later)", retry_after_s=seconds)
        raise Unavailable(
            f"{where}: expected it, got {answer.status} {answer.reason[:40]} "
            "(name where it is, and see who may read it)"
        )
