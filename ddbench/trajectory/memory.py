"""How much memory a trajectory matcher will take, before it starts, on any device and at any size.

An unroll is played on torch's meta device, where tensors have shapes and no numbers, while every storage that
comes and goes is counted. What kernels allocate inside themselves (workspaces) is not seen.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ddbench.base.seeds import Seed
from ddbench.data.augment import DSA, Draw
from ddbench.data.dataset import Examples
from ddbench.problem.synthetic import Pool
from ddbench.train.network import Network
from ddbench.trajectory.unroll import Differentiate, Plan, Task, matching, student_loss

PLAYED = 10  # student steps that are played; what more steps add is the same for each


def unroll_bytes(differentiate: Differentiate, network: Network, strategy: str, batch: int, steps: int) -> int:
    """The peak of one unroll of ``steps`` student steps with ``batch`` images each, its images included."""
    shapes = Network(network.source, network.shape, network.classes, torch.device("meta"), network.dtype)
    worst = max(_operations(strategy, batch), key=lambda draw: _peak(differentiate, shapes, draw, batch, 1))
    if steps <= PLAYED:
        return _peak(differentiate, shapes, worst, batch, steps)
    half, whole = (_peak(differentiate, shapes, worst, batch, t) for t in (PLAYED // 2, PLAYED))
    return whole + (whole - half) * (steps - PLAYED) // (PLAYED - PLAYED // 2)


def _operations(strategy: str, batch: int) -> list[Draw]:
    """A draw of each operation that a strategy gives, sooner or later."""
    with Seed(0).scope():
        draws = [DSA(strategy).draw(batch) for _ in range(50)]
    return list({draw.operation: draw for draw in draws}.values())


def _peak(differentiate: Differentiate, network: Network, draw: Draw, batch: int, steps: int) -> int:
    plan = Plan((torch.arange(batch),) * steps, (draw,) * steps)
    with _Counted() as counted, torch.device("meta"):
        start, target = torch.empty(2, network.parameters)
        buffers = torch.empty(network.length - network.parameters)
        pool = Pool(Examples(torch.empty(batch, *network.shape), torch.empty(batch, network.classes)))
        loss = student_loss(network, buffers)
        differentiate(Task(loss, matching(start, target), start, pool, torch.empty(()), plan))
    return counted.peak


class _Counted(TorchDispatchMode):
    """The bytes of all meta storages alive, and the most there were at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            if isinstance(tensor, Tensor) and tensor.device.type == "meta":
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size
