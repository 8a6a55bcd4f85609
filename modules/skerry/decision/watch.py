"""One camera watched: its tracker and its rules on one clock that never runs backwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from skerry.decision.rules import Finding, Machine, Status, machine
from skerry.decision.settings import Rule, TrackerSettings
from skerry.decision.tracker import Tracker
from skerry.messages import Detection

Restore = Callable[[str], None]
"""Takes the name of a rule."""


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
        mine = self._mine(rules)
        self.tracker = Tracker(tracker, first_track, _attributes(mine))
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

    def adjust(self, rules: Iterable[Rule], tracker: TrackerSettings, restore: Restore) -> list[Finding]:
        """Go by other rules and tracker settings from the next result on.

        A rule that is the same goes on as it is, and so do the tracks. One that is changed starts anew from
        what it saved, as after a restart; what it said had begun and the new one does not go on from, ends
        now. So does all that a rule had begun which is not there any more.

        Args:
            rules: all rules, of this camera and of others.
            tracker: the tracker's settings.
            restore: lets a rule that was not there go on from what an earlier life saved.

        Returns:
            What ended with this.
        """
        mine = self._mine(rules)
        self.tracker.adjust(tracker, _attributes(mine))
        before, self.machines = self.machines, {}
        findings: list[Finding] = []
        for rule in mine:
            old = before.pop(rule.name, None)
            if old is not None and old.rule == rule:
                self.machines[rule.name] = old
                old.hold(tracker.hold_s)
                continue
            new = self.machines[rule.name] = machine(rule, tracker.hold_s)
            if old is None:
                restore(rule.name)
                continue
            new.restore(_handed_on(old, new))
            findings += old.close(new.saved(), "changed")
        for gone in before.values():
            findings += gone.close({}, "removed")
        return findings

    def _mine(self, rules: Iterable[Rule]) -> list[Rule]:
        """The rules at work here: one that is not enabled is as if it were not there."""
        return [rule for rule in rules if rule.camera == self.camera and rule.enabled]

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


def _attributes(rules: Iterable[Rule]) -> set[str]:
    """What the tracker must keep a mean of."""
    return {rule.where.attribute for rule in rules if rule.where is not None}


def _handed_on(old: Machine, new: Machine) -> dict[str, int]:
    """What a changed rule goes on from: its totals and, in the same lane, what is active.

    In another lane the end of something might overtake its beginning.
    """
    if type(old) is not type(new):
        return {}
    lane = old.rule.lane == new.rule.lane
    return {name: n for name, n in old.saved().items() if lane or "/" in name}
