"""Which class a folder of a foreign set is: by names that are the dataset's, else by numbers, never by a guess."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ddbench_networks import ConvNet
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from refusals import refused

from ddbench.data.dataset import Dataset
from ddbench.errors import DataError
from ddbench.files.class_names import WNIDS, by_names, folder_name, labels_of, numbered
from ddbench.files.formats import read
from ddbench.files.importer import adopt
from ddbench.grade.protocol import Protocol
from ddbench.plugins import registry

WNID = [f"n{i:08d}" for i in range(3)]


def told(names: list[str], classes: list[str], wnids: list[str] | None = None) -> list[int]:
    return labels_of(Path("x"), names, classes, wnids or [])[0]


@pytest.mark.parametrize(
    "classes",
    [
        ["A", "B", "a", "b"],
        ["+", "-", "*"],
        ["c", "c++", "c#"],
        ["2", "0", "1"],
        ["10", "20", "50"],
        ["5_euro", "10_euro"],
        ["1", "01", "001"],
        ["0_a", "1_a"],
        ["x1", "x2", "x3"],
        ["1", "2", "3"],
        ["a b", "a_b"],
        WNID[::-1],
    ],
)
def test_names_that_are_the_datasets_are_its_classes_whatever_they_look_like(classes):
    for names in (sorted(classes), classes, classes[::-1]):
        assert told(names, classes) == [classes.index(name) for name in names]


@given(classes=st.lists(st.text("aAbB01_-+ é", min_size=1, max_size=4), min_size=2, max_size=6, unique=True))
@settings(max_examples=200)
def test_any_names_that_are_the_datasets_are_its_classes(classes):
    assert told(sorted(classes), classes) == [classes.index(name) for name in sorted(classes)]


def test_accents_count_as_the_same_however_they_are_stored():
    classes = ["Öre", "ore", "caf\u00e9"]
    assert told([unicodedata.normalize("NFD", name) for name in classes], classes) == [0, 1, 2]


def test_case_and_separators_do_not_count_where_names_stay_apart():
    assert told(["red_fox", "arctic-fox"], ["Arctic Fox", "Red Fox"]) == [1, 0]
    assert by_names(["a", "b", "c"], ["A", "B", "a"]) is None
    assert by_names(["red_fox", "Red Fox"], ["red-fox", "RED FOX"]) is None
    assert by_names(["+", "-"], ["*", "/"]) is None


def test_numbers_are_labels_where_no_name_can_be_meant():
    assert told(["0", "1", "10", "2"], list("abcdefghijk")) == [0, 1, 10, 2]
    assert told(["new002", "new000", "new001"], ["a", "b", "c"]) == [2, 0, 1]
    assert told(["1", "2", "3"], ["a", "b", "c"]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["1", "2", "3"], ["0", "1", "2"]),
        (["0", "1", "2"], ["1", "2", "3"]),
        (["new0", "new1", "new2"], ["2", "0", "1"]),
        (["00", "01", "02"], ["2", "0", "1"]),
        (["class1", "class2"], ["class 2", "class 3"]),
        (["dog", "cat"], ["dog", "cow"]),
        (["dog"], ["dog", "cow"]),
        (["0_dog", "1_cat"], ["cow", "pig"]),
        (["a", "A"], ["a", "b"]),
    ],
)
def test_what_leaves_a_choice_or_none_is_refused_with_the_way_out(names, classes):
    text = refused(lambda: told(names, classes))
    assert "dataset.classes" in text
    assert names[0] in text


@pytest.mark.parametrize("classes", [["c+", "c-"], ["B", "A", "b"], ["2", "0", "1"], ["Öre / ..\\x", "öre x", "z"]])
def test_folders_as_export_calls_them_come_back(classes):
    """Numbers tell classes apart whose names lose their symbols in a file system."""
    names = [folder_name(i, name) for i, name in enumerate(classes)]
    assert told(names, classes) == list(range(len(classes)))


def test_numbers_before_names_do_not_count_against_the_names():
    assert told(["0_cat", "1_dog"], ["dog", "cat"]) == [1, 0]


def test_wnids_are_told_by_the_dataset_and_otherwise_taken_in_their_order_with_a_note():
    assert told(WNID, ["a", "b", "c"], WNID[::-1]) == [2, 1, 0]
    assert labels_of(Path("x"), WNID[::-1], ["a", "b", "c"], []) == ([2, 1, 0], WNIDS)
    assert "dataset's classes are" in refused(lambda: told(WNID, ["a", "b", "c"], ["n00000007", *WNID[:2]]))


# ---------------------------------------------------------------------------------- through the importer


def grey(folder: Path, names: list[str]) -> Path:
    """A picture of each class, whose level tells which."""
    for level, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        Image.fromarray(np.full((8, 8), 20 * level, np.uint8)).save(folder / name / "a.png")
    return folder


def with_classes(*names: str) -> Dataset:
    return replace(registry().get("dataset", "digits").cls().load(), classes=names)


@pytest.mark.parametrize(
    "names", [list("ABCDEabcde"), [f"{i}0" for i in range(1, 11)], [f"{i}_euro" for i in range(10)], list("9876543210")]
)
def test_a_set_in_folders_has_the_labels_that_its_names_say(tmp_path, names):
    dataset = with_classes(*names)
    made, _ = adopt(grey(tmp_path, sorted(names)), dataset, None, ConvNet(width=8), Protocol())
    s = made.curriculum.sets[0]
    levels = made.preprocessing.invert(s.images).mean((1, 2, 3)) * 255 / 20
    assert [names[int(y.argmax())] for y in s.labels] == [sorted(names)[round(float(v))] for v in levels]


def test_arrays_that_name_their_classes_are_put_into_the_order_of_the_dataset(tmp_path):
    x = np.random.default_rng(0).normal(size=(3, 1, 4, 4)).astype(np.float32)
    np.savez(tmp_path / "a.npz", images=x, labels=np.arange(3), classes=np.array(["2", "0", "1"]))
    found = read(tmp_path / "a.npz", names=("0", "1", "2"))
    assert found.sets[0].labels.argmax(1).tolist() == [2, 0, 1]
    assert any("class order" in note for note in found.notes)
    other = read(tmp_path / "a.npz", names=("a", "b", "c"))
    assert other.sets[0].labels.argmax(1).tolist() == [0, 1, 2]
    assert any("stay in their order" in note for note in other.notes)


# ---------------------------------------------------------------------------------- where the dataset is not known


@pytest.mark.parametrize(
    ("names", "known", "labels", "classes"),
    [
        ([str(i) for i in sorted(range(12), key=str)], None, sorted(range(12), key=str), None),
        (["new000", "new002", "new001"], None, [0, 2, 1], None),
        (["1", "2", "3"], 3, [0, 1, 2], None),
        (["0", "2"], 3, [0, 2], None),
        (["0010_horse", "0002_cat"], None, [1, 0], ("cat", "horse")),
        (["dog", "cat"], None, [0, 1], ("dog", "cat")),
        (["n01440764", "n01443537"], None, [0, 1], ("n01440764", "n01443537")),
        (["class1", "other2"], None, [0, 1], ("class1", "other2")),
    ],
)
def test_folder_names_tell_the_labels(names, known, labels, classes):
    assert numbered(Path("x"), names, known)[:2] == (labels, classes)


@pytest.mark.parametrize("names", [["0", "00"], ["1_cat", "1_dog"], ["0", "7"]])
def test_folder_numbers_that_are_no_labels_are_refused(names):
    with pytest.raises(DataError, match="number"):
        numbered(Path("x"), names, None)
