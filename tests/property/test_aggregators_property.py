"""What must hold for all updates: the clients' order is nothing, few bad ones do not carry the result away."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_utils.learning import robust

SETTINGS = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**32 - 1)
#: From inside the honest spread to far beyond it.
sizes = st.sampled_from([0.5, 3.0, 1e3, 1e9, 1e15])
GEOMETRIC_MEDIAN = tf.function(robust.geometric_median, input_signature=[tf.TensorSpec([None, 3])])  # as TFF runs it
RULES = {
    "median": robust.coordinate_median,
    "trimmed mean": lambda rows: robust.trimmed_mean(rows, share=0.3),
    "krum": lambda rows: robust.krum(rows, num_malicious=2),
    "multi-krum": lambda rows: robust.multi_krum(rows, num_malicious=2, num_selected=3),
    "geometric median": GEOMETRIC_MEDIAN,
    "fltrust": lambda rows: robust.fltrust(rows, np.array([1.0, -0.5, 0.2], np.float32)),
}


def attacked(honest, num_bad, size, collude, rng):
    """Honest rows, and bad ones that are all alike or each elsewhere."""
    bad = rng.normal(size=(1 if collude else num_bad, honest.shape[1])) * size
    return np.concatenate([honest, np.broadcast_to(bad, (num_bad, honest.shape[1])).astype(np.float32)])


def honest_rows(n, rng, d=3):
    return (rng.normal(size=d) + rng.normal(size=(n, d))).astype(np.float32)


def farthest(rows, point):
    return np.linalg.norm(rows.astype(np.float64) - np.asarray(point, np.float64), axis=1).max()


@pytest.mark.parametrize("name", RULES)
@SETTINGS
@given(n=st.integers(1, 9), seed=seeds, size=sizes, few_values=st.booleans())
def test_the_order_of_the_clients_is_nothing(name, n, seed, size, few_values):
    """Few values: rows that are the same, and ties. With n up to 4, Krum's best two tie always."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(-1, 2, (n, 3)).astype(np.float32) if few_values else honest_rows(n, rng)
    rows[: n // 3] *= size
    one, other = RULES[name](rows).numpy(), RULES[name](rng.permutation(rows)).numpy()
    if name in ("geometric median", "fltrust"):  # sums, whose rounding follows the order
        np.testing.assert_allclose(one, other, atol=1e-3 * max(1, np.median(np.linalg.norm(rows, axis=1))))
    else:
        np.testing.assert_array_equal(one, other)


@SETTINGS
@given(bad=st.integers(0, 5), more=st.integers(1, 4), seed=seeds, size=sizes, collude=st.booleans())
def test_the_median_stays_in_the_honest_range_below_a_half(bad, more, seed, size, collude):
    rng = np.random.default_rng(seed)
    honest = honest_rows(bad + more, rng)
    found = robust.coordinate_median(attacked(honest, bad, size, collude, rng)).numpy()
    assert (found >= honest.min(axis=0)).all() and (found <= honest.max(axis=0)).all()


@SETTINGS
@given(n=st.integers(2, 12), share=st.sampled_from([0.1, 0.2, 0.34, 0.45]), seed=seeds, size=sizes,
       collude=st.booleans())
def test_the_trimmed_mean_stays_in_the_honest_range_up_to_its_share(n, share, seed, size, collude):
    rng, bad = np.random.default_rng(seed), int(share * n)
    honest = honest_rows(n - bad, rng)
    found = robust.trimmed_mean(attacked(honest, bad, size, collude, rng), share=share).numpy()
    rounding = 1e-6 * np.abs(honest).max()
    assert (found >= honest.min(axis=0) - rounding).all() and (found <= honest.max(axis=0) + rounding).all()


@SETTINGS
@given(bad=st.integers(0, 4), more=st.integers(0, 4), seed=seeds, size=sizes, collude=st.booleans())
def test_krum_stays_near_the_honest_if_n_is_2_f_and_3(bad, more, seed, size, collude):
    """An honest score is (n - f - 2) D^2 at most, D the honest diameter; n - 2 f - 1 of a chosen row's neighbours are
    honest at least, so one of these is as near as the ratio says. Means of chosen rows: the same, and D."""
    rng, n = np.random.default_rng(seed), 2 * bad + 3 + more
    honest = honest_rows(n - bad, rng)
    rows = attacked(honest, bad, size, collude, rng)
    diameter = max(farthest(honest, row) for row in honest)
    radius = 1.0001 * diameter * np.sqrt((n - bad - 2) / max(n - 2 * bad - 1, 1))
    one = robust.krum(rows, num_malicious=bad).numpy()
    assert np.linalg.norm(honest - one, axis=1).min() <= radius
    assert (rows == one).all(axis=1).any()
    several = robust.multi_krum(rows, num_malicious=bad, num_selected=n - bad)
    assert farthest(honest, several) <= radius + 1.0001 * diameter


@SETTINGS
@given(bad=st.integers(0, 4), more=st.integers(1, 4), seed=seeds, size=sizes, collude=st.booleans())
def test_the_geometric_median_stays_near_the_honest_below_a_half(bad, more, seed, size, collude):
    rng = np.random.default_rng(seed)
    honest = honest_rows(bad + more, rng)
    found = GEOMETRIC_MEDIAN(attacked(honest, bad, size, collude, rng)).numpy()
    alpha, centre = bad / (2 * bad + more), honest.mean(axis=0)
    bound = 2 * (1 - alpha) / (1 - 2 * alpha) * farthest(honest, centre)
    assert np.linalg.norm(found - centre) <= 1.001 * bound


@SETTINGS
@given(n=st.integers(1, 9), seed=seeds, size=sizes, collude=st.booleans())
def test_fltrust_is_never_longer_than_the_servers_update_nor_against_it(n, seed, size, collude):
    rng = np.random.default_rng(seed)
    server = honest_rows(1, rng)[0]
    found = robust.fltrust(attacked(honest_rows(1, rng), n, size, collude, rng), server).numpy()
    length = np.linalg.norm(server)
    assert np.linalg.norm(found) <= 1.00001 * length and found @ server >= -1e-6 * length**2


def test_more_than_a_rule_tolerates_does_carry_it_away():
    """So that the bounds above are not true of everything."""
    rng = np.random.default_rng(0)
    honest = honest_rows(4, rng)
    rows = attacked(honest, 5, 1e6, True, rng)
    for name, rule in RULES.items():
        if name == "trimmed mean" or name == "fltrust":
            continue
        assert farthest(honest, rule(rows)) > 1e4, name
    mostly = attacked(honest_rows(6, rng), 4, 1e6, True, rng)
    assert farthest(honest, robust.trimmed_mean(mostly, share=0.3)) > 1e4
    assert farthest(honest, mostly.mean(axis=0)) > 1e4
