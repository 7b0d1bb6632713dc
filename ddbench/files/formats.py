"""Other people's distilled sets as they lie on disk: which format, which images, which labels; nothing is converted.

The content decides what a file is. Shapes: n images, c channels, h x w pixels, k classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddbench.base.cache import file_digest
from ddbench.data.pictures import is_of_tools, is_picture
from ddbench.data.preprocessing import Preprocessing
from ddbench.errors import DataError, UsageError
from ddbench.files import arrays, beside, class_table, folders, parquet, safe_load, shards
from ddbench.files.class_names import by_names
from ddbench.files.foreign import Foreign
from ddbench.files.known import Known, columns
from ddbench.files.safe_load import natural
from ddbench.grade.distilled import Distilled, step_of
from ddbench.problem.synthetic import SyntheticSet

READ = (
    "a folder with images_best.pt and labels_best.pt (MTT, TESLA, FTD, DATM), a folder of such folders (PDD), "
    "res_*.pt (DC, DSA, DM), data_*.pt (IDC, NCFM), an .npz of images and labels (FRePo, KIP, RFAD), a folder of "
    "images per class, tar archives of WebDataset, or a parquet file of `ddbench export`"
)
MOST_SAID = 3  # stages of which is said what was not read in them


def read(
    path: Path,
    *,
    experiment: int = 0,
    classes: int | None = None,
    labels: str = "auto",
    names: tuple[str, ...] = (),
    wnids: tuple[str, ...] = (),
) -> Foreign:
    """Read a set in any of the formats of ``READ``. Raises DataError, or UsageError for a choice that is not there.

    ``classes`` is k where it is known; otherwise hard labels tell it. ``labels`` states what soft labels mean.
    ``names`` are the dataset's classes, and ``wnids`` their WordNet ids: labels are then in its order.
    """
    known = Known(len(names) or classes, labels, names, wnids)
    if not path.exists():
        raise DataError(f"{path} does not exist; give {READ}")
    if path.is_dir():
        return _folder(path, known, experiment)
    found = _file(path, known, experiment)
    if found.format == "mtt":  # which looked at what lies beside it
        return found
    return replace(found, notes=(*found.notes, *beside.unused(path.parent, {path.name})))


def _file(path: Path, known: Known, experiment: int) -> Foreign:
    if path.suffix == shards.SUFFIX:
        return _shards([path], known)
    safe_load.recognise(path)
    if arrays.is_npz(path):
        found, names = arrays.arrays(path)
        return _arrays(path, "npz", found, known, names, soft="real")
    if path.suffix == parquet.SUFFIX:
        found, names = parquet.arrays(path)
        return _arrays(path, "parquet", found, known, names, soft="real")
    if arrays.is_npy(path) and beside.images_of(path) == path:
        return _pair(path, known)
    if safe_load.is_torch(path) or arrays.is_npy(path):
        return _torch(path, known, experiment)
    if path.suffix == ".safetensors":
        Distilled.load(path)
        raise UsageError(f"{path} is ddbench's own; evaluate it with `ddbench eval {path}`")
    raise DataError(f"{path} is of no format that is read here; give {READ}")


def _folder(path: Path, known: Known, experiment: int) -> Foreign:
    if pair := beside.chosen(path):
        return _pair(pair, known)
    inside = beside.inside(path)
    inner = _folders_in(path, inside)
    stages = [pair for p in inner if (pair := beside.chosen(p))]
    if stages and len(stages) < len([p for p in inner if any(q.suffix == ".pt" for q in beside.inside(p))]):
        raise DataError(f"some of the folders in {path} lack images_best.pt or labels_best.pt; every stage needs both")
    if len(stages) == 1:
        return _pair(stages[0], known)
    if stages:
        return _stages(stages, known)
    single = beside.single(path)
    if len(single) == 1:
        found = _file(single[0], known, experiment)
        return replace(found, notes=(*found.notes, *beside.unused(path, {single[0].name})))
    if single:
        raise UsageError(f"{path} holds {len(single)} sets; name one of {', '.join(p.name for p in single[:6])}")
    if any(is_picture(p.name) for folder in inner for p in beside.inside(folder)):
        return folders.pictures(path, inner, known)
    files = natural(p for p in inside if not p.is_dir())
    if archives := [p for p in files if p.suffix == shards.SUFFIX]:
        return _shards(archives, known)
    if len(tables := [p for p in files if p.suffix == parquet.SUFFIX]) == 1:
        return _file(tables[0], known, experiment)
    lone = [one.path.name for kind in ("images", "labels") for one in beside.among(path, kind)]
    found = f"holds {', '.join(lone[:4])} without its partner" if lone else "holds no set that is read here"
    raise DataError(f"{path} {found}; give {READ}")


def _folders_in(path: Path, inside: list[Path]) -> list[Path]:
    """Folders that may hold a set, or a class of it: no hidden ones or those of tools that ``classes.json`` lacks."""
    table = class_table.read(path)
    named = set() if table is None else set(table.folders)
    return natural(
        p for p in inside if p.is_dir() and (p.name in named or not (p.name.startswith(".") or is_of_tools(p.name)))
    )


def _torch(path: Path, known: Known, experiment: int) -> Foreign:
    if (images := beside.images_of(path)) != path:
        return _file(images, known, experiment)
    content = safe_load.load(path)
    if isinstance(content, dict) and "data" in content:
        return _results(path, content, known, experiment)
    if isinstance(content, Tensor) and content.ndim == 4:
        return _pair(path, known, content)
    if isinstance(content, (list, tuple)) and len(content) == 2 and all(isinstance(part, Tensor) for part in content):
        made, notes = known.set(path, content[0], content[1], None)
        said = f"Read images and labels from {path.name}."
        unit = content[0].dtype == torch.uint8
        return Foreign("pair", (made,), notes=(said, *notes), files={path.name: file_digest(path)}, unit=unit)
    if isinstance(content, dict) and content and all(isinstance(name, str) for name in content):
        tensors = {name: part for name, part in content.items() if isinstance(part, Tensor)}
        if any(part.ndim == 4 for part in tensors.values()):
            return _arrays(path, "dict", tensors, known)
    if isinstance(content, list) and content and isinstance(content[0], list):
        raise UsageError(f"{path} holds expert trajectories, not a set; import it with `ddbench import --experts`")
    raise DataError(f"{path} holds a {type(content).__name__}, not images; give {READ}")


def _pair(path: Path, known: Known, images: Any = None) -> Foreign:
    """One set in the layout of MTT: images, labels, and the student lr where it was saved."""
    made, notes, files, unit = _parts(path, known, images)
    return Foreign("mtt", (made,), notes=(*notes, *beside.unused(path.parent, set(files))), files=files, unit=unit)


def _parts(path: Path, known: Known, images: Any = None) -> tuple[SyntheticSet, tuple[str, ...], dict[str, str], bool]:
    """The set of a file of images, with notes, the sha256 of its files, and whether its pixels are bytes."""
    labels, rate = beside.partners(path)
    files = {p.name: file_digest(p) for p in (path, labels, rate) if p is not None}
    lr = None if rate is None else beside.rate(beside.load(rate), rate)
    images = beside.load(path) if images is None else images
    made, notes = known.set(path, images, beside.load(labels), lr)
    said = (
        f"The student lr is {lr:.6g}, from {rate.name}."
        if rate and lr
        else "No file of a student lr: the protocol chooses it."
    )
    unit = images.dtype == torch.uint8
    return made, (f"Read {path.name} and {labels.name}.", *notes, said), files, unit


def _stages(paths: list[Path], known: Known) -> Foreign:
    """PDD's folders: stage i stores U_i = [U_{i-1}; S_i], and the student's lr of phase i."""
    if known.classes is None:  # hard labels of one stage need not name every class
        known = replace(known, classes=_parts(paths[-1], known)[0].labels.shape[1])
    sets: list[SyntheticSet] = []
    before, files, told, left = None, {}, (), []
    for stage, path in enumerate(paths):
        union, told, found, _ = _parts(path, known)
        files |= {f"{path.parent.name}/{name}": value for name, value in found.items()}
        left += [f"Of {path.parent.name}: {word}" for word in beside.unused(path.parent, set(found))]
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
        *left[:MOST_SAID],
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
        raise DataError(f"{path} has 'data' that is not a list of images and labels; it is not a file of DC, DSA or DM")
    if not 0 <= experiment < len(data):
        raise UsageError(f"{path} holds {len(data)} experiments; choose --experiment 0 to {len(data) - 1}")
    made, notes = known.set(path, data[experiment][0], data[experiment][1], None)
    said = [f"Took experiment {experiment} of {len(data)} in {path.name}."]
    if len(data) > 1:
        said.append("The others are chosen with --experiment.")
    return Foreign("dc", (made,), notes=(*said, *notes), files={path.name: file_digest(path)})


def _arrays(
    path: Path,
    form: str,
    found: Mapping[str, Tensor],
    known: Known,
    called: tuple[str, ...] | None = None,
    soft: str = "logit",
) -> Foreign:
    """Named arrays, of which one holds images and one labels; ``called`` are the classes that a file itself names."""
    name = _only(path, found, "images", [n for n, a in found.items() if a.ndim == 4])
    rows = len(found[name])
    label = _only(path, found, "labels", [n for n, a in found.items() if a.ndim in (1, 2) and len(a) == rows])
    images, notes = found[name], [f"Read images from {name!r} and labels from {label!r} of {path.name}."]
    if images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.permute(0, 3, 1, 2).contiguous()
        notes.append("Its images have channels last and were turned to (n, c, h, w).")
    rates = [a for n, a in found.items() if n in ("lr", "syn_lr") and a.numel() == 1]
    lr = beside.rate(rates[0], path) if rates else None
    made, more = known.set(path, images, found[label], lr, soft)
    if called is not None and known.names and len(called) == made.labels.shape[1]:
        made, said = _reordered(made, called, known)
        more.append(said)
    files = {path.name: file_digest(path)}
    step, unit = _step(path, found, made), images.dtype == torch.uint8
    return Foreign(form, (made,), notes=(*notes, *more), files=files, step=step, unit=unit and step is None)


def _shards(paths: list[Path], known: Known) -> Foreign:
    """Tar archives of pictures and their labels."""
    rest: list[str] = []
    held, called = shards.arrays(paths, rest)
    made = _arrays(paths[0], "webdataset", held, known, called, soft="real")
    counted = f"Read {len(held['images'])} pictures in {len(paths)} archives."
    return replace(made, notes=(counted, *rest, *made.notes[1:]), files=_digests(paths), unit=True)


def _digests(paths: list[Path]) -> dict[str, str]:
    table = paths[0].parent / class_table.FILE
    return {p.name: file_digest(p) for p in (*paths, *([table] if table.exists() else []))}


def _reordered(made: SyntheticSet, called: tuple[str, ...], known: Known) -> tuple[SyntheticSet, str]:
    """The set with its labels in the dataset's order, where the classes that its file names are the dataset's."""
    told = by_names(called, known.names)
    if told is None:
        return made, (
            f"Its classes are called {', '.join(called[:4])}, ..., unlike the dataset's; labels stay in their order."
        )
    return replace(made, labels=columns(made.labels, told[0])), told[1]


def _step(path: Path, found: Mapping[str, Tensor], made: SyntheticSet) -> Preprocessing | None:
    """The step that arrays ``preprocessing_*`` say the pixels passed, if they are what ``ddbench export`` writes."""
    parts = {n.removeprefix("preprocessing_"): a.float() for n, a in found.items() if n.startswith("preprocessing_")}
    kinds = [kind for kind, names in (("meanstd", {"mean", "std"}), ("zca", {"mean", "whiten"})) if set(parts) == names]
    c, h, w = made.images.shape[1:]
    try:
        return step_of(kinds[0], parts, (c, h, w)) if kinds else None
    except DataError as error:
        raise DataError(f"{path} is damaged: {error}; leave its arrays preprocessing_* out") from error


def _only(path: Path, arrays: Mapping[str, Tensor], what: str, fitting: list[str]) -> str:
    """The one name that fits; among several, the one called so."""
    called = [n for n in fitting if what[:5] in n.lower()]
    if len(fitting) == 1 or len(called) == 1:
        return (called or fitting)[0]
    shapes = ", ".join(f"{n[:40]} {tuple(a.shape)}" for n, a in [*arrays.items()][:8]) or "nothing"
    raise DataError(f"{path} holds {len(fitting)} arrays that may be {what}; it needs one called {what} (has {shapes})")
