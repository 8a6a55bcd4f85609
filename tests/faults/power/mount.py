"""Mounts and loop devices that cannot be left behind.

Everything is mounted in a mount namespace of this process and its children, and every loop device lets
go of its file with its last user. When the last of the processes ends, however it ends, the kernel
unmounts and detaches: there is nothing that a cleanup could forget, and nothing of others is touched.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_PRIVATE = 1 << 14, 1 << 18
_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1
_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE = 0x4C82, 0x4C0A
_AUTOCLEAR, _DIRECT_IO = 4, 16
_LOOP_MAJOR = 7


def _call(name: str, *args: object) -> None:
    if getattr(_libc, name)(*args) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def private_mounts() -> None:
    """From here on nobody else sees what this process mounts."""
    _call("unshare", _CLONE_NEWNS)
    _call("mount", b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None)


def die_with_parent() -> None:
    """End this process when the thread that started it ends."""
    _call("prctl", _PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)


def write_back(folder: Path) -> None:
    """Have all that was done to the file system of a folder on its disk."""
    file = os.open(folder, os.O_RDONLY)
    try:
        _call("syncfs", file)
    finally:
        os.close(file)


@contextmanager
def mounted(what: Path | str, where: Path, kind: str, options: str = "") -> Iterator[Path]:
    """A file system at the folder `where`, made if missing."""
    where.mkdir(exist_ok=True)
    _call("mount", os.fsencode(what), os.fsencode(where), kind.encode(), ctypes.c_ulong(0), options.encode())
    try:
        yield where
    finally:
        try:
            _call("umount2", os.fsencode(where), 0)
        except OSError:  # a file is open, or a worker did not come to its end
            unmount_when_free(where)
            raise


def unmount_when_free(where: Path) -> None:
    """Take it out of sight now; the kernel unmounts it once its last file is closed."""
    _call("umount2", os.fsencode(where), _MNT_DETACH)


@contextmanager
def attached(image: Path, node: Path, *, direct: bool = False) -> Iterator[Path]:
    """A loop device on `image`, as the block device `node`.

    Args:
        image: the file.
        node: path for the device node; it may not exist.
        direct: past the page cache of the file's file system.
    """
    with _opened(Path("/dev/loop-control")) as control, _opened(image) as file:
        device = None
        while device is None:
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            os.mknod(node, stat.S_IFBLK | 0o600, os.makedev(_LOOP_MAJOR, number))
            device = _configured(node, file, _AUTOCLEAR | (_DIRECT_IO if direct else 0))
            if device is None:
                node.unlink()
    try:
        if direct:
            used = Path(f"/sys/block/loop{number}/loop/dio").read_text(encoding="ascii").strip()
            assert used == "1", "the loop device does not write past the page cache"
        yield node
    finally:
        os.close(device)
        node.unlink()


def _configured(node: Path, file: int, flags: int) -> int | None:
    """The open device, or None where another process took it first."""
    device = os.open(node, os.O_RDWR | os.O_CLOEXEC)
    info = struct.pack("QQQQQIIII64s64s32s2Q", 0, 0, 0, 0, 0, 0, 0, 0, flags, b"", b"", b"", 0, 0)
    try:
        fcntl.ioctl(device, _LOOP_CONFIGURE, struct.pack("II", file, 512) + info + bytes(64))
    except OSError as error:
        os.close(device)
        if error.errno == errno.EBUSY:
            return None
        raise
    return device


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield file
    finally:
        os.close(file)
