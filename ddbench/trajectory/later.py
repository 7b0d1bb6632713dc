"""Options that differ from stage to stage, as in SeqMatch's script: segments begin elsewhere, at another student lr."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol, TypeVar

from ddbench.errors import UsageError
from ddbench.problem.problem import Problem


class _Later(Protocol):
    @property
    def later_max_start(self) -> tuple[int, ...]: ...
    @property
    def later_lr_init(self) -> tuple[float, ...]: ...


_M = TypeVar("_M", bound=_Later)


def in_stage(method: _M, problem: Problem) -> _M:
    """A trajectory matcher in a problem's stage: the same in the first, with its later options from there on."""
    stage, changes = len(problem.frozen), dict[str, Any]()
    for name in ("max_start", "lr_init"):
        later = getattr(method, f"later_{name}")
        if stage and later:
            changes[name] = later[min(stage, len(later)) - 1]
    return replace(method, **changes) if changes else method  # type: ignore[type-var]


def check_later(method: _Later) -> None:
    """Raises UsageError where a later stage could draw no segment, or its student not move."""
    if wrong := [value for value in method.later_max_start if value < 1]:
        raise UsageError(f"matcher.later_max_start must hold numbers from 1, got {wrong[0]}")
    if wrong := [value for value in method.later_lr_init if value <= 0]:
        raise UsageError(f"matcher.later_lr_init must hold learning rates above 0, got {wrong[0]:g}")
