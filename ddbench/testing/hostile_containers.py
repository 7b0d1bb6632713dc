"""Hostile archives of NumPy, files of torch, and folders: a part of what ``hostile`` makes."""

from __future__ import annotations

import io
import os
import random
import struct
import zipfile
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch

BOMB = 2**30  # bytes that a bomb would unpack to


def archives(draw: random.Random, folder: Path, _: Path) -> Iterator[tuple[str, Path]]:
    """NumPy's files whose headers or tables of contents lie, or that unpack to a gigabyte."""
    images, labels = np.zeros((6, 1, 8, 8), np.float32), np.arange(6) % 3

    def packed(name: str, **members: bytes | int) -> Path:
        return _packed(folder / name, members)

    yield "images of a gigabyte", packed("z0.npz", images=BOMB, labels=stored(labels))
    yield "labels of a gigabyte", packed("z1.npz", images=stored(images), labels=BOMB)
    yield "something else of a gigabyte", packed("z2.npz", images=stored(images), labels=stored(labels), more=BOMB)
    for at, shape in enumerate(((10**12, 1, 8, 8), (-1, 1, 8, 8), (2**62, 4, 1, 1), (0, 1, 8, 8))):
        yield f"an array of {shape}", packed(f"y{at}.npz", images=header(shape, "<f4"), labels=stored(labels))
        (folder / f"y{at}.npy").write_bytes(header(shape, "<f4"))
        yield f"an array of {shape} alone", folder / f"y{at}.npy"
    for name, array in _strange_labels().items():
        yield f"labels: {name}", packed(f"{name}.npz", images=stored(images), labels=stored(array))
    rate = stored(np.array(draw.choice([-1.0, np.inf, np.nan])))
    yield "a rate that is none", packed("rate.npz", images=stored(images), labels=stored(labels), lr=rate)
    step = {"preprocessing_mean": stored(np.array([np.nan])), "preprocessing_std": stored(np.zeros(1))}
    yield "a step that is none", packed("prep.npz", images=stored(images), labels=stored(labels), **step)
    path = folder / "members.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0.npy", b"")
        for i in range(1, 70_000):
            entry = copy(archive.filelist[0])
            entry.filename = f"{i}.npy"
            archive.filelist.append(entry)
    yield "a long table of contents", path


def _strange_labels() -> dict[str, np.ndarray[Any, Any]]:
    return {
        "text": np.array(["a"] * 6),
        "records": np.zeros(6, [("a", "i4")]),
        "dates": np.zeros(6, "M8[s]"),
        "infinite": np.full(6, np.inf),
        "huge": np.array([0, 1, 2, 3, 4, 2**62]),
        "unsigned": np.full(6, 2**63, np.uint64),
        "many": np.arange(6) * 10**8,
    }


