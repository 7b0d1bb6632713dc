"""Matchers and schedulers that misbehave: each is a failed run with a sentence, and harms nobody beside it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import run, spec

from ddbench import Curriculum, Problem, Seed, SyntheticSet
from ddbench.base.cache import file_digest, read_json
from ddbench.base.progress import Event, listening
from ddbench.errors import InterruptedRun, PluginError
from ddbench.problem.synthetic import share
from ddbench.run.calls import phases_flaw, problem_flaw, set_flaw, step_flaw
from ddbench.run.run import Run, Settings
from ddbench.run.spec import RunSpec
from ddbench.testing import toy_task

Hook = Callable[[Problem, Any], Any]


def nothing(problem: Problem, state: Any) -> None: ...


class Hooks:
    """What a test has a matcher do in its calls: not options, so that specs can be written down."""

    init: Hook = staticmethod(nothing)
    step: Hook = staticmethod(nothing)
    result: Hook = staticmethod(nothing)


@dataclass(frozen=True)
class Evil:
    """Random images, and whatever a test has it do."""

    name = "random"  # a name that the registry knows, so that its record can be read back
    steps: int = 2
    labels: str = "hard"

    def init(self, problem: Problem) -> Any:
        drawn = problem.real.draw(problem.ipc)
        state = {"x": drawn.images.clone(), "y": drawn.labels}
        Hooks.init(problem, state)
        return state

    def step(self, problem: Problem, state: Any, k: int) -> Any:
        made = Hooks.step(problem, state)
        return (state, {"loss": 1.0}) if made is None else made

    def result(self, problem: Problem, state: Any) -> Any:
        made = Hooks.result(problem, state)
        return SyntheticSet(state["x"].clone(), state["y"].clone()) if made is None else made


def evil(monkeypatch: pytest.MonkeyPatch, **hooks: Hook) -> RunSpec:
    for name, hook in hooks.items():
        monkeypatch.setattr(Hooks, name, staticmethod(hook))
    made = spec("random")
    return replace(made, matcher=Evil(), network=made.network)


def failure(out: Path, made: RunSpec) -> str:
    """The sentence that a run ended with; nothing of it is stored as a set."""
    with pytest.raises(PluginError) as caught:
        run(out, made)
    folder = out / made.folder
    assert read_json(folder / "result.json")["status"] == "failed"
    assert read_json(folder / "result.json")["error"] == str(caught.value)
    assert not list(folder.rglob("distilled.safetensors"))
    assert not list(folder.rglob("result.safetensors"))
    return str(caught.value)


def test_a_matcher_that_behaves_is_carried_out(tmp_path, monkeypatch):
    assert read_json(run(tmp_path, evil(monkeypatch)) / "result.json")["status"] == "ok"


# ------------------------------------------------------------------------------------------ what it returns


def of_set(change: Callable[[torch.Tensor, torch.Tensor], Any]) -> Hook:
    return lambda problem, state: change(state["x"], state["y"])


SETS: dict[str, tuple[Hook, str]] = {
    "too many images": (of_set(lambda x, y: SyntheticSet(x.repeat(50, 1, 1, 1), y.repeat(50, 1))), "of shape (3, 1, 8"),
    "too few images": (of_set(lambda x, y: SyntheticSet(x[:2], y[:2])), "got (2, 1, 8, 8)"),
    "other pixels": (of_set(lambda x, y: SyntheticSet(x[..., :5], y)), "got (3, 1, 8, 5)"),
    "other classes": (of_set(lambda x, y: SyntheticSet(x, torch.zeros(3, 9))), "must make labels of shape (3, 3)"),
    "double images": (of_set(lambda x, y: SyntheticSet(x.double(), y)), "dense float32 images, got torch.float64"),
    "half images": (of_set(lambda x, y: SyntheticSet(x.half(), y)), "dense float32 images, got torch.float16"),
    "whole labels": (of_set(lambda x, y: SyntheticSet(x, y.long())), "dense float32 labels, got torch.int64"),
    "sparse labels": (of_set(lambda x, y: SyntheticSet(x, y.to_sparse())), "dense float32 labels"),
    "no numbers": (of_set(lambda x, y: SyntheticSet(x.to("meta"), y)), "dense float32 images"),
    "one class only": (of_set(lambda x, y: SyntheticSet(x, y[:1].repeat(3, 1))), "order its hard labels by class"),
    "another order": (of_set(lambda x, y: SyntheticSet(x, y.flip(0))), "order its hard labels by class"),
    "soft labels called hard": (of_set(lambda x, y: SyntheticSet(x, y * 0.9 + 0.1 / 3)), "another label_type than"),
    "labels that are not probabilities": (of_set(lambda x, y: SyntheticSet(x, 2 * y, label_type="soft")), "sum to 1"),
    "a negative probability": (of_set(lambda x, y: SyntheticSet(x, 3 * y - 2 / 3, label_type="soft")), "sum to 1"),
    "a tensor for an lr": (of_set(lambda x, y: SyntheticSet(x, y, lr=torch.tensor(0.1))), "a number or None as lr"),
    "a negative lr": (of_set(lambda x, y: SyntheticSet(x, y, lr=-0.01)), "a positive number or None as lr"),
    "an lr that is not a number": (
        of_set(lambda x, y: SyntheticSet(x, y, lr=float("nan"))),
        "a positive number or None as lr",
    ),
    "text for an lr": (of_set(lambda x, y: SyntheticSet(x, y, lr="0.1")), "a number or None as lr"),  # type: ignore[arg-type]
    "a label type that is not a word": (
        of_set(lambda x, y: SyntheticSet(x, y, label_type="../x")),
        "a word as label_type",
    ),
    "a teacher that is none": (of_set(lambda x, y: SyntheticSet(x, y, teacher=y)), "a ddbench.Teacher or None"),  # type: ignore[arg-type]
    "a tuple": (of_set(lambda x, y: (x, y)), "must return a ddbench.SyntheticSet, not tuple"),
}


@pytest.mark.parametrize("what", SETS)
def test_a_set_that_is_not_that_of_the_budget_fails_and_is_not_stored(tmp_path, monkeypatch, what):
    hook, said = SETS[what]
    assert said in failure(tmp_path, evil(monkeypatch, result=hook))


def test_sets_of_every_kind_of_labels_that_are_what_they_say_pass():
    x, y = torch.zeros(4, 1, 8, 8), torch.eye(2).repeat_interleave(2, 0)
    for made in (
        SyntheticSet(x, y, lr=1),
        SyntheticSet(x, y * 0.8 + 0.1, label_type="teacher"),
        SyntheticSet(x, y * 7 - 3, label_kind="logit", label_type="learned"),
        SyntheticSet(x, y - 0.5, label_kind="real", label_type="learned"),
        SyntheticSet(x, y * torch.nan, label_type="learned"),  # that it diverged is said elsewhere
    ):
        assert set_flaw(made, (4, 1, 8, 8), 2) is None


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (None, "must return (state, metrics)"),
        (({}, None), "must return (state, metrics)"),
        (({}, {"step": 99}), "a metric called 'step'"),
        (({}, {"stage": 7}), "a metric called 'stage'"),
        (({}, {1: 2.0}), "a metric called 1"),
        (({}, {"": 2.0}), "a metric called ''"),
        (({}, {"a\nb": 2.0}), "a metric called"),
        (({}, {"loss": "1"}), "which is not a number"),
        (({}, {"loss": None}), "which is not a number"),
        (({}, {"loss": 10**400}), "which is not a number"),
        (({}, {"loss": torch.ones(2)}), "which is not a number"),
        (({}, {"loss": torch.ones(1, dtype=torch.complex64)}), "which is not a number"),
    ],
)
def test_what_is_wrong_with_a_step_is_said(made, said):
    assert said in str(step_flaw(made))


def test_numbers_of_every_kind_are_metrics():
    assert step_flaw(({}, {"loss": 1, "lr": 0.5, "c": torch.ones(()), "d.e": torch.ones(1, 1), "f g": True})) is None


def test_a_metric_called_step_does_not_overwrite_the_log(tmp_path, monkeypatch):
    said = failure(tmp_path, evil(monkeypatch, step=lambda p, state: (state, {"loss": 1.0, "step": 99})))
    assert said == (
        "step() of matcher 'random' reports a metric called 'step'; a name is a word, and neither 'stage' nor 'step'"
    )


# ------------------------------------------------------------------------------------------ what it does besides


CHANGES: dict[str, tuple[Hook, str]] = {
    "targets": (lambda p, s: p.real.targets.zero_(), "targets of the training data"),
    "pixels": (lambda p, s: p.real.pixels.store.array.zero_(), "pixels of the training data"),
    "targets by NumPy": (lambda p, s: p.real.targets.numpy().fill(0), "targets of the training data"),
    "pixels by NumPy": (lambda p, s: p.real.pixels.store.array.numpy().fill(0), "pixels of the training data"),
    "statistics": (lambda p, s: p.real.preprocessing.mean.add_(5), "mean of the training data"),
    "its budget": (lambda p, s: object.__setattr__(p, "ipc", 17), "the field ipc of a Problem"),
    "the classes": (lambda p, s: object.__setattr__(p.real, "classes", 9), "the field classes of a RealData"),
}


@pytest.mark.parametrize("call", ["init", "step", "result"])
@pytest.mark.parametrize("what", CHANGES)
def test_a_matcher_that_changes_what_others_share_fails_and_keeps_nothing(tmp_path, monkeypatch, what, call):
    hook, said = CHANGES[what]

    def changes(problem: Problem, state: Any) -> None:
        hook(problem, state)

    made = evil(monkeypatch, **{call: changes})
    assert f"changed {said}" in failure(tmp_path, made)
    assert not list((tmp_path / made.folder).rglob("checkpoint.safetensors")) or "NumPy" not in what


@pytest.mark.parametrize("within", [True, False], ids=["within a step", "between steps"])
@pytest.mark.parametrize("changing", [True, False], ids=["changing", "sound"])
def test_an_interruption_keeps_no_checkpoint_of_a_matcher_that_changed_the_data(
    tmp_path, monkeypatch, changing, within
):
    """NumPy leaves torch's counters as they were: the content is what tells."""
    calls = []

    def step(problem: Problem, state: Any) -> None:
        calls.append(1)
        if changing and len(calls) == 1:
            CHANGES["pixels by NumPy"][0](problem, state)
        if within and len(calls) == 2:
            raise InterruptedRun("stop")

    def listen(event: Event) -> None:
        if not within and event.what == "stage 0 distilling":
            raise InterruptedRun("stop")

    made = evil(monkeypatch, step=step)
    work = Run(made, made.dataset.load(), Settings(tmp_path, 1, 0))
    with (
        pytest.raises(
            PluginError if changing else InterruptedRun, match="pixels of the training" if changing else "stop"
        ),
        listening(listen),
    ):
        work.execute()
    assert bool(list((tmp_path / made.folder).rglob("checkpoint.safetensors"))) is not changing


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), GeneratorExit()], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("call", ["init", "step", "result"])
def test_a_matcher_that_exits_is_a_failed_run(tmp_path, monkeypatch, call, error):
    def leaves(problem: Problem, state: Any) -> None:
        raise error

    assert f"{call}() of matcher 'random' raised {type(error).__name__}" in failure(
        tmp_path, evil(monkeypatch, **{call: leaves})
    )


