"""A store with much waiting: opening it, and draining it through links and over the bus."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from skerry.broker import HOST, BrokerProcess
from skerry.buffer.disk import Disk
from skerry.buffer.records import Series
from skerry.buffer.store import Batch, Chain, Store
from skerry.cli.bench_appends import LANE, PAYLOAD, READ, open_store
from skerry.cli.bench_site import EPOCH, LINK, PRODUCER, SITE, Desk, Events, module
from skerry.uplink import settings as uplink
from skerry.uplink.links import Link
from skerry.uplink.links.file import FileLink
from skerry.uplink.links.mqtt import MqttLink
from skerry.uplink.record import Record as Sent
from skerry.uplink.record import read

_BYTES = 128 * 1024
_LIMIT = 4 * 1024 * 1024 * 1024
_FILL = 1000


class _HastyDisk(Disk):
    """Flushes nothing: to fill a store that is synced as a whole afterwards."""

    def sync(self, file: int) -> None:
        pass

    def sync_folder(self, folder: Path) -> None:
        pass


def fill(folder: Path, size_bytes: int) -> int:
    """Have events of about that many bytes wait in a store, on disk, not in memory; the last offset."""
    events = Events()
    store = open_store(folder, _LIMIT, disk=_HastyDisk())
    chain = store.chain(LANE)
    seq, left = chain.last, size_bytes - chain.waiting * PAYLOAD
    while left > 0:
        payloads = [events.encoded(seq + n) for n in range(1, _FILL + 1)]
        chain.commit([Series(PRODUCER, EPOCH, seq + 1, payloads)])
        left -= _FILL * PAYLOAD
        seq += _FILL
    store.close()
    _forget(folder)
    return seq


def _forget(folder: Path) -> None:
    """Have all files of a folder on disk, and none of them in the page cache."""
    for path in folder.iterdir():
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def opening(folder: Path) -> dict[str, Any]:
    """Open a store in a process of its own, from the disk: seconds, and its peak memory in MB."""
    argv = [sys.executable, "-m", "skerry.cli.bench_open", str(folder), str(_LIMIT)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def through_links(folder: Path, place: Path, count: int) -> dict[str, int]:
    """Records a second out of a store and through the uplink's links, in this process.

    Args:
        folder: of the store; `count` records are taken away per link.
        place: where the far ends keep their files.
        count: records.
    """
    place.mkdir()
    store = open_store(folder, _LIMIT)
    try:
        taken = {"file": round(_through(FileLink(place / "far.jsonl"), store, count))}
        with BrokerProcess(place / "far") as broker:
            link = MqttLink(mqtt_settings(broker.port), SITE, LINK, threading.Event())
            taken["mqtt_zstd_batches"] = round(_through(link, store, count))
    finally:
        store.close()
    return taken


def mqtt_settings(port: int) -> uplink.MqttLink:
    """A link that sends compressed batches."""
    return uplink.MqttLink(host=HOST, port=port, format="batch", compression="zstd")


def _through(link: Link, store: Store, count: int) -> float:
    chain: Chain = store.chain(LANE)
    window = min(uplink.Sending().window, link.window)
    stop, at = chain.upto + count, chain.upto + 1
    under_way: deque[int] = deque()
    link.open()
    began = time.monotonic()
    while chain.upto < stop:
        while at <= stop and len(under_way) < window:
            batch = chain.read(at, READ, _BYTES)
            assert isinstance(batch, Batch), "enough is waiting, and nothing was lost"
            link.start([_sent(payload) for payload in batch.payloads])
            under_way.append(batch.last)
            at = batch.last + 1
        if link.finish():
            chain.receipt(under_way.popleft())
    took = time.monotonic() - began
    link.close()
    return count / took


def _sent(payload: bytes) -> Sent:
    record = read(payload)
    assert isinstance(record, Sent), "it is an event"
    return record


def over_the_bus(state: Path, far: Path, size_bytes: int, seconds: float) -> dict[str, Any]:
    """A buffer process, Mosquitto, an uplink process, and a far end: events a second, and memory in MB.

    Args:
        state: of the modules; the store is in `buffer/log`.
        far: where the far ends keep their files.
        size_bytes: waiting in it when a link begins.
        seconds: how long to watch each link.
    """
    far.mkdir()
    figures: dict[str, Any] = {}
    with BrokerProcess(far / "broker") as broker:
        links: dict[str, dict[str, Any]] = {
            "file": {"kind": "file", "path": str(far / "far.jsonl")},
            "mqtt_zstd_batches": {
                "kind": "mqtt", "host": HOST, "port": broker.port, "format": "batch", "compression": "zstd",
            },
        }  # fmt: skip
        for name, link in links.items():
            last = fill(state / "buffer" / "log", size_bytes)
            figures[name] = _over_the_bus(state, link, last, seconds)
    return figures


def _over_the_bus(state: Path, link: dict[str, Any], last: int, seconds: float) -> dict[str, Any]:
    with BrokerProcess(state / "broker") as broker:
        began = time.monotonic()
        desk = Desk(broker.port)
        try:
            # All of it is a backlog, however fast it was made.
            with module(state, "buffer", broker.port, limit_bytes=_LIMIT, backlog_s=0.1) as buffer:
                desk.wait_ready(buffer)
                ready = time.monotonic() - began
                with module(state, "uplink", broker.port, name=LINK, link=link) as sender:
                    rate = desk.wait_receipts(seconds, last)
                    return {
                        "per_s": round(rate),
                        "buffer_ready_s": round(ready, 2),
                        "buffer_rss_mb": buffer.peak_mb(),
                        "uplink_rss_mb": sender.peak_mb(),
                    }
        finally:
            desk.close()
