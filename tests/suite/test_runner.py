"""Suites: grids of runs from a file, in processes of their own, that go on after whatever stops them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM
from typing import Any

import pytest
import tiny
from tiny import RULES, THREAD, TRAJECTORY, Answer, Command, Forks, artefacts, command_in, ddbench, spec

from ddbench.base.cache import file_digest, read_json
from ddbench.errors import DDBenchError, UsageError
from ddbench.run.below import store
from ddbench.run.record import RandomRecord
from ddbench.suite.grid import Suite, read
from ddbench.suite.jobs import Part, words
from ddbench.suite.runner import Orders, Work
from ddbench.suite.status import append, cell_standings, expected, records

# The server of tests/helpers/tiny.py, in which a suite forks its workers instead of starting an interpreter for each.
_PRELUDE = """
import os, signal, sys, time
import torch._dynamo, torch._inductor.config, PIL.PngImagePlugin, PIL.JpegImagePlugin, pydantic.type_adapter
import ddbench.base.process, ddbench.cli.main, ddbench.cli.suite, ddbench.run.trackers
import ddbench.suite.runner, ddbench.suite.status
ddbench.cli.main.cli.add_command(ddbench.cli.suite.suite)

class Child:
    def __init__(self, pid):
        self.pid, self.code = pid, None
    def poll(self, flag=os.WNOHANG):
        if self.code is None:
            pid, status = os.waitpid(self.pid, flag)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code
    def wait(self):
        return self.poll(0)
    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

def forked(words, environment, log, within=None):
    pid = os.fork()
    if pid:
        return Child(pid)
    os.closerange(3, 256)  # the locks of the suite, which a fresh process would not have either
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
    sys.argv, code = ["ddbench", *words], 1
    try:
        ddbench.cli.main.main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stderr.flush()
    os._exit(code)

ddbench.base.process.launch = forked
"""
_TROUBLE = '''
import os, signal, time
from dataclasses import dataclass
from pathlib import Path
from ddbench import DivergedError, SyntheticSet, hookimpl

@dataclass(frozen=True)
class Trouble:
    """Two steps, in the second of which something goes wrong, unless the file ``cure`` exists."""
    name = "trouble"
    how: str = "none"
    cure: str = ""
    steps: int = 2

    def init(self, problem):
        return problem.sample()

    def step(self, problem, state, k):
        mended = bool(self.cure) and Path(self.cure).exists()
        if k == 1 and not mended:
            if self.how == "raise":
                raise RuntimeError("a bug of the plugin")
            if self.how == "nan":
                return state, {"loss": float("nan")}
            if self.how in ("SIGKILL", "SIGSEGV"):
                os.kill(os.getpid(), getattr(signal, self.how))
            while self.how == "wait" and not Path(self.cure).exists():
                time.sleep(0.01)
        if self.how == "slow":
            time.sleep(0.5)
        return state, {"loss": 1.0}

    def result(self, problem, state):
        return SyntheticSet(state.images, state.labels)

@hookimpl
def register_matchers(register):
    register(Trouble)
'''


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> str:
    """A folder with a plugin that makes trouble, as pip would leave it."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "trouble.py").write_text(_TROUBLE)
    (folder / "trouble-1.0.dist-info").mkdir()
    (folder / "trouble-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: trouble\nVersion: 1.0\n")
    (folder / "trouble-1.0.dist-info" / "entry_points.txt").write_text("[ddbench]\ntrouble = trouble\n")
    return str(folder)


@pytest.fixture(scope="module")
def forks(tmp_path_factory) -> Iterator[Forks]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tiny, "_SERVER", tiny._SERVER.replace('print("ready"', _PRELUDE + '\nprint("ready"', 1))
        server = Forks(tmp_path_factory.mktemp("processes"))
    yield server
    server.close()


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(n)} = {toml(v)}" for n, v in value.items()) + "}"
    return "[" + ", ".join(map(toml, value)) + "]" if isinstance(value, list) else json.dumps(value)


