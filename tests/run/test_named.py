"""Networks that a matcher names as its teachers: how they are read, made, counted, kept and put into keys."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from ddbench_networks import ConvNet, ResNet18
from problems import task_of
from tiny import ddbench, run, spec

from ddbench import Needs, Recipe, SyntheticSet, Teacher, UsageError, networks_named
from ddbench.grade.distilled import Distilled
from ddbench.plugins import Plugin, registry
from ddbench.run.forecast import forecast
from ddbench.run.prepare import prepared
from ddbench.run.record import RunRecord
from ddbench.run.sources import sources

TWO = "convnet(width=4,depth=1,norm=batch),own"


@dataclass(frozen=True)
class Taught:
    """Real images with all of its teachers."""

    name = "taught"
    steps = 0
    teachers: tuple[str, ...] = ()

    def needs(self, problem):
        named = networks_named(self.teachers, problem.network.source)
        return Needs(teachers=1, teacher_network=named, teacher_recipe=Recipe(epochs=2, batch=20))

    def init(self, problem):
        return problem.sample()

    def step(self, problem, state, k):
        return state, {}

    def result(self, problem, state):
        first, *others = (problem.teacher(i) for i in range(len(problem.teachers)))
        teacher = Teacher(first.source, first.vector, tuple(others))
        labels = teacher.logits(state.images, problem.classes).softmax(1)
        return SyntheticSet(state.images.clone(), labels, label_type="teacher", teacher=teacher)


@dataclass(frozen=True)
class Small:
    """A network of a third party."""

    name = "small"
    version = "7"
    width: int = 2

    def build(self, shape, classes):
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(shape[0] * shape[1] * shape[2], classes))


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    for kind, cls in (("matcher", Taught), ("network", Small)):
        monkeypatch.setitem(registry().plugins, (kind, cls.name), Plugin(kind, cls.name, cls, "dd-other", "1.5"))


def test_names_are_networks_with_the_options_in_brackets():
    own = ConvNet(width=5)
    names = ("own", "resnet18", "convnet(width=16, depth=2)", "convnet()")
    assert networks_named(names, own) == (own, ResNet18(), ConvNet(width=16, depth=2), ConvNet())
    assert networks_named((), own) == ()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("convnot", "no network called 'convnot'; did you mean 'convnet'"),
        ("convnet(widht=3)", "network convnet has no option 'widht'"),
        ("convnet(3)", r"names no network; write NAME or NAME\(OPTION=VALUE,...\)"),
        ("convnet(width=3", "names no network"),
        ("(width=3)", "names no network"),
    ],
)
def test_what_is_no_network_is_refused_when_the_run_is_resolved(name, said):
    with pytest.raises(UsageError, match=said):
        networks_named((name,), ConvNet())
    with pytest.raises(UsageError, match=said):
        spec("taught", matcher__teachers=f'"{name}"')


def test_each_architecture_is_trained_as_if_it_were_the_only_one():
    problem = task_of(spec("taught", ipc=2))
    sources = (ConvNet(width=4, depth=1, norm="batch"), problem.network.source)
    recipe = Recipe(epochs=1, batch=20)
    both = prepared(problem, Needs(teachers=2, teacher_network=sources, teacher_recipe=recipe))
    alone = [prepared(problem, Needs(teachers=2, teacher_network=s, teacher_recipe=recipe)) for s in sources]
    assert [made.folder for made in both.teachers] == [made.teachers[0].folder for made in alone]
    for index in range(4):  # the first of each, then the second of each
        found, wanted = both.teacher(index), alone[index % 2].teacher(index // 2)
        assert found.source == wanted.source == sources[index % 2]
        assert torch.equal(found.vector, wanted.vector)
    nobody = prepared(problem, Needs(teachers=2, teacher_recipe=recipe))  # the run's own, without a word
    assert nobody.teachers[0].folder == both.teachers[1].folder


def test_a_run_keeps_all_its_teachers_and_students_learn_their_mean(tmp_path):
    online: dict[str, Any] = {"protocol__online": True, "matcher__teachers": TWO}
    made = spec("taught", **online)
    assert forecast(made, made.dataset.load())["teachers"] == 2
    folder = run(tmp_path, made)
    (held,) = Distilled.load(folder / "distilled.safetensors").curriculum.sets
    assert held.teacher is not None
    first, second = held.teacher.members
    assert (first.source, second.source) == (ConvNet(width=4, depth=1, norm="batch"), made.network)
    images = held.images.double()
    apart = [
        Teacher(m.source, m.vector.double()).network((1, 8, 8), 3).apply(m.vector.double(), images, train=False)
        for m in (first, second)
    ]
    torch.testing.assert_close(held.labels.double(), ((apart[0] + apart[1]) / 2).softmax(1), rtol=1e-4, atol=1e-5)
    bytes_of = 4 * (len(first.vector) + len(second.vector))
    assert held.teacher_bytes == bytes_of
    record = RunRecord.read(folder)
    assert record.result is not None
    assert record.rows()[0].label_bytes == bytes_of
    one = replace(held, teacher=first)
    swapped = replace(held, teacher=Teacher(second.source, second.vector, (first,)))
    assert len({held.digest, one.digest, swapped.digest}) == 3
    copy = held.detached()
    assert copy.digest == held.digest
    assert copy.teacher is not None
    copy.teacher.others[0].vector.zero_()
    assert second.vector.abs().sum() > 0


def test_keys_versions_and_sources_hold_the_networks_that_are_named():
    plain, named = spec("taught"), spec("taught", matcher__teachers="small,own")
    assert plain.key == spec("taught", matcher__teachers="").key
    assert dict(plain.versions).keys() == {
        f"{k} {n}"
        for k, n in (("dataset", "toy"), ("matcher", "taught"), ("scheduler", "single"), ("network", "convnet"))
    }
    assert dict(named.versions)["teacher small"] == "dd-other 1.5"
    assert named.declared["teacher small"] == "7"
    keys = named.key, plain.key
    with patch.object(Small, "version", "8"):
        later = spec("taught", matcher__teachers="small,own").key, spec("taught").key
    assert (keys[0] == later[0], keys[1] == later[1]) == (False, True)
    assert __name__ in sources(named)


def test_every_teacher_is_told_with_its_architecture(tmp_path):
    answer = ddbench(
        "experts", "--dataset", "toy", "--matcher", "taught", "-o", "network.width=4", "-o", f"matcher.teachers={TWO}"
    )
    assert answer.err.count("1 teachers") + answer.out.count("1 teachers") == 2


def test_a_teacher_that_mixes_its_batch_is_not_divided():
    problem = task_of(spec("taught"))
    wanted = Needs(teachers=1, teacher_network=ConvNet(width=4, norm="batch"), teacher_recipe=Recipe(epochs=1))
    with patch("ddbench.run.devices.world", lambda: 2), pytest.raises(UsageError, match="cannot be divided over 2"):
        prepared(problem, wanted)
