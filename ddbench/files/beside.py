"""Which files of a folder belong together: images, their labels, and the student lr that was learned with them.

Published code puts the same words into their names in any order: ``images_best``, ``labels_best``, and
``syn_lr_best`` (MTT, TESLA, PDD), ``lr_best`` (DATM), or ``best_lr`` (SeqMatch), and before all of them ``ema`` (FTD).
What is left of a name without the word for its kind is the mark of a checkpoint; files of one mark belong together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddbench.errors import DataError, UsageError
from ddbench.files import arrays, safe_load

_WORDS = {
    "images": {"images", "image", "imgs", "img"},
    "labels": {"labels", "label", "targets", "target"},
    "lr": {"lr", "lrs"},
    "data": {"data"},  # images and labels in one file (IDC, NCFM)
}
_FILLING = {"syn", "synthetic", "student", "learned"}
_READ = {".pt", ".pth", ".npy"}
_NAMED = _READ | {".npz", ".csv", ".txt", ".json"}  # worth a note where they are not read
_VARIANTS = {"ema", "zca"}  # of a checkpoint: its average, its images without whitening
_AVERAGE = frozenset({"ema"})
_SPELT = re.compile(r"learning[\W_]*rates?")
_ROUND = "(?:syn|synthetic|student|learned|best|last|final|ema)*"  # words that may stand at "lr" without a space
_LIKE = re.compile(
    rf"(?<![a-z]){_ROUND}lrs?{_ROUND}(?![a-z])|{_SPELT.pattern}|step[\W_]*sizes?|labels?|targets?|soft(?!ware)|logits?|"
    r"prob(?:abilitie)?s(?![a-z])|(?<![a-z])ys?(?![a-z])"
)


@dataclass(frozen=True)
class Named:
    """A file whose name says what it holds: images, labels, an lr, or data; and the mark of its checkpoint."""

    path: Path
    kind: str
    mark: frozenset[str]

    @property
    def rank(self) -> tuple[bool, int, int, str]:
        """The best, else the latest checkpoint is largest; of two alike the one with the plainer name."""
        numbers = [int(word) for word in self.mark if word.isdigit()]
        return "best" in self.mark, max(numbers, default=-1), -len(self.mark), self.path.name


def named(path: Path) -> Named | None:
    """What the name of a file says, if it says anything."""
    stem = _SPELT.sub("lr", path.stem.lower())
    words = [word for word in re.findall(r"[a-z]+|[0-9]{1,9}", stem) if word not in _FILLING]
    kinds = [kind for kind, called in _WORDS.items() if called & set(words)]
    if len(kinds) != 1 or path.name.startswith("."):
        return None
    return Named(path, kinds[0], frozenset(words) - _WORDS[kinds[0]])


def inside(folder: Path) -> list[Path]:
    """What a folder holds, by name. Raises DataError where it cannot be listed."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror}") from error


def among(folder: Path, kind: str, suffixes: set[str] = _READ) -> list[Named]:
    """The files of a folder whose names say that they are of a kind."""
    found = [named(path) for path in inside(folder) if path.suffix.lower() in suffixes and not path.is_dir()]
    return [one for one in found if one is not None and one.kind == kind]


def chosen(folder: Path) -> Path | None:
    """The images of a folder: the best, else the latest, of those that have labels; an average where it is alone."""
    found = [one for one in among(folder, "images") if _partner(one, "labels")] if folder.is_dir() else []
    return max(found, key=lambda one: one.rank).path if found else None


def single(folder: Path) -> list[Path]:
    """Files that are whole sets: results of DC, arrays, and of images and labels in one file the best or the latest."""
    whole = [max(found, key=lambda one: one.rank).path for found in [among(folder, "data")] if found]
    listed = [p for p in inside(folder) if not p.name.startswith(".")]
    results = [p for p in listed if p.name.startswith("res_") and p.suffix == ".pt"]
    return [*whole, *results, *(p for p in safe_load.natural(listed) if p.suffix == ".npz")]


