"""Running `skerry run` as an operator does, for tests that break things meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

MODULES = ("capture", "inference", "decision", "buffer", "uplink")


class SiteRun:
    """A running `skerry run`, its children by name, and what it left behind."""

    def __init__(self, arguments: list[str], out: Path) -> None:
        self.out = out
        self._error = (out.parent / f"{out.name}.stderr").open("w+b")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "skerry", *arguments, "--json", "--out", str(out)],
            stdout=subprocess.PIPE,
            stderr=self._error,
        )

    def child(self, name: str, within_s: float = 20.0) -> psutil.Process:
        """The process of a module, or of the broker."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"skerry run ended: {self.stderr()[-2000:]}"
            for process in psutil.Process(self.process.pid).children(recursive=True):
                if name in _name(process):
                    return process
            time.sleep(0.02)
        raise AssertionError(f"no process {name} within {within_s} s")

    def kill(self, name: str) -> int:
        """Kill -9 one process; returns its pid."""
        process = self.child(name)
        os.kill(process.pid, signal.SIGKILL)
        return process.pid

    def wait_for_events(self, n: int, within_s: float = 30.0) -> None:
        """Until the far end has `n` events."""
        deadline = time.monotonic() + within_s
        while len(self.delivered()) < n:
            assert time.monotonic() < deadline, (
                f"{len(self.delivered())} of {n} events: {self.stderr()[-2000:]}"
            )
            assert self.process.poll() is None, f"skerry run ended: {self.stderr()[-2000:]}"
            time.sleep(0.05)

    def delivered(self) -> list[dict[str, Any]]:
        """The far end's events; a line that is being written is left out."""
        path = self.out / "events.jsonl"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def finish(self, within_s: float = 60.0, number: int | None = None) -> tuple[int, dict[str, Any]]:
        """Wait for its end (after a signal, if given); returns the exit code and the JSON result."""
        if number is not None:
            self.process.send_signal(number)
        stdout, _ = self.process.communicate(timeout=within_s)
        lines = stdout.decode().splitlines()
        assert lines, self.stderr()[-3000:]
        return self.process.returncode, json.loads(lines[-1])

    def stderr(self) -> str:
        """What it said so far."""
        self._error.seek(0)
        return self._error.read().decode(errors="replace")

    def end(self) -> None:
        """Make sure that nothing stays behind."""
        if self.process.poll() is None:
            for process in psutil.Process(self.process.pid).children(recursive=True):
                process.kill()
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._error.close()


@contextmanager
def site_run(out: Path, *arguments: str) -> Iterator[SiteRun]:
    """Start `skerry ARGUMENTS --json --out OUT` and leave nothing behind."""
    run = SiteRun(list(arguments), out)
    try:
        yield run
    finally:
        run.end()


def leftovers(out: Path) -> list[str]:
    """Processes of the run whose output folder is `out`, and its frame store."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        environment = process.info["environ"] or {}
        if str(out) in environment.get("SKERRY_SETTINGS", "") or str(out) in " ".join(
            process.info["cmdline"] or []
        ):
            found.append(f"process {process.pid} {process.info['cmdline']}")
    return found


def assert_exactly_once(events: list[dict[str, Any]]) -> None:
    """Every event once, and dense from 1, per (source, epoch)."""
    seqs: dict[tuple[str, str], list[int]] = {}
    for event in events:
        seqs.setdefault((event["source"], event["epoch"]), []).append(event["seq"])
    for key, found in seqs.items():
        repeated = [seq for seq, n in Counter(found).items() if n > 1]
        assert not repeated, f"{key}: delivered more than once: {repeated}"
        assert found == list(range(1, len(found) + 1)), f"{key}: missing or out of order: {found}"


def _name(process: psutil.Process) -> str:
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return ""
    if "skerry.broker" in command or "mosquitto" in command:
        return "broker"
    return command.rpartition("skerry.")[2] if "-m skerry." in command else ""
