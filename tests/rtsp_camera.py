"""Starts, freezes and kills the RTSP server of `rtsp_server.py`."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Self

from needs import system_python


class RtspCamera:
    """A real RTSP server as a child process.

    Args:
        port: 0 takes a free one.
        options: more arguments for `rtsp_server.py`.
    """

    def __init__(self, port: int = 0, *options: str) -> None:
        script = Path(__file__).with_name("rtsp_server.py")
        self._process = subprocess.Popen(
            [system_python(), str(script), "--port", str(port), *options],
            stdout=subprocess.PIPE, text=True,
            env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
        )  # fmt: skip
        assert self._process.stdout is not None
        word, _, number = self._process.stdout.readline().partition(" ")
        assert word == "ready", "the RTSP server did not start"
        self.port = int(number)
        self.url = f"rtsp://127.0.0.1:{self.port}/cam"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it with -9."""
        self._process.kill()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()
