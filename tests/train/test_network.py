"""Networks as functions of flat vectors: the same numbers as the modules they stand for."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from ddbench_networks import ConvNet
from modules import Bare, module_of
from torch import nn

from ddbench import Network, Seed, UsageError

SHAPE, CLASSES = (3, 8, 8), 4


def network(norm: str = "instance", dtype: torch.dtype = torch.float64) -> Network:
    return Network(ConvNet(width=5, depth=2, norm=norm), SHAPE, CLASSES, dtype=dtype)


def images(n: int = 6) -> torch.Tensor:
    return torch.randn(n, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


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
        Network(ConvNet(width=5, depth=2), SHAPE, 5, dtype=torch.float64),
        Network(ConvNet(width=5, depth=2), (1, 8, 8), CLASSES, dtype=torch.float64),
        Network(ConvNet(width=6, depth=2), SHAPE, CLASSES, dtype=torch.float64),
    ]
    identities = [str(net.identity) for net in nets]
    assert len(set(identities)) == len(nets)
    assert network().identity == network().identity


def test_network_without_features_says_so():
    net = Network(Bare(), SHAPE, CLASSES)
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
        self.norm = nn.BatchNorm2d(SHAPE[0], momentum=None)

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
    net = Network(Made(Counting), SHAPE, CLASSES, dtype=torch.float64)
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
    net = Network(Made(nn.Dropout), SHAPE, CLASSES)
    vectors, x = torch.stack([net.init(Seed(0))] * 2), images().float()
    with Seed(3).scope():
        one, other = net.stacked(vectors, x)
    assert not torch.allclose(one, other)
    one, other = net.stacked(vectors, x, train=False)
    assert torch.equal(one, other)


def test_network_that_cannot_be_stacked_says_so_by_name():
    net = Network(Made(Scaled), SHAPE, CLASSES)
    said = r"network .made\(before=.*Scaled'>\). cannot be used for several vectors at once \(vmap: .*control flow\)"
    with pytest.raises(UsageError, match=said):
        net.stacked(torch.stack([net.init(Seed(i)) for i in range(2)]), images().float())


def test_stacking_is_possible_before_anything_else_is_asked_of_a_network():
    length = Network(Made(Counting), SHAPE, CLASSES).length
    net = Network(Made(Counting), SHAPE, CLASSES)
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
    net = Network(Tied(), SHAPE, CLASSES)
    vector = net.init(Seed(0))
    expected = module_of(net, vector)(images().float())
    torch.testing.assert_close(net.apply(vector, images().float()), expected)
