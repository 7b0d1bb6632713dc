"""Randomness by address: what makes two addresses differ, and what a scope gives back."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddbench import Seed

PARTS = st.one_of(st.integers(-(2**40), 2**40), st.text('ab1,"[]\\é', max_size=5))


def draws() -> tuple[list[float], list[float], float]:
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()


def test_address_is_the_sha256_of_its_json_shortened_to_63_bits():
    address = b'[7, "stage", 1, "step", 12]'
    expected = int.from_bytes(hashlib.sha256(address).digest()[:8], "big") >> 1
    assert (Seed(7) / "stage" / 1 / "step" / 12).integer == expected
    assert 0 <= expected < 2**63


def test_address_of_a_number_differs_from_that_of_its_text():
    assert (Seed(0) / 1).integer != (Seed(0) / "1").integer


def test_address_depends_on_the_order_of_its_parts():
    assert (Seed(0) / "a" / "b").integer != (Seed(0) / "b" / "a").integer


def test_address_depends_on_where_its_parts_are_divided():
    assert (Seed(0) / "ab" / "c").integer != (Seed(0) / "a" / "bc").integer
    assert (Seed(0) / 1 / 23).integer != (Seed(0) / 12 / 3).integer


@given(st.lists(PARTS, max_size=4), st.lists(PARTS, max_size=4), st.integers(0, 3), st.integers(0, 3))
def test_different_addresses_have_different_integers(first, second, root, other):
    a, b = Seed(root, tuple(first)), Seed(other, tuple(second))
    assert (a.integer == b.integer) == (a == b)


def test_dividing_a_seed_leaves_it_as_it_was():
    seed = Seed(3) / "stage"
    child = seed / 2
    assert seed == Seed(3, ("stage",))
    assert child == Seed(3, ("stage", 2))


def test_same_address_gives_the_same_draws_in_all_three_generators():
    with (Seed(5) / "here").scope():
        first = draws()
    torch.rand(11), np.random.rand(11), random.random()
    with (Seed(5) / "here").scope():
        assert draws() == first


def test_scope_seeds_each_generator_from_the_address():
    seed = Seed(5) / "here"
    with seed.scope():
        seen = draws()
    expected = torch.rand(3, generator=torch.Generator().manual_seed(seed.integer)).tolist()
    assert seen[0] == expected
    assert seen[1] == np.random.RandomState(seed.integer % 2**32).rand(3).tolist()
    assert seen[2] == random.Random(seed.integer).random()


def test_sowing_inside_a_scope_gives_the_draws_of_a_scope_of_its_own():
    with (Seed(5) / "here").scope():
        expected = draws()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    after = draws()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    with Seed(6).scope():
        draws()
        (Seed(5) / "here").sow()
        assert draws() == expected
    assert draws() == after


def test_different_addresses_give_different_draws_in_all_three_generators():
    with (Seed(5) / 0).scope():
        first = draws()
    with (Seed(5) / 1).scope():
        second = draws()
    assert all(a != b for a, b in zip(first, second, strict=True))


def test_scope_gives_the_outer_states_back():
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = draws()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    with Seed(0).scope():
        draws()
    assert draws() == expected


def test_scope_gives_the_outer_states_back_after_an_error():
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = draws()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    scope = Seed(0).scope()
    scope.__enter__()
    draws()
    assert not scope.__exit__(KeyError, KeyError(), None)  # the error goes on
    assert draws() == expected


def test_inner_scope_does_not_disturb_the_outer_one():
    with Seed(1).scope():
        expected = draws(), draws()
    with Seed(1).scope():
        first = draws()
        with Seed(2).scope():
            draws()
        assert (first, draws()) == expected
