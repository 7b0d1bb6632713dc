"""Named tensors in safetensors files: written atomically, read only as far as needed.

Derived files are sealed: they hold the digest of each of their tensors, or of each row of a large one, and what is read
is compared with it, so that a flipped bit is an error and never another result. A process compares what it reads from a
file once, as long as the file stays the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ddbench.base.cache import atomic_file, claimed, digest
from ddbench.base.opening import in_place, may_store, reading, require_regular
from ddbench.errors import DamagedError, DataError

SEAL = "sha256"  # the name of the digests in the metadata
ROW_SEAL = "digests"  # the tensor of a row file that holds them, (n, 32) bytes
_BY_ROW = "by row"  # in place of a digest: each row has its own
_SETTLED = 2.0  # seconds since a file's last change, from which on its times tell it from one changed once more


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors files do, whatever it is called; or is called so, whatever it holds."""
    if not path.is_file():
        return False
    with reading(path) as stream:
        head = stream.read(10)
    return path.suffix == ".safetensors" or (len(head) == 10 and head[6:8] == b"\0\0" and head[8:10] == b'{"')


def save_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None, *, sealed: bool = False
) -> None:
    """Write tensors (any device) to ``path`` atomically, without a copy of those that can be written as they are.

    ``sealed`` adds digests of all tensors and of the metadata, which :func:`load_tensors` compares.
    """
    plain: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        whole = tensor.detach().cpu().contiguous()
        storage = whole.untyped_storage()
        if storage.nbytes() != whole.numel() * whole.element_size() or storage.data_ptr() in taken:
            whole = whole.clone()  # the format knows no views and no shared memory
        taken.add(whole.untyped_storage().data_ptr())
        plain[name] = whole
    if sealed:
        metadata = {**(metadata or {}), SEAL: json.dumps(_seals(plain, metadata or {}, list(plain)))}
    with ExitStack() as after, atomic_file(path) as temporary:
        try:
            handle = None
            while handle is None:  # the library puts a file of its own there, which others may sweep until it is locked
                save_file(plain, temporary, metadata=metadata)
                handle = claimed(temporary)
            after.callback(os.close, handle)
            _in_order(temporary)
        except SafetensorError as error:
            raise DataError(f"cannot write {path} ({error}); free some space and run again") from error


