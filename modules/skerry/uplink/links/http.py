"""The far end is an HTTP/1.1 server that takes CloudEvents, on the standard library's client.

One POST an event (structured content mode), or one a batch (`skerry.batches`), on one connection that is
kept. A server may refuse what it gets, so one batch is under way at a time. Requests are made on a
thread of their own: `finish` watches the time, and lets go of the connection when there is none left.

Source: CloudEvents 1.0.2, HTTP protocol binding, sections 3.2 and 3.3; RFC 9110; RFC 9112, section 9.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import ipaddress
import math
import re
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import structlog

from skerry import __version__
from skerry.batches import CONTENT_TYPE, compressor, encode
from skerry.errors import LinkDown, Rejected
from skerry.settings import TlsSettings
from skerry.uplink import settings as given
from skerry.uplink.answers import Answer, excerpt, judge
from skerry.uplink.credentials import Watched, context, secret
from skerry.uplink.limits import Bounds
from skerry.uplink.links import Cost, Link
from skerry.uplink.record import Record
from skerry.uplink.wire import Target, Wire, WireError, target

IDEMPOTENCY = "Idempotency-Key"
"""Of a request: the same for the same events, however often they are sent. A quoted string, as in
draft-ietf-httpapi-idempotency-key-header-07, section 2.1."""
_EVENT_TYPE = "application/cloudevents+json"
_CONNECT_S = 20.0
_CLOSE_S = 1.0
"""How long `close` waits for the thread that it has cut off."""
_RELEASE_S = 0.2
"""How long a thread that was cut off may take to notice."""
_HUNG_UP = (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError, ssl.SSLEOFError)
"""What a far end looks like that closed a connection which was kept."""

_REFUSED_US = re.compile("ALERT_.*(CERTIFICATE|UNKNOWN_CA|ACCESS_DENIED|HANDSHAKE_FAILURE)")
"""OpenSSL's names of what a far end says that does not like our certificate."""

log = structlog.get_logger()


class Request(NamedTuple):
    """What one POST carries."""

    headers: dict[str, str]
    body: bytes


def idempotency_key(batch: Sequence[Record]) -> str:
    """32 hexadecimal digits made of what tells the events of a request from all others."""
    digest = hashlib.sha256()
    for record in batch:
        for part in (record.envelope.source, record.envelope.id):
            raw = part.encode()
            digest.update(len(raw).to_bytes(4, "big") + raw)
    return digest.hexdigest()[:32]


class HttpLink(Link):
    """One kept connection to a server.

    Args:
        settings: where it is and how to prove who we are.
        stop: once set, nothing waits any more.
        bounds: of the size of a message; the rest is for others to keep.

    Raises:
        ConfigError: a file cannot be read, or the package for the compression is missing.
    """

    def __init__(
        self, settings: given.HttpLink, stop: threading.Event,
        bounds: Bounds = Bounds(),  # noqa: B008 - frozen
    ) -> None:  # fmt: skip
        self._settings = settings
        self._stop = stop
        self.window = 1
        self.whole = settings.format == "batch"
        self._max_payload = int(min(settings.max_payload_bytes, bounds.message_bytes))
        self.max_bytes = self._max_payload - 2 if self.whole else math.inf
        self._compress = compressor(settings.compression)
        self._login = Login(settings)
        self._far = target(settings.url)
        self._where = self._far.shown
        if self._login.secret and self._far.scheme == "http" and not _loopback(self._far.host):
            log.warning("http.credentials_in_clear", url=self._where)
        self._session: Session | None = None
        self._job: Job | None = None

    def open(self) -> None:
        self.close()
        session = self._session = Session(self._settings, self._login)
        try:
            session.connect(time.monotonic() + self._settings.timeout_s)
        except LinkDown:
            self.close()
            raise

    def start(self, batch: Sequence[Record]) -> Cost:
        session = self._session
        if session is None:
            raise LinkDown(f"{self._where}: the link is closed (open it first)")
        assert self._job is None, "one batch at a time"
        requests = self._requests(batch)
        self._job = Job(session, requests, self._settings.timeout_s)
        self._job.start()
        return Cost(len(requests), sum(len(request.body) for request in requests))

    def finish(self, timeout_s: float = math.inf) -> bool:
        if self._session is None:
            raise LinkDown(f"{self._where}: the link is closed (open it again)")
        job = self._job
        if job is None:
            return False
        until = time.monotonic() + timeout_s
        while not job.done.wait(max(min(until - time.monotonic(), 0.1), 0.0)):
            now = time.monotonic()
            if self._stop.is_set():
                self.close()
                raise LinkDown(f"{self._where}: stopping")
            if now > job.deadline:
                self.close()
                raise LinkDown(_late(self._where, self._settings))
            if now >= until:
                return False
        self._job = None
        if not job.failure:
            return True
        if not isinstance(job.failure[0], Rejected):
            self.close()
        raise job.failure.pop()  # out of the list: the error knows this frame, and would keep itself alive

    def close(self) -> None:
        session, self._session = self._session, None
        job, self._job = self._job, None
        if session is not None:
            session.abandon()
        if job is not None:
            job.join(_CLOSE_S)
        if session is not None:
            session.close()

    def _requests(self, batch: Sequence[Record]) -> list[Request]:
        """What a batch is as requests.

        Raises:
            Rejected: one would be too large.
        """
        if self.whole:
            return [self._request(batch, encode([record.raw for record in batch]), CONTENT_TYPE)]
        return [self._request([record], record.raw, _EVENT_TYPE) for record in batch]

    def _request(self, batch: Sequence[Record], content: bytes, kind: str) -> Request:
        body = self._compress(content)
        if len(body) > self._max_payload:
            raise Rejected(
                f"{batch[0].envelope.id}: expected at most {self._max_payload} bytes, got {len(body)}"
            )
        headers = {"Content-Type": kind, IDEMPOTENCY: f'"{idempotency_key(batch)}"'}
        if body is not content:  # what would only grow stays as it is
            headers["Content-Encoding"] = self._settings.compression
        return Request(headers, body)


