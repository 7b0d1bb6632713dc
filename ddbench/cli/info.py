"""``list``, ``info``, ``prepare`` and ``check-grad``: what there is, whether it is here, and right."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddbench.base.options import option_text
from ddbench.cli import console
from ddbench.cli.about import about_plugin
from ddbench.cli.options import JSON, OPTIONS, OUT, QUIET
from ddbench.errors import DataError, DDBenchError, UsageError, did_you_mean
from ddbench.run.defaults import MATCHER, NETWORK

if TYPE_CHECKING:
    from ddbench.data.dataset import Dataset
    from ddbench.hookspecs import DatasetSource
    from ddbench.plugins import Plugin
    from ddbench.run.row import Row

SHOWN_CLASSES = 12


@click.command("list")
@click.argument(
    "what",
    default="matchers",
    type=click.Choice(["matchers", "schedulers", "datasets", "networks", "metrics", "executors", "runs"]),
)
@OUT
@JSON
def list_(what: str, out: Path, as_json: bool) -> int:
    """List plugins of a kind, or the runs in --out."""
    _show_list(what, out, as_json)
    return 0


@click.command()
@click.argument("dataset")
@OPTIONS
@JSON
@QUIET
def prepare(dataset: str, options: tuple, as_json: bool, quiet: bool) -> int:
    """Download, decode and measure a dataset ahead of a run."""
    console.warn_broken()
    _prepare(dataset, options, quiet=quiet, as_json=as_json)
    return 0


@click.command()
@click.argument("name")
@OPTIONS
@JSON
def info(name: str, options: tuple, as_json: bool) -> int:
    """Describe a plugin: options, recipes with their sources; of a dataset also sizes, statistics, licence."""
    _show_info(name, options, as_json)
    return 0


@click.command("check-grad")
@click.option("--matcher", default=MATCHER, show_default=True)
@click.option("--steps", default=15, show_default=True, type=click.IntRange(1), help="Student steps.")
@click.option("--lr", default=0.01, show_default=True, type=click.FloatRange(min=0, min_open=True), help="Student lr.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@OPTIONS
@JSON
def check_grad(as_json: bool, **given: Any) -> int:
    """Compare a matcher's gradient with the autograd unroll on a small network, in float64."""
    _show_gradient_check(as_json=as_json, **given)
    return 0


def _show_list(what: str, out: Path, as_json: bool) -> None:
    """Plugins of a kind with their first line, or runs with their status."""
    from ddbench.plugins import paper, registry
    from ddbench.run.folder import SET_ASIDE, readable, rows, run_folders

    if what == "runs":
        found = rows(readable(run_folders(out, set_aside=True)))
        found = [dataclasses.replace(row, status="replaced") if SET_ASIDE in (row.run or "") else row for row in found]
        columns: tuple[str, ...] = ("run", "status", "dataset", "matcher", "scheduler", "ipc", "seed")
        columns += ("accuracy_mean", "accuracy_std", "n", "error")
        body = [[getattr(row, c) for c in columns] for row in found]
        if not as_json:  # names say the rest
            _show_runs(found)
            return
    else:
        kind = what.removesuffix("s")
        with_paper = kind in ("matcher", "scheduler")
        columns = ("name", "summary", *(("paper",) if with_paper else ()), "package")
        chosen = [registry().get(kind, name) for name in registry().names(kind)]
        papers = [[paper(p)[0]] if with_paper else [] for p in chosen]
        body = [
            [p.name, _summary(p.cls), *told, f"{p.package} {p.version}"] for p, told in zip(chosen, papers, strict=True)
        ]
    if as_json:
        console.data_json([dict(zip(columns, line, strict=True)) for line in body])
    elif body:
        console.table(what, columns, body)
    else:
        console.say(f"no {what} here")


def _show_runs(found: Sequence[Row]) -> None:
    """Names of runs, each in one piece whatever the width, how they stand and what their students reach."""
    from ddbench.results.tables import cell

    columns = {"run": "run", "status": "status", "accuracy_mean": "accuracy %", "n": "n", "error": "error"}
    names = [name for name in columns if name != "error" or any(row.error for row in found)]
    body = [[cell(name, row.cells) for name in names] for row in found]
    if not body:
        console.say("no runs here")
        return
    titles = [columns[name] for name in names]
    least = [max(map(len, (title, *cells))) for title, *cells in zip(titles, *body, strict=True)]
    console.table("runs", titles, body, least=[*least[:4], *(20 for _ in least[4:])])


