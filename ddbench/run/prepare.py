"""What a matcher needs, made before it starts: experts and teachers."""

from __future__ import annotations

from dataclasses import replace

from ddbench.base.seeds import Seed
from ddbench.errors import UsageError
from ddbench.problem.experts import Experts
from ddbench.problem.problem import Needs, Problem
from ddbench.problem.synthetic import Curriculum
from ddbench.run.devices import check_network
from ddbench.train.source import NetworkSource


def prepared(problem: Problem, wanted: Needs) -> Problem:
    """The problem with what a matcher needs: as many start networks as experts, the experts, and teachers."""
    if wanted.experts:
        problem = for_experts(problem, wanted)
        problem.experts.build(wanted.experts, wanted.snapshots)
    architectures = wanted.architectures(problem.network.source)
    if architectures:
        problem = replace(problem, teachers=tuple(_teachers(problem, wanted, source) for source in architectures))
    return problem


def for_experts(problem: Problem, wanted: Needs) -> Problem:
    """The problem whose experts are those that are wanted; none is trained."""
    recipe = (wanted.recipe or problem.expert_recipe).on(problem.augment)
    return replace(problem, starts=replace(problem.starts, count=wanted.experts), expert_recipe=recipe)


def _teachers(problem: Problem, wanted: Needs, source: NetworkSource) -> Experts:
    """Networks trained on the real data to the end of their recipe, from starts that no stage has taught."""
    network = replace(problem.network, source=source)
    check_network(network)
    starts = replace(
        problem.starts, network=network, seed=Seed(problem.starts.seed.root) / "teacher", taught=Curriculum()
    )
    recipe = (wanted.teacher_recipe or problem.expert_recipe).on(problem.augment)
    if recipe.epochs is None:
        raise UsageError("a teacher's recipe must say for how many epochs it trains; set its epochs")
    teachers = Experts(starts, problem.real, replace(recipe, imported=""))  # imported ones are of another network
    teachers.build(wanted.teachers, (recipe.epochs,))
    return teachers
