"""Datasets that torchvision downloads, from miniatures in the formats of the real files and without a network."""

from __future__ import annotations

import errno
import gzip
import os
import subprocess
import sys
from collections import Counter
from urllib.error import URLError

import numpy as np
import pytest
import torch
from ddbench_datasets import (
    CIFAR10,
    CIFAR100,
    GTSRB,
    KMNIST,
    MNIST,
    STL10,
    SVHN,
    TORCHVISION,
    EuroSAT,
    FashionMNIST,
    Imagenette,
)
from miniature import CIFAR10_CLASSES, CIFAR100_CLASSES, LAND, STL_CLASSES, TEST, TRAIN, offline, write
from refusals import refused

from ddbench import Dataset
from ddbench.base import cache
from ddbench.base.options import make
from ddbench.testing import check_dataset

SOURCES = {source.name: source for source in TORCHVISION}
FLIPS = "color_crop_cutout_flip_scale_rotate"
NO_FLIPS = "color_crop_cutout_scale_rotate"
LOSSY = {"imagenette", "eurosat"}  # JPEG files
DIGITS = tuple("0123456789")


@pytest.fixture
def folder():
    return cache.data_home()


def refusal(source) -> str:
    return refused(source.load)


def content(pixels, targets) -> Counter:
    """Images with their classes, in any order."""
    return Counter((image.tobytes(), int(target)) for image, target in zip(pixels, targets, strict=True))


def training(dataset: Dataset) -> Counter:
    parts = (dataset.train, dataset.validation)
    pixels = torch.cat([part.pixels[:] for part in parts]).numpy()
    return content(pixels, torch.cat([part.targets for part in parts]))


# What is read


@pytest.mark.parametrize("name", sorted(SOURCES.keys() - {"imagenette", "eurosat"}))
def test_pixels_and_classes_are_those_in_the_files(name, monkeypatch, capsys):
    files = write(name, monkeypatch)
    dataset = SOURCES[name]().load()
    assert capsys.readouterr().out == ""
    assert dataset.name == name
    assert training(dataset) == content(*files["train"])
    assert np.array_equal(dataset.test.pixels[:].numpy(), files["test"][0])
    assert dataset.test.targets.tolist() == files["test"][1]
    assert dataset.test.targets.dtype == torch.int64


@pytest.mark.parametrize(("size", "side"), [(128, 128), (64, 64)])
def test_imagenette_keeps_the_middle_of_the_longer_side(size, side, monkeypatch):
    files = write("imagenette", monkeypatch, per_class=(2, 1))
    dataset = make(Imagenette, {"size": size}, "dataset").load()
    assert dataset.test.shape == (3, side, side)
    assert dataset.test.targets.tolist() == files["test"][1]
    colours = torch.tensor(files["test"][0][:, :, :1, 20:21].astype(int))
    inner = dataset.test.pixels[:].int()[..., 4:-4]  # the white edges, cut off, shine through a little
    assert (inner - colours).abs().max() <= 12
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [18, 2, 10]


def test_imagenette_is_128_pixels_by_default():
    assert Imagenette().size == 128


def test_eurosat_is_divided_80_to_20_in_every_class_and_says_so(monkeypatch):
    files = write("eurosat", monkeypatch, per_class=(8, 2))
    dataset = EuroSAT().load()
    assert dataset.test.targets.bincount().tolist() == [2] * 10
    assert len(dataset.train) + len(dataset.validation) == 80
    colours = torch.tensor(files["train"][0][:, :, 0, 0].astype(int))
    found = torch.cat([part.pixels[:] for part in (dataset.train, dataset.validation, dataset.test)])[:, :, 32, 32]
    assert torch.cdist(colours.float(), found.float()).min(1).values.max() < 5  # each image is in one of the parts
    assert "80/20" in dataset.facts["split"]
    torch.manual_seed(1)
    assert EuroSAT().load().digest == dataset.digest


def test_gtsrb_takes_the_numbers_of_the_signs_from_the_files_and_resizes_to_32(monkeypatch):
    files = write("gtsrb", monkeypatch, per_class=(3, 1))
    dataset = GTSRB().load()
    assert dataset.train.shape == (3, 32, 32)
    assert dataset.test.targets.tolist() == files["test"][1]
    assert "30 times" in dataset.facts["validation"]


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("mnist", DIGITS),
        (
            "fashionmnist",
            ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        ("kmnist", ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")),
        ("svhn", DIGITS),
        ("cifar10", tuple(CIFAR10_CLASSES)),
        ("cifar100", tuple(CIFAR100_CLASSES)),
        ("stl10", STL_CLASSES),
        (
            "imagenette",
            (
                "tench",
                "English springer",
                "cassette player",
                "chain saw",
                "church",
                "French horn",
                "garbage truck",
                "gas pump",
                "golf ball",
                "parachute",
            ),
        ),
        ("eurosat", LAND),
    ],
)
def test_classes_have_their_official_names_and_order(name, classes, monkeypatch):
    write(name, monkeypatch, per_class=(2, 1))
    assert SOURCES[name]().load().classes == classes