def write(path: Path, *matrices: dict[str, Any], **top: Any) -> Path:
    """A suite of tiny runs on the toy dataset."""
    given = {"students": 1, "dataset": "toy", "ipc": 1, "options": RULES} | top
    lines = [f"{name} = {toml(value)}" for name, value in given.items() if name != "exclude"]
    for name, tables in (("matrix", matrices), ("exclude", given.get("exclude", []))):
        for table in tables:
            lines += [f"[[{name}]]", *(f"{key} = {toml(value)}" for key, value in table.items())]
    path.write_text("\n".join(lines) + "\n")
    return path


TESLA = {"name": "tesla", "options": {name.removeprefix("matcher."): v for name, v in TRAJECTORY.items()}}


def trouble(how: str, cure: Path | str = "") -> dict[str, Any]:
    return {"name": "trouble", "options": {"how": how, "cure": str(cure)}, "label": f"trouble {how}"}


@pytest.fixture
def suite(forks, site, tmp_path) -> Callable[..., Any]:
    """Start or run ``ddbench suite run`` in a process of its own."""

    def run(path: Path, *more: Any, start: bool = False, out: str = "runs", home: str = "home") -> Any:
        words = ["suite", "run", path, "--out", tmp_path / out, *more]
        return (forks.start if start else forks.run)(words, tmp_path / home, (site,))

    return run


def sets(out: Path) -> dict[str, str]:
    """The digest of every distilled set, by the folder of its run."""
    return {path.parent.name: file_digest(path) for path in out.glob("*/distilled.safetensors")}


def statuses(out: Path) -> dict[str, str]:
    """Cells to how they ended last, without what all names share."""
    return {record["cell"].split(", ")[1]: record["status"] for record in records(out)}


