"""Flat experts, as FTD trains them: adaptive GSAM instead of plain SGD, at two gradients per step."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Protocol

from annotated_types import Ge

from ddbench import Needs, Problem

Flat = Annotated[bool, "experts are trained by adaptive GSAM, at twice the cost"]
Rho = Annotated[float, Ge(0), "size of GSAM's step to the worst neighbour (flat)"]
Alpha = Annotated[float, Ge(0), "how much of the gradient orthogonal to that neighbour's GSAM descends against (flat)"]


class _Flattening(Protocol):
    @property
    def flat(self) -> bool: ...
    @property
    def rho(self) -> float: ...
    @property
    def alpha(self) -> float: ...


def flat_needs(needs: Needs, problem: Problem, method: _Flattening) -> Needs:
    """The same experts, by the run's recipe with GSAM when the method wants flat ones."""
    if not method.flat:
        return needs
    flat = replace(problem.expert_recipe, optimizer="gsam", rho=method.rho, alpha=method.alpha)
    return replace(needs, recipe=flat)
