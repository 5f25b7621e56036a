"""What must hold for the ranks of every table of scores, and for every list of sizes."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fl_utils.statistics import average_ranks, critical_difference, friedman_test, gini, share_recovered

SETTINGS = settings(max_examples=100, deadline=None)
#: Few distinct values, so that ties are common.
values = st.integers(0, 6).map(lambda n: n / 6)
shapes = st.tuples(st.integers(2, 7), st.integers(3, 6))
tables = shapes.flatmap(lambda shape: arrays(float, shape, elements=values)).map(
    lambda table: pd.DataFrame(table, columns=[f"m{k}" for k in range(table.shape[1])])
)


@SETTINGS
@given(tables)
def test_ranks_of_k_methods_sum_to_k_k_plus_1_half(scores):
    ranks = average_ranks(scores)
    k = scores.shape[1]
    assert ranks.sum() == pytest.approx(k * (k + 1) / 2)
    assert ranks.between(1, k).all() and list(ranks.index) == list(scores.columns)


@SETTINGS
@given(tables, st.randoms())
def test_neither_the_order_of_blocks_nor_that_of_methods_counts(scores, random):
    blocks, methods = (random.sample(list(labels), len(labels)) for labels in (scores.index, scores.columns))
    shuffled = scores.loc[blocks, methods]
    np.testing.assert_allclose(average_ranks(shuffled)[scores.columns], average_ranks(scores))
    one, other = friedman_test(scores), friedman_test(shuffled)
    assert other.statistic == pytest.approx(one.statistic) and other.p_value == pytest.approx(one.p_value)


@SETTINGS
@given(tables)
def test_only_the_order_of_scores_counts(scores):
    moved = 3 * scores**3 - 1
    np.testing.assert_allclose(average_ranks(moved), average_ranks(scores))
    # Turned round, the ranks are turned round.
    np.testing.assert_allclose(average_ranks(-scores), scores.shape[1] + 1 - average_ranks(scores))


@SETTINGS
@given(tables)
def test_a_method_that_is_never_worse_never_ranks_lower(scores):
    scores = scores.assign(top=scores.max(axis=1))
    assert (average_ranks(scores)["top"] <= average_ranks(scores) + 1e-12).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(1, 40))
def test_more_blocks_tell_closer_ranks_apart(methods, blocks):
    assert 0 < critical_difference(methods, blocks + 1) < critical_difference(methods, blocks)
    assert critical_difference(methods, blocks, 0.05) > critical_difference(methods, blocks, 0.10)
    assert critical_difference(methods + 1, blocks) > critical_difference(methods, blocks)


seeds = st.lists(st.tuples(*[st.floats(0.125, 0.875, width=32)] * 3), min_size=2, max_size=8)


@SETTINGS
@given(seeds, st.floats(0.5, 2), st.floats(-1, 1))
def test_a_recovered_share_knows_no_unit_and_no_zero(triples, scale, shift):
    triples = np.array(triples).T
    if abs((triples[2] - triples[1]).mean()) < 1e-3:  # at the very edge of having no gap
        return
    one, moved = share_recovered(*triples), share_recovered(*(scale * triples + shift))
    if "not significant" not in one.reason + moved.reason:
        assert one.reason == moved.reason
        np.testing.assert_allclose(
            [moved.interval.mean, moved.interval.low, moved.interval.high],
            [one.interval.mean, one.interval.low, one.interval.high], rtol=1e-3, atol=1e-3,
        )
    anchors = share_recovered(triples[1], triples[1], triples[2]), share_recovered(triples[2], triples[1], triples[2])
    if (triples[2] - triples[1]).mean() > 0:
        assert [anchor.interval.mean for anchor in anchors] == pytest.approx([0, 1])


@SETTINGS
@given(st.lists(st.integers(0, 500), min_size=1, max_size=20).filter(any), st.randoms())
def test_gini_is_the_mean_difference_and_forgets_order_and_unit(sizes, random):
    pairs = np.abs(np.subtract.outer(sizes, sizes)).mean()
    assert gini(sizes) == pytest.approx(pairs / 2 / np.mean(sizes), abs=1e-12)
    assert gini(random.sample(sizes, len(sizes))) == gini(sizes)
    assert gini(7 * np.array(sizes)) == pytest.approx(gini(sizes)) and 0 <= gini(sizes) < 1