def _summary(cls: type) -> str:
    return (inspect.getdoc(cls) or "").split("\n")[0]


def _find(name: str) -> list[Plugin]:
    """All plugins called ``name``, of whatever kind; or an error with the nearest name."""
    from ddbench.plugins import KINDS, registry

    found = [p for (_, n), p in registry().plugins.items() if n == name]
    if not found:
        broken = registry().broken
        if own := [b for b in broken if b.name == name]:
            raise DataError(f"{name!r} is not available: {own[0]}")
        names = sorted({n for _, n in registry().plugins})
        lost = "".join(f"; {b}" for b in broken)  # it may be what one of them brings
        raise UsageError(f"nothing is called {name!r}{did_you_mean(name, names)} (there are: {', '.join(names)}){lost}")
    return sorted(found, key=lambda p: KINDS.index(p.kind))


def _show_info(name: str, flags: tuple[tuple[str, str], ...], as_json: bool) -> None:
    """The docstring, options and recipes of every plugin with this name; of a dataset, what its data are."""
    found = _find(name.partition(":")[0])
    if flags and not any(plugin.kind == "dataset" for plugin in found):
        raise UsageError(f"{name!r} is not a dataset; only what a dataset holds depends on options")
    data = {p.name: _described(name, flags, get=False) for p in found if p.kind == "dataset"}
    if as_json:
        console.data_json([about_plugin(p) | ({"data": data[p.name]} if p.kind == "dataset" else {}) for p in found])
        return
    for plugin in found:
        about = about_plugin(plugin)
        console.data(f"{plugin.kind} {plugin.name} ({plugin.package} {plugin.version})\n")
        console.markdown(about["doc"])
        columns = ("option", "type", "default", "what")
        body = [[option_text(o[c]) if c == "default" else o[c] for c in columns] for o in about["options"]]
        longest = max((len(o["option"]) for o in about["options"]), default=6)
        console.table("options", columns, body, least=(longest, 14, 7, 20))
        if about["recipes"]:
            console.table("recipes", ("recipe", "options"), [_recipe(r) for r in about["recipes"]], least=(30, 30))
        if plugin.kind == "dataset":
            known = data[plugin.name]
            if shown := known["about"] | (known["measured"] or {}):
                console.table(f"dataset {plugin.name}", ("", ""), _body(shown))
            if known["missing"] and hasattr(plugin.cls, "missing"):
                console.say(
                    f"no data here: {known['missing']}; `ddbench prepare {name}` makes it ready, or says what it lacks"
                )
            elif known["missing"]:
                console.say(known["missing"])


def _recipe(recipe: dict[str, Any]) -> list[str]:
    """What a recipe is for and where it comes from, and its options, one a line."""
    checked = "verified" if recipe["verified"] else "not verified"
    about = f"{recipe['recipe']}, for {recipe['match']}"
    return [
        f"{about}\nrun by ddbench: {recipe['record']}\n{checked}; {recipe['source']}\n",
        recipe["options"].replace(" ", "\n"),
    ]


def _show_gradient_check(
    *, matcher: str, steps: int, lr: float, seed: int, options: tuple[tuple[str, str], ...], as_json: bool
) -> None:
    """Relative error, cosine and ratio of norms of a matcher's gradient against the autograd unroll."""
    from ddbench.base.options import make
    from ddbench.hookspecs import Differentiating
    from ddbench.plugins import registry
    from ddbench.run.spec import split_flags
    from ddbench.trajectory.check import compare_gradients

    given = split_flags(options)
    if set(given) - {"matcher"}:
        raise UsageError("check-grad takes options of the matcher only, such as -o matcher.curvature=exact")
    method = make(registry().get("matcher", matcher).cls, given.get("matcher", {}), "matcher")
    if not isinstance(method, Differentiating):
        raise UsageError(f"matcher {matcher!r} does not differentiate an unroll: there is nothing to check")
    small = make(registry().get("network", NETWORK).cls, {"width": 8, "depth": 2}, "network")
    found = compare_gradients(method.differentiate, small, steps=steps, lr=lr, seed=seed)
    if as_json:
        console.data_json({"matcher": matcher, "steps": steps, "lr": lr, "seed": seed, "gradients": found})
        return
    columns = ("gradient", "relative error", "cosine", "norm ratio")
    body = [
        [f["gradient"], f"{f['relative_error']:.3g}", f"{f['cosine']:.6f}", f"{f['norm_ratio']:.4f}"] for f in found
    ]
    title = f"{matcher} against the autograd unroll: {steps} steps at lr {lr:g}, float64"
    console.table(title, columns, body)


