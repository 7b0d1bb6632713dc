"""What README and docs say must be so: commands parse, links lead somewhere, set-up is what is tested."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from pathlib import Path
from pydoc import locate
from types import ModuleType
from typing import Any

import click
import pytest

import ddbench
from ddbench import hookspecs
from ddbench.cli.main import cli
from ddbench.plugins import registry
from ddbench.run.spec import GROUPS, PLUGGED, Request, resolve
from ddbench.suite.grid import read
from ddbench.testing import check_matcher

ROOT = Path(__file__).parents[1]
FOLDERS = ("docs", "examples", "benchmarks", "leaderboards", "ddbench", "plugins", "tests")
README = (ROOT / "README.md").read_text()
ROOTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES = sorted([*ROOTS, *(p for f in FOLDERS for p in (ROOT / f).rglob("*.md"))])


def shell_lines(page: Path) -> list[str]:
    """The lines of a page's shell blocks and inline code that call ddbench, continuation lines joined."""
    text = page.read_text()
    blocks = re.findall(r"```(?:sh|console|bash)\n(.*?)```", text, flags=re.S)
    joined = "\n".join(blocks).replace("\\\n", " ")
    lines = [line.removeprefix("$ ").strip() for line in joined.splitlines()]
    lines += re.findall(r"(?<!`)`(ddbench [^`]+)`", text)
    return [part.strip() for line in lines for part in line.split("&&") if re.search(r"\bddbench (\w|-)", part)]


def ddbench_words(line: str) -> list[str]:
    words = shlex.split(line.split("#")[0])
    start = next(i for i, word in enumerate(words) if word.endswith("ddbench"))
    return words[start + 1 :]


COMMANDS = [(page, line) for page in PAGES for line in shell_lines(page) if not re.search(r"[A-Z]{3,}|\[|\.\.\.", line)]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{p.name}: {c[:60]}" for p, c in COMMANDS])
def test_commands_in_the_docs_parse(page, line):
    words = ddbench_words(line)
    if words[0].startswith("-") or len(words) == 1:  # a command that is only named
        return
    command = cli.commands[words[0]]
    try:
        context = command.make_context(words[0], list(words[1:]))
    except click.exceptions.Exit:  # --help
        return
    for name, _ in context.params.get("options") or ():
        assert name.split(".")[0] in (*GROUPS, "metric"), f"{page.name}: {name}"


def test_the_readme_holds_enough_commands_for_the_check_above_to_mean_something():
    assert len([line for page, line in COMMANDS if page.name == "README.md"]) >= 4


@pytest.mark.parametrize(
    ("page", "line"), [c for c in COMMANDS if ddbench_words(c[1])[0] == "run"], ids=lambda value: str(value)[-70:]
)
def test_run_commands_in_the_docs_name_plugins_and_options_that_exist(page, line):
    context = cli.commands["run"].make_context("run", ddbench_words(line)[1:])
    given = context.params
    names = {kind: given[kind] for kind in PLUGGED}
    mapped = "dataset.root" in dict(given["options"]) and page.name == "writing-a-plugin.md"
    if mapped or {"mean", "sharp-means", "class-means"} & set(names.values()):
        return  # README's own plugin, and those of the guide and the examples, which tests/testing writes and runs
    flags = tuple(pair for pair in given["options"])
    assert resolve(Request(**names, ipc=given["ipc"], protocol=given["protocol"], device="cpu", flags=flags)).spec


def test_the_set_up_commands_are_the_ones_that_continuous_integration_runs():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    assert "pip install -e '.[dev]' && .venv/bin/pytest -n auto\n" in readme
    assert "-e '.[dev]'\n" in ci
    assert "\n.venv/bin/pytest -n auto --cov " in ci
    assert "\n.ci/smoke .venv/bin/python\n" in ci


def test_what_continuous_integration_does_with_the_installed_package_is_what_the_readme_begins_with():
    readme, smoke = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "smoke").read_text()
    command = "ddbench run --matcher tesla --scheduler pdd --ipc 10"
    assert f"pip install . && .venv/bin/{command}\n" in readme
    assert f"\n{command} --dataset toy " in smoke
    assert re.search(r'--target \S+ "\$\{2:-\.\}"\n', smoke)
    assert "$ ddbench compare\n" in readme
    assert "\nddbench compare\n" in smoke


