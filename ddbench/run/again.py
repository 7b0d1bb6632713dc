"""What asks for a run again: its request with every option that is no default, whatever recipes give today.

It is read back before it is told, so that what does not give the same run is not told at all.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ddbench.base.options import changed, option_text, options
from ddbench.errors import DataError, UsageError
from ddbench.grade.protocol import Protocol, named
from ddbench.plugins import main_option, registry
from ddbench.run.record import PLACES
from ddbench.run.spec import EXPERTS, GROUPS, PLUGGED, Request, RunSpec, resolve

FILE = "run.toml"


def request_of(made: RunSpec) -> tuple[Request, list[tuple[str, str]]] | None:
    """A request without options, and the options, that give this spec; not where its data lie.

    None where the options, read as the command line reads them, would not be the same. Raises UsageError or DataError
    where a plugin is not here.
    """
    protocol = named(made.protocol.name.partition("-custom-")[0], made.dataset.name)
    names = {kind: getattr(made, kind).name for kind in PLUGGED}
    plain = Request(**names, ipc=made.ipc, protocol=protocol.name, device=made.device, here=False)
    usual = resolve(plain).spec.record()
    told = [pair for group in GROUPS for pair in _differing(group, made, usual[group], protocol)]
    return (plain, told) if _reads_back(made, plain, told) else None


def config_of(made: RunSpec, students: int) -> str:
    """The text of ``run.toml``, which ``ddbench run --config`` takes; empty where nothing would give the same run."""
    try:
        found = request_of(made)
    except (UsageError, DataError):
        return ""
    if found is None:
        return ""
    plain, told = found
    place = main_option(registry().get("dataset", plain.dataset))
    where = [(f"dataset.{n}", str(v)) for n, v in options(made.dataset).items() if n in PLACES or n == place if v]
    names = {kind: getattr(plain, kind) for kind in (*PLUGGED, "protocol")}
    top = names | {"ipc": made.ipc, "seeds": [made.seed], "students": students}
    top |= {"device": made.device, "threads": made.threads}
    given = dict([*told, *where])
    lines = [
        "# ddbench run --config run.toml repeats this run",
        *(f"{name} = {_toml(value)}" for name, value in top.items()),
        "",
        "[options]",
        *(f"{_toml(name)} = {_toml(text)}" for name, text in given.items()),
    ]
    text = "\n".join(lines) + "\n"
    try:
        return text if tomllib.loads(text) == top | {"options": given} else ""
    except ValueError:
        return ""


def _toml(value: Any) -> str:
    """Text, a number or a list of numbers; JSON's escapes are TOML's."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _differing(group: str, spec: RunSpec, usual: dict[str, Any], protocol: Protocol) -> list[tuple[str, str]]:
    """The options of a group that are not fields' defaults, or that a recipe would make others today."""
    made: Any = getattr(spec, group)
    usual = usual["options"] if group in PLUGGED else usual
    base = {"experts": EXPERTS, "protocol": protocol}.get(group)
    told = changed(made) if base is None else {n: v for n, v in options(made).items() if v != options(base)[n]}
    told |= {name: value for name, value in options(made).items() if usual.get(name) != value}
    shown = [(name, value) for name, value in options(made).items() if name in told and name not in _left(group)]
    return [(f"{group}.{name}", option_text(value)) for name, value in shown]


def _left(group: str) -> tuple[str, ...]:
    """Options that no flag says: where data lie here, and which rules these are, which ``--protocol`` says."""
    return ("name", "version") if group == "protocol" else PLACES if group == "dataset" else ()


def _reads_back(made: RunSpec, plain: Request, told: Sequence[tuple[str, str]]) -> bool:
    """Whether the flags, read as the command line reads them, give the options that the runs had."""
    flags = tuple((name, text.strip()) for name, text in told)
    again = resolve(replace(plain, flags=flags)).spec
    return all(
        {n: v for n, v in options(getattr(held, group)).items() if n not in _left(group)}
        == {n: v for n, v in options(getattr(made, group)).items() if n not in _left(group)}
        for held, group in ((again, group) for group in GROUPS)
    )