def _prepare(name: str, flags: tuple[tuple[str, str], ...], *, quiet: bool, as_json: bool) -> None:
    """Download, decode, check and measure a dataset, so that a run can begin at once; then show what it is."""
    from ddbench.base import cache

    with console.working(quiet), cache.thoroughly():
        found = _described(name, flags, get=True)
    if as_json:
        console.data_json(found)
    else:
        body = _body(found["about"] | found["measured"])
        console.table(f"dataset {name} is ready", ("", ""), body)


def _described(name: str, flags: tuple[tuple[str, str], ...], *, get: bool) -> dict[str, Any]:
    """All that is known of a dataset: ``about``, and what was measured if the data are here or ``get`` is set."""
    from ddbench.base.options import options
    from ddbench.plugins import about, loaded, missing

    plugin = _source(name, flags)
    lacking = None if get else missing(plugin)
    known: dict[str, Any] = {
        "options": options(plugin),
        "about": about(plugin),
        "missing": lacking,
        "measured": None,
    }
    if lacking is None:
        try:
            known["measured"] = _measured(loaded(plugin))
        except DDBenchError as error:
            if get:
                raise
            known["missing"] = str(error)
    return known


def _source(name: str, flags: tuple[tuple[str, str], ...]) -> DatasetSource:
    """The dataset source ``name`` with the options given as ``dataset.NAME=VALUE``."""
    from ddbench.base.options import make
    from ddbench.plugins import registry
    from ddbench.run.spec import split_dataset, split_flags

    name, main = split_dataset(name)
    given = split_flags((*main, *flags))
    if wrong := set(given) - {"dataset"}:
        raise UsageError(f"only options of the dataset can be given here, not of {', '.join(sorted(wrong))}")
    return make(registry().get("dataset", name).cls, given.get("dataset", {}), "dataset")


def _measured(data: Dataset) -> dict[str, Any]:
    """Sizes, classes, statistics and digest of loaded data, as JSON."""
    import torch

    counts = torch.bincount(data.train.targets, minlength=len(data.classes))
    preprocessing = data.train.preprocessing
    statistics: dict[str, Any] = {"preprocessing": preprocessing.kind}
    if preprocessing.std is not None:
        statistics |= {name: [round(v, 4) for v in t.tolist()] for name, t in preprocessing.tensors().items()}
    return {
        "name": data.name,
        "train images": len(data.train),
        "validation images": len(data.validation),
        "test images": len(data.test),
        "classes": list(data.classes),
        "train images per class": [int(counts.min()), int(counts.max())],
        "shape (channels, height, width)": list(data.train.shape),
        **statistics,
        "augmentation": data.augment,
        "digest": data.digest,
        **data.facts,
    }


def _body(record: dict[str, Any]) -> list[list[str]]:
    """What is known as the lines of a two-column table."""
    return [[name, _fact(name, value)] for name, value in record.items()]


def _fact(name: str, value: Any) -> str:
    if name == "classes":
        names = ", ".join(value[:SHOWN_CLASSES]) + (", ..." if len(value) > SHOWN_CLASSES else "")
        return f"{len(value)}: {names}"
    if name == "train images per class":
        return f"{value[0]:,}" if value[0] == value[1] else f"{value[0]:,} to {value[1]:,}"
    if name.startswith("shape"):
        return " x ".join(str(n) for n in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {inner}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(str(v) for v in value)
    return f"{value:,}" if isinstance(value, int) else str(value)
