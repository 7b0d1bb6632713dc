"""Datasets of Hugging Face: small ones in its formats on disk, and what is said about those that cannot be had."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ddbench_datasets import HF
from PIL import Image
from refusals import refused

from ddbench import DataError, UsageError
from ddbench.base.options import make
from ddbench.testing import check_dataset

hub = pytest.importorskip("datasets")
FLIPS = "color_crop_cutout_flip_scale_rotate"
NO_FLIPS = "color_crop_cutout_scale_rotate"
CLASSES = ["zebra", "cat", "dog"]  # not in alphabetical order
ROWS = {"train": 24, "test": 9}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Nothing is read from the user's cache, and the Hub is never asked."""
    from datasets.utils import logging

    monkeypatch.setattr(hub.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    logging.disable_progress_bar()


def pixels(rows: int, seed: int, shape: tuple[int, ...] = (6, 6, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, *shape), dtype=np.uint8)


def part(rows: int, seed: int, *, shape=(6, 6, 3), labels: list[Any] | None = None, label: Any = None, **more: Any):
    """A table of ``rows`` PNG images, whose classes come in turn; ``more`` columns as (feature, values)."""
    features = {"image": hub.Image(), "label": label or hub.ClassLabel(names=CLASSES)}
    columns = {"image": [Image.fromarray(p) for p in pixels(rows, seed, shape)]}
    columns["label"] = labels or [i % 3 for i in range(rows)]
    for name, (feature, values) in more.items():
        features[name], columns[name] = feature, values
    return hub.Dataset.from_dict(columns, features=hub.Features(features))


def saved(folder: Path, **parts: Any) -> str:
    """One parquet file per split."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, table in parts.items():
        table.to_parquet(str(folder / f"{split}.parquet"))
    return str(folder)


@pytest.fixture
def small(tmp_path) -> str:
    return saved(tmp_path / "Small set", train=part(ROWS["train"], 0), test=part(ROWS["test"], 1))


def refusal(kind=DataError, **options) -> str:
    return refused(lambda: HF(**options).load(), kind)


def rows_of(dataset) -> torch.Tensor:
    return torch.cat([dataset.train.pixels[:], dataset.validation.pixels[:]]).flatten(1).unique(dim=0)


def test_pixels_classes_and_facts_are_those_of_the_table(small, capsys):
    dataset = HF(path=small).load()
    assert capsys.readouterr().out == ""
    assert (dataset.name, dataset.classes) == ("small-set", tuple(CLASSES))
    assert dataset.test.pixels[:].permute(0, 2, 3, 1).numpy().tolist() == pixels(ROWS["test"], 1).tolist()
    assert dataset.test.targets.tolist() == [0, 1, 2] * 3
    assert len(dataset.train) + len(dataset.validation) == ROWS["train"]
    expected = torch.from_numpy(pixels(ROWS["train"], 0)).permute(0, 3, 1, 2).flatten(1).unique(dim=0)
    assert torch.equal(rows_of(dataset), expected)
    assert dataset.facts["source"] == small
    assert dataset.facts["test"] == "split test"


def test_hf_keeps_the_contract_of_a_dataset(small):
    check_dataset(HF(path=small))


def test_a_folder_of_save_to_disk_and_parquet_give_the_same_images(small, tmp_path):
    hub.DatasetDict({"train": part(24, 0), "test": part(9, 1)}).save_to_disk(str(tmp_path / "disk"))
    stored, parquet = HF(path=str(tmp_path / "disk")).load(), HF(path=small).load()
    assert torch.equal(stored.test.pixels[:], parquet.test.pixels[:])
    assert stored.train.digest == parquet.train.digest


def test_a_folder_of_images_is_read_as_the_package_reads_it(tmp_path):
    for split, rows in ROWS.items():
        for i, image in enumerate(pixels(rows, 0)):
            path = tmp_path / "set" / split / CLASSES[i % 3] / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    dataset = HF(path=str(tmp_path / "set")).load()
    assert dataset.classes == ("cat", "dog", "zebra")
    assert len(dataset.test) == ROWS["test"]


def test_validation_is_tested_on_where_there_is_no_test_and_the_facts_say_so(tmp_path):
    path = saved(tmp_path / "set", train=part(24, 0), validation=part(6, 1))
    dataset = HF(path=path).load()
    assert len(dataset.test) == 6
    assert dataset.facts["test"] == "split validation, since there is no test"


def test_test_is_preferred_to_validation_and_others_can_be_named(tmp_path):
    path = saved(tmp_path / "set", train=part(24, 0), validation=part(6, 1), test=part(9, 2))
    assert len(HF(path=path).load().test) == 9
    swapped = HF(path=path, train="test", test="validation").load()
    assert len(swapped.train) + len(swapped.validation) == 9
    assert len(swapped.test) == 6


def test_a_split_for_validation_beside_test_is_validated_on(tmp_path):
    path = saved(tmp_path / "set", train=part(24, 0), validation=part(6, 1), test=part(9, 2))
    dataset = HF(path=path).load()
    assert [len(p) for p in (dataset.train, dataset.validation, dataset.test)] == [24, 6, 9]
    assert dataset.facts["validation"] == "split validation"
    wanted = torch.from_numpy(pixels(6, 1)).permute(0, 3, 1, 2)
    assert torch.equal(dataset.validation.pixels[:], wanted)
    assert "asks for a fraction" in refusal(UsageError, path=path, validation=0.3)


@pytest.mark.parametrize("name", ["val", "valid", "dev"])
def test_a_split_for_validation_may_have_other_names(tmp_path, name):
    library = {"train": part(24, 0), name: part(6, 1)}
    alone = HF(path=on_disk(tmp_path / "alone", library)).load()
    assert (len(alone.test), alone.facts["test"]) == (6, f"split {name}, since there is no test")
    both = HF(path=on_disk(tmp_path / "both", library | {"test": part(9, 2), "extra": part(12, 3)})).load()
    assert [len(p) for p in (both.train, both.validation, both.test)] == [24, 6, 9]
    assert both.facts["validation"] == f"split {name}"
    assert both.facts["left out"] == "splits extra (12 images)"
    assert "left out" not in alone.facts


def test_of_two_splits_for_validation_the_other_is_named(tmp_path):
    splits = {"train": part(24, 0), "dev": part(6, 1), "validation": part(3, 2)}
    dataset = HF(path=on_disk(tmp_path / "set", splits)).load()
    assert dataset.facts["test"] == "split validation, since there is no test"
    assert dataset.facts["left out"] == "splits dev (6 images)"


def on_disk(folder: Path, splits: dict[str, Any]) -> str:
    """Splits under their own names, which reading files of parquet would change."""
    hub.DatasetDict(splits).save_to_disk(str(folder))
    return str(folder)


def test_a_class_that_only_another_split_has_is_no_obstacle_when_others_are_chosen(tmp_path):
    string = hub.Value("string")
    train, test = ["a", "b"] * 12, ["a", "b", "new"] * 3
    path = saved(
        tmp_path / "set", train=part(24, 0, labels=train, label=string), test=part(9, 2, labels=test, label=string)
    )
    assert "label 'new', which is none of the 2 classes" in refusal(path=path, label="label")
    assert HF(path=path, label="label", classes=("b", "a")).load().classes == ("b", "a")


def test_transparent_images_show_the_ground_and_a_pipe_is_no_dataset(tmp_path):
    import io
    import os

    def clear(row: int) -> dict[str, Any]:
        stream = io.BytesIO()
        image = Image.fromarray(pixels(24, 0)[row])
        image.putalpha(Image.new("L", (6, 6), 0 if row == 24 else 100))
        image.save(stream, "PNG")
        return {"bytes": stream.getvalue(), "path": None}

    features = hub.Features({"image": hub.Image(), "label": hub.ClassLabel(names=["x", "y"])})
    rows = {"image": [clear(row) for row in range(12)], "label": [0, 1] * 6}
    held = hub.Dataset.from_dict(rows, features=features)
    hub.DatasetDict({"train": held, "test": held}).save_to_disk(str(tmp_path / "set"))
    dataset = HF(path=str(tmp_path / "set")).load()
    assert dataset.facts["transparent"] == "24 images have transparent parts, shown on white"
    assert int(dataset.test.pixels[:].min()) >= 155 - 1
    os.mkfifo(tmp_path / "pipe.parquet")
    assert "is a pipe or a device" in refusal(path=str(tmp_path / "pipe.parquet"))


def test_one_parquet_file_has_no_test_split_and_the_splits_are_listed(small):
    said = refusal(path=f"{small}/train.parquet")
    assert "has no split 'test', only train" in said
    assert "-o dataset.test" in said


def test_training_and_testing_on_one_split_is_refused(small):
    assert "are both 'train'" in refusal(UsageError, path=small, test="train")


def test_columns_are_found_by_their_type(tmp_path):
    more = {"caption": (hub.Value("string"), ["x"] * 24)}
    table = part(24, 0, **more).rename_columns({"image": "img", "label": "fine"})
    path = saved(tmp_path / "set", train=table, test=table.select(range(9)))
    assert HF(path=path).load().classes == tuple(CLASSES)


def test_two_label_columns_are_ambiguous_until_one_is_named(tmp_path):
    coarse = (hub.ClassLabel(names=["wild", "tame"]), [min(i % 3, 1) for i in range(24)])
    table = part(24, 0, coarse=coarse)
    path = saved(tmp_path / "set", train=table, test=table)
    said = refusal(UsageError, path=path)
    assert "-o dataset.label=COLUMN" in said
    assert "label (ClassLabel), coarse (ClassLabel)" in said
    assert HF(path=path, label="coarse").load().classes == ("wild", "tame")
    assert "did you mean 'coarse'" in refusal(UsageError, path=path, label="corse")


def test_an_image_column_must_hold_images(small):
    assert "names 'label', which holds no images" in refusal(UsageError, path=small, image="label")
    assert "names 'image', which holds no labels" in refusal(UsageError, path=small, label="image")


@pytest.mark.parametrize(
    ("kind", "values", "classes"),
    [("string", ["b", "a10", "a2"], ("a2", "a10", "b")), ("int64", [10, 2, 7], ("2", "7", "10"))],
)
def test_plain_values_are_classes_in_natural_order_when_their_column_is_named(tmp_path, kind, values, classes):
    feature = hub.Value(kind)
    train, test = (part(n, n, label=feature, labels=values * (n // 3)) for n in (24, 9))
    path = saved(tmp_path / "set", train=train, test=test)
    assert "0 columns are of type ClassLabel" in refusal(UsageError, path=path)
    dataset = HF(path=path, label="label").load()
    assert dataset.classes == classes
    assert dataset.test.targets[:3].tolist() == [classes.index(str(value)) for value in values]


def test_a_split_without_labels_is_refused(tmp_path):
    path = saved(tmp_path / "set", train=part(24, 0), test=part(9, 1, labels=[-1] * 9))
    said = refusal(path=path)
    assert "image 0 of split test has the label -1" in said
    assert "choose a split with labels" in said


def test_grey_images_have_one_channel_unless_three_are_asked_for(tmp_path):
    path = saved(tmp_path / "set", train=part(24, 0, shape=(6, 6)), test=part(9, 1, shape=(6, 6)))
    assert HF(path=path).load().train.shape == (1, 6, 6)
    assert HF(path=path, channels="3").load().train.shape == (3, 6, 6)


def test_images_of_several_sizes_are_refused_until_a_size_is_given(tmp_path):
    path = saved(tmp_path / "set", train=part(24, 0), test=part(9, 1, shape=(8, 5, 3)))
    assert "-o dataset.size=" in refusal(path=path)
    assert HF(path=path, size=4).load().test.shape == (3, 4, 4)


def test_an_image_that_cannot_be_read_is_named_by_split_and_row(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(pixels(1, 0)[0]).save(stream, "PNG")
    broken = {"bytes": stream.getvalue()[:60], "path": None}
    held = part(24, 0).cast_column("image", hub.Image(decode=False)).to_dict()
    held["image"][5] = broken
    features = hub.Features({"image": hub.Image(), "label": hub.ClassLabel(names=CLASSES)})
    path = saved(tmp_path / "set", train=hub.Dataset.from_dict(held, features=features), test=part(9, 1))
    said = refusal(path=path)
    assert said.startswith("train/5 cannot be read as an image")
    assert said.endswith(f"; mend or remove it in {path}")
    assert HF(path=path, classes=("zebra", "cat")).load().classes == ("zebra", "cat")  # row 5 is a dog


def test_flip_decides_the_augmentation(small):
    assert HF(path=small).load().augment == FLIPS
    assert HF(path=small, flip=False).load().augment == NO_FLIPS


def test_options_choose_and_noise_never_reaches_the_test_part(small):
    dataset = HF(path=small, classes=("dog", "zebra"), limit=8, noise=0.25, validation=0.5).load()
    assert dataset.classes == ("dog", "zebra")
    assert len(dataset.train) + len(dataset.validation) == 8
    assert dataset.test.targets.tolist() == [1, 0] * 3


def test_options_are_read_from_text():
    made = make(HF, {"path": "a/b", "size": "32", "channels": "1", "classes": "cat,dog", "config": "none"}, "dataset")
    assert (made.size, made.channels, made.classes, made.config) == (32, "1", ("cat", "dog"), None)


def test_images_are_decoded_once_and_again_when_the_table_changes(small, monkeypatch):
    first = HF(path=small).load()
    with monkeypatch.context() as patched:
        patched.setattr(Image, "open", lambda *_args, **_options: pytest.fail("decoded again"))
        assert HF(path=small, noise=0.1, validation=0.5).load().test.digest == first.test.digest
    saved(Path(small), test=part(9, 5))
    assert HF(path=small).load().test.digest != first.test.digest


def test_only_the_chosen_images_are_decoded(small, monkeypatch):
    opened, real = [], Image.open
    monkeypatch.setattr(Image, "open", lambda stream, *a, **o: (opened.append(stream), real(stream, *a, **o))[1])
    HF(path=small, limit=6, size=6, channels="3").load()
    assert len(opened) == 6 + ROWS["test"]


# What is missing


def test_a_path_must_be_given():
    assert "-o dataset.path=" in refusal(UsageError)


def test_a_dataset_that_cannot_be_had_offline_is_told_with_the_way_out():
    said = refusal(path="someone/something")
    assert "cannot load someone/something (" in said
    assert "run `ddbench prepare hf -o dataset.path=someone/something` where there is one" in said
    assert "HF_HOME" in said


def test_a_folder_without_data_is_told_what_it_should_hold(tmp_path):
    (tmp_path / "set").mkdir()
    assert "it must be a parquet file, or a folder of parquet files or images" in refusal(path=str(tmp_path / "set"))
    (tmp_path / "x.parquet").write_bytes(b"junk")
    assert "it must be a parquet file" in refusal(path=str(tmp_path / "x.parquet"))


def test_without_the_package_the_extra_is_named(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'ddbench[hf]'" in refusal(path=small)
    assert "pip install 'ddbench[hf]'" in HF(path="someone/something").missing()


def test_missing_tells_what_the_hub_would_be_asked_for(small, tmp_path):
    assert HF(path=small).missing() is None
    assert "would be downloaded from the Hugging Face Hub" in HF(path="someone/something").missing()
    assert "-o dataset.path=" in HF().missing()
    (tmp_path / "hub" / "Someone___some_thing").mkdir(parents=True)
    assert HF(path="Someone/SomeThing").missing() is None


def test_a_dataset_in_the_cache_of_the_package_is_found_without_a_network(small, monkeypatch):
    tables = hub.load_dataset(small)
    asked = []
    monkeypatch.setattr(hub, "load_dataset", lambda *args: (asked.append(args), tables)[1])
    dataset = HF(path="Someone/Some_thing", config="big").load()
    assert asked == [("Someone/Some_thing", "big")]
    assert dataset.name == "someone-some_thing"
