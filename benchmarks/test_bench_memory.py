"""What ``python benchmarks/memory.py`` prints, as assertions."""

from __future__ import annotations

import pytest
from memory import measure


@pytest.mark.parametrize("method", ["tesla zero", "tesla exact"])
def test_activations_of_tesla_do_not_grow_with_the_steps(method):
    few, many = measure(method, 5), measure(method, 50)
    assert many.activations == pytest.approx(few.activations, rel=0.1)
    assert many.total < few.total + many.vectors


def test_activations_of_mtt_grow_in_proportion_to_the_steps():
    few, more, many = (measure("mtt", steps).activations for steps in (5, 10, 20))
    assert many - more == pytest.approx(2 * (more - few), rel=0.1)
    assert many > 3 * few
    assert few > 2 * measure("tesla exact", 5).activations
