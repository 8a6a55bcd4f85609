"""Fleet provisioning by claim: a certificate of our own for one that many devices share.

The identity is a folder that appears whole: `rename(2)` of one that was written and synchronised. A
certificate that was made and not used yet is kept with its ownership token, so that a kill, or a template
that says no, does not cost another one; what was asked is noted before it is asked, so that no kill, at
any point, makes for more than one request a minute, an hour after six in vain.

Source: AWS IoT Core developer guide, Device provisioning MQTT API.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import msgspec
import structlog

from skerry.durable import replace
from skerry.errors import ConfigError, LinkDown
from skerry.settings import TlsSettings
from skerry.uplink.links import handshake
from skerry.uplink.links.aws_client import Heard, Sdk, identity
from skerry.uplink.settings import AwsLink

_CONNECT_S = 20.0
_STOP_S = 1.0
_TOKEN_S = 55 * 60.0
"""How long an ownership token is used: it is good for an hour."""
_FIRST_S, _LAST_S = 60.0, 3600.0
"""Between two requests for a certificate."""
_REFUSED_S = 60.0
_REFUSED = 128
_CREATE = "$aws/certificates/create/json"
_MOST_BYTES = 64 * 1024

log = structlog.get_logger()
T = TypeVar("T")


class Device(NamedTuple):
    """Who we are: files, and the thing's name where it is known."""

    tls: TlsSettings
    thing: str


class _Made(msgspec.Struct, frozen=True, rename="camel"):
    """The answer to a request for a certificate."""

    certificate_pem: str
    private_key: str
    certificate_ownership_token: str


class _Registered(msgspec.Struct, frozen=True, rename="camel"):
    thing_name: str = ""


class _Refused(msgspec.Struct, frozen=True, rename="camel"):
    status_code: int = 0
    error_code: str = ""
    error_message: str = ""


class _Progress(msgspec.Struct, kw_only=True):
    """What is on disk before there is an identity."""

    asked: int = 0
    """How often a certificate was asked for."""
    asked_at: float = 0.0
    """When the last time, in seconds of the wall clock: it must outlive a restart."""
    made: _Made | None = None
    """A certificate that is nobody's yet."""
    made_at: float = 0.0


