"""Files that nobody should be able to harm with, made from a seed: sets whose metadata, tensors or containers lie.

``hostile_files(seed, folder)`` writes and yields them one by one. Whatever reads one must end in a sentence, without a
traceback, within seconds, and in about the memory of the file.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddbench.base.tensors import load_tensors, save_tensors
from ddbench.data.preprocessing import Preprocessing
from ddbench.grade.distilled import Distilled, _digest
from ddbench.problem.synthetic import Curriculum, SyntheticSet
from ddbench.run.spec import Request, resolve
from ddbench.testing.hostile_containers import archives, folders, pickles

_ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**31, 2**63, 10**400, 10**9, 1e300, -0.5, 0.5, "", "0", "\0", "a/../../b", "/etc/passwd"),
    *("..", "x" * 5000, "\x1b[31m\u202e", "\ud800", "<script>", [], {}, [[]], ["x"], {"": 0}, [0] * 5000),
)
# What may stand where: any other value of _ODD there must be refused.
_SOUND: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        (
            *("format", "sets", "sets/0", "phases", "phases/0", "shape", "shape/0", "network"),
            *("network/name", "training", "training/phases", "about", "about/dataset"),
            *("about/selection", "about/spec", "about/spec/dataset", "about/spec/dataset/name", "about/spec/matcher"),
            *("about/spec/ipc", "about/spec/threads", "sets/0/label_kind", "preprocessing"),
            *("about/spec/network/name", "about/spec/network", "network/options/norm", "about/spec/dtype"),
        ),
        (),
    ),
    "phases/0/0": (0,),
    "classes/0": ("0",),
    "about/spec/protocol": ({},),
    "training/steps": (None,),
    "sets/0/lr": (None, 0.5),
    "sets/0/label_type": ("0",),
    "sets/0/decoder": ({},),
    "about/spec/seed": (-1, 0, 2**31, 10**9),
    "about/spec/matcher/name": ("0",),
    "about/spec/scheduler/name": ("0",),
    "about/spec/experts": ({},),
    "training/recipe/batch": (True, 2**31, 2**63, 10**9),
    "about/spec/experts/momentum": (True, 0, 0.5, 2**31, 2**63, 10**9, 1e300, "0"),
    "about/spec/matcher/options": ({},),
    "about/spec/protocol/steps": (None, True),
    "about/spec/protocol/lr": (True, 0.5, 2**31, 2**63, 10**9, 1e300),
}


def hostile_files(seed: int, folder: Path, own: Path | None = None) -> Iterator[tuple[str, Path]]:
    """Some 300 hostile sets: safetensors, npz, npy, torch files and folders, by name and path, below ``folder``.

    ``own`` is a sound ``distilled.safetensors`` to start from; without one, a set of the toy dataset is made. The same
    seed gives the same files. Each is left where it is; pipes among them must not be opened by whoever cleans up.
    """
    draw = random.Random(seed)  # noqa: S311 - what is wanted is the same files again
    folder.mkdir(parents=True, exist_ok=True)
    if own is None:
        own = folder / "sound.safetensors"
        sound_set().save(own)
    for make in (documents, tensors, raw, archives, pickles, folders, flipped):
        for name, path in make(draw, folder, own):
            yield f"{make.__name__}: {name}", path


def sound_set() -> Distilled:
    """Two toy images for each of three classes, as a run of random images would leave them."""
    flags = (("network.width", "8"), ("protocol.steps", "5"), ("dataset.per_class", "8"))
    spec = resolve(Request("toy", "random", "single", ipc=2, device="cpu", flags=flags)).spec
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    made = SyntheticSet(images, torch.eye(3).repeat_interleave(2, 0), 0.01)
    about = {"dataset": {"name": "toy", "digest": "0"}, "selection": "validation", "spec": spec.record()}
    step = Preprocessing(torch.tensor([0.5]), torch.tensor([0.25]))
    teaching = replace(spec.protocol.evaluation(6, 1), recipe=spec.protocol.evaluation(6, 1).recipe.on(""))
    classes = ("0", "1", "2")
    return Distilled(Curriculum((made,), ((0,),)), step, classes, (1, 8, 8), spec.network, teaching, about)


# ------------------------------------------------------------------------------------------- the document


def documents(draw: random.Random, folder: Path, own: Path) -> Iterator[tuple[str, Path]]:
    """The document with one value, of any depth, replaced by an odd one, and its digest made to fit."""
    held, metadata = load_tensors(own)
    whole = json.loads(metadata["ddbench"])
    whole.pop("sha256")
    wrong = [(place, odd) for place, sound in _SOUND.items() for odd in _ODD if not _among(odd, sound)]
    for at, (place, odd) in enumerate(draw.sample(wrong, 250)):
        path = folder / f"d{at}.safetensors"
        yield f"{place} = {ascii(odd)[:40]}", _signed(path, _with(whole, place, odd), held)
    deep: Any = 0
    for _ in range(900):
        deep = [deep]
    for at, (name, changed) in enumerate(
        {
            "nested": whole | {"x": deep},
            "phases": whole | {"phases": [[0]] * 200_000},
            "sets": whole | {"sets": whole["sets"] * 20_000},
            "classes": whole | {"classes": [str(i) for i in range(200_000)]},
            "budget": _with(whole, "about/spec/ipc", 1),
            "steps": _with(whole, "training/steps", 10**9),
            "width": _with(whole, "network/options/width", 10**7),
            "depth": whole | {"network": {"name": "convnet", "options": {"depth": 10**6, "pooling": "none"}}},
            "hub": _with(whole, "about/spec/dataset", {"name": "hf", "options": {"path": "nobody/nothing"}}),
            "toys": _with(whole, "about/spec/dataset/options/per_class", 10**10),
            "newer": whole | {"format": 3},
        }.items()
    ):
        yield name, _signed(folder / f"e{at}.safetensors", changed, held)
    for at, text in enumerate(("[" * 100_000, "[" * 990 + "]" * 990, "null", "{}", '{"format": NaN}', "9" * 6000, "")):
        save_tensors(folder / f"t{at}.safetensors", held, {"ddbench": text})
        yield ascii(text[:20]), folder / f"t{at}.safetensors"


def _among(value: Any, sound: tuple[Any, ...]) -> bool:
    return any(value == one and type(value) is type(one) for one in sound)


def _with(whole: Any, place: str, value: Any) -> Any:
    """A copy of a document with another value at a place."""
    changed = json.loads(json.dumps(whole))
    *before, last = [int(name) if name.isdigit() else name for name in place.split("/")]
    at = changed
    for name in before:
        at = at[name]
    at[last] = value
    return changed


def _signed(path: Path, document: Any, tensors: dict[str, Tensor]) -> Path:
    signed = dict(document, sha256=_digest(document, tensors))
    save_tensors(path, tensors, {"ddbench": json.dumps(signed)})
    return path


# ------------------------------------------------------------------------------------------- its tensors


def tensors(draw: random.Random, folder: Path, own: Path) -> Iterator[tuple[str, Path]]:
    """Each tensor left out, or of another type, shape, or range."""
    held, metadata = load_tensors(own)
    document = json.loads(metadata["ddbench"])
    document.pop("sha256")
    changes: dict[str, Callable[[Tensor], Tensor | None]] = {
        "missing": lambda _: None,
        "double": lambda t: t.double(),
        "whole": lambda t: t.long(),
        "complex": lambda t: t.to(torch.complex64),
        "nan": lambda t: t * float("nan"),
        "infinite": lambda t: t / 0,
        "negative": lambda t: -t - 1,
        "empty": lambda t: t[:0],
        "longer": lambda t: torch.cat([t, t]),
        "flat": lambda t: t.flatten(),
        "deeper": lambda t: t[None],
        "scalar": lambda t: t.sum(),
        "turned": lambda t: t.flip(0) if t.ndim > 1 else t[:0],
    }
    for name in held:
        for at, (how, change) in enumerate(changes.items()):
            changed = {**held, name: change(held[name])}
            if how in ("turned", "negative", "flat") and not name.endswith("labels"):
                continue  # images in another order, or another mean, are a sound set
            kept = {n: t for n, t in changed.items() if t is not None}
            yield f"{name} {how}", _signed(folder / f"{name}{at}.safetensors", document, kept)
    strange = {f"preprocessing.{draw.choice(['whiten', '__class__', '../x'])}": torch.eye(64)}
    yield "a step too many", _signed(folder / "step.safetensors", document, held | strange)


def raw(draw: random.Random, folder: Path, own: Path) -> Iterator[tuple[str, Path]]:
    """Bytes that no library wrote."""

    def headed(header: bytes, body: bytes = b"") -> bytes:
        return struct.pack("<Q", len(header)) + header + body

    part = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    beyond = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
    whole = own.read_bytes()
    names = ("a.safetensors", "a.npz", "a.pt", "a.npy", "a.bin")
    contents = {
        "a long header": struct.pack("<Q", 2**62) + b'{"',
        "a header that is not there": struct.pack("<Q", 99_000_000) + b'{"',
        "a deep header": headed(b'{"a":' * 5000 + b"1" + b"}" * 5000),
        "a wide header": headed(b'{"__metadata__":{"ddbench":"' + b"[]," * 4_000_000 + b'"}}'),
        "tensors on top of each other": headed(json.dumps({"a": part, "b": part}).encode(), bytes(16)),
        "a tensor beyond the end": headed(json.dumps({"a": beyond}).encode(), bytes(16)),
        "zeros": bytes(100),
        "nothing": b"",
        "noise": draw.randbytes(3000),
        "a page": b"<!DOCTYPE html><html>",
        "half": whole[: len(whole) // 2],
        "an empty archive": b"PK\5\6" + bytes(18),
    }
    for at, (name, data) in enumerate(contents.items()):
        for file in names:
            path = folder / f"r{at}{file}"
            path.write_bytes(data)
            yield f"{name} in {file}", path


def flipped(draw: random.Random, folder: Path, own: Path) -> Iterator[tuple[str, Path]]:
    """The sound file with single bits turned."""
    whole = own.read_bytes()
    for at in range(30):
        data = bytearray(whole)
        place = draw.randrange(len(data))
        data[place] ^= 1 << draw.randrange(8)
        path = folder / f"f{at}.safetensors"
        path.write_bytes(data)
        yield f"a bit at {place}", path
