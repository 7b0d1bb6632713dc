"""Seconds of distilling until a fixed validation accuracy, and what each setting of an engine does to them.

    python benchmarks/time_to_accuracy.py --data cifar10-jpeg.zip --out runs
    python benchmarks/time_to_accuracy.py --data cifar10.zip --full --target 0.6 --out runs      # width 128, a GPU

The task is CIFAR-10 at 10 images per class with hard labels throughout, so that no method gains by its labels: 5,000
images, 2,000 of them for validation, and a ConvNet of width 16; or with ``--full`` all images and width 128. Every
setting is an ordinary run whose set is judged on validation data ``--checks`` times; a run that is there already is
read, not made again. Since other work may run beside them, an iteration's seconds are measured apart: those of its
gradients on noise, as CPU time of one thread (on CUDA until the GPU is done), settings taking turns, the median of
``--rounds``. Iterations of ``dm``, which unrolls nothing, are timed in its runs. Seconds to the target are iterations
times that; experts, which settings share, and judging are in neither.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from two_pass import task, until_done

from ddbench.base.machine import keep_freed_memory, machine
from ddbench.base.options import make
from ddbench.plugins import registry
from ddbench.trajectory.unroll import Task, matching, student_loss

# What all matchers of trajectories share: small, and at full size (not measured yet).
TRAJECTORY = "matcher.experts=5 matcher.span=2 matcher.max_start=5 matcher.syn_steps=20 matcher.batch_syn=50 "
TRAJECTORY += "matcher.steps=40 matcher.lr_init=0.03 matcher.labels=hard matcher.lr_img=200 matcher.outer=sgd "
TRAJECTORY += "experts.batch=64 experts.lr=0.03 experts.epoch_steps=none"
LONG = "matcher.experts=16 matcher.span=2 matcher.max_start=15 matcher.syn_steps=20 matcher.batch_syn=none "
LONG += "matcher.steps=1000 matcher.lr_init=0.03 matcher.labels=hard matcher.lr_img=200 matcher.outer=sgd"
ADAM = "matcher.outer=adam matcher.lr_img=0.1"
# Matcher, and how it differs from what is shared; {half} is half of the iterations.
SETTINGS = {
    "tesla zero": ("tesla", ""),
    "tesla exact": ("tesla", "matcher.curvature=exact"),
    "mtt": ("mtt", ""),
    "dm": ("dm", "matcher.steps=300 matcher.batch_real=64 matcher.lr_img=5"),
    "random": ("random", ""),
    "tesla zero, Adam": ("tesla", ADAM),
    "tesla zero, lr_img x 3": ("tesla", "matcher.lr_img=600"),
    "tesla zero, no momentum, lr_img x 2": ("tesla", "matcher.lr_img=400 matcher.momentum=0"),
    "tesla exact, Adam": ("tesla", f"{ADAM} matcher.curvature=exact"),
    "tesla exact, Adam, window 10": ("tesla", f"{ADAM} matcher.curvature=exact matcher.window=10"),
    "tesla zero, Adam, T = 10": ("tesla", f"{ADAM} matcher.syn_steps=10"),
}
SMALL = "dataset.limit=5000 dataset.validation=0.4 network.width=16 protocol.steps=150 protocol.lrs=0.01 "
SMALL += "protocol.judges=2"
FULL = "network.width=128 protocol.lrs=0.01 protocol.judges=2"


def flags(name: str, *, full: bool, checks: int) -> list[str]:
    """The options of a setting, each once."""
    matcher, own = SETTINGS[name]
    shared = (LONG if full else TRAJECTORY) if matcher in ("tesla", "mtt") else ""
    half = 500 if full else 20
    text = f"{FULL if full else SMALL} protocol.checks={checks} {shared} {own.format(half=half)}"
    return [f"{key}={value}" for key, value in dict(pair.split("=") for pair in text.split()).items()]


def run(name: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """The row of one setting and seed: when it reached the target, and what it reached at all."""
    matcher, _ = SETTINGS[name]
    options = flags(name, full=given.full, checks=given.checks)
    command = [
        sys.executable,
        "-m",
        "ddbench",
        "run",
        "--dataset",
        "images",
        "-o",
        f"dataset.root={given.data}",
        "--matcher",
        matcher,
        "--ipc",
        "10",
        "--seed",
        str(seed),
        "--students",
        "1",
        "--out",
        given.out,
        "--no-random",
        "--no-ceiling",
        "--quiet",
        "--format",
        "json",
        *(word for flag in options for word in ("-o", flag)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        return {"setting": name, "seed": seed, "error": done.stderr.strip().splitlines()[-1]}
    row = json.loads(done.stdout)[0]
    notes = json.loads((Path(given.out) / row["run"] / "stage-0" / "result.json").read_text())
    hit = next((check["step"] for check in notes["checks"] if check["accuracy"] >= given.target), None)
    return {
        "setting": name,
        "seed": seed,
        "iterations to target": hit,
        "checks": {check["step"]: check["accuracy"] for check in notes["checks"]},
        "best on validation": max(check["accuracy"] for check in notes["checks"]),
        "seconds per iteration": notes["seconds"] / notes["steps"] if notes["steps"] else 0.0,
        "seconds of experts": row["expert_seconds"],
        "run": row["run"],
    }


def costs(names: list[str], given: argparse.Namespace) -> dict[str, float]:
    """Seconds of an iteration's gradients, for settings that unroll a student."""
    device = torch.device("cuda" if given.full else "cpu")
    clock = until_done if given.full else time.process_time
    torch.set_num_threads(1)
    keep_freed_memory()  # as in a run
    work = {name: _iteration(name, given, device) for name in names if SETTINGS[name][0] in ("tesla", "mtt")}
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(given.rounds + 1):  # the first warms up
        for name, call in work.items():
            begun = clock()
            call()
            times[name].append(clock() - begun)
    return {name: median(values[1:]) for name, values in times.items()}


