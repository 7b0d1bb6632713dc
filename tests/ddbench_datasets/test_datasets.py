"""The bundled datasets: what they load, what they refuse and how they say so."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ddbench_datasets import GIVEN, TORCHVISION, Digits, Images, Toy, register_datasets, sources
from ddbench_datasets.images import title
from ddbench_datasets.layout import natural
from ddbench_networks import ConvNet
from pictures import folder, picture, refusal, tree, zipped
from PIL import Image
from torch.nn.functional import cross_entropy

from ddbench import UsageError
from ddbench.base.options import make
from ddbench.data.pictures import LARGEST

SHARED = Path(__file__).parents[3] / "shared" / "data"
FLIPS = "color_crop_cutout_flip_scale_rotate"
NO_FLIPS = "color_crop_cutout_scale_rotate"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DDBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DDBENCH_DATA", raising=False)
    return tmp_path / "home"


def everything(dataset) -> torch.Tensor:
    """The train images that were loaded, those held out included, as sorted rows."""
    pixels = torch.cat([dataset.train.pixels[:], dataset.validation.pixels[:]])
    return pixels.flatten(1).unique(dim=0)


# The package


def test_importing_the_package_loads_no_library_that_only_some_datasets_need():
    heavy = {"torchvision", "sklearn", "PIL", "datasets"}
    code = f"import sys, ddbench_datasets; sys.exit(bool({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_all_sources_are_registered():
    registered = []
    register_datasets(lambda source, **_: registered.append(source.name))
    assert registered == [
        "digits",
        "toy",
        "images",
        "tinyimagenet",
        "imagenet",
        "hf",
        "mnist",
        "fashionmnist",
        "kmnist",
        "svhn",
        "cifar10",
        "cifar100",
        "stl10",
        "imagenette",
        "eurosat",
        "gtsrb",
    ]


@pytest.mark.parametrize("source", [*GIVEN, *TORCHVISION])
def test_options_read_from_text_and_out_of_range_ones_are_refused(source):
    made = make(source, {"validation": "0.2", "zca": "true", "limit": "50"}, "dataset")
    assert (made.validation, made.zca, made.limit) == (0.2, True, 50)
    for wrong in ({"validation": "-0.1"}, {"validation": "1"}, {"limit": "0"}):
        with pytest.raises(UsageError, match=r"dataset\.(validation|limit)"):
            make(source, wrong, "dataset")


# digits


def test_digits_split_into_1294_144_and_359_images_and_no_flip():
    digits = Digits().load()
    assert [len(part) for part in (digits.train, digits.validation, digits.test)] == [1294, 144, 359]
    assert digits.classes == tuple("0123456789")
    assert digits.train.shape == (1, 8, 8)
    assert digits.train.pixels[:].aminmax() == (0, 255)
    assert digits.augment == NO_FLIPS
    assert digits.facts["licence"] == "CC BY 4.0"


def test_digits_test_images_keep_the_class_proportions():
    test = Digits().load().test
    assert sorted(len(members) for members in test.members) == [35, 35, 36, 36, 36, 36, 36, 36, 36, 37]


def test_digits_are_the_same_on_every_load_whatever_the_global_seed():
    torch.manual_seed(1)
    first = Digits().load().digest
    torch.manual_seed(2)
    assert Digits().load().digest == first


def test_digits_limit_keeps_the_test_images():
    limited = Digits(limit=100).load()
    assert len(limited.train) + len(limited.validation) == 100
    assert torch.equal(limited.test.pixels[:], Digits().load().test.pixels[:])


def test_limit_below_two_images_per_class_is_refused_with_the_least_that_works():
    with pytest.raises(UsageError, match="ask for at least 20"):
        Digits(limit=19).load()
    assert min(len(m) for m in Digits(limit=20, validation=0.5).load().train.members) == 1


def test_limit_above_the_number_of_images_is_refused():
    with pytest.raises(UsageError, match="asks for more than the 1438 train images there are"):
        Digits(limit=2000).load()


# toy


def test_toy_has_the_asked_shape_and_counts():
    toy = Toy(classes=4, size=12, channels=3, per_class=10, test_per_class=5).load()
    assert toy.train.shape == (3, 12, 12)
    assert [len(part) for part in (toy.train, toy.validation, toy.test)] == [36, 4, 20]
    assert toy.classes == ("0", "1", "2", "3")


def test_toy_is_decided_by_its_seed_alone():
    torch.manual_seed(1)
    first = Toy().load().digest
    torch.manual_seed(2)
    assert Toy().load().digest == first
    assert Toy(seed=1).load().digest != first


def test_toy_train_and_test_images_differ():
    toy = Toy().load()
    train = {bytes(image.numpy()) for image in toy.train.pixels}
    assert not train & {bytes(image.numpy()) for image in toy.test.pixels}


def test_a_small_convnet_learns_toy_and_class_means_do_not():
    toy = Toy().load()
    train, test = (part[torch.arange(len(part))] for part in (toy.train, toy.test))
    means = train.labels.T @ train.images.flatten(1) / train.labels.sum(0)[:, None]
    nearest = torch.cdist(test.images.flatten(1), means).argmin(1)
    torch.manual_seed(0)
    network = ConvNet(width=16).build(toy.train.shape, 3)
    optimiser = torch.optim.SGD(network.parameters(), 0.03, 0.9)
    for _ in range(20):
        for batch in torch.randperm(len(train)).split(32):
            optimiser.zero_grad()
            cross_entropy(network(train.images[batch]), train.labels[batch]).backward()
            optimiser.step()
    truth = test.labels.argmax(1)
    assert (network(test.images).argmax(1) == truth).float().mean() > 0.85
    assert 0.5 < (nearest == truth).float().mean() < 0.85


def test_toy_can_be_whitened():
    assert Toy(zca=True).load().train.preprocessing.kind == "zca"


# images: what is found


def test_folders_named_by_numbers_are_sorted_as_numbers(tmp_path):
    labels = [str(k) for k in range(12)]
    files = tree(labels, train=2, test=1)
    dataset = Images(root=folder(tmp_path / "set", files)).load()
    assert dataset.classes == tuple(labels)
    last = np.asarray(Image.open(io.BytesIO(files["test/11/0.png"])))
    assert torch.equal(dataset.test.pixels[11], torch.tensor(last).permute(2, 0, 1))


def test_names_without_numbers_sort_alphabetically_and_equal_numbers_by_spelling():
    names = ["dog", "cat", "a10", "a2", "1", "01"]
    assert sorted(names, key=natural) == ["01", "1", "a2", "a10", "cat", "dog"]


def test_a_zip_gives_the_same_dataset_as_its_folder(tmp_path):
    files = tree(train=12)
    shuffled = {f"top/{name}": files[name] for name in sorted(files, reverse=True)}
    for limit in (None, 8):
        from_folder = Images(root=folder(tmp_path / "set", files), limit=limit).load()
        from_zip = Images(root=zipped(tmp_path / "set.zip", shuffled), limit=limit).load()
        assert from_zip.digest == from_folder.digest
    assert from_zip.name == from_folder.name == "set"
    assert from_zip.facts == {"source": "set.zip", "sha256": sources.identity(tmp_path / "set.zip")["sha256"]}


def test_one_top_folder_and_files_beside_it_are_accepted(tmp_path):
    files = {f"top/{name}": data for name, data in tree().items()} | {"README.md": b"hello", "docs/a.txt": b""}
    assert len(Images(root=folder(tmp_path / "a", files)).load().test) == 6
    assert len(Images(root=zipped(tmp_path / "a.zip", files)).load().test) == 6


def test_hidden_and_foreign_files_are_skipped(tmp_path):
    junk = ["train/cat/.DS_Store", "train/.hidden/1.png", "__MACOSX/train/cat/._0.png", "train/cat/notes.txt"]
    files = tree() | dict.fromkeys([*junk, "train/list.csv", "test/dog/Thumbs.db"], b"junk")
    for root in (folder(tmp_path / "set", files), zipped(tmp_path / "set.zip", files)):
        dataset = Images(root=root).load()
        assert dataset.classes == ("cat", "dog")
        assert len(dataset.test) == 6


def test_a_name_that_climbs_out_of_the_zip_is_not_followed_and_nothing_is_extracted(tmp_path, home):
    files = tree() | {"../train/cat/evil.png": picture(1), "../../evil.txt": b"evil"}
    dataset = Images(root=zipped(tmp_path / "set.zip", files)).load()
    assert len(dataset.train) + len(dataset.validation) == 12
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {"set.zip", "pixels.npy", "about.json", "lock"}


def test_flip_decides_the_augmentation(tmp_path):
    root = folder(tmp_path / "set", tree())
    assert Images(root=root).load().augment == FLIPS
    assert Images(root=root, flip=False).load().augment == NO_FLIPS


@pytest.mark.parametrize(
    ("name", "expected"), [("CIFAR 10 (new)", "cifar-10-new"), (".hid_den", "hid_den"), ("é", "images")]
)
def test_the_dataset_is_named_after_its_zip(name, expected):
    assert title(Path(f"/somewhere/{name}.zip")) == expected


def test_a_folder_name_keeps_what_looks_like_a_suffix(tmp_path):
    assert Images(root=folder(tmp_path / "v1.5", tree())).load().name == "v1.5"


# images: channels and sizes


def test_grey_images_give_one_channel_and_one_colour_image_gives_three(tmp_path):
    grey = tree(mode="L")
    assert Images(root=folder(tmp_path / "grey", grey)).load().train.shape == (1, 6, 6)
    mixed = grey | {"test/cat/0.png": picture(0)}
    dataset = Images(root=folder(tmp_path / "mixed", mixed)).load()
    assert dataset.train.shape == (3, 6, 6)
    assert torch.equal(dataset.train.pixels[:, 0], dataset.train.pixels[:, 2])


@pytest.mark.parametrize(("channels", "mode"), [("1", "RGB"), ("3", "L")])
def test_channels_can_be_asked_for(tmp_path, channels, mode):
    root = folder(tmp_path / "set", tree(mode=mode))
    assert Images(root=root, channels=channels).load().train.shape[0] == int(channels)


def test_images_of_several_sizes_are_refused_until_a_size_is_given(tmp_path):
    files = tree() | {"test/dog/1.png": picture(0, size=(5, 4))}
    root = folder(tmp_path / "set", files)
    message = refusal(root=root)
    assert "train/cat/0.png is 6x6, but test/dog/1.png is 5x4" in message
    assert "-o dataset.size=6" in message
    assert Images(root=root, size=4).load().test.shape == (3, 4, 4)


def test_transparency_and_palettes_become_plain_colour(tmp_path):
    stream, palette = io.BytesIO(), io.BytesIO()
    Image.new("RGBA", (6, 6), (10, 20, 30, 0)).save(stream, "PNG")
    Image.new("P", (6, 6)).save(palette, "PNG", transparency=b"\x00\x80")
    files = tree() | {"test/cat/0.png": stream.getvalue(), "test/cat/1.png": palette.getvalue()}
    where = folder(tmp_path / "set", files)
    test = Images(root=where, ground="drop").load().test
    assert test.pixels[0, :, 0, 0].tolist() == [10, 20, 30]
    message = refusal(root=where)
    assert message.startswith("test/cat/0.png is wholly transparent, and 1 more of 18 images are broken; pass another")


def test_sixteen_bit_images_are_refused_rather_than_clipped(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(np.full((6, 6), 40_000, np.uint16)).save(stream, "PNG")
    root = folder(tmp_path / "set", tree() | {"train/cat/0.png": stream.getvalue()})
    assert "train/cat/0.png has more than 8 bits" in refusal(root=root)


# images: limit


def test_limit_is_stratified_over_the_train_images_only(tmp_path):
    files = tree(train=20) | {f"train/dog/more{i}.png": picture(1000 + i) for i in range(20)}
    dataset = Images(root=folder(tmp_path / "set", files), limit=12).load()
    counts = torch.bincount(torch.cat([dataset.train.targets, dataset.validation.targets]))
    assert counts.tolist() == [4, 8]
    assert len(dataset.test) == 6


def test_limit_chooses_the_same_images_whatever_else_is_asked(tmp_path):
    root = folder(tmp_path / "set", tree(train=20))
    torch.manual_seed(1)
    chosen = everything(Images(root=root, limit=10).load())
    torch.manual_seed(2)
    for options in ({"validation": 0.4}, {"zca": True}, {"flip": False}, {"channels": "3"}, {"size": 6}):
        assert torch.equal(everything(Images(root=root, limit=10, **options).load()), chosen)


def test_only_the_images_within_the_limit_are_decoded(tmp_path, monkeypatch):
    opened = count_opened(monkeypatch)
    Images(root=zipped(tmp_path / "set.zip", tree(train=20)), limit=10).load()
    assert len(opened) == 1 + 10 + 6  # one to know their size and channels


# images: the cache


def count_opened(monkeypatch) -> list:
    opened, real = [], Image.open

    def counting(stream, *args, **options):
        opened.append(stream)
        return real(stream, *args, **options)

    monkeypatch.setattr(Image, "open", counting)
    return opened


@pytest.mark.parametrize("kind", [folder, zipped])
def test_second_load_decodes_nothing_and_gives_the_same(tmp_path, monkeypatch, kind):
    root = kind(tmp_path / "set.zip", tree())
    first = Images(root=root).load()
    opened = count_opened(monkeypatch)
    second = Images(root=root, validation=0.3, zca=True).load()
    assert not opened
    assert torch.equal(everything(second), everything(first))


def test_a_changed_image_is_decoded_again(tmp_path):
    for kind in (folder, zipped):
        root = kind(tmp_path / kind.__name__, tree())
        before = Images(root=root).load().digest
        kind(tmp_path / kind.__name__, tree() | {"train/cat/0.png": picture(999)})
        assert Images(root=root).load().digest != before


def test_a_file_swapped_for_one_of_equal_size_and_time_is_noticed(tmp_path):
    root = Path(folder(tmp_path / "set", tree()))
    before = sources.identity(root)
    target = root / "train/cat/0.png"
    status, data = target.stat(), target.read_bytes()
    target.write_bytes(data[:-1] + b"x")
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert sources.identity(root) != before


def test_a_damaged_cache_is_made_again(tmp_path, home):
    root = folder(tmp_path / "set", tree())
    first = Images(root=root).load().digest
    (stored,) = home.rglob("pixels.npy")
    stored.write_bytes(stored.read_bytes()[:-10])
    assert Images(root=root).load().digest == first
    (about,) = home.rglob("about.json")
    about.unlink()
    assert Images(root=root).load().digest == first


# images: refusals


def test_a_root_must_be_given():
    with pytest.raises(UsageError, match=r"-o dataset\.root=FOLDER_OR_ARCHIVE"):
        Images().load()


def test_a_missing_root_is_named(tmp_path):
    assert f"there is no folder, zip or tar {tmp_path / 'nowhere'}" in refusal(root=str(tmp_path / "nowhere"))


def test_a_root_that_is_no_zip_is_refused(tmp_path):
    (tmp_path / "set.zip").write_bytes(b"not a zip")
    assert "neither a folder nor a readable zip or tar" in refusal(root=str(tmp_path / "set.zip"))


def test_a_missing_test_folder_is_named_with_the_layout_that_is_wanted(tmp_path):
    files = {name: data for name, data in tree().items() if name.startswith("train")}
    message = refusal(root=folder(tmp_path / "set", files))
    assert f"{tmp_path / 'set'} has no test folder" in message
    assert "test/<class>/" in message


def test_folders_of_other_names_are_listed(tmp_path):
    files = {name.replace("train", "training").replace("test", "val"): data for name, data in tree().items()}
    for root in (folder(tmp_path / "set", files), zipped(tmp_path / "set.zip", files)):
        assert "its folders are 'training', 'val'" in refusal(root=root)


def test_several_datasets_in_one_folder_are_refused(tmp_path):
    files = {f"{top}/{name}": data for top in ("a", "b") for name, data in tree().items()}
    assert "holds several datasets, 'a', 'b'" in refusal(root=folder(tmp_path / "set", files))


def test_classes_that_differ_between_train_and_test_are_named(tmp_path):
    files = tree(("cat", "dog", "owl")) | {"test/fox/0.png": picture(0)}
    files = {name: data for name, data in files.items() if not name.startswith("test/owl")}
    message = refusal(root=folder(tmp_path / "set", files))
    assert "only train has 'owl', only test has 'fox'" in message


def test_an_empty_class_is_named(tmp_path):
    root = folder(tmp_path / "set", tree() | {"train/owl/readme.txt": b"", "test/owl/0.png": picture(0)})
    assert "no train images of 'owl'" in refusal(root=root)
    (tmp_path / "bare" / "test" / "owl").mkdir(parents=True)
    root = folder(tmp_path / "bare", tree() | {"train/owl/0.png": picture(0)})
    assert "no test images of 'owl'" in refusal(root=root)


def test_a_single_class_is_refused(tmp_path):
    assert "only the class 'cat'" in refusal(root=folder(tmp_path / "set", tree(("cat",))))


@pytest.mark.parametrize("damage", [lambda data: data[:200], lambda data: b"junk" + data, lambda _: b""])
def test_a_corrupt_jpeg_is_named(tmp_path, damage):
    whole = picture(0, size=(40, 40), kind="JPEG")
    files = tree(size=(40, 40)) | {"train/dog/photo.jpg": damage(whole)}
    for root in (folder(tmp_path / "set", files), zipped(tmp_path / "set.zip", files)):
        assert refusal(root=root).startswith("train/dog/photo.jpg ")


def test_a_flipped_byte_in_a_zip_is_named(tmp_path):
    root = Path(zipped(tmp_path / "set.zip", tree()))
    raw = bytearray(root.read_bytes())
    start = raw.index(b"train/cat/0.png") + 60
    raw[start] ^= 255
    root.write_bytes(bytes(raw))
    assert refusal(root=str(root)).startswith("train/cat/0.png cannot be read")


def test_a_zip_cut_short_is_refused(tmp_path):
    root = Path(zipped(tmp_path / "set.zip", tree()))
    root.write_bytes(root.read_bytes()[:-300])
    assert "neither a folder nor a readable zip or tar" in refusal(root=str(root))


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    assert "decompression bomb" in refusal(root=folder(tmp_path / "set", tree()))


def test_a_member_that_declares_too_much_is_refused_unread(tmp_path):
    root = zipped(tmp_path / "set.zip", tree() | {"test/cat/0.png": bytes(LARGEST + 1)})
    assert "test/cat/0.png has 100 MB" in refusal(root=root)


def test_an_unreadable_image_is_named_and_leaves_no_cached_pixels(tmp_path, home):
    root = folder(tmp_path / "set", tree())
    (tmp_path / "set" / "train" / "cat" / "link.png").symlink_to(tmp_path / "gone.png")
    assert refusal(root=root).startswith("train/cat/link.png cannot be read")
    assert not list(home.rglob("pixels.npy"))


# Real files


@pytest.mark.parametrize(
    ("file", "shape", "classes"),
    [
        ("mnist-png.zip", (1, 28, 28), tuple("0123456789")),
        (
            "cifar10-jpeg.zip",
            (3, 32, 32),
            ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        ),
    ],
)
def test_real_zips_load_with_a_limit(file, shape, classes):
    if not (SHARED / file).exists():
        pytest.skip(f"{SHARED / file} is not here")
    dataset = Images(root=str(SHARED / file), limit=200, flip=False).load()
    assert (dataset.train.shape, dataset.classes) == (shape, classes)
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [180, 20, 10_000]
    assert 14 <= dataset.train.smallest_class <= 18  # MNIST's classes have 5,421 to 6,742 images
