"""Methods that take a trained teacher and never match training: RDED and SRe2L."""

from __future__ import annotations

from pathlib import Path

from ddbench import hookimpl
from ddbench_decoupled.rded import Rded
from ddbench_decoupled.sre2l import Sre2l


@hookimpl
def register_matchers(register) -> None:
    for method in (Rded, Sre2l):
        register(method, recipes=Path(__file__).with_name("recipes.toml"))
