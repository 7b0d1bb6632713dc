"""Options that commands share: parsing only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ddbench.errors import UsageError
from ddbench.results.tables import FORMATS
from ddbench.run.defaults import DATASET, MATCHER, NETWORK, SCHEDULER

FORM = click.Choice(FORMATS)
OUT = click.option(
    "--out", default="runs", type=click.Path(path_type=Path), show_default=True, help="Folder that holds run folders."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
WIDE = click.option("--wide", is_flag=True, help="Show all columns in the table; other formats always have them.")
DEVICE = click.option("--device", default="auto", metavar="auto|cpu|cuda", show_default=True)
DEVICES = click.option(
    "--devices",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="GPUs (on a CPU, processes) that divide each batch of a trajectory matcher; torchrun starts them, too.",
)
QUIET = click.option("-q", "--quiet", is_flag=True, help="Show warnings and errors alone on stderr.")


def run_names(context: click.Context, _param: click.Parameter, begun: str) -> list[str]:
    """For the completion of a shell: the runs in --out whose names begin so."""
    from ddbench.run.folder import run_folders

    names = [folder.name for folder in run_folders(Path(context.params.get("out") or "runs"))]
    return [name for name in names if name.startswith(begun)]


def pairs(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """``-o GROUP.NAME=VALUE`` as (name, value) pairs."""
    found = []
    for value in values:
        name, equals, text = value.partition("=")
        if not equals:
            raise UsageError(f"-o {value!r} must look like GROUP.NAME=VALUE, for example -o matcher.syn_steps=30")
        found.append((name.strip(), text.strip()))
    return tuple(found)


OPTIONS = click.option(
    "-o",
    "options",
    multiple=True,
    callback=pairs,
    metavar="GROUP.NAME=VALUE",
    help="Set an option, such as matcher.syn_steps=30 or dataset.root=FILE.",
)


def varied(options: tuple[tuple[str, str], ...], vary: str | None) -> tuple[tuple[str, str], ...]:
    """The options with what ``--vary`` stands for."""
    return options if vary is None else (*options, (f"{vary}.vary", "true"))


def request_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what a run is."""
    return request_options_on(DEVICE, command)


def request_options_on(device: Callable[..., Any], command: Callable[..., Any]) -> Callable[..., Any]:
    """The same with an option of one's own for the device."""
    for option in reversed(
        (
            click.option("--dataset", default=DATASET, show_default=True, help="Dataset plugin; images:PATH, hf:PATH."),
            click.option("--matcher", default=MATCHER, show_default=True, help="Distillation method."),
            click.option("--scheduler", default=SCHEDULER, show_default=True, help="How the budget is staged."),
            click.option("--network", default=NETWORK, show_default=True, help="Network plugin."),
            click.option("--ipc", default=1, show_default=True, type=int, help="Synthetic images per class, in all."),
            click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the run."),
            click.option(
                "--protocol",
                help="Rules, such as pdd-paper; else default, or quick for your own images on a CPU.",
            ),
            click.option(
                "--recipe",
                metavar="fast|paper|DATASET:IPC",
                help="Which of the matcher's recipes; by default paper on a known dataset, fast on your own images.",
            ),
            click.option(
                "--vary",
                type=click.Choice(["experts"]),
                help="Draw start networks and experts from the run's seed, too; by default all seeds share one pool.",
            ),
            device,
            OPTIONS,
        )
    ):
        command = option(command)
    return command
