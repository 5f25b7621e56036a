"""What must hold for every list of numbers."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_utils.statistics import cluster_bootstrap, holm, paired_seed_test, seed_interval

SETTINGS = settings(max_examples=100, deadline=None)
scores = st.floats(0, 1, width=32)
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@SETTINGS
@given(st.lists(scores, min_size=2, max_size=12), st.floats(-5, 5), st.randoms())
def test_an_interval_moves_with_its_values_and_forgets_their_order(values, shift, random):
    one, moved = seed_interval(values), seed_interval(np.array(values) + shift)
    assert one.low <= one.mean <= one.high
    np.testing.assert_allclose(
        [moved.mean, moved.low, moved.high], np.array([one.mean, one.low, one.high]) + shift, atol=1e-6
    )
    shuffled = seed_interval(random.sample(values, len(values)))
    np.testing.assert_allclose([shuffled.low, shuffled.high], [one.low, one.high], atol=1e-9)


@SETTINGS
@given(st.lists(st.tuples(scores, scores), min_size=2, max_size=10))
def test_a_paired_test_agrees_with_its_interval(pairs):
    a, b = np.array(pairs).T
    result = paired_seed_test(a, b)
    assert 0 <= result.p_value <= 1
    low, high = result.difference.low, result.difference.high
    if min(abs(low), abs(high)) > 1e-9 and high - low > 1e-9:  # not at the very edge
        assert (result.p_value < 0.05) == (low > 0 or high < 0)


@settings(max_examples=15, deadline=None)  # statsmodels collects garbage in every call: 0.1 s each
@given(p_values, st.randoms())
def test_holm_only_raises_keeps_the_order_and_stays_below_bonferroni(values, random):
    corrected, values = holm(values), np.array(values)
    assert (corrected >= values - 1e-12).all() and (corrected <= 1).all()
    assert (corrected <= np.minimum(1, values * len(values)) + 1e-12).all()
    assert (np.diff(corrected[np.argsort(values, kind="stable")]) >= -1e-12).all()
    order = random.sample(range(len(values)), len(values))
    np.testing.assert_allclose(holm(values[order]), corrected[order])


@SETTINGS
@given(st.lists(st.integers(-3, 12), min_size=1, max_size=40), st.integers(0, 2**32 - 1))
def test_a_draw_holds_whole_groups_and_as_many_as_there_are(groups, seed):
    groups = np.array(groups)
    sizes = {group: (groups == group).sum() for group in np.unique(groups)}

    def check(index):
        counts = np.bincount(index, minlength=len(groups))
        times = {group: set(counts[groups == group]) for group in sizes}
        assert all(len(values) == 1 for values in times.values())
        assert sum(values.pop() for values in times.values()) == len(sizes)
        return 1.0

    interval = cluster_bootstrap(check, groups, rng=np.random.default_rng(seed), num_resamples=5)
    assert interval.num == len(sizes) and interval.mean == interval.low == interval.high == 1


@SETTINGS
@given(st.lists(scores, min_size=1, max_size=30), st.integers(0, 2**32 - 1))
def test_an_interval_of_a_mean_stays_within_the_values(values, seed):
    values = np.array(values)
    interval = cluster_bootstrap(
        lambda index: values[index].mean(), np.arange(len(values)), rng=np.random.default_rng(seed), num_resamples=20
    )
    assert values.min() - 1e-9 <= interval.low <= interval.high <= values.max() + 1e-9
