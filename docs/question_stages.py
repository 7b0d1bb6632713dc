"""``questions/stages.md``: one set learned at once or in stages, and students whose learning rate starts anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from statistics import fmean
from typing import Any

from question_tables import (
    MADE,
    NOTHING,
    Compared,
    corrected,
    few,
    percent,
    places,
    row_of,
    setting,
    shown,
    table,
)

from ddbench.results.aggregate import Line, aggregate
from ddbench.results.differences import LEVEL, SEEDS_FOR_BEST
from ddbench.run.below import soft
from ddbench.run.defaults import ONE_STAGE

ORDER = (ONE_STAGE, "pdd", "restarts")
BESIDE = (("pdd", ONE_STAGE), ("restarts", ONE_STAGE), ("pdd", "restarts"))
FLAT = 0.02  # by which the last tenth of the iterations may differ from the tenth before

HEAD = f"""# Are stages worth it?

{MADE}

Progressive distillation (PDD; Chen et al., ICLR 2024) learns a set in stages: each stage distils what networks that
were taught the stages before still lack, and students see the stages one after another. Its students differ from those
of one set in two ways, since their learning rate and momentum start anew with every stage. Schedule `restarts` has one
set and these fresh starts alone. Here are all three for the same images per class and the same student steps:
what `pdd` adds to `restarts` is due to stages.

Iterations are per stage, as many as it takes until the matching loss is flat, so that two stages cost more than one.
Learning rates are chosen on validation data, seed by seed, and each seed has experts of its own.

```sh
DDBENCH_CIFAR10_ZIP=cifar10.zip ddbench suite run cifar10-jpeg --only seeds=0 --out runs
DDBENCH_CIFAR10_ZIP=cifar10.zip python benchmarks/questions.py stages --only seeds=0 --out runs
python docs/questions.py
```

Rows go to `docs/results/questions-stages.json.gz`; the
[suite](../../leaderboards/suites/cifar10-jpeg.toml) has the settings. Intervals are 95 % (Student's t over seeds, of
differences seed by seed); p is Holm-corrected over the table. A seed is the mean of its students."""

Lines = dict[str, dict[str, Line]]  # by method and schedule


def stages_page(held: Sequence[dict[str, Any]]) -> str:
    """The page on stages."""
    parts = [HEAD]
    for (dataset, ipc, *_), rows in places(held, "dataset", "ipc", "dataset_digest", "network", "protocol_digest"):
        parts += [f"## {dataset}, {ipc} images per class", *_section(rows)]
    return "\n\n".join([*parts, *([] if held else [NOTHING])]) + "\n"


def _section(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines: Lines = {}
    for line in aggregate([row_of(row) for row in rows]):
        if line.scores:
            labels = " with soft labels" if soft(line.row) else ""
            lines.setdefault(f"`{line.row.matcher}`{labels}", {})[str(line.row.scheduler)] = line
    text, said = differences(lines)
    return [
        setting(rows, sorted({row["seed"] for row in rows})),
        "\n".join(f"- {one}" for one in said) if len(said) > 1 else said[0],
        "One schedule beside another, in points:",
        text,
        "Every schedule, ± deviation over seeds. Schedules share experts; seconds are those of whoever trained them:",
        results(lines),
        "What each stage matched: the first and the last tenth of its iterations, means over seeds. A stage is flat "
        f"where its last tenth differs from the tenth before by at most {FLAT:.0%}:",
        matched(lines, {row["run"]: row for row in rows}),
    ]


def differences(lines: Lines) -> tuple[str, list[str]]:
    """Each pair of schedules of each method, seed by seed, and a sentence for each method."""
    keys = [(m, a, b) for m, (a, b) in product(lines, BESIDE) if a in lines[m] and b in lines[m]]
    apart = []
    for method, a, b in keys:
        one, other = lines[method][a].scores, lines[method][b].scores
        apart.append(Compared([one[seed] - other[seed] for seed in one if seed in other]))
    kept = [(key, c) for key, c in zip(keys, apart, strict=True) if c.values]
    if not kept:
        return "No pair has a seed in common.", [few(0)]
    ps = corrected([c for _, c in kept])
    body = [
        [method, f"`{a}` to `{b}`", c.text, shown(p), str(len(c.values))]
        for ((method, a, b), c), p in zip(kept, ps, strict=True)
    ]
    fewest = min(len(c.values) for _, c in kept)
    found = {key: (c.test.difference, p) for (key, c), p in zip(kept, ps, strict=True)}
    said = [_verdict(m, found) for m in lines if any(key[0] == m for key in found)]
    return (
        table(["method", "schedules", "difference", "p", "seeds"], body),
        said if fewest >= SEEDS_FOR_BEST else [few(fewest)],
    )


def _verdict(method: str, found: Mapping[tuple[str, str, str], tuple[float, float | None]]) -> str:
    """``tesla``: `pdd` is below `single`; ..."""
    words = []
    for a, b in BESIDE:
        if (method, a, b) in found:
            difference, p = found[method, a, b]
            sure = p is not None and p < LEVEL
            stands = f"{'above' if difference > 0 else 'below'}" if sure else "not different from"
            words.append(f"`{a}` is {stands} `{b}`")
    return f"{method}: {'; '.join(words)}."


def _places(lines: Lines) -> list[tuple[str, str, Line]]:
    known = [(m, s) for m in lines for s in sorted(lines[m], key=lambda s: (ORDER.index(s) if s in ORDER else 9, s))]
    return [(m, s, lines[m][s]) for m, s in known]


def results(lines: Lines) -> str:
    body = []
    for method, schedule, line in _places(lines):
        row, seen = line.row, [r.selected_accuracy for r in line.rows if r.selected_accuracy is not None]
        spread = "" if row.accuracy_std is None or len(line.scores) < 2 else f" ± {100 * row.accuracy_std:.1f}"
        costs = [f"{v or 0:.0f}" for v in (row.distil_seconds, row.expert_seconds, row.selection_seconds)]
        accuracy = percent(list(line.scores.values())) + spread
        body.append([method, f"`{schedule}`", percent(seen) if seen else "", accuracy, str(len(line.scores)), *costs])
    return table(
        ["method", "schedule", "validation %", "test %", "seeds", "distil s", "experts s", "selection s"], body
    )


def matched(lines: Lines, rows: Mapping[str, dict[str, Any]]) -> str:
    body = []
    for method, schedule, line in _places(lines):
        runs = [rows[str(row.run)].get("stages") or [] for row in line.rows]
        for stage in range(max(map(len, runs))):
            own = [run[stage] for run in runs if stage < len(run)]
            ends = [f"{fmean(one[end] for one in own):.4g}" for end in ("first", "last")]
            flat = sum(abs(one["change"]) <= FLAT for one in own)
            body.append([method, f"`{schedule}`", str(stage + 1), *ends, f"{flat} of {len(own)}"])
    return table(["method", "schedule", "stage", "first", "last", "flat in"], body) if body else "No losses on record."
