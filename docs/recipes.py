"""Write ``recipes.md``: the recipes of built-in plugins, and which ddbench has run (``python docs/recipes.py``)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ddbench.plugins import registry

PAGE = Path(__file__).with_name("recipes.md")
HEAD = """# Recipes

Written by `python docs/recipes.py` from the recipes that plugins bring. *Run by ddbench* says **yes** where ddbench has
run the very settings and recorded what came out, **reduced** where it has run the method on such data with less (fewer
images or iterations, a narrower network), and **no** where nothing of the kind is on record: the settings are those of
their source, and ddbench has not seen what they reach. `ddbench info NAME` lists their options. If a run has no recipe,
a warning says so and names the nearest one.

| matcher | dataset | ipc | scheduler | recipe | run by ddbench | source |
| --- | --- | --- | --- | --- | --- | --- |
"""


def rows() -> Iterator[list[str]]:
    """A row for every recipe of a built-in matcher, by matcher, and as they stand in their files."""
    for name in registry().names("matcher"):
        plugin = registry().get("matcher", name)
        if plugin.package != "ddbench":
            continue
        for recipe in plugin.recipes:
            ipc = recipe.match.get("ipc", "any")
            span = " to ".join(map(str, ipc)) if isinstance(ipc, list) else str(ipc)
            scheduler = str(recipe.match.get("scheduler", "any"))
            yield [f"`{name}`", recipe.place, span, scheduler, recipe.name, recipe.ran, recipe.source]


def page() -> str:
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
