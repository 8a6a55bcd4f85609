"""Whose turn it is: an alarm first, then what is new and what has waited share the pipe."""

from __future__ import annotations

from collections.abc import Mapping

from skerry.messages import LANES, Lane

_LIVE, _BACKLOG = False, True


class Shares:
    """Fair queueing between two classes: lanes that are up to date, and lanes with a backlog. Pure.

    An alarm goes before everything and is charged to nobody. Each class has a clock that runs the
    slower the larger its share; the one that is behind is next. A class that had nothing to send does
    not save up: its clock is set forward to the other's. Within a class the higher lane goes first.

    Source: Goyal, Vin, Cheng: Start-time Fair Queuing, SIGCOMM 1996.

    Args:
        live_share: of the bytes, for lanes without a backlog, while both classes have something; above
            0 and below 1.
    """

    def __init__(self, live_share: float) -> None:
        self._share = {_LIVE: live_share, _BACKLOG: 1.0 - live_share}
        self._clock = {_LIVE: 0.0, _BACKLOG: 0.0}
        self._active: set[bool] = set()

    def choose(self, waiting: Mapping[Lane, bool]) -> Lane | None:
        """The lane whose turn it is; None when nothing waits.

        Args:
            waiting: lanes that have something and may send it now, to whether it is a backlog.
        """
        if "alarm" in waiting:
            return "alarm"
        classes = set(waiting.values())
        if not classes:
            self._active = set()
            return None
        furthest = max(self._clock.values())
        for kind in classes - self._active:
            self._clock[kind] = max(self._clock[kind], self._clock[not kind]) if self._active else furthest
        self._active = classes
        turn = min(classes, key=lambda kind: (self._clock[kind], kind))
        return next(lane for lane in LANES if waiting.get(lane) is turn)

    def sent(self, lane: Lane, backlog: bool, size: int) -> None:
        """Charge a lane's class for bytes that it was given."""
        if lane != "alarm":
            self._clock[backlog] += size / self._share[backlog]
