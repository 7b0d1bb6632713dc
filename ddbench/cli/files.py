"""``ddbench eval``, ``import`` and ``export``: distilled sets, ddbench's own and those of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddbench.cli import console
from ddbench.cli.options import DEVICE, FORM, JSON, OPTIONS, OUT, QUIET, WIDE
from ddbench.errors import UsageError
from ddbench.run.defaults import BASELINE, NETWORK

if TYPE_CHECKING:
    from ddbench.files.asked import EvalOptions
    from ddbench.run.row import Row

_PATHS = click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH...")
_LABELS = click.Choice(["auto", "hard", "probability", "logit", "real"])
_FORMS = click.Choice(["pt", "npz", "folder", "datasets", "webdataset"])


@click.command("eval")
@click.argument("target", metavar="RUN|FILE|FOLDER")
@click.option("--students", default=5, show_default=True, type=click.IntRange(1))
@click.option("--seed", type=click.IntRange(0), help="Seed of the students; by default the run's.")
@click.option("--dataset", help="Dataset plugin with the test data, if not the file's own.")
@click.option("--network", metavar="NAMES", help="Evaluate on another network, or on several: convnet,resnet18,vit.")
@click.option("--protocol", help="Train students by another protocol.")
@click.option("--metrics", metavar="NAMES", help="Metrics to compute, such as accuracy,corruptions; or all.")
@click.option("--pixels", default="auto", show_default=True, help="Pixel space of a foreign set: unit, zca, ...")
@click.option("--labels", default="auto", show_default=True, help="Meaning of a foreign set's soft labels.")
@click.option(
    "--experiment", default=0, show_default=True, type=click.IntRange(0), help="Which experiment of a res_*.pt file."
)
@click.option(
    "--controls", is_flag=True, help="Compare with coresets, hard and soft labels, and training without augmentation."
)
@click.option(
    "--coresets",
    metavar="NAME,...",
    help="Real images that --controls compares with: coresets, and matched, as hard as the set's.",
)
@click.option("--transfer", is_flag=True, help="Test on another dataset of the same classes.")
@click.option("--fetch", is_flag=True, help="Allow the download of data that the file names.")
@click.option("--together/--apart", default=None, help="Train students by one vectorised step (default: if that pays).")
@DEVICE
@OPTIONS
@OUT
@click.option("--format", "form", default="table", type=FORM)
@JSON
@WIDE
@QUIET
def evaluate(
    target: str,
    out: Path,
    form: str,
    as_json: bool,
    wide: bool,
    options: tuple,
    controls: bool,
    coresets: str | None,
    **given: Any,
) -> int:
    """Evaluate a run, a distilled.safetensors, or a set in another tool's format."""
    from ddbench.files.target import EvalOptions, evaluated

    console.warn_broken()
    asked, form = EvalOptions(flags=options, **given), "json" if as_json else form
    if coresets is not None and not controls:
        raise UsageError("--coresets names what --controls compares with; add --controls")
    if controls:
        _show_controls(target, out, asked, form, coresets)
        return 0
    with console.working(asked.quiet):
        rows = evaluated(target, out, asked, console.sayer(asked.quiet), lost := [])
    console.show_rows(rows, form, f"evaluation of {target}", wide=wide)
    if asked.metrics is not None and form == "table":
        _show_metrics(rows)
    for text in lost:
        console.fail(text)
    return 1 if lost else 0


def _show_metrics(rows: list[Row]) -> None:
    """Every metric that was measured, the mean over students, with a column for each evaluation."""
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    measured = [row for row in rows if row.metrics]
    networks = {str(row.network) for row in measured}
    titles = [f"n {row.n}" if len(networks) == 1 else f"{row.network}, n {row.n}" for row in measured]
    body = [
        [name.removesuffix("_mean"), *(f"{row.metrics[name]:.4g}" if name in row.metrics else "" for row in measured)]
        for name in names
    ]
    console.table(f"metrics on {', '.join(sorted(networks))}: means over n students", ["metric", *titles], body)


