"""Intervals and tests of means over a few seeds: pure functions on lists of floats, in which NaN has no place.

What cannot be known is None: an interval of one value, the p of values that do not vary. Sources: Student,
"The probable error of a mean", Biometrika 6 (1908); Welch, Biometrika 34 (1947); Holm, Scand. J. Statist. 6 (1979).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from ddbench.errors import UsageError
from ddbench.run.below import ROUNDING, standard_error


@dataclass(frozen=True)
class Test:
    """A two-sided t test of a difference of means. ``p`` is None where it is not defined, and ``note`` says why."""

    name: str
    difference: float
    p: float | None = None
    note: str = ""


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Student's confidence interval of the mean; None for one value, whose spread is unknown.

    mean ± t(n - 1, (1 + level) / 2) s / sqrt(n), with s the sample standard deviation (n - 1).
    """
    _check(values)
    if not 0 < level < 1:
        raise UsageError(f"the level of an interval lies between 0 and 1, got {level}")
    if len(values) < 2:
        return None
    half = _quantile((1 + level) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def paired(a: Sequence[float], b: Sequence[float]) -> Test:
    """Student's t test of the differences ``a[i] - b[i]``; at least two pairs give a p."""
    _check(a, b)
    if len(a) != len(b):
        raise UsageError(f"pairs need as many values on both sides, got {len(a)} and {len(b)}")
    apart = [x - y for x, y in zip(a, b, strict=True)]
    difference = fmean(apart)
    if len(apart) < 2:
        return Test("paired t", difference, note="no p: a single seed")
    spread = stdev(apart)
    if spread <= ROUNDING * max(map(abs, (*a, *b))):
        return Test("paired t", difference, note="no p: the differences do not vary")
    t = difference / (spread / math.sqrt(len(apart)))
    return Test("paired t", difference, _two_sided(t, len(apart) - 1))


def welch(a: Sequence[float], b: Sequence[float]) -> Test:
    """Welch's t test of two independent samples, whose variances may differ; two values on each side give a p."""
    _check(a, b)
    difference = fmean(a) - fmean(b)
    if min(len(a), len(b)) < 2:
        return Test("Welch t", difference, note="no p: one side has one seed")
    one, other = (stdev(v) ** 2 / len(v) if _varies(v) else 0.0 for v in (a, b))
    error, freedom = standard_error(one, len(a), other, len(b))
    if error == 0:
        return Test("Welch t", difference, note="no p: neither side varies")
    return Test("Welch t", difference, _two_sided(difference / error, freedom))


def holm(pvalues: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given: all false rejections together stay below the level.

    The k-th smallest of m is multiplied by m - k + 1, and none may become smaller than the one before it.
    """
    _check(pvalues)
    if wrong := [p for p in pvalues if not 0 <= p <= 1]:
        raise UsageError(f"p values lie between 0 and 1, got {wrong[0]}")
    corrected, highest = [0.0] * len(pvalues), 0.0
    for rank, index in enumerate(sorted(range(len(pvalues)), key=pvalues.__getitem__)):
        highest = max(highest, min(1.0, (len(pvalues) - rank) * pvalues[index]))
        corrected[index] = highest
    return corrected


def _varies(values: Sequence[float]) -> bool:
    return stdev(values) > ROUNDING * max(map(abs, values))


def _check(*samples: Sequence[float]) -> None:
    for values in samples:
        if wrong := [v for v in values if not math.isfinite(v)]:
            raise UsageError(f"a mean over seeds must be a finite number, got {wrong[0]}")


def _quantile(probability: float, freedom: int) -> float:
    from scipy import stats

    return float(stats.t.ppf(probability, freedom))


def _two_sided(t: float, freedom: float) -> float:
    from scipy import stats

    return min(1.0, 2 * float(stats.t.sf(abs(t), freedom)))
