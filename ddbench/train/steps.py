"""The optimiser steps of one training: each with tensors of its own, or all with the same ones, which a graph replays.

Eagerly a step of a ConvNet is some two hundred calls, which take as long as the kernels of a hundred images. Recorded
once for each shape as a CUDA graph, it is one. A recorded step reads and writes the same memory each time; so vector,
optimiser state and learning rate stay where they are, and what an epoch draws is drawn beforehand, from the same
addresses, and moved to the device at once. Between two epochs nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ddbench.base.seeds import Seed
from ddbench.data.augment import Draw
from ddbench.data.dataset import Examples, Resident
from ddbench.data.mixing import NO_MIX, Mix
from ddbench.train.network import Network
from ddbench.train.optimisers import Optimiser, State

if TYPE_CHECKING:
    from ddbench.train.fit import Lessons, Recipe, Source

Launch = Literal["auto", "eager", "graph"]
# How many times as fast as eagerly ConvNet-D3 of width 128 trains on batches of 256 by graphs, on CUDA; None: nobody
# has measured it. ``auto`` is a graph where it gains a twentieth, in a training long enough to record its shapes.
GAIN: float | None = None
WORTH, LEAST = 1.05, 200


def in_place(recipe: Recipe, network: Network, source: Source, total: int) -> bool:
    """Whether a training of ``total`` steps is one of :class:`InPlace`: asked for or worth it, and possible.

    Impossible is what a recording would freeze: mixtures, whose boxes are numbers; teachers, of whom nothing is known;
    networks that draw; images that are not on the device.
    """
    on_cuda = network.device.type == "cuda"
    if recipe.launch == "eager" or (recipe.launch == "auto" and not (on_cuda and (GAIN or 0) >= WORTH)):
        return False
    if recipe.mixing != "none" or recipe.online or (recipe.launch == "auto" and total < LEAST):
        return False
    resident = isinstance(source, Resident) or (isinstance(source, Examples) and source.images.is_cuda)
    return (resident or not on_cuda) and not _draws(network)


def _draws(network: Network) -> bool:
    """Whether a network draws random numbers in training, as dropout does."""
    device = network.device

    def states() -> list[Tensor]:
        return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]

    with Seed(0).scope(), torch.no_grad():
        vector = network.init(Seed(0))
        before = states()
        network.apply(vector, torch.zeros(2, *network.shape, dtype=network.dtype, device=device))
        return any(not torch.equal(a, b) for a, b in zip(before, states(), strict=True))


class Apart:
    """Steps with tensors of their own: a network's vector and its optimiser's state come anew in each."""

    def __init__(
        self, network: Network, vector: Tensor, state: State, source: Source, lessons: Lessons, rule: Optimiser
    ) -> None:
        self.network, self.source, self.lessons, self.rule = network, source, lessons, rule
        split = [network.parameters, network.length - network.parameters]
        self.parameters, self.buffers = vector.detach().split(split)
        self.state = state or rule.init(self.parameters)

    def planned(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, tuple[Draw, Mix]]]:
        """The batches of an epoch with what is drawn for each, just before it is needed: networks may draw, too."""
        for rows in batches:
            yield rows, self.lessons.draw(len(rows))

    def restart(self) -> None:
        """Forget the optimiser's state."""
        self.state = self.rule.init(self.parameters)

    def step(self, rows: Tensor, drawn: tuple[Draw, Mix], rate: float) -> None:
        shown = self.lessons.shown(self.source[rows], drawn)
        g, self.buffers = self.lessons.gradient(self.network, self.parameters, self.buffers, shown)
        self.parameters, self.state = self.rule.update(self.parameters.detach(), self.state, g, rate)

    def student(self) -> tuple[Tensor, State]:
        """The vector and the optimiser's state as they are now."""
        return torch.cat([self.parameters, self.buffers]), self.state


