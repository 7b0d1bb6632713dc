"""Trees of images as people have them: nothing vanishes without a word, and nothing comes in that was not meant."""

from __future__ import annotations

import io
import os
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from ddbench_datasets import Images
from ddbench_datasets.layout import arrange, natural
from pictures import folder, picture, refusal, saved, tarred, tree, zipped
from PIL import Image, features

from ddbench import DataError, UsageError
from ddbench.base.options import make

LAID_OUT = {"dir": folder, "zip": zipped, "tar": tarred}


@pytest.fixture(params=LAID_OUT)
def root(request, tmp_path):
    """A function that lays out files in a folder or in an archive."""
    return lambda files: LAID_OUT[request.param](tmp_path / f"set.{request.param}", files)


def flat(files: dict[str, bytes]) -> dict[str, bytes]:
    """The same without parts."""
    return {name.removeprefix("train/"): data for name, data in files.items() if name.startswith("train/")}


def sizes(dataset) -> list[int]:
    return [len(part) for part in (dataset.train, dataset.validation, dataset.test)]


# what counts as an image


def test_all_spellings_of_suffixes_are_read(root):
    suffixes = ["jpg", "JPG", "jpeg", "JPEG", "jpe", "jfif", "tif", "TIFF", "png", "PNG", "webp", "bmp", "gif", "ppm"]
    files = {
        f"{part}/{label}/{i}.{suffix}": picture(i, kind="JPEG" if suffix.lower().startswith("j") else "PNG")
        for part in ("train", "test")
        for label in ("cat", "dog")
        for i, suffix in enumerate(suffixes)
    }
    assert sizes(Images(root=root(files)).load()) == [25, 3, 28]


def test_avif_is_read_where_pillow_can(tmp_path):
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    files = {name.replace(".png", ".avif"): picture(0, size=(16, 16), kind="AVIF") for name in tree()}
    assert sizes(Images(root=folder(tmp_path / "set", files)).load()) == [11, 1, 6]


def test_what_is_left_out_is_counted_and_named(root):
    junk = ["train/cat/.DS_Store", "train/cat/Thumbs.db", "train/dog/._0.png", "notes.txt", "train/loose.png"]
    junk += ["test/dog/mask.npy", "train/cat/photo.heic", "extra/1.png"]
    dataset = Images(root=root(tree() | dict.fromkeys(junk, b"x"))).load()
    assert sizes(dataset) == [11, 1, 6]
    left = dataset.facts["left out"]
    assert left.startswith("2 images and 6 other entries in no class: ")
    assert "'extra/" in left


@pytest.mark.parametrize("top", ["", "set/"])
def test_folders_beside_the_parts_are_counted_in_images(root, top):
    files = {f"{top}{name}": data for name, data in tree().items()}
    files |= {f"{top}extra/{label}/{i}.png": b"x" for label in ("cat", "dog") for i in range(20)}
    files |= {f"{top}unlabelled/{i}.png": b"x" for i in range(7)} | {f"{top}unlabelled/x.txt": b"x", f"{top}x.md": b""}
    files |= {f"{top}.git/{i}": b"" for i in range(9)}
    dataset = Images(root=root(files)).load()
    assert dataset.facts["left out"] == (
        f"47 images and 3 other entries in no class: '{top}.git/', '{top}extra/' (40 images), "
        f"'{top}unlabelled/' (7 images and 1 other entry), '{top}x.md'"
    )


def test_a_folder_beside_the_parts_that_has_very_many_images_is_not_walked_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("ddbench_datasets.sources.COUNTED", 5)
    files = {f"extra/{i}/{j}.png": b"x" for i in range(9) for j in range(4)}
    left = Images(root=folder(tmp_path / "set", tree() | files)).load().facts["left out"]
    assert left == "at least 8 images in no class: 'extra/' (at least 8 images)"


def test_a_clean_dataset_has_nothing_left_out(root):
    assert "left out" not in Images(root=root(tree())).load().facts


# classes


