"""Trackers: what they are sent, that none is needed, and that none can harm a run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from tiny import spec

from ddbench.base.progress import Event, listening, report
from ddbench.errors import DataError, InterruptedRun, UsageError
from ddbench.run import runs, trackers
from ddbench.run.record import ResultRecord
from ddbench.run.run import Run, Settings
from ddbench.run.trackers import attached, checked


@pytest.fixture
def calls() -> list[tuple[Any, ...]]:
    return []


def module(monkeypatch, name: str, **names: Any) -> Any:
    made = ModuleType(name)
    for key, value in names.items():
        setattr(made, key, value)
    monkeypatch.setitem(sys.modules, name, made)
    return made


@pytest.fixture
def tensorboard(monkeypatch, calls) -> None:
    """A fake of the package, and of torch's writer for it."""

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            calls.append(("folder", folder))

        def add_text(self, name: str, text: str) -> None:
            calls.append(("text", name, text))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            calls.append(("scalar", name, value, step))

        def add_image(self, name: str, image: Any, step: int, dataformats: str) -> None:
            calls.append(("image", name, image.shape, step, dataformats))

        def close(self) -> None:
            calls.append(("close",))

    module(monkeypatch, "tensorboard")
    module(monkeypatch, "torch.utils.tensorboard", SummaryWriter=SummaryWriter)


def work(out: Path, matcher: str = "tesla", **more: Any) -> Run:
    made = spec(matcher, **more)
    return Run(made, made.dataset.load(), Settings(out, 1))


def carry_out(run: Run, *names: str) -> tuple[list[str], ResultRecord]:
    """The warnings, and the result."""
    said: list[str] = []
    with attached(names, run, said.append):
        result = run.execute()
    return said, result


def test_tensorboard_gets_every_steps_numbers_the_selection_and_the_result(tmp_path, tensorboard, calls):
    run = work(tmp_path / "runs")
    said, result = carry_out(run, "tensorboard")
    assert said == []
    assert calls[0] == ("folder", str(tmp_path / "runs" / "tensorboard" / run.folder.name))
    assert "matcher.options.steps: 4" in calls[1][2]
    scalars = [(name, step) for name, _, step in (c[1:] for c in calls if c[0] == "scalar")]
    assert [step for name, step in scalars if name == "stage 0/loss"] == [1, 2, 3, 4]
    assert [step for name, step in scalars if name == "stage 0/validation accuracy"] == [2, 4]
    chosen = [c[2] for c in calls if c[0] == "scalar" and c[1] == "stage 0/validation accuracy"]
    assert max(chosen) == max(check.accuracy for check in result.stages[0].checks)
    assert ("result/accuracy_mean", 0) in scalars
    with Image.open(run.folder / "stage-0" / "images-0.png") as image:
        shape = image.size[::-1]
    assert [c[1:] for c in calls if c[0] == "image"] == [("stage 0/images", (*shape, 3), k, "HWC") for k in range(5)]
    assert calls[-1] == ("close",)
    assert ("text", "status", "ok") in calls


def test_a_selection_on_test_images_is_not_logged_as_validation(tmp_path, tensorboard, calls):
    carry_out(work(tmp_path / "runs", protocol__selects="test"), "tensorboard")
    names = {c[1] for c in calls if c[0] == "scalar"}
    assert "stage 0/test accuracy" in names
    assert "stage 0/validation accuracy" not in names


def test_a_folder_may_be_given_and_each_run_has_its_own_in_it(tmp_path, tensorboard, calls):
    run = work(tmp_path / "runs", "random")
    carry_out(run, f"tensorboard={tmp_path / 'board'}")
    assert calls[0] == ("folder", str(tmp_path / "board" / run.spec.folder))


def test_tracking_changes_no_byte_of_a_run(tmp_path, tensorboard):
    carry_out(work(tmp_path / "with"), "tensorboard")
    carry_out(work(tmp_path / "without"))
    for name in ("distilled.safetensors", "metrics.jsonl", "spec.json"):
        (a,), (b,) = (list((tmp_path / where).glob(f"*/{name}")) for where in ("with", "without"))
        assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("moment", ["start", "log", "finish"])
