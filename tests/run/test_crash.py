"""A run that is stopped at any moment, and started again, ends with the bits of one that was not."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path
from signal import SIGCONT, SIGINT, SIGKILL, SIGSTOP, SIGTERM
from typing import Any

import pytest
from tiny import Answer, Command, Forks, artefacts, command_in, run, spec, words

from ddbench.base.cache import file_digest, read_json
from ddbench.base.progress import Event, listening
from ddbench.errors import InterruptedRun

SMALL = {"dataset__per_class": 10, "network__depth": 1}  # what takes time and has no phase of its own
SPAN = SMALL | {"matcher__steps": 6, "matcher__max_start": 3, "matcher__experts": 3}


def command(out: Path, **more: Any) -> list[str]:
    """Three stages, so that a later one builds on two; few seconds between checkpoints."""
    given = {"scheduler__stages": 3, **SPAN} | more
    quick = ["--checkpoint-seconds", "0.02", "--students", "3", "--no-random", "--no-ceiling"]
    return ["run", *words("tesla", "pdd", 3, **given), *quick, "--out", str(out)]


def outcome(out: Path) -> dict[str, Any]:
    """What must not depend on interruptions: the set, the path to it, and the grades."""
    (folder,) = out.iterdir()
    (evaluation,) = (folder / "evaluations").glob("*.json")
    return {
        "distilled": file_digest(folder / "distilled.safetensors"),
        "preview": file_digest(folder / "preview.png"),
        "metrics": (folder / "metrics.jsonl").read_bytes(),
        "manifest": read_json(folder / "result.json")["sha256"],
        "selected": [stage["selected"] for stage in read_json(folder / "result.json")["stages"]],
        "checks": [stage["checks"] for stage in read_json(folder / "result.json")["stages"]],
        "students": read_json(evaluation)["students"],
    }


@pytest.fixture(scope="module")
def undisturbed(forks, tmp_path_factory) -> dict[str, Any]:
    """The outcome of a run that nothing interrupted, in folders of its own."""
    base = tmp_path_factory.mktemp("undisturbed")
    answer = forks.run(command(base / "runs"), base / "home")
    assert answer.code == 0, answer.err
    return outcome(base / "runs")


def test_a_run_is_the_same_in_another_folder_with_another_cache(forks, undisturbed, tmp_path):
    assert forks.run(command(tmp_path / "runs"), tmp_path / "home").code == 0
    assert outcome(tmp_path / "runs") == undisturbed


MOMENTS = [
    ("expert 0", 2),
    ("experts", 2),
    ("stage 0 distilling", 5),
    ("selection", 1),
    ("stages", 1),
    ("stage 1 distilling", 2),
    ("evaluation", 1),
    ("evaluation", 1),
]


def test_a_run_killed_in_experts_stages_selection_and_evaluation_ends_with_the_same_bits(forks, undisturbed, tmp_path):
    for what, count in MOMENTS:
        answer = forks.run(command(tmp_path / "runs"), tmp_path / "home", event=what, count=count, signal=SIGKILL)
        assert answer.code == -SIGKILL, f"the run was not killed in {what}: {answer}"
    assert forks.run(command(tmp_path / "runs"), tmp_path / "home").code == 0
    assert outcome(tmp_path / "runs") == undisturbed


def killed_at_random(forks: Forks, base: Path, seed: int, longest: float) -> int:
    """Start the command and kill it after a random time, again and again until it ends; tells how many kills."""
    draw, kills = random.Random(seed), 0
    while True:
        answer = forks.start(command(base / "runs"), base / "home").end_after(draw.uniform(0, longest), SIGKILL)
        if answer.code == 0:
            return kills
        assert answer.code == -SIGKILL, answer.err
        kills += 1
        longest *= 1.1  # on a busy machine too it ends


def test_a_run_killed_at_random_times_ends_with_the_same_bits(forks, undisturbed, tmp_path):
    kills = seed = 0
    while kills < 4:
        base = tmp_path / str(seed)
        kills += killed_at_random(forks, base, seed, longest=0.5)
        assert outcome(base / "runs") == undisturbed
        seed += 1


def sync_chain(forks: Forks, base: Path, draw: random.Random, reach: int) -> int:
    """Kill the command just before some fsync, ever further on; tells how many kills."""
    kills = 0
    while True:
        at = draw.randint(1, reach)
        answer = forks.run(command(base / "runs"), base / "home", sync=at, signal=SIGKILL)
        if answer.code == 0:
            return kills
        assert answer.code == -SIGKILL, answer.err
        kills += 1
        reach += 1


def test_a_run_killed_while_it_writes_to_the_disk_ends_with_the_same_bits(forks, undisturbed, tmp_path):
    kills = sync_chain(forks, tmp_path, random.Random(7), reach=40)
    assert kills >= 3
    assert outcome(tmp_path / "runs") == undisturbed


@pytest.mark.slow
def test_a_run_killed_before_every_single_fsync_ends_with_the_same_bits(forks, undisturbed, tmp_path):
    at, killed = 0, True
    while killed:
        at += 1
        base = tmp_path / str(at)
        answer = forks.run(command(base / "runs"), base / "home", sync=at, signal=SIGKILL)
        killed = answer.code == -SIGKILL
        if killed:
            answer = forks.run(command(base / "runs"), base / "home")
        assert answer.code == 0, answer.err
        assert outcome(base / "runs") == undisturbed, f"fsync {at}"
    assert at > 100


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_a_run_killed_at_many_random_times_ends_with_the_same_bits(forks, undisturbed, tmp_path, seed):
    killed_at_random(forks, tmp_path, 1000 + seed, longest=0.2 + 0.02 * seed)
    assert outcome(tmp_path / "runs") == undisturbed


def assert_stopped(answer: Answer, base: Path) -> None:
    """Exit code 130, one message, and in it the command that goes on."""
    assert answer.code == 130, answer.err
    assert "Traceback" not in answer.err
    assert answer.out == ""
    last = answer.err.strip().splitlines()[-1]
    assert "interrupted" in last
    assert command_in(last) == command(base / "runs")


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
def test_a_signal_writes_a_checkpoint_and_exits_130_with_the_command_that_goes_on(forks, undisturbed, tmp_path, number):
    slow = [*command(tmp_path / "runs"), "--checkpoint-seconds", "1000"]
    answer = forks.run(slow, tmp_path / "home", event="stage 1 distilling", count=2, signal=number)
    assert answer.code == 130
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "stage-1" / "checkpoint.safetensors").exists()
    assert len((folder / "metrics.jsonl").read_bytes().splitlines()) == 6 + 2
    assert command_in(answer.err) == slow
    assert forks.run(command_in(answer.err), tmp_path / "home").code == 0
    assert outcome(tmp_path / "runs") == undisturbed


SOFT = ["expert 1", "stage 0 distilling", "selection", "teaching", "stage 1 distilling", "selection", "evaluation"]


def test_a_run_terminated_in_every_phase_ends_with_the_same_bits(forks, undisturbed, tmp_path):
    for what in SOFT:
        answer = forks.run(command(tmp_path / "runs"), tmp_path / "home", event=what, count=1, signal=SIGTERM)
        assert_stopped(answer, tmp_path)
    assert forks.run(command(tmp_path / "runs"), tmp_path / "home").code == 0
    assert outcome(tmp_path / "runs") == undisturbed


def test_a_run_terminated_at_random_times_ends_with_the_same_bits(forks, undisturbed, tmp_path):
    draw = random.Random(3)
    for _ in range(4):
        started = forks.start(command(tmp_path / "runs"), tmp_path / "home")
        answer = _begun(started) or started.end_after(draw.uniform(0, 0.4), SIGTERM)
        if answer.code == 0:
            break
        assert_stopped(answer, tmp_path)
    assert forks.run(command(tmp_path / "runs"), tmp_path / "home").code == 0
    assert outcome(tmp_path / "runs") == undisturbed


def _begun(started: Command) -> Answer | None:
    """Wait until the command says that it has begun: before that, a signal ends it as the system does."""
    while not (started.err.exists() and started.err.read_text()):
        if answer := started.poll():
            return answer
    return None


class Stopper:
    """Asks work to stop at random events, as a signal does."""

    def __init__(self, seed: int, chance: float) -> None:
        self.draw, self.chance, self.stops = random.Random(seed), chance, 0

    def __call__(self, event: Event) -> None:
        if self.draw.random() < self.chance:
            self.stops += 1
            raise InterruptedRun(f"at {event}")


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 10))])
def test_a_run_asked_to_stop_at_random_safe_points_ends_with_the_same_bits(undisturbed, tmp_path, monkeypatch, seed):
    monkeypatch.setenv("DDBENCH_HOME", str(tmp_path / "home"))
    made, stopper, done = spec("tesla", "pdd", 3, scheduler__stages=3, **SPAN), Stopper(seed, 0.04), False
    while not done:
        with suppress(InterruptedRun), listening(stopper):
            run(tmp_path / "runs", made, students=3, seconds=1000)
            done = True
    assert stopper.stops >= 4
    assert outcome(tmp_path / "runs") == undisturbed


def test_a_finished_run_is_neither_recomputed_nor_rewritten(forks, undisturbed, tmp_path):
    assert forks.run(command(tmp_path / "runs"), tmp_path / "home").code == 0
    runs, cached = artefacts(tmp_path / "runs"), artefacts(tmp_path / "home")
    again = forks.run([*command(tmp_path / "runs"), "--json"], tmp_path / "home")
    assert again.code == 0
    assert [row["status"] for row in again.json] == ["ok"]
    assert artefacts(tmp_path / "runs") == runs
    assert artefacts(tmp_path / "home") == cached


@pytest.mark.parametrize("seconds", [0.0, 1000.0])
def test_how_often_checkpoints_are_written_changes_nothing(undisturbed, tmp_path, monkeypatch, seconds):
    monkeypatch.setenv("DDBENCH_HOME", str(tmp_path / "home"))
    run(tmp_path / "runs", spec("tesla", "pdd", 3, scheduler__stages=3, **SPAN), students=3, seconds=seconds)
    assert outcome(tmp_path / "runs") == undisturbed


def test_what_a_killed_run_half_wrote_does_not_stay(forks, undisturbed, tmp_path):
    """Temporary files of a killed writer are no artefacts; stages do not mistake them for their own."""
    for at in (3, 21, 33):
        forks.run(command(tmp_path / "runs"), tmp_path / "home", sync=at, signal=SIGKILL)
    assert forks.run(command(tmp_path / "runs"), tmp_path / "home").code == 0
    assert outcome(tmp_path / "runs") == undisturbed
    left = [p.name for p in (tmp_path / "runs").rglob("*") if p.is_file() and not p.name.startswith(".")]
    assert len([name for name in left if name.startswith("images-")]) == 3 * 5
    assert sorted(left) == sorted(
        [
            "spec.json",
            "run.toml",
            "sources.json",
            "dataset.json",
            "result.json",
            "metrics.jsonl",
            "distilled.safetensors",
            "preview.png",
        ]
        + [p.name for p in (tmp_path / "runs").glob("*/evaluations/*.json")]
        + ["result.json", "result.safetensors"] * 3
        + [picture for picture in left if picture.startswith("images-")]
    )


def test_a_second_process_on_the_same_run_exits_at_once_and_names_the_first(forks, undisturbed, tmp_path):
    """The first is stopped in the middle of a stage, so only its lock can keep the second out."""
    first = forks.start(
        command(tmp_path / "runs"), tmp_path / "home", event="stage 1 distilling", count=2, signal=SIGSTOP
    )
    while not list((tmp_path / "runs").glob("*/stage-1/checkpoint.safetensors")):
        assert first.poll() is None
    before = artefacts(tmp_path / "runs")
    second = forks.run(command(tmp_path / "runs"), tmp_path / "home")
    assert second.code == 1
    last = second.err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert f"process {first.pid}" in last
    assert artefacts(tmp_path / "runs").keys() >= before.keys()
    while _state(first.pid) != "T":
        pass
    first.signal(SIGCONT)
    assert first.wait().code == 0
    assert outcome(tmp_path / "runs") == undisturbed


def _state(pid: int) -> str:
    """The letter that Linux gives to what a process is doing; T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_killed_holder_leaves_no_lock_behind(forks, tmp_path):
    quick = command(tmp_path / "runs", scheduler__stages=1)
    killed = forks.run(quick, tmp_path / "home", event="stage 0 distilling", count=3, signal=SIGKILL)
    assert killed.code == -SIGKILL
    assert forks.run(quick, tmp_path / "home").code == 0


def test_two_runs_share_one_cache_at_the_same_time(forks, undisturbed, tmp_path):
    """Both want the same experts and lessons; neither trains them over the other's, and both end alike."""
    started = [forks.start(command(tmp_path / name), tmp_path / "home") for name in ("a", "b")]
    answers = [process.wait() for process in started]
    assert [answer.code for answer in answers] == [0, 0], [answer.err for answer in answers]
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b") == undisturbed
