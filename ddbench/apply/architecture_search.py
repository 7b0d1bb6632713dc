"""``ddbench apply architecture-search``: do architectures rank alike on a distilled set and on the real data?

The experiment of DC (Zhao et al., ICLR 2021): every architecture of a grid is trained on each proxy, which is cheap,
and on the whole training set, which is what one wants to know.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from statistics import mean
from typing import Any

import numpy as np
from torch import Tensor

from ddbench.apply.continual import Record, Report, Target, lessons, text_table
from ddbench.base.cache import lock
from ddbench.base.options import describe, label, make, options
from ddbench.base.progress import report
from ddbench.base.seeds import Seed
from ddbench.errors import UsageError
from ddbench.grade.selection import best_lr
from ddbench.grade.student import accuracy
from ddbench.problem.starts import teach
from ddbench.results.tables import Table
from ddbench.run.defaults import BASELINE, NETWORK
from ddbench.train.fit import Recipe, Student, fit
from ddbench.train.network import Network

# Small enough for a CPU. DC's 720: width 32,64,128,256, depth 1,2,3,4, activation sigmoid,relu,leakyrelu,
# norm none,batch,layer,instance,group, pooling none,max,avg.
GRID = {"depth": ("1", "2", "3"), "width": ("16", "32"), "norm": ("none", "instance", "batch")}
DISTILLED, RANDOM, EARLY, WHOLE = "distilled", "random images", "early stopping", "whole training set"
PROXIES = (DISTILLED, RANDOM, EARLY)
DRAWS = 2000  # of the bootstrap

Train = Callable[[Network, Seed], Tensor]  # -> vector


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of n architectures, with the 95 % interval of a bootstrap over them."""

    value: float | None
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        if self.value is None:
            return "none"
        return f"{self.value:.2f}" + ("" if self.low is None else f" [{self.low:.2f}, {self.high:.2f}]")


def correlation(scores: Sequence[float], reference: Sequence[float], seed: Seed) -> Correlation:
    """How alike two lists of accuracies rank; None where fewer than three, or all equal, say nothing."""
    from scipy.stats import rankdata, spearmanr

    x, y = np.asarray(scores, dtype=float), np.asarray(reference, dtype=float)
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(None, None, None, len(x))
    value = float(spearmanr(x, y).statistic)  # type: ignore[union-attr]
    with seed.scope():
        rows = np.random.randint(len(x), size=(DRAWS, len(x)))
    a, b = (rankdata(v[rows], axis=1) - (len(x) + 1) / 2 for v in (x, y))
    spread = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    told = spread > 0  # a draw of equal accuracies has no ranking
    drawn = (a * b).sum(1)[told] / spread[told]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Correlation(value, float(low), float(high), len(x))


def top_half(reference: Sequence[float]) -> list[int]:
    """Which are the better half of the architectures (rounded up), by the whole training set."""
    order = sorted(range(len(reference)), key=lambda i: (-reference[i], i))
    return sorted(order[: math.ceil(len(order) / 2)])


# --------------------------------------------------------------------------------- the grid


def architectures(base: Any, given: Mapping[str, Sequence[str]]) -> tuple[list[Any], dict[str, str]]:
    """Every combination of the grid's options on top of ``base``, and those that cannot be, with the reason.

    ``given`` replaces the values of the options that it names in ``GRID``, which is for ``convnet``.
    """
    cls, known = type(base), {f.name for f in fields(base)}
    grid = {**(GRID if base.name == NETWORK else {}), **given}
    if not grid:
        raise UsageError(f"there is no grid for network {base.name!r}; name one, such as --grid OPTION=VALUE,VALUE")
    if unknown := set(grid) - known:
        valid = ", ".join(sorted(known))
        raise UsageError(f"network {base.name!r} has no option {min(unknown)!r} (valid options: {valid})")
    for name, values in grid.items():
        for value in values:
            make(cls, {name: value}, "grid")  # one that is wrong by itself is a mistake, not an architecture
    made, unfit = [], {}
    for combination in product(*grid.values()):
        chosen = dict(zip(grid, combination, strict=True))
        try:
            made.append(make(cls, options(base) | chosen, "network"))
        except UsageError as error:
            unfit[", ".join(f"{name}={value}" for name, value in chosen.items())] = str(error)
    return list(dict.fromkeys(made)), unfit


