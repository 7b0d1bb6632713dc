"""``distilled.safetensors``: a set that describes itself, so that evaluating it needs no flags.

Layout, format 1: for each set j ``set{j}.images`` and ``set{j}.labels``; the preprocessing's tensors as
``preprocessing.*``; and one JSON document under the metadata key ``ddbench`` with everything else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ddbench.base.cache import digest
from ddbench.base.options import describe, make, options
from ddbench.base.tensors import load_tensors, save_tensors
from ddbench.data.dataset import Dataset, Preprocessing
from ddbench.errors import DataError
from ddbench.plugins import registry
from ddbench.problem.decode import Decoder
from ddbench.problem.starts import Teaching
from ddbench.problem.synthetic import Curriculum, SyntheticSet, Teacher
from ddbench.train.fit import Recipe
from ddbench.train.network import Network
from ddbench.train.source import NetworkSource

FORMAT = 2  # 1 had neither decoders nor teachers


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
                tensors[f"set{j}.teacher"] = s.teacher.vector
                notes["teacher"] = describe(s.teacher.source)
            sets.append(notes)
        document = {
            "format": FORMAT,
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
        """Read and check a file. Raises DataError that says what is wrong with it."""
        try:
            tensors, metadata = load_tensors(path)
        except DataError as error:
            if not path.exists():
                raise
            reason = error.__cause__ or error
            raise DataError(f"{path} is damaged or no safetensors file ({reason}); get another copy") from error
        if "ddbench" not in metadata:
            raise DataError(f"{path} is a safetensors file, but not one that ddbench wrote: it describes no set")
        try:
            document = json.loads(metadata["ddbench"])
            if document["format"] > FORMAT:
                raise DataError(
                    f"{path} was written by a newer ddbench (format {document['format']}); update ddbench to read it"
                )
            recorded, made = document.pop("sha256"), cls._read(document, tensors)
            if recorded != _digest(document, tensors):
                raise DataError(f"{path} is damaged: its content does not have the recorded digest")
            return made
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path} is incomplete or damaged ({type(error).__name__}: {error})") from error

    @classmethod
    def _read(cls, document: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Distilled:
        sets = []
        for j, notes in enumerate(document["sets"]):
            s = SyntheticSet(
                tensors[f"set{j}.images"],
                tensors[f"set{j}.labels"],
                notes["lr"],
                notes["label_kind"],
                notes["label_type"],
                make(Decoder, notes.get("decoder", {}), "decoder"),
                _teacher(notes["teacher"], tensors[f"set{j}.teacher"]) if "teacher" in notes else None,
            )
            if not s.finite():
                raise DataError(f"set {j} of the file holds numbers that are not finite")
            sets.append(s)
        parts = {n.removeprefix("preprocessing."): t for n, t in tensors.items() if n.startswith("preprocessing.")}
        training = document["training"]
        network = registry().get("network", document["network"]["name"])
        return cls(
            curriculum=Curriculum(tuple(sets), tuple(tuple(p) for p in document["phases"])),
            preprocessing=Preprocessing(**parts),
            classes=tuple(document["classes"]),
            shape=tuple(document["shape"]),
            network=make(network.cls, document["network"]["options"], "network"),
            teaching=Teaching(make(Recipe, training["recipe"], "recipe"), training["steps"], training["phases"]),
            about=document["about"],
        )

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


def _teacher(described: dict[str, Any], vector: torch.Tensor) -> Teacher:
    source = registry().get("network", described["name"])
    return Teacher(make(source.cls, described["options"], "network"), vector)


def _digest(document: dict[str, Any], tensors: dict[str, torch.Tensor]) -> str:
    """sha256 over everything in the file: safetensors itself does not notice a flipped bit."""
    contents = {name: digest(t.detach().cpu().contiguous().numpy().tobytes()) for name, t in tensors.items()}
    return digest([json.loads(json.dumps(document)), contents])


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:6]) + (f", ... ({len(names)} in all)" if len(names) > 6 else "")
