"""Which modules there are, as the bus tells it: for commands that are meant for one, or for all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from skerry.bus import Bus
from skerry.channels import INVENTORY, METRICS, STATUS
from skerry.messages import Inventory, Metrics, Status
from skerry.redact import cleaned

_MOST_MODULES = 64
_MOST_CAMERAS = 256
_MOST_BUFFERS = 4
_GONE = frozenset({"stopped", "lost"})


class Roster:
    """Thread-safe; bounded.

    Args:
        bus: where the modules are.
        clock: monotonic seconds.
    """

    def __init__(self, bus: Bus, clock: Callable[[], float]) -> None:
        self._bus = bus
        self._clock = clock
        self._lock = threading.Lock()
        self._statuses: dict[str, Status] = {}
        self._cameras: dict[str, tuple[str, ...]] = {}
        self._buffers: dict[str, tuple[float, int]] = {}
        self._watched: set[str] = set()
        bus.subscribe(STATUS, self._on_status)
        bus.subscribe(INVENTORY, self._on_inventory)

    def names(self) -> list[str]:
        """Of all modules that were ever heard of, in order."""
        with self._lock:
            return sorted(self._statuses)

    def cameras(self) -> list[str]:
        """Of all capture modules, in order."""
        with self._lock:
            return sorted({name for names in self._cameras.values() for name in names})

    def away(self, module: str) -> str:
        """Why a module cannot answer; empty where it can.

        Raises:
            KeyError: it was never heard of.
        """
        with self._lock:
            status = self._statuses[module]
        if status.state not in _GONE:
            return ""
        return f"{status.state}: {status.reason[:200]}" if status.reason else status.state

    def module_of(self, camera: str) -> str:
        """The capture module that has a camera.

        Raises:
            KeyError: none has it.
        """
        with self._lock:
            found = sorted(module for module, names in self._cameras.items() if camera in names)
        if not found:
            raise KeyError(camera)
        return found[0]

    def overview(self) -> dict[str, Any]:
        """Each module's kind, state and version."""
        with self._lock:
            statuses = sorted(self._statuses.items())
        return {
            name: {
                "kind": status.kind, "state": status.state, "version": status.version, "since": status.time,
                **({"reason": cleaned(status.reason[:300])} if status.reason else {}),
            }
            for name, status in statuses
        }  # fmt: skip

    def watch_buffers(self) -> bool:
        """Listen to how much waits in the buffers, from now on; whether there are any."""
        with self._lock:
            buffers = [name for name, status in self._statuses.items() if status.kind == "buffer"]
        for name in buffers:
            if name not in self._watched and len(self._watched) < _MOST_BUFFERS:
                self._watched.add(name)
                self._bus.subscribe(METRICS, self._on_metrics, name)
        return bool(self._watched)

    def buffered(self, since: float) -> int | None:
        """Records that wait in the buffers, where that was heard since then (monotonic seconds)."""
        with self._lock:
            heard = [queue for at, queue in self._buffers.values() if at > since]
        return sum(heard) if heard else None

    # On the bus's thread

    def _on_status(self, status: Status) -> None:
        with self._lock:
            if status.module in self._statuses or len(self._statuses) < _MOST_MODULES:
                self._statuses[status.module] = status

    def _on_inventory(self, inventory: Inventory) -> None:
        with self._lock:
            if inventory.module in self._cameras or len(self._cameras) < _MOST_MODULES:
                self._cameras[inventory.module] = _cameras_of(inventory)

    def _on_metrics(self, metrics: Metrics) -> None:
        with self._lock:
            self._buffers[metrics.module] = (self._clock(), metrics.queue)


def _cameras_of(inventory: Inventory) -> tuple[str, ...]:
    """The names of a capture module's cameras."""
    cameras = inventory.settings.get("cameras") if inventory.kind == "capture" else None
    if not isinstance(cameras, list):
        return ()
    names = [camera.get("name") for camera in cameras[:_MOST_CAMERAS] if isinstance(camera, dict)]
    return tuple(name for name in names if isinstance(name, str))
