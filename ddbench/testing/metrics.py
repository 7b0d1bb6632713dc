"""A metric on trial: on made-up predictions, or on a student of the toy task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ddbench import Examinee, Problem, Seed, predict
from ddbench.hookspecs import Examining, Marking, Metric
from ddbench.testing.findings import Findings, require
from ddbench.testing.watch import steady, watched

STEPS = 20  # of the student that is examined


def examine_metric(found: Findings, measure: Metric, task: Problem) -> None:
    """All checks of a metric."""
    if isinstance(measure, Examining):
        _examine_student(found, measure, task)
    else:
        _examine_predictions(found, measure)


def _examine_predictions(found: Findings, measure: Any) -> None:
    name, targets = f"metric {measure.name!r}", torch.arange(30) % 5
    right = torch.eye(5)
    with Seed(0).scope():
        cases = {"random": torch.randn(30, 5), "perfect": 9 * right[targets], "wrong": 9 * right[(targets + 1) % 5]}
    for case, logits in (cases | {"equal": torch.ones(30, 5)}).items():
        given = (logits.clone(), targets.clone())
        with found.checking("number", "arguments", vital=True), watched(found, name):
            value = measure(*given)
            number = isinstance(value, float) and math.isfinite(value)
            require(number, f"{name} must give a finite float, got {value!r} for {case} predictions; use float(...)")
            kept = torch.equal(given[0], logits) and torch.equal(given[1], targets)
            require(kept, f"{name} changes its arguments in place; clone them first", "arguments")
        with found.checking("range"):
            _check_range(measure, [value], f"for {case} predictions")
        with found.checking("repeat"):
            said = f"{name} gives two numbers for the same {case} predictions"
            steady(lambda given=given: measure(*given), said)


def _check_range(measure: Any, values: Iterable[float], where: str) -> None:
    """Numbers lie within ``bounds``, (least, most), where a metric names some."""
    bounds = getattr(measure, "bounds", (-math.inf, math.inf))
    pair = isinstance(bounds, tuple) and len(bounds) == 2 and all(isinstance(b, (int, float)) for b in bounds)
    require(pair, f"bounds of metric {measure.name!r} must be two numbers, (least, most), got {bounds!r}")
    for value in values:
        said = f"metric {measure.name!r} gives {value:g} {where}, outside of its bounds {bounds}"
        require(bounds[0] <= value <= bounds[1], said)


def _examine_student(found: Findings, measure: Any, problem: Problem) -> None:
    name, examine = f"metric {measure.name!r}", measure.examine
    vectors = [problem.starts[i] for i in range(STEPS + 1)]
    with found.checking("number", "arguments", vital=True), watched(found, f"examine() of {name}"):
        marks = sorted(measure.marks(STEPS)) if isinstance(measure, Marking) else []
        whole = all(isinstance(m, int) for m in marks)
        require(whole, f"{name} must mark optimiser steps by whole numbers, got {marks}")
        trail = tuple((m, vectors[m]) for m in marks if 0 < m <= STEPS)
        logits, targets = predict(problem.network, vectors[-1], problem.real)
        student = Examinee(problem.network, vectors[-1], problem.real, logits, targets, trail, STEPS)
        found_ = _numbers(name, student, examine)
    with found.checking("range"):
        _check_range(measure, found_.values(), "for a student")
    with found.checking("repeat"):
        steady(lambda: examine(student), f"{name} gives two answers for the same student")


def _numbers(name: str, student: Examinee, examine: Callable[[Examinee], dict[str, float]]) -> dict[str, float]:
    """What a metric says of a student, which stays as it was."""
    parts: list[Tensor] = [student.vector, student.logits, student.targets]
    before = [part.clone() for part in parts]
    found = examine(student)
    numbers = isinstance(found, dict) and all(isinstance(v, float) and math.isfinite(v) for v in found.values())
    require(numbers and found, f"{name} must give a dictionary of finite floats, got {found!r}; use float(...)")
    kept = all(torch.equal(a, b) for a, b in zip(before, parts, strict=True))
    require(kept, f"{name} changes its arguments in place; clone them first", "arguments")
    return found
