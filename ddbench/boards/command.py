"""The commands that make the runs of an entry again: derived from their specs, read back before they are told.

People paste them into a shell, so a line does nothing but call ddbench, and what it says is what the runs were.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ddbench.base.options import label, make, option_text
from ddbench.errors import DataError, UsageError
from ddbench.plugins import main_option, registry
from ddbench.results.tables import UNSAFE
from ddbench.run.again import request_of
from ddbench.run.record import PLACES, SpecRecord
from ddbench.run.spec import PLUGGED, Request, from_record, known_options

if TYPE_CHECKING:
    from ddbench.boards.board import Board

LONGEST = 20_000  # letters of a line: the names of a thousand classes
NONE = "no command can be told: a plugin is not here, or a value cannot be written on a line"
_UNSEEN = re.compile(f"[\n\t\ud800-\udfff\ufffe\uffff]|{UNSAFE.pattern}")


def command_of(specs: Sequence[SpecRecord], students: int, networks: Sequence[str] = ()) -> str:
    """The commands that make these specs: every option that is not a field's default, whatever recipes give today.

    ``DATA`` is where the reader has the data, ``RUN`` each of the runs: they were evaluated on ``networks`` as well.
    Seeds that are not consecutive get a line each. Threads and device are part of a run's key and of its bits. Nothing
    where a plugin is not here, since only it knows its options, or where the options would not be read as they are.
    """
    spec, seeds = specs[0], sorted(s.seed for s in specs)
    try:
        made = from_record(known_options(spec.json_value()))
        asked = request_of(made)
    except (UsageError, DataError):
        return ""
    if asked is None:
        return ""
    plain, told = asked
    names: dict[str, Any] = {kind: getattr(plain, kind) for kind in PLUGGED}
    place = main_option(registry().get("dataset", names["dataset"]))
    if place in PLACES and (where := spec.dataset.options.get(place, "DATA")):
        names["dataset"] += f":{where}"
    words = [*([f"DDBENCH_THREADS={spec.threads}"] if spec.threads else []), "ddbench", "run"]
    always = {"dataset", "matcher", "ipc"} | ({"protocol"} if place else set())  # rules that are usual for some data
    for name, value in (names | {"ipc": spec.ipc, "protocol": plain.protocol, "device": spec.device}).items():
        words += [f"--{name}", str(value)] if value != getattr(Request, name) or name in always else []
    lines = [seeds] if seeds == list(range(seeds[0], seeds[0] + len(seeds))) else [[seed] for seed in seeds]
    runs = [
        [*words, "--seed", str(part[0]), "--repeats", str(len(part)), "--students", str(students), *_flags(told)]
        for part in lines
    ]
    found = [shlex.join(line) for line in (*runs, *(_again(network, students) for network in networks)) if line]
    return "\n".join(found) if all(is_command(line) for line in found) else ""


def entering(board: Board) -> str:
    """The commands that enter a method of one's own in a board; YOURS and DATA stand for its plugin and the data."""
    seeds, data = board.seeds_at(board.ipc[0]), board.dataset
    given = {name: value for name, value in data.options.items() if name not in PLACES}
    with suppress(UsageError, DataError):  # of a plugin that is not here nobody knows whether it asks for a place
        place = main_option(registry().get("dataset", data.name))
        where = f":{data.options.get(place, 'DATA')}" if place in PLACES else ""
        words = ["ddbench", "run", "--dataset", data.name + where, "--matcher", "YOURS", "--ipc", str(board.ipc[0])]
        words += ["--network", board.network.name, "--protocol", board.protocol.name]
        words += ["--seed", str(seeds[0]), "--repeats", str(len(seeds)), "--students", str(board.students)]
        groups = {"dataset": given, "network": board.network.options, "protocol": board.protocol.options}
        flags = "".join(flags_text(group, options) for group, options in groups.items())
        enter = ["ddbench", "submit", "RUN...", board.name, "--author", "Your name", "--link", "LINK"]
        lines = [shlex.join(words) + flags, shlex.join(enter), "ddbench leaderboard build"]
        return "" if any(_UNSEEN.search(line) for line in lines) else "\n".join(lines)
    return ""


def is_command(line: str) -> bool:
    """Whether a line does nothing but call ``ddbench run`` or ``ddbench eval``, and can be shown as it is."""
    try:
        words = shlex.split(line)
    except ValueError:
        return False
    if len(line) > LONGEST or _UNSEEN.search(line):
        return False
    threads = bool(words) and re.fullmatch(r"DDBENCH_THREADS=[1-9]\d*", words[0]) is not None
    return shlex.join(words) == line and words[threads : threads + 2] in (["ddbench", "run"], ["ddbench", "eval"])


def flags_text(group: str, given: dict[str, Any]) -> str:
    """``-o`` for each of the options of a group, as a shell takes them, with a space before each; else nothing."""
    told = [(f"{group}.{name}", option_text(value)) for name, value in given.items()]
    return "".join(f" {word}" for word in map(shlex.quote, _flags(told)))


def _flags(told: Sequence[tuple[str, str]]) -> list[str]:
    return [word for name, text in told for word in ("-o", f"{name}={text}")]


def _again(network: str, students: int) -> list[str]:
    """The command that evaluates a run on another network, by its label, ``convnet(width=64)``; else nothing."""
    name, _, text = network.removesuffix(")").partition("(")
    try:
        cls = registry().get("network", name).cls
        known = "|".join(re.escape(f.name) for f in fields(cls))
        parts = [part.partition("=") for part in re.split(rf",(?=(?:{known})=)", text) if part]
        given = {option: ast.literal_eval(value) if value[:1] in "([" else value for option, _, value in parts}
        if label(make(cls, given, "network")) != network:
            return []
    except (UsageError, DataError, ValueError, SyntaxError):
        return []
    told = [(f"network.{option}", option_text(value)) for option, value in given.items()]
    return ["ddbench", "eval", "RUN", "--network", name, "--students", str(students), *_flags(told)]