def test_a_matcher_that_changes_the_process_changes_no_set_beside_it(tmp_path, monkeypatch, capsys):
    def changes(problem: Problem, state: Any) -> None:
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(2)
        torch.use_deterministic_algorithms(True)
        print("progress!")

    alone = run(tmp_path / "alone", spec("random"))
    capsys.readouterr()
    run(tmp_path / "evil", evil(monkeypatch, init=changes, step=changes, result=changes))
    said = capsys.readouterr()
    assert said.out == ""
    assert "progress!" in said.err
    beside = run(tmp_path / "beside", spec("random"))
    assert file_digest(beside / "distilled.safetensors") == file_digest(alone / "distilled.safetensors")
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda s: s.update(me=s), "saving the state of matcher 'random' raised RecursionError"),
        (lambda s: s.update(x=torch.eye(3).to_sparse()), "saving the state of matcher 'random' raised"),
        (lambda s: s.update(n=10**5000), "saving the state of matcher 'random' raised ValueError"),
    ],
    ids=["itself", "sparse", "digits"],
)
def test_a_state_that_cannot_be_saved_is_the_matchers_failure(tmp_path, monkeypatch, spoil, said):
    assert said in failure(tmp_path, evil(monkeypatch, step=lambda p, s: spoil(s)))


def test_needs_and_notes_of_another_type_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Evil, "needs", lambda self, problem: {"experts": 3}, raising=False)
    with pytest.raises(PluginError, match=r"needs\(\) of matcher 'random' must return a Needs, not dict"):
        run(tmp_path, evil(monkeypatch))


