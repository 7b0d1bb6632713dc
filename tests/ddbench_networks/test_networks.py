"""Every built-in architecture: published sizes, the numbers of independent code, and the contract of a network."""

from __future__ import annotations

from dataclasses import make_dataclass
from math import prod

import pytest
import torch
import torchvision
from ddbench_networks import MLP, VGG11, AlexNet, ConvNet, LeNet, ResNet18, ResNet18AP, Torchvision, ViT, default_patch
from ddbench_networks.vit import Attention
from modules import module_of
from torch import nn
from torch.autograd import grad
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, relu

from ddbench import Network, Seed, UsageError
from ddbench.base.options import make
from ddbench.plugins import registry
from ddbench.testing import check_network

SMALL, GREY, LARGE, TINY = (3, 32, 32), (1, 28, 28), (3, 64, 64), (1, 8, 8)

# Versions of all architectures that a CPU runs at once, and the images that they take.
NARROW = {
    "convnet": (ConvNet(width=6), (SMALL, GREY, LARGE, TINY)),
    "convnet batch leakyrelu max": (ConvNet(width=6, norm="batch", activation="leakyrelu", pooling="max"), (SMALL,)),
    "convnet group sigmoid none": (ConvNet(width=8, norm="group", activation="sigmoid", pooling="none"), (GREY,)),
    "convnet layer swish avg": (ConvNet(width=6, norm="layer", activation="swish"), (SMALL, GREY, TINY)),
    "convnet no norm": (ConvNet(width=6, norm="none", pooling="max"), (SMALL,)),
    "mlp": (MLP(width=9, depth=3), (SMALL, GREY, LARGE, TINY)),
    "lenet": (LeNet(), (SMALL, GREY, LARGE)),
    "alexnet": (AlexNet(width=6), (SMALL, GREY, LARGE, TINY)),
    "alexnet batch": (AlexNet(width=5, norm="batch"), (SMALL, TINY)),
    "vgg11": (VGG11(width=4), (SMALL, GREY, LARGE)),
    "vgg11 batch": (VGG11(width=4, norm="batch"), (SMALL, GREY)),
    "resnet18": (ResNet18(width=4), (SMALL, GREY, LARGE)),
    "resnet18 batch": (ResNet18(width=4, norm="batch"), (SMALL, GREY, TINY)),
    "resnet18-ap": (ResNet18AP(width=4), (SMALL, GREY, LARGE)),
    "resnet18-ap batch": (ResNet18AP(width=4, norm="batch"), (SMALL, GREY, TINY)),
    "vit": (ViT(dim=12, depth=2, heads=3), (SMALL, GREY, LARGE, TINY)),
    "torchvision": (Torchvision("shufflenet_v2_x0_5"), (SMALL, LARGE)),
}
CASES = [pytest.param(s, shape, id=f"{n} {shape}") for n, (s, shapes) in NARROW.items() for shape in shapes]
ONCE = [pytest.param(s, shapes[-1], id=n) for n, (s, shapes) in NARROW.items()]
OURS = [case for case in ONCE if case.id != "torchvision"]


def setting(source, shape, classes: int = 3, n: int = 4, v: int = 2):
    """A network in float64, ``v`` vectors of it that differ in every number, and ``n`` images."""
    net = Network(source, shape, classes, dtype=torch.float64)
    vectors = torch.stack([net.init(Seed(0) / i) for i in range(v)])
    with Seed(1).scope():
        vectors[:, : net.parameters] += 0.02 * torch.randn(v, net.parameters)
        return net, vectors, torch.randn(n, *shape, dtype=torch.float64)


def floats(module: nn.Module) -> list[torch.Tensor]:
    return [b for b in module.buffers() if b.is_floating_point()]


@torch.no_grad()
def copy(sources, targets) -> None:
    for source, target in zip(list(sources), list(targets), strict=True):
        target.copy_(source)


