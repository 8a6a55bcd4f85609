"""What `skerry buffer status` shows: gathered once, printed as a table or as JSON."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from skerry.buffer import quarantine, reading
from skerry.buffer.reading import LaneView, StoreView
from skerry.buffer.times import Anchors
from skerry.clock import boot_id, utc
from skerry.messages import Lane

_OLD_S = 60.0
"""What has waited for longer stands out."""
_MIB = 1024 * 1024
_LAST_DAY_S = 253_402_300_799.0
_MOST_LINES = 10


class LaneReport(msgspec.Struct, frozen=True, kw_only=True):
    """One lane. `accepted = delivered + waiting + sum(evicted)`."""

    chain: str
    accepted: int
    delivered: int
    waiting: int
    evicted: dict[str, int]
    stated: int
    """Of `accepted`, what the buffer itself added."""
    gaps_pending: int
    """Gap records that the far end has not confirmed."""
    bytes: int
    segments: int
    oldest: str | None
    """When the oldest waiting record was committed, UTC; null where nothing waits or a key is missing."""
    oldest_age_s: float | None
    epochs: int | None
    """Whose watermark is kept."""


class Damage(msgspec.Struct, frozen=True):
    """Bytes of a file that are no block."""

    file: str
    at: int
    end: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A store at one moment."""

    folder: str
    time: str
    open_by: int | None
    """Process that has it open, as far as it can be seen from here."""
    command: str
    closed: bool
    """It was closed; otherwise it is open, or its process was killed."""
    steady: bool
    """False: it changed while it was looked at, and the counts are of several moments."""
    accepted: int
    delivered: int
    waiting: int
    evicted: dict[str, int]
    stated: int
    bytes: int
    free_files: int
    free_bytes: int
    quarantined: int
    """Not sent again so far."""
    retries_pending: int
    compressed: bool
    encrypted: bool
    missing_keys: list[str]
    scanned: bool
    damage: list[Damage]
    troubles: list[str]
    lanes: dict[Lane, LaneReport]


def report(folder: Path, keys: Sequence[bytes], *, scan: bool) -> Report:
    """Look at a store.

    Raises:
        Unavailable: it cannot be read.
    """
    view = reading.look(folder, keys, scan=scan)
    pid = reading.holder(folder)
    now = reading.Clocks(boot_id(), time.monotonic_ns(), time.time_ns())
    anchors = Anchors(folder / "anchors", reading.ReadOnlyDisk())
    lanes = {lane: _lane(found, anchors, now) for lane, found in view.lanes.items()}
    evicted: dict[str, int] = {}
    for lane in lanes.values():
        for reason, count in lane.evicted.items():
            evicted[reason] = evicted.get(reason, 0) + count
    return Report(
        folder=str(folder), time=utc(now.wall_ns / 1e9), open_by=pid, command=_command(pid),
        closed=view.closed, steady=all(found.steady for found in view.lanes.values()),
        accepted=sum(lane.accepted for lane in lanes.values()),
        delivered=sum(lane.delivered for lane in lanes.values()),
        waiting=sum(lane.waiting for lane in lanes.values()),
        evicted=evicted, stated=sum(lane.stated for lane in lanes.values()),
        bytes=view.space, free_files=len(view.free), free_bytes=sum(view.free),
        quarantined=sum(not listed.again for listed in quarantine.entries(folder)),
        retries_pending=len(list(folder.glob(quarantine.REQUESTS))),
        compressed=view.compressed, encrypted=view.encrypted, missing_keys=view.missing_keys,
        scanned=scan, damage=[Damage(*spot) for found in view.lanes.values() for spot in found.damage],
        troubles=_troubles(view), lanes=lanes,
    )  # fmt: skip


def _lane(view: LaneView, anchors: Anchors, now: reading.Clocks) -> LaneReport:
    oldest = view.oldest
    committed_s = None if oldest is None else reading.committed_ns(oldest, anchors) / 1e9
    return LaneReport(
        chain=view.id, accepted=view.last, delivered=view.delivered, waiting=view.waiting,
        evicted=view.evicted, stated=view.stated, gaps_pending=len(view.holes), bytes=view.space,
        segments=len(view.segments),
        oldest=None if committed_s is None else utc(min(max(committed_s, 0.0), _LAST_DAY_S)),
        oldest_age_s=None if oldest is None else round(reading.age_s(oldest, anchors, now), 3),
        epochs=view.marks,
    )  # fmt: skip


