"""The frame store: a ring of slots per camera, in a memory-mapped file under a tmpfs folder.

The writer (capture) fills slots in turn and never waits. A reader gets a view of the slot itself, with
no copy, and learns before and after use whether the writer has touched it meanwhile: `FrameGone`
instead of a torn picture. Each slot has a generation, odd while it is written and even when it is
whole, so it works as a seqlock. `docs/adr/0003-frames-by-reference.md` says what it relies on.

    ring = RingWriter.create(Path("/dev/shm/skerry"), "gate", slots=8, slot_bytes=640 * 480 * 3)
    with ring.slot((480, 640, 3)) as slot:
        draw_into(slot.pixels)
    publish(ring.name, slot.index, slot.generation)

    with reader.frame(ref) as pixels:
        use(pixels)          # raises FrameGone at the end of the block when the writer was faster

Source: Boehm, Can Seqlocks Get Along With Programming Language Memory Models, MSPC 2012.
"""

from __future__ import annotations

import errno
import fcntl
import math
import mmap
import os
import re
import secrets
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from skerry.errors import ConfigError, FrameGone, Unavailable
from skerry.messages import FrameRef

Pixels = npt.NDArray[np.uint8]
Shape = tuple[int, int] | tuple[int, int, int]
"""(height, width) for gray8, (height, width, 3) for bgr24."""

_MAGIC = b"SKRYRNG1"
_HEADER = struct.Struct("<8sQQQ")  # magic, slots, bytes of a slot, offset of the first slot
_GENERATIONS = 64
"""Offset of the first generation; each has a cache line of its own."""
_LINE = 64
_PAGE = 4096
_SUFFIX = ".ring"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\.[0-9a-f]{16}\.ring")
_CHANNELS = {"bgr24": 3, "gray8": 1}


@dataclass(frozen=True)
class _Layout:
    """Where things are in a ring file, in bytes."""

    slots: int
    slot_bytes: int

    @property
    def first(self) -> int:
        """Offset of the first slot."""
        return _pages(_GENERATIONS + self.slots * _LINE)

    @property
    def stride(self) -> int:
        return _pages(self.slot_bytes)

    @property
    def size(self) -> int:
        return self.first + self.slots * self.stride

    def offset(self, slot: int) -> int:
        return self.first + slot * self.stride


@dataclass
class Slot:
    """A slot being written: `pixels` is the slot itself."""

    index: int
    generation: int
    """What the slot's generation will be once the block has ended."""
    pixels: Pixels


class RingWriter:
    """Writes one camera's ring; made by `create`. One thread at a time writes."""

    def __init__(self, path: Path, layout: _Layout, memory: mmap.mmap, descriptor: int) -> None:
        self.path = path
        self.name = path.name
        self.slots = layout.slots
        self.slot_bytes = layout.slot_bytes
        self._layout = layout
        self._generations = _generations(memory, layout)
        self._bytes = np.frombuffer(memory, np.uint8)
        self._descriptor = descriptor
        self._next = 0
        self._fence = _Fence()

    @classmethod
    def create(cls, folder: Path, camera: str, slots: int, slot_bytes: int) -> RingWriter:
        """Make a ring with all its space allocated, and remove what a killed writer of `camera` left.

        Args:
            folder: where rings live, a tmpfs; made if missing.
            camera: name of the camera, part of the file's name.
            slots: 2 or more.
            slot_bytes: the largest picture a slot can take.

        Raises:
            ConfigError: the folder has not enough space, or cannot be written.
            Unavailable: another process writes this camera now.
        """
        assert slots >= 2, f"slots: expected 2 or more, got {slots}"
        layout = _Layout(slots, slot_bytes)
        prepare(folder)
        remove_stale(folder)
        _refuse_living(folder, camera)
        path, descriptor = _new_file(folder, camera)
        try:
            _allocate(descriptor, folder, layout.size)
            memory = mmap.mmap(descriptor, layout.size)
        except BaseException:
            path.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        memory[: _HEADER.size] = _HEADER.pack(_MAGIC, slots, slot_bytes, layout.first)
        return cls(path, layout, memory, descriptor)

    @contextmanager
    def slot(self, shape: Shape) -> Iterator[Slot]:
        """The next slot, to be filled in the block; readers of its old picture get `FrameGone`.

        When the block raises, the slot stays invalid and is used again.

        Args:
            shape: (height, width, 3) or (height, width), at most `slot_bytes` in all.
        """
        if self._descriptor < 0:
            raise ValueError(f"{self.name}: expected an open ring, got a closed one")
        size = math.prod(shape)
        if size > self.slot_bytes:
            raise ValueError(f"{self.name}: expected at most {self.slot_bytes} bytes, got {size} {shape}")
        index = self._next
        generation = self._generations[index] | 1
        self._generations[index] = generation
        self._fence.pass_()
        start = self._layout.offset(index)
        yield Slot(index, generation + 1, self._bytes[start : start + size].reshape(shape))
        self._fence.pass_()
        self._generations[index] = generation + 1
        self._next = (index + 1) % self.slots

    def write(self, pixels: Pixels) -> tuple[int, int]:
        """Copy a picture into the next slot; returns the slot and its generation."""
        shape = (
            (pixels.shape[0], pixels.shape[1])
            if pixels.ndim == 2
            else (pixels.shape[0], pixels.shape[1], pixels.shape[2])
        )
        with self.slot(shape) as slot:
            np.copyto(slot.pixels, pixels)
        return slot.index, slot.generation

    def close(self) -> None:
        """Remove the file. Its memory is freed when the last reader lets go of it."""
        if self._descriptor >= 0:
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1
            self._bytes = np.empty(0, np.uint8)
            self._generations = memoryview(b"").cast("Q")


