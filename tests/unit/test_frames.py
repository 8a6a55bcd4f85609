"""The frame store: zero copy, and never a torn picture."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from skerry.errors import ConfigError, FrameGone, Unavailable
from skerry.frames import RingReader, RingWriter, available_bytes, ring_bytes
from skerry.messages import FrameRef

H, W = 48, 64


def ref_of(ring: RingWriter, slot: int, generation: int, number: int = 1, shape=(H, W)) -> FrameRef:
    return FrameRef(
        camera="gate", number=number, time="", captured_ns=0, media_ns=0, ring=ring.name,
        slot=slot, generation=generation, width=shape[1], height=shape[0],
    )  # fmt: skip


@pytest.fixture
def ring(tmp_path) -> Iterator[RingWriter]:
    writer = RingWriter.create(tmp_path, "gate", slots=3, slot_bytes=H * W * 3)
    yield writer
    writer.close()


def picture(value: int) -> np.ndarray:
    return np.full((H, W, 3), value, np.uint8)


def test_reader_sees_what_was_written(ring, tmp_path):
    slot, generation = ring.write(picture(7))
    with RingReader(tmp_path).frame(ref_of(ring, slot, generation)) as pixels:
        assert pixels.shape == (H, W, 3)
        assert (pixels == 7).all()


def test_gray_frames_have_two_dimensions(ring, tmp_path):
    slot, generation = ring.write(np.full((H, W), 9, np.uint8))
    ref = msgspec.structs.replace(ref_of(ring, slot, generation), format="gray8")
    with RingReader(tmp_path).frame(ref) as pixels:
        assert pixels.shape == (H, W)
        assert (pixels == 9).all()


def test_reader_gets_the_slot_itself_and_cannot_write_it(ring, tmp_path):
    slot, generation = ring.write(picture(1))
    with RingReader(tmp_path).frame(ref_of(ring, slot, generation)) as pixels:
        assert not pixels.flags.owndata
        assert not pixels.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            pixels[0, 0, 0] = 1


def test_pixels_can_be_made_in_the_slot_without_a_copy(ring, tmp_path):
    with ring.slot((H, W, 3)) as slot:
        assert not slot.pixels.flags.owndata
        assert slot.pixels.flags.c_contiguous
        slot.pixels[:] = 5
    with RingReader(tmp_path).frame(ref_of(ring, slot.index, slot.generation)) as pixels:
        assert (pixels == 5).all()


def test_frame_is_gone_once_its_slot_was_reused(ring, tmp_path):
    reader = RingReader(tmp_path)
    slot, generation = ring.write(picture(1))
    for n in range(3):
        ring.write(picture(n))
    with pytest.raises(FrameGone, match="reused"), reader.frame(ref_of(ring, slot, generation)):
        raise AssertionError("the block must not run")


def test_reuse_during_the_block_is_noticed_at_its_end(ring, tmp_path):
    slot, generation = ring.write(picture(1))

    def read_slowly():
        with RingReader(tmp_path).frame(ref_of(ring, slot, generation)):
            for n in range(3):
                ring.write(picture(n))

    with pytest.raises(FrameGone, match="reused"):
        read_slowly()


def test_a_write_that_has_only_begun_is_noticed(ring, tmp_path):
    reader = RingReader(tmp_path)
    slot, generation = ring.write(picture(1))
    ring.write(picture(2))
    ring.write(picture(3))

    def trip_over_a_half_written_picture():
        with reader.frame(ref_of(ring, slot, generation)), ring.slot((H, W, 3)) as writing:
            assert writing.index == slot
            raise ZeroDivisionError

    with pytest.raises(FrameGone, match="reused"):
        trip_over_a_half_written_picture()


def test_an_error_of_the_block_passes_while_the_frame_is_there(ring, tmp_path):
    slot, generation = ring.write(picture(1))
    with pytest.raises(ZeroDivisionError), RingReader(tmp_path).frame(ref_of(ring, slot, generation)):
        _ = 1 / 0


def test_slot_of_a_failed_write_is_invalid_and_used_again(ring, tmp_path):
    before = ring.write(picture(1))
    with pytest.raises(ZeroDivisionError), ring.slot((H, W, 3)) as failed:
        _ = 1 / 0
    reader = RingReader(tmp_path)
    with pytest.raises(FrameGone), reader.frame(ref_of(ring, failed.index, failed.generation)):
        pass
    again = ring.write(picture(2))
    assert again == (failed.index, failed.generation)
    with reader.frame(ref_of(ring, *before)) as pixels:
        assert (pixels == 1).all()


def test_picture_larger_than_a_slot_is_refused(ring):
    with pytest.raises(ValueError, match="expected at most"):
        ring.write(np.zeros((H + 1, W, 3), np.uint8))


@pytest.mark.parametrize(
    "change",
    [
        {"ring": "../gate.0123456789abcdef.ring"},
        {"ring": "/etc/passwd"},
        {"ring": ""},
        {"ring": "gate.0123456789abcdef.ring\n"},
        {"ring": "a" * 5000},
        {"ring": "gate.\0.ring"},
        {"ring": "gate.0123456789abcdef.ring"},
        {"slot": 3},
        {"slot": 2**62},
        {"generation": 0},
        {"generation": 1},
        {"generation": 2**63},
        {"height": H + 1},
        {"width": 2**62, "height": 2**62},
    ],
)
def test_absurd_reference_is_gone(ring, tmp_path, change):
    slot, generation = ring.write(picture(1))
    ref = msgspec.structs.replace(ref_of(ring, slot, generation), **change)
    with pytest.raises(FrameGone), RingReader(tmp_path).frame(ref):
        pass


def test_slot_that_was_never_written_is_gone(ring, tmp_path):
    with pytest.raises(FrameGone), RingReader(tmp_path).frame(ref_of(ring, 1, 0)):
        pass


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"x" * 8192, b"SKRYRNG1" + b"\xff" * 8184])
def test_file_that_is_no_ring_is_gone(ring, tmp_path, content):
    (tmp_path / "gate.00000000000000ff.ring").write_bytes(content)
    ref = msgspec.structs.replace(ref_of(ring, 0, 2), ring="gate.00000000000000ff.ring")
    with pytest.raises(FrameGone), RingReader(tmp_path).frame(ref):
        pass


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda p: p.symlink_to("/etc/passwd")])
def test_fifo_folder_and_link_are_gone(ring, tmp_path, make):
    make(tmp_path / "gate.00000000000000ff.ring")
    ref = msgspec.structs.replace(ref_of(ring, 0, 2), ring="gate.00000000000000ff.ring")
    with pytest.raises(FrameGone), RingReader(tmp_path).frame(ref):
        pass


def test_closing_removes_the_file_and_new_readers_find_the_frame_gone(ring, tmp_path):
    slot, generation = ring.write(picture(1))
    ref = ref_of(ring, slot, generation)
    ring.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FrameGone), RingReader(tmp_path).frame(ref):
        pass


def test_reader_lets_go_of_removed_rings(ring, tmp_path):
    reader = RingReader(tmp_path)
    slot, generation = ring.write(picture(1))
    ref = ref_of(ring, slot, generation)
    with reader.frame(ref):
        pass
    assert ring.name in Path("/proc/self/maps").read_text()
    ring.close()
    reader.forget_removed()
    with pytest.raises(FrameGone), reader.frame(ref):
        pass


def test_restarted_writer_removes_what_a_killed_one_left(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from skerry.frames import RingWriter\n"
        f"RingWriter.create(Path({str(tmp_path)!r}), 'gate', 3, 100); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    other = RingWriter.create(tmp_path, "gate2", 3, 100)
    assert not left.exists()
    writer = RingWriter.create(tmp_path, "gate", 3, 100)
    assert other.path.exists()
    writer.close()
    other.close()


def test_ring_of_a_living_writer_is_not_removed(ring, tmp_path):
    with pytest.raises(Unavailable, match="captured by another process"):
        RingWriter.create(tmp_path, "gate", 3, 100)
    assert ring.path.exists()


def test_space_is_really_allocated(ring):
    status = ring.path.stat()
    assert status.st_blocks * 512 >= status.st_size == ring_bytes(3, H * W * 3)


def test_folder_without_the_space_says_what_is_wanted_and_what_is_there(tmp_path):
    with pytest.raises(ConfigError, match=r"expected \d+ bytes free for frames, got \d+") as caught:
        RingWriter.create(tmp_path, "gate", 8, 2**50)
    assert str(ring_bytes(8, 2**50)) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_made_is_a_configuration_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write the frame store"):
        RingWriter.create(tmp_path / "file" / "frames", "gate", 3, 100)


@pytest.fixture
def small_tmpfs(tmp_path) -> Iterator[Path]:
    """A real tmpfs of 64 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, b"size=64m") != 0:
        pytest.skip(f"mounting a tmpfs is not permitted here: {os.strerror(ctypes.get_errno())}")
    yield folder
    assert libc.umount2(str(folder).encode(), 2) == 0