@pytest.mark.parametrize(
    "labels",
    [
        ("A", "B", "a", "b"),
        ("+", "-", "=", "_"),
        ("10", "20", "50", "5"),
        ("5_euro", "10_euro", "5-euro"),
        ("a", "a1", "a 1", "1a", "1"),
        ("1.0", "1.1", "01", "1"),
        ("cat", "cat2", "Cat", "CAT"),
        ("c", "c++", "c#", ".net"),
        ("ß", "ss", "SS"),
    ],
)
@pytest.mark.parametrize("parts", [True, False])
def test_names_that_differ_in_any_character_are_different_classes(tmp_path, labels, parts):
    files = tree(labels, train=6)
    where = folder(tmp_path / "set", files if parts else flat(files))
    dataset = Images(root=where).load()
    assert dataset.classes == tuple(sorted(labels, key=natural))
    chosen = Images(root=where, classes=(labels[2], labels[0])).load()
    assert chosen.classes == (labels[2], labels[0])
    if parts:
        seen = {bytes(image.numpy()) for image in chosen.test.pixels}
        wanted = [files[f"test/{labels[k]}/{i}.png"] for k in (0, 2) for i in range(3)]
        assert seen == {bytes(np.asarray(opened(data)).transpose(2, 0, 1).copy()) for data in wanted}


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("parts", [True, False])
def test_a_class_may_begin_with_a_dot_but_folders_of_tools_are_none(tmp_path, parts):
    files = tree((".net", "c++", "java"), train=6) | {"train/.ipynb_checkpoints/0.png": b"", "train/.idea/x.xml": b""}
    dataset = Images(root=folder(tmp_path / "set", files if parts else flat(files))).load()
    assert dataset.classes == (".net", "c++", "java")
    assert dataset.facts["left out"].startswith("2 other entries in no class: '")


def test_a_hidden_folder_in_one_part_is_left_out_unless_it_is_chosen(root):
    files = tree() | {"train/.hidden/1.png": picture(1)}
    dataset = Images(root=root(files)).load()
    assert dataset.classes == ("cat", "dog")
    assert "'train/.hidden/" in dataset.facts["left out"]
    assert "only train has '.hidden'" in refusal(root=root(files), classes=("cat", ".hidden"))


@pytest.mark.parametrize("top", ["", "vehicles/"])
@pytest.mark.parametrize("labels", [("bus", "car", "train"), ("exam", "test"), ("test", "train", "validity")])
def test_a_class_may_be_called_train_or_test(root, labels, top):
    files = {top + name: data for name, data in flat(tree(labels, train=20)).items()}
    dataset = Images(root=root(files)).load()
    assert dataset.classes == labels
    assert dataset.facts["test"].startswith("a fifth of the images of each class")


def test_parts_may_hold_a_class_called_train(root):
    assert Images(root=root(tree(("bus", "test", "train")))).load().classes == ("bus", "test", "train")


def test_parts_without_classes_are_not_two_classes(root):
    files = {f"{part}/{i}.png": picture(i) for part in ("train", "test") for i in range(9)}
    assert "has no train folder with classes in it" in refusal(root=root(files))


def test_a_name_zipped_on_macos_and_on_linux_is_one_class(tmp_path):
    files = {
        unicodedata.normalize("NFD" if name.startswith("train") else "NFC", name): data
        for name, data in tree(("café", "über", "cat")).items()
    }
    where = folder(tmp_path / "set", files)
    dataset = Images(root=where).load()
    assert dataset.classes == ("café", "cat", "über")
    assert sizes(dataset) == [16, 2, 9]
    for form in ("NFC", "NFD"):
        chosen = Images(root=where, classes=("cat", unicodedata.normalize(form, "café"))).load()
        assert chosen.classes == ("cat", "café")


def test_names_that_are_spelt_alike_in_all_parts_stay_as_they_are_and_can_be_chosen(tmp_path):
    odd = unicodedata.normalize("NFD", "café")
    where = folder(tmp_path / "set", tree((odd, "cat")))
    assert Images(root=where).load().classes == (odd, "cat")
    assert Images(root=where, classes=("café", "cat")).load().classes == (odd, "cat")


@pytest.mark.parametrize("parts", [True, False])
def test_two_spellings_of_one_name_beside_each_other_are_refused(tmp_path, parts):
    files = tree(("café", unicodedata.normalize("NFD", "café"), "cat", "dog"))
    where = folder(tmp_path / "set", files if parts else flat(files))
    assert "in two spellings of Unicode that look alike; give them one folder" in refusal(root=where)
    assert Images(root=where, classes=("cat", "dog")).load().classes == ("cat", "dog")


# what was not chosen


def test_a_class_that_is_not_chosen_may_be_broken(root):
    files = {n: d for n, d in tree(("0", "180", "90")).items() if not n.startswith("test/180")}
    where = root(files)
    assert "only train has '180'; make them the same, or choose by dataset.classes" in refusal(root=where)
    assert Images(root=where, classes=("0", "90")).load().classes == ("0", "90")
    assert "only train has '180'" in refusal(root=where, classes=("0", "180"))


