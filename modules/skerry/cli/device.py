"""A disk of one's own: an image under a loop device with ext4. What reaches the device can be counted.

The counters are the kernel's, of the block device, below the file system: what an application believes
that it wrote or flushed has no part in them (`/proc/self/io` misreports by large factors on some kernels).

Source: Linux, Documentation/block/stat.rst; losetup(8), mkfs.ext4(8).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from skerry.errors import Unavailable

_SECTOR = 512
_CHUNK = 4 * 1024 * 1024
_TOOLS = ("losetup", "mkfs.ext4", "mount", "umount", "sync")
_SBIN = "/usr/sbin:/sbin:/usr/bin:/bin"


class Counters(NamedTuple):
    """What a device has done since it was made."""

    bytes_written: int
    writes: int
    flushes: int

    def since(self, before: Counters) -> Counters:
        """What it has done since `before`."""
        return Counters(*(now - then for now, then in zip(self, before, strict=True)))


def parse_stat(text: str) -> Counters:
    """Counters out of the text of `/sys/block/DEVICE/stat`.

    Raises:
        ValueError: the kernel is older than 5.5 and counts no flushes.
    """
    fields = [int(word) for word in text.split()]
    if len(fields) < 16:
        raise ValueError(f"stat: expected 16 fields or more, got {len(fields)} (Linux 5.5 counts flushes)")
    return Counters(bytes_written=fields[6] * _SECTOR, writes=fields[4], flushes=fields[15])


def why_not() -> str:
    """Why there can be no such disk here; empty where there can."""
    if os.geteuid() != 0:
        return "needs root, to set up a loop device"
    if missing := [tool for tool in _TOOLS if _program(tool) is None]:
        return f"needs {', '.join(missing)}"
    return "" if Path("/dev/loop-control").exists() else "needs loop devices, found no /dev/loop-control"


class LoopDisk:
    """An ext4 file system on an image file, mounted while the context lasts.

    The image is written through once, so that the disk below has its blocks; it is opened with direct
    I/O, so that a flush of the loop device is a flush of the disk below and nothing is cached twice.

    Args:
        folder: where the image and the mount point go; both are removed at the end.
        size_bytes: of the image.

    Attributes:
        root: where it is mounted.
    """

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self.root = folder / "disk"
        self._image = folder / "disk.img"
        self._size = size_bytes
        self._device = ""
        self._mounted = False

    def __enter__(self) -> Self:
        if reason := why_not():
            raise Unavailable(f"loop device: {reason}")
        try:
            self._set_up()
        except BaseException:
            self._tear_down()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tear_down()

    def counters(self) -> Counters:
        """What the device has done so far, with everything of its file system written back before."""
        _call("sync", "-f", str(self.root))
        return self.counters_now()

    def counters_now(self) -> Counters:
        """What the device has done so far, as it is."""
        return parse_stat(Path(f"/sys/block/{Path(self._device).name}/stat").read_text(encoding="ascii"))

    def write_through(self) -> None:
        """From now on a write returns when it is on disk: for what cannot be told to sync.

        Source: mount(8), the option `sync`.
        """
        _call("mount", "-o", "remount,sync,noatime", str(self.root))

    def _set_up(self) -> None:
        with self._image.open("wb") as image:
            for at in range(0, self._size, _CHUNK):
                image.write(bytes(min(_CHUNK, self._size - at)))
            image.flush()
            os.fsync(image.fileno())
        self._device = _call("losetup", "--find", "--show", "--direct-io=on", str(self._image))
        # Nothing is left to be initialised in the background while something is being counted.
        # Blocks of 4 KiB, as on every disk that is not tiny; an image is, and would get smaller ones.
        _call("mkfs.ext4", "-qF", "-b4096", "-Elazy_itable_init=0,lazy_journal_init=0", self._device)
        self.root.mkdir()
        _call("mount", "-o", "noatime", self._device, str(self.root))
        self._mounted = True

    def _tear_down(self) -> None:
        if self._mounted:
            _call("umount", str(self.root))
            self._mounted = False
        if self._device:
            _call("losetup", "--detach", self._device)
            self._device = ""
        if self.root.is_dir():
            self.root.rmdir()
        self._image.unlink(missing_ok=True)


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=_SBIN)


def _call(name: str, *arguments: str) -> str:
    """Run a tool; what it printed.

    Raises:
        Unavailable: it failed.
    """
    done = subprocess.run([_program(name) or name, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"{name}: failed with {done.returncode}: {done.stderr.strip()}")
    return done.stdout.strip()
