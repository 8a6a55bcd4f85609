"""From what was seen on the bus to latencies and rates. Pure: times come in, in nanoseconds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from skerry.models.benching.percentiles import percentile

_LEAST_IN_TENTH = 20


@dataclass(frozen=True)
class Answer:
    """A result of inference, of a frame.

    Attributes:
        number: of the frame, dense per camera over frames that were taken.
        captured_ns: when the frame was taken.
        session_ms: inside the model's session.
        ok: whether it is a result, and not why there is none.
    """

    number: int
    captured_ns: int
    session_ms: float
    ok: bool = True


@dataclass
class Seen:
    """Everything that came over the bus.

    Attributes:
        answers: by camera.
        events: by camera and frame: when it was taken, and when the last of its events was here.
        accepted: the last event of each epoch.
    """

    answers: dict[str, list[Answer]] = field(default_factory=lambda: defaultdict(list))
    events: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    accepted: dict[str, int] = field(default_factory=dict)

    def submitted(self, epoch: str, events: Iterable[tuple[int, Mapping[str, Any]]], here_ns: int) -> int:
        """Events of an epoch, in order: number and data. What is repeated was here before.

        Returns:
            The number up to which all of the epoch are here.
        """
        known = self.accepted.get(epoch, 0)
        for number, data in events:
            if number > known:
                known = number
                if "captured_ns" in data:  # it came of a frame, and not of an adjustment
                    self.event(data["camera"], data["frame"], data["captured_ns"], here_ns)
        self.accepted[epoch] = known
        return known

    def event(self, camera: str, number: int, captured_ns: int, here_ns: int) -> None:
        """An event of a frame was here; a frame is done with its last."""
        before = self.events.get((camera, number), (captured_ns, here_ns))
        self.events[camera, number] = captured_ns, max(before[1], here_ns)


@dataclass(frozen=True)
class Window:
    """What was measured between two moments, by when frames were taken.

    Attributes:
        frame_to_event_ms: of each frame that led to an event.
        unanswered: frames that no result was seen of, or that the source was due to give and nobody took.
        endless: how many of them would have led to an event, at the share of those that were answered.
        session_ms: of each result.
        answered_per_s: good results of all cameras.
        offered_per_s: frames that were taken, of all cameras.
        p95_by_tenth_ms: least and greatest p95 of the tenths that have enough samples; None: none has.
    """

    frame_to_event_ms: list[float]
    unanswered: int
    endless: int
    session_ms: list[float]
    answered_per_s: float
    offered_per_s: float
    p95_by_tenth_ms: tuple[float, float] | None


def between(
    seen: Seen, cameras: Iterable[str], begin_ns: int, end_ns: int, due_per_s: float | None = None
) -> Window:
    """What of all that was seen belongs to a time.

    Args:
        seen: everything.
        cameras: those that should have been seen.
        begin_ns: of the time; frames taken before are warm-up.
        end_ns: of the time.
        due_per_s: frames that a camera gives, where that is known; those that nobody took are unanswered.
    """
    seconds = (end_ns - begin_ns) / 1e9
    answered, offered, unanswered = 0, 0, 0
    session: list[float] = []
    for camera in cameras:
        mine = [a for a in seen.answers.get(camera, ()) if begin_ns <= a.captured_ns < end_ns]
        good = [a for a in mine if a.ok]
        taken = mine[-1].number - mine[0].number + 1 if mine else 0
        # One at either end is given away: where the time cuts is no fault of anybody's.
        due = int(seconds * due_per_s) - 1 if due_per_s is not None else 0
        answered += len(good)
        offered += taken
        unanswered += max(taken, due) - len(good)
        session += [a.session_ms for a in good]
    timed = sorted(
        (captured, (here - captured) / 1e6)
        for captured, here in seen.events.values()
        if begin_ns <= captured < end_ns
    )
    return Window(
        frame_to_event_ms=[ms for _, ms in timed],
        unanswered=max(0, unanswered),
        endless=math.ceil(max(0, unanswered) * (len(timed) / answered if answered else 1)),
        session_ms=session,
        answered_per_s=answered / seconds,
        offered_per_s=offered / seconds,
        p95_by_tenth_ms=_tenths(timed, begin_ns, end_ns),
    )


def _tenths(timed: list[tuple[int, float]], begin_ns: int, end_ns: int) -> tuple[float, float] | None:
    tenths: Mapping[int, list[float]] = defaultdict(list)
    for captured, ms in timed:
        tenths[(captured - begin_ns) * 10 // (end_ns - begin_ns)].append(ms)
    found = [percentile(sorted(t), 0.95).value for t in tenths.values() if len(t) >= _LEAST_IN_TENTH]
    return (round(min(found), 3), round(max(found), 3)) if found else None
