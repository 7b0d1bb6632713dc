"""Sets as other tools write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn


def pair(folder: Path, x: Any, y: Any, lr: Any = None, number: Any = "best") -> Path:
    """As MTT and PDD write them."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(x, folder / f"images_{number}.pt")
    torch.save(y, folder / f"labels_{number}.pt")
    if lr is not None:
        torch.save(nn.Parameter(torch.tensor(lr)), folder / f"syn_lr_{number}.pt")
    return folder
