"""What ``ddbench info`` says of a plugin."""

from __future__ import annotations

import dataclasses
import inspect
import re
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from ddbench.base.options import option_text

if TYPE_CHECKING:
    from ddbench.base.recipes import RecipeEntry
    from ddbench.plugins import Plugin


def about_plugin(plugin: Plugin) -> dict[str, Any]:
    """Its docstring, options and recipes, as ``ddbench info`` shows them."""
    hints = get_type_hints(plugin.cls, include_extras=True)
    given = [_option(plugin.kind, f, hints[f.name]) for f in dataclasses.fields(plugin.cls)]
    recipes = [
        {
            "match": _words(r.match),
            "recipe": r.name,
            "record": _recorded(r),
            "options": _words({name: option_text(value) for name, value in _flat(r.options).items()}),
            "verified": r.verified,
            "source": r.source,
        }
        for r in plugin.recipes
    ]
    return {
        "kind": plugin.kind,
        "name": plugin.name,
        "package": plugin.package,
        "version": plugin.version,
        "doc": inspect.getdoc(plugin.cls) or "",
        "options": given,
        "recipes": recipes,
    }


def _recorded(entry: RecipeEntry) -> str:
    """Whether ddbench has run a recipe, what it reached and what it cost, where that is on record."""
    if not entry.record:
        return entry.ran
    held = entry.record
    told = f"{held['accuracy']:.1f} ± {held['std']:.1f} % (n {held['n']}), {held['seconds']:.0f} s, {held['device']}"
    return f"{entry.ran}: {told}"


_WORDS = {int: "integer", float: "number", bool: "true or false", str: "text"}
_BOUNDS = {"ge": "of at least", "gt": "above", "le": "at most", "lt": "below", "multiple_of": "a multiple of"}


def _type(hint: Any) -> str:
    """A type as people write it: ``number above 0, or auto``."""
    if get_origin(hint) in (Union, UnionType):
        return ", or ".join(_type(part) for part in get_args(hint) if part is not NoneType)
    if get_origin(hint) is Literal:
        return ", ".join(sorted(map(str, get_args(hint))))  # typing keeps the order of whoever asked first
    if get_origin(hint) in (tuple, list):
        return f"any number of: {_type(get_args(hint)[0])}"
    if notes := getattr(hint, "__metadata__", ()):
        bounds = [text for note in notes if not isinstance(note, str) for text in _bounds(note)]
        return " ".join(filter(None, [_type(hint.__origin__), " and ".join(bounds)]))
    return _WORDS.get(hint) or (hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", ""))


def _bounds(note: Any) -> list[str]:
    """``Ge(1)`` as ``of at least 1``."""
    told = [f"{word} {getattr(note, name):g}" for name, word in _BOUNDS.items() if hasattr(note, name)]
    return told or [repr(note)]


def _option(kind: str, f: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    notes = getattr(hint, "__metadata__", ())
    default = None if f.default is dataclasses.MISSING else f.default
    return {
        "option": f"{kind}.{f.name}",
        "type": _type(hint),
        "default": default if isinstance(default, (bool, int, float, str, type(None))) else option_text(default),
        "what": next((n for n in notes if isinstance(n, str)), ""),
    }


def _flat(options: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"{group}.{name}": value for group, given in options.items() for name, value in given.items()}


def _words(values: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items()) or "anything"


def literal(text: str) -> str:
    """A docstring as Markdown in which stars and the like are mathematics, outside of code."""
    lines = text.split("\n")
    return "\n".join(line if line.startswith("    ") else _escaped(line) for line in lines)


def _escaped(line: str) -> str:
    parts = re.split(r"(`+[^`]+`+)", line)
    return "".join(part if i % 2 else re.sub(r"([*_<\[~])", r"\\\1", part) for i, part in enumerate(parts))
