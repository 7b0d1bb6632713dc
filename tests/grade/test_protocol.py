"""Protocols: frozen rules that say what they select on."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from tiny import ddbench, run, spec

from ddbench import Curriculum, Network, Seed, Student, SyntheticSet, UsageError, teach
from ddbench.base.cache import read_json
from ddbench.base.options import changed
from ddbench.grade.distilled import Distilled
from ddbench.grade.protocol import PROTOCOLS, Protocol, altered, named
from ddbench.grade.student import accuracy, look_steps, measured_students
from ddbench.plugins import registry
from ddbench.run.record import RunRecord
from ddbench.run.row import Row
from ddbench.run.run import Run, Settings
from ddbench.train.fit import Recipe, Watch

FROZEN = Path(__file__).parent / "protocols.json"
PAPERS = ("mtt-paper", "pdd-paper", "dc-paper", "dsa-paper", "idc-paper", "rded-paper", "sre2l-paper", "ddranking")


def test_protocols_are_frozen_and_versioned():
    """A protocol that gives other numbers under the same name needs a new version; then record it here.

    ``python -c "from test_protocol import record; record()"`` in this folder writes the file anew.
    """
    known = json.loads(FROZEN.read_text())
    assert {name: changed(protocol) for name, protocol in PROTOCOLS.items()} == known


def record() -> None:
    known = {name: changed(protocol) for name, protocol in PROTOCOLS.items()}
    FROZEN.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def test_the_default_values_of_options_are_part_of_every_protocol():
    """Options at their defaults are left out of digests, so a changed default would change rules in silence."""
    assert {f.name: f.default for f in fields(Protocol) if f.name != "name"} == {
        "version": 1, "selects": "validation", "looks": None, "looks_after": 0.0, "steps": None, "epochs": None,
        "start_epochs": None, "batch": 256, "lr": 0.01, "lrs": (0.003, 0.01, 0.03, 0.1), "optimizer": "sgd",
        "schedule": "step-restart", "momentum": 0.9, "weight_decay": 5e-4, "augment": "dataset", "carry": False,
        "mixing": "none", "mix_probability": 0.5, "mix_alpha": 1.0, "online": False, "temperature": 1.0, "checks": 2,
        "judges": 2, "ceiling_epochs": 30,
    }  # fmt: skip


def test_every_protocol_of_the_field_is_there_and_says_what_it_selects_on():
    assert set(PROTOCOLS) == {"default", *PAPERS}
    on_test = {name for name, protocol in PROTOCOLS.items() if protocol.selects == "test"}
    assert on_test == {"mtt-paper", "pdd-paper", "idc-paper", "rded-paper", "ddranking"}
    assert {name for name, protocol in PROTOCOLS.items() if protocol.selects == "last"} == {
        "dc-paper", "dsa-paper", "sre2l-paper",
    }  # fmt: skip


def test_other_options_make_another_protocol_with_another_name_and_digest():
    other = altered(named("mtt-paper"), {"epochs": "10"})
    assert other.name.startswith("mtt-paper-custom-")
    assert other.digest != named("mtt-paper").digest
    assert altered(named("mtt-paper"), {"epochs": "11"}).name != other.name
    assert altered(named("mtt-paper"), {}) is named("mtt-paper")


def test_looks_need_epochs_and_a_selection_on_test_data():
    for wrong in ({"looks": "5"}, {"looks": "5", "epochs": "10"}, {"looks": "5", "selects": "test"}):
        with pytest.raises(UsageError, match=r"set protocol.epochs and protocol.selects=test"):
            altered(Protocol(), wrong)
    assert altered(Protocol(), {"looks": "5", "epochs": "10", "selects": "test"}).looks == 5


def test_a_datasets_recipe_does_not_touch_published_rules():
    assert spec("random", protocol__checks=2).protocol.steps == 12  # the flag of tiny runs
    answer = ddbench(
        "run", "--dataset", "digits", "--matcher", "random", "--protocol", "mtt-paper", "--dry-run", "--json"
    )
    values = answer.json["options"]
    assert values["protocol.steps"]["value"] is None
    assert values["protocol.epochs"] == {"value": 1001, "from": "protocol mtt-paper"}
    default = ddbench("run", "--dataset", "digits", "--matcher", "random", "--dry-run", "--json").json["options"]
    assert default["protocol.steps"]["value"] == 500


def test_the_multistep_rate_falls_by_five_after_two_thirds_and_after_five_sixths():
    recipe = Recipe(steps=60, schedule="multistep")
    rates = [recipe.rate(step, 60, 1.0) for step in range(60)]
    assert rates == pytest.approx([1.0] * 40 + [0.2] * 10 + [0.04] * 10)


# --------------------------------------------------------------------------------- what is selected on which data


def made(tmp_path: Path, **rules) -> tuple[Row, Path]:
    base = spec("random", "single", 1)
    folder = run(tmp_path, replace(base, protocol=replace(base.protocol, **rules)), students=1)
    return RunRecord.read(folder).rows()[0], folder


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DDBENCH_HOME", str(tmp_path_factory.getbasetemp() / "protocol-home"))


@pytest.mark.parametrize("selects", ["validation", "test"])
def test_a_run_is_judged_on_the_data_that_its_protocol_names_and_says_so(tmp_path, selects):
    base = spec("random", "single", 1)
    rules = replace(base.protocol, selects=selects)
    work = Run(replace(base, protocol=rules), base.dataset.load(), Settings(tmp_path))
    part = getattr(work.dataset, selects)
    seen = []

    def noted(_network, _vector, data) -> float:
        seen.append(data.digest)
        return 0.5

    work.folder.mkdir(parents=True)
    with patch("ddbench.grade.selection.accuracy", noted):
        work.distil()
    assert set(seen) == {part.digest}
    row, folder = made(tmp_path / "whole", selects=selects)
    assert row.selection == selects
    assert Distilled.load(folder / "distilled.safetensors").about["selection"] == selects
    assert read_json(folder / "result.json")["selection"] == selects


def test_where_nothing_is_selected_no_judge_trains_and_the_last_checkpoint_is_kept(tmp_path):
    with patch("ddbench.run.stage.judge", side_effect=AssertionError("a judge was trained")):
        row, folder = made(tmp_path, selects="last", lrs=(), checks=1, lr=0.02)
    assert row.selection == "last"
    (found,) = Distilled.load(folder / "distilled.safetensors").curriculum.sets
    assert found.lr == 0.02
    notes = read_json(folder / "stage-0" / "result.json")
    assert [check["accuracy"] for check in notes["checks"]] == [None]


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
