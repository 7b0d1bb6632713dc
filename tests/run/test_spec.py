"""From a request to a spec: who wins, what the key depends on, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from tiny import request, spec

from ddbench import Recipe, UsageError
from ddbench.base.machine import pick_device
from ddbench.base.options import make
from ddbench.base.recipes import RecipeEntry, read
from ddbench.grade.protocol import PROTOCOLS, Protocol
from ddbench.plugins import Plugin, Registry, registry
from ddbench.run.baseline import baseline
from ddbench.run.spec import (
    EXPERTS,
    Request,
    differences,
    from_record,
    resolve,
    split_flags,
    with_flags,
)


def recipe(match: dict[str, Any], source: str = "a paper", verified: bool = False, **options: Any) -> RecipeEntry:
    return RecipeEntry(match, options, source, verified)


@pytest.fixture
def recipes(monkeypatch):
    """Give plugins recipes of a test's own."""

    def give(kind: str, name: str, *entries: RecipeEntry) -> None:
        plugin = registry().get(kind, name)
        monkeypatch.setitem(registry().plugins, (kind, name), replace(plugin, recipes=entries))

    for (kind, name), plugin in list(registry().plugins.items()):
        monkeypatch.setitem(registry().plugins, (kind, name), replace(plugin, recipes=()))
    return give


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("DDBENCH_THREADS", "1")


def toy(**given: Any) -> Request:
    return replace(Request("toy", device="cpu"), **given)


# --------------------------------------------------------------------------------- precedence


def test_a_flag_wins_over_a_recipe_and_a_recipe_over_the_default(recipes):
    recipes("matcher", "tesla", recipe({"dataset": "toy"}, matcher={"lr_img": 7.0, "span": 4}))
    found = resolve(toy(flags=(("matcher.span", "1"),)))
    matcher = found.spec.matcher
    assert (matcher.span, matcher.lr_img, matcher.momentum) == (1, 7.0, type(matcher)().momentum)
    assert found.origins["matcher.span"] == (1, "flag")
    assert found.origins["matcher.lr_img"] == (7.0, "matcher recipe (paper, unverified; a paper)")
    assert found.origins["matcher.momentum"] == (matcher.momentum, "default")


def test_every_option_of_every_group_has_an_origin():
    found = resolve(toy())
    groups = {name.split(".")[0] for name in found.origins}
    assert groups == {"dataset", "matcher", "scheduler", "network", "experts", "protocol", "decoder"} - {"scheduler"}
    assert found.origins["protocol.lrs"][1] == "protocol default"
    assert found.origins["experts.epochs"] == (EXPERTS.epochs, "default")
    assert found.origins["matcher.steps"][0] == found.spec.matcher.steps


def test_a_dataset_recipe_sets_what_all_methods_share_and_a_matcher_recipe_may_not(recipes):
    recipes("dataset", "toy", recipe({"ipc": 1}, verified=True, network={"width": 16}, protocol={"steps": 99}))
    found = resolve(toy())
    assert found.spec.network.width == 16
    assert found.spec.protocol.steps == 99
    assert found.origins["network.width"][1] == "dataset recipe (paper, verified; a paper)"
    recipes("matcher", "tesla", recipe({}, network={"width": 64}))
    with pytest.raises(UsageError, match="belong to the dataset's recipe"):
        resolve(toy())


def test_a_matcher_recipe_wins_over_the_datasets_where_both_speak(recipes):
    recipes("dataset", "toy", recipe({}, experts={"epochs": 3, "lr": 0.5}))
    recipes("matcher", "tesla", recipe({}, experts={"epochs": 9}))
    found = resolve(toy()).spec
    assert (found.experts.epochs, found.experts.lr) == (9, 0.5)


@pytest.mark.parametrize(
    ("match", "situation", "fits"),
    [
        ({}, {}, True),
        ({"dataset": "toy"}, {}, True),
        ({"dataset": "digits"}, {}, False),
        ({"dataset": ["digits", "toy"]}, {}, True),
        ({"ipc": 1}, {"ipc": 1}, True),
        ({"ipc": 1}, {"ipc": 2}, False),
        ({"ipc": [2, 10]}, {"ipc": 2}, True),
        ({"ipc": [2, 10]}, {"ipc": 10}, True),
        ({"ipc": [2, 10]}, {"ipc": 1}, False),
        ({"ipc": [2, 10]}, {"ipc": 11}, False),
        ({"scheduler": "pdd"}, {"scheduler": "single"}, False),
        ({"scheduler": "pdd", "ipc": 5}, {"scheduler": "pdd", "ipc": 5}, True),
    ],
)
def test_a_recipe_fits_when_every_key_of_it_holds(match, situation, fits):
    assert recipe(match).fits({"dataset": "toy", "ipc": 1, "scheduler": "single"} | situation) is fits


