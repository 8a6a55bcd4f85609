"""One camera watched: its tracker and its rules on one clock that never runs backwards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from skerry.decision.rules import Finding, Machine, Status, machine
from skerry.decision.settings import Rule, TrackerSettings
from skerry.decision.tracker import Tracker
from skerry.messages import Detection


class Watch:
    """Turns the results of one camera into findings. Pure: time comes with the results.

    Args:
        rules: all rules, of this camera and of others.
        camera: whose rules to take.
        tracker: the tracker's settings.
        first_track: id of the first track.
    """

    def __init__(
        self, rules: Iterable[Rule], camera: str, tracker: TrackerSettings, first_track: int = 1
    ) -> None:
        self.camera = camera
        mine = [rule for rule in rules if rule.camera == camera]
        attributes = {rule.where.attribute for rule in mine if rule.where is not None}
        self.tracker = Tracker(tracker, first_track, attributes)
        self.machines: dict[str, Machine] = {rule.name: machine(rule, tracker.hold_s) for rule in mine}
        self.restarts = 0
        """How often the stream's time went backwards."""
        self._now_s = 0.0
        self._media_ns: int | None = None

    def step(self, media_ns: int, status: Status, objects: Sequence[Detection] = ()) -> list[Finding]:
        """Take a result, in order of capture.

        Args:
            media_ns: presentation time; when it goes backwards the camera has restarted, and no track
                lives on.
            status: whether the result is good; a failed one is not an empty one.
            objects: what the model found.
        """
        self._advance(media_ns)
        if status == "ok":
            tracks = self.tracker.update(self._now_s, objects)
        else:
            self.tracker.fail(self._now_s)
            tracks = self.tracker.tracks
        return [
            finding for rule in self.machines.values() for finding in rule.step(self._now_s, tracks, status)
        ]

    def saved(self, rule: str) -> dict[str, int]:
        """What the rule's state must keep over a restart."""
        return self.machines[rule].saved()

    def restore(self, rule: str, saved: Mapping[str, int]) -> None:
        """Let a rule go on from what was saved."""
        self.machines[rule].restore(saved)

    def recall(self, data: Mapping[str, Any]) -> None:
        """Let the rule that made an event go on from it; events of unknown rules change nothing."""
        rule = self.machines.get(str(data.get("rule")))
        if rule is not None and data.get("camera") == self.camera:
            rule.recall(data)

    def _advance(self, media_ns: int) -> None:
        passed_ns = 0 if self._media_ns is None else media_ns - self._media_ns
        self._media_ns = media_ns
        if passed_ns < 0:
            self.restarts += 1
            self.tracker.forget()
            return
        self._now_s += passed_ns / 1e9