def _troubles(view: StoreView) -> list[str]:
    return [trouble for lane in view.lanes.values() for trouble in dict.fromkeys(lane.troubles)]


def _command(pid: int | None) -> str:
    """What a process was started as; empty where it cannot be seen."""
    if pid is None:
        return ""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    words = raw.decode(errors="replace").split("\0")
    return " ".join([os.path.basename(words[0]), *words[1:]]).strip()  # noqa: PTH119 - no path of this machine


# On the screen


def watch(console: Console, look: Callable[[], Report], wait: Callable[[], bool]) -> None:
    """Show it again and again, until `wait` says that it is enough."""
    with Live(render(look()), console=console, auto_refresh=False) as live:
        while wait():
            live.update(render(look()), refresh=True)


def render(found: Report) -> RenderableType:
    """The whole report, for a terminal."""
    return Group(_head(found), Text(), _table(found), Text(), *_foot(found))


def _head(found: Report) -> Text:
    if found.open_by is not None:
        state, style = f"● open in process {found.open_by}", "green"
        state += f" ({found.command})" if found.command else ""
    elif found.closed:
        state, style = "○ closed", "dim"
    else:
        state, style = "○ not closed: its process was killed, or is not seen from here", "yellow"
    return Text.assemble((found.folder, "bold"), "  ", (state, style))


def _table(found: Report) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("lane", no_wrap=True, min_width=9)
    for name in ("waiting", "oldest", "accepted", "delivered", "evicted", "gaps", "on disk", "files"):
        table.add_column(name, justify="right", no_wrap=True)
    for lane, row in found.lanes.items():
        table.add_row(
            lane,
            Text(f"{row.waiting:,}", style="bold" if row.waiting else "dim"),
            _age(row.oldest_age_s, waiting=row.waiting),
            f"{row.accepted:,}",
            f"{row.delivered:,}",
            _evicted(sum(row.evicted.values())),
            Text(f"{row.gaps_pending or ''}", style="yellow"),
            _size(row.bytes),
            f"{row.segments}",
            style="" if row.accepted else "dim",
        )
    table.add_row(
        "all", f"{found.waiting:,}", "", f"{found.accepted:,}", f"{found.delivered:,}",
        _evicted(sum(found.evicted.values())), "", _size(sum(row.bytes for row in found.lanes.values())),
        f"{sum(row.segments for row in found.lanes.values())}", style="bold",
    )  # fmt: skip
    return table


def _foot(found: Report) -> list[Text]:
    lines = []
    free = f"{found.free_files} files ready for use" if found.free_files else "no file ready for use"
    sealed = [w for w, on in (("compressed", found.compressed), ("encrypted", found.encrypted)) if on]
    about = f"  · {', '.join(sealed)}" if sealed else ""
    lines.append(Text(f"{_size(found.bytes)} on disk in all, {free}{about}", style="dim"))
    if found.evicted:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(found.evicted.items()))
        lines.append(Text(f"evicted: {reasons}", style="yellow"))
    if found.quarantined:
        lines.append(Text(f"in quarantine: {found.quarantined} (skerry buffer quarantine)", style="yellow"))
    if found.retries_pending:
        lines.append(Text(f"wishes to retry that no buffer has taken up: {found.retries_pending}"))
    if found.missing_keys:
        keys = ", ".join(found.missing_keys)
        lines.append(Text(f"without the key {keys} (--key-file): ages are not known", style="yellow"))
    if not found.steady:
        lines.append(
            Text("it changes while it is looked at: these counts are of several moments", style="yellow")
        )
    shown = [f"damaged: {d.file} bytes {d.at} to {d.end}" for d in found.damage]
    shown += found.troubles
    lines += [Text(line, style="red") for line in shown[:_MOST_LINES]]
    if len(shown) > _MOST_LINES:
        lines.append(Text(f"and {len(shown) - _MOST_LINES} more (--json has all)", style="red"))
    if found.scanned and not shown:
        lines.append(Text("every block was read: no damage", style="green"))
    return lines


def _evicted(count: int) -> Text:
    return Text(f"{count:,}", style="yellow" if count else "")


def _age(seconds: float | None, *, waiting: int) -> Text:
    if seconds is None:
        return Text("?" if waiting else "", style="dim")
    return Text(_span(seconds), style="yellow" if seconds > _OLD_S else "")


def _span(seconds: float) -> str:
    """A duration as people say it."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.1f} s"


def _size(count: int) -> str:
    mib = count / _MIB
    return f"{mib:.0f} MiB" if mib >= 10 else f"{mib:.1f} MiB" if count else "0"