@pytest.mark.parametrize("broken", [{"few/0.png": b"x"}, {"none/readme.txt": b""}, {"no\nname/0.png": b"x"}])
def test_a_class_that_is_not_chosen_may_be_too_small_to_be_divided(tmp_path, broken):
    files = flat(tree(train=20))
    where = folder(tmp_path / "set", files | broken)
    refusal(root=where)
    chosen = Images(root=where, classes=("cat", "dog")).load()
    assert sum(sizes(chosen)) == 40
    assert min(sizes(chosen)) >= 3


def test_the_images_of_a_class_are_divided_alike_whichever_classes_are_chosen(tmp_path):
    where = folder(tmp_path / "set", flat(tree(("a", "b", "c"), train=20)))
    whole, some = Images(root=where).load(), Images(root=where, classes=("c", "a")).load()
    parts = [{bytes(i.numpy()) for i in dataset.test.pixels} for dataset in (whole, some)]
    assert parts[1] < parts[0]


def test_an_unknown_class_is_refused_with_the_nearest_before_anything_is_decoded(root):
    with pytest.raises(UsageError, match=r"names 'dgo'; did you mean 'dog'\?; the classes are cat, dog"):
        Images(root=root(tree() | {"train/cat/0.png": b""}), classes=("cat", "dgo")).load()


def test_classes_with_commas_are_chosen_in_quotes(tmp_path):
    labels = ("red, green", "blue", 'the "best"', " spaced ")
    where = folder(tmp_path / "set", tree(labels))
    text = 'blue, "red, green","the ""best"""," spaced "'
    made = make(Images, {"root": where, "classes": text}, "dataset")
    assert made.classes == ("blue", "red, green", 'the "best"', " spaced ")
    assert made.load().classes == made.classes


# parts


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev"])
def test_a_validation_part_beside_test_is_validated_on(root, name):
    files = tree() | {f"{name}/{label}/{i}.png": picture(900 + i) for label in ("cat", "dog") for i in range(4)}
    where = root(files)
    dataset = Images(root=where).load()
    assert sizes(dataset) == [12, 8, 6]
    assert dataset.facts["validation"] == f"the folder '{name}'"
    without = Images(root=folder(Path(where).parent / "without", tree())).load()
    assert torch.equal(dataset.test.pixels[:], without.test.pixels[:])
    assert torch.equal(dataset.train.preprocessing.mean, without.train.preprocessing.mean)
    held = {bytes(image.numpy()) for image in dataset.validation.pixels}
    assert held == {bytes(np.asarray(opened(picture(900 + i))).transpose(2, 0, 1).copy()) for i in range(4)}
    assert dataset.validation.targets.tolist() == [0] * 4 + [1] * 4
    assert Images(root=where).missing() is None


def test_a_validation_part_follows_the_options(root):
    files = tree(("a", "b", "c"), train=20)
    files |= {f"val/{label}/{i}.png": picture(i) for label in "abc" for i in range(10)}
    options = {"classes": ("c", "a"), "imbalance": 2.0, "limit": 20, "noise": 0.5, "zca": True}
    dataset = Images(root=root(files), **options).load()
    assert sizes(dataset) == [20, 15, 6]
    assert dataset.train.preprocessing.kind == dataset.validation.preprocessing.kind == "zca"
    clean = Images(root=root(files), **options | {"noise": 0.0}).load()
    assert clean.validation.targets.bincount().tolist() == [10, 5]
    assert int((clean.validation.targets != dataset.validation.targets).sum()) == round(0.5 * 15)


def test_a_fraction_to_validate_on_beside_a_part_for_it_is_refused(root):
    files = tree() | {f"val/{label}/0.png": picture(1) for label in ("cat", "dog")}
    with pytest.raises(UsageError, match=r"dataset\.validation=0\.2 asks for a fraction .* has a validation part"):
        Images(root=root(files), validation=0.2).load()


def test_a_validation_part_must_have_the_classes_of_the_others(root):
    files = tree(("cat", "dog", "owl")) | {f"val/{label}/0.png": picture(1) for label in ("cat", "dog")}
    assert "train and test and val of" in (message := refusal(root=root(files)))
    assert "only train and test have 'owl'" in message
    assert sizes(Images(root=root(files), classes=("cat", "dog")).load()) == [12, 2, 6]


def test_two_parts_to_validate_on_are_refused(root):
    files = tree() | {f"{part}/{label}/0.png": picture(1) for label in ("cat", "dog") for part in ("val", "valid")}
    assert "has 'val', 'valid', so which one is to be validated on is unclear; leave one" in refusal(root=root(files))


