"""What comes with ddbench besides its code: leaderboards with their suites, and examples of plugins.

A wheel holds them inside the package (``pyproject.toml`` puts them there); in a checkout they lie beside it.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def shipped(what: str) -> Path:
    """The folder of ``leaderboards`` or ``examples`` that came with this ddbench."""
    inside = PACKAGE / "shipped" / what
    return inside if inside.is_dir() else PACKAGE.parent / what
