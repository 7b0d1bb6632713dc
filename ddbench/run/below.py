"""Whether a result is above random images of its budget: one interval, which runs, tables and boards all ask for.

A result is above where the 95 % interval of the difference of the means (Welch, which lets variances differ) lies above
zero. What cannot be known, such as the interval of one student, is None. Loads neither torch nor plugins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, variance
from typing import Any

from ddbench.base.cache import lock, write_json
from ddbench.errors import BusyError
from ddbench.run.defaults import BASELINE, ONE_STAGE
from ddbench.run.record import RandomRecord, ResultRecord, WholeRecord
from ddbench.run.row import Row

LEVEL = 0.95
FEW = 5  # students, below which an interval is mostly as wide as the guess of its deviation
ROUNDING = 1e-12  # scores that vary by less than this part of them differ by rounding
GUIDE = 'docs/comparing.md, "Above random images"'


@dataclass(frozen=True)
class Sample:
    """A mean of ``n`` values and their sample variance (n - 1); one value has none."""

    mean: float
    variance: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Sample:
        """Of the values themselves."""
        return cls(fmean(values), variance(values) if len(values) > 1 else None, len(values))

    @classmethod
    def of_row(cls, row: Row) -> Sample:
        """Of the students of a run, whose recorded deviation is that of a population (n)."""
        known = row.accuracy_std is not None and row.n > 1
        return cls(
            row.accuracy_mean or 0.0, (row.accuracy_std or 0.0) ** 2 * row.n / (row.n - 1) if known else None, row.n
        )

    @property
    def of_mean(self) -> float:
        """The variance of the mean; zero for what is but rounding."""
        spread = self.variance or 0.0
        return spread / self.n if math.sqrt(spread) > ROUNDING * abs(self.mean) else 0.0


@dataclass(frozen=True)
class Gap:
    """A difference of means and both ends of its interval, which are None where a side is a single value."""

    difference: float
    low: float | None = None
    high: float | None = None

    @property
    def above(self) -> bool | None:
        """Whether the whole interval lies above zero."""
        return None if self.low is None else self.low > 0


def gap(one: Sample, other: Sample, level: float = LEVEL) -> Gap:
    """Welch's confidence interval of ``one.mean - other.mean``; of no width where neither side varies."""
    difference = one.mean - other.mean
    if one.variance is None or other.variance is None:
        return Gap(difference)
    error, freedom = standard_error(one.of_mean, one.n, other.of_mean, other.n)
    if error == 0:
        return Gap(difference, difference, difference)
    from scipy import stats

    half = float(stats.t.ppf((1 + level) / 2, freedom)) * error
    return Gap(difference, difference - half, difference + half)


def standard_error(one: float, n: int, other: float, m: int) -> tuple[float, float]:
    """Of a difference of means over ``n`` and ``m`` values, from the variances of the means.

    With it come Satterthwaite's degrees of freedom: from shares of the variance, they neither overflow nor vanish.
    """
    if one + other == 0:
        return 0.0, math.inf
    share = one / (one + other)
    return math.sqrt(one + other), 1 / (share**2 / (n - 1) + (1 - share) ** 2 / (m - 1))


def fits(row: Row, random: Row) -> bool:
    """Whether a result is shown beside these random images: their labels are hard or, as its own, soft.

    Likewise their images are as they are or, as its own, packed.
    """
    if row.matcher == BASELINE or random.matcher != BASELINE:
        return False
    return (not soft(random) or soft(row)) and packing(random) in (1, packing(row))


def soft(row: Row) -> bool:
    """Whether labels are more than a class: they alone gain points."""
    return row.label_type not in (None, "hard")


def packing(row: Row) -> Any:
    """How many images a stored one holds, along each side."""
    return (row.options or {}).get("decoder.factor", 1)


def compare(row: Row, rows: Sequence[Row]) -> list[RandomRecord]:
    """A graded run beside each kind of random images among ``rows`` that has its place and its seed."""
    if not row.finished:
        return []
    kinds: dict[str | None, Row] = {}
    for other in rows:
        if other.finished and fits(row, other) and _alike(row, other):
            kinds[other.run] = max(kinds.get(other.run, other), other, key=lambda graded: graded.weight)
    return [_record(row, other) for other in kinds.values()]


def _alike(row: Row, other: Row) -> bool:
    return (row.place, row.seed, other.scheduler) == (other.place, other.seed, ONE_STAGE)


def _record(row: Row, other: Row) -> RandomRecord:
    found = gap(Sample.of_row(row), Sample.of_row(other))
    return RandomRecord(
        run=other.run,
        label_type=other.label_type,
        decoder_factor=packing(other),
        accuracy_mean=other.accuracy_mean or 0.0,
        accuracy_std=other.accuracy_std,
        n=other.n,
        difference=found.difference,
        low=found.low,
        high=found.high,
        above=found.above,
    )


