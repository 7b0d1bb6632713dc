"""Mutation testing: how many small faults in the sources of a room its tests notice.

python -m benchmarks.mutation --measure                  # once: which test runs which line, and how long it takes
python -m benchmarks.mutation --measure tests/base       # tests that are new
python -m benchmarks.mutation --room base --count 300 --seed 0 --out FILE
python -m benchmarks.mutation --table
python -m benchmarks.mutation --room base --out FILE --again  # only what survived, with the tests as they are now

Needs the extra ``mutation``: cosmic-ray makes the mutants, this draws and runs them. A process that has imported torch
and pytest, and nothing of ddbench, forks for each mutant; the child finds the mutated source of one module
(``mutant/sitecustomize.py``; the tree is never written) and runs the tests that run the mutated line, those of the room
first, then the fastest of each file, until one fails. A record of JSON lines says what came of each; a second call goes
on with it.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import gc
import gzip
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HOOK = Path(__file__).parent / "mutant"
SUITE = ROOT / "build" / "mutation"
ROOMS = ("base", "trajectory", "problem", "grade", "results")
TESTS, SECONDS = 16, 4.0  # a mutant's tests: at most so many, and so long without the mutation
AGAIN_TESTS, AGAIN_SECONDS = 100, 40.0  # the same for what survived
ELSEWHERE = {  # tests that start processes which run these sources, which coverage does not see
    "process.py": "tests/base/test_process.py",
    "machine.py": "tests/base/test_machine.py::test_freed_memory_is_kept_until_the_next_measurement",
}
MEMORY = 8 << 30  # of data, since a mutated size may be anything
IMPORTED = (  # what tests import, so that no child has to
    *("torch", "torchvision", "torchvision.transforms.v2", "numpy", "pandas", "pydantic", "pytest", "hypothesis"),
    *("scipy.stats", "sklearn.datasets", "safetensors.torch", "click", "rich.console", "PIL.Image", "pluggy"),
    *("torch.func", "kornia.augmentation", "kornia.enhance", "jinja2", "platformdirs", "anyio", "pdb", "tomllib"),
    *("pydantic.type_adapter", "pydantic._internal._generate_schema", "annotated_types", "_pytest.config"),
)


# ------------------------------------------------------------------------------------------------ mutants


@dataclass(frozen=True)
class Mutant:
    """One change of one file."""

    file: str
    line: int
    operator: str
    occurrence: int

    @property
    def key(self) -> tuple[str, str, int]:
        return self.file, self.operator, self.occurrence

    @property
    def module(self) -> str:
        return self.file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")

    @cached_property
    def text(self) -> str | None:
        """The mutated source; None if it means the same, does not compile, or Python itself warns of it."""
        from cosmic_ray.mutating import mutate_code
        from cosmic_ray.plugins import get_operator

        source = (ROOT / self.file).read_text()
        made = mutate_code(source, get_operator(f"core/{self.operator}")(), self.occurrence)
        try:
            same = made is None or ast.dump(ast.parse(made)) == ast.dump(ast.parse(source))
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # `is` with a literal
                compile(made or "", self.file, "exec")
        except SyntaxError:
            return None
        return None if same else made

    def diff(self) -> tuple[str, str]:
        """The changed lines, before and after."""
        before, after = (ROOT / self.file).read_text().splitlines(), (self.text or "").splitlines()
        changed = [line for line in difflib.ndiff(before, after) if line[:2] in ("- ", "+ ")]
        was, now = (" ".join(line[2:].strip() for line in changed if line[0] == sign) for sign in "-+")
        return was, now


def _left_out(tree: ast.Module) -> tuple[set[int], list[tuple[tuple[int, int], tuple[int, int]]]]:
    """Lines for type checkers alone, and the spans of annotations."""
    lines: set[int] = set()
    spans = []
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        notes = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        spans += [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in notes if n is not None]
    return lines, spans


def population(room: str) -> list[Mutant]:
    """Every mutant of a room, but those of types: ``|`` in annotations, and lines for type checkers alone."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    operators = {name.removeprefix("core/"): get_operator(name) for name in operator_names() if name[:5] == "core/"}
    found = []
    for path in sorted((ROOT / "ddbench" / room).glob("*.py")):
        source = path.read_text()
        nodes = list(ast_nodes(get_ast(source)))
        typed, notes = _left_out(ast.parse(source))
        for name, operator in operators.items():
            if operator.arguments():  # those that must be told the variables
                continue
            places = (place for node in nodes for place in operator().mutation_positions(node))
            for occurrence, (start, _) in enumerate(places):
                types = name.startswith("ReplaceBinary") and any(a <= start < b for a, b in notes)
                if start[0] not in typed and not types:
                    found.append(Mutant(path.relative_to(ROOT).as_posix(), start[0], name, occurrence))
    return found


