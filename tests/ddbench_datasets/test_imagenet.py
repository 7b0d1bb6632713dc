"""Tiny-ImageNet and ImageNet from miniatures laid out as the real ones are."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ddbench_datasets import ImageNet, Images, TinyImageNet, sources
from ddbench_datasets.wnids import SUBSETS, labels, readable, words
from pictures import NAMES, WNIDS, WORDS, folder, imagenet, photo, saved, tiny_imagenet, zipped
from PIL import Image
from refusals import refused

from ddbench import DataError, UsageError
from ddbench.base import cache
from ddbench.base.options import make
from ddbench.data.pictures import decode

# As in the code of MTT, and ImageNet's own names of these classes, shortened to their first word where it tells.
INDICES = {
    "nette": [0, 217, 482, 491, 497, 566, 569, 571, 574, 701],
    "woof": [193, 182, 258, 162, 155, 167, 159, 273, 207, 229],
    "squawk": [84, 130, 88, 144, 145, 22, 96, 9, 100, 89],
    "fruit": [953, 954, 949, 950, 951, 957, 952, 945, 943, 948],
    "meow": [281, 282, 283, 284, 285, 291, 292, 290, 289, 287],
    "yellow": [309, 986, 954, 951, 987, 779, 599, 291, 72, 11],
}


def flat(files: dict[str, bytes]) -> tuple[dict[str, bytes], list[str]]:
    """The images of ``val`` in one folder, and their classes in the order of their numbers."""
    images = {name.split("/")[2]: (name.split("/")[1], data) for name, data in files.items() if name.startswith("val/")}
    moved = {name: data for name, data in files.items() if not name.startswith("val/")}
    return moved | {f"val/{name}": images[name][1] for name in images}, [images[name][0] for name in sorted(images)]


def refusal(source, error=DataError) -> str:
    return refused(source.load, error)


def counts(dataset) -> list[list[int]]:
    train = torch.cat([dataset.train.targets, dataset.validation.targets])
    return [part.bincount(minlength=len(dataset.classes)).tolist() for part in (train, dataset.test.targets)]


# the subsets


def test_the_subsets_are_those_of_the_field_by_index_number_and_name():
    from torchvision.models import ResNet18_Weights

    names = ResNet18_Weights.DEFAULT.meta["categories"]
    for subset, indices in INDICES.items():
        assert [names[index] for index in indices] == list(SUBSETS[subset].values())
    pairs = {(i, n) for subset, indices in INDICES.items() for i, n in zip(indices, SUBSETS[subset], strict=True)}
    assert len(pairs) == 57  # banana, lemon and lion are yellow too
    ascending = sorted(pairs)
    assert [wnid for _, wnid in ascending] == sorted(wnid for _, wnid in pairs)


def test_words_and_labels_are_read_in_every_form_that_is_handed_around():
    assert words("n01440764 tench, Tinca tinca\nn01443537 : goldfish\nn02012849\tcrane\n# no\n") == {
        "n01440764": "tench",
        "n01443537": "goldfish",
        "n02012849": "crane",
    }
    assert tuple(readable(WNIDS, words(WORDS)).values()) == NAMES
    text = "ImageId,PredictionString\nILSVRC2012_val_00048981,n03995372 85 1 499 272 \nval_0.JPEG\tn03444034\t0\n"
    assert labels(text) == {"ILSVRC2012_val_00048981": "n03995372", "val_0": "n03444034"}


# Tiny-ImageNet


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DDBENCH_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def test_tiny_imagenet_is_read_as_its_authors_packed_it(data):
    files = tiny_imagenet()
    folder(data / "tiny-imagenet-200", files)
    dataset = TinyImageNet().load()
    assert dataset.classes == NAMES
    assert counts(dataset) == [[6] * 4, [3] * 4]
    assert dataset.train.shape == (3, 64, 64)
    assert torch.allclose(dataset.train.preprocessing.mean, torch.tensor([0.485, 0.456, 0.406]))
    assert dataset.test.preprocessing.std is not None
    assert dataset.facts["licence"].endswith("non-commercial research terms of access")
    second = decode(files["val/images/val_4.JPEG"], 3).pixels  # 0, 4 and 8 are tenches
    assert np.array_equal(dataset.test.pixels[1].numpy(), second)
    grey = dataset.train.pixels.store.array[2]
    assert torch.equal(grey[0], grey[1])


def test_the_zip_of_tiny_imagenet_is_read_without_unpacking_it(data, tmp_path):
    unpacked = TinyImageNet(root=folder(tmp_path / "set", tiny_imagenet())).load()
    zipped(data / "tiny-imagenet-200.zip", tiny_imagenet(top="tiny-imagenet-200/"))
    assert TinyImageNet().load().digest == unpacked.digest
    above = folder(tmp_path / "above", tiny_imagenet(top="tiny-imagenet-200/"))
    assert TinyImageNet(root=above).load().digest == unpacked.digest


def test_a_validation_part_sorted_into_classes_is_the_same(data, tmp_path):
    files = tiny_imagenet()
    wnid = labels(files["val/val_annotations.txt"].decode())
    moved = {
        f"val/{wnid[Path(name).stem]}/images/{Path(name).name}" if name.startswith("val/images") else name: data
        for name, data in files.items()
    }
    dataset = TinyImageNet(root=folder(tmp_path / "sorted", moved)).load()
    assert dataset.digest == TinyImageNet(root=folder(tmp_path / "set", files)).load().digest


@pytest.mark.parametrize("wanted", [("n02012849", "n01440764"), ("crane (n02012849)", "tench")])
def test_classes_of_tiny_imagenet_are_chosen_by_name_or_number(tmp_path, wanted):
    source = TinyImageNet(root=folder(tmp_path / "set", tiny_imagenet()), classes=wanted, zca=False)
    dataset = source.load()
    assert dataset.classes == ("crane (n02012849)", "tench")
    assert counts(dataset) == [[6, 6], [3, 3]]
    assert len(dataset.train.pixels.store.array) == 18
    assert "names 'tensh'; did you mean 'tench'?" in refusal(
        TinyImageNet(root=source.root, classes=("tensh", "tench")), UsageError
    )


def test_a_missing_tiny_imagenet_is_told_with_where_and_how(data):
    message = refusal(TinyImageNet())
    assert f"there is no {data / 'tiny-imagenet-200'}, nor .zip; get tiny-imagenet-200.zip from" in message
    assert message.endswith("or pass -o dataset.root=FOLDER_OR_ARCHIVE")
    assert TinyImageNet().missing() == message
    folder(data / "tiny-imagenet-200", tiny_imagenet())
    assert "have to be decoded" in (TinyImageNet().missing() or "")
    TinyImageNet().load()
    assert TinyImageNet().missing() is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: {"a.txt": b""}, "has no train folder, so it is not Tiny-ImageNet"),
        (
            lambda files: {name: data for name, data in files.items() if "annotations" not in name},
            "has no val/val_annotations.txt, which tells the classes of its test images",
        ),
        (
            lambda files: files | {"val/images/val_99.JPEG": photo(1, 64, 64)},
            "does not tell the class of val/images/val_99.JPEG",
        ),
        (lambda files: files | {"val/val_annotations.txt": b"\xff\xfe"}, "val_annotations.txt of Tiny-ImageNet"),
        (
            lambda files: {name: data for name, data in files.items() if not name.startswith("train/n01443537/images")},
            "no train images of 'n01443537'",
        ),
    ],
)
def test_a_damaged_tiny_imagenet_is_told(tmp_path, change, message):
    for root in (
        folder(tmp_path / "set", change(tiny_imagenet())),
        zipped(tmp_path / "set.zip", change(tiny_imagenet())),
    ):
        assert message in refusal(TinyImageNet(root=root))


# ImageNet


def test_imagenet_is_read_from_folders_of_classes_at_both_sizes(data):
    folder(data / "imagenet", imagenet() | {"LOC_synset_mapping.txt": WORDS.replace("\t", " ").encode()})
    dataset = ImageNet().load()
    assert (dataset.name, dataset.classes) == ("imagenet", NAMES)
    assert counts(dataset) == [[5] * 4, [2] * 4]
    assert dataset.train.shape == (3, 64, 64)
    assert torch.allclose(dataset.train.preprocessing.mean, torch.tensor([0.485, 0.456, 0.406]))
    assert ImageNet(size=128).load().test.shape == (3, 128, 128)


@pytest.mark.parametrize("value", ["32", "100", "192", "large"])
def test_other_sizes_are_refused(value):
    with pytest.raises(UsageError, match=r"dataset\.size"):
        make(ImageNet, {"size": value}, "dataset")
    assert make(ImageNet, {"size": "128", "subset": "meow", "classes": "lion,tiger"}, "dataset").size == 128


def test_a_photo_is_resized_by_its_shorter_side_and_cut_in_the_middle(data):
    bars = np.zeros((100, 300, 3), np.uint8)
    bars[:, 100:200] = 255
    files = imagenet() | {f"val/{WNIDS[0]}/ILSVRC2012_val_00000001.JPEG": saved(Image.fromarray(bars), "JPEG")}
    folder(data / "imagenet", files)
    cut = ImageNet().load().test.pixels[0]
    assert int(cut[:, :, 4:-4].min()) > 240


@pytest.mark.parametrize("subset", ["nette", "yellow"])
def test_a_subset_is_its_ten_classes_in_its_order_and_nothing_else_is_decoded(data, subset):
    numbers = list(SUBSETS[subset])
    folder(data / "imagenet", imagenet([*numbers, "n01443537", "n15075141"], train=3, val=1))
    dataset = ImageNet(subset=subset).load()
    assert dataset.name == f"imagenet-{subset}"
    assert dataset.classes == tuple(SUBSETS[subset].values())
    assert len(dataset.train.pixels.store.array) == 40
    (last,) = (data / "imagenet/val" / numbers[-1]).iterdir()
    assert np.array_equal(dataset.test.pixels[9].numpy(), decode(last.read_bytes(), 3, 64).pixels)
    some = ImageNet(subset=subset, classes=(numbers[3], dataset.classes[1])).load()
    assert some.classes == (dataset.classes[3], dataset.classes[1])


def test_a_subset_that_is_not_there_is_told(data):
    folder(data / "imagenet", imagenet())
    message = refusal(ImageNet(subset="meow"))
    assert "lacks classes of the subset meow: 'n02123045 (tabby)'" in message


def test_all_thousand_classes_have_names_without_a_file_of_words(data, monkeypatch):
    monkeypatch.setattr("ddbench_datasets.imagenet.COUNT", 4)
    weights = SimpleNamespace(meta={"categories": ["a", "b", "c", "d"]})
    monkeypatch.setattr("torchvision.models.ResNet18_Weights", SimpleNamespace(DEFAULT=weights))
    folder(data / "imagenet", imagenet())
    assert ImageNet().load().classes == ("a", "b", "c", "d")


def test_only_the_classes_that_are_used_are_listed_and_decoded(data, monkeypatch):
    folder(data / "imagenet", imagenet())
    dataset = ImageNet(classes=("n03126707", "n01440764")).load()
    assert dataset.classes == ("n03126707", "tench")  # no file of words, but the subsets know a tench
    assert len(dataset.train.pixels.store.array) == 14
    (data / "imagenet/train/n01443537/more.JPEG").write_bytes(b"")
    assert ImageNet(classes=("n03126707", "n01440764")).missing() is None
    assert ImageNet().missing() is not None
    assert "dataset.classes names 'n09999999'" in refusal(ImageNet(classes=("n09999999", "tench")), UsageError)


def kit(order: list[str], known: list[str]) -> dict[str, bytes]:
    """The development kit's files, whose numbers are not in the order of the WordNet numbers."""
    from scipy.io import savemat

    numbers = {wnid: len(known) - k for k, wnid in enumerate(known)}
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    synsets = np.array([(numbers[wnid], wnid, "words", 0) for wnid in known] + [(1001, "n00000001", "thing", 5)], kind)
    savemat(stream := io.BytesIO(), {"synsets": synsets.reshape(-1, 1)})
    truth = "".join(f"{numbers[wnid]}\n" for wnid in order)
    return {"meta.mat": stream.getvalue(), "ILSVRC2012_validation_ground_truth.txt": truth.encode()}