def verdict(found: Sequence[bool | None]) -> bool | None:
    """Of comparisons with several kinds: false if it is not above one of them, true if it is above all."""
    return False if False in found else None if None in found or not found else True


def own(rows: Sequence[Row]) -> Row | None:
    """Of all evaluations of a run that by which it is graded: on its own network, under its own rules."""
    due = [r for r in rows if r.finished and (r.network, r.protocol_digest) == (r.distil_network, r.distil_rules)]
    return max(due, key=lambda row: row.weight, default=None)


def store(
    folder: Path,
    found: Sequence[RandomRecord] | None = None,
    flaw: str | None = None,
    whole: WholeRecord | None = None,
) -> None:
    """Write into ``result.json`` of a finished run what is known of how it compares.

    That is to random images, with a ``flaw`` that shows beside them, and to the ``whole`` training set.
    """
    path = folder / "result.json"

    def due() -> dict[str, Any]:
        held = ResultRecord.from_file(path).json_value()
        told = held.get("warnings", [])
        warned = {"warnings": [*told, flaw]} if flaw is not None and flaw not in told else {}
        beside = {} if found is None else {"random": [record.json_value() for record in found]}
        above = {} if whole is None else {"whole": whole.json_value()}
        return held | beside | above | warned

    if {"random": []} | due() == {"random": []} | ResultRecord.from_file(path).json_value():
        return
    with suppress(BusyError), lock(folder / ".lock", wait=False, within=folder.parent):  # who has it writes the same
        write_json(path, due(), sealed=True)


def weak_experts(result: ResultRecord, classes: int | None, found: Sequence[RandomRecord]) -> str | None:
    """Why no set could be good, where experts know less than half of what random images teach above chance."""
    seen = [stage.experts for stage in result.stages[:1] if stage.experts is not None]
    hard = [record.accuracy_mean for record in found if record.label_type in (None, "hard")]
    if not seen or not hard or not classes:
        return None
    best, wanted = max(seen[0].accuracies), (1 / classes + max(hard)) / 2
    if best > wanted:
        return None
    return (
        f"its experts classify {100 * best:.1f} % of validation images right at best, and random images teach students "
        f"{100 * max(hard):.1f} %: a set teaches no more than its experts know; train them for longer "
        "(-o matcher.max_start, -o experts.epoch_steps) or at another -o experts.lr"
    )


def sentence(row: Row, found: Sequence[RandomRecord]) -> str:
    """What people are told of a graded run: nothing if it is above random images."""
    if row.matcher == BASELINE:
        return ""
    if not found:
        return f"{row.run}: no random images of its budget were graded to the end, so it is not known how it compares"
    mean = f"{100 * (row.accuracy_mean or 0):.1f} %"
    low = [r for r in found if r.above is False]
    if low:
        word = "below" if all(r.high is not None and r.high < 0 for r in low) else "not above"
        numbers = "; ".join(f"{kind(r)}: {told(r)}, Welch, {row.n} and {r.n} students" for r in low)
        few = min(row.n, *(r.n for r in low)) < FEW and word == "not above"
        advice = f"with so few students the interval is wide, which --students {FEW} narrows; then " if few else ""
        return (
            f"warning: {row.run} reaches {mean}, which is {word} random images of the same budget ({numbers}): "
            f"{advice}try other options, such as more iterations or another step size; "
            f"`ddbench info {row.matcher}` lists them, and {GUIDE}, says where to look"
        )
    unknown = [r for r in found if r.above is None]
    if not unknown:
        return ""
    beside = ", ".join(f"{kind(r)} {100 * r.accuracy_mean:.1f} %" for r in unknown)
    return (
        f"{row.run} reaches {mean} (random images with {beside}); whether it is above them is not known, because one "
        "student has no interval: --students 5 gives one"
    )


def kind(record: RandomRecord) -> str:
    """Which random images: ``hard labels``."""
    packed = f", decoder.factor={record.decoder_factor}" if record.decoder_factor != 1 else ""
    return f"{record.label_type or 'hard'} labels{packed}"


def told(record: RandomRecord) -> str:
    """The numbers of a comparison, for people."""
    interval = (
        f", 95 % interval [{100 * record.low:+.1f}, {100 * record.high:+.1f}]"
        if record.low is not None and record.high is not None
        else ""
    )
    return f"{100 * record.accuracy_mean:.1f} %, difference {100 * record.difference:+.1f} points{interval}"
