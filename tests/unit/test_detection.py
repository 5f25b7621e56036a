"""Two looks at a round's updates: who is flagged, and the numbers against formulas written out here."""

import numpy as np
import pytest
from scipy import stats

from fl_utils.trust import detection
from fl_utils.trust.detection import look, precision_recall

LAST = slice(80, 100)
NUMBERS, FLAGS = ("norm", "cosine_distance", "pca_0", "pca_1"), ("flag_pca", "flag_cosine")


def updates_of(n=10, d=100, bad=0, factor=-5.0, spread=0.6, seed=0):
    """Updates around one direction; the first `bad` ones are sent times `factor`."""
    rng = np.random.default_rng(seed)
    updates = rng.normal(size=d) + spread * rng.normal(size=(n, d))
    updates[:bad] *= factor
    return updates.astype(np.float32)


# --- numbers ---


def test_norm_and_distance_by_hand():
    updates = np.zeros((5, 4), np.float32)
    updates[:, 0], updates[:, 1] = (1, 2, 3, 4, 0), (0, 0, 4, -4, 5)
    seen = look(updates, slice(0, 2))  # the median is (2, 0, 0, 0)
    np.testing.assert_allclose(seen["norm"], [1, 2, 5, np.sqrt(32), 5])
    np.testing.assert_allclose(seen["cosine_distance"], [0, 0, 1 - 3 / 5, 1 - np.sqrt(1 / 2), 1], atol=1e-12)


def test_an_update_of_zero_is_at_distance_one():
    updates = updates_of()
    updates[3] = 0
    assert look(updates, LAST)["cosine_distance"][3] == 1
    assert (look(np.zeros((6, 9), np.float32), slice(0, 3))["cosine_distance"] == 1).all()


def test_components_are_those_of_the_correlation_matrix():
    updates = updates_of()
    last = updates[:, LAST].astype(float)
    values, vectors = np.linalg.eigh(np.corrcoef(last.T))
    scores = stats.zscore(last, axis=0) @ vectors[:, [-1, -2]]
    seen = look(updates, LAST)
    for place in (0, 1):
        found, wanted = seen[f"pca_{place}"], scores[:, place]
        np.testing.assert_allclose(found, np.sign(found @ wanted) * wanted, atol=1e-5)
        assert found.var() == pytest.approx(values[-1 - place], rel=1e-5)


def test_the_sign_of_a_component_is_that_of_its_largest_loading():
    """Component 0 follows column 0, which is much more alike to the others than they are to each other."""
    rng = np.random.default_rng(4)
    common = rng.normal(size=12)
    last = np.stack([common, *(sign * (common + 0.5 * rng.normal(size=12)) for sign in (-1, -1, -1, 1))], axis=1)
    for flipped in (1, -1):
        seen = look((flipped * last).astype(np.float32), slice(None))
        assert np.corrcoef(seen["pca_0"], flipped * common)[0, 1] > 0.9


def test_only_the_last_layer_is_in_the_components():
    updates, other = updates_of(), updates_of()
    other[:, :80] = np.random.default_rng(7).normal(size=(10, 80))
    for name in ("pca_0", "pca_1", "flag_pca"):
        np.testing.assert_allclose(look(updates, LAST)[name], look(other, LAST)[name], atol=1e-12)
    assert not np.array_equal(look(updates, LAST)["norm"], look(other, LAST)["norm"])
    by_index = look(updates, np.arange(80, 100))
    np.testing.assert_array_equal(by_index["pca_0"], look(updates, LAST)["pca_0"])


# --- flags ---


@pytest.mark.parametrize("bad", [1, 2, 3, 4])
def test_flipped_and_enlarged_updates_are_flagged_by_both(bad):
    for seed in range(5):
        seen = look(updates_of(bad=bad, spread=0.3, seed=seed), LAST)
        wanted = np.arange(10) < bad
        np.testing.assert_array_equal(seen["flag_pca"], wanted)
        assert seen["flag_cosine"][:bad].all() and seen["flag_cosine"][bad:].mean() < 0.2


def test_honest_hospitals_are_seldom_flagged():
    seen = [look(updates_of(seed=seed), LAST) for seed in range(40)]
    for flag in FLAGS:
        assert np.mean([one[flag] for one in seen]) < 0.05


def test_a_small_group_that_only_turns_the_last_layer_is_seen_by_the_components_alone():
    updates = updates_of(d=2000)
    updates[:2, 1990:] -= 8
    seen = look(updates, slice(1990, 2000))
    assert np.flatnonzero(seen["flag_pca"]).tolist() == [0, 1]
    assert look(updates_of(d=2000), slice(1990, 2000))["flag_pca"].sum() == 0


def test_two_groups_of_one_size_flag_nobody_and_a_majority_flags_the_others():
    assert not look(updates_of(bad=5), LAST)["flag_pca"].any()
    assert np.flatnonzero(look(updates_of(bad=7), LAST)["flag_pca"]).tolist() == [7, 8, 9]


