"""``distilled.safetensors``: a set that describes itself, so that evaluating it needs no flags.

Layout (docs/file-format.md): for each set j ``set{j}.images``, ``set{j}.labels`` and, where there is a teacher,
``set{j}.teacher``, and of several ``set{j}.teacher1``, ..., too; the preprocessing's tensors as ``preprocessing.*``;
and one JSON document under the metadata key ``ddbench`` with everything else.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ddbench.base.cache import digest
from ddbench.base.opening import parse_json, reading
from ddbench.base.options import describe, make, options
from ddbench.base.tensors import is_safetensors, load_tensors, save_tensors
from ddbench.data.dataset import Dataset, Preprocessing
from ddbench.errors import DataError, UsageError
from ddbench.grade.document import FORMAT, MOST_STEPS, Document, Plugged, SetNotes, Spec
from ddbench.grade.modest import require_modest
from ddbench.plugins import registry
from ddbench.problem.decode import Decoder
from ddbench.problem.starts import Teaching
from ddbench.problem.synthetic import Curriculum, SyntheticSet, Teacher
from ddbench.train.fit import Recipe
from ddbench.train.network import Network
from ddbench.train.source import NetworkSource

HEADER_BYTES = 8_000_000  # the names of 100,000 classes take two
VALUES = 300_000  # in the document, of which each takes a hundred bytes once it is read
ROUNDED = 1e-3  # by which probabilities may miss 0, and their sum 1


@dataclass(frozen=True, eq=False)
class Distilled:
    """A curriculum with all that a student needs to learn it, and where it came from (``about``, JSON)."""

    curriculum: Curriculum
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    network: NetworkSource  # that it was made for
    teaching: Teaching
    about: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        tensors = {f"preprocessing.{name}": t for name, t in self.preprocessing.tensors().items()}
        sets = []
        for j, s in enumerate(self.curriculum.sets):
            tensors |= {f"set{j}.images": s.images, f"set{j}.labels": s.labels}
            notes = {"lr": s.lr, "label_kind": s.label_kind, "label_type": s.label_type}
            notes["decoder"] = options(s.decoder)
            if s.teacher is not None:
                vectors = {_teacher_name(j, i): member.vector for i, member in enumerate(s.teacher.members)}
                tensors, notes["teacher"] = tensors | vectors, describe(s.teacher.source)
                if s.teacher.others:
                    notes["other_teachers"] = [describe(other.source) for other in s.teacher.others]
            sets.append(notes)
        several = any("other_teachers" in notes for notes in sets)
        document = {
            "format": FORMAT if several else 2,  # so that earlier versions read what they can
            "sets": sets,
            "phases": self.curriculum.phases,
            "classes": self.classes,
            "shape": self.shape,
            "preprocessing": self.preprocessing.kind,
            "network": describe(self.network),
            "training": {
                "recipe": options(self.teaching.recipe),
                "steps": self.teaching.steps,
                "phases": self.teaching.phases,
            },
            "about": self.about,
        }
        document["sha256"] = _digest(document, tensors)
        save_tensors(path, tensors, {"ddbench": json.dumps(document, sort_keys=True, allow_nan=False)})

    @classmethod
    def load(cls, path: Path) -> Distilled:
        """Read and check a file, whoever it comes from. Raises DataError that says what is wrong with it."""
        _require_short_header(path)
        try:
            tensors, metadata = load_tensors(path)
        except DataError as error:
            reason = " ".join(str(error.__cause__ or error).split())[:200]
            raise DataError(f"{path} is damaged or no safetensors file ({reason}); get another copy") from error
        if "ddbench" not in metadata:
            raise DataError(f"{path} is a safetensors file, but not one that ddbench wrote: it describes no set")
        held = _parsed(path, metadata["ddbench"])
        document = Document.checked(held, f"{path} is incomplete or damaged ({{}}); get another copy")
        try:
            made = cls._read(document, held, tensors)
            recorded = held.pop("sha256")
            if recorded != _digest(held, tensors):
                raise DataError("its content does not have the recorded digest")
            return made
        except DataError as error:
            raise DataError(f"{path} is damaged: {error}") from error
        except (UsageError, KeyError, TypeError, ValueError, OverflowError) as error:
            said = str(error)[:300] if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"[:300]
            raise DataError(f"{path} is incomplete or damaged, or describes what is not here ({said})") from error

    @classmethod
    def _read(cls, document: Document, held: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Distilled:
        classes, (c, h, w) = tuple(document.classes), document.shape
        sets = tuple(_set(j, notes, tensors, (c, h, w), len(classes)) for j, notes in enumerate(document.sets))
        if fault := document.budget_fault(sum(map(len, sets))) or _unbalanced(sets, document.about.selection):
            raise DataError(fault)
        parts = {n.removeprefix("preprocessing."): t for n, t in tensors.items() if n.startswith("preprocessing.")}
        network = registry().get("network", document.network.name)
        recipe = make(Recipe, document.training.recipe, "recipe")
        if document.about.spec is not None:
            _check_parts(document.about.spec)
        made = cls(
            curriculum=Curriculum(sets, tuple(tuple(p) for p in document.phases)),
            preprocessing=step_of(document.preprocessing, parts, (c, h, w)),
            classes=classes,
            shape=(c, h, w),
            network=make(network.cls, document.network.options, "network"),
            teaching=Teaching(recipe, document.training.steps, document.training.phases),
            about=held["about"],
        )
        if made.teaching.total(made.curriculum) > MOST_STEPS:
            raise DataError(f"it asks for more than the {MOST_STEPS:,} steps that a student may take")
        return made

    def on(self, device: str) -> Distilled:
        """The same set with its tensors on a device."""
        sets = tuple(s.detached(device) for s in self.curriculum.sets)
        moved = Curriculum(sets, self.curriculum.phases)
        return Distilled(
            moved, self.preprocessing.to(device), self.classes, self.shape, self.network, self.teaching, self.about
        )

    def build_network(self, device: str) -> Network:
        return Network(self.network, self.shape, len(self.classes), torch.device(device))

    def check_dataset(self, dataset: Dataset, *, transfer: bool = False) -> None:
        """Refuse test data that are another task: other classes, another order, another image size, another dataset.

        ``transfer`` allows another dataset of the same classes and size.
        """
        if dataset.classes != self.classes:
            raise DataError(
                f"the set was distilled for the classes {_few(self.classes)}, but dataset {dataset.name!r} has "
                f"{_few(dataset.classes)}; evaluate it on the dataset it was made from"
            )
        if dataset.test.shape != self.shape:
            raise DataError(
                f"the set has images of {self.shape} (c, h, w), but dataset {dataset.name!r} has "
                f"{dataset.test.shape}; load it at that size (-o dataset.size={self.shape[1]})"
            )
        made_from = self.about.get("dataset", {}).get("name", dataset.name)
        if made_from != dataset.name and not transfer:
            raise DataError(
                f"the set was distilled from dataset {made_from!r}, not from {dataset.name!r}; evaluate it on that, or "
                "say --transfer to test it on other data of the same classes"
            )


def _require_short_header(path: Path) -> None:
    """Refuse a file that says, in its first eight bytes, that its header is longer than any that ddbench writes."""
    with reading(path) as stream:
        size = int.from_bytes(stream.read(8), "little")
    if size > HEADER_BYTES and is_safetensors(path):
        raise DataError(f"{path} is damaged or no file of ddbench: its header is said to have {size:,} bytes")


def _parsed(path: Path, text: str) -> dict[str, Any]:
    """The document as JSON, of a bounded number of values."""
    try:
        if sum(map(text.count, "[{,")) > VALUES:
            raise ValueError(f"it lists more than {VALUES:,} values")
        held = parse_json(text)
        if not isinstance(held, dict):
            raise ValueError("it is not a JSON object")
    except ValueError as error:
        raise DataError(f"{path} is incomplete or damaged ({str(error)[:200]}); get another copy") from error
    if isinstance(newer := held.get("format"), int) and FORMAT < newer < 10**6:
        raise DataError(f"{path} was written by a newer ddbench (format {newer}); update ddbench to read it")
    return held


def _check_parts(spec: Spec) -> None:
    """Refuse values that the parts of a spec that are no plugins cannot have; an option that they had once may stay."""
    for cls, given in ((Recipe, spec.experts), (Decoder, spec.decoder)):
        names = {f.name for f in fields(cls)}
        make(cls, {name: value for name, value in given.items() if name in names}, cls.__name__.lower())


def _set(
    j: int, notes: SetNotes, tensors: dict[str, torch.Tensor], shape: tuple[int, int, int], classes: int
) -> SyntheticSet:
    """Set ``j`` of a file, its tensors compared with what the document says of them."""
    images, labels = _floats(tensors, f"set{j}.images", shape), _floats(tensors, f"set{j}.labels", (classes,))
    teacher = None
    if notes.teacher is not None:
        noted = [notes.teacher, *notes.other_teachers]
        first, *others = (_teacher(j, i, of, tensors, shape, classes) for i, of in enumerate(noted))
        teacher = Teacher(first.source, first.vector, tuple(others))
    if notes.label_kind == "probability" and not (labels.min() >= -ROUNDED and _ones(labels.sum(1))):
        raise DataError(f"set {j} has labels that are said to be probabilities, and are not")
    if notes.label_type == "hard" and not (_ones(labels.max(1).values) and _ones(labels.abs().sum(1))):
        raise DataError(f"set {j} has labels that are said to be hard, and name no class")
    decoder = make(Decoder, notes.decoder, "decoder")
    return SyntheticSet(images, labels, notes.lr, notes.label_kind, notes.label_type, decoder, teacher)


def _teacher(
    j: int, index: int, noted: Plugged, tensors: dict[str, torch.Tensor], shape: tuple[int, int, int], classes: int
) -> Teacher:
    """Network ``index`` of the teacher of set ``j``."""
    source = make(registry().get("network", noted.name).cls, noted.options, "network")
    made, who = Teacher(source, _floats(tensors, _teacher_name(j, index))), f"the teacher of set {j}"
    length = require_modest(made.network(shape, classes), who).length
    if length != len(made.vector):
        raise DataError(f"{who} has {len(made.vector)} numbers, but its network {length}")
    return made


def _teacher_name(j: int, index: int) -> str:
    """What the tensor of a teacher's network is called: the first is ``set0.teacher``, the second ``set0.teacher1``."""
    return f"set{j}.teacher{index or ''}"


