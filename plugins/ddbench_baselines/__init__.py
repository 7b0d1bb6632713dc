"""What every claim is compared with: MTT, one stage."""

from __future__ import annotations

from pathlib import Path

from ddbench import hookimpl
from ddbench_baselines.mtt import Mtt
from ddbench_baselines.single import Single


@hookimpl
def register_matchers(register) -> None:
    register(Mtt, recipes=Path(__file__).with_name("recipes.toml"))


@hookimpl
def register_schedulers(register) -> None:
    register(Single)
