"""Code is part of what decides a result: runs of other code are noticed, and none is lost when it is made anew."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from pathlib import Path
from signal import SIGTERM
from typing import Any

import pytest
from tiny import Answer, artefacts, ddbench, run, spec

import ddbench as package
from ddbench.base.cache import read_json, write_json
from ddbench.base.progress import noting
from ddbench.errors import BusyError
from ddbench.run import sources as code
from ddbench.run.folder import SET_ASIDE, find_run, run_folders
from ddbench.run.place import called, comparable, folder_of, set_aside
from ddbench.run.run import Run, Settings
from ddbench.run.spec import from_record, known_options

MATCHER = """
from dataclasses import dataclass
from ddbench import SyntheticSet, hookimpl

@dataclass(frozen=True)
class Scaled:
    "Random images, scaled."
    name = "scaled"
    steps: int = 2
    def init(self, problem):
        drawn = problem.real.draw(problem.ipc)
        return {"x": drawn.images.clone(), "y": drawn.labels}
    def step(self, problem, state, k): return state, {"loss": 1.0}
    def result(self, problem, state): return SyntheticSet(FACTOR * state["x"], state["y"].clone())

FACTOR = 1.0

@hookimpl
def register_matchers(register): register(Scaled)
"""
ARGUMENTS = [
    "run",
    "--dataset",
    "toy",
    "--matcher",
    "scaled",
    "--ipc",
    "1",
    "-o",
    "network.width=8",
    "-o",
    "protocol.steps=20",
    "-o",
    "protocol.lrs=0.01",
    "--students",
    "1",
    "--no-random",
    "--no-ceiling",
    "--quiet",
]


@pytest.fixture
def mine(tmp_path) -> Path:
    """A third party's matcher on PYTHONPATH, as an editable install has it."""
    folder = tmp_path / "mine"
    (folder / "scaled-1.0.dist-info").mkdir(parents=True)
    (folder / "scaled-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: scaled\nVersion: 1.0\n")
    (folder / "scaled-1.0.dist-info" / "entry_points.txt").write_text("[ddbench]\nscaled = scaled_matcher\n")
    (folder / "scaled_matcher.py").write_text(textwrap.dedent(MATCHER))
    return folder


def edit(mine: Path) -> None:
    path = mine / "scaled_matcher.py"
    path.write_text(path.read_text().replace("FACTOR = 1.0", "FACTOR = 0.5"))


def distilled(folder: Path) -> bytes:
    return (folder / "distilled.safetensors").read_bytes()


# ------------------------------------------------------------------------------------ one's own matcher, edited


def test_an_edited_matcher_is_not_answered_with_the_old_accuracy(forks, mine, tmp_path):
    out = tmp_path / "runs"

    def go(*more: Any) -> Answer:
        return forks.run([*ARGUMENTS, "--out", out, *more], tmp_path / "home", (str(mine),))

    assert go().code == 0
    (first,) = run_folders(out)
    before = distilled(first)
    again = go()
    assert "made anew" not in again.err
    assert distilled(first) == before
    edit(mine)
    changed = go()
    assert changed.code == 0, changed.err
    assert "the source of scaled_matcher has changed" in changed.err
    assert run_folders(out) == [first]
    assert distilled(first) != before
    (kept,) = set(run_folders(out, set_aside=True)) - {first}
    assert distilled(kept) == before
    assert kept.name in changed.err
    rows = forks.run(["compare", "--per-run", "--json", "--out", out], tmp_path / "home", (str(mine),)).json
    assert [row["run"] for row in rows] == [first.name]
    listed = forks.run(["list", "runs", "--json", "--out", out], tmp_path / "home", (str(mine),)).json
    assert {row["run"]: row["status"] for row in listed} == {first.name: "ok", kept.name: "replaced"}


def test_an_edited_matcher_does_not_go_on_with_half_of_a_run(forks, mine, tmp_path):
    out, moment = tmp_path / "runs", {"event": "stage 0 distilling", "count": 1, "signal": SIGTERM}
    loud = [word for word in ARGUMENTS if word != "--quiet"]
    stopped = forks.run([*loud, "--out", out], tmp_path / "home", (str(mine),), **moment)
    assert stopped.code == 130, stopped.err
    (first,) = run_folders(out)
    assert not (first / "result.json").exists()
    edit(mine)
    resumed = forks.run([*loud, "--out", out], tmp_path / "home", (str(mine),))
    assert resumed.code == 0, resumed.err
    assert "the source of scaled_matcher has changed" in resumed.err
    assert len(run_folders(out, set_aside=True)) == 2
    whole = forks.run([*loud, "--out", tmp_path / "whole"], tmp_path / "home", (str(mine),))
    assert whole.code == 0
    assert distilled(first) == distilled(*run_folders(tmp_path / "whole"))


