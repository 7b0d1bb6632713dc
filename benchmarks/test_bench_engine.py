"""The engine's speed as ratios to two-pass TESLA, methods taking turns in one process; compiles for two minutes."""

from __future__ import annotations

import statistics

import pytest
from two_pass import measure, methods, ratios, task

from ddbench.train.compile import account

WIDTH, BATCH, STEPS, ROUNDS = 32, 50, 4, 7


def error(seen, expected) -> float:
    return float((seen - expected).norm() / expected.norm())


@pytest.fixture(scope="module")
def faster():
    """How many times faster than two passes each method is, as the median over rounds."""
    times = measure(methods(task(WIDTH, BATCH, STEPS), ("eager", "compiled")), ROUNDS)
    notes = account()
    if any(note["engine"] == "eager" for note in notes):
        pytest.skip(f"nothing is compiled here: {notes[0]['reason']}")
    return {name: statistics.median(values) for name, values in ratios(times).items()}


@pytest.mark.parametrize("layers", ["two-pass", "two-pass, our layers"])
def test_two_passes_and_the_engine_compute_the_same_gradient(layers):
    made = methods(task(16, 10, 3), ("eager",))
    seen, expected = made["zero eager"](), made[layers]()
    for name in ("loss", "images", "labels", "lr", "end"):
        assert error(getattr(seen, name), getattr(expected, name)) < 1e-4, name


def test_compiled_steps_are_faster_than_two_passes(faster):
    assert faster["zero compiled"] > 1.4
    assert faster["exact compiled"] > 1.15


def test_eager_steps_are_no_slower_than_two_passes(faster):
    assert faster["zero eager"] > 0.9
    assert faster["exact eager"] > 0.85


@pytest.mark.parametrize("method", ["two-pass", "mtt", "zero eager", "exact eager"])
def test_one_student_step(benchmark, method):
    benchmark.group = f"width {WIDTH}, {BATCH} images, {STEPS} steps"
    benchmark.pedantic(methods(task(WIDTH, BATCH, STEPS), ("eager",))[method], rounds=3, warmup_rounds=1)
