"""What each command does, behind the parsing. Heavy modules are imported here, when a command needs them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddbench import console
from ddbench.errors import InterruptedRun, UsageError
from ddbench.interrupt import Interrupts
from ddbench.progress import Event, listening

if TYPE_CHECKING:
    from ddbench.evaluating import EvalOptions
    from ddbench.run import Settings
    from ddbench.spec import Request, RunSpec
    from ddbench.tables import Table


@contextmanager
def working(quiet: bool) -> Iterator[None]:
    """Show progress, and turn SIGINT and SIGTERM into a clean stop with the command that goes on."""
    from ddbench.meter import keep_freed_memory
    from ddbench.workers import follow_parent

    with Interrupts() as interrupts, console.Display(quiet) as display:

        def listener(event: Event) -> None:
            display(event)
            interrupts.check()

        try:
            keep_freed_memory()
            follow_parent()
            with listening(listener):
                yield
        except InterruptedRun as error:
            again = " ".join(["ddbench", *map(_quoted, sys.argv[1:])])
            raise InterruptedRun(f"{error}; to go on: {again}") from None


def _quoted(word: str) -> str:
    import shlex

    return shlex.quote(word)


def warn_broken() -> None:
    """Name each plugin that could not be loaded, once."""
    from ddbench.plugins import registry

    for broken in registry().broken:
        console.say(f"warning: {broken}")


def run(
    specs: list[RunSpec], settings: Settings, *, with_random: bool, with_ceiling: bool, quiet: bool,
    trackers: tuple[str, ...] = (),
) -> list[dict[str, Any]]:  # fmt: skip
    """Carry out runs on one dataset, with random images beside each and the whole training set above."""
    import torch

    from ddbench import trackers as tracking
    from ddbench.bench import references
    from ddbench.results import rows
    from ddbench.run import Run, build_task

    tracking.checked(trackers)
    table: list[dict[str, Any]] = []
    with working(quiet):
        torch.set_num_threads(specs[0].threads)  # statistics of the data depend on it in their last bits
        dataset = specs[0].dataset.load()
        if skipped := dataset.facts.get("skipped"):
            console.say(f"warning: left out {skipped}")
        _ = build_task(specs[0], dataset).network.parameters  # one that cannot take these images leaves no folder
        for spec in specs:
            work = Run(spec, dataset, settings)
            console.say(f"{'going on with' if (work.folder / 'spec.json').exists() else 'starting'} {work.folder}")
            with tracking.opened(trackers, work, console.say):
                result = work.execute()
            table += rows(work.folder)
            if result["status"] == "diverged":
                console.fail(f"the run diverged: {result['error']} (its last good state is kept in {work.folder})")
                continue
            beside = references(spec, dataset, settings, with_random=with_random, with_ceiling=with_ceiling)
            table += [row for row in beside if row not in table]
    return table


def show_rows(rows: list[dict[str, Any]], form: str, title: str) -> None:
    """Rows of single runs on stdout, in the format asked for."""
    from ddbench.lines import per_run
    from ddbench.tables import PER_RUN, Table

    _show(Table(per_run(rows), PER_RUN, title=title), form)


def compare(
    rows: list[dict[str, Any]], form: str, *, group_by: str, columns: str, reported_only: bool,
    fail_if: tuple[str, ...], **given: Any,
) -> int:  # fmt: skip
    """Show a comparison; 1 if an expression of ``--fail-if`` holds for a row of it."""
    from ddbench.compare import Ask, table, tripped
    from ddbench.compare import reported_only as published
    from ddbench.conditions import divided

    ask = Ask(group_by=tuple(divided(group_by)), columns=tuple(divided(columns)), **given)
    found = [published(ask)] if reported_only else table(rows, ask)
    failed = tripped(found[0].rows, fail_if)
    # for programs, what is published in other settings is in the rows themselves
    for shown in found if form in ("table", "md", "latex", "html") else found[:1]:
        _show(shown, form)
    for text in failed:
        console.say(f"--fail-if {text}")
    return 1 if failed else 0


def _show(table: Table, form: str) -> None:
    from ddbench.tables import render

    if form != "table":
        console.data(render(table, form))
    elif not table.rows:
        console.say("no runs to show; `ddbench run` makes one")
    else:
        console.table(table.title, *table.text(), "\n".join(table.notes()))


def dry_run(request: Request) -> dict[str, Any]:
    """Every resolved value with its origin, and what the run will take."""
    from ddbench.bench import forecast
    from ddbench.spec import resolve

    resolved = resolve(request)
    dataset = resolved.spec.dataset.load()
    values = {name: {"value": value, "from": origin} for name, (value, origin) in resolved.origins.items()}
    return {
        "key": resolved.spec.key,
        "folder": resolved.spec.folder,
        "device": resolved.spec.device,
        "threads": resolved.spec.threads,
        "options": values,
        "forecast": forecast(resolved.spec, dataset),
    }


def show_dry_run(plan: dict[str, Any]) -> None:
    """The plan as two tables."""
    body = [[name, str(entry["value"]), entry["from"]] for name, entry in plan["options"].items()]
    about = f"run {plan['folder']} on {plan['device']}, {plan['threads']} threads"
    console.table(about, ["option", "value", "from"], body)
    numbers = [[name, f"{value:,}" if isinstance(value, int) else value] for name, value in plan["forecast"].items()]
    console.table("what it takes", ["", ""], numbers)


def recorded_spec(folder: Path) -> RunSpec:
    """The spec of an existing run, with the plugins installed now."""
    from ddbench.cache import read_json
    from ddbench.spec import from_record

    return from_record(read_json(folder / "spec.json"))


def resume(name: str, out: Path, changes: dict[str, Any], flags: tuple[tuple[str, str], ...]) -> tuple[RunSpec, Path]:
    """The spec of an existing run and the folder it is in; flags that would change it are refused."""
    from ddbench.cache import read_json
    from ddbench.results import find_run
    from ddbench.spec import altered, differences

    folder = find_run(name, out).resolve()
    spec, written = recorded_spec(folder), read_json(folder / "spec.json")
    if edited := differences(written, spec.record()):
        raise UsageError(f"{folder} cannot be resumed: its spec.json and this ddbench differ ({'; '.join(edited)})")
    if spec.folder != folder.name:
        raise UsageError(f"{folder} cannot be resumed: its spec.json was changed, it is now that of {spec.folder}")
    changed = differences(spec.record(), altered(spec.record(), changes, flags))
    if changed:
        raise UsageError(
            f"run {folder.name} has another spec ({'; '.join(changed)}); resume it without the change, "
            "or start a new run with it"
        )
    return spec, folder.parent


def evaluate(target: str, out: Path, options: EvalOptions) -> list[dict[str, Any]]:
    """Evaluate a run, a ``distilled.safetensors`` or a foreign set on its dataset's test split."""
    from ddbench.evaluating import evaluated

    with working(options.quiet):
        return evaluated(target, out, options, console.say)


