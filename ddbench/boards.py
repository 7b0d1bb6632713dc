"""Boards: the fixed rules of a leaderboard, ``board.toml``, and the door that runs go through to become entries.

The same rules are checked when runs are submitted and whenever tables are built from what was submitted.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from math import isfinite
from pathlib import Path
from typing import Any

from ddbench import entries
from ddbench.cache import atomic_write, canonical, file_digest, write_json
from ddbench.conditions import is_number
from ddbench.contrasts import SEEDS_FOR_BEST
from ddbench.errors import DataError, UsageError, did_you_mean
from ddbench.plugins import registry
from ddbench.records import changed, label, make
from ddbench.results import PLACES

_FIELDS = {
    "title": str, "dataset": dict, "network": dict, "protocol": dict, "ipc": list, "students": int, "seeds": list,
}  # fmt: skip


@dataclass(frozen=True)
class Board:
    """The rules of one leaderboard. ``dataset`` and ``network`` are names with options, ``protocol`` one with a digest.

    ``mark_seeds`` is how many finished seeds every line needs before a first place is marked.
    """

    folder: Path
    title: str
    dataset: dict[str, Any]
    network: dict[str, Any]
    protocol: dict[str, Any]
    ipc: tuple[int, ...]
    students: int
    seeds: tuple[int, ...]
    mark_seeds: int = SEEDS_FOR_BEST
    about: str = ""

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def network_label(self) -> str:
        """The network as tables write it: ``convnet(width=32,depth=2)``."""
        return label(_plugin("network", self.network))

    @classmethod
    def load(cls, folder: Path) -> Board:
        """The board in a folder. Raises DataError for one whose rules are incomplete."""
        path = folder / "board.toml"
        try:
            held = tomllib.loads(path.read_text())
        except FileNotFoundError:
            raise UsageError(f"there is no board in {folder}: it has no board.toml{_boards(folder)}") from None
        except ValueError as error:
            raise DataError(f"{path} is not readable TOML: {error}") from error
        if not entries.NAME.fullmatch(folder.name):
            raise DataError(f"a board's folder is named with a-z, 0-9 and ._- (at most 64), not {folder.name!r}")
        for name, kind in _FIELDS.items():
            if not isinstance(held.get(name), kind):
                raise DataError(f"{path} needs {name!r} as a TOML {kind.__name__}; the boards beside it are examples")
        if unknown := sorted(set(held) - set(_FIELDS) - {"mark_seeds", "about"}):
            raise DataError(f"{path} has a rule {unknown[0]!r} that is unknown{did_you_mean(unknown[0], _FIELDS)}")
        for group, name in (("dataset", "name"), ("dataset", "digest"), ("network", "name"), ("protocol", "name"),
                            ("protocol", "digest")):  # fmt: skip
            if not isinstance(held[group].get(name), str):
                raise DataError(f"{path} needs a {name!r} in [{group}]; see the boards beside it")
        rules: dict[str, Any] = held | {"ipc": tuple(held["ipc"]), "seeds": tuple(held["seeds"])}
        board = cls(folder, **rules)
        if board.mark_seeds < SEEDS_FOR_BEST or len(set(board.seeds)) != len(board.seeds):
            raise DataError(f"{path} needs seeds that differ, and mark_seeds of at least {SEEDS_FOR_BEST}")
        return board

    def paths(self) -> list[Path]:
        """The files of all entries, by name."""
        return sorted((self.folder / "entries").glob("*.json"))

    def entries(self) -> list[dict[str, Any]]:
        """All entries, each checked against the rules again: a file may have been edited since."""
        found = []
        for path in self.paths():
            entry = entries.read(path)
            try:
                self.check(entry["runs"])
            except UsageError as error:
                raise DataError(f"{path} breaks the rules of the board: {error}") from error
            except (KeyError, TypeError, AttributeError, IndexError) as error:
                raise DataError(
                    f"{path} is damaged ({type(error).__name__}: {error}); submit the runs again"
                ) from error
            found.append(entry)
        return found

    def check(self, runs: Sequence[dict[str, Any]]) -> None:
        """Refuse packed runs that do not keep to the rules, with the reason and the way out."""
        for run in runs:
            self._check_data(run)
            self._check_rules(run)
            _check_numbers(run, self.graded(run))
        if len({row["setting"] for row in entries.rows(runs)}) != 1:
            raise UsageError("the runs of an entry may differ in nothing but their seed; submit them again")
        self._check_seeds(runs)

    def _check_data(self, run: dict[str, Any]) -> None:
        spec, name = run["spec"], run["run"]
        own = (spec["dataset"]["name"], run["result"]["dataset"]["digest"])
        if own != (self.dataset["name"], self.dataset["digest"]):
            raise UsageError(
                f"{name} is of dataset {own[0]!r} with digest {own[1][:12]}, but board {self.name!r} is of "
                f"{self.dataset['name']!r} with {self.dataset['digest'][:12]}; run on those data with "
                f"--dataset {self.dataset['name']}{_flags('dataset', self.dataset)}"
            )
        if apart := _apart("dataset", self.dataset, spec["dataset"]):
            raise UsageError(f"{name} prepares the data in another way than board {self.name!r} ({apart})")
        if apart := _apart("network", self.network, spec["network"]):
            raise UsageError(
                f"{name} has another network than board {self.name!r} ({apart}); run it with --network "
                f"{self.network['name']}{_flags('network', self.network)}"
            )

    def _check_rules(self, run: dict[str, Any]) -> None:
        spec, name = run["spec"], run["run"]
        if spec["ipc"] not in self.ipc:
            few = ", ".join(map(str, self.ipc))
            raise UsageError(f"{name} has {spec['ipc']} images per class; board {self.name!r} takes --ipc {few}")
        if spec["protocol_digest"] != self.protocol["digest"]:
            raise UsageError(
                f"{name} follows protocol {spec['protocol']['name']!r} ({spec['protocol_digest'][:8]}), but board "
                f"{self.name!r} is of {self.protocol['name']!r} ({self.protocol['digest'][:8]}): run it with "
                f"--protocol {self.protocol['name']}{_flags('protocol', self.protocol)} and no other -o protocol.*"
            )
        if "test" in (run["result"].get("selection"), *(e.get("selection") for e in self._counted(run))):
            raise UsageError(
                f"{name} selected on test data, which no board ranks; run it under a protocol that does not"
            )

    def _check_seeds(self, runs: Sequence[dict[str, Any]]) -> None:
        have = [run["seed"] for run in runs]
        for wrong, seeds in (
            ("gives two runs of", {s for s in have if have.count(s) > 1}),
            ("lacks", set(self.seeds) - set(have)),
            ("has, besides those of the board,", set(have) - set(self.seeds)),
        ):
            if seeds:
                few = ", ".join(map(str, sorted(seeds)))
                raise UsageError(
                    f"the submission of {runs[0]['run']} {wrong} seed {few}; board {self.name!r} takes one run of each "
                    f"seed of {', '.join(map(str, self.seeds))}: `ddbench run ... --seed {self.seeds[0]} "
                    f"--repeats {len(self.seeds)}` makes them"
                )

    def graded(self, run: dict[str, Any]) -> list[dict[str, Any]]:
        """The evaluations that count: that on the board's network first, then the largest on each other network."""
        counted = self._counted(run)
        own = [e for e in counted if e["network"] == self.network_label]
        exact = [e for e in own if len(e["students"]) == self.students]
        if run["result"]["status"] == "ok" and not exact:
            have = ", ".join(str(len(e["students"])) for e in own) or "none"
            raise UsageError(
                f"{run['run']} needs an evaluation by {self.students} students under the rules of board "
                f"{self.name!r}, but has {have}; make it by `ddbench eval {run['run']} --students {self.students}`"
            )
        others: dict[str, dict[str, Any]] = {}
        for e in counted:
            before = others.get(e["network"])
            if e["network"] != self.network_label and (not before or len(e["students"]) > len(before["students"])):
                others[e["network"]] = e
        return [*exact[:1], *(others[name] for name in sorted(others))]

    def _counted(self, run: dict[str, Any]) -> list[dict[str, Any]]:
        """Evaluations under the board's rules, on its data, with the run's own seed."""
        rules = (self.protocol["digest"], self.dataset["digest"])
        return [
            e
            for e in run["evaluations"]
            if (e.get("protocol_digest"), e["dataset_digest"]) == rules and e.get("seed", run["seed"]) == run["seed"]
        ]