class Login:
    """Who we are, from files that are read again when they change.

    Raises:
        ConfigError: a file cannot be read.
    """

    def __init__(self, settings: given.HttpLink) -> None:
        self._plain = dict(settings.headers)
        if "user-agent" not in {name.lower() for name in (*settings.headers, *settings.header_files)}:
            self._plain["User-Agent"] = f"skerry/{__version__}"
        self._files = {
            name: secret(f"link.header_files.{name}", file) for name, file in settings.header_files.items()
        }
        self._token = secret("link.token_file", settings.token_file) if settings.token_file else None
        secure = settings.url.lower().startswith("https:")
        self._tls = context(settings.tls or TlsSettings()) if secure else None
        self.secret = bool(self._files or self._token)
        self._told: list[str] = []

    def headers(self) -> dict[str, str]:
        """Of every request."""
        files = {name: file.get() for name, file in self._files.items()}
        found = {**self._plain, **files}
        self._told = list(files.values())
        if self._token is not None:
            token = self._token.get()
            found["Authorization"] = f"Bearer {token}"
            self._told.append(token)
        return found

    def tls(self) -> tuple[ssl.SSLContext | None, int]:
        """For https, and the number of the files' version: a connection of an older one is not used."""
        if self._tls is None:
            return None, 0
        return self._tls.get(), self._tls.version

    def doubt(self) -> None:
        """They were refused: read all of them again."""
        watched: list[Watched[str] | Watched[ssl.SSLContext]] = [*self._files.values()]
        watched += [one for one in (self._token, self._tls) if one is not None]
        for one in watched:
            one.doubt()

    def hide(self, answer: Answer) -> Answer:
        """The same without the secrets of the last request: some servers repeat what they dislike."""
        body = answer.body
        for told in self._told:
            body = body.replace(told.encode(), b"***")
        return answer._replace(body=body)


