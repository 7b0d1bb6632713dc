"""A suite file: the grid that it describes, as cells. Each cell is one run, resolved before anything starts.

    title = "Two methods on digits"
    students = 3
    seeds = [0, 1]

    [[matrix]]
    dataset = "digits"
    matcher = ["random", {name = "tesla", options = {curvature = "exact"}, label = "tesla exact"}]
    ipc = [1, 10]

    [[exclude]]
    matcher = "tesla exact"
    ipc = 10

An entry is a name, or a table of a name, options of its group, and a label. Options whose name has a dot may be of any
group. They are given per file, per matrix and per entry; the nearest to the cell wins.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from ddbench.base.cache import digest
from ddbench.base.options import option_text
from ddbench.errors import DataError, UsageError
from ddbench.plugins import wants_networks
from ddbench.run.defaults import BASELINE, DATASET, NETWORK, SCHEDULER
from ddbench.run.record import PLACES
from ddbench.run.spec import PLUGGED, Request, RunSpec, resolve, split_dataset, unfitted
from ddbench.suite.entries import count_of, gpus_of, known_keys, table_of, trackers, word

AXES: tuple[str, ...] = ("dataset", "network", "ipc", "scheduler", "matcher", "protocol", "seeds")
NUMBERS = ("ipc", "seeds")
USUAL = {"network": NETWORK, "scheduler": SCHEDULER, "protocol": "default", "seeds": [0]}
TOP = (*AXES, "recipe", "title", "students", "threads", "gpus", "tracker", "options", "matrix", "exclude")
MATRIX = (*AXES, "recipe", "options", "label", "gpus")
CHOICE = ("name", "options", "label")
PLACE = "dataset.root"
MOST = 100_000  # cells
_VARIABLE = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True)
class Choice:
    """One value of an axis: what it is called, what it sets, and how people read it."""

    name: Any
    flags: dict[str, str]
    label: str


@dataclass(frozen=True)
class Cell:
    """One run of a suite. ``request`` says how ``ddbench run`` asks for it."""

    name: str
    request: Request
    spec: RunSpec
    gpus: float | None = None  # the part of a GPU that it takes, if the suite says so

    @property
    def key(self) -> str:
        return self.spec.key

    @cached_property
    def like(self) -> str:
        """What cells have in common that differ only in their seed, and so take about as long."""
        return replace(self.spec, seed=0).key

    @cached_property
    def experts(self) -> str | None:
        """What decides the experts that this cell may have to train; None if its matcher needs none."""
        if not wants_networks(self.spec.matcher):
            return None
        record = self.spec.record()
        return digest([record[part] for part in ("dataset", "network", "experts", "threads", "device")])


@dataclass(frozen=True)
class _Here:
    """Where a suite lies (None: places are as typed), and the variables it has used; a dry one may lack them.

    ``only`` are the cells that are wanted of it: by axis, names and labels.
    """

    folder: Path | None
    dry: bool
    only: Mapping[str, set[str]] = field(default_factory=dict)
    used: dict[str, None] = field(default_factory=dict)

    def filled(self, option: str, text: str, where: str) -> str:
        """A value with ``${NAME}`` replaced by the environment's, in the one option that may hold it."""
        names = _VARIABLE.findall(text)
        if names and option != PLACE:
            raise UsageError(
                f"{where}: {option} holds ${{{names[0]}}}, but variables of the environment may stand in {PLACE} "
                "alone, which never leaves this machine; write out what it should be"
            )
        self.used.update(dict.fromkeys(names))
        return _VARIABLE.sub(lambda match: os.environ.get(match[1]) or match[0], text)

    def require_set(self, flags: Mapping[str, str], where: str) -> None:
        """Refuse a cell whose place of data has a variable that is not set; cells that are left out may have some."""
        for name in _VARIABLE.findall(flags.get(PLACE, "")):
            if not os.environ.get(name) and not self.dry:
                raise UsageError(f"{where} uses ${{{name}}}, which is not set; run `export {name}=...` first")

    def placed(self, option: str, value: str, where: str) -> str:
        """Where data lie, absolute; a name that is no path here (of a dataset on a hub) stays as it is."""
        value = self.filled(option, value, where)
        if not value or self.folder is None or option not in {f"dataset.{place}" for place in PLACES}:
            return value
        try:
            path = str((self.folder / Path(value).expanduser()).absolute())
        except RuntimeError as error:  # of a user that is not here
            raise UsageError(f"{where}: {option}={value!r} is not a place here ({error})") from error
        return path if os.path.exists(path) or option == PLACE else value  # noqa: PTH110 - no error for odd names