class Provision:
    """Gets an identity, or finds it.

    Args:
        sdk: the client's package.
        settings: of the link.
        client_id: our name as long as we have no other.
        folder: where the identity is kept; made if missing.
        stop: once set, nothing waits any more.
        clock: the wall clock, in seconds.
    """

    def __init__(
        self, sdk: Sdk, settings: AwsLink, client_id: str, folder: Path, stop: threading.Event, *,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._sdk = sdk
        self._settings = settings
        self._id = settings.client_id or client_id
        self._folder = folder
        self._stop = stop
        self._clock = clock
        self._home = folder / "identity"
        self.certificate = self._home / "certificate.pem"
        self._note = folder / "provisioning.json"
        self._where = f"{settings.endpoint}:{settings.port}"

    def found(self) -> Device | None:
        """The identity that is there already."""
        try:
            thing = (self._home / "thing").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self._home}/thing: cannot read it: {error}") from error
        with contextlib.suppress(OSError):  # left by a kill right after the identity was there
            self._note.unlink(missing_ok=True)
        certificate, key = self.certificate, self._home / "private.key"
        tls = msgspec.structs.replace(self._settings.tls, certificate=str(certificate), key=str(key))
        return Device(tls, thing)

    def obtain(self) -> Device:
        """The identity: found, or asked for now.

        Raises:
            LinkDown: there is none yet; what was achieved is kept for the next time.
        """
        if device := self.found():
            return device
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            progress = self._progress()
            made = progress.made if self._good(progress) else None
            if made is None:
                self._may_ask(progress)
            with _Claim(self._sdk, self._settings, self._id, self._stop) as claim:
                if made is None:
                    made = self._make(claim, progress)
                thing = self._register(claim, made)
            self._keep(made, thing)
        except OSError as error:
            raise LinkDown(f"link.provisioning: {self._folder}: cannot keep it: {error.strerror}") from error
        log.info("provisioning.done", thing=thing, template=self._provisioning.template)
        device = self.found()
        assert device is not None
        return device

    @property
    def _provisioning(self) -> Any:
        return self._settings.provisioning

    def _progress(self) -> _Progress:
        try:
            return msgspec.json.decode(self._note.read_bytes(), type=_Progress)
        except FileNotFoundError:
            return _Progress()
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return _Progress(asked=1, asked_at=self._clock())

    def _good(self, progress: _Progress) -> bool:
        return progress.made is not None and 0 <= self._clock() - progress.made_at < _TOKEN_S

    def _may_ask(self, progress: _Progress) -> None:
        """Whether a certificate may be asked for by now.

        Raises:
            LinkDown: not yet.
        """
        if not progress.asked:
            return
        wait_s = min(_FIRST_S * 2 ** min(progress.asked - 1, 10), _LAST_S)
        left_s = wait_s - (self._clock() - progress.asked_at)
        if 0 < left_s <= wait_s:  # more: the clock was set back
            raise LinkDown(
                f"link.provisioning: {progress.asked} certificates were asked for in vain "
                f"(the next one in {left_s:.0f} s)",
                retry_after_s=left_s,
            )

    def _make(self, claim: _Claim, progress: _Progress) -> _Made:
        """Ask for a certificate, and keep it.

        Raises:
            LinkDown: there is none.
        """
        claim.listen(_CREATE)
        noted = _Progress(asked=progress.asked + 1, asked_at=self._clock())
        replace(self._note, msgspec.json.encode(noted))
        made = claim.ask(_CREATE, b"{}", _Made, "the claim is not allowed to make a certificate")
        noted.made, noted.made_at = made, self._clock()
        replace(self._note, msgspec.json.encode(noted))
        return made

    def _register(self, claim: _Claim, made: _Made) -> str:
        """Have the template make a thing of the certificate; the thing's name.

        Raises:
            LinkDown: it says no.
        """
        template = self._provisioning.template
        topic = f"$aws/provisioning-templates/{template}/provision/json"
        claim.listen(topic)
        asked = {
            "certificateOwnershipToken": made.certificate_ownership_token,
            "parameters": self._provisioning.parameters,
        }
        hint = f"the template {template} says no: check link.provisioning.parameters and the template"
        try:
            answer = claim.ask(topic, msgspec.json.encode(asked), _Registered, hint)
        except _TokenRefused:
            noted = self._progress()
            noted.made = None
            replace(self._note, msgspec.json.encode(noted))
            raise
        return answer.thing_name

    def _keep(self, made: _Made, thing: str) -> None:
        """Write the identity: all of it or nothing."""
        draft = self._folder / "identity.new"
        if draft.exists():
            shutil.rmtree(draft)
        draft.mkdir(mode=0o700)
        replace(draft / "certificate.pem", made.certificate_pem.encode())
        replace(draft / "private.key", made.private_key.encode())
        replace(draft / "thing", thing.encode())
        tls = TlsSettings(certificate=str(draft / "certificate.pem"), key=str(draft / "private.key"))
        try:
            identity(tls)
        except ConfigError as error:
            raise LinkDown(
                f"link.provisioning: what IoT Core made is no certificate with its key: {error}"
            ) from error
        draft.rename(self._home)
        _synchronise(self._folder)
        self._note.unlink(missing_ok=True)


class _TokenRefused(LinkDown):
    """The ownership token is good no more."""


