"""What a run will take, counted by hand, and that a long one says so before it starts."""

from __future__ import annotations

import pytest
from problems import task_of
from tiny import ddbench, spec, words

from ddbench.errors import UsageError
from ddbench.plugins import passes_of
from ddbench.run import price
from ddbench.run.forecast import forecast
from ddbench.run.price import LONG, Work, remember, seconds_of, told, work_of
from ddbench.run.run import Run, Settings
from ddbench.run.runs import _say_time


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("DDBENCH_HOME", str(tmp_path / "home"))


def test_the_work_of_a_run_is_counted():
    """Two experts of two epochs on n images; 4 iterations of 3 student steps on 6; 2 checks by 1 judge at 2 lrs."""
    made = spec("tesla", ipc=2)
    task = task_of(made)
    found = work_of(made, task, students=5)
    assert found.experts == 2 * 2 * len(task.real)
    assert found.distilling == 4 * 2.5 * 3 * 6
    assert found.grading == 12 * 6 * (2 * 1 * 2 + 5)
    assert found.known == found.experts + found.distilling + found.grading


def test_epochs_of_steps_and_stages_are_counted_as_they_are():
    made = spec("tesla", "pdd", ipc=2, experts__epoch_steps=7)
    found = work_of(made, task_of(made), students=0)
    assert found.experts == 2 * 2 * 2 * 7 * 9  # stages x experts x epochs x steps x batch
    assert work_of(spec("random", ipc=2), task_of(made), 0).experts == 0


def test_lessons_of_start_networks_are_counted_for_matchers_that_draw_them():
    """12 student steps in two phases of 6, on 2 x 3 images of the first stage: what each of 4 draws is taught."""
    made = spec("dm", "pdd", ipc=4, matcher__steps=4, scheduler__stages=2)
    assert work_of(made, task_of(made), 0).lessons == 4 * 6 * 6
    few = spec("dm", "pdd", ipc=4, matcher__steps=4, scheduler__stages=2, scheduler__networks=3)
    assert work_of(few, task_of(few), 0).lessons == 3 * 6 * 6
    third = spec("dm", "pdd", ipc=6, matcher__steps=4, scheduler__stages=3)  # 4 steps each, on 6 and on 12 images
    assert work_of(third, task_of(third), 0).lessons == 4 * (4 * 6) + 4 * (4 * 6 + 4 * 12)
    for name, scheduler in (("dm", "single"), ("dm", "boost"), ("tesla", "pdd")):
        assert work_of(spec(name, scheduler, ipc=4), task_of(made), 0).lessons == 0


def test_matchers_tell_their_work_or_nothing():
    task = task_of(spec("dm", ipc=2))
    assert passes_of(spec("dm", matcher__batch_real=4).matcher, task) == 3 * (0.5 * 4 + 2)
    outer = spec("dc", matcher__batch_real=4, matcher__outer=3, matcher__inner=2).matcher
    assert passes_of(outer, task) == 3 * (3 * 4 + 2 * 6) + 2 * 2 * 6
    assert passes_of(spec("ncfm").matcher, task) is None
    assert passes_of(object(), task) is None


def test_seconds_follow_from_what_earlier_runs_took(monkeypatch):
    made = spec("tesla", ipc=2)
    task = task_of(made)
    work = work_of(made, task, 5)
    monkeypatch.setattr(price, "LITTLE", 1)
    monkeypatch.setattr(price, "_timed", lambda task: 0.5)
    assert seconds_of(made, task, 5) == pytest.approx(0.5 * work.known)
    remember(made, task, [{"seconds": 36.0, "expert_seconds": 8.0}])
    kept = seconds_of(made, task, 5)
    assert kept == pytest.approx(36.0 + 8.0 + work.grading * 8.0 / work.experts)
    wider = spec("tesla", ipc=2, network__width=16)
    assert seconds_of(wider, task_of(wider), 5) == pytest.approx(0.5 * work_of(wider, task, 5).known)


@pytest.mark.parametrize("text", ["no json", "[]", '{"a": 3}', '{"a": {"experts": "fast"}}', '{"a": {"experts": -1}}'])
def test_a_damaged_record_of_speeds_is_as_none(tmp_path, text, monkeypatch):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / price.FILE).write_text(text)
    made = spec("tesla", ipc=2)
    monkeypatch.setattr(price, "LITTLE", 1)
    assert (seconds_of(made, task_of(made), 5) or 0) > 0


def test_little_work_and_untold_work_have_no_price():
    made = spec("tesla", ipc=2)
    assert seconds_of(made, task_of(made), 5) is None
    assert "time, with experts and grading" not in forecast(made, made.dataset.load())
    assert Work(1.0, None, 2.0).known == 3.0


def test_a_forecast_says_the_time(monkeypatch):
    monkeypatch.setattr(price, "LITTLE", 1)
    monkeypatch.setattr(price, "_timed", lambda task: 10.0)
    made = spec("tesla", ipc=2)
    assert forecast(made, made.dataset.load())["time, with experts and grading"].startswith("about ")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(20, "a minute"), (2400, "40 minutes"), (11520, "3.2 hours"), (2.5 * 86400, "2.5 days")],
)
def test_times_are_told_as_people_say_them(seconds, said):
    assert told(seconds) == said


def test_a_run_of_more_than_an_hour_says_so_and_names_the_other_recipe(tmp_path, monkeypatch):
    monkeypatch.setattr(price, "LITTLE", 1)
    monkeypatch.setattr(price, "_timed", lambda task: LONG)
    given = (*words("tesla", ipc=2), "--out", tmp_path / "out", "--students", 1, "--no-random", "--no-ceiling")
    first = ddbench("run", *given, home=tmp_path / "home")
    assert first.code == 0
    assert "this run will take about" in first.err
    assert "days on this machine" in first.err
    again = ddbench("run", *given, home=tmp_path / "home")
    assert "this run will take" not in again.err


@pytest.mark.parametrize(("networks", "said"), [("none", True), ("1", False)])
def test_a_long_run_that_mostly_teaches_start_networks_says_how_to_teach_fewer(tmp_path, monkeypatch, networks, said):
    monkeypatch.setattr(price, "LITTLE", 1)
    monkeypatch.setattr(price, "_timed", lambda task: LONG)
    options = {"scheduler__stages": 2, "matcher__steps": 900, "matcher__batch_real": 1}
    made = spec("dm", "pdd", ipc=2, **options, scheduler__networks=networks)
    heard: list[str] = []
    _say_time(Run(made, made.dataset.load(), Settings(tmp_path)), heard.append)
    assert "this run will take about" in heard[0]
    assert ("-o scheduler.networks=10 teaches ten" in heard[0]) == said


def test_work_of_less_than_a_second_says_nothing_of_a_machines_speed(tmp_path):
    made = spec("tesla", ipc=2)
    remember(made, task_of(made), [{"seconds": 0.2, "expert_seconds": 0.1}])
    assert not (tmp_path / "home" / price.FILE).exists()


@pytest.mark.parametrize("method", ["needs", "passes"])
def test_a_matcher_that_refuses_to_tell_fails_neither_forecast_nor_run(monkeypatch, tmp_path, method):
    """What is refused is the whole budget: a stage's may be fine, and a run that is done is not lost."""
    made = spec("tesla", ipc=2)
    task = task_of(made)

    def refuses(self, problem):
        raise UsageError("too many for one stage")

    monkeypatch.setattr(type(made.matcher), method, refuses)
    assert seconds_of(made, task, 5) is None
    remember(made, task, [{"seconds": 36.0, "expert_seconds": 8.0}])
    assert not (tmp_path / "home" / price.FILE).exists()
