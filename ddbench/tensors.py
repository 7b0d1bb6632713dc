"""Named tensors in safetensors files: written atomically, read only as far as needed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ddbench.cache import atomic_file
from ddbench.errors import DataError


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors (any device) to ``path`` atomically, without a copy of those that can be written as they are."""
    plain: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        whole = tensor.detach().cpu().contiguous()
        storage = whole.untyped_storage()
        if storage.nbytes() != whole.numel() * whole.element_size() or storage.data_ptr() in taken:
            whole = whole.clone()  # the format knows no views and no shared memory
        taken.add(whole.untyped_storage().data_ptr())
        plain[name] = whole
    with atomic_file(path) as temporary:
        try:
            save_file(plain, temporary, metadata=metadata)
        except SafetensorError as error:
            raise DataError(f"cannot write {path} ({error}); free some space and run again") from error


def load_tensors(
    path: Path, *, only: Iterable[str] | None = None, device: torch.device | str = "cpu"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata; ``only`` names those wanted. Raises DataError for a damaged file."""
    try:
        with safe_open(path, framework="pt") as stream:
            names = list(only) if only is not None else list(stream.keys())
            # clone: fresh, aligned memory that outlives the file, so that kernels see what they saw before
            tensors = {name: stream.get_tensor(name).clone().to(device) for name in names}
            return tensors, stream.metadata() or {}
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(
            f"{path} is damaged or not a safetensors file ({error}); delete it to have it made again"
        ) from error


def read_rows(path: Path, name: str, row: int) -> Tensor:
    """One row of a two-dimensional tensor: only its bytes are read from the file."""
    try:
        with safe_open(path, framework="pt") as stream:
            return stream.get_slice(name)[row].clone()
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is damaged ({error}); delete it to have it made again") from error
