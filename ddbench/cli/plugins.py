"""``ddbench plugins``: where plugins come from, a package to start one from, and whether one keeps its contract."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from ddbench.cli import console
from ddbench.cli.options import JSON, OPTIONS, QUIET
from ddbench.errors import UsageError

KINDS = ("matcher", "scheduler", "dataset", "network", "metric")


@click.group(invoke_without_command=True)
@JSON
@click.pass_context
def plugins(context: click.Context, as_json: bool) -> int:
    """List all plugins with their packages, and those that could not be loaded; or start and check your own."""
    return 0 if context.invoked_subcommand else _show_plugins(as_json)


@plugins.command()
@click.argument("name")
@click.option("--kind", required=True, type=click.Choice(KINDS), help="What it brings.")
@click.option(
    "--to",
    default=".",
    type=click.Path(path_type=Path),
    show_default=True,
    help="Where its folder ddbench-NAME is made.",
)
def new(name: str, kind: str, to: Path) -> int:
    """Write a small package with a plugin that works and is tested: change it into yours."""
    from ddbench.testing.new import written

    folder, *made = written(name, kind, to)
    for path in made:
        console.data(str(path))
    console.say(f"its tests pass as it is: pip install -e {folder} && pytest {folder}; ddbench plugins check {folder}")
    return 0


@plugins.command()
@click.argument("name", metavar="NAME|FOLDER")
@OPTIONS
@JSON
@QUIET
def check(name: str, options: tuple[tuple[str, str], ...], as_json: bool, quiet: bool) -> int:
    """Run the conformance kit on all that a package registers: every check by its name, passed or failed.

    A package is named by its folder, installed or not, by its name, or by that of a plugin. Small options make checks
    quick: -o matcher.experts=2. Exit code 1 if one fails.
    """
    from ddbench.testing.check import examined, found

    given: dict[str, dict[str, str]] = {}
    for option, value in options:
        kind, _, field = option.partition(".")
        if kind not in KINDS or not field:
            raise UsageError(f"option {option!r} must be KIND.NAME with a kind of {', '.join(KINDS)}")
        given.setdefault(kind, {})[field] = value
    asked = found(name)
    with console.working(quiet):
        done = examined(asked, given)
    if as_json:
        columns = ("check", "outcome", "what")
        console.data_json(
            [
                {"kind": e.plugin.kind, "name": e.plugin.name, "passed": e.sound}
                | {"checks": [dict(zip(columns, row, strict=True)) for row in e.rows]}
                for e in done
            ]
        )
    else:
        for e in done:
            rows = [list(row) for row in e.rows]
            console.table(f"{e.plugin.kind} {e.plugin.name}", ("check", "outcome", "what"), rows, least=(10, 11, 30))
        bad = [f"{e.plugin.kind} {e.plugin.name}" for e in done if not e.sound]
        console.say(f"{', '.join(bad)}: not all checks passed" if bad else "all checks passed")
    return 0 if all(e.sound for e in done) else 1


def _show_plugins(as_json: bool) -> int:
    """All plugins and their packages; exit code 3 if one could not be loaded."""
    from ddbench.plugins import registry

    loaded = registry()
    body = [[p.kind, p.name, p.package, p.version] for p in loaded.plugins.values()]
    broken = [dataclasses.asdict(b) for b in loaded.broken]
    if as_json:
        columns = ("kind", "name", "package", "version")
        console.data_json({"plugins": [dict(zip(columns, line, strict=True)) for line in body], "broken": broken})
    else:
        console.table("plugins", ("kind", "name", "package", "version"), sorted(body))
        for b in loaded.broken:
            console.fail(str(b))
    return 3 if broken else 0
