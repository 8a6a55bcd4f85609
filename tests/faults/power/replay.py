"""What a power cut could have left on a recorded disk.

A disk keeps every write that a completed flush came after. Of the writes since then it may have any, in
any order, and of a write any sectors: power fails between two sectors, not within one. What the
file system did with the rest is found out by the kernel, which mounts the result.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from faults.power.journal import Entry, Flush, Mark, Write
from faults.power.mount import attached, mounted

SECTOR = 512
_JOURNAL_MAGIC = b"\xc0\x3b\x39\x98"
_JOURNAL_SUPERBLOCK = (3).to_bytes(4), (4).to_bytes(4)


class Engine(Protocol):
    """Keeps records, and says afterwards whether it kept what it had promised to.

    Attributes:
        options: of the mount.
    """

    options: str

    def work(self, folder: Path, promise: Callable[[object], None], draw: random.Random) -> None:
        """Keep records in `folder`; note every promise once it was made, before the next step."""

    def note(self, fact: Any) -> None:
        """A promise that was made before the cut."""

    def check(self, folder: Path, draw: random.Random, ahead: Any) -> int:
        """Open what is left.

        Args:
            folder: that of `work`.
            draw: of this cut.
            ahead: the promise that was not made any more, because of the cut; None at the end.

        Returns:
            How many promised records are not there.

        Raises:
            AssertionError: something else is wrong with it.
        """


@dataclass
class Outcome:
    """Of one cut.

    Attributes:
        after: entries of the journal before the cut.
        kind: what happened to the writes that were not flushed, and how many there were.
        lost: promised records that were not there.
        wrong: what else was wrong, or nothing.
    """

    after: int
    kind: str
    lost: int = 0
    wrong: str = ""


def cuts(count: int, journal: Sequence[Entry], draw: random.Random) -> list[int]:
    """Where to cut, ascending: half with writes unflushed, a quarter behind a promise, the rest anywhere."""
    promised, unflushed, dirty = [0], [0], False
    for n, entry in enumerate(journal, 1):
        dirty = isinstance(entry, Write) or (dirty and not isinstance(entry, Flush))
        if dirty:
            unflushed.append(n)
        if isinstance(entry, Mark):
            promised.append(n)
    places = unflushed, unflushed, promised, range(len(journal) + 1)
    return sorted(draw.choice(places[n % 4]) for n in range(count))


def replay(
    engine: Engine, image: Path, journal: Sequence[Entry], at: Sequence[int], *, seed: str, room: Path
) -> Iterator[Outcome]:
    """Cut after each of the numbers of entries in `at` (ascending).

    Args:
        engine: is told the promises before each cut and asked about what is left.
        image: the disk before the first entry; it moves on with the cuts.
        journal: what was done to it.
        at: where to cut.
        seed: of everything that is drawn.
        room: a folder for the scratch image and mount points.
    """
    scratch = room / "scratch"
    base = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    size = os.fstat(base).st_size
    left = list(at)
    pending: list[Write] = []
    with scratch.open("w+b", buffering=0) as cut:
        cut.truncate(size)
        with attached(scratch, room / "scratch-disk") as node:

            def due(n: int) -> Iterator[Outcome]:
                while left and left[0] == n:
                    draw = random.Random(f"{seed}/{n}/{len(left)}")
                    left.pop(0)
                    kind, kept = survivors(pending, draw)
                    _copy(base, cut.fileno(), size)
                    for write in kept:
                        os.pwrite(cut.fileno(), write.content, write.at)
                    ahead = next((e.fact for e in islice(journal, n, None) if isinstance(e, Mark)), None)
                    look = partial(engine.check, room / "scratch-folder", draw, ahead)
                    with_options = node, room / "scratch-folder", "ext4", engine.options
                    yield _checked(look, partial(mounted, *with_options), Outcome(n, kind))

            n = 0
            yield from due(0)
            for n, entry in enumerate(journal, 1):
                match entry:
                    case Write():
                        pending.append(entry)
                    case Flush():
                        for write in pending:
                            os.pwrite(base, write.content, write.at)
                        pending.clear()
                    case Mark(fact):
                        engine.note(fact)
                yield from due(n)
                if not left:
                    break
    os.close(base)


def left_after(count: int, image: Path, journal: Sequence[Entry], draw: random.Random) -> list[Any]:
    """Turn the image into what a cut after `count` entries could have left; returns the promises before."""
    pending: list[Write] = []
    facts: list[Any] = []
    with image.open("r+b", buffering=0) as file:

        def apply(writes: list[Write]) -> None:
            for write in writes:
                os.pwrite(file.fileno(), write.content, write.at)

        for entry in journal[:count]:
            match entry:
                case Write():
                    pending.append(entry)
                case Flush():
                    apply(pending)
                    pending.clear()
                case Mark(fact):
                    facts.append(fact)
        apply(survivors(pending, draw)[1])
    return facts


def survivors(pending: Sequence[Write], draw: random.Random) -> tuple[str, list[Write]]:
    """Which of the writes that were not flushed the disk has.

    Two writes to one sector that both survive are seen in their order: no file system has both on their
    way at once, and a cache forgets the older one.
    """
    if not pending:
        return "nothing unflushed", []
    kind = draw.choice(("dropped", "kept", "some", "torn", "torn", "all but one", "one"))
    one = draw.randrange(len(pending))
    share = draw.random()
    match kind:
        case "dropped":
            kept = []
        case "kept":
            kept = list(pending)
        case "some":
            kept = [w for w in pending if draw.random() < share]
        case "all but one":
            kept = [w for n, w in enumerate(pending) if n != one]
        case "one":
            kept = [pending[one]]
        case _:
            kept = [part for w in pending for part in _torn(w, share, draw)]
    return f"{kind} of {len(pending)}", kept


def _torn(write: Write, share: float, draw: random.Random) -> Iterator[Write]:
    if _superblock(write):
        if draw.random() < share:
            yield write
        return
    for at in range(0, len(write.content), SECTOR):
        if draw.random() < share:
            yield Write(write.at + at, write.content[at : at + SECTOR])


def _superblock(write: Write) -> bool:
    """Whether ext4 or its journal takes it for granted that this write is whole or not there.

    Both keep a checksum in the second sector of what they write in place. Disks that tear within 4 KiB
    are out of their reach, and of ours.
    """
    magic, kind = write.content[:4], write.content[4:8]
    return write.at < 4096 or (magic == _JOURNAL_MAGIC and kind in _JOURNAL_SUPERBLOCK)


def _checked(look: Callable[[], int], mount: Callable[[], Any], outcome: Outcome) -> Outcome:
    with ExitStack() as stack:  # a file left open is no result, but an error in the check
        try:
            stack.enter_context(mount())
            outcome.lost = look()
        except AssertionError as error:
            outcome.wrong = str(error) or "an assertion failed"
        except Exception as error:  # noqa: BLE001 - whatever comes of such a disk is a result
            outcome.wrong = f"{type(error).__name__}: {error}"
    return outcome


def _copy(source: int, target: int, size: int) -> None:
    done = 0
    os.lseek(source, 0, os.SEEK_SET)
    os.lseek(target, 0, os.SEEK_SET)
    while done < size:
        done += os.sendfile(target, source, None, size - done)
