"""Mosquitto as IoT Core would be: MQTT 5, mutual TLS; and a plain listener for those who look on."""

import os
import signal
import socket
import subprocess
from pathlib import Path

from skerry.broker import answers, free_port, mosquitto
from skerry.children import end, spawn
from skerry.testing import eventually


class TlsBroker:
    """A broker as a child process.

    Args:
        folder: of its configuration.
        keys: as `authority.make` leaves them.
        certificate: which of the server's it shows.
    """

    def __init__(self, folder: Path, keys: Path, certificate: str = "server") -> None:
        self.port, self.plain = free_port(), free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "broker.conf"
        user = "user root\n" if os.geteuid() == 0 else ""
        self._file.write_text(
            f"{user}allow_anonymous true\npersistence false\nlistener {self.plain} 127.0.0.1\n"
            f"listener {self.port} 127.0.0.1\nrequire_certificate true\ncafile {keys}/ca.pem\n"
            f"certfile {keys}/{certificate}.pem\nkeyfile {keys}/server.key\n"
        )
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._child = spawn([mosquitto() or "mosquitto", "-c", str(self._file)], stderr=subprocess.DEVNULL)
        eventually(lambda: answers(self.plain) and self._listens(), 20)

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    def kill(self) -> None:
        assert self._child is not None
        self._child.kill()
        self._child.wait()

    def freeze(self) -> None:
        assert self._child is not None
        os.kill(self._child.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._child is not None
        os.kill(self._child.pid, signal.SIGCONT)

    def stop(self) -> None:
        if self._child is not None:
            if self._child.poll() is None:
                self.thaw()
            end(self._child, 2)

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True
