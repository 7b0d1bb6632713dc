"""Write a page for each method and scheduler into ``methods/``: ``python docs/generate.py``.

All of it comes from elsewhere: docstrings, options and recipes from the plugins, differences from the tables of
``methods.md``, numbers from the boards and from ``results/baselines-*.json``. A test compares the pages with what this
would write.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from question_tables import records

from ddbench.base.options import option_text
from ddbench.boards.places import found
from ddbench.boards.ranking import Place, standings
from ddbench.cli.about import about_plugin, literal
from ddbench.plugins import Plugin, paper, registry
from ddbench.results.aggregate import per_run
from ddbench.results.tables import cell, method_of
from ddbench.run.defaults import ONE_STAGE
from ddbench.run.row import Row

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PAGES = DOCS / "methods"
KINDS = ("matcher", "scheduler")
BOARD = {
    "ipc": "ipc",
    "title": "method",
    "accuracy_mean": "accuracy %",
    "n": "seeds",
    "difference": "difference",
    "baseline": "to",
    "distil_seconds": "distil s",
    "expert_seconds": "experts s",
    "peak_bytes": "peak MB",
}
BASELINE = {
    "ipc": "ipc",
    "method": "method",
    "label_type": "labels",
    "accuracy_mean": "accuracy %",
    "distil_seconds": "distil s",
    "expert_seconds": "experts s",
    "peak_bytes": "peak MB",
}
QUESTIONS = {
    "coresets": "coresets or distilled sets?",
    "labels": "images, labels or augmentation?",
    "larger": "where does distilling stop paying?",
    "images": "do settings carry over?",
}
BASELINES = {  # what was run, and where in baselines.md
    "baselines-digits.json": ("digits", "digits"),
    "baselines-cifar10-mini.json": ("CIFAR-10 (JPEG), 3,000 images", "cifar-10-re-encoded-as-jpeg-small"),
}
MARKS = "‡: not [above random images](../comparing.md#above-random-images)."


def pages() -> dict[Path, str]:
    """Every page of a method or scheduler that ddbench brings, by its file."""
    plugins = [registry().get(kind, name) for kind in KINDS for name in registry().names(kind)]
    return {PAGES / f"{plugin.name}.md": page(plugin) for plugin in plugins if plugin.package == "ddbench"}


def page(plugin: Plugin) -> str:
    """The page of one plugin."""
    about = about_plugin(plugin)
    parts = [
        f"# {plugin.name}\n\n<!-- Written by `python docs/generate.py`; edit what it is made of instead. -->",
        *head(plugin),
        "## Idea",
        literal(about["doc"].replace("``", "`")).replace("\\<", "&lt;").replace("\\~", "~"),  # no escapes in MkDocs
        *differences(plugin),
        *options(about),
        *recipes(plugin, about),
        *measured(plugin),
    ]
    return "\n\n".join(parts) + "\n"


def head(plugin: Plugin) -> list[str]:
    """Whose it is, how it is called, and the rows of the tables in methods.md that are about it."""
    title, row = told(plugin)
    source = Path(inspect.getfile(plugin.cls)).resolve().relative_to(ROOT)
    words, address = paper(plugin)
    whose = f"{f'[{words}]({address})' if address else words}. " if words else ""
    other = "--scheduler single" if plugin.kind == "matcher" else "--matcher dm"
    lines = [
        f"{whose}A {plugin.kind}; its code is [{source.as_posix()}](../../{source.as_posix()}).",
        f"```sh\nddbench run --{plugin.kind} {plugin.name} {other} --ipc 10\n```",
    ]
    shown = [
        i for i, name in enumerate(title) if i and not name.startswith(("paper", "differs")) and row[i] not in ("", "-")
    ]
    return [*lines, "\n".join(f"- **{title[i]}**: {row[i]}" for i in shown)]


def told(plugin: Plugin) -> tuple[list[str], list[str]]:
    """The titles and cells of the row about a plugin in methods.md."""
    lines = (DOCS / "methods.md").read_text(encoding="utf-8").splitlines()
    titles: list[str] = []
    for line in lines:
        cells = [part.strip() for part in line.strip("|").split(" | ")]
        if line.startswith(f"| {plugin.kind} |"):
            titles = cells
        elif titles and line.startswith(f"| [`{plugin.name}`]"):
            return titles, [re.sub(r"\]\((?!http|\.\./)", "](../", text) for text in cells]
    raise LookupError(f"docs/methods.md has no row for {plugin.kind} {plugin.name}")


def differences(plugin: Plugin) -> list[str]:
    """Where it differs from the released code, if methods.md says so."""
    titles, row = told(plugin)
    if not titles[-1].startswith("differs"):
        return []
    said = row[-1]
    return [
        "## Differences from the released code",
        "\n".join(f"- {part[0].upper()}{part[1:]}" for part in said.split("; ")),
        "[What all methods have in common](../methods.md#where-all-differ-from-published-code) comes in addition.",
    ]


def options(about: dict[str, Any]) -> list[str]:
    """The table of its options."""
    if not about["options"]:
        return ["## Options", "None."]
    rows = [[f"`{o['option']}`", o["type"], _code(option_text(o["default"])), o["what"]] for o in about["options"]]
    return ["## Options", "Set with `-o NAME=VALUE`.", table(["option", "type", "default", "what it is"], rows)]


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def recipes(plugin: Plugin, about: dict[str, Any]) -> list[str]:
    """What it takes where nobody says otherwise, and whether ddbench has run that."""
    if not plugin.recipes:
        return []
    rows = []
    for recipe, shown in zip(plugin.recipes, about["recipes"], strict=True):
        ipc = recipe.match.get("ipc", "any")
        rows.append(
            [
                recipe.place,
                " to ".join(map(str, ipc)) if isinstance(ipc, list) else str(ipc),
                str(recipe.match.get("scheduler", "any")),
                recipe.name,
                re.sub(r"\(([\w./-]+/[\w./-]+)\)", lambda m: f"([record](../../{m[1]}))", shown["record"]),
                recipe.source,
                f"`{shown['options']}`" if shown["options"] != "anything" else "the defaults",
            ]
        )
    titles = ["dataset", "ipc", "scheduler", "recipe", "run by ddbench", "source", "options"]
    said = (
        "A run takes `paper` on a known dataset and `fast` on your own images where there is one, else the other; of "
        "several the most specific, and of equals the first. `--recipe` chooses, and flags come before it. "
        "[All recipes](../recipes.md) says what *run* means."
    )
    return ["## Recipes", said, table(titles, rows)]


def measured(plugin: Plugin) -> list[str]:
    """Its rows on the boards, and those of the comparison of all methods with one seed."""
    if plugin.name == ONE_STAGE:
        said = "Most that is on record: [all methods](../baselines.md), [the boards](../../leaderboards/README.md)."
        return ["## Measured", said]
    parts: list[str] = []
    for board, places in boards():
        rows = [[cell(name, p.cells) for name in BOARD] for p in places if p.cells[plugin.kind] == plugin.name]
        if rows:
            link = f"[{board.title}](../../leaderboards/{board.folder.name}/README.md)"
            parts += [f"On the board {link}, mean ± deviation over seeds:", table(list(BOARD.values()), rows)]
    titles = list(BASELINE.values())
    for name, (task, anchor) in BASELINES.items():
        rows = [[cell(column, r) for column in BASELINE] for r in graded(name) if r[plugin.kind] == plugin.name]
        if rows:
            said = f"In the [comparison of all methods](../baselines.md#{anchor}) on {task}, one seed, ± over students:"
            parts += [said, table(titles, rows)]
    if not parts:
        pages = [f"[{t}](../questions/{name}.md)" for name, t in QUESTIONS.items() if plugin.name in asked_about(name)]
        where = f"; its rows are in {', '.join(pages)}" if pages else ""
        return ["## Measured", f"It is on no board and not in the comparison of all methods{where}."]
    return ["## Measured", *parts, *([MARKS] if any("‡" in part for part in parts) else [])]


@cache
def asked_about(question: str) -> frozenset[str]:
    """The matchers that are on the page of a question."""
    return frozenset(row["matcher"] for row in records(question))


@cache
def boards() -> list[tuple[Any, list[Place]]]:
    """The boards that have entries, with their places."""
    every = [standings(board) for board in found([], ROOT / "leaderboards")]
    return [(s.board, s.flat()) for s in every if s.flat()]


@cache
def graded(name: str) -> list[dict[str, Any]]:
    """The rows of a recorded table, with what sets those of one method apart."""
    names = {f.name for f in fields(Row)}
    held = json.loads((DOCS / "results" / name).read_text(encoding="utf-8"))
    rows = per_run([Row(**{key: value for key, value in row.items() if key in names}) for row in held])
    return [row | {"method": method_of(row)} for row in rows]


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in cells)} |"

    return "\n".join([line(titles), line(["---"] * len(titles)), *map(line, rows)])


def stale() -> Iterator[Path]:
    """Pages that are not as they should be, those of methods that are gone included."""
    wanted = pages()
    for path in sorted({*PAGES.glob("*.md"), *wanted}):
        if path not in wanted or not path.exists() or path.read_text(encoding="utf-8") != wanted[path]:
            yield path


if __name__ == "__main__":
    wanted = pages()
    PAGES.mkdir(exist_ok=True)
    for path in PAGES.glob("*.md"):
        path.unlink()
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")
