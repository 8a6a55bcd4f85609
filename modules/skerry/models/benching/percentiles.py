"""Percentiles with an upper confidence bound, from the order of the samples alone.

No distribution is assumed. Samples are taken for independent, which those of one machine are not quite:
a burst of other work makes many in a row late.

Source: MLCommons, MLPerf Inference rules, appendix "Early Stopping Criterion"; LoadGen's
`early_stopping.cc`, whose ranks these are (compared with LoadGen 6.0.17 for the numbers in the tests).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

CONFIDENCE = 0.99
"""MLPerf's."""


class Percentile(msgspec.Struct, frozen=True, kw_only=True):
    """A percentile of some samples."""

    value: float
    """The sample at that rank (nearest rank)."""
    upper: float | None
    """With `CONFIDENCE` the true one is not above; None where there are too few samples to say."""


def percentile(ordered: Sequence[float], q: float) -> Percentile:
    """The `q`-quantile of samples and its upper confidence bound.

    Args:
        ordered: the samples, ascending; one or more. An answer that never came is infinity.
        q: above 0, below 1.
    """
    n = len(ordered)
    value = ordered[min(max(math.ceil(q * n - 1e-9), 1), n) - 1]
    discarded = discards(n, q)
    return Percentile(value=value, upper=None if discarded is None else ordered[n - discarded - 1])


def discards(n: int, q: float, confidence: float = CONFIDENCE) -> int | None:
    """How many of the highest of `n` samples may be left out, so that the next is the bound.

    The most that may be over the bound is the largest t for which at most t of n would be over the true
    quantile with a probability of no more than 1 - confidence; the t-th highest is taken, as LoadGen does
    (the one below it would do).

    Returns:
        None where even the highest sample is no bound.
    """
    tail, over = 0.0, -1
    while over < n - 1:
        tail += _mass(n, over + 1, 1 - q)
        if tail > 1 - confidence:
            break
        over += 1
    return over - 1 if over >= 1 else None


def least_samples(q: float, confidence: float = CONFIDENCE) -> int:
    """How many samples a bound of the `q`-quantile takes at least."""
    n = 1
    while discards(n, q, confidence) is None:
        n += 1
    return n


def _mass(n: int, k: int, p: float) -> float:
    """Probability of exactly `k` of `n`, each with probability `p`."""
    log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(log + k * math.log(p) + (n - k) * math.log1p(-p))
