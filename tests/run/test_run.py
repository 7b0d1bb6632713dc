"""Whole runs on toy data: every matcher under every scheduler, staged as the method says, graded honestly."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from ddbench_networks.convnet import ConvNet
from ddbench_tesla import Tesla
from PIL import Image
from tiny import ddbench, options, run, spec

from ddbench import Curriculum, Experts, Network, RealData, SyntheticSet, teach
from ddbench.base.cache import file_digest, read_json
from ddbench.base.progress import Event, listening
from ddbench.base.seeds import Seed
from ddbench.base.state import load_state
from ddbench.cli import options as cli_options
from ddbench.errors import DataError, DivergedError, InterruptedRun, PluginError, UsageError
from ddbench.files.asked import EvalOptions
from ddbench.files.target import evaluated
from ddbench.grade.distilled import Distilled
from ddbench.grade.evaluation import ceiling
from ddbench.grade.protocol import Protocol
from ddbench.grade.selection import judge
from ddbench.grade.student import measured_students
from ddbench.problem.problem import Problem
from ddbench.run.prepare import prepared
from ddbench.run.record import RunRecord, SpecRecord
from ddbench.run.references import references, whole_set
from ddbench.run.run import Run, Settings, build_task
from ddbench.run.spec import Request, resolve
from ddbench.train.fit import Student
from ddbench.trajectory.method import check_lr

MATCHERS, SCHEDULERS = ("random", "tesla", "mtt"), ("single", "pdd")
BOTH = [(m, s) for m in MATCHERS for s in SCHEDULERS]
IPC = 3  # stages of 2 and 1


@dataclass
class Bench:
    home: Path
    out: Path
    folders: dict[tuple[str, str], Path]
    problems: dict[tuple[str, str], list[Problem]]


class Watch:
    """A matcher that notes the problems it is given."""

    def __init__(self, matcher: Any, seen: list[Problem]) -> None:
        self._matcher, self._seen = matcher, seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._matcher, name)

    def init(self, problem: Problem) -> Any:
        self._seen.append(problem)
        return self._matcher.init(problem)


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Iterator[Bench]:
    """All six combinations at the same ipc, seed and protocol, in one cache."""
    base = tmp_path_factory.mktemp("bench")
    made = Bench(base / "home", base / "runs", {}, {})
    with patch.dict("os.environ", {"DDBENCH_HOME": str(made.home)}):
        for matcher, scheduler in BOTH:
            work = Run(spec(matcher, scheduler, IPC), spec(matcher).dataset.load(), Settings(made.out, 2))
            stages, seen = work._stage, made.problems.setdefault((matcher, scheduler), [])

            def watched(*given: Any, stages=stages, seen=seen) -> Any:
                stage = stages(*given)
                stage.matcher = Watch(stage.matcher, seen)
                return stage

            work._stage = watched  # type: ignore[method-assign]
            work.execute()
            made.folders[matcher, scheduler] = work.folder
    return made


@pytest.fixture
def at_home(bench, monkeypatch) -> Bench:
    """The runs, in a test that uses their cache."""
    monkeypatch.setenv("DDBENCH_HOME", str(bench.home))
    return bench


def stage_set(folder: Path, index: int) -> SyntheticSet:
    return load_state(folder / f"stage-{index}" / "result.safetensors", torch.device("cpu"))[0]


def losses(folder: Path, stage: int) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["stage"] == stage]


# --------------------------------------------------------------------------------- every matcher x scheduler


@pytest.mark.parametrize(("matcher", "scheduler"), BOTH)
def test_every_matcher_runs_under_every_scheduler(bench, matcher, scheduler):
    folder = bench.folders[matcher, scheduler]
    (row,) = RunRecord.read(folder).rows()
    assert row.status == "ok"
    assert (row.matcher, row.scheduler, row.ipc, row.n) == (matcher, scheduler, IPC, 2)
    assert row.selection == "validation"
    distilled = Distilled.load(folder / "distilled.safetensors")
    assert [len(s) for s in distilled.curriculum.sets] == ([3 * 3] if scheduler == "single" else [2 * 3, 1 * 3])
    assert distilled.curriculum.phases == (((0,),) if scheduler == "single" else ((0,), (0, 1)))


@pytest.mark.parametrize(("matcher", "scheduler"), BOTH)
def test_a_run_folder_holds_what_the_architecture_says(bench, matcher, scheduler):
    folder = bench.folders[matcher, scheduler]
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock")}
    stages = range(1 if scheduler == "single" else 2)
    evaluation = {p for p in found if p.startswith("evaluations/")}
    assert len(evaluation) == 1
    assert found - evaluation == {
        "spec.json",
        "run.toml",
        "sources.json",
        "dataset.json",
        "result.json",
        "metrics.jsonl",
        "distilled.safetensors",
        "preview.png",
        *(f"stage-{j}/{name}" for j in stages for name in ("result.json", "result.safetensors")),
        *(f"stage-{j}/images-{k}.png" for j in stages for k in range(5) if matcher != "random"),
    }


@pytest.mark.parametrize(("matcher", "scheduler"), BOTH)
def test_the_manifest_has_the_sha256_of_every_artefact(bench, matcher, scheduler):
    folder = bench.folders[matcher, scheduler]
    manifest = read_json(folder / "result.json")["sha256"]
    assert set(manifest) == {"spec.json", "dataset.json", "distilled.safetensors", "preview.png", "metrics.jsonl"}
    for name, digest in manifest.items():
        assert file_digest(folder / name) == digest
    for notes in folder.glob("stage-*/result.json"):
        assert read_json(notes)["sha256"] == file_digest(notes.with_name("result.safetensors"))


@pytest.mark.parametrize(("matcher", "scheduler"), BOTH)
def test_a_rewritten_result_is_refused_and_not_evaluated(at_home, tmp_path, matcher, scheduler):
    import shutil

    folder = at_home.folders[matcher, scheduler]
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    raw = bytearray((copy / "distilled.safetensors").read_bytes())
    raw[-3] ^= 16
    (copy / "distilled.safetensors").write_bytes(raw)
    with pytest.raises(DataError, match="damaged"):
        run(tmp_path, spec(matcher, scheduler, IPC))


def test_metrics_have_one_line_per_iteration_of_every_stage(bench):
    for matcher in ("tesla", "mtt"):
        for stage in (0, 1):
            assert [line["step"] for line in losses(bench.folders[matcher, "pdd"], stage)] == [0, 1, 2, 3]
    assert (bench.folders["random", "pdd"] / "metrics.jsonl").read_bytes() == b""
    first = losses(bench.folders["tesla", "single"], 0)[0]
    assert set(first) == {"stage", "step", "loss", "lr", "start"}
    assert first["loss"] > 0


@pytest.mark.parametrize("scheduler", ["single", "pdd"])
def test_metrics_that_are_read_several_steps_at_a_time_are_all_written(at_home, tmp_path, monkeypatch, scheduler):
    """As on a GPU, which to read a number would make wait."""
    monkeypatch.setattr("ddbench.run.stage.steps_unread", lambda device: 3)
    folder = run(tmp_path, spec("tesla", scheduler, IPC))
    usual = at_home.folders["tesla", scheduler]
    assert (folder / "metrics.jsonl").read_bytes() == (usual / "metrics.jsonl").read_bytes()
    monkeypatch.setattr("ddbench.run.stage.EXPLODED", -1e9)  # any second loss above 1
    again = run(tmp_path / "again", spec("tesla", scheduler, IPC, **{"matcher.lr_init": 1.0}))
    assert "at iteration 1 of stage 0" in read_json(again / "result.json")["error"]


def test_when_a_step_fails_the_cause_is_sought_in_the_metrics_that_are_not_read_yet(at_home, tmp_path, monkeypatch):
    """A loss that is not a number is the cause; that the student lr is none either ten steps later, its consequence."""
    monkeypatch.setattr("ddbench.run.stage.steps_unread", lambda device: 10)
    step = Tesla.step

    def failing(self, problem, state, k):
        state, numbers = step(self, problem, state, k)
        if k == 3:
            raise DivergedError("the consequence")
        return state, numbers | ({"loss": math.nan} if k == 2 else {})

    monkeypatch.setattr(Tesla, "step", failing)
    folder = run(tmp_path, spec("tesla", "single", IPC))
    assert "loss became nan at iteration 2 of stage 0" in read_json(folder / "result.json")["error"]
    assert [line["step"] for line in losses(folder, 0)] == [0, 1]


def test_the_spec_of_a_run_holds_everything_that_decides_it(bench):
    record = read_json(bench.folders["tesla", "pdd"] / "spec.json")
    assert set(record) >= {
        "dataset",
        "matcher",
        "scheduler",
        "network",
        "ipc",
        "seed",
        "experts",
        "protocol",
        "device",
        "dtype",
        "threads",
        "versions",
    }
    assert record["threads"] == 1
    assert record["matcher"] == {"name": "tesla", "options": record["matcher"]["options"]}
    assert record["matcher"]["options"]["syn_steps"] == 3


# --------------------------------------------------------------------------------- stages


@pytest.mark.parametrize("matcher", MATCHERS)
def test_frozen_images_are_bit_identical_at_the_end(bench, matcher):
    folder = bench.folders[matcher, "pdd"]
    final = Distilled.load(folder / "distilled.safetensors").curriculum.sets
    for index, made in enumerate(final):
        kept = stage_set(folder, index)
        assert torch.equal(made.images, kept.images)
        assert torch.equal(made.labels, kept.labels)
        assert (made.lr, made.label_kind, made.label_type) == (kept.lr, kept.label_kind, kept.label_type)
    assert final[0].digest != final[1].digest


def test_the_second_stage_sees_the_first_set_frozen(bench):
    for matcher in MATCHERS:
        first, second = bench.problems[matcher, "pdd"]
        assert (first.ipc, second.ipc) == (2, 1)
        assert len(first.frozen) == 0
        assert second.frozen.phases == ((0,),)
        assert second.frozen.sets[0].digest == stage_set(bench.folders[matcher, "pdd"], 0).digest


@pytest.mark.parametrize("matcher", MATCHERS)
def test_the_first_pdd_stage_equals_the_one_shot_problem_at_its_share_of_the_budget(at_home, tmp_path, matcher):
    """Same problem, same images; how good they are is judged on another number of steps."""
    last = {"protocol__checks": 1}  # the last state is the result, whichever the judges would prefer
    one = run(tmp_path, spec(matcher, "single", 1, **last))
    staged = run(tmp_path, spec(matcher, "pdd", 2, **last))
    a, b = stage_set(one, 0), stage_set(staged, 0)
    assert len(a) == 3
    assert torch.equal(a.images, b.images)
    assert torch.equal(a.labels, b.labels)
    assert losses(one, 0) == losses(staged, 0)
    assert bool(losses(one, 0)) is (matcher != "random")


def test_random_under_pdd_holds_exactly_the_images_of_random_at_once(bench):
    def images(scheduler: str) -> list[set[bytes]]:
        found: list[set[bytes]] = [set(), set(), set()]
        for s in Distilled.load(bench.folders["random", scheduler] / "distilled.safetensors").curriculum.sets:
            for image, label in zip(s.images, s.labels, strict=True):
                found[int(label.argmax())].add(image.numpy().tobytes())
        return found

    at_once = images("single")
    assert [len(group) for group in at_once] == [IPC] * 3
    assert images("pdd") == at_once


def test_random_images_are_real_images_of_their_class(bench):
    train = bench.problems["random", "single"][0].real
    made = stage_set(bench.folders["random", "single"], 0)
    real = train[torch.arange(len(train))]
    for image, label in zip(made.images, made.labels, strict=True):
        matches = (real.images == image).flatten(1).all(1).nonzero().flatten()
        assert len(matches) == 1
        assert torch.equal(real.labels[matches[0]], label)


def test_the_first_stage_starts_from_fresh_networks(bench):
    for problem in (bench.problems["tesla", "single"][0], bench.problems["tesla", "pdd"][0]):
        assert torch.equal(problem.starts[1], problem.network.init(problem.starts.seed / 1 / "init"))


def graded_vectors(plan: Curriculum, problem: Problem, teaching: Any, seed: Seed, count: int) -> list[torch.Tensor]:
    """The very students that the evaluator grades, caught where it measures them."""
    seen: list[torch.Tensor] = []

    def caught(network: Any, vector: torch.Tensor, data: Any) -> Any:
        seen.append(vector)
        return torch.zeros(1, 3), torch.zeros(1, dtype=torch.long)

    with patch("ddbench.grade.student.predict", caught):
        list(measured_students(plan, problem.network, teaching, problem.real, {}, seed, range(count)))
    return seen


@pytest.mark.parametrize("matcher", MATCHERS)
def test_second_stage_starts_where_the_first_stage_students_ended(at_home, matcher):
    """The one idea: what the evaluator would grade after stage 1 is what stage 2 starts from, bit for bit."""
    distilled = Distilled.load(at_home.folders[matcher, "pdd"] / "distilled.safetensors")
    second = at_home.problems[matcher, "pdd"][1]
    first_phase = Curriculum(distilled.curriculum.sets[:1], distilled.curriculum.phases[:1])
    students = graded_vectors(first_phase, second, distilled.teaching, second.starts.seed, 2)
    for index, student in enumerate(students):
        assert torch.equal(second.starts[index], student)
        assert not torch.equal(student, second.network.init(second.starts.seed / index / "init"))


def test_second_stage_experts_begin_at_the_first_stage_students(at_home):
    second = at_home.problems["tesla", "pdd"][1]
    for index in (0, 1):
        assert torch.equal(second.experts.snapshot(index, 0), second.starts[index])
    first = at_home.problems["tesla", "pdd"][0]
    assert second.experts.folder != first.experts.folder
    assert first.experts.folder == at_home.problems["tesla", "single"][0].experts.folder


def test_mtt_shares_the_experts_of_tesla(at_home):
    assert at_home.problems["mtt", "single"][0].experts.folder == at_home.problems["tesla", "single"][0].experts.folder


def test_the_final_student_continues_the_second_stage_starts(at_home):
    """Teaching all phases at once is teaching the first, and then the second."""
    distilled = Distilled.load(at_home.folders["tesla", "pdd"] / "distilled.safetensors")
    second = at_home.problems["tesla", "pdd"][1]
    (whole,) = graded_vectors(distilled.curriculum, second, distilled.teaching, second.starts.seed, 1)
    begun = Student(second.starts[0])
    seed = second.starts.seed / 0
    continued = teach(second.network, begun, distilled.curriculum, distilled.teaching, seed, first=1)
    assert torch.equal(whole, continued.vector)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_schedule_spends_the_same_number_of_optimiser_steps(at_home, scheduler):
    """N = 12 in all, divided evenly among the phases, each on all that it sees."""
    distilled = Distilled.load(at_home.folders["tesla", scheduler] / "distilled.safetensors")
    problem = at_home.problems["tesla", scheduler][0]
    sizes: list[int] = []
    count = lambda logits, labels: sizes.append(len(logits)) or -(labels * logits.log_softmax(1)).sum(1).mean()
    with patch("ddbench.train.fit.soft_cross_entropy", count):
        graded_vectors(distilled.curriculum, problem, distilled.teaching, Seed(0), 1)
    assert sizes == {"single": [9] * 12, "pdd": [6] * 6 + [9] * 6}[scheduler]
    assert RunRecord.read(at_home.folders["tesla", scheduler]).rows()[0].steps == 12


def test_stages_divide_what_does_not_divide_as_evenly_as_possible(tmp_path):
    folder = run(tmp_path, spec("random", "pdd", 5, scheduler__stages=3), students=1)
    sets = Distilled.load(folder / "distilled.safetensors").curriculum.sets
    assert [len(s) // 3 for s in sets] == [2, 2, 1]


def test_the_published_protocol_counts_epochs_and_is_labelled_so(tmp_path):
    made = replace(spec("random", "pdd", 2), protocol=replace(_paper(), epochs=2, start_epochs=3))
    folder = run(tmp_path, made, students=1)
    (row,) = RunRecord.read(folder).rows()
    assert row.protocol == "pdd-paper"
    assert row.selection == "test"  # as published, and said so
    assert row.steps == 4  # two phases of two epochs of one batch
    task = build_task(made, made.dataset.load())
    assert task.starts.teaching.lesson(0).epochs == 3
    teaching = Distilled.load(folder / "distilled.safetensors").teaching
    assert (teaching.lesson(0).epochs, teaching.lesson(1).epochs, teaching.steps) == (2, 2, None)
    assert teaching.recipe.carry


def _paper():
    from ddbench.grade.protocol import named

    return named("pdd-paper")


# --------------------------------------------------------------------------------- honest evaluation


class Sealed(RealData):
    """Data that may not be looked at until the seal is broken; its digest is known beforehand."""

    opened = False
    reads = 0

    def __getitem__(self, index):
        type(self).reads += 1
        assert type(self).opened, "the test set was read before the evaluation"
        return super().__getitem__(index)

    def draw(self, per_class):
        raise AssertionError("nothing draws from the test set")


@pytest.mark.parametrize(("matcher", "scheduler"), [("tesla", "pdd"), ("random", "single")])
def test_the_test_set_is_touched_once_at_the_end(tmp_path, monkeypatch, matcher, scheduler):
    made = spec(matcher, scheduler, 2)
    dataset = made.dataset.load()
    digest = dataset.digest

    class Once(Sealed):
        pass

    test = Once(**{f.name: getattr(dataset.test, f.name) for f in fields(dataset.test)})
    sealed = replace(dataset, test=test)
    assert sealed.digest == digest
    genuine = Run._evaluate

    def evaluating(self) -> None:
        assert (self.folder / "distilled.safetensors").exists()
        Once.opened = True
        genuine(self)

    monkeypatch.setattr(Run, "_evaluate", evaluating)
    work = Run(made, sealed, Settings(tmp_path, students=3))
    work.execute()
    assert Once.reads == 3  # once per student: 60 images fit in one batch
    work.execute()
    assert Once.reads == 3


def reachable(value: Any, depth: int = 5, path: str = "problem") -> Iterator[tuple[str, Any]]:
    """Everything that can be reached through public attributes and containers."""
    yield path, value
    if depth == 0 or isinstance(value, (torch.Tensor, str, int, float, torch.nn.Module)):
        return
    if isinstance(value, dict):
        parts = [(f"{path}[{k!r}]", v) for k, v in value.items()]
    elif isinstance(value, (tuple, list)):
        parts = [(f"{path}[{i}]", v) for i, v in enumerate(value)]
    elif is_dataclass(value) or type(value).__module__.startswith("ddbench"):
        names = {f.name for f in fields(value)} if is_dataclass(value) else set()
        names |= {n for n in dir(value) if not n.startswith("_")}
        parts = [(f"{path}.{n}", getattr(value, n)) for n in sorted(names) if hasattr(value, n)]
    else:
        return
    for name, part in parts:
        if not callable(part) or is_dataclass(part):
            yield from reachable(part, depth - 1, name)


@pytest.mark.parametrize(("matcher", "scheduler"), BOTH)
def test_a_problem_has_neither_test_nor_validation_data(at_home, matcher, scheduler):
    dataset = spec(matcher).dataset.load()
    hidden = {id(dataset.test): "test", id(dataset.validation): "validation"}
    # the train part shares a store with validation pixels, but nothing tells which they are or what they show
    parts = (dataset.test, dataset.validation)
    secrets = [secret for part in parts for secret in (part.pixels[:], part.targets, part.pixels.rows)]
    secrets = [secret for secret in secrets if secret is not None]
    for problem in at_home.problems[matcher, scheduler]:
        seen = 0
        for path, value in reachable(problem):
            seen += 1
            assert id(value) not in hidden, path
            assert not any(word in path for word in ("test", "validation")), path
            if isinstance(value, torch.Tensor):
                assert not any(value.shape == s.shape and torch.equal(value.to(s.dtype), s) for s in secrets), path
            if isinstance(value, RealData):
                assert value.digest == dataset.train.digest, path
        assert seen > 20
    assert not {f.name for f in fields(Problem)} & {"test", "validation", "dataset"}


def test_selection_keeps_the_best_check_on_validation(bench):
    for key, folder in bench.folders.items():
        for notes in sorted(folder.glob("stage-*/result.json")):
            record = read_json(notes)
            checks, selected = record["checks"], record["selected"]
            assert len(checks) == (1 if key[0] == "random" else 2)
            assert selected in checks
            assert selected["accuracy"] == max(c["accuracy"] for c in checks)
            for check in checks:
                assert check["accuracy"] == max(check["tried"].values())
                assert repr(check["lr"]) in check["tried"]
                assert "0.03" in check["tried"]  # the protocol's grid, for every method alike
                assert len(check["tried"]) == (1 if key[0] == "random" else 2)  # and the method's own


def test_the_stored_lr_is_the_one_that_selection_chose(bench):
    for folder in bench.folders.values():
        for index, made in enumerate(Distilled.load(folder / "distilled.safetensors").curriculum.sets):
            assert made.lr == read_json(folder / f"stage-{index}" / "result.json")["selected"]["lr"]


def test_the_judge_prefers_the_lr_that_does_best_on_the_data_it_is_given(at_home):
    problem = at_home.problems["random", "single"][0]
    dataset = spec("random").dataset.load()
    candidate = replace(stage_set(at_home.folders["random", "single"], 0), lr=None)
    teaching = spec("random").protocol.evaluation(9, 1).on(dataset.augment)
    students = replace(problem.starts, teaching=replace(teaching, steps=60))
    verdict = judge(
        candidate, Curriculum(), ((0,),), students, dataset.validation, Protocol(lrs=(1e-7, 0.03), judges=1)
    )
    assert verdict.lr == 0.03
    assert verdict.tried["0.03"] > verdict.tried["1e-07"]
    rules = Protocol(lrs=(1e-7,), judges=1)
    with_own = judge(replace(candidate, lr=0.05), Curriculum(), ((0,),), students, dataset.validation, rules)
    assert set(with_own.tried) == {"1e-07", "0.05"}


def test_each_student_is_a_fresh_initialisation_of_its_own(at_home):
    distilled = Distilled.load(at_home.folders["random", "single"] / "distilled.safetensors")
    problem = at_home.problems["random", "single"][0]
    vectors = graded_vectors(distilled.curriculum, problem, distilled.teaching, Seed(0) / "evaluation", 3)
    assert len({v.numpy().tobytes() for v in vectors}) == 3
    starts = {problem.starts[i].numpy().tobytes() for i in range(5)}
    inits = {problem.network.init(Seed(0) / "evaluation" / i / "init").numpy().tobytes() for i in range(3)}
    assert not starts & inits


def test_evaluations_are_the_same_when_they_are_done_again(at_home, tmp_path):
    folder = run(tmp_path, spec("random", "single", IPC))
    again, first = RunRecord.read(folder).rows()[0], RunRecord.read(at_home.folders["random", "single"]).rows()[0]
    assert (again.accuracy_mean, again.accuracy_std) == (first.accuracy_mean, first.accuracy_std)


def test_another_seed_is_another_set_on_the_same_experts(at_home, tmp_path):
    before = sorted(p.name for p in (at_home.home / "experts").iterdir())
    folder = run(tmp_path, spec("tesla", "single", IPC, seed=1))
    made, other = stage_set(folder, 0), stage_set(at_home.folders["tesla", "single"], 0)
    assert not torch.equal(made.images, other.images)
    assert sorted(p.name for p in (at_home.home / "experts").iterdir()) == before


# --------------------------------------------------------------------------------- labels, references, ceiling


@pytest.mark.parametrize("labels", ["teacher", "learned", "hard"])
def test_every_label_type_runs_and_the_row_says_which(at_home, tmp_path, labels):
    folder = run(tmp_path, spec("tesla", "pdd", 2, matcher__labels=labels), students=1)
    (row,) = RunRecord.read(folder).rows()
    assert row.status == "ok"
    assert row.label_type == labels
    final = Distilled.load(folder / "distilled.safetensors").curriculum.sets
    for made in final:
        assert made.label_kind == ("logit" if labels == "learned" else "probability")
        taught = made.examples().labels
        assert torch.allclose(taught.sum(1), torch.ones(3))
        assert (torch.equal(taught, taught.round())) is (labels == "hard")
    assert row.label_bytes == (6 if labels == "hard" else 6 * 3 * 4)


def test_soft_methods_are_shown_beside_random_with_hard_and_with_teacher_labels(at_home, tmp_path):
    made, dataset = spec("tesla", "pdd", 2), spec("tesla").dataset.load()
    beside = references(made, dataset, Settings(tmp_path, 1), with_random=True, with_ceiling=False)
    assert [(r.matcher, r.scheduler, r.label_type, r.ipc) for r in beside] == [
        ("random", "single", "hard", 2),
        ("random", "single", "teacher", 2),
    ]
    assert {r.protocol for r in beside} == {made.protocol.name}


def test_hard_methods_are_shown_beside_random_with_hard_labels_only(at_home, tmp_path):
    made, dataset = spec("mtt", "single", 2, matcher__labels="hard"), spec("mtt").dataset.load()
    beside = references(made, dataset, Settings(tmp_path, 1), with_random=True, with_ceiling=False)
    assert [(r.matcher, r.label_type) for r in beside] == [("random", "hard")]


def test_where_batches_are_labelled_online_a_run_stands_beside_random_images_with_a_teacher(tmp_path):
    flags = [w for name, value in options("rded").items() if "protocol" not in name for w in ("-o", f"{name}={value}")]
    answer = ddbench(
        "run",
        "--dataset",
        "toy",
        "--matcher",
        "rded",
        "--protocol",
        "rded-paper",
        "-o",
        "protocol.epochs=2",
        "-o",
        "matcher.teacher_epochs=1",
        "-o",
        "experts.epochs=20",
        *flags,
        "--out",
        tmp_path,
        "--students",
        1,
        "--no-ceiling",
        "--format",
        "json",
    )
    assert answer.code == 0, answer.err
    assert [(row["matcher"], row["label_type"]) for row in answer.json] == [("random", "teacher"), ("rded", "teacher")]
    parameters = Network(ConvNet(width=8, depth=2), (1, 8, 8), 3).parameters
    assert answer.json[0]["label_bytes"] == 4 * parameters  # the teacher, not the labels
    under_default = ddbench(
        "eval",
        next(tmp_path.glob("toy-rded*")),
        "--protocol",
        "default",
        "--students",
        1,
        "-o",
        "protocol.steps=4",
        "--format",
        "json",
    ).json
    assert sorted(row["label_bytes"] for row in under_default)[0] == 4 * 3 * 3


def test_the_ceiling_is_trained_once_and_then_read(at_home, tmp_path, monkeypatch):
    made, dataset = spec("random", "single", 1, protocol__ceiling_epochs=2), spec("random").dataset.load()

    def top() -> dict[str, Any]:
        return ceiling(dataset, made.network, made.protocol, 2, "cpu", 1)

    first = top()
    assert len(first["accuracies"]) == 2
    assert first["images"] == len(dataset.train)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the ceiling was trained again")

    monkeypatch.setattr("ddbench.grade.evaluation.fit", never)
    assert top() == first
    with pytest.raises(AssertionError, match="trained again"):
        ceiling(dataset, made.network, replace(made.protocol, ceiling_epochs=20), 2, "cpu", 1)


def test_the_ceiling_takes_no_fewer_steps_than_students_of_a_synthetic_set(at_home):
    made, dataset = spec("random", "single", 1, protocol__steps=7), spec("random").dataset.load()
    top = ceiling(dataset, made.network, made.protocol, 1, "cpu", 1)
    assert top["epochs"] == 7  # one batch holds the whole training set


def test_nor_does_it_where_the_steps_follow_from_the_budget(at_home):
    """Thirty passes over 450 images were sixty steps, and random images were far above the whole set."""
    made = spec("random", "single", 1, protocol__steps="none", protocol__most_steps=20)
    dataset = made.dataset.load()
    assert whole_set(made, dataset, 1)["epochs"] == 20 == made.protocol.budget(3)
    assert whole_set(replace(made, protocol=replace(made.protocol, ceiling_epochs=25)), dataset, 1)["epochs"] == 25


def test_the_ceiling_row_stands_above_the_run(at_home, tmp_path):
    made, dataset = spec("random", "single", 1), spec("random").dataset.load()
    (row,) = references(made, dataset, Settings(tmp_path, 5), with_random=False, with_ceiling=True)
    assert row.matcher == f"all {len(dataset.train)} training images"
    assert row.image_bytes == len(dataset.train) * 64
    assert row.n == 3


def test_the_learned_lr_stays_positive_however_it_is_pushed(at_home, tmp_path):
    folder = run(tmp_path, spec("tesla", "single", 1, matcher__lr_lr=1e3, matcher__steps=8), students=1)
    rates = [line["lr"] for line in losses(folder, 0)]
    assert len(rates) == 8
    assert all(rate > 0 for rate in rates)
    assert rates[-1] != rates[0]


# --------------------------------------------------------------------------------- the same problem, twice


def test_tesla_with_the_exact_gradient_makes_the_images_of_mtt(at_home, tmp_path):
    """One objective, two ways to differentiate it: apart only by rounding, over several steps of descent."""
    common = {"matcher__labels": "hard", "protocol__checks": 1, "matcher__lr_lr": 1e-4}
    a = stage_set(run(tmp_path, spec("tesla", "single", 2, matcher__curvature="exact", **common), students=1), 0)
    b = stage_set(run(tmp_path, spec("mtt", "single", 2, **common), students=1), 0)
    start = at_home.problems["mtt", "single"][0]
    begun = replace(start, ipc=2).sample().images
    moved = (b.images - begun).norm()
    assert moved > 1e-3
    assert (a.images - b.images).norm() / moved < 1e-5
    zero = stage_set(run(tmp_path, spec("tesla", "single", 2, **common), students=1), 0)
    assert (zero.images - b.images).norm() / moved > 1e-3


def test_a_run_in_another_folder_with_another_cache_has_the_same_bits(bench, tmp_path):
    folder = run(tmp_path, spec("tesla", "pdd", IPC))  # DDBENCH_HOME is this test's own
    for name in ("distilled.safetensors", "metrics.jsonl", "preview.png", "spec.json"):
        assert file_digest(folder / name) == file_digest(bench.folders["tesla", "pdd"] / name), name


def test_cost_is_recorded_for_each_stage(bench):
    result = read_json(bench.folders["tesla", "pdd"] / "result.json")
    assert len(result["stages"]) == 2
    for name in ("distil_seconds", "selection_seconds", "expert_seconds"):
        key = name.replace("distil_", "")
        assert result[name] == pytest.approx(sum(stage[key] for stage in result["stages"]))
        assert all(stage[key] > 0 for stage in result["stages"])
    assert result["peak_bytes"] == max(stage["peak_bytes"] for stage in result["stages"]) > 0
    assert result["image_bytes"] == 9 * 64 * 4
    assert result["machine"]["device"]


# --------------------------------------------------------------------------------- preview


@pytest.mark.parametrize(("matcher", "scheduler"), BOTH)
def test_the_preview_is_a_picture_of_all_images(bench, matcher, scheduler):
    picture = Image.open(io.BytesIO((bench.folders[matcher, scheduler] / "preview.png").read_bytes()))
    assert picture.format == "PNG"
    scale, cell = 6, 8 + 2  # 8 pixels, enlarged to 48, with a gap of 2
    gap = 0 if scheduler == "single" else 4
    assert picture.size == (3 * cell * scale, (IPC * cell + gap) * scale)


def test_the_preview_shows_the_images_as_they_were_before_normalisation(bench):
    made = stage_set(bench.folders["random", "single"], 0)
    problem = bench.problems["random", "single"][0]
    picture = Image.open(io.BytesIO((bench.folders["random", "single"] / "preview.png").read_bytes()))
    pixels = torch.from_numpy(np.array(picture))[::6, ::6].float()
    original = problem.real.preprocessing.invert(made.images)[:, 0] * 255
    for column in range(3):  # columns are classes, rows their images
        for row in range(IPC):
            shown = pixels[10 * row : 10 * row + 8, 10 * column : 10 * column + 8]
            assert (shown - original[IPC * column + row]).abs().max() <= 0.51
    assert bool((pixels[8:10] == 255).all())


# --------------------------------------------------------------------------------- refusals and failures


def test_a_budget_that_the_dataset_cannot_give_is_refused_with_the_numbers():
    made = spec("random", "single", 19)
    with pytest.raises(UsageError, match=r"--ipc 19 .*'toy'.* 18 training images"):
        build_task(made, made.dataset.load())


def test_a_budget_smaller_than_the_stages_is_refused_with_the_way_out():
    made = spec("random", "pdd", 1)
    with pytest.raises(UsageError, match=r"1 images per class among 2 stages; ask for --ipc 2 or more"):
        made.scheduler.next(build_task(made, made.dataset.load()), Curriculum())


def test_a_folder_is_refused_to_another_spec(at_home, tmp_path):
    made = spec("random", "single", 1)
    folder = tmp_path / made.folder
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(json.dumps(made.record() | {"ipc": 7}))
    with pytest.raises(UsageError, match="ipc: 7 -> 1"):
        run(tmp_path, made)


def test_a_run_does_not_go_on_with_other_data_under_the_same_options(at_home, tmp_path):
    """As when the images in a folder were changed: the spec is the same, the task is not."""
    made = spec("random", "pdd", 2)
    changed = spec("random", dataset__seed=1).dataset.load()
    folder = run(tmp_path / "finished", made)
    with pytest.raises((DataError, UsageError), match="dat"):
        run(tmp_path / "finished", made, dataset=changed)
    begun = tmp_path / "begun" / made.folder
    with pytest.raises(InterruptedRun), listening(_stop_after_a_stage):
        run(tmp_path / "begun", made)
    assert (begun / "stage-0" / "result.json").exists()
    with pytest.raises((DataError, UsageError), match="dat"):
        run(tmp_path / "begun", made, dataset=changed)
    assert read_json(folder / "result.json")["status"] == "ok"


def _stop_after_a_stage(event: Event) -> None:
    if event.what == "stages":
        raise InterruptedRun("enough")


def test_a_damaged_stage_is_named_and_not_built_upon(at_home, tmp_path):
    folder = run(tmp_path, spec("random", "pdd", 2))
    (folder / "result.json").unlink()
    path = folder / "stage-0" / "result.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match="stage-0"):
        run(tmp_path, spec("random", "pdd", 2))


def test_a_matcher_that_fails_leaves_a_failed_run_that_can_be_tried_again(at_home, tmp_path, monkeypatch):
    made = spec("tesla", "pdd", 2)
    genuine = type(made.matcher).step

    def failing(self, problem, state, k):
        if len(problem.frozen) and k == 2:
            raise RuntimeError("out of ideas")
        return genuine(self, problem, state, k)

    monkeypatch.setattr(type(made.matcher), "step", failing)
    with pytest.raises(PluginError, match=r"step\(\) of matcher 'tesla' raised RuntimeError: out of ideas"):
        run(tmp_path, made)
    (row,) = RunRecord.read(tmp_path / made.folder).rows()
    assert row.status == "failed"
    assert row.error.startswith("step() of matcher 'tesla' raised RuntimeError: out of ideas (at test_run.py:")
    assert "raise RuntimeError" in "".join(read_json(tmp_path / made.folder / "result.json")["traceback"])
    monkeypatch.undo()
    monkeypatch.setenv("DDBENCH_HOME", str(at_home.home))
    (row,) = RunRecord.read(run(tmp_path, made)).rows()
    assert row.status == "ok"


def test_a_run_that_diverges_in_a_later_stage_keeps_the_earlier_ones(at_home, tmp_path, monkeypatch):
    made = spec("tesla", "pdd", 2)
    genuine = type(made.matcher).step

    def exploding(self, problem, state, k):
        state, numbers = genuine(self, problem, state, k)
        return state, numbers | ({"loss": float("nan")} if len(problem.frozen) and k == 3 else {})

    monkeypatch.setattr(type(made.matcher), "step", exploding)
    folder = run(tmp_path, made)
    (row,) = RunRecord.read(folder).rows()
    assert row.status == "diverged"
    assert "iteration 3 of stage 1" in row.error
    assert stage_set(folder, 0).finite()
    state = load_state(folder / "stage-1" / "checkpoint.safetensors", torch.device("cpu"))[0]
    assert bool(state["state"].images.isfinite().all())


def test_a_divergence_that_a_matcher_reports_is_recorded_with_iteration_and_advice(at_home, tmp_path, monkeypatch):
    """As of a student lr that died: a plugin cannot know where in the run it is called."""
    made = spec("tesla", "single", 1)

    def dying(self, problem, state, k):
        if k == 2:
            check_lr(1e-9, 0.01)
        state.images += 1
        return state, {"loss": 0.5}

    monkeypatch.setattr(type(made.matcher), "step", dying)
    folder = run(tmp_path, made)
    (row,) = RunRecord.read(folder).rows()
    assert row.status == "diverged"
    assert "the learned student lr went from 0.01 to 1e-09; try" in row.error
    assert "iteration 2 of stage 0" in row.error


def test_a_diverged_run_keeps_the_best_set_so_far_as_a_file_that_can_be_evaluated(at_home, tmp_path, monkeypatch):
    made = spec("tesla", "single", 1, protocol__checks=4)
    genuine = type(made.matcher).step

    def exploding(self, problem, state, k):
        return genuine(self, problem, state, k)[0], {"loss": float("inf") if k == 2 else 1.0}

    monkeypatch.setattr(type(made.matcher), "step", exploding)
    folder = run(tmp_path, made)
    assert RunRecord.read(folder).rows()[0].status == "diverged"
    (kept,) = Distilled.load(folder / "last_good.safetensors").curriculum.sets
    assert kept.finite()
    row = evaluated(str(folder / "last_good.safetensors"), folder, EvalOptions(students=1))[0]
    assert row.n == 1


@pytest.mark.parametrize(("values", "expected"), [([1.0, 5e2], "ok"), ([1.0, 2e3], "diverged"), ([1e-9, 0.9], "ok")])
def test_a_loss_has_exploded_at_a_thousand_times_the_first(at_home, tmp_path, monkeypatch, values, expected):
    made = spec("tesla", "single", 1, matcher__steps=2)
    genuine = type(made.matcher).step

    def scripted(self, problem, state, k):
        return genuine(self, problem, state, k)[0], {"loss": values[k]}

    monkeypatch.setattr(type(made.matcher), "step", scripted)
    (row,) = RunRecord.read(run(tmp_path, made, students=1)).rows()
    assert row.status == expected
    if expected == "diverged":
        assert "exploded from 1 to 2000 at iteration 1 of stage 0" in row.error


def test_experts_are_those_that_the_matcher_names(at_home):
    problem = at_home.problems["tesla", "single"][0]
    assert isinstance(problem.experts, Experts)
    made = spec("tesla", "single", IPC)
    needs = made.matcher.needs(problem)
    assert (needs.experts, needs.snapshots) == (2, (0, 1, 2))
    assert problem.experts.missing(2, needs.snapshots) == []
    again = prepared(build_task(made, made.dataset.load()), needs)
    assert again.experts.folder == problem.experts.folder


def test_experts_are_shared_between_seeds_unless_they_vary():
    def pool(seed: int, **more):
        made = replace(spec("tesla", **more), seed=seed)
        task = build_task(made, made.dataset.load())
        return task.starts[0], task.experts.folder, made

    shared, varied = [pool(seed) for seed in (0, 1)], [pool(seed, experts__vary=True) for seed in (0, 1)]
    assert torch.equal(shared[0][0], shared[1][0])
    assert shared[0][1] == shared[1][1] == varied[0][1]  # seed 0 has the pool that others share
    assert not torch.equal(varied[0][0], varied[1][0])
    assert varied[1][1] != varied[0][1]
    settings = {SpecRecord.model_validate(made.record()).setting for _, _, made in varied}
    assert len(settings) == 1  # they are repeats of one setting
    assert settings.isdisjoint({SpecRecord.model_validate(made.record()).setting for _, _, made in shared})
    given = resolve(Request("toy", "tesla", device="cpu", flags=cli_options.varied((), "experts"))).spec
    assert given.experts.vary
