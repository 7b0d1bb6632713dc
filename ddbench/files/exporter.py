"""``ddbench export``: a distilled set in the formats that other tools read.

Every form holds what students see: decoded images, and labels as they are stored.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddbench.base.cache import atomic_file
from ddbench.errors import DataError, UsageError
from ddbench.files import class_table, pixelspace
from ddbench.files.class_names import folder_name, safe_name
from ddbench.grade.distilled import Distilled
from ddbench.problem.synthetic import SyntheticSet

CLIPPED = 0.01  # the share of pixels from which clipping is worth a warning
SHARD = 10_000  # pictures in one archive
_BESIDE = {class_table.FILE, "labels.npy", "labels.csv"}  # what lies beside folders of pictures


def export(distilled: Distilled, form: str, out: Path) -> list[str]:
    """Write the set as ``form`` (one of ``FORMS``) at ``out``, which must not exist; returns notes.

    All of it appears at once, when it is complete.
    """
    if form not in FORMS:
        raise UsageError(f"--format {form!r} is none of {', '.join(FORMS)}")
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out} exists already, and nothing is overwritten; give another --to")
    with _whole(out) as temporary:
        notes = FORMS[form](distilled, temporary)
    if any(s.decoder.factor > 1 for s in distilled.curriculum.sets):
        notes.append("Images were decoded: more and larger than those stored, as students see them.")
    if any(s.teacher is not None for s in distilled.curriculum.sets):
        notes.append("The teacher that labels batches online stays behind; stored labels were written.")
    return notes


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A path to fill, a folder or a file, that becomes ``out`` when the block ends without an error."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name[:80]}."))
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror}; choose another --to") from error
    try:
        yield holder / "made"
        (holder / "made").replace(out)
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror}; free some space, or choose another --to") from error
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def _shown(s: SyntheticSet) -> tuple[Tensor, Tensor]:
    """Images as students see them, and labels as stored, one row for each."""
    return s.decoder(s.images).contiguous(), s.decoder.labels(s.labels)


def _all(distilled: Distilled) -> tuple[Tensor, Tensor, Tensor]:
    """Images and labels of all sets, and the stage (n,) of each."""
    parts = [_shown(s) for s in distilled.curriculum.sets]
    stages = torch.cat([torch.full((len(images),), j) for j, (images, _) in enumerate(parts)])
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts]), stages


def _hard(labels: Tensor) -> bool:
    return bool(((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all())


def _space(distilled: Distilled) -> str:
    step = distilled.preprocessing
    if step.std is None:
        return "Pixels are ZCA-whitened; read them with --pixels zca (the matrix stays in distilled.safetensors)."
    mean, std = (",".join(f"{v:.6g}" for v in t.tolist()) for t in (step.mean, step.std))
    return f"Pixels are as networks take them; read them with --pixels {mean}/{std}"


def _order_lost(distilled: Distilled) -> list[str]:
    if len(distilled.curriculum.phases) < 2:
        return []
    return [f"Students learned its {len(distilled.curriculum.phases)} phases one after another; that order is lost."]


def _pt(distilled: Distilled, out: Path) -> list[str]:
    """The layout of MTT; of several stages, PDD's folders, each with all images up to its stage."""
    curriculum = distilled.curriculum
    kinds = {s.label_kind for s in curriculum.sets} - {"probability"}
    notes = [_space(distilled)] + [f"Labels are of kind {kind!r}; read them with --labels {kind}." for kind in kinds]
    growing = tuple(tuple(range(j + 1)) for j in range(len(curriculum.sets)))
    if len(curriculum.sets) == 1 or curriculum.phases != growing:
        images, labels, _ = _all(distilled)
        _save_pair(out, images, labels, curriculum.lr(len(curriculum.phases) - 1))
        return notes + _order_lost(distilled)
    parts = [_shown(s) for s in curriculum.sets]
    for j, s in enumerate(curriculum.sets):
        images, labels = (torch.cat([part[i] for part in parts[: j + 1]]) for i in (0, 1))
        _save_pair(out / f"stage_{j + 1}", images, labels, s.lr)
    return [*notes, f"Wrote {len(parts)} stages; each folder holds all images up to its stage, as PDD stores them."]


