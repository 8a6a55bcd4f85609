"""What else events could be kept in, as `skerry bench buffer` sets it up, on the disk that remembers.

PYTHONPATH=tests python -m faults.power.hunt faults.power.peers:Mosquitto --cuts 30 --size-mib 32
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from faults.power.mount import write_back
from skerry import broker
from skerry.children import end, spawn
from skerry.cli import bench_peers
from skerry.cli.bench_appends import Log

BATCHES = 150
BATCH = 5
_QUIET_S = 2.0


class Peer:
    """Appends batches; a promise is the number of records that were acknowledged."""

    options = ""

    def __init__(self) -> None:
        self.promised = 0

    def make(self, folder: Path) -> Log:
        raise NotImplementedError

    def read(self, folder: Path) -> Iterator[bytes]:
        """All payloads that are there."""
        raise NotImplementedError

    def work(self, folder: Path, promise: Callable[[object], None], draw: random.Random) -> None:
        with closing(self.make(folder / "peer")) as peer:
            write_back(folder)  # it was installed long ago
            for n in range(1, BATCHES + 1):
                batch = [b"%d" % k for k in range((n - 1) * BATCH, n * BATCH)]
                peer.append(peer.ready(batch))
                promise(n * BATCH)
            promise(None)  # what it does when it is closed does not count

    def note(self, fact: Any) -> None:
        self.promised = fact

    def check(self, folder: Path, draw: random.Random, ahead: Any) -> int:
        if not self.promised:
            return 0
        there = set(self.read(folder / "peer"))
        return sum(b"%d" % n not in there for n in range(self.promised))


class Sqlite(Peer):
    """WAL, `synchronous=FULL`."""

    def make(self, folder: Path) -> Log:
        return bench_peers.Sqlite(folder)

    def read(self, folder: Path) -> Iterator[bytes]:
        with closing(sqlite3.connect(folder / "log.sqlite")) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            yield from (payload for (payload,) in db.execute("SELECT payload FROM log"))


class SqliteNormal(Sqlite):
    """WAL, `synchronous=NORMAL`: what sqlite's documentation recommends."""

    def make(self, folder: Path) -> Log:
        peer = bench_peers.Sqlite(folder)
        peer._db.execute("PRAGMA synchronous=NORMAL")
        return peer


class Mosquitto(Peer):
    """The queue of an offline session, with `autosave_on_changes` and `autosave_interval 1`."""

    def make(self, folder: Path) -> Log:
        return bench_peers.Mosquitto(folder)

    def read(self, folder: Path) -> Iterator[bytes]:
        import paho.mqtt.client as paho

        port, last, found = broker.free_port(), [0.0], []
        configuration = folder / "mosquitto.conf"
        configuration.write_text(
            f"user root\nlistener {port} {broker.HOST}\nallow_anonymous true\npersistence true\n"
            f"persistence_location {folder}/\nmax_inflight_messages 0\nmax_queued_messages 0\n",
            encoding="utf-8",
        )

        def came(_client: object, _data: object, message: Any) -> None:
            found.append(message.payload)
            last[0] = time.monotonic()

        argv = [broker.mosquitto() or "mosquitto", "-c", str(configuration)]
        with _served(argv, folder, lambda: broker.answers(port)):
            client = paho.Client(paho.CallbackAPIVersion.VERSION2, "reader", clean_session=False)
            client.on_message = came
            last[0] = time.monotonic()
            client.connect(broker.HOST, port)
            while len(set(found)) < self.promised and time.monotonic() < last[0] + _QUIET_S:
                client.loop(0.05)
            client.disconnect()
        yield from found


class Nats(Peer):
    """JetStream on files, with `sync_interval: always` where this version knows it."""

    def make(self, folder: Path) -> Log:
        known = bench_peers.survey(folder.parent)["nats"].setting
        return bench_peers.Nats(folder, sync_always="sync_interval: always" in known)

    def read(self, folder: Path) -> Iterator[bytes]:
        port = broker.free_port()
        configuration = folder / "nats.conf"
        configuration.write_text(
            bench_peers._nats_configuration(folder, port, sync_always=False), encoding="utf-8"
        )
        argv = [bench_peers._nats_server() or "nats-server", "-c", str(configuration)]
        with _served(argv, folder, lambda: bench_peers._listens(port)):
            yield from asyncio.run(_stream(port))


async def _stream(port: int) -> list[bytes]:
    import nats
    from nats.js.errors import NotFoundError

    client = await nats.connect(f"nats://{broker.HOST}:{port}")
    try:
        stream = client.jetstream(timeout=10)
        try:
            state = (await stream.stream_info("LOG")).state
        except NotFoundError:  # the stream itself is gone
            return []
        found = []
        for seq in range(max(state.first_seq, 1), state.last_seq + 1):
            try:
                found.append((await stream.get_msg("LOG", seq)).data or b"")
            except NotFoundError:
                continue
        return found
    finally:
        await client.close()


@contextmanager
def _served(argv: list[str], folder: Path, there: Callable[[], bool]) -> Iterator[None]:
    with (folder / "log-after").open("wb") as log:
        child = spawn(argv, stdout=log.fileno(), stderr=log.fileno())
    try:
        deadline = time.monotonic() + 10
        while not there():
            assert time.monotonic() < deadline, "it does not start on what is left"
            time.sleep(0.02)
        yield
    finally:
        end(child, 0)
