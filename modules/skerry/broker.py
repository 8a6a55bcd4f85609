"""The broker that `skerry run` starts: Mosquitto where it is installed, else the embedded amqtt.

Both listen on loopback only, keep nothing on disk, and end with their parent. Modules do not care
which it is. Run as a program (`python -m skerry.broker PORT`), this file is the embedded broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from skerry.children import end, spawn
from skerry.errors import ConfigError, Unavailable

Kind = Literal["mosquitto", "amqtt"]

HOST = "127.0.0.1"
MOSQUITTO_LIMITS = """\
persistence false
set_tcp_nodelay true
# The buffer acknowledges when its disk has the events: here is room for the windows of two producers in
# four lanes (500 each). The default of 20 would let one slow round trip hold back everything behind it.
max_inflight_messages 4000
max_queued_messages 10000
max_queued_bytes 67108864
# Twice the largest message of any channel.
message_size_limit 8388608
sys_interval 0
log_dest stderr
log_type error
log_type warning
log_type notice
"""
"""What every Mosquitto of ours is told, wherever it runs. Nothing is on its disk: what is retained is
published again by its owner after a reconnect, and no promise rests on the broker (`Accepted`)."""
_STOP_S = 1.5
_SBIN = "/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin"  # Debian installs it where users do not look
_CONNECT = bytes.fromhex("100c 0004 4d515454 04 02 0005 0000")  # MQTT 3.1.1, clean session, 5 s, no id
_CONNACK = bytes.fromhex("2002 0000")
_DISCONNECT = bytes.fromhex("e000")


class BrokerProcess:
    """A broker as a child process.

    As a context manager it is started on entry and stopped on exit. A supervisor calls `poll`, and
    `start` again when the broker has died: it comes back on the same port.

    Args:
        folder: where its configuration and its log go; made if missing.
        port: where to listen on loopback; 0 takes a free one.
        kind: which broker; None takes the best that is installed.

    Attributes:
        configuration: what Mosquitto is told in place of `mosquitto_configuration`, with the same port; a
            broker that wants a certificate counts as started when it listens.
    """

    def __init__(self, folder: Path, port: int = 0, kind: Kind | None = None) -> None:
        self.configuration = ""
        self.folder = folder
        self.port = port or free_port()
        self.kind: Kind = kind or ("mosquitto" if mosquitto() else "amqtt")
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id, 0 before the first start."""
        return self._child.pid if self._child else 0

    @property
    def log(self) -> Path:
        """What the broker says."""
        return self.folder / "broker.log"

    @property
    def argv(self) -> list[str]:
        """The command that runs it."""
        if self.kind == "amqtt":
            return [sys.executable, "-m", "skerry.broker", str(self.port)]
        return [mosquitto() or "mosquitto", "-c", str(self.folder / "mosquitto.conf")]

    def start(self, wait_s: float = 10.0) -> None:
        """Start it, and wait until it answers a CONNECT.

        Args:
            wait_s: how long to wait; 0 returns at once (see `answers`).

        Raises:
            ConfigError: something else listens on the port.
            Unavailable: it is not installed, ended, or did not answer in time.
        """
        if not _free(self.port):
            raise ConfigError(
                f"broker.port: expected a free port, got {self.port}, where something listens "
                "(choose another, or name that broker in the site file)"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.kind == "mosquitto":
            text = self.configuration or mosquitto_configuration(self.port)
            (self.folder / "mosquitto.conf").write_text(text, encoding="utf-8")
        with self.log.open("ab") as log:
            self._child = spawn(self.argv, stdout=log.fileno(), stderr=log.fileno())
        deadline = time.monotonic() + wait_s
        while wait_s and not (listens if self.configuration else answers)(self.port):
            if self.poll() is not None or time.monotonic() > deadline:
                state = "did not answer in time" if self.poll() is None else f"ended with {self.poll()}"
                self.stop()
                raise Unavailable(f"broker: {self.kind} {state} (see {self.log}): {self._last_words()}")
            time.sleep(0.01)

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""
        return self._child.poll() if self._child else None

    def stop(self) -> None:
        """End it, within 2 seconds."""
        if self._child is not None:
            end(self._child, _STOP_S)

    def _last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def mosquitto() -> str | None:
    """Path of the Mosquitto broker, None where it is not installed."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path=_SBIN)


def mosquitto_configuration(port: int) -> str:
    """A broker for one machine: loopback only, all in memory, every queue with a bound.

    Started by root, Mosquitto would become another user, and the kernel forgets at that moment that the
    child is to end with its parent (prctl(2), PR_SET_PDEATHSIG). So root's stays root's; started by
    anybody else it ignores the setting.

    Source: mosquitto.conf(5).
    """
    return f"""\
# Written by skerry run; a change is overwritten at the next start.
user root
listener {port} {HOST}
allow_anonymous true
{MOSQUITTO_LIMITS}"""


def free_port() -> int:
    """A port of loopback that nothing listens on.

    It lies below the range from which the kernel draws source ports. A client that retries while the
    broker is down could otherwise be given that very port, connect to itself (TCP simultaneous open)
    and keep the broker from coming back.
    """
    text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
    low = int(text.split()[0])
    top = low - 1 if low > 12_000 else 32_767
    for port in random.SystemRandom().sample(range(10_000, top), 200):
        if _free(port):
            return port
    raise Unavailable(f"broker: expected a free port from 10000 to {top}, found none")


def answers(port: int, timeout_s: float = 0.5) -> bool:
    """Whether an MQTT broker on loopback answers a CONNECT."""
    try:
        with socket.create_connection((HOST, port), timeout_s) as connection:
            connection.settimeout(timeout_s)
            connection.sendall(_CONNECT)
            answer = b""
            while len(answer) < len(_CONNACK) and (piece := connection.recv(len(_CONNACK))):
                answer += piece
            connection.sendall(_DISCONNECT)
            return answer == _CONNACK
    except OSError:
        return False


def listens(port: int, timeout_s: float = 0.5) -> bool:
    """Whether something on loopback takes a connection."""
    try:
        socket.create_connection((HOST, port), timeout_s).close()
    except OSError:
        return False
    return True


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


class _Steady(dict[Any, Any]):
    """A dictionary that may change while it is iterated over.

    amqtt 0.12.1 awaits inside loops over its subscriptions. When somebody subscribes meanwhile, the
    session of a client that is just connecting dies with "dictionary changed size during iteration",
    and what that client publishes from then on is acknowledged and lost.
    """

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self.keys()))

    def items(self) -> Any:
        return list(super().items())


async def _embedded(port: int) -> None:
    """Be the broker until SIGTERM."""
    from amqtt.broker import Broker  # noqa: PLC0415 - only the embedded broker needs it

    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    broker = Broker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"{HOST}:{port}"}},
            # Its defaults add a log line per packet and $SYS topics.
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
    )
    broker._subscriptions = _Steady()  # noqa: SLF001 - see there
    await broker.start()
    await asked.wait()
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(broker.shutdown(), 1.0)


def main() -> int:
    """Run the embedded broker; returns its exit code."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    try:
        port = int(sys.argv[1])
        asyncio.run(_embedded(port))
    except (IndexError, ValueError):
        print("usage: python -m skerry.broker PORT", file=sys.stderr)
        return ConfigError.exit_code
    except ImportError as error:
        print(f"broker: expected amqtt, got {error} (pip install 'skerry[cli]')", file=sys.stderr)
        return Unavailable.exit_code
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # amqtt leaves tasks that would hold up the interpreter's own end