def _save_pair(folder: Path, images: Tensor, labels: Tensor, lr: float | None) -> None:
    folder.mkdir(parents=True)
    torch.save(images.clone(), folder / "images_best.pt")
    torch.save(labels.argmax(1) if _hard(labels) else labels.clone(), folder / "labels_best.pt")
    if lr is not None:
        torch.save(torch.tensor(lr, dtype=torch.float64), folder / "syn_lr_best.pt")


def _npz(distilled: Distilled, out: Path) -> list[str]:
    images, labels, stages = _all(distilled)
    step = {f"preprocessing_{name}": t.numpy() for name, t in distilled.preprocessing.tensors().items()}
    lr = distilled.curriculum.lr(len(distilled.curriculum.phases) - 1)
    rate = {} if lr is None else {"syn_lr": np.float64(lr)}
    arrays: dict[str, Any] = {
        "images": images.numpy(),
        "labels": labels.numpy(),
        "stage": stages.numpy(),
        **step,
        **rate,
        "classes": np.array(distilled.classes),
    }
    with atomic_file(out) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **arrays)
    return [_space(distilled), *_kind(distilled), "Its arrays preprocessing_* undo that step.", *_order_lost(distilled)]


def _levels(images: Tensor, distilled: Distilled) -> tuple[np.ndarray[Any, Any], list[str]]:
    """Images as pictures, (n, h, w, c) uint8, and a warning where these are not what students see."""
    pixels = torch.cat([pixelspace.undone(part, distilled.preprocessing) for part in images.split(1000)])
    clipped = float(((pixels < -0.5 / 255) | (pixels > 1 + 0.5 / 255)).double().mean())
    levels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    if clipped < CLIPPED:
        return levels, []
    return levels, [
        f"Warning: {clipped:.1%} of the pixels lie outside [0, 1] and were clipped, so these pictures are "
        "not what students learned from."
    ]


def _png(levels: np.ndarray[Any, Any]) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels).save(stream, "png")
    return stream.getvalue()


_ROUNDED = "Pictures have 8 bits per channel, so pixels were rounded; --format pt or npz keeps them to the bit."


def _kind(distilled: Distilled) -> list[str]:
    kind = distilled.curriculum.sets[0].label_kind
    return [] if kind == "probability" else [f"Labels are of kind {kind!r}; read them with --labels {kind}."]


def _folders(classes: tuple[str, ...], out: Path) -> tuple[list[str], list[str]]:
    """Make a folder for each class, by its own name where a file system keeps these apart; what they are called."""
    plain = [safe_name(name) for name in classes]
    for name in plain:
        (out / name).mkdir(parents=True, exist_ok=True)
    if len([*out.iterdir()]) == len(classes) and _BESIDE.isdisjoint(name.lower() for name in plain):
        return plain, []
    shutil.rmtree(out)  # one folder for two classes: their names are one in this file system, or once made safe for it
    numbered = [folder_name(i, name) for i, name in enumerate(classes)]
    for name in numbered:
        (out / name).mkdir(parents=True)
    return numbered, [
        "Warning: names of classes cannot all be names of folders here, so these have numbers before them, and "
        f"ImageFolder may order your own folders otherwise; {class_table.FILE} says which is which."
    ]


def _folder(distilled: Distilled, out: Path) -> list[str]:
    """PNG pictures in a folder per class, called like the class: ImageFolder numbers them as the user's own folders."""
    images, labels, _ = _all(distilled)
    targets = labels.argmax(1).tolist()
    names, crowded = _folders(distilled.classes, out)
    class_table.write(out, class_table.Table(distilled.classes, tuple(names)))
    levels, lost = _levels(images, distilled)
    files = [f"{names[target]}/{i:06d}.png" for i, target in enumerate(targets)]
    for file, picture in zip(files, levels, strict=True):
        (out / file).write_bytes(_png(picture))
    notes = [_ROUNDED, *lost, *crowded]
    if not _hard(labels):
        np.save(out / "labels.npy", labels.numpy())
        with (out / "labels.csv").open("w", newline="", encoding="utf-8") as stream:
            rows = csv.writer(stream)
            rows.writerow(["file", *distilled.classes])
            rows.writerows([file, *row] for file, row in zip(files, labels.tolist(), strict=True))
        kind = distilled.curriculum.sets[0].label_kind
        notes.append(f"Folders tell the largest label; the soft ones ({kind}) are in labels.csv and labels.npy.")
        notes += _kind(distilled)
    return notes + _order_lost(distilled)