def same(one, other, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


# The contract


def test_every_registered_network_is_tested_here():
    built_in = {name for name in registry().names("network") if registry().get("network", name).package == "ddbench"}
    assert built_in == {source.name for source, _ in NARROW.values()}


@pytest.mark.parametrize(("source", "shape"), CASES)
def test_network_keeps_its_contract_for_images_of(source, shape):
    check_network(source, shape=shape, classes=5)


@pytest.mark.parametrize("name", sorted({source.name for source, _ in NARROW.values()}))
def test_network_of_published_size_keeps_its_contract(name):
    check_network(registry().get("network", name).cls)


class Doubled(torch.autograd.Function):
    """The identity, with a rule for vmap that is wrong."""

    forward = staticmethod(lambda x: x.clone())
    setup_context = staticmethod(lambda context, inputs, output: None)
    backward = staticmethod(lambda context, slope: slope)
    vmap = staticmethod(lambda info, dims, x: (2 * x, dims[0]))


def counted(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    module.calls = getattr(module, "calls", 0) + 1
    return module.inner(x) * module.calls


FLAWS = {
    "keeps a count": (counted, r"gives other logits in training mode for the same seed; keep nothing between calls"),
    "draws in place": (
        lambda module, x: module.inner(x) * torch.empty(len(x), 1).bernoulli_(0.5),
        r"stacking vectors of network 'flawed' in training mode raised UsageError: network 'flawed' cannot be used for",
    ),
    "has a wrong rule for vmap": (
        lambda module, x: Doubled.apply(module.inner(x)),
        r"network 'flawed' gives other logits in training mode when vectors are stacked",
    ),
}
MAPS = {
    "are a list": lambda module, x: [module.inner(x)],
    "are none": lambda module, x: (),
    "are not finite": lambda module, x: (module.inner(x), module.inner(x) / 0),
    "mix up the images": lambda module, x: (module.inner(x).T,),
    "are not tensors": lambda module, x: ("map",),
}


class Flawed(nn.Module):
    """A linear network with something done to its output in training."""

    def __init__(self, change):
        super().__init__()
        self.inner, self.change = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), change

    def forward(self, x):
        return self.change(self, x) if self.training else self.inner(x).sin()


def flawed(build) -> object:
    fields = {"name": "flawed", "build": lambda self, shape, classes: build()}
    return make_dataclass("Flawed", [], namespace=fields, frozen=True)()


@pytest.mark.parametrize("flaw", FLAWS)
def test_kit_refuses_a_network_that_in_training(flaw):
    change, said = FLAWS[flaw]
    with pytest.raises(AssertionError, match=said):
        check_network(flawed(lambda: Flawed(change)), shape=TINY, classes=3)


@pytest.mark.parametrize("flaw", MAPS)
def test_kit_refuses_activations_that(flaw):
    class Mapped(Flawed):
        def activations(self, x):
            return MAPS[flaw](self, x)

    source = flawed(lambda: Mapped(lambda module, x: module.inner(x).sin()))
    with pytest.raises(AssertionError, match=r"activations\(x\) of network 'flawed' must be a tuple of finite tensors"):
        check_network(source, shape=TINY, classes=3)


def test_kit_takes_the_network_without_the_flaws_above():
    check_network(flawed(lambda: Flawed(lambda module, x: module.inner(x).sin())), shape=TINY, classes=3)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet50", "vgg11_bn", "densenet121", "mobilenet_v2", "googlenet", "squeezenet1_1"])
def test_torchvision_model_keeps_the_contract(model):
    check_network(Torchvision(model))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("source", "shape"), ONCE)
def test_stacked_vectors_give_what_each_gives_alone(source, shape, train):
    net, vectors, x = setting(source, shape, v=3)
    together = net.stacked(vectors, x, train=train)
    assert together.shape == (3, 4, 3)
    same(together, torch.stack([net.apply(v, x, train=train) for v in vectors]), 1e-9)


@pytest.mark.parametrize(("source", "shape"), ONCE)
def test_gradients_of_stacked_vectors_are_those_of_each_alone(source, shape):
    net, vectors, x = setting(source, shape)

    def loss(vector):
        return net.apply(vector, x).sin().sum()

    alone = torch.stack([torch.func.grad(loss)(v) for v in vectors])
    same(torch.vmap(torch.func.grad(loss))(vectors), alone, 1e-8)
    leaf = vectors.clone().requires_grad_()
    same(grad(net.stacked(leaf, x).sin().sum(), leaf)[0], alone, 1e-8)


