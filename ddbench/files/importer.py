"""``ddbench import``: a foreign set becomes a file that describes itself; MTT's expert trajectories become experts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddbench.base.cache import Cache, digest, file_digest, home, write_json
from ddbench.base.options import make, options
from ddbench.base.tensors import save_rows
from ddbench.data.dataset import Dataset, RealData
from ddbench.data.preprocessing import LARGEST_ZCA, Preprocessing
from ddbench.errors import DataError, UsageError
from ddbench.files import pixelspace, safe_load
from ddbench.files.foreign import Foreign
from ddbench.files.formats import read
from ddbench.files.safe_load import natural
from ddbench.grade.distilled import Distilled
from ddbench.grade.protocol import Protocol
from ddbench.hookspecs import DatasetSource, NetworkSource
from ddbench.plugins import loaded
from ddbench.problem.experts import layout
from ddbench.problem.starts import Teaching
from ddbench.problem.synthetic import Curriculum, SyntheticSet
from ddbench.run.defaults import ONE_STAGE
from ddbench.run.spec import Request, resolve
from ddbench.train.network import Network

LABELS = ("auto", "hard", "probability", "logit", "real")


def adopt(
    path: Path,
    dataset: Dataset,
    whitened: Callable[[], Preprocessing] | None,
    network_source: NetworkSource,
    protocol: Protocol,
    *,
    pixels: str = "auto",
    labels: str = "auto",
    experiment: int = 0,
) -> tuple[Distilled, list[str]]:
    """A foreign set on ``dataset``, with notes: what was found, and what was assumed.

    Images in [0, 1] become input of the dataset's own preprocessing; any other space keeps its pixels to the bit, and
    test data will pass through the same step as they did. ``whitened`` gives the dataset's ZCA where it is needed.
    """
    wnids = tuple(dataset.facts.get("wnids", ()))
    found = _in_colour(read(path, experiment=experiment, labels=labels, names=dataset.classes, wnids=wnids), dataset)
    _check_shape(path, found, dataset)
    _check_classes(path, found, dataset)
    space, step, sets, said = _placed(found, dataset, whitened, pixels)
    curriculum = Curriculum(sets, found.phases)
    about = {
        "dataset": {"name": dataset.name, "digest": dataset.digest},
        "selection": "unknown",
        "spec": None,
        "matcher": {"name": "imported"},
        "source": {
            "path": path.name,
            "format": found.format,
            "files": found.files,
            "labels": sets[0].label_kind,
            "pixels": space,
            "pixels_evidence": said[0],
        },
    }
    teaching = _teaching(curriculum, dataset, protocol)
    made = Distilled(curriculum, step, dataset.classes, dataset.train.shape, network_source, teaching, about)
    return made, [*found.notes, *said]


def _teaching(curriculum: Curriculum, dataset: Dataset, protocol: Protocol) -> Teaching:
    images = sum(len(s) for s in curriculum.sets)
    return protocol.evaluation(images, len(curriculum.phases)).on(dataset.augment)


def imported(
    path: Path, request: Request, *, pixels: str = "auto", labels: str = "auto", experiment: int = 0
) -> tuple[Distilled, list[str]]:
    """:func:`adopt` for the dataset, network and protocol that ``request`` names.

    The record of these stands where a run's spec would, with a matcher called ``imported``, so that evaluating the
    file needs no flags.
    """
    if labels not in LABELS:
        raise UsageError(f"--labels {labels!r} is none of {', '.join(LABELS)}")
    spec = resolve(request).spec
    torch.set_num_threads(spec.threads)  # statistics of the data depend on it in their last bits
    dataset = loaded(spec.dataset)
    fits = "zca" in options(spec.dataset) and math.prod(dataset.train.shape) <= LARGEST_ZCA
    made, notes = adopt(
        path,
        dataset,
        (lambda: _whitening(spec.dataset)) if fits else None,
        spec.network,
        spec.protocol,
        pixels=pixels,
        labels=labels,
        experiment=experiment,
    )
    sets = tuple(replace(s, decoder=spec.decoder) for s in made.curriculum.sets)  # files never say how they are packed
    made = replace(made, curriculum=replace(made.curriculum, sets=sets))
    ipc = max(1, sum(map(len, sets)) // len(dataset.classes))
    spec = resolve(replace(request, ipc=ipc)).spec  # recipes may depend on how many images there are
    record = spec.record() | {
        "matcher": {"name": "imported", "options": {}},
        "scheduler": {"name": "imported" if len(made.curriculum.phases) > 1 else ONE_STAGE, "options": {}},
    }
    for name in ("versions", "declared"):
        record[name] = {n: v for n, v in record[name].items() if n.split()[0] in ("dataset", "network")}
    teaching = _teaching(made.curriculum, dataset, spec.protocol)
    return replace(made, network=spec.network, teaching=teaching, about=made.about | {"spec": record}), notes


def _whitening(source: DatasetSource) -> Preprocessing:
    whitened = make(type(source), options(source) | {"zca": True}, "dataset")
    return loaded(whitened).train.preprocessing


def imported_experts(paths: Sequence[Path], request: Request) -> str:
    """:func:`import_experts` for the dataset's images and the network that ``request`` names."""
    spec = resolve(request).spec
    dataset = loaded(spec.dataset)
    network = Network(spec.network, dataset.train.shape, len(dataset.classes), torch.device("cpu"))
    return import_experts(paths, network, Cache(home()))


