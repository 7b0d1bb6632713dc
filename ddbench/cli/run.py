"""``ddbench run`` and ``ddbench experts``. Heavy modules are imported when a command needs them."""

from __future__ import annotations

import os
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddbench.cli import console
from ddbench.cli.options import DEVICES, FORM, JSON, OUT, QUIET, WIDE, request_options, run_names, varied
from ddbench.errors import UsageError
from ddbench.run.defaults import BASELINE

if TYPE_CHECKING:
    from ddbench.run.row import Row
    from ddbench.run.spec import Request, Resolved, RunSpec
    from ddbench.suite.single import Single

ASKED = ("dataset", "matcher", "scheduler", "network", "ipc", "seed", "protocol", "device")
REFUSED = {  # beside --resume
    "fresh": "--fresh makes a run anew and --resume goes on with it",
    "recipe": "--resume goes on with the numbers that the run began with, and --recipe asks for others",
    "config": "--resume goes on with a run, and --config describes one",
}
UNGRADED = "--no-random: random images were not graded, so it is not known whether this is above them"


@click.command()
@request_options
@DEVICES
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="RUN.toml",
    help="Read the run from a file in the format of a suite's cell, such as a run folder's run.toml; flags come first.",
)
@click.option(
    "--repeats",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Number of runs, with seeds SEED, SEED+1, ...",
)
@click.option("--students", default=5, show_default=True, type=click.IntRange(1), help="Students that grade each set.")
@OUT
@click.option(
    "--random/--no-random",
    "with_random",
    default=True,
    help="Grade random images at the same ipc beside the run; a result that is not above them says so.",
)
@click.option(
    "--ceiling/--no-ceiling",
    "with_ceiling",
    default=True,
    help="Grade the whole training set beside the run, too (cached).",
)
@click.option("--dry-run", is_flag=True, help="Show every resolved value and what the run will take; start nothing.")
@click.option("--fresh", is_flag=True, help="Make the run anew, and keep the old one beside it.")
@click.option(
    "--resume", metavar="RUN", shell_complete=run_names, help="Go on with an existing run, by folder or name."
)
@click.option(
    "--tracker", "trackers", multiple=True, metavar="NAME[=PLACE]", help="Report to tensorboard, wandb or mlflow, too."
)
@click.option("--checkpoint-seconds", default=20.0, type=click.FloatRange(0), help="Seconds between checkpoints.")
@click.option("--format", "form", default="table", type=FORM)
@JSON
@WIDE
@QUIET
@click.pass_context
def run(ctx: click.Context, **given: Any) -> int:
    """Distil a dataset, evaluate the result on its test set, and leave a complete run behind."""
    from ddbench.base.rank_start import gathered
    from ddbench.run.run import Settings
    from ddbench.run.runs import carry_out

    if (code := _of_another_rank(given["device"], needed=not given["dry_run"])) is not None:
        return code
    given["options"] = varied(given["options"], given["vary"])
    asked = _asked(ctx, given)
    form = "json" if given["as_json"] else given["form"]
    console.warn_broken()
    if given["dry_run"]:
        plan = _dry_run(asked)
        console.data_json(plan) if form == "json" else _show_dry_run(plan)
        return 0
    specs, out = _specs(ctx, asked, given)
    renew = "always" if given["fresh"] else "never" if given["resume"] else "changed"
    settings = Settings(out, asked.students or given["students"], given["checkpoint_seconds"], renew)
    with console.working(given["quiet"]), gathered(given["devices"], specs[0].device):
        rows, said = carry_out(
            specs,
            settings,
            with_random=given["with_random"],
            with_ceiling=given["with_ceiling"],
            trackers=given["trackers"],
            say=console.sayer(given["quiet"]),
            fail=console.fail,
        )
    console.show_rows(rows, form, "test accuracy, mean ± std over n students", wide=given["wide"])
    if not given["quiet"]:
        _show_headline(rows, specs, out)
        said += [UNGRADED] if not given["with_random"] and specs[0].matcher.name != BASELINE else []
    for text in said:  # last, where it is seen
        console.say(text)
    return 0 if all(row.status == "ok" for row in rows) else 1


def _asked(ctx: click.Context, given: dict[str, Any]) -> Single:
    """What flags ask for, and what a file does where no flag says otherwise."""
    from ddbench.run.spec import Request
    from ddbench.suite.single import Single, read_run

    for name, why in REFUSED.items():
        if given["resume"] and given[name]:
            raise UsageError(f"{why}; leave one of them out")
    request = Request(**{name: given[name] for name in (*ASKED, "recipe")}, flags=given["options"])
    seeds = tuple(range(given["seed"], given["seed"] + given["repeats"]))
    if given["config"] is None:
        return Single(request, seeds, given["students"], None)
    held, typed = read_run(given["config"]), _typed(ctx)
    changes = {name: given[name] for name in (*ASKED, "recipe") if name in typed}
    request = replace(held.request, **changes, flags=(*held.request.flags, *given["options"]))
    students = given["students"] if "students" in typed or held.students is None else held.students
    return Single(request, seeds if {"seed", "repeats"} & typed else held.seeds, students, held.threads)


def _typed(ctx: click.Context) -> set[str]:
    """The names of options that stand on the command line."""
    return {name for name in ctx.params if ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE}


def _specs(ctx: click.Context, asked: Single, given: dict[str, Any]) -> tuple[list[RunSpec], Path]:
    """What is to be carried out, and the folder for it: a run that is gone on with, or one for each seed."""
    if given["resume"]:
        explicit = {name: given[name] for name in ASKED if name in _typed(ctx)}
        spec, out = _resumed(given["resume"], given["out"], explicit, given["options"])
        return [spec], out
    resolved = [_resolved(asked, seed) for seed in asked.seeds]
    _warn(resolved[0].warning)
    return [one.spec for one in resolved], given["out"]


