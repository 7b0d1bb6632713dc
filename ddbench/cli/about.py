"""What ``ddbench info`` says of a plugin."""

from __future__ import annotations

import dataclasses
import inspect
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from ddbench.base.recipes import RecipeEntry
    from ddbench.plugins import Plugin

RECIPE = ("match", "recipe", "record", "options", "verified", "source")


def about_plugin(plugin: Plugin) -> dict[str, Any]:
    """Its docstring, options and recipes, as ``ddbench info`` shows them."""
    hints = get_type_hints(plugin.cls, include_extras=True)
    given = [_option(plugin.kind, f, hints[f.name]) for f in dataclasses.fields(plugin.cls)]
    recipes = [
        {
            "match": _words(r.match),
            "recipe": r.name,
            "record": _recorded(r),
            "options": _words(_flat(r.options)),
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


def _type(hint: Any) -> str:
    """A type as people write it: ``float gt(gt=0) or auto``."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_type(part) for part in get_args(hint) if part is not NoneType)
    if get_origin(hint) is Literal:
        return ", ".join(map(str, get_args(hint)))
    if notes := getattr(hint, "__metadata__", ()):
        return " ".join([_type(hint.__origin__), *(_bound(n) for n in notes if not isinstance(n, str))])
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _bound(note: Any) -> str:
    """``Ge(1)`` as ``>= 1``."""
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    return ", ".join(f"{sign} {getattr(note, name)}" for name, sign in signs.items() if hasattr(note, name)) or repr(
        note
    )


def _option(kind: str, f: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    notes = getattr(hint, "__metadata__", ())
    default = None if f.default is dataclasses.MISSING else f.default
    return {
        "option": f"{kind}.{f.name}",
        "type": _type(hint),
        "default": default if isinstance(default, (bool, int, float, str, type(None))) else str(default),
        "what": next((n for n in notes if isinstance(n, str)), ""),
    }


def _flat(options: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"{group}.{name}": value for group, given in options.items() for name, value in given.items()}


def _words(values: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items()) or "anything"