class RingReader:
    """Reads frames of any camera by reference. Thread-safe.

    Args:
        folder: where the writers' rings live.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rings: dict[str, _Ring] = {}
        self._lock = threading.Lock()

    @contextmanager
    def frame(self, ref: FrameRef) -> Iterator[Pixels]:
        """The picture itself, read-only and without a copy, for as long as the block lasts.

        Raises:
            FrameGone: before the block when the frame is no longer there or `ref` makes no sense; after
                the block when the writer came by meanwhile. What the block made of the pixels must then
                be thrown away. An error of the block itself is then taken for a result of that.
        """
        ring = self._ring(ref.ring)
        pixels = ring.view(ref)
        fence = _Fence()
        ring.check(ref)
        fence.pass_()
        try:
            yield pixels
        except Exception as error:
            fence.pass_()
            if not ring.holds(ref):
                raise FrameGone(_gone(ref)) from error
            raise
        fence.pass_()
        ring.check(ref)

    def forget_removed(self) -> None:
        """Let go of rings whose files are gone, so that their memory is freed."""
        with self._lock:
            for name in [n for n in self._rings if not (self._folder / n).exists()]:
                del self._rings[name]

    def _ring(self, name: str) -> _Ring:
        ring = self._rings.get(name)
        if ring is None:
            self.forget_removed()
            ring = _open_ring(self._folder, name)
            with self._lock:
                ring = self._rings.setdefault(name, ring)
        return ring


class _Ring:
    """A ring mapped for reading. Its header was checked once and is not read again."""

    def __init__(self, layout: _Layout, memory: mmap.mmap) -> None:
        self._layout = layout
        self._generations = _generations(memory, layout)
        self._bytes = np.frombuffer(memory, np.uint8)

    def view(self, ref: FrameRef) -> Pixels:
        channels = _CHANNELS[ref.format]
        size = ref.height * ref.width * channels
        if ref.slot >= self._layout.slots or size > self._layout.slot_bytes:
            raise FrameGone(
                f"{ref.ring}: expected a slot below {self._layout.slots} and at most "
                f"{self._layout.slot_bytes} bytes, got slot {ref.slot} and {size} bytes"
            )
        start = self._layout.offset(ref.slot)
        flat = self._bytes[start : start + size]
        shape = (ref.height, ref.width) if channels == 1 else (ref.height, ref.width, channels)
        return flat.reshape(shape)

    def holds(self, ref: FrameRef) -> bool:
        """Whether the slot still has the picture that `ref` means."""
        return ref.generation % 2 == 0 and self._generations[ref.slot] == ref.generation > 0

    def check(self, ref: FrameRef) -> None:
        if not self.holds(ref):
            raise FrameGone(_gone(ref))


class _Fence:
    """A full memory barrier: nothing this thread loads or stores moves across it.

    A lock is released and taken again. Both are atomic read-modify-writes in every CPython: on x86 a
    locked instruction, which also drains non-temporal stores; on ARM64 a release followed by an
    acquire, between which nothing can pass in either direction.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def pass_(self) -> None:
        self._lock.release()
        self._lock.acquire()


