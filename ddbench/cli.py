"""The command line: parsing only. What commands do is in ``commands``; torch loads when one needs it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from ddbench.cli_apply import apply
from ddbench.cli_boards import leaderboard, report, submit
from ddbench.cli_files import export, import_
from ddbench.cli_options import DEVICE, FORMATS, JSON, OPTIONS, OUT, QUIET, request_options
from ddbench.cli_suite import suite
from ddbench.errors import DDBenchError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ddbench")
def cli() -> None:
    """Benchmark dataset distillation: distil, evaluate fairly, compare.

    Start with:  ddbench run --matcher tesla --scheduler pdd --ipc 10
    """


@cli.command()
@request_options
@click.option(
    "--repeats", default=1, show_default=True, type=click.IntRange(1), help="Runs, with seeds SEED, SEED+1, ..."
)
@click.option("--students", default=5, show_default=True, type=click.IntRange(1), help="Students that grade each set.")
@OUT
@click.option("--random/--no-random", "with_random", default=True, help="Random images at the same ipc beside the run.")
@click.option("--ceiling/--no-ceiling", "with_ceiling", default=True, help="The whole training set above it (cached).")
@click.option("--dry-run", is_flag=True, help="Show every resolved value and what the run takes; do nothing.")
@click.option("--resume", metavar="RUN", help="Go on with an existing run, by its folder or name.")
@click.option("--tracker", "trackers", multiple=True, metavar="NAME[=PLACE]", help="tensorboard, wandb or mlflow.")
@click.option("--checkpoint-seconds", default=20.0, type=click.FloatRange(0), help="Seconds between checkpoints.")
@click.option("--format", "form", default="table", type=FORMATS)
@JSON
@QUIET
@click.pass_context
def run(ctx: click.Context, **given: Any) -> int:
    """Distil a dataset, evaluate the result on its test set, and leave a complete run behind."""
    from ddbench import commands, console
    from ddbench.run import Settings
    from ddbench.spec import Request, resolve

    names = ("dataset", "matcher", "scheduler", "network", "ipc", "seed", "protocol", "device")
    request = Request(**{name: given[name] for name in names}, flags=given["options"])
    out, form = given["out"], "json" if given["as_json"] else given["form"]
    commands.warn_broken()
    if given["dry_run"]:
        plan = commands.dry_run(request)
        console.data_json(plan) if form == "json" else commands.show_dry_run(plan)
        return 0
    if given["resume"]:
        explicit = {n: given[n] for n in names if ctx.get_parameter_source(n) == click.core.ParameterSource.COMMANDLINE}
        spec, out = commands.resume(given["resume"], out, explicit, given["options"])
        specs = [spec]
    else:
        seeds = range(request.seed, request.seed + given["repeats"])
        specs = [resolve(request.with_seed(seed)).spec for seed in seeds]
    settings = Settings(out, given["students"], given["checkpoint_seconds"])
    rows = commands.run(
        specs, settings, with_random=given["with_random"], with_ceiling=given["with_ceiling"], quiet=given["quiet"],
        trackers=given["trackers"],
    )  # fmt: skip
    commands.show_rows(rows, form, "test accuracy, mean ± std over n students")
    return 0 if all(row["status"] == "ok" for row in rows) else 1


@cli.command("eval")
@click.argument("target", metavar="RUN|FILE|FOLDER")
@click.option("--students", default=5, show_default=True, type=click.IntRange(1))
@click.option("--seed", type=int, help="Seed of the students; by default the run's.")
@click.option("--dataset", help="Dataset plugin with the test data, if not the file's own.")
@click.option("--network", metavar="NAMES", help="Evaluate on another network, or on several: convnet,resnet18,vit.")
@click.option("--protocol", help="Train students by another protocol.")
@click.option("--metrics", metavar="NAMES", help="Metrics to compute, such as accuracy,corruptions; or all.")
@click.option("--pixels", default="auto", show_default=True, help="Pixel space of a foreign set: unit, zca, ...")
@click.option("--labels", default="auto", show_default=True, help="Meaning of a foreign set's soft labels.")
@click.option("--experiment", default=0, show_default=True, type=click.IntRange(0), help="Which of a res_*.pt file.")
@click.option("--controls", is_flag=True, help="Also images of coresets, hard and soft labels, without augmentation.")
@click.option("--transfer", is_flag=True, help="Test on another dataset of the same classes.")
@click.option("--together/--apart", default=None, help="Train students by one vectorised step (default: on CUDA).")
@DEVICE
@OPTIONS
@OUT
@click.option("--format", "form", default="table", type=FORMATS)
@JSON
@QUIET
def evaluate(target: str, out: Path, form: str, as_json: bool, options: tuple, controls: bool, **given: Any) -> int:
    """Evaluate a run, a distilled.safetensors, or a set in another tool's format."""
    from ddbench import commands
    from ddbench.evaluating import EvalOptions

    commands.warn_broken()
    asked, form = EvalOptions(flags=options, **given), "json" if as_json else form
    if controls:
        commands.show_controls(target, out, asked, form)
        return 0
    rows = commands.evaluate(target, out, asked)
    commands.show_rows(rows, form, f"evaluation of {target}")
    return 0


@cli.command()
@click.argument("runs", nargs=-1, metavar="[RUNS]...")
@OUT
@click.option("--board", "boards", multiple=True, type=click.Path(path_type=Path), metavar="FOLDER",
              help="The entries of a leaderboard as well, such as leaderboards/digits.")  # fmt: skip
