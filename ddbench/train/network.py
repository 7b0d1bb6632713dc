"""A network as a pure function of one flat vector ``[parameters | float buffers]``.

Vectors stack, travel through files as one row, and can be differentiated as one variable. Matching
losses, weight decay and optimisers see the parameters only; batch statistics ride along at the end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ddbench.base.code import foreign_code
from ddbench.base.guard import guarded
from ddbench.base.seeds import Seed
from ddbench.errors import PluginError, UsageError
from ddbench.train.source import NetworkSource


class _Endpoint(nn.Module):
    """Makes ``net.<method>`` the forward of a module, so that functional_call can reach it."""

    def __init__(self, net: nn.Module, method: str) -> None:
        super().__init__()
        self.net = net
        self.method = method

    def forward(self, x: Tensor) -> Any:
        return getattr(self.net, self.method)(x)


@dataclass(frozen=True, eq=False)
class Network:
    """``source.build(shape, classes)`` without weights of its own.

    ``network.apply(vector, x) -> logits (n, k)``; ``network.init(seed) -> vector``.
    """

    source: NetworkSource
    shape: tuple[int, int, int]
    classes: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32

    @cached_property
    def _template(self) -> nn.Module:
        with torch.device("meta"):  # shapes only: building here must not draw random numbers
            return self._build()

    @cached_property
    def _constants(self) -> dict[str, Tensor]:
        """Buffers that are not floats (an index, say): part of the architecture, not of a vector."""
        if not any(not b.is_floating_point() for b in self._template.buffers()):
            return {}
        with Seed(0).scope():
            module = self._build()
        return {name: b.to(self.device) for name, b in module.named_buffers() if not b.is_floating_point()}

    @cached_property
    def _endpoints(self) -> dict[str, nn.Module]:
        return {"forward": self._template}

    @cached_property
    def _names(self) -> tuple[list[str], list[str]]:
        parameters = [name for name, _ in self._template.named_parameters()]
        buffers = [name for name, b in self._template.named_buffers() if b.is_floating_point()]
        return parameters, buffers

    @cached_property
    def _shapes(self) -> list[torch.Size]:
        tensors = dict(self._template.named_parameters()) | dict(self._template.named_buffers())
        return [tensors[name].shape for name in (*self._names[0], *self._names[1])]

    @cached_property
    def _pieces(self) -> tuple[list[int], list[tuple[str, torch.Size | None]]]:
        """The lengths of a vector's pieces; their names, and the shapes of those that are not vectors themselves."""
        names = (*self._names[0], *self._names[1])
        shapes = [shape if len(shape) != 1 else None for shape in self._shapes]
        return [shape.numel() for shape in self._shapes], list(zip(names, shapes, strict=True))

    @cached_property
    def _mode(self) -> dict[str, bool]:
        """The mode that the template was last set to, once it was."""
        return {}

    @cached_property
    def parameters(self) -> int:
        """The number of parameters: the length of the part that is trained and matched."""
        return sum(p.numel() for p in self._template.parameters())

    @cached_property
    def weights(self) -> Tensor:
        """Which parameters belong to tensors of two dimensions or more, ``(p,)`` of 0 and 1: no biases, no norms."""
        shapes = self._shapes[: len(self._names[0])]
        parts = [torch.full((shape.numel(),), float(len(shape) > 1)) for shape in shapes]
        return torch.cat(parts).to(self.device, self.dtype)

    @cached_property
    def length(self) -> int:
        """The length of a whole vector, buffers included."""
        return sum(s.numel() for s in self._shapes)

    def init(self, seed: Seed) -> Tensor:
        """A freshly initialised vector; the module's own initialisation, drawn from ``seed``."""
        _ = self._constants  # made here, never inside a transform such as vmap
        with seed.scope():
            return self.vector(self._build())

    def _build(self) -> nn.Module:
        what = f"build() of network {self.source.name!r}"
        with guarded(what):
            module = self.source.build(self.shape, self.classes)
        if not isinstance(module, nn.Module):
            raise PluginError(f"{what} must return a torch.nn.Module, not {type(module).__name__}")
        return module

    def vector(self, module: nn.Module) -> Tensor:
        """The flat vector of a module with this architecture."""
        tensors = dict(module.named_parameters()) | dict(module.named_buffers())
        flat = torch.cat([tensors[name].detach().reshape(-1) for name in (*self._names[0], *self._names[1])])
        return flat.to(self.device, self.dtype)

    def layers(self, vector: Tensor) -> dict[str, Tensor]:
        """Views of a vector, by the module's own names."""
        sizes, named = self._pieces
        parts = zip(named, vector.split_with_sizes(sizes), strict=True)
        return {name: part if shape is None else part.view(shape) for (name, shape), part in parts}

    def apply(self, vector: Tensor, x: Tensor, *, train: bool = True) -> Tensor:
        """Logits ``(n, k)`` of images ``(n, c, h, w)``; ``train`` matters to batch norm and dropout."""
        return self._call("forward", vector, x, train)[0]

    def apply_with_buffers(self, vector: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits in training mode, and the float buffers after this batch (empty without batch norm)."""
        logits, tensors = self._call("forward", vector, x, True)
        if not self._names[1]:
            return logits, vector.new_empty(0)
        return logits, torch.cat([tensors[name].detach().reshape(-1) for name in self._names[1]])

    def features(self, vector: Tensor, x: Tensor, *, train: bool = True) -> Tensor:
        """The embedding ``(n, f)`` before the classifier; needs a module with a ``features`` method."""
        return self._call("features", vector, x, train)[0]

    def activations(self, vector: Tensor, x: Tensor, *, train: bool = True) -> tuple[Tensor, ...]:
        """The map after each block, in order; needs a module with an ``activations`` method.

        Maps are ``(n, c, h, w)``, after linear layers ``(n, f)``, in transformers tokens ``(n, t, d)``.
        """
        return self._call("activations", vector, x, train)[0]

    def stacked(self, vectors: Tensor, x: Tensor, *, train: bool = True) -> Tensor:
        """Logits ``(v, n, k)`` of the same images for each of several vectors ``(v, p)``, in one call.

        Vectors draw separate dropout masks. Raises UsageError when torch.func.vmap cannot run the network.
        """
        _ = self._constants  # made here, never inside vmap
        randomness = "different" if train else "error"
        try:
            return vmap(lambda v: self.apply(v, x, train=train), randomness=randomness)(vectors)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            with torch.no_grad():
                self.apply(vectors[0], x, train=train)  # what fails for one vector as well is not about stacking
            from ddbench.base.options import label

            reason = re.split(r"\n|(?<=\w)\. ", str(error).strip())[0]  # its first sentence
            raise UsageError(
                f"network {label(self.source)!r} cannot be used for several vectors at once ({reason})"
            ) from error

    def _call(self, method: str, vector: Tensor, x: Tensor, train: bool) -> tuple[Any, dict[str, Tensor]]:
        """What a method of the module returns, and its tensors as they are after the call."""
        module = self._endpoints.get(method)
        if module is None:
            if not hasattr(self._template, method):
                raise UsageError(f"network {self.source.name!r} has no {method}(x) method, which this matcher needs")
            module = self._endpoints.setdefault(method, _Endpoint(self._template, method))
        if self._mode.get("train") is not train:  # to set it, torch walks through all modules
            self._template.train(train)
            self._mode["train"] = train
        tensors = self.layers(vector)
        if self._names[1]:  # batch norm writes its buffers in place: give it copies
            tensors |= {name: tensors[name].detach().clone() for name in self._names[1]}
        if self._constants:  # batch norm counts its calls in an integer: a copy too, or a call would depend on others
            tensors |= {name: constant.clone() for name, constant in self._constants.items()}
        if torch.compiler.is_compiling() or self._slots is None:
            prefix = "" if method == "forward" else "net."
            out = functional_call(module, {prefix + name: t for name, t in tensors.items()}, (x,))
        else:
            out = self._put(module, tensors, x)
        return out, tensors

    def _put(self, module: nn.Module, tensors: dict[str, Tensor], x: Tensor) -> Any:
        """``functional_call`` without its bookkeeping, which costs more than a kernel on small images."""
        assert self._slots is not None
        held = [(table, key, table[key]) for table, key in self._slots.values()]
        try:
            for name, tensor in tensors.items():
                table, key = self._slots[name]
                table[key] = tensor
            return module(x)
        finally:
            for table, key, empty in held:
                table[key] = empty

    @cached_property
    def _slots(self) -> dict[str, tuple[dict[str, Any], str]] | None:
        """Where each tensor of the template lives; None where one stands in two places, or is kept elsewhere too."""
        named = list(self._template.named_parameters(remove_duplicate=False))
        if len(named) != len(self._names[0]) or any(isinstance(m, nn.RNNBase) for m in self._template.modules()):
            return None
        found = {}
        for name in (*self._names[0], *self._names[1], *self._constants):
            path, _, key = name.rpartition(".")
            owner = self._template.get_submodule(path)
            found[name] = (owner._parameters if key in owner._parameters else owner._buffers, key)
        return found

    @property
    def identity(self) -> dict[str, Any]:
        """What its vectors depend on, as JSON."""
        from ddbench.base.options import describe

        return {
            "source": describe(self.source),
            "shape": list(self.shape),
            "classes": self.classes,
            "device": self.device.type,
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    @property
    def code(self) -> dict[str, str]:
        """The digests of the third-party source that builds it, by module; empty for built-in networks."""
        return foreign_code(type(self.source))

    @property
    def lineage(self) -> dict[str, Any]:
        """What anything that is derived from it is kept by: its identity, and the code of one that is not built in."""
        return self.identity | ({"code": self.code} if self.code else {})