def test_broken_validation_images_can_be_skipped(root):
    files = tree() | {f"val/{label}/{i}.png": picture(i) for label in ("cat", "dog") for i in range(3)}
    dataset = Images(root=root(files | {"val/cat/1.png": b""}), skip_broken=True).load()
    assert sizes(dataset) == [12, 5, 6]
    files |= {f"val/cat/{i}.png": b"" for i in range(3)}
    assert "all validation images of 'cat' are broken" in refusal(root=root(files), skip_broken=True)


# folders inside those of classes


def masked(second: str = "masks", first: str = "images") -> dict[str, bytes]:
    files = {name.rpartition("/"): data for name, data in tree().items()}
    made = {f"{head}/{first}/{tail}": data for (head, _, tail), data in files.items()}
    return made | {f"{head}/{second}/{tail}": picture(1) for (head, _, tail) in files}


@pytest.mark.parametrize("second", ["masks", "depth", "labels/colour", "originals", "2019"])
def test_images_in_several_folders_of_a_class_are_refused_until_one_is_chosen(root, second):
    where = root(masked(second))
    message = refusal(root=where)
    assert message.startswith("images of 'cat' in")
    assert "-o dataset.within=" in message
    chosen, plain = Images(root=where, within="images").load(), folder(Path(where).parent / "plain", tree())
    assert torch.equal(chosen.test.pixels[:], Images(root=plain).load().test.pixels[:])
    assert chosen.facts["left out"].startswith("18 images in no class: ")
    assert sizes(Images(root=where, within="all").load()) == [22, 2, 12]


def test_images_beside_a_folder_of_images_are_refused_too(root):
    where = root(tree() | {f"{part}/cat/masks/{i}.png": picture(i) for part in ("train", "test") for i in range(3)})
    assert "lie in several folders, '.', 'masks'" in refusal(root=where)
    assert sizes(Images(root=where, within=".").load()) == [11, 1, 6]


def test_one_folder_inside_each_class_is_no_question(root):
    files = {name.replace("/cat/", "/cat/images/"): data for name, data in tree().items()}
    assert sizes(Images(root=root(files)).load()) == [11, 1, 6]


def test_several_folders_in_a_class_that_is_not_chosen_are_no_question(root):
    files = tree(("cat", "dog", "owl")) | {"train/owl/masks/1.png": picture(1)}
    assert Images(root=root(files), classes=("cat", "dog")).load().classes == ("cat", "dog")


# masks beside images


def beside(form: str) -> dict[str, bytes]:
    files = tree(train=6)
    made = {}
    for name in files:
        head, _, last = name.rpartition("/")
        made[f"{head}/{form.format(last.removesuffix('.png'))}"] = picture(1)
    return files | made


@pytest.mark.parametrize(
    "form",
    [
        *("{}_mask.png", "{}_seg.png", "{}_label.png", "{}_gt.png", "{}-GT.PNG", "{}mask.png", "{} (mask).png"),
        *(
            "mask_{}.png",
            "mask{}.png",
            "{}_mask_1.png",
            "{}_segmentation.tif",
            "{}.labels.png",
            "{}.bmp",
            "{}_depth.jpg",
        ),
        *(
            "{}_image_mask.png",
            "{}_labelIds.png",
            "{}_thumb.png",
            '{}, "mask".png',
            "{} [mask].png",
            "{}_x_annotation.png",
        ),
    ],
)
@pytest.mark.parametrize("parts", [True, False])
def test_masks_beside_images_are_refused_until_it_is_said_what_counts(tmp_path, form, parts):
    files = beside(form)
    where = folder(tmp_path / "set", files if parts else flat(files))
    message = refusal(root=where)
    assert message.startswith("6 of the images of 'cat' in")
    pattern = re.search(r"-o 'dataset\.without=([^']*)'", message)[1]
    plain = Images(root=folder(tmp_path / "plain", tree(train=6) if parts else flat(tree(train=6)))).load()
    alone = make(Images, {"root": where, "without": pattern}, "dataset").load()
    assert torch.equal(alone.test.pixels[:], plain.test.pixels[:])
    assert alone.facts["left out"].startswith(f"{18 if parts else 12} images in no class: ")
    assert sum(sizes(Images(root=where, within="all").load())) == 2 * sum(sizes(plain))


@pytest.mark.parametrize("form", ["{}_copy.png", "{}_b.png", "masked{}x.png", "unmasked_{}.png", "{}0000.png"])
def test_other_names_beside_each_other_are_no_masks(tmp_path, form):
    assert sum(sizes(Images(root=folder(tmp_path / "set", beside(form))).load())) == 36


