"""``ddbench cost``: what a run or a suite takes on a device, before it is there. Parsing and printing only."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddbench.cli import console
from ddbench.cli.options import JSON, request_options_on, varied
from ddbench.errors import UsageError

if TYPE_CHECKING:
    from ddbench.run.cost import Cost, Rates

DEVICE = click.option(
    "--device", default="cpu", show_default=True, metavar="NAME", help="h200, h100, a100, rtx4090, or cpu (one thread)."
)


@click.command()
@click.argument("file", metavar="[SUITE.toml|NAME]", required=False, type=click.Path(path_type=Path))
@partial(request_options_on, DEVICE)
@click.option("--students", default=5, show_default=True, type=click.IntRange(1), help="Students that grade each set.")
@JSON
@click.pass_context
def cost(ctx: click.Context, file: Path | None, device: str, students: int, as_json: bool, **given: Any) -> int:
    """Tell what a run, or a suite, takes on a device: nothing is trained, and the device need not be here."""
    from ddbench.run.cost import rates

    known = rates(device)
    if file is None:
        name, lines = "the run", _of_run(given, students, device)
    else:
        typed = [n for n in given if ctx.get_parameter_source(n) == click.core.ParameterSource.COMMANDLINE]
        if typed:
            raise UsageError(f"a suite says what its cells are; leave --{typed[0]} out, or name no suite")
        name, lines = _of_suite(file, device)
    told = {what: made for what, made in lines if made is not None}
    lost = [what for what, made in lines if made is None]
    if as_json:
        parts = {
            what: [_hours(made.experts), _hours(made.distilling), _hours(made.grading)] for what, made in told.items()
        }
        total = sum(made.known for made in told.values()) / 3600
        rows = [
            dict(zip(("run", "experts", "distilling", "grading"), (what, *row), strict=True))
            for what, row in parts.items()
        ]
        console.data_json(
            {
                "device": device,
                "about": known.about,
                "error": known.error,
                "hours": total,
                "runs": rows,
                "unknown": lost,
            }
        )
        return 0
    _show(name, known, told, lost)
    return 0


def _of_run(given: dict[str, Any], students: int, device: str) -> list[tuple[str, Cost | None]]:
    from ddbench.plugins import loaded
    from ddbench.run.cost import cost as cost_of
    from ddbench.run.cost import kind_of
    from ddbench.run.spec import Request, resolve

    flags = varied(given.pop("options"), given.pop("vary"))
    spec = resolve(Request(**given, flags=flags, device=kind_of(device), here=False)).spec
    return [(spec.folder.removesuffix(f"-{spec.key}"), cost_of(spec, loaded(spec.dataset), students, device))]


def _of_suite(file: Path, device: str) -> tuple[str, list[tuple[str, Cost | None]]]:
    from ddbench.run.cost import kind_of
    from ddbench.suite.costs import costs
    from ddbench.suite.grid import read
    from ddbench.suite.places import suite_file
    from ddbench.suite.taking import Takings

    asked = read(suite_file(file), device=kind_of(device), dry=True)
    found = costs(asked.cells, Takings(lambda text: console.say(asked.masked(text))), asked.students, device)
    return f"suite {asked.title!r}", [(cell.name, found.get(cell.key)) for cell in asked.cells]


def _show(name: str, known: Rates, told: dict[str, Cost], lost: list[str]) -> None:
    body = [
        [what, *(_text(part) for part in (made.experts, made.distilling, made.grading, made.known))]
        for what, made in told.items()
    ]
    total = sum(made.known for made in told.values())
    unit = "hours of one thread" if known.name == "cpu" else "GPU hours"
    off = (
        ""
        if known.error is None
        else f"; half of the predictions of recorded runs were within a factor of {known.error:.2f}"
    )
    said = [
        f"{name} on {known.name}: {_text(total)} {unit}, where experts that cells share count once; {known.about}{off}"
    ]
    if any(made.distilling is None for made in told.values()):
        said.append("an empty cell: the matcher does not tell its work, and the total is without it")
    if any(made.guessed for made in told.values()):
        said.append("a matcher that was measured nowhere counts as plain training of as many images")
    if lost:
        said.append(f"unknown of {len(lost)} cells, whose data are not here or do not suffice")
    console.table("", ["run", "experts h", "distilling h", "grading h", "in all h"], body, "; ".join(said))


def _hours(seconds: float | None) -> float | None:
    return None if seconds is None else seconds / 3600


def _text(seconds: float | None) -> str:
    """Hours, with two digits that count."""
    if seconds is None:
        return ""
    hours = seconds / 3600
    return f"{hours:.2g}" if hours < 10 else f"{hours:,.0f}"