def until(done: Callable[[], Any], started: Command, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert started.poll() is None, "the suite ended too early"
        assert time.monotonic() < end, f"nothing happened in {seconds} s"
        time.sleep(0.01)


# ------------------------------------------------------------------------------ what a file asks for


def resolved(path: Path, **given: Any) -> Suite:
    with pytest.MonkeyPatch.context() as patched:
        for name, value in THREAD.items():
            patched.setenv(name, value)
        return read(path, device="cpu", **given)


def test_a_matrix_is_every_combination_seed_by_seed_in_the_order_of_the_file(tmp_path):
    path = write(tmp_path / "s.toml", {"matcher": ["random", TESLA | {"label": "t"}], "ipc": [1, 2]}, seeds=[3, 1])
    names = [cell.name for cell in resolved(path).cells]
    assert names == [
        f"toy, {matcher}, single, ipc {ipc}, seed {seed}"
        for seed in (3, 1)
        for ipc in (1, 2)
        for matcher in ("random", "t")
    ]


def test_a_cell_has_the_key_of_the_run_that_the_same_flags_make(tmp_path):
    path = write(tmp_path / "s.toml", {"matcher": TESLA})
    assert [cell.key for cell in resolved(path).cells] == [spec("tesla").key]


def test_the_same_run_asked_for_twice_is_one_cell_and_excludes_leave_cells_out(tmp_path):
    twice = ({"matcher": "random", "ipc": [1, 2]}, {"matcher": ["random"], "ipc": [2, 3], "label": "again"})
    path = write(tmp_path / "s.toml", *twice, exclude=[{"ipc": [3], "matcher": "random"}])
    assert [cell.request.ipc for cell in resolved(path).cells] == [1, 2]


def test_the_options_nearest_to_a_cell_win(tmp_path):
    matrix = {
        "matcher": [{"name": "dm", "options": {"steps": 3}}, "dm"],
        "options": {"matcher.steps": 2, "protocol.steps": 7},
    }
    cells = resolved(write(tmp_path / "s.toml", matrix)).cells
    assert [cell.spec.matcher.steps for cell in cells] == [3, 2]
    assert [cell.spec.protocol.steps for cell in cells] == [7, 7]  # the file says 12
    assert cells[0].name.startswith("toy, dm (steps=3)")


def test_a_part_of_a_list_with_a_comma_stays_one(tmp_path):
    listed = {"dataset.classes": ["a,b", "c"]}
    (cell,) = resolved(write(tmp_path / "s.toml", {"matcher": "dm"}, dataset="digits", options=listed)).cells
    assert cell.spec.dataset.classes == ("a,b", "c")


def test_paths_of_data_are_relative_to_the_file_and_may_hold_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("PICTURES", "photos")
    quick = {name: value for name, value in RULES.items() if name != "dataset.per_class"}
    for dataset in ({"name": "images", "options": {"root": "${PICTURES}/a.zip"}}, "images:${PICTURES}/a.zip"):
        path = write(tmp_path / "s.toml", {"matcher": "random"}, dataset=dataset, options=quick)
        assert resolved(path).cells[0].spec.dataset.root == str(tmp_path / "photos" / "a.zip")


def test_threads_are_those_of_the_environment_then_of_the_file_then_the_cores_divided(tmp_path, monkeypatch):
    monkeypatch.delenv("DDBENCH_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    path = write(tmp_path / "s.toml", {"matcher": "random"})
    assert read(path, jobs=2, device="cpu").cells[0].spec.threads == 4
    own = write(tmp_path / "t.toml", {"matcher": "random"}, threads=3)
    assert read(own, jobs=2, device="cpu").cells[0].spec.threads == 3
    assert resolved(own).cells[0].spec.threads == 1


BAD_SUITES = {
    "a typo in a plugin": ({"matcher": "telsa"}, {}, ["matrix 1 of", "telsa", "did you mean 'tesla'"]),
    "a typo in an option": ({"matcher": {"name": "dm", "options": {"stpes": 1}}}, {}, ["did you mean 'steps'"]),
    "a value out of range": ({"matcher": "dm", "options": {"protocol.steps": 0}}, {}, ["matrix 1", "protocol.steps"]),
    "a key of a matrix": ({"matcher": "dm", "matchers": 1}, {}, ["matrix 1", "'matchers'", "did you mean 'matcher'"]),
    "a key of the file": ({"matcher": "dm"}, {"studens": 1}, ["'studens'", "did you mean 'students'"]),
    "a key of an entry": ({"matcher": {"name": "dm", "option": 1}}, {}, ["matcher of", "did you mean 'options'"]),
    "no matcher": ({"ipc": 1}, {}, ["matrix 1", "names no matcher"]),
    "an empty list": ({"matcher": []}, {}, ["matcher of matrix 1", "empty"]),
    "an entry that is not a name": ({"matcher": 3}, {}, ["matcher of matrix 1", "3"]),
    "an ipc of nothing": ({"matcher": "dm", "ipc": [1, 0]}, {}, ["ipc of matrix 1", "got 0"]),
    "a seed that is text": ({"matcher": "dm", "seeds": "1"}, {}, ["seeds of matrix 1", "'1'"]),
    "no students": ({"matcher": "dm"}, {"students": 0}, ["students", "got 0"]),
    "an option without its group": ({"matcher": "dm", "options": {"steps": 1}}, {}, ["matrix 1", "matcher.steps"]),
    "an unknown group": ({"matcher": "dm", "options": {"mtcher.steps": 1}}, {}, ["matrix 1", "did you mean 'matcher'"]),
    "an exclude without effect": ({"matcher": "dm"}, {"exclude": [{"matcher": "mtt"}]}, ["exclude 1", "no cell"]),
    "an exclude of everything": ({"matcher": "dm"}, {"exclude": [{}]}, ["exclude 1", "empty"]),
    "a variable that is not set": ({"matcher": "dm"}, {"dataset": "images:${NOT_SET_AT_ALL}"}, ["export NOT_SET"]),
    "an exclude of a table": ({"matcher": "dm"}, {"exclude": [{"matcher": {"name": "dm"}}]}, ["exclude 1", "'dm'"]),
    "a tracker that is a number": ({"matcher": "dm"}, {"tracker": 3}, ["tracker", "got 3"]),
    "another rule": ({"matcher": "dm", "protocol": "defualt"}, {}, ["matrix 1", "defualt"]),
}


@pytest.mark.parametrize("case", BAD_SUITES)
def test_a_suite_that_is_wrong_is_refused_in_one_sentence_that_names_the_entry(tmp_path, case):
    matrix, top, said = BAD_SUITES[case]
    path = write(tmp_path / "s.toml", matrix, **top)
    with pytest.raises(DDBenchError) as error:
        resolved(path)
    for part in said:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_missing_or_no_toml_or_without_a_matrix_is_refused(tmp_path):
    with pytest.raises(DDBenchError, match=r"cannot read .*nothing\.toml"):
        read(tmp_path / "nothing.toml")
    (tmp_path / "s.toml").write_text("[[matrix]\n")
    with pytest.raises(UsageError, match="is not TOML"):
        read(tmp_path / "s.toml")
    (tmp_path / "s.toml").write_text("title = 'x'\n")
    with pytest.raises(UsageError, match=r"has no \[\[matrix\]\]"):
        read(tmp_path / "s.toml")


def test_trackers_of_the_file_are_passed_to_every_cell_but_are_no_part_of_its_key(tmp_path):
    plain = resolved(write(tmp_path / "a.toml", {"matcher": "random"}))
    tracked = resolved(write(tmp_path / "b.toml", {"matcher": "random"}, tracker=["tensorboard", "wandb=mine"]))
    given = words(tracked.cells[0], tracked, tmp_path)
    assert [given[i + 1] for i, word in enumerate(given) if word == "--tracker"] == ["tensorboard", "wandb=mine"]
    assert tracked.key == plain.key


SHIPPED = sorted((Path(__file__).parents[2] / "leaderboards" / "suites").glob("*.toml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_suites_that_come_with_ddbench_resolve(path, monkeypatch):
    for name in ("DDBENCH_CIFAR10_ZIP", "DDBENCH_MNIST_ZIP", "DDBENCH_DIGITS"):
        monkeypatch.setenv(name, "/data/images.zip")
    monkeypatch.delenv("DDBENCH_THREADS", raising=False)
    found = read(path, jobs=3, device="cpu")
    assert len(found.cells) > 10
    assert {cell.spec.threads for cell in found.cells} == {1}  # so that -j changes no key
    assert len({cell.name for cell in found.cells}) == len(found.cells)


# ------------------------------------------------------------------------------ cells at work


def test_two_at_a_time_make_the_same_bits_as_one_at_a_time(suite, tmp_path):
    path = write(tmp_path / "s.toml", {"matcher": ["random", TESLA]}, seeds=[0, 1])
    for jobs in (1, 2):
        answer = suite(path, "-j", jobs, out=f"runs-{jobs}", home=f"home-{jobs}")
        assert answer.code == 0, answer.err
        assert "4 ok of 4 cells" in answer.err
    assert len(sets(tmp_path / "runs-1")) == 4
    assert sets(tmp_path / "runs-1") == sets(tmp_path / "runs-2")


def test_cells_that_fail_diverge_crash_or_are_killed_stop_no_other_and_are_recorded_with_their_reason(suite, tmp_path):
    cure = tmp_path / "cure"
    hows = ("raise", "nan", "SIGKILL", "SIGSEGV")
    path = write(tmp_path / "s.toml", {"matcher": [*(trouble(how, cure) for how in hows), "random"]})
    answer = suite(path, "-j", 2)
    assert answer.code == 1
    assert "Traceback" not in answer.err
    assert statuses(tmp_path / "runs") == {
        "trouble raise": "failed",
        "trouble nan": "diverged",
        "trouble SIGKILL": "killed",
        "trouble SIGSEGV": "killed",
        "random": "ok",
    }
    reasons = {record["cell"].split(", ")[1]: record["error"] for record in records(tmp_path / "runs")}
    assert "RuntimeError: a bug of the plugin" in reasons["trouble raise"]
    assert "loss became nan" in reasons["trouble nan"]
    assert "signal 9 (SIGKILL)" in reasons["trouble SIGKILL"]
    assert "memory" in reasons["trouble SIGKILL"]
    assert "signal 11 (SIGSEGV)" in reasons["trouble SIGSEGV"]
    assert "1 ok, 1 diverged, 1 failed, 2 killed of 5 cells" in answer.err
    assert f"ddbench compare --out {tmp_path / 'runs'}" in answer.err

    again = suite(path)  # what failed is left alone, and still counts
    assert again.code == 1
    assert len(records(tmp_path / "runs")) == 5
    assert "killed earlier" in again.err
    assert "--retry-failed" in again.err

    cure.touch()
    mended = suite(path, "--retry-failed")
    assert mended.code == 0, mended.err
    assert len(records(tmp_path / "runs")) == 9  # the four that had failed, and no other
    assert set(statuses(tmp_path / "runs").values()) == {"ok"}


def test_what_is_finished_is_recognised_whatever_made_it(suite, forks, site, tmp_path):
    made = ["run", *tiny.words("random"), "--students", "1", "--no-random", "--no-ceiling", "--device", "cpu"]
    assert forks.run([*made, "--out", tmp_path / "runs"], tmp_path / "home", (site,)).code == 0
    assert suite(write(tmp_path / "a.toml", {"matcher": ["random", "trouble"]}), "--device", "cpu").code == 0
    before = artefacts(tmp_path / "runs")
    answer = suite(write(tmp_path / "b.toml", {"matcher": ["trouble", "random", "k-means"]}), "--device", "cpu")
    assert answer.code == 0, answer.err
    assert statuses(tmp_path / "runs").keys() == {"trouble", "k-means"}
    assert [record["cell"].split(", ")[1] for record in records(tmp_path / "runs")] == ["trouble", "k-means"]
    after = artefacts(tmp_path / "runs")
    assert all(after[name] == held for name, held in before.items())


def test_a_cell_that_was_compared_with_random_images_is_as_finished_as_before(suite, tmp_path):
    path = write(tmp_path / "a.toml", {"matcher": "k-means"})
    assert suite(path).code == 0
    (folder,) = (tmp_path / "runs").glob("toy-*")
    store(folder, [RandomRecord(accuracy_mean=0.5, difference=-0.1)])
    before, made = artefacts(tmp_path / "runs"), len(records(tmp_path / "runs"))
    assert len(read_json(folder / "result.json")["random"]) == 1
    assert suite(path).code == 0
    assert artefacts(tmp_path / "runs") == before
    assert len(records(tmp_path / "runs")) == made


def test_more_students_than_a_finished_cell_has_are_trained_and_its_set_is_kept(suite, tmp_path):
    assert suite(write(tmp_path / "a.toml", {"matcher": "random"})).code == 0
    before = sets(tmp_path / "runs")
    assert suite(write(tmp_path / "b.toml", {"matcher": "random"}, students=2)).code == 0
    (folder,) = (tmp_path / "runs").glob("toy-*")
    assert {read_json(p)["n"] for p in (folder / "evaluations").glob("*.json")} == {1, 2}
    assert sets(tmp_path / "runs") == before


def test_a_record_is_on_disk_when_its_cell_ends_and_a_suite_that_was_killed_goes_on(suite, tmp_path):
    gate = tmp_path / "gate"
    path = write(tmp_path / "s.toml", {"matcher": ["random", trouble("wait", gate), "k-means"]})
    started = suite(path, start=True)
    until(lambda: list((tmp_path / "runs").glob("toy-trouble-*/metrics.jsonl")), started)
    assert statuses(tmp_path / "runs") == {"random": "ok"}
    started.signal(SIGKILL)
    assert started.wait().code == -SIGKILL
    gate.touch()  # the orphan goes on with its step, and ends or finishes its run
    answer = suite(path)
    assert answer.code == 0, answer.err
    assert "3 ok of 3 cells" in answer.err
    assert statuses(tmp_path / "runs").keys() - {"trouble wait"} == {"random", "k-means"}
    assert suite(path, "-j", 2, out="other").code == 0
    assert sets(tmp_path / "runs") == sets(tmp_path / "other")


def test_an_orphan_of_a_killed_suite_writes_its_checkpoint_and_ends(suite, tmp_path):
    path = write(tmp_path / "s.toml", {"matcher": {"name": "trouble", "options": {"steps": 10**6}}})
    started = suite(path, start=True)
    until(lambda: list((tmp_path / "runs").glob("toy-trouble-*/metrics.jsonl")), started)
    started.signal(SIGKILL)
    started.wait()
    (log,) = (tmp_path / "runs" / "suites").glob("*/*.log")
    end = time.monotonic() + 20
    while "interrupted" not in log.read_text():
        assert time.monotonic() < end
        time.sleep(0.05)


LONG = {SIGINT: {**TESLA, "options": TESLA["options"] | {"steps": 10}}, SIGTERM: trouble("slow")}


@pytest.mark.parametrize("number", LONG)
def test_a_signal_stops_every_cell_at_a_checkpoint_and_the_same_command_goes_on(suite, forks, site, tmp_path, number):
    path = write(tmp_path / "s.toml", {"matcher": LONG[number]}, seeds=[0, 1, 2])
    started = suite(path, "-j", 2, start=True)
    until(lambda: len(list((tmp_path / "runs").glob("toy-*/stage-0/checkpoint.safetensors"))) == 2, started)
    started.signal(number)
    answer = started.wait()
    assert answer.code == 130
    assert "Traceback" not in answer.err
    last = answer.err.strip().splitlines()[-1]
    assert "3 to do of 3 cells" in last
    assert [record["status"] for record in records(tmp_path / "runs")] == ["interrupted"] * 2
    assert command_in(last) == ["suite", "run", str(path), "--out", str(tmp_path / "runs"), "-j", "2"]
    assert forks.run(command_in(last), tmp_path / "home", (site,)).code == 0
    assert suite(path, "-j", 2, out="whole").code == 0
    assert sets(tmp_path / "runs") == sets(tmp_path / "whole")
    assert len(sets(tmp_path / "runs")) == 3


def test_a_second_signal_kills_cells_that_do_not_stop(suite, tmp_path):
    path = write(tmp_path / "s.toml", {"matcher": trouble("wait", tmp_path / "never")})
    started = suite(path, start=True)
    until(lambda: list((tmp_path / "runs").glob("toy-trouble-*/metrics.jsonl")), started)
    started.signal(SIGINT)
    until(lambda: "once more kills" in started.err.read_text(), started)
    started.signal(SIGINT)
    began = time.monotonic()
    answer = started.wait()
    assert answer.code == 130
    assert time.monotonic() - began < 5
    assert statuses(tmp_path / "runs") == {"trouble wait": "interrupted"}


def test_stop_first_stops_at_the_first_failure_and_limit_runs_so_many(suite, tmp_path):
    path = write(tmp_path / "s.toml", {"matcher": [trouble("raise"), "random", "k-means"]})
    answer = suite(path, "-x")
    assert answer.code == 1
    assert statuses(tmp_path / "runs") == {"trouble raise": "failed"}
    answer = suite(path, "--limit", 1)
    assert answer.code == 1  # one cell of the suite has failed
    assert statuses(tmp_path / "runs") == {"trouble raise": "failed", "random": "ok"}
    assert "1 ok, 1 failed, 1 to do of 3 cells" in answer.err


def test_existing_cells_are_refused_or_run_again_when_asked_for(suite, tmp_path):
    path = write(tmp_path / "s.toml", {"matcher": "random"})
    assert suite(path).code == 0
    before = artefacts(tmp_path / "runs")
    answer = suite(path, "--on-existing", "fail")
    assert answer.code == 2
    assert "1 of 1 cells exist" in answer.err
    assert artefacts(tmp_path / "runs") == before
    made = sets(tmp_path / "runs")
    assert suite(path, "--on-existing", "rerun").code == 0
    assert sets(tmp_path / "runs") == made
    assert [record["status"] for record in records(tmp_path / "runs")] == ["ok", "removed", "ok"]


def test_cells_that_ended_badly_are_run_again_too(suite, tmp_path):
    """A record of how a cell ended must not stand for a run that was removed."""
    path = write(tmp_path / "s.toml", {"matcher": [trouble("nan"), trouble("raise")]})
    ended = {"trouble nan": "diverged", "trouble raise": "failed"}
    assert suite(path).code == 1
    assert statuses(tmp_path / "runs") == ended
    for again in ((), ("--retry-failed",), ("--on-existing", "rerun")):
        plan = suite(path, *again, "--dry-run", "--json").json
        assert plan["total"]["to_do"] == (2 if again else 0)
        before = len(records(tmp_path / "runs"))
        assert suite(path, *again).code == 1
        made = [record["status"] for record in records(tmp_path / "runs")[before:]]
        assert sorted(set(made) - {"removed"}) == (["diverged", "failed"] if again else [])
        assert statuses(tmp_path / "runs") == ended
    assert suite(path, "--retry-failed", "--limit", 1, "--dry-run", "--json").json["total"]["to_do"] == 1
    assert "failed, again" in suite(path, "--retry-failed", "--dry-run").out
    assert suite(path, "--on-existing", "fail", "--dry-run").code == 2


def test_a_dry_run_shows_every_cell_and_starts_nothing(suite, tmp_path):
    path = write(tmp_path / "s.toml", {"matcher": ["random", TESLA]}, seeds=[0, 1])
    answer = suite(path, "--dry-run", "--json")
    assert answer.code == 0, answer.err
    assert not (tmp_path / "runs").exists()
    plan = answer.json
    assert [line["status"] for line in plan["cells"]] == ["to do"] * 4
    assert [line["expected_seconds"] for line in plan["cells"]] == [None] * 4
    assert plan["total"]["memory_bytes"] == max(line["memory_bytes"] for line in plan["cells"])
    tesla = plan["cells"][1]["expert_bytes"]
    assert tesla > 0
    assert plan["total"]["disk_bytes"] < 2 * tesla + 10**5  # two seeds share their experts

    assert suite(path, "--limit", 1).code == 0
    held = artefacts(tmp_path / "runs")
    lines = suite(path, "--dry-run", "--json").json["cells"]
    assert [line["status"] for line in lines] == ["ok", "to do", "to do", "to do"]
    assert lines[2]["expected_seconds"] > 0  # the other seed of the one that ran
    assert lines[1]["expected_seconds"] is None
    shown = suite(path, "--dry-run")
    assert "unknown" in shown.out
    assert artefacts(tmp_path / "runs") == held


def test_a_cell_that_another_process_is_at_is_waited_for(suite, forks, site, tmp_path):
    gate = tmp_path / "gate"
    path = write(tmp_path / "a.toml", {"matcher": trouble("wait", gate)})
    first = suite(path, start=True)
    until(lambda: list((tmp_path / "runs").glob("toy-trouble-*/metrics.jsonl")), first)
    twice = suite(path)  # the same suite: nothing that it could do
    assert twice.code == 1
    assert "is being written by process" in twice.err
    second = suite(write(tmp_path / "b.toml", {"matcher": [trouble("wait", gate), "random"]}), start=True)
    until(lambda: statuses(tmp_path / "runs").get("random"), second)
    assert "waiting:" in second.err.read_text()
    gate.touch()
    assert first.wait().code == 0
    answer = second.wait()
    assert answer.code == 0, answer.err
    assert "2 ok of 2 cells" in answer.err


def test_of_cells_with_the_same_experts_one_goes_ahead_while_others_take_the_free_places(tmp_path):
    same = {"matcher": [TESLA, {"name": "tesla", "options": {"experts": 3}}]}
    other = {"matcher": "mtt", "options": {"network.width": 4}}
    found = resolved(write(tmp_path / "s.toml", same, other))
    started: list[str] = []

    class Still:
        """Places that only tell what was started."""

        def start(self, jobs: list[Any]) -> list[object]:
            started.extend(job.words[job.words.index("--matcher") + 1] for job in jobs)
            return [object() for _ in jobs]

    work: Any = Work(found, Orders(tmp_path / "runs", jobs=2), lambda _: None, lambda _: None)
    work._placing = Still()
    work._start([Part(cell, ahead=cell.experts) for cell in found.cells])
    assert started == ["tesla", "mtt"]


def test_workers_are_fresh_processes_of_the_installed_command(tmp_path):
    """Without the forks of the other tests: what users get."""
    path = write(tmp_path / "s.toml", {"matcher": "random"})
    start = (
        "from ddbench.cli.main import cli, main; from ddbench.cli.suite import suite; cli.add_command(suite); main()"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", start, "suite", "run", str(path), "--out", str(tmp_path / "runs"), "--json"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | THREAD,
    )
    assert done.returncode == 0, done.stderr
    (record,) = Answer(0, done.stdout, "").json["cells"]
    assert record["status"] == "ok"
    assert list((tmp_path / "runs" / "suites").glob(f"*/{record['run']}.log"))


# ------------------------------------------------------------------------------ what is recorded


def test_a_record_that_a_crash_cut_short_harms_no_other(tmp_path):
    path = tmp_path / "suites" / "a.jsonl"
    append(path, {"key": "1", "status": "ok"})
    with path.open("ab") as stream:
        stream.write(b'{"key": "2", "sta')
    append(path, {"key": "3", "status": "ok"})
    assert [record["key"] for record in records(tmp_path)] == ["1", "3"]


def test_a_damaged_result_is_the_trouble_of_its_own_cell(tmp_path):
    found = resolved(write(tmp_path / "s.toml", {"matcher": ["random", "k-means"]}))
    folder = tmp_path / "runs" / found.cells[0].spec.folder
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{")
    stands = cell_standings(found, tmp_path / "runs")
    assert stands[found.cells[0].key][0] == "failed"
    assert stands[found.cells[1].key] == ("", "")


def test_expected_seconds_are_the_mean_over_like_cells_of_all_their_attempts(tmp_path):
    found = resolved(write(tmp_path / "s.toml", {"matcher": "random"}, seeds=[0, 1, 2]))
    line = {"like": found.cells[0].like, "finished": "x"}
    path = tmp_path / "suites" / "a.jsonl"
    for key, status, seconds in (("a", "interrupted", 3.0), ("a", "ok", 1.0), ("b", "ok", 2.0), ("c", "killed", 50.0)):
        append(path, line | {"key": key, "status": status, "seconds": seconds})
    assert expected(found.cells, tmp_path) == {cell.key: 3.0 for cell in found.cells}


@pytest.mark.parametrize("place", ["suites", "suites/KEY.lock", "suites/KEY.jsonl", "suites/KEY/RUN.log"])
def test_a_link_in_the_folder_of_a_suite_empties_no_file_of_its_user(tmp_path, place):
    path = write(tmp_path / "s.toml", {"matcher": "random"})
    suite, out = resolved(path), tmp_path / "runs"
    names = {"KEY": suite.key, "RUN": suite.cells[0].spec.folder}
    link = out / place.replace("KEY", names["KEY"]).replace("RUN", names["RUN"])
    link.parent.mkdir(parents=True)
    victim = tmp_path / "victim"
    if place == "suites":
        victim.mkdir()
    else:
        victim.write_text("precious")
    link.symlink_to(victim)
    answer = ddbench("suite", "run", path, "--out", out, "--device", "cpu")
    assert answer.code == 3
    assert "is a link, and what it points at is not written to" in answer.err
    assert not list(victim.iterdir()) if victim.is_dir() else victim.read_text() == "precious"
