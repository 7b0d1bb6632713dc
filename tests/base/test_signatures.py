"""Methods that are called by position: whether a class has them, with room for what they are given."""

from __future__ import annotations

import pytest

from ddbench.base.signatures import methods_flaw

REQUIRED, OPTIONAL = {"step": ("problem", "state", "k")}, {"examine": ("student",)}


def made(**methods: object) -> type:
    return type("Made", (), methods)


@pytest.mark.parametrize(
    "step",
    [
        lambda self, problem, state, k: None,
        lambda self, a, b, c, d=0: None,
        lambda *given: None,
        lambda self, problem, *rest, **more: None,
        staticmethod(lambda problem, state, k: None),
        classmethod(lambda cls, problem, state, k: None),
        print,
    ],
)
def test_methods_that_can_be_called_with_their_arguments_pass(step):
    assert methods_flaw(made(step=step), REQUIRED, OPTIONAL) is None


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ({}, "no method step()"),
        ({"step": 3}, "no method step()"),
        (
            {"step": lambda self, problem, state: None},
            "step(self, problem, state), which must take (self, problem, state, k): too many positional arguments",
        ),
        (
            {"step": lambda self, problem, state, k, more: None},
            "step(self, problem, state, k, more), which must take (self, problem, state, k): missing a required "
            "argument: 'more'",
        ),
        (
            {"step": staticmethod(lambda problem, state: None)},
            "step(problem, state), which must take (problem, state, k): too many positional arguments",
        ),
        (
            {"step": print, "examine": lambda self: 0},
            "examine(self), which must take (self, student): too many positional arguments",
        ),
    ],
)
def test_what_lacks_or_cannot_be_called_is_told_with_what_it_must_take(methods, said):
    assert methods_flaw(made(**methods), REQUIRED, OPTIONAL) == said