def test_resume_goes_on_with_it_all_the_same_and_says_so(forks, mine, tmp_path):
    out = tmp_path / "runs"
    assert forks.run([*ARGUMENTS, "--out", out], tmp_path / "home", (str(mine),)).code == 0
    (first,) = run_folders(out)
    before = distilled(first)
    edit(mine)
    resumed = forks.run(["run", "--resume", first.name, "--out", out, *ARGUMENTS[-5:]], tmp_path / "home", (str(mine),))
    assert resumed.code == 0, resumed.err
    assert "made by other code of scaled_matcher; `ddbench run --fresh` makes it anew" in resumed.err
    assert distilled(first) == before


# ------------------------------------------------------------------------------------ built-ins, and in this process


def executed(out: Path, made: Any, notes: list[str], **settings: Any) -> Path:
    work = Run(made, made.dataset.load(), Settings(out, 1, **settings))
    with noting(notes.append):
        work.execute()
    return work.folder


def test_the_sources_of_a_run_stand_beside_its_key_from_the_start(tmp_path):
    made = spec("random")
    folder = run(tmp_path, made)
    held = read_json(folder / "result.json")["sources"]
    assert held == read_json(folder / "sources.json")["sources"] == code.sources(made)
    assert set(held) == {"ddbench", "ddbench_coresets", "ddbench_datasets", "ddbench_networks", "ddbench_schedulers"}
    assert all(len(value) == 64 for value in held.values())


def test_other_code_of_a_built_in_is_a_line_and_changes_nothing(tmp_path):
    made, notes = spec("random"), []
    folder = executed(tmp_path, made, notes)
    assert notes == []
    result = read_json(folder / "result.json")
    write_json(folder / "result.json", result | {"sources": result["sources"] | {"ddbench_coresets": "0" * 64}})
    before = artefacts(folder)
    assert executed(tmp_path, made, notes) == folder
    assert notes == [f"{folder.name} was made by other code of ddbench_coresets; `ddbench run --fresh` makes it anew"]
    assert artefacts(folder) == before


def test_a_run_that_recorded_no_sources_is_not_spoken_of(tmp_path):
    made, notes = spec("random"), []
    folder = executed(tmp_path, made, notes)
    (folder / "sources.json").unlink()
    result = read_json(folder / "result.json")
    write_json(folder / "result.json", {name: value for name, value in result.items() if name != "sources"})
    executed(tmp_path, made, notes)
    assert notes == []


def test_a_half_finished_run_that_other_code_ends_says_who_began_it(tmp_path):
    made, notes = spec("random"), []
    folder = executed(tmp_path, made, notes)
    (folder / "result.json").unlink()
    held = read_json(folder / "sources.json")["sources"]
    write_json(folder / "sources.json", {"sources": held | {"ddbench": "0" * 64}})
    executed(tmp_path, made, notes)
    assert len(notes) == 1
    result = read_json(folder / "result.json")
    assert (result["sources"], result["begun_by"]) == (held, held | {"ddbench": "0" * 64})


def test_fresh_makes_a_run_anew_and_loses_nothing(tmp_path):
    arguments = [*ARGUMENTS[:4], "random", *ARGUMENTS[5:], "--out", tmp_path / "runs"]
    assert ddbench(*arguments).code == 0
    (first,) = run_folders(tmp_path / "runs")
    before = {name: bits for name, (bits, _) in artefacts(first).items()}
    answer = ddbench(*arguments, "--fresh")
    assert answer.code == 0, answer.err
    (kept,) = set(run_folders(tmp_path / "runs", set_aside=True)) - {first}
    assert {name: bits for name, (bits, _) in artefacts(kept).items()} == before
    assert f"is made anew, and what was there is kept as {kept.name}" in " ".join(answer.err.split())
    assert distilled(first) == distilled(kept)
    assert first.name + SET_ASIDE in kept.name
    assert find_run(first.name.rpartition("-")[2], tmp_path / "runs") == first
    assert find_run(kept.name, tmp_path / "runs") == kept


def test_fresh_makes_a_damaged_run_anew_too(tmp_path):
    made, notes = spec("random"), []
    folder = executed(tmp_path, made, notes)
    before = distilled(folder)
    (folder / "result.json").write_text("{")
    (folder / "spec.json").write_text("[]")
    assert executed(tmp_path, made, notes, renew="always") == folder
    assert distilled(folder) == before
    assert len(run_folders(tmp_path, set_aside=True)) == 2


def test_fresh_and_resume_exclude_each_other(tmp_path):
    answer = ddbench("run", "--fresh", "--resume", "x", "--out", tmp_path)
    assert answer.code == 2
    assert "leave one of them out" in answer.err


