"""Producer, broker, buffer and uplink as real processes, to be killed, frozen, starved and judged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import psutil

from bus_process import ModuleProcess, given
from oracle import Account, FarEnd, Oracle, check_gaps_agree, check_ledger
from skerry.broker import BrokerProcess
from skerry.buffer.quarantine import entries
from skerry.children import end, spawn
from skerry.ledger import read_tally
from skerry.messages import Event

SITE = "t"
QUICK = {"backoff": {"first_s": 0.05, "last_s": 0.3}}


class Load:
    """`load.py` as a process.

    Args:
        name: of the producer.
        folder: where its outboxes are, and what it sent.
        settings: of `load.Settings`, beside those.
        environment: added to ours.
    """

    def __init__(
        self, name: str, folder: Path, port: int, settings: Mapping[str, Any], environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self.folder = folder
        self.sent = Lines(folder / "sent.jsonl")
        self._settings = {"port": port, "state": str(folder), "site": SITE, "name": name, **settings}
        self._environment = environment
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        argv = [sys.executable, str(Path(__file__).with_name("load.py")), json.dumps(self._settings)]
        with (self.folder / "log").open("ab") as log:
            self._child = spawn(
                argv, {**os.environ, **self._environment}, stdout=log.fileno(), stderr=log.fileno()
            )

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def kill(self) -> None:
        assert self._child is not None
        self._child.kill()
        self._child.wait(10)

    def quiet(self) -> None:
        """Decide no more; go on delivering."""
        (self.folder / "quiet").touch()

    def go_on(self) -> None:
        (self.folder / "quiet").unlink(missing_ok=True)

    def stop(self) -> None:
        if self._child is not None:
            end(self._child, 5)


class Lines:
    """Whole lines of a file that somebody appends to; each is given once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at = 0

    def fresh(self) -> Iterator[Event]:
        """Events that came since the last call."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._at)
            content = file.read()
        whole = content.rfind(b"\n") + 1
        self._at += whole
        for line in content[:whole].splitlines():
            yield msgspec.json.decode(line, type=Event)


class Suite:
    """One site without cameras. As a context manager it runs on entry and leaves nothing behind.

    Args:
        folder: of everything.
        load: settings of the producers, see `load.Settings`; `producers` names them.
        buffer: settings of the buffer.
        uplink: settings of the uplink; the far end is the file `far.jsonl` unless there is a `link`.
        state: where the buffer's state is, if elsewhere.
        environment: of all processes but the broker, beside ours.
        wrappers: by module, what its command line begins with, such as strace.
        far: gives the events that arrived since the last call, where the far end is no file.
        repeats: whether events may arrive twice at that far end.
    """

    def __init__(
        self, folder: Path, *, load: Mapping[str, Any] | None = None,
        producers: tuple[str, ...] = ("decision",), buffer: Mapping[str, Any] | None = None,
        uplink: Mapping[str, Any] | None = None, state: Path | None = None,
        environment: Mapping[str, str] | None = None,
        wrappers: Mapping[str, list[str]] | None = None,
        far: Callable[[], Iterator[Event]] | None = None, repeats: bool = False,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.broker = BrokerProcess(folder / "broker", kind="mosquitto")
        extra, wrap = environment or {}, wrappers or {}
        port = self.broker.port
        file = {"kind": "file", "path": str(folder / "far.jsonl")}
        self._settings = {
            "buffer": given("buffer", state or folder, port, SITE, **{"resend_s": 0.5, **(buffer or {})}),
            "uplink": given("uplink", folder, port, SITE, **{"link": file, **QUICK, **(uplink or {})}),
        }
        self.modules = {
            kind: ModuleProcess(kind, given_, folder / f"{kind}.log", wrap.get(kind, []), extra)
            for kind, given_ in self._settings.items()
        }
        self.loads = {name: Load(name, folder / name, port, load or {}, extra) for name in producers}
        self.oracle = Oracle()
        self.arrived: FarEnd = self.oracle.far_end(repeats=repeats)
        self._far = far or Lines(folder / "far.jsonl").fresh
        self.held: set[str] = set()
        """What the test stopped and has not started again."""
        self.revived: dict[str, int] = {}
        """How often a module had ended without having been killed by us."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        self.broker.start()
        for process in (*self.modules.values(), *self.loads.values()):
            process.start()

    def close(self) -> None:
        for load in self.loads.values():
            load.stop()
        for module in self.modules.values():
            module.stop()
        self.broker.stop()

    def kill(self, name: str) -> None:
        """Kill -9 a module, a producer, or the broker, and start it again."""
        if name == "broker":
            os.kill(self.broker.pid, signal.SIGKILL)
            while self.broker.poll() is None:
                time.sleep(0.005)
            self.broker.start()
            return
        process = self._process(name)
        if not process.alive:
            self.revived[name] = self.revived.get(name, 0) + 1
        process.kill()
        process.start()

    def revive(self) -> None:
        """Start what ended by itself, as a supervisor does, and count it."""
        for name in (*self.modules, *self.loads):
            process = self._process(name)
            if not process.alive:
                self.revived[name] = self.revived.get(name, 0) + 1
                process.start()

    def hold(self, name: str) -> None:
        """Kill -9, and leave it away for now."""
        self.held.add(name)
        self._process(name).kill()

    def release(self, name: str) -> None:
        """Start what was held."""
        self.held.discard(name)
        self._process(name).start()

    def _process(self, name: str) -> ModuleProcess | Load:
        return self.modules[name] if name in self.modules else self.loads[name]

    def process(self, kind: str) -> psutil.Process:
        """A module's own process, under whatever wraps it."""
        child = self.modules[kind].child
        assert child is not None
        found = psutil.Process(child.pid)
        inside = found.children(recursive=True) if self.modules[kind].wrapped else []
        return next((inner for inner in inside if f"skerry.{kind}" in inner.cmdline()), found)

    def look(self) -> None:
        """Judge what was sent and what arrived since the last look."""
        arrived = list(self._far())  # before the logs: whatever is in it was written there first
        for name, load in self.loads.items():
            self.oracle.send(load.sent.fresh(), name)
        for event in arrived:
            self.arrived.take(event)

    def tally(self, kind: str = "buffer") -> dict[str, int]:
        return read_tally(Path(self._settings[kind]["state"]) / "tally")

    def evicted(self) -> dict[str, int]:
        """Of the buffer's ledger, by reason."""
        return {k.partition("/")[2]: n for k, n in self.tally().items() if k.startswith("evicted/")}

    @property
    def store(self) -> Path:
        """The folder of the buffer's store."""
        return Path(self._settings["buffer"]["state"]) / "log"

    def quarantined(self) -> list[tuple[Event, str]]:
        """What the buffer put aside, each with its reason."""
        return [
            (msgspec.json.decode(listed.entry.event, type=Event), listed.entry.reason)
            for listed in entries(self.store)
        ]

    def delivered(self) -> int:
        """Different events that have arrived so far."""
        self.look()
        return len(self.arrived.seen)

    def wait_for(self, fact: Callable[[], object], within_s: float = 20.0, why: str = "") -> None:
        """Wait until something holds, while looking at what arrives."""
        deadline = time.monotonic() + within_s
        while not fact():
            assert time.monotonic() < deadline, f"not within {within_s} s: {why or fact}; {self.words()}"
            for name in {*self.modules, *self.loads} - self.held:
                assert self._process(name).alive, f"{name} ended by itself; {self.words()}"
            time.sleep(0.05)

    def settle(self, within_s: float = 30.0, *, fresh: int = 20, crashes: bool = False) -> Account:
        """Liveness, then the ledger: what is decided after all faults arrives, and then nothing is missing.

        Args:
            within_s: for both together.
            fresh: events that must arrive first, which were decided from now on.
            crashes: whether a module may have ended by itself.
        """
        assert crashes or not self.revived, f"ended by themselves: {self.revived}; {self.words()}"
        deadline = time.monotonic() + within_s
        before = self.delivered()
        if fresh:
            for load in self.loads.values():
                load.go_on()
        self.wait_for(lambda: self.delivered() >= before + fresh, within_s, "new events arrive")
        for load in self.loads.values():
            load.quiet()
        self.wait_for(self._complete, deadline - time.monotonic(), "all is accounted for")
        return self.check()

    def check(self) -> Account:
        """Hold everything against everything, once nothing is on its way any more."""
        account = self.arrived.check_complete(self.oracle.last, [e for e, _ in self.quarantined()])
        tally, evicted = self.tally(), self.evicted()
        check_ledger(tally["accepted"], tally["delivered"], tally["waiting"], evicted, lost=None)
        check_gaps_agree(account, evicted)
        kept = tally["accepted"] - tally["stated"]
        assert kept == account.accepted, f"kept {kept} of {account.accepted} that producers know as accepted"
        return account

    def _complete(self) -> bool:
        """Whether nothing waits, and the buffer's own count says so as well."""
        self.look()
        tally = self.tally()
        if tally.get("waiting", 1) or not self.oracle.sent:
            return False
        named = sum(gap.count for gap in self.arrived.gaps)
        return len(self.arrived.seen) + named >= len(self.oracle.sent)

    def words(self) -> str:
        """For the message of a failure: the ledger and what was said last."""
        self.look()
        last = {
            kind: module.log.read_text(errors="replace").splitlines()[-3:] if module.log.exists() else []
            for kind, module in self.modules.items()
        }
        missing = {k: (len(v), v[:3]) for k, v in self.arrived.missing(self.oracle.last).items()}
        return (
            f"sent {len(self.oracle.sent)}, arrived {len(self.arrived.seen)}, "
            f"repeats {self.arrived.repeats}, gaps {self.arrived.gaps}, missing {missing}, "
            f"ledger {self.tally()}, {last}"
        )
