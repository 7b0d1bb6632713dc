"""Students that are graded: taught one at a time or together, and looked at while they learn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cohorts import TEN_STEPS, examples, gap, network
from tiny import spec

from ddbench import Curriculum, Network, Recipe, Seed, Student, SyntheticSet, Teaching, teach
from ddbench.base.progress import listening
from ddbench.grade.protocol import Protocol
from ddbench.grade.student import Pupil, accuracy, look_steps, measured_students, taught_pupils
from ddbench.plugins import registry
from ddbench.train.fit import Watch
from ddbench.train.fit_together import TOGETHER


def test_more_students_than_fit_at_once_are_taught_in_groups():
    net, plan = network("mlp"), Curriculum((SyntheticSet(examples().images, examples().labels, lr=0.01),), ((0,),))
    teaching = Teaching(replace(TEN_STEPS, steps=2))
    pupils = [Pupil(Student(net.init(Seed(i))), plan, Seed(i)) for i in range(TOGETHER + 2)]
    apart = list(taught_pupils(net, pupils, teaching, together=False))
    assert gap(apart, list(taught_pupils(net, pupils, teaching, together=True))) < 1e-9


def test_looks_come_every_so_many_epochs_of_the_last_phase_and_at_the_end():
    images, labels = torch.zeros(10, 1, 8, 8), torch.eye(2)[[0, 1] * 5]
    one = SyntheticSet(images, labels, lr=0.1)
    plan = Curriculum((one, one), ((0,), (0, 1)))
    rules = Protocol(selects="test", epochs=7, looks=2, batch=5)
    teaching = rules.evaluation(20, 2)  # phases of 7 epochs: 2 steps each in the first, 4 in the second
    assert sorted(look_steps(plan, teaching, rules)) == [14 + 8, 14 + 16, 14 + 24, 14 + 28]
    late = replace(rules, looks_after=0.5)
    assert sorted(look_steps(plan, teaching, late)) == [14 + 14, 14 + 22, 14 + 28]
    assert look_steps(plan, teaching, Protocol()) == frozenset()


def test_the_best_look_counts_and_its_vector_is_what_metrics_see():
    dataset = registry().get("dataset", "toy").cls().load()
    source = spec("random").network
    net = Network(source, dataset.train.shape, dataset.train.classes)
    shown = dataset.train.draw(2)
    plan = Curriculum((SyntheticSet(shown.images, shown.labels, lr=0.02),), ((0,),))
    rules = Protocol(selects="test", epochs=12, looks=3, batch=3, augment="")
    seen: list[torch.Tensor] = []

    class Vector:
        name = "vector"

        def examine(self, student) -> dict[str, float]:
            seen.append(student.vector)
            return {"accuracy": float((student.logits.argmax(1) == student.targets).double().mean())}

    found = list(
        measured_students(
            plan, net, rules.evaluation(6, 1), dataset.test, {"v": Vector()}, Seed(0), [0], protocol=rules
        )
    )
    trail: list[torch.Tensor] = []
    watch = Watch(look_steps(plan, rules.evaluation(6, 1), rules), lambda _, s: trail.append(s.vector.clone()))
    teach(net, Student(net.init(Seed(0) / 0 / "init")), plan, rules.evaluation(6, 1), Seed(0) / 0, watch=watch)
    by_hand = [accuracy(net, vector, dataset.test) for vector in trail]
    assert len(by_hand) == 4
    assert found[0]["accuracy"] == max(by_hand) == found[0]["v.accuracy"]
    assert torch.equal(seen[0], trail[by_hand.index(max(by_hand))])


@pytest.mark.parametrize("together", [False, True])
def test_students_are_taught_one_at_a_time_or_in_groups_as_asked(monkeypatch, together):
    groups: list[int] = []

    def one(_network, student, *_):
        groups.append(1)
        return student

    def several(_network, students, *_):
        groups.append(len(students))
        return students

    monkeypatch.setattr("ddbench.grade.student.teach", one)
    monkeypatch.setattr("ddbench.grade.student.teach_together", several)
    net, plan = network("mlp"), Curriculum((SyntheticSet(examples().images, examples().labels, lr=0.01),), ((0,),))
    pupils = [Pupil(Student(net.init(Seed(i))), plan, Seed(i)) for i in range(TOGETHER + 2)]
    assert len(list(taught_pupils(net, pupils, Teaching(TEN_STEPS), together=together))) == len(pupils)
    assert groups == ([TOGETHER, 2] if together else [1] * len(pupils))


def test_progress_counts_the_students_that_are_graded():
    dataset = registry().get("dataset", "toy").cls().load()
    net = Network(spec("random").network, dataset.train.shape, dataset.train.classes)
    shown = dataset.train.draw(1)
    plan = Curriculum((SyntheticSet(shown.images, shown.labels, lr=0.02),), ((0,),))
    seen: list[tuple[int, int]] = []
    with listening(lambda event: seen.append((event.done, event.total)) if event.what == "evaluation" else None):
        list(
            measured_students(
                plan, net, Teaching(Recipe(batch=3, augment=""), steps=1), dataset.test, {}, Seed(0), [4, 7, 9]
            )
        )
    assert seen == [(1, 3), (2, 3), (3, 3)]
