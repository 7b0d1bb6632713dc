"""``ddbench import`` and ``ddbench export``: parsing only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ddbench.cli_options import OPTIONS, QUIET
from ddbench.errors import UsageError

_PATHS = click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH...")
_LABELS = click.Choice(["auto", "hard", "probability", "logit", "real"])
_FORMS = click.Choice(["pt", "npz", "folder", "datasets"])


@click.command("import")
@_PATHS
@click.option("--dataset", required=True, help="Dataset plugin that the set was distilled from; images:PATH, hf:PATH.")
@click.option("--network", default="convnet", show_default=True, help="Network that students are, or experts were.")
@click.option("--protocol", default="default", show_default=True, help="Rules that students will learn by.")
@click.option("--pixels", default="auto", show_default=True, metavar="SPACE",
              help="Pixel space: unit, dataset, zca, cifar10, cifar100, or means/stds: M1,M2,M3/S1,S2,S3.")  # fmt: skip
@click.option("--labels", default="auto", type=_LABELS, show_default=True, help="What soft labels mean.")
@click.option("--experiment", default=0, show_default=True, type=click.IntRange(0), help="Which one of a res_*.pt.")
@click.option("--out", type=click.Path(path_type=Path), help="File to write; by default NAME.safetensors here.")
@click.option("--experts", is_flag=True, help="Import MTT's replay_buffer_*.pt as expert trajectories.")
@OPTIONS
@QUIET
def import_(paths: tuple[Path, ...], out: Path | None, experts: bool, options: tuple, quiet: bool, **given: Any) -> int:
    """Make a file that describes itself of a set in another tool's format, or experts of replay buffers."""
    from ddbench import commands, console
    from ddbench.importing import imported, imported_experts
    from ddbench.spec import Request

    commands.warn_broken()
    request = Request(
        dataset=given["dataset"], matcher="random", network=given["network"], protocol=given["protocol"], flags=options
    )
    if experts:
        with commands.working(quiet):
            name = imported_experts(paths, request)
        console.say(f"use these experts with -o experts.imported={name}")
        console.data(name)
        return 0
    if len(paths) > 1:
        raise UsageError(f"{len(paths)} paths given, but one set is imported at a time; several are for --experts")
    path = next(iter(paths))
    target = out or Path(f"{path.stem if path.is_file() else path.resolve().name}.safetensors")
    if target.exists():
        raise UsageError(f"{target} exists already, and nothing is overwritten; give another --out")
    with commands.working(quiet):
        distilled, notes = imported(path, request, **{n: given[n] for n in ("pixels", "labels", "experiment")})
    distilled.save(target)
    for note in notes:
        console.say(note)
    console.data(str(target))
    return 0


@click.command()
@click.argument("target", metavar="RUN|FILE", type=click.Path(path_type=Path))
@click.option("--format", "form", required=True, type=_FORMS, help="MTT's .pt files, npz, pictures, or parquet.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder (or .npz file) to write.")
@click.option("--runs", default="runs", show_default=True, type=click.Path(path_type=Path),
              help="Folder that holds run folders, where RUN is a name.")  # fmt: skip
def export(target: Path, form: str, out: Path, runs: Path) -> int:
    """Write a distilled set in a format that other tools read."""
    from ddbench import commands, console
    from ddbench.exporting import export as write
    from ddbench.files import Distilled
    from ddbench.results import find_run

    commands.warn_broken()
    file = target if target.is_file() else find_run(str(target), runs) / "distilled.safetensors"
    if not file.exists():
        raise UsageError(f"{file.parent} holds no distilled set yet; finish it with `ddbench run --resume {target}`")
    for note in write(Distilled.load(file), form, out):
        console.say(note)
    console.data(str(out))
    return 0
