"""Wall clocks that jump, for processes under test; `faults/clock.c` is preloaded into them."""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).parent / "faults" / "clock.c"
YEAR_S = 365 * 86_400


def built(folder: Path) -> Path:
    """The shim, compiled into `folder`."""
    library = folder / "clock.so"
    compiler = shutil.which("cc") or "cc"
    command = [
        compiler,
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-shared",
        "-fPIC",
        "-o",
        str(library),
        str(SOURCE),
    ]
    subprocess.run([*command, "-ldl"], check=True, capture_output=True, timeout=60)
    return library


class WallClock:
    """The wall clock of the processes that are started with `environment`.

    Args:
        library: the shim.
        path: the file through which they are told; made here.
    """

    def __init__(self, library: Path, path: Path) -> None:
        self.environment = {"LD_PRELOAD": str(library), "SKERRY_TEST_CLOCK": str(path)}
        path.write_bytes(bytes(16))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 16)
        self._offset_s = 0.0
        self.synchronise(None)

    def jump(self, seconds: float) -> None:
        """Move the wall clock, forwards or backwards."""
        self.set(self._offset_s + seconds)

    def set(self, offset_s: float) -> None:
        """The wall clock is this much ahead of the machine's from now on."""
        self._offset_s = offset_s
        self._map[0:8] = struct.pack("=q", int(offset_s * 1e9))

    def synchronise(self, whether: bool | None) -> None:
        """Whether adjtimex(2) says that the clock is synchronised; None: what the kernel says."""
        self._map[8:16] = struct.pack("=q", 2 if whether is None else int(whether))

    def close(self) -> None:
        self._map.close()
