"""The fused kernels, executed on the CPU by Triton's interpreter: a process of its own, since Triton asks once.

Prints JSON: for each case the relative errors of output and gradients against float64, and the same for torch's layers.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace

if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"

import torch
from ddbench_networks import ConvNet
from torch import Tensor
from torch.nn.functional import avg_pool2d, group_norm

from ddbench import Examples, Network, Recipe, Seed, Student, fit
from ddbench.train import fused
from ddbench.train.fit_together import fit_together

EPS = 1e-5
# (n, c, h, w), groups: whole and broken blocks, channels that share statistics in one block, in 5 of its 8 rows, in two
CASES = [((3, 8, 8, 8), 8), ((3, 5, 4, 12), 5), ((2, 12, 8, 6), 4), ((1, 20, 4, 4), 4), ((1, 10, 32, 32), 2)]

FEW = [(*CASES[0], torch.float32, False), (*CASES[1], torch.bfloat16, True), (*CASES[4], torch.float32, False)]


def by_hand(x: Tensor, groups: int, weight: Tensor, bias: Tensor) -> Tensor:
    """From the definitions, without torch's layers."""
    n, c, h, w = x.shape
    parts = x.reshape(n, groups, -1)
    centred = parts - parts.mean(2, keepdim=True)
    xhat = (centred / (centred.square().mean(2, keepdim=True) + EPS).sqrt()).reshape(n, c, h, w)
    y = (xhat * weight.view(1, c, 1, 1) + bias.view(1, c, 1, 1)).clamp_min(0)
    return (y[:, :, ::2, ::2] + y[:, :, 1::2, ::2] + y[:, :, ::2, 1::2] + y[:, :, 1::2, 1::2]) / 4


def layers(x: Tensor, groups: int, weight: Tensor, bias: Tensor) -> Tensor:
    return avg_pool2d(group_norm(x, groups, weight, bias, EPS).relu(), 2)


def with_gradients(function, given: list[Tensor], groups: int, d_out: Tensor) -> list[Tensor]:
    x, weight, bias = (t.clone(memory_format=torch.preserve_format).requires_grad_() for t in given)
    out = function(x, groups, weight, bias)
    return [out.detach(), *torch.autograd.grad(out, (x, weight, bias), d_out.to(out.dtype))]


def errors(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]


def case(shape: tuple[int, ...], groups: int, dtype: torch.dtype, last: bool) -> dict:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=generator) * 2 + 3).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    weight, bias = torch.randn(2, shape[1], generator=generator)
    d_out = torch.randn(shape[0], shape[1], shape[2] // 2, shape[3] // 2, generator=generator).to(dtype)
    exact = with_gradients(by_hand, [t.double() for t in (x, weight, bias)], groups, d_out)
    one = with_gradients(lambda *a: fused.normed_relu_pooled(*a, EPS), [x, weight, bias], groups, d_out)
    eager = with_gradients(layers, [t.float() for t in (x, weight, bias)], groups, d_out)
    kept = one[0].dtype == one[1].dtype == dtype and fused._last(one[0]) == fused._last(one[1]) == last
    return {"fused": errors(one, exact), "eager": errors(eager, exact), "kept": kept}


def trained() -> dict:
    """A training with fused and with plain layers; how often kernels ran says that they did, and together that not."""
    net = Network(ConvNet(width=2, depth=2), (3, 4, 4), 3)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 4, 4, generator=generator)
    examples = Examples(images, torch.rand(6, 3, generator=generator).softmax(1))
    recipe = Recipe(steps=2, batch=4, lr=0.05, momentum=0.9, augment="color_crop_flip")
    begin, calls, inner = Student(net.init(Seed(0))), [0], fused._Fused.apply

    def counted(*given):
        calls[0] += 1
        return inner(*given)

    fused._Fused.apply = counted
    ran, found = {}, {}
    for name, changes in {
        "plain": {"kernels": "plain"},
        "auto": {},
        "fused": {"kernels": "fused"},
        "graph": {"kernels": "fused", "launch": "graph"},
        "bf16": {"kernels": "fused", "precision": "bf16"},
        "gsam": {"kernels": "fused", "optimizer": "gsam"},
    }.items():
        calls[0] = 0
        found[name] = fit(net, begin, examples, replace(recipe, **changes), Seed(1), what=None).vector
        ran[name] = calls[0]
    calls[0] = 0
    asked = replace(recipe, kernels="fused")
    fit_together(net, [begin, begin], examples, asked, [Seed(1), Seed(2)], lrs=[None, None], what=None)
    with fused.fusing(True):
        net.stacked(torch.stack([begin.vector, begin.vector]), images)
    ran["together"] = calls[0]
    moved = float((found["plain"] - begin.vector).norm())
    return {"ran": ran} | {k: float((v - found["plain"]).norm()) / moved for k, v in found.items()}


def twice() -> str:
    """What differentiating twice says."""
    x = torch.randn(1, 2, 2, 2, requires_grad=True)
    ones = torch.ones(2)
    out = fused.normed_relu_pooled(x, 2, ones, ones, EPS)
    (g,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    try:
        g.square().sum().backward()
    except RuntimeError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    layouts = [(dtype, last) for dtype in (torch.float32, torch.bfloat16) for last in (False, True)]
    chosen = [(*c, *k) for c in CASES for k in layouts] if "all" in sys.argv else FEW
    cases = {
        f"{shape} {groups} {dtype} {last}": case(shape, groups, dtype, last) for shape, groups, dtype, last in chosen
    }
    print(json.dumps({"cases": cases, "trained": trained(), "twice": twice()}))
