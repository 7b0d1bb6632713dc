"""The file that describes itself: round trips to the bit, and refusals of anything else."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ddbench_networks import ConvNet
from sets import some_set, some_teacher
from tiny import run, spec
from torch import Tensor

from ddbench import Curriculum, Preprocessing, Recipe, SyntheticSet, Teaching
from ddbench.base.cache import home
from ddbench.base.tensors import load_tensors, save_tensors
from ddbench.errors import DataError
from ddbench.files.asked import EvalOptions
from ddbench.files.target import evaluated
from ddbench.grade.distilled import FORMAT, Distilled, _digest, step_of

CLASSES = ("cat", "dog", "öre")


def distilled(preprocessing: Preprocessing | None = None, name: str = "toy") -> Distilled:
    first = some_set(3, 0, shape=(1, 8, 8), lr=0.02, label_type="teacher")
    second = some_set(3, 1, shape=(1, 8, 8), labels="raw", lr=0.02, label_kind="logit", label_type="learned")
    about = {
        "dataset": {"name": name, "digest": "x"},
        "selection": "validation",
        "spec": spec("random", ipc=2).record(),
    }
    step = preprocessing or Preprocessing(torch.tensor([0.4]), torch.tensor([0.3]))
    teaching = Teaching(Recipe(batch=7, lr=0.03, momentum=0.9, augment=""), steps=11, phases=2)
    return Distilled(
        Curriculum((first, second), ((0,), (0, 1))), step, CLASSES, (1, 8, 8), ConvNet(width=8), teaching, about
    )


@pytest.fixture
def path(tmp_path) -> Path:
    distilled().save(tmp_path / "distilled.safetensors")
    return tmp_path / "distilled.safetensors"


def test_a_set_comes_back_from_its_file_to_the_bit(path):
    made, back = distilled(), Distilled.load(path)
    for a, b in zip(made.curriculum.sets, back.curriculum.sets, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
        assert (a.lr, a.label_kind, a.label_type, a.digest) == (b.lr, b.label_kind, b.label_type, b.digest)
    assert back.curriculum.phases == made.curriculum.phases
    assert torch.equal(back.preprocessing.mean, made.preprocessing.mean)
    assert torch.equal(back.preprocessing.std, made.preprocessing.std)
    assert (back.classes, back.shape) == (CLASSES, (1, 8, 8))
    assert (back.network, back.teaching) == (ConvNet(width=8), made.teaching)
    assert back.about == made.about


def test_saving_the_same_set_twice_gives_the_same_bytes(path, tmp_path):
    distilled().save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_whitening_matrices_travel_with_the_set(tmp_path):
    pixels = torch.randint(256, (90, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    step = Preprocessing.fit(pixels, zca=True)
    distilled(step).save(tmp_path / "zca.safetensors")
    back = Distilled.load(tmp_path / "zca.safetensors").preprocessing
    assert back.kind == "zca"
    assert torch.equal(back(pixels), step(pixels))


def test_a_set_without_a_learning_rate_keeps_none(tmp_path):
    made = distilled()
    first, second = made.curriculum.sets
    changed = Curriculum((replace(first, lr=None), second), made.curriculum.phases)
    replace(made, curriculum=changed).save(tmp_path / "f.safetensors")
    assert Distilled.load(tmp_path / "f.safetensors").curriculum.sets[0].lr is None


def test_the_file_says_what_it_is_in_plain_json(path):
    document = json.loads(load_tensors(path)[1]["ddbench"])
    options = {"width": 8, "depth": None, "norm": "instance", "activation": "relu", "pooling": "avg"}
    assert document["format"] == 2  # the newest that it needs
    assert document["classes"] == list(CLASSES)
    assert document["preprocessing"] == "meanstd"
    assert document["network"] == {"name": "convnet", "options": options}
    assert document["phases"] == [[0], [0, 1]]
    assert document["sets"][0]["decoder"] == {"factor": 1}
    assert document["training"]["steps"] == 11
    assert [s["label_kind"] for s in document["sets"]] == ["probability", "logit"]
    assert set(document["about"]["spec"]) >= {"seed", "matcher", "versions"}


def rewritten(path: Path, **changes: Any) -> Path:
    """The file with parts of its document changed; None takes a part away."""
    tensors, metadata = load_tensors(path)
    document = json.loads(metadata["ddbench"]) | changes
    document = {k: v for k, v in document.items() if v is not None}
    save_tensors(path, tensors, {"ddbench": json.dumps(document)})
    return path


def tensor_offsets(path: Path) -> dict[str, tuple[int, int]]:
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    return {
        name: tuple(8 + size + at for at in entry["data_offsets"])
        for name, entry in header.items()
        if name != "__metadata__"
    }


PARTS = [f"set{j}.{what}" for j in (0, 1) for what in ("images", "labels")]


@pytest.mark.parametrize("name", [*PARTS, "preprocessing.mean", "preprocessing.std"])
def test_one_flipped_bit_in_any_tensor_is_noticed(path, name):
    raw = bytearray(path.read_bytes())
    begin, end = tensor_offsets(path)[name]
    raw[(begin + end) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError):
        Distilled.load(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(path, share):
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(DataError, match="damaged"):
        Distilled.load(path)


def test_any_damage_is_a_data_error_and_never_another_exception(path):
    raw = path.read_bytes()
    for at in range(0, len(raw), 37):
        damaged = bytearray(raw)
        damaged[at] ^= 0x11
        path.write_bytes(damaged)
        try:
            Distilled.load(path)
        except DataError:
            continue


def test_a_file_that_is_not_there_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        Distilled.load(tmp_path / "none.safetensors")


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    save_tensors(tmp_path / "weights.safetensors", {"w": torch.zeros(2)})
    with pytest.raises(DataError, match="not one that ddbench wrote"):
        Distilled.load(tmp_path / "weights.safetensors")


def test_a_newer_format_asks_for_an_update(path):
    with pytest.raises(DataError, match=f"format {FORMAT + 1}.*update"):
        Distilled.load(rewritten(path, format=FORMAT + 1))


@pytest.mark.parametrize("name", ["format", "sets", "phases", "classes", "shape", "network", "training"])
def test_a_file_without_one_of_its_parts_is_incomplete(path, name):
    with pytest.raises(DataError, match=name):
        Distilled.load(rewritten(path, **{name: None}))


def test_a_file_without_one_of_its_tensors_is_incomplete(path):
    tensors, metadata = load_tensors(path)
    for name in (*PARTS, "preprocessing.mean"):
        save_tensors(path, {k: v for k, v in tensors.items() if k != name}, metadata)
        with pytest.raises(DataError):
            Distilled.load(path)


def test_a_description_that_is_not_json_is_a_data_error(path):
    tensors, _ = load_tensors(path)
    for text in ("{", "[]", '"text"', ""):
        save_tensors(path, tensors, {"ddbench": text})
        with pytest.raises(DataError):
            Distilled.load(path)


def test_a_set_for_a_network_that_is_not_installed_names_it(path):
    elsewhere = {"name": "vgg", "options": {}}
    about = distilled().about
    about["spec"] |= {"network": elsewhere}
    with pytest.raises(DataError, match=r"describes what is not here.*vgg"):
        Distilled.load(rewritten(path, network=elsewhere, about=about))


def test_test_data_with_other_classes_are_refused(path):
    found = spec("random").dataset.load()
    with pytest.raises(DataError, match=r"cat, dog, öre.*'toy' has 0, 1, 2"):
        Distilled.load(path).check_dataset(found)


def test_test_data_of_another_size_are_refused_with_the_option_that_mends_it(path):
    found = replace(spec("random", dataset__size=16).dataset.load(), classes=CLASSES)
    with pytest.raises(DataError, match=r"\(1, 8, 8\).*\(1, 16, 16\).*-o dataset.size=8"):
        Distilled.load(path).check_dataset(found)


def test_fitting_test_data_are_accepted(path):
    Distilled.load(path).check_dataset(replace(spec("random").dataset.load(), classes=CLASSES))


def test_test_data_pass_through_the_preprocessing_of_the_set(tmp_path, monkeypatch):
    """A set made with other statistics is graded with those, not with the ones of the data at hand."""
    seen: list[Preprocessing] = []

    def predict(network: Any, vector: Tensor, data: Any) -> tuple[Tensor, Tensor]:
        seen.append(data.preprocessing)
        return torch.zeros(len(data), 3), data.targets

    monkeypatch.setattr("ddbench.grade.student.predict", predict)
    made = replace(distilled(), classes=("0", "1", "2"))
    made.save(tmp_path / "f.safetensors")
    evaluated(str(tmp_path / "f.safetensors"), tmp_path, EvalOptions(students=1))
    (used,) = seen
    assert torch.equal(used.mean, made.preprocessing.mean)
    assert torch.equal(used.std, made.preprocessing.std)


def test_the_same_images_with_another_preprocessing_are_another_evaluation(tmp_path):
    for mean in (0.4, 0.9):
        made = replace(distilled(Preprocessing(torch.tensor([mean]), torch.tensor([0.3]))), classes=("0", "1", "2"))
        made.save(tmp_path / f"{mean}.safetensors")
        evaluated(str(tmp_path / f"{mean}.safetensors"), tmp_path, EvalOptions(students=1))
    assert len(list(tmp_path.glob("*/evaluations/*.json")) + list((home() / "files").glob("*/evaluations/*.json"))) == 2


def test_teachers_travel_with_their_sets(tmp_path):
    folder = run(tmp_path, spec("random"))
    held = Distilled.load(folder / "distilled.safetensors")
    (made,) = held.curriculum.sets
    with_teacher = SyntheticSet(made.images, made.labels, made.lr, teacher=some_teacher())
    assert with_teacher.digest != made.digest
    assert with_teacher.teacher_bytes == 4 * len(some_teacher().vector)
    assert made.teacher_bytes == 0
    replace(held, curriculum=Curriculum((with_teacher,), ((0,),))).save(tmp_path / "set.safetensors")
    (back,) = Distilled.load(tmp_path / "set.safetensors").curriculum.sets
    assert back.teacher is not None
    assert back.teacher.source == ConvNet(width=3, depth=1)
    assert torch.equal(back.teacher.vector, some_teacher().vector)
    assert back.digest == with_teacher.digest


def test_several_teachers_travel_in_a_file_that_earlier_versions_refuse(tmp_path):
    made = hard([0, 1, 2], ipc=1)
    first, second = some_teacher(), replace(some_teacher(), vector=some_teacher().vector + 1)
    s = replace(made.curriculum.sets[0], teacher=replace(first, others=(second,)))
    replace(made, curriculum=Curriculum((s,), ((0,),))).save(tmp_path / "f.safetensors")
    document = json.loads(load_tensors(tmp_path / "f.safetensors")[1]["ddbench"])
    assert document["format"] == FORMAT == 3
    (back,) = Distilled.load(tmp_path / "f.safetensors").curriculum.sets
    assert back.teacher is not None
    assert [
        float((m.vector - v).abs().max())
        for m, v in zip(back.teacher.members, (first.vector, second.vector), strict=True)
    ] == [0, 0]
    assert back.digest == s.digest
    short = replace(second, vector=second.vector[:-1])
    s = replace(s, teacher=replace(first, others=(short,)))
    replace(made, curriculum=Curriculum((s,), ((0,),))).save(tmp_path / "g.safetensors")
    with pytest.raises(DataError, match="teacher of set 0 has"):
        Distilled.load(tmp_path / "g.safetensors")


def test_a_file_is_opened_without_waiting_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "distilled.safetensors")
    with pytest.raises(DataError, match="named pipe"):
        Distilled.load(tmp_path / "distilled.safetensors")


def test_a_set_that_keeps_none_of_its_sets_but_the_first_is_what_a_diverged_run_left(tmp_path):
    """Of two stages, one was done: fewer images than the budget are right there, and nowhere else."""
    made = distilled()
    left = Curriculum(made.curriculum.sets[:1], ((0,),))
    scheduler = {"name": "pdd", "options": {"stages": 2}}
    about = made.about | {"spec": made.about["spec"] | {"scheduler": scheduler}}
    replace(made, curriculum=left, about=about).save(tmp_path / "last_good.safetensors")
    assert len(Distilled.load(tmp_path / "last_good.safetensors").curriculum) == 1
    replace(made, curriculum=left).save(tmp_path / "other.safetensors")
    with pytest.raises(DataError, match="holds 3 images, but 2 for each of 3 classes"):
        Distilled.load(tmp_path / "other.safetensors")


def hard(rows: list[int], ipc: int = 2) -> Distilled:
    made = distilled()
    images = torch.randn(len(rows), 1, 8, 8, generator=torch.Generator().manual_seed(0))
    about = made.about | {"spec": spec("random", ipc=ipc).record()}
    s = SyntheticSet(images, torch.eye(3)[rows], 0.01)
    return replace(made, curriculum=Curriculum((s,), ((0,),)), about=about)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([0, 0, 1, 1, 2, 2, 2], "7 images, but 2 for each of 3"),
        ([0, 0, 1], "3 images, but 2 for each of 3"),
        ([0, 0, 0, 1, 2, 2], "as many of each of its 3 classes"),
        ([2, 2, 1, 1, 0, 0], "in order"),
        ([0, 1, 2] * 340, "1020 images"),
    ],
)
def test_numbers_and_balance_are_those_of_the_budget(tmp_path, rows, said):
    hard([0, 0, 1, 1, 2, 2]).save(tmp_path / "sound.safetensors")
    assert len(Distilled.load(tmp_path / "sound.safetensors").curriculum.sets[0]) == 6
    hard(rows).save(tmp_path / "f.safetensors")
    with pytest.raises(DataError, match=said):
        Distilled.load(tmp_path / "f.safetensors")


def test_sets_of_others_need_no_balance(tmp_path):
    made = hard([2, 0, 1, 1], ipc=1)
    replace(made, about=made.about | {"selection": "unknown"}).save(tmp_path / "f.safetensors")
    assert len(Distilled.load(tmp_path / "f.safetensors").curriculum.sets[0]) == 4


@pytest.mark.parametrize("label_type", ["hard", "teacher"])
@pytest.mark.parametrize("rows", [-torch.eye(3), torch.eye(3) * 2, torch.full((3, 3), 0.5), torch.zeros(3, 3)])
def test_labels_are_what_they_are_said_to_be(tmp_path, label_type, rows):
    made = hard([0, 1, 2], ipc=1)
    s = replace(made.curriculum.sets[0], labels=rows, label_type=label_type)
    replace(made, curriculum=Curriculum((s,), ((0,),))).save(tmp_path / "f.safetensors")
    with pytest.raises(DataError, match="said to be"):
        Distilled.load(tmp_path / "f.safetensors")


def test_soft_labels_that_are_declared_hard_are_refused(tmp_path):
    s = replace(hard([0, 1, 2], ipc=1).curriculum.sets[0], labels=torch.full((3, 3), 1 / 3))
    replace(hard([0, 1, 2], ipc=1), curriculum=Curriculum((s,), ((0,),))).save(tmp_path / "f.safetensors")
    with pytest.raises(DataError, match="said to be hard"):
        Distilled.load(tmp_path / "f.safetensors")


def test_a_teacher_has_the_numbers_of_its_network(tmp_path):
    made = hard([0, 1, 2], ipc=1)
    short = replace(some_teacher(), vector=some_teacher().vector[:-1])
    s = replace(made.curriculum.sets[0], teacher=short)
    replace(made, curriculum=Curriculum((s,), ((0,),))).save(tmp_path / "f.safetensors")
    with pytest.raises(DataError, match="teacher of set 0 has"):
        Distilled.load(tmp_path / "f.safetensors")


@pytest.mark.parametrize("size", [8_000_001, 10**9, 2**63])
def test_a_header_longer_than_any_that_is_written_is_refused_before_it_is_read(tmp_path, size):
    (tmp_path / "f.safetensors").write_bytes(struct.pack("<Q", size) + b"{")
    with pytest.raises(DataError, match=f"its header is said to have {size:,} bytes"):
        Distilled.load(tmp_path / "f.safetensors")


def test_a_header_of_eight_million_bytes_is_read(tmp_path):
    (tmp_path / "f.safetensors").write_bytes(struct.pack("<Q", 8_000_000) + b"{")
    with pytest.raises(DataError, match=r"is damaged or no safetensors file"):
        Distilled.load(tmp_path / "f.safetensors")


def test_a_description_of_too_many_values_is_refused_before_it_is_parsed(tmp_path):
    made = distilled()
    replace(made, about=made.about | {"more": [0] * 300_100}).save(tmp_path / "f.safetensors")
    with pytest.raises(DataError, match="it lists more than 300,000 values"):
        Distilled.load(tmp_path / "f.safetensors")


def test_more_steps_than_a_student_may_take_are_refused_when_they_are_asked_for_in_epochs(tmp_path):
    made = distilled()
    many = Teaching(replace(made.teaching.recipe, epochs=10**9), None, 2)
    replace(made, teaching=many).save(tmp_path / "f.safetensors")
    with pytest.raises(DataError, match="more than the 10,000,000 steps"):
        Distilled.load(tmp_path / "f.safetensors")


def test_earlier_formats_are_read_and_numbers_that_no_format_will_have_are_damage(path):
    tensors, metadata = load_tensors(path)
    document = json.loads(metadata["ddbench"]) | {"format": 1}
    del document["sha256"]
    document["sha256"] = _digest(document, tensors)
    save_tensors(path, tensors, {"ddbench": json.dumps(document)})
    assert len(Distilled.load(path).curriculum) == 2
    for newer in (FORMAT + 1, 13, 17, 10**6 - 1):
        with pytest.raises(DataError, match=f"format {newer}.*update"):
            Distilled.load(rewritten(path, format=newer))
    for odd in (0, -1, 10**6, 2 * 10**6):
        with pytest.raises(DataError, match="incomplete or damaged"):
            Distilled.load(rewritten(path, format=odd))


@pytest.mark.parametrize("row", [[0.5, 0.5, 0.0], [0.0, 0.0, 0.0], [0.25, 0.25, 0.5]])
def test_each_hard_label_names_one_class(tmp_path, row):
    made = hard([0, 1, 2, 0, 1, 2], ipc=2)
    labels = torch.cat([torch.eye(3), torch.eye(3)[:2], torch.tensor([row])])
    s = replace(made.curriculum.sets[0], labels=labels)
    replace(made, curriculum=Curriculum((s,), ((0,),))).save(tmp_path / "f.safetensors")
    with pytest.raises(DataError, match="said to be"):
        Distilled.load(tmp_path / "f.safetensors")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["images", "labels"])
def test_numbers_of_another_width_are_refused(tmp_path, dtype, name):
    made = distilled()
    sets = tuple(replace(s, **{name: getattr(s, name).to(dtype)}) for s in made.curriculum.sets)
    replace(made, curriculum=replace(made.curriculum, sets=sets)).save(tmp_path / "f.safetensors")
    with pytest.raises(DataError, match=rf"its tensor set0\.{name} is {dtype} .* not torch\.float32"):
        Distilled.load(tmp_path / "f.safetensors")


@pytest.mark.parametrize(
    ("kind", "names", "wanted"),
    [
        *(("meanstd", ("mean",), "mean and std"), ("meanstd", ("mean", "std", "whiten"), "mean and std")),
        *(("meanstd", ("mean", "whiten"), "mean and std"), ("zca", ("mean", "std"), "mean and whiten")),
        *(("zca", ("whiten",), "mean and whiten"), ("meanstd", (), "mean and std")),
    ],
)
def test_preprocessing_has_the_tensors_of_its_kind_and_no_others(kind, names, wanted):
    parts = {"mean": torch.zeros(4), "std": torch.ones(4), "whiten": torch.eye(4)}
    with pytest.raises(DataError, match=f"has {', '.join(sorted(names)) or 'nothing'}, not {wanted}"):
        step_of(kind, {name: parts[name] for name in names}, (1, 2, 2))
