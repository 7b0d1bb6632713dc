"""Matching in random networks: gradients (dc, dsa, idc, dream) and distributions (dm, idm, dance, tgdd, ncfm)."""

from __future__ import annotations

from pathlib import Path

from ddbench import hookimpl
from ddbench_matching.dance import Dance
from ddbench_matching.dm import Dm
from ddbench_matching.gradient import Dc, Dsa
from ddbench_matching.idc import Dream, Idc
from ddbench_matching.idm import Idm
from ddbench_matching.ncfm import Ncfm
from ddbench_matching.tgdd import Tgdd

RECIPES = Path(__file__).with_name("recipes.toml")


@hookimpl
def register_matchers(register) -> None:
    for matcher in (Dc, Dsa, Dm, Idc, Dream, Idm, Dance, Tgdd, Ncfm):
        register(matcher, recipes=RECIPES)