@pytest.mark.parametrize("form", ["csv", "annotations", "numbers", "synsets", "kaggle"])
def test_a_flat_validation_part_with_a_file_of_classes_is_the_same(data, tmp_path, form):
    sorted_files = imagenet() | {"words.txt": WORDS.encode()}
    wanted = ImageNet(root=folder(tmp_path / "sorted", sorted_files)).load().digest
    files, order = flat(sorted_files)
    names = [f"ILSVRC2012_val_{i:08}" for i in range(1, len(order) + 1)]
    if form in ("csv", "kaggle"):
        lines = [f"{name},{wnid} 1 2 3 4 {wnid} 1 2 3 4" for name, wnid in zip(names, order, strict=True)]
        files["LOC_val_solution.csv"] = "\n".join(["ImageId,PredictionString", *lines]).encode()
    if form == "annotations":
        lines = [f"{name}.JPEG\t{wnid}\t0\t0" for name, wnid in zip(names, order, strict=True)]
        files["val/val_annotations.txt"] = "\n".join(lines).encode()
    if form == "numbers":
        devkit = kit(order, sorted(WNIDS))
        files |= {f"ILSVRC2012_devkit_t12/data/{name}": content for name, content in devkit.items()}
    if form == "synsets":
        files["imagenet_2012_validation_synset_labels.txt"] = "\n".join(order).encode()
    if form == "kaggle":
        inner = "ILSVRC/Data/CLS-LOC"
        files = {f"{inner}/{n}" if n.startswith(("train", "val")) else n: content for n, content in files.items()}
    folder(data / "imagenet", files)
    assert ImageNet().load().digest == wanted


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({}, "none of LOC_val_solution.csv, val_annotations.txt"),
        ({"ILSVRC2012_validation_ground_truth.txt": b"1\n2\n"}, "meta.mat does, which is not beside it"),
        ({"ILSVRC2012_validation_ground_truth.txt": b"1\n2\n", "meta.mat": b"no"}, "cannot be understood"),
        ({"LOC_val_solution.csv": b"ILSVRC2012_val_00000001,n01440764 1"}, "no file of"),
        ({"LOC_val_solution.csv": b"\xff\xff"}, "cannot be read"),
    ],
)
def test_a_flat_validation_part_without_usable_classes_is_told(data, more, message):
    folder(data / "imagenet", flat(imagenet())[0] | more)
    assert message in refusal(ImageNet())


