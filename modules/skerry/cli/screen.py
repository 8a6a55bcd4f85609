"""The live screen of `skerry run`: a row a module, events as they arrive, the ledger as it grows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from skerry.cli.observer import EXTRA_LATENCIES, LATENCIES, Observer
from skerry.deploy.plan import Plan
from skerry.ledger import CameraLedger, EventLedger
from skerry.messages import Event, Quantiles

_COLOURS = {"ready": "green", "degraded": "yellow", "starting": "cyan", "stopped": "dim", "lost": "red"}
_LATENCY = {  # what each kind of module is judged by
    "inference": "capture_to_detection",
    "decision": "capture_to_event",
    "buffer": "commit",
    "uplink": "event_to_delivered",
}


class Screen:
    """Draws on a terminal; on anything else it prints a line every five seconds."""

    def __init__(self, console: Console, plan: Plan, observer: Observer, title: str) -> None:
        self._console = console
        self._plan = plan
        self._observer = observer
        self._title = title
        self._live = (
            Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        )
        self._printed = 0.0
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, phase: str, restarts: Mapping[str, int], remaining_s: float | None) -> None:
        """Show the present state."""
        if self._live:
            self._live.update(self._render(phase, restarts, remaining_s))
        elif time.monotonic() - self._printed > 5:
            self._printed = time.monotonic()
            self._console.print(self._line(phase), highlight=False)

    def _line(self, phase: str) -> str:
        rows = (
            f"{part.module}={s.state if (s := self._observer.status.get(part.module)) else 'starting'}"
            for part in self._plan.parts
        )
        elapsed = time.monotonic() - self._began
        return f"{elapsed:5.0f} s  {phase}  {' '.join(rows)}  delivered={self._observer.delivered}"

    def _render(self, phase: str, restarts: Mapping[str, int], remaining_s: float | None) -> RenderableType:
        elapsed = time.monotonic() - self._began
        left = f" · {remaining_s:.0f} s left" if remaining_s is not None else ""
        head = Text.assemble((self._title, "bold"), f"   {phase} · {elapsed:.0f} s{left}")
        below = Text.assemble(self._cameras(), self._slots())
        return Group(head, self._modules(restarts), below, self._events())

    def _modules(self, restarts: Mapping[str, int]) -> Table:
        table = Table(expand=True, box=None, header_style="dim", pad_edge=False)
        for name, side in (
            ("module", "left"), ("state", "left"), ("fps", "right"), ("queue", "right"), ("drops", "right"),
            ("latency p50 / p99", "right"), ("memory", "right"), ("restarts", "right"),
        ):  # fmt: skip
            table.add_column(name, justify="right" if side == "right" else "left", no_wrap=name != "state")
        for part in self._plan.parts:
            status = self._observer.status.get(part.module)
            metrics = self._observer.metrics.get(part.module)
            state = status.state if status else "starting"
            reason = f" {status.reason}" if status and status.reason else ""
            table.add_row(
                part.module,
                Text(f"● {state}{reason}", style=_COLOURS.get(state, "")),
                f"{metrics.fps:.1f}" if metrics and metrics.fps else "",
                str(metrics.queue) if metrics else "",
                f"{_drops(metrics.counters):.0f}" if metrics else "",
                _latency(metrics.latency_ms.get(_LATENCY.get(part.kind, ""))) if metrics else "",
                f"{metrics.rss_mb:.0f} MB" if metrics else "",
                str(restarts.get(part.module, 0) or ""),
            )
        if restarts.get("broker"):
            table.add_row("broker", "", "", "", "", "", "", str(restarts["broker"]))
        return table

    def _cameras(self) -> Text:
        text = Text()
        for name, camera in sorted(self._observer.cameras.items()):
            colour = {"live": "green", "degraded": "yellow", "ended": "dim"}.get(camera.state, "cyan")
            text.append("\ncamera ", style="dim")
            text.append(name)
            text.append(f" {camera.state} {camera.reason}".rstrip(), style=colour)
            text.append(f"  {camera.width}x{camera.height}  {camera.captured} frames", style="dim")
        return text

    def _slots(self) -> Text:
        text = Text()
        for name, update in sorted(self._observer.updates.items()):
            text.append("\nslot ", style="dim")
            text.append(name)
            text.append(f" {update.current or 'the bundled model'}", style="green")
            if update.step:
                colour = "red" if update.step == "refused" else "cyan"
                text.append(f"  {update.wanted} {update.step}", style=colour)
            if update.reason:
                text.append(f"  {update.reason}", style="dim")
        return text

    def _events(self) -> Panel:
        lines = [event_line(e) for e in self._observer.last_events(10)]
        title = f"delivered {self._observer.delivered}"
        return Panel(
            Group(*lines) if lines else Text("no events yet", style="dim"), title=title, title_align="left"
        )


def _drops(counters: Mapping[str, float]) -> float:
    return sum(
        n for name, n in counters.items() if "dropped" in name or "evicted" in name or "unseen" in name
    )


def _latency(q: Quantiles | None) -> str:
    return f"{q.p50:.1f} / {q.p99:.1f} ms" if q and q.count else ""


def event_line(event: Event) -> Text:
    """One event in one line: time, lane, rule, what."""
    colour = {"alarm": "bold red", "event": "cyan"}.get(event.lane, "dim")
    shown = ("label", "track", "direction", "count", "total", "value")
    detail = " ".join(f"{k}={event.data[k]}" for k in shown if event.data.get(k) not in (None, ""))
    return Text.assemble(
        (event.time[11:23], "dim"), "  ", (f"{event.lane:<6}", colour), f" {event.subject:<24} ",
        event.type.removeprefix("skerry."), "  ", (detail, "dim"),
    )  # fmt: skip


def print_report(
    console: Console,
    cameras: Mapping[str, CameraLedger],
    events: EventLedger,
    latencies: Mapping[str, Quantiles],
    memory_mb: Mapping[str, float],
) -> None:
    """The ledger, the latencies and the memory, as tables."""
    ledger = Table(title="Loss ledger", title_justify="left", title_style="bold")
    for name in ("", "in", "accounted for as", "missing"):
        ledger.add_column(name, justify="right" if name == "missing" else "left")
    for name, c in cameras.items():
        terms = [f"{c.inferred} inferred", f"{c.failed} failed"]
        terms += [f"{n} dropped: {reason}" for reason, n in c.dropped.items()]
        ledger.add_row(f"camera {name}", f"{c.captured} captured", " + ".join(terms), _missing(c.missing))
    carried = f" + {events.unaccepted_before} kept from before" if events.unaccepted_before else ""
    carried += f" + {events.stated} stated by the buffer" if events.stated else ""
    refused = f" + {events.refused} refused" if events.refused else ""
    ledger.add_row(
        "events to the buffer", f"{events.decided} decided{carried}",
        f"{events.accepted} accepted + {events.unaccepted} waiting{refused}", _missing(events.missing),
    )  # fmt: skip
    carried = f" + {events.carried_over} waiting from before" if events.carried_over else ""
    terms = [f"{events.delivered} delivered", f"{events.waiting} waiting"]
    terms += [f"{n} evicted: {reason}" for reason, n in events.evicted.items()]
    ledger.add_row(
        "events to the far end",
        f"{events.accepted} accepted{carried}",
        " + ".join(terms),
        _missing(events.missing_after),
    )
    console.print(ledger)
    table = Table(title="Latency, ms", title_justify="left", title_style="bold")
    table.add_column("")
    for name in ("p50", "p95", "p99", "max", "count"):
        table.add_column(name, justify="right")
    for name in (*LATENCIES, *EXTRA_LATENCIES):
        q = latencies[name]
        table.add_row(
            name.replace("_", " "), *(f"{v:.2f}" for v in (q.p50, q.p95, q.p99, q.max)), str(q.count)
        )
    console.print(table)
    total = sum(memory_mb.values())
    console.print(
        "Memory, MB: " + "  ".join(f"{m} {n:.0f}" for m, n in memory_mb.items()) + f"  (all {total:.0f})",
        highlight=False,
    )


def _missing(n: int) -> Text:
    return Text(str(n), style="green" if n == 0 else "bold red")
