"""Intervals and tests of accuracies, against textbook formulas and enumerations."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from classifier.significance import paired_difference, wilson_interval


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_wilson_interval_solves_its_equation(counts):
    right, n = counts
    z = 1.959963984540054  # the normal distribution's 97.5% point
    for end in wilson_interval(right, n):
        assert (right / n - end) ** 2 == pytest.approx(z * z * end * (1 - end) / n, abs=1e-12)
    low, high = wilson_interval(right, n)
    assert low <= right / n + 1e-12 and right / n <= high + 1e-12


def test_the_references_intervals():
    assert wilson_interval(241, 245) == pytest.approx((0.9588, 0.9936), abs=5e-5)
    assert wilson_interval(571, 1101) == pytest.approx((0.4891, 0.5480), abs=5e-5)


def mcnemar(only_first: int, only_second: int) -> Fraction:
    """Twice the smaller tail of a fair coin, at most 1."""
    n = only_first + only_second
    tail = sum(Fraction(math.comb(n, k), 2**n) for k in range(min(only_first, only_second) + 1))
    return min(Fraction(1), 2 * tail)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 25), st.integers(0, 25), st.integers(0, 40), st.integers(0, 40))
def test_the_paired_comparison_counts_and_tests_what_differs(only_first, only_second, both, neither):
    if only_first + only_second + both + neither == 0:
        neither = 1
    first = np.repeat([True, False, True, False], [only_first, only_second, both, neither])
    second = np.repeat([False, True, True, False], [only_first, only_second, both, neither])
    found = paired_difference(first, second)
    assert (found.only_first, found.only_second) == (only_first, only_second)
    assert found.difference == pytest.approx(first.mean() - second.mean())
    assert found.p == pytest.approx(float(mcnemar(only_first, only_second)), rel=1e-9)
    assert found.low <= found.difference + 1e-12 and found.difference <= found.high + 1e-12
    assert paired_difference(first, second) == found  # the same in every run
    swapped = paired_difference(second, first)
    assert (swapped.difference, swapped.p) == (-found.difference, found.p)


def test_the_bootstrap_interval_is_the_normal_one_for_many_examples():
    random = np.random.default_rng(1)
    first, second = random.random(4000) < 0.55, random.random(4000) < 0.5
    found = paired_difference(first, second)
    differences = first.astype(float) - second
    half = 1.96 * differences.std() / math.sqrt(4000)
    assert (found.low, found.high) == pytest.approx((found.difference - half, found.difference + half), abs=0.0015)
