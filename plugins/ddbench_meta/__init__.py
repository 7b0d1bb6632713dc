"""Meta-learning: the loss on real data of what was trained on synthetic ones (rat-bptt, at-bptt, frepo)."""

from __future__ import annotations

from pathlib import Path

from ddbench import hookimpl
from ddbench_meta.atbptt import AtBptt
from ddbench_meta.frepo import Frepo
from ddbench_meta.ratbptt import RatBptt


@hookimpl
def register_matchers(register) -> None:
    register(RatBptt, recipes=Path(__file__).with_name("recipes.toml"))
    register(AtBptt, recipes=Path(__file__).with_name("recipes.toml"))
    register(Frepo, recipes=Path(__file__).with_name("recipes.toml"))
