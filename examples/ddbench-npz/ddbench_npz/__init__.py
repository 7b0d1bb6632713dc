"""Any dataset in one NumPy file: x_train (n, c, h, w) uint8, y_train (n,), x_test, y_test, and names (k,)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from zipfile import BadZipFile

import numpy as np
import torch

from ddbench import DataError, Dataset, UsageError, hookimpl


@dataclass(frozen=True)
class Npz:
    """The arrays x_train, y_train, x_test, y_test and names of an .npz file."""

    name = "npz"
    argument = "root"  # so that --dataset npz:FILE.npz names the file
    root: Annotated[str, "the file"] = ""
    flip: Annotated[bool, "whether a mirrored image keeps its class"] = True

    def load(self) -> Dataset:
        if not self.root:
            raise UsageError("the dataset 'npz' needs its file; pass --dataset npz:FILE.npz")
        path = Path(self.root).expanduser()
        try:
            with np.load(path, allow_pickle=False) as arrays:
                train, test = ((arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in ("train", "test"))
                names = tuple(str(name) for name in arrays["names"])
        except FileNotFoundError as error:
            raise DataError(f"there is no file {path}; pass --dataset npz:FILE.npz with one that exists") from error
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise DataError(f"{path} does not hold x_train, y_train, x_test, y_test and names ({error})") from error
        augment = "color_crop_cutout_flip_scale_rotate" if self.flip else "color_crop_cutout_scale_rotate"
        return Dataset.split(path.stem.lower(), names, tensors(*train), tensors(*test), augment=augment)


def tensors(pixels: np.ndarray, targets: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(pixels), torch.from_numpy(targets).long()


@hookimpl
def register_datasets(register) -> None:
    register(Npz)