def test_a_missing_imagenet_is_told_with_where_and_how(data):
    message = refusal(ImageNet())
    assert f"there is no folder {data / 'imagenet'}; get it from https://image-net.org" in message
    assert ImageNet().missing() == message
    (data / "imagenet" / "train").mkdir(parents=True)
    assert "has no folder val, so it is not ImageNet" in refusal(ImageNet())
    (data / "imagenet" / "val").mkdir()
    assert "has no folders such as n01440764, one for each class" in refusal(ImageNet())


def test_broken_photos_of_imagenet_are_named_or_skipped(data):
    folder(data / "imagenet", imagenet() | {f"train/{WNIDS[1]}/{WNIDS[1]}_3.JPEG": b"\xff\xd8\xff"})
    assert refusal(ImageNet()).startswith(f"train/{WNIDS[1]}/{WNIDS[1]}_3.JPEG ")
    assert counts(ImageNet(skip_broken=True).load())[0] == [5, 4, 5, 5]


def test_files_beside_the_images_change_names_but_decode_nothing_again(data):
    root = Path(folder(data / "imagenet", imagenet()))
    assert ImageNet().load().classes == ("tench", *WNIDS[1:])
    (root / "words.txt").write_text(WORDS)
    (root / "readme.txt").write_text("words")
    assert ImageNet().missing() is None
    assert ImageNet().load().classes == NAMES


