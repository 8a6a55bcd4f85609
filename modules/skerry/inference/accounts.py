"""What became of every frame, counted so that the sum holds at any moment, also after kill -9.

For every camera, in the tally:

    base + received = inferred + failed + sum(dropped) + in hand

`received` is the highest frame number that is accounted for, and `base` what earlier numberings came
to (capture's state was wiped and its numbers began again). What is in hand lives only in memory; a
process that finds some when it starts counts it as killed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from skerry.ledger import Tally
from skerry.messages import FrameRef


class Accounts:
    """The inference module's part of the loss ledger. Thread-safe.

    Reasons of drops: `restart` (captured while this module was away), `killed` (in the hands of a
    predecessor that was killed), `not_received` (lost on the bus), `superseded` (a newer frame came
    first), `frame_gone` (overwritten in the frame store), `exchange` (its model was unloaded to make room
    for another), `stopping` (came too late to be finished).
    """

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._lock = threading.Lock()
        self._met: set[str] = set()
        self._rings: dict[str, str] = {}
        self._tails: dict[str, tuple[int, int]] = {}

    def cameras(self) -> set[str]:
        """Every camera that was ever counted."""
        return {name.partition("/")[0] for name in self._tally.snapshot()}

    def recover(self) -> dict[str, int]:
        """Count what a killed predecessor had in its hands; to be called first, once.

        Returns:
            Camera to number of frames, where there were any.
        """
        found = {camera: n for camera in self.cameras() if (n := self.in_hand(camera)) > 0}
        if found:
            self._tally.add({f"{camera}/dropped/killed": n for camera, n in found.items()})
        return found

    def in_hand(self, camera: str) -> int:
        """Frames received and not yet resolved."""
        counts = self._tally.snapshot()
        gone = sum(n for name, n in counts.items() if name.startswith(f"{camera}/dropped/"))
        known = counts.get(f"{camera}/base", 0) + counts.get(f"{camera}/received", 0)
        return known - counts.get(f"{camera}/inferred", 0) - counts.get(f"{camera}/failed", 0) - gone

    def arrived(self, ref: FrameRef) -> bool:
        """Count a frame as received, and those before it that were not.

        Returns:
            False when this frame was already counted as lost and must not be used.
        """
        camera = ref.camera
        with self._lock:
            received = self._tally[f"{camera}/received"]
            if ref.number <= received:
                low, high = self._tails.get(camera, (0, 0))
                if low < ref.number <= high and self._rings.get(camera) == ref.ring:
                    return False
                self._renumber(camera, received)
                received = 0
            self._tails.pop(camera, None)
            self._rings[camera] = ref.ring
            self._advance(camera, received, ref.number, taken=1)
            return True

    def ended(self, camera: str, captured: int) -> int:
        """Count the frames up to `captured` that never came, once nothing more can come.

        Returns:
            How many.
        """
        with self._lock:
            received = self._tally[f"{camera}/received"]
            if captured <= received:
                return 0
            self._tails[camera] = received, captured
            self._advance(camera, received, captured, taken=0)
            return captured - received

    def resolved(self, camera: str, outcome: str) -> int:
        """Count a result, `inferred` or `failed`.

        Returns:
            Its sequence number: dense per camera over both, for ever.
        """
        self._tally.add({f"{camera}/{outcome}": 1})
        return self._tally[f"{camera}/inferred"] + self._tally[f"{camera}/failed"]

    def dropped(self, camera: str, reason: str) -> None:
        """Count a received frame as dropped."""
        self._tally.add({f"{camera}/dropped/{reason}": 1})

    def terms(self) -> Iterable[tuple[str, str, int]]:
        """(camera, term, count) of every term, e.g. ("gate", "dropped/superseded", 3)."""
        for name, n in self._tally.snapshot().items():
            camera, _, term = name.partition("/")
            yield camera, term, n

    def _advance(self, camera: str, received: int, number: int, taken: int) -> None:
        """Move `received` to `number`; all but `taken` of the frames between were lost."""
        lost = number - received - taken
        reason = "not_received" if camera in self._met else "restart"
        self._met.add(camera)
        changes = {f"{camera}/received": number - received}
        if lost:
            changes[f"{camera}/dropped/{reason}"] = lost
        self._tally.add(changes)

    def _renumber(self, camera: str, received: int) -> None:
        """Capture began again at 1: what was received so far becomes part of the base."""
        self._tally.add({f"{camera}/base": received, f"{camera}/received": -received})
