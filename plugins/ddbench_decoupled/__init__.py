"""Methods that take trained teachers and never match training: RDED, SRe2L, G-VBSM, EDC and CCFS."""

from __future__ import annotations

from pathlib import Path

from ddbench import hookimpl
from ddbench_decoupled.ccfs import Ccfs
from ddbench_decoupled.edc import Edc
from ddbench_decoupled.gvbsm import Gvbsm
from ddbench_decoupled.rded import Rded
from ddbench_decoupled.sre2l import Sre2l


@hookimpl
def register_matchers(register) -> None:
    for method in (Rded, Sre2l, Gvbsm, Edc, Ccfs):
        register(method, recipes=Path(__file__).with_name("recipes.toml"))