def test_a_tracker_that_raises_is_switched_off_with_one_warning_and_the_run_ends_well(tmp_path, monkeypatch, moment):
    made: list[str] = []

    class Broken:
        def __init__(self, place: str, folder: Path) -> None:
            pass

        def __getattr__(self, name: str) -> Any:
            def call(*_: Any) -> None:
                made.append(name)
                if name == moment:
                    raise ConnectionError("the server\nis gone")

            return call

    module(monkeypatch, "broken")
    monkeypatch.setitem(trackers.TRACKERS, "broken", (Broken, "broken"))
    said, result = carry_out(work(tmp_path / "runs"), "broken")
    assert result.status == "ok"
    assert said == [
        "warning: the tracker 'broken' is switched off, and the run goes on: ConnectionError: the server is gone"
    ]
    assert made.count(moment) == 1
    assert made[-1] == moment  # nothing after it


@pytest.mark.parametrize("kind", list(trackers.TRACKERS))
def test_a_tracker_writes_through_no_link_beside_the_runs(tmp_path, tensorboard, wandb, calls, monkeypatch, kind):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    places = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlruns/0/meta.yaml"}
    link = tmp_path / "runs" / places[kind]
    link.parent.mkdir(parents=True)
    (tmp_path / "precious").mkdir()
    link.symlink_to(tmp_path / "precious")
    with _mlflow(monkeypatch, calls):
        said, result = carry_out(work(tmp_path / "runs", "random"), kind)
    assert result.status == "ok"
    (warning,) = said
    assert warning.startswith(f"warning: the tracker {kind!r} is switched off, and the run goes on: DataError: ")
    assert f"{link} is a link" in warning
    assert calls == []
    assert list((tmp_path / "precious").iterdir()) == []


@pytest.mark.parametrize("error", [SystemExit(0), OSError(28, "No space left on device"), RuntimeError("no")], ids=repr)
def test_a_tracker_that_exits_or_cannot_even_be_made_fails_no_run(tmp_path, monkeypatch, capsys, error):
    def broken(place: str, folder: Path) -> Any:
        print("a word of its own")
        raise error

    module(monkeypatch, "broken")
    monkeypatch.setitem(trackers.TRACKERS, "broken", (broken, "broken"))
    said, result = carry_out(work(tmp_path / "runs", "random"), "broken")
    assert result.status == "ok"
    assert len(said) == 1
    assert "a word of its own" not in capsys.readouterr().out


def test_a_tracker_hears_how_a_run_ended(tmp_path, tensorboard, calls):
    run = work(tmp_path / "runs", matcher__lr_img=1e30)
    assert carry_out(run, "tensorboard")[1].status == "diverged"
    assert ("text", "status", "diverged") in calls

    def stop(event: Event) -> None:
        if event.what.endswith("distilling"):
            raise InterruptedRun("enough")

    with pytest.raises(InterruptedRun), listening(stop):
        carry_out(work(tmp_path / "others"), "tensorboard")
    assert calls[-2] == ("text", "status", "interrupted")
    assert [c for c in calls if c[0] == "scalar"][-1][1].startswith("stage 0/")  # heard before the work stopped


def test_trackers_leave_other_listeners_in_place(tmp_path, tensorboard):
    heard: list[str] = []
    with listening(lambda event: heard.append(event.what)):
        carry_out(work(tmp_path / "runs"), "tensorboard")
        report("afterwards", 1, 1)
    assert "stage 0 distilling" in heard
    assert heard[-1] == "afterwards"


def test_the_run_command_opens_trackers_for_its_own_run_alone(tmp_path, tensorboard, calls):
    rows, _ = runs.carry_out(
        [spec("dm", matcher__steps=2)],
        Settings(tmp_path / "runs", 1),
        with_random=True,
        with_ceiling=False,
        trackers=("tensorboard",),
        say=print,
        fail=pytest.fail,
    )
    assert {row.matcher for row in rows} == {"dm", "random"}
    assert len([c for c in calls if c[0] == "folder"]) == 1


