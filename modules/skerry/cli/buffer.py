"""`skerry buffer`: what a store holds, on a live or a stopped box, or on a disk pulled out of one."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from skerry.errors import ConfigError, Unavailable
from skerry.messages import LANES, Event, Gap, Range

if TYPE_CHECKING:
    from rich.console import Console

    from skerry.buffer.gaps import Hole
    from skerry.buffer.quarantine import Entry
    from skerry.buffer.reading import Item, LaneView, Unread
    from skerry.buffer.seal import Seal
    from skerry.buffer.times import Anchors

_DESCRIPTION = """\
Look into the buffer's store: what waits, what was lost and why, what the far end refused.

FOLDER is the folder `log` of a buffer's state, the state folder itself, or the output folder of
`skerry run`. Everything but `retry` only reads, takes no lock and repairs nothing, so it can be used
beside a buffer at work; `retry` leaves a wish that the buffer takes up.
"""
_EPILOG = """\
examples:
  skerry buffer status skerry-out/demo             how much waits, in which lane, since when
  skerry buffer status --watch /data/buffer        the same, every second
  skerry buffer status --scan /mnt/pulled/log      read every block, and name what is damaged
  skerry buffer peek --lane alarm /data/buffer     what goes next
  skerry buffer quarantine /data/buffer            what the far end refused, and why
  skerry buffer retry --all --wait 5 /data/buffer  send that again
  skerry buffer export --out rescued.jsonl /mnt/pulled/log
                                                   everything that waits, from a box that died

exit codes: 0 done, 69 no store there or it cannot be read, 78 a wrong id, key or argument
"""
_BATCH = 1000
"""Events in one batch of an export."""
_TICK_S = 1.0
_WIDE = 200
_TEXT = argparse.RawDescriptionHelpFormatter


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parsers of `skerry buffer`."""
    buffer = commands.add_parser(
        "buffer",
        help="look into the buffer's store; retry; export",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=_TEXT,
    )
    kinds = buffer.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_status(kinds)
    _add_peek(kinds)
    _add_quarantine(kinds)
    _add_retry(kinds)
    _add_export(kinds)