def header(shape: tuple[int, ...], kind: str = "|u1") -> bytes:
    """What stands before an array."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": kind, "fortran_order": False, "shape": shape})
    return out.getvalue()


def stored(array: Any) -> bytes:
    """A whole ``.npy``."""
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def _packed(path: Path, members: dict[str, bytes | int]) -> Path:
    """An ``.npz``; a number stands for an array of so many zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for member, data in members.items():
            with archive.open(f"{member}.npy", "w", force_zip64=True) as part:
                if isinstance(data, bytes):
                    part.write(data)
                    continue
                part.write(header((data // 64, 1, 8, 8) if member == "images" else (data,)))
                for _ in range(data // 2**24):
                    part.write(bytes(2**24))
    return path


# ------------------------------------------------------------------------------------------- pickles


def pickles(draw: random.Random, folder: Path, _: Path) -> Iterator[tuple[str, Path]]:
    """Files of torch whose pickles run something, grow, or lie about their tensors."""
    canary = folder / "CODE_RAN"
    run = b"cposix\nsystem\n" + _text(f"touch {canary}") + b"\x85R."
    programs = {
        "a command": b"\x80\x02" + run,
        "a hidden command": b"\x80\x02]" + run,
        "an older command": b"(S'true'\nios\nsystem\n.",
        "lists in lists": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
        "many lists": b"\x80\x02(" + b"]" * 3_000_000 + b"t.",
        "a text encoded again and again": again("x" * 500_000, 5000),
        "an encoding that doubles": doubling(25),
        "numbers that collide": b"\x80\x02}("
        + b"".join(b"\x8a\x0c" + ((2**61 - 1) * i).to_bytes(12, "little") + b"N" for i in range(1, 60_000))
        + b"u.",
        "a long number": b"\x80\x02\x8b" + struct.pack("<i", 2_000_000) + b"\x7f" * 2_000_000 + b".",
        "a text that is not there": b"\x80\x02X" + struct.pack("<I", 2**31) + b"x.",
        "noise": b"\x80\x02" + draw.randbytes(2000),
    }
    for at, (name, program) in enumerate(programs.items()):
        for kind, path in (("", folder / f"p{at}.pt"), ("older ", folder / f"o{at}.pt")):
            if kind:
                path.write_bytes(program)
            else:
                with zipfile.ZipFile(path, "w") as archive:
                    archive.writestr("archive/data.pkl", program)
                    archive.writestr("archive/version", b"3")
            yield f"{kind}{name}", path
            lying = folder / f"{path.stem}-set"
            _pair(lying)
            (lying / "syn_lr_best.pt").write_bytes(path.read_bytes())
            yield f"{kind}{name} as a student lr", lying


_ENCODE = b"c_codecs\nencode\nq\x00"


def again(text: str, times: int) -> bytes:
    """A pickle that encodes a text so many times, and keeps what comes of it."""
    first = _ENCODE + _text(text) + _text("latin1") + b"\x86q\x01R"
    return b"\x80\x02(" + first + b"h\x00h\x01R" * times + b"t."


def doubling(times: int) -> bytes:
    """A pickle of a few hundred bytes that encodes what it encoded, which makes it twice as long."""
    first = _ENCODE + _text("x" * 1000) + _text("latin1") + b"\x86R"
    return b"\x80\x02(" + first + (b"q\x01h\x00h\x01" + _text("hex") + b"\x86R") * times + b"t."


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _pair(folder: Path, images: Any = None, labels: Any = None, lr: Any = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    torch.save(torch.randn(6, 1, 8, 8, generator=generator) if images is None else images, folder / "images_best.pt")
    torch.save(torch.arange(6) % 3 if labels is None else labels, folder / "labels_best.pt")
    if lr is not None:
        torch.save(lr, folder / "syn_lr_best.pt")
    return folder


def folders(draw: random.Random, folder: Path, _: Path) -> Iterator[tuple[str, Path]]:
    """Folders with pipes, devices, lies, or nothing where files should be."""
    for name, rate in _strange_rates().items():
        yield f"a student lr: {name}", _pair(folder / f"lr-{name}", lr=rate)
    x = torch.zeros(6, 1, 8, 8)
    for name, images, labels in (
        ("repeated", x[:1].expand(10**6, 1, 8, 8), None),
        ("not numbers", x * float("nan"), None),
        ("beyond reason", x + 1e30, None),
        ("too flat", x[0], None),
        ("fractions", None, torch.arange(6) / 2),
        ("negative", None, -torch.arange(6)),
        ("far apart", None, torch.arange(6) * 10**9),
        ("of another length", None, torch.arange(5)),
        ("sparse", None, torch.eye(6).to_sparse()),
    ):
        yield f"tensors: {name}", _pair(folder / f"pair-{name}", images, labels)
    for file in ("images_best.pt", "labels_best.pt", "syn_lr_best.pt"):
        for kind in ("pipe", "device", "loop", "folder"):
            place = _pair(folder / f"{kind}-{file}") / file
            place.unlink(missing_ok=True)
            _odd_file(place, kind)
            yield f"a {kind} as {file}", place.parent
    for kind in ("pipe", "device"):
        _odd_file(folder / f"lone-{kind}.pt", kind)
        yield f"a {kind} alone", folder / f"lone-{kind}.pt"
        pictures = folder / f"pictures-{kind}"
        for label in range(3):
            (pictures / str(label)).mkdir(parents=True)
            _odd_file(pictures / str(label) / "0.png", kind)
        yield f"a {kind} as a picture", pictures
    named = folder / "odd names"
    for name in ("a\nb", "\x1b[31m", "x" * draw.randrange(100, 200)):
        (named / name).mkdir(parents=True)
        (named / name / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    yield "odd names of classes", named


def _strange_rates() -> dict[str, Any]:
    nested: Any = [1.0] * 10
    for _ in range(11):
        nested = [nested] * 10
    return {
        "a million million numbers": nested,
        "a long number": 10**400,
        "none": float("nan"),
        "yes": True,
        "text": "x" * 10**6,
        "complex": torch.tensor(1j),
        "two": torch.ones(2),
    }


def _odd_file(path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"device": "/dev/zero", "loop": path.name}[kind])
