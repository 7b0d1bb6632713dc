"""Files beside images: labels and student lrs under the names that published code gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import pair
from refusals import refused
from sets import some_set

from ddbench import Curriculum, Preprocessing, Recipe, Teaching
from ddbench.errors import DataError, UsageError
from ddbench.files.beside import named, rate, unused
from ddbench.files.exporter import export
from ddbench.files.formats import read
from ddbench.grade.distilled import Distilled

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(4)


def saved(folder: Path, **files: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        torch.save(value, folder / f"{name}.pt")
    return folder


@pytest.mark.parametrize(
    "name",
    [
        *("syn_lr_best", "lr_best", "best_lr", "lr", "syn_lr", "best_syn_lr", "student_lr_best"),
        *("learning_rate", "learning_rate_best", "syn_learning_rate", "learningrate", "best-learning-rates"),
    ],
)
def test_the_student_lr_is_found_under_all_published_names(tmp_path, name):
    found = read(saved(tmp_path, images_best=X, labels_best=Y, **{name: torch.tensor(0.0271)}))
    assert found.sets[0].lr == pytest.approx(0.0271)
    assert any(f"The student lr is 0.0271, from {name}.pt." in note for note in found.notes)


def test_an_lr_of_another_checkpoint_is_not_taken(tmp_path):
    found = read(saved(tmp_path, images_best=X, labels_best=Y, images_7=X, labels_7=Y, lr_7=torch.tensor(0.5)))
    assert found.sets[0].lr is None
    assert not any("Not used" in note for note in found.notes)


def test_two_files_that_may_both_be_the_lr_are_refused(tmp_path):
    folder = saved(tmp_path, images_best=X, labels_best=Y, lr_best=torch.tensor(0.5), best_lr=torch.tensor(0.1))
    assert "best_lr.pt and lr_best.pt may both be the lr" in refused(lambda: read(folder), UsageError)


@pytest.mark.parametrize("form", ["ema_{}_best", "{}_ema_best", "{}_best_ema"])
def test_averages_of_ftd_are_read_where_they_are_alone(tmp_path, form):
    folder = saved(tmp_path, **{form.format("images"): X, form.format("labels"): Y, "lr_best": torch.tensor(0.03)})
    found = read(folder)
    assert torch.equal(found.sets[0].images, X)
    assert found.sets[0].lr == pytest.approx(0.03)
    assert torch.equal(read(saved(folder, images_best=X + 1, labels_best=Y)).sets[0].images, X + 1)


def test_the_start_of_an_interrupted_run_is_earlier_than_its_checkpoints(tmp_path):
    for number, shift in (("init", 9), ("0", 0), ("1000", 1), ("900", 2), ("5000", 3)):
        saved(tmp_path, **{f"images_{number}": X + shift, f"labels_{number}": Y})
    assert torch.equal(read(tmp_path).sets[0].images, X + 3)
    assert torch.equal(read(saved(tmp_path, images_best=X - 1, labels_best=Y)).sets[0].images, X - 1)


def test_images_without_whitening_share_the_labels_of_their_checkpoint(tmp_path):
    folder = saved(tmp_path, images_5=X, images_zca_5=X + 1, labels_5=Y)
    assert torch.equal(read(folder).sets[0].images, X)
    assert torch.equal(read(folder / "images_zca_5.pt").sets[0].images, X + 1)


@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize("name", ["data_best", "data", "anything"])
def test_images_and_labels_in_one_file_are_read(tmp_path, kind, name):
    saved(tmp_path, **{name: kind([X, Y])})
    found = read(tmp_path / f"{name}.pt")
    assert torch.equal(found.sets[0].images, X)
    assert found.sets[0].labels.argmax(1).tolist() == [0, 1, 2, 3]
    if name != "anything":
        assert torch.equal(read(tmp_path).sets[0].images, X)


def test_the_best_or_latest_of_such_files_is_read(tmp_path):
    for number in (0, 200, 1000):
        saved(tmp_path, **{f"data_{number}": [X + number, Y]})
    assert torch.equal(read(tmp_path).sets[0].images, X + 1000)
    assert torch.equal(read(saved(tmp_path, data_best=[X - 1, Y])).sets[0].images, X - 1)


def test_a_dictionary_of_images_and_labels_is_read(tmp_path):
    saved(tmp_path, set={"images": X, "labels": Y, "lr": torch.tensor(0.02), "note": "x"})
    found = read(tmp_path / "set.pt")
    assert torch.equal(found.sets[0].images, X)
    assert found.sets[0].lr == pytest.approx(0.02)


def test_files_that_look_like_labels_or_an_lr_and_are_not_used_are_named(tmp_path):
    folder = saved(pair(tmp_path, X, Y, 0.1), soft_labels=X, lr_7=torch.tensor(1.0))
    (folder / "targets.csv").write_text("0")
    note = next(note for note in read(folder).notes if "Not used" in note)
    for name in ("soft_labels.pt", "lr_7.pt", "targets.csv"):
        assert name in note
    assert "best" not in note
    assert unused(pair(tmp_path / "plain", X, Y, 0.1), {"images_best.pt", "labels_best.pt", "syn_lr_best.pt"}) == []


@pytest.mark.parametrize(
    "name",
    [
        *("lr_teacher", "lr7", "lr_img_best", "last_lr", "my_lr", "synlr", "lrbest", "bestlr", "step_size"),
        *("learning_rate_img", "softlabels_best", "soft_targets", "teacher_logits", "probs", "y", "y_syn", "syn_ys"),
        *("labels_of_images", "targets_zca", "label_syn_7", "images_labels_lr"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".npy", ".npz", ".csv", ".txt", ".json"])
def test_whatever_looks_like_labels_or_an_lr_is_named(tmp_path, name, suffix):
    folder = pair(tmp_path, X, Y, 0.1)
    (folder / f"{name}{suffix}").write_bytes(b"x")
    assert unused(folder, {"images_best.pt", "labels_best.pt", "syn_lr_best.pt"}) == [
        f"Not used, though named like labels or a student lr: {name}{suffix}."
    ]


@pytest.mark.parametrize("name", ["config.json", "results.csv", "software.txt", "log.txt", "images_7.pt", "yes.txt"])
def test_what_looks_like_neither_is_not_named(tmp_path, name):
    folder = pair(tmp_path, X, Y, 0.1)
    (folder / name).write_bytes(b"x")
    assert unused(folder, {"images_best.pt", "labels_best.pt", "syn_lr_best.pt"}) == []


def test_of_averages_beside_plain_checkpoints_is_said_which_ones_were_read(tmp_path):
    folder = saved(tmp_path, images_best=X, labels_best=Y, ema_images_best=X + 1, ema_labels_best=Y, lr_best=0.1)
    found = read(folder)
    assert torch.equal(found.sets[0].images, X)
    assert found.notes[0] == "Read images_best.pt and labels_best.pt."
    names = "ema_images_best.pt, ema_labels_best.pt"
    said = f"The average (ema) of this checkpoint lies beside it and was not read: {names}; give its images to read it."
    assert said in found.notes
    other = read(folder / "ema_images_best.pt")
    assert torch.equal(other.sets[0].images, X + 1)
    assert any(note.startswith("The plain checkpoint lies beside it and was not read: images_") for note in other.notes)
    assert not any("Not used" in note for note in (*found.notes, *other.notes))


@pytest.mark.parametrize("form", ["folder", "file"])
def test_what_lies_beside_one_file_of_a_whole_set_is_named_too(tmp_path, form):
    np.savez(tmp_path / "set.npz", images=X.numpy(), labels=Y.numpy())
    saved(tmp_path, syn_lr=torch.tensor(0.5))
    found = read(tmp_path if form == "folder" else tmp_path / "set.npz")
    assert found.notes[-1] == "Not used, though named like labels or a student lr: syn_lr.pt."


def test_what_lies_beside_stages_is_named_with_its_stage(tmp_path):
    for stage in (1, 2):
        folder = saved(tmp_path / f"stage_{stage}", images_best=X[: 2 * stage], labels_best=Y[: 2 * stage])
        saved(folder, soft_labels=X)
    found = read(tmp_path)
    assert len(found.sets) == 2
    for stage in (1, 2):
        assert f"Of stage_{stage}: Not used, though named like labels or a student lr: soft_labels.pt." in found.notes


@pytest.mark.parametrize("name", ["weights.pt", "images_of_labels.pt", ".labels.pt", "log.txt"])
def test_names_that_say_nothing_or_two_things_are_of_no_kind(name):
    assert named(Path(name)) is None


@pytest.mark.parametrize(
    "value", [0.5, torch.tensor(0.5), torch.tensor([[0.5]]), np.float32(0.5), [0.5], np.array([0.5])]
)
def test_one_number_is_an_lr_however_it_is_wrapped(value):
    assert rate(value, Path("lr.pt")) == 0.5


@pytest.mark.parametrize(
    "value",
    [
        *(0.0, -1.0, float("nan"), float("inf"), 10**400, True, None, "0.1" * 10**6, [], [[0.1]], {}),
        *(torch.ones(2), torch.tensor(1j), torch.zeros(0), np.array(["x"]), np.ones(3), torch.tensor(True)),
    ],
    ids=lambda v: type(v).__name__,
)
def test_anything_else_is_refused_without_being_printed(value):
    assert len(refused(lambda: rate(value, Path("lr.pt")))) < 200


def bomb(levels: int) -> list[Any]:
    held: list[Any] = [1.0] * 10
    for _ in range(levels):
        held = [held] * 10
    return held


def test_an_lr_of_a_million_million_numbers_is_refused_at_once(tmp_path):
    folder = saved(pair(tmp_path, X, Y), syn_lr_best=bomb(11))
    assert "holds a list" in refused(lambda: read(folder))


# ---------------------------------------------------------------------------------- soft labels beside pictures


def soft(tmp_path: Path, kind: str = "soft", count: int = 6) -> tuple[Distilled, Path]:
    made = some_set(count, labels=kind, label_kind="probability" if kind == "soft" else "logit", label_type="soft")
    names, step = ("B", "a", "A"), Preprocessing(torch.full((3,), 0.5), torch.full((3,), 5.0))
    teaching = Teaching(Recipe(augment=""), 10, 1)
    held = Distilled(Curriculum((made,), ((0,),)), step, names, (3, 8, 8), None, teaching, {"spec": None})  # type: ignore[arg-type]
    export(held, "folder", tmp_path / "out")
    return held, tmp_path / "out"


@pytest.mark.parametrize("kind", ["soft", "raw"])
@pytest.mark.parametrize("names", [("B", "a", "A"), ("A", "B", "a")])
def test_an_exported_folder_keeps_its_soft_labels(tmp_path, kind, names):
    held, folder = soft(tmp_path, kind)
    found = read(folder, names=names)
    before, after = held.curriculum.sets[0], found.sets[0]
    numbers = [int(p.stem) for f in sorted(folder.iterdir()) if f.is_dir() for p in sorted(f.iterdir())]
    columns = [held.classes.index(name) for name in names]
    assert torch.equal(after.labels, before.labels[numbers][:, columns])
    assert after.label_kind == before.label_kind
    assert "labels.npy" in found.files
    assert not any("Not used" in note for note in found.notes)


def test_labels_that_the_numbers_do_not_explain_are_refused_and_may_be_left(tmp_path):
    _, folder = soft(tmp_path)
    np.save(folder / "labels.npy", np.load(folder / "labels.npy")[::-1])
    text = refused(lambda: read(folder, names=("B", "a", "A")))
    assert "--labels hard" in text
    assert read(folder, names=("B", "a", "A"), labels="hard").sets[0].label_type == "hard"
    (folder / "labels.npy").write_bytes(b"junk")
    assert "damaged" in refused(lambda: read(folder), DataError)
