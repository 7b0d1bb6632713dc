"""Rehearsal: what a memory holds of the classes seen, how it is learned, and what an interruption costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, pstdev
from unittest.mock import patch

import click
import pytest
import torch
from click.testing import CliRunner
from tiny import run, spec
from torch import Tensor

from ddbench.apply import continual as module
from ddbench.apply.continual import Target, class_orders, continual, only, remembered, seen_after, shortened
from ddbench.base.cache import read_json
from ddbench.base.progress import Event, listening
from ddbench.cli.apply import apply
from ddbench.data.dataset import RealData
from ddbench.errors import DataError, InterruptedRun, UsageError
from ddbench.files.asked import EvalOptions
from ddbench.plugins import registry
from ddbench.problem.starts import Teaching
from ddbench.problem.synthetic import Curriculum, SyntheticSet
from ddbench.train.fit import Recipe

IPC = 2


@dataclass
class Runs:
    home: Path
    out: Path
    folder: Path
    staged: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Iterator[Runs]:
    """Random images of the toy task, at once and in two stages, evaluated by two students."""
    base = tmp_path_factory.mktemp("continual")
    with patch.dict("os.environ", {"DDBENCH_HOME": str(base / "home")}):
        at_once = run(base / "runs", spec("random", "single", IPC))
        staged = run(base / "runs", spec("random", "pdd", IPC))
        yield Runs(base / "home", base / "runs", at_once, staged)


@pytest.fixture
def here(runs, monkeypatch) -> Runs:
    monkeypatch.setenv("DDBENCH_HOME", str(runs.home))
    return runs


def opened(folder: Path, **options) -> Target:
    return Target.open(str(folder), folder.parent, EvalOptions(**{"students": 1, "device": "cpu"} | options))


def graded(folder: Path) -> list[float]:
    (path,) = (folder / "evaluations").glob("*.json")
    return [student["accuracy"] for student in read_json(path)["students"]]


# --------------------------------------------------------------------------------- orders and memories


def test_orders_are_permutations_that_the_seed_decides():
    made = class_orders(10, 6, seed=0)
    assert all(sorted(order) == list(range(10)) for order in made)
    assert len({tuple(order) for order in made}) == 6
    assert made[:3] == class_orders(10, 3, seed=0)
    assert made != class_orders(10, 6, seed=1)


@pytest.mark.parametrize(("classes", "tasks", "sizes"), [(10, 5, [2, 4, 6, 8, 10]), (7, 3, [3, 5, 7]), (4, 1, [4])])
def test_classes_arrive_in_steps_as_even_as_possible_and_stay(classes, tasks, sizes):
    (order,) = class_orders(classes, 1, seed=0)
    seen = seen_after(order, tasks)
    assert [len(s) for s in seen] == sizes
    assert all(s == sorted(order[: len(s)]) for s in seen)


def soft_set(kind: str, label_type: str = "teacher") -> SyntheticSet:
    """Two images of each of four classes, each of one value, labelled softly."""
    images = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 2, 2).clone()
    labels = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    labels = labels.softmax(1) if kind == "probability" else labels
    return SyntheticSet(images, labels, lr=0.1, label_kind=kind, label_type=label_type)


@pytest.mark.parametrize("kind", ["probability", "logit", "real"])
def test_a_memory_holds_the_images_of_the_classes_seen_labelled_over_these(kind):
    whole = soft_set(kind)
    (part,) = remembered(Curriculum((whole,), ((0,),)), [1, 3], 4).sets
    assert part.images[:, 0, 0, 0].tolist() == [2, 3, 6, 7]
    rows = whole.labels[[2, 3, 6, 7]][:, [1, 3]]
    expected = torch.stack([row / row.sum() for row in rows]) if kind == "probability" else rows
    assert torch.allclose(part.labels, expected)
    assert (part.lr, part.label_kind, part.label_type) == (0.1, kind, "teacher")


def test_images_with_hard_labels_are_told_apart_by_them_in_any_order():
    order = torch.tensor([2, 0, 1, 1, 3, 0, 2, 3])
    whole = SyntheticSet(torch.arange(8.0).view(8, 1, 1, 1), torch.eye(4)[order])
    (part,) = remembered(Curriculum((whole,), ((0,),)), [0, 3], 4).sets
    assert part.images.flatten().tolist() == [1, 4, 5, 7]
    assert part.labels.argmax(1).tolist() == [0, 1, 0, 1]


def test_images_whose_class_cannot_be_told_are_refused():
    odd = replace(soft_set("probability"), images=torch.zeros(7, 1, 2, 2), labels=torch.full((7, 4), 0.25))
    with pytest.raises(DataError, match="7 images with soft labels are not an equal number for each of 4 classes"):
        remembered(Curriculum((odd,), ((0,),)), [0], 4)


def test_every_stage_gives_its_images_of_the_classes_seen(here):
    target = opened(here.staged)
    whole = target.evaluation.distilled.curriculum
    part = remembered(whole, [0, 2], 3)
    assert [len(s) for s in whole.sets] == [3, 3]
    assert [len(s) for s in part.sets] == [2, 2]
    assert part.phases == whole.phases
    for some, every in zip(part.sets, whole.sets, strict=True):
        assert torch.equal(some.images, every.images[[0, 2]])


def test_test_images_are_those_of_the_classes_seen_numbered_anew():
    data: RealData = registry().get("dataset", "toy").cls(classes=4).load().test
    part = only(data, [1, 3])
    assert part.classes == 2
    kept = [(i, label) for i, label in enumerate(data.targets.tolist()) if label in (1, 3)]
    assert part.targets.tolist() == [{1: 0, 3: 1}[label] for _, label in kept]
    assert torch.equal(part.pixels[:], data.pixels[torch.tensor([i for i, _ in kept])])


@pytest.mark.parametrize(("steps", "seen", "phases", "expected"), [(500, 2, 1, 100), (500, 10, 1, 500), (12, 1, 4, 4)])
def test_steps_are_in_proportion_to_the_images_held(steps, seen, phases, expected):
    assert shortened(Teaching(Recipe(), steps, phases), seen, 10).steps == expected


def test_epochs_are_the_same_whatever_is_held():
    teaching = Teaching(Recipe(epochs=30))
    assert shortened(teaching, 2, 10) is teaching


# --------------------------------------------------------------------------------- whole applications


@pytest.mark.parametrize("scheduler", ["folder", "staged"])
def test_one_step_with_all_classes_is_the_plain_evaluation_to_the_same_bits(here, scheduler):
    """Each order takes the next student, so two orders are the two students of the run's own evaluation."""
    folder = getattr(here, scheduler)
    found = continual(opened(folder), tasks=1, orders=2, memories=()).record["results"]
    assert [found[f"distilled/order {i}/step 0"] for i in (0, 1)] == [[a] for a in graded(folder)]
    both = continual(opened(folder, students=2), tasks=1, orders=1, memories=()).record["results"]
    assert both["distilled/order 0/step 0"] == graded(folder)


