"""`skerry unbatch`: what an uplink sent as batches, one event a line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import msgspec

from skerry.batches import MAX_BYTES, BatchError, split
from skerry.errors import Unavailable
from skerry.receiver import Watermarks

_STDIN = "-"
_MIB = 1024 * 1024


class _Name(msgspec.Struct, frozen=True, gc=False):
    """What tells a repeat."""

    source: str
    epoch: str
    seq: int


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of `skerry unbatch`."""
    parser = commands.add_parser(
        "unbatch",
        help="print batches of events, one event a line",
        description="Read batches as a link with `format: batch` sends them (CloudEvents JSON batches, plain "
        "or compressed with zstd or gzip) or single events, one behind the other, and print one event a "
        "line, its bytes unchanged. What comes before a damaged batch is printed; exit code 65 says that "
        "one was damaged.",
        epilog="example: mosquitto_sub -t 'skerry/+/far/#' -N -C 10 | skerry unbatch --dedupe",
    )
    parser.add_argument(
        "files", nargs="*", default=[_STDIN], metavar="FILE", help="- or none: standard input"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=None, metavar="FILE",
        help="write the lines (JSON lines) to this file instead of standard output",
    )  # fmt: skip
    parser.add_argument(
        "--dedupe", action="store_true",
        help="drop repeats, by source, epoch and seq, across all files in the order given",
    )  # fmt: skip
    parser.add_argument(
        "--max-mib", type=int, default=MAX_BYTES // _MIB, metavar="N",
        help="refuse a batch that is larger once it is decompressed (default %(default)s)",
    )  # fmt: skip
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the events; returns the exit code.

    Raises:
        BatchError: something is no batch; the text names the file and the byte.
        Unavailable: a file cannot be read or written.
    """
    marks = Watermarks(max_epochs=1_000_000) if arguments.dedupe else None
    with ExitStack() as stack:
        sink = _sink(arguments.output, stack)
        for name in arguments.files:
            where = "standard input" if name == _STDIN else name
            try:
                for events in split(_content(name), arguments.max_mib * _MIB):
                    sink.writelines(line + b"\n" for line in _wanted(events, marks))
            except BatchError as error:
                sink.flush()
                raise BatchError(f"{where}: {error}") from error
            except BrokenPipeError:
                raise
            except OSError as error:
                raise Unavailable(f"{arguments.output or 'standard output'}: {error.strerror}") from error
        sink.flush()
    return 0


def _content(name: str) -> bytes:
    if name == _STDIN:
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise Unavailable(f"{name}: cannot read it: {error.strerror}") from error


def _sink(path: Path | None, stack: ExitStack) -> BinaryIO:
    if path is None:
        return sys.stdout.buffer
    try:
        return stack.enter_context(path.open("wb"))
    except OSError as error:
        raise Unavailable(f"{path}: cannot write it: {error.strerror}") from error


def _wanted(events: list[bytes], marks: Watermarks | None) -> Iterator[bytes]:
    for event in events:
        if marks is not None:
            try:
                name = msgspec.json.decode(event, type=_Name)
            except msgspec.DecodeError as error:
                raise BatchError(f"expected an event with source, epoch and seq, got {error}") from error
            if not marks.fresh(name.source, name.epoch, name.seq):
                continue
        yield event.replace(b"\r", b" ").replace(b"\n", b" ")