@dataclass(frozen=True)
class Suite:
    """A suite file, read: its cells in the order in which they are listed, seed by seed."""

    path: Path
    title: str
    students: int
    trackers: tuple[str, ...]
    cells: tuple[Cell, ...]
    variables: tuple[str, ...] = ()  # of the environment, that places of data hold

    def masked(self, text: str) -> str:
        """A text with the names of variables in place of what they hold: a plan shows no part of the environment."""
        for name in self.variables:
            text = text.replace(os.environ.get(name) or f"${{{name}}}", f"${{{name}}}")
        return text

    @property
    def unfitted(self) -> list[str]:
        """What is to be said of cells whose matcher has no recipe for what they ask."""
        return list(dict.fromkeys(said for c in self.cells if (said := unfitted(c.request)) is not None))

    @cached_property
    def key(self) -> str:
        """The digest of what the suite asks for, whatever it is called and wherever its file lies."""
        return digest([sorted(cell.key for cell in self.cells), self.students])[:12]


def read(
    path: Path,
    *,
    jobs: int = 1,
    device: str = "auto",
    dry: bool = False,
    remote: bool = False,
    only: Mapping[str, set[str]] | None = None,
) -> Suite:
    """Read a suite file and resolve all its cells. Raises UsageError that names the entry at fault.

    With ``dry``, variables of the environment need not be set; with it or ``remote``, the device need not be here; with
    ``only``, it is the part of it whose axes have one of these names or labels.
    """
    given = table_of(path)
    known_keys(given, TOP, str(path))
    own_threads = count_of(given, "threads", 1, path) if "threads" in given else None
    matrices = given.get("matrix")
    if not isinstance(matrices, list) or not matrices:
        raise UsageError(f"{path} has no [[matrix]]; give one with a dataset, a matcher and an ipc")
    listed = given.get("exclude", [])
    if not isinstance(listed, list):
        raise UsageError(f"exclude of {path} must be tables, each under its own [[exclude]]")
    excludes = [_exclude(entry, f"exclude {i} of {path}") for i, entry in enumerate(listed, 1)]
    used: set[int] = set()
    found: dict[str, Cell] = {}
    made: dict[Request, RunSpec] = {}
    here = _Here(path.parent, dry, only or {})
    for number, matrix in enumerate(matrices, 1):
        where = f"matrix {number} of {path}"
        gpus = gpus_of({**given, **matrix} if isinstance(matrix, dict) else given, where)
        for name, request in _requests(given, matrix, where, here, excludes, used):
            asked = replace(request, device=device, here=not (remote or dry))
            spec = _resolved(asked, made, f"{where}, {name}")
            spec = replace(spec, threads=_threads(spec.threads, own_threads, jobs))
            cell = Cell(name, asked, spec, gpus)
            found.setdefault(cell.key, cell)
    _require_some(path, len(excludes), used, found, only or {})
    seeds = list(dict.fromkeys(cell.spec.seed for cell in found.values()))
    cells = sorted(found.values(), key=lambda cell: seeds.index(cell.spec.seed))
    students, names = count_of(given, "students", 5, path), trackers(given, path)
    return Suite(path, word(given, "title", path.stem, path), students, names, tuple(cells), tuple(here.used))


def _require_some(path: Path, excludes: int, used: set[int], found: object, only: Mapping[str, set[str]]) -> None:
    """Refuse a part without cells, and, of a whole suite, an exclude that leaves nothing out."""
    if only and not found:
        said = ", ".join(f"{axis}={' or '.join(sorted(wanted))}" for axis, wanted in only.items())
        raise UsageError(f"{path} has no cell with {said}; `--dry-run` without --only lists what it has")
    for i in set(range(excludes)) - used if not only else ():
        raise UsageError(f"exclude {i + 1} of {path} leaves out no cell; correct it, or take it out")