def drawn(room: str, count: int, seed: int) -> tuple[list[Mutant], int]:
    """``count`` mutants that compile, drawn by a seed, and how many there are to draw from."""
    everything = population(room)
    random.Random(f"{room} {seed}").shuffle(everything)
    chosen = []
    for mutant in everything:
        if len(chosen) == count:
            break
        if mutant.text is not None:
            chosen.append(mutant)
    return chosen, len(everything)


# ------------------------------------------------------------------------------------------------ tests of a line


def measure(paths: list[str], workers: int) -> None:
    """Run tests once, by default all: which runs which line, and the time of each. Some are added to what is there."""
    if not paths:
        shutil.rmtree(SUITE, ignore_errors=True)
    SUITE.mkdir(parents=True, exist_ok=True)
    words = ["--cov", "--cov-context=test", "--cov-report=", "--cov-fail-under=0", "-q", "-vv", "--durations=0"]
    words += ["--cov-append", "-n", str(workers), "-p", "no:cacheprovider", *paths]
    with (SUITE / f"durations-{len(list(SUITE.iterdir())):03d}.txt").open("w") as told:
        where = os.environ | {"COVERAGE_FILE": str(SUITE / "coverage")}
        subprocess.run([sys.executable, "-m", "pytest", *words], cwd=ROOT, env=where, stdout=told, check=False)


def _durations() -> dict[str, float]:
    """Seconds of each test, with its set-up."""
    all_seconds: dict[str, float] = {}
    for path in sorted(SUITE.glob("durations*.txt")):
        seconds: dict[str, float] = defaultdict(float)
        for line in path.read_text().splitlines():
            if found := re.match(r"\s*([\d.]+)s (?:call|setup|teardown) +(tests/.*\S)", line):
                seconds[found[2]] += float(found[1])
        all_seconds |= seconds
    return all_seconds


