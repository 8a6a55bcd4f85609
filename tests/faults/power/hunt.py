"""Record an engine at work, cut the power many times, and say what was lost.

    PYTHONPATH=tests python -m faults.power.hunt faults.power.toys:NoFlush --cuts 100 --seed 1

It prints a line of JSON (`Report`) for each engine and ends with 1 if anything was lost or wrong.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from faults.power import mount, replay
from faults.power.journal import Entry, entries
from faults.power.recorder import Promise, recorded

_START = multiprocessing.get_context("fork")  # children live in the mount namespace of this process


@dataclass
class Report:
    """Of all cuts.

    Attributes:
        engine: what was recorded.
        cuts: how many there were.
        with_loss: after how many of them a promised record was missing.
        worst: the most records that one cut cost.
        wrong: after how many of them something else was wrong.
        examples: of what was lost or wrong.
        kinds: how often unflushed writes met which end.
        entries: of the journals: writes, flushes and promises.
        record_s: seconds that recording took.
        replay_s: CPU seconds that the cuts took, of all workers together.
    """

    engine: str
    cuts: int = 0
    with_loss: int = 0
    worst: int = 0
    wrong: int = 0
    examples: list[str] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)
    entries: int = 0
    record_s: float = 0.0
    replay_s: float = 0.0

    def add(self, seed: str, outcomes: list[replay.Outcome]) -> None:
        kinds = Counter(self.kinds)
        for one in outcomes:
            self.cuts += 1
            self.with_loss += one.lost > 0
            self.worst = max(self.worst, one.lost)
            self.wrong += bool(one.wrong)
            kinds[one.kind.partition(" of ")[0]] += 1
            if (one.lost or one.wrong) and len(self.examples) < 20:
                told = f"{one.lost} lost" if one.lost else one.wrong
                self.examples.append(f"seed {seed}, cut after {one.after}, {one.kind}: {told}")
        self.kinds = dict(kinds)

    @property
    def clean(self) -> bool:
        return not self.with_loss and not self.wrong


def engine_of(name: str) -> replay.Engine:
    """The engine that `module:Class` or `module:Class:argument` names."""
    module, kind, *args = name.split(":")
    engine: replay.Engine = getattr(importlib.import_module(module), kind)(*args)
    return engine


@dataclass
class Plan:
    """Of one recording.

    Attributes:
        name: see `engine_of`.
        seed: of everything that is drawn.
        room: an empty folder on a quick file system.
        history: promises that were made on this disk before.
    """

    name: str
    seed: str
    room: Path
    history: list[Any]

    @property
    def image(self) -> Path:
        """The disk before the recording."""
        return self.room / "image"

    def engine(self) -> replay.Engine:
        engine = engine_of(self.name)
        for fact in self.history:
            engine.note(fact)
        return engine


def hunt(
    name: str, cuts: int, seed: int, *, workers: int, rounds: int, chain: bool, size: int, room: Path
) -> Report:
    """Record `rounds` times, and cut each recording at `cuts / rounds` places.

    Args:
        name: see `engine_of`.
        cuts: of all rounds.
        seed: of everything that is drawn.
        workers: processes that cut.
        rounds: recordings.
        chain: every second recording begins on what a cut of the one before has left.
        size: of the disk, in bytes.
        room: an empty folder on a quick file system.
    """
    report = Report(name)
    before: tuple[Plan, list[Entry]] | None = None
    for n in range(rounds):
        plan = Plan(name, f"{seed}.{n}", room / f"{n}", [])
        plan.room.mkdir()
        draw = random.Random(plan.seed)
        if chain and before is not None and n % 2:
            old, done = before
            old.image.rename(plan.image)
            plan.history = replay.left_after(draw.randint(0, len(done)), plan.image, done, draw)
        else:
            _format(plan.image, size)
        start = time.monotonic()
        journal = _record(plan)
        report.record_s += time.monotonic() - start
        report.entries += len(journal)
        share = cuts * (n + 1) // rounds - cuts * n // rounds
        at = replay.cuts(share, journal, draw)
        parts = [at[i * share // workers : (i + 1) * share // workers] for i in range(workers)]
        for outcomes, took in _each(_cut, [(plan, journal, part, i) for i, part in enumerate(parts)]):
            report.add(plan.seed, outcomes)
            report.replay_s += took
        if before is not None:
            before[0].image.unlink(missing_ok=True)
        before = plan, journal
    return report


def _format(image: Path, size: int) -> None:
    with image.open("wb") as file:
        file.truncate(size)
    command = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-N", "512", "-J", "size=4"]
    whole = "nodiscard,lazy_itable_init=0,lazy_journal_init=0"
    subprocess.run([*command, "-E", whole, str(image)], check=True)


def _record(plan: Plan) -> list[Entry]:
    live, journal = plan.room / "live", plan.room / "journal"
    live.write_bytes(plan.image.read_bytes())
    with recorded(live, journal, plan.room, engine_of(plan.name).options) as (folder, promise):
        _each(_work, [(plan, folder, promise)])
        promise(None)
    live.unlink()
    found = list(entries(journal))
    journal.unlink()
    return found


def _work(plan: Plan, folder: Path, promise: Promise) -> None:
    plan.engine().work(folder, promise, random.Random(plan.seed))


def _cut(plan: Plan, journal: list[Entry], at: list[int], number: int) -> tuple[list[replay.Outcome], float]:
    """What came of the cuts of one worker, and its CPU seconds."""
    start = time.process_time()
    room = plan.room / f"worker-{number}"
    room.mkdir()
    base = room / "base"
    base.write_bytes(plan.image.read_bytes())
    found = list(replay.replay(plan.engine(), base, journal, at, seed=plan.seed, room=room))
    base.unlink()
    (room / "scratch").unlink()
    return found, time.process_time() - start


def _each(function: Any, calls: list[tuple[Any, ...]]) -> list[Any]:
    """The results of each call, made at the same time in processes of their own.

    Raises:
        RuntimeError: one of them did not come to its end.
    """
    with ExitStack() as stack:
        running = [_started(function, args, stack) for args in calls]
        try:
            return [pipe.recv() for pipe in running]
        except EOFError as error:
            raise RuntimeError(f"{function.__name__} failed, see above") from error


def _started(function: Any, args: tuple[Any, ...], stack: ExitStack) -> Any:
    """Where the result of a call will come from; when the stack is left, its process is no more."""
    ours, theirs = _START.Pipe(duplex=False)
    process = _START.Process(target=_child, args=(theirs, function, args))
    process.start()
    theirs.close()
    stack.callback(ours.close)
    stack.callback(process.join)
    stack.callback(process.kill)
    return ours


def _child(pipe: Any, function: Any, args: tuple[Any, ...]) -> None:
    mount.die_with_parent()
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the store says much about each cut
    pipe.send(function(*args))


def main() -> int:
    parser = argparse.ArgumentParser(description="Cut the power under engines, many times.")
    parser.add_argument("engines", nargs="+", metavar="MODULE:CLASS")
    parser.add_argument("--cuts", type=int, default=100, help="of each engine")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="processes that cut")
    parser.add_argument("--rounds", type=int, default=1, help="recordings of each engine")
    parser.add_argument("--chain", action="store_true", help="go on from a cut in every second round")
    parser.add_argument("--size-mib", type=int, default=16, help="of the disk")
    args = parser.parse_args()
    mount.private_mounts()
    clean = True
    for name in args.engines:
        with (
            tempfile.TemporaryDirectory(prefix="skerry-power-") as folder,
            mount.mounted("tmpfs", Path(folder), "tmpfs") as room,
        ):
            report = hunt(
                name, args.cuts, args.seed,
                workers=args.workers, rounds=args.rounds, chain=args.chain, size=args.size_mib << 20,
                room=room,
            )  # fmt: skip
        print(json.dumps(asdict(report)), flush=True)
        clean = clean and report.clean
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
