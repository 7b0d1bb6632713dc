"""Whether a class has the methods that it will be called by, with room for what they are given."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

Methods = Mapping[str, tuple[str, ...]]  # the names of the arguments, in order


def methods_flaw(cls: type, required: Methods, optional: Methods) -> str | None:
    """What is wrong with a method: it lacks, or cannot be called with its arguments by position; None for nothing."""
    for method, arguments in {**required, **optional}.items():
        if not callable(getattr(cls, method, None)):
            if method in required:
                return f"no method {method}()"
        elif flaw := _signature_flaw(cls, method, arguments):
            return flaw
    return None


def _signature_flaw(cls: type, method: str, arguments: tuple[str, ...]) -> str | None:
    itself = () if isinstance(inspect.getattr_static(cls, method), (staticmethod, classmethod)) else ("self",)
    try:
        signature = inspect.signature(getattr(cls, method))
    except (TypeError, ValueError):  # of a callable that cannot tell
        return None
    try:
        signature.bind(*itself, *arguments)
    except TypeError as error:
        return f"{method}{signature}, which must take ({', '.join((*itself, *arguments))}): {error}"
    return None
