"""``questions/coresets.md`` and ``larger.md``: the best coreset beside the best distilled set, under equal rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from statistics import fmean
from typing import Any

from question_tables import (
    MADE,
    NOTHING,
    Compared,
    corrected,
    few,
    method_of,
    percent,
    places,
    row_of,
    setting,
    shown,
    table,
)

from ddbench.plugins import registry
from ddbench.results.aggregate import Line, aggregate
from ddbench.results.differences import LEVEL, SEEDS_FOR_BEST, between
from ddbench.results.statistics import holm
from ddbench.run.below import soft

HEAD = f"""# Coresets or distilled sets?

{MADE}

A coreset is chosen, a distilled set is learned, and learning costs more. Do distilled sets do better, once labels and
student steps are the same (Mittal et al., "Rethinking Dataset Distillation for Classification: Do Distilled Sets
Outperform Coresets?", [arXiv 2606.18209](https://arxiv.org/abs/2606.18209))?

For each budget and each kind of labels, the coreset and the distilled set that stand for their kind are chosen by
**validation** accuracy, the mean of what selection saw over the seeds that all methods have there (of equals the first
by the alphabet). Test accuracy decides nothing, so that the best of many is not chosen by its luck. Where not every
method has all seeds, the first seed chooses, and the two that it chose are run with the others. Random images count
among the coresets. Soft labels of coresets are the mean prediction of experts; those of a distilled set are its own.

```sh
ddbench suite run questions-coresets --only dataset=digits --out runs
python benchmarks/questions.py coresets --only dataset=digits --out runs
ddbench suite run questions-coresets --only dataset=cifar10 --only seeds=0 --out small  # chooses; then
ddbench suite run questions-coresets --only dataset=cifar10 --only ipc=1 --only matcher=d2,ncfm,herding,rded --out small
python benchmarks/questions.py coresets --only dataset=cifar10 --out small
python docs/questions.py
```

The rows are in `docs/results/questions-coresets.json.gz`. MNIST and a CPU-sized CIFAR-10 (`DDBENCH_CIFAR10_ZIP`),
with up to 200 images per class, are other parts of the
[suite](../../leaderboards/suites/questions-coresets.toml); a ConvNet of width 128 on all of CIFAR-10 is a part of the
campaign on a GPU ([published.md](../published.md), `equal rules`). Intervals are 95 % (Student's t over seeds, of
differences seed by seed); p is Holm-corrected over each table. A seed is the mean of
its students."""


LARGER = f"""# Where does distilling stop paying?

{MADE}

Progressive distillation was the first to make "considerably larger" sets (Chen et al., ICLR 2024), and SelMatch
(Lee & Chung, ICML 2024) is made for them. At 50 to 200 images per class, which here are up to three quarters of all
training images of digits and two fifths of those of CIFAR-10, what does learning images still gain over choosing
them? One and ten images per class of digits are the other ends of the lines.

Labels are hard and student steps the same. From 50 images per class on, `pdd` learns its set in stages, of which later
ones distil what students of the earlier ones still get wrong (`drop=correct`). What stands for its kind is chosen by
**validation** accuracy, as in [coresets or distilled sets?](coresets.md).

```sh
ddbench suite run questions-larger --only dataset=digits --out runs
python benchmarks/questions.py larger --only dataset=digits --out runs
python docs/questions.py
```

The rows are in `docs/results/questions-larger.json.gz`, those of digits also on a
[board](../../leaderboards/digits-larger/README.md); the [suite](../../leaderboards/suites/questions-larger.toml) has
the settings. Intervals are 95 % (Student's t over seeds, of differences seed by seed); p is Holm-corrected over each
table."""


@dataclass(frozen=True, eq=False)
class Side:
    """A method at one budget under one kind of labels."""

    line: Line
    validation: float

    @property
    def name(self) -> str:
        return method_of(self.line.row)

    @property
    def chosen(self) -> bool:
        """Whether its images are chosen, rather than learned or cut."""
        return (
            registry().get("matcher", str(self.line.row.matcher)).cls.__module__.partition(".")[0] == "ddbench_coresets"
        )


@dataclass(frozen=True, eq=False)
class Contest:
    """The coreset and the distilled set that validation data chose, and all others of their place."""

    ipc: int
    kind: str
    sides: Sequence[Side]

    def best(self, *, chosen: bool) -> Side:
        """Of one kind that with the largest validation accuracy."""
        return max(
            sorted((s for s in self.sides if s.chosen == chosen), key=lambda s: s.name), key=lambda s: s.validation
        )

    @property
    def complete(self) -> bool:
        return {s.chosen for s in self.sides} == {True, False}

    @property
    def seeds(self) -> list[int | None]:
        """Those that the coreset and the distilled set have both."""
        one, other = self.best(chosen=True).line.scores, self.best(chosen=False).line.scores
        return [seed for seed in one if seed in other]

    @property
    def apart(self) -> Compared:
        one, other = self.best(chosen=False).line.scores, self.best(chosen=True).line.scores
        return Compared([one[seed] - other[seed] for seed in self.seeds])


def coresets_page(held: Sequence[dict[str, Any]]) -> str:
    """The page on coresets and distilled sets."""
    return _page(HEAD, held)


def larger_page(held: Sequence[dict[str, Any]]) -> str:
    """The page on larger sets."""
    return _page(LARGER, held)


def _page(head: str, held: Sequence[dict[str, Any]]) -> str:
    parts = [head]
    for (dataset, *_), rows in sorted(
        places(held, "dataset", "dataset_digest", "network", "protocol_digest"), key=lambda p: p[0][0]
    ):
        parts += [f"## {dataset}", *coreset_section(rows)]
    return "\n\n".join([*parts, *([] if held else [NOTHING])]) + "\n"


def contests(rows: Sequence[dict[str, Any]]) -> list[Contest]:
    """One for each budget and kind of labels that has both."""
    found: dict[tuple[int, str], list[tuple[Line, dict[int | None, float]]]] = {}
    for line in aggregate([row_of(row) for row in rows]):
        seen = {row.seed: row.selected_accuracy for row in line.rows if row.finished and row.selection == "validation"}
        known = {seed: accuracy for seed, accuracy in seen.items() if accuracy is not None}
        if line.scores and len(known) == len(line.rows):
            found.setdefault((line.row.ipc or 0, "soft" if soft(line.row) else "hard"), []).append((line, known))
    every = [Contest(ipc, kind, _sides(lines)) for (ipc, kind), lines in sorted(found.items())]
    return [one for one in every if one.complete and one.seeds]


def _sides(lines: Sequence[tuple[Line, dict[int | None, float]]]) -> list[Side]:
    """With the mean validation accuracy over the seeds that all have; none where they have no seed in common."""
    shared = set.intersection(*(set(known) for _, known in lines))
    return [Side(line, fmean(known[seed] for seed in shared)) for line, known in lines] if shared else []


def coreset_section(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The contests of one dataset, where they turn, and every method."""
    every = contests(rows)
    if not every:
        return ["No budget has both on record."]
    ps = corrected([one.apart for one in every])
    body = []
    for one, p in zip(every, ps, strict=True):
        coreset, distilled = one.best(chosen=True), one.best(chosen=False)
        sides = [text for s in (coreset, distilled) for text in (f"`{s.name}`", percent([s.validation]), result(s))]
        body.append([str(one.ipc), one.kind, *sides, one.apart.text, shown(p), str(len(one.seeds))])
    titles = [
        "ipc",
        "labels",
        "coreset",
        "validation %",
        "test %",
        "distilled",
        "validation %",
        "test %",
        "difference",
        "p",
        "seeds",
    ]
    return [
        setting(rows, sorted({row["seed"] for row in rows})) + partly(every),
        findings(every, ps),
        "Chosen on validation data; the difference is that of the distilled set to the coreset, in points:",
        table(titles, body),
        "All pairs of a distilled set and a coreset of one budget and one kind of labels, Holm-corrected over all of "
        "them:",
        pairs(every),
        "Every method, ± deviation over seeds. Experts are shared; their seconds are those of whoever trained them:",
        methods(every),
    ]


def findings(every: Sequence[Contest], ps: Sequence[float | None]) -> str:
    """Of the budgets that have the seeds for it; the others are named."""
    kept = [(one, p) for one, p in zip(every, ps, strict=True) if len(one.seeds) >= SEEDS_FOR_BEST]
    if not kept:
        return few(min(len(one.seeds) for one in every))
    lines = turns([one for one, _ in kept], [p for _, p in kept])
    left = [f"{one.ipc} ({one.kind} labels)" for one in every if len(one.seeds) < SEEDS_FOR_BEST]
    lines += [f"Not stated for want of seeds: at {', '.join(left)}."] if left else []
    return "\n".join(f"- {text}" for text in lines)


def partly(every: Sequence[Contest]) -> str:
    """A sentence where not every method has all seeds; nothing where each has."""
    counts = sorted({len(side.line.scores) for one in every for side in one.sides})
    return f" Not every method has all of them: {counts[0]} or more." if len(counts) > 1 else ""


def result(side: Side) -> str:
    spread = side.line.row.accuracy_std
    return percent(list(side.line.scores.values())) + ("" if spread is None else f" ± {100 * spread:.1f}")


def verdict(one: Contest, p: float | None) -> str:
    """``distilled``, ``coreset`` or ``level``."""
    if p is None or p >= LEVEL:
        return "level"
    return "distilled" if one.apart.test.difference > 0 else "coreset"


def turns(every: Sequence[Contest], ps: Sequence[float | None]) -> list[str]:
    """Who is ahead at which budget, between which budgets that changes, and from where on learning gains nothing."""
    words = {
        "distilled": "the distilled set is ahead",
        "coreset": "the coreset is ahead",
        "level": "no difference shows",
    }
    said = []
    for kind in dict.fromkeys(one.kind for one in every):
        stands = [(one.ipc, verdict(one, p)) for one, p in zip(every, ps, strict=True) if one.kind == kind]
        decided = [(ipc, ahead) for ipc, ahead in stands if ahead != "level"]
        crossed = [f"between {a} and {b}" for (a, before), (b, after) in pairwise(decided) if before != after]
        where = f"The lines cross {', '.join(crossed)} images per class." if crossed else "No line crosses the other."
        gains = [ahead == "distilled" for _, ahead in stands]
        if True in gains and not gains[-1]:
            last = len(gains) - 1 - gains[::-1].index(True)
            where += f" Learning stops paying between {stands[last][0]} and {stands[last + 1][0]}."
        each = "; ".join(f"at {ipc}, {words[ahead]}" for ipc, ahead in stands)
        said.append(f"**{kind.capitalize()} labels**: {each}.{f' {where}' if len(stands) > 1 else ''}")
    return said


def pairs(every: Sequence[Contest]) -> str:
    """How many pairs differ significantly, in which direction."""
    tests = []
    for one in every:
        for a, b in product(*([s for s in one.sides if s.chosen == chosen] for chosen in (False, True))):
            found, shared = between(a.line, b.line), len(a.line.scores.keys() & b.line.scores.keys())
            tests.append((one, found if shared >= SEEDS_FOR_BEST else replace(found, p=None)))
    ps = iter(holm([t.p for _, t in tests if t.p is not None]))
    judged = [(one, t.difference, None if t.p is None else next(ps)) for one, t in tests]
    body = []
    for one in every:
        own = [(d, p) for other, d, p in judged if other is one]
        ahead, behind = (sum(p is not None and p < LEVEL and sign * d > 0 for d, p in own) for sign in (1, -1))
        untested = sum(p is None for _, p in own)
        body.append(
            [
                str(one.ipc),
                one.kind,
                str(len(own)),
                *map(str, (ahead, behind, len(own) - ahead - behind - untested, untested)),
            ]
        )
    return table(
        ["ipc", "labels", "pairs", "distilled ahead", "coreset ahead", "no difference shows", "not tested"], body
    )


def methods(every: Sequence[Contest]) -> str:
    body = []
    for one in every:
        for side in sorted(one.sides, key=lambda s: -s.validation):
            row = side.line.row
            cost = [
                f"{row.distil_seconds or 0:.0f}",
                f"{row.expert_seconds or 0:.0f}",
                f"{row.label_bytes or 0:,.0f}",
            ]
            what = "coreset" if side.chosen else "distilled"
            body.append(
                [
                    str(one.ipc),
                    one.kind,
                    f"`{side.name}`",
                    what,
                    percent([side.validation]),
                    result(side),
                    str(len(side.line.scores)),
                    *cost,
                ]
            )
    return table(
        [
            "ipc",
            "labels",
            "method",
            "images",
            "validation %",
            "test %",
            "seeds",
            "distil s",
            "experts s",
            "label bytes",
        ],
        body,
    )