def test_the_most_specific_recipe_that_fits_is_taken_and_the_first_of_equals():
    entries = (
        recipe({}, "any"),
        recipe({"ipc": 1}, "first"),
        recipe({"dataset": "toy"}, "second"),
        recipe({"ipc": 2, "dataset": "toy"}, "other"),
    )
    plugin = Plugin("matcher", "m", object, "p", "1", entries)
    assert plugin.recipe({"dataset": "toy", "ipc": 1, "scheduler": "single"}).source == "first"
    assert plugin.recipe({"dataset": "toy", "ipc": 2, "scheduler": "single"}).source == "other"
    assert plugin.recipe({"dataset": "x", "ipc": 9, "scheduler": "single"}).source == "any"


ON_A_CPU = """
[[recipe]]
match = { dataset = "toy" }
source = "a test"
verified = true
[recipe.experts]
batch = 256
lr = 0.5
[recipe.matcher]
steps = 9
[recipe.record]
accuracy = 1
std = 1
n = 1
seconds = 1
device = "a GPU"
where = "here"
[recipe.cpu.experts]
batch = 128
"""


def test_a_table_of_a_device_takes_the_place_of_what_is_other_there_alone(tmp_path):
    path = tmp_path / "recipes.toml"
    path.write_text(ON_A_CPU)
    plugin = replace(registry().get("matcher", "tesla"), recipes=read(path, "tesla"))
    place = {"dataset": "toy", "ipc": 1, "scheduler": "single"}
    on_cpu, on_gpu = (plugin.recipe(place | {"device": device}) for device in ("cpu", "cuda"))
    assert on_cpu.options == {"experts": {"batch": 128, "lr": 0.5}, "matcher": {"steps": 9}}
    assert on_gpu.options == {"experts": {"batch": 256, "lr": 0.5}, "matcher": {"steps": 9}}
    assert on_gpu.record
    assert not on_cpu.record  # what ran was not this
    assert (on_cpu.place, on_gpu.place) == ("toy on cpu", "toy")


def test_no_default_batch_of_experts_is_below_256_on_a_gpu_and_a_cpu_takes_smaller_ones():
    for name in ("tesla", "mtt", "ftd", "datm", "ncfm"):
        plugin = registry().get("matcher", name)
        for device, batch in (("cuda", 256), ("cpu", 128)):
            found = plugin.recipe({"dataset": "images", "ipc": 10, "scheduler": "single", "device": device}, "fast")
            assert found.options["experts"]["batch"] == batch


def test_options_of_another_scheduler_in_a_recipe_are_left_out(recipes):
    recipes("matcher", "tesla", recipe({}, scheduler={"name": "pdd", "stages": 7}))
    assert resolve(toy(ipc=10)).spec.scheduler.name == "single"
    assert resolve(toy(ipc=10, scheduler="pdd")).spec.scheduler.stages == 7


RECIPES = [(plugin, entry) for plugin in registry().plugins.values() for entry in plugin.recipes]


def test_there_are_recipes_with_their_sources():
    assert RECIPES
    assert all(entry.source for _, entry in RECIPES)
    assert all(isinstance(entry.verified, bool) for _, entry in RECIPES)
    assert all(set(entry.match) <= {"dataset", "ipc", "scheduler", "device"} for _, entry in RECIPES)


@pytest.mark.parametrize(("plugin", "entry"), RECIPES, ids=lambda x: str(getattr(x, "match", getattr(x, "name", x))))
def test_a_recipe_of_a_built_in_plugin_has_only_options_that_exist_with_values_in_range(plugin, entry):
    """A wrong one would fail only when somebody asks for its dataset and ipc."""
    for group, given in entry.options.items():
        values = dict(given)
        if group in ("experts", "protocol"):
            cls = {"experts": Recipe, "protocol": Protocol}[group]
        else:
            default = {"scheduler": "pdd", "network": "convnet", "dataset": entry.match.get("dataset")}.get(group)
            name = values.pop("name", plugin.name if group == plugin.kind else default)
            if (group, name) not in registry().plugins:  # options of a dataset that is not here yet
                continue
            cls = registry().get(group, name).cls
        made = make(cls, values, group)
        for name, value in values.items():
            held = getattr(made, name)
            assert held == (tuple(value) if isinstance(value, list) else value) or (held, value) == (None, "none"), name
    assert plugin.recipe({"dataset": "toy", "ipc": 1, "scheduler": "single"} | situation(entry)) is not None