class Suite:
    """The tests, and the lines that each runs."""

    def __init__(self, room: str) -> None:
        from coverage import CoverageData

        self.room, self.seconds, self.failing = room, _durations(), set[str]()
        for test, seconds in list(self.seconds.items()):
            file = test.split("::")[0]
            self.seconds[file] = self.seconds.get(file, 0.0) + seconds
        self._data = CoverageData(str(SUITE / "coverage"))
        self._data.read()
        measured = [Path(path) for path in self._data.measured_files()]
        self._files = {path.relative_to(ROOT).as_posix(): str(path) for path in measured if ROOT in path.parents}
        self._lines: dict[str, dict[int, dict[str, int]]] = {}
        self._of_file: dict[str, set[str]] = defaultdict(set)
        for context in filter(None, self._data.measured_contexts()):
            test = context.rpartition("|")[0]
            self._of_file[test.split("::")[0]].add(test)

    @cache  # noqa: B019 - as long as the process
    def _contexts(self, file: str) -> dict[int, list[str]]:
        return self._data.contexts_by_lineno(self._files[file]) if file in self._files else {}

    def lines(self, file: str) -> dict[int, dict[str, int]]:
        """The tests of each line: 0 for those that run it, 1 for those of a file in which the set-up of a test does.

        What a fixture makes may be shared, and looked at by any of them.
        """
        if file not in self._lines:
            found: dict[int, dict[str, int]] = defaultdict(dict)
            for line, names in self._contexts(file).items():
                for name in filter(None, names):
                    test, _, phase = name.rpartition("|")
                    near = {test: 0} if phase == "run" else dict.fromkeys(self._of_file[test.split("::")[0]], 1)
                    found[line] = _nearest([found[line], near])
            self._lines[file] = found
        return self._lines[file]

    def _imported(self, file: str) -> set[int]:
        """The lines that run when a module is imported."""
        return {line for line, names in self._contexts(file).items() if "" in names}

    @cached_property
    def _mentions(self) -> dict[str, set[tuple[str, int]]]:
        """Where each name is used."""
        found: dict[str, set[tuple[str, int]]] = defaultdict(set)
        for path in [*(ROOT / "ddbench").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]:
            for node in ast.walk(ast.parse(path.read_text())):
                name = getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "arg", None)
                if isinstance(name, str) and hasattr(node, "lineno"):
                    found[name].add((path.relative_to(ROOT).as_posix(), node.lineno))
        return found

    def covering(self, mutant: Mutant) -> dict[str, int]:
        """The tests that run a mutant's line. A line that runs at import: those that run what it defines."""
        name = Path(mutant.file).name
        elsewhere = {ELSEWHERE[name]: -1} if name in ELSEWHERE else {}
        return _nearest([self._covering(mutant), elsewhere])

    def _covering(self, mutant: Mutant) -> dict[str, int]:
        lines = self.lines(mutant.file)
        tree = ast.parse((ROOT / mutant.file).read_text())
        around = [n for n in ast.walk(tree) if isinstance(n, ast.stmt) and _reaches(n, mutant.line)]
        inner = max(around, key=lambda n: (n.lineno, -(n.end_lineno or 0)))
        within = any(isinstance(n, ast.FunctionDef) and n.body[0].lineno <= mutant.line for n in around)
        if within and lines.get(mutant.line):
            return lines[mutant.line]
        if within and mutant.line not in self._imported(mutant.file):
            # a line of a function: its statement, if a part of it is on a line that is counted
            last = inner.body[0].lineno - 1 if hasattr(inner, "body") else inner.end_lineno
            return _nearest(lines.get(n, {}) for n in range(inner.lineno, (last or 0) + 1))
        if isinstance(inner, ast.FunctionDef | ast.ClassDef):
            found = _nearest(lines.get(n, {}) for n in range(inner.lineno, (inner.end_lineno or 0) + 1))
        else:
            stored = {n.id for n in ast.walk(inner) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            places = {place for name in stored for place in self._mentions[name]}
            found = _nearest(self.lines(file).get(line, {}) for file, line in places)
        found = found or _nearest(lines.values())
        own = f"tests/{self.room}/test_{Path(mutant.file).name}"  # which may read what stands there, and run no line
        return found | ({own: -1} if (ROOT / own).exists() else {})

    def chosen(self, mutant: Mutant, most: int, seconds: float) -> list[str]:
        """The tests to run, those of one file together: the nearest, those of the room, the fastest of each file."""
        own, place = f"tests/{self.room}/", defaultdict[str, int](int)
        near = self.covering(mutant)
        ranks = {}
        for test in sorted(near.keys() - self.failing, key=lambda t: (self.seconds.get(t, 0.0), t)):
            file = test.split("::")[0]
            place[file] += 1
            ranks[test] = (near[test], 0 if test.startswith(own) else place[file])
        taken: dict[str, list[str]] = defaultdict(list)
        count = 0
        for test in sorted(ranks, key=lambda t: ranks[t]):
            cost = self.seconds.get(test, 0.0)
            if count < most and (cost <= seconds or not count):
                taken[test.split("::")[0]].append(test)
                seconds, count = seconds - cost, count + 1
        return [test for file, tests in taken.items() for test in ([file] if file in tests else tests)]


def _nearest(found: Iterable[dict[str, int]]) -> dict[str, int]:
    """All tests, each with the smallest of its numbers."""
    least: dict[str, int] = {}
    for tests in found:
        for test, near in tests.items():
            least[test] = min(near, least.get(test, near))
    return least


def _reaches(node: ast.stmt, line: int) -> bool:
    decorators = [d.lineno for d in getattr(node, "decorator_list", [])]
    return min([node.lineno, *decorators]) <= line <= (node.end_lineno or node.lineno)


# ------------------------------------------------------------------------------------------------ runs


@dataclass
class Outcome:
    """What the tests said."""

    code: int | None  # of pytest; None after a timeout
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def word(self) -> str:
        return {None: "timeout", 0: "survived"}.get(self.code, "killed")


class _Watch:
    """Notes which tests fail."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(f"import of {report.nodeid}")


def _child(module: str, text: str | None, tests: list[str], folder: Path, stop: bool) -> None:
    """In the forked process: run the tests, and write down what they said."""
    import runpy

    import pytest

    os.setsid()
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["TMPDIR"] = str(folder)
    tempfile.tempdir = None
    if text is not None:
        (folder / "mutant.py").write_text(text)
        os.environ["DDBENCH_MUTANT"] = f"{module}:{folder / 'mutant.py'}"
        os.environ["PYTHONPATH"] = os.pathsep.join([str(HOOK), *filter(None, [os.environ.get("PYTHONPATH")])])
        runpy.run_path(str(HOOK / "sitecustomize.py"))
    watch = _Watch()
    words = ["-q", "--tb=line", f"--basetemp={folder / 'tests'}", *(["-x"] if stop else [])]
    words += ["-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"]
    words += [word for name in ("cacheprovider", "xdist", "benchmark", "cov") for word in ("-p", f"no:{name}")]
    code = int(pytest.main([*words, *tests], plugins=[watch]))
    (folder / "said.json").write_text(json.dumps([code, watch.failed]))


def run(module: str, text: str | None, tests: list[str], timeout: float, stop: bool = True) -> Outcome:
    """The tests in a process of their own, with a module's source replaced."""
    folder = Path(tempfile.mkdtemp(prefix="mutant-"))
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        try:
            _child(module, text, tests, folder, stop)
        except BaseException:  # noqa: BLE001 - whatever it is, a forked process must end here
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(0)
    handle = os.pidfd_open(pid)
    ended, _, _ = select.select([handle], [], [], timeout)
    os.close(handle)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # and what the tests may have left
    os.waitpid(pid, 0)
    said = folder / "said.json"
    code, failed = json.loads(said.read_text()) if ended and said.exists() else (-1 if ended else None, [])
    log = (folder / "log").read_text(errors="replace")[-3000:]
    nothing = code in (4, 5) and not failed and "ImportError while loading conftest" not in log
    if nothing or (text is None and code not in (0, 1)):
        raise SystemExit(f"pytest did not run the tests (exit code {code}):\n{log}")
    shutil.rmtree(folder, ignore_errors=True)
    return Outcome(code, failed, time.monotonic() - began)


# ------------------------------------------------------------------------------------------------ record


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()] if path.exists() else []


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    beside = path.with_suffix(".part")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    beside.write_bytes(gzip.compress(text.encode(), mtime=0))  # an eighth of it; equal rows are equal files
    beside.replace(path)


