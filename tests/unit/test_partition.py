"""Partitions: the shares of each kind, and what is refused; see also property/test_partition_property."""

import numpy as np
import pytest

from fl_utils.data.partition import (
    PartitionError, deal, dirichlet_shares, heterogeneity, iid_shares, natural_partition, pathological_shares,
    quantity_shares,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_iid_shares_are_even():
    np.testing.assert_array_equal(iid_shares(3, 4), np.full((3, 4), 0.25))


def test_dirichlet_shares_have_the_moments_of_the_distribution():
    """Mean 1 / C and variance (1/C)(1 - 1/C) / (C alpha + 1), over 20000 classes; tolerances of 5 standard errors."""
    for alpha in (0.1, 1.0, 10.0):
        shares = dirichlet_shares(20000, 5, alpha=alpha, rng=rng())
        assert shares.mean(axis=0) == pytest.approx(np.full(5, 0.2), abs=5 * shares.std() / np.sqrt(20000))
        assert shares.var(axis=0) == pytest.approx(np.full(5, 0.2 * 0.8 / (5 * alpha + 1)), rel=0.06)


def test_dirichlet_draws_each_class_by_itself_and_quantity_all_alike():
    skewed, sized = (make(4, 6, alpha=0.5, rng=rng()) for make in (dirichlet_shares, quantity_shares))
    assert len(np.unique(skewed.round(9), axis=0)) == 4 and len(np.unique(sized, axis=0)) == 1
    assert np.ptp(sized[0]) > 0.1


def test_pathological_shares_of_two_classes():
    """One class of two: half of the hospitals hold each, evenly."""
    shares = pathological_shares(2, 8, classes_per_client=1, rng=rng())
    assert np.array_equal((shares > 0).sum(axis=0), np.ones(8)) and np.array_equal((shares > 0).sum(axis=1), [4, 4])
    assert np.array_equal(np.unique(shares), [0, 0.25])


def test_a_class_goes_to_another_pair_of_hospitals_with_another_seed():
    seen = {(pathological_shares(4, 4, classes_per_client=2, rng=rng(seed)) > 0).tobytes() for seed in range(10)}
    assert len(seen) > 2


@pytest.mark.parametrize("make", [dirichlet_shares, quantity_shares])
@pytest.mark.parametrize("alpha", [0, -1, np.nan, np.inf])
def test_alpha_must_be_a_positive_number(make, alpha):
    with pytest.raises(PartitionError, match=f"_alpha is {alpha}; expected a number above 0 .smaller is more skewed"):
        make(2, 3, alpha=alpha, rng=rng())


@pytest.mark.parametrize("make", [
    iid_shares, lambda k, c: dirichlet_shares(k, c, alpha=1, rng=rng()),
    lambda k, c: quantity_shares(k, c, alpha=1, rng=rng()),
    lambda k, c: pathological_shares(k, c, classes_per_client=1, rng=rng()),
])  # fmt: skip
def test_there_is_at_least_one_hospital(make):
    with pytest.raises(PartitionError, match="num_clients is 0; expected 1 or more"):
        make(2, 0)


def test_pathological_needs_every_class_seen():
    for wrong in (0, 5):
        with pytest.raises(PartitionError, match=f"classes_per_client is {wrong}; expected 1 to 4"):
            pathological_shares(4, 8, classes_per_client=wrong, rng=rng())
    with pytest.raises(PartitionError, match="3 hospitals with 1 classes each cannot hold 4 classes. Use more hospitals"):
        pathological_shares(4, 3, classes_per_client=1, rng=rng())


def test_deal_refuses_arrays_that_do_not_fit():
    with pytest.raises(PartitionError, match=r"labels \(3,\) and groups \(2,\) must be 1-D and of one length"):
        deal([0, 1, 0], [0, 1], iid_shares(2, 2), rng=rng())
    with pytest.raises(PartitionError, match=r"labels \(3, 2\) and groups"):
        deal(np.zeros((3, 2), int), [0, 1, 2], iid_shares(2, 2), rng=rng())
    with pytest.raises(PartitionError, match="labels go up to 2, but shares has 2 classes"):
        deal([0, 1, 2], [0, 1, 2], iid_shares(2, 2), rng=rng())


def test_too_few_groups_for_the_minimum_says_what_to_change():
    with pytest.raises(PartitionError, match="9 images cannot give each of 4 hospitals at least 3 .*Use fewer hospitals"):
        deal(np.zeros(9, int), np.arange(9), iid_shares(1, 4), rng=rng(), min_client_examples=3)
    with pytest.raises(PartitionError, match="in whole groups"):  # enough images, in too few groups
        deal(np.zeros(12, int), np.repeat([0, 1], 6), iid_shares(1, 3), rng=rng(), min_client_examples=1)


def test_filling_up_prefers_a_class_that_the_hospital_is_to_have():
    """Hospital 1 is to have class 1 only, and got too little of it."""
    labels = np.array([0] * 40 + [1] * 40)
    shares = np.array([[1.0, 0.0], [0.9, 0.1]])
    few, filled = (deal(labels, np.arange(80), shares, rng=rng(), min_client_examples=least) for least in (0, 12))
    assert [len(part) for part in few] == [76, 4] and [len(part) for part in filled] == [68, 12]
    assert set(labels[filled[1]]) == {1} and set(few[1]) <= set(filled[1])


def test_filling_up_takes_another_class_where_there_is_no_other_way():
    labels = np.array([0] * 40 + [1] * 2)
    parts = deal(labels, np.arange(42), np.array([[1.0, 0.0], [0.0, 1.0]]), rng=rng(), min_client_examples=5)
    assert [len(part) for part in parts] == [37, 5] and sorted(labels[parts[1]]) == [0, 0, 0, 1, 1]


def test_no_images_are_dealt_to_nobody():
    parts = deal(np.empty(0, int), np.empty(0, int), iid_shares(2, 3), rng=rng())
    assert [part.tolist() for part in parts] == [[], [], []] and all(part.dtype == np.int64 for part in parts)


def test_natural_hospitals_by_name():
    parts = natural_partition(np.array(["b", "a", "b"]), np.arange(3))
    assert {name: part.tolist() for name, part in parts.items()} == {"a": [1], "b": [0, 2]}
    with pytest.raises(PartitionError, match="1 of 2 images name no hospital"):
        natural_partition(np.array(["b", ""]), np.arange(2))


def test_heterogeneity_of_known_cases():
    assert heterogeneity([[5, 5], [5, 5]]) == {"js_distance": 0.0, "size_gini": 0.0}
    assert heterogeneity([[8, 0], [0, 8]]) == {"js_distance": pytest.approx(1), "size_gini": 0.0}
    # All of it at one of four hospitals: (C - 1) / C; those without an image have no mix.
    assert heterogeneity([[9, 3], [0, 0], [0, 0], [0, 0]]) == {"js_distance": 0.0, "size_gini": pytest.approx(0.75)}
    assert heterogeneity([[4, 2]]) == {"js_distance": 0.0, "size_gini": 0.0}


@pytest.mark.parametrize("counts", [[], [1, 2], [[0, 0], [0, 0]], [[1, -1], [2, 2]]])
def test_heterogeneity_needs_counts(counts):
    with pytest.raises(PartitionError, match="expected images by hospital and class, not all zero"):
        heterogeneity(counts)
