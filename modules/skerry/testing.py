"""For tests of modules, ours and yours: run a module in memory, on a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from skerry.adjuster import Adjuster
from skerry.bus import Bus
from skerry.service import Host, Run, S


@contextmanager
def running(run: Run[S], settings: S, bus: Bus, kind: str = "test") -> Iterator[Host]:
    """Run a module on a thread until the block ends; an exception of the module is raised here.

    What an earlier run in the same state folder was told from outside counts, as in a process.
    """
    adjuster = Adjuster(settings, Path(settings.state) / "desired.json")
    host = Host(adjuster.now, kind, bus, adjuster)
    host.remote.start()
    failure: list[BaseException] = []

    def target() -> None:
        try:
            run(adjuster.now, bus, host)
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            failure.append(error)

    thread = threading.Thread(target=target, name=f"{kind}-under-test", daemon=True)
    thread.start()
    try:
        yield host
    finally:
        host.stopping.set()
        thread.join(10)
        assert not thread.is_alive(), f"{kind} did not stop within 10 s"
        host.remote.stop()
        host.tally.close()
        if failure:
            raise failure[0]


def eventually(fact: Callable[[], object], within_s: float = 10.0) -> None:
    """Wait until `fact()` is true, or fail after `within_s` seconds."""
    deadline = time.monotonic() + within_s
    while not fact():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s} s: {getattr(fact, '__doc__', None) or fact}")
        time.sleep(0.01)
