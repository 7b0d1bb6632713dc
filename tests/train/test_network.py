"""Networks as functions of flat vectors: the same numbers as the modules they stand for."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import pytest
import torch
from ddbench_networks import ConvNet, default_depth
from torch import nn
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual

from ddbench import Network, Seed, UsageError

CIFAR, CLASSES = (3, 8, 8), 4


def network(norm: str = "instance", dtype: torch.dtype = torch.float64) -> Network:
    return Network(ConvNet(width=5, depth=2, norm=norm), CIFAR, CLASSES, dtype=dtype)


def module_of(net: Network, vector: torch.Tensor) -> nn.Module:
    """An ordinary module with the weights of a vector, put there in the order of its own parameters."""
    module = net.source.build(net.shape, net.classes).to(net.dtype)
    tensors = [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]
    position = 0
    with torch.no_grad():
        for tensor in tensors:
            tensor.copy_(vector[position : position + tensor.numel()].view_as(tensor))
            position += tensor.numel()
    assert position == len(vector)
    return module


def images(n: int = 6) -> torch.Tensor:
    return torch.randn(n, *CIFAR, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


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


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
@pytest.mark.parametrize("train", [True, False])
def test_apply_gives_the_logits_of_the_module(norm, train):
    net = network(norm)
    vector = net.init(Seed(1)) * 1.5
    expected = module_of(net, vector).train(train)(images())
    torch.testing.assert_close(net.apply(vector, images(), train=train), expected, rtol=1e-12, atol=1e-12)


def test_gradient_of_the_vector_is_that_of_the_modules_parameters():
    net = network()
    vector = net.init(Seed(1)).requires_grad_()
    module = module_of(net, vector.detach())
    (flat,) = torch.autograd.grad(net.apply(vector, images()).square().sum(), vector)
    expected = torch.autograd.grad(module(images()).square().sum(), list(module.parameters()))
    torch.testing.assert_close(flat, torch.cat([g.flatten() for g in expected]), rtol=1e-11, atol=1e-11)


def test_features_are_what_the_classifier_sees():
    net = network()
    vector = net.init(Seed(1))
    module = module_of(net, vector)
    features = net.features(vector, images())
    torch.testing.assert_close(features, module.features(images()), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(module.classifier(features), net.apply(vector, images()), rtol=1e-12, atol=1e-12)


def test_activations_are_the_maps_after_each_block():
    net = network("batch")
    vector = net.init(Seed(1))
    module = module_of(net, vector)
    first = module.body[0](images())
    second = module.body[1](first)
    activations = net.activations(vector, images())
    assert isinstance(activations, tuple)
    for made, expected in zip(activations, (first, second), strict=True):
        torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(activations[-1].flatten(1), net.features(vector, images()))


def test_batch_norm_buffers_ride_at_the_end_and_move_as_in_the_module():
    net = network("batch")
    vector = net.init(Seed(1))
    assert net.length == net.parameters + 4 * 5  # mean and variance of five channels, twice
    module = module_of(net, vector).train()
    for _ in range(3):
        module(images())
        _, buffers = net.apply_with_buffers(vector, images())
        vector = torch.cat([vector[: net.parameters], buffers])
    expected = torch.cat([b.flatten() for b in module.buffers() if b.is_floating_point()])
    torch.testing.assert_close(vector[net.parameters :], expected, rtol=1e-12, atol=1e-12)
    assert not buffers.requires_grad


def test_apply_leaves_the_vector_as_it_was():
    net = network("batch")
    vector = net.init(Seed(1))
    before = vector.clone()
    net.apply_with_buffers(vector, images())
    net.apply(vector, images())
    assert torch.equal(vector, before)


def test_network_without_buffers_returns_none_of_them():
    net = network()
    logits, buffers = net.apply_with_buffers(net.init(Seed(0)), images())
    assert logits.shape == (6, CLASSES)
    assert len(buffers) == 0


def test_evaluation_mode_does_not_outlast_its_call():
    net = network("batch")
    vector = net.init(Seed(1))
    training = net.apply(vector, images())
    evaluation = net.apply(vector, images(), train=False)
    assert not torch.allclose(training, evaluation)
    assert torch.equal(net.apply(vector, images()), training)


def test_mode_is_that_of_the_call_whatever_method_was_called_before():
    net, fresh = network("batch"), network("batch")
    vector = net.init(Seed(1))
    for method in ("features", "apply", "activations", "features"):
        for train in (False, True, False):
            again, expected = (getattr(n, method)(vector, images(), train=train) for n in (net, fresh))
            for one, other in zip(again, expected, strict=True):
                assert torch.equal(one, other)
        fresh = network("batch")


def test_layers_are_views_of_the_vector_by_the_modules_names():
    net = network("batch")
    vector = net.init(Seed(1))
    layers = net.layers(vector)
    module = module_of(net, vector)
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    assert list(layers)[: len(list(module.parameters()))] == [name for name, _ in module.named_parameters()]
    for name, layer in layers.items():
        assert torch.equal(layer, tensors[name])
    layers["classifier.bias"].fill_(17.0)
    assert (vector == 17.0).sum() == CLASSES


def test_vector_of_a_module_is_the_vector_that_made_it():
    net = network("batch")
    vector = net.init(Seed(4))
    assert torch.equal(net.vector(module_of(net, vector)), vector)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_stacked_vectors_are_applied_in_one_call(norm):
    net = network(norm)
    vectors = torch.stack([net.init(Seed(0) / i) for i in range(3)])
    x = images()
    together = torch.vmap(lambda v: net.apply(v, x))(vectors)
    for vector, logits in zip(vectors, together, strict=True):
        torch.testing.assert_close(logits, net.apply(vector, x), rtol=1e-11, atol=1e-11)


def test_gradients_of_stacked_vectors_are_taken_in_one_call():
    net = network()
    vectors = torch.stack([net.init(Seed(0) / i) for i in range(3)])
    x = images()

    def loss(vector):
        return net.apply(vector, x).square().sum()

    together = torch.vmap(torch.func.grad(loss))(vectors)
    for vector, gradient in zip(vectors, together, strict=True):
        torch.testing.assert_close(gradient, torch.func.grad(loss)(vector), rtol=1e-10, atol=1e-10)


def test_template_is_built_without_drawing_a_number():
    net = network("batch", torch.float32)
    vector = torch.zeros(net.length)
    fresh = network("batch", torch.float32)
    state = torch.get_rng_state()
    assert fresh.parameters
    fresh.layers(vector)
    fresh.apply(vector, images(2).float())
    fresh.features(vector, images(2).float())
    assert torch.equal(torch.get_rng_state(), state)


def test_initialisation_is_a_function_of_its_seed_and_disturbs_no_other_draw():
    state = torch.get_rng_state()
    first, again, other = network().init(Seed(1)), network().init(Seed(1)), network().init(Seed(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_initialisation_is_the_modules_own():
    net = network("instance", torch.float32)
    torch.manual_seed((Seed(1) / "a").integer)
    module = net.source.build(net.shape, net.classes)
    expected = torch.cat([p.detach().flatten() for p in module.parameters()])
    assert torch.equal(net.init(Seed(1) / "a"), expected)


def test_vectors_have_the_networks_dtype():
    assert network(dtype=torch.float64).init(Seed(0)).dtype == torch.float64
    assert network(dtype=torch.float32).init(Seed(0)).dtype == torch.float32


def test_identity_differs_by_whatever_changes_a_vector():
    nets = [
        network(),
        network("batch"),
        network(dtype=torch.float32),
        Network(ConvNet(width=5, depth=2), CIFAR, 5, dtype=torch.float64),
        Network(ConvNet(width=5, depth=2), (1, 8, 8), CLASSES, dtype=torch.float64),
        Network(ConvNet(width=6, depth=2), CIFAR, CLASSES, dtype=torch.float64),
    ]
    identities = [str(net.identity) for net in nets]
    assert len(set(identities)) == len(nets)
    assert network().identity == network().identity


@dataclass(frozen=True)
class Bare:
    name = "bare"

    def build(self, shape, classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))


def test_network_without_features_says_so():
    net = Network(Bare(), CIFAR, CLASSES)
    assert net.apply(net.init(Seed(0)), images().float()).shape == (6, CLASSES)
    with pytest.raises(UsageError, match=r"network 'bare' has no features\(x\) method"):
        net.features(net.init(Seed(0)), images().float())
    with pytest.raises(UsageError, match=r"network 'bare' has no activations\(x\) method"):
        net.activations(net.init(Seed(0)), images().float())


@dataclass(frozen=True)
class Made:
    """A linear network with something before it."""

    name = "made"
    before: type[nn.Module] = nn.Identity

    def build(self, shape, classes):
        return nn.Sequential(self.before(), *Bare().build(shape, classes))


class Counting(nn.Module):
    """Batch norm that averages over all calls, and so reads how many there were."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(CIFAR[0], momentum=None)

    def forward(self, x):
        return self.norm(x)


