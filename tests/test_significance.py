"""Intervals and tests of accuracies, against textbook formulas and enumerations."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.seeds import mean_difference
from classifier.answers.significance import paired_difference, wilson_interval


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_wilson_interval_solves_its_equation(counts):
    right, n = counts
    z = 1.959963984540054  # the normal distribution's 97.5% point
    for end in wilson_interval(right, n):
        assert (right / n - end) ** 2 == pytest.approx(z * z * end * (1 - end) / n, abs=1e-12)
    low, high = wilson_interval(right, n)
    assert low <= right / n + 1e-12 and right / n <= high + 1e-12


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


def test_the_gain_in_mean_accuracy_has_an_interval_over_examples_and_seeds():
    random = np.random.default_rng(2)
    hard = random.random(2000)
    one = random.random((1, 2000)) < hard
    other = (random.random((1, 2000)) < hard) | (random.random((1, 2000)) < 0.05)
    paired = paired_difference(other[0], one[0])
    found = mean_difference(other, one)  # of single seeds: examples alone
    assert found == pytest.approx((paired.difference, paired.low, paired.high), abs=0.001)
    # seeds alone: 4 and 8 runs that are right on all examples or on none
    first, second = (np.repeat([[True], [False]], seeds // 2, axis=0).repeat(50, 1) for seeds in (4, 8))
    difference, low, high = mean_difference(first, second)
    shares = (
        {k: Fraction(math.comb(4, k), 2**4) for k in range(5)},
        {k: Fraction(math.comb(8, k), 2**8) for k in range(9)},
    )
    chances = {}  # of each difference of the two means
    for a, chance in shares[0].items():
        for b, other_chance in shares[1].items():
            chances[a / 4 - b / 8] = chances.get(a / 4 - b / 8, 0) + chance * other_chance
    tail = max(end for end in chances if sum(chances[d] for d in chances if d < end) <= Fraction(1, 40))
    assert difference == 0 and (low, high) == pytest.approx((tail, -tail))
    assert mean_difference(first, second) == (difference, low, high)  # the same in every run
