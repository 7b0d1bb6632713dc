"""The ConvNet of the field: its published size and layers, and the pooling that it halves images by."""

from __future__ import annotations

import warnings

import pytest
import torch
from ddbench_networks import ConvNet, default_depth
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual

from ddbench import Network, UsageError


@pytest.mark.parametrize(
    ("shape", "classes", "published"),
    [
        ((1, 28, 28), 10, 317_706),
        ((3, 32, 32), 10, 320_010),
        ((3, 32, 32), 100, 504_420),
        ((3, 64, 64), 200, 857_160),
        ((3, 64, 64), 1000, 2_496_360),
    ],
)
def test_convnet_has_the_published_number_of_parameters(shape, classes, published):
    net = Network(ConvNet(), shape, classes)
    assert net.parameters == published == net.length


@pytest.mark.parametrize(("side", "depth"), [(8, 2), (16, 2), (28, 3), (32, 3), (64, 4), (128, 5)])
def test_default_depth_is_three_for_small_images_and_one_more_per_doubling(side, depth):
    assert default_depth((3, side, side)) == depth


def test_convnet_is_the_published_sequence_of_layers():
    module = ConvNet(width=7).build((1, 28, 28), 10)
    kinds = [[type(layer).__name__ for layer in block] for block in module.body]
    assert kinds == [["Conv2d", "GroupNorm", "ReLU", "HalvingPool"]] * 3
    assert module.body[0][0].padding == (3, 3)  # 28 pixels become 32
    assert module.body[1][0].padding == (1, 1)
    assert module.body[0][1].num_groups == 7
    assert module.body[0][1].affine
    assert module.classifier.in_features == 7 * 4 * 4


def test_too_deep_a_convnet_is_refused():
    with pytest.raises(UsageError, match="depth 5 is too deep for images of 8x8"):
        ConvNet(depth=5).build((3, 8, 8), 10)


@pytest.mark.parametrize("shape", [(3, 5, 6, 8), (20, 8, 32, 32), (20, 16, 20, 30), (20, 16, 21, 32)])
def test_halving_is_average_pooling_with_all_its_derivatives(shape):
    """Below and above the size from which it is computed by additions; odd sides lose their last row."""
    from ddbench_networks.blocks import HalvingPool

    pool = HalvingPool()
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    torch.testing.assert_close(pool(x), torch.nn.functional.avg_pool2d(x, 2), rtol=1e-14, atol=1e-14)
    weights = torch.linspace(-1, 1, pool(x).numel(), dtype=torch.float64).view_as(pool(x))
    ours, theirs = (
        torch.autograd.grad((p(x).square() * weights).sum(), x)[0]
        for p in (pool, lambda x: torch.nn.functional.avg_pool2d(x, 2))
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
    stacked = torch.stack([x, 2 * x]).detach()
    assert torch.equal(torch.func.vmap(pool)(stacked)[1], pool(stacked[1]))
    with warnings.catch_warnings(), dual_level():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, when forward mode is first used
        tangent = unpack_dual(pool(make_dual(x.detach(), stacked[1]))).tangent
    torch.testing.assert_close(tangent, pool(stacked[1]), rtol=1e-13, atol=1e-13)
