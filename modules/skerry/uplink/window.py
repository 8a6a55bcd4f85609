"""How many batches may be on their way: few enough that an alarm does not wait behind them for long."""

from __future__ import annotations


class Window:
    """Grows by one a round trip, and is halved when batches queue on the way for too long. Pure.

    The time that a batch takes is the way itself, of which the fastest one so far is the measure, and
    the queue before it. Only the queue can be helped.

    Source: Chiu, Jain: Analysis of the Increase and Decrease Algorithms for Congestion Avoidance,
    Computer Networks and ISDN Systems 17, 1989; Brakmo, Peterson: TCP Vegas, IEEE JSAC 13(8), 1995.

    Args:
        most: batches, 1 or more.
        queue_s: for how long a batch may queue.
    """

    def __init__(self, most: int, queue_s: float) -> None:
        self._most = most
        self._least = min(most, 2)  # one, and the place that is kept for an alarm
        self._queue_s = queue_s
        self._size = float(most)
        self._fastest_s = float("inf")
        self._cut_at = float("-inf")

    @property
    def size(self) -> int:
        """Batches that may be on their way now."""
        return int(self._size)

    def confirmed(self, started: float, now: float) -> None:
        """A batch was confirmed: when it was started and now, in monotonic seconds."""
        took_s = now - started
        self._fastest_s = min(self._fastest_s, took_s)
        if took_s - self._fastest_s <= self._queue_s:
            self._size = min(self._size + 1.0 / self._size, self._most)
        elif started >= self._cut_at:  # the others were under way already when it was last cut
            self._size = max(self._size / 2, self._least)
            self._cut_at = now
