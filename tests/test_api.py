"""What a notebook calls: the same runs as the command line's, and sets that PyTorch reads."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from ddbench_datasets import Images
from tiny import THREAD, options, run, spec
from tiny import ddbench as tiny
from torch.utils.data import DataLoader

import ddbench
from ddbench import DataError, DivergedError, UsageError
from ddbench.base.options import make
from ddbench.base.progress import Interrupts

QUICK = {"students": 2, "quiet": True, "device": "cpu", "ceiling": False}


def groups(**more: object) -> dict[str, dict[str, object]]:
    """The options of tests/helpers/tiny.py, by group."""
    found: dict[str, dict[str, object]] = {}
    for name, value in options("dm", "single", **more).items():
        group, _, option = name.partition(".")
        found.setdefault(f"{group}_options", {})[option] = value
    return found


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    for name, value in THREAD.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def made(tmp_path) -> ddbench.Result:
    return ddbench.distil("toy", matcher="dm", ipc=2, out=tmp_path / "runs", **QUICK, **groups(matcher__steps=2))


def test_a_call_makes_the_run_of_the_command_line(tmp_path, made):
    other = run(tmp_path / "others", spec("dm", ipc=2, matcher__steps=2))
    assert made.folder is not None
    assert made.folder.name == other.name
    assert (made.folder / "distilled.safetensors").read_bytes() == (other / "distilled.safetensors").read_bytes()
    students = json.loads(next((other / "evaluations").glob("*.json")).read_text())["students"]
    assert made.accuracy == pytest.approx(np.mean([student["accuracy"] for student in students]))
    assert made.grade is not None
    assert made.grade.students == len(students)
    assert made.random is not None
    assert made.random.network == made.grade.network
    assert made.ceiling is None


def test_the_same_call_returns_what_is_there_and_fresh_makes_it_anew(tmp_path, made):
    again = {"matcher": "dm", "ipc": 2, "out": str(tmp_path / "runs"), **QUICK, **groups(matcher__steps=2)}
    record = made.path.stat().st_mtime_ns
    assert ddbench.distil("toy", **again).path.stat().st_mtime_ns == record
    assert ddbench.distil("toy", fresh=True, **again).path.stat().st_mtime_ns > record


def test_images_are_pixels_and_the_dataset_is_one_of_pytorch(made):
    stored = made.distilled.curriculum.sets[0].images
    step = made.distilled.preprocessing
    pixels = stored * step.std.view(1, -1, 1, 1) + step.mean.view(1, -1, 1, 1)
    assert torch.allclose(made.images, pixels, atol=1e-6)
    assert made.labels.shape == (len(pixels), len(made.classes))
    own = made.dataset(lambda image: image.flip(2))
    images, labels = next(iter(DataLoader(own, batch_size=len(own))))
    assert torch.equal(images, made.images.flip(3))
    assert torch.equal(labels, made.labels.argmax(1))
    assert own.class_to_idx == {name: i for i, name in enumerate(made.classes)}
    assert torch.equal(made.dataset(space="network")[1][0], stored[1])
    with pytest.raises(UsageError, match="did you mean 'pixels'"):
        made.dataset(space="pixel")


def test_soft_labels_stay_probabilities(tmp_path):
    soft = groups(matcher__steps=2, matcher__labels="learned", matcher__experts=1) | {"experts_options": {"batch": 12}}
    soft["matcher_options"] |= {"syn_steps": 2, "max_start": 1, "span": 1}
    found = ddbench.distil("toy", matcher="tesla", out=tmp_path, random=False, **QUICK, **soft)
    label = found.dataset()[0][1]
    assert label.shape == (len(found.classes),)
    assert float(label.sum()) == pytest.approx(1)
    assert found.random is None


def test_a_set_is_graded_on_another_network_and_stays_what_it_was(made):
    before = made.path.read_bytes()
    grade = made.evaluate("mlp", students=1, quiet=True, network_options={"width": 8})
    assert grade.network.startswith("mlp")
    assert grade.students == 1
    assert made.path.read_bytes() == before
    with pytest.raises(UsageError, match="call evaluate for each"):
        made.evaluate("mlp,convnet")


def test_runs_files_and_sets_of_others_are_loaded(tmp_path, made):
    runs = tmp_path / "runs"
    by_name = ddbench.load(made.folder.name, out=runs)
    assert by_name.folder == made.folder
    assert by_name.accuracy == made.accuracy
    file = ddbench.load(made.path)
    assert file.folder is None
    assert file.accuracy is None
    assert torch.equal(file.images, made.images)
    np.savez(tmp_path / "theirs.npz", images=made.images.numpy(), labels=made.labels.argmax(1).numpy())
    with pytest.raises(UsageError, match="dataset"):
        ddbench.load(tmp_path / "theirs.npz")
    theirs = ddbench.load(
        tmp_path / "theirs.npz", dataset="toy", dataset_options=dict(groups().get("dataset_options", {}))
    )
    assert torch.allclose(theirs.images, made.images, atol=1e-5)
    rules = {"steps": 2, "lrs": 0.03}
    assert theirs.evaluate(students=1, out=runs, quiet=True, protocol_options=rules).students == 1


def test_a_set_is_exported_as_on_the_command_line(tmp_path, made, capsys):
    out = made.export(tmp_path / "pictures")
    assert "8 bits" in capsys.readouterr().err
    assert sorted(p.name for p in out.iterdir()) == sorted([*made.classes, "classes.json"])
    again = tiny("export", made.folder, "--format", "folder", "--to", tmp_path / "again")
    assert again.code == 0
    assert {p.relative_to(out): p.read_bytes() for p in out.rglob("*.*")} == {
        p.relative_to(tmp_path / "again"): p.read_bytes() for p in (tmp_path / "again").rglob("*.*")
    }
    made.export(tmp_path / "set.npz", "npz", quiet=True)
    assert not capsys.readouterr().err
    own = dict(groups()["dataset_options"])
    back = ddbench.load(tmp_path / "set.npz", dataset="toy", dataset_options=own)
    assert torch.equal(back.dataset(space="network").images, made.dataset(space="network").images)
    with pytest.raises(UsageError, match="none of pt, npz, folder"):
        made.export(tmp_path / "x", "gif")
    with pytest.raises(UsageError, match="exists already"):
        made.export(tmp_path / "set.npz", "npz")


def test_runs_are_compared_as_a_data_frame(tmp_path, made):
    found = ddbench.compare(str(tmp_path / "runs"))
    assert set(found["matcher"]) == {"dm", "random"}
    only = ddbench.compare([made.folder], where="matcher=dm", per_run=True)
    assert list(only["accuracy_mean"]) == [made.accuracy]


def test_a_notebook_shows_the_picture_and_the_numbers(made):
    shown = made._repr_html_()
    assert shown.startswith('<img src="data:image/png;base64,')
    assert str(made.grade) in shown
    assert str(made.random) in shown
    assert f"{100 * made.accuracy:.1f}" in repr(made)


def test_what_cannot_be_is_said_as_on_the_command_line(tmp_path):
    with pytest.raises(UsageError, match=r"did you mean 'matcher_options'"):
        ddbench.distil("toy", matchr_options={"steps": 1})
    with pytest.raises(UsageError, match="no option 'stepz'"):
        ddbench.distil("toy", matcher="dm", out=tmp_path, quiet=True, matcher_options={"stepz": 1})
    with pytest.raises(DataError, match="no run"):
        ddbench.load("nothing", out=tmp_path)
    wild = groups(matcher__steps=2, matcher__lr_img=1e30)
    with pytest.raises(DivergedError, match="last good state is kept"):
        ddbench.distil("toy", matcher="dm", out=tmp_path, **QUICK, **wild)


def test_lists_with_commas_and_none_reach_their_options():
    from ddbench.files.asked import flags_of

    given = {"without": ("a,b", 'c"d', " e"), "limit": None, "flip": False}
    flags = {name.removeprefix("dataset."): text for name, text in flags_of({"dataset_options": given})}
    made = make(Images, flags | {"root": "photos"}, "dataset")
    assert {name: getattr(made, name) for name in given} == given


def test_work_in_a_thread_of_a_notebook_leaves_signals_alone():
    entered = []

    def work() -> None:
        with Interrupts() as asked:
            entered.append(asked.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [False]


def test_the_version_is_that_of_the_package():
    assert ddbench.__version__ == __import__("importlib.metadata").metadata.version("ddbench")


def test_the_notebook_of_the_docs_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = json.loads((Path(__file__).parents[1] / "docs" / "notebook.ipynb").read_text())["cells"]
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], "a notebook in the repository shows no old numbers"
            exec(compile("".join(cell["source"]), "docs/notebook.ipynb", "exec"), names)
    assert (tmp_path / "runs").is_dir()
