"""Trajectory matching besides tesla: mtt, and its descendants att, datm and ftd."""

from __future__ import annotations

from pathlib import Path

from ddbench import hookimpl
from ddbench_trajectories.att import Att
from ddbench_trajectories.datm import Datm
from ddbench_trajectories.ftd import Ftd
from ddbench_trajectories.mtt import Mtt
from ddbench_trajectories.pad import Pad
from ddbench_trajectories.selmatch import SelMatch


@hookimpl
def register_matchers(register) -> None:
    recipes = Path(__file__).with_name("recipes.toml")
    register(Mtt, recipes=recipes)
    register(Datm, recipes=recipes)
    register(Pad, recipes=recipes)
    register(Ftd, recipes=recipes)
    register(Att, recipes=recipes)
    register(SelMatch, recipes=recipes)
