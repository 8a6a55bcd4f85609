"""Microsoft's own client (azure-iot-device), held so that it waits nowhere that we cannot leave.

Its public calls wait for the far end without a limit, on threads that the end of the process waits for;
all its clients share one thread, so that one that hangs holds up its successor; it logs in again and
repeats by itself. So:

* its public constructors make it, which know all about identities, and after that its pipeline is used
  directly: those calls take a callback in the place of waiting;
* the thread that it works on is ours, and replaced when it hangs. What it starts there (timers, paho's
  own) ends with the process, for a thread of ours does;
* one client is one connection: it makes one attempt, and reconnects for one reason only, a token that
  ends (it then goes on with what was under way).

This file alone knows the inside of the package, version 2.14.
"""

# ruff: noqa: SLF001 - see above

from __future__ import annotations

import contextlib
import importlib
import logging
import queue
import socket
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

from skerry.errors import ConfigError, LinkDown

_MOST_STUCK = 4
"""Threads of earlier clients that hang, at most: until one ends, no more connections are tried."""
_POLITE_S, _CUT_S = 1.0, 0.5
"""For the client to say goodbye; and to end once its socket is shut."""
_LIVING = frozenset({"CONNECTED", "REAUTHORIZING"})
FEATURES = "twin", "twin_patches", "methods"
Done = Callable[[Any, Exception | None], None]
"""Takes a result, or why there is none; on the client's callback thread."""


class Hands:
    """One thread that does what it is given, in order. The end of the process does not wait for it."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(name,), name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], Any]) -> Future[Any]:
        """Do it after all that was submitted before. The one method that the client uses of an executor."""
        future: Future[Any] = Future()
        self._jobs.put((future, job))
        return future

    def end(self) -> None:
        """No more after what was submitted."""
        self._jobs.put(None)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self, name: str) -> None:
        while (item := self._jobs.get()) is not None:
            threading.current_thread().name = name  # the client looks at it, and changes it
            future, job = item
            del item
            try:
                future.set_result(job())
            except BaseException as error:  # noqa: BLE001 - whoever waits for the result gets it
                future.set_exception(error)
            del future, job


class _Threads:
    """The threads that all clients of this process work on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stuck: list[Hands] = []
        self._pipeline: Hands | None = None

    def get(self, executors: dict[str, Any]) -> Hands:
        """The one for pipelines, in the place of the client's own.

        Raises:
            LinkDown: too many of them hang.
        """
        with self._lock:
            self._stuck = [hands for hands in self._stuck if hands.alive]
            if len(self._stuck) >= _MOST_STUCK:
                raise LinkDown(f"{len(self._stuck)} earlier attempts hang still (check name resolution)")
            if self._pipeline is None:
                self._pipeline = Hands("pipeline")
            if not isinstance(executors.get("callback"), Hands):
                executors["callback"] = Hands("callback")
            executors["pipeline"] = self._pipeline
            return self._pipeline

    def replace(self, hands: Hands) -> None:
        """This one hangs: the next client gets another."""
        with self._lock:
            if self._pipeline is hands:
                self._pipeline = None
                self._stuck.append(hands)
        hands.end()


_threads = _Threads()


class Sdk:
    """The package.

    Raises:
        ConfigError: it is not installed.
    """

    def __init__(self) -> None:
        try:
            self.device: Any = importlib.import_module("azure.iot.device")
            self._pipeline_thread: Any = importlib.import_module(
                "azure.iot.device.common.pipeline.pipeline_thread"
            )
            self._response: Any = importlib.import_module("azure.iot.device").MethodResponse
        except ImportError as error:
            raise ConfigError(
                f"link.kind: azure: expected the package azure-iot-device, got: {error} "
                "(install requirements/uplink-azure.txt, or pip install 'skerry[azure]')"
            ) from error
        for name in ("azure.iot.device", "paho"):
            # What they have to say we say ourselves, with what to do.
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)

    def hands(self) -> Hands:
        """The thread for the next client.

        Raises:
            LinkDown: too many of them hang.
        """
        return _threads.get(self._pipeline_thread._executors)

    def response(self, request_id: str, status: int, payload: Any) -> Any:
        """The answer to a direct method."""
        return self._response(request_id, status, payload)


class Outgoing(NamedTuple):
    """A message, and the output of the module that it goes to; "" for none."""

    message: Any
    output: str


