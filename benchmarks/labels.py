"""Which labels? ``python benchmarks/labels.py`` prints the table of labels in docs/tesla.md."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from validation import cell, request, table, validation_accuracies

from ddbench.base.machine import machine
from ddbench.run.spec import resolve

KINDS = {
    "hard": {"matcher__labels": "hard"},
    "teacher": {"matcher__labels": "teacher", "matcher__teacher_epochs": 20},
    "teacher, where segments end": {"matcher__labels": "teacher"},
    "teacher, relabelled in every iteration": {"matcher__labels": "teacher", "matcher__relabel": True},
    "learned": {"matcher__labels": "learned"},
}


def main() -> None:
    spec = resolve(request(1)).spec
    torch.set_num_threads(spec.threads)
    about = machine("cpu")
    print(f"{about['device']}, {spec.threads} threads, torch {about['torch']}\n")
    body = []
    for name, options in KINDS.items():
        row = [name, *(cell(validation_accuracies(request(ipc, **options), range(3))) for ipc in (1, 10))]
        body.append(row)
        print(row, file=sys.stderr)
    print(table(["labels", "ipc 1", "ipc 10"], body))


if __name__ == "__main__":
    main()