def _in_order(path: Path) -> None:
    """Put the names in a file's header in order, in place: the library writes metadata in another order every time.

    Without this, a run that is made again has the same numbers and another sha256.
    """
    with path.open("r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        metadata = header.pop("__metadata__", None)
        ordered = {"__metadata__": dict(sorted(metadata.items())), **header} if metadata else header
        text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:
            stream.seek(8)
            stream.write(text.ljust(size))


def load_tensors(
    path: Path, *, only: Iterable[str] | None = None, device: torch.device | str = "cpu"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata (without the seal); ``only`` names those wanted. Raises DamagedError."""
    status = require_regular(path)
    try:
        with safe_open(path, framework="pt") as stream:
            names = list(only) if only is not None else list(stream.keys())
            # clone: fresh, aligned memory that outlives the file, so that kernels see what they saw before
            tensors = {name: stream.get_tensor(name).clone() for name in names}
            metadata, every = stream.metadata() or {}, list(stream.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedError(
            f"{path} is damaged or not a safetensors file ({error}); delete it to have it made again"
        ) from error
    _verify(_Compared.of(path, status), tensors, metadata, every)
    metadata = {name: text for name, text in metadata.items() if name != SEAL}
    return {name: tensor.to(device) for name, tensor in tensors.items()}, metadata


@dataclass(frozen=True)
class _Compared:
    """A file, and what of it this process has compared with its digests already."""

    path: Path
    identity: tuple[int, ...] | None  # None: it changed a moment ago, and may change again in the same tick
    parts: set[str | int]

    @classmethod
    def of(cls, path: Path, status: os.stat_result) -> _Compared:
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if time.time() - status.st_ctime < _SETTLED:
            return cls(path, None, set())
        held, parts = _compared.get(path, ((), set()))
        return cls(path, identity, parts if held == identity else set())

    def __contains__(self, part: str | int) -> bool:
        return part in self.parts

    def require(self, equal: bool, part: str | int) -> None:
        """Note that a part (a tensor's name, '' for the header, a row's label) was compared. Raises DamagedError."""
        if not equal:
            what = f"row {part}" if isinstance(part, int) else f"its tensor {part!r}" if part else "its header"
            raise DamagedError(
                f"{self.path} is damaged: {what} is not what was written; delete it to have it made again"
            )
        self.parts.add(part)
        if self.identity is not None:
            _compared[self.path] = self.identity, self.parts


_compared: dict[Path, tuple[tuple[int, ...], set[str | int]]] = {}  # by this process


def tensor_digest(tensor: Tensor) -> str:
    """sha256 (hex) of a tensor's type, shape and bytes."""
    found = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
    if tensor.numel():
        found.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _seals(tensors: dict[str, Tensor], metadata: dict[str, str], every: Iterable[str]) -> dict[str, str]:
    """The digest of each tensor by its name, and under the empty name that of the metadata and all names."""
    return {"": _header_digest(metadata, every)} | {name: tensor_digest(tensor) for name, tensor in tensors.items()}


def _header_digest(metadata: dict[str, str], every: Iterable[str]) -> str:
    return digest([sorted(every), {name: text for name, text in metadata.items() if name != SEAL}])


def _verify(file: _Compared, tensors: dict[str, Tensor], metadata: dict[str, str], every: list[str]) -> None:
    """Compare what was read with its seal, if it has one: files of earlier versions have none."""
    if SEAL not in metadata or file.parts.issuperset({"", *tensors}):
        return
    try:
        held = dict(json.loads(metadata[SEAL]))
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedError(
            f"{file.path} is damaged: its digests are unreadable; delete it to have it made again"
        ) from error
    file.require(held.get("") == _header_digest(metadata, every), "")
    for name, tensor in tensors.items():
        if held.get(name) != _BY_ROW:
            file.require(held.get(name) == tensor_digest(tensor), name)
        elif name == "snapshots" and {"epochs", ROW_SEAL} <= tensors.keys():
            for label, row, own in zip(tensors["epochs"].tolist(), tensor, tensors[ROW_SEAL], strict=True):
                file.require(bytes(own.tolist()) == row_digest(label, row), label)


def content_digest(path: Path) -> str:
    """sha256 over names, types, shapes and bytes of the tensors in a file, whatever its metadata say.

    Equal sets have equal digests, though versions, machines or words beside them differ.
    """
    found = hashlib.sha256()
    tensors, _ = load_tensors(path)
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        if tensor.numel():
            found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def read_labelled_row(path: Path, labels: str, wanted: int, name: str) -> tuple[Tensor | None, list[int]]:
    """The row of tensor ``name`` that stands where ``labels`` ``(n,)`` says ``wanted``; and all labels.

    None where there is no such row, or no file. Both come from one opening: another process may replace the file.
    Row and labels are compared with their digests, if the file has digests. Raises DamagedError.
    """
    if not path.exists():
        return None, []
    file, own = _Compared.of(path, require_regular(path)), None
    try:
        with safe_open(path, framework="pt") as stream:
            there = stream.get_tensor(labels)
            if labels not in file:
                _verify(file, {labels: there}, stream.metadata() or {}, list(stream.keys()))
            found = there.tolist()
            if wanted not in found:
                return None, found
            place = found.index(wanted)
            row = stream.get_slice(name)[place].clone()
            if wanted not in file and ROW_SEAL in stream.keys():  # noqa: SIM118
                own = bytes(stream.get_slice(ROW_SEAL)[place].tolist())
    except FileNotFoundError:
        return None, []
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"{path} is damaged ({error}); delete it to have it made again") from error
    if own is not None:
        file.require(own == row_digest(wanted, row), wanted)
    return row, found


def row_digest(label: int, row: Tensor) -> bytes:
    """sha256 (32 bytes) of a row and of the label that it stands under."""
    return hashlib.sha256(f"{label} {tensor_digest(row)}".encode()).digest()


def save_rows(path: Path, labels: list[int], rows: Tensor) -> None:
    """Write ``rows`` ``(n, p)`` under their labels at once, as :class:`RowFile` does one by one."""
    own = [list(row_digest(label, row)) for label, row in zip(labels, rows, strict=True)]
    tensors = {"epochs": torch.tensor(labels), "snapshots": rows, ROW_SEAL: torch.tensor(own, dtype=torch.uint8)}
    save_tensors(path, tensors, {SEAL: json.dumps(_row_seals(tensors["epochs"]))})


def _row_seals(epochs: Tensor) -> dict[str, str]:
    """The digests of a row file's header: its labels are all there is to compare before a row is read."""
    names = ("epochs", "snapshots", ROW_SEAL)
    return _seals({"epochs": epochs}, {}, names) | dict.fromkeys(names[1:], _BY_ROW)


_KINDS = {torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True)
class RowFile:
    """A safetensors file with ``snapshots`` ``(n, p)``, their ``epochs`` ``(n,)`` and digests, written row by row.

    Memory holds one row. The file lies beside its target until :meth:`finish` renames it, so that the target is
    whole or not there; an interrupted writer opens the same file again and goes on.
    """

    target: Path
    epochs: tuple[int, ...]
    width: int
    dtype: torch.dtype = torch.float32

    @property
    def path(self) -> Path:
        """Where rows are written before the file is complete."""
        return self.target.with_suffix(".rows")

    @property
    def _header(self) -> bytes:
        n, row = len(self.epochs), self.width * self.dtype.itemsize
        epochs = torch.tensor(self.epochs, dtype=torch.int64)
        tensors = {
            "__metadata__": {SEAL: json.dumps(_row_seals(epochs))},
            "epochs": {"dtype": "I64", "shape": [n], "data_offsets": [0, 8 * n]},
            "snapshots": {
                "dtype": _KINDS[self.dtype],
                "shape": [n, self.width],
                "data_offsets": [8 * n, 8 * n + n * row],
            },
            ROW_SEAL: {"dtype": "U8", "shape": [n, 32], "data_offsets": [8 * n + n * row, 8 * n + n * (row + 32)]},
        }
        text = json.dumps(tensors, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the format wants tensors aligned
        return len(text).to_bytes(8, "little") + text + epochs.numpy().tobytes()

    @property
    def size(self) -> int:
        """Bytes of the complete file."""
        return len(self._header) + len(self.epochs) * (self.width * self.dtype.itemsize + 32)

    def create(self) -> None:
        """Begin afresh; rows that are not written yet read as zeros."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with in_place(self.path, "wb") as stream:
            stream.write(self._header)
            stream.truncate(self.size)

    @property
    def begun(self) -> bool:
        """Whether a file of exactly this layout lies there to go on with."""
        if not self.path.exists() or self.path.stat().st_size != self.size:
            return False
        header = self._header
        with reading(self.path) as stream:
            return stream.read(len(header)) == header

    def write(self, epoch: int, vector: Tensor) -> None:
        """Put the row of ``epoch`` where it belongs, and on the disk."""
        row = vector.detach().to("cpu", self.dtype).contiguous()
        place, size = self.epochs.index(epoch), self.width * self.dtype.itemsize
        start = len(self._header)
        with in_place(self.path, "r+b") as stream:
            stream.seek(start + place * size)
            stream.write(row.view(torch.uint8).numpy().data)
            stream.seek(start + len(self.epochs) * size + place * 32)
            stream.write(row_digest(epoch, row))
            stream.flush()
            os.fsync(stream.fileno())

    def finish(self) -> None:
        """The file under its own name."""
        may_store(self.target)
        self.path.replace(self.target)
        folder = os.open(self.target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
