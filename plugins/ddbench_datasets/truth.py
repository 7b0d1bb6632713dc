"""Which classes the images of ImageNet's ``val`` have, when they lie in one folder: the files that tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ddbench import DataError
from ddbench_datasets.sources import text
from ddbench_datasets.wnids import WNID, labels

TEXTS = ("LOC_val_solution.csv", "val_annotations.txt")
NUMBERED = (
    "ILSVRC2012_validation_ground_truth.txt",  # of the development kit, by numbers that its meta.mat explains
    "imagenet_2012_validation_synset_labels.txt",
)
KITS = ("", "val", "ILSVRC2012_devkit_t12/data", "devkit/data", "data")  # where they may lie
SORT = "sort val into folders of classes, or put LOC_val_solution.csv there"


def stamp(root: Path, base: Path) -> list[Any]:
    """JSON that changes with the file that tells the classes."""
    path = _found(root, base)
    return [] if path is None else [path.name, path.stat().st_size]


def read(root: Path, base: Path) -> dict[str, str]:
    """The WordNet number of each image, by its name without suffix."""
    path = _found(root, base)
    if path is None:
        wanted = ", ".join((*TEXTS, *NUMBERED))
        raise DataError(
            f"the images in {base / 'val'} are in no folders of classes, and none of {wanted} is in {root}; {SORT}"
        )
    found = text(path, f"get it again, or {SORT}")
    if path.name in TEXTS:
        return labels(found)
    return {f"ILSVRC2012_val_{i:08}": wnid for i, wnid in enumerate(_numbered(path, found.split()), 1)}


def _found(root: Path, base: Path) -> Path | None:
    places = (folder / kit / name for name in (*TEXTS, *NUMBERED) for folder in (root, base) for kit in KITS)
    return next((path for path in places if path.is_file()), None)


def _numbered(path: Path, entries: list[str]) -> list[str]:
    if all(WNID.fullmatch(entry) for entry in entries):
        return entries
    meta = path.with_name("meta.mat")
    if not meta.is_file():
        raise DataError(
            f"{path} numbers the classes as the development kit's meta.mat does, which is not beside it; {SORT}"
        )
    from scipy.io import loadmat

    try:
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        known = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
        return [known[int(entry)] for entry in entries]
    except Exception as error:  # scipy raises a dozen types on broken bytes
        raise DataError(f"{path} and {meta} cannot be understood ({error!r}); get them again, or {SORT}") from error