def anchors(page: Path) -> set[str]:
    """The names by which a page's headings can be linked to."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_between_pages_lead_to_files_and_headings(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", page.read_text()):
        if "://" not in target:
            found = page.parent / target if target else page
            assert found.exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(found), f"{page.name} links to {target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_paths_and_modules_that_pages_name_exist(page):
    text = page.read_text().replace("tests/test_ddbench_sharp_means.py", "")  # of the guide
    for path in re.findall(r"\b((?:ddbench|plugins|tests|benchmarks)/[\w./-]*\w)", text):
        assert (ROOT / path).exists() or "NAME" in path, f"{page.name} names {path}"
    dotted = re.findall(r"\bddbench(?:\.[A-Za-z_]\w*)+", text)
    for module, several, one in re.findall(
        r"^from (ddbench(?:\.[\w.]+)?) import (?:\(([\w, \n]+)\)|([\w, ]+))", text, flags=re.M
    ):
        dotted += [f"{module}.{name}" for name in re.findall(r"\w+", several or one)]
    for name in dotted:
        assert locate(name) is not None, f"{page.name} names {name}"


def test_the_guide_uses_public_names_alone():
    guide = (ROOT / "docs" / "writing-a-plugin.md").read_text()
    named = set(re.findall(r"\bddbench(?:\.[a-z_]\w*)+", guide))
    assert {"ddbench.testing", "ddbench.trajectory.unroll"} <= named
    for dotted in named - {f"ddbench.{name}" for name in ddbench.__all__}:
        assert any(dotted == m or dotted.startswith(f"{m}.") for m in ddbench.PUBLIC_MODULES), dotted
    assert "ddbench.testing.kit" not in named


def test_every_hook_is_documented_for_plugin_authors():
    guide = (ROOT / "docs" / "writing-a-plugin.md").read_text()
    for hook in hookspecs.HOOKS:
        assert hook in guide
        assert getattr(hookspecs, hook).__doc__


def test_every_command_stands_in_the_docs():
    text = (ROOT / "docs" / "commands.md").read_text()
    for name in cli.commands:
        assert f"\n| `ddbench {name}" in text


def test_the_readme_counts_what_there_is():
    words = {5: "five", 9: "nine", 16: "sixteen", 34: "thirty-four"}
    count = {kind: words[len(registry().names(kind))] for kind in ("matcher", "scheduler", "dataset", "network")}
    told = "{matcher} matchers, {scheduler} schedulers, {dataset} dataset sources and {network} networks"
    assert told.format_map(count) in README.lower()
    assert len(README.splitlines()) <= 120


def test_every_built_in_plugin_has_a_docstring_and_described_options():
    for plugin in registry().plugins.values():
        assert plugin.cls.__doc__
        assert not plugin.cls.__doc__.startswith(plugin.cls.__name__ + "("), (
            f"{plugin.name} has no docstring of its own"
        )


def test_recipes_name_a_source_and_resolve():
    for kind in ("matcher", "dataset"):
        for name in registry().names(kind):
            for recipe in registry().get(kind, name).recipes:
                assert recipe.source
                dataset = recipe.match.get("dataset", "digits")
                ipc = recipe.match.get("ipc", 1)
                request = Request(
                    dataset=dataset if dataset in registry().names("dataset") else "cifar10",
                    matcher=name if kind == "matcher" else "tesla",
                    scheduler=recipe.match.get("scheduler", "single"),
                    ipc=ipc[0] if isinstance(ipc, list) else ipc,
                    device="cpu",
                )
                values = tuple(
                    (f"{group}.{key}", ",".join(map(str, value)) if isinstance(value, list) else str(value))
                    for group, given in recipe.options.items()
                    for key, value in given.items()
                    if key != "name"
                )
                flagged = Request(**{**vars(request), "flags": values})
                assert resolve(flagged).spec


def test_a_recipe_whose_settings_are_on_a_board_says_that_it_has_been_run():
    """Entries of digits, whose recipes are for them: the one that a run takes, where it says what one has."""
    waiting, held = [], 0
    for path in sorted((ROOT / "leaderboards").glob("digits*/entries/*.json")):
        spec = json.loads(path.read_text(encoding="utf-8"))["spec"]
        matcher, scheduler = spec["matcher"], spec["scheduler"]
        place = {"dataset": "digits", "ipc": spec["ipc"], "scheduler": scheduler["name"], "device": spec["device"]}
        recipe = registry().get("matcher", matcher["name"]).recipe(place)
        if recipe is None:
            continue
        own = {group: spec[group].get("options", spec[group]) for group in recipe.options}
        if all(own[g].get(name) == value for g, given in recipe.options.items() for name, value in given.items()):
            held += 1
            waiting += [path.name] if recipe.ran == "no" else []
    assert held > 30
    assert not waiting, "set verified and shown_in"


def test_parameters_of_networks_in_the_docs_are_those_of_the_networks():
    from ddbench import Network, UsageError

    text = (ROOT / "docs" / "networks.md").read_text()
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| ([\d,|\s-]+) \|$", text, flags=re.M)
    assert {name for name, _ in rows} == set(registry().names("network"))
    tasks = [((1, 28, 28), 10), ((3, 32, 32), 10), ((3, 32, 32), 100), ((3, 64, 64), 200), ((3, 64, 64), 1000)]
    for name, cells in rows:
        for cell, (shape, classes) in zip(cells.split("|"), tasks, strict=True):
            network = Network(registry().get("network", name).cls(), shape, classes)
            if cell.strip() == "-":
                with pytest.raises(UsageError):
                    _ = network.parameters
            else:
                assert network.parameters == int(cell.replace(",", "")), (name, shape, classes)


def test_every_dataset_stands_in_the_docs_with_its_licence():
    text = (ROOT / "docs" / "datasets.md").read_text()
    for name in registry().names("dataset"):
        about = registry().get("dataset", name).cls.about
        (row,) = [line for line in text.splitlines() if re.match(rf"\| \[?`{name}`", line)]
        for value in (about["licence"], about["images"], about.get("licence_url", ""), about.get("homepage", "")):
            assert value in row


def test_the_page_on_suites_counts_their_cells():
    text = (ROOT / "docs" / "suites.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[([\w.-]+)\]\(\.\./(\S+)\) \| .* \| (\d+) \|$", text, flags=re.M)
    assert len(rows) >= 3
    for name, path, count in rows:
        assert len(read(ROOT / path, dry=True).cells) == int(count), name


def test_the_page_of_recipes_is_that_of_the_recipes():
    made = runpy.run_path(str(ROOT / "docs" / "recipes.py"))["page"]()
    assert (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8") == made, "run: python docs/recipes.py"


def test_every_method_says_where_it_differs_from_its_released_code():
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| [`") and line.count("|") == 7]
    told = {row[0].split("`")[1]: row[-1].rstrip(" |") for row in rows}
    assert set(told) == set(registry().names("matcher"))
    assert all(told.values()), told


@pytest.mark.parametrize("kind", ["matcher", "scheduler"])
def test_the_page_of_a_method_begins_with_its_paper(kind):
    for name in registry().names(kind):
        page, cls = ROOT / "docs" / "methods" / f"{name}.md", registry().get(kind, name).cls
        words = getattr(cls, "paper", "")
        begins = f"[{words}]({cls.paper_url}). " if words else ""
        assert page.read_text(encoding="utf-8").splitlines()[4].startswith(f"{begins}A {kind}; "), name


def test_the_method_of_the_readme_is_a_plugin(monkeypatch):
    code = next(c for c in re.findall(r"^```python\n(.*?)^```", README, flags=re.M | re.S) if "register_matchers" in c)
    module: Any = ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", module)
    exec(compile(code, "README.md", "exec"), module.__dict__)
    check_matcher(module.Mean)
    given: list[type] = []
    module.register_matchers(given.append)
    assert given == [module.Mean]
