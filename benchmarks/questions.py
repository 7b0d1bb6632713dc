"""The records behind docs/questions, of the runs of a suite: ``python benchmarks/questions.py labels --out runs``.

``labels`` grades the set of every finished cell of the suite questions-labels with hard, fixed soft and online labels,
with augmentation and without, beside random images and images that are as hard (``ddbench eval --controls``).
``coresets``, ``larger``, ``images`` (suite anybodys-images) and ``stages`` (suite cifar10-jpeg) take the cells of their
suites as they are; where a run of ``images`` was graded beside the whole training set, its row says what that teaches,
and a row of ``stages`` says what each stage matched.

Every student is stored, so that the same command goes on after an interruption; the record is written after each set,
seed by seed. Rows are those of ``ddbench compare --per-run --format json``, without the options, which the suite says;
those of ``labels`` have a matrix of controls besides. Rows of other runs stay in the file.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ddbench.apply.controls import MATCHED, control_matrix
from ddbench.base.cache import atomic_write
from ddbench.base.machine import keep_freed_memory
from ddbench.cli.suite import part
from ddbench.files.asked import EvalOptions
from ddbench.files.target import opened
from ddbench.results.aggregate import per_run
from ddbench.run.defaults import BASELINE
from ddbench.run.folder import finished
from ddbench.run.place import folder_of
from ddbench.run.record import RunRecord
from ddbench.run.run import Settings
from ddbench.suite.grid import Suite, read
from ddbench.suite.places import suite_file

LEFT_OUT = ("selection", "protocol", "accuracy_std", "student_lr")  # of a cell
# What a page reads of a row, and what says which run it is; the suite says its options.
KEPT = ("accuracy_mean", "accuracy_std", "dataset", "dataset_digest", "device", "distil_seconds", "evaluation")
KEPT += ("expert_seconds", "ipc", "label_bytes", "label_type", "matcher", "n", "network", "protocol", "protocol_digest")
KEPT += ("run", "scheduler", "seed", "selected_accuracy", "selection", "selection_seconds", "setting", "status")
KEPT += ("stages", "steps", "train_images", "whole")
SUITES = {"images": "anybodys-images", "stages": "cifar10-jpeg"}  # of others it is questions- and their name
PARTS = 10  # of a stage: its first is compared with its last, and that with the one before
RESULTS = Path(__file__).parents[1] / "docs" / "results"


def folders(suite: Suite, out: Path) -> list[Path]:
    """The finished runs of a suite's cells, those of the first seed before those of the next."""
    return [folder for cell in suite.cells if finished(folder := folder_of(cell.spec, out)) is not None]


def rows(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """What ``ddbench compare --per-run`` makes of runs."""
    return per_run([row for folder in runs for row in RunRecord.read(folder).rows()])


def with_whole(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Their rows, with the accuracy of the whole training set where it is known."""
    known = {folder.name: found.whole for folder in runs if (found := finished(folder)) is not None}
    return [row | ({"whole": whole.accuracy_mean} if (whole := known[row["run"]]) else {}) for row in rows(runs)]


def with_losses(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Their rows, with what each stage matched as ``stages``."""
    logs = {folder.name: folder / "metrics.jsonl" for folder in runs}
    return [row | {"stages": stages(path) if (path := logs[row["run"]]).exists() else []} for row in rows(runs)]


def stages(log: Path) -> list[dict[str, float]]:
    """Of each stage the mean loss of its first and last tenth, and the last's relative change from the tenth before."""
    losses: dict[int, list[float]] = {}
    for line in map(json.loads, log.read_text(encoding="utf-8").splitlines()):
        if line.get("loss") is not None:
            losses.setdefault(line["stage"], []).append(line["loss"])
    found = []
    for _, seen in sorted(losses.items()):
        size = max(1, len(seen) // PARTS)
        first, last, before = (fmean(part) for part in (seen[:size], seen[-size:], seen[-2 * size : -size] or seen))
        found.append({"first": first, "last": last, "change": last / before - 1 if before else 0.0})
    return found


def with_controls(suite: Suite, runs: Sequence[Path], out: Path) -> Iterator[dict[str, Any]]:
    """The row of each run that is not of random images, with its matrix as ``controls``."""
    options = EvalOptions(students=suite.students, quiet=True)
    graded = {row["run"]: row for row in rows(runs) if row["protocol"] == row["distil_protocol"]}
    for folder in runs:
        if (row := graded[folder.name])["matcher"] != BASELINE:
            found = control_matrix(opened(str(folder), out, options), options, Settings(out), (MATCHED,))
            yield row | {"controls": found.rows}


def store(path: Path, found: Sequence[dict[str, Any]]) -> None:
    """Write rows into a compressed record, a line for each, in place of those of the same runs."""
    held = {row["run"]: row for row in (json.loads(gzip.decompress(path.read_bytes())) if path.exists() else [])}
    lines = [json.dumps(_lean(row), sort_keys=True) for row in (held | {row["run"]: row for row in found}).values()]
    atomic_write(path, gzip.compress(("[\n" + ",\n".join(lines) + "\n]\n").encode(), mtime=0))  # equal for equal rows


def _lean(row: dict[str, Any]) -> dict[str, Any]:
    """What a page reads of a row, where it is known."""
    kept = {name: row[name] for name in KEPT if row.get(name) is not None}
    if "controls" in row:
        cells = [{n: v for n, v in cell.items() if n not in LEFT_OUT} for cell in row["controls"]]
        kept["controls"] = cells
    return kept


def main() -> None:
    """Make or complete a record; exit 1 while cells of the suite are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", choices=["labels", "coresets", "larger", "images", "stages"])
    parser.add_argument("--out", type=Path, default=Path("runs"), help="where the runs of the suite are")
    parser.add_argument("--only", action="append", default=[], help="a part of the suite, as for `ddbench suite run`")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--to", type=Path, help="the record; by default the one that the documentation is made of")
    given = parser.parse_args()
    keep_freed_memory()
    only = part(None, None, tuple(given.only))
    name = SUITES.get(given.question, f"questions-{given.question}")
    suite = read(suite_file(Path(name)), device=given.device, only=only)
    runs, path = folders(suite, given.out), given.to or RESULTS / f"questions-{given.question}.json.gz"
    if given.question != "labels":
        store(path, {"images": with_whole, "stages": with_losses}.get(given.question, rows)(runs))
    else:
        for row in with_controls(suite, runs, given.out):
            store(path, [row])
            print(f"{row['run']}: {len(row['controls'])} cells", file=sys.stderr, flush=True)
    print(f"{len(runs)} of {len(suite.cells)} runs are finished", file=sys.stderr)
    sys.exit(len(runs) < len(suite.cells))


if __name__ == "__main__":
    main()
