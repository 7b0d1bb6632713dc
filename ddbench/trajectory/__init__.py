"""The gradient engine: unrolled students differentiated at constant memory, and what trajectory matchers share.

May import: problem, train, data, base; plugins, ``ddbench.testing`` and ``check-grad`` import it, nothing else. Start
with ``unroll``, whose table names the symbols; ``method`` is the skeleton of a trajectory matcher.
"""

from __future__ import annotations

import importlib
from typing import Any

from ddbench.base.moved import deprecated

# What stood in the module ``ddbench.trajectory`` before it became this package.
_MOVED = {
    "Differentiate",
    "Method",
    "PixelState",
    "SHARP",
    "Segment",
    "Swept",
    "advance",
    "begin",
    "ensemble_labels",
    "finish",
    "needs",
}


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        raise AttributeError(f"module 'ddbench.trajectory' has no attribute {name!r}")
    deprecated(f"ddbench.trajectory.{name}", f"ddbench.trajectory.method.{name}")
    found = globals()[name] = getattr(importlib.import_module("ddbench.trajectory.method"), name)  # one warning
    return found
