"""``ddbench suite``: a grid of runs, from a file. Parsing only."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddbench.cli import console
from ddbench.cli.options import DEVICE, JSON, OUT, QUIET, pairs
from ddbench.errors import UsageError

if TYPE_CHECKING:
    from ddbench.suite.grid import Suite
    from ddbench.suite.runner import Orders, Scene, Work


def _jobs(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | str | None:
    """A number from 1, ``auto``, or nothing."""
    if value is None or value == "auto":
        return value
    if not (value.isascii() and value.isdecimal() and 1 <= int(value) < 10**6):
        raise UsageError(f"-j must be a number of cells from 1, or auto, got {value[:40]!r}")
    return int(value)


def part(_ctx: object, _param: object, values: tuple[str, ...]) -> dict[str, set[str]]:
    """``--only AXIS=NAME,NAME``, by axis."""
    from ddbench.suite.grid import AXES

    found: dict[str, set[str]] = {}
    for value in values:
        axis, _, names = value.partition("=")
        wanted = {name.strip() for name in (names, *names.split(","))} - {""}  # a label may have commas
        if axis not in AXES or not wanted:
            raise UsageError(f"--only {value!r} must be an axis ({', '.join(AXES)}) and names: --only dataset=digits")
        found.setdefault(axis, set()).update(wanted)
    return found


@click.group()
def suite() -> None:
    """Carry out grids of runs: datasets x matchers x schedulers x ipc x networks x seeds."""


@suite.command("run")
@click.argument("file", metavar="SUITE.toml|NAME", type=click.Path(path_type=Path))
@click.option(
    "-j",
    "--jobs",
    callback=_jobs,
    metavar="N|auto",
    help="Cells at the same time; auto: as many as memory and cores hold. 1 here, without limit on a cluster.",
)
@click.option("--executor", default="local", show_default=True, help="Who carries cells out: local, ray, slurm.")
@click.option(
    "-o", "options", multiple=True, callback=pairs, metavar="executor.NAME=VALUE", help="Set an option of the executor."
)
@OUT
@click.option(
    "--on-existing",
    default="skip",
    show_default=True,
    type=click.Choice(["skip", "rerun", "fail"]),
    help="What to do about finished cells; rerun deletes their runs first.",
)
@click.option("--retry-failed", is_flag=True, help="Run failed, diverged and killed cells again.")
@click.option(
    "--dry-run", is_flag=True, help="Show every cell, what is done and what the rest will take; start nothing."
)
@click.option("--cost-device", metavar="NAME", help="Whose rates tell what cells cost: h200, a100, rtx4090, cpu.")
@click.option("--limit", type=click.IntRange(1), help="Run this many cells at most.")
@click.option(
    "--only",
    multiple=True,
    callback=part,
    metavar="AXIS=NAME,...",
    help="Run a part: cells with one of these names or labels, such as dataset=digits or ipc=1,10.",
)
@click.option("-x", "--stop-first", is_flag=True, help="Stop at the first cell that fails.")
@DEVICE
@JSON
@QUIET
def run(file: Path, jobs: int | str | None, out: Path, dry_run: bool, device: str, **given: Any) -> int:
    """Run the cells of a suite, from a file or by the name of one that comes with ddbench.

    The same command goes on after an interruption.
    """
    from ddbench.run import trackers
    from ddbench.run.cost import kind_of
    from ddbench.run.price import told
    from ddbench.suite.kept import existing, prepare
    from ddbench.suite.places import suite_file
    from ddbench.suite.placing import executor_of, places
    from ddbench.suite.runner import Orders, Work

    console.warn_broken()
    as_json, quiet, on_existing = (given.pop(name) for name in ("as_json", "quiet", "on_existing"))
    executor = executor_of(given.pop("executor"), given.pop("options"))
    packed = jobs == "auto"
    if dry_run and device == "auto" and given["cost_device"]:
        device = kind_of(given["cost_device"])  # a plan for a machine that need not be this one
    asked, jobs = places(suite_file(file), executor, jobs, device=device, dry=dry_run, only=given.pop("only"))
    trackers.checked(asked.trackers)
    for text in asked.unfitted:
        console.say(f"warning: {text}")
    if dry_run:
        existing(asked, out, on_existing)
        again = {"on_existing": on_existing, "retry": given["retry_failed"], "limit": given["limit"]}
        return _show_plan(asked, out, jobs, as_json, again | {"device": given["cost_device"]})
    orders = Orders(out, jobs, packed=packed, **given)
    prepare(asked, out, on_existing)
    with console.WorkTable(quiet) as watch:

        def show(scene: Scene) -> None:
            stands = ", ".join(f"{n} {what}" for what, n in scene.counts.items())
            time = "" if scene.left is None else f", about {told(scene.left)} to go"
            watch(f"{scene.title}: {stands}{time}", scene.working)

        work = Work(asked, orders, (lambda _: None) if quiet else console.say, show, executor)
        _carry_out(work)
    return _finish(work, orders, as_json)


@suite.command("list")
@JSON
def list_(as_json: bool) -> int:
    """List the suites that come with ddbench, which fill its boards."""
    from ddbench.base.opening import parse_toml, read_text
    from ddbench.suite.places import suites

    body = [[name, parse_toml(read_text(path)).get("title", ""), str(path)] for name, path in suites().items()]
    if as_json:
        console.data_json([dict(zip(("suite", "title", "file"), line, strict=True)) for line in body])
    else:
        console.table("suites", ("suite", "title"), [line[:-1] for line in body])
    return 0


@suite.command("work", hidden=True)
@click.argument("order", type=click.Path(path_type=Path))
@click.pass_context
def work(ctx: click.Context, order: Path) -> int:
    """Carry out a job of a suite on the node of a cluster that it was placed on."""
    from ddbench.suite.node import arrive, train

    arrived = arrive(order)
    if arrived.experts is None:
        sys.argv[1:] = arrived.words  # what messages say of how to go on
        return ctx.find_root().command.main(args=arrived.words, standalone_mode=False)
    with console.working(quiet=False):
        train(arrived, console.say)
    return 0


def _carry_out(work: Work) -> None:
    from ddbench.errors import InterruptedRun

    try:
        work.carry_out()
    except (InterruptedRun, KeyboardInterrupt) as end:
        said = str(end) or work.summary("killed")
        raise InterruptedRun(f"{said}; to go on: {shlex.join(['ddbench', *_again(sys.argv[1:])])}") from None


def _again(words: list[str]) -> list[str]:
    """The command that goes on: without ``--on-existing``, which would remove what was made since."""
    kept, skip = [], False
    for word in words:
        if skip or word.startswith("--on-existing"):
            skip = word == "--on-existing"
        else:
            kept.append(word)
    return kept


def _show_plan(asked: Suite, out: Path, jobs: int, as_json: bool, again: dict[str, Any]) -> int:
    from ddbench.suite.status import plan, totals

    lines = plan(asked, out, console.say, **again)
    total = totals(lines, jobs)
    if as_json:
        console.data_json({"suite": asked.key, "title": asked.title, "cells": lines, "total": total})
        return 0
    titles = ["cell", "status", "placed on", "expected s", "cost s", "experts MB", "set MB", "memory MB"]
    names = ("expert_bytes", "set_bytes", "memory_bytes")
    body = [
        [
            *(line["cell"], _status(line), _placed(line), _seconds(line), _cost(line)),
            *(f"{line[n] / 1e6:.1f}" if n in line else "" for n in names),
        ]
        for line in lines
    ]
    console.table(f"{asked.title} (suite {asked.key}) in {out}", titles, body, _caption(total, jobs))
    return 0


def _status(line: dict[str, Any]) -> str:
    return f"{line['status']}, again" if line["due"] and line["status"] != "to do" else line["status"]


def _placed(line: dict[str, Any]) -> str:
    """Threads, the part of a GPU, and the jobs that train its experts before it."""
    if not line["due"]:
        return ""
    gpu = "" if line["device"] == "cpu" else ", GPU" if line["gpus"] is None else f", {line['gpus']:g} GPU"
    experts = f", after {line['expert_jobs']} of experts" if line["expert_jobs"] else ""
    return f"{line['threads']} CPU{gpu}{experts}"


def _cost(line: dict[str, Any]) -> str:
    return "" if not line["due"] else "unknown" if line["cost_seconds"] is None else f"{line['cost_seconds']:.0f}"


def _seconds(line: dict[str, Any]) -> str:
    if not line["due"]:
        return ""
    return "unknown" if line["expected_seconds"] is None else f"{line['expected_seconds']:.0f}"


def _caption(total: dict[str, Any], jobs: int) -> str:
    lasts = f"{total['known_seconds']:.0f} s with -j {jobs}"
    if total["unknown"] == total["to_do"]:
        lasts = "how long is unknown before cells like them have run"
    elif total["unknown"]:
        lasts += f", and {total['unknown']} cells of unknown length"
    hours = f"{total['cost_seconds'] / 3600:.2g} hours of a device by the cost model"
    if total["cost_unknown"]:
        hours += f", without {total['cost_unknown']} cells that it cannot tell of"
    return (
        f"{total['to_do']} of {total['cells']} cells to do: {lasts}; {hours}; {total['disk_bytes'] / 1e6:.1f} MB on "
        f"disk, where experts that cells share count once; {total['memory_bytes'] / 1e6:.1f} MB of memory for sets and "
        "iterations"
    )


def _finish(work: Work, orders: Orders, as_json: bool) -> int:
    """The summary, what failed and why, and the command that compares; 1 if a cell failed."""
    from ddbench.suite.status import BAD

    now = {record["key"] for record in work.made}
    bad = [cell for cell in work.suite.cells if work.status[cell.key][0] in BAD]
    for cell in bad:
        status, reason = work.status[cell.key]
        if cell.key not in now:  # the others were said when they ended
            console.say(f"{status} earlier: {cell.name}: {' '.join(reason.split())}")
    console.say(work.summary())
    if any(cell.key not in now for cell in bad):
        console.say("--retry-failed runs again what failed")
    console.say(f"compare with: {shlex.join(['ddbench', 'compare', '--out', str(orders.out)])}")
    if as_json:
        console.data_json({"suite": work.suite.key, "cells": work.made})
    return 1 if bad else 0