def fitting(sources: Sequence[Any], shape: tuple[int, int, int], classes: int) -> tuple[list[Any], dict[str, str]]:
    """The architectures that take images of ``shape``, and the others with the reason."""
    fit_, unfit = [], {}
    for source in sources:
        try:
            assert Network(source, shape, classes).parameters
            fit_.append(source)
        except UsageError as error:
            unfit[label(source)] = str(error)
    return fit_, unfit


# --------------------------------------------------------------------------------- training


def trainers(target: Target, record: Record) -> dict[str, Train]:
    """How an architecture is trained on each proxy and on the whole training set.

    The learning rate belongs to the data, not to the architecture: the distilled set brings its own; the others' are
    selected from the protocol's grid on validation data, with the network that the set was made for.
    """

    def by(name: str) -> Train:
        memory, teaching = lessons(target, record, name)
        return lambda network, seed: teach(network, Student(network.init(seed / "init")), memory, teaching, seed).vector

    made = {DISTILLED: by("distilled"), RANDOM: by(BASELINE)}
    return made | {name: _on_real(target, record, name, recipe) for name, recipe in real_recipes(target).items()}


def real_recipes(target: Target) -> dict[str, Recipe]:
    """Early stopping takes the optimiser steps of students of the distilled set; the reference what a ceiling takes."""
    work, base = target.evaluation, replace(target.teaching.recipe, online=False)
    steps = work.distilled.teaching.total(work.distilled.curriculum)
    epochs = max(work.protocol.ceiling_epochs, math.ceil(steps / math.ceil(len(work.dataset.train) / base.batch)))
    return {EARLY: replace(base, steps=steps, epochs=None), WHOLE: replace(base, steps=None, epochs=epochs)}


def _on_real(target: Target, record: Record, name: str, recipe: Recipe) -> Train:
    train, rules = target.evaluation.dataset.train, target.evaluation.protocol

    def once(network: Network, seed: Seed, lr: float) -> Tensor:
        return fit(network, Student(network.init(seed / "init")), train, recipe, seed, lr=lr, what=name).vector

    def best() -> float:
        grid = rules.lrs or (rules.lr,)
        if len(grid) == 1:
            return grid[0]
        network, validation = target.network, target.evaluation.dataset.validation
        seeds = [Seed(target.seed) / "selection" / i for i in range(rules.judges)]
        found = {lr: mean(accuracy(network, once(network, s, lr), validation) for s in seeds) for lr in grid}
        return best_lr(found)

    lr = record.get(f"lr/{name}", best)
    return lambda network, seed: once(network, seed, lr)


def _trained(target: Target, source: Any, name: str, train: Train) -> dict[str, Any]:
    """One architecture on one kind of data: its students' accuracies, on test data for the reference alone."""
    work = target.evaluation
    network = replace(target.network, source=source)
    judged, scores, seconds = (work.dataset.test if name == WHOLE else work.dataset.validation), [], 0.0
    for i in range(work.students):
        began = time.monotonic()
        vector = train(network, Seed(target.seed) / "architecture" / i)
        seconds += time.monotonic() - began
        scores.append(accuracy(network, vector, judged))
    return {"accuracies": scores, "seconds": seconds, "parameters": network.parameters}


