"""The page ``questions/labels.md``: how much of a gain is due to images, to labels, to augmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations, product
from statistics import fmean
from typing import Any

from question_tables import (
    MADE,
    NOTHING,
    Compared,
    corrected,
    few,
    listed,
    percent,
    places,
    points,
    setting,
    shown,
    table,
)

from ddbench.apply.controls import LABELS
from ddbench.results.differences import LEVEL, SEEDS_FOR_BEST
from ddbench.run.defaults import BASELINE

FACTORS = ("images", "labels", "augmentation")
WORDS = {"hard": "hard", "soft": "fixed soft", "online": "online"}
HEAD = f"""# Images, labels or augmentation?

{MADE}

A student of a distilled set learns from images, from labels, and from what augmentation makes of both. Published
numbers hold all three, and with soft labels random images are said to do as well as distilled ones (Dey et al.,
"Rethinking Dataset Distillation: Hard Truths about Soft Labels", CVPR 2026,
[arXiv 2604.18811](https://arxiv.org/abs/2604.18811)). Here every set is graded with three kinds of labels, at the same
number of student steps and the learning rate that does best on validation data:

- **hard**: the class;
- **fixed soft**: what the method stores, or, for hard-labelled sets and real images, the mean prediction of the experts
  that label random images;
- **online**: one of these experts labels every augmented batch while the student learns; *label bytes* are then those
  of that expert.

Beside each set stand *random* images and images that are *as hard*: each distilled image is paired with a real one of
its class so that the differences in difficulty add up to the least there is, and no image is taken twice. Difficulty is
EL2N under the same experts; [controls](../evaluation.md#controls) says why.

```sh
ddbench suite run questions-labels --only dataset=digits --out runs
python benchmarks/questions.py labels --only dataset=digits --out runs
python docs/questions.py
```

The rows are in `docs/results/questions-labels.json.gz`. MNIST and a CPU-sized CIFAR-10 are other parts of the
[suite](../../leaderboards/suites/questions-labels.toml). Intervals are 95 % (Student's t over seeds, of differences
seed by seed); p is Holm-corrected over each table. A seed is the mean of its students."""

Cell = tuple[str, str, bool]  # images, labels, whether they are augmented


def shares(value: Mapping[tuple[bool, ...], float]) -> list[float]:
    """What each factor adds, the mean over all orders in which they may be changed (Shapley, 1953).

    ``value`` is known for every corner: for each factor whether it is changed. The shares add up to the whole change.
    """
    count = len(next(iter(value)))
    added = [0.0] * count
    orders = list(permutations(range(count)))
    for order in orders:
        at = [False] * count
        for factor in order:
            before = value[tuple(at)]
            at[factor] = True
            added[factor] += (value[tuple(at)] - before) / len(orders)
    return added


def labels_page(held: Sequence[dict[str, Any]]) -> str:
    """The page on what gains are due to."""
    parts = [HEAD]
    for (dataset, ipc, *_), rows in sorted(
        places(held, "dataset", "ipc", "dataset_digest", "network", "protocol_digest"), key=lambda p: (p[0][0], p[0][1])
    ):
        parts += [f"## {dataset}, {ipc} image{'s' if ipc > 1 else ''} per class", *label_section(rows)]
    return "\n\n".join([*parts, *([] if held else [NOTHING])]) + "\n"


def label_section(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The two tables of one budget, and what they say."""
    methods: dict[str, dict[Any, dict[Cell, dict[str, Any]]]] = {}
    for row in rows:
        cells = {(c["images"], c["labels"], c["augmentation"] == "on"): c for c in row["controls"]}
        methods.setdefault(row["matcher"], {})[row["seed"]] = cells
    whole = {name: by_seed for name, by_seed in methods.items() if len(by_seed) >= SEEDS_FOR_BEST}
    waiting = sorted(set(methods) - set(whole)) if whole else []  # methods that are still being run change no table
    methods = whole or methods
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in methods.values())))
    if not seeds:
        return ["No seed is on record for all methods."]
    runs = {name: [by_seed[seed] for seed in seeds] for name, by_seed in sorted(methods.items())}
    body, found = equal_labels(runs)
    said = label_findings(runs, found) if len(seeds) >= SEEDS_FOR_BEST else [few(len(seeds))]
    left = [f"On record with fewer than {SEEDS_FOR_BEST} seeds, and in no table: {listed(waiting)}."] if waiting else []
    return [
        setting(rows, seeds),
        *left,
        "\n".join(f"- {text}" for text in said) if len(said) > 1 else said[0],
        "At equal labels, with augmentation:",
        body,
        "What the gain over random images with hard labels and without augmentation is due to, in points. Each part is "
        "the mean over the six orders in which images, labels and augmentation can be changed (Shapley), so that the "
        "parts add up:",
        due_to(runs),
        "How hard the images are (mean EL2N under the experts, from 0 to 1.41), over the seeds:",
        hardness(runs),
    ]