def test_masks_without_their_images_and_a_class_called_so_are_no_question(tmp_path):
    files = {name.replace(".png", "_mask.png"): data for name, data in tree(("mask", "no mask")).items()}
    assert Images(root=folder(tmp_path / "set", files)).load().classes == ("mask", "no mask")
    mixed = tree() | {f"train/dog/{i}.bmp": picture(i) for i in (0, 1)}
    assert sum(sizes(Images(root=folder(tmp_path / "mixed", mixed)).load())) == 20, "two twins may be chance"


def test_masks_in_a_class_that_is_not_chosen_are_no_question(tmp_path):
    files = tree(("cat", "dog", "owl")) | {"train/owl/0_mask.png": picture(1)}
    assert Images(root=folder(tmp_path / "set", files), classes=("cat", "dog")).load().classes == ("cat", "dog")


def test_patterns_that_leave_nothing_are_an_error(tmp_path):
    assert "no train images of 'cat'" in refusal(root=folder(tmp_path / "set", tree()), without=("*.PNG",))


# transparency and depth


def icon(x: int, y: int, upright: bool, colour: int = 0) -> bytes:
    """A bar in one colour whose shape lies in the alpha channel alone."""
    alpha = np.zeros((16, 16), np.uint8)
    alpha[(slice(1, 15), slice(x, x + 3)) if upright else (slice(y, y + 3), slice(1, 15))] = 255
    image = Image.new("RGBA", (16, 16), (colour, colour, colour, 0))
    image.putalpha(Image.fromarray(alpha))
    return saved(image)


def icons(colour: int = 0) -> dict[str, bytes]:
    random = np.random.default_rng(0)
    return {
        f"{part}/{label}/{i}.png": icon(*random.integers(1, 11, 2).tolist(), label == "pipe", colour)
        for part, count in (("train", 20), ("test", 10))
        for label in ("minus", "pipe")
        for i in range(count)
    }


def test_classes_of_icons_that_live_in_transparency_can_be_told_apart(tmp_path):
    dataset = Images(root=folder(tmp_path / "set", icons()), validation=0.05).load()
    total = len(dataset.train) + len(dataset.validation) + len(dataset.test)
    assert dataset.facts["transparent"] == f"{total} of {total} images have transparent parts, shown on white"
    rows = dataset.test.pixels[:].float().mean(1)
    wide = rows.mean(2).var(1) > rows.mean(1).var(1)  # a bar across changes from row to row
    accuracy = float(((~wide).long() == dataset.test.targets).float().mean())
    assert accuracy == 1.0
    assert dataset.train.pixels[:].aminmax() == (0, 255)


def test_the_ground_can_be_chosen_and_has_a_store_of_its_own(tmp_path):
    where = folder(tmp_path / "set", icons(colour=90))
    seen = {ground: Images(root=where, ground=ground).load() for ground in ("white", "black", "grey")}
    assert [int(seen[ground].test.pixels[0, 0, 0, 0]) for ground in seen] == [255, 0, 128]
    assert len({dataset.digest for dataset in seen.values()}) == 3
    with pytest.raises(DataError, match="they seem to be blank"):
        Images(root=where, ground="drop").load()


def test_icons_that_vanish_on_the_ground_are_named_with_the_option(tmp_path):
    where = folder(tmp_path / "set", icons(colour=255))
    message = refusal(root=where)
    assert message.startswith("train/minus/0.png is blank on white: its shape lies in its transparency alone, and 59")
    assert message.endswith("pass another -o dataset.ground (drop shows the colours below the transparency)")
    assert len(Images(root=where, ground="black").load().test) == 20


def test_colour_of_more_than_eight_bits_is_refused(root):
    deep = b"P6 6 6 4095\n" + bytes(2 * 3 * 36)
    message = refusal(root=root(tree() | {"test/dog/1.png": deep}))
    assert message.startswith("test/dog/1.png has more than 8 bits per channel (12), which would be cut")


# what may wait, and what may not be read


def test_a_root_that_is_a_pipe_or_a_device_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.zip")
    for path in (tmp_path / "pipe.zip", "/dev/zero"):
        assert "is a pipe or a device, and neither a folder nor a file" in refusal(root=str(path))


def test_names_are_arranged_without_any_file():
    names = [f"{part}/{label}/{i}.png" for part in ("train", "test") for label in "ab" for i in range(2)]
    layout = arrange([*names, "val/x.txt", "train/a/b.svg"], "somewhere")
    assert (layout.classes, layout.validation) == (("a", "b"), ())
    assert layout.notes == {"left out": "2 other entries in no class: 'train/a/b.svg', 'val/'"}
    with pytest.raises(DataError, match="no train images of 'a'"):
        arrange(names, "somewhere", within="nowhere")
