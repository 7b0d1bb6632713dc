"""Other people's files of ``torch.save``, and pictures, read without running anything that is in them.

What a file's pickle names is listed before any of it is loaded: tensors, containers, and NumPy's numbers are let
through, anything else is refused by name, and so is what would grow when it is loaded (``pickles``).
``torch.load(weights_only=True)`` is the second lock. NumPy's own unpickling is never reached: the stand-ins below make
arrays and numbers of the bytes.
"""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddbench.base.opening import reading, require_regular
from ddbench.data.pictures import Broken, decode, is_picture, read, strictly
from ddbench.errors import DataError, DDBenchError
from ddbench.files.arrays import opened
from ddbench.files.pickles import WAY_OUT, check

_STORAGES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_TENSORS = frozenset(
    {
        "collections.OrderedDict",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "torch.nn.parameter.Parameter",
        "torch.Size",
        "torch.device",
        "_codecs.encode",  # how protocol 2 writes bytes
        *(f"torch.{kind}Storage" for kind in _STORAGES),
    }
)
_NUMBERS = frozenset({"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"})


class _DType:
    """Stands in for ``numpy.dtype``: plain numbers alone."""

    def __init__(self, code: str, _align: object = False, _copy: object = True) -> None:
        if code not in _NUMBERS:
            raise DataError(f"holds NumPy data of type {str(code)[:40]!r}, which is not a plain number; {WAY_OUT}")
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = {"<": "<", ">": ">"}.get(state[1], "=")

    @property
    def real(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


class _Array:
    """Stands in for ``numpy.ndarray``: shape, type and bytes, checked against each other, and never copied."""

    def __init__(self) -> None:
        self.array: np.ndarray[Any, Any] = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, fortran, raw = state
        read = np.frombuffer(raw, dtype.real)
        self.array = read.reshape(tuple(int(n) for n in shape), order="F" if fortran else "C")


def _reconstruct(_kind: object, _shape: object, _code: object) -> _Array:
    return _Array()


def _scalar(dtype: _DType, raw: bytes) -> Any:
    """Stands in for ``multiarray.scalar``: a Python number."""
    return np.frombuffer(raw, dtype.real, count=1)[0].item()


_STANDINS: list[Any] = [
    (_DType, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]
_ALLOWED = _TENSORS | {name for _, name in _STANDINS}


def load(path: Path) -> Any:
    """What ``torch.save`` wrote, on the CPU: tensors, numbers, text and containers of them; NumPy arrays as such.

    Raises DataError, one sentence, for a file that is missing, damaged, of another kind, or wants anything else.
    """
    try:
        _recognise(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_STANDINS):
            warnings.simplefilter("ignore")  # torch warns about storages that older versions of it wrote
            sizes = _survey(path)
            require_regular(path)
            return _plain(torch.load(path, weights_only=True, map_location="cpu"), {}, sizes)
    except DataError as error:
        about = str(error)
        raise DataError(about if str(path) in about else f"{path} {about}") from error
    except DDBenchError:
        raise
    except MemoryError as error:
        raise DataError(f"{path} asks for more memory than there is; it is damaged or not what it seems") from error
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:160] or "no reason given"
        raise DataError(
            f"{path} is damaged, cut short, or no file of torch.save ({type(error).__name__}: {reason}); "
            "get it again from its source"
        ) from error


def is_torch(path: Path) -> bool:
    """Whether the first bytes are those of a file of ``torch.save``, of either format."""
    try:
        with reading(path) as stream:
            if stream.read(1) == b"\x80":
                return True
            with opened(stream) as archive:
                return any(name.endswith("/data.pkl") or name == "data.pkl" for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError, DataError):
        return False


def listing(folders: list[Path]) -> tuple[list[list[Path]], list[str]]:
    """The pictures of each folder in natural order, and a sentence about what else lies there, if anything."""
    entries = [natural(folder.iterdir()) for folder in folders]
    rest = [f"{p.parent.name}/{p.name}" for found in entries for p in found if not is_picture(p.name)]
    more = f" and {len(rest) - 5} more" if len(rest) > 5 else ""
    said = [f"Left out {len(rest)} entries that are not pictures: {', '.join(rest[:5])}{more}."] if rest else []
    return [[p for p in found if is_picture(p.name)] for found in entries], said


def pictures(paths: list[Path], notes: list[str] | None = None) -> Tensor:
    """Pictures of one size, as :func:`shown` has them."""
    return shown(((str(path), path) for path in paths), notes)


def shown(held: Iterable[tuple[str, Path | bytes]], notes: list[str] | None = None) -> Tensor:
    """Named pictures of one size as (n, c, h, w) float32 in [0, 1]; one channel where all of them are grey.

    They are read by the decoder of datasets (``ddbench.data.pictures``), those of 16 bits to the last one, and are
    shown on white where they are transparent, which is added to ``notes``.
    """
    found: list[np.ndarray[Any, Any]] = []
    through, first = 0, ""
    for name, data in held:
        try:
            with strictly():
                pixels, transparent = decode(read(data) if isinstance(data, Path) else data, deep=True)
        except Broken as error:
            raise DataError(f"{name} {error}; get it again, or remove it") from error
        first = first or name
        found.append(pixels)
        through += transparent
        if found[-1].shape[1:] != found[0].shape[1:]:
            raise DataError(
                f"{name} has {found[-1].shape[2]}x{found[-1].shape[1]} pixels, but {first} "
                f"{found[0].shape[2]}x{found[0].shape[1]}; bring all pictures to one size"
            )
    if through and notes is not None:
        notes.append(f"{through} of {len(found)} pictures have transparent parts, which are shown on white.")
    channels = max(len(a) for a in found)
    units = [torch.from_numpy(a.astype(np.float32)).div_(255 if a.dtype == np.uint8 else 65_535) for a in found]
    return torch.stack([unit.expand(channels, -1, -1) for unit in units])


def natural(paths: Iterable[Path]) -> list[Path]:
    """In the order of the numbers in their names: 2 before 10."""
    return sorted(paths, key=lambda p: [int(t) if i % 2 else t for i, t in enumerate(re.split(r"(\d+)", p.name))])


def recognise(path: Path) -> None:
    """Refuse what is no data at all: a missing or empty file, a web page, a Git LFS pointer."""
    try:
        _recognise(path)
    except DataError as error:
        raise DataError(f"{path} {error}") from error


def _recognise(path: Path) -> None:
    with reading(path) as stream:
        head = stream.read(512)
    if not head:
        raise DataError("is empty; get it again from its source")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise DataError("is not data: the download returned a web page; get it by the page's own download button")
    if text.startswith(b"version https://git-lfs"):
        raise DataError("is a Git LFS pointer, not the file itself; get it with `git lfs pull`")
    if head[257:262] == b"ustar":
        raise DataError(
            "is of the tar format that torch wrote before 0.1.10, which is not read; "
            "load it with an old torch and save it again"
        )


def _survey(path: Path) -> set[int] | None:
    """Refuse what must not be loaded; the sizes in bytes of all storages, None for the older format.

    An archive's checksums are verified here, because torch.load does not look at them.
    """
    with reading(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if not zipfile.is_zipfile(stream):
            stream.seek(0)
            for _ in range(5):  # magic number, protocol, system, the object, the keys of its storages
                check(stream, size, _ALLOWED)
            return None
        with opened(stream) as archive:
            records = archive.infolist()
            if any(r.filename.endswith("constants.pkl") for r in records):
                raise DataError(f"is a TorchScript archive, which is a program; {WAY_OUT}")
            if sum(r.file_size for r in records) > size:
                raise DataError("claims to hold more bytes than it has; it is damaged or not what it seems")
            if broken := archive.testzip():
                raise DataError(f"is damaged: its part {broken[:80]!r} has not the recorded checksum; get it again")
            pickles = [r for r in records if r.filename.endswith(".pkl")]
            if len(pickles) != 1:
                raise DataError("is a zip archive, but not one that torch.save wrote (no data.pkl in it)")
            with archive.open(pickles[0]) as part:
                check(part, size, _ALLOWED)
            return {r.file_size for r in records}


def _plain(value: Any, known: dict[int, Any], sizes: set[int] | None) -> Any:
    """The same with arrays for stand-ins, every tensor checked; ``known`` holds what was seen, so that loops end."""
    if isinstance(value, _Array):
        return value.array
    if isinstance(value, Tensor):
        return _dense(value, sizes)
    if not isinstance(value, (list, tuple, dict)):
        return value
    if id(value) in known:
        return known[id(value)]
    if isinstance(value, tuple):
        made: Any = tuple(_plain(v, known, sizes) for v in value)
        known[id(value)] = made
    elif isinstance(value, list):
        made = known[id(value)] = []
        made.extend(_plain(v, known, sizes) for v in value)
    else:
        made = known[id(value)] = {}
        for name, v in value.items():
            made[name] = _plain(v, known, sizes)
    return made


def _dense(tensor: Tensor, sizes: set[int] | None) -> Tensor:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise DataError(f"holds a tensor that is sparse, quantised or empty of data ({tensor.layout}); {WAY_OUT}")
    held = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.element_size() > held or (sizes is not None and held not in {*sizes, 0}):
        raise DataError("holds a tensor that claims more numbers than are stored; it is damaged or not what it seems")
    return tensor.detach()