def _iteration(name: str, given: argparse.Namespace, device: torch.device) -> Callable[[], None]:
    options = dict(pair.split("=") for pair in flags(name, full=given.full, checks=given.checks))
    own = {key.removeprefix("matcher."): value for key, value in options.items() if key.startswith("matcher.")}
    matcher = make(registry().get("matcher", SETTINGS[name][0]).cls, own, "matcher")
    t = task(int(options["network.width"]), matcher.batch_syn or 100, matcher.syn_steps, device=device.type)
    unroll = Task(student_loss(t.network), matching(t.start, t.target), t.start, t.pool, t.lr, t.plan)
    return lambda: matcher.differentiate(unroll)


def main() -> None:
    """Print the table in Markdown, and store the rows beside the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="an archive of images, {train,test}/<class>/*")
    parser.add_argument("--target", type=float, default=0.34, help="validation accuracy to reach, a fraction")
    parser.add_argument("--checks", type=int, default=5, help="judgements on validation data per run")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--rounds", type=int, default=5, help="iterations of each setting that are timed")
    parser.add_argument("--full", action="store_true", help="all images and width 128")
    parser.add_argument("--out", default="runs")
    parser.add_argument("--only", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    given = parser.parse_args()
    rows = []
    for seed in given.seeds:
        for name in given.only:
            rows.append(run(name, seed, given))
            print(json.dumps(rows[-1]), flush=True)
    took = costs(given.only, given)
    about = machine("cuda" if given.full else "cpu")
    record = {"target": given.target, "machine": about, "seconds per iteration": took, "rows": rows}
    (Path(given.out) / "time-to-accuracy.json").write_text(json.dumps(record, indent=2) + "\n")
    print(table(rows, took))


def table(rows: list[dict[str, Any]], took: dict[str, float]) -> str:
    """Markdown; seconds are those of the median seed, where a target that was never reached is infinitely late."""
    head = ["setting", "iterations", "s per iteration", "s to target", "best on validation %"]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for name in dict.fromkeys(row["setting"] for row in rows):
        mine = [row for row in rows if row["setting"] == name and "error" not in row]
        if not mine:
            lines.append([name, "failed", *[""] * (len(head) - 2)])
            continue
        cost = took.get(name) or median(row["seconds per iteration"] for row in mine)
        best = ", ".join(f"{100 * row['best on validation']:.1f}" for row in mine)
        its = [row["iterations to target"] for row in mine]
        late = median(math.inf if i is None else i for i in its)
        lines.append(
            [
                name,
                ", ".join("never" if i is None else str(i) for i in its),
                f"{cost:.2f}" if cost else "",
                "never" if math.isinf(late) else f"{late * cost:.0f}",
                best,
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
