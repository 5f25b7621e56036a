"""Cohorts and seeds for any numbers: pure functions, in range."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_utils import seeding

SETTINGS = settings(max_examples=150, deadline=None)
seeds = st.integers(0, 2**40)
names = st.lists(st.one_of(st.text(max_size=8), st.integers(-5, 10**6)), min_size=1, max_size=4).map(tuple)


@SETTINGS
@given(seeds, st.integers(0, 10**6), st.integers(1, 200), st.data())
def test_a_cohort_is_a_sorted_draw_without_replacement(seed, round_num, num_clients, data):
    size = data.draw(st.integers(1, num_clients))
    cohort = seeding.cohort(seed, round_num, num_clients=num_clients, clients_per_round=size)
    assert cohort.dtype == np.int64 and cohort.shape == (size,)
    assert (np.diff(cohort) > 0).all() and cohort.min() >= 0 and cohort.max() < num_clients


@SETTINGS
@given(seeds, st.lists(st.integers(0, 1000), min_size=1, max_size=8), st.randoms())
def test_a_cohort_depends_on_seed_and_round_only(seed, rounds, random):
    def draw(order):
        return {n: tuple(seeding.cohort(seed, n, num_clients=9, clients_per_round=4)) for n in order}

    first = draw(rounds)
    np.random.seed(random.randrange(2**32))  # whatever else draws numbers
    shuffled = random.sample(rounds, len(rounds))
    assert draw(shuffled) == first


@SETTINGS
@given(seeds, names)
def test_seeds_are_pure_and_in_range(seed, purpose):
    assert seeding.derive_seed(seed, *purpose) == seeding.derive_seed(seed, *purpose)
    assert 0 <= seeding.derive_seed(seed, *purpose) < 2**31
    np.testing.assert_array_equal(seeding.tf_seed(seed, *purpose), seeding.tf_seed(seed, *purpose))
    assert seeding.generator(seed, *purpose).random() == seeding.generator(seed, *purpose).random()


@SETTINGS
@given(seeds, names, names)
def test_different_purposes_have_different_streams(seed, one, other):
    same = seeding.generator(seed, *one).integers(2**63) == seeding.generator(seed, *other).integers(2**63)
    assert same == (one == other)
