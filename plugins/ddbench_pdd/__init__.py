"""PDD: progressive dataset distillation, a scheduler that works with any matcher."""

from __future__ import annotations

from ddbench import hookimpl
from ddbench_pdd.progressive import Progressive


@hookimpl
def register_schedulers(register) -> None:
    register(Progressive)
