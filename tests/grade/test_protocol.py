"""Protocols: frozen rules that say what they select on."""

from __future__ import annotations

import json
import re
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest
from tiny import ddbench, spec

from ddbench import UsageError
from ddbench.base.options import changed
from ddbench.grade.protocol import ON_DATASETS, PROTOCOLS, Protocol, altered, named
from ddbench.run.spec import Request, resolve

FROZEN = Path(__file__).parent / "protocols.json"
PAPERS = (
    *("mtt-paper", "datm-paper", "pdd-paper", "seqmatch-paper", "dc-paper", "dsa-paper", "idc-paper", "ncfm-paper"),
    *("rded-paper", "sre2l-paper", "gvbsm-paper", "edc-paper", "label-paper", "ddranking"),
)


def test_protocols_are_frozen_and_versioned():
    """A protocol that gives other numbers under the same name needs a new version; then record it here.

    ``python -c "from test_protocol import record; record()"`` in this folder writes the file anew.
    """
    known = json.loads(FROZEN.read_text())
    assert everywhere() == known


def everywhere() -> dict[str, dict]:
    found = {name: changed(protocol) for name, protocol in PROTOCOLS.items()}
    return found | {f"{name} on {dataset}": changed(p) for (name, dataset), p in ON_DATASETS.items()}


def record() -> None:
    known = everywhere()
    FROZEN.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def test_the_default_values_of_options_are_part_of_every_protocol():
    """Options at their defaults are left out of digests, so a changed default would change rules in silence."""
    assert {f.name: f.default for f in fields(Protocol) if f.name != "name"} == {
        "version": 1,
        "selects": "validation",
        "looks": None,
        "looks_after": 0.0,
        "steps": None,
        "most_steps": None,
        "epochs": None,
        "start_epochs": None,
        "start_afresh": False,
        "batch": 256,
        "lr": 0.01,
        "lrs": (0.003, 0.01, 0.03, 0.1),
        "optimizer": "sgd",
        "schedule": "step-restart",
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "decay": "all",
        "augment": "dataset",
        "carry": False,
        "mixing": "none",
        "mix_probability": 0.5,
        "mix_alpha": 1.0,
        "online": False,
        "temperature": 1.0,
        "loss": "ce",
        "truth": 0.0,
        "unmixed": False,
        "precision": "device",
        "checks": 2,
        "judges": 2,
        "ceiling_epochs": 30,
    }


def test_every_protocol_of_the_field_is_there_and_says_what_it_selects_on():
    assert set(PROTOCOLS) == {"default", "quick", *PAPERS}
    on_test = {name for name, protocol in PROTOCOLS.items() if protocol.selects == "test"}
    assert set(PROTOCOLS) - on_test == {"default", "quick", "dc-paper", "dsa-paper", "sre2l-paper"}
    assert {name for name, protocol in PROTOCOLS.items() if protocol.selects == "last"} == {
        "dc-paper",
        "dsa-paper",
        "sre2l-paper",
    }


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


# --------------------------------------------------------------------------------- how students learn by them


@pytest.mark.parametrize("name", ["rded-paper", "sre2l-paper"])
def test_protocols_with_online_labels_train_as_published(name):
    recipe = named(name).evaluation(100, 1).lesson(0)
    assert (recipe.optimizer, recipe.lr, recipe.weight_decay, recipe.online) == ("adamw", 0.001, 0.01, True)
    assert recipe.epochs == {"rded-paper": 300, "sre2l-paper": 400}[name]
    assert recipe.mixing == {"rded-paper": "cutmix", "sre2l-paper": "mixup"}[name]
    assert recipe.augment == {"rded-paper": "diffaug:flip", "sre2l-paper": "diffaug:crop_flip"}[name]
    assert recipe.decay == {"rded-paper": "weights", "sre2l-paper": "all"}[name]
    assert recipe.temperature == {"rded-paper": 20, "sre2l-paper": 30}[name]


@pytest.mark.parametrize(("name", "batch", "truth"), [("gvbsm-paper", 100, 0.15), ("edc-paper", 10, 0.025)])
def test_students_of_several_teachers_learn_their_logits_and_the_truth(name, batch, truth):
    recipe = named(name).evaluation(100, 1).lesson(0)
    assert (recipe.online, recipe.loss, recipe.truth, recipe.batch) == (True, "logits", truth, batch)
    assert recipe.unmixed == (name == "gvbsm-paper")
    assert (recipe.epochs, recipe.mixing, recipe.augment) == (1000, "cutmix", "diffaug:rrc8_flip")
    with pytest.raises(UsageError, match=r"set protocol\.online=true"):
        altered(Protocol(), {"loss": "logits"})


