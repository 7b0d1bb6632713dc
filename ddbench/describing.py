"""``list``, ``info``, ``plugins`` and ``check-grad``: what there is, and whether it is right."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any, get_type_hints

from ddbench import console
from ddbench.errors import UsageError, did_you_mean
from ddbench.plugins import KINDS, Plugin, registry
from ddbench.results import rows, run_folders


def show_list(what: str, out: Path, as_json: bool) -> None:
    """Plugins of a kind with their first line, or runs with their status."""
    if what == "runs":
        found = [row for folder in run_folders(out) for row in rows(folder)]
        columns = ("run", "status", "dataset", "matcher", "scheduler", "ipc", "seed", "n")
        body = [[row[c] for c in columns] for row in found]
    else:
        kind = what.removesuffix("s")
        columns = ("name", "summary", "package")
        chosen = [registry().get(kind, name) for name in registry().names(kind)]
        body = [[p.name, _summary(p.cls), f"{p.package} {p.version}"] for p in chosen]
    if as_json:
        console.data_json([dict(zip(columns, line, strict=True)) for line in body])
    elif body:
        console.table(what, columns, body)
    else:
        console.say(f"no {what} here")


def _summary(cls: type) -> str:
    return (inspect.getdoc(cls) or "").split("\n")[0]


def find(name: str) -> list[Plugin]:
    """All plugins called ``name``, of whatever kind; or an error with the nearest name."""
    found = [p for (_, n), p in registry().plugins.items() if n == name]
    if not found:
        names = sorted({n for _, n in registry().plugins})
        raise UsageError(f"nothing is called {name!r}{did_you_mean(name, names)} (there are: {', '.join(names)})")
    return sorted(found, key=lambda p: KINDS.index(p.kind))


def show_info(name: str, flags: tuple[tuple[str, str], ...], as_json: bool) -> None:
    """The docstring, options and recipes of every plugin with this name; of a dataset, what its data are."""
    from ddbench import preparing

    found = find(name.partition(":")[0])
    if flags and not any(plugin.kind == "dataset" for plugin in found):
        raise UsageError(f"{name!r} is no dataset; only what a dataset holds depends on options")
    data = {p.name: preparing.describe(name, flags, get=False) for p in found if p.kind == "dataset"}
    if as_json:
        console.data_json([_about(p) | ({"data": data[p.name]} if p.kind == "dataset" else {}) for p in found])
        return
    for plugin in found:
        about = _about(plugin)
        console.data(f"{plugin.kind} {plugin.name} ({plugin.package} {plugin.version})\n\n{about['doc']}\n")
        columns = ("option", "type", "default", "what")
        console.table("options", columns, [[o[c] for c in columns] for o in about["options"]])
        if about["recipes"]:
            body = [[r["match"], r["options"], r["verified"], r["source"]] for r in about["recipes"]]
            console.table("recipes", ("for", "options", "verified by ddbench", "source"), body)
        if plugin.kind == "dataset":
            known = data[plugin.name]
            if shown := known["about"] | (known["measured"] or {}):
                console.table(f"dataset {plugin.name}", ("", ""), preparing.body(shown))
            if known["missing"]:
                console.say(
                    f"no data here: {known['missing']}; `ddbench prepare {name}` makes it ready, or says what it lacks"
                )


def _about(plugin: Plugin) -> dict[str, Any]:
    hints = get_type_hints(plugin.cls, include_extras=True)
    given = [_option(plugin.kind, f, hints[f.name]) for f in dataclasses.fields(plugin.cls)]
    recipes = [
        {"match": _words(r.match), "options": _words(_flat(r.options)), "verified": r.verified, "source": r.source}
        for r in plugin.recipes
    ]
    return {
        "kind": plugin.kind, "name": plugin.name, "package": plugin.package, "version": plugin.version,
        "doc": inspect.getdoc(plugin.cls) or "", "options": given, "recipes": recipes,
    }  # fmt: skip


def _option(kind: str, f: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    notes = getattr(hint, "__metadata__", ())
    base = getattr(hint, "__origin__", hint) if notes else hint
    bounds = [repr(n).lower() for n in notes if not isinstance(n, str)]
    named = base.__name__ if isinstance(base, type) else str(base).replace("typing.", "")
    default = None if f.default is dataclasses.MISSING else f.default
    return {
        "option": f"{kind}.{f.name}",
        "type": " ".join([named, *bounds]),
        "default": default if isinstance(default, (bool, int, float, str, type(None))) else str(default),
        "what": next((n for n in notes if isinstance(n, str)), ""),
    }


def _flat(options: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"{group}.{name}": value for group, given in options.items() for name, value in given.items()}


def _words(values: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items()) or "anything"


def show_plugins(as_json: bool) -> int:
    """All plugins and their packages; exit code 3 if one could not be loaded."""
    loaded = registry()
    body = [[p.kind, p.name, p.package, p.version] for p in loaded.plugins.values()]
    broken = [dataclasses.asdict(b) for b in loaded.broken]
    if as_json:
        columns = ("kind", "name", "package", "version")
        console.data_json({"plugins": [dict(zip(columns, line, strict=True)) for line in body], "broken": broken})
    else:
        console.table("plugins", ("kind", "name", "package", "version"), sorted(body))
        for b in loaded.broken:
            console.fail(str(b))
    return 3 if broken else 0


def show_gradient_check(
    *, matcher: str, steps: int, lr: float, seed: int, options: tuple[tuple[str, str], ...], as_json: bool
) -> None:
    """Relative error, cosine and ratio of norms of a matcher's gradient against the autograd unroll."""
    from ddbench.gradcheck import compare_gradients
    from ddbench.records import make
    from ddbench.spec import split_flags

    given = split_flags(options)
    if set(given) - {"matcher"}:
        raise UsageError("check-grad takes options of the matcher only, such as -o matcher.curvature=exact")
    method = make(registry().get("matcher", matcher).cls, given.get("matcher", {}), "matcher")
    if not hasattr(method, "differentiate"):
        raise UsageError(f"matcher {matcher!r} does not differentiate an unroll: there is nothing to check")
    found = compare_gradients(method.differentiate, steps=steps, lr=lr, seed=seed)
    if as_json:
        console.data_json({"matcher": matcher, "steps": steps, "lr": lr, "seed": seed, "gradients": found})
        return
    columns = ("gradient", "relative error", "cosine", "norm ratio")
    body = [
        [f["gradient"], f"{f['relative_error']:.3g}", f"{f['cosine']:.6f}", f"{f['norm_ratio']:.4f}"] for f in found
    ]
    title = f"{matcher} against the autograd unroll: {steps} steps at lr {lr:g}, float64"
    console.table(title, columns, body)