def test_fresh_where_nothing_is_there_is_a_run(tmp_path):
    notes: list[str] = []
    assert executed(tmp_path, spec("random"), notes, renew="always").exists()
    assert notes == []


def test_a_run_at_work_is_not_set_aside(tmp_path):
    import fcntl

    folder = run(tmp_path, spec("random"))
    with (folder / ".lock").open("a+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(BusyError):
            set_aside(folder)
    assert folder.exists()


def test_what_shows_runs_is_no_source_of_them():
    home = Path(package.__file__).parent
    deciding = set(code.deciding())
    assert home / "train" / "fit.py" in deciding
    assert not {part for file in deciding for part in file.relative_to(home).parts} & {"cli", "boards", "results"}


def test_built_ins_are_never_taken_for_plugins_that_are_worked_on():
    """Though they lie outside of site-packages in a checkout."""
    assert code.in_development(spec("random")) == set()


# ------------------------------------------------------------------------------------ keys of earlier versions


def old(folder: Path, version: str = "ddbench 0.1.0") -> Path:
    """The folder as ddbench 0.1 would have made it, under its key."""
    held = read_json(folder / "spec.json")
    held = {name: value for name, value in held.items() if name != "declared"}
    held["versions"] = dict.fromkeys(held["versions"], version)
    write_json(folder / "spec.json", held)
    (folder / "sources.json").unlink()
    made = from_record(held)
    return folder.rename(folder.with_name(folder.name.replace(made.key, made.old_key(held["versions"]))))


def test_the_key_of_an_earlier_version_is_what_it_was():
    """Of an entry of a board in this repository: it was made by 0.1."""
    import json

    held = set()
    for path in sorted(Path("leaderboards/digits/entries").glob("*.json")):
        entry = json.loads(path.read_text())
        for run_of in entry["runs"]:
            record = known_options(entry["spec"] | run_of["spec"])
            made = from_record(record)
            held.add(called(made, record, run_of["run"]))
    assert held == {True}


@pytest.mark.parametrize("version", ["ddbench 0.1.0", "ddbench 0.0.3"])
def test_a_finished_run_under_its_old_key_is_found_and_not_made_again(tmp_path, version):
    made, notes = spec("random"), []
    folder = old(executed(tmp_path, made, notes), version)
    assert folder.name != made.folder
    before = artefacts(folder)
    assert folder_of(made, tmp_path) == folder
    assert executed(tmp_path, made, notes) == folder
    assert artefacts(folder) == before
    assert run_folders(tmp_path) == [folder]
    assert find_run(folder.name.rpartition("-")[2], tmp_path) == folder


def test_half_a_run_under_its_old_key_is_gone_on_with(tmp_path):
    made = spec("random", "boost", 2, scheduler__stages=2)  # of which there has been one version
    whole = distilled(run(tmp_path / "whole", made))
    folder = old(run(tmp_path / "runs", made))
    for name in ("result.json", "distilled.safetensors", "stage-1/result.json"):
        (folder / name).unlink()
    first = artefacts(folder / "stage-0")
    work = Run(made, made.dataset.load(), Settings(tmp_path / "runs", 2))
    work.execute()
    assert work.folder == folder
    assert distilled(folder) == whole
    assert artefacts(folder / "stage-0") == first


def test_a_run_under_its_old_key_is_resumed_by_its_name(tmp_path):
    folder = old(run(tmp_path, spec("random")))
    answer = ddbench(
        "run", "--resume", folder.name, "--out", tmp_path, "--no-random", "--no-ceiling", "--students", "2"
    )
    assert answer.code == 0, answer.err
    assert run_folders(tmp_path) == [folder]


def test_a_run_of_other_options_is_not_taken_for_it(tmp_path):
    folder = old(run(tmp_path, spec("random")))
    other = spec("random", protocol__steps=13)
    assert folder_of(other, tmp_path) == tmp_path / other.folder
    (folder / "spec.json").write_text("{")
    assert folder_of(spec("random"), tmp_path) == tmp_path / spec("random").folder


def test_a_plugin_that_declares_another_version_has_other_runs(tmp_path, monkeypatch):
    made = spec("random")
    folder = old(run(tmp_path, made))
    monkeypatch.setattr(type(made.matcher), "version", "2", raising=False)
    assert folder_of(spec("random"), tmp_path) != folder
    assert comparable(spec("random").record())["declared"]["matcher random"] == "2"


def test_packages_of_another_name_have_other_runs():
    made = spec("random")
    named = tuple((name, f"another {text.split()[1]}") for name, text in made.versions)
    assert replace(made, versions=named).key != made.key