def test_tmpfs_of_64_mib_is_too_small_for_uhd_frames_and_large_enough_for_vga(small_tmpfs):
    with pytest.raises(ConfigError, match="expected 199069696 bytes free for frames, got 6710"):
        RingWriter.create(small_tmpfs, "gate", 8, 3840 * 2160 * 3)
    assert list(small_tmpfs.iterdir()) == []
    writer = RingWriter.create(small_tmpfs, "gate", 8, 640 * 480 * 3)
    for n in range(16):
        writer.write(np.full((480, 640, 3), n, np.uint8))
    writer.close()
    assert available_bytes(small_tmpfs) >= 64 * 2**20 - 4096


def test_filling_the_tmpfs_later_never_reaches_an_allocated_ring(small_tmpfs):
    writer = RingWriter.create(small_tmpfs, "gate", 4, 3 * 2**20)
    with pytest.raises(OSError, match="No space left"):
        (small_tmpfs / "filler").write_bytes(bytes(80 * 2**20))
    for n in range(8):  # would be a SIGBUS if the pages were not there
        writer.write(np.full((1024, 1024, 3), n, np.uint8))
    writer.close()


BIG = (720, 1280, 3)


def _write_at_full_speed(folder: str, pipe, stop) -> None:
    writer = RingWriter.create(Path(folder), "gate", 4, int(np.prod(BIG)))
    number = 0
    while not stop.is_set():
        number += 1
        with writer.slot(BIG) as slot:
            slot.pixels[:] = number % 251
        pipe.send((writer.name, slot.index, slot.generation, number))
    writer.close()
    pipe.close()


