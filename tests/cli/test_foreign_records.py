"""Run folders, entries, boards and suites that somebody changed: every command says a sentence, or does its work.

Inputs are drawn from a seed. A traceback, a warning or an exit code that is none of ours fails the test.
"""

from __future__ import annotations

import random
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from boardkit import board, made, pictured, posted
from mutations import mutated, torn, written
from tiny import ddbench, spec
from tiny import run as carried_out

from ddbench.base.cache import read_json, write_json

ROOT = Path(__file__).parents[2]
FEW, MANY = 12, 700
CODES = {0, 1, 2, 3}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    out = tmp_path_factory.mktemp("runs")
    staged = carried_out(out, spec("tesla", "pdd", ipc=2), students=2)
    return [*made(out, seeds=(0, 1)), staged]


def said(*words: Any, codes: set[int] = CODES) -> None:
    answer = ddbench(*words)
    assert answer.code in codes, (words, answer.err[-500:])
    assert len(answer.err) < 50_000
    assert answer.code == 0 or answer.err.strip() or answer.out.strip(), words


def changed(path: Path, rng: random.Random) -> None:
    """Change a JSON file, in what it holds or in its bytes."""
    if rng.random() < 0.1:
        path.write_bytes(torn(path.read_bytes(), rng))
    else:
        path.write_bytes(written(mutated(read_json(path), rng, rng.choice([1, 1, 1, 3]))))


def try_run(runs: list[Path], folder: Path, rng: random.Random) -> None:
    out = folder / "runs"
    for run in runs:
        shutil.copytree(run, out / run.name)
    victim = out / rng.choice(runs).name
    path = rng.choice([p for p in sorted(victim.rglob("*.json*")) if p.suffix in (".json", ".jsonl")])
    if path.suffix == ".jsonl":
        path.write_bytes(torn(path.read_bytes(), rng))
    else:
        changed(path, rng)
    form = rng.choice(["json", "table", "csv", "md", "latex", "html"])
    more = rng.choice([(), ("--per-run",), ("--reported", "all"), ("--group-by", "matcher,status"), ("--allow-mixed",)])
    said("compare", "--out", out, "--format", form, *more, codes={0, 2} if not more else CODES)
    said("list", "runs", "--out", out, "--json", codes={0})
    if rng.random() < 0.2:
        said("eval", victim, "--students", "2", "--quiet")
    if rng.random() < 0.2:
        said("submit", victim, "toys", "--boards", folder / "boards", "--sets", folder / "sets")
    if rng.random() < 0.1:
        said("report", victim)


def try_entry(runs: list[Path], folder: Path, rng: random.Random) -> None:
    place = folder / "boards" / "toys" / "entries" / "one.json"
    place.write_bytes((folder / "boards" / "one.json").read_bytes())
    changed(place, rng)
    build(folder)
    if rng.random() < 0.3:
        said("compare", "--board", folder / "boards" / "toys", "--json")
    if rng.random() < 0.1:
        said("leaderboard", "html", "--boards", folder / "boards", "--to", folder / "site")


def try_board(runs: list[Path], folder: Path, rng: random.Random) -> None:
    place = folder / "boards" / "toys" / "board.toml"
    if rng.random() < 0.2:
        place.write_bytes(torn(place.read_bytes(), rng))
    else:
        place.write_bytes(as_toml(mutated(tomllib.loads(place.read_text()), rng)))
    build(folder)


def try_suite(runs: list[Path], folder: Path, rng: random.Random) -> None:
    path = folder / "s.toml"
    path.write_bytes(as_toml(mutated(tomllib.loads(SUITE), rng, rng.choice([1, 2]))))
    if rng.random() < 0.1:
        path.write_bytes(torn(SUITE.encode(), rng))
    records = folder / "out" / "suites" / "a.jsonl"
    records.parent.mkdir(parents=True)
    line = {"key": "a", "status": "ok", "seconds": 1.0, "like": "b", "finished": "c", "error": None}
    records.write_bytes(b"\n".join(written(mutated(line, rng)) for _ in range(3)))
    said("suite", "run", path, "--dry-run", "--out", folder / "out", *rng.choice([(), ("--json",)]))


SUITE = """
title = "a"
students = 1
seeds = [0, 1]
threads = 1
dataset = { name = "toy", options = { per_class = 20 }, label = "t" }
[options]
"network.width" = 8
"protocol.steps" = 5
[[matrix]]
matcher = ["random", { name = "dm", options = { steps = 5 }, label = "d" }]
ipc = [1, 2]
label = "m"
[[exclude]]
matcher = "dm"
ipc = 2
"""


def build(folder: Path) -> None:
    said("leaderboard", "build", "--boards", folder / "boards", *random.Random(0).choice([(), ("--check",)]))


def as_toml(held: Any) -> bytes:
    """A value as TOML, as far as it has a word for it; a document that is no table is written as its parts are."""

    def word(value: Any) -> str:
        if isinstance(value, dict):
            return "{ " + ", ".join(f"{word(str(k))} = {word(v)}" for k, v in value.items()) + " }"
        if isinstance(value, list):
            return "[" + ", ".join(map(word, value)) + "]"
        if isinstance(value, str):
            quoted = "".join(
                c if c.isprintable() and c not in '"\\' else f"\\u{ord(c):04X}" for c in value if ord(c) < 2**16
            )
            return f'"{quoted}"'
        return (
            {None: '"none"', True: "true", False: "false"}.get(value, repr(value))
            if not isinstance(value, float)
            else repr(value)
        )

    return "\n".join(f"{word(str(name))} = {word(value)}" for name, value in held.items()).encode(errors="replace")


TRIES: dict[str, Callable[[list[Path], Path, random.Random], None]] = {
    "run": try_run,
    "entry": try_entry,
    "board": try_board,
    "suite": try_suite,
}


def attack(kind: str, runs: list[Path], tmp_path: Path, count: int, seed: int) -> None:
    for number in range(count):
        rng = random.Random(f"{kind} {seed} {number}")
        folder = tmp_path / str(number)
        rules = board(folder / "boards", runs[0])
        entry = posted(rules, runs[0], "one", [0.5, 0.6], picture=pictured(rules, runs[0]), link="https://example.org")
        write_json(folder / "boards" / "one.json", entry)
        try:
            TRIES[kind](runs, folder, rng)
        except BaseException as error:
            error.add_note(f"{kind} {seed} {number}: see {folder}")
            raise
        shutil.rmtree(folder)


@pytest.mark.parametrize("kind", TRIES)
def test_what_somebody_changed_is_a_sentence_and_never_a_traceback(runs, tmp_path, kind):
    attack(kind, runs, tmp_path, FEW, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TRIES)
def test_so_are_many_more_of_them(runs, tmp_path, kind):
    attack(kind, runs, tmp_path, MANY, seed=1)


@pytest.mark.slow
def test_so_are_real_entries(tmp_path):
    there = sorted((ROOT / "leaderboards" / "digits" / "entries").glob("*ipc1-*.json"))[:2]
    for number in range(MANY):
        rng = random.Random(f"real {number}")
        folder = tmp_path / str(number)
        shutil.copytree(ROOT / "leaderboards" / "digits", folder / "digits", ignore=shutil.ignore_patterns("*.json"))
        for path in there:
            shutil.copy(path, folder / "digits" / "entries")
        changed(folder / "digits" / "entries" / there[0].name, rng)
        said("leaderboard", "build", "--boards", folder)
        shutil.rmtree(folder)