def test_a_memory_of_random_images_is_the_random_set_of_the_same_seed(here):
    """Under one student lr to choose from, so that selection cannot differ: equal images give equal students."""
    target = opened(here.folder)
    (distilled,) = target.evaluation.distilled.curriculum.sets
    assert torch.equal(module.real_memory(target, "random").images, distilled.images)
    found = continual(target, tasks=3, orders=2, memories=("random",)).record["results"]
    for order in (0, 1):
        for step in range(3):
            assert found[f"random/order {order}/step {step}"] == found[f"distilled/order {order}/step {step}"]


def test_a_student_of_a_part_of_the_classes_knows_these_alone(here):
    target = opened(here.folder)
    seen: list[tuple[int, int, int, int]] = []

    def caught(network, student, held, teaching, seed):
        (part,) = held.sets
        seen.append((network.classes, len(part), part.labels.shape[1], teaching.steps))
        return student

    with patch.object(module, "teach", caught):
        continual(target, tasks=3, orders=1, memories=("herding",))
    by_step = [(1, IPC, 1, 4), (2, 2 * IPC, 2, 8), (3, 3 * IPC, 3, 12)]
    assert seen == by_step * 2
    for path in target.folder.glob("*.json"):
        path.unlink()  # of students that learned nothing


def test_rows_are_means_over_orders_of_what_was_measured(here):
    made = continual(opened(here.folder, students=2), tasks=2, orders=3)
    results = made.record["results"]
    for row in made.rows:
        steps = [[mean(results[f"{row['memory']}/order {o}/step {t}"]) for o in range(3)] for t in (0, 1)]
        assert row["seen_2_mean"] == pytest.approx(mean(steps[0]))
        assert row["seen_3_std"] == pytest.approx(pstdev(steps[1]))
        averages = [(a + b) / 2 for a, b in zip(*steps, strict=True)]
        assert row["average_mean"] == pytest.approx(mean(averages))
        assert row["average_std"] == pytest.approx(pstdev(averages))
    assert [row["memory"] for row in made.rows] == ["distilled", "random", "herding"]
    shown = made.tables[0].text()[1][0][1]
    assert shown == f"{100 * made.rows[0]['seen_2_mean']:.1f} ± {100 * made.rows[0]['seen_2_std']:.1f}"