@click.option(
    "--where", multiple=True, metavar="CONDITIONS", help="Rows to keep: 'matcher=tesla,ipc>=10'; = != < <= > >= ~."
)
@click.option("--per-run", is_flag=True, help="Every evaluation as its own row, instead of means over seeds.")
@click.option("--group-by", metavar="COLUMNS", default="", help="Average over all but these columns.")
@click.option("--baseline", metavar="CONDITIONS", help="What differences are to, such as 'random' (the default).")
@click.option("--allow-mixed", is_flag=True, help="Show different protocols together; nothing is tested across them.")
@click.option("--reported", is_flag=False, flag_value="same", type=click.Choice(["same", "all"]),
              help="Published accuracies beside; 'all' lists those of other settings too.")  # fmt: skip
@click.option("--reported-only", is_flag=True, help="The published accuracies themselves.")
@click.option("--sort", metavar="COLUMNS", help="Such as dataset,-accuracy; minus is falling.")
@click.option("--columns", metavar="COLUMNS", default="", help="Columns to show.")
@click.option(
    "--fail-if", multiple=True, metavar="CONDITIONS", help="Exit with 1 if a row shown is so: 'accuracy<0.5'."
)
@click.option("--format", "form", default="table", type=FORMATS, show_default=True)
@JSON
def compare(
    runs: tuple[str, ...], boards: tuple[Path, ...], out: Path, form: str, as_json: bool, **given: Any
) -> int:  # fmt: skip
    """Compare runs: those named, or all in --out. Runs that differ only in their seed are one line."""
    from ddbench import commands
    from ddbench.results import find_run, rows, run_folders

    folders = [find_run(name, out) for name in runs] if runs or boards else run_folders(out)
    table = [] if given["reported_only"] else [row for folder in folders for row in rows(folder)]
    if boards:
        from ddbench.boards import Board

        table += [row for folder in boards for row in Board.load(folder.absolute()).rows()]
    return commands.compare(table, "json" if as_json else form, **given)


@cli.command()
@request_options
@QUIET
def experts(quiet: bool, options: tuple, **given: Any) -> int:
    """Train the expert trajectories of a run's first stage ahead of it."""
    from ddbench import commands
    from ddbench.spec import Request

    commands.warn_broken()
    commands.build_experts(Request(**given, flags=options), quiet)
    return 0


@cli.command("list")
@click.argument(
    "what", default="matchers", type=click.Choice(["matchers", "schedulers", "datasets", "networks", "metrics", "runs"])
)
@OUT
@JSON
def list_(what: str, out: Path, as_json: bool) -> int:
    """List plugins of a kind, or the runs in --out."""
    from ddbench import describing

    describing.show_list(what, out, as_json)
    return 0


@cli.command()
@click.argument("dataset")
@OPTIONS
@JSON
@QUIET
def prepare(dataset: str, options: tuple, as_json: bool, quiet: bool) -> int:
    """Download, decode and measure a dataset ahead of a run."""
    from ddbench import commands

    commands.warn_broken()
    commands.prepare(dataset, options, quiet=quiet, as_json=as_json)
    return 0


@cli.command()
@click.argument("name")
@OPTIONS
@JSON
def info(name: str, options: tuple, as_json: bool) -> int:
    """Describe a plugin: options, recipes with their sources; of a dataset also sizes, statistics, licence."""
    from ddbench import describing

    describing.show_info(name, options, as_json)
    return 0


@cli.command()
@JSON
def plugins(as_json: bool) -> int:
    """List all plugins with their packages, and those that could not be loaded."""
    from ddbench import describing

    return describing.show_plugins(as_json)


@cli.command("check-grad")
@click.option("--matcher", default="tesla", show_default=True)
@click.option("--steps", default=15, show_default=True, type=click.IntRange(1), help="Student steps.")
@click.option("--lr", default=0.01, show_default=True, type=click.FloatRange(min=0, min_open=True), help="Student lr.")
@click.option("--seed", default=0, show_default=True, type=int)
@OPTIONS
@JSON
def check_grad(as_json: bool, **given: Any) -> int:
    """Compare a matcher's gradient with the autograd unroll on a small network, in float64."""
    from ddbench import describing

    describing.show_gradient_check(as_json=as_json, **given)
    return 0


for command in (import_, export, apply, suite, submit, leaderboard, report):
    cli.add_command(command)


def _out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: torch has a class for CUDA and only words for the CPU."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


def main() -> None:
    """Run the command line: one sentence for every expected error, and the documented exit codes."""
    # By default OpenMP threads spin for long while they wait, which makes small networks several times slower on
    # a busy machine; spinning briefly costs nothing on an idle one.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.exceptions.Abort:
        code = 130
    except (KeyboardInterrupt, BrokenPipeError):
        code = 130
    except DDBenchError as error:
        from ddbench import console

        console.fail(str(error))
        code = error.exit_code
    except OSError as error:  # a full disk, a folder that may not be written: nothing finished is lost
        from ddbench import console

        where = f" ({error.filename})" if error.filename else ""
        console.fail(f"{error.strerror or error}{where}; mend that and run the same command again")
        code = 3
    except (MemoryError, RuntimeError) as error:
        from ddbench import console

        if not _out_of_memory(error):
            raise
        what = str(error).strip().partition("\n")[0] or "no more memory"
        console.fail(
            f"{what}: what is finished is kept, and the same command goes on; `ddbench run --dry-run` predicts memory. "
            "Less is needed with a smaller -o matcher.batch_syn or matcher.batch_real, with -o matcher.stacked=false "
            "where segments are stacked, with --apart where an evaluation trains students together, or with a narrower "
            "network"
        )
        code = 3
    sys.exit(code if isinstance(code, int) else 0)
