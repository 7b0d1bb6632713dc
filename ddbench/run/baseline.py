"""The run that every other is shown beside: random real images of the same budget."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ddbench.base.options import make, options
from ddbench.base.recipes import NAMES
from ddbench.plugins import registry
from ddbench.problem.decode import IDENTITY, Decoder
from ddbench.run.defaults import BASELINE, ONE_STAGE
from ddbench.run.recipes import chosen, usual
from ddbench.run.spec import EXPERTS, PLUGGED, RunSpec, fill, versions_of
from ddbench.train.fit import Recipe


def baseline(spec: RunSpec, labels: str, decoder: Decoder = IDENTITY, matcher: str = BASELINE) -> RunSpec:
    """The same task with real images, one stage: random ones are what every run is shown beside.

    Whatever the run's method, it is the run that ``--matcher random`` would make with the same flags; what labels
    images is the same for all coresets: the experts that random images have.
    """
    names = {kind: getattr(spec, kind).name for kind in PLUGGED} | {"matcher": matcher, "scheduler": ONE_STAGE}
    plugins = {kind: registry().get(kind, name) for kind, name in names.items()}
    recipe = chosen(registry().get("matcher", BASELINE), _situation(spec, ONE_STAGE), None)
    given = dict(recipe.options.get("matcher", {})) if recipe else {}
    experts = options(_usual_experts(spec, BASELINE, ONE_STAGE, usual(spec.dataset.name))) | _flags(spec)
    made = make(plugins["matcher"].cls, given | {"labels": labels}, "matcher")
    return replace(
        spec,
        matcher=made,
        experts=make(Recipe, experts, "experts"),
        scheduler=make(plugins["scheduler"].cls, {}, "scheduler"),
        decoder=decoder,
        versions=versions_of(plugins, made),
    )


def _situation(spec: RunSpec, scheduler: str) -> dict[str, Any]:
    return {"dataset": spec.dataset.name, "ipc": spec.ipc, "scheduler": scheduler, "device": spec.device}


def _flags(spec: RunSpec) -> dict[str, Any]:
    """The options of experts that no recipe gave; the recipe that leaves least is the one that was taken."""
    own = options(spec.experts)
    told = [options(_usual_experts(spec, spec.matcher.name, spec.scheduler.name, name)) for name in NAMES]
    return min(({name: value for name, value in own.items() if value != usual[name]} for usual in told), key=len)


def _usual_experts(spec: RunSpec, matcher: str, scheduler: str, name: str) -> Recipe:
    """The expert recipe that a task has under a matcher when no flag says otherwise, by its recipe of this name."""
    plugin, situation = registry().get("matcher", matcher), _situation(spec, scheduler)
    of_dataset = registry().get("dataset", spec.dataset.name).recipe(situation)
    entries = [("dataset", of_dataset), ("matcher", plugin.recipe(situation, name))]
    return fill("experts", None, EXPERTS, [(kind, entry) for kind, entry in entries if entry is not None], {}, {})