def test_the_silhouette_decides(monkeypatch):
    updates = updates_of(bad=2)
    assert look(updates, LAST)["flag_pca"].sum() == 2
    monkeypatch.setattr(detection, "SILHOUETTE", 1.0)
    assert not look(updates, LAST)["flag_pca"].any()


def test_the_cosine_flag_is_the_modified_z_score():
    for seed in range(20):
        seen = look(updates_of(bad=1, factor=0.1, spread=1.2, seed=seed), LAST)
        distance = seen["cosine_distance"]
        score = (distance - np.median(distance)) / stats.median_abs_deviation(distance) * 0.6745
        np.testing.assert_array_equal(seen["flag_cosine"], score > 3.5)


def test_where_most_agree_whoever_differs_is_flagged():
    updates = np.tile(updates_of(n=1), (10, 1))
    updates[7] *= -1
    seen = look(updates, LAST)
    assert np.flatnonzero(seen["flag_cosine"]).tolist() == [7] == np.flatnonzero(seen["flag_pca"]).tolist()


def test_equal_updates_flag_nobody():
    seen = look(np.tile(updates_of(n=1), (10, 1)), LAST)
    assert not seen["flag_pca"].any() and not seen["flag_cosine"].any()
    assert (seen["pca_0"] == 0).all() and (seen["pca_1"] == 0).all()
    # The same direction in other lengths: cosines differ by rounding alone.
    scaled = updates_of(n=1) * np.linspace(0.1, 3, 10, dtype=np.float32)[:, None]
    assert not look(scaled, LAST)["flag_cosine"].any()


# --- updates that take no part ---


def test_what_is_not_finite_takes_no_part():
    updates = updates_of(bad=2)
    alone = look(updates, LAST)
    with_faults = np.insert(updates, [0, 5], np.float32(1), axis=0)
    with_faults[0, 3], with_faults[6, 99] = np.nan, -np.inf
    seen = look(with_faults, LAST)
    for name in NUMBERS:
        assert np.isnan(seen[name][[0, 6]]).all()
    for name in FLAGS:
        assert not seen[name][[0, 6]].any()
    for name in NUMBERS + FLAGS:
        np.testing.assert_array_equal(np.delete(seen[name], [0, 6]), alone[name])


def test_fewer_than_four_flag_nobody():
    updates = updates_of(n=4, bad=1, factor=-100)
    assert look(updates, LAST)["flag_pca"][0]
    updates[3] = np.nan
    seen = look(updates, LAST)
    assert not seen["flag_pca"].any() and not seen["flag_cosine"].any()
    assert np.isnan(seen["pca_0"]).all() and np.isfinite(seen["norm"][:3]).all()
    nobody = look(np.full((3, 9), np.nan, np.float32), slice(0, 3))
    assert np.isnan(nobody["norm"]).all() and not nobody["flag_cosine"].any()


def test_large_updates_do_not_overflow():
    seen = look(updates_of(bad=2) * np.float32(1e37), LAST)
    assert all(np.isfinite(seen[name]).all() for name in NUMBERS)
    assert np.flatnonzero(seen["flag_pca"]).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("updates", "columns", "said"),
    [
        (np.zeros(5, np.float32), slice(0, 2), r"ndarray \(5,\) of float32"),
        (np.zeros((0, 5), np.float32), slice(0, 2), r"\(0, 5\)"),
        (np.zeros((5, 5), int), slice(0, 2), "int64"),
        ([[1.0, 2.0]], slice(0, 2), "list"),
        (np.zeros((5, 5), np.float32), slice(4, 5), "1 of 5 columns"),
        (np.zeros((5, 5), np.float32), slice(5, 9), "0 of 5 columns"),
        (np.zeros((5, 5), np.float32), np.array([1, 7]), "does not fit updates of 5 columns"),
        (np.zeros((5, 5), np.float32), 3, "1 of 5 columns"),
    ],
)
def test_what_does_not_fit_is_refused(updates, columns, said):
    with pytest.raises(ValueError, match=said):
        look(updates, columns)


# --- precision and recall ---


def test_precision_recall_and_false_alarms_by_hand():
    flags, attackers = [1, 1, 0, 1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert precision_recall(flags, attackers) == pytest.approx((2 / 3, 2 / 3, 1 / 7))


def test_what_is_not_defined_is_nan():
    nobody, two = np.zeros(4, bool), np.array([True, True, False, False])
    assert precision_recall(nobody, two)[1:] == (0, 0) and np.isnan(precision_recall(nobody, two)[0])
    assert precision_recall(two, nobody)[::2] == (0, 0.5) and np.isnan(precision_recall(two, nobody)[1])
    assert np.isnan(precision_recall(two, ~nobody)[2])


@pytest.mark.parametrize(
    ("flags", "attackers"), [([1, 0], [1]), ([1, 2], [1, 0]), ([0.5, 0], [1, 0]), ([1, 0], [np.nan, 0])]
)
def test_flags_that_are_none_are_refused(flags, attackers):
    with pytest.raises(ValueError, match="True or False each"):
        precision_recall(flags, attackers)
