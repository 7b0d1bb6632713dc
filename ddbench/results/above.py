"""Which lines of a group are not above random images of their budget; the arithmetic is that of ``run/below``.

Where both lines are one run each, it is done over their students; otherwise over seeds, where both have several.
"""

from __future__ import annotations

from collections.abc import Sequence

from ddbench.results.aggregate import Beside, Line, one_per_run
from ddbench.run.below import Gap, Sample, fits, gap
from ddbench.run.defaults import BASELINE, ONE_STAGE
from ddbench.run.row import Row


def judge(group: Sequence[Line]) -> None:
    """Fill in how each line of a group compares with each kind of random images that it is shown beside."""
    random = [line for line in group if line.row.matcher == BASELINE and line.scores]
    # in stages, random images are a method of their own where there are some in one set
    random = [line for line in random if line.row.scheduler == ONE_STAGE] or random
    for line in group:
        if line.scores:
            line.random = [_beside(line, other) for other in random if fits(line.row, other.row)]


def _beside(line: Line, other: Line) -> Beside:
    for side in (line, other):
        if not side.testable:
            return Beside(other.name, _means(line, other), "the seeds of its settings are not the same")
    least, most = sorted((len(line.scores), len(other.scores)))
    if least > 1:
        found = gap(Sample.of(list(line.scores.values())), Sample.of(list(other.scores.values())))
        return Beside(other.name, found)
    if most > 1:
        return Beside(other.name, _means(line, other), f"one seed beside {most}")
    runs = [_only(line), _only(other)]
    if runs[0] is None or runs[1] is None:
        return Beside(other.name, _means(line, other), "several settings of one seed")
    found = gap(Sample.of_row(runs[0]), Sample.of_row(runs[1]))
    return Beside(other.name, found, "one student" if found.above is None else "")


def _only(line: Line) -> Row | None:
    """The run of a line, if it is one."""
    runs = [row for row in one_per_run(line.rows) if row.finished]
    return runs[0] if len(runs) == 1 else None


def _means(line: Line, other: Line) -> Gap:
    return Gap((line.row.accuracy_mean or 0.0) - (other.row.accuracy_mean or 0.0))
