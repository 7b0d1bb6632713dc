"""Whether the numbers of an entry were found again: by whom, with what, and how they compare.

A verification holds what fresh students of the same sets reached, no verdict: that is computed whenever tables are
made, from these accuracies and those of the entry.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated

from pydantic import Field

from ddbench.base.schema import Count, Digest, Fraction, Held, Seed, Text
from ddbench.results.statistics import interval
from ddbench.run.below import Gap, Sample
from ddbench.run.record import MachineRecord

LEVEL = 0.99  # of the interval: one honest entry of a hundred is disputed by chance
VERIFIED, DISPUTED, UNDECIDED = "verified", "disputed", "undecided"


class StoredSet(Held):
    """The file of a run's distilled set, which lies beside the repository under the name of its sha256."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Count


class Regraded(Held):
    """What fresh students of one run's set reached."""

    seed: Seed  # of the run
    sha256: Digest  # of the set that they learned
    accuracies: Annotated[list[Fraction], Field(min_length=1, max_length=10_000)]


class Verification(Held):
    """All sets of an entry, graded anew under the board's protocol on students of another seed."""

    by: Annotated[str, Field(min_length=1, max_length=200)]
    date: Text
    seed: Seed
    machine: MachineRecord
    runs: Annotated[list[Regraded], Field(min_length=1)]


@dataclass(frozen=True)
class Verdict:
    """How the means of fresh students compare with those of an entry, as fractions."""

    claimed: float
    found: float
    gap: Gap

    @property
    def state(self) -> str:
        """``verified`` where the interval of the difference holds zero, ``undecided`` where there is no interval."""
        low, high = self.gap.low, self.gap.high
        if low is None or high is None:
            return UNDECIDED
        return VERIFIED if low <= 0 <= high else DISPUTED

    def __str__(self) -> str:
        low, high = self.gap.low, self.gap.high
        ends = "no interval" if low is None or high is None else f"[{100 * low:+.1f}, {100 * high:+.1f}]"
        told = f"fresh students {100 * self.found:.1f} %, the entry {100 * self.claimed:.1f} %"
        return f"{told}; difference {100 * self.gap.difference:+.1f}, {100 * LEVEL:g} % interval {ends}"


def compare(claimed: Sequence[Sequence[float]], found: Sequence[Sequence[float]]) -> Verdict:
    """Compare accuracies of students, run by run: both sides are of the same sets, so only students vary.

    The difference of the means over runs has the variance of the sum of those of the students' means; its interval has
    Satterthwaite's degrees of freedom over all of these samples (Biometrics Bulletin 2, 1946).
    """
    means = fmean(map(fmean, claimed)), fmean(map(fmean, found))
    samples = [Sample.of(values) for values in (*claimed, *found)]
    difference = means[1] - means[0]
    if any(sample.variance is None for sample in samples):  # one student each: over runs, if there are several
        pairs = [fmean(b) - fmean(a) for a, b in zip(claimed, found, strict=True)]
        return Verdict(*means, Gap(difference, *(interval(pairs, LEVEL) or ())))
    parts = [(sample.of_mean / len(claimed) ** 2, sample.n - 1) for sample in samples]
    error = math.sqrt(sum(part for part, _ in parts))
    if error == 0:
        half = 1e-9  # rounding of the means
    else:
        from scipy import stats

        freedom = 1 / sum((part / error**2) ** 2 / free for part, free in parts)
        half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * error
    return Verdict(*means, Gap(difference, difference - half, difference + half))
