"""Which recipe a run takes, and that a wrong name is refused before anything is done."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import ddbench

from ddbench import Dataset, Preprocessing, RealData
from ddbench.base.recipes import NAMES, RecipeEntry, read
from ddbench.boards.command import command_of
from ddbench.boards.entry import Entry
from ddbench.cli.about import about_plugin
from ddbench.errors import UsageError
from ddbench.plugins import Plugin, memory_of, registry
from ddbench.run.again import config_of
from ddbench.run.baseline import baseline
from ddbench.run.recipes import chosen, missing, nearest, usual, usual_rules
from ddbench.run.record import SpecRecord
from ddbench.run.row import Cells
from ddbench.run.run import build_task
from ddbench.run.spec import Request, resolve, usual_threads
from ddbench.suite.single import read_run

ROOT = Path(__file__).parents[2]


class Stepping:
    steps = 5


def entry(match, name="paper", **options):
    return RecipeEntry(match, options, f"{name} {match}", False, name)


def plugin(*entries):
    return Plugin("matcher", "m", object, "p", "1", entries)


def at(dataset="cifar10", ipc=10, scheduler="single"):
    return {"dataset": dataset, "ipc": ipc, "scheduler": scheduler}


def test_anybodys_images_are_fast_by_default_and_known_datasets_as_published():
    assert usual("images") == usual("hf") == "fast"
    assert usual("cifar10") == usual("digits") == usual("nothing of this name") == "paper"


def test_the_usual_rules_are_quick_for_anybodys_images_on_a_cpu_and_default_elsewhere():
    assert usual_rules("images", "cpu") == usual_rules("hf", "cpu") == "quick"
    assert {usual_rules(*place) for place in (("images", "cuda"), ("digits", "cpu"), ("cifar10", "cpu"))} == {"default"}


@pytest.mark.parametrize(
    ("dataset", "protocol", "rules"),
    [
        ("images:photos", None, "quick"),
        ("digits", None, "default"),
        ("images:photos", "default", "default"),
        ("digits", "quick", "quick"),
    ],
)
def test_a_request_without_rules_gets_the_usual_ones_and_a_named_protocol_stays(dataset, protocol, rules):
    assert resolve(Request(dataset, "random", protocol=protocol, device="cpu")).spec.protocol.name == rules


def test_a_run_of_anybodys_images_is_repeated_by_its_file_and_its_command(tmp_path):
    """Both name its rules: what is usual for some data on some device need not be so where they are read."""
    made = resolve(Request("images:photos", "random", protocol=None, device="cpu")).spec
    (tmp_path / "run.toml").write_text(config_of(made, 5))
    assert read_run(tmp_path / "run.toml").request.protocol == "quick"
    assert "--protocol quick" in command_of([SpecRecord.model_validate(made.record())], 5)
    usual_one = resolve(Request("images:photos", "random", device="cpu")).spec
    assert "--protocol default" in command_of([SpecRecord.model_validate(usual_one.record())], 5)


def test_the_file_of_a_run_on_a_gpu_gives_its_settings_there(tmp_path):
    """Also an option that is the field's default and the recipe's on a GPU, and another in the recipe for a CPU."""
    made = resolve(Request("images:photos", "tesla", ipc=10, device="cuda", here=False)).spec
    (tmp_path / "run.toml").write_text(config_of(made, 5))
    held = read_run(tmp_path / "run.toml").request
    assert held.device == "cuda"
    assert resolve(replace(held, here=False)).spec.key == replace(made, threads=usual_threads()).key


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


def test_a_recipes_record_is_shown_and_one_without_says_no():
    recorded = {"accuracy": 57.44, "std": 0.78, "n": 5, "seconds": 193, "device": "NVIDIA H200", "where": "x.json"}
    made = RecipeEntry({}, {}, "s", True, "fast", recorded)
    cls = registry().get("matcher", "tesla").cls
    shown = about_plugin(Plugin("matcher", "tesla", cls, "p", "1", (made, entry({}))))
    told = "yes (x.json): 57.4 ± 0.8 % (n 5), 193 s, NVIDIA H200"
    assert [r["record"] for r in shown["recipes"]] == [told, "no"]
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


def on_record(where: str) -> list[Cells]:
    """The rows of a file of results, of the campaign on a GPU, or of an entry of a board."""
    if "/entries/" in where:
        return [row.cells for run in Entry.read(ROOT / where).runs for row in run.rows()]
    held = json.loads((ROOT / where).read_text())
    return held["runs"] if isinstance(held, dict) else held


def test_the_record_of_a_recipe_is_that_of_the_run_that_it_names():
    """Numbers in a recipe are not typed from memory: the run on record has them, with the recipe's own options."""
    recorded = [(p, r) for p in registry().plugins.values() for r in p.recipes if r.record]
    assert recorded
    for made, recipe in recorded:
        runs = [run for run in on_record(recipe.record["where"]) if run["matcher"] == made.name]
        (run, *_) = [run for run in runs if abs(100 * run["accuracy_mean"] - recipe.record["accuracy"]) < 0.051]
        assert abs(100 * run["accuracy_std"] - recipe.record["std"]) < 0.051
        assert run["n"] == recipe.record["n"]
        assert run["device"] in recipe.record["device"]
        assert f"{recipe.record['seconds']} s" in (run.get("note") or f"{_seconds(run):.0f} s")
        given = {f"{group}.{name}": value for group, values in recipe.options.items() for name, value in values.items()}
        assert {name: run["options"][name] for name in given} == given


