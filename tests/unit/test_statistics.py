"""Intervals and tests against SciPy, against hand-computed numbers, and their coverage by simulation."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fl_utils.statistics import (
    Interval,
    average_ranks,
    cluster_bootstrap,
    critical_difference,
    friedman_test,
    gini,
    holm,
    paired_seed_test,
    seed_interval,
    share_recovered,
)

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


# --- ranks ---

#: Demsar 2006, table 6: AUC of C4.5 and three variants on 14 data sets; his ranks, chi-square and differences.
DEMSAR = pd.DataFrame(
    {
        "c45": [0.763, 0.599, 0.954, 0.628, 0.882, 0.936, 0.661, 0.583, 0.775, 1.000, 0.940, 0.619, 0.972, 0.957],
        "m": [0.768, 0.591, 0.971, 0.661, 0.888, 0.931, 0.668, 0.583, 0.838, 1.000, 0.962, 0.666, 0.981, 0.978],
        "cf": [0.771, 0.590, 0.968, 0.654, 0.886, 0.916, 0.609, 0.563, 0.866, 1.000, 0.965, 0.614, 0.9751, 0.946],
        "m_cf": [0.798, 0.569, 0.967, 0.657, 0.898, 0.931, 0.685, 0.625, 0.875, 1.000, 0.962, 0.669, 0.975, 0.970],
    }
)


def test_ranks_of_a_published_table():
    np.testing.assert_allclose(average_ranks(DEMSAR), [3.143, 2.000, 2.893, 1.964], atol=0.0006)
    result = friedman_test(DEMSAR)
    # The paper's 9.28 is without the correction for ties that SciPy makes.
    ranks = DEMSAR.rank(axis=1, ascending=False)
    plain = 12 * 14 / (4 * 5) * ((ranks.mean() ** 2).sum() - 4 * 25 / 4)
    assert plain == pytest.approx(9.28, abs=0.01)
    ties = 1 - sum((n**3 - n) for _, row in ranks.iterrows() for n in row.value_counts()) / (14 * (4**3 - 4))
    assert result.statistic == pytest.approx(plain / ties) and (result.num_methods, result.num_blocks) == (4, 14)
    assert result.p_value == pytest.approx(stats.chi2.sf(plain / ties, 3))
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    assert critical_difference(4, 14, alpha=0.10) == pytest.approx(1.12, abs=0.005)


def test_q_is_demsars_table_5():
    table = {
        0.05: [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164],
        0.10: [1.645, 2.052, 2.291, 2.459, 2.589, 2.693, 2.780, 2.855, 2.920],
    }
    for alpha, values in table.items():
        for methods, q in zip(range(2, 11), values, strict=True):
            found = critical_difference(methods, 6, alpha) / np.sqrt(methods * (methods + 1) / 36)
            assert found == pytest.approx(q, abs=0.0011), (alpha, methods)


def test_ties_share_a_rank_also_when_floats_differ_in_the_last_digit():
    scores = pd.DataFrame({"a": [0.1 + 0.2, 0.5], "b": [0.3, 0.4], "c": [0.2, 0.4]})
    assert average_ranks(scores).to_dict() == {"a": 1.25, "b": 2.0, "c": 2.75}
    alike = pd.DataFrame({"a": [0.1 + 0.2, 1.0], "b": [0.3, 1.0], "c": [0.3, 1.0]})
    assert friedman_test(alike).p_value == 1 and friedman_test(alike).statistic == 0


def test_ranks_refuse_what_is_not_whole():
    with pytest.raises(ValueError, match="the methods c45, m, cf, m_cf. Leave out blocks that are not whole"):
        average_ranks(DEMSAR.replace(0.599, np.nan))
    with pytest.raises(ValueError, match="at least 2 block.s. and 3 methods, got 14 blocks and the methods c45, m"):
        friedman_test(DEMSAR[["c45", "m"]])
    with pytest.raises(ValueError, match="got 1 blocks"):
        friedman_test(DEMSAR.iloc[:1])
    with pytest.raises(ValueError, match="got 14 blocks and the methods m"):
        average_ranks(DEMSAR[["m"]])
    for arguments in ((1, 5), (3, 0), (3, 5, 0.0), (3, 5, 1.0)):
        with pytest.raises(ValueError, match=f"num_methods is {arguments[0]}, num_blocks {arguments[1]}"):
            critical_difference(*arguments)


# --- the recovered share ---


def test_share_recovered_is_the_ratio_of_means_with_the_inverted_t_test():
    local, centralized = np.array([0.60, 0.63, 0.58, 0.62, 0.61]), np.array([0.80, 0.82, 0.81, 0.79, 0.83])
    federated = np.array([0.75, 0.74, 0.78, 0.75, 0.77])
    result = share_recovered(federated, local, centralized)
    assert result.interval.mean == pytest.approx((federated.mean() - local.mean()) / (centralized.mean() - local.mean()))
    assert (result.interval.num, result.interval.kind, result.reason) == (5, "Fieller over seeds", "")
    # At its ends the paired t-test is at exactly 5 %.
    for end in (result.interval.low, result.interval.high):
        p_value = stats.ttest_1samp(federated - local - end * (centralized - local), 0).pvalue
        assert p_value == pytest.approx(0.05, abs=1e-9)
    assert result.interval.low < result.interval.mean < result.interval.high


def test_share_recovered_with_a_gap_known_exactly_is_students():
    federated = [0.70, 0.75, 0.80]
    share, plain = share_recovered(federated, [0.5] * 3, [0.9] * 3).interval, seed_interval(federated)
    expected = [(value - 0.5) / 0.4 for value in (plain.mean, plain.low, plain.high)]
    assert [share.mean, share.low, share.high] == pytest.approx(expected)


def test_share_recovered_says_why_a_number_is_missing():
    no_gap = share_recovered([0.7, 0.8], [0.6, 0.8], [0.7, 0.7])
    assert np.isnan(no_gap.interval.mean) and no_gap.reason == "centralized is not better than local: no gap"
    unsure = share_recovered([0.7, 0.8, 0.7], [0.6, 0.8, 0.7], [0.9, 0.7, 0.75])
    assert np.isfinite(unsure.interval.mean) and np.isnan([unsure.interval.low, unsure.interval.high]).all()
    assert "not significant" in unsure.reason
    one = share_recovered([0.7], [0.6], [0.8])
    assert one.interval.mean == pytest.approx(0.5) and np.isnan(one.interval.low) and one.reason == "one seed has no interval"
    with pytest.raises(ValueError, match="got 2 federated, 2 local and 1 centralized"):
        share_recovered([0.7, 0.8], [0.6, 0.7], [0.9])


def test_fiellers_interval_of_five_seeds_covers_95_percent():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(2000):
        local, centralized = rng.normal(0.6, 0.02, 5), rng.normal(0.8, 0.02, 5)
        interval = share_recovered(rng.normal(0.74, 0.02, 5), local, centralized).interval
        covered += interval.low <= 0.7 <= interval.high
    assert covered / 2000 == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / 2000))


# --- Gini ---


def test_gini_by_hand():
    assert gini([5, 5, 5]) == 0 and gini([0, 0, 0, 8]) == pytest.approx(0.75) and gini([3]) == 0
    # Pairs differ by 5, 3 and 2: over all 9 ordered pairs the mean difference is 20/9; the mean is 10/3.
    assert gini([6, 1, 3]) == pytest.approx((2 * 10 / 9) / 2 / (10 / 3))
    for sizes in ([-1, 2], [0, 0], []):
        with pytest.raises(ValueError, match=r"got \["):
            gini(sizes)