def drafted(folder: Path, title: str, ipc: Sequence[int], students: int, seeds: int) -> str:
    """The text of a ``board.toml`` whose data, network and protocol are those of a finished run."""
    run = entries.pack(folder)
    spec = run["spec"]
    given = {kind: changed(_plugin(kind, spec[kind])) for kind in ("dataset", "network")}
    lines = [
        "# The rules of this board. docs/leaderboards.md says what each of them is for.",
        f"title = {json.dumps(title)}",
        f"ipc = {json.dumps(list(ipc or [spec['ipc']]))}",
        f"students = {students}",
        f"seeds = {list(range(seeds))}",
        f"mark_seeds = {SEEDS_FOR_BEST}  # finished seeds that every line needs before a first place is marked",
    ]
    for kind, about in (
        ("dataset", {"name": spec["dataset"]["name"], "digest": run["result"]["dataset"]["digest"]}),
        ("network", {"name": spec["network"]["name"]}),
        ("protocol", {"name": spec["protocol"]["name"], "digest": spec["protocol_digest"]}),
    ):
        lines += ["", f"[{kind}]", *(f"{name} = {json.dumps(value)}" for name, value in about.items())]
        pairs = ", ".join(f"{n} = {json.dumps(v)}" for n, v in given.get(kind, {}).items() if v is not None)
        lines += [f"options = {{ {pairs} }}"] * (kind in given)
    return "\n".join(lines) + "\n"


