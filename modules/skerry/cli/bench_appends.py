"""Durable logs side by side: each gets the same payloads, in turn, and is asked the same questions.

`alternate` times appends in short slices, one log after the other and round after round, because the
flushes of a virtual or shared disk vary by a factor of ten within minutes: only what was measured a
moment apart may be compared. `weigh` counts on a disk of its own what reaches the device.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from skerry.buffer.blocks import Stamp
from skerry.buffer.disk import Disk
from skerry.buffer.records import Series
from skerry.buffer.store import Batch, Store
from skerry.cli.device import LoopDisk
from skerry.clock import boot_id
from skerry.messages import Lane

PAYLOAD = 512
"""Bytes of a record: an event with a few fields of data."""
READ = 100
"""Records that a drain asks for at a time, and forgets durably before it asks for more."""
LANE: Lane = "event"
_AHEAD = 8 * 1024 * 1024
_LIMIT = 1024 * 1024 * 1024


class Log(Protocol):
    """Something that keeps records until they are taken away."""

    def ready(self, payloads: Sequence[bytes]) -> Any:
        """The payloads in the form in which whoever appends has them already: not timed."""

    def append(self, given: Any) -> None:
        """Keep what `ready` made; returns when all of it is acknowledged."""

    def drain(self, most: int, deadline: float) -> int:
        """Take `READ` at a time away, oldest first, up to `most` or a monotonic time; how many they were."""

    def close(self) -> None:
        """Let go of it. It may be called again."""


class RawFile:
    """The limit: one write and one fdatasync a batch, over blocks that are on disk already.

    Args:
        folder: where its one file goes.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._file = os.open(folder / "raw", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.write(self._file, bytes(_AHEAD))
        os.fsync(self._file)
        self._at = 0

    def ready(self, payloads: Sequence[bytes]) -> bytes:
        return b"".join(payloads)

    def append(self, given: bytes) -> None:
        if self._at + len(given) > _AHEAD:
            self._at = 0
        os.pwrite(self._file, given, self._at)
        os.fdatasync(self._file)
        self._at += len(given)

    def drain(self, most: int, deadline: float) -> int:  # noqa: ARG002 - it keeps nothing
        return 0

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class StoreLog:
    """The store, in this process.

    Args:
        folder: where it goes.
        limit_bytes: its bound.
    """

    def __init__(self, folder: Path, limit_bytes: int = _LIMIT) -> None:
        self.store = open_store(folder, limit_bytes)
        self._chain = self.store.chain(LANE)
        self._seq = 0

    def ready(self, payloads: Sequence[bytes]) -> list[Series]:
        first = self._seq + 1
        self._seq += len(payloads)
        return [Series("p", "e", first, payloads)]

    def append(self, given: Sequence[Series]) -> None:
        self._chain.commit(given)

    def drain(self, most: int, deadline: float) -> int:
        chain, taken = self._chain, 0
        while taken < most and time.monotonic() < deadline:
            batch = chain.read(chain.upto + 1, READ, READ * 4 * PAYLOAD)
            if batch is None:
                break
            assert isinstance(batch, Batch), "nothing was lost"
            taken += chain.receipt(batch.last)
        return taken

    def rest(self) -> None:
        """A free moment: files are written ahead."""
        while self.store.prepare():
            pass

    def close(self) -> None:
        self.store.close()


def open_store(folder: Path, limit_bytes: int = _LIMIT, disk: Disk | None = None) -> Store:
    """A store as the buffer opens it."""
    boot = boot_id()
    return Store.open(
        folder,
        limit_bytes=limit_bytes,
        stamp=lambda: Stamp(boot, time.monotonic_ns(), time.time_ns(), synchronised=True),
        disk=disk,
    )


def payloads(count: int, size: int = PAYLOAD) -> list[bytes]:
    """Payloads that no file system or log can make smaller."""
    return [os.urandom(size) for _ in range(count)]


class Slice(NamedTuple):
    """Appends of one log, one after the other."""

    per_s: float
    """Records acknowledged a second."""
    cpu_us: float
    """Of this process, an append."""


def alternate(
    logs: Mapping[str, Log], batch: int, *, slice_s: float, rounds: int, visits: int = 1,
    between: Callable[[str, Log], None] = lambda _name, _log: None,
) -> dict[str, list[Slice]]:  # fmt: skip
    """Append to each log for a while, then to the next, and again, round after round.

    Args:
        logs: by name.
        batch: payloads an append.
        slice_s: seconds of each log in a round, of which only those inside `append` count.
        rounds: slices of each log.
        visits: a round passes over all logs so often, each time in another order: the shorter one of
            them is at it, the less the disk changes until the next.
        between: called with name and log after each visit, untimed: to take away what was appended, say.
    """
    content = payloads(batch)
    names = list(logs)
    taken: dict[str, list[Slice]] = {name: [] for name in names}
    for turn in range(rounds):
        spent = {name: _Spent() for name in names}
        for visit in range(visits):
            start = (turn + visit) % len(names)
            for name in names[start:] + names[:start]:
                _visit(logs[name], content, slice_s / visits, spent[name])
                between(name, logs[name])
        for name, s in spent.items():
            taken[name].append(Slice(s.appends * batch / s.wall_s, s.cpu_s * 1e6 / s.appends))
    return taken


@dataclass
class _Spent:
    appends: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0


def _visit(log: Log, content: Sequence[bytes], seconds: float, spent: _Spent) -> None:
    """Append for some seconds, once at least."""
    until = time.perf_counter() + seconds
    while True:
        given = log.ready(content)
        cpu, began = time.process_time(), time.perf_counter()
        log.append(given)
        spent.wall_s += time.perf_counter() - began
        spent.cpu_s += time.process_time() - cpu
        spent.appends += 1
        if time.perf_counter() >= until:
            return


def compare(taken: Mapping[str, Sequence[Slice]], limit: str) -> dict[str, dict[str, float]]:
    """Medians of what `alternate` returned, and the median of each round's ratio to the log named `limit`."""
    return {
        name: {
            "per_s": round(statistics.median(s.per_s for s in slices), 1),
            "ratio": round(
                statistics.median(s.per_s / raw.per_s for s, raw in zip(slices, taken[limit], strict=True)),
                4,
            ),
            "cpu_us": round(statistics.median(s.cpu_us for s in slices), 1),
        }
        for name, slices in taken.items()
    }


class Pass(NamedTuple):
    """Some appends to a log on a disk of its own, and their drain."""

    appends: int
    append_s: float
    """Inside `append` alone."""
    payload_bytes: int
    flushes: int
    """Of the device, between the first append and the acknowledgement of the last."""
    device_bytes: int
    """Written between the first append and the end of the drain, with all that was left to write back."""
    drained: int
    drain_s: float


def weigh(
    disk: LoopDisk, log: Log, *, batch: int, passes: Sequence[int], seconds: float,
    between: Callable[[], None] = lambda: None,
) -> list[Pass]:  # fmt: skip
    """Count what reaches the device between the first append and the last record taken away.

    Args:
        disk: on which the log is.
        log: an empty one.
        batch: payloads an append.
        passes: appends in each pass, at most; all of it is drained before the next one.
        seconds: an append phase or a drain ends after this long, whatever is left to do.
        between: called after each pass; what it writes counts for the pass before it.
    """
    content = payloads(batch)
    done: list[Pass] = []
    before = disk.counters()
    for most in passes:
        start, until, appends, spent = disk.counters_now().flushes, time.monotonic() + seconds, 0, 0.0
        while not appends or (appends < most and time.monotonic() < until):
            given = log.ready(content)
            began = time.perf_counter()
            log.append(given)
            spent += time.perf_counter() - began
            appends += 1
        flushes = disk.counters_now().flushes - start
        began = time.monotonic()
        drained = log.drain(appends * batch, began + seconds)
        took = time.monotonic() - began
        between()
        after = disk.counters()
        size = after.since(before).bytes_written
        done.append(Pass(appends, spent, appends * batch * PAYLOAD, flushes, size, drained, took))
        before = after
    return done
