"""One site for every target, and what comes of it: the events that `skerry run` gives from it.

A target's test renders `SITE`, starts it as its platform would, waits until they have `arrived`, and compares
with `same`.
"""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

SITE = Path(__file__).with_name("conformance.yaml")
Event = dict[str, Any]


@cache
def expected() -> list[Event]:
    """The events of a plain run on this machine, which takes six seconds."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "skerry", "run", str(SITE), "--out", folder, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        summary = json.loads(done.stdout.splitlines()[-1])
        assert summary["ledger_balanced"] is True
        assert summary["cameras"]["belt"]["captured"] == 300
        return parsed((Path(folder) / "events.jsonl").read_text(encoding="utf-8"))


def parsed(text: str) -> list[Event]:
    """What a file link has written."""
    return [json.loads(line) for line in text.splitlines() if line]


def arrived(events: list[Event]) -> bool:
    """Whether all of them are there; more than that is found by `same`."""
    return len(events) >= len(expected())


def same(events: list[Event]) -> None:
    """Fail unless they are what a plain run gives: each once, in the order of each lane.

    What is compared is what the rules said of which frame; names of a run and of a moment (id, epoch, time,
    when a frame was taken by the clock of a boot) are not.
    """
    assert len({event["id"] for event in events}) == len(events), "an event came twice"
    assert _by_lane(events) == _by_lane(expected())


def _by_lane(events: list[Event]) -> dict[str, list[Event]]:
    lanes: dict[str, list[Event]] = {}
    for event in events:
        data = {key: value for key, value in event["data"].items() if key != "captured_ns"}
        said = {key: event[key] for key in ("type", "source", "subject", "lane")}
        lanes.setdefault(event["lane"], []).append({**said, "data": data})
    return lanes