def test_gtsrb_names_its_43_signs(monkeypatch):
    write("gtsrb", monkeypatch, per_class=(2, 1))
    classes = GTSRB().load().classes
    assert len(set(classes)) == 43
    assert [classes[k] for k in (0, 6, 13, 14, 17, 38, 42)] == [
        "Speed limit (20km/h)",
        "End of speed limit (80km/h)",
        "Yield",
        "Stop",
        "No entry",
        "Keep right",
        "End of no passing by vehicles over 3.5 metric tons",
    ]
    assert not any("," in name for name in classes)  # or the option dataset.classes could not name them


# How it is prepared


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("mnist", [0.1307], [0.3081]),
        ("fashionmnist", [0.2861], [0.3530]),
        ("svhn", [0.4377, 0.4438, 0.4728], [0.1980, 0.2010, 0.1970]),
        ("cifar10", [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]),
        ("cifar100", [0.5071, 0.4866, 0.4409], [0.2673, 0.2564, 0.2762]),
    ],
)
def test_mean_and_deviation_are_those_of_the_field(name, mean, std, monkeypatch):
    write(name, monkeypatch, per_class=(2, 1))
    preprocessing = SOURCES[name]().load().train.preprocessing
    assert torch.allclose(preprocessing.mean, torch.tensor(mean))
    assert torch.allclose(preprocessing.std, torch.tensor(std))


@pytest.mark.parametrize("name", ["kmnist", "stl10", "gtsrb"])
def test_where_the_field_has_no_constants_they_are_fitted(name, monkeypatch):
    files = write(name, monkeypatch, per_class=(2, 1))
    mean = SOURCES[name]().load().train.preprocessing.mean
    assert torch.allclose(mean.double(), torch.from_numpy(files["train"][0].mean((0, 2, 3)) / 255), atol=1e-6)


def test_cifar100_takes_the_statistics_of_cifar10_when_asked(monkeypatch):
    write("cifar100", monkeypatch, per_class=(2, 1))
    preprocessing = CIFAR100(statistics="cifar10").load().train.preprocessing
    assert torch.allclose(preprocessing.mean, torch.tensor([0.4914, 0.4822, 0.4465]))
    assert torch.allclose(preprocessing.std, torch.tensor([0.2023, 0.1994, 0.2010]))


def test_whitening_replaces_the_constants(monkeypatch):
    write("mnist", monkeypatch)
    assert MNIST(zca=True).load().train.preprocessing.kind == "zca"


@pytest.mark.parametrize("name", SOURCES)
def test_only_what_keeps_its_class_is_mirrored(name, monkeypatch):
    write(name, monkeypatch, per_class=(2, 1))
    mirrored = name not in {"mnist", "kmnist", "svhn", "gtsrb"}
    assert SOURCES[name]().load().augment == (FLIPS if mirrored else NO_FLIPS)


@pytest.mark.parametrize("name", SOURCES)
def test_what_a_source_says_of_itself_holds_without_the_data(name, monkeypatch):
    about = SOURCES[name].about
    assert (
        {"homepage", "licence", "images", "citation"}
        <= set(about)
        <= {"homepage", "licence", "licence_url", "images", "citation"}
    )
    assert all(isinstance(text, str) and text and "\n" not in text for text in about.values())
    write(name, monkeypatch, per_class=(2, 1))
    facts = SOURCES[name]().load().facts
    assert (facts["source"], facts["licence"]) == (about["homepage"], about["licence"])


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_keeps_its_contract(name, monkeypatch):
    write(name, monkeypatch)
    check_dataset(SOURCES[name])


# Options


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_chooses_classes_and_images(name, monkeypatch):
    write(name, monkeypatch)
    names = SOURCES[name]().load().classes
    dataset = SOURCES[name](classes=(names[7], names[2]), limit=8, noise=0.25, validation=0.5).load()
    assert dataset.classes == (names[7], names[2])
    assert len(dataset.train) + len(dataset.validation) == 8
    assert set(dataset.test.targets.tolist()) == {0, 1}