@pytest.mark.parametrize(("source", "shape"), ONCE)
def test_second_derivatives_are_those_of_finite_differences(source, shape):
    net, vectors, x = setting(source, shape, v=1)
    with Seed(2).scope():
        towards, direction = torch.randn(net.length, dtype=x.dtype), torch.randn_like(x)

    def slope(images, *, again=False):
        theta = vectors[0].clone().requires_grad_()
        return grad(net.apply(theta, images).sin().sum(), theta, create_graph=again)[0] @ towards

    leaf = x.clone().requires_grad_()
    exact = (grad(slope(leaf, again=True), leaf)[0] * direction).sum()
    steps = (1e-6, 1e-7, 1e-8)  # of which one is too short to reach the next kink of a ReLU
    estimates = [(slope(x + s * direction) - slope(x - s * direction)) / (2 * s) for s in steps]
    assert any(torch.isclose(estimate, exact, rtol=1e-4) for estimate in estimates), (exact, estimates)
    assert exact != 0


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("source", "shape"), ONCE)
def test_apply_features_and_activations_are_those_of_the_module(source, shape, train):
    net, (vector,), x = setting(source, shape, v=1)
    module = module_of(net, vector).train(train)
    same(net.apply(vector, x, train=train), module_of(net, vector).train(train)(x))
    same(net.features(vector, x, train=train), module_of(net, vector).train(train).features(x))
    for ours, expected in zip(net.activations(vector, x, train=train), module.activations(x), strict=True):
        same(ours, expected)


@pytest.mark.parametrize(("source", "shape"), OURS)
def test_classifier_of_the_features_of_the_last_activation_gives_the_logits(source, shape):
    net, (vector,), x = setting(source, shape, v=1)
    module, last = module_of(net, vector), net.activations(vector, x)[-1]
    features = net.features(vector, x)
    embeddings = [last.flatten(1)] if last.ndim == 2 else [last.flatten(1), last.flatten(2).mean(2)]
    if source.name == "vit":
        embeddings = [module.norm(last[:, 0])]
    assert any(e.shape == features.shape and torch.allclose(e, features, rtol=1e-12) for e in embeddings)
    same(module.classifier(features), net.apply(vector, x))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (ConvNet(width=6), [(6, 16, 16), (6, 8, 8), (6, 4, 4)]),
        (ConvNet(width=6, pooling="none"), [(6, 32, 32)] * 3),
        (MLP(width=9, depth=3), [(9,)] * 3),
        (LeNet(), [(6, 14, 14), (16, 5, 5), (120,), (84,)]),
        (AlexNet(width=8), [(8, 16, 16), (12, 8, 8), (12, 4, 4)]),
        (VGG11(width=4), [(4, 16, 16), (8, 8, 8), (16, 4, 4), (32, 2, 2), (32, 1, 1)]),
        (ResNet18(width=4), [(4, 32, 32), (8, 16, 16), (16, 8, 8), (32, 4, 4)]),
        (ResNet18AP(width=4), [(4, 32, 32), (8, 16, 16), (16, 8, 8), (32, 4, 4)]),
        (ViT(dim=12, depth=2), [(65, 12)] * 2),
        (Torchvision("resnet18"), [(64, 8, 8), (128, 4, 4), (256, 2, 2), (512, 1, 1)]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_activations_are_the_maps_after_each_block(source, expected):
    net = Network(source, SMALL, 3)
    maps = net.activations(net.init(Seed(0)), torch.randn(2, *SMALL))
    assert [tuple(m.shape) for m in maps] == [(2, *shape) for shape in expected]


@pytest.mark.parametrize("name", ["resnet18 batch", "torchvision"])
def test_training_on_batch_norm_is_a_function_of_its_arguments(name):
    source, shapes = NARROW[name]
    net, (vector,), x = setting(source, shapes[0], v=1)
    first = net.apply_with_buffers(vector, x)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(net.apply_with_buffers(vector, x), first, strict=True))
    module = module_of(net, vector).train()
    module(x)
    same(first[1], torch.cat([b.flatten() for b in floats(module)]))
    assert net.length - net.parameters == len(first[1]) > 0


# Sizes


def convolution(inputs: int, outputs: int, kernel: int, *, bias: bool = True) -> int:
    return outputs * (inputs * kernel**2 + bias)


def affine(*channels: int) -> int:
    return 2 * sum(channels)


def resnet18(channels: int, classes: int, features: int) -> int:
    total = convolution(channels, 64, 3, bias=False) + affine(64)
    for inputs, outputs in ((64, 64), (64, 128), (128, 256), (256, 512)):
        total += convolution(inputs, outputs, 3, bias=False) + 3 * convolution(outputs, outputs, 3, bias=False)
        total += affine(*[outputs] * 4)
        total += (convolution(inputs, outputs, 1, bias=False) + affine(outputs)) * (inputs != outputs)
    return total + (features + 1) * classes


