"""A device's trust, and a signer's repository, killed with -9 before each call to the disk and amid writes.

    python -m faults.trust_kills {device,signer} ROOM

A process of its own and without threads, because it forks. Prints what came of it as JSON.
"""

from __future__ import annotations

import builtins
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import structlog

from publisher import DAY, NOW, Publisher, package, some_keys
from skerry.trust.device import Trust
from skerry.trust.refusals import Untrusted
from skerry.trust.sources import Folder, Memory
from skerry.trust.times import Running

CALLS = "open", "close", "fsync", "rename", "mkdir", "unlink"


def mortal(after: float) -> list[str]:
    """From here on, the process is killed at its next call but so many: before it, or amid a write."""
    calls: list[str] = []

    def due(name: str) -> bool:
        calls.append(name)
        return len(calls) > after

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if due(name):
                die()
            return function(*args, **kwargs)

        return call

    class Written:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, content: bytes) -> None:
            if due("write"):
                self.file.write(content[: len(content) // 2])
                self.file.flush()
                die()
            self.file.write(content)

    def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        found = real(file, mode, *args, **kwargs)
        return Written(found) if mode == "wb" else found

    real = builtins.open
    for name in CALLS:
        setattr(os, name, counted(name, getattr(os, name)))
    builtins.open = opened
    return calls


def killed(after: int, work: Callable[[], None]) -> bool:
    """Whether it was killed before it was done."""
    if child := os.fork():
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL), status
        return status < 0
    status = 1
    try:
        mortal(after)
        work()
        status = 0
    finally:
        os._exit(status)


def device(room: Path) -> dict[str, Any]:
    """A new device, one that is told of a package, of a new root, of time, and one that confirms."""
    publisher = Publisher(room / "repository").add(package("1.0.0"))
    first = publisher.source
    publisher.add(package("2.0.0", epoch=1)).renew(1)
    second = publisher.source
    publisher.exchange("targets", "snapshot", "timestamp").renew(1)
    third = publisher.source

    def told(source: Memory, days: int) -> Callable[[Trust], object]:
        return lambda trust: trust.refresh(source, NOW, True, Running("boot", days * DAY))

    steps: list[Callable[[Trust], object]] = [
        told(first, 0),
        told(second, 1),
        lambda trust: trust.confirm(package("2.0.0", epoch=1)),
        told(third, 2),
    ]

    def known(folder: Path) -> list[Any]:
        trust = Trust(folder, publisher.anchor)
        return [trust.root_version, trust.floor_s, trust.epoch("parts"), [p.title for p in trust.packages]]

    wrong, count = [], 0
    for n, step in enumerate(steps):
        before = room / f"before-{n}"
        for each in steps[:n]:
            each(Trust(before, publisher.anchor))
        after = room / f"after-{n}"
        shutil.copytree(before, after) if n else None
        step(Trust(after, publisher.anchor))
        allowed = known(before), known(after)
        for call in range(1000):
            folder = room / "killed"
            shutil.rmtree(folder, ignore_errors=True)
            if n:
                shutil.copytree(before, folder)
            alive = not killed(call, lambda: step(Trust(folder, publisher.anchor)))  # noqa: B023 - used at once
            seen = known(folder)
            if seen not in allowed or (alive and seen != allowed[1]):
                wrong.append(f"step {n}, call {call}: expected one of {allowed}, got {seen}")
            if call % 5 == 0:
                told(third, 3)(Trust(folder, publisher.anchor))
            if call % 5 == 0 and known(folder)[3] != ["parts@2.0.0", "parts@1.0.0"]:
                wrong.append(f"step {n}, call {call}: does not go on: {known(folder)}")
            if alive:
                break
            count += 1
    return {"killed": count, "wrong": wrong}


def signer(room: Path) -> dict[str, Any]:
    """A reader sees what was published before or what is new, and signing again mends whatever is left."""
    publisher = start = Publisher(room / "start").add(package("1.0.0"))
    keys = start.keys
    new = {role: keys for role, keys in some_keys().items() if role in ("targets", "timestamp")}

    def added() -> None:
        publisher.add(package("2.0.0"))

    def exchanged() -> None:
        publisher.exchange(*new, new=new)

    def seen() -> list[str]:
        shutil.rmtree(room / "state", ignore_errors=True)
        trust = Trust(room / "state", publisher.anchor)
        try:
            return [p.version for p in trust.refresh(Folder(publisher.folder), NOW, True)]
        except Untrusted as error:
            return [type(error).__name__]

    wrong, count = [], 0
    # Between a new root and what its keys sign, a reader is refused, and goes on as it is.
    for work, allowed in ((added, [["1.0.0"], ["2.0.0", "1.0.0"]]), (exchanged, [["1.0.0"], ["Forged"]])):
        for call in range(1000):
            for name in ("killed", "again"):
                shutil.rmtree(room / name, ignore_errors=True)
            publisher = start.copied(room / "killed")
            alive = not killed(call, work)
            if seen() not in allowed:
                wrong.append(f"{work.__name__}, call {call}: {seen()}")
            both = {role: [*keys[role], *new.get(role, [])] for role in keys}
            publisher = publisher.copied(room / "again", both)
            publisher.renew()
            if seen() not in (allowed[0], *(allowed[1:] if work is added else [])):
                wrong.append(f"{work.__name__}, call {call}, signed again: {seen()}")
            if alive:
                break
            count += 1
    return {"killed": count, "wrong": wrong}


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    print(json.dumps({"device": device, "signer": signer}[sys.argv[1]](Path(sys.argv[2]))))
