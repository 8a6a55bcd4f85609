"""A disk that remembers: `python -m faults.power.recorder FOLDER IMAGE JOURNAL` until it is unmounted.

FOLDER then holds two files: `disk`, for a loop device, which writes through to IMAGE, and `marks`, where
the workload writes what it was promised. One thread serves both, so the journal has one order. This runs
in a process of its own: whoever serves a file system must never wait for it.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from faults.power.journal import Journal
from faults.power.mount import attached, die_with_parent, mounted, unmount_when_free

Promise = Callable[[object], None]
PATIENCE_S = 10


@contextmanager
def recorded(image: Path, journal: Path, room: Path, options: str = "") -> Iterator[tuple[Path, Promise]]:
    """The ext4 file system in `image`, mounted on a disk that remembers.

    Args:
        image: it changes.
        journal: is written.
        room: a folder for mount points and nodes.
        options: of the mount.

    Yields:
        Where it is mounted, and how to note a promise.
    """
    served = room / "served"
    served.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "faults.power.recorder", str(served), str(image), str(journal)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=die_with_parent)
    try:
        assert server.stdout is not None
        if server.stdout.readline() != b"serving\n":
            raise OSError(errno.EIO, "the recorder did not start")
        marks = os.open(served / "marks", os.O_WRONLY | os.O_CLOEXEC)
        try:
            with (
                attached(served / "disk", room / "recorded-disk", direct=True) as node,
                mounted(node, room / "recorded", "ext4", options) as folder,
            ):
                yield folder, lambda fact: _note(marks, fact)
        finally:
            os.close(marks)
            unmount_when_free(served)
        server.wait(PATIENCE_S)
    finally:
        server.kill()
        server.wait()
        assert server.stdout is not None
        server.stdout.close()


def _note(marks: int, fact: object) -> None:
    text = json.dumps(fact, separators=(",", ":")).encode()
    assert len(text) < 100_000, "a mark is one request"
    os.write(marks, text)


def serve(folder: Path, image: Path, journal: Path) -> None:
    """Until it is unmounted or terminated."""
    import mfusepy  # only this process needs libfuse

    class Recorder(mfusepy.Operations):  # type: ignore[misc]  # without stubs
        use_ns = True

        def __init__(self) -> None:
            self.image = os.open(image, os.O_RDWR)
            self.size = os.fstat(self.image).st_size
            self.journal = Journal(journal)

        def init_with_config(self, conn_info: object, config_3: object) -> None:
            print("serving", flush=True)

        def getattr(self, path: str, fh: object = None) -> dict[str, int]:
            if path == "/":
                return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}
            if path not in ("/disk", "/marks"):
                raise mfusepy.FuseOSError(errno.ENOENT)
            size = self.size if path == "/disk" else 0
            return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": size}

        def open(self, path: str, fi: object) -> int:
            fi.direct_io = path == "/marks"  # type: ignore[attr-defined]  # a C struct
            return 0

        def read(self, path: str, size: int, offset: int, fh: object) -> bytes:
            return os.pread(self.image, size, offset) if path == "/disk" else b""

        def write(self, path: str, data: bytes, offset: int, fh: object) -> int:
            if path == "/marks":
                self.journal.mark(data)
            else:
                os.pwrite(self.image, data, offset)
                self.journal.write(offset, data)
            return len(data)

        def fsync(self, path: str, datasync: int, fh: object) -> int:
            self.journal.flush()
            return 0

    mfusepy.FUSE(Recorder(), str(folder), raw_fi=True, foreground=True, nothreads=True)


if __name__ == "__main__":
    serve(*(Path(a) for a in sys.argv[1:]))