WIDTHS = (64, 128, 256, 256, 512, 512, 512, 512)
VGG = sum(convolution(a, b, 3) for a, b in zip((3, *WIDTHS), WIDTHS, strict=False)) + affine(*WIDTHS) + 513 * 10
ALEX = [(3, 128, 5), (128, 192, 5), (192, 256, 3), (256, 192, 3), (192, 192, 3)]
ALEXNET = sum(convolution(*layer) for layer in ALEX) + (192 * 4 * 4 + 1) * 10
LAYER_NORM = 320_010 + 2 * 128 * (32**2 + 16**2 + 8**2 - 3)  # one number per pixel of each map


@pytest.mark.parametrize(
    ("source", "shape", "classes", "expected"),
    [
        (ConvNet(norm="batch"), SMALL, 10, 320_010),
        (ConvNet(norm="none"), SMALL, 10, 320_010 - affine(128, 128, 128)),
        (ConvNet(norm="layer"), SMALL, 10, LAYER_NORM),
        (ConvNet(pooling="none"), SMALL, 10, 320_010 + 128 * (32**2 - 4**2) * 10),
        (MLP(), GREY, 10, 118_282),
        (MLP(), SMALL, 10, 3073 * 128 + 129 * 128 + 129 * 10),
        (LeNet(), GREY, 10, 61_706),
        (LeNet(), SMALL, 10, 62_006),
        (AlexNet(), SMALL, 10, ALEXNET),
        (AlexNet(norm="batch"), SMALL, 10, ALEXNET + affine(*(outputs for _, outputs, _ in ALEX))),
        (VGG11(), SMALL, 10, VGG),
        (VGG11(norm="batch"), SMALL, 10, 9_231_114),
        (ResNet18(norm="batch"), SMALL, 10, 11_173_962),
        (ResNet18(), GREY, 10, resnet18(1, 10, 512)),
        (ResNet18(), LARGE, 200, resnet18(3, 200, 512)),
        (ResNet18AP(), SMALL, 10, resnet18(3, 10, 512 * 4 * 4)),
        (ResNet18AP(norm="batch"), GREY, 10, resnet18(1, 10, 512 * 3 * 3)),
        (ViT(patch=16), (3, 224, 224), 1000, 5_717_416),  # DeiT-Ti
        (Torchvision("resnet18"), (3, 224, 224), 1000, 11_689_512),
        (Torchvision("vgg11"), (3, 224, 224), 1000, 132_863_336),
        (Torchvision("vit_b_16"), (3, 224, 224), 1000, 86_567_656),
    ],
    ids=lambda value: str(value) if not isinstance(value, int) else "",
)
def test_number_of_parameters_is_the_published_one(source, shape, classes, expected):
    assert Network(source, shape, classes).parameters == expected


def test_counts_above_agree_with_the_published_ones():
    assert resnet18(3, 10, 512) == 11_173_962
    assert VGG == 9_231_114
    assert ALEXNET == 1_872_202


# Independent numbers


def plain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers, nn.Flatten())