@pytest.fixture
def fast_writer(tmp_path):
    """The receiving end of a process that writes numbered frames as fast as it can."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    stop = context.Event()
    process = context.Process(target=_write_at_full_speed, args=(str(tmp_path), send, stop), daemon=True)
    process.start()
    send.close()
    yield receive
    stop.set()
    while process.is_alive():
        try:
            while receive.poll(0.1):
                receive.recv()
        except EOFError:
            break
    process.join(10)
    assert process.exitcode == 0


def _newest(pipe) -> tuple[FrameRef, int]:
    message = pipe.recv()
    while pipe.poll():
        message = pipe.recv()
    name, slot, generation, number = message
    ref = FrameRef(
        camera="gate", number=number, time="", captured_ns=0, media_ns=0, ring=name,
        slot=slot, generation=generation, width=BIG[1], height=BIG[0],
    )  # fmt: skip
    return ref, number % 251


def _torn_halfway(pixels: np.ndarray, want: int, pause_s: float) -> bool:
    """Whether a picture looks torn to a reader that looks at its halves with a pause between."""
    first = pixels[: BIG[0] // 2]
    torn = bool((first != want).any())
    time.sleep(pause_s)
    return bool((pixels[BIG[0] // 2 :] != want).any()) or torn


def test_no_torn_picture_ever_passes_the_check(fast_writer, tmp_path):
    reader, whole, gone, saw_torn = RingReader(tmp_path), 0, 0, 0
    deadline = time.monotonic() + 60
    while (whole < 200 or gone < 50 or saw_torn < 20) and time.monotonic() < deadline:
        ref, want = _newest(fast_writer)
        torn = False
        try:
            with reader.frame(ref) as pixels:
                torn = _torn_halfway(pixels, want, pause_s=(ref.number % 3) * 0.002)
            assert not torn, f"frame {ref.number} is torn and nobody noticed"
            whole += 1
        except FrameGone:
            gone += 1
            saw_torn += torn
    assert whole >= 200
    assert gone >= 50, "the reader was never too slow: the test proves nothing"
    assert saw_torn >= 20, "no picture was torn under the reader: the test proves nothing"


def test_reader_that_sleeps_gets_frame_gone(fast_writer, tmp_path):
    reader = RingReader(tmp_path)
    for _ in range(5):
        ref, _ = _newest(fast_writer)
        with pytest.raises(FrameGone):
            _sleep_on(reader, ref, fast_writer)


def _sleep_on(reader: RingReader, ref: FrameRef, pipe) -> None:
    """Hold a frame until the writer has gone round its ring of 4."""
    with reader.frame(ref):
        while pipe.recv()[3] < ref.number + 8:
            pass
