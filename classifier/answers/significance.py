"""What an accuracy on a finite set of examples says: intervals, and the paired difference of two models."""

from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000


def wilson_interval(right: int, examples: int) -> tuple[float, float]:
    """Return the 95% interval of an accuracy of right / examples: Wilson 1927, as scipy computes it."""
    from scipy.stats import binomtest  # here: the import takes half a second

    interval = binomtest(right, examples).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


class PairedDifference(NamedTuple):
    """How two models compare on the same examples."""

    difference: float  # accuracy of the first minus that of the second
    low: float  # the difference's 95% interval
    high: float
    only_first: int  # examples that only the first model has right
    only_second: int
    p: float  # of McNemar's exact test: the two counts come from a fair coin


def paired_difference(first_right: np.ndarray, second_right: np.ndarray) -> PairedDifference:
    """Compare which of the same examples two models have right, (examples,) bool each.

    The interval is the middle 95% of the differences over resampled examples (Efron and Tibshirani 1993, chapter 13),
    the same in every run. The test looks only at examples that one model has right and the other wrong (McNemar 1947,
    in its binomial form).
    """
    from scipy.stats import binomtest, bootstrap

    differences = first_right.astype(float) - second_right.astype(float)
    only_first, only_second = int((differences > 0).sum()), int((differences < 0).sum())
    discordant = only_first + only_second
    p = binomtest(only_first, discordant, 0.5).pvalue if discordant else 1.0
    low = high = float(differences.mean())
    if np.ptp(differences) > 0:  # otherwise all resamples are the same
        at_once = max(1, 10_000_000 // len(differences))  # resamples in memory
        rng = np.random.default_rng(0)
        found = bootstrap((differences,), np.mean, n_resamples=RESAMPLES, batch=at_once, method="percentile", rng=rng)
        low, high = map(float, found.confidence_interval)
    return PairedDifference(float(differences.mean()), low, high, only_first, only_second, float(p))
