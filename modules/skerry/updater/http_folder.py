"""A layout as files behind an HTTP(S) server: any server of files will do, with ranges or without."""

from __future__ import annotations

import http.client
import re
import ssl
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager

from skerry.errors import PackageError
from skerry.models.oci import Blob
from skerry.updater.web import Patience, Web, address, check_name, check_plain, pieces, refuse, whole

_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)")
Headers = Callable[[], Mapping[str, str]]
"""What proves who asks, made anew for each request."""


def nobody() -> Mapping[str, str]:
    """Without a login."""
    return {}


class HttpSource:
    """A layout behind a URL. Redirects are not followed, compressed answers not taken.

    Args:
        url: of its folder, http or https, without user, query and fragment.
        patience: with the far end.
        tls: whom to trust; the system's authorities otherwise.
        headers: what proves who asks.

    Raises:
        ConfigError: the URL is none of these.
    """

    def __init__(
        self, url: str, patience: Patience = Patience(), *,  # noqa: B008 - frozen
        tls: ssl.SSLContext | None = None, headers: Headers = nobody,
    ) -> None:  # fmt: skip
        where = address(url)
        self._base = where.joined(where.target.rstrip("/"))
        self.where = self._base.shown
        self._web = Web(patience, tls)
        self._headers = headers

    def document(self, name: str, most: int, *, within_s: float | None = None, cut: bool = False) -> bytes:
        """As every source does it, in so many seconds; with `cut` the beginning of what is too large."""
        check_name(name, self.where)
        with self._asked(name, 0, most, within_s) as answer:
            return whole(answer, most, f"{self.where}/{name}", cut=cut)

    def blob(self, blob: Blob, start: int) -> Generator[bytes, None, None]:
        name = f"blobs/sha256/{blob.digest}"
        with self._asked(name, start, blob.size) as answer:
            yield from content(answer, blob, start, f"{self.where}/{name}")

    @contextmanager
    def _asked(
        self, name: str, start: int, most: int, within_s: float | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """The answer to one request, its head read and judged."""
        where = f"{self.where}/{name}"
        asked = self._base.joined(f"{self._base.target}/{name}")
        until = None if within_s is None else self._web.by(within_s)
        with self._web.ask("GET", asked, {**self._headers(), **ranged(start)}, most, until=until) as answer:
            if answer.status not in ((200, 206) if start else (200,)):
                refuse(answer, where)
            check_plain(answer, where)
            yield answer


def ranged(start: int) -> dict[str, str]:
    """The header that asks for what is from a byte on."""
    return {"Range": f"bytes={start}-"} if start else {}


def content(
    answer: http.client.HTTPResponse, blob: Blob, start: int, where: str
) -> Generator[bytes, None, None]:
    """What an answer has of a blob from a byte on; it may end early.

    Raises:
        PackageError: it is of another size, or another part of it.
    """
    skip, at = _begins(answer, blob, start, where), start
    for piece in pieces(answer):
        if skip >= len(piece):
            skip -= len(piece)
            continue
        rest, skip = piece[skip:], 0
        at += len(rest)
        if at > blob.size:
            raise PackageError(f"{where}: expected {blob.size} bytes, got more")
        yield rest


def _begins(answer: http.client.HTTPResponse, blob: Blob, start: int, where: str) -> int:
    """How many bytes of the answer come before `start`: a server need not know ranges."""
    begins, size = 0, None
    if answer.status == 206:
        found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != start:
            raise PackageError(f"{where}: expected bytes from {start}, got another range")
        begins, size = start, None if found[2] == "*" else int(found[2])
    elif answer.length is not None:
        size = answer.length
    if size is not None and size != blob.size:
        raise PackageError(f"{where}: expected {blob.size} bytes, got {size}")
    return start - begins