def _header(room: str, count: int, seed: int, whole: int) -> dict[str, Any]:
    from platform import machine, python_version, system

    words = ["git", "log", "-1", "--format=%h", "--abbrev=10", "--", "ddbench"]
    commit = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    return {
        "room": room,
        "count": count,
        "seed": seed,
        "mutants": whole,
        "commit": commit.stdout.strip(),
        "machine": f"{cpu[1] if cpu else 'CPU'}, {system()} {machine()}",
        "python": python_version(),
        "torch": version("torch"),
        "cosmic-ray": version("cosmic-ray"),
        "tests": TESTS,
        "seconds": SECONDS,
    }


def judged(mutant: Mutant, suite: Suite, most: int, seconds: float) -> dict[str, Any]:
    """What came of a mutant, and by which test."""
    tests = suite.chosen(mutant, most, seconds)
    if not tests:
        return {"outcome": "uncovered"}
    normal = sum(suite.seconds.get(test, 0.0) for test in tests)
    outcome = run(mutant.module, mutant.text, tests, 20 + 10 * normal)
    by = {"by": outcome.failed[0]} if outcome.failed else {}
    return {"outcome": outcome.word, "tests": len(tests), "s": round(outcome.seconds, 1)} | by


def doubted(rows: list[dict[str, Any]], suite: Suite, most: int, seconds: float) -> None:
    """Run the tests that failed without any mutation: where one fails then too, it is left out and says nothing."""
    tests = sorted({row["by"] for row in rows if row.get("by", "").startswith("tests/") and "::" in row["by"]})
    if not tests:
        return
    suite.failing |= set(run("", None, tests, 3600, stop=False).failed)
    print(f"{len(tests)} tests failed, of which without a mutation: {sorted(suite.failing) or 'none'}", flush=True)
    for row in rows:
        if row.get("by") in suite.failing:
            del row["by"]
            row.update(judged(mutant_of(row), suite, most, seconds))