def test_an_interrupted_application_goes_on_where_it_stopped(here):
    target = opened(here.folder, seed=7)

    def stop(event: Event) -> None:
        if event.what == "rehearsal" and event.done == 4:
            raise InterruptedRun("stopped")

    with pytest.raises(InterruptedRun), listening(stop):
        continual(target, tasks=3, orders=2, memories=("random",))
    (path,) = [p for p in target.folder.glob("*.json") if not read_json(p)["complete"]]
    stored = read_json(path)["results"]
    assert len(stored) == 4
    taught: list[int] = []
    original = module.teach

    def counted(*given) -> Tensor:
        taught.append(given[0].classes)
        return original(*given)

    with patch.object(module, "teach", counted):
        whole = continual(target, tasks=3, orders=2, memories=("random",)).record
    assert len(taught) == 3 * 2 * 2 - 4
    assert whole["complete"]
    assert {name: whole["results"][name] for name in stored} == stored
    path.unlink()
    assert continual(target, tasks=3, orders=2, memories=("random",)).record == whole


def test_other_rules_are_another_record(here):
    paths = set()
    for options in ({}, {"seed": 3}, {"students": 2}, {"flags": (("protocol.steps", "7"),)}):
        target = opened(here.folder, **options)
        before = set(target.folder.glob("*.json"))
        continual(target, tasks=1, orders=1, memories=())
        made = set(target.folder.glob("*.json")) - before
        assert len(made) == 1 or options == {}
        paths |= made
    assert len(paths) >= 3


@pytest.mark.parametrize(
    ("options", "given", "said"),
    [
        ({}, {"tasks": 4, "orders": 1}, "3 classes cannot arrive in 4 steps; choose --tasks between 1 and 3"),
        ({}, {"tasks": 1, "orders": 1, "memories": ("dm",)}, "'dm' learns images, which takes a run of its own"),
        ({"protocol": "rded-paper"}, {"tasks": 1, "orders": 1}, "a teacher of all classes labels every batch"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_the_way_out(here, options, given, said):
    with pytest.raises(UsageError, match=said):
        continual(opened(here.folder, **options), **given)


def test_the_command_writes_the_record_beside_the_run_and_shows_it(here):
    words = ["continual", str(here.folder), "--tasks", "2", "--orders", "1", "--memories", "random", "--device", "cpu"]
    answer = CliRunner().invoke(apply, [*words, "--format", "csv", "--quiet"])
    assert answer.exit_code == 0, answer.output
    head, *lines = answer.stdout.splitlines()
    assert head.split(",")[:2] == ["memory", "seen_2_mean"]
    assert [line.split(",")[0] for line in lines] == ["distilled", "random"]
    assert list((here.folder / "applications").glob("continual-*.json"))


def test_a_file_alone_is_applied_too_and_its_record_kept_in_the_cache(here, tmp_path):
    alone = tmp_path / "mine.safetensors"
    alone.write_bytes((here.folder / "distilled.safetensors").read_bytes())
    target = Target.open(str(alone), tmp_path, EvalOptions(students=1, device="cpu"))
    assert target.folder == here.home / "applications"
    of_file = continual(target, tasks=2, orders=1, memories=()).record
    of_run = continual(opened(here.folder), tasks=2, orders=1, memories=()).record
    assert of_file["results"] == of_run["results"]


def test_options_are_parsed_before_anything_is_loaded():
    context = apply.commands["continual"].make_context("continual", ["some-run", "--orders", "2"])
    assert (context.params["tasks"], context.params["orders"], context.params["students"]) == (5, 2, 1)
    with pytest.raises(click.BadParameter):
        apply.commands["continual"].make_context("continual", ["some-run", "--tasks", "0"])