def _check_classes(path: Path, found: Foreign, dataset: Dataset) -> None:
    """Refuse hard labels that leave classes out: students would never learn them."""
    if any(s.label_type != "hard" for s in found.sets):
        return
    counts = torch.cat([s.labels for s in found.sets]).sum(0)
    if lost := [name for name, count in zip(dataset.classes, counts.tolist(), strict=True) if not count]:
        raise DataError(
            f"{path} has no image of {len(lost)} of the {len(counts)} classes of dataset {dataset.name!r} "
            f"({', '.join(lost[:6])}); choose the classes that it has with -o dataset.classes=A,B,..."
        )


def _in_colour(found: Foreign, dataset: Dataset) -> Foreign:
    """Grey pictures beside a colour dataset get its three channels, as the decoder gives them to grey files of it."""
    if found.format != "images" or (found.sets[0].images.shape[1], dataset.train.shape[0]) != (1, 3):
        return found
    sets = tuple(replace(s, images=s.images.expand(-1, 3, -1, -1).contiguous()) for s in found.sets)
    said = f"All pictures are grey; dataset {dataset.name!r} is in colour, and its three channels are alike in them."
    return replace(found, sets=sets, notes=(*found.notes, said))


def _check_shape(path: Path, found: Foreign, dataset: Dataset) -> None:
    shape = tuple(found.sets[0].images.shape[1:])
    if shape[0] != dataset.train.shape[0]:
        raise DataError(
            f"{path} has images with {shape[0]} channels, but dataset {dataset.name!r} has {dataset.train.shape[0]}; "
            "give the dataset that it was distilled from"
        )
    if shape != dataset.train.shape:
        raise DataError(
            f"{path} has images of {shape} (c, h, w), but dataset {dataset.name!r} has {dataset.train.shape}; give the "
            f"dataset that it was distilled from, or, if it can be, load it at that size (-o dataset.size={shape[1]})"
        )


def _placed(
    found: Foreign, dataset: Dataset, whitened: Callable[[], Preprocessing] | None, pixels: str
) -> tuple[str, Preprocessing, tuple[SyntheticSet, ...], list[str]]:
    """The space, the preprocessing that belongs to it, the sets in it, and what to tell: the evidence first."""
    real, images = dataset.train, torch.cat([pixelspace.sample(s.images) for s in found.sets])
    # bytes were divided by 255 when they were read: said again, that changes nothing
    chosen = "unit" if found.unit and pixels in ("auto", "bytes") else pixels
    known = {} if chosen == "auto" else {chosen: pixelspace.stated(chosen, real, whitened)}
    tried = pixelspace.candidates(images, real, whitened if chosen == "auto" else None) | known
    if found.step is not None and pixels == "auto":
        chosen, tried = "file", tried | {"file": found.step}
    verdict = pixelspace.detect(images, tried, pixelspace.looked_at(real))
    if pixels == "auto":
        _check_looks(found, verdict, chosen)
    settled = chosen == "auto" and not verdict.clear
    if settled:
        chosen = _settled(verdict, real)
    space = verdict.space if chosen == "auto" else chosen
    how = "stated" if pixels != "auto" else "8-bit pictures" if found.unit else "found"
    how = "its arrays say so" if space == "file" else "as the dataset was asked for" if settled else how
    notes = [f"Pixels are in {space!r} space ({how}): {verdict.evidence}."]
    if doubt := verdict.doubt(space):
        notes.append(doubt + ".")
    step = tried[space]
    if space not in ("dataset", "zca", *pixelspace.BROUGHT) and pixelspace.same(step, tried["dataset"]):
        notes.append(
            f"The dataset's own mean and std are too near those of {space!r} to tell apart, or to matter much."
        )
    elif space == "dataset":
        notes += [
            f"The field's constants {name!r} fit as well, since they cannot be told apart; it hardly matters, and "
            f"--pixels {name} uses them (MTT, TESLA and PDD take 'cifar10' for CIFAR-100 too)."
            for name in ("cifar10", "mnist")
            if _alike(name, step)
        ]
    if space not in pixelspace.BROUGHT:
        return space, step, found.sets, notes
    return space, real.preprocessing, _brought(found, space, step, dataset, notes), notes


def _check_looks(found: Foreign, verdict: pixelspace.Finding, chosen: str) -> None:
    """Refuse pixels that are no images: of floats in any space that was tried, of bytes in the one that they have."""
    if chosen == "auto" and verdict.unlike:
        raise UsageError(
            f"the pixels are unlike real images in every space that was tried ({verdict.evidence}); state what they "
            f"passed: --pixels {'|'.join(pixelspace.SPACES[1:])}, or means and standard deviations; or bring them to "
            "[0, 1]"
        )
    if chosen == "unit" and "unit" in verdict.strange:
        real, levels = verdict.evidence.rpartition("; ")[2], torch.cat([s.images.flatten() for s in found.sets])
        raise UsageError(
            f"the pixels have 8 bits, from {255 * float(levels.min()):.0f} to {255 * float(levels.max()):.0f} of 0 to "
            f"255, and are unlike real images so (as 'unit' {verdict.looks['unit']}; {real}); save them again on that "
            "scale, or as floats, or say --pixels unit to take them as they are"
        )