def test_chosen_classes_keep_their_images(monkeypatch):
    files = write("cifar10", monkeypatch)
    dataset = CIFAR10(classes=("truck", "cat")).load()
    wanted = {9: 0, 3: 1}
    pixels, targets = files["test"]
    kept = [i for i, target in enumerate(targets) if target in wanted]
    assert np.array_equal(dataset.test.pixels[:].numpy(), pixels[kept])
    assert dataset.test.targets.tolist() == [wanted[targets[i]] for i in kept]
    assert len(dataset.train) + len(dataset.validation) == 2 * TRAIN
    assert len(dataset.test) == 2 * TEST


def test_a_long_tail_and_wrong_labels_leave_the_test_part_alone(monkeypatch):
    files = write("svhn", monkeypatch)
    dataset = SVHN(imbalance=4, noise=0.5).load()
    assert len(dataset.train) + len(dataset.validation) < 10 * TRAIN
    assert np.array_equal(dataset.test.pixels[:].numpy(), files["test"][0])
    assert dataset.test.targets.tolist() == files["test"][1]


# What is missing


@pytest.mark.parametrize("name", SOURCES)
def test_missing_names_the_files_until_they_are_there(name, monkeypatch, folder):
    source = SOURCES[name]()
    said = source.missing()
    assert said.startswith(f"{source.files.title} is not in {folder}")
    assert all(archive in said for archive in source.files.archives)
    write(name, monkeypatch, per_class=(2, 1))
    decoding = name in {"stl10", "imagenette", "eurosat", "gtsrb"}
    assert source.missing() == (
        f"{source.files.title} is in {source.files.folder}, and has to be decoded, once" if decoding else None
    )
    source.load()
    assert source.missing() is None


def test_asking_what_is_missing_reads_no_file_and_loads_no_torchvision(folder):
    for path in ("cifar-10-batches-py", "stl10_binary"):
        (folder / path).mkdir(parents=True)
    code = (
        "import sys; from ddbench_datasets import CIFAR10, MNIST, STL10\n"
        "assert CIFAR10().missing() is None and 'decoded' in STL10().missing() and 'download' in MNIST().missing()\n"
        "assert 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", SOURCES)
def test_without_a_network_one_sentence_tells_what_to_put_where(name, monkeypatch, folder, capsys):
    offline(monkeypatch)
    source = SOURCES[name]()
    message = refusal(source)
    assert message.startswith(
        f"{source.files.title} is not in {source.files.folder} and torchvision could not get it ("
    )
    assert "no route to host" in message
    assert all(archive in message for archive in source.files.archives)
    assert f"run `ddbench prepare {name}` where there is a network" in message
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_a_half_downloaded_archive_is_not_accepted_and_named(name, monkeypatch, folder):
    write(name, monkeypatch, per_class=(2, 1))
    files = SOURCES[name].files
    archive = next(iter(files.archives))
    (files.folder / archive).write_bytes((files.folder / archive).read_bytes()[:-100])
    message = refusal(SOURCES[name]())
    assert f"in {files.folder} is incomplete or damaged (" in message
    assert f"delete {archive}" in message
    assert f"run `ddbench prepare {name}` where there is a network" in message


def test_a_failure_in_the_middle_of_a_download_is_told_like_any_other(monkeypatch, folder):
    offline(monkeypatch, ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
    assert "Connection reset by peer" in refusal(CIFAR10())


def test_a_full_disk_is_told_as_such(monkeypatch, folder):
    write("kmnist", monkeypatch, per_class=(2, 1))

    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gzip, "open", full)
    monkeypatch.setattr("torchvision.datasets.utils._COMPRESSED_FILE_OPENERS", {".gz": full})
    message = refusal(KMNIST())
    assert "No space left on device" in message
    assert "DDBENCH_DATA" in message


def test_files_cut_short_while_unpacking_are_refused(monkeypatch, folder):
    write("fashionmnist", monkeypatch, per_class=(2, 1))
    FashionMNIST().load()
    raw = folder / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    raw.write_bytes(raw.read_bytes()[:-10])
    message = refusal(FashionMNIST())
    assert "FashionMNIST" in message
    assert "incomplete or damaged" in message
    assert "delete train-images-idx3-ubyte" in message


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10"])
def test_a_changed_batch_is_unpacked_again_from_the_archive(name, monkeypatch, folder):
    files = write(name, monkeypatch, per_class=(2, 1))
    if name != "stl10":
        SOURCES[name]().load()
    (unpacked,) = next(iter(SOURCES[name].files.archives.values()))
    (folder / unpacked).mkdir(exist_ok=True)
    for path in (folder / unpacked).glob("*test*"):
        path.write_bytes(b"cut")
    assert np.array_equal(SOURCES[name]().load().test.pixels[:].numpy(), files["test"][0])


