"""Other people's distilled sets as they lie on disk: which format, which images, which labels; nothing is converted.

The content decides what a file is. Shapes: n images, c channels, h x w pixels, k classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddbench import torchfiles
from ddbench.cache import digest, file_digest
from ddbench.errors import DataError, UsageError
from ddbench.files import Distilled
from ddbench.fitting import Task
from ddbench.preprocessing import Preprocessing
from ddbench.sets import SyntheticSet
from ddbench.torchfiles import natural, numbered

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
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
    task = Task(classes, labels)
    if not path.exists():
        raise DataError(f"{path} does not exist; give {READ}")
    if path.is_dir():
        return _folder(path, task, experiment)
    torchfiles.recognise(path)
    if torchfiles.is_npz(path):
        return _npz(path, task)
    if torchfiles.is_torch(path):
        return _torch(path, task, experiment)
    if path.suffix == ".safetensors":
        Distilled.load(path)
        raise UsageError(f"{path} is ddbench's own; evaluate it with `ddbench eval {path}`")
    raise DataError(f"{path} is of no format that is read here; give {READ}")


def _folder(path: Path, task: Task, experiment: int) -> Foreign:
    if pair := _chosen(path):
        return _pair(pair, task)
    inner = natural(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    stages = [pair for p in inner if (pair := _chosen(p))]
    if stages and len(stages) < len([p for p in inner if any(p.glob("*.pt"))]):
        raise DataError(f"some of the folders in {path} lack images_best.pt or labels_best.pt; every stage needs both")
    if len(stages) == 1:
        return _pair(stages[0], task)
    if stages:
        return _stages(stages, task)
    single = [p for pattern in ("res_*.pt", "*.npz") for p in natural(path.glob(pattern))]
    if len(single) == 1:
        return read(single[0], experiment=experiment, classes=task.classes, labels=task.labels)
    if single:
        raise UsageError(f"{path} holds {len(single)} sets; name one of {', '.join(p.name for p in single[:6])}")
    if any(p.suffix.lower() in PICTURES for folder in inner for p in folder.iterdir()):
        return _images(path, inner, task)
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


def _torch(path: Path, task: Task, experiment: int) -> Foreign:
    if path.name.startswith("labels"):
        return _torch(path.with_name(path.name.replace("labels", "images", 1)), task, experiment)
    content = torchfiles.load(path)
    if isinstance(content, dict) and "data" in content:
        return _results(path, content, task, experiment)
    if isinstance(content, Tensor) and content.ndim == 4:
        return _pair(path, task, content)
    if isinstance(content, list) and content and isinstance(content[0], list):
        raise UsageError(f"{path} holds expert trajectories, not a set; import it with `ddbench import --experts`")
    raise DataError(f"{path} holds a {type(content).__name__}, not images; give {READ}")


def _pair(path: Path, task: Task, images: Any = None) -> Foreign:
    """One set in the layout of MTT: images, labels, and the student lr where it was saved."""
    made, notes, files = _parts(path, task, images)
    return Foreign("mtt", (made,), notes=notes, files=files)


def _parts(path: Path, task: Task, images: Any = None) -> tuple[SyntheticSet, tuple[str, ...], dict[str, str]]:
    beside, rate = _partner(path, "labels"), _partner(path, "syn_lr")
    if beside == path or not beside.exists():
        raise DataError(f"{path} has no labels beside it ({beside.name} is not there); put both files in one folder")
    files = {p.name: file_digest(p) for p in (path, beside, rate) if p.exists()}
    lr = None
    if rate.exists():
        lr = _rate(torchfiles.load(rate), rate)
    made, notes = task.set(path, torchfiles.load(path) if images is None else images, torchfiles.load(beside), lr)
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


def _stages(paths: list[Path], task: Task) -> Foreign:
    """PDD's folders: stage i stores U_i = [U_{i-1}; S_i], and the student's lr of phase i."""
    if task.classes is None:  # hard labels of one stage need not name every class
        task = replace(task, classes=_parts(paths[-1], task)[0].labels.shape[1])
    sets: list[SyntheticSet] = []
    before, files, told = None, {}, ()
    for stage, path in enumerate(paths):
        union, told, found = _parts(path, task)
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


def _results(path: Path, content: dict[str, Any], task: Task, experiment: int) -> Foreign:
    """``res_*.pt`` of DC, DSA and DM: ``data`` is a list with images and labels of each experiment."""
    data = content["data"]
    if not isinstance(data, list) or not data or not all(isinstance(d, (list, tuple)) and len(d) == 2 for d in data):
        raise DataError(f"{path} has 'data' that is no list of images and labels; it is no file of DC, DSA or DM")
    if not 0 <= experiment < len(data):
        raise UsageError(f"{path} holds {len(data)} experiments; choose --experiment 0 to {len(data) - 1}")
    made, notes = task.set(path, data[experiment][0], data[experiment][1], None)
    said = [f"Took experiment {experiment} of {len(data)} in {path.name}."]
    if len(data) > 1:
        said.append("The others are chosen with --experiment.")
    return Foreign("dc", (made,), notes=(*said, *notes), files={path.name: file_digest(path)})


def _npz(path: Path, task: Task) -> Foreign:
    arrays = torchfiles.arrays(path)
    name = _only(path, arrays, "images", [n for n, a in arrays.items() if a.ndim == 4])
    rows = len(arrays[name])
    label = _only(path, arrays, "labels", [n for n, a in arrays.items() if a.ndim in (1, 2) and len(a) == rows])
    images, notes = arrays[name], [f"Read images from {name!r} and labels from {label!r} of {path.name}."]
    if images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.permute(0, 3, 1, 2).contiguous()
        notes.append("Its images have channels last and were turned to (n, c, h, w).")
    rates = [a for n, a in arrays.items() if n in ("lr", "syn_lr") and a.numel() == 1]
    lr = _rate(rates[0], path) if rates else None
    made, more = task.set(path, images, arrays[label], lr, soft="real")
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


def _images(path: Path, folders: list[Path], task: Task) -> Foreign:
    """One folder per class. Numbers in their names order them, since "10" sorts before "2" as text."""
    files = [[p for p in natural(f.iterdir()) if p.suffix.lower() in PICTURES] for f in folders]
    if empty := [f.name for f, found in zip(folders, files, strict=True) if not found]:
        raise DataError(f"{path} has folders without pictures ({', '.join(empty[:4])}); remove them, or fill them")
    labels, classes, said = numbered(path, [f.name for f in folders], task.classes)
    pixels = torchfiles.pictures([p for found in files for p in found])
    numbers = torch.tensor([label for label, found in zip(labels, files, strict=True) for _ in found])
    listed = [[str(p.relative_to(path)), file_digest(p)] for found in files for p in found]
    made, notes = task.set(path, pixels, numbers, None)
    return Foreign(
        "images", (made,), classes=classes, notes=(f"Read {len(listed)} pictures in {len(folders)} folders.", said,
        *notes), files={f"{path.name}/": digest(listed)}, unit=True,
    )  # fmt: skip
