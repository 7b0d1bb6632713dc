"""The progress of a whole command: parts weighed by what they are to take, and never backwards."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ddbench.base.progress import Event, listening, listening_too, report
from ddbench.cli import console
from ddbench.run.course import FINE, WHAT, Course

PARTS = {"experts": 20.0, "distilling": 60.0, "grading": 10.0, "beside": 10.0}


def told(runs, events, stages: int = 2) -> list[int]:
    """What of the whole is reported, after calls and events in their order."""
    seen: list[int] = []
    course = Course(runs, stages)
    with listening(lambda event: seen.append(event.done) if event.what == WHAT else None), listening_too(course):
        for one in events:
            if isinstance(one, int):
                course.begin(one)
            elif one == "beside":
                course.beside()
            else:
                report(*one)
    return seen


def test_parts_are_weighed_by_their_seconds():
    events = [0, ("experts", 1, 2), ("experts", 2, 2), ("stage 0 distilling", 5, 10), ("stage 0 distilling", 10, 10)]
    events += [
        ("stages", 1, 2),
        ("experts", 2, 2),
        ("stage 1 distilling", 10, 10),
        ("evaluation", 1, 2),
        ("evaluation", 2, 2),
    ]
    events += ["beside", ("evaluation", 1, 1)]
    # two stages: each is half of the experts' 20 s and half of the 60 s of distilling
    assert told([PARTS], events) == [0, 50, 100, 250, 400, 500, 800, 850, 900, 1000]


def test_a_run_that_is_over_counts_whole_and_one_that_was_there_nothing():
    none = dict.fromkeys(PARTS, 0.0)
    assert told([PARTS, none, PARTS], [0, 1, 2, ("stage 0 distilling", 1, 1)]) == [0, 500, 650]


@given(
    st.lists(
        st.sampled_from(
            [
                ("experts", 1, 3),
                ("experts", 3, 3),
                ("stage 0 distilling", 2, 3),
                ("lesson", 1, 9),
                ("stage 1 distilling", 1, 3),
                ("evaluation", 3, 5),
                ("selection", 1, 4),
            ]
        )
    )
)
def test_the_whole_only_grows_and_stays_within_itself(events):
    seen = told([PARTS, PARTS], [0, *events, "beside", 1, *events])
    assert seen == sorted(set(seen))
    assert all(0 <= done <= FINE for done in seen)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_people_see_a_percentage(monkeypatch, is_terminal):
    shown = Console(file=io.StringIO(), force_terminal=is_terminal, width=120, color_system=None)
    monkeypatch.setattr(console, "_console", lambda **_: shown)
    monkeypatch.setattr(console, "_PLAIN_SECONDS", -1.0)
    with console.Display() as display:
        display(Event(WHAT, 315, FINE))
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.file.getvalue())
    assert re.search(r"in all\W+31 %", text)


def test_the_time_left_waits_until_the_first_per_cents_are_over(monkeypatch):
    """Start-up counts as next to nothing of the whole, so that it would be said to take hours."""
    shown, now = Console(file=io.StringIO(), force_terminal=False, width=120), iter([0.0, 60.0, 120.0])
    monkeypatch.setattr(console, "_console", lambda **_: shown)
    monkeypatch.setattr(console, "_PLAIN_SECONDS", -1.0)
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    with console.Display() as display:
        for done in (0, 10, 500):
            display(Event(WHAT, done, FINE))
    first, second, third = shown.file.getvalue().splitlines()
    assert "left" not in first + second
    assert third.endswith("120 s left")