def accuracies(cells: Sequence[Mapping[Cell, dict[str, Any]]], cell: Cell) -> list[float]:
    """The accuracy of one cell, seed by seed."""
    return [by_cell[cell]["accuracy_mean"] for by_cell in cells]


Found = dict[tuple[str, str, str], tuple[float, float | None]]  # method, labels, beside what: difference and p


def equal_labels(runs: Mapping[str, Any]) -> tuple[str, Found]:
    """Every set beside random images and images that are as hard, under each kind of labels."""
    keys = list(product(runs, LABELS, (BASELINE, "matched")))
    apart = []
    for name, kind, other in keys:
        own, others = (accuracies(runs[name], (images, kind, True)) for images in ("distilled", other))
        apart.append(Compared([a - b for a, b in zip(own, others, strict=True)]))
    ps = corrected(apart)
    found = {key: (c.test.difference, p) for key, c, p in zip(keys, apart, ps, strict=True)}
    text = dict(zip(keys, apart, strict=True))
    body = []
    for name, kind in product(runs, LABELS):
        line = [f"`{name}`", WORDS[kind]]
        line += [percent(accuracies(runs[name], (i, kind, True))) for i in ("distilled", BASELINE, "matched")]
        for other in (BASELINE, "matched"):
            line += [text[name, kind, other].text, shown(found[name, kind, other][1])]
        body.append([*line, f"{runs[name][0]['distilled', kind, True]['label_bytes']:,.0f}"])
    titles = [
        "method",
        "labels",
        "distilled %",
        "random %",
        "as hard %",
        "to random",
        "p",
        "to as hard",
        "p",
        "label bytes",
    ]
    return table(titles, body), found


def due_to(runs: Mapping[str, Any]) -> str:
    """The parts of each gain."""
    body = []
    for name, kind in product(runs, LABELS):
        parts = []
        for cells in runs[name]:
            corners = {
                corner: cells["distilled" if corner[0] else BASELINE, kind if corner[1] else "hard", corner[2]][
                    "accuracy_mean"
                ]
                for corner in product((False, True), repeat=3)
            }
            parts.append([corners[True, True, True] - corners[False, False, False], *shares(corners)])
        columns = [points(list(values)) for values in zip(*parts, strict=True)]
        if kind == "hard":
            columns[2] = ""  # hard labels are what they are compared with
        body.append([f"`{name}`", WORDS[kind], *columns])
    return table(["method", "labels", "gain", *FACTORS], body)


def hardness(runs: Mapping[str, Any]) -> str:
    sources = ("distilled", BASELINE, "matched")
    body = [
        [f"`{name}`", *(f"{fmean([c[i, 'hard', True]['difficulty'] for c in cells]):.3f}" for i in sources)]
        for name, cells in runs.items()
    ]
    return table(["method", "distilled", "random", "as hard"], body)


def label_findings(runs: Mapping[str, Any], found: Found) -> list[str]:
    """A sentence for each kind of labels and each kind of real images."""
    said = []
    for kind in LABELS:
        for other, words in ((BASELINE, "random images"), ("matched", "images that are as hard")):
            above, below = (
                [
                    n
                    for n in runs
                    if (p := found[n, kind, other][1]) is not None and p < LEVEL and sign * found[n, kind, other][0] > 0
                ]
                for sign in (1, -1)
            )
            level = [n for n in runs if n not in (*above, *below)]
            said.append(
                f"**{WORDS[kind].capitalize()} labels, beside {words}**: above {listed(above)}; not different "
                f"{listed(level)}; below {listed(below)}."
            )
    return said