def _show_controls(target: str, out: Path, options: EvalOptions, form: str, coresets: str | None) -> None:
    """The control matrix of a set and the scores that follow from it, on stdout."""
    from ddbench.apply.controls import FORMULAS, SOURCE, USUAL, control_matrix
    from ddbench.files.target import opened
    from ddbench.results.tables import Table
    from ddbench.run.run import Settings

    if len(options.per_network()) > 1:
        raise UsageError("--controls takes one network; give the others in commands of their own")
    names = USUAL if coresets is None else [name.strip() for name in coresets.split(",") if name.strip()]
    with console.working(options.quiet):
        source = opened(target, out, options)
        for note in source.notes:
            console.say(note)
        found = control_matrix(source, options, Settings(out), names)
    if form == "json":
        console.data_json(found.record())
        return
    shown = {
        "images": "images",
        "labels": "labels",
        "augmentation": "augmentation",
        "accuracy_mean": "accuracy %",
        "n": "n",
        "student_lr": "student lr",
        "label_bytes": "labels kB",
        "difficulty": "difficulty",
        "selection": "selected on",
    }
    scores = [{"score": n, "value": v, "formula": FORMULAS.get(n, "accuracy")} for n, v in found.scores.items()]
    console.show(Table(found.rows, shown, title=f"controls of {target}: mean ± std over n students"), form)
    if form != "csv":  # one table per file
        console.show(Table(scores, {n: n for n in scores[0]}, (SOURCE,), "scores, in fractions"), form)


@click.command("import")
@_PATHS
@click.option("--dataset", required=True, help="Dataset plugin that the set was distilled from; images:PATH, hf:PATH.")
@click.option(
    "--network", default=NETWORK, show_default=True, help="Network of the students, or of the imported experts."
)
@click.option("--protocol", help="Rules that students will learn by; else those that a run on the dataset takes.")
@click.option(
    "--pixels",
    default="auto",
    show_default=True,
    metavar="SPACE",
    help="Pixel space: unit, dataset, zca, cifar10, cifar100, or means/stds: M1,M2,M3/S1,S2,S3.",
)
@click.option("--labels", default="auto", type=_LABELS, show_default=True, help="Meaning of soft labels.")
@click.option(
    "--experiment", default=0, show_default=True, type=click.IntRange(0), help="Which experiment of a res_*.pt file."
)
@click.option("--to", type=click.Path(path_type=Path), help="File to write; by default NAME.safetensors here.")
@click.option("--experts", is_flag=True, help="Import MTT's replay_buffer_*.pt as expert trajectories.")
@OPTIONS
@QUIET
def import_(paths: tuple[Path, ...], to: Path | None, experts: bool, options: tuple, quiet: bool, **given: Any) -> int:
    """Turn a set in another tool's format into a file that describes itself, or replay buffers into experts."""
    from ddbench.files.importer import imported, imported_experts
    from ddbench.run.spec import Request

    console.warn_broken()
    request = Request(
        dataset=given["dataset"], matcher=BASELINE, network=given["network"], protocol=given["protocol"], flags=options
    )
    if experts:
        with console.working(quiet):
            name = imported_experts(paths, request)
        console.say(f"use these experts with -o experts.imported={name}")
        console.data(name)
        return 0
    if len(paths) > 1:
        raise UsageError(f"{len(paths)} paths given, but one set is imported at a time; several are for --experts")
    path = next(iter(paths))
    target = to or Path(f"{path.stem if path.is_file() else path.resolve().name}.safetensors")
    if target.exists():
        raise UsageError(f"{target} exists already, and nothing is overwritten; give another --to")
    with console.working(quiet):
        distilled, notes = imported(path, request, **{n: given[n] for n in ("pixels", "labels", "experiment")})
    distilled.save(target)
    for note in notes:
        console.say(note)
    console.data(str(target))
    return 0


@click.command()
@click.argument("target", metavar="RUN|FILE", type=click.Path(path_type=Path))
@click.option("--format", "form", required=True, type=_FORMS, help="MTT's .pt, npz, pictures, parquet, or shards.")
@click.option("--to", required=True, type=click.Path(path_type=Path), help="Folder (or .npz file) to write.")
@OUT
def export(target: Path, form: str, to: Path, out: Path) -> int:
    """Write a distilled set in a format that other tools read."""
    from ddbench.files.exporter import export as write
    from ddbench.grade.distilled import Distilled
    from ddbench.run.folder import find_run

    console.warn_broken()
    file = target if target.is_file() else find_run(str(target), out) / "distilled.safetensors"
    if not file.exists():
        raise UsageError(f"{file.parent} holds no distilled set yet; finish it with `ddbench run --resume {target}`")
    for note in write(Distilled.load(file), form, to):
        console.say(note)
    console.data(str(to))
    return 0
