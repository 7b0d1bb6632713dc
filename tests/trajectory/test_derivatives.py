"""Derivatives of a student's loss: their formulas against autograd, and the precision that each pass runs with."""

from __future__ import annotations

import pytest
import torch
from ddbench_networks import ConvNet
from float64 import error
from switches import newer
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from unrolls import CLASSES, FULL, RULES, SHAPE, SOURCES, assert_same, rule_case, unrolled

from ddbench import Network, Seed
from ddbench.trajectory import derivatives
from ddbench.trajectory.derivatives import Along, Passes
from ddbench.trajectory.engine import Engine

# torch.func loads parts of torch that are deprecated; the engine silences them while it compiles
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")


# -- formulas --------------------------------------------------------------------------------------------------


def double(source, curvature: bool, precision="float32"):
    """Derivatives along a direction by the formula, and by autograd twice through a plain module."""
    network = Network(source, SHAPE, CLASSES, dtype=torch.float64)
    vector = network.init(Seed(3))
    theta, buffers = vector[: network.parameters], vector[network.parameters :]
    generator = torch.Generator().manual_seed(1)

    def noise(*size):
        return torch.randn(*size, dtype=torch.float64, generator=generator)

    images, labels, u = noise(5, *SHAPE), noise(5, CLASSES).softmax(1), noise(len(theta))
    seen = derivatives.along(derivatives.student(network, precision), curvature, precision)(
        theta, buffers, images, labels, u
    )

    module = source.build(SHAPE, CLASSES).double().train()
    leaves = [t.clone().requires_grad_() for t in (images, labels, theta)]
    pieces = leaves[2].split([p.numel() for p in module.parameters()])
    named = zip(module.named_parameters(), pieces, strict=True)
    parameters = {name: piece.view(p.shape) for (name, p), piece in named}
    loss = cross_entropy(functional_call(module, parameters, (leaves[0],)), leaves[1])
    g = torch.autograd.grad(loss, leaves[2], create_graph=True)[0]
    return seen, (*torch.autograd.grad(g @ u, leaves), g.detach() @ u)


@pytest.mark.parametrize("name", SOURCES)
def test_derivatives_along_a_direction_are_those_of_autograd_twice(name):
    seen, (images, labels, curved, value) = double(SOURCES[name], curvature=True)
    for found, expected in zip(
        (seen.images, seen.labels, seen.curved, seen.value), (images, labels, curved, value), strict=True
    ):
        assert expected.norm() > 0
        assert error(found, expected) < 1e-12


@pytest.mark.parametrize("precision", ["float32", "bf16"])  # by forward mode, and without; float64 is not lowered
def test_without_curvature_the_hessian_product_is_left_out(precision):
    seen, (images, labels, _, value) = double(SOURCES["instance"], curvature=False, precision=precision)
    assert seen.curved is None
    for found, expected in zip((seen.images, seen.labels, seen.value), (images, labels, value), strict=True):
        assert error(found, expected) < 1e-12


# -- passes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "expected"), [("float32", "ieee"), ("tf32", "tf32"), ("bf16", "ieee")])
def test_on_cuda_every_pass_runs_with_the_switches_of_its_precision(precision, expected):
    def gradient(*given):
        return newer()[:3]

    def along(*given):
        return Along(newer()[:3], None, None, None)

    before = newer()
    passes = derivatives.at(precision, Passes(gradient, along), torch.device("cuda"))
    assert passes.gradient() == [expected] * 3
    assert newer() == before
    assert passes.along().images == [expected] * 3
    assert newer() == before
    plain = Passes(gradient, along)
    assert derivatives.at(precision, plain, torch.device("cpu")) is plain


@pytest.fixture
def eager_passes(monkeypatch):
    """As on CUDA, where plain autograd does not say which precision it wants."""

    def passes(self, network, buffers, theta, batches, classes, curvature):
        return {size: derivatives.eagerly(network, curvature, "float32") for size in batches}

    monkeypatch.setattr(Engine, "passes", passes)


@pytest.mark.usefixtures("eager_passes")
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("curvature", ["exact", "zero"])
def test_passes_by_autograd_give_the_gradient_of_every_optimiser(name, curvature):
    c = rule_case(name, augment=FULL, frozen=3)
    seen = c.reverse(optimiser=RULES[name][0], curvature=curvature)
    assert_same(seen, unrolled(c, RULES[name][1], detach_theta=curvature == "zero"))


def test_without_curvature_no_hessian_product_is_computed():
    network = Network(ConvNet(width=4), (3, 32, 32), 10)
    theta, images = network.init(Seed(0)), torch.randn(2, 3, 32, 32)
    given = (theta, theta[:0], images, torch.eye(10)[:2], theta)
    assert derivatives.eagerly(network, False, "float32").along(*given).curved is None
    assert derivatives.eagerly(network, True, "float32").along(*given).curved is not None
