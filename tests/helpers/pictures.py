"""Small datasets of image files for tests, as folders, zips and tars."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from ddbench_datasets import Images
from PIL import Image
from refusals import refused

# Four classes of ImageNet, two of one name.
WORDS = "n01440764\ttench, Tinca tinca\nn01443537\tgoldfish, Carassius auratus\nn02012849\tcrane\nn03126707\tcrane\n"
WNIDS = ("n01440764", "n01443537", "n02012849", "n03126707")
NAMES = ("tench", "goldfish", "crane (n02012849)", "crane (n03126707)")


def picture(seed: int, *, mode: str = "RGB", size: tuple[int, int] = (6, 6), kind: str = "PNG", **options) -> bytes:
    width, height = size
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return saved(Image.fromarray(array), kind, **options)


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def tree(classes=("cat", "dog"), train: int = 6, test: int = 3, **options) -> dict[str, bytes]:
    """Names and bytes of a small dataset."""
    counts = {"train": train, "test": test}
    names = [f"{part}/{label}/{i}.png" for part, n in counts.items() for label in classes for i in range(n)]
    return {name: picture(seed, **options) for seed, name in enumerate(names)}


def folder(root: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return str(root)


def zipped(path: Path, files: dict[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return str(path)


def tarred(path: Path, files: dict[str, bytes], *more: tarfile.TarInfo) -> str:
    """A tar, packed as its suffix says; ``more`` are members without bytes, such as links."""
    packed = path.suffix.removeprefix(".").replace("tgz", "gz").removeprefix("tar")
    with tarfile.open(path, f"w:{packed}") as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for member in more:
            archive.addfile(member)
    return str(path)


def photo(seed: int, width: int = 80, height: int = 70) -> bytes:
    return picture(seed, size=(width, height), kind="JPEG")


def tiny_imagenet(train: int = 6, val: int = 3, top: str = "") -> dict[str, bytes]:
    """Tiny-ImageNet with four classes; one image is grey."""
    files = {f"{top}words.txt": WORDS.encode(), f"{top}wnids.txt": "\n".join(WNIDS).encode()}
    for k, wnid in enumerate(WNIDS):
        files |= {f"{top}train/{wnid}/images/{wnid}_{i}.JPEG": photo(100 * k + i, 64, 64) for i in range(train)}
        files[f"{top}train/{wnid}/{wnid}_boxes.txt"] = b"n01440764_0.JPEG\t0\t0\t63\t63\n"
    files[f"{top}train/{WNIDS[0]}/images/{WNIDS[0]}_2.JPEG"] = picture(0, mode="L", size=(64, 64), kind="JPEG")
    order = [k % len(WNIDS) for k in range(val * len(WNIDS))]
    files |= {f"{top}val/images/val_{i}.JPEG": photo(1000 + i, 64, 64) for i in range(len(order))}
    lines = [f"val_{i}.JPEG\t{WNIDS[k]}\t0\t32\t44\t62\n" for i, k in enumerate(order)]
    files[f"{top}val/val_annotations.txt"] = "".join(lines).encode()
    files[f"{top}test/images/test_0.JPEG"] = photo(7, 64, 64)
    return files


def imagenet(wnids=WNIDS, train: int = 5, val: int = 2) -> dict[str, bytes]:
    files = {f"train/{wnid}/{wnid}_{i}.JPEG": photo(50 * k + i) for k, wnid in enumerate(wnids) for i in range(train)}
    for k, wnid in enumerate(wnids):
        files |= {f"val/{wnid}/ILSVRC2012_val_{i * len(wnids) + k + 1:08}.JPEG": photo(999 + k, 90) for i in range(val)}
    return files


def refusal(**options) -> str:
    """The one line that ``images`` says instead of loading."""
    return refused(lambda: Images(**options).load())
