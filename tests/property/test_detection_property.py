"""What must hold of any round's updates: the order and the unit of the hospitals' updates are nothing."""

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fl_utils.trust.detection import LEAST_UPDATES, look, precision_recall

SETTINGS = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def some_updates(n, bad, factor, few_values, rng):
    if few_values:  # equal rows, constant columns and ties
        return rng.integers(-1, 2, (n, 8)).astype(np.float32)
    updates = rng.normal(size=8) + rng.normal(size=(n, 8))
    updates[: min(bad, n)] *= factor
    return updates.astype(np.float32)


rounds = {
    "n": st.integers(1, 12), "bad": st.integers(0, 5), "factor": st.sampled_from([-5.0, 0.0, 1.0, 10.0, 1e6]),
    "few_values": st.booleans(), "seed": seeds,
}  # fmt: skip


@SETTINGS
@given(**rounds, faults=st.integers(0, 3))
def test_the_order_of_the_hospitals_is_nothing(n, bad, factor, few_values, seed, faults):
    rng = np.random.default_rng(seed)
    updates = some_updates(n, bad, factor, few_values, rng)
    updates[rng.permutation(n)[:faults], 0] = np.nan
    order = rng.permutation(n)
    one, other = look(updates, slice(3, 8)), look(updates[order], slice(3, 8))
    for name in one:
        np.testing.assert_array_equal(one[name][order], other[name])


@SETTINGS
@given(**rounds)
def test_numbers_and_flags_are_what_they_can_be(n, bad, factor, few_values, seed):
    seen = look(some_updates(n, bad, factor, few_values, np.random.default_rng(seed)), slice(3, 8))
    assert (seen["norm"] >= 0).all() and (seen["cosine_distance"] >= 0).all() and (seen["cosine_distance"] <= 2).all()
    assert 2 * seen["flag_pca"].sum() < n and 2 * seen["flag_cosine"].sum() <= n
    if n < LEAST_UPDATES:
        assert np.isnan(seen["pca_0"]).all() and not seen["flag_pca"].any() and not seen["flag_cosine"].any()
    else:
        assert abs(seen["pca_0"].mean()) < 1e-9 and abs(seen["pca_1"].mean()) < 1e-9
        assert seen["pca_0"].var() >= seen["pca_1"].var() - 1e-9
        assert seen["pca_0"].var() + seen["pca_1"].var() <= 5 + 1e-9  # all variance of five standardised columns


@SETTINGS
@given(**rounds, power=st.integers(-20, 20))
def test_the_unit_of_the_updates_is_nothing(n, bad, factor, few_values, seed, power):
    """A power of two is exact in floats."""
    updates = some_updates(n, bad, factor, few_values, np.random.default_rng(seed))
    assume(n >= LEAST_UPDATES)
    one, other = look(updates, slice(3, 8)), look(updates * np.float32(2.0**power), slice(3, 8))
    np.testing.assert_allclose(one["norm"] * 2.0**power, other["norm"], rtol=1e-12)
    np.testing.assert_allclose(one["cosine_distance"], other["cosine_distance"], atol=1e-12)


@SETTINGS
@given(n=st.integers(5, 12), direction=seeds, factor=st.sampled_from([-1.0, -10.0, -1e6]))
def test_one_who_turns_around_among_the_like_minded_is_flagged(n, direction, factor):
    rng = np.random.default_rng(direction)
    common = rng.choice([-1.0, 1.0], 40)
    updates = (common + 0.05 * rng.normal(size=(n, 40))).astype(np.float32)
    updates[0] *= factor
    seen = look(updates, slice(20, 40))
    assert seen["flag_cosine"][0] and np.flatnonzero(seen["flag_pca"]).tolist() == [0]


@SETTINGS
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=20))
def test_precision_and_recall_change_places_with_flags_and_attackers(pairs):
    flags, attackers = (np.array(column) for column in zip(*pairs, strict=True))
    precision, recall, false_alarms = precision_recall(flags, attackers)
    np.testing.assert_equal(precision_recall(attackers, flags)[:2], (recall, precision))
    np.testing.assert_allclose(1 - precision_recall(~flags, ~attackers)[1], false_alarms)
