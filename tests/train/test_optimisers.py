"""The rules of optimisers, against torch's own and the publications."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ddbench.train.optimisers import SGD, Adam, Lamb


@pytest.mark.parametrize(
    ("rule", "theirs"),
    [
        (SGD(0.9, 0.01), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01)),
        (Adam(), lambda p: torch.optim.Adam(p, 0.1)),
        (Adam(0.7, 0.95, 1e-4, 0.01), lambda p: torch.optim.Adam(p, 0.1, (0.7, 0.95), 1e-4, 0.01)),
        (Adam(weight_decay=0.2, decoupled=True), lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.2)),
    ],
)
def test_rule_is_torchs_own_also_where_gradients_vanish(rule, theirs):
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(20, dtype=torch.float64, generator=generator)
    leaf = theta.clone().requires_grad_()
    optimiser, state = theirs([leaf]), rule.init(theta)
    for _ in range(8):
        g = torch.randn(20, dtype=torch.float64, generator=generator)
        g[:5] = 0
        g[5:8] *= 1e-9
        leaf.grad = g.clone()
        optimiser.step()
        theta, state = rule.update(theta, state, g, 0.1)
        torch.testing.assert_close(theta, leaf.detach(), rtol=1e-12, atol=1e-13)


def test_lamb_is_adam_scaled_to_the_norm_of_what_moves():
    rule = Lamb(beta1=0.8, beta2=0.9, eps=1e-6, weight_decay=0.1)
    x = torch.tensor([3.0, 4.0], dtype=torch.float64)
    state, m, v, theta = rule.init(x), np.zeros(2), np.zeros(2), np.array([3.0, 4.0])
    for t in range(1, 6):
        g = np.array([math.sin(t), math.cos(t)])
        x, state = rule.update(x, state, torch.from_numpy(g), 0.05)
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        u = (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-6) + 0.1 * theta
        theta = theta - 0.05 * np.linalg.norm(theta) / np.linalg.norm(u) * u
        assert np.allclose(x.numpy(), theta, rtol=1e-12)


def test_lamb_moves_what_is_zero_by_adams_step():
    rule = Lamb()
    moved, _ = rule.update(torch.zeros(3), rule.init(torch.zeros(3)), torch.tensor([1.0, -2.0, 0.0]), 0.1)
    assert torch.allclose(moved, torch.tensor([-0.1, 0.1, 0.0]), atol=1e-5)
