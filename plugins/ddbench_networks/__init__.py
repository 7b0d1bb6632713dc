"""Network architectures of the field."""

from __future__ import annotations

from ddbench import hookimpl
from ddbench_networks.classic import MLP, VGG11, AlexNet, LeNet
from ddbench_networks.convnet import ConvNet, default_depth
from ddbench_networks.published import Torchvision
from ddbench_networks.resnet import ResNet18, ResNet18AP
from ddbench_networks.vit import ViT, default_patch

__all__ = [
    "MLP",
    "VGG11",
    "AlexNet",
    "ConvNet",
    "LeNet",
    "ResNet18",
    "ResNet18AP",
    "Torchvision",
    "ViT",
    "default_depth",
    "default_patch",
]


@hookimpl
def register_networks(register) -> None:
    for network in (ConvNet, MLP, LeNet, AlexNet, VGG11, ResNet18, ResNet18AP, ViT, Torchvision):
        register(network)
