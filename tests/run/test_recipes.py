"""Which recipe a run takes, and that a wrong name is refused before anything is done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ddbench.base.recipes import NAMES, RecipeEntry, read
from ddbench.cli.about import about_plugin
from ddbench.errors import UsageError
from ddbench.plugins import Plugin, registry
from ddbench.run.baseline import baseline
from ddbench.run.recipes import chosen, usual
from ddbench.run.spec import Request, resolve

ROOT = Path(__file__).parents[2]


def entry(match, name="paper", **options):
    return RecipeEntry(match, options, f"{name} {match}", False, name)


def plugin(*entries):
    return Plugin("matcher", "m", object, "p", "1", entries)


def at(dataset="cifar10", ipc=10, scheduler="single"):
    return {"dataset": dataset, "ipc": ipc, "scheduler": scheduler}


def test_anybodys_images_are_fast_by_default_and_known_datasets_as_published():
    assert usual("images") == usual("hf") == "fast"
    assert usual("cifar10") == usual("digits") == usual("nothing of this name") == "paper"


def test_the_usual_name_wins_over_a_more_specific_recipe_and_another_stands_in_where_there_is_none():
    fast, paper = entry({"dataset": "cifar10", "ipc": 10}, "fast"), entry({"dataset": "cifar10"})
    both = plugin(fast, paper)
    assert chosen(both, at(), None) is paper
    assert chosen(both, at(), "fast") is fast
    assert chosen(plugin(fast), at(), None) is fast
    assert chosen(plugin(), at(), None) is None


def test_the_recipe_of_another_dataset_and_ipc():
    one, ten = entry({"dataset": "cifar10", "ipc": 1}), entry({"dataset": ["cifar10", "cifar100"], "ipc": [2, 10]})
    any_ = entry({})
    made = plugin(any_, one, ten)
    assert chosen(made, at("images", 3), "cifar10:1") is one
    assert chosen(made, at("images", 3), "cifar100:7") is ten
    assert chosen(made, at("images", 3), None) is any_
    with pytest.raises(UsageError, match="no recipe for cifar10 at ipc 11; it has paper for any dataset, cifar10"):
        chosen(made, at(), "cifar10:11")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("fsat", "must be fast, paper, or DATASET:IPC.*did you mean 'fast'"),
        ("cifar10:", "must be fast, paper, or DATASET:IPC"),
        ("cifar10:ten", "must be fast, paper, or DATASET:IPC"),
        ("cifar10:0", "must be fast, paper, or DATASET:IPC"),
        ("cifar1:10", "no recipe for a dataset 'cifar1'.*did you mean 'cifar10'"),
        ("fast", "no recipe called fast for digits at ipc 10; it has paper for cifar10"),
    ],
)
def test_a_recipe_that_does_not_exist_is_refused_with_those_that_do(asked, said):
    with pytest.raises(UsageError, match=said):
        chosen(plugin(entry({"dataset": "cifar10"})), at("digits"), asked)


def test_a_matcher_without_recipes_says_so():
    with pytest.raises(UsageError, match="no recipe called fast for digits at ipc 10; it has none at all"):
        chosen(plugin(), at("digits"), "fast")


def test_resolve_takes_the_recipe_that_is_asked_for_and_records_its_numbers_alone():
    flags = (("dataset.root", "folder"),)
    paper = resolve(Request("images", "tesla", ipc=10, device="cpu", recipe="cifar10:10", flags=flags))
    assert "paper" in paper.origins["matcher.steps"][1]
    assert paper.spec.matcher.steps == resolve(Request("cifar10", "tesla", ipc=10, device="cpu")).spec.matcher.steps
    assert "recipe" not in paper.spec.record()
    fast = resolve(Request("images", "tesla", ipc=10, device="cpu", flags=flags))
    assert "fast" in fast.origins["matcher.steps"][1]


def test_random_images_beside_a_run_are_the_same_whichever_recipe_it_takes():
    for name in NAMES:
        given = Request("cifar10", "tesla", ipc=10, device="cpu", recipe=name)
        alone = resolve(Request("cifar10", "random", ipc=10, device="cpu", flags=(("matcher.labels", "hard"),)))
        paper = resolve(given).spec
        assert baseline(paper, "hard").experts == alone.spec.experts


def test_recipes_of_built_in_matchers_are_named_by_where_they_come_from():
    """What ddbench tuned for digits or anybody's images is fast; what a paper or its code publishes is paper."""
    for made in registry().plugins.values():
        for recipe in made.recipes if made.kind == "matcher" else ():
            own = {"digits", "toy", "images"} >= set(recipe.datasets)
            assert recipe.name == ("fast" if own or "ddbench" in recipe.source else "paper"), recipe


def test_a_recipes_record_is_shown_and_one_without_says_not_run():
    recorded = {"accuracy": 57.44, "std": 0.78, "n": 5, "seconds": 193, "device": "NVIDIA H200", "where": "x.json"}
    made = RecipeEntry({}, {}, "s", True, "fast", recorded)
    cls = registry().get("matcher", "tesla").cls
    shown = about_plugin(Plugin("matcher", "tesla", cls, "p", "1", (made, entry({}))))
    assert [r["record"] for r in shown["recipes"]] == ["57.4 ± 0.8 % (n 5), 193 s, NVIDIA H200", "not run"]
    assert [r["recipe"] for r in shown["recipes"]] == ["fast", "paper"]


@pytest.mark.parametrize(
    ("text", "said"),
    [('called = "quick"', "it can be called fast or paper"), ("[recipe.record]\naccuracy = 1.0", "must hold accuracy")],
)
def test_a_recipe_file_with_a_wrong_name_or_record_is_refused(tmp_path, text, said):
    path = tmp_path / "recipes.toml"
    path.write_text(f'[[recipe]]\nsource = "s"\nverified = true\n{text}\n')
    with pytest.raises(ValueError, match=said):
        read(path, "m")


def test_the_record_of_a_recipe_is_that_of_the_run_that_it_names():
    """Numbers in a recipe are not typed from memory: the run on record has them, with the recipe's own options."""
    recorded = [(p, r) for p in registry().plugins.values() for r in p.recipes if r.record]
    assert recorded
    for made, recipe in recorded:
        runs = json.loads((ROOT / recipe.record["where"]).read_text())["runs"]
        fitting = [run for run in runs if abs(100 * run["accuracy_mean"] - recipe.record["accuracy"]) < 0.05]
        (run,) = [run for run in fitting if run["matcher"] == made.name]
        assert abs(100 * run["accuracy_std"] - recipe.record["std"]) < 0.05
        assert (run["n"], run["device"]) == (recipe.record["n"], recipe.record["device"])
        assert f"{recipe.record['seconds']} s" in run["note"]
        given = {f"{group}.{name}": value for group, values in recipe.options.items() for name, value in values.items()}
        assert {name: run["options"][name] for name in given} == given
