"""What boards say of the loss of every stage."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ddbench.boards.entry import Curve
from ddbench.boards.matched import matched


def runs(*curves: list[tuple[int, list[float]]]) -> list:
    """Runs with curves of (stage, losses)."""
    return [
        SimpleNamespace(curves=[Curve(stage=s, step=[*range(0, 10 * len(loss), 10)], loss=loss) for s, loss in held])
        for held in curves
    ]


def test_each_stage_tells_its_first_and_last_loss_as_means_over_seeds():
    told = matched("tesla pdd", 10, runs([(0, [2.0, 1.0, 0.5]), (1, [1.2, 0.9])], [(0, [4.0, 3.0, 1.0])]))
    assert told == [
        {"ipc": 10, "title": "tesla pdd", "stage": 0, "iterations": 21, "first": "3", "last": "0.75", "left": "25"},
        {"ipc": 10, "title": "tesla pdd", "stage": 1, "iterations": 11, "first": "1.2", "last": "0.9", "left": "75"},
    ]


@pytest.mark.parametrize("held", [[], [(0, [])]])
def test_an_entry_without_losses_has_no_row(held):
    assert matched("random", 1, runs(held)) == []


def test_a_loss_that_began_at_zero_has_no_share():
    assert matched("m", 1, runs([(0, [0.0, 0.1])]))[0]["left"] is None