def _resolved(asked: Single, seed: int) -> Resolved:
    """The run with a seed, with the threads that its file says unless the environment does."""
    from ddbench.run.spec import resolve

    found = resolve(asked.request.with_seed(seed))
    if asked.threads is None or os.environ.get("DDBENCH_THREADS"):
        return found
    return replace(found, spec=replace(found.spec, threads=asked.threads))


def _show_headline(rows: list[Row], specs: list[RunSpec], out: Path) -> None:
    from ddbench.results.headline import headline
    from ddbench.run.place import folder_of

    for text in headline(rows, [folder_of(spec, out) for spec in specs]):
        console.say(text)


@click.command()
@request_options
@DEVICES
@QUIET
def experts(quiet: bool, options: tuple, vary: str | None, devices: int, **given: Any) -> int:
    """Train the expert trajectories of a run's first stage ahead of it."""
    from ddbench.run.spec import Request

    if (code := _of_another_rank(given["device"])) is not None:
        return code
    console.warn_broken()
    _build(Request(**given, flags=varied(options, vary)), devices, quiet)
    return 0


def _of_another_rank(device: str, *, needed: bool = True) -> int | None:
    """The work of a rank that torchrun started beside rank 0, and its exit code; None for rank 0."""
    if "WORLD_SIZE" not in os.environ:
        return None
    from ddbench.base.machine import pick_device
    from ddbench.base.rank_start import rank_here, see_own_gpu, serve

    see_own_gpu()
    if not rank_here():
        return None
    return serve(pick_device(device)) if needed else 0


def _warn(text: str | None) -> None:
    if text is not None:
        console.say(f"warning: {text}")


def _dry_run(asked: Single) -> dict[str, Any]:
    """Every resolved value with its origin, and what the run will take."""
    from ddbench.plugins import loaded
    from ddbench.run.forecast import forecast

    resolved = _resolved(asked, asked.seeds[0])
    _warn(resolved.warning)
    dataset = loaded(resolved.spec.dataset)
    values = {name: {"value": value, "from": origin} for name, (value, origin) in resolved.origins.items()}
    return {
        "key": resolved.spec.key,
        "folder": resolved.spec.folder,
        "device": resolved.spec.device,
        "threads": resolved.spec.threads,
        "options": values,
        **({"warning": resolved.warning} if resolved.warning else {}),
        "forecast": forecast(resolved.spec, dataset),
    }


def _show_dry_run(plan: dict[str, Any]) -> None:
    """The plan as two tables."""
    body = [[name, str(entry["value"]), entry["from"]] for name, entry in plan["options"].items()]
    about = f"run {plan['folder']} on {plan['device']}, {plan['threads']} threads"
    console.table(about, ["option", "value", "from"], body)
    numbers = [[name, f"{value:,}" if isinstance(value, int) else value] for name, value in plan["forecast"].items()]
    console.table("what it takes", ["", ""], numbers)


def _resumed(name: str, out: Path, changes: dict[str, Any], flags: tuple[tuple[str, str], ...]) -> tuple[RunSpec, Path]:
    """The spec of an existing run and the folder it is in; flags that would change it are refused."""
    from ddbench.base.machine import pick_device
    from ddbench.run.folder import find_run
    from ddbench.run.place import called, comparable
    from ddbench.run.record import SpecRecord
    from ddbench.run.spec import differences, from_record, known_options, with_flags

    folder = find_run(name, out).resolve()
    held = SpecRecord.from_file(folder / "spec.json").json_value()
    spec = from_record(known_options(held))  # with the plugins installed now
    pick_device(spec.device)
    if edited := differences(comparable(held), comparable(spec.record())):
        raise UsageError(f"{folder} cannot be resumed: its spec.json and this ddbench differ ({'; '.join(edited)})")
    if not called(spec, held, folder.name):
        raise UsageError(f"{folder} cannot be resumed: its spec.json was changed, it is now that of {spec.folder}")
    changed = differences(spec.record(), with_flags(spec.record(), changes, flags))
    if changed:
        raise UsageError(
            f"run {folder.name} has another spec ({'; '.join(changed)}); resume it without the change, "
            "or start a new run with it"
        )
    return spec, folder.parent


def _build(request: Request, devices: int, quiet: bool) -> None:
    """Train what the first stage of a run needs, and say where it is."""
    import torch

    from ddbench.base.rank_start import gathered
    from ddbench.plugins import loaded, needs_of
    from ddbench.run.devices import check_network
    from ddbench.run.prepare import prepared
    from ddbench.run.run import first_problem
    from ddbench.run.spec import resolve

    spec = resolve(request).spec
    with console.working(quiet), gathered(devices, spec.device):
        torch.set_num_threads(spec.threads)
        dataset = loaded(spec.dataset)
        problem = first_problem(spec, dataset)
        check_network(problem.network)
        wanted = needs_of(spec.matcher, problem)
        if not wanted.experts and not wanted.teachers:
            console.say(f"matcher {spec.matcher.name!r} with these options needs no experts")
            return
        ready = prepared(problem, wanted)
    for count, what, made in (
        (wanted.experts, "experts", ready.experts),
        *((wanted.teachers, "teachers", made) for made in ready.teachers),
    ):
        if count:
            seconds = made.seconds(count)
            cost = "an unknown time" if isnan(seconds) else f"{seconds:.1f} s"
            console.data(f"{count} {what}, {cost} of training, in {made.folder}")
