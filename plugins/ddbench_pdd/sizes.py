"""How a budget of images per class is divided among stages."""

from __future__ import annotations

from typing import Annotated

from ddbench import UsageError, share

Sizes = Annotated[tuple[int, ...], "images per class of each stage, as 17,17,16; empty: as even as possible"]


def check_sizes(name: str, stages: int, sizes: tuple[int, ...]) -> None:
    """Raise UsageError when sizes are given that cannot be those of ``stages`` stages."""
    if sizes and len(sizes) != stages:
        raise UsageError(
            f"{name} has {stages} stages, but scheduler.sizes names {len(sizes)}: {', '.join(map(str, sizes))}; "
            f"set -o scheduler.stages={len(sizes)} as well, or name {stages} sizes"
        )
    if any(size < 1 for size in sizes):
        raise UsageError(f"every stage of {name} needs at least one image per class, got {', '.join(map(str, sizes))}")


def stage_ipc(name: str, ipc: int, stages: int, sizes: tuple[int, ...], index: int) -> int:
    """Images per class of stage ``index``, when ``ipc`` is the budget of all."""
    if sizes:
        if sum(sizes) != ipc:
            raise UsageError(
                f"scheduler.sizes add up to {sum(sizes)} images per class, but the budget is {ipc}; "
                f"ask for --ipc {sum(sizes)}, or for other sizes"
            )
        return sizes[index]
    if ipc < stages:
        raise UsageError(
            f"{name} divides the budget of {ipc} images per class among {stages} stages; ask for --ipc {stages} or "
            f"more, or for -o scheduler.stages={ipc} or fewer"
        )
    return share(ipc, stages, index)