def _webdataset(distilled: Distilled, out: Path) -> list[str]:
    """Shards of pictures and labels: ``000000.png`` with ``000000.cls``, or soft labels in ``000000.json``."""
    images, labels, _ = _all(distilled)
    levels, lost = _levels(images, distilled)
    told: list[int] | list[list[float]] = labels.argmax(1).tolist() if _hard(labels) else labels.tolist()
    suffix = "cls" if _hard(labels) else "json"
    out.mkdir()
    class_table.write(out, class_table.Table(distilled.classes))
    for shard, first in enumerate(range(0, len(levels), SHARD)):
        with tarfile.open(out / f"train-{shard:06d}.tar", "w") as archive:
            for i in range(first, min(first + SHARD, len(levels))):
                for kind, data in (("png", _png(levels[i])), (suffix, json.dumps(told[i]).encode())):
                    member = tarfile.TarInfo(f"{i:06d}.{kind}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    numbers = f"Numbers of classes are places in {class_table.FILE}."
    return [_ROUNDED, *lost, numbers, *_kind(distilled), *_order_lost(distilled)]


def _datasets(distilled: Distilled, out: Path) -> list[str]:
    """A folder with one parquet file that ``datasets.load_dataset`` opens offline: pictures, and floats to the bit."""
    try:
        import datasets as hub
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UsageError("--format datasets needs the package datasets; pip install 'ddbench[hf]'") from error
    images, labels, stages = _all(distilled)
    levels, lost = _levels(images, distilled)
    features = {
        "image": hub.Image(),
        "label": hub.ClassLabel(names=list(distilled.classes)),
        "stage": hub.Value("int32"),
        "network_input": hub.Array3D(tuple(images.shape[1:]), "float32"),
    }
    columns: dict[str, Any] = {
        "image": [{"bytes": _png(picture), "path": f"{i:06d}.png"} for i, picture in enumerate(levels)],
        "label": labels.argmax(1).tolist(),
        "stage": stages.tolist(),
        "network_input": images.numpy(),
    }
    if not _hard(labels):
        features["soft_label"] = hub.List(hub.Value("float32"))
        columns["soft_label"] = labels.tolist()
    out.mkdir()
    table: Any = hub.Dataset.from_dict(columns, features=hub.Features(features)).with_format("arrow")[:]
    said = {**(table.schema.metadata or {}), b"ddbench": json.dumps(_about(distilled, images)).encode()}
    pq.write_table(table.replace_schema_metadata(said), out / "train.parquet", write_page_checksum=True)
    return [
        "Its column 'image' holds pictures of 8 bits, 'network_input' the same to the bit as networks take it.",
        *lost,
        _space(distilled),
        "Open it with datasets.load_dataset(FOLDER).",
        *_kind(distilled),
        *_order_lost(distilled),
    ]


def _about(distilled: Distilled, images: Tensor) -> dict[str, Any]:
    """What a table says of itself: classes by label, ``(c, h, w)``, what networks' input passed, and the student lr."""
    step = distilled.preprocessing
    passed = {"kind": step.kind}
    if step.std is not None:
        passed |= {"mean": step.mean.tolist(), "std": step.std.tolist()}
    return {
        "classes": distilled.classes,
        "shape": tuple(images.shape[1:]),
        "preprocessing": passed,
        "lr": distilled.curriculum.lr(len(distilled.curriculum.phases) - 1),
    }


FORMS: dict[str, Callable[[Distilled, Path], list[str]]] = {
    "pt": _pt,
    "npz": _npz,
    "folder": _folder,
    "datasets": _datasets,
    "webdataset": _webdataset,
}