def show_controls(target: str, out: Path, options: EvalOptions, form: str) -> None:
    """The control matrix of a set and the scores that follow from it, on stdout."""
    from ddbench.controls import FORMULAS, SOURCE, control_matrix
    from ddbench.evaluating import opened
    from ddbench.run import Settings
    from ddbench.tables import Table

    if len(options.per_network()) > 1:
        raise UsageError("--controls takes one network; give the others in commands of their own")
    with working(options.quiet):
        source = opened(target, out, options)
        for note in source.notes:
            console.say(note)
        found = control_matrix(source, options, Settings(out))
    if form == "json":
        console.data_json(found.record())
        return
    shown = {
        "images": "images", "labels": "labels", "augmentation": "augmentation", "accuracy_mean": "accuracy %",
        "n": "n", "student_lr": "student lr", "label_bytes": "labels kB", "selection": "selected on",
    }  # fmt: skip
    scores = [{"score": n, "value": v, "formula": FORMULAS.get(n, "accuracy")} for n, v in found.scores.items()]
    _show(Table(found.rows, shown, title=f"controls of {target}: mean ± std over n students"), form)
    if form != "csv":  # one table per file
        _show(Table(scores, {n: n for n in scores[0]}, (SOURCE,), "scores, in fractions"), form)


def prepare(name: str, flags: tuple[tuple[str, str], ...], *, quiet: bool, as_json: bool) -> None:
    """Download, decode and measure a dataset, so that a run can begin at once; then show what it is."""
    from ddbench import preparing

    with working(quiet):
        found = preparing.describe(name, flags, get=True)
    if as_json:
        console.data_json(found)
    else:
        body = preparing.body(found["about"] | found["measured"])
        console.table(f"dataset {name} is ready", ("", ""), body)


def build_experts(request: Request, quiet: bool) -> None:
    """Train what the first stage of a run needs, and say where it is."""
    from ddbench.problem import Needs
    from ddbench.run import build_task
    from ddbench.sets import Curriculum
    from ddbench.spec import resolve
    from ddbench.stage import prepared

    spec = resolve(request).spec
    with working(quiet):
        dataset = spec.dataset.load()
        problem = spec.scheduler.next(build_task(spec, dataset), Curriculum())
        needs = spec.matcher.needs(problem) if hasattr(spec.matcher, "needs") else Needs()
        if not needs.experts and not needs.teachers:
            console.say(f"matcher {spec.matcher.name!r} with these options needs no experts")
            return
        ready = prepared(problem, needs)
    for count, what, made in ((needs.experts, "experts", ready.experts), (needs.teachers, "teachers", ready.teachers)):
        if count and made is not None:
            console.data(f"{count} {what}, {made.seconds(count):.1f} s of training, in {made.folder}")