def submit(folders: Sequence[Path], board: Board, *, replace: bool, **about: str | None) -> list[Path]:
    """Check run folders against a board and write them as entries, one per setting; all of them or none."""
    groups: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for folder in dict.fromkeys(path.resolve() for path in folders):
        run = entries.pack(folder)
        groups.setdefault(entries.rows([run])[0]["setting"], []).append((folder, run))
    ready = []
    for setting, found in groups.items():
        found.sort(key=lambda pair: pair[1]["seed"])
        runs = [run for _, run in found]
        board.check(runs)
        entry = _entry(runs, board, about)
        path = board.folder / "entries" / f"{entries.name_of(runs[0], setting)}.json"
        if path.exists() and not replace:
            raise UsageError(f"{path} holds an entry of these settings already; replace it with --replace")
        ready.append((path, entry, _picture(found)))
    for path, entry, (png, layout) in ready:
        if png:
            atomic_write(path.with_suffix(".png"), png)
            entry["picture"] = layout | {"sha256": file_digest(path.with_suffix(".png"))}
        else:
            path.with_suffix(".png").unlink(missing_ok=True)
        write_json(path, entry)
    return [path for path, _, _ in ready]


def _entry(runs: list[dict[str, Any]], board: Board, about: dict[str, str | None]) -> dict[str, Any]:
    kept: list[dict[str, Any]] = [run | {"evaluations": board.graded(run)} for run in runs]
    done = [run for run in kept if run["result"]["status"] == "ok"]
    return {
        "format": entries.FORMAT,
        "method": about.get("method") or entries.method((done or kept)[0]),
        "author": about.get("author") or "",
        "link": about.get("link") or "",
        "note": about.get("note") or "",
        "date": max(run["result"]["finished"] for run in kept),
        "command": entries.command([run["spec"] for run in runs], board.students),
        "picture": None,
        "runs": kept,
    }


def _picture(found: Sequence[tuple[Path, dict[str, Any]]]) -> tuple[bytes, dict[str, Any]]:
    """The picture of the first seed that finished, and where its stages are in it; nothing where none finished."""
    for folder, run in found:
        if run["result"]["status"] == "ok":
            return entries.picture(folder)
    return b"", {}


def _check_numbers(run: dict[str, Any], graded: Sequence[dict[str, Any]]) -> None:
    """Refuse what cannot be numbers of students."""
    for student in (student for evaluation in graded for student in evaluation["students"]):
        if not all(is_number(v) and isfinite(v) for v in student.values()) or not 0 <= student["accuracy"] <= 1:
            raise UsageError(f"{run['run']} has a student whose numbers are none: {student}; evaluate it again")


def _plugin(kind: str, described: dict[str, Any]) -> Any:
    """The dataset or network that a table of a board.toml or a spec describes."""
    given = described.get("options", {})
    plain = {name: value for name, value in given.items() if name not in PLACES}
    return _made(kind, described["name"], canonical(plain))


@cache
def _made(kind: str, name: str, options: str) -> Any:
    """One object for all runs that share its options: validating them takes milliseconds each."""
    return make(registry().get(kind, name).cls, json.loads(options), kind)


def _apart(kind: str, ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """What differs in all but the place of the data; options that neither names have their defaults."""
    if ours["name"] != theirs["name"]:
        return f"{theirs['name']} instead of {ours['name']}"
    board, run = (changed(_plugin(kind, described)) for described in (ours, theirs))
    names = [name for name in sorted({*board, *run}) if board.get(name) != run.get(name)]
    return ", ".join(f"{n}={run.get(n, 'default')} instead of {board.get(n, 'default')}" for n in names)


def _flags(group: str, described: dict[str, Any]) -> str:
    return "".join(f" -o {group}.{name}={entries.text(value)}" for name, value in described.get("options", {}).items())


def _boards(folder: Path) -> str:
    """The boards beside one that is not there."""
    there = sorted(path.parent.name for path in folder.parent.glob("*/board.toml"))
    return did_you_mean(folder.name, there) + (f" (there are {', '.join(there)})" if there else "")


def found(names: Sequence[str], root: Path) -> list[Board]:
    """The boards named, or all of a folder."""
    there = sorted(path.parent.name for path in root.glob("*/board.toml"))
    return [Board.load(root / name) for name in (names or there)]