def _seconds(run: Cells) -> float:
    return sum(run[f"{what}_seconds"] for what in ("distil", "expert", "selection"))


# --------------------------------------------------------------------------------- where there is no recipe


def test_where_no_recipe_fits_the_nearest_on_the_same_data_is_named():
    one, ten = entry({"dataset": "cifar10", "ipc": 1}), entry({"dataset": "cifar10", "ipc": [5, 50]})
    other = entry({"dataset": ["cifar100", "images"], "ipc": [1, 500]})
    made = Plugin("matcher", "m", Stepping, "p", "1", (one, ten, other))
    assert missing(made, at(ipc=1)) is missing(made, at("cifar100")) is None
    assert missing(made, at(ipc=200)).endswith("the nearest recipe is --recipe cifar10:50")
    assert missing(made, at(ipc=3)).endswith("--recipe cifar10:5")  # by the ratio, not the difference
    assert missing(made, at(ipc=2)).endswith("--recipe cifar10:1")
    assert missing(made, at("mnist", 700)).startswith("matcher 'm' has no recipe for mnist at ipc 700 under single: ")
    for told in (missing(made, at(ipc=200)), missing(made, at("mnist", 700))):
        assert chosen(made, at("mnist", 700), told.rpartition(" ")[2]) is not None  # what is named can be asked for


def test_a_recipe_of_another_scheduler_is_not_the_nearest():
    staged = entry({"dataset": "cifar10", "ipc": 20, "scheduler": "pdd"})
    made = Plugin("matcher", "m", Stepping, "p", "1", (staged, entry({"dataset": "cifar10", "ipc": 1})))
    assert nearest(made, at(ipc=20)) == "cifar10:1"
    assert nearest(made, at(ipc=19, scheduler="pdd")) == "cifar10:20"


def test_a_matcher_without_steps_or_without_any_recipe_is_not_warned_of():
    assert missing(Plugin("matcher", "m", Stepping, "p", "1"), at()) is None
    assert missing(Plugin("matcher", "m", object, "p", "1", (entry({"dataset": "cifar10"}),)), at("mnist")) is None


