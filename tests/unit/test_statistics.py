"""Intervals and tests against SciPy, against hand-computed numbers, and their coverage by simulation."""

import numpy as np
import pytest
from scipy import stats

from fl_utils.statistics import Interval, cluster_bootstrap, holm, paired_seed_test, seed_interval

A = [0.81, 0.84, 0.79, 0.86, 0.82]
B = [0.78, 0.83, 0.80, 0.81, 0.79]


def test_seed_interval_is_students():
    interval = seed_interval(A)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(A), scale=stats.sem(A))
    assert interval.mean == pytest.approx(np.mean(A))
    assert (interval.low, interval.high) == pytest.approx((low, high))
    assert (interval.num, interval.kind) == (5, "t over seeds")
    assert seed_interval(A, 0.5).high < interval.high


def test_seed_interval_by_hand():
    # mean 2, standard deviation 1, t(0.975, 2) = 4.302653
    interval = seed_interval([1, 2, 3])
    assert interval.low == pytest.approx(2 - 4.302653 / np.sqrt(3), abs=1e-6)
    assert str(interval) == "2.000 [-0.484, 4.484]"


def test_one_seed_has_no_interval():
    interval = seed_interval([0.8])
    assert interval.mean == 0.8 and np.isnan([interval.low, interval.high]).all() and interval.num == 1


@pytest.mark.parametrize("values", [[], [float("nan")], [0.1, float("inf")], [[0.1, 0.2]]])
def test_seed_interval_refuses_what_is_no_list_of_numbers(values):
    with pytest.raises(ValueError, match="Expected finite numbers, at least one; got"):
        seed_interval(values)


def test_paired_test_is_scipys():
    result = paired_seed_test(A, B)
    assert result.p_value == pytest.approx(stats.ttest_rel(A, B).pvalue)
    assert result.difference.mean == pytest.approx(np.mean(A) - np.mean(B))
    low, high = stats.ttest_rel(A, B).confidence_interval(0.95)
    assert (result.difference.low, result.difference.high) == pytest.approx((low, high))
    assert result.test == "paired t over seeds"


def test_paired_test_is_antisymmetric():
    one, other = paired_seed_test(A, B), paired_seed_test(B, A)
    assert one.p_value == pytest.approx(other.p_value)
    assert one.difference.low == pytest.approx(-other.difference.high)


def test_equal_differences_have_a_p_value():
    assert paired_seed_test([1, 2, 3], [1, 2, 3]).p_value == 1
    assert paired_seed_test([1, 2, 3], [0, 1, 2]).p_value == 0


@pytest.mark.parametrize(("a", "b"), [([1, 2, 3], [1, 2]), ([1], [2])])
def test_paired_test_needs_pairs(a, b):
    with pytest.raises(ValueError, match=f"at least 2; got {len(a)} and {len(b)}"):
        paired_seed_test(a, b)


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, never falling: 0.04, 0.06, 0.06, 0.06.
    np.testing.assert_allclose(holm([0.04, 0.01, 0.03, 0.02]), [0.06, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.5, 0.6]), [1.0, 1.0])
    np.testing.assert_allclose(holm([0.03]), [0.03])


def by_hand(statistic, groups, rng, num_resamples):
    """The cluster bootstrap as its definition reads: draw groups, join their members."""
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    draws = []
    for _ in range(num_resamples):
        chosen = rng.integers(0, len(members), len(members))
        draws.append(statistic(np.concatenate([members[i] for i in chosen])))
    return np.quantile(draws, [0.025, 0.975])


def test_cluster_bootstrap_is_its_definition():
    rng = np.random.default_rng(0)
    groups, values = rng.integers(0, 15, 60) * 7 - 3, rng.normal(size=60)

    def statistic(index):
        return values[index].mean()

    interval = cluster_bootstrap(statistic, groups, rng=np.random.default_rng(1), num_resamples=300)
    low, high = by_hand(statistic, groups, np.random.default_rng(1), 300)
    assert (interval.low, interval.high) == pytest.approx((low, high), rel=1e-12)
    assert interval.mean == values.mean()
    assert interval.num == len(np.unique(groups)) and interval.kind == "bootstrap over patients"


def test_whole_groups_are_drawn():
    groups = np.array([0, 0, 0, 1, 1, 2])

    def statistic(index):
        counts = np.bincount(index, minlength=6)
        assert counts[0] == counts[1] == counts[2] and counts[3] == counts[4]
        assert counts[0] + counts[3] + counts[5] == 3
        return float(len(index))

    cluster_bootstrap(statistic, groups, rng=np.random.default_rng(0), num_resamples=50)


def test_cluster_bootstrap_depends_on_the_generator_only():
    values = np.random.default_rng(0).normal(size=30)
    one, same, other = (
        cluster_bootstrap(lambda i: values[i].mean(), np.arange(30), rng=np.random.default_rng(s), num_resamples=50)
        for s in (1, 1, 2)
    )
    assert one == same and one != other


def test_undefined_draws_are_left_out_until_they_are_too_many():
    groups, ones = np.arange(6), np.array([1, 0, 0, 0, 0, 0])

    def sometimes(index):  # undefined when image 0 was not drawn: about a third of the draws
        return 0.5 if ones[index].any() else float("nan")

    interval = cluster_bootstrap(sometimes, groups, rng=np.random.default_rng(0), num_resamples=200)
    assert interval == Interval(0.5, 0.5, 0.5, 6, "bootstrap over patients")
    with pytest.raises(ValueError, match="undefined in 50 of 50 draws"):
        cluster_bootstrap(lambda index: float("nan"), groups, rng=np.random.default_rng(0), num_resamples=50)
    with pytest.raises(ValueError, match="no test example"):
        cluster_bootstrap(sometimes, np.array([], int), rng=np.random.default_rng(0))


# --- coverage: how often the interval holds the truth ---


def test_the_t_interval_of_five_seeds_covers_95_percent():
    rng = np.random.default_rng(0)
    intervals = [seed_interval(rng.normal(0.8, 0.02, 5)) for _ in range(2000)]
    coverage = np.mean([interval.low <= 0.8 <= interval.high for interval in intervals])
    assert coverage == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / 2000))


def test_the_cluster_bootstrap_covers_where_the_image_bootstrap_does_not():
    """60 patients with 5 images each that resemble each other (intra-class correlation 0.5)."""
    rng = np.random.default_rng(0)
    patients, images = np.repeat(np.arange(60), 5), np.arange(300)
    covered = {"patients": 0, "images": 0}
    for _ in range(200):
        values = np.repeat(rng.normal(size=60), 5) + rng.normal(size=300)
        for kind, groups in (("patients", patients), ("images", images)):
            interval = cluster_bootstrap(lambda i: values[i].mean(), groups, rng=rng, num_resamples=150)
            covered[kind] += interval.low <= 0 <= interval.high
    # 95 % less what the percentile method loses with 60 patients and 150 draws; then 4 standard errors.
    assert covered["patients"] / 200 > 0.87
    assert covered["images"] / 200 < 0.85


def test_the_paired_test_errs_in_5_percent_when_nothing_differs():
    rng = np.random.default_rng(0)
    errs = 0
    for _ in range(1000):
        shared = rng.normal(0, 0.05, 5)
        errs += paired_seed_test(shared + rng.normal(0, 0.01, 5), shared + rng.normal(0, 0.01, 5)).p_value < 0.05
    assert errs / 1000 == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / 1000))
