"""Distil with given options and tell the validation accuracy: what studies of settings are judged by.

Nothing here reads the test split.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import torch

from ddbench.errors import DivergedError
from ddbench.run.run import Run, Settings
from ddbench.run.spec import Request, resolve


def validation_accuracies(request: Request, seeds: Iterable[int]) -> list[float]:
    """The selected set's validation accuracy for each seed; 0 for a run that diverged."""
    found = []
    for seed in seeds:
        spec = resolve(request.with_seed(seed)).spec
        torch.set_num_threads(spec.threads)
        with tempfile.TemporaryDirectory() as folder:
            run = Run(spec, spec.dataset.load(), Settings(Path(folder)))
            run.folder.mkdir(parents=True)
            try:
                notes = run.distil()[1]
            except DivergedError:
                found.append(0.0)
                continue
            found.append(notes[-1]["selected"]["accuracy"])
    return found


def request(ipc: int, scheduler: str = "single", matcher: str = "tesla", **options: Any) -> Request:
    """A request on digits: ``matcher__lr_init=0.1`` is ``-o matcher.lr_init=0.1``.

    Candidates are judged once, at the end, by three students for each of two learning rates and their own.
    """
    flags = tuple((name.replace("__", "."), str(value)) for name, value in options.items())
    judges = (("protocol.judges", "3"), ("protocol.checks", "1"), ("protocol.lrs", "0.01,0.03"))
    return Request(matcher=matcher, scheduler=scheduler, ipc=ipc, flags=judges + flags)


def cell(values: list[float]) -> str:
    """Mean and standard deviation over seeds, in percent."""
    return f"{100 * mean(values):.1f} ± {100 * pstdev(values):.1f}"


def table(head: list[str], body: list[list[Any]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
