"""The store in a process that is killed, on a disk that is full, and on one that fails.

Kill -9 leaves the page cache in place, so it cannot tell whether anything was flushed: that is what
`tests/unit/buffer/test_power_cut.py` is for.
"""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import needs
from oracle import check_ledger
from skerry.buffer.blocks import Stamp
from skerry.buffer.chain import Batch
from skerry.buffer.store import Store

WRITER = Path(__file__).with_name("store_writer.py")
LIMIT = 4 << 20


def writer(folder: Path, batch: int, *wrapper: str, option: str = "") -> subprocess.Popen[str]:
    argv = [*wrapper, sys.executable, str(WRITER), str(folder), str(batch), str(LIMIT), option]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def read_until(child: subprocess.Popen[str], wanted: str, count: int = 1) -> list[str]:
    """Its lines up to the `count`th that begins with `wanted`."""
    assert child.stdout is not None
    lines: list[str] = []
    while sum(line.startswith(wanted) for line in lines) < count:
        line = child.stdout.readline()
        assert line, f"it ended with {child.wait(10)} before {wanted}: {lines[-5:]}"
        lines.append(line.strip())
    return lines


def kill(child: subprocess.Popen[str]) -> list[str]:
    """What it said before it was killed."""
    child.kill()
    assert child.stdout is not None
    lines = child.stdout.read().splitlines()
    child.stdout.close()
    child.wait(10)
    return lines


def accepted(lines: list[str]) -> int:
    """The last seq that was said to be accepted; the last line may be torn."""
    whole = [line.split() for line in lines if line.startswith("accepted ")]
    return max((int(words[1]) for words in whole[:-1]), default=0)


def check(folder: Path, promised: int) -> None:
    store = Store.open(folder, limit_bytes=LIMIT, segment_bytes=256 * 1024, stamp=lambda: Stamp("b", 0, 0))
    chain = store.chain("event")
    assert (chain.watermark("p", "e") or 0) >= promised
    assert chain.last == (chain.watermark("p", "e") or 0), "offsets and seq go together in this test"
    at = chain.upto + 1
    while (batch := chain.read(at, 1000, 1 << 20)) is not None:
        assert isinstance(batch, Batch)
        assert batch.first == at
        assert [json.loads(p)["seq"] for p in batch.payloads] == list(range(at, at + len(batch.payloads)))
        at += len(batch.payloads)
    assert at == chain.last + 1
    check_ledger(chain.accepted, chain.delivered, chain.waiting, chain.evicted)
    assert chain.waiting == chain.recount()
    store.close()


@pytest.mark.parametrize("batch", [1, 25])
def test_killed_at_any_moment_nothing_accepted_is_lost(tmp_path: Path, batch: int) -> None:
    draw = random.Random(batch)
    promised = 0
    for _ in range(10):
        child = writer(tmp_path, batch)
        lines = read_until(child, "accepted", draw.randint(1, 60))
        time.sleep(draw.random() * 0.02)
        promised = max(promised, accepted(lines + kill(child)))
        check(tmp_path, promised)
    assert promised > 100


@needs.strace
@pytest.mark.parametrize("when", ["7", "13", "16+7"])
def test_a_failed_fdatasync_is_never_taken_for_a_success(tmp_path: Path, when: str) -> None:
    inject = f"inject=fdatasync:error=EIO:when={when}"
    child = writer(tmp_path, 5, "strace", "-f", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", inject)
    lines = read_until(child, "accepted", 40)
    check_killed = accepted(lines + _kill_traced(child))
    assert "refused StoreFault" in lines or when == "7"
    check(tmp_path, check_killed)


def _kill_traced(child: subprocess.Popen[str]) -> list[str]:
    """Kill the writer under strace, which then ends by itself."""
    found = subprocess.run(["pgrep", "-P", str(child.pid)], capture_output=True, text=True, check=False)
    for pid in found.stdout.split():
        subprocess.run(["kill", "-9", pid], check=False)
    assert child.stdout is not None
    lines = child.stdout.read().splitlines()
    child.stdout.close()
    child.wait(10)
    return lines


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode and not needs.FORBIDDEN:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.decode().strip()}")
    assert done.returncode == 0, done.stderr
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@needs.root
@pytest.mark.parametrize("size", ["600k", "900k", "1300k"])
def test_a_full_disk_loses_nothing_and_recovers_by_draining(tmp_path: Path, size: str) -> None:
    """The writer drains only when it is refused, so the disk fills again and again."""
    with small_disk(tmp_path / "disk", size) as folder:
        child = writer(folder / "store", 40, option="hold")
        lines = read_until(child, "refused StoreFull", 4)
        lines += read_until(child, "accepted", 5)
        promised = accepted(lines + kill(child))
        check(folder / "store", promised)


@needs.root
def test_a_disk_filled_by_others_refuses_and_recovers_when_there_is_room(tmp_path: Path) -> None:
    """The writer drains only when it is refused: what was delivered serves again, so it has to be refused."""
    with small_disk(tmp_path / "disk", "2m") as folder:
        child = writer(folder / "store", 10, option="hold")
        lines = read_until(child, "accepted", 20)
        filler = folder / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(b"x" * 4096):
                    pass
            except OSError:
                pass
        lines += read_until(child, "refused StoreFull", 3)
        filler.unlink()
        lines += read_until(child, "accepted", 20)
        promised = accepted(lines + kill(child))
        check(folder / "store", promised)
