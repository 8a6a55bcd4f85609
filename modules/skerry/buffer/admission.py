"""Which events of a submission are taken: the rule that makes repeats harmless and losses visible.

With w the watermark of the submission's (producer, epoch):

* seq at or below w: a repeat, dropped.
* seq = w + 1, and on from there: taken.
* a jump beyond w + 1: nothing is taken and the producer goes back, unless it says (`oldest`) that it
  no longer has what is missing. Then that is a gap: counted, and w moves to `oldest - 1`.
* an epoch never heard of begins at `oldest - 1`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from skerry.messages import Submission

MAX_SEQ = 2**53 - 1
"""What any JSON reader holds exactly."""
_EPOCH = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_MAX_SOURCE = 256


class Verdict(NamedTuple):
    """What becomes of a submission's events."""

    repeats: int
    """Its first events, which are kept already."""
    taken: int
    """How many come after those and are to be kept."""
    gap: int = 0
    """Events before them that the producer no longer has."""
    jump: bool = False
    """Events are missing that the producer may still have: it must go back."""


def admit(watermark: int | None, oldest: int, first: int, count: int) -> Verdict:
    """Judge events `first` to `first + count - 1` of one epoch.

    Args:
        watermark: of the epoch, None when it was never heard of.
        oldest: the first seq that the producer still holds, at most `first`.
        first: seq of the first event, from 1.
        count: how many events, dense in seq.
    """
    known = oldest - 1 if watermark is None else watermark
    gap = max(oldest - 1 - known, 0)
    known += gap
    if first > known + 1:
        return Verdict(0, 0, jump=True)
    repeats = min(known + 1 - first, count)
    return Verdict(repeats, count - repeats, gap)


def flaw(submission: Submission) -> str:
    """What is inconsistent about a submission, or "" when it is sound."""
    first = submission.events[0]
    if not _EPOCH.fullmatch(submission.epoch):
        return "epoch"
    if submission.oldest > first.seq:
        return "oldest"
    if first.seq + len(submission.events) - 1 > MAX_SEQ:
        return "seq"
    if len(first.source) > _MAX_SOURCE or not first.source:
        return "source"
    for n, event in enumerate(submission.events):
        if event.lane != first.lane:
            return "lane"
        if event.source != first.source:
            return "source"
        if event.epoch != submission.epoch:
            return "epoch"
        if event.seq != first.seq + n:
            return "seq"
        if event.id != f"{event.epoch}-{event.seq}":
            return "id"
    return ""
