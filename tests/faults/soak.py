"""A soak: events over four lanes for as long as you like, with faults every few seconds, all real processes.

    make soak SOAK_MINUTES=20

Kills, freezes, a link that is cut, swallows or crawls, a disk that is full for moments, a wall clock that
jumps by years. In the end the ledger is exact, and memory and file handles of buffer and uplink are flat.
What this machine does not allow (namespaces and mounts need root) is left out, and the table says so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

import needs
from clocks import YEAR_S, WallClock, built
from far_network import FarNetwork
from oracle import Account
from small_disks import Glutton, small_disk
from suite import Suite

WATCHED = ("buffer", "uplink")
WARM_SHARE = 0.05
"""Of the time of a soak; a process that is younger is still growing to its size."""
GROWTH_MB = 3.0
"""What memory may seem to grow over the calm part, by its slope: noise of allocation and of the backlog."""
JUDGED_MIN = 3.0
"""A calm part that is shorter says nothing about growth: a process takes minutes to come to its size."""
BARS = "▁▂▃▄▅▆▇█"


class Sample(NamedTuple):
    """A process at one second."""

    at_s: float
    pid: int
    age_s: float
    rss_mb: float
    handles: int


class Watch:
    """Samples buffer and uplink every second, on a thread of its own."""

    def __init__(self, suite: Suite) -> None:
        self._suite = suite
        self._stop = threading.Event()
        self._born: dict[int, float] = {}
        self.samples: dict[str, list[Sample]] = defaultdict(list)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        began = time.monotonic()
        while not self._stop.wait(1.0):
            now = time.monotonic()
            for kind in WATCHED:
                with contextlib.suppress(psutil.Error, AssertionError, OSError):
                    process = self._suite.process(kind)
                    born = self._born.setdefault(process.pid, now)
                    memory, handles = process.memory_info().rss / 2**20, process.num_fds()
                    if not memory:
                        continue  # just killed
                    self.samples[kind].append(Sample(now - began, process.pid, now - born, memory, handles))


def slope(samples: list[Sample], value: Callable[[Sample], float], warm_s: float) -> float:
    """Growth per hour: least squares over all lives, each with a level of its own.

    Args:
        samples: of one module.
        value: what grows.
        warm_s: samples of a process that is younger are left out.

    Source: Draper, Smith: Applied Regression Analysis, 3rd edition, section 14 (parallel lines).
    """
    lives: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.age_s >= warm_s:
            lives[sample.pid].append(sample)
    above = below = 0.0
    for life in lives.values():
        mean_t = sum(s.at_s for s in life) / len(life)
        mean_y = sum(value(s) for s in life) / len(life)
        above += sum((s.at_s - mean_t) * (value(s) - mean_y) for s in life)
        below += sum((s.at_s - mean_t) ** 2 for s in life)
    return above / below * 3600 if below else 0.0


def sparkline(values: list[float], width: int = 60) -> str:
    """The course of something in one line."""
    if not values:
        return ""
    step = max(len(values) / width, 1.0)
    means = []
    for n in range(min(width, len(values))):
        part = values[int(n * step) : max(int((n + 1) * step), int(n * step) + 1)]
        means.append(sum(part) / len(part))
    low, high = min(means), max(means)
    return "".join(BARS[round((m - low) / (high - low or 1) * (len(BARS) - 1))] for m in means)


class Soak:
    """The suite under load, and all that is done to it."""

    def __init__(self, folder: Path, stack: ExitStack, seed: int, rate: float) -> None:
        self.draw = random.Random(seed)
        self.left_out: list[str] = []
        self.counts: Counter[str] = Counter()
        self.clock = self._clock(folder)
        self.far = stack.enter_context(FarNetwork(folder / "far")) if needs.network_works() else None
        disk = None
        if needs.small_disks_work():
            disk = stack.enter_context(
                small_disk(folder / "disk", 64, "ext4" if needs.loop_works() else "tmpfs")
            )
        self.glutton = Glutton(disk) if disk else None
        uplink: dict[str, object] = {}
        if self.far:
            uplink["link"] = self.far.link(format="batch", compression="zstd")
        self.suite = stack.enter_context(
            Suite(
                folder, load={"rate": rate}, buffer={"limit_bytes": 48 << 20, "segment_bytes": 1 << 20},
                uplink=uplink, state=disk, environment=self.clock.environment if self.clock else None,
                far=self.far.arrived if self.far else None, repeats=self.far is not None,
            )
        )  # fmt: skip
        self.faults = [*self._kills(), *self._freezes(), *self._others()]
        self.watch = Watch(self.suite)
        stack.callback(self.watch.stop)

    def _clock(self, folder: Path) -> WallClock | None:
        if not needs.compiler_works():
            self.left_out.append("clock jumps (no C compiler)")
            return None
        clock = WallClock(built(folder), folder / "clock")
        clock.synchronise(True)
        return clock

    def _kills(self) -> Iterator[tuple[str, Callable[[], None]]]:
        for name in ("buffer", "uplink", "decision", "broker"):
            yield f"kill {name}", lambda name=name: self.suite.kill(name)

    def _freezes(self) -> Iterator[tuple[str, Callable[[], None]]]:
        def frozen(pid: Callable[[], int]) -> None:
            found = pid()
            os.kill(found, signal.SIGSTOP)
            self._pause(0.3, 3.0)
            os.kill(found, signal.SIGCONT)

        yield "freeze broker", lambda: frozen(lambda: self.suite.broker.pid)
        for kind in WATCHED:
            yield f"freeze {kind}", lambda kind=kind: frozen(lambda: self.suite.process(kind).pid)

    def _others(self) -> Iterator[tuple[str, Callable[[], None]]]:
        far, glutton, clock = self.far, self.glutton, self.clock
        if far:
            yield "cut link", lambda: self._while(far.down, far.up, 1.0, 6.0)
            yield "swallow link", lambda: self._while(far.swallow, far.answer, 1.0, 6.0)
            yield "throttle link", lambda: self._while(lambda: far.throttle(256), far.unthrottle, 2.0, 6.0)
        else:
            self.left_out.append("link faults (no network namespaces)")
        if glutton:
            yield (
                "fill disk",
                lambda: self._while(
                    lambda: glutton.eat(self.draw.randrange(1 << 20)), glutton.let_go, 1.0, 4.0
                ),
            )
        else:
            self.left_out.append("full disk (no mounts)")
        if clock:
            yield "jump clock", lambda: clock.set(self.draw.uniform(-30, 30) * YEAR_S)
            yield (
                "lose sync",
                lambda: self._while(
                    lambda: clock.synchronise(False), lambda: clock.synchronise(True), 1.0, 4.0
                ),
            )

    def _pause(self, low: float, high: float) -> None:
        time.sleep(self.draw.uniform(low, high))

    def _while(self, begin: Callable[[], None], end: Callable[[], None], low: float, high: float) -> None:
        begin()
        try:
            self._pause(low, high)
        finally:
            end()

    def run(self, seconds: float, say: Callable[[str], None]) -> Account:
        """Faults until the time is over; in the second half buffer and uplink stay alive, to see them age."""
        suite, began, said = self.suite, time.monotonic(), 0.0
        suite.wait_for(lambda: suite.delivered() > 50, 30)
        while (now := time.monotonic() - began) < seconds:
            calm = now > seconds / 2
            faults = [f for f in self.faults if not (calm and f[0] in {"kill buffer", "kill uplink"})]
            name, fault = self.draw.choice(faults)
            self.counts[name] += 1
            fault()
            self._pause(0.5, 3.0)
            suite.revive()
            suite.look()
            if now - said >= 10 or not said:
                said = now
                say(f"{now:6.0f} s  {self._line()}  last: {name}")
        if self.clock:
            self.clock.set(0)
        self.calm_from_s = seconds / 2
        account = suite.settle(120, crashes=True)
        self.watch.stop()
        return account

    def _line(self) -> str:
        tally, far = self.suite.tally(), self.suite.arrived
        memory = "  ".join(f"{k} {v[-1].rss_mb:.1f} MB" for k, v in self.watch.samples.items() if v)
        return (
            f"sent {len(self.suite.oracle.sent)}, delivered {len(far.seen)}, "
            f"waiting {tally.get('waiting', 0)}, gaps {len(far.gaps)}  {memory}"
        )


def report(soak: Soak, account: Account, seconds: float) -> tuple[dict[str, object], list[str]]:
    """The result, and what is wrong with it."""
    wrong = []
    result: dict[str, object] = {
        "seconds": round(seconds), "faults": dict(sorted(soak.counts.items())), "left_out": soak.left_out,
        "sent": account.sent, "accepted": account.accepted, "delivered": account.delivered,
        "named_by_gaps": dict(account.named), "repeats_dropped": account.repeats,
        "time_quality": dict(account.qualities), "ledger": soak.suite.tally(), "revived": soak.suite.revived,
    }  # fmt: skip
    if account.accepted != account.sent:
        wrong.append(f"{account.sent - account.accepted} events were never accepted")
    if account.delivered + sum(account.named.values()) != account.sent:
        wrong.append("sent is not delivered and named by gaps")
    if soak.suite.revived:
        wrong.append(f"ended by themselves: {soak.suite.revived}")
    warm_s = seconds * WARM_SHARE
    for kind, samples in soak.watch.samples.items():
        calm = [s for s in samples if s.at_s >= soak.calm_from_s]
        rss, handles = slope(calm, lambda s: s.rss_mb, warm_s), slope(calm, lambda s: s.handles, warm_s)
        hours = (calm[-1].at_s - calm[0].at_s) / 3600 if calm else 0.0
        result[kind] = {
            "rss_mb": [round(min(s.rss_mb for s in samples), 1), round(max(s.rss_mb for s in samples), 1)],
            "rss_slope_mb_per_h": round(rss, 2),
            "rss_slope_mb_per_h_all_lives": round(slope(samples, lambda s: s.rss_mb, warm_s), 2),
            "handles": [min(s.handles for s in samples), max(s.handles for s in samples)],
            "handles_slope_per_h": round(handles, 2),
            "lives": len({s.pid for s in samples}),
        }
        if hours * 60 >= JUDGED_MIN and rss * hours > GROWTH_MB:
            wrong.append(f"{kind}: memory grew by {rss * hours:.1f} MB in {hours * 60:.0f} min")
        if hours * 60 >= JUDGED_MIN and handles * hours > 2:
            wrong.append(f"{kind}: file handles grew by {handles * hours:.1f}")
        if max(s.rss_mb for s in samples) > 60:
            wrong.append(f"{kind}: expected at most 60 MB, got {max(s.rss_mb for s in samples):.1f}")
    result["wrong"] = wrong
    return result, wrong


def table(soak: Soak, result: dict[str, object]) -> Iterator[str]:
    """For people."""
    yield ""
    for name, value in result.items():
        if name not in WATCHED:
            yield f"{name:>18}  {value}"
    for kind in WATCHED:
        found = result.get(kind)
        if isinstance(found, dict):
            yield f"{kind:>18}  {found}"
            yield f"{'memory':>18}  {sparkline([s.rss_mb for s in soak.watch.samples[kind]])}"
            yield f"{'file handles':>18}  {sparkline([float(s.handles) for s in soak.watch.samples[kind]])}"


@contextmanager
def place(keep: str) -> Iterator[Path]:
    """A folder for all of it."""
    if keep:
        Path(keep).mkdir(parents=True, exist_ok=True)
        yield Path(keep)
    else:
        with tempfile.TemporaryDirectory(prefix="skerry-soak-") as folder:
            yield Path(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=200.0, help="events a second, all lanes together")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--folder", default="", help="keep everything there")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):  # leave no mount, no namespace and no process behind
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    print(f"soak: {options.minutes:g} min, {options.rate:g} events/s, seed {options.seed}", flush=True)
    with place(options.folder) as folder, ExitStack() as stack:
        soak = Soak(folder, stack, options.seed, options.rate)
        account = soak.run(options.minutes * 60, lambda line: print(line, flush=True))
        result, wrong = report(soak, account, options.minutes * 60)
        print("\n".join(table(soak, result)))
    print(json.dumps({"soak": {"seed": options.seed, "rate": options.rate, **result}}), flush=True)
    for problem in wrong:
        print(f"soak: {problem}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
