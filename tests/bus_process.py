"""Modules as real processes on a real broker, for tests that kill them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from skerry.children import end, spawn
from skerry.settings import ModuleSettings


class ModuleProcess:
    """`python -m skerry.<kind>`, which can be killed and started again.

    Args:
        kind: buffer, uplink...
        settings: of the module.
        log: where its standard error goes.
        wrapper: what the command begins with, such as strace.
        environment: added to ours.
    """

    def __init__(
        self, kind: str, settings: dict[str, Any], log: Path, wrapper: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.kind = kind
        self.settings = settings
        self.log = log
        self._wrapper = wrapper
        self._environment = environment or {}
        self.child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {**os.environ, **self._environment, "SKERRY_SETTINGS": json.dumps(self.settings)}
        argv = [*self._wrapper, sys.executable, "-m", f"skerry.{self.kind}"]
        with self.log.open("ab") as log:
            self.child = spawn(argv, environment, stdout=log.fileno(), stderr=log.fileno())

    def kill(self) -> None:
        """Kill -9, and wait for the end."""
        assert self.child is not None
        if self._wrapper:  # strace would detach from it, and it would live on
            for inner in psutil.Process(self.child.pid).children(recursive=True):
                inner.kill()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child.pid, signal.SIGKILL)
        self.child.wait(10)

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        assert self.child is not None
        if self.child.poll() is None:
            for inner in psutil.Process(self.child.pid).children(recursive=True) if self._wrapper else []:
                inner.terminate()
            end(self.child, 10)
        return self.child.wait(1)

    @property
    def wrapped(self) -> bool:
        """Whether `child` is only what wraps the module."""
        return bool(self._wrapper)

    @property
    def alive(self) -> bool:
        return self.child is not None and self.child.poll() is None


def given(kind: str, folder: Path, port: int, site: str, **changes: Any) -> dict[str, Any]:
    """Settings of a module on loopback."""
    assert kind in {"buffer", "uplink"}
    assert "state" in ModuleSettings.__struct_fields__
    return {"site": site, "module": kind, "state": str(folder / kind), "bus": {"port": port}, **changes}
