"""Lives of the model store, each killed with -9 at another step: `python -m faults.store_kills ROOM STRIDE`.

A process of its own and without threads, because it forks. Prints what came of it as JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import structlog

from skerry.updater.disk import Disk
from store_disks import FailingDisk, MortalDisk, QuickDisk
from store_life import Far, check, live


def main(room: Path, stride: int) -> dict[str, object]:
    """Kill at every `stride`-th step; then open, see that all is well, and live on now and then."""
    far, told = Far(room / "far"), room / "told"
    counted = FailingDisk()
    live(far, room / "counted", counted)
    killed, wrong = 0, []
    for step in range(1, len(counted.calls) + 1, stride):
        folder = room / f"killed-{step}"
        told.write_text("")
        killed += _killed(far, folder, MortalDisk(step), told)
        try:
            _check(far, folder, told.read_text().splitlines(), again=step % 5 == 0)
        except Exception as error:  # noqa: BLE001 - whatever comes of it is a result
            wrong.append(f"step {step}, {counted.calls[step - 1]}: {type(error).__name__}: {error}")
        shutil.rmtree(folder)
    return {"steps": len(counted.calls), "killed": killed, "wrong": wrong}


def _killed(far: Far, folder: Path, disk: Disk, told: Path) -> bool:
    """Whether the process was killed before its life ended."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) < 0

    def promise(digest: str) -> None:
        with told.open("a") as file:
            file.write(f"{digest}\n")

    try:
        live(far, folder, disk, promise)
    finally:
        os._exit(0)


def _check(far: Far, folder: Path, promised: list[str], *, again: bool) -> None:
    """What was promised last serves, or what would have been promised next."""
    order = ["", *far.order]
    allowed = set(order[len(promised) : len(promised) + 2])
    with far.open(folder, QuickDisk()) as store:
        assert not store.found, f"a crash is no damage: {store.found}"
        check(far, store, allowed)
    if again:
        live(far, folder, QuickDisk())
        with far.open(folder, QuickDisk()) as store:
            check(far, store, {far.order[-1]})


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
