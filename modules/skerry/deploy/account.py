"""The ledger of a run, added up from what each module counted for itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from skerry.deploy.plan import Plan
from skerry.ledger import CameraLedger, EventLedger, read_tally

Counts = Mapping[str, Mapping[str, int]]
"""Module name to its tally."""


def read_counts(plan: Plan) -> dict[str, dict[str, int]]:
    """Every module's tally as it is on disk now."""
    return {part.module: read_tally(Path(part.settings.state) / "tally") for part in plan.parts}


def _total(plan: Plan, counts: Counts, kind: str, name: str) -> int:
    return sum(counts.get(part.module, {}).get(name, 0) for part in plan.of(kind))


def _by_reason(plan: Plan, counts: Counts, kind: str, prefix: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for part in plan.of(kind):
        for name, n in counts.get(part.module, {}).items():
            if name.startswith(prefix):
                found[name.removeprefix(prefix)] += n
    return found


def camera_ledger(
    plan: Plan, camera: str, before: Counts, after: Counts, *, died: bool, fps: float = 0.0
) -> CameraLedger:
    """What became of one camera's frames between two readings.

    Frames that an earlier run left unaccounted (it was killed whole) count as captured in this one,
    because this run's inference accounts for them when it starts.

    Args:
        plan: the processes.
        camera: its name.
        before: tallies at the start.
        after: tallies at the end.
        died: capture or inference was killed and not started again, so that nobody is left who
            could say what it had in its hands; only then does this function say `killed` for them.
        fps: passed on.
    """

    def change(kind: str, name: str) -> int:
        return _total(plan, after, kind, name) - _total(plan, before, kind, name)

    def unresolved(counts: Counts) -> int:
        resolved = _total(plan, counts, "inference", f"{camera}/inferred")
        resolved += _total(plan, counts, "inference", f"{camera}/failed")
        resolved += sum(_by_reason(plan, counts, "inference", f"{camera}/dropped/").values())
        return _total(plan, counts, "capture", f"{camera}/captured") - resolved

    dropped = _by_reason(plan, after, "inference", f"{camera}/dropped/")
    dropped.subtract(_by_reason(plan, before, "inference", f"{camera}/dropped/"))
    captured = change("capture", f"{camera}/captured")
    ledger = CameraLedger(
        captured=captured + unresolved(before),
        inferred=change("inference", f"{camera}/inferred"),
        failed=change("inference", f"{camera}/failed"),
        dropped={reason: n for reason, n in sorted(dropped.items()) if n},
        fps=fps,
    )
    if died and ledger.missing > 0:
        dropped["killed"] += ledger.missing
        return CameraLedger(
            captured=ledger.captured, inferred=ledger.inferred, failed=ledger.failed,
            dropped={reason: n for reason, n in sorted(dropped.items()) if n}, fps=ledger.fps,
        )  # fmt: skip
    return ledger


def event_ledger(plan: Plan, before: Counts, after: Counts) -> EventLedger:
    """What became of the site's events between two readings."""

    def change(kind: str, name: str) -> int:
        return _total(plan, after, kind, name) - _total(plan, before, kind, name)

    evicted = _by_reason(plan, after, "buffer", "evicted/")
    evicted.subtract(_by_reason(plan, before, "buffer", "evicted/"))
    return EventLedger(
        decided=change("decision", "decided"),
        refused=change("decision", "refused"),
        unaccepted=_total(plan, after, "decision", "unaccepted"),
        unaccepted_before=_unaccepted(plan, before),
        stated=change("buffer", "stated"),
        accepted=change("buffer", "accepted"),
        delivered=change("buffer", "delivered"),
        waiting=_total(plan, after, "buffer", "waiting"),
        carried_over=_total(plan, before, "buffer", "waiting"),
        evicted={reason: n for reason, n in sorted(evicted.items()) if n},
    )


def _unaccepted(plan: Plan, counts: Counts) -> int:
    """Events that producers held and the buffer had not accepted, at a reading.

    Where all were killed at once, the buffer may have counted events whose acceptance no producer had heard
    of: both count them, and they were accepted before.
    """
    held = _total(plan, counts, "decision", "unaccepted")
    made = _total(plan, counts, "decision", "decided") - _total(plan, counts, "decision", "refused")
    owed = made + _total(plan, counts, "buffer", "stated") - _total(plan, counts, "buffer", "accepted")
    return owed if 0 <= owed <= held else held


def settled(plan: Plan, cameras: list[str], before: Counts) -> bool:
    """Whether nothing is on its way: every frame accounted, every event delivered."""
    now = read_counts(plan)
    frames = all(camera_ledger(plan, c, before, now, died=False).missing == 0 for c in cameras)
    events = event_ledger(plan, before, now)
    return frames and events.unaccepted == 0 and events.waiting == 0 and events.missing == 0