def _brought(
    found: Foreign, space: str, step: Preprocessing, dataset: Dataset, notes: list[str]
) -> tuple[SyntheticSet, ...]:
    """The sets as input of the dataset's own preprocessing, and a note that says so."""
    own = dataset.train.preprocessing
    first = {
        "unit": "",
        "caffe": "The order of colours was turned to red, green, blue. ",
        "standardised": "The level and contrast of each image are lost, and were made those of the dataset. ",
    }.get(space, "The images were brought to [0, 1]. ")
    notes.append(f"{first}Images in [0, 1] were put through the preprocessing of {dataset.name!r} ({own.kind}).")
    images = [pixelspace.brought(s.images, space, step) for s in found.sets]
    return tuple(
        replace(s, images=pixelspace.applied(x, own).contiguous()) for s, x in zip(found.sets, images, strict=True)
    )


def _settled(verdict: pixelspace.Finding, real: RealData) -> str:
    """Where the numbers do not decide: the space of a dataset that was asked for whitened; else the user must say."""
    if real.preprocessing.kind == "zca":
        return "zca"
    raise UsageError(
        f"the numbers do not decide which space the pixels are in ({verdict.evidence}); a wrong guess costs tens of "
        f"points, so state it: --pixels {'|'.join(verdict.scores)}, or means and standard deviations"
    )


def _alike(name: str, step: Preprocessing) -> bool:
    mean, std = pixelspace.CONSTANTS[name]
    constants = Preprocessing(torch.tensor(mean), torch.tensor(std))
    return len(mean) == len(step.mean) and constants.digest != step.digest and pixelspace.same(constants, step)


def import_experts(paths: Sequence[Path], network: Network, cache: Cache) -> str:
    """Store the trajectories of MTT's ``replay_buffer_*.pt`` as experts; returns their id for ``experts.imported``.

    A file is a list of trajectories, each a list over epochs 0..E of the parameters in the module's order. The id
    is a digest of the files and the network's layout, so the same import gives the same id. The note of which
    network they fit is written last: an interrupted import is made again.
    """
    files = natural({f for p in paths for f in (p.glob("replay_buffer*.pt") if p.is_dir() else [p])})
    if not files:
        raise DataError(f"no replay_buffer_*.pt in {', '.join(map(str, paths))}; name the files")
    if network.length != network.parameters:
        raise UsageError(
            "replay buffers hold no batch statistics, which this network has; use one without, such as "
            "-o network.norm=instance"
        )
    for file in files:
        safe_load.recognise(file)
    identity: dict[str, Any] = {"imported": [file_digest(f) for f in files], "layout": layout(network)}
    folder = cache.root / "experts" / digest(identity)[:20]
    if (folder / "identity.json").exists():
        return folder.name
    lengths: list[int] = []
    for file in files:
        for trajectory in _trajectories(file, safe_load.load(file)):
            where = f"{file} trajectory {len(lengths)}"
            rows = torch.stack([_vector(f"{where}, epoch {e}", p, network) for e, p in enumerate(trajectory)])
            save_rows(folder / f"{len(lengths):06d}.safetensors", list(range(len(rows))), rows)
            lengths.append(len(rows) - 1)
    notes = identity | {"experts": len(lengths), "epochs": min(lengths), "files": [f.name for f in files]}
    write_json(folder / "identity.json", notes, sealed=True)
    return folder.name


def _trajectories(file: Path, content: Any) -> list[Any]:
    if not isinstance(content, list) or not content or not all(isinstance(t, list) and t for t in content):
        raise DataError(
            f"{file} holds no expert trajectories: a list of them, each a list over epochs of lists of parameters, is "
            "what MTT's buffer.py writes; import sets without --experts"
        )
    return content


def _vector(where: str, parts: Any, network: Network) -> Tensor:
    """One snapshot as a flat vector, its shapes checked one by one."""
    fitting = layout(network)
    way = "build the network that they were trained with (such as -o network.width=128 -o network.depth=3)"
    if not isinstance(parts, (list, tuple)) or not all(isinstance(p, Tensor) for p in parts):
        raise DataError(f"{where} is not a list of parameters; this is not a replay buffer of MTT")
    for (name, shape), part in zip(fitting, parts, strict=False):
        if list(part.shape) != shape:
            raise DataError(f"{where} has {tuple(part.shape)} where the network's {name} has {tuple(shape)}; {way}")
    if len(parts) != len(fitting):
        raise DataError(f"{where} has {len(parts)} parameter tensors, but the network has {len(fitting)}; {way}")
    vector = torch.cat([p.reshape(-1).float() for p in parts])
    if not torch.isfinite(vector).all():
        raise DataError(f"{where} is not finite, so this expert diverged; leave its file out")
    return vector