@pytest.mark.parametrize(
    ("dataset", "ipc", "near"),
    [
        *(("mnist", 10, "images:10"), ("svhn", 1, "images:1"), ("cifar100", 100, "cifar100:50")),
        *(("cifar10", 500, "cifar10:50"), ("imagenet", 51, "imagenet:50")),
    ],
)
def test_teslas_gaps_are_said_with_a_recipe_that_can_be_taken(dataset, ipc, near):
    resolved = resolve(Request(dataset, "tesla", ipc=ipc, device="cpu"))
    assert resolved.warning is not None
    assert resolved.warning.endswith(f"--recipe {near}")
    taken = resolve(Request(dataset, "tesla", ipc=ipc, device="cpu", recipe=near))
    assert taken.warning is None
    assert taken.spec.matcher != resolved.spec.matcher


def test_every_matcher_with_recipes_names_one_that_it_has_wherever_it_has_none():
    for name in registry().names("matcher"):
        made = registry().get("matcher", name)
        for dataset in registry().names("dataset"):
            for ipc in (1, 10, 50, 500):
                told = missing(made, at(dataset, ipc))
                assert told is None or chosen(made, at(dataset, ipc), told.rpartition(" ")[2])


def test_a_run_without_a_recipe_says_so_once_and_so_do_a_dry_run_and_a_suite(tmp_path):
    words = ("--dataset", "digits", "--matcher", "dm", "--ipc", 120)
    dry = ddbench("run", *words, "--dry-run", "--json")
    said = "matcher 'dm' has no recipe for digits at ipc 120 under single"
    assert dry.err.count(said) == 1
    assert dry.json["warning"].startswith(said)
    assert said not in ddbench("run", *words, "--dry-run", "--recipe", "digits:100").err
    suite = tmp_path / "s.toml"
    suite.write_text('[[matrix]]\ndataset = "digits"\nmatcher = "dm"\nipc = 120\nseeds = [0, 1]\n')
    given = ddbench("suite", "run", suite, "--out", tmp_path, "--dry-run")
    assert given.err.count(said) == 1


@pytest.mark.parametrize(("ipc", "steps"), [(1, 4000), (2, 8000), (10, 20000), (50, 20000)])
def test_an_evaluation_on_the_whole_imagenet_ends(ipc, steps):
    resolved = resolve(Request("imagenet", "tesla", ipc=ipc, device="cpu"))
    assert resolved.warning is None
    assert resolved.spec.protocol.budget(1000 * ipc) == steps


def test_tesla_on_the_whole_imagenet_fits_a_gpu_of_24_gb():
    """1,000 classes at 64x64, whose pixels are one image seen many times: nothing is trained or read."""
    ipc, spec = 50, resolve(Request("imagenet", "tesla", ipc=50, device="cpu")).spec
    pixels, shades = torch.zeros(1, 3, 64, 64, dtype=torch.uint8).expand(1000 * ipc, -1, -1, -1), torch.ones(3)
    data = RealData(pixels, torch.arange(1000 * ipc) % 1000, Preprocessing(shades, shades), 1000)
    task = build_task(spec, Dataset("imagenet", (), data, data, data, ""))
    assert task.network.parameters == 2_496_360  # ConvNet-D4, as published
    held = memory_of(spec.matcher, task)
    assert held.iteration is not None
    assert held.state + held.iteration < 24e9


@pytest.mark.parametrize(
    ("verified", "shown_in", "said"),
    [
        (True, "", "yes"),
        (True, "docs/x.md", "yes (docs/x.md)"),
        (False, "docs/x.md", "reduced (docs/x.md)"),
        (False, "", "no"),
    ],
)
def test_a_recipe_says_whether_ddbench_has_run_it_and_where(tmp_path, verified, shown_in, said):
    path = tmp_path / "recipes.toml"
    path.write_text(f'[[recipe]]\nsource = "s"\nverified = {str(verified).lower()}\nshown_in = "{shown_in}"\n')
    assert read(path, "m")[0].ran == said


def test_where_recipes_say_that_runs_are_shown_the_method_is_named():
    for made in registry().plugins.values():
        for recipe in made.recipes if made.kind == "matcher" else ():
            if recipe.shown_in:
                page = ROOT / recipe.shown_in
                text = (page / "README.md" if page.is_dir() else page).read_text()
                assert f"| {made.name} " in text, recipe