class Heard:
    """What a connection has told. Written on the client's threads, read on ours.

    Attributes:
        changed: notified on every change.
        host: what is connected to, once it is known.
        up: it is connected.
        lost: the connection is no more, or never was: why, or nothing in particular.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.host = ""
        self.up = False
        self.lost: Exception | None = None

    def lose(self, error: Exception) -> None:
        """The connection is no more; the first reason counts."""
        with self.changed:
            self.lost = self.lost or error
            self.changed.notify_all()


class Closed(Exception):  # noqa: N818 - a state, not a mistake
    """The connection is closed."""


class Connection:
    """One client, and its one connection. No call waits, but `close`, which waits for a bounded time.

    Args:
        sdk: the package.
        make: makes the client; runs on the client's thread, and may take its time.
        heard: what it tells.
        patched: takes each change of the desired state.
        asked: takes each call of a direct method.

    Raises:
        LinkDown: too many clients hang.
    """

    def __init__(
        self, sdk: Sdk, make: Callable[[], Any], heard: Heard,
        patched: Callable[[Any], None], asked: Callable[[Any], None],
    ) -> None:  # fmt: skip
        self._hands = sdk.hands()
        self._make = make
        self._heard = heard
        self._patched = patched
        self._asked = asked
        self._client: Any = None
        self._pipeline: Any = None
        self._closing = threading.Event()
        self._opening = self._hands.submit(self._open)
        self._opening.add_done_callback(self._opened)

    @property
    def lives(self) -> bool:
        """Whether it is connected, or about to be again with a new token."""
        pipeline = self._pipeline
        return pipeline is not None and pipeline._nucleus.connection_state.value in _LIVING

    @property
    def renewing(self) -> bool:
        """Whether it is about to be connected again with a new token."""
        pipeline = self._pipeline
        return pipeline is not None and pipeline._nucleus.connection_state.value == "REAUTHORIZING"

    def send(self, messages: list[Outgoing], done: Done) -> None:
        """Hand over messages, in order; `done` comes for each, with the PUBACK or why there is none."""

        def send() -> None:
            for message, output in messages:
                if output:
                    message.output_name = output
                    self._pipeline.send_output_message(message, callback=_told(done))
                else:
                    self._pipeline.send_message(message, callback=_told(done))

        self._do(send, done)

    def enable(self, feature: str, done: Done) -> None:
        """Subscribe to one of `FEATURES`."""
        self._do(lambda: self._pipeline.enable_feature(feature, callback=_told(done)), done)

    def get_twin(self, done: Done) -> None:
        """Ask for the whole twin."""
        self._do(lambda: self._pipeline.get_twin(callback=_told(done)), done)

    def patch_twin(self, patch: dict[str, Any], done: Done) -> None:
        """Change the reported state."""
        self._do(lambda: self._pipeline.patch_twin_reported_properties(patch, callback=_told(done)), done)

    def respond(self, response: Any) -> None:
        """Answer a direct method; nobody hears whether it arrived."""
        ignore = _told(lambda _result, _error: None)
        self._do(lambda: self._pipeline.send_method_response(response, callback=ignore), lambda *_: None)

    def close(self) -> None:
        """Say goodbye, and let go in any case."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._heard.lose(Closed())
        over = threading.Event()
        future = self._hands.submit(lambda: self._shut(over))
        if not over.wait(_POLITE_S):
            self._cut()
            if not over.wait(_CUT_S):
                _threads.replace(self._hands)
        del future

    def _do(self, call: Callable[[], None], done: Done) -> None:
        """On the client's thread, after all that was asked for before."""

        def job() -> None:
            if self._closing.is_set() or self._pipeline is None:
                done(None, Closed())
                return
            try:
                call()
            except Exception as error:  # noqa: BLE001 - the client raises whatever it likes
                done(None, error)

        self._hands.submit(job)

    def _open(self) -> None:
        client = self._make()
        pipeline = client._mqtt_pipeline
        with self._heard.changed:
            configuration = pipeline.pipeline_configuration
            self._heard.host = configuration.gateway_hostname or configuration.hostname
        for stage in _stages(pipeline):
            # No timers for what has a deadline of ours, and no second attempts.
            for name in ("timeout_intervals", "retry_intervals"):
                getattr(stage, name, {}).clear()
        _mend(_transport(pipeline)._mqtt_client)
        pipeline.on_connected = self._on_connected
        pipeline.on_disconnected = self._on_disconnected
        pipeline.on_background_exception = self._on_background
        pipeline.on_new_sastoken_required = None
        pipeline.on_twin_patch_received = self._patched
        pipeline.on_method_request_received = self._asked
        self._client, self._pipeline = client, pipeline
        if self._closing.is_set():
            return
        pipeline.connect(callback=_told(self._on_connect))
        if self._closing.is_set():
            self._cut()

    def _opened(self, future: Future[Any]) -> None:
        error = future.exception()
        if error is not None:
            self._heard.lose(error if isinstance(error, Exception) else Closed())

    def _on_connect(self, _result: object, error: Exception | None) -> None:
        with self._heard.changed:
            if error is not None:
                self._heard.lose(error)
            else:
                self._heard.up = True
            self._heard.changed.notify_all()

    def _on_connected(self) -> None:
        """Also after a new token."""
        with contextlib.suppress(Exception):  # it may be lost again already
            # Else the last piece of a message waits for the far end's delayed acknowledgement: 40 ms.
            _transport(self._pipeline)._mqtt_client.socket().setsockopt(
                socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
            )

    def _on_disconnected(self) -> None:
        if not self.lives:
            self._heard.lose(Closed("connection lost"))

    def _on_background(self, error: Exception) -> None:
        """Something failed that nobody asked for: a connection broke, or a token was not renewed."""
        if not self.lives:
            self._heard.lose(error)

    def _shut(self, over: threading.Event) -> None:
        pipeline = self._pipeline
        if pipeline is not None:
            with contextlib.suppress(Exception):  # whatever it says, it is let go of
                pipeline.shutdown(callback=lambda **_: None)
            with contextlib.suppress(Exception):
                sock = _transport(pipeline)._mqtt_client.socket()
                if sock is not None:
                    sock.close()
        self._client = self._pipeline = None
        over.set()

    def _cut(self) -> None:
        """End whatever its threads wait for on the socket."""
        if self._pipeline is not None:
            _cut(self._pipeline)


