"""What else one could keep events in, each set up to acknowledge nothing that is not on disk.

All of them are given every advantage: sqlite runs in this process, Mosquitto is spoken to over a bare
socket with a whole batch in flight, NATS through its own client, asynchronously. What is not installed,
or cannot be set up so, says it; nothing is missing in silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import shutil
import socket
import sqlite3
import subprocess
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from skerry import broker
from skerry.children import end, spawn
from skerry.cli.bench_appends import READ, Log
from skerry.errors import Unavailable

T = TypeVar("T")

_TIMEOUT_S = 20.0
_ALWAYS = "sync_interval: always"
_SBIN = "/usr/sbin:/usr/local/sbin:/usr/local/bin"


class Sqlite:
    """One table, WAL, `synchronous=FULL`, one transaction a batch.

    Args:
        folder: where the database goes.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._db = sqlite3.connect(folder / "log.sqlite", isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("CREATE TABLE log (id INTEGER PRIMARY KEY AUTOINCREMENT, payload BLOB NOT NULL)")

    def ready(self, payloads: Sequence[bytes]) -> list[tuple[bytes]]:
        return [(payload,) for payload in payloads]

    def append(self, given: Sequence[tuple[bytes]]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany("INSERT INTO log (payload) VALUES (?)", given)
        self._db.execute("COMMIT")

    def drain(self, most: int, deadline: float) -> int:
        taken = 0
        while taken < most and time.monotonic() < deadline:
            rows = self._db.execute("SELECT id, payload FROM log ORDER BY id LIMIT ?", (READ,)).fetchall()
            if not rows:
                break
            self._db.execute("DELETE FROM log WHERE id <= ?", (rows[-1][0],))
            taken += len(rows)
        return taken

    def close(self) -> None:
        self._db.close()


class Mosquitto:
    """QoS 1 to the queue of a persistent session that is offline; an append ends with its last PUBACK.

    `autosave_on_changes true, autosave_interval 1` is the strictest that Mosquitto 2.0 can be told: it
    writes its whole database again after every change, and syncs it.

    Args:
        folder: where configuration, database and log go.

    Source: mosquitto.conf(5); MQTT 3.1.1, sections 3.1 to 3.8.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._port = broker.free_port()
        configuration = folder / "mosquitto.conf"
        configuration.write_text(
            f"user root\nlistener {self._port} {broker.HOST}\nallow_anonymous true\n"
            f"persistence true\npersistence_location {folder}/\n"
            "autosave_on_changes true\nautosave_interval 1\n"
            "set_tcp_nodelay true\nmax_inflight_messages 0\nmax_queued_messages 0\nsys_interval 0\n",
            encoding="utf-8",
        )
        with (folder / "log").open("wb") as log:
            argv = [broker.mosquitto() or "mosquitto", "-c", str(configuration)]
            self._child = spawn(argv, stdout=log.fileno(), stderr=log.fileno())
        self._mid = 0
        try:
            _wait_until(lambda: broker.answers(self._port), "mosquitto")
            reader = self._connect("reader", clean=False)
            reader.sendall(b"\x82\x06\x00\x01" + _text("q") + b"\x01")
            _receive(reader, 5)
            reader.sendall(b"\xe0\x00")
            reader.close()
            self._writer = self._connect("writer", clean=True)
        except BaseException:
            end(self._child, 1)
            raise

    def ready(self, payloads: Sequence[bytes]) -> list[bytes]:
        packets = []
        for payload in payloads:
            self._mid = self._mid % 65535 + 1
            body = _text("q") + self._mid.to_bytes(2, "big") + payload
            packets.append(b"\x32" + _length(len(body)) + body)
        return packets

    def append(self, given: Sequence[bytes]) -> None:
        self._writer.sendall(b"".join(given))
        _receive(self._writer, 4 * len(given))

    def drain(self, most: int, deadline: float) -> int:
        reader, taken, pending = self._connect("reader", clean=False), 0, bytearray()
        reader.settimeout(0.5)
        try:
            while taken < most and time.monotonic() < deadline:
                try:
                    received = reader.recv(1 << 20)
                except TimeoutError:
                    continue
                if not received:
                    break
                pending += received
                acks = _acknowledge(pending)
                reader.sendall(b"".join(acks))
                taken += len(acks)
            reader.sendall(b"\xe0\x00")
        finally:
            reader.close()
        return taken

    def close(self) -> None:
        self._writer.close()
        end(self._child, 10)

    def _connect(self, name: str, *, clean: bool) -> socket.socket:
        link = socket.create_connection((broker.HOST, self._port), _TIMEOUT_S)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        body = _text("MQTT") + bytes([4, 2 if clean else 0, 0, 0]) + _text(name)
        link.sendall(b"\x10" + _length(len(body)) + body)
        _receive(link, 4)
        return link


class Nats:
    """A JetStream stream on files; an append ends with the last acknowledgement of its batch.

    Args:
        folder: where configuration, store and log go.
        sync_always: `sync_interval: always`; else the server's default, a sync every two minutes.
    """

    def __init__(self, folder: Path, *, sync_always: bool = True) -> None:
        import nats  # noqa: PLC0415 - an extra that only this peer needs

        folder.mkdir(parents=True)
        port = broker.free_port()
        configuration = folder / "nats.conf"
        configuration.write_text(_nats_configuration(folder, port, sync_always=sync_always), encoding="utf-8")
        with (folder / "log").open("wb") as log:
            argv = [_nats_server() or "nats-server", "-c", str(configuration)]
            self._child = spawn(argv, stdout=log.fileno(), stderr=log.fileno())
        self._loop = asyncio.new_event_loop()
        try:
            _wait_until(lambda: _listens(port), "nats-server")
            self._client: Any = self._run(nats.connect(f"nats://{broker.HOST}:{port}"))
            self._stream: Any = self._client.jetstream(timeout=_TIMEOUT_S)
            self._run(self._stream.add_stream(name="LOG", subjects=["q"], retention="workqueue"))
            self._reader: Any = self._run(self._stream.pull_subscribe("q", durable="reader"))
        except BaseException:
            self._loop.close()
            end(self._child, 1)
            raise

    def ready(self, payloads: Sequence[bytes]) -> Sequence[bytes]:
        return payloads

    def append(self, given: Sequence[bytes]) -> None:
        self._run(self._append(given))

    def drain(self, most: int, deadline: float) -> int:
        return self._run(self._drain(most, deadline))

    def close(self) -> None:
        if not self._loop.is_closed():
            self._run(self._client.close())
            self._loop.close()
        end(self._child, 10)

    async def _append(self, given: Sequence[bytes]) -> None:
        answers = [await self._stream.publish_async("q", payload) for payload in given]
        await asyncio.wait_for(asyncio.gather(*answers), _TIMEOUT_S)

    async def _drain(self, most: int, deadline: float) -> int:
        import nats.errors  # noqa: PLC0415 - see __init__

        taken = 0
        with contextlib.suppress(nats.errors.TimeoutError):
            while taken < most and time.monotonic() < deadline:
                messages = await self._reader.fetch(min(READ, most - taken), timeout=2)
                for message in messages:
                    await message.ack()
                await self._client.flush()
                taken += len(messages)
        return taken

    def _run(self, task: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(task)


class Peer(NamedTuple):
    """How a peer was set up, and why it was not."""

    setting: str
    missing: str = ""
    """Why it is not measured; empty where it is."""


def survey(folder: Path) -> dict[str, Peer]:
    """Which peers there are, by name, each tried out once.

    Args:
        folder: for trying them out; it is left as it was.
    """
    found = {
        "sqlite": Peer(f"{sqlite3.sqlite_version}, WAL, synchronous=FULL, one transaction a batch"),
        "mosquitto": _survey_mosquitto(),
        "nats": _survey_nats(folder),
    }
    return {name: peer if peer.missing else _tried(name, peer, folder / name) for name, peer in found.items()}


def _tried(name: str, peer: Peer, folder: Path) -> Peer:
    """The peer, or why it does not work here: it must not take the figures of all others with it."""
    try:
        log = make(name, peer, folder)
        try:
            log.append(log.ready([b"x"]))
        finally:
            log.close()
    except Exception as error:  # noqa: BLE001 - whatever its client raises
        return peer._replace(missing=f"{name} does not work here: {error or type(error).__name__}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return peer


def make(name: str, peer: Peer, folder: Path) -> Log:
    """A peer that `survey` found."""
    if name == "sqlite":
        return Sqlite(folder)
    if name == "mosquitto":
        return Mosquitto(folder)
    return Nats(folder, sync_always=syncs_always(peer))


def syncs_always(peer: Peer) -> bool:
    """Whether the NATS server found here can be told to sync before it acknowledges."""
    return _ALWAYS in peer.setting


def _survey_mosquitto() -> Peer:
    setting = "persistence, autosave_on_changes, autosave_interval 1"
    program = broker.mosquitto()
    if program is None:
        return Peer(setting, "mosquitto is not installed")
    done = subprocess.run([program, "-h"], capture_output=True, text=True, check=False)
    return Peer(f"{done.stdout.split()[2]}, {setting}")


def _survey_nats(folder: Path) -> Peer:
    program, wanted = _nats_server(), _ALWAYS
    if program is None:
        return Peer(wanted, "nats-server is not installed")
    if importlib.util.find_spec("nats") is None:
        return Peer(wanted, "nats-py is not installed (pip install 'skerry[bench]')")
    version = subprocess.run([program, "-v"], capture_output=True, text=True, check=False).stdout.split()[-1]
    trial = folder / "nats-trial.conf"
    trial.write_text(_nats_configuration(folder, 4222, sync_always=True), encoding="utf-8")
    done = subprocess.run([program, "-t", "-c", str(trial)], capture_output=True, text=True, check=False)
    trial.unlink()
    if done.returncode == 0:
        return Peer(f"{version}, {wanted}")
    return Peer(f"{version}, syncs every 2 minutes: this version knows no sync_interval")


def _nats_configuration(folder: Path, port: int, *, sync_always: bool) -> str:
    always = f"  {_ALWAYS}\n" if sync_always else ""
    return (
        f"listen: {broker.HOST}:{port}\njetstream {{\n  store_dir: {folder}/js\n{always}"
        "  max_memory_store: 16MB\n  max_file_store: 4GB\n}\n"
    )


def _nats_server() -> str | None:
    return shutil.which("nats-server") or shutil.which("nats-server", path=_SBIN)


def _listens(port: int) -> bool:
    try:
        with socket.create_connection((broker.HOST, port), 0.5):
            return True
    except OSError:
        return False


def _wait_until(there: Any, who: str) -> None:
    deadline = time.monotonic() + 10
    while not there():
        if time.monotonic() > deadline:
            raise Unavailable(f"{who}: did not answer within 10 s")
        time.sleep(0.02)


def _receive(link: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        piece = link.recv(size - len(content))
        if not piece:
            raise Unavailable("mosquitto: closed the connection")
        content += piece
    return content


def _acknowledge(pending: bytearray) -> list[bytes]:
    """Take the whole QoS 1 PUBLISH packets out of what was received; the PUBACK of each."""
    acks: list[bytes] = []
    at = 0
    while (packet := _packet(pending, at)) is not None:
        body, after = packet
        if pending[at] & 0xF6 == 0x32:
            topic = int.from_bytes(pending[body : body + 2], "big")
            acks.append(b"\x40\x02" + bytes(pending[body + 2 + topic : body + 4 + topic]))
        at = after
    del pending[:at]
    return acks


def _packet(pending: bytearray, at: int) -> tuple[int, int] | None:
    """Where the body of the packet at byte `at` begins and ends; None when it is not all there yet."""
    length = shift = 0
    for n in range(at + 1, min(at + 5, len(pending))):
        length |= (pending[n] & 0x7F) << shift
        shift += 7
        if not pending[n] & 0x80:
            return (n + 1, n + 1 + length) if n + 1 + length <= len(pending) else None
    return None


def _text(text: str) -> bytes:
    return len(text).to_bytes(2, "big") + text.encode()


def _length(size: int) -> bytes:
    """A remaining length. Source: MQTT 3.1.1, section 2.2.3."""
    content = bytearray()
    while True:
        size, low = divmod(size, 128)
        content.append(low | (0x80 if size else 0))
        if not size:
            return bytes(content)