def _add_status(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    status = _command(
        commands, "status", _status,
        help="how much waits, in which lane, since when",
        description="A row a lane. accepted = delivered + waiting + evicted, always. A key is not needed: "
        "without it the age of what waits is not known.",
    )  # fmt: skip
    status.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")
    status.add_argument("--scan", action="store_true", help="read every block; names all damage")
    _add_json(status, "one JSON object (with --watch, one a second)")
    _add_keys(status)


def _add_peek(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    peek = _command(
        commands, "peek", _peek,
        help="the records that go next",
        description="The next waiting records of each lane, gaps in their place.",
    )  # fmt: skip
    _add_lane(peek)
    peek.add_argument(
        "--first", type=_natural, default=None, metavar="OFFSET",
        help="begin here; below the first waiting one lie delivered records that are still on disk",
    )  # fmt: skip
    peek.add_argument(
        "--count", type=_natural, default=10, metavar="N", help="of each lane (default %(default)s)"
    )
    peek.add_argument("--raw", action="store_true", help="the events themselves, one a line")
    _add_json(peek, "one JSON object a record")
    _add_keys(peek)


def _add_quarantine(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    quarantine = _command(
        commands, "quarantine", _quarantine,
        help="what the far end refused, and why",
        description="Records that the far end will not take as they are. They are out of their lane's way, "
        "and the far end was told of them by gap records.",
    )  # fmt: skip
    _add_json(quarantine, "one JSON object an entry, the event included")


def _add_retry(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    retry = _command(
        commands, "retry", _retry,
        help="send again what is in quarantine",
        description="Ask the buffer to send records from the quarantine again, each as a new event with "
        "`retryof`. A buffer at work does it within two seconds; one that is stopped, when it starts.",
    )  # fmt: skip
    retry.add_argument("ids", nargs="*", metavar="ID", help="as `skerry buffer quarantine` shows them")
    retry.add_argument("--all", action="store_true", help="everything that was not sent again yet")
    retry.add_argument(
        "--wait", type=_seconds, default=0.0, metavar="S",
        help="wait this long for the buffer, and say what became of each",
    )  # fmt: skip


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    export = _command(
        commands, "export", _export,
        help="write all that waits to a file",
        description="Write waiting records as events, lane by lane, in order, gap records in their place: "
        "what the far end would have received. Feed it to a receiver that drops repeats by source, epoch "
        "and seq, and nothing counts twice.",
    )  # fmt: skip
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="replaced when complete")
    _add_lane(export)
    export.add_argument("--all", action="store_true", help="delivered records that are still on disk, too")
    export.add_argument(
        "--format", choices=("jsonl", "batch"), default="jsonl",
        help="one event a line, or CloudEvents JSON batches for `skerry unbatch` (default jsonl)",
    )  # fmt: skip
    export.add_argument(
        "--source", default="", metavar="SOURCE",
        help="source of the gap records (default: skerry/SITE/MODULE, by the events and the folder's name)",
    )  # fmt: skip
    _add_keys(export)


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    function: Callable[[argparse.Namespace], int],
    **texts: Any,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, **texts)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of a store, a state, or a run's output")

    def run(arguments: argparse.Namespace) -> int:
        with _quiet():
            return function(arguments)

    parser.set_defaults(func=run)
    return parser


def _add_json(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--json", action="store_true", help=text)


def _add_lane(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lane", choices=LANES, action="append", default=[], help="only this; may be repeated"
    )


def _add_keys(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--key-file", action="append", default=[], metavar="FILE", dest="keys",
        help="a key that blocks on disk are encrypted with; may be repeated",
    )  # fmt: skip


def _natural(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds, got {text!r}")
    return value


# status


def _status(arguments: argparse.Namespace) -> int:
    from skerry.cli import buffer_status  # noqa: PLC0415 - each command imports what it needs

    folder, keys = _store(arguments), _keys(arguments.keys)

    def report() -> buffer_status.Report:
        return buffer_status.report(folder, keys, scan=arguments.scan)

    if arguments.json:
        _print_json(report())
        while arguments.watch and _slept():
            _print_json(report())
        return 0
    console = _console()
    if arguments.watch:
        buffer_status.watch(console, report, _slept)
    else:
        console.print(buffer_status.render(report()))
    return 0


def _slept() -> bool:
    """Wait for the next second; False on Ctrl-C."""
    try:
        time.sleep(_TICK_S)
    except KeyboardInterrupt:
        return False
    return True


def _print_json(value: Any) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def _keys(paths: Iterable[str]) -> list[bytes]:
    from skerry.buffer.seal import read_key  # noqa: PLC0415 - each command imports what it needs

    return [read_key(path) for path in paths]


# peek


class Shown(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One line of `peek`. `last` only where it stands for several records that are not there."""

    lane: str
    offset: int
    last: int = 0
    time: str = ""
    timequality: str = ""
    committed: str = ""
    id: str = ""
    type: str = ""
    subject: str = ""
    bytes: int = 0
    missing: str = ""
    """Why there is no record."""


class _Glance(msgspec.Struct, frozen=True):
    """What is shown of an event; everything is optional, because a store keeps what it is given."""

    id: str = ""
    type: str = ""
    subject: str = ""
    time: str = ""
    timequality: str = ""


def _peek(arguments: argparse.Namespace) -> int:
    from skerry.buffer import reading  # noqa: PLC0415 - each command imports what it needs
    from skerry.buffer.seal import Seal  # noqa: PLC0415 - each command imports what it needs

    folder = _store(arguments)
    seal, anchors = Seal(old_keys=_keys(arguments.keys)), _anchors(folder)
    rows: list[Shown] = []
    raw: list[bytes] = []
    with _readable(folder):
        views = [reading.look_at(folder, lane, seal) for lane in arguments.lane or LANES]
        source = _source(folder, views, seal) if arguments.raw else ""
        for view in views:
            for entry in islice(reading.read(view, seal, arguments.first), arguments.count):
                if isinstance(entry, reading.Item):
                    event = _corrected(entry, anchors)
                    raw.append(event)
                    rows.append(_shown(view, entry, event, anchors))
                elif isinstance(entry, reading.Unread):
                    rows.append(_shown_missing(view, entry, f"unread: {entry.why}"))
                else:
                    raw.append(_gap_event(view, entry, source))
                    rows.append(_shown_missing(view, entry, f"gap: {entry.reason}"))
    _say_troubles(views)
    if arguments.raw:
        sys.stdout.buffer.writelines(map(_line, raw))
        sys.stdout.buffer.flush()
    elif arguments.json:
        for row in rows:
            _print_json(row)
    else:
        _print_rows(rows)
    return 0


def _shown_missing(view: LaneView, entry: Hole | Unread, why: str) -> Shown:
    return Shown(lane=view.lane, offset=entry.first, last=entry.last, missing=why)


def _shown(view: LaneView, item: Item, event: bytes, anchors: Anchors) -> Shown:
    from skerry.buffer.reading import committed_ns  # noqa: PLC0415 - each command imports what it needs

    try:
        glance = msgspec.json.decode(event, type=_Glance)
    except msgspec.DecodeError:
        glance = _Glance(type="unreadable")
    return Shown(
        lane=view.lane, offset=item.offset, time=glance.time, timequality=glance.timequality,
        committed=_utc(committed_ns(item.at, anchors)), id=glance.id, type=glance.type,
        subject=glance.subject, bytes=len(item.payload),
    )  # fmt: skip


def _print_rows(rows: list[Shown]) -> None:
    from rich.table import Table  # noqa: PLC0415 - each command imports what it needs
    from rich.text import Text  # noqa: PLC0415 - each command imports what it needs

    if not rows:
        print("nothing waits")
        return
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("lane", "offset", "time", "type", "subject", "bytes"):
        table.add_column(name, justify="right" if name in {"offset", "bytes"} else "left", no_wrap=True)
    for row in rows:
        if row.missing:
            span = f"{row.offset}" if row.last == row.offset else f"{row.offset} to {row.last}"
            count = row.last - row.offset + 1
            table.add_row(row.lane, span, "", Text(f"{row.missing}, {count} records", style="yellow"), "", "")
            continue
        doubt = {"unsynchronised": " ?", "corrected": " *"}.get(row.timequality, "")
        table.add_row(
            row.lane, f"{row.offset}", row.time + doubt, Text(row.type), Text(row.subject), f"{row.bytes}"
        )
    console = _console()
    console.print(table)
    if any(row.timequality for row in rows):
        console.print("? the clock was not synchronised: may be wrong   * reckoned afterwards", style="dim")


# quarantine and retry


def _quarantine(arguments: argparse.Namespace) -> int:
    from rich.table import Table  # noqa: PLC0415 - each command imports what it needs
    from rich.text import Text  # noqa: PLC0415 - each command imports what it needs

    from skerry.buffer import quarantine  # noqa: PLC0415 - each command imports what it needs

    folder = _store(arguments)
    with _readable(folder):
        found = quarantine.entries(folder)
    if arguments.json:
        for listed in found:
            _print_json({**msgspec.structs.asdict(listed.entry), "again": listed.again})
        return 0
    if not found:
        print("nothing is in quarantine")
        return 0
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("id", "time", "lane", "reason", "sent again as"):
        table.add_column(name, no_wrap=name == "id", overflow="fold")
    for listed in found:
        entry = listed.entry
        again = Text(listed.again, style="green") if listed.again else Text(_retryable(entry), style="yellow")
        table.add_row(Text(entry.id), entry.time, entry.lane, Text(entry.reason), again)
    _console().print(table)
    return 0


def _retryable(entry: Entry) -> str:
    return "cannot be: it is unreadable" if bytes(entry.event) == b"null" else "not yet"


def _retry(arguments: argparse.Namespace) -> int:
    from skerry.buffer import quarantine, reading  # noqa: PLC0415 - each command imports what it needs

    if bool(arguments.ids) == arguments.all:
        raise ConfigError("retry: expected ids or --all (see skerry buffer quarantine)")
    folder = _store(arguments)
    with _readable(folder):
        ids = _wanted(folder, arguments)
    if not ids:
        print("nothing to send again")
        return 0
    name = f"{time.time_ns():020d}-{os.getpid()}"
    try:
        quarantine.ask(folder, ids, name)
    except OSError as error:
        raise Unavailable(f"{folder}: cannot leave the wish: {error.strerror}") from error
    request = folder / f"retry-{name}.json"
    if reading.holder(folder) is None and not arguments.wait:
        print(f"asked for {len(ids)}; no buffer is seen at work: it is done when one starts")
        return 0
    deadline = time.monotonic() + arguments.wait
    while request.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    if request.exists():
        print(f"asked for {len(ids)}; not taken up so far (it is as soon as a buffer is at work)")
        return 0
    return _tell(folder, ids)


def _wanted(folder: Path, arguments: argparse.Namespace) -> tuple[str, ...]:
    """Ids of what is to be sent again.

    Raises:
        ConfigError: some are not in quarantine, or cannot be sent.
    """
    from skerry.buffer import quarantine  # noqa: PLC0415 - each command imports what it needs

    known = {listed.entry.id: listed for listed in quarantine.entries(folder)}
    open_ = {id_ for id_, x in known.items() if not x.again and bytes(x.entry.event) != b"null"}
    if arguments.all:
        return tuple(id_ for id_ in known if id_ in open_)
    wrong = [
        f"{i}: not in quarantine (see skerry buffer quarantine)" for i in arguments.ids if i not in known
    ]
    wrong += [
        f"{i}: was sent again as {known[i].again}"
        if known[i].again
        else f"{i}: cannot be read, nor sent again"
        for i in arguments.ids
        if i in known and i not in open_
    ]
    if wrong:
        raise ConfigError(wrong)
    return tuple(dict.fromkeys(arguments.ids))


def _tell(folder: Path, ids: tuple[str, ...]) -> int:
    """Say what became of each wish; 69 if one was not done."""
    from skerry.buffer import quarantine  # noqa: PLC0415 - each command imports what it needs

    again = {listed.entry.id: listed.again for listed in quarantine.entries(folder)}
    for id_ in ids:
        became = f"sent again as {again[id_]}" if again.get(id_) else "not sent again (see the buffer's log)"
        print(f"{id_}: {became}")
    return 0 if all(again.get(id_) for id_ in ids) else Unavailable.exit_code


# export


def _export(arguments: argparse.Namespace) -> int:
    from skerry.buffer import reading  # noqa: PLC0415 - each command imports what it needs
    from skerry.buffer.seal import Seal  # noqa: PLC0415 - each command imports what it needs

    folder = _store(arguments)
    seal, anchors = Seal(old_keys=_keys(arguments.keys)), _anchors(folder)
    with _readable(folder):
        views = [reading.look_at(folder, lane, seal) for lane in arguments.lane or LANES]
        work = _Export(arguments, arguments.source or _source(folder, views, seal), seal, anchors)
        with _whole(arguments.out) as sink:
            for view in views:
                work.lane(view, sink)
            work.finish(sink)
    for line in work.notes:
        print(line, file=sys.stderr)
    _say_troubles(views)
    print(f"{arguments.out}: {work.events} events, {work.gaps} gap records", file=sys.stderr)
    return 0


class _Export:
    """Writes lanes, one after the other."""

    def __init__(self, arguments: argparse.Namespace, source: str, seal: Seal, anchors: Anchors) -> None:
        self.events = 0
        self.gaps = 0
        self.notes: list[str] = []
        self._all = arguments.all
        self._batched = arguments.format == "batch"
        self._seal = seal
        self._anchors = anchors
        self._source = source
        self._batch: list[bytes] = []
        self._shown = 0.0

    def lane(self, view: LaneView, sink: BinaryIO) -> None:
        """Write one."""
        from skerry.buffer import reading  # noqa: PLC0415 - each command imports what it needs

        first = view.segments[0].first if self._all and view.segments else None
        for entry in reading.read(view, self._seal, first):
            if isinstance(entry, reading.Item):
                self.events += 1
                self._put(_corrected(entry, self._anchors), sink)
            elif isinstance(entry, reading.Unread):
                self.notes.append(f"{view.lane} {entry.first} to {entry.last}: not exported: {entry.why}")
            else:
                self.gaps += 1
                self._put(_gap_event(view, entry, self._source), sink)
                self.notes.append(f"{view.lane} {entry.first} to {entry.last}: gap: {entry.reason}")
            self._show(view)

    def finish(self, sink: BinaryIO) -> None:
        """Write what is left."""
        self._flush(sink)
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")

    def _put(self, event: bytes, sink: BinaryIO) -> None:
        if not self._batched:
            sink.write(_line(event))
            return
        self._batch.append(event)
        if len(self._batch) >= _BATCH:
            self._flush(sink)

    def _flush(self, sink: BinaryIO) -> None:
        from skerry import batches  # noqa: PLC0415 - each command imports what it needs

        if self._batch:
            sink.write(batches.encode(self._batch) + b"\n")
            self._batch.clear()

    def _show(self, view: LaneView) -> None:
        if sys.stderr.isatty() and time.monotonic() - self._shown > 0.2:
            self._shown = time.monotonic()
            sys.stderr.write(f"\r\x1b[K{view.lane}: {self.events} events")
            sys.stderr.flush()


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when it is complete and on disk.

    Raises:
        Unavailable: it cannot be written; what was there before still is.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as sink:
            yield sink
            sink.flush()
            os.fsync(sink.fileno())
        draft.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise Unavailable(f"{path}: cannot write it: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)


# What several need


def _store(arguments: argparse.Namespace) -> Path:
    from skerry.buffer import reading  # noqa: PLC0415 - each command imports what it needs

    return reading.find(arguments.folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """What reads a store logs errors only, and not where the output goes."""
    import structlog  # noqa: PLC0415 - each command imports what it needs

    before = structlog.get_config() if structlog.is_configured() else None
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.reset_defaults()
        if before is not None:
            structlog.configure(**before)


def _console() -> Console:
    """The terminal; anything else is as wide as it takes."""
    from rich.console import Console  # noqa: PLC0415 - each command imports what it needs

    return Console() if sys.stdout.isatty() else Console(width=_WIDE)


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Errors of the disk in words; what needs a key that was not given, in those of this command."""
    try:
        yield
    except OSError as error:
        raise Unavailable(f"{folder}: cannot read it: {error.strerror}") from error
    except ConfigError as error:
        text = str(error)
        if not text.startswith("key_file: expected key"):
            raise
        key = text.removeprefix("key_file: expected ").partition(" (")[0]
        raise ConfigError(
            f"{folder}: encrypted: expected {key} (give the key that it was written with: --key-file FILE)"
        ) from error


def _say_troubles(views: Iterable[LaneView]) -> None:
    for view in views:
        for trouble in dict.fromkeys(view.troubles):
            print(trouble, file=sys.stderr)


def _anchors(folder: Path) -> Anchors:
    from skerry.buffer.reading import ReadOnlyDisk  # noqa: PLC0415 - each command imports what it needs
    from skerry.buffer.times import Anchors  # noqa: PLC0415 - each command imports what it needs

    return Anchors(folder / "anchors", ReadOnlyDisk())


def _corrected(item: Item, anchors: Anchors) -> bytes:
    """An event as it would have been sent."""
    from skerry.buffer.times import corrected  # noqa: PLC0415 - each command imports what it needs

    if not item.times:
        return item.payload
    try:
        return corrected(item.payload, anchors)
    except msgspec.DecodeError:
        return item.payload


def _line(event: bytes) -> bytes:
    return event.replace(b"\r", b" ").replace(b"\n", b" ") + b"\n"


def _source(folder: Path, views: Iterable[LaneView], seal: Seal) -> str:
    """What the buffer of this folder calls itself, by its events' sources: `skerry/SITE/MODULE`."""
    from skerry.buffer import reading  # noqa: PLC0415 - each command imports what it needs

    site = "unknown"
    for view in views:
        for entry in reading.read(view, seal):
            if isinstance(entry, reading.Item):
                site = _site_of(entry.payload) or site
                break
    return f"skerry/{site}/{folder.resolve().parent.name or 'buffer'}"


def _site_of(event: bytes) -> str:
    try:
        parts = json.loads(event)["source"].split("/")
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
    return str(parts[1]) if len(parts) == 3 and parts[0] == "skerry" else ""


def _gap_event(view: LaneView, hole: Hole, source: str) -> bytes:
    """A gap record as the buffer would have sent it: of the same name, so that it counts once."""
    from skerry.buffer.records import OWN  # noqa: PLC0415 - each command imports what it needs
    from skerry.clock import boot_id, utc  # noqa: PLC0415 - each command imports what it needs

    ranges = tuple(
        Range(producer=n.producer, epoch=n.epoch, first=n.first, last=n.last, count=n.count)
        for n in hole.names
        if n.producer != OWN
    )
    gap = Gap(
        lane=view.lane, reason=hole.reason, detail=hole.detail, count=hole.count, bytes=hole.bytes,
        time_from=_utc(hole.from_ns), time_to=_utc(hole.to_ns), ranges=ranges,
    )  # fmt: skip
    return msgspec.json.encode(Event(
        id=f"{hole.epoch}-{hole.seq}", source=source, type="skerry.gap", time=utc(), subject=view.lane,
        lane=view.lane, epoch=hole.epoch, seq=hole.seq, bootid=boot_id(), monotonic=time.monotonic_ns(),
        data=msgspec.to_builtins(gap),
    ))  # fmt: skip


def _utc(wall_ns: int) -> str:
    from skerry.clock import utc  # noqa: PLC0415 - each command imports what it needs

    return utc(min(max(wall_ns / 1e9, 0.0), 253_402_300_799.0)) if wall_ns else ""
