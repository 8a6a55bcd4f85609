"""A far broker behind a network that can be cut and throttled: a namespace, a pair of interfaces, tbf.

Source: ip-netns(8), veth(4), tc-tbf(8).
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from skerry.batches import decode
from skerry.broker import free_port, mosquitto
from skerry.messages import Event

_numbers = itertools.count(1)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=20)


class FarNetwork:
    """Mosquitto and somebody who listens to all of it, both behind one link.

    As a context manager it is up on entry and gone on exit. Needs root.

    Args:
        folder: for the broker and what the listener hears.
    """

    def __init__(self, folder: Path) -> None:
        number = os.getpid() % 8192 * 8 + next(_numbers) % 8  # tests of other workers have theirs
        self.name = f"skerry{number}"
        self._here, self._there = f"skh{number}", f"skt{number}"
        subnet = f"10.{200 + number // 16384}.{number // 64 % 256}.{number % 64 * 4}"
        base, _, low = subnet.rpartition(".")
        self._near_ip, self.host = f"{base}.{int(low) + 1}", f"{base}.{int(low) + 2}"
        self.port = free_port()
        self.folder = folder
        self._heard = folder / "heard.hex"
        self._at = 0
        self._broker: subprocess.Popen[bytes] | None = None
        self._listener: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._make()
            self._serve()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def link(self, **changes: object) -> dict[str, object]:
        """Settings of an uplink's link to it."""
        return {
            "kind": "mqtt",
            "host": self.host,
            "port": self.port,
            "timeout_s": 2.0,
            "keepalive_s": 2,
            **changes,
        }

    def down(self) -> None:
        """Pull the plug: the interface says so at once."""
        _run("ip", "link", "set", self._here, "down")

    def up(self) -> None:
        _run("ip", "link", "set", self._here, "up")

    def swallow(self) -> None:
        """Drop all that comes back, so nobody is told anything."""
        self._inside("ip", "route", "add", "blackhole", f"{self._near_ip}/32")

    def answer(self) -> None:
        """Drop nothing any more."""
        self._inside("ip", "route", "del", "blackhole", f"{self._near_ip}/32")

    def throttle(self, kbit: int) -> None:
        """Let through this many kilobits a second, with a short queue."""
        command = ["tc", "qdisc", "replace", "dev", self._here, "root", "tbf"]
        _run(*command, "rate", f"{kbit}kbit", "burst", "8k", "limit", "16k")

    def unthrottle(self) -> None:
        _run("tc", "qdisc", "del", "dev", self._here, "root")

    def arrived(self) -> Iterator[Event]:
        """Events that were heard since the last call."""
        import msgspec

        with self._heard.open("rb") as file:
            file.seek(self._at)
            content = file.read()
        whole = content.rfind(b"\n") + 1
        self._at += whole
        for line in content[:whole].splitlines():
            for payload in decode(bytes.fromhex(line.decode())):
                yield msgspec.json.decode(payload, type=Event)

    def _make(self) -> None:
        _run("ip", "netns", "add", self.name)
        _run("ip", "link", "add", self._here, "type", "veth", "peer", "name", self._there, "netns", self.name)
        _run("ip", "address", "add", f"{self._near_ip}/30", "dev", self._here)
        _run("ip", "link", "set", self._here, "up")
        self._inside("ip", "address", "add", f"{self.host}/30", "dev", self._there)
        self._inside("ip", "link", "set", self._there, "up")
        self._inside("ip", "link", "set", "lo", "up")

    def _serve(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        configuration = self.folder / "mosquitto.conf"
        configuration.write_text(
            f"listener {self.port} 0.0.0.0\nallow_anonymous true\nuser root\npersistence false\n"
            "max_inflight_messages 0\nmax_queued_messages 0\nmax_queued_bytes 0\n"
        )
        with (self.folder / "broker.log").open("wb") as log, self._heard.open("wb") as heard:
            program = mosquitto()
            assert program is not None
            self._broker = subprocess.Popen(
                ["ip", "netns", "exec", self.name, program, "-c", str(configuration)],
                stdout=log, stderr=log,
            )  # fmt: skip
            listen = shutil.which("mosquitto_sub") or "mosquitto_sub"
            command = ["ip", "netns", "exec", self.name, listen, "-h", "127.0.0.1", "-p", str(self.port)]
            deadline = time.monotonic() + 10
            while True:
                self._listener = subprocess.Popen(
                    [*command, "-t", "skerry/+/far/#", "-q", "1", "-F", "%x"], stdout=heard, stderr=log
                )
                time.sleep(0.3)  # refused at once where the broker is not there yet
                if self._listener.poll() is None:
                    break
                assert time.monotonic() < deadline, (self.folder / "broker.log").read_text()

    def _inside(self, *command: str) -> None:
        _run("ip", "netns", "exec", self.name, *command)

    def _remove(self) -> None:
        for process in (self._listener, self._broker):
            if process is not None:
                process.kill()
                process.wait(5)
        subprocess.run(["ip", "link", "del", self._here], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True, check=False)
