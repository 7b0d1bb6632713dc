"""Seconds of distilling until a fixed validation accuracy, and what each setting of an engine does to them.

    python benchmarks/time_to_accuracy.py --data cifar10-jpeg.zip --target 0.34 --out runs
    python benchmarks/time_to_accuracy.py --data cifar10.zip --full --target 0.6 --out runs      # width 128, a GPU

The task is CIFAR-10 at 10 images per class with hard labels throughout, so that no method gains by its labels: 3,000
images and a ConvNet of width 16, or with ``--full`` all images and width 128. Every setting is an ordinary run whose
set is judged on validation data ``--checks`` times; a run that is there already is read, not made again. Experts are
cached and shared, and their seconds stand in a column of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ddbench.meter import machine

TRAJECTORY = "matcher.experts=5 matcher.span=1 matcher.max_start=5 matcher.syn_steps=10 matcher.batch_syn=50 "
TRAJECTORY += "matcher.steps=120 matcher.lr_init=0.03 matcher.labels=hard matcher.lr_img=100"
SETTINGS = {
    "tesla zero": ("tesla", TRAJECTORY),
    "tesla exact": ("tesla", f"{TRAJECTORY} matcher.curvature=exact"),
    "tesla exact, window 5": ("tesla", f"{TRAJECTORY} matcher.curvature=exact matcher.window=5"),
    "tesla zero, no momentum, lr_img x 2": ("tesla", f"{TRAJECTORY} matcher.momentum=0 matcher.lr_img=200"),
    "mtt": ("mtt", TRAJECTORY),
    "dm": ("dm", "matcher.steps=300 matcher.batch_real=64 matcher.lr_img=5"),
    "random": ("random", ""),
}
SMALL = "dataset.limit=3000 network.width=16 protocol.steps=200 protocol.lrs=0.01,0.03 protocol.judges=2"
FULL = "network.width=128 protocol.lrs=0.01,0.03 protocol.judges=2"


def run(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """The row of one setting: when it reached the target, and what it reached at all."""
    matcher, options = SETTINGS[name]
    flags = f"{FULL if given.full else SMALL} protocol.checks={given.checks} {options}".split()
    command = [sys.executable, "-m", "ddbench", "run", "--dataset", "images", "-o", f"dataset.root={given.data}",
               "--matcher", matcher, "--ipc", "10", "--seed", str(given.seed), "--students", "1", "--out", given.out,
               "--no-random", "--no-ceiling", "--quiet", "--format", "json",
               *(word for flag in flags for word in ("-o", flag))]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        return {"setting": name, "error": done.stderr.strip().splitlines()[-1]}
    row = json.loads(done.stdout)[0]
    notes = json.loads((Path(given.out) / row["run"] / "stage-0" / "result.json").read_text())
    timed = zip(notes["checks"], notes["check_seconds"], strict=True)
    hit = next(((check["step"], seconds) for check, seconds in timed if check["accuracy"] >= given.target), None)
    return {
        "setting": name,
        "seconds to target": None if hit is None else round(hit[1], 1),
        "iterations to target": None if hit is None else hit[0],
        "best on validation": max(check["accuracy"] for check in notes["checks"]),
        "seconds per iteration": notes["seconds"] / notes["steps"] if notes["steps"] else 0.0,
        "seconds of experts": row["expert_seconds"],
        "run": row["run"],
    }


def main() -> None:
    """Print the table in Markdown, and store the rows beside the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="an archive of images, {train,test}/<class>/*")
    parser.add_argument("--target", type=float, default=0.34, help="validation accuracy to reach, a fraction")
    parser.add_argument("--checks", type=int, default=10, help="judgements on validation data per run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full", action="store_true", help="all images and width 128")
    parser.add_argument("--out", default="runs")
    parser.add_argument("--only", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    given = parser.parse_args()
    rows = []
    for name in given.only:
        rows.append(run(name, given))
        print(json.dumps(rows[-1]), flush=True)
    record = {"target": given.target, "seed": given.seed, "machine": machine("cpu"), "rows": rows}
    (Path(given.out) / "time-to-accuracy.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