def test_a_tracker_that_does_not_exist_or_is_not_installed_is_refused_before_anything_starts(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="no tracker called 'tensorbord'; did you mean 'tensorboard'"):
        checked(["tensorbord"])
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda _: None)
    for name in trackers.TRACKERS:
        monkeypatch.delitem(sys.modules, trackers.TRACKERS[name][1], raising=False)
        with pytest.raises(DataError, match=rf"pip install 'ddbench\[{name}\]'"):
            runs.carry_out(
                [spec("random")],
                Settings(tmp_path / "runs", 1),
                with_random=False,
                with_ceiling=False,
                trackers=(name,),
                say=print,
                fail=pytest.fail,
            )
    assert not (tmp_path / "runs").exists()


# ------------------------------------------------------------------------------ the other two, by fakes


@pytest.fixture
def wandb(monkeypatch, calls) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    run = SimpleNamespace(
        log=lambda numbers: calls.append(("log", numbers)),
        summary=SimpleNamespace(update=lambda numbers: calls.append(("summary", numbers))),
        finish=lambda exit_code: calls.append(("finish", exit_code)),
    )

    def init(**given: Any) -> Any:
        calls.append(("init", given))
        return run

    module(monkeypatch, "wandb", init=init, Settings=dict, Image=lambda path: ("image", Path(path).name))


def test_weights_and_biases_is_offline_unless_an_account_is_set_up(tmp_path, wandb, calls, monkeypatch):
    for changes, mode in (
        ({}, "offline"),
        ({"WANDB_API_KEY": "k"}, "online"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
    ):
        for name, value in changes.items():
            monkeypatch.setenv(name, value)
        calls.clear()
        said, _ = carry_out(work(tmp_path / mode, "dm", matcher__steps=2), "wandb=mine")
        assert said == []
        about = calls[0][1]
        assert (about["mode"], about["project"]) == (mode, "mine")
        assert about["config"]["matcher.name"] == "dm"
        assert calls[-1] == ("finish", 0)
        shown = [numbers for kind, numbers in calls if kind == "log" and "stage 0/images" in numbers]
        assert shown == [{"stage 0/images": ("image", f"images-{k}.png"), "stage 0/step": k} for k in range(3)]
        assert [n["stage 0/step"] for kind, n in calls if kind == "log" and "stage 0/loss" in n] == [1, 2]


@contextmanager
def _mlflow(monkeypatch, calls: list[Any]) -> Iterator[None]:
    def noting(name: str) -> Any:
        return lambda *given, **named: calls.append((name, given, named))

    names = ("set_tracking_uri", "set_experiment", "start_run", "log_params", "log_metrics", "set_tag", "end_run")
    names += ("log_artifact",)
    module(monkeypatch, "mlflow", **{name: noting(name) for name in names})
    yield


def test_mlflow_writes_files_beside_the_runs_unless_a_store_is_named(tmp_path, monkeypatch, calls):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with _mlflow(monkeypatch, calls):
        said, _ = carry_out(work(tmp_path / "runs", "dm", matcher__steps=2), "mlflow")
        assert said == []
        assert calls[0] == ("set_tracking_uri", ((tmp_path / "runs" / "mlruns").as_uri(),), {})
        assert [named["step"] for name, given, named in calls if name == "log_metrics" and "stage 0/loss" in given[0]]
        assert calls[-1] == ("end_run", (), {"status": "FINISHED"})
        kept = [given for name, given, _ in calls if name == "log_artifact"]
        assert [(Path(path).name, place) for path, place in kept] == [
            (f"images-{k}.png", "stage 0/images") for k in range(3)
        ]
        calls.clear()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
        carry_out(work(tmp_path / "others", "random"), "mlflow")
        assert calls[0][1] == ("http://server",)


def test_without_trackers_nothing_of_them_is_imported_and_no_file_is_written(tmp_path):
    before = set(sys.modules)
    run = work(tmp_path / "runs", "random")
    carry_out(run)
    assert not {"tensorboard", "wandb", "mlflow"} & (set(sys.modules) - before)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [run.folder.name]


def test_the_real_tensorboard_reads_what_was_written(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore

    run = work(tmp_path / "runs")
    said, _ = carry_out(run, "tensorboard")
    assert said == []
    written = EventAccumulator(str(tmp_path / "runs" / "tensorboard" / run.folder.name))
    written.Reload()
    assert [event.step for event in written.Scalars("stage 0/loss")] == [1, 2, 3, 4]
    assert [event.step for event in written.Images("stage 0/images")] == [0, 1, 2, 3, 4]
