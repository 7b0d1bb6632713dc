"""PDD: progressive dataset distillation, a scheduler that works with any matcher.

``progressive`` is the method: what a stage is asked, and what students learn in which order. ``easy`` is its option
``drop``. How budgets are divided, ``ddbench.problem.stages`` says, for all schedulers in stages.
"""

from __future__ import annotations

from ddbench import hookimpl
from ddbench_pdd.progressive import Progressive


@hookimpl
def register_schedulers(register) -> None:
    register(Progressive)