@pytest.mark.parametrize(
    ("source", "shape", "other"),
    [
        (
            ConvNet(width=8, depth=2, norm="group", activation="leakyrelu", pooling="max"),
            TINY,
            lambda: plain(
                *(nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.LeakyReLU(0.01), nn.MaxPool2d(2, 2)),
                *(nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.LeakyReLU(0.01), nn.MaxPool2d(2, 2)),
            ).append(nn.Linear(8 * 2 * 2, 3)),
        ),
        (
            ConvNet(width=4, depth=2, norm="layer", activation="sigmoid"),
            GREY,
            lambda: plain(
                *(nn.Conv2d(1, 4, 3, padding=3), nn.LayerNorm((4, 32, 32)), nn.Sigmoid(), nn.AvgPool2d(2, 2)),
                *(nn.Conv2d(4, 4, 3, padding=1), nn.LayerNorm((4, 16, 16)), nn.Sigmoid(), nn.AvgPool2d(2, 2)),
            ).append(nn.Linear(4 * 8 * 8, 3)),
        ),
        (
            ConvNet(width=4, depth=1, norm="batch", activation="swish", pooling="none"),
            TINY,
            lambda: plain(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), Swish()).append(nn.Linear(4 * 8 * 8, 3)),
        ),
        (
            ConvNet(width=4, depth=1),
            TINY,
            lambda: plain(
                nn.Conv2d(1, 4, 3, padding=1), nn.InstanceNorm2d(4, affine=True), nn.ReLU(), nn.AvgPool2d(2)
            ).append(nn.Linear(4 * 4 * 4, 3)),
        ),
        (
            LeNet(),
            GREY,
            lambda: plain(
                *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
                *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
            ).extend([nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 3)]),
        ),
        (
            AlexNet(width=4, norm="batch"),
            GREY,
            lambda: plain(
                *(nn.Conv2d(1, 4, 5, padding=4), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
                *(nn.Conv2d(4, 6, 5, padding=2), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
                *(nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
                *(nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
                *(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
            ).append(nn.Linear(6 * 4 * 4, 3)),
        ),
        (
            MLP(width=5),
            TINY,
            lambda: nn.Sequential(
                *(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3))
            ),
        ),
    ],
    ids=["convnet group", "convnet layer", "convnet batch", "convnet instance", "lenet", "alexnet", "mlp"],
)
@pytest.mark.parametrize("train", [True, False])
def test_network_is_the_plain_sequence_of_layers(source, shape, other, train):
    net, (vector,), x = setting(source, shape, v=1)
    sequence = other().double()
    copy(net.layers(vector).values(), [*sequence.parameters(), *floats(sequence)])
    same(net.apply(vector, x, train=train), sequence.train(train)(x))


class Swish(nn.Module):
    def forward(self, x):
        return x / (1 + (-x).exp())


@pytest.mark.parametrize("train", [True, False])
def test_resnet18_is_torchvisions_with_another_stem(train):
    net, (vector,), x = setting(ResNet18(norm="batch"), SMALL, n=2, v=1)
    other = torchvision.models.resnet18(num_classes=3).double()
    other.conv1, other.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False).double(), nn.Identity()
    copy(net.layers(vector).values(), [*other.parameters(), *floats(other)])
    same(net.apply(vector, x, train=train), other.train(train)(x))


def test_instance_norm_of_resnet18_is_that_of_the_single_image():
    """With statistics of its own batch of one image, batch norm is instance norm."""
    instance, (vector,), x = setting(ResNet18(width=4), SMALL, v=1)
    batch = Network(ResNet18(width=4, norm="batch"), SMALL, 3, dtype=torch.float64)
    alone = batch.init(Seed(0))
    alone[: batch.parameters] = vector
    same(instance.apply(vector, x), torch.cat([batch.apply(alone, image[None]) for image in x]))


@pytest.mark.parametrize("train", [True, False])
def test_resnet18_ap_halves_maps_by_averages(train):
    """The residual block of the second stage, written out."""
    net, (vector,), x = setting(ResNet18AP(width=4, norm="batch"), SMALL, v=1)
    module = module_of(net, vector).train(train)
    given = net.activations(vector, x, train=train)[0]
    first, second = module.body[1]
    one, norm_one, _, _, two, norm_two = first.main
    assert {one.stride, two.stride, first.shortcut[0].stride} == {(1, 1)}
    main = norm_two(two(avg_pool2d(relu(norm_one(one(given))), 2)))
    made = second(relu(main + first.shortcut[2](avg_pool2d(first.shortcut[0](given), 2))))
    same(made, net.activations(vector, x, train=train)[1])
    assert second.shortcut(given) is given


def test_vgg11_is_torchvisions_up_to_the_classifier():
    net, (vector,), x = setting(VGG11(norm="batch"), LARGE, n=2, v=1)
    with torch.device("meta"):
        other = torchvision.models.vgg11_bn().features
    other = other.double().to_empty(device="cpu")
    layers = net.layers(vector)
    own = [tensor for name, tensor in layers.items() if not name.startswith("classifier")]
    copy(own, [*other.parameters(), *floats(other)])
    for train in (False, True):
        expected = adaptive_avg_pool2d(other.train(train)(x), 1).flatten(1)
        same(net.features(vector, x, train=train), expected)


@pytest.mark.parametrize("heads", [1, 3])
def test_attention_is_that_of_torch(heads):
    with Seed(0).scope():
        ours, other = Attention(12, heads).double(), nn.MultiheadAttention(12, heads, batch_first=True).double()
        tokens = torch.randn(2, 7, 12, dtype=torch.float64)
    copy(ours.parameters(), other.parameters())
    same(ours(tokens), other(tokens, tokens, tokens, need_weights=False)[0])


def test_vit_is_torchs_encoder_on_patches_and_a_class_token():
    net, (vector,), x = setting(ViT(dim=12, depth=2, heads=3), SMALL, v=1)
    module = module_of(net, vector)
    layer = nn.TransformerEncoderLayer(12, 3, 48, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(12, eps=1e-6), enable_nested_tensor=False).double()
    for ours, other in zip(module.body, encoder.layers, strict=True):
        copy(ours.attention.parameters(), other.self_attn.parameters())
        copy(ours.mlp.parameters(), [*other.linear1.parameters(), *other.linear2.parameters()])
        copy(
            [*ours.before.parameters(), *ours.between.parameters()],
            [*other.norm1.parameters(), *other.norm2.parameters()],
        )
    copy(module.norm.parameters(), encoder.norm.parameters())
    patches = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(4, 64, 48)
    embedded = patches @ module.embed.weight.reshape(12, 48).T + module.embed.bias
    tokens = torch.cat([module.token.expand(4, 1, 12), embedded], 1) + module.positions
    same(net.features(vector, x), encoder(tokens)[:, 0])


# Sizes and options that cannot be


@pytest.mark.parametrize(
    ("source", "shape", "said"),
    [
        (ConvNet(depth=6), SMALL, r"depth 6 is too deep for images of 32x32 pixels, .* use a depth of at most 5"),
        (LeNet(), TINY, r"'lenet' cannot take images of 8x8 pixels, .* images of 16x16 pixels and larger ones work"),
        (AlexNet(), (3, 7, 9), r"'alexnet' cannot take images of 7x9 pixels, .* 8x8 pixels and larger ones work"),
        (VGG11(), TINY, r"'vgg11' cannot take images of 8x8 .* 32x32 pixels and larger ones work, and 28x28 ones"),
        (
            ResNet18(),
            TINY,
            r"'resnet18' .* 8x8 pixels, since instance norm .* 9x9 .*, and all sizes with network\.norm=b",
        ),
        (
            ResNet18AP(),
            TINY,
            r"'resnet18-ap' .* since instance norm .* 16x16 pixels .* from 8x8 on with network\.norm=b",
        ),
        (ResNet18AP(norm="batch"), (3, 7, 7), r"cannot take images of 7x7 pixels, .* 8x8 pixels and larger ones work"),
        (ViT(), (3, 7, 7), r"no patch of at least 2x2 pixels .* images of 7x7 .* set network\.patch to 1, 7"),
        (ViT(patch=5), SMALL, r"patches of 5x5 pixels do not divide .* network\.patch can be 1, 2, 4, 8, 16, 32"),
        (Torchvision(), GREY, r"'resnet18' takes images of 3 channels, and these have 1; use another network"),
        (
            Torchvision("vgg11"),
            (3, 28, 28),
            r"'vgg11' cannot be used for images of 28x28 pixels .*takes.* 32x32, 64x64",
        ),
        (Torchvision("vit_b_32"), (3, 28, 28), r"indivisible by patch size.*it takes, for example, 32x32, 64x64"),
        (Torchvision("regnet_y_400mf"), SMALL, r"reads numbers, .*; use another network"),
        (Torchvision("resnet8"), SMALL, r"no classification model called 'resnet8'; did you mean 'resnet18' or"),
        (Torchvision("fcn_resnet50"), SMALL, r"no classification model called 'fcn_resnet50'"),
    ],
    ids=str,
)
def test_images_that_a_network_cannot_take_are_refused_with_a_way_out(source, shape, said):
    with pytest.raises(UsageError, match=said):
        Network(source, shape, 10).parameters


@pytest.mark.parametrize("side", [9, 12, 16, 24])
def test_smallest_images_that_resnets_take_reach_the_logits(side):
    for source in (ResNet18(width=4), ResNet18AP(width=4)):
        if side >= 16 or source.name == "resnet18":
            net, (vector,), x = setting(source, (3, side, side), v=1)
            assert net.apply(vector, x).std(0).min() > 1e-3


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("convnet", {"norm": "group", "width": 6}, "4 groups, and 6 is not a multiple of 4; use a width of 4 or 8"),
        ("convnet", {"norm": "group", "width": 2}, "use a width of 4$"),
        ("convnet", {"activation": "tanh"}, r"network\.activation: Input should be 'relu', 'leakyrelu', 'sigmoid' or"),
        ("vit", {"dim": 16, "heads": 3}, "3 heads cannot divide 16 numbers per token evenly; use a dim of 18"),
        ("vgg11", {"norm": "none"}, r"network\.norm: Input should be 'instance' or 'batch'"),
    ],
)
def test_options_that_cannot_be_are_refused(name, options, said):
    with pytest.raises(UsageError, match=said):
        make(registry().get("network", name).cls, options, "network")


