"""The classification models of torchvision, by their names there."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ddbench import UsageError

SIDES = (16, 28, 32, 64, 96, 128, 224)  # pixels that an error message tries
# Heads that exist only to help training would change what the network returns.
PLAIN = {name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")}


@dataclass(frozen=True)
class Torchvision:
    """A classification model of torchvision, freshly initialised: ``-o network.model=resnet18``.

    They are made for 224x224 images; for small ones, networks such as ``resnet18`` fit better. Images need
    3 channels. ``features`` is the input of the last linear layer, if that gives the logits;
    ``activations`` are the maps (n, c, h, w), or tokens (n, t, d), after each stage or block, for models that
    keep these in one sequence. Some models draw in training, and some average with AdaptiveAvgPool2d,
    whose gradient on CUDA differs from run to run.
    """

    name = "torchvision"
    model: Annotated[str, "a name that torchvision.models.list_models knows"] = "resnet18"

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        if self.model not in (names := _names()):
            near = difflib.get_close_matches(self.model, names, n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
            raise UsageError(f"torchvision has no classification model called {self.model!r}{hint}")
        if shape[0] != 3:
            raise UsageError(
                f"torchvision's {self.model!r} takes images of 3 channels, and these have {shape[0]}; "
                "use another network, such as 'resnet18' or 'convnet'"
            )
        if refusal := _refusal(self.model, shape[1:]):
            sides = [f"{s}x{s}" for s in SIDES if not _refusal(self.model, (s, s))]
            way = f"it takes, for example, {', '.join(sides)}" if sides else "use another network"
            size = f"{shape[1]}x{shape[2]} pixels"
            raise UsageError(f"torchvision's {self.model!r} cannot be used for images of {size} ({refusal}); {way}")
        return _Model(self.model, _make(self.model, shape[1:], classes), classes)


@cache
def _names() -> list[str]:
    from torchvision import models

    return models.list_models(module=models)


def _make(name: str, sides: tuple[int, int], classes: int) -> nn.Module:
    from torchvision import models

    options: dict[str, Any] = dict(PLAIN.get(name, {}))
    if name.startswith("vit_"):  # these have learned positions, for square images of one size
        options["image_size"] = sides[0]
    return models.get_model(name, weights=None, num_classes=classes, **options)


@cache
def _refusal(name: str, sides: tuple[int, int]) -> str:
    """Why a model cannot be used for images of this size; empty when it can. Costs no memory and draws nothing."""
    try:
        with torch.device("meta"), torch.no_grad():
            _make(name, sides, 2).eval()(torch.empty(2, 3, *sides))
    except NotImplementedError:  # RegNets compute their widths with tensors
        return "building it reads numbers, of which there are none where ddbench only counts parameters"
    except (RuntimeError, ValueError, AssertionError) as error:
        return " ".join(str(error).split()) or type(error).__name__
    return ""


class _Model(nn.Module):
    """A model, and what passes through the modules inside it."""

    def __init__(self, name: str, model: nn.Module, classes: int) -> None:
        super().__init__()
        self.name = name
        self.model = model
        linear = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.Linear)]
        self.last = linear[-1][0] if linear and linear[-1][1].out_features == classes else ""
        self.blocks = _blocks(model)

    def features(self, x: Tensor) -> Tensor:
        if not self.last:
            raise UsageError(f"torchvision's {self.name!r} has no features: no linear layer gives its logits")
        return self._passing([self.last], x)[0][0]

    def activations(self, x: Tensor) -> tuple[Tensor, ...]:
        if not self.blocks:
            raise UsageError(f"torchvision's {self.name!r} has no activations: its blocks are in no one sequence")
        maps = tuple(made for _, made in self._passing(self.blocks, x))
        return tuple(m.permute(0, 3, 1, 2) for m in maps) if self.name.startswith("swin") else maps

    def forward(self, x: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # the faster kernels of attention have no second derivatives
            return self.model(x)

    def _passing(self, paths: list[str], x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The input and the output of each module in ``paths``, in the order of execution."""
        seen: list[tuple[Tensor, Tensor]] = []

        def note(_module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
            seen.append((given[0], made))

        hooks = [self.model.get_submodule(path).register_forward_hook(note) for path in paths]
        try:
            self(x)
        finally:
            for hook in hooks:
                hook.remove()
        return seen


def _blocks(model: nn.Module) -> list[str]:
    """The modules whose outputs count as feature maps.

    ResNets and ShuffleNets name their stages; other models have one sequence of blocks, in which single
    layers do not count. AlexNet and VGG have nothing but layers there: their blocks end with a pooling.
    """
    stages = [name for name, _ in model.named_children() if re.fullmatch(r"(layer|stage)\d", name)]
    if stages:
        return stages
    for path in ("features", "layers", "blocks", "encoder.layers"):
        try:
            parts = [(f"{path}.{name}", module) for name, module in model.get_submodule(path).named_children()]
        except AttributeError:
            continue
        whole = [name for name, module in parts if any(module.children())]
        return whole or [name for name, module in parts if isinstance(module, nn.MaxPool2d)]
    return []
