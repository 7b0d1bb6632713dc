"""A network on trial: a pure function of a flat vector, in which an image is by itself."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor
from torch.autograd import grad
from torch.func import vmap

from ddbench import Network, Seed, UsageError
from ddbench.hookspecs import NetworkSource
from ddbench.testing.findings import Findings, explained, require
from ddbench.testing.watch import steady, watched
from ddbench.train.fit import soft_cross_entropy


def examine_network(
    found: Findings, plugin: NetworkSource, *, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10
) -> None:
    """All checks of a network that takes images of ``shape`` (c, h, w)."""
    name, network = f"network {plugin.name!r}", Network(plugin, shape, classes)
    with found.checking("template", "starts", vital=True):
        vector, other = _vectors(found, plugin, network, name)
    with Seed(0).scope():
        x = torch.randn(4, *shape)

    def logits(v: Tensor, images: Tensor) -> Tensor:
        return network.apply(v, images, train=False)

    with (
        found.checking("logits", vital=True),
        watched(found, f"forward() of {name}"),
        explained(f"forward() of {name}"),
    ):
        out = logits(vector, x)
        good = out.shape == (4, classes) and bool(out.isfinite().all())
        require(good, f"{name} must give finite logits (4, {classes}) for 4 images, got shape {tuple(out.shape)}")
    with found.checking("repeat"):
        said = f"{name} gives other logits for the same vector and images; draw nothing in evaluation"
        steady(lambda: logits(vector, x), said)
    with found.checking("order"):
        turned, alone = torch.tensor([2, 0, 3, 1]), torch.cat([logits(vector, image[None]) for image in x])
        said = f"{name} gives an image other logits where others stand beside it; in evaluation each is by itself"
        for found_, due in ((logits(vector, x[turned]), out[turned]), (alone, out)):
            require(_close(found_, due), said)
    with found.checking("vmap"):
        with explained(f"stacking vectors of {name} with torch.func.vmap"):
            stacked = vmap(lambda v: logits(v, x))(torch.stack([other, vector]))
        require(_close(stacked[1], out), f"{name} gives other logits under vmap")
    with found.checking("training"):
        _check_training(network, torch.stack([other, vector]), x)
    with found.checking("features"):
        _check_maps(network, vector, x)
    with found.checking("gradients"):
        _check_gradients(network, vector, x)


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-3, atol=1e-4)


def _vectors(found: Findings, plugin: NetworkSource, network: Network, name: str) -> tuple[Tensor, Tensor]:
    """Two initialisations, of two seeds."""
    generator, what = torch.get_rng_state(), f"building {name} on the meta device"
    with torch.device("meta"), explained(what), watched(found, what):
        plugin.build(network.shape, network.classes)
    length = network.length
    silent = torch.equal(generator, torch.get_rng_state())
    require(silent, f"building {name} on the meta device draws random numbers; leave drawing to the modules inside")
    said = f"{name} must start as its seed says; draw from torch's global generator alone"
    vector, other = steady(lambda: network.init(Seed(0)), said, "starts"), network.init(Seed(1))
    require(not torch.equal(vector, other), said, "starts")
    require(len(vector) == length > 0, f"{name} has {len(vector)} numbers, but {length} on the meta device")
    return vector, other


def _check_training(network: Network, vectors: Tensor, x: Tensor) -> None:
    """In training mode, calls are repeatable, and vectors stacked give what each gives alone, unless it draws."""
    name = f"network {network.source.name!r}"

    def play(seed: int) -> Tensor:
        with Seed(seed).scope():
            return torch.stack([network.apply(v, x) for v in vectors])

    one, other = play(0), play(1)
    again = f"{name} gives other logits in training mode for the same seed; keep nothing between calls"
    require(torch.equal(play(0), one), again)
    with explained(f"stacking vectors of {name} in training mode"), Seed(0).scope():
        stacked = network.stacked(vectors, x)
    # batch norm over maps of one pixel, four numbers per channel, lets rounding errors grow
    alike = (stacked - one).norm() <= 1e-2 * one.norm() or not torch.equal(one, other)
    require(alike and stacked.isfinite().all(), f"{name} gives other logits in training mode when vectors are stacked")


def _check_maps(network: Network, vector: Tensor, x: Tensor) -> None:
    """Features and activations are optional."""
    name = f"network {network.source.name!r}"
    with suppress(UsageError):
        flat = network.features(vector, x, train=False).ndim == 2
        require(flat, f"features(x) of {name} must have shape (n, f)")
    with suppress(UsageError):
        maps = network.activations(vector, x, train=False)
        plain = isinstance(maps, tuple) and maps and all(isinstance(m, Tensor) for m in maps)
        said = f"activations(x) of {name} must be a tuple of finite tensors (n, ...), the map after each block"
        require(plain and all(len(m) == len(x) and m.isfinite().all() for m in maps), said)


def _check_gradients(network: Network, vector: Tensor, x: Tensor) -> None:
    name, classes = f"network {network.source.name!r}", network.classes
    theta, images, labels = vector.clone().requires_grad_(), x.clone().requires_grad_(), torch.eye(classes)
    with Seed(0).scope():
        direction = torch.randn(network.parameters)
    with Seed(0).scope(), explained(f"differentiating {name} twice, as matchers do,"):
        loss = soft_cross_entropy(network.apply(theta, images), labels[torch.arange(len(x)) % classes])
        first = grad(loss, theta, create_graph=True)[0][: network.parameters]
        second = grad(first @ direction, images)[0]
    require(first.isfinite().all() and first.any(), f"no finite gradient reaches the parameters of {name}")
    require(second.isfinite().all() and second.any(), f"{name} has no finite second derivatives by its images")
