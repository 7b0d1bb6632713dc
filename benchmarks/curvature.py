"""Zero or exact curvature? ``python benchmarks/curvature.py`` prints the tables of docs/tesla.md.

1. How far TESLA's gradient is from the true one, on real experts, against T and beta.
2. What that means for the distilled set: validation accuracy on digits, 3 seeds each.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean

import torch

sys.path.insert(0, str(Path(__file__).parent))
from validation import cell, request, table, validation_accuracies

from ddbench.base.machine import machine
from ddbench.base.seeds import Seed
from ddbench.run.prepare import prepared
from ddbench.run.run import build_task
from ddbench.run.spec import resolve
from ddbench.trajectory.unroll import Plan, matching, reverse, student_loss

SEGMENTS = 10


def cosines(ipc: int, syn_steps: int, lr: float) -> list[str]:
    """Mean over segments: cosine of the image gradients, ratio of norms, ratio of the lr gradients."""
    spec = resolve(request(ipc, matcher__labels="hard")).spec
    task = build_task(spec, spec.dataset.load())
    problem = prepared(task, spec.matcher.needs(task))
    found = []
    for i in range(SEGMENTS):
        with (Seed(0) / "segment" / i).scope():
            examples = problem.sample()
            pool = problem.frozen.pool(examples.images, examples.labels)
            start, target = problem.experts.segment(
                i % spec.matcher.experts, i % spec.matcher.max_start, spec.matcher.span
            )
            plan = Plan.draw(len(pool), syn_steps, None, problem.dsa)
        unroll = (student_loss(problem.network), matching(start, target), start, pool, torch.tensor(lr), plan)
        zero, exact = (reverse(*unroll, curvature=c) for c in ("zero", "exact"))
        a, b = zero.images.flatten(), exact.images.flatten()
        found.append((float(a @ b / (a.norm() * b.norm())), float(a.norm() / b.norm()), float(zero.lr / exact.lr)))
    return [f"{mean(values):.3f}" for values in zip(*found, strict=True)]


def main() -> None:
    spec = resolve(request(1)).spec
    torch.set_num_threads(spec.threads)
    about = machine("cpu")
    print(f"{about['device']}, {spec.threads} threads, torch {about['torch']}\n")
    body = []
    for ipc in (1, 10):
        for steps in (10, 30):
            body += [[ipc, steps, lr, f"{steps * lr:g}", *cosines(ipc, steps, lr)] for lr in (0.01, 0.03, 0.1, 0.3)]
    print(
        table(["ipc", "T", "β", "T·β", "cosine (images)", "norm zero/exact (images)", "dL/dβ zero/exact"], body), "\n"
    )
    body = []
    for steps, lr, learned in ((10, 0.03, True), (10, 0.1, True), (30, 0.03, True), (30, 0.1, True), (30, 0.1, False)):
        row = [1, steps, lr, "learned" if learned else "fixed"]
        for options in ({"curvature": "zero"}, {"curvature": "exact"}, {"curvature": "exact", "window": 10}):
            if "window" in options and steps == 10:
                row.append("")
                continue
            given = {f"matcher__{name}": value for name, value in options.items()}
            if not learned:
                given["matcher__lr_lr"] = 0.0
            asked = request(
                1, matcher__labels="hard", matcher__syn_steps=steps, matcher__lr_init=lr, matcher__steps=150, **given
            )
            row.append(cell(validation_accuracies(asked, range(3))))
        body.append(row)
        print(row, file=sys.stderr)
    print(table(["ipc", "T", "β at the start", "β", "zero", "exact", "exact, window 10"], body))


if __name__ == "__main__":
    main()