class InPlace:
    """Steps on the same tensors: recorded and replayed on CUDA, and the same calls one by one elsewhere."""

    def __init__(
        self, network: Network, vector: Tensor, state: State, source: Source, lessons: Lessons, rule: Optimiser
    ) -> None:
        self.network, self.source, self.lessons, self.rule = network, source, lessons, rule
        split = [network.parameters, network.length - network.parameters]
        self.parameters, self.buffers = (part.clone() for part in vector.detach().split(split))
        self.state = tuple(s.clone() for s in state or rule.init(self.parameters))
        # float64, since optimisers multiply it by numbers of Python before they meet float32
        self.rate = torch.zeros((), dtype=torch.float64, device=network.device)
        self._inputs: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
        self._recorded = Recorded(network.device)

    def planned(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, tuple[Draw, Mix]]]:
        """The batches of an epoch with what is drawn for each, all of it on the device."""
        batches = list(batches)
        draws = [self.lessons.draw(len(rows))[0] for rows in batches]
        moved = zip(self._moved(batches), self._moved([draw.parameters for draw in draws]), draws, strict=True)
        for rows, parameters, draw in moved:
            yield rows, (Draw(draw.operation, parameters), NO_MIX)

    def _moved(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Tensors of one type on the device, by one transfer for which nobody waits."""
        flat = torch.cat([t.reshape(-1) for t in tensors])
        if self.network.device.type == "cuda" and len(flat):  # nothing augmented has no parameters
            flat = flat.pin_memory().to(self.network.device, non_blocking=True)
        return [part.view(t.shape) for part, t in zip(flat.split([t.numel() for t in tensors]), tensors, strict=True)]

    def restart(self) -> None:
        """Forget the optimiser's state."""
        self._write(self.state, self.rule.init(self.parameters))

    def step(self, rows: Tensor, drawn: tuple[Draw, Mix], rate: float) -> None:
        draw, key = drawn[0], (len(rows), drawn[0].operation)
        if key not in self._inputs:
            self._inputs[key] = torch.empty_like(rows), torch.empty_like(draw.parameters)
        self.rate.fill_(rate)
        self._write(self._inputs[key], (rows, draw.parameters))
        self._recorded(key, lambda: self._step(*self._inputs[key], draw.operation))

    def _step(self, rows: Tensor, parameters: Tensor, operation: str) -> None:
        shown = self.lessons.shown(self.source[rows], (Draw(operation, parameters), NO_MIX))
        g, buffers = self.lessons.gradient(self.network, self.parameters.detach(), self.buffers, shown)
        after, state = self.rule.update(self.parameters, self.state, g, self.rate)
        self._write((self.parameters, self.buffers, *self.state), (after, buffers, *state))

    @staticmethod
    def _write(places: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        for place, value in zip(places, values, strict=True):
            place.copy_(value)

    def student(self) -> tuple[Tensor, State]:
        """The vector and the optimiser's state as they are now."""
        return torch.cat([self.parameters, self.buffers]), tuple(s.clone() for s in self.state)


class Recorded:
    """Calls of one training, each recorded as a CUDA graph when it comes for the second time, and replayed then.

    The first time it is made as it is: libraries set themselves up in it, and it counts as any other.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._graphs: dict[Any, torch.cuda.CUDAGraph | None] = {}
        self._stream: torch.cuda.Stream | None = None  # one for all: memory is kept for each stream
        self._pool: Any = (
            None  # memory that all recordings share: they are replayed one at a time, and leave nothing in it
        )

    def __call__(self, key: Any, call: Callable[[], None]) -> None:
        if self.device.type != "cuda":
            call()
        elif key not in self._graphs:
            self._graphs[key] = None
            self._aside(call)
        else:
            graph = self._graphs[key] or self._record(key, call)
            graph.replay()

    def _aside(self, call: Callable[[], None]) -> None:
        """On a stream of its own, as a recording will be."""
        self._stream = self._stream or torch.cuda.Stream(self.device)
        stream, current = self._stream, torch.cuda.current_stream(self.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            call()
        current.wait_stream(stream)

    def _record(self, key: Any, call: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads go on, such as the one that reads snapshots ahead
        recording = torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local")
        with torch.cuda.device(self.device), recording:
            call()
        self._graphs[key], self._pool = graph, graph.pool()
        return graph
