"""Lives of the audit log, each killed with -9 at another step: `python -m faults.audit_kills ROOM STRIDE`.

A process of its own and without threads, because it forks. Prints what came of it as JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import structlog

from audit_life import check, live
from store_disks import FailingDisk, MortalDisk


def main(room: Path, stride: int) -> dict[str, object]:
    """Kill at every `stride`-th step; then open, and see that nothing that was promised is missing."""
    counted, told = FailingDisk(), room / "told"
    live(room / "counted", counted)
    killed, wrong = 0, []
    for step in range(1, len(counted.calls) + 1, stride):
        folder = room / f"killed-{step}"
        told.write_text("")
        killed += _killed(folder, step, told)
        try:
            check(folder, (told.read_text().splitlines() or [""])[-1])
        except Exception as error:  # noqa: BLE001 - whatever comes of it is a result
            wrong.append(f"step {step}, {counted.calls[step - 1]}: {type(error).__name__}: {error}")
        shutil.rmtree(folder)
    return {"steps": len(counted.calls), "killed": killed, "wrong": wrong}


def _killed(folder: Path, step: int, told: Path) -> bool:
    """Whether the process was killed before its life ended."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) < 0

    def promise(head: str) -> None:
        with told.open("a") as file:
            file.write(f"{head}\n")

    try:
        live(folder, MortalDisk(step), promise)
    finally:
        os._exit(0)


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
