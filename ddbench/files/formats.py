"""Other people's distilled sets as they lie on disk: which format, which images, which labels; nothing is converted.

The content decides what a file is. Shapes: n images, c channels, h x w pixels, k classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ddbench.base.cache import digest, file_digest
from ddbench.data.pictures import is_picture
from ddbench.data.preprocessing import Preprocessing
from ddbench.errors import DataError, UsageError
from ddbench.files import safe_load
from ddbench.files.safe_load import natural, numbered
from ddbench.grade.distilled import Distilled
from ddbench.problem.synthetic import OUT_OF_RANGE, SyntheticSet

READ = (
    "a folder with images_best.pt and labels_best.pt (MTT, TESLA, FTD, DATM), a folder of such folders (PDD), "
    "res_*.pt (DC, DSA, DM), an .npz of images and labels (FRePo, KIP, RFAD), or a folder of images per class"
)


@dataclass(frozen=True, eq=False)
class Foreign:
    """What a foreign file or folder holds. ``classes`` are folder names, ``files`` sha256 by name.

    ``notes`` say what was found and what was assumed. Images are float32, in whatever space they were stored in;
    those of ``unit`` space, [0, 1], are known to be so.
    """

    format: str
    sets: tuple[SyntheticSet, ...]
    phases: tuple[tuple[int, ...], ...] = ((0,),)
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    unit: bool = False
    step: Preprocessing | None = None  # the one that the file itself says its pixels passed


def read(path: Path, *, experiment: int = 0, classes: int | None = None, labels: str = "auto") -> Foreign:
    """Read a set in any of the formats of ``READ``. Raises DataError, or UsageError for a choice that is not there.

    ``classes`` is k where it is known; otherwise hard labels tell it. ``labels`` states what soft labels mean.
    """
    known = Known(classes, labels)
    if not path.exists():
        raise DataError(f"{path} does not exist; give {READ}")
    if path.is_dir():
        return _folder(path, known, experiment)
    safe_load.recognise(path)
    if safe_load.is_npz(path):
        return _npz(path, known)
    if safe_load.is_torch(path):
        return _torch(path, known, experiment)
    if path.suffix == ".safetensors":
        Distilled.load(path)
        raise UsageError(f"{path} is ddbench's own; evaluate it with `ddbench eval {path}`")
    raise DataError(f"{path} is of no format that is read here; give {READ}")


def _folder(path: Path, known: Known, experiment: int) -> Foreign:
    if pair := _chosen(path):
        return _pair(pair, known)
    inner = natural(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    stages = [pair for p in inner if (pair := _chosen(p))]
    if stages and len(stages) < len([p for p in inner if any(p.glob("*.pt"))]):
        raise DataError(f"some of the folders in {path} lack images_best.pt or labels_best.pt; every stage needs both")
    if len(stages) == 1:
        return _pair(stages[0], known)
    if stages:
        return _stages(stages, known)
    single = [p for pattern in ("res_*.pt", "*.npz") for p in natural(path.glob(pattern))]
    if len(single) == 1:
        return read(single[0], experiment=experiment, classes=known.classes, labels=known.labels)
    if single:
        raise UsageError(f"{path} holds {len(single)} sets; name one of {', '.join(p.name for p in single[:6])}")
    if any(is_picture(p.name) for folder in inner for p in folder.iterdir()):
        return _images(path, inner, known)
    lone = [p.name for p in natural(path.glob("*.pt")) if p.name.startswith(("images", "labels"))]
    found = f"holds {', '.join(lone[:4])} without its partner" if lone else "holds no set that is read here"
    raise DataError(f"{path} {found}; give {READ}")


def _chosen(folder: Path) -> Path | None:
    """The images file of a folder: the best, else the latest, of those that have labels beside them."""
    if not folder.is_dir():
        return None
    found = [p for p in natural(folder.glob("images*.pt")) if _partner(p, "labels").exists()]
    best = [p for p in found if "best" in p.stem]
    return best[0] if best else found[-1] if found else None


def _partner(images: Path, kind: str) -> Path:
    return images.with_name(images.name.replace("images", kind, 1))


def _torch(path: Path, known: Known, experiment: int) -> Foreign:
    if path.name.startswith("labels"):
        return _torch(path.with_name(path.name.replace("labels", "images", 1)), known, experiment)
    content = safe_load.load(path)
    if isinstance(content, dict) and "data" in content:
        return _results(path, content, known, experiment)
    if isinstance(content, Tensor) and content.ndim == 4:
        return _pair(path, known, content)
    if isinstance(content, list) and content and isinstance(content[0], list):
        raise UsageError(f"{path} holds expert trajectories, not a set; import it with `ddbench import --experts`")
    raise DataError(f"{path} holds a {type(content).__name__}, not images; give {READ}")


def _pair(path: Path, known: Known, images: Any = None) -> Foreign:
    """One set in the layout of MTT: images, labels, and the student lr where it was saved."""
    made, notes, files = _parts(path, known, images)
    return Foreign("mtt", (made,), notes=notes, files=files)


def _parts(path: Path, known: Known, images: Any = None) -> tuple[SyntheticSet, tuple[str, ...], dict[str, str]]:
    beside, rate = _partner(path, "labels"), _partner(path, "syn_lr")
    if beside == path or not beside.exists():
        raise DataError(f"{path} has no labels beside it ({beside.name} is not there); put both files in one folder")
    files = {p.name: file_digest(p) for p in (path, beside, rate) if p.exists()}
    lr = None
    if rate.exists():
        lr = _rate(safe_load.load(rate), rate)
    made, notes = known.set(path, safe_load.load(path) if images is None else images, safe_load.load(beside), lr)
    said = f"The student lr is {lr:.6g}, from {rate.name}." if lr else f"No {rate.name}: the protocol chooses the lr."
    return made, (f"Read {path.name} and {beside.name}.", *notes, said), files


def _rate(value: Any, path: Path) -> float:
    number = float(value) if isinstance(value, (int, float)) or getattr(value, "size", 0) == 1 else None
    if isinstance(value, Tensor):
        number = float(value) if value.numel() == 1 else None
    if number is None or not 0 < number < float("inf"):
        raise DataError(
            f"{path} should hold one positive student lr, and holds {str(value)[:60]!r}; remove it to go on"
        )
    return number


def _stages(paths: list[Path], known: Known) -> Foreign:
    """PDD's folders: stage i stores U_i = [U_{i-1}; S_i], and the student's lr of phase i."""
    if known.classes is None:  # hard labels of one stage need not name every class
        known = replace(known, classes=_parts(paths[-1], known)[0].labels.shape[1])
    sets: list[SyntheticSet] = []
    before, files, told = None, {}, ()
    for stage, path in enumerate(paths):
        union, told, found = _parts(path, known)
        files |= {f"{path.parent.name}/{name}": value for name, value in found.items()}
        done = 0 if before is None else len(before)
        _check_growth(union, before, f"stage {stage + 1} ({path.parent.name})")
        sets.append(replace(union, images=union.images[done:].clone(), labels=union.labels[done:].clone()))
        before = union
    sizes, names = ", ".join(str(len(s)) for s in sets), ", ".join(p.parent.name for p in paths)
    rates = ", ".join("none" if s.lr is None else f"{s.lr:.6g}" for s in sets)
    notes = (
        f"Found {len(sets)} stages ({names}) of {sizes} images, with student lrs {rates}; each file holds all images "
        "up to its stage, which was checked.",
        *told[1:-1],
    )
    phases = tuple(tuple(range(j + 1)) for j in range(len(sets)))
    return Foreign("pdd", tuple(sets), phases, notes=notes, files=files)


def _check_growth(union: SyntheticSet, before: SyntheticSet | None, where: str) -> None:
    if before is None:
        return
    done = len(before)
    if union.images.shape[1:] != before.images.shape[1:] or union.labels.shape[1:] != before.labels.shape[1:]:
        raise DataError(
            f"{where} has images of {tuple(union.images.shape[1:])} with {union.labels.shape[1]} classes, the stage "
            f"before it {tuple(before.images.shape[1:])} with {before.labels.shape[1]}; import one stage by its folder"
        )
    if len(union) <= done:
        raise DataError(
            f"{where} holds {len(union)} images, no more than the {done} of the stage before it, but stages hold "
            "growing unions; import one stage by its own folder"
        )
    if not (torch.equal(union.images[:done], before.images) and torch.equal(union.labels[:done], before.labels)):
        raise DataError(
            f"{where} does not begin with the {done} images and labels of the stage before it, so these folders are "
            "no stages of one set; import one of them by its own folder"
        )


def _results(path: Path, content: dict[str, Any], known: Known, experiment: int) -> Foreign:
    """``res_*.pt`` of DC, DSA and DM: ``data`` is a list with images and labels of each experiment."""
    data = content["data"]
    if not isinstance(data, list) or not data or not all(isinstance(d, (list, tuple)) and len(d) == 2 for d in data):
        raise DataError(f"{path} has 'data' that is no list of images and labels; it is no file of DC, DSA or DM")
    if not 0 <= experiment < len(data):
        raise UsageError(f"{path} holds {len(data)} experiments; choose --experiment 0 to {len(data) - 1}")
    made, notes = known.set(path, data[experiment][0], data[experiment][1], None)
    said = [f"Took experiment {experiment} of {len(data)} in {path.name}."]
    if len(data) > 1:
        said.append("The others are chosen with --experiment.")
    return Foreign("dc", (made,), notes=(*said, *notes), files={path.name: file_digest(path)})


def _npz(path: Path, known: Known) -> Foreign:
    arrays = safe_load.arrays(path)
    name = _only(path, arrays, "images", [n for n, a in arrays.items() if a.ndim == 4])
    rows = len(arrays[name])
    label = _only(path, arrays, "labels", [n for n, a in arrays.items() if a.ndim in (1, 2) and len(a) == rows])
    images, notes = arrays[name], [f"Read images from {name!r} and labels from {label!r} of {path.name}."]
    if images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.permute(0, 3, 1, 2).contiguous()
        notes.append("Its images have channels last and were turned to (n, c, h, w).")
    rates = [a for n, a in arrays.items() if n in ("lr", "syn_lr") and a.numel() == 1]
    lr = _rate(rates[0], path) if rates else None
    made, more = known.set(path, images, arrays[label], lr, soft="real")
    parts = {n.removeprefix("preprocessing_"): a.float() for n, a in arrays.items() if n.startswith("preprocessing_")}
    step = Preprocessing(**parts) if set(parts) in ({"mean", "std"}, {"mean", "whiten"}) else None
    return Foreign("npz", (made,), notes=(*notes, *more), files={path.name: file_digest(path)}, step=step)


def _only(path: Path, arrays: dict[str, Any], what: str, fitting: list[str]) -> str:
    """The one name that fits; among several, the one called so."""
    called = [n for n in fitting if what[:5] in n.lower()]
    if len(fitting) == 1 or len(called) == 1:
        return (called or fitting)[0]
    shapes = ", ".join(f"{n} {a.shape}" for n, a in arrays.items()) or "nothing"
    raise DataError(f"{path} holds {len(fitting)} arrays that may be {what}; it needs one called {what} (has {shapes})")


def _images(path: Path, folders: list[Path], known: Known) -> Foreign:
    """One folder per class. Numbers in their names order them, since "10" sorts before "2" as text."""
    files, rest = safe_load.listing(folders)
    if empty := [f.name for f, found in zip(folders, files, strict=True) if not found]:
        raise DataError(f"{path} has folders without pictures ({', '.join(empty[:4])}); remove them, or fill them")
    labels, classes, said = numbered(path, [f.name for f in folders], known.classes)
    pixels = safe_load.pictures([p for found in files for p in found], rest)
    numbers = torch.tensor([label for label, found in zip(labels, files, strict=True) for _ in found])
    listed = [[str(p.relative_to(path)), file_digest(p)] for found in files for p in found]
    made, notes = known.set(path, pixels, numbers, None)
    return Foreign(
        "images",
        (made,),
        classes=classes,
        notes=(f"Read {len(listed)} pictures in {len(folders)} folders.", *rest, said, *notes),
        files={f"{path.name}/": digest(listed)},
        unit=True,
    )


@dataclass(frozen=True)
class Known:
    """What is known of a set beforehand: k, and what soft labels mean."""

    classes: int | None
    labels: str

    def set(
        self, path: Path, images: Any, labels: Any, lr: float | None, soft: str = "logit"
    ) -> tuple[SyntheticSet, list[str]]:
        """Images and labels that fit each other, as a set; ``soft`` is what rows are that are no probabilities."""
        notes: list[str] = []
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.numel() or images.is_complex():
            shape = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise DataError(f"{path} should hold images (n, c, h, w), and holds {shape}; give images and their labels")
        if images.dtype != torch.float32:
            notes.append(
                f"Its pixels are {str(images.dtype).removeprefix('torch.')} and were made float32"
                f"{', divided by 255' if images.dtype == torch.uint8 else ''}."
            )
            images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        images = images.contiguous()
        if not torch.isfinite(images).all():
            broken = int((~torch.isfinite(images)).flatten(1).any(1).sum())
            raise DataError(
                f"{path} has pixels that are not finite in {broken} of {len(images)} images; "
                "get it again, or take an earlier checkpoint"
            )
        if (largest := float(images.abs().max())) > OUT_OF_RANGE:
            raise DataError(
                f"{path} has pixels of {largest:.3g}, where input of networks is of the order of 1; its "
                "distillation diverged, or its scale is lost: get another checkpoint"
            )
        rows, kind, word = self._rows(path, labels, len(images), soft)
        notes.append(word)
        counts = torch.bincount(rows.argmax(1), minlength=rows.shape[1])
        least, most = int(counts.min()), int(counts.max())
        said = f"{least} per class" if least == most else f"{least} to {most} per class, which is not balanced"
        notes.append(f"It holds {len(images)} images of {tuple(images.shape[1:])} in {rows.shape[1]} classes, {said}.")
        types = {"hard": "hard", "probability": "soft", "logit": "learned", "real": "real"}
        return SyntheticSet(images, rows, lr, "probability" if kind == "hard" else kind, types[kind]), notes

    def _rows(self, path: Path, labels: Any, images: int, soft: str) -> tuple[Tensor, str, str]:
        """Labels (n, k), what they are (hard, probability, logit, real), and a sentence."""
        if not isinstance(labels, Tensor) or labels.ndim not in (1, 2) or labels.is_complex():
            shape = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
            raise DataError(f"the labels of {path} should be (n,) or (n, k) numbers, and are {shape}")
        if len(labels) != images:
            raise DataError(
                f"{path} has {images} images, but {len(labels)} labels, so they are no pair; get both files of one "
                "checkpoint"
            )
        if not torch.isfinite(labels.double()).all():
            raise DataError(
                f"the labels of {path} are not finite (where no teacher was right, some methods leave NaN); take "
                "another checkpoint, or replace those rows"
            )
        if labels.ndim == 1 or labels.shape[1] == 1:
            return self._hard(path, labels.flatten())
        if self.classes not in (None, labels.shape[1]):
            raise DataError(f"{path} has labels over {labels.shape[1]} classes, but the dataset has {self.classes}")
        rows = labels.float()
        spread = bool(((rows.sum(1) - 1).abs() < 5e-3).all() and (rows >= 0).all())
        if self.labels == "probability" and not spread:
            raise DataError(
                f"rows of labels of {path} sum to {rows.sum(1).min():.3g}, not 1; use --labels logit or real"
            )
        if self.labels == "hard" or (self.labels == "auto" and spread and bool((rows.max(1).values == 1).all())):
            hard = one_hot(rows.argmax(1), rows.shape[1]).float()
            said = "one-hot rows" if spread and self.labels == "auto" else "rows of which the largest entry counts"
            return hard, "hard", f"The labels are {said} (hard labels)."
        kind = self.labels if self.labels != "auto" else "probability" if spread else soft
        means = {
            "probability": "probabilities",
            "logit": "logits, which pass through a softmax",
            "real": "real values, which students learn by squared error",
        }[kind]
        why = "as stated" if self.labels != "auto" else "by their rows' sums" if spread else "assumed; --labels tells"
        return rows.contiguous(), kind, f"The labels are {means} ({why})."

    def _hard(self, path: Path, labels: Tensor) -> tuple[Tensor, str, str]:
        numbers = labels.double().round().long()
        if not torch.equal(numbers.double(), labels.double()):
            raise DataError(
                f"the labels of {path} are one number per image, but no whole numbers ({labels[0]:.4g}, ...); class "
                "numbers or rows over all classes are needed"
            )
        if self.labels in ("logit", "real"):
            raise UsageError(f"--labels {self.labels} needs rows (n, k), but {path} has one class number per image")
        k = self.classes or int(numbers.max()) + 1
        if int(numbers.min()) < 0 or int(numbers.max()) >= k:
            raise DataError(
                f"the labels of {path} run from {int(numbers.min())} to {int(numbers.max())}, "
                f"but there are {k} classes, 0 to {k - 1}"
            )
        return one_hot(numbers, k).float(), "hard", "The labels are class numbers (hard labels)."