def situation(entry: RecipeEntry) -> dict[str, Any]:
    return {key: value[0] if isinstance(value, list) else value for key, value in entry.match.items()}


def test_the_main_command_uses_a_recipe_and_not_the_papers_defaults():
    """``ddbench run --matcher tesla --scheduler pdd --ipc 50`` with nothing else."""
    for ipc in (1, 10, 50):
        origins = resolve(Request(scheduler="pdd" if ipc > 1 else "single", ipc=ipc, device="cpu")).origins
        assert "recipe" in origins["matcher.steps"][1]
        assert "recipe" in origins["network.width"][1]


# --------------------------------------------------------------------------------- the key


CHANGES = [
    {"matcher__syn_steps": 4},
    {"matcher__curvature": "exact"},
    {"network__width": 9},
    {"dataset__seed": 1},
    {"protocol__judges": 2},
    {"experts__lr": 0.5},
    {"ipc": 3},
    {"seed": 4},
    {"matcher": "mtt"},
    {"scheduler": "pdd"},
]


@pytest.mark.parametrize("change", CHANGES)
def test_the_key_depends_on_everything_that_decides_the_set(change):
    one = spec(ipc=2)
    given = {"matcher": "tesla", "scheduler": "single", "ipc": 2, "seed": 0} | change
    assert spec(**given).key != one.key


def test_the_key_depends_on_threads_and_packages_and_not_on_the_versions_of_packages():
    one = spec()
    assert replace(one, threads=2).key != one.key
    assert replace(one, versions=tuple((name, f"{text}.7") for name, text in one.versions)).key == one.key
    assert replace(one, versions=(*one.versions[1:], (one.versions[0][0], "another 0.1.0"))).key != one.key
    assert replace(one, device="cuda").key != one.key


def test_the_key_depends_on_the_version_that_a_plugin_declares(monkeypatch):
    before = spec().key
    monkeypatch.setattr(type(spec().matcher), "version", "2", raising=False)
    assert spec().key != before
    assert spec().record()["declared"]["matcher tesla"] == "2"


def test_equal_requests_have_equal_keys_however_they_are_written():
    assert spec().key == spec().key
    a = resolve(toy(flags=(("matcher.lr_img", "10"), ("matcher.span", "1")))).spec
    b = resolve(toy(flags=(("matcher.span", "1"), ("matcher.lr_img", "1e1")))).spec
    assert a.key == b.key


def test_an_option_given_at_its_default_is_the_same_run():
    assert (
        resolve(toy(flags=(("matcher.momentum", str(resolve(toy()).spec.matcher.momentum)),))).spec.key
        == resolve(toy()).spec.key
    )


def test_the_last_of_two_flags_for_one_option_counts():
    assert resolve(toy(flags=(("matcher.span", "1"), ("matcher.span", "2")))).spec.matcher.span == 2


def test_the_folder_can_be_read_and_is_unique():
    made = spec("tesla", "pdd", 4, seed=7)
    assert made.folder == f"toy-tesla-pdd-ipc4-seed7-{made.key}"


def test_a_spec_comes_back_from_its_record():
    for made in (spec("tesla", "pdd", 4, matcher__labels="learned"), spec("random"), spec("mtt", matcher__batch_syn=2)):
        back = from_record(json.loads(json.dumps(made.record())))
        assert back == made
        assert back.key == made.key


# --------------------------------------------------------------------------------- differences


def test_differences_name_the_path_the_old_and_the_new_value():
    old, new = spec(ipc=2).record(), spec(ipc=3, matcher__syn_steps=9).record()
    assert differences(old, new) == ["ipc: 2 -> 3", "matcher.syn_steps: 3 -> 9"]
    assert differences(old, old) == []
    assert differences({"a": {"b": 1}}, {"a": 2}) == ["a: {'b': 1} -> 2"]
    assert differences({"a": 1}, {}) == ["a: 1 -> None"]