def test_ncfms_students_train_as_released():
    recipe = named("ncfm-paper").evaluation(100, 1).lesson(0)
    assert (recipe.optimizer, recipe.lr, recipe.weight_decay, recipe.batch) == ("adamw", 0.001, 0.01, 128)
    assert (recipe.epochs, recipe.schedule, recipe.mixing, recipe.mix_probability) == (2000, "fifths", "cutmix", 0.5)


def test_students_of_a_protocol_are_mixed_as_it_says():
    assert PROTOCOLS["default"].recipe().mixing == "none"
    protocol = altered(PROTOCOLS["default"], {"mixing": "cutmix"})
    assert protocol.name.startswith("default-custom-")
    assert protocol.evaluation(10, 1).recipe == replace(PROTOCOLS["default"].recipe(), mixing="cutmix")
    with pytest.raises(UsageError, match=r"protocol\.mixing: Input should be 'none', 'cutmix' or 'mixup'"):
        altered(PROTOCOLS["default"], {"mixing": "cutmx"})


def test_the_default_protocol_gives_every_schedule_the_same_steps():
    protocol = Protocol()
    assert protocol.budget(10) == 1000
    assert protocol.budget(257) == 2000
    assert [replace(protocol, most_steps=1500).budget(images) for images in (10, 257)] == [1000, 1500]
    assert replace(protocol, most_steps=1500, steps=3000).budget(10) == 3000
    assert [named("quick").budget(images) for images in (100, 500)] == [1000, 1000]
    for phases in (1, 2, 3, 5, 7):
        teaching = protocol.evaluation(500, phases)
        assert sum(teaching.lesson(j).steps for j in range(phases)) == 2000
        assert protocol.starting(500, phases) == teaching


def test_the_published_protocol_counts_epochs():
    paper = named("pdd-paper")
    assert paper.budget(100) is None
    assert paper.evaluation(100, 5).lesson(3).epochs == 501
    assert paper.starting(100, 5).lesson(0).epochs == 1001
    assert paper.evaluation(100, 5).lesson(1).carry  # of judges, too, whose teaching this is
    assert not paper.starting(100, 5).lesson(1).carry


def test_dc_augments_mnist_alone_and_trains_longer_there():
    on_mnist, elsewhere = (named("dc-paper", dataset).recipe() for dataset in ("mnist", "fashionmnist"))
    assert (on_mnist.augment, elsewhere.augment) == ("crop_scale_rotate", "")
    assert (named("dc-paper", "mnist").epochs, named("dc-paper").epochs) == (1000, 300)
    assert named("dc-paper", "mnist").digest != named("dc-paper").digest
    assert resolve(Request("mnist", "dc", protocol="dc-paper", device="cpu")).spec.protocol.epochs == 1000
    given = Request("mnist", "dc", protocol="dc-paper", device="cpu", flags=(("protocol.epochs", "7"),))
    assert resolve(given).spec.protocol.name.startswith("dc-paper-custom-")


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        *(("momentum", (0, 0.5), (-0.5,)), ("looks_after", (0, 0.99), (-0.1, 1, 1.5)), ("steps", (1,), (0, -1))),
        *(("mix_probability", (0, 1), (-0.5, 1.1)), ("mix_alpha", (0.01,), (0, -0.5)), ("batch", (1,), (0,))),
        *(("temperature", (0.01,), (0,)), ("checks", (1,), (0,)), ("judges", (1,), (0,)), ("lr", (1e-9,), (0,))),
    ],
)
def test_options_have_the_bounds_within_which_they_mean_something(name, good, bad):
    for value in good:
        assert getattr(altered(Protocol(), {name: value}), name) == value
    for value in bad:
        with pytest.raises(UsageError, match=rf"protocol\.{name}"):
            altered(Protocol(), {name: value})


def test_looks_come_after_an_epoch_at_least():
    rules = {"selects": "test", "epochs": 5}
    assert altered(Protocol(), rules | {"looks": 1}).looks == 1
    with pytest.raises(UsageError, match=r"protocol\.looks"):
        altered(Protocol(), rules | {"looks": 0})


def test_rules_cannot_be_changed_under_their_name():
    with pytest.raises(FrozenInstanceError):
        named("default").lr = 1.0
    assert re.fullmatch(r"default-custom-[0-9a-f]{6}", altered(named("default"), {"lr": 1.0}).name)


def test_students_train_in_the_precision_that_the_protocol_says():
    lower = altered(PROTOCOLS["default"], {"precision": "bf16"})
    assert lower.recipe().precision == "bf16"
    assert lower.digest != PROTOCOLS["default"].digest
    assert lower.name != "default"