def prepare(folder: Path) -> None:
    """Make the folder if missing and prove that it can be written.

    Raises:
        ConfigError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{secrets.token_hex(8)}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"frames: {folder}: cannot write the frame store: {error.strerror} "
            f"(give a folder that uid {os.getuid()} may write)"
        ) from error


def ring_bytes(slots: int, slot_bytes: int) -> int:
    """Space that a ring takes in its folder, in bytes."""
    return _Layout(slots, slot_bytes).size


def available_bytes(folder: Path) -> int:
    """Space that this user can still allocate in the folder's file system, in bytes."""
    usage = os.statvfs(folder)
    return usage.f_bavail * usage.f_frsize


def too_small(folder: Path, wanted: int, available: int) -> ConfigError:
    """The error for a folder without the space that rings need."""
    return ConfigError(
        f"frames: {folder}: expected {wanted} bytes free for frames, got {available} "
        "(enlarge the tmpfs, e.g. --shm-size, or lower slots, width or height)"
    )


def _allocate(descriptor: int, folder: Path, size: int) -> None:
    """Reserve the space for good: a page that is missing later would be a SIGBUS."""
    available = available_bytes(folder)
    if size > available:
        raise too_small(folder, size, available)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise too_small(folder, size, available_bytes(folder)) from error
        raise


def remove_stale(folder: Path) -> None:
    """Remove the rings whose writers are dead: a writer holds a lock on its file as long as it lives."""
    for path in folder.glob(f"*{_SUFFIX}"):
        if _NAME.fullmatch(path.name) and not _is_written(path):
            path.unlink(missing_ok=True)


def _refuse_living(folder: Path, camera: str) -> None:
    for path in folder.glob(f"{camera}.*{_SUFFIX}"):
        if _is_written(path):
            raise Unavailable(
                f"frames: {path}: camera {camera} is captured by another process now "
                "(stop it, or give the camera another name)"
            )


def _is_written(path: Path) -> bool:
    """Whether a living process writes this ring."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def _new_file(folder: Path, camera: str) -> tuple[Path, int]:
    """A new ring file that is locked by us and still has its name.

    Between making and locking it another process may take it for stale; then it is made again.
    """
    while True:
        path = folder / f"{camera}.{secrets.token_hex(8)}{_SUFFIX}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue  # someone looks at it right now, and will remove it
        if os.fstat(descriptor).st_nlink:
            return path, descriptor
        os.close(descriptor)


def _open_ring(folder: Path, name: str) -> _Ring:
    """Map a ring for reading, believing nothing that it says of itself.

    Raises:
        FrameGone: there is no such ring, or it is none.
    """
    if not _NAME.fullmatch(name):
        raise FrameGone(f"ring {name[:80]!r}: expected <camera>.<16 hex digits>{_SUFFIX}")
    try:
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise FrameGone(f"ring {name}: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size < _PAGE:
            raise FrameGone(f"ring {name}: expected a ring file, got something else")
        memory = mmap.mmap(descriptor, status.st_size, prot=mmap.PROT_READ)
    finally:
        os.close(descriptor)
    magic, slots, slot_bytes, first = _HEADER.unpack(memory[: _HEADER.size])
    layout = _Layout(slots, slot_bytes)
    if magic != _MAGIC or first != layout.first or layout.size != len(memory) or slots == 0:
        raise FrameGone(f"ring {name}: expected a ring file, got a header that does not fit it")
    return _Ring(layout, memory)


def _generations(memory: mmap.mmap, layout: _Layout) -> memoryview:
    """The slots' generations: each is one aligned 8-byte word, stored and loaded as a whole."""
    words = memoryview(memory)[_GENERATIONS : _GENERATIONS + layout.slots * _LINE].cast("Q")
    return words[:: _LINE // 8]


def _pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


def _gone(ref: FrameRef) -> str:
    return (
        f"{ref.camera} frame {ref.number}: slot {ref.slot} of {ref.ring} was reused (the reader is too slow)"
    )
