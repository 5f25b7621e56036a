"""Intervals and paired tests. Every interval says what it is over: seeds, or test patients.

Seeds tell how much training, initial weights and partition matter; patients tell how much the
choice of test patients matters. Neither contains the other, so both are given.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval.

    Attributes:
      mean: the estimate.
      low, high: ends of the interval; NaN when it cannot be had (one seed).
      num: how many seeds or patients it is over.
      kind: "t over seeds", "bootstrap over patients" or "Fieller over seeds".
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


@dataclasses.dataclass(frozen=True)
class FriedmanTest:
    """Friedman's test that all methods rank alike.

    Attributes:
      statistic: chi-square, with num_methods - 1 degrees of freedom.
      p_value: of the chi-square approximation, which is on the careful side with few blocks.
      num_methods, num_blocks: k and N.
    """

    statistic: float
    p_value: float
    num_methods: int
    num_blocks: int


@dataclasses.dataclass(frozen=True)
class RecoveredShare:
    """Which share of the gap between local-only and centralized a federation recovers.

    Attributes:
      interval: the share and its 95 % interval; 0 is "no better than alone", 1 is "as good as centralized".
      reason: why a number is missing; "" where nothing is.
    """

    interval: Interval
    reason: str


def average_ranks(scores: pd.DataFrame) -> pd.Series:
    """The mean rank of every method; 1 is best, ties share the mean of their ranks.

    Args:
      scores: float [blocks, methods], larger is better; blocks must be independent of each other.
    Returns:
      One rank a method, in the order of the columns.
    Raises:
      ValueError: fewer than 2 methods, no block, or a score that is not finite.
    """
    _checked_scores(scores, least_methods=2)
    return _without_noise(scores).rank(axis=1, ascending=False, method="average").mean()


def friedman_test(scores: pd.DataFrame) -> FriedmanTest:
    """Tests that all methods rank alike over the blocks; SciPy computes it, with its correction for ties.

    Args:
      scores: float [blocks, methods], larger is better.
    Raises:
      ValueError: fewer than 3 methods or 2 blocks, or a score that is not finite.
    Source: Friedman 1937, doi:10.1080/01621459.1937.10503522.
    """
    _checked_scores(scores, least_methods=3, least_blocks=2)
    blocks, methods = scores.shape
    scores = _without_noise(scores)
    if (scores.nunique(axis=1) == 1).all():  # Ties everywhere: the statistic is 0/0.
        return FriedmanTest(0.0, 1.0, methods, blocks)
    result = stats.friedmanchisquare(*scores.to_numpy().T)
    return FriedmanTest(float(result.statistic), float(result.pvalue), methods, blocks)


def critical_difference(num_methods: int, num_blocks: int, alpha: float = 0.05) -> float:
    """Nemenyi's critical difference: average ranks that are closer than it are not told apart.

    Args:
      num_methods: k >= 2.
      num_blocks: N >= 1.
      alpha: level over all pairs, 0 to 1.
    Returns:
      In ranks: q_alpha sqrt(k (k + 1) / (6 N)), q_alpha of the studentized range divided by sqrt(2).
    Raises:
      ValueError: an argument out of range.
    Source: Demsar 2006, JMLR 7, 1-30, section 3.2.2.
    """
    if num_methods < 2 or num_blocks < 1 or not 0 < alpha < 1:
        raise ValueError(
            f"num_methods is {num_methods}, num_blocks {num_blocks}, alpha {alpha}; expected at least 2, at least 1, "
            "and between 0 and 1."
        )
    q = stats.studentized_range.ppf(1 - alpha, num_methods, np.inf) / np.sqrt(2)
    return float(q * np.sqrt(num_methods * (num_methods + 1) / (6 * num_blocks)))


def share_recovered(
    federated: Sequence[float], local: Sequence[float], centralized: Sequence[float], confidence: float = 0.95
) -> RecoveredShare:
    """(federated - local) / (centralized - local), of the means over seeds, with Fieller's interval.

    Fieller's interval holds every share r for which the paired t-test does not reject
    federated - local = r (centralized - local); with few seeds a bootstrap would be too narrow.

    Args:
      federated, local, centralized: one score a seed, the same seeds in the same order.
      confidence: coverage, 0 to 1.
    Returns:
      NaN and the reason where centralized is not above local; ends NaN and the reason where the gap is
      not significantly above 0, since the interval then has no end, or where there is one seed.
    Raises:
      ValueError: lengths differ, or values that are not finite.
    Source: Fieller 1954, Journal of the Royal Statistical Society B 16, 175-185.
    """
    federated, local, centralized = _checked(federated), _checked(local), _checked(centralized)
    num, kind, nan = len(federated), "Fieller over seeds", float("nan")
    if not num == len(local) == len(centralized):
        raise ValueError(
            f"A recovered share needs the same seeds thrice; got {num} federated, {len(local)} local and "
            f"{len(centralized)} centralized."
        )
    gain, gap = federated - local, centralized - local
    top, bottom = gain.mean(), gap.mean()
    if bottom <= 0:
        return RecoveredShare(Interval(nan, nan, nan, num, kind), "centralized is not better than local: no gap")
    share = float(top / bottom)
    if num == 1:
        return RecoveredShare(Interval(share, nan, nan, 1, kind), "one seed has no interval")
    # The roots of (top - r bottom)^2 = t^2 Var(gain - r gap) / n, a quadratic in r.
    (var_gain, covariance), (_, var_gap) = stats.t.ppf(0.5 + confidence / 2, num - 1) ** 2 / num * np.cov(gain, gap)
    a, b, c = bottom**2 - var_gap, top * bottom - covariance, top**2 - var_gain
    if a <= 0:
        reason = "the gap between centralized and local is not significant: the interval has no end"
        return RecoveredShare(Interval(share, nan, nan, num, kind), reason)
    half = np.sqrt(max(b**2 - a * c, 0.0))  # Never below 0 but for rounding, since `share` solves it.
    return RecoveredShare(Interval(share, float((b - half) / a), float((b + half) / a), num, kind), "")


def gini(sizes: Sequence[float]) -> float:
    """How unequal sizes are: 0 all alike, towards 1 (exactly 1 - 1/C) one holds everything.

    Args:
      sizes: C >= 1 numbers >= 0, e.g. images a hospital.
    Returns:
      Half the mean absolute difference of all pairs, divided by the mean.
    Raises:
      ValueError: a negative size, or all are 0.
    """
    sizes = np.sort(_checked(sizes))
    if sizes[0] < 0 or sizes.sum() == 0:
        raise ValueError(f"Expected sizes of 0 or more, not all 0; got {sizes.tolist()}.")
    num = len(sizes)
    return float((2 * np.arange(1, num + 1) - num - 1) @ sizes / (num * sizes.sum()))


def _without_noise(scores: pd.DataFrame) -> pd.DataFrame:
    """Equal means of floats may differ in the last digit; they are ties all the same."""
    return scores.astype(float).round(12)


def _checked_scores(scores: pd.DataFrame, least_methods: int, least_blocks: int = 1) -> None:
    blocks, methods = scores.shape
    if methods < least_methods or blocks < least_blocks or not np.isfinite(scores.to_numpy(float)).all():
        raise ValueError(
            f"Expected finite scores of at least {least_blocks} block(s) and {least_methods} methods, got {blocks} "
            f"blocks and the methods {', '.join(map(str, scores.columns))}. Leave out blocks that are not whole."
        )


def _checked(values: Sequence[float]) -> np.ndarray:
    values = np.asarray(values, float)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(f"Expected finite numbers, at least one; got {values.tolist()}.")
    return values