class _Claim:
    """A connection with the claim certificate, from `with` to its end."""

    def __init__(self, sdk: Sdk, settings: AwsLink, client_id: str, stop: threading.Event) -> None:
        self._sdk = sdk
        self._settings = settings
        self._id = client_id
        self._stop = stop
        self._where = f"{settings.endpoint}:{settings.port}"
        self._patience_s = min(settings.timeout_s, _CONNECT_S)
        self._heard = Heard()
        self._heard.tell(self)
        self._got: dict[str, bytes] = {}
        self._client: Any = None

    def __enter__(self) -> Self:
        provisioning = self._settings.provisioning
        assert provisioning is not None
        tls = msgspec.structs.replace(
            self._settings.tls, certificate=provisioning.claim_certificate, key=provisioning.claim_key
        )
        try:
            who = identity(tls)
        except ConfigError as error:
            raise LinkDown(f"link.provisioning: the claim: {error}") from error
        try:
            self._client = self._sdk.client(
                self._settings, who, self._id, self._heard, self._patience_s, paced=False
            )
            self._client.start()
            self._wait(lambda: self._heard.up, f"did not connect within {self._patience_s:g} s")
        except LinkDown as error:
            self.__exit__()
            where, port = self._settings.endpoint, self._settings.port
            why = (
                "" if self._heard.refused else handshake.reason(where, port, tls, min(self._patience_s, 2.0))
            )
            raise LinkDown(f"link.provisioning: the claim: {self._where}: {why or error}") from error
        except Exception as error:
            self.__exit__()
            raise LinkDown(f"link.provisioning: the claim: {self._where}: cannot connect: {error}") from error
        return self

    def __exit__(self, *_: object) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        with contextlib.suppress(Exception):  # whatever it says, it is let go of
            self._sdk.hang_up(client)
        with self._heard.changed:
            self._heard.changed.wait_for(lambda: self._heard.stopped, _STOP_S)

    def listen(self, topic: str) -> None:
        """Subscribe to the answers to what will be asked.

        Raises:
            LinkDown: the policy forbids it, or nothing is answered.
        """
        filters = [f"{topic}/accepted", f"{topic}/rejected"]
        done = self._done(self._sdk.subscribe(self._client, filters), f"{topic}/+: subscribing")
        if any(code >= _REFUSED for code in done.reason_codes or []):
            raise LinkDown(
                f"link.provisioning: {topic}/+: refused (allow iot:Subscribe and iot:Receive to the claim)",
                retry_after_s=_REFUSED_S,
            )

    def ask(self, topic: str, payload: bytes, kind: type[T], hint: str) -> T:
        """Ask, and wait for the answer. What is in it is in no error.

        Raises:
            LinkDown: it is no, or none.
        """
        ack = self._done(self._sdk.say(self._client, topic, payload), topic).puback
        if (ack.reason_code or 0) >= _REFUSED:
            raise LinkDown(
                f"link.provisioning: {topic}: refused (allow iot:Publish to the claim)",
                retry_after_s=_REFUSED_S,
            )
        accepted, rejected = f"{topic}/accepted", f"{topic}/rejected"
        self._wait(lambda: accepted in self._got or rejected in self._got, f"{topic}: no answer")
        if rejected in self._got:
            raise _no(topic, self._got.pop(rejected), hint)
        try:
            return msgspec.json.decode(self._got.pop(accepted), type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise LinkDown(f"link.provisioning: {topic}: expected an answer, got something else") from None

    def _done(self, future: Future[Any], what: str) -> Any:
        future.add_done_callback(self._heard.woken)
        self._wait(future.done, f"{what}: no answer")
        if error := future.exception():
            raise LinkDown(f"link.provisioning: {what}: {self._heard.lost or error}")
        return future.result()

    def _wait(self, fact: Callable[[], bool], late: str) -> None:
        """Wait for something.

        Raises:
            LinkDown: it did not come in time, or cannot any more.
        """
        deadline = time.monotonic() + self._patience_s
        heard = self._heard
        with heard.changed:
            while not fact():
                left = deadline - time.monotonic()
                if heard.lost:
                    raise LinkDown(heard.lost)
                if self._stop.is_set():
                    raise LinkDown("stopping")
                if left <= 0:
                    raise LinkDown(f"link.provisioning: {late}")
                heard.changed.wait(min(left, 0.1))

    def lost(self) -> None:
        """Whoever waits sees it."""

    def message(self, topic: str, payload: bytes, *, retained: bool) -> None:
        """An answer."""
        del retained  # no answer is
        with self._heard.changed:
            if len(payload) <= _MOST_BYTES:
                self._got[topic] = payload
            self._heard.changed.notify_all()


def _no(topic: str, payload: bytes, hint: str) -> LinkDown:
    try:
        refused = msgspec.json.decode(payload, type=_Refused)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        refused = _Refused()
    kind = _TokenRefused if "OwnershipToken" in refused.error_code else LinkDown
    what = f"{refused.status_code} {refused.error_code}: {refused.error_message}"[:300]
    return kind(f"link.provisioning: {topic}: {what} ({hint})", retry_after_s=_REFUSED_S)


def _synchronise(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
