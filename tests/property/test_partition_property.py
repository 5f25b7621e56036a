"""What must hold of every partition: nothing lost, groups whole, near its shares, minimum held or refused."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from fl_utils.data.partition import (
    PartitionError, deal, dirichlet_shares, heterogeneity, iid_partition, iid_shares, pathological_shares,
    quantity_shares,
)
from fl_utils.data.splits import groups_by_class

SETTINGS = settings(max_examples=40, deadline=None)
KINDS = ("iid", "dirichlet", "pathological", "quantity")
seeds = st.integers(0, 2**31)


def shares_of(kind, num_classes, num_clients, parameter, seed):
    rng = np.random.default_rng(seed)
    if kind == "iid":
        return iid_shares(num_classes, num_clients)
    if kind == "pathological":
        fewest = -(-num_classes // num_clients)  # to see every class
        classes_per_client = fewest + int(parameter * 7) % (num_classes - fewest + 1)
        return pathological_shares(num_classes, num_clients, classes_per_client=classes_per_client, rng=rng)
    make = {"dirichlet": dirichlet_shares, "quantity": quantity_shares}[kind]
    return make(num_classes, num_clients, alpha=parameter, rng=rng)


@st.composite
def cases(draw, pure=False):
    """(labels, groups, shares, num_clients, seed); `pure`: one label a group."""
    rng = np.random.default_rng(draw(seeds))
    num, num_classes, num_clients = draw(st.integers(1, 150)), draw(st.integers(1, 5)), draw(st.integers(1, 9))
    groups = rng.integers(0, draw(st.integers(1, 200)), num) * 3 + 7  # any numbers, in any order
    labels = rng.choice(num_classes, num, p=rng.dirichlet(np.ones(num_classes)))
    if pure:
        labels = groups % num_classes
    kind, parameter = draw(st.sampled_from(KINDS)), draw(st.sampled_from([0.01, 0.1, 0.5, 1.0, 30.0]))
    shares = shares_of(kind, num_classes, num_clients, parameter, draw(seeds))
    return labels, groups, shares, num_clients, draw(seeds)


def dealt(labels, groups, shares, seed, minimum=0):
    return deal(labels, groups, shares, rng=np.random.default_rng(seed), min_client_examples=minimum)


@SETTINGS
@given(st.sampled_from(KINDS), st.integers(1, 6), st.integers(1, 12), st.floats(0.001, 1e4), seeds)
def test_shares_are_shares(kind, num_classes, num_clients, parameter, seed):
    shares = shares_of(kind, num_classes, num_clients, parameter, seed)
    assert shares.shape == (num_classes, num_clients) and (shares >= 0).all() and np.isfinite(shares).all()
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    np.testing.assert_array_equal(shares, shares_of(kind, num_classes, num_clients, parameter, seed))


@SETTINGS
@given(cases(), st.sampled_from([0, 1, 2, 5, 10]))
def test_nothing_is_lost_groups_are_whole_and_the_minimum_is_held(case, minimum):
    labels, groups, shares, num_clients, seed = case
    try:
        parts = dealt(labels, groups, shares, seed, minimum)
    except PartitionError as error:
        assert f"{len(labels)} images cannot give each of {num_clients} hospitals at least {minimum}" in str(error)
        assert "Use fewer hospitals or more images" in str(error)
        # With single images there is always a way, if there are enough of them.
        assert len(np.unique(groups)) < len(labels) or len(labels) < num_clients * minimum
        return
    assert len(parts) == num_clients and min(map(len, parts)) >= minimum
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))  # disjoint and complete
    for one, other in itertools.combinations(parts, 2):
        assert not set(groups[one]) & set(groups[other])
    again = dealt(labels, groups, shares, seed, minimum)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


@SETTINGS
@given(st.integers(1, 100), st.integers(1, 6), st.sampled_from(KINDS), st.sampled_from([1, 3, 10]), seeds)
def test_single_images_are_refused_only_when_there_are_too_few(num, num_clients, kind, minimum, seed):
    labels = np.random.default_rng(seed).integers(0, 3, num)
    shares = shares_of(kind, 3, num_clients, 0.05, seed)
    if num < num_clients * minimum:
        with pytest.raises(PartitionError, match=f"{num} images cannot give each of {num_clients} hospitals"):
            dealt(labels, np.arange(num), shares, seed, minimum)
    else:
        assert min(map(len, dealt(labels, np.arange(num), shares, seed, minimum))) >= minimum


@SETTINGS
@given(cases())
def test_every_class_is_shared_as_drawn_within_its_largest_group(case):
    """The most that whole groups allow; quantity skew so gives every hospital the same mix of classes."""
    labels, groups, shares, num_clients, seed = case
    owner = np.empty(len(labels), int)
    for client, part in enumerate(dealt(labels, groups, shares, seed)):
        owner[part] = client
    for members in groups_by_class(labels, groups):
        label = np.bincount(labels[members[0]]).argmax()
        sizes = np.zeros(num_clients)
        for positions in members:
            sizes[owner[positions[0]]] += len(positions)
        assert (np.abs(sizes - shares[label] * sizes.sum()) < max(map(len, members)) + 1e-6).all()


@SETTINGS
@given(st.integers(40, 300), st.integers(1, 6), seeds)
def test_dirichlet_with_a_large_alpha_is_nearly_even(num, num_clients, seed):
    """At alpha = 1e4 a share differs from 1 / C by less than 0.02 (six standard deviations: 6 sqrt(1/4 / 2e4))."""
    labels = np.random.default_rng(seed).integers(0, 4, num)
    shares = dirichlet_shares(4, num_clients, alpha=1e4, rng=np.random.default_rng(seed))
    counts = np.array([np.bincount(labels[part], minlength=4) for part in dealt(labels, np.arange(len(labels)), shares, seed)])
    assert (np.abs(counts - np.bincount(labels, minlength=4) / num_clients) < 1 + 0.02 * counts.sum(axis=0)).all()


@SETTINGS
@given(cases(pure=True), st.integers(1, 5))
def test_pathological_hospitals_see_their_classes_only(case, classes_per_client):
    labels, groups, shares, num_clients, seed = case
    num_classes = len(shares)
    assume(classes_per_client <= num_classes <= num_clients * classes_per_client)
    shares = pathological_shares(
        num_classes, num_clients, classes_per_client=classes_per_client, rng=np.random.default_rng(seed)
    )
    hospitals_of_class = (shares > 0).sum(axis=1)
    assert ((shares > 0).sum(axis=0) == classes_per_client).all()
    assert hospitals_of_class.min() >= 1 and np.ptp(hospitals_of_class) <= 1
    for client, part in enumerate(dealt(labels, groups, shares, seed)):
        assert set(labels[part]) <= set(np.flatnonzero(shares[:, client]))


@SETTINGS
@given(cases())
def test_the_even_deal_is_that_of_even_shares(case):
    labels, groups, _, num_clients, seed = case
    assume(len(np.unique(groups)) >= num_clients)
    parts = iid_partition(labels, groups, num_clients=num_clients, rng=np.random.default_rng(seed))
    even = dealt(labels, groups, iid_shares(int(labels.max()) + 1, num_clients), seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, even, strict=True)) and min(map(len, parts)) > 0


@SETTINGS
@given(cases())
def test_the_numbers_of_the_groups_do_not_matter(case):
    labels, groups, shares, _, seed = case
    parts, renamed = dealt(labels, groups, shares, seed), dealt(labels, groups * 5 - 3, shares, seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, renamed, strict=True))


tables = st.integers(1, 7).flatmap(
    lambda num_classes: st.lists(
        st.lists(st.integers(0, 40), min_size=num_classes, max_size=num_classes), min_size=1, max_size=8
    )
).map(np.array).filter(lambda counts: counts.sum() > 0)


@SETTINGS
@given(tables, seeds)
def test_heterogeneity(counts, seed):
    found, sizes = heterogeneity(counts), counts.sum(axis=1)
    assert 0 <= found["js_distance"] <= 1 + 1e-12 and 0 <= found["size_gini"] < 1
    pairs = list(itertools.combinations(counts[sizes > 0], 2))
    # SciPy's square root of a divergence that rounding made negative is NaN: equal mixes.
    distances = [np.nan_to_num(jensenshannon(p, q, base=2)) for p, q in pairs]
    # Rounding of the divergence, 1e-16, is 1e-8 in its root.
    assert found["js_distance"] == pytest.approx(np.mean(distances) if pairs else 0, abs=1e-7)
    # Sorted sizes: G = 2 sum(i x_i) / (n sum(x)) - (n + 1) / n.
    ordered, num = np.sort(sizes), len(sizes)
    gini = 2 * np.sum(np.arange(1, num + 1) * ordered) / (num * sizes.sum()) - (num + 1) / num
    assert found["size_gini"] == pytest.approx(gini, abs=1e-12)
    rng = np.random.default_rng(seed)
    permuted = heterogeneity(counts[rng.permutation(len(counts))][:, rng.permutation(counts.shape[1])])
    assert permuted == {name: pytest.approx(value, abs=1e-7) for name, value in found.items()}
    assert heterogeneity(3 * counts) == {name: pytest.approx(value, abs=1e-7) for name, value in found.items()}


@SETTINGS
@given(st.lists(st.integers(0, 50), min_size=1, max_size=6).filter(any), st.integers(1, 6))
def test_heterogeneity_of_equal_hospitals_is_nothing(mix, num_clients):
    assert heterogeneity([mix] * num_clients) == {"js_distance": 0.0, "size_gini": pytest.approx(0, abs=1e-12)}


@SETTINGS
@given(st.lists(st.integers(1, 50), min_size=2, max_size=6))
def test_heterogeneity_of_hospitals_without_a_class_in_common_is_one(sizes):
    assert heterogeneity(np.diag(sizes))["js_distance"] == pytest.approx(1)
