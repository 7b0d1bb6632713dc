"""TESLA: trajectory matching with memory that does not grow with the student's steps.

Cui, Wang, Si & Hsieh, "Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory", ICML 2023. The method is
in ``tesla``; below it, ``ddbench.trajectory.unroll`` is the sweep.
"""

from __future__ import annotations

from pathlib import Path

from ddbench import hookimpl
from ddbench_tesla.tesla import Tesla


@hookimpl
def register_matchers(register) -> None:
    register(Tesla, recipes=Path(__file__).with_name("recipes.toml"))
