"""Intervals, tests and corrections against scipy, against definitions, and against their own laws."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import combinations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import integrate, stats

from ddbench.errors import UsageError
from ddbench.results.statistics import holm, interval, paired, welch

# accuracies on a test set of 10,000 images: differences are either nothing or well above rounding
ACCURACY = st.integers(0, 10_000).map(lambda right: right / 10_000)
SAMPLE = st.lists(ACCURACY, min_size=2, max_size=8)
PAIRS = st.lists(st.tuples(ACCURACY, ACCURACY), min_size=2, max_size=8)
P = st.floats(0, 1)
ONE = [0.52, 0.55, 0.51, 0.58, 0.54]
OTHER = [0.50, 0.51, 0.49, 0.52, 0.53]


# -------------------------------------------------------------------------------- independent computations


def student_density(t: float, freedom: int) -> float:
    constant = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    return constant * (1 + t * t / freedom) ** (-(freedom + 1) / 2)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_the_interval_holds_its_level_of_students_distribution(n, level):
    """Half its width in standard errors is a t: from -t to t, the density integrates to the level."""
    values = [0.1 + 0.01 * i for i in range(n)]
    low, high = interval(values, level)
    error = math.sqrt(sum((v - sum(values) / n) ** 2 for v in values) / (n - 1) / n)
    t = (high - low) / 2 / error
    area, _ = integrate.quad(student_density, -t, t, args=(n - 1,))
    assert area == pytest.approx(level, abs=1e-8)


def test_the_interval_of_a_worked_example():
    """Mean 2, s = 1, n = 3: t(2, 0.975) = 4.3027 from the tables, so 2 ± 4.3027 / sqrt(3)."""
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-4)


def test_the_paired_test_of_a_worked_example():
    """Differences 1, 2, 3: t = sqrt 12; with 2 degrees of freedom P(|T| > t) = 1 - t / sqrt(2 + t²)."""
    found = paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert found.difference == 2.0
    assert found.p == pytest.approx(1 - math.sqrt(12) / math.sqrt(14), abs=1e-12)


def test_welch_of_a_worked_example():
    """Equal sizes and variances: 2n - 2 degrees of freedom; with n = 2 and t = 2 that is P = 1 - 2 / sqrt(6)."""
    found = welch([2.0, 4.0], [-0.8284271247461903, 1.1715728752538097])
    assert found.difference == pytest.approx(2 * math.sqrt(2))
    assert found.p == pytest.approx(1 - 2 / math.sqrt(2 + 4), abs=1e-12)


@given(PAIRS)
def test_the_paired_test_is_scipys(pairs):
    a, b = map(list, zip(*pairs, strict=True))
    assume(len({round(x - y, 9) for x, y in pairs}) > 1)
    assert paired(a, b).p == pytest.approx(float(stats.ttest_rel(a, b).pvalue), rel=1e-6, abs=1e-12)


@given(SAMPLE, SAMPLE)
def test_welch_is_scipys(a, b):
    assume(len(set(a)) > 1)
    assume(len(set(b)) > 1)
    assert welch(a, b).p == pytest.approx(float(stats.ttest_ind(a, b, equal_var=False).pvalue), rel=1e-6, abs=1e-12)


def closed_testing(pvalues: list[float]) -> list[float]:
    """Holm by definition: a hypothesis falls when Bonferroni rejects every intersection that it belongs to."""
    found = []
    for i in range(len(pvalues)):
        others = [j for j in range(len(pvalues)) if j != i]
        sets = [(i, *more) for size in range(len(pvalues)) for more in combinations(others, size)]
        found.append(max(min(1.0, len(s) * min(pvalues[j] for j in s)) for s in sets))
    return found


@given(st.lists(P, max_size=6))
def test_holm_is_closed_testing_with_bonferroni(pvalues):
    assert holm(pvalues) == pytest.approx(closed_testing(pvalues), abs=1e-15)


# ------------------------------------------------------------------------------------------------- laws


@given(st.lists(P, min_size=1, max_size=10))
def test_holm_lies_between_the_raw_values_and_bonferroni_and_keeps_their_order(pvalues):
    corrected = holm(pvalues)
    for raw, p in zip(pvalues, corrected, strict=True):
        assert raw <= p <= min(1.0, len(pvalues) * raw)
    by_raw = [p for _, p in sorted(zip(pvalues, corrected, strict=True))]
    assert by_raw == sorted(by_raw)


@given(st.lists(P, max_size=8).flatmap(lambda p: st.tuples(st.just(p), st.permutations(range(len(p))))))
def test_holm_does_not_depend_on_the_order_of_the_hypotheses(drawn):
    pvalues, order = drawn
    assert holm([pvalues[i] for i in order]) == [holm(pvalues)[i] for i in order]


@given(SAMPLE, st.floats(0.01, 0.98))
def test_the_interval_contains_the_mean_and_shrinks_with_its_level(values, level):
    middle = math.fsum(values) / len(values)
    low, high = interval(values, level)
    wider = interval(values, level + 0.01)
    assert low - 1e-15 <= middle <= high + 1e-15
    assert wider[0] <= low
    assert high <= wider[1]


@given(SAMPLE, st.floats(-10, 10), st.floats(0.01, 100))
def test_the_interval_moves_and_stretches_with_its_values(values, shift, scale):
    low, high = interval(values)
    assert interval([scale * v + shift for v in values]) == pytest.approx(
        (scale * low + shift, scale * high + shift), rel=1e-9, abs=1e-9
    )


@given(PAIRS, st.sampled_from([0.5, 3.0, 100.0]), st.sampled_from([0.0, 0.25, 7.0]))
def test_p_does_not_depend_on_the_sides_nor_on_the_unit(pairs, scale, shift):
    a, b = map(list, zip(*pairs, strict=True))
    for test in (paired, welch):
        straight, turned = test(a, b), test(b, a)
        assert straight.difference == pytest.approx(-turned.difference, abs=1e-15)
        moved = test([scale * x + shift for x in a], [scale * x + shift for x in b])
        assert moved.difference == pytest.approx(scale * straight.difference, abs=1e-9)
        if straight.p is None:
            assert turned.p is moved.p is None
        else:
            assert straight.p == pytest.approx(turned.p, rel=1e-9)
            assert straight.p == pytest.approx(moved.p, rel=1e-6)


# ------------------------------------------------------------------------------------ what is not defined


def test_one_value_has_no_interval():
    assert interval([0.5]) is None
    assert interval([]) is None


@pytest.mark.parametrize("apart", [0.0, 0.1])
def test_differences_that_do_not_vary_have_no_p(apart):
    """0.1 + 0.2 - 0.2 is not 0.1: rounding is not variance, and must not pass for a tiny p."""
    b = [0.1, 0.2, 0.3, 0.7]
    found = paired([x + apart for x in b], b)
    assert found.p is None
    assert found.difference == pytest.approx(apart)
    assert "do not vary" in found.note
    assert welch([0.5, 0.5], [0.4, 0.4]).p is None


def test_one_side_that_varies_is_enough_for_welch():
    found = welch([0.5, 0.5, 0.5], [0.40, 0.42, 0.41])
    independent = abs(0.09) / (0.01 / math.sqrt(3))
    assert found.p == pytest.approx(2 * float(stats.t.sf(independent, 2)), rel=1e-9)


def test_a_single_seed_has_a_difference_and_no_p():
    assert paired([0.5], [0.4]).p is None
    assert paired([0.5], [0.4]).difference == pytest.approx(0.1)
    assert welch([0.5], ONE).p is None


def test_what_is_no_number_is_refused_rather_than_passed_on():
    for call in (lambda: interval([0.1, math.nan]), lambda: paired([math.inf], [0.0]), lambda: holm([math.nan])):
        with pytest.raises(UsageError, match="finite"):
            call()
    with pytest.raises(UsageError, match=r"between 0 and 1, got 1\.5"):
        holm([1.5])
    with pytest.raises(UsageError, match="between 0 and 1"):
        interval(ONE, 1.0)
    with pytest.raises(UsageError, match="got 2 and 1"):
        paired([1.0, 2.0], [1.0])


def test_scipy_loads_when_a_test_needs_it_and_not_before():
    code = (
        "import sys, ddbench.cli.main, ddbench.results.compare; print('scipy' in sys.modules, 'pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_pairing_finds_what_welch_does_not():
    a = [x + d for x, d in zip(OTHER, (0.011, 0.010, 0.012, 0.009, 0.010), strict=True)]
    assert paired(a, OTHER).p < 0.001 < 0.1 < welch(a, OTHER).p


def test_one_and_nothing_are_p_values_and_no_levels():
    assert holm([0.0, 1.0, 0.25]) == [0.0, 1.0, 0.5]
    for wrong in (-0.1, -1e-9, 1.0001, 1.5, 2.0):
        with pytest.raises(UsageError, match="p values lie between 0 and 1"):
            holm([0.5, wrong])
    for wrong in (-0.5, 0.0, 1.0, 1.5):
        with pytest.raises(UsageError, match="level of an interval lies between 0 and 1"):
            interval(ONE, wrong)


@pytest.mark.parametrize("values", [[2.0, 5.0], [1.0, 2.0, 3.0], ONE, OTHER, [0.1 * i * i for i in range(9)]])
def test_intervals_are_those_of_scipy(values):
    half = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    middle = math.fsum(values) / len(values)
    assert interval(values) == pytest.approx((middle - half, middle + half), rel=1e-12, abs=1e-12)
