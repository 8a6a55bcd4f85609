"""The buffer beside the disk that it writes to, and beside what else one could keep events in.

Every durable figure stands beside the raw limit that was measured in the same run, a moment before or
after: the same bytes, one write and one fdatasync a batch. Flushes of a virtual or shared disk vary by
a factor of ten within minutes, so only the ratios mean much.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Group
from rich.table import Table

from skerry.cli import bench_drain, bench_peers, bench_site
from skerry.cli.bench_appends import PAYLOAD, Log, Pass, RawFile, StoreLog, alternate, compare, weigh
from skerry.cli.bench_bus import quiet
from skerry.cli.bench_peers import Peer
from skerry.cli.device import LoopDisk
from skerry.errors import Unavailable

Figures = dict[str, Any]
Say = Callable[[str], None]

_MIB = 1024 * 1024
_IMAGE = 256 * _MIB
_LINK_UP, _LINK_DOWN = "store", "store_link_down"
_RAW = "raw"
_SIDE_BY_SIDE, _TURNS, _BY_APPEND = "side_by_side", "turns", "by_append"
_NATS_THROUGH = "nats_mount_sync"
_BATCHES = (1, 100)
_DRAIN_EVERY = 50
"""Appends, where store and limit take turns append by append."""


class Size(NamedTuple):
    """How much is measured."""

    rounds: int = 9
    """Slices of each log, for each batch size; medians are reported."""
    slice_s: float = 0.2
    pairs: int = 100
    """Of one append each, per round, where they take turns append by append."""
    visits: int = 5
    """In how many pieces a slice of the store, and of the limit beside it, is cut."""
    first_pass: int = 1280
    """Appends of 100 to the store: 64 MB, 8 segments."""
    recycled: tuple[int, ...] = (160, 160, 160, 160)
    """Appends of 100 to the store, drained after each of these: 8 MB each."""
    weighed: int = 200
    """Appends to the other logs, and of 1 to the store, twice."""
    weigh_s: float = 2.0
    """An append phase or a drain of a peer ends after this long, whatever is left to do."""
    steady_s: float = 10.0
    """At 200 events a second."""
    flood: int = 20_000
    """Events as fast as they are accepted."""
    waiting_bytes: int = 1024 * _MIB
    """In the store that is opened and drained."""
    links: int = 200_000
    """Events drained through each link."""
    bus_s: float = 5.0
    """Of draining over the bus, each link."""


QUICK = Size(
    rounds=3, slice_s=0.1, first_pass=480, recycled=(160, 160), weighed=50, weigh_s=1.0, steady_s=3.0,
    flood=5000, waiting_bytes=128 * _MIB, links=50_000, bus_s=2.0,
)  # fmt: skip


def run(*, size: Size = Size(), folder: Path | None = None, say: Say = lambda _line: None) -> Figures:  # noqa: B008 - frozen
    """Measure everything.

    Args:
        size: how much of it.
        folder: on the disk to measure; the current one when None.
        say: told what is being measured.

    Returns:
        What was measured, part by part; a part that could not be measured says why under `missing`.
    """
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="skerry-bench-", dir=folder or Path.cwd()) as name, quiet():
        place = Path(name)
        peers = bench_peers.survey(place)
        figures: Figures = {
            "payload_bytes": PAYLOAD,
            "size": size._asdict(),
            "cpus": os.cpu_count(),
            "peers": {name: peer._asdict() for name, peer in peers.items()},
            "appends": _part(say, "durable appends", lambda: _appends(place, peers, size, say)),
            "device": _part(say, "what reaches the device", lambda: _device(place, peers, size, say)),
            "accept": _part(
                say,
                "bus, disk and back",
                lambda: bench_site.accept(place / "accept", steady_s=size.steady_s, count=size.flood),
            ),
            **_waiting(place, size, say),
        }
    figures["load_before_and_after"] = [round(load, 2), round(os.getloadavg()[0], 2)]
    figures["wanted"] = [row._asdict() for row in rows(figures)]
    return figures


def _part(say: Say, title: str, measure: Callable[[], Figures]) -> Figures:
    """A part of the figures, or why there is none."""
    say(title)
    try:
        return measure()
    except Unavailable as error:
        say(f"{title}: {error}")
        return {"missing": str(error)}


def _makers(peers: Mapping[str, Peer]) -> dict[str, Callable[[Path], Log]]:
    """How to make the limit, the store, and every peer that is there."""
    makers: dict[str, Callable[[Path], Log]] = {_RAW: RawFile, _LINK_UP: StoreLog}
    for name, peer in peers.items():
        if not peer.missing:
            makers[name] = lambda folder, name=name, peer=peer: bench_peers.make(name, peer, folder)  # type: ignore[misc]  # a lambda with defaults
    return makers


def _appends(place: Path, peers: Mapping[str, Peer], size: Size, say: Say) -> Figures:
    """Limit, store and peers in turn; limit and store in shorter turns; and in turns of one append."""
    ours = {_RAW: RawFile, _LINK_UP: StoreLog, _LINK_DOWN: StoreLog}
    figures: Figures = {_SIDE_BY_SIDE: {}, _TURNS: {}, _BY_APPEND: {}}
    for batch in _BATCHES:
        home, key = place / f"appends-{batch}", f"batch_{batch}"
        # A peer may take a second for one append: it is visited once a round.
        figures[_SIDE_BY_SIDE][key] = _in_turn(home, _makers(peers), batch, size, visits=1)
        figures[_TURNS][key] = _in_turn(home, ours, batch, size, visits=size.visits)
        figures[_BY_APPEND][key] = _by_append(home, batch, size)
        say(f"durable appends in batches of {batch}: done")
    return figures


def _by_append(home: Path, batch: int, size: Size) -> dict[str, dict[str, float]]:
    """The store and the limit in turns of one append.

    The disk is the same for both then, even one that changes by the millisecond; but the limit no
    longer runs by itself: its code and its data have left the caches each time.
    """
    appended = 0

    def between(name: str, log: Log) -> None:
        nonlocal appended
        appended += name == _LINK_UP
        if appended % _DRAIN_EVERY == 0:
            _between(name, log)

    logs: dict[str, Log] = {}
    try:
        logs = {_RAW: RawFile(home / _RAW), _LINK_UP: StoreLog(home / _LINK_UP)}
        taken = alternate(logs, batch, slice_s=0.0, rounds=size.rounds, visits=size.pairs, between=between)
        return compare(taken, _RAW)
    finally:
        for log in logs.values():
            log.close()
        shutil.rmtree(home, ignore_errors=True)


def _in_turn(
    home: Path, makers: Mapping[str, Callable[[Path], Log]], batch: int, size: Size, *, visits: int
) -> dict[str, dict[str, float]]:
    logs: dict[str, Log] = {}
    try:
        for name, make in makers.items():
            logs[name] = make(home / name)
        taken = alternate(
            logs, batch, slice_s=size.slice_s, rounds=size.rounds, visits=visits, between=_between
        )
        return compare(taken, _RAW)
    finally:
        for log in logs.values():
            log.close()
        shutil.rmtree(home, ignore_errors=True)


def _between(name: str, log: Log) -> None:
    """A link that is up takes everything away, and then the store has a free moment."""
    if name == _LINK_UP and isinstance(log, StoreLog):
        log.drain(1_000_000_000, math.inf)
        log.rest()


def _device(place: Path, peers: Mapping[str, Peer], size: Size, say: Say) -> Figures:
    figures: Figures = {}
    with LoopDisk(place, _IMAGE) as disk:
        for name, make in _makers(peers).items():
            figures[name] = {}
            for batch in _BATCHES:
                passes: tuple[int, ...] = (size.weighed, size.weighed)
                if name == _LINK_UP and batch == 100:
                    passes = (size.first_pass, *size.recycled)
                figures[name][f"batch_{batch}"] = _weighed(disk, make, batch, passes, size)
            say(f"what reaches the device of {name}: done")
        if not (peers["nats"].missing or bench_peers.syncs_always(peers["nats"])):
            # Told by the file system what it cannot be told itself.
            disk.write_through()
            figures[_NATS_THROUGH] = {
                f"batch_{batch}": _weighed(disk, _makers(peers)["nats"], batch, (size.weighed,) * 2, size)
                for batch in _BATCHES
            }
    return figures


def _weighed(
    disk: LoopDisk, make: Callable[[Path], Log], batch: int, passes: tuple[int, ...], size: Size
) -> Figures:
    folder = disk.root / "log"
    log = make(folder)
    try:
        rest = log.rest if isinstance(log, StoreLog) else _nothing
        # The store is given more time: its first pass has to fill several segments.
        seconds = 60.0 if isinstance(log, StoreLog) else size.weigh_s
        first, *others = weigh(disk, log, batch=batch, passes=passes, seconds=seconds, between=rest)
    finally:
        log.close()
        shutil.rmtree(folder)
    appends = sum(p.appends for p in others)
    return {
        "appends": appends,
        "per_s": round(appends * batch / sum(p.append_s for p in others), 1),
        "flushes_per_append": round(sum(p.flushes for p in others) / appends, 2),
        "device_bytes_per_payload_byte": _weight(others),
        "device_bytes_per_payload_byte_first_pass": _weight([first]),
        "drain_per_s": round(first.drained / first.drain_s) if first.drained else None,
    }


def _nothing() -> None:
    """The others are given no free moments; they take their own."""


def _weight(passes: list[Pass]) -> float:
    return round(sum(p.device_bytes for p in passes) / sum(p.payload_bytes for p in passes), 2)


def _waiting(place: Path, size: Size, say: Say) -> Figures:
    """What is measured of a store with much waiting."""
    state = place / "waiting"
    folder = state / "buffer" / "log"
    say(f"a store with {size.waiting_bytes // _MIB} MB waiting")
    count = bench_drain.fill(folder, size.waiting_bytes)
    figures: Figures = {
        "waiting": {"bytes": size.waiting_bytes, "records": count},
        "open": _part(say, "opening it", lambda: bench_drain.opening(folder)),
        "drain_links": _part(
            say, "draining it", lambda: bench_drain.through_links(folder, place / "far", size.links)
        ),
        "drain_bus": _part(
            say,
            "draining it over the bus",
            lambda: bench_drain.over_the_bus(state, place / "far-bus", size.waiting_bytes, size.bus_s),
        ),
    }
    shutil.rmtree(state)
    return figures


class Row(NamedTuple):
    """A line of the table: a figure, beside what is wanted of it and what limits it."""

    what: str
    wanted: str
    got: str
    met: bool | None
    """None where nothing is wanted, or nothing was measured."""
    beside: str = ""


def rows(figures: Figures) -> list[Row]:
    """What the issue of the store asks for, and what was measured."""
    return [
        *_rows_of_appends(figures["appends"]),
        *_rows_of_device(figures["device"]),
        *_rows_of_accept(figures["accept"]),
        *_rows_of_drain(figures["drain_links"], figures["drain_bus"]),
        *_rows_of_open(figures),
    ]


def _rows_of_appends(part: Figures) -> list[Row]:
    wanted = {1: 0.8, 100: 0.6}
    found = []
    for batch, least in wanted.items():
        for name, how, label in (
            (_LINK_UP, _TURNS, "in short turns"),
            (_LINK_DOWN, _TURNS, "in short turns, link down"),
            (_LINK_UP, _BY_APPEND, "append by append"),
        ):
            what = f"durable appends to raw, batch of {batch}, {label}"
            if "missing" in part:
                found.append(Row(what, f">= {least}", part["missing"], None))
                continue
            got = part[how][f"batch_{batch}"]
            ratio = got[name]["ratio"]
            beside = f"{_speed(got[name], batch)}; raw {_speed(got[_RAW], batch)}"
            found.append(Row(what, f">= {least}", f"{ratio:.2f}", ratio >= least, beside))
    return found


def _speed(found: Figures, batch: int) -> str:
    return f"{found['per_s']:,.0f}/s, {batch * 1e6 / found['per_s']:,.0f} us"


def _rows_of_device(part: Figures) -> list[Row]:
    what = "device bytes a payload byte, batch of 100, "
    wanted = (
        ("first pass", 2.3, "device_bytes_per_payload_byte_first_pass"),
        ("recycled", 1.4, "device_bytes_per_payload_byte"),
    )
    if "missing" in part:
        return [Row(what + label, f"<= {most}", part["missing"], None) for label, most, _ in wanted]
    beside = f"raw {part[_RAW]['batch_100']['device_bytes_per_payload_byte']}"
    found = part[_LINK_UP]["batch_100"]
    return [
        Row(what + label, f"<= {most}", f"{found[key]}", found[key] <= most, beside)
        for label, most, key in wanted
    ]


def _rows_of_accept(part: Figures) -> list[Row]:
    events, latency = "bus, disk, accepted: events/s, one a message", "the same at 200/s, p99 ms"
    if "missing" in part:
        return [Row(events, ">= 3,000", part["missing"], None), Row(latency, "<= 15", part["missing"], None)]
    rate, ack = part["events_per_s"], part["ack_ms_at_200_per_s"]
    tens = f"ten a message {part['events_per_s_ten_a_message']:,}; {part['broker']}"
    return [
        Row(events, ">= 3,000", f"{rate:,}", rate >= 3000, tens),
        Row(latency, "<= 15", f"{ack['p99']:.1f}", ack["p99"] <= 15, f"p50 {ack['p50']:.1f}"),
    ]


def _rows_of_drain(links: Figures, bus: Figures) -> list[Row]:
    found = []
    for name, least in (("file", 100_000), ("mqtt_zstd_batches", 20_000)):
        label = name.replace("_", " ")
        if "missing" in links:
            found.append(Row(f"drain, {label}: events/s", f">= {least:,}", links["missing"], None))
        else:
            rate = links[name]
            found.append(Row(f"drain, {label}: events/s", f">= {least:,}", f"{rate:,}", rate >= least))
        what = f"drain, {label}, over the bus: events/s"
        if "missing" in bus:
            found.append(Row(what, f">= {least:,}", bus["missing"], None))
        else:
            rate = bus[name]["per_s"]
            found.append(Row(what, f">= {least:,}", f"{rate:,}", rate >= least))
    return found


def _rows_of_open(figures: Figures) -> list[Row]:
    part, size = figures["open"], figures["waiting"]["bytes"] // _MIB
    what = f"open a store with {size:,} MB waiting, seconds"
    memory = "memory of the process throughout, MB"
    if "missing" in part:
        return [Row(what, "< 2", part["missing"], None), Row(memory, "<= 60", part["missing"], None)]
    seen = {"open": part["rss_mb"]}
    if "missing" not in figures["accept"]:
        seen["accept"] = figures["accept"]["buffer_rss_mb"]
    if "missing" not in figures["drain_bus"]:
        seen["drain"] = max(link["buffer_rss_mb"] for link in figures["drain_bus"].values())
    beside = ", ".join(f"{name} {value:.0f}" for name, value in seen.items())
    most = max(seen.values())
    return [
        Row(what, "< 2", f"{part['open_s']:.2f}", part["open_s"] < 2, f"{part['waiting']:,} records"),
        Row(memory, "<= 60", f"{most:.0f}", most <= 60 and len(seen) == 3, beside),
    ]


def table(figures: Figures) -> Group:
    """The figures for a person: what is wanted of the buffer, and its peers."""
    load = figures["load_before_and_after"]
    ours = Table(title=f"skerry bench buffer: {figures['cpus']} CPUs, load {load[0]} before, {load[1]} after")
    for name, justify in (("what", "left"), ("wanted", "right"), ("got", "right"), ("beside", "left")):
        ours.add_column(name, justify=justify)  # type: ignore[arg-type]  # a literal in a tuple
    for row in rows(figures):
        style = {True: "green", False: "red", None: "yellow"}[row.met]
        ours.add_row(row.what, row.wanted, f"[{style}]{row.got}[/]", row.beside)
    return Group(ours, _peers(figures))


def _peers(figures: Figures) -> Table:
    peers = Table(title=f"the same payloads of {figures['payload_bytes']} bytes, durable, side by side")
    for name in ("", "batch of 1, /s", "to raw", "batch of 100, /s", "to raw"):
        peers.add_column(name, justify="right" if name else "left")
    for name in ("flushes an append", "device bytes", "drain, /s"):
        peers.add_column(name, justify="right")
    peers.add_column("how")
    settings = {
        _RAW: "one write and fdatasync, blocks on disk already",
        _LINK_UP: "drained between turns",
        **{name: peer["setting"] for name, peer in figures["peers"].items()},
    }
    if _NATS_THROUGH in figures["device"]:
        settings[_NATS_THROUGH] = "the same on a file system mounted with -o sync (on the loop device)"
    for name, setting in settings.items():
        missing = figures["peers"].get(name, {}).get("missing", "")
        how = f"not measured: {missing} ({setting})" if missing else setting
        peers.add_row(name.replace("_", " "), *_appended(figures, name), *_on_device(figures, name), how)
    return peers


def _appended(figures: Figures, name: str) -> list[str]:
    cells = []
    for batch in _BATCHES:
        found = figures["appends"].get(_SIDE_BY_SIDE, {}).get(f"batch_{batch}", {}).get(name)
        if name == _NATS_THROUGH:
            there, raw = (figures["device"][n][f"batch_{batch}"]["per_s"] for n in (name, _RAW))
            found = {"per_s": there, "ratio": there / raw}
        cells += ["-", "-"] if found is None else [f"{found['per_s']:,.0f}", f"{found['ratio']:.2f}"]
    return cells


def _on_device(figures: Figures, name: str) -> list[str]:
    found = figures["device"].get(name)
    if found is None:
        return ["-", "-", "-"]
    one, many = (found[f"batch_{batch}"] for batch in _BATCHES)
    drained = many["drain_per_s"]
    return [
        f"{one['flushes_per_append']} / {many['flushes_per_append']}",
        f"{one['device_bytes_per_payload_byte']} / {many['device_bytes_per_payload_byte']}",
        "-" if drained is None else f"{drained:,}",
    ]