class Scaled(nn.Module):
    """Looks at the value of a parameter."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(()))

    def forward(self, x):
        return x * self.scale if self.scale > 0.5 else x


def test_how_often_batch_norm_was_called_is_no_hidden_argument():
    net = Network(Made(Counting), CIFAR, CLASSES, dtype=torch.float64)
    vector = net.init(Seed(0))
    logits, buffers = net.apply_with_buffers(vector, images())
    assert not torch.equal(buffers, vector[net.parameters :])
    for _ in range(3):
        again = net.apply_with_buffers(vector, images())
        assert torch.equal(again[0], logits)
        assert torch.equal(again[1], buffers)


def test_stacked_logits_are_those_of_each_vector():
    net = network("batch")
    vectors = torch.stack([net.init(Seed(0) / i) for i in range(3)])
    for train in (True, False):
        together = net.stacked(vectors, images(), train=train)
        alone = torch.stack([net.apply(v, images(), train=train) for v in vectors])
        torch.testing.assert_close(together, alone, rtol=1e-11, atol=1e-11)
    assert not torch.allclose(net.stacked(vectors, images()), together)


def test_stacked_vectors_draw_separate_dropout_masks():
    net = Network(Made(nn.Dropout), CIFAR, CLASSES)
    vectors, x = torch.stack([net.init(Seed(0))] * 2), images().float()
    with Seed(3).scope():
        one, other = net.stacked(vectors, x)
    assert not torch.allclose(one, other)
    one, other = net.stacked(vectors, x, train=False)
    assert torch.equal(one, other)


def test_network_that_cannot_be_stacked_says_so_by_name():
    net = Network(Made(Scaled), CIFAR, CLASSES)
    said = r"network .made\(before=.*Scaled'>\). cannot be used for several vectors at once \(vmap: .*control flow\)"
    with pytest.raises(UsageError, match=said):
        net.stacked(torch.stack([net.init(Seed(i)) for i in range(2)]), images().float())


def test_stacking_is_possible_before_anything_else_is_asked_of_a_network():
    length = Network(Made(Counting), CIFAR, CLASSES).length
    net = Network(Made(Counting), CIFAR, CLASSES)
    assert net.stacked(torch.rand(2, length), images().float()).shape == (2, 6, CLASSES)


def test_what_fails_for_one_vector_too_is_not_blamed_on_stacking():
    net = network()
    with pytest.raises(RuntimeError, match="channels"):
        net.stacked(torch.stack([net.init(Seed(0))] * 2), images()[:, :2])


@dataclass(frozen=True)
class Tied:
    """A buffer of whole numbers that the forward pass reads, as relative positions in attention are."""

    name = "tied"

    def build(self, shape, classes):
        class Module(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(shape[0] * shape[1] * shape[2], classes)
                self.register_buffer("order", torch.arange(classes).flip(0))

            def forward(self, x):
                return self.linear(x.flatten(1))[:, self.order]

        return Module()


def test_buffer_of_whole_numbers_keeps_its_values():
    net = Network(Tied(), CIFAR, CLASSES)
    vector = net.init(Seed(0))
    expected = module_of(net, vector)(images().float())
    torch.testing.assert_close(net.apply(vector, images().float()), expected)


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
