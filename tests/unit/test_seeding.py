"""Named generators: the same name gives the same numbers, another name others."""

import subprocess
import sys

import numpy as np
import pytest

from fl_utils import seeding


def test_the_same_names_give_the_same_numbers():
    a, b = (seeding.generator(3, "batch_order", 2, 7).random(5) for _ in range(2))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0, "init"), (1, "init")),
        ((0, "init"), (0, "noise")),
        ((0, "a", 1), (0, "a", "1")),
        ((0, "ab", "c"), (0, "a", "bc")),
        ((0, "a"), (0, "a", 0)),
        ((0, 1, 2), (0, 2, 1)),
    ],
)
def test_other_names_give_other_numbers(one, other):
    assert seeding.derive_seed(*one) != seeding.derive_seed(*other)
    assert seeding.generator(*one).integers(2**62) != seeding.generator(*other).integers(2**62)
    assert not np.array_equal(seeding.tf_seed(*one), seeding.tf_seed(*other))


def test_numbers_do_not_change_between_versions_and_processes():
    # Records of earlier runs stand on these numbers: they must never change.
    code = "from fl_utils import seeding as s; print(s.derive_seed(0, 'init'), *s.tf_seed(7, 'noise', 3))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == GOLDEN


GOLDEN = ["1885959132", "334634753", "2056251620"]


def test_streams_are_not_correlated():
    draws = np.array([seeding.generator(seed, "x").normal(size=400) for seed in range(20)])
    off_diagonal = np.corrcoef(draws)[~np.eye(20, dtype=bool)]
    assert np.abs(off_diagonal).max() < 0.25  # 5 standard errors


def test_seeds_fit_the_libraries():
    assert all(0 <= seeding.derive_seed(seed, "x") < 2**31 for seed in range(200))
    seed = seeding.tf_seed(0, "x")
    assert seed.shape == (2,) and seed.dtype == np.int32 and seed.flags.writeable


def test_the_purpose_must_be_named():
    with pytest.raises(ValueError, match="Name the purpose"):
        seeding.generator(0)
    with pytest.raises(ValueError, match="root seed is -1; it must be 0 or greater"):
        seeding.derive_seed(-1, "x")


def test_a_full_cohort_is_everyone():
    np.testing.assert_array_equal(seeding.cohort(0, 5, num_clients=4, clients_per_round=4), np.arange(4))


def test_cohorts_change_with_round_and_seed_and_reach_everyone():
    cohorts = [tuple(seeding.cohort(0, n, num_clients=5, clients_per_round=3)) for n in range(200)]
    assert len(set(cohorts)) == 10  # all 5 over 3
    counts = np.bincount(np.ravel(cohorts), minlength=5)
    assert (np.abs(counts - 120) < 5 * np.sqrt(200 * 0.6 * 0.4)).all()
    assert cohorts != [tuple(seeding.cohort(1, n, num_clients=5, clients_per_round=3)) for n in range(200)]


@pytest.mark.parametrize("size", [0, 6, -1])
def test_impossible_cohorts_are_refused(size):
    with pytest.raises(ValueError, match=f"clients_per_round is {size}; expected 1 to num_clients = 5"):
        seeding.cohort(0, 1, num_clients=5, clients_per_round=size)
