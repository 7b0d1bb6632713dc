"""The command line: its commands, and what their errors become. torch loads when a command needs it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from ddbench.base import interrupts
from ddbench.cli import console, streams
from ddbench.cli.apply import apply
from ddbench.cli.boards import leaderboard, report, submit
from ddbench.cli.cost import cost
from ddbench.cli.files import evaluate, export, import_
from ddbench.cli.info import check_grad, info, list_, prepare
from ddbench.cli.plugins import plugins
from ddbench.cli.results import compare
from ddbench.cli.run import experts, run
from ddbench.cli.suite import suite
from ddbench.errors import DataError, DDBenchError, out_of_memory, require_posix


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ddbench")
def cli() -> None:
    """Benchmark dataset distillation: distil, evaluate fairly, compare.

    Start with:  ddbench run --matcher tesla --scheduler pdd --ipc 10
    """


for command in (
    run, evaluate, compare, experts, list_, prepare, info, plugins, check_grad, import_, export, apply, suite, submit,
    leaderboard, report, cost,
):  # fmt: skip
    cli.add_command(command)
cli.add_command(leaderboard, "board")


def _require_folder() -> None:
    """Libraries that torch loads end the process without a word where there is no current folder."""
    try:
        Path.cwd()
    except OSError as error:
        raise DataError("the current folder was deleted; change to one that is there and run again") from error


def _refused(error: click.ClickException) -> str:
    """What is wrong with a command line, and which help says what is right."""
    context = getattr(error, "ctx", None)
    return error.format_message().rstrip(".") + (f"; see `{context.command_path} -h`" if context else "")


def main() -> None:
    """Run the command line: one sentence for every expected error, and the documented exit codes."""
    # By default OpenMP threads spin for long while they wait, which makes small networks several times slower on
    # a busy machine; spinning briefly costs nothing on an idle one.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    streams.make_reliable()
    try:
        require_posix()
        _require_folder()
        code = cli.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = error.exit_code
    except click.ClickException as error:
        console.fail(_refused(error))
        code = error.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt):  # click makes the one of the other
        console.fail(interrupts.sentence())
        code = interrupts.EXIT_CODE
    except DDBenchError as error:
        console.fail(str(error))
        code = error.exit_code
    except OSError as error:  # a full disk, a folder that may not be written: nothing finished is lost
        streams.give_up_stdout()
        where = f" ({error.filename})" if error.filename else ""
        console.fail(f"{error.strerror or error}{where}; mend that and run the same command again")
        code = 3
    except ImportError as error:
        console.fail(
            f"{error}; something that ddbench needs is not installed whole, or there is too little memory to load it"
        )
        code = 3
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        what = str(error).strip().partition("\n")[0] or "no more memory"
        console.fail(
            f"{what}: what is finished is kept, and the same command goes on; `ddbench run --dry-run` predicts memory. "
            "Less is needed with a smaller -o matcher.batch_syn or matcher.batch_real, with --apart where an "
            "evaluation trains students together, or with a narrower network"
        )
        code = 3
    sys.exit(code if isinstance(code, int) else 0)