def test_a_copy_of_imagenet_elsewhere_is_not_decoded_again(data, tmp_path):
    first = folder(data / "imagenet", imagenet())
    ImageNet(root=first).load()
    copy = folder(tmp_path / "copy", imagenet())
    assert ImageNet(root=copy).missing() is None
    assert len(list(cache.home().glob("datasets/*/pixels.npy"))) == 1


def test_each_source_says_what_it_is_and_takes_the_common_options(data):
    for source in (TinyImageNet, ImageNet, Images):
        assert {"licence", "images"} <= source.about.keys()
        made = make(source, {"zca": "true", "limit": "50", "noise": "0.1", "skip_broken": "true"}, "dataset")
        assert (made.zca, made.limit, made.noise, made.skip_broken) == (True, 50, 0.1, True)
    folder(data / "imagenet", imagenet() | {"words.txt": WORDS.encode()})
    dataset = ImageNet(limit=12, noise=0.1, validation=0.5).load()
    assert counts(dataset)[1] == [2] * 4
    assert sorted(counts(dataset)[0]) == [2, 3, 3, 4]


def test_the_images_source_reads_imagenet_too(data):
    where = folder(data / "imagenet", imagenet())
    dataset = Images(root=where, size=64).load()
    assert dataset.facts["test"] == "the folder 'val', since there is no 'test' with classes"
    assert torch.equal(dataset.test.pixels[:], ImageNet().load().test.pixels[:])


def test_an_image_beside_the_folders_of_imagenet_is_left_alone(data):
    folder(data / "imagenet", imagenet() | {"cover.jpg": photo(1, 64, 64)})
    assert counts(ImageNet().load()) == [[5] * 4, [2] * 4]


def test_a_class_of_tiny_imagenet_that_is_not_chosen_may_be_missing(tmp_path):
    files = {name: data for name, data in tiny_imagenet().items() if f"{WNIDS[1]}_" not in name}
    where = folder(tmp_path / "set", files | {f"train/{WNIDS[1]}/{WNIDS[1]}_boxes.txt": b""})
    assert f"no train images of '{WNIDS[1]}'" in refusal(TinyImageNet(root=where))
    chosen = TinyImageNet(root=where, classes=("tench", WNIDS[2])).load()
    assert chosen.classes == (NAMES[0], NAMES[2])


def test_texts_that_tell_classes_are_bounded_and_utf8(tmp_path, monkeypatch):
    files, _ = flat(imagenet())
    where = folder(tmp_path / "set", files | {"LOC_val_solution.csv": b"ImageId,PredictionString\n\xff\xfe"})
    assert "LOC_val_solution.csv cannot be read as UTF-8 text; get it again" in refusal(ImageNet(root=where))
    monkeypatch.setattr(sources, "TEXT", 10)
    assert "LOC_val_solution.csv has 0 MB, but may have 0" in refusal(ImageNet(root=where))