def test_altered_tells_what_flags_beside_resume_would_change():
    record = spec("tesla", "pdd", 4).record()
    assert with_flags(record, {}, ()) == record
    assert with_flags(record, {"ipc": 4, "matcher": "tesla"}, (("matcher.syn_steps", "3"),)) == record
    assert differences(record, with_flags(record, {"seed": 1}, (("protocol.lrs", "0.5"),))) == [
        "protocol.lrs: [0.03] -> [0.5]",
        "seed: 0 -> 1",
    ]
    with pytest.raises(UsageError, match="did you mean 'syn_steps'"):
        with_flags(record, {}, (("matcher.syn_step", "3"),))


# --------------------------------------------------------------------------------- flags


def test_flags_are_split_by_group():
    assert split_flags((("matcher.steps", "3"), ("dataset.root", "a=b.c"), ("matcher.span", "1"))) == {
        "matcher": {"steps": "3", "span": "1"},
        "dataset": {"root": "a=b.c"},
    }


@pytest.mark.parametrize("name", ["steps", "matcher.", ".steps", "evaluation.steps", ""])
def test_a_flag_without_a_known_group_is_refused(name):
    with pytest.raises(UsageError, match=r"must be GROUP\.NAME with a group of dataset, matcher"):
        split_flags(((name, "1"),))


@pytest.mark.parametrize("ipc", [0, -1])
def test_a_budget_below_one_is_refused(ipc):
    with pytest.raises(UsageError, match="--ipc must be at least 1"):
        resolve(toy(ipc=ipc))


def test_an_unknown_option_lists_the_valid_ones():
    with pytest.raises(UsageError, match=r"network has no option 'widht'; did you mean 'width'\? \(valid options: "):
        resolve(toy(flags=(("network.widht", "8"),)))


def test_options_of_a_scheduler_without_any_are_refused_as_such():
    with pytest.raises(UsageError, match=r"scheduler has no option 'stages'.*none"):
        resolve(toy(flags=(("scheduler.stages", "2"),)))


# --------------------------------------------------------------------------------- protocols


def test_changed_rules_do_not_pass_under_the_same_name():
    assert resolve(toy(flags=(("protocol.steps", "5"),))).spec.protocol.name.startswith("default-custom")
    assert resolve(toy(flags=(("protocol.name", "default"), ("protocol.steps", "5")))).spec.protocol.name != "default"
    for name in PROTOCOLS:
        assert resolve(toy(protocol=name)).spec.protocol.name == name


def test_two_changes_of_the_rules_have_two_names():
    """Or a table would put unlike things side by side under one name."""
    one, other = (resolve(toy(flags=(("protocol.steps", n),))).spec.protocol for n in ("5", "5000"))
    assert one.name != other.name


# --------------------------------------------------------------------------------- device, threads, baseline


def test_the_number_of_threads_is_part_of_the_spec(monkeypatch):
    monkeypatch.setenv("DDBENCH_THREADS", "3")
    assert resolve(toy()).spec.threads == 3
    monkeypatch.delenv("DDBENCH_THREADS")
    assert resolve(toy()).spec.threads >= 1


def test_auto_is_cuda_where_there_is_one(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == pick_device("cuda") == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == "cpu"
    with pytest.raises(UsageError, match="no CUDA device"):
        pick_device("cuda")


def test_the_baseline_is_the_same_task_with_random_images_in_one_stage():
    made = spec("tesla", "pdd", 4, seed=2)
    for labels in ("hard", "teacher"):
        beside = baseline(made, labels)
        assert (beside.matcher.name, beside.matcher.labels, beside.scheduler.name) == ("random", labels, "single")
        for shared in ("dataset", "network", "ipc", "seed", "experts", "protocol", "device", "threads"):
            assert getattr(beside, shared) == getattr(made, shared)


def test_a_request_with_another_seed_differs_in_nothing_else():
    one = request("tesla", ipc=3)
    assert one.with_seed(9) == replace(one, seed=9)


def test_the_registry_of_a_test_is_the_real_one():
    assert isinstance(registry(), Registry)
    assert registry().get("matcher", "tesla").cls.__module__ == "ddbench_tesla.tesla"
    assert Recipe().epochs is None


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_no_validation_images_are_needed_where_nothing_is_selected_on_them(protocol):
    request = Request("toy", "random", protocol=protocol, device="cpu", flags=(("dataset.validation", "0"),))
    if PROTOCOLS[protocol].selects == "validation":
        with pytest.raises(UsageError, match=r"selects on validation images, and dataset\.validation=0 holds none out"):
            resolve(request)
    else:
        data = resolve(request).spec.dataset.load().checked()
        assert len(data.validation) == 0
        assert len(data.train) == len(resolve(replace(request, flags=())).spec.dataset.load().train) * 10 / 9