@pytest.mark.parametrize(("side", "patch"), [(8, 2), (16, 2), (28, 4), (32, 4), (48, 6), (64, 8), (96, 12), (224, 28)])
def test_default_patches_divide_an_image_into_about_eight_by_eight(side, patch):
    assert default_patch((3, side, side)) == patch


# torchvision


@pytest.mark.parametrize(
    ("model", "blocks"),
    [("resnet18", ["layer1", "layer2", "layer3", "layer4"]), ("squeezenet1_1", ["features.3", "features.12"])],
)
def test_activations_of_torchvision_models_are_those_of_its_feature_extraction(model, blocks):
    from torchvision.models.feature_extraction import create_feature_extractor

    net, (vector,), x = setting(Torchvision(model), LARGE, v=1)
    module = module_of(net, vector).eval()
    expected = create_feature_extractor(module.model, blocks)(x)
    maps = net.activations(vector, x, train=False)
    for block in blocks:
        assert any(m.shape == expected[block].shape and torch.allclose(m, expected[block]) for m in maps)
    assert len(maps) == {"resnet18": 4, "squeezenet1_1": 8}[model]


@pytest.mark.parametrize("model", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "densenet121"])
def test_last_linear_layer_of_torchvision_models_makes_logits_of_features(model):
    net = Network(Torchvision(model), SMALL, 3)
    vector, x = net.init(Seed(0)), torch.randn(2, *SMALL)
    *_, weight, bias = [t for name, t in net.layers(vector).items() if name.endswith(("weight", "bias"))]
    features = net.features(vector, x, train=False)
    same(features @ weight.T + bias, net.apply(vector, x, train=False), 1e-5)
    assert features.shape == (2, prod(weight.shape) // 3)


def test_activations_of_swin_have_their_channels_first():
    net = Network(Torchvision("swin_t"), SMALL, 3)
    shapes = [tuple(m.shape) for m in net.activations(net.init(Seed(0)), torch.randn(1, *SMALL), train=False)]
    assert shapes[0] == (1, 96, 8, 8)
    assert shapes[-1] == (1, 768, 1, 1)


@pytest.mark.parametrize(
    ("model", "method", "said"),
    [
        ("squeezenet1_1", "features", "'squeezenet1_1' has no features: no linear layer gives its logits"),
        ("googlenet", "activations", "'googlenet' has no activations: its blocks are in no one sequence"),
    ],
)
def test_torchvision_models_without_a_method_say_so_by_name(model, method, said):
    net = Network(Torchvision(model), SMALL, 3)
    with pytest.raises(UsageError, match=said):
        getattr(net, method)(net.init(Seed(0)), torch.randn(2, *SMALL))


def test_torchvision_model_that_draws_in_place_says_that_it_cannot_be_stacked_in_training():
    net = Network(Torchvision("efficientnet_b0"), SMALL, 3)
    vectors = torch.stack([net.init(Seed(0))] * 2)
    said = r"network 'torchvision\(model=efficientnet_b0\)' cannot be used for several vectors at once \(vmap: .*random"
    with pytest.raises(UsageError, match=said):
        net.stacked(vectors, torch.randn(2, *SMALL))
    assert net.stacked(vectors, torch.randn(2, *SMALL), train=False).shape == (2, 2, 3)


def test_vision_transformer_of_torchvision_is_made_for_the_size_and_twice_differentiable():
    net = Network(Torchvision("vit_b_32"), SMALL, 3)
    assert net.layers(torch.empty(net.length, device="meta"))["model.encoder.pos_embedding"].shape == (1, 2, 768)
    theta, x = net.init(Seed(0)).requires_grad_(), torch.randn(1, *SMALL, requires_grad=True)
    (slope,) = grad(net.apply(theta, x)[0, 0], theta, create_graph=True)
    assert grad(slope.sum(), x)[0].isfinite().all()
