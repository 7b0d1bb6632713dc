"""Small datasets in the formats of the real ones, in the folder where torchvision looks for them.

``write(name, monkeypatch)`` makes the files of the dataset ``name`` and their checksums the expected ones, so
that the source of that name loads without a network. It returns what was put in: ``train`` and ``test`` as pairs of
pixels (n, c, h, w) and targets, for image files as the folder's own order has them.
"""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import urllib.request
import zipfile
from collections.abc import Callable
from hashlib import md5
from pathlib import Path
from typing import Any
from urllib.error import URLError

import ddbench_datasets
import numpy as np
from PIL import Image

from ddbench.base import cache

Parts = dict[str, tuple[np.ndarray, list[int]]]
TRAIN, TEST = 12, 4  # images per class


def write(name: str, monkeypatch: Any, *, per_class: tuple[int, int] = (TRAIN, TEST)) -> Parts:
    """The files of the dataset ``name``, and no network."""
    offline(monkeypatch)
    root = cache.data_home()
    root.mkdir(parents=True, exist_ok=True)
    return WRITERS[name](root, monkeypatch, per_class)


def offline(monkeypatch: Any, failure: Exception | None = None) -> None:
    """Whatever torchvision asks for, there is no answer."""

    def fail(*_args: Any, **_options: Any) -> None:
        raise failure or URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", fail)


def checksum(path: Path) -> str:
    return md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def images(shape: tuple[int, ...], counts: int, classes: int, seed: int) -> tuple[np.ndarray, list[int]]:
    """Noise; the classes in turn, so that a reader which sorts by class is noticed."""
    targets = [i % classes for i in range(counts * classes)]
    return np.random.default_rng(seed).integers(0, 256, (len(targets), *shape), dtype=np.uint8), targets


def both(shape: tuple[int, ...], per_class: tuple[int, int], classes: int) -> Parts:
    return {"train": images(shape, per_class[0], classes, 0), "test": images(shape, per_class[1], classes, 1)}


def tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def zipped(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def picture(pixels: np.ndarray, kind: str) -> bytes:
    """(3, h, w) as an image file; JPEG loses a little."""
    stream = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(stream, kind)
    return stream.getvalue()


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def mnist(kind: str) -> Callable[..., Parts]:
    def writer(root: Path, monkeypatch: Any, per_class: tuple[int, int]) -> Parts:
        from torchvision import datasets

        parts, resources = both((1, 28, 28), per_class, 10), []
        for part, prefix in (("train", "train"), ("test", "t10k")):
            pixels, targets = parts[part]
            for name, array in (("images-idx3", pixels[:, 0]), ("labels-idx1", np.array(targets, np.uint8))):
                path = root / kind / "raw" / f"{prefix}-{name}-ubyte.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(gzip.compress(idx(array)))
                resources.append((path.name, checksum(path)))
        monkeypatch.setattr(getattr(datasets, kind), "resources", resources)
        return parts

    return writer


def cifar(kind: str, classes: int, key: str, meta: dict[str, list[str]]) -> Callable[..., Parts]:
    """``key`` names the list of labels in the batches, ``meta`` is the file with the names."""

    def writer(root: Path, monkeypatch: Any, per_class: tuple[int, int]) -> Parts:
        from torchvision import datasets

        source, parts = getattr(datasets, kind), both((3, 32, 32), per_class, classes)
        files, sums = {}, {}
        for part, listed in (("train", source.train_list), ("test", source.test_list)):
            pixels, targets = parts[part]
            rows = np.array_split(np.arange(len(targets)), len(listed))
            for (name, _), chosen in zip(listed, rows, strict=True):
                batch = {"data": pixels[chosen].reshape(len(chosen), -1), key: [targets[i] for i in chosen]}
                files[name] = pickle.dumps(batch)
        files[source.meta["filename"]] = pickle.dumps(meta)
        sums = {name: md5(data, usedforsecurity=False).hexdigest() for name, data in files.items()}
        tar(root / source.filename, {f"{source.base_folder}/{name}": data for name, data in files.items()})
        monkeypatch.setattr(source, "tgz_md5", checksum(root / source.filename))
        monkeypatch.setattr(source, "meta", source.meta | {"md5": sums[source.meta["filename"]]})
        for listed in ("train_list", "test_list"):
            monkeypatch.setattr(source, listed, [[name, sums[name]] for name, _ in getattr(source, listed)])
        return parts

    return writer


def svhn(root: Path, monkeypatch: Any, per_class: tuple[int, int]) -> Parts:
    from scipy.io import savemat
    from torchvision import datasets

    parts, listed = both((3, 32, 32), per_class, 10), dict(datasets.SVHN.split_list)
    for part, (pixels, targets) in parts.items():
        url, name, _ = listed[part]
        labels = np.array([target or 10 for target in targets], np.uint8)  # the files call the digit 0 ten
        savemat(root / name, {"X": pixels.transpose(2, 3, 1, 0), "y": labels[:, None]})
        listed[part] = [url, name, checksum(root / name)]
    monkeypatch.setattr(datasets.SVHN, "split_list", listed)
    return parts


STL_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def stl10(root: Path, monkeypatch: Any, per_class: tuple[int, int]) -> Parts:
    from torchvision import datasets

    source, parts = datasets.STL10, both((3, 96, 96), per_class, 10)
    files = {"unlabeled_X.bin": bytes(3 * 96 * 96), "class_names.txt": "\n".join(STL_CLASSES).encode()}
    for part, (pixels, targets) in parts.items():
        files[f"{part}_X.bin"] = pixels.transpose(0, 1, 3, 2).tobytes()  # column by column
        files[f"{part}_y.bin"] = (np.array(targets, np.uint8) + 1).tobytes()
    sums = {name: md5(data, usedforsecurity=False).hexdigest() for name, data in files.items()}
    tar(root / source.filename, {f"{source.base_folder}/{name}": data for name, data in files.items()})
    monkeypatch.setattr(source, "tgz_md5", checksum(root / source.filename))
    for listed in ("train_list", "test_list"):
        monkeypatch.setattr(source, listed, [[name, sums[name]] for name, _ in getattr(source, listed)])
    return parts


def by_class(part: tuple[np.ndarray, list[int]]) -> tuple[np.ndarray, list[int]]:
    """The order of a folder with one folder per class."""
    order = np.argsort(part[1], kind="stable")
    return part[0][order], [part[1][i] for i in order]


WORDNET = (
    "n01440764",
    "n02102040",
    "n02979186",
    "n03000684",
    "n03028079",
    "n03394916",
    "n03417042",
    "n03425413",
    "n03445777",
    "n03888257",
)


def imagenette(root: Path, monkeypatch: Any, per_class: tuple[int, int]) -> Parts:
    """Pictures 160 pixels high and 200 wide, whose left and right 20 columns are white."""
    from torchvision import datasets

    parts = {part: by_class(noise) for part, noise in both((3, 160, 200), per_class, 10).items()}
    files = {}
    for part, folder in (("train", "train"), ("test", "val")):
        parts[part][0][:, :, :, 20:180] = parts[part][0][:, :, :1, :1]  # one colour, which no resizing changes
        parts[part][0][:, :, :, :20] = parts[part][0][:, :, :, 180:] = 255
        for i, (pixels, target) in enumerate(zip(*parts[part], strict=True)):
            files[f"imagenette2-160/{folder}/{WORDNET[target]}/{i:04}.JPEG"] = picture(pixels, "JPEG")
    tar(root / "imagenette2-160.tgz", files)
    url = "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz"
    monkeypatch.setattr(datasets.Imagenette, "_ARCHIVES", {"160px": (url, checksum(root / "imagenette2-160.tgz"))})
    monkeypatch.setattr(ddbench_datasets.Imagenette, "counts", tuple(len(parts[part][1]) for part in parts))
    return parts


LAND = (
    "AnnualCrop",
    "Forest",
    "HerbaceousVegetation",
    "Highway",
    "Industrial",
    "Pasture",
    "PermanentCrop",
    "Residential",
    "River",
    "SeaLake",
)


def eurosat(root: Path, monkeypatch: Any, per_class: tuple[int, int]) -> Parts:
    """All images under ``train``; nothing under ``test``."""
    part = by_class(images((3, 64, 64), sum(per_class), 10, 0))
    part[0][:] = part[0][:, :, :1, :1]
    files = {
        f"2750/{LAND[target]}/{LAND[target]}_{i:04}.jpg": picture(pixels, "JPEG")
        for i, (pixels, target) in enumerate(zip(*part, strict=True))
    }
    zipped(root / "eurosat" / "EuroSAT.zip", files)
    expect(monkeypatch, root / "eurosat" / "EuroSAT.zip")
    monkeypatch.setattr(ddbench_datasets.EuroSAT, "counts", (len(part[1]), 0))
    return {"train": part, "test": (part[0][:0], [])}


def gtsrb(root: Path, monkeypatch: Any, per_class: tuple[int, int]) -> Parts:
    """Pictures of one colour, 20 to 40 pixels along each side."""
    sides = np.random.default_rng(0).integers(20, 41, (1000, 2))
    parts = both((3, 1, 1), per_class, 43)
    parts["train"] = by_class(parts["train"])

    def ppm(pixels: np.ndarray, i: int) -> bytes:
        return picture(np.tile(pixels, (1, *sides[i % 1000])), "PPM")

    readme = {"GTSRB/Readme-Images.txt": b"The German Traffic Sign Recognition Benchmark"}
    files, rows = dict(readme), ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for i, (pixels, target) in enumerate(zip(*parts["train"], strict=True)):
        files[f"GTSRB/Training/{target:05}/{i // 30:05}_{i % 30:05}.ppm"] = ppm(pixels, i)
    finals = dict(readme)
    for i, (pixels, target) in enumerate(zip(*parts["test"], strict=True)):
        finals[f"GTSRB/Final_Test/Images/{i:05}.ppm"] = ppm(pixels, i)
        rows.append(f"{i:05}.ppm;30;30;5;5;25;25;{target}")
    for name, members in {
        "GTSRB-Training_fixed.zip": files,
        "GTSRB_Final_Test_Images.zip": finals,
        "GTSRB_Final_Test_GT.zip": {"GT-final_test.csv": "\r\n".join(rows).encode()},
    }.items():
        zipped(root / "gtsrb" / name, members)
        expect(monkeypatch, root / "gtsrb" / name)
    monkeypatch.setattr(ddbench_datasets.GTSRB, "counts", tuple(len(parts[part][1]) for part in parts))
    return {part: (np.tile(pixels, (1, 1, 32, 32)), targets) for part, (pixels, targets) in parts.items()}


def expect(monkeypatch: Any, path: Path) -> None:
    """Make ``path`` as it is now pass torchvision's check, where the checksum is written into a function."""
    from torchvision.datasets import utils

    ordinary, right = utils.check_integrity, checksum(path)

    def check(file: str, md5: str | None = None) -> bool:
        if Path(file) == path:
            return path.exists() and checksum(path) == right
        return ordinary(file, md5)

    monkeypatch.setattr(utils, "check_integrity", check)


CIFAR100_CLASSES = [f"class {k:02}" for k in range(100)]
CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
WRITERS: dict[str, Callable[..., Parts]] = {
    "mnist": mnist("MNIST"),
    "fashionmnist": mnist("FashionMNIST"),
    "kmnist": mnist("KMNIST"),
    "svhn": svhn,
    "cifar10": cifar("CIFAR10", 10, "labels", {"label_names": CIFAR10_CLASSES}),
    "cifar100": cifar("CIFAR100", 100, "fine_labels", {"fine_label_names": CIFAR100_CLASSES}),
    "stl10": stl10,
    "imagenette": imagenette,
    "eurosat": eurosat,
    "gtsrb": gtsrb,
}