def _floats(tensors: dict[str, torch.Tensor], name: str, shape: tuple[int, ...] = ()) -> torch.Tensor:
    """A tensor (n, *shape) of the file: finite numbers of 32 bits, at least one row of them."""
    found = tensors.get(name)
    if found is None:
        raise DataError(f"its tensor {name} is not there")
    if (
        found.dtype != torch.float32
        or found.ndim != 1 + len(shape)
        or tuple(found.shape[1:]) != shape
        or not len(found)
    ):
        wanted = ", ".join(map(str, ("n", *shape)))
        raise DataError(f"its tensor {name} is {found.dtype} {tuple(found.shape)}, not torch.float32 ({wanted})")
    if not torch.isfinite(found).all():
        raise DataError(f"its tensor {name} holds numbers that are not finite")
    return found


def _ones(values: torch.Tensor) -> bool:
    return bool(((values - 1).abs() < ROUNDED).all())


def _unbalanced(sets: tuple[SyntheticSet, ...], selection: str) -> str | None:
    """What is wrong with how the images of a run are divided among classes: they are stored class by class."""
    if selection == "unknown":  # sets of others are as they are
        return None
    for j, s in enumerate(sets):
        per_class, rest = divmod(len(s), s.labels.shape[1])
        if rest or (s.label_type == "hard" and (s.labels.argmax(1) != torch.arange(len(s)) // per_class).any()):
            return (
                f"set {j} of {len(s)} images does not hold as many of each of its {s.labels.shape[1]} classes, in order"
            )
    return None


def step_of(kind: str, parts: dict[str, torch.Tensor], shape: tuple[int, int, int]) -> Preprocessing:
    """The step of a file, which must be one for images of ``shape`` (c, h, w). Raises DataError."""
    size = shape[0] if kind == "meanstd" else math.prod(shape)
    wanted = {"mean": (size,)} | ({"std": (size,)} if kind == "meanstd" else {"whiten": (size, size)})
    if parts.keys() != wanted.keys():
        raise DataError(f"its preprocessing has {', '.join(sorted(parts)) or 'nothing'}, not {' and '.join(wanted)}")
    for name, dims in wanted.items():
        if len(_floats(parts, name, dims[1:])) != size:
            raise DataError(f"its preprocessing has {name} {tuple(parts[name].shape)}, where images are {shape}")
    if kind == "meanstd" and not (parts["std"] > 0).all():
        raise DataError("its preprocessing divides by standard deviations that are not positive")
    return Preprocessing(**parts)


def _digest(document: dict[str, Any], tensors: dict[str, torch.Tensor]) -> str:
    """sha256 over everything in the file: safetensors itself does not notice a flipped bit."""
    contents = {name: digest(_bytes(t)) for name, t in tensors.items()}
    return digest([json.loads(json.dumps(document)), contents])


def _bytes(tensor: torch.Tensor) -> bytes | memoryview:
    """The bytes of a tensor, not copied where it lies on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:6]) + (f", ... ({len(names)} in all)" if len(names) > 6 else "")