def mutant_of(row: dict[str, Any]) -> Mutant:
    """The mutant of a line of the record."""
    return Mutant(row["file"], row["line"], row["operator"], row["occurrence"])


def campaign(room: str, count: int, seed: int, out: Path) -> None:
    """Draw the mutants of a room and run those that the record lacks."""
    mutants, whole = drawn(room, count, seed)
    rows = _lines(out) or [_header(room, count, seed, whole)]
    rows[0]["count"] = max(count, rows[0]["count"])
    done = {(row["file"], row["operator"], row["occurrence"]) for row in rows[1:]}
    suite, fresh = Suite(room), []
    for mutant in (mutant for mutant in mutants if mutant.key not in done):
        was, now = mutant.diff()
        row = {"file": mutant.file, "line": mutant.line, "operator": mutant.operator, "occurrence": mutant.occurrence}
        fresh.append(row | {"was": was, "is": now} | judged(mutant, suite, TESTS, SECONDS))
        _write(out, [*rows, *fresh])
        print(len(rows) + len(fresh) - 1, fresh[-1], flush=True)
    doubted(fresh, suite, TESTS, SECONDS)
    _write(out, [*rows, *fresh])


def again(out: Path) -> None:
    """Run what survived once more, with more tests and those that are new; ``first`` keeps what came before.

    What a reader has judged, in ``why``, is left as it is, unless it says that it is open, or not run again.
    """
    rows = _lines(out)
    suite = Suite(rows[0]["room"])
    survived = [row for row in rows[1:] if row["outcome"] in ("survived", "uncovered")]
    left = [row for row in survived if row.get("why", "open").startswith(("open", "not run again"))]
    for row in left:
        mutant = mutant_of(row)
        assert mutant.diff() == (row["was"], row["is"]), f"the source has changed: {row}"
        row.setdefault("first", row["outcome"])
        row.update(judged(mutant, suite, AGAIN_TESTS, AGAIN_SECONDS))
        _write(out, rows)
        print(row, flush=True)
    doubted(left, suite, AGAIN_TESTS, AGAIN_SECONDS)
    _write(out, rows)


def figures(rows: list[dict[str, Any]]) -> dict[str, int]:
    """The counts of a record, by the columns of the table in docs/reliability.md."""
    first = [row.get("first", row["outcome"]) for row in rows[1:]]
    unnoticed = [row for row, was in zip(rows[1:], first, strict=True) if was in ("survived", "uncovered")]
    left = [row for row in unnoticed if row["outcome"] in ("survived", "uncovered")]
    equivalent = [row for row in left if row.get("why", "").startswith("equivalent")]
    return {
        "mutants": rows[0]["mutants"],
        "drawn": len(first),
        "killed": first.count("killed"),
        "timeout": first.count("timeout"),
        "not noticed": len(unnoticed),
        "by other tests": sum(not row.get("new") for row in unnoticed) - len(left),
        "by new tests": sum(bool(row.get("new")) for row in unnoticed),
        "left": len(left),
        "equivalent": len(equivalent),
    }


def table(folder: Path = ROOT / "docs" / "results") -> str:
    """The table of all records in Markdown."""
    found = {room: figures(_lines(path)) for room in ROOMS if (path := folder / f"mutation-{room}.jsonl.gz").exists()}
    names = ["room", *next(iter(found.values()))]
    lines = [
        names,
        ["---", *["---:"] * (len(names) - 1)],
        *([f"`{r}`", *map(str, f.values())] for r, f in found.items()),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _import() -> None:
    for name in IMPORTED:
        with suppress(ImportError):
            __import__(name)
    assert not any(name.split(".")[0] == "ddbench" for name in sys.modules)
    gc.freeze()  # pytest collects garbage several times at its end: not what was here before


def main() -> None:
    """Parse the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--room", choices=ROOMS)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--measure", nargs="*", metavar="TESTS", help="only these, added to what was measured")
    parser.add_argument("--table", action="store_true", help="the counts of all records")
    parser.add_argument("--workers", type=int, default=2, help="processes of --measure")
    given = parser.parse_args()
    if given.table:
        print(table(), end="")
        return
    if given.measure is not None:
        measure(given.measure, given.workers)
        return
    _import()
    if given.again:
        again(given.out)
    else:
        campaign(given.room, given.count, given.seed, given.out)


if __name__ == "__main__":
    main()