def _threads(usual: int, given: int | None, jobs: int) -> int:
    """Threads of each cell, which are part of its key: DDBENCH_THREADS, the suite's own, or the cores divided."""
    return usual if os.environ.get("DDBENCH_THREADS") else given or max(1, usual // jobs)


def _resolved(request: Request, made: dict[Request, RunSpec], where: str) -> RunSpec:
    """The spec of a request; those that differ only in their seed are resolved once."""
    alike = request.with_seed(0)
    if alike not in made:
        try:
            made[alike] = resolve(alike).spec
        except (UsageError, DataError) as error:
            raise type(error)(f"{where}: {error}") from error
    return replace(made[alike], seed=request.seed)


def _requests(
    top: dict[str, Any], matrix: Any, where: str, here: _Here, excludes: list[dict[str, set[Any]]], used: set[int]
) -> Iterator[tuple[str, Request]]:
    """(name, request) of every cell of a matrix that no exclude leaves out; ``used`` collects excludes that did."""
    known_keys(matrix, MATRIX, where)
    given = USUAL | {name: top[name] for name in AXES if name in top} | matrix
    for axis in AXES:
        if axis not in given:
            raise UsageError(f"{where} names no {axis}; add one, such as {_example(axis)}")
    label = word(matrix, "label", "", where)
    axes = [_choices(axis, given[axis], where, here) for axis in AXES]
    shared = _flags(top.get("options", {}), "", f"options of {where}", here)
    shared |= _flags(matrix.get("options", {}), "", f"options of {where}", here)
    recipe = word(top | matrix, "recipe", "", where) or None
    if prod(map(len, axes)) > MOST:
        raise UsageError(f"{where} makes {prod(map(len, axes)):,} cells, and {MOST:,} are the most; divide it")
    for chosen in itertools.product(*axes):
        choices: dict[str, Choice] = dict(zip(AXES, chosen, strict=True))
        if not _fits(here.only, choices):
            continue
        hits = [i for i, rule in enumerate(excludes) if _fits(rule, choices)]
        used.update(hits)
        if not hits:
            request = _request(choices, shared, recipe)
            here.require_set(dict(request.flags), where)
            yield _name(choices, label), request


def cells_of(matrix: dict[str, Any], where: str) -> Iterator[tuple[str, Request]]:
    """(name, request) of every cell of a matrix that stands alone, whose places of data are as they are typed."""
    return _requests({}, matrix, where, _Here(None, dry=False), [], set())


def _example(axis: str) -> str:
    return "ipc = [1, 10]" if axis == "ipc" else f'{axis} = "{DATASET if axis == "dataset" else BASELINE}"'


def _choices(axis: str, given: Any, where: str, here: _Here) -> list[Choice]:
    """The values of one axis of a matrix."""
    listed = given if isinstance(given, list) else [given]
    if not listed:
        raise UsageError(f"{axis} of {where} is an empty list, which makes no cell")
    return [_number(axis, one, where) if axis in NUMBERS else _choice(axis, one, where, here) for one in listed]


def _number(axis: str, given: Any, where: str) -> Choice:
    low = 1 if axis == "ipc" else 0
    if not isinstance(given, int) or isinstance(given, bool) or not low <= given < 2**31:
        raise UsageError(f"{axis} of {where} must be numbers from {low} to {2**31 - 1}, got {given!r}")
    return Choice(given, {}, str(given))


def _choice(axis: str, given: Any, where: str, here: _Here) -> Choice:
    given = {"name": given} if isinstance(given, str) else given
    known_keys(given, CHOICE, f"{axis} of {where}")
    name = given.get("name")
    if not isinstance(name, str):
        raise UsageError(f'{axis} of {where} must be names or tables such as {{name = "..."}}, got {given!r}')
    flags = _flags(given.get("options", {}), axis, f"{axis} {name!r} of {where}", here)
    words = ", ".join(f"{n.removeprefix(axis + '.')}={option_text(v)}" for n, v in given.get("options", {}).items())
    label = word(given, "label", (f"{name} ({words})" if words else name)[:300], where)
    if axis == "dataset" and ":" in name:
        try:
            name, more = split_dataset(name)
        except (UsageError, DataError) as error:
            raise type(error)(f"dataset of {where}: {error}") from error
        flags = {option: here.placed(option, value, f"dataset of {where}") for option, value in more} | flags
    return Choice(name, flags, label)


def _flags(given: Any, group: str, where: str, here: _Here) -> dict[str, str]:
    """Options as ``ddbench run -o`` takes them; paths of data are relative to the suite's folder."""
    if not isinstance(given, dict):
        raise UsageError(f"{where} must be a table of options, got {given!r}")
    found = {}
    for name, value in given.items():
        full = name if "." in name else f"{group}.{name}"
        if full.startswith("."):
            raise UsageError(f'{where}: option {name!r} must be GROUP.NAME, in quotes, such as "matcher.{name}"')
        if isinstance(value, dict):
            raise UsageError(f'{where}: write "{name}.{next(iter(value), "NAME")}" = ... in quotes, with its dot')
        found[full] = here.placed(full, option_text(value), where)
    return found


def _exclude(given: Any, where: str) -> dict[str, set[Any]]:
    known_keys(given, AXES, where)
    if not given:
        raise UsageError(f"{where} is empty, and would leave out every cell; name what to leave out")
    found = {axis: value if isinstance(value, list) else [value] for axis, value in given.items()}
    if wrong := [value for values in found.values() for value in values if not isinstance(value, (str, int))]:
        raise UsageError(f"{where} must hold names, labels and numbers, got {wrong[0]!r}")
    return {axis: set(values) for axis, values in found.items()}


def _fits(rule: Mapping[str, set[Any]], choices: dict[str, Choice]) -> bool:
    return all({choices[axis].name, choices[axis].label} & wanted for axis, wanted in rule.items())


def _name(choices: dict[str, Choice], label: str) -> str:
    """What people read: every axis but those that stand at what is usual."""
    shown = [choices[axis].label for axis in ("dataset", "matcher", "scheduler")]
    shown += [choices[axis].label for axis in ("network", "protocol") if choices[axis].label != USUAL[axis]]
    shown += [f"ipc {choices['ipc'].name}", f"seed {choices['seeds'].name}"]
    return ", ".join([*shown, *([label] if label else [])])


def _request(choices: dict[str, Choice], shared: dict[str, str], recipe: str | None) -> Request:
    flags = shared | {name: value for entry in choices.values() for name, value in entry.flags.items()}
    names = {kind: choices[kind].name for kind in (*PLUGGED, "protocol", "ipc")}
    return Request(**names, seed=choices["seeds"].name, flags=tuple(flags.items()), recipe=recipe)