def architecture_search(target: Target, grid: Mapping[str, Sequence[str]]) -> Report:
    """Rank the grid's architectures on every proxy, and compare the rankings with that of the whole training set."""
    sources, impossible = architectures(target.evaluation.distilled.network, grid)
    sources, too_small = fitting(sources, target.network.shape, target.network.classes)
    unfit = impossible | too_small
    if len(sources) < 3:
        said = "; ".join(unfit.values())
        raise UsageError(f"{len(sources)} architectures cannot be ranked, three or more can; widen --grid ({said})")
    identity = target.identity | {"version": 1, "architectures": [describe(s) for s in sources]}
    record = Record.open(target.folder, "architecture-search", identity, target.about)
    with lock(record.path.with_suffix(".lock"), wait=False):
        train = trainers(target, record)
        for done, (source, name) in enumerate(product(sources, train), start=1):
            record.get(f"{name}/{label(source)}", lambda s=source, n=name: _trained(target, s, n, train[n]))
            report("architectures", done, len(sources) * len(train))
        found = [_architecture(record, source) for source in sources]
        rows = [_row(target, name, found) for name in (*PROXIES, WHOLE)]
        held = record.save(complete=True, rows=rows, architectures=found, unfit=unfit)
    return Report(_tables(target, rows, found, _notes(target, unfit)), rows, held)


# --------------------------------------------------------------------------------- what is shown


def _architecture(record: Record, source: Any) -> dict[str, Any]:
    """Accuracy and seconds of an architecture on each kind of data."""
    held = {name: record.results[f"{name}/{label(source)}"] for name in (*PROXIES, WHOLE)}
    row = {"architecture": label(source), "parameters": held[WHOLE]["parameters"]}
    row |= {name: mean(h["accuracies"]) for name, h in held.items()}
    return row | {f"{name} seconds": h["seconds"] for name, h in held.items()}


def _row(target: Target, name: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """How well one kind of data ranks, what it would have chosen, and what that took."""
    scores, reference = [f[name] for f in found], [f[WHOLE] for f in found]
    seconds = sum(f[f"{name} seconds"] for f in found)
    chosen = [f[WHOLE] for f in found if f[name] == max(scores)]
    row = {"data": name, "seconds": seconds, "chosen": mean(chosen), "tied": len(chosen), "best": max(reference)}
    if name == WHOLE:
        return row
    seed, half = Seed(target.seed) / "architecture" / "bootstrap", top_half(reference)
    over = {"all": range(len(found)), "top_half": half}
    for where, rows in over.items():
        c = correlation([scores[i] for i in rows], [reference[i] for i in rows], seed / where)
        row |= {f"spearman_{where}": c.value, f"{where}_low": c.low, f"{where}_high": c.high, f"{where}_n": c.n}
    return row


def _tables(
    target: Target, rows: list[dict[str, Any]], found: list[dict[str, Any]], notes: Sequence[str]
) -> tuple[Table, Table]:
    shown = []
    for row in rows:
        cells = {"trained on": row["data"]}
        for where, title in (("all", "rank correlation"), ("top_half", "of the top half")):
            known = [row.get(n) for n in (f"spearman_{where}", f"{where}_low", f"{where}_high")]
            cells[title] = "" if row["data"] == WHOLE else str(Correlation(*known, n=0))
        tied = f" (mean of {row['tied']} tied)" if row["tied"] > 1 else ""
        cells |= {"its choice, test %": f"{100 * row['chosen']:.1f}{tied}", "seconds": f"{row['seconds']:.0f}"}
        shown.append(cells)
    each = [
        {"architecture": f["architecture"], "parameters": f"{f['parameters']:,}"}
        | {f"{name} %": f"{100 * f[name]:.1f}" for name in (*PROXIES, WHOLE)}
        for f in found
    ]
    title = f"{target.title}: ranking of {len(found)} architectures"
    judged = "accuracy: of proxies on validation data, of the whole training set on test data"
    return text_table(title, shown, notes), text_table(judged, each)


def _notes(target: Target, unfit: dict[str, str]) -> tuple[str, ...]:
    said = (
        f"Spearman's correlation with the test accuracy after the whole training set, [95 % bootstrap over "
        f"architectures]; {target.evaluation.students} network(s) each, {target.threads} thread(s)",
    )
    return said + tuple(f"left out: {name}: {reason}" for name, reason in unfit.items())