class Session:
    """What lies between `open` and `close`: one connection after another."""

    def __init__(self, settings: given.HttpLink, login: Login) -> None:
        self._settings = settings
        self._login = login
        self._far = target(settings.url)
        self._proxy: Target | None = target(settings.proxy) if settings.proxy else None
        self._where = self._far.shown
        self._use = threading.RLock()  # held by the thread that is at work with the connection
        self._lock = threading.Lock()
        self._abandoned = False
        self._wire: Wire | None = None
        self._version = 0

    def connect(self, deadline: float) -> Wire:
        """A new connection.

        Raises:
            LinkDown: the far end cannot be reached, or is not who it should be.
        """
        with self._used():
            return self._connect(deadline)

    def _connect(self, deadline: float) -> Wire:
        tls, self._version = self._login.tls()
        wire = Wire(self._far, self._proxy, tls)
        with self._lock:
            old, self._wire = self._wire, wire
            abandoned = self._abandoned
        if old is not None:
            old.close()
        if abandoned:
            raise LinkDown(f"{self._where}: closed")
        try:
            wire.connect(min(deadline, time.monotonic() + _CONNECT_S))
        except (OSError, ValueError, WireError) as error:
            wire.close()
            raise self._down("cannot connect: ", error) from error
        return wire

    def post(self, request: Request, deadline: float) -> None:
        """Send a request, and return when the far end has what is in it.

        Raises:
            LinkDown: it did not say so.
            Rejected: it never will.
        """
        with self._used():
            self._post(request, deadline)

    def _post(self, request: Request, deadline: float) -> None:
        wire, kept = self._wire, True
        if wire is None or wire.stale or self._login.tls()[1] != self._version:
            wire, kept = self._connect(deadline), False
        headers = {**self._login.headers(), **request.headers}
        try:
            try:
                answer = wire.post(headers, request.body, deadline)
            except _HUNG_UP:
                if not kept:
                    raise
                # It hung up just as we began: no failure, and what is sent twice has the same key.
                answer = self._connect(deadline).post(headers, request.body, deadline)
        except TimeoutError as error:
            raise LinkDown(_late(self._where, self._settings)) from error
        except (OSError, ValueError, http.client.HTTPException, WireError) as error:
            raise self._down("no answer: ", error) from error
        if answer.status in (401, 403):
            self._login.doubt()
        judge(self._where, self._login.hide(answer), datetime.now(UTC))

    def abandon(self) -> None:
        """Let go of it, on any thread; whoever uses it gets an error."""
        with self._lock:
            self._abandoned = True
            wire = self._wire
        if wire is not None:
            wire.abandon()

    def close(self) -> None:
        """Let go of it; a thread that is still at work does so itself: name resolution cannot be cut off."""
        if self._use.acquire(timeout=_RELEASE_S):
            try:
                if self._wire is not None:
                    self._wire.close()
            finally:
                self._use.release()

    @contextlib.contextmanager
    def _used(self) -> Iterator[None]:
        with self._use:
            try:
                yield
            finally:
                if self._abandoned and self._wire is not None:
                    self._wire.close()

    def _down(self, what: str, error: Exception) -> LinkDown:
        tls = self._settings.tls or TlsSettings()
        if isinstance(error, ssl.SSLCertVerificationError):
            flaw = error.verify_message.rstrip(".")
            hint = f"check link.tls.ca {tls.ca or 'of the system'}, and the clock"
            if "mismatch" in flaw:
                hint = "check the name in link.url"
            return LinkDown(f"{self._where}: the far end is not trusted: {flaw} ({hint})")
        if isinstance(error, ssl.SSLError) and _REFUSED_US.search(error.reason or ""):
            self._login.doubt()
            said = error.reason.lower().replace("_", " ")
            hint = f"renew link.tls.certificate {tls.certificate or '(none is given)'}; it is read again"
            return LinkDown(f"{self._where}: the credentials are refused: {said} ({hint})")
        if isinstance(error, WireError):
            return LinkDown(f"{self._where}: {error}")
        why = (
            error.strerror if isinstance(error, OSError) and error.strerror else excerpt(str(error).encode())
        )
        return LinkDown(f"{self._where}: {what}{why or type(error).__name__} (check address and network)")


class Job(threading.Thread):
    """The requests of a batch, one after the other.

    Attributes:
        deadline: monotonic time in seconds by which the present request must have its answer.
        done: it is over.
        failure: what it failed of, if it did.
    """

    def __init__(self, session: Session, requests: Sequence[Request], timeout_s: float) -> None:
        super().__init__(name="post", daemon=True)
        self._session = session
        self._requests = requests
        self._timeout_s = timeout_s
        self.deadline = time.monotonic() + timeout_s
        self.done = threading.Event()
        self.failure: list[Exception] = []

    def run(self) -> None:
        try:
            for request in self._requests:
                self.deadline = time.monotonic() + self._timeout_s
                self._session.post(request, self.deadline)
        except Exception as error:  # noqa: BLE001 - raised by `finish`, on the link's own thread
            self.failure.append(error)
        finally:
            self.done.set()


def _late(where: str, settings: given.HttpLink) -> str:
    return f"{where}: did not answer within {settings.timeout_s:g} s"


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
