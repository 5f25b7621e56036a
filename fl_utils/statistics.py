"""Intervals and paired tests. Every interval says what it is over: seeds, or test patients.

Seeds tell how much training, initial weights and partition matter; patients tell how much the
choice of test patients matters. Neither contains the other, so both are given.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval.

    Attributes:
      mean: the estimate.
      low, high: ends of the interval; NaN when it cannot be had (one seed).
      num: how many seeds or patients it is over.
      kind: "t over seeds" or "bootstrap over patients".
    """

    mean: float
    low: float
    high: float
    num: int
    kind: str

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclasses.dataclass(frozen=True)
class PairedTest:
    """A difference between two methods on the same seeds (or patients), and its p-value."""

    difference: Interval
    p_value: float
    test: str


def seed_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's t-interval of a mean over seeds.

    Args:
      values: one number a seed.
      confidence: coverage, 0 to 1.
    Raises:
      ValueError: no value, or one that is not finite.
    """
    values = _checked(values)
    mean, num = float(values.mean()), len(values)
    if num == 1:
        return Interval(mean, float("nan"), float("nan"), 1, "t over seeds")
    half = stats.t.ppf(0.5 + confidence / 2, num - 1) * values.std(ddof=1) / np.sqrt(num)
    return Interval(mean, float(mean - half), float(mean + half), num, "t over seeds")


def paired_seed_test(a: Sequence[float], b: Sequence[float]) -> PairedTest:
    """Paired two-sided t-test of a - b over seeds.

    With 5 seeds the Wilcoxon test cannot go below p = 0.06, so the t-test is used; it takes the
    differences as normal, which 5 values cannot show. The bootstrap over patients does not.

    Raises:
      ValueError: lengths differ, fewer than 2 pairs, or values that are not finite.
    """
    a, b = _checked(a), _checked(b)
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"A paired test needs the same seeds on both sides, at least 2; got {len(a)} and {len(b)}.")
    difference = seed_interval(a - b)
    spread = (a - b).std(ddof=1)
    if spread == 0:  # Equal differences everywhere: the t statistic is 0/0 or infinite.
        p_value = 1.0 if difference.mean == 0 else 0.0
    else:
        p_value = float(stats.ttest_rel(a, b).pvalue)
    return PairedTest(difference, p_value, "paired t over seeds")


def cluster_bootstrap(
    statistic: Callable[[np.ndarray], float],
    groups: np.ndarray,
    *,
    rng: np.random.Generator,
    num_resamples: int = 1000,
    confidence: float = 0.95,
) -> Interval:
    """Percentile bootstrap over patients: whole groups are drawn, never single images.

    Args:
      statistic: takes an index array into the test examples, gives a number; e.g. the accuracy
        averaged over seeds, or the difference of two methods.
      groups: int [N], the patient (or duplicate group) of each test example.
      rng: the only source of randomness.
      num_resamples: draws; those where the statistic is not defined (a class is absent) are left out.
      confidence: coverage.
    Raises:
      ValueError: no example, or the statistic is undefined in more than half of the draws.
    Source: Field and Welsh 2007, doi:10.1111/j.1467-9868.2007.00593.x (randomized cluster bootstrap).
    """
    if len(groups) == 0:
        raise ValueError("There is no test example to resample.")
    order = np.argsort(groups, kind="stable")
    _, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    draws = []
    for _ in range(num_resamples):
        chosen = rng.integers(0, len(sizes), len(sizes))
        # The members of the chosen groups, one group after another, without a loop over groups.
        ends = np.cumsum(sizes[chosen])
        shift = np.repeat(starts[chosen] - ends + sizes[chosen], sizes[chosen])
        value = statistic(order[np.arange(ends[-1]) + shift])
        if np.isfinite(value):
            draws.append(value)
    if len(draws) < num_resamples / 2:
        raise ValueError(f"The statistic is undefined in {num_resamples - len(draws)} of {num_resamples} draws.")
    low, high = np.quantile(draws, [0.5 - confidence / 2, 0.5 + confidence / 2])
    estimate = float(statistic(np.arange(len(groups))))
    return Interval(estimate, float(low), float(high), len(sizes), "bootstrap over patients")


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p-values corrected for how many claims are tested together.

    Source: Holm 1979, Scandinavian Journal of Statistics 6, 65-70; computed by statsmodels.
    """
    return multipletests(np.asarray(p_values, float), method="holm")[1]


def _checked(values: Sequence[float]) -> np.ndarray:
    values = np.asarray(values, float)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(f"Expected finite numbers, at least one; got {values.tolist()}.")
    return values
