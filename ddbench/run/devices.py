"""Whether a run can be divided over several devices; asked before anything is written."""

from __future__ import annotations

import torch

from ddbench.base.options import label
from ddbench.base.ranks import world
from ddbench.base.seeds import Seed
from ddbench.errors import UsageError
from ddbench.hookspecs import Matcher
from ddbench.problem.problem import Problem
from ddbench.train.network import Network

APART = "leave --devices out, and let each device do a run of its own (CUDA_VISIBLE_DEVICES chooses one)"
NEAR = 1e-3  # to which logits of images agree, whatever images are beside them


def check_divides(matcher: Matcher[object]) -> None:
    """Raise UsageError for a matcher whose steps are not divided over ranks, if there are several."""
    if world() > 1 and not getattr(matcher, "divides", False):
        raise UsageError(
            f"matcher {matcher.name!r} cannot be divided over {world()} devices: only student steps of trajectory "
            f"matchers are; {APART}"
        )


def check_division(matcher: Matcher[object], problem: Problem) -> None:
    """Raise UsageError where the batches of a matcher, or its network, cannot be divided over the ranks there are."""
    if world() == 1:
        return
    check_divides(matcher)
    check_network(problem.network)
    shown = problem.shown * problem.classes
    batch = min(getattr(matcher, "batch_syn", None) or shown, shown)
    if batch < world():
        raise UsageError(
            f"{world()} devices are too many: a student's batch has {batch} images; take at most so many --devices"
        )


def check_network(network: Network) -> None:
    """Raise UsageError for a network that sees a batch otherwise than image by image, if there are several ranks."""
    if world() > 1 and _mixes(network):
        raise UsageError(
            f"network {label(network.source)!r} cannot be divided over {world()} devices: what it makes of an image "
            f"depends on the others of its batch (batch norm), or is drawn (dropout); {APART}"
        )


@torch.no_grad()
def _mixes(network: Network) -> bool:
    if network.length > network.parameters:  # statistics of batches
        return True
    with Seed(0).scope():
        vector, images = network.init(Seed(0)), torch.randn(4, *network.shape, dtype=network.dtype)
        images = images.to(network.device)
        whole = network.apply(vector, images)
        parts = torch.cat([network.apply(vector, part) for part in images.split([1, 3])])
    return bool((whole - parts).norm() > NEAR * whole.norm())
