"""How long a suite still takes: as cells like these took, others on average, over the places that there are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ddbench.suite.runner import Orders, Work


def work(tmp_path, jobs: int, times: dict[str, float], made: tuple[float, ...] = ()) -> Any:
    suite: Any = SimpleNamespace(key="k" * 12, title="a suite", cells=())
    found = Work(suite, Orders(tmp_path, jobs), lambda _: None, lambda _: None)
    found._times = times
    found.made = [{"status": "ok", "seconds": seconds} for seconds in made]
    return found


def cells(*keys: str) -> list[Any]:
    return [SimpleNamespace(key=key) for key in keys]


def test_cells_that_are_due_count_as_cells_like_them_and_others_as_the_mean(tmp_path):
    assert work(tmp_path, 1, {"a": 10.0, "b": 30.0})._left(cells("a", "c")) == pytest.approx(10 + 20)
    assert work(tmp_path, 2, {"a": 10.0, "b": 30.0})._left(cells("a", "c")) == pytest.approx(15)
    assert work(tmp_path, 1, {}, made=(8.0, 12.0))._left(cells("a")) == pytest.approx(10)


def test_cells_at_work_count_by_what_is_left_of_them_and_the_longest_decides(tmp_path):
    found = work(tmp_path, 2, {"a": 10.0, "b": 50.0})
    found._working = {"b": SimpleNamespace(seconds=4.0), "a": SimpleNamespace(seconds=99.0)}
    assert found._left([]) == pytest.approx(46)


def test_nothing_is_told_before_anything_is_known_or_when_all_is_done(tmp_path):
    assert work(tmp_path, 1, {})._left(cells("a")) is None
    assert work(tmp_path, 1, {"a": 1.0})._left([]) is None