# ------------------------------------------------------------------------------------------ schedulers


def half(task: Problem, done: Curriculum) -> Problem | None:
    return None if len(done) == 2 else replace(task, ipc=share(task.ipc, 2, len(done)), frozen=done)


@dataclass(frozen=True)
class Twice:
    """Two stages, and whatever a test has it do."""

    name = "single"
    stages = 2

    def next(self, task: Problem, done: Curriculum) -> Any:
        return half(task, done)

    def phases(self, n: int) -> Any:
        return (tuple(range(n)),)


def test_a_scheduler_that_behaves_is_carried_out(tmp_path):
    folder = run(tmp_path, replace(spec("random", ipc=2), scheduler=Twice()))
    assert read_json(folder / "result.json")["images"] == 6


def altered(**changes: Any) -> Callable[..., Any]:
    return lambda self, task, done: replace(half(task, done) or task, **changes)


SCHEDULERS: dict[str, tuple[dict[str, Any], str]] = {
    "spends too much": ({"next": altered(ipc=2)}, "asks for 2 images per class in stage 0 of 2, where 0 of 2"),
    "spends nothing": ({"next": altered(ipc=0)}, "asks for 0 images per class"),
    "spends no whole number": ({"next": altered(ipc=1.0)}, "asks for 1.0 images per class"),
    "gives no problem": ({"next": lambda self, task, done: 3}, "must return a ddbench.Problem or None"),
    "stops early": ({"next": lambda self, task, done: None}, "must give 2 problems, and gave 0"),
    "forgets what is done": ({"next": altered(frozen=Curriculum())}, "must pass on what is done"),
    "takes another seed": ({"next": altered(seed=Seed(7))}, "changes seed of the task"),
    "takes other augmentation": ({"next": altered(augment="")}, "changes augment of the task"),
    "takes other data": (
        {"next": lambda self, task, done: replace(task, ipc=1, real=toy_task().real)},
        "gives other real data than some of the task's training images",
    ),
    "changes the data": ({"next": lambda self, task, done: task.real.targets.zero_()}, "changed targets of the train"),
    "exits": ({"next": lambda self, task, done: sys.exit(0)}, "next() of scheduler 'single' raised SystemExit"),
    "has no stage": ({"stages": 0}, "stages of scheduler 'single' must be a whole number of at least 1"),
    "has no phases": ({"phases": lambda self, n: ()}, "must be a tuple of tuples, none of them empty"),
    "names sets that are not there": ({"phases": lambda self, n: ((n,),)}, "must name sets 0..1"),
    "leaves the newest set out": ({"phases": lambda self, n: ((0,),)}, "must end with a phase that holds the newest"),
}