def let_go(sdk: Sdk, client: Any) -> None:
    """End a client of the provisioning service that was not successful: it would log in again for ever."""
    pipeline, over = client._pipeline, threading.Event()

    def shut() -> None:
        with contextlib.suppress(Exception):  # whatever it says, it is let go of
            pipeline.shutdown(callback=lambda **_: None)
        over.set()

    with contextlib.suppress(LinkDown):
        hands = sdk.hands()
        hands.submit(shut)
        _cut(pipeline)
        if not over.wait(_CUT_S):
            _threads.replace(hands)


def explain(error: Exception | None, host: str, trust: str, proof: str) -> str:
    """Why there is no connection, and what to mend.

    Args:
        error: of the client.
        host: what was connected to.
        trust: where the authorities are that we trust.
        proof: where it is that proves who we are.
    """
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, ssl.SSLCertVerificationError):
            what = cause.verify_message.rstrip(".")
            if "mismatch" in what:
                return f"{what} (is {host} the right host?)"
            return f"the far end's certificate: {what} (check {trust}, and the clock)"
        if isinstance(cause, ssl.SSLError):
            what = (cause.reason or str(cause)).lower().replace("_", " ")
            return f"the far end refuses {proof}: {what}" if "alert" in what else f"TLS: {what}"
    if unknown(error):
        return f"refused: not authorised (check {proof}, whether the device is enabled, and the clock)"
    for cause in chain:
        if isinstance(cause, OSError):
            return f"cannot connect: {cause} (check address and network)"
    return next((str(cause) for cause in reversed(chain) if str(cause)), "connection lost")


def unknown(error: Exception | None) -> bool:
    """Whether the far end is there, and does not know us."""
    names = {type(cause).__name__ for cause in _causes(error)}
    return bool(names & {"UnauthorizedError", "CredentialError"})


def _cut(pipeline: Any) -> None:
    """End whatever waits for the far end."""
    with contextlib.suppress(Exception):  # its socket may end at any moment
        paho = _transport(pipeline)._mqtt_client
        # What is stuck in a handshake must not log in afterwards, in the place of its successor.
        paho._send_connect = lambda *_: 1
        sock = paho.socket()
        if sock is not None:
            sock.shutdown(socket.SHUT_RDWR)


def _mend(paho: Any) -> None:
    """Let an end of TLS end the connection: paho 1.6.1 would lose its thread over it, and say nothing."""

    def guarded(call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def guard(argument: Any) -> Any:
            try:
                return call(argument)
            except BlockingIOError:
                raise  # nothing to do just now
            except OSError as error:
                raise ConnectionResetError(str(error)) from error

        return guard

    paho._sock_send, paho._sock_recv = guarded(paho._sock_send), guarded(paho._sock_recv)


def _told(done: Done) -> Callable[..., None]:
    """A callback as the pipeline wants it."""

    def callback(error: Exception | None = None, twin: Any = None) -> None:
        done(twin, error)

    return callback


def _stages(pipeline: Any) -> list[Any]:
    found, stage = [], pipeline._pipeline
    while stage is not None:
        found.append(stage)
        stage = stage.next
    return found


def _transport(pipeline: Any) -> Any:
    return _stages(pipeline)[-1].transport


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