def images_of(path: Path) -> Path:
    """The images that a file of labels belongs to; any other file is what it is."""
    own = named(path)
    if own is None or own.kind != "labels":
        return path
    if found := _partner(own, "images"):
        return found
    raise DataError(f"{path} has no images beside it; put both files of one checkpoint in one folder")


def partners(images: Path) -> tuple[Path, Path | None]:
    """The labels, and the student lr if there is one, that belong to a file of images."""
    own = named(images) or Named(images, "images", frozenset())
    labels = _partner(own, "labels")
    if labels is None:
        usual = images.name.replace("images", "labels", 1)
        about = f" ({usual} is not there)" if usual != images.name else ""
        raise DataError(f"{images} has no labels beside it{about}; put both files in one folder")
    return labels, _partner(own, "lr")


def _partner(own: Named, kind: str) -> Path | None:
    """The file of a kind with the same mark, or with that of the checkpoint that this is a variant of."""
    there = among(own.path.parent, kind)
    marks = [own.mark]
    if kind != "images":
        marks.append(own.mark - _VARIANTS)
        if not any(one.mark == frozenset() for one in among(own.path.parent, "images")):
            marks.append(frozenset())  # without a mark they are those of all checkpoints
    for mark in marks:
        fitting = [one.path for one in there if one.mark == mark]
        usual = [p for p in fitting if p.name == own.path.name.replace(own.kind, {"lr": "syn_lr"}.get(kind, kind), 1)]
        if len(usual or fitting) > 1:
            raise UsageError(
                f"{' and '.join(p.name for p in fitting[:3])} may both be the {kind} of {own.path}; move one elsewhere"
            )
        if fitting:
            return (usual or fitting)[0]
    return None


def unused(folder: Path, used: set[str]) -> list[str]:
    """Sentences about what was not read: averages of the checkpoint that was, and what looks like labels or an lr.

    What belongs to other images is not named: a folder may hold many checkpoints.
    """
    rest = {p.name: named(p) for p in inside(folder) if _may_count(p) and p.name not in used}
    own = {one.mark for name in used if (one := named(folder / name)) and one.kind in ("images", "data")}
    others = {one.mark for one in rest.values() if one and one.kind in ("images", "data")}
    averages = [name for name, one in rest.items() if one and one.mark in others and one.mark ^ _AVERAGE in own]
    stems = {Path(name).stem for name in used}  # a table of labels may lie beside the array of the same name
    left = [
        name
        for name, one in rest.items()
        if Path(name).stem not in stems
        and (one.kind in ("labels", "lr") and one.mark not in others if one else _LIKE.search(name.lower()))
    ]
    said = []
    if averages:
        averaged = any("ema" in mark for mark in own)
        what = "The plain checkpoint" if averaged else "The average (ema) of this checkpoint"
        said.append(f"{what} lies beside it and was not read: {_some(averages)}; give its images to read it.")
    if left:
        said.append(f"Not used, though named like labels or a student lr: {_some(left)}.")
    return said


def _may_count(path: Path) -> bool:
    return path.suffix.lower() in _NAMED and not path.name.startswith(".") and not path.is_dir()


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def load(path: Path) -> Any:
    """What a file holds: an array of NumPy, or what torch.save wrote."""
    return arrays.array(path) if arrays.is_npy(path) else safe_load.load(path)


def rate(value: Any, path: Path) -> float:
    """The one positive student lr that a file holds. Raises DataError for anything else, which is never printed."""
    number = None
    if getattr(value, "size", 0) == 1 and not callable(value.size):  # an array of NumPy
        value = value.item()
    if hasattr(value, "is_complex") and not value.is_complex() and value.numel() == 1:
        value = value.item()
    if isinstance(value, (list, tuple)) and len(value) == 1:
        return rate(value[0], path) if not isinstance(value[0], (list, tuple)) else rate(None, path)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e6:
        number = float(value)
    if number is None:
        shown = f"{value:.4g}" if isinstance(value, float) else f"a {type(value).__name__}"
        raise DataError(f"{path} should hold one positive student lr, and holds {shown}; remove it to go on")
    return number