@pytest.mark.parametrize("what", SCHEDULERS)
def test_a_scheduler_that_misbehaves_is_a_sentence(tmp_path, monkeypatch, what):
    changes, said = SCHEDULERS[what]
    for name, value in changes.items():
        monkeypatch.setattr(Twice, name, value)
    with pytest.raises(PluginError) as caught:
        run(tmp_path, replace(spec("random", ipc=2), scheduler=Twice()))
    assert said in str(caught.value)
    assert not list(tmp_path.rglob("distilled.safetensors"))


def test_a_stage_may_see_fewer_training_images_and_lists_count_as_tuples():
    task = toy_task()
    fewer = replace(task, ipc=2, real=task.real.subset(torch.arange(0, len(task.real), 2)))
    assert problem_flaw(fewer, task, Curriculum(), 1) is None
    assert phases_flaw([[0], [0, 1]], 2) is None


def test_dry_runs_and_experts_look_at_schedulers_too(monkeypatch):
    from ddbench.run.forecast import forecast

    monkeypatch.setattr(Twice, "next", lambda self, task, done: 3)
    made = replace(spec("random", ipc=2), scheduler=Twice())
    with pytest.raises(PluginError, match=r"must return a ddbench\.Problem"):
        forecast(made, made.dataset.load())


def test_a_failed_run_keeps_the_traceback_for_the_author(tmp_path, monkeypatch):
    def fails(problem: Problem, state: Any) -> None:
        raise ValueError("out of ideas")

    made = evil(monkeypatch, step=fails)
    with pytest.raises(PluginError):
        Run(made, made.dataset.load(), Settings(tmp_path, 1)).execute()
    trace = read_json(tmp_path / made.folder / "result.json")["traceback"]
    assert any("in fails" in line for line in trace)
