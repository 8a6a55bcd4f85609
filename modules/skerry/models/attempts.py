"""Another try where a registry is away, after a while, and not for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from skerry.errors import LinkDown

MOST = 5
"""Attempts in a row that come no further."""
_LONGEST_S = 60.0
T = TypeVar("T")
Wait = Callable[[float], object]


def again(ask: Callable[[], T], wait: Wait, reached: Callable[[], int] = lambda: 0) -> T:
    """Do something until it works, or does not get any further.

    Args:
        ask: does it; goes on where it was interrupted, if it can.
        wait: waits so many seconds.
        reached: how far it is.

    Raises:
        LinkDown: of the last attempt.
    """
    failed, best = 0, reached()
    while True:
        try:
            return ask()
        except LinkDown as error:
            if (now := reached()) > best:
                failed, best = 0, now
            failed += 1
            if failed == MOST:
                raise
            wait(min(max(error.retry_after_s, 0.5 * 2 ** (failed - 1)), _LONGEST_S))
