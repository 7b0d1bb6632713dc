"""Lines of runs tested against a baseline and against each other, within groups that may be compared.

A group is one dataset (by its digest), images per class, network and protocol (by its digest). The p of differences to
the baselines are Holm-corrected over the whole table; those of all pairs of a group, which decide whether it has a
best, over the group. Within a board, entries that differ in one thing only say what that thing is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from ddbench.base.options import option_text
from ddbench.errors import UsageError
from ddbench.results.above import judge
from ddbench.results.aggregate import Line
from ddbench.results.statistics import Test, holm, paired, welch
from ddbench.results.tables import CI, LEGEND, OVER_SEEDS, P, cell
from ddbench.results.where import Condition, parse, value
from ddbench.run.below import packing, soft
from ddbench.run.defaults import BASELINE, ONE_STAGE
from ddbench.run.row import Cells, Row

LEVEL = 0.05
# Below five seeds a side, a t test rests on a normality that nobody can see; such a line is never called the best.
SEEDS_FOR_BEST = 5
ITSELF = "(itself)"
ONE_THING = {
    "ipc": "ipc",
    "title": "method",
    "accuracy_mean": "accuracy %",
    "distil_seconds": "distil s",
    "base": "instead of",
    "base_accuracy": "its accuracy %",
    "base_distil_seconds": "its distil s",
    "difference": "difference",
    "p_holm": "p (Holm)",
    "test": "test",
    "apart": "also differs in",
}
ABOUT_ONE_THING = (
    "Entries of one matcher and one ipc that differ in their scheduler, in the kind of their labels, or in an option. "
    "Students get the same optimiser steps throughout; what distilling cost stands beside. p is Holm-corrected over "
    f"this table. Fewer than {SEEDS_FOR_BEST} finished seeds on a side mark no first place, and give no p here."
)


def test(lines: Sequence[Line], baseline: str | None, seeds: int) -> list[str]:
    """Fill in differences, p values and the best of each group; returns what a reader has to know about them.

    ``seeds`` is how many every line of a group needs before one is called the best.
    """
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(line.group, []).append(line)
    wanted = _baseline(baseline, lines)
    found, captions = [], []
    for group in groups.values():
        judge(group)
        tested, said = _against_baseline(group, wanted, strict=baseline is not None)
        found += tested
        captions += said
    _correct(found)
    reasons: dict[str, list[str]] = {}
    for group in groups.values():
        if reason := _mark_best(group, max(seeds, SEEDS_FOR_BEST)):
            reasons.setdefault(reason, []).append(_place(group[0].row))
    several = len(groups) > 1
    for reason, places in reasons.items():
        shown = ", ".join(places[:4]) + (f" and {len(places) - 4} more" if len(places) > 4 else "")
        captions.append(f"No line is marked as the best{f' of {shown}' if several else ''}: {reason}.")
    return captions


def _place(row: Row) -> str:
    parts = (row.dataset, row.ipc and f"ipc {row.ipc}", row.network)
    return " ".join(str(part) for part in parts if part is not None) or "all"


def _baseline(text: str | None, lines: Sequence[Line]) -> list[Condition]:
    """``random`` or ``matcher=random,label_type=hard``."""
    if text is None:
        return [Condition("matcher", "=", BASELINE)]
    rows = [line.cells for line in lines]
    found = parse(text, rows) if any(sign in text for sign in "=<>~") else [Condition("matcher", "=", text.strip())]
    if rows and not any(all(c.holds(row) for c in found) for row in rows):
        names = ", ".join(sorted({str(line.row.matcher) for line in lines}))
        raise UsageError(f"no line fits the baseline {text!r}; there are lines of {names}")
    return found


def _against_baseline(
    group: list[Line], wanted: list[Condition], *, strict: bool
) -> tuple[list[tuple[Line, Test]], list[str]]:
    """The test of each line of a group against its baseline, and captions."""
    fits = [line for line in group if line.scores and all(c.holds(line.cells) for c in wanted)]
    # a scheduler is a method of its own: random images in stages are no baseline where there are some in one set
    fits = [line for line in fits if line.row.scheduler == ONE_STAGE] or fits
    found: list[tuple[Line, Test]] = []
    unclear = False
    for line in group:
        near = _nearest(line, fits)
        unclear |= len(near) > 1
        if len(near) != 1 or near[0] is line:
            continue
        line.baseline = near[0].name
        near[0].baseline = ITSELF
        if line.scores:
            found.append((line, between(line, near[0])))
    if not unclear:
        return found, []
    names = ", ".join(line.name for line in fits)
    if strict:
        raise UsageError(f"the baseline fits {len(fits)} lines of {_place(group[0].row)} ({names}); {_choice(fits)}")
    return found, [f"{_place(group[0].row)} has several random lines ({names}): {_choice(fits)}."]


def _choice(fits: list[Line]) -> str:
    """How to choose one of several lines: by a column that tells them apart, or by leaving the others out."""
    names = sorted({name for line in fits for name in line.row.options or {}})
    for column in ("label_type", "scheduler", *names, "versions", "setting"):
        values = [value(line.cells, column) for line in fits]
        if None not in values and len(set(map(str, values))) == len(values):
            return f"choose one, such as --baseline 'matcher={fits[0].row.matcher},{column}={values[0]}'"
    return "leave the others out with --where"


def _correct(found: list[tuple[Line, Test]]) -> None:
    """Fill in the differences to baselines, with p corrected over all of them: a table is read as a whole."""
    raw = [(line, p) for line, result in found if (p := result.p) is not None]
    corrected = dict(zip((id(line) for line, _ in raw), holm([p for _, p in raw]), strict=True))
    for line, result in found:
        line.difference, line.test, line.p, line.remark = result.difference, result.name, result.p, result.note
        line.p_holm = corrected.get(id(line))


def _nearest(line: Line, fits: list[Line]) -> list[Line]:
    """The baselines for a line. Of several, that with the same kind of labels, hard or soft, and packing; of these
    that with most of its seeds.

    Soft labels alone gain points, so that a method with soft labels is to beat random images with soft labels.
    """
    if line in fits:
        return [line]
    for trait in (soft, packing):
        alike = [other for other in fits if trait(other.row) == trait(line.row)]
        fits = alike or fits
    shared = [len(line.scores.keys() & other.scores.keys()) for other in fits]
    fits = [other for other, count in zip(fits, shared, strict=True) if count == max(shared)]
    same = all(other.scores == fits[0].scores for other in fits)  # options that change nothing, such as unused experts
    return fits[:1] if same else fits


def between(one: Line, other: Line) -> Test:
    """The difference of two lines: by pairs where two or more seeds are on both sides, else by Welch's test.

    Runs with one seed start from the same real images and grade the same initialisations, so they are pairs.
    """
    shared = [seed for seed in one.scores if seed in other.scores]
    whole = len(shared) == len(one.scores) == len(other.scores)
    if len(shared) >= 2 or whole:
        found = paired([one.scores[s] for s in shared], [other.scores[s] for s in shared])
        most = max(len(one.scores), len(other.scores))
        size = f"{len(shared)} seeds" if whole else f"{len(shared)} of {most} seeds"
        found = replace(found, name=f"paired t, {size}")
    else:
        found = welch(list(one.scores.values()), list(other.scores.values()))
        found = replace(found, name=f"Welch t, {len(one.scores)} and {len(other.scores)} seeds")
    if not (one.testable and other.testable):
        return replace(found, name="none", p=None, note="no p: the seeds of its settings are not the same")
    return found if found.p is not None else replace(found, name="none")


def _mark_best(group: list[Line], seeds: int) -> str:
    """Mark the line whose difference to every other is significant; else say why there is none.

    The best is only known after looking, so that all pairs of the group are corrected for, not just its own.
    """
    lines = [line for line in group if line.scores]
    if len(lines) < 2:
        return ""
    if few := [line for line in lines if len(line.scores) < seeds]:
        who = few[0].name if len(few) == 1 else f"each of {len(few)} lines"
        least = min(len(line.scores) for line in few)
        return f"that takes {seeds} finished seeds of every line, and {who} has fewer (the least {least})"
    if odd := [line for line in lines if not line.testable]:
        return f"the seeds of {odd[0].name} are not the same in all that it averages over"
    best = max(lines, key=lambda line: line.row.accuracy_mean or 0.0)
    pairs = [(one, other, between(one, other)) for one, other in combinations(lines, 2)]
    raw = {i: found.p for i, (_, _, found) in enumerate(pairs) if found.p is not None}
    corrected = dict(zip(raw, holm(list(raw.values())), strict=True))
    # a difference counts only in the direction of the means: where seeds are missing, that over the shared ones may be
    # the other way round
    beaten = {
        id(other if gain > 0 else one)
        for i, (one, other, found) in enumerate(pairs)
        if corrected.get(i, 1.0) < LEVEL and (gain := found.difference) and best is (one if gain > 0 else other)
    }
    level = [line.name for line in lines if line is not best and id(line) not in beaten]
    if level:
        return (
            f"{best.name} does not differ significantly from {', '.join(level[:3])}{' and others' if level[3:] else ''}"
        )
    best.best = True
    return ""


def legend(lines: Sequence[Line]) -> list[str]:
    """What the columns mean, as far as they hold something."""
    found = [OVER_SEEDS]
    if any(line.row.status != "ok" and line.scores for line in lines):
        found.append("Means are over the runs that finished; how many did not is under status.")
    if any(line.bounds for line in lines):
        found.append(CI)
    if any(line.p_holm is not None for line in lines):
        found.append(P)
    if any(" of " in (line.test or "") for line in lines):
        found.append("Where a line has only some of the baseline's seeds, the difference is over those on both sides.")
    if any(line.best for line in lines):
        found.append("*: differs significantly from every other line of its group (p < 0.05, Holm over all pairs).")
    if any(line.above_random is False for line in lines):
        found.append(LEGEND)
    if any(line.settings > 1 for line in lines):
        found.append("Some lines average over several settings, with equal weights within each seed.")
    return found


def one_thing_apart(titled: Sequence[tuple[str, Line]], seeds: int = SEEDS_FOR_BEST) -> list[Cells]:
    """A row for every pair of finished lines that differ in one thing, under the titles that people know them by.

    A pair is tested where both have ``seeds`` finished seeds in common, as many as a first place takes.
    """
    found: list[tuple[Cells, float | None]] = []
    done = [(title, line) for title, line in titled if line.scores]
    for one, other in combinations(done, 2):
        ordered = sorted((one, other), key=lambda known: _plainness(known[1]), reverse=True)
        (title, line), (base_title, base) = ordered
        if (line.row.ipc, line.row.matcher) != (base.row.ipc, base.row.matcher) or _things(line, base) != 1:
            continue
        result = _tested(line, base, max(seeds, SEEDS_FOR_BEST))
        kept = ("ipc", "accuracy_mean", "accuracy_std", "distil_seconds")
        found.append(
            (
                {name: line.cells[name] for name in kept}
                | {
                    "title": title,
                    "base": base_title,
                    "base_accuracy": cell("accuracy_mean", base.cells | {"best": False, "above_random": None}),
                    "base_distil_seconds": base.row.distil_seconds,
                    "difference": result.difference,
                    "test": result.name,
                    "apart": _apart(line, base),
                },
                result.p,
            )
        )
    corrected = iter(holm([p for _, p in found if p is not None]))
    rows = [row | {"p_holm": None if p is None else next(corrected)} for row, p in found]
    return sorted(rows, key=lambda row: (row["ipc"], row["title"], row["base"]))


def _tested(line: Line, base: Line, seeds: int) -> Test:
    """The difference of a pair, with a p where there are seeds enough to quote one."""
    found, shared = between(line, base), len(line.scores.keys() & base.scores.keys())
    if shared >= seeds or (shared == 0 and min(len(line.scores), len(base.scores)) >= seeds):
        return found
    count = shared or min(len(line.scores), len(base.scores))
    return replace(found, name=f"none: {count} of {seeds} seeds", p=None)


def _things(one: Line, other: Line) -> int:
    """In how many of scheduler, labels and named options two lines differ."""
    traits = [(line.row.scheduler, line.row.label_type, line.variant) for line in (one, other)]
    return sum(a != b for a, b in zip(*traits, strict=True))


def _plainness(line: Line) -> tuple[Any, ...]:
    """Sorts the plainer of two first: one set, hard labels, and the last of options by the alphabet (zero, exact)."""
    return (line.row.scheduler != ONE_STAGE, line.row.label_type != "hard", [-ord(letter) for letter in line.variant])


def _apart(line: Line, base: Line) -> str:
    """The options that differ besides: a scheduler's recipe may ask for other ones."""
    own, usual = line.row.options or {}, base.row.options or {}
    named = {name for name in own if name.startswith("scheduler.")} | {"matcher.labels"}
    return ", ".join(
        f"{name.removeprefix('matcher.')}={option_text(own.get(name))} instead of {option_text(usual.get(name))}"
        for name in sorted({*own, *usual} - named)
        if own.get(name) != usual.get(name) and f"{name.removeprefix('matcher.')}=" not in line.variant
    )