@pytest.mark.parametrize(
    ("name", "unpacked"), [("imagenette", "imagenette2-160"), ("eurosat", "2750"), ("gtsrb", "GTSRB/Training")]
)
def test_a_folder_unpacked_in_part_is_refused_and_named(name, unpacked, monkeypatch, folder):
    write(name, monkeypatch, per_class=(3, 1))
    source = SOURCES[name]()
    monkeypatch.setattr(SOURCES[name], "counts", tuple(n + 1 if n else 0 for n in SOURCES[name].counts))
    message = refusal(source)
    assert "train images where" in message
    assert f"delete {unpacked}" in message
    assert not list(cache.home().rglob("*.npy"))


@pytest.mark.parametrize(("name", "pattern"), [("imagenette", "*.JPEG"), ("eurosat", "*.jpg"), ("gtsrb", "*.ppm")])
def test_a_file_that_is_no_image_is_named_with_the_folder_to_unpack_again(name, pattern, monkeypatch, folder):
    write(name, monkeypatch, per_class=(2, 1))
    source = SOURCES[name]()
    with monkeypatch.context() as patched:
        patched.setattr(SOURCES[name], "counts", (0, 0))
        refusal(source)  # unpacked by now, but not decoded
    broken = sorted(folder.rglob(pattern))[0]
    broken.write_bytes(broken.read_bytes()[:20])
    message = refusal(source)
    assert message.startswith(f"{broken.relative_to(folder)} ")
    assert message.endswith(" and run again")
    assert f"; delete {next(iter(source.files.archives.values()))[0]}" in message


def test_images_are_decoded_once(monkeypatch, folder):
    from PIL import Image

    write("imagenette", monkeypatch, per_class=(2, 1))
    first = Imagenette(size=64).load()
    monkeypatch.setattr(Image, "open", lambda *_args, **_options: pytest.fail("decoded again"))
    assert Imagenette(size=64, noise=0.1, validation=0.5).load().test.digest == first.test.digest


def test_stl10_is_checked_once(monkeypatch, folder):
    write("stl10", monkeypatch, per_class=(2, 1))
    first = STL10().load()
    monkeypatch.setattr("torchvision.datasets.STL10.__init__", lambda *_args, **_options: pytest.fail("read again"))
    assert STL10(limit=20).load().test.digest == first.test.digest


def test_two_processes_do_not_unpack_into_each_other(monkeypatch, folder):
    from torchvision import datasets

    write("cifar10", monkeypatch, per_class=(2, 1))
    held = cache.home() / "datasets" / "cifar10.lock"
    ordinary = datasets.CIFAR10.__init__

    def watched(self, *args, **options):
        with pytest.raises(Exception, match="is being written by"), cache.lock(held, wait=False):
            pass
        ordinary(self, *args, **options)

    monkeypatch.setattr(datasets.CIFAR10, "__init__", watched)
    CIFAR10().load()
    with cache.lock(held, wait=False):
        pass


def test_what_torchvision_prints_goes_to_stderr(monkeypatch, capsys):
    from torchvision import datasets

    write("svhn", monkeypatch, per_class=(2, 1))
    ordinary = datasets.SVHN.__init__

    def chatty(self, *args, **options):
        sys.stdout.write("Using downloaded and verified file\n")
        ordinary(self, *args, **options)

    monkeypatch.setattr(datasets.SVHN, "__init__", chatty)
    SVHN().load()
    out, err = capsys.readouterr()
    assert out == ""
    assert "Using downloaded" in err


def test_an_installation_without_torchvision_is_told_what_it_lacks(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert "MNIST cannot be read without a package" in refusal(MNIST())


def test_network_errors_are_not_taken_for_those_of_the_disk(monkeypatch, folder):
    offline(monkeypatch, URLError(PermissionError(errno.EACCES, "Permission denied")))
    assert "torchvision could not get it" in refusal(MNIST())


@pytest.mark.parametrize("source", [MNIST, GTSRB])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(folder, source):
    base = source.files.folder
    base.mkdir(parents=True)
    name = next(iter(source.files.archives))
    os.mkfifo(base / name)
    assert f"{base / name} is a pipe or a device, and no file of {source.files.title}; remove it" in refusal(source())
