"""Finds out what a chain's segments hold: by what the next one says of them, or by reading them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import structlog

from skerry.buffer import blocks, segment
from skerry.buffer.blocks import Block, Checkpoint, Preface
from skerry.buffer.reader import checkpoint_in
from skerry.buffer.records import OWN, Key
from skerry.buffer.seal import Seal
from skerry.buffer.segment import Contents, Segment, Span
from skerry.messages import Lane

log = structlog.get_logger()


@dataclass
class Recovered:
    """What was found.

    Attributes:
        segments: oldest first.
        marks: watermarks, the one that moved last at the end.
        holes: offsets that should be there.
        newest: the newest checkpoint.
        stated: records that the buffer itself added, ever.
    """

    segments: list[Segment] = field(default_factory=list)
    marks: dict[Key, int] = field(default_factory=dict)
    holes: list[Span] = field(default_factory=list)
    newest: Checkpoint | None = None
    stated: int = 0

    def raise_mark(self, key: Key, seq: int) -> None:
        """Raise a watermark and move it to the end; it never goes down."""
        self.marks[key] = max(self.marks.pop(key, 0), seq)


def recover(folder: Path, lane: Lane, seal: Seal, committed: int) -> Recovered:
    """Take up every segment of a lane.

    Args:
        folder: of the store.
        lane: whose segments.
        seal: how blocks are read.
        committed: offset of a record that is known to have been durable.

    Raises:
        OSError: a file cannot be read.
        ConfigError: it is encrypted, and the key was not given.
    """
    listed = segment.listed(folder, lane)
    said = [checkpoint_in(path, number, seal) for path, number, _ in listed]
    found = Recovered()
    for n, (path, number, first) in enumerate(listed):
        _take_checkpoint(found, said[n])
        if found.segments and first > found.segments[-1].end:
            found.holes.append((found.segments[-1].end, first - 1))
        after = said[n + 1] if n + 1 < len(listed) else None
        summary = after.before if after is not None else None
        if summary is not None and (summary.number, summary.first) == (number, first):
            found.segments.append(segment.of_summary(path, summary))
            continue
        stop = listed[n + 1][2] if n + 1 < len(listed) else None
        contents, prefaces = _read_through(path, number, first, stop=stop, seal=seal, committed=committed)
        for preface in prefaces:
            for run in preface.runs:
                found.raise_mark((run.producer, run.epoch), run.seq + run.count - 1)
                found.stated += run.count if run.producer == OWN else 0
        found.holes += contents.holes
        found.segments.append(contents.segment)
    return found


def _take_checkpoint(found: Recovered, said: Checkpoint | None) -> None:
    if said is not None:
        found.newest, found.stated = said, said.stated
        for mark in said.marks:
            found.raise_mark((mark.producer, mark.epoch), mark.seq)


def _read_through(
    path: Path, number: int, first: int, *, stop: int | None, seal: Seal, committed: int
) -> tuple[Contents, list[Preface]]:  # fmt: skip
    """What is in a segment that nothing speaks for, or that is the last one."""
    said: list[tuple[Preface, int]] = []

    def visit(block: Block) -> None:
        if block.header.kind == blocks.RECORDS:
            said.append((blocks.preface_of(block.body), len(block.body)))

    contents = segment.inspect(path, number, first, seal=seal, stop=stop, visit=visit, committed=committed)
    for preface, size in said:
        contents.segment.add(preface.at, preface.runs, size)
    if contents.damage:
        log.error("store.corrupt", segment=path.name, damage=contents.spots)
    return contents, [preface for preface, _ in said]
