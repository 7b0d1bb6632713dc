"""Coresets: real images, chosen rather than learned, with hard labels or with those of experts."""

from __future__ import annotations

from pathlib import Path

from ddbench import hookimpl
from ddbench_coresets.clusters import KMeans
from ddbench_coresets.greedy import Herding, KCenter
from ddbench_coresets.prototypes import Ssp
from ddbench_coresets.pruning import D2, Ccs, Moderate
from ddbench_coresets.sampled import Random
from ddbench_coresets.scored import El2n, Forgetting


@hookimpl
def register_matchers(register) -> None:
    for coreset in (Random, Herding, KCenter, KMeans, Forgetting, El2n, Moderate, Ccs, D2, Ssp):
        register(coreset, recipes=Path(__file__).with_name("recipes.toml"))
