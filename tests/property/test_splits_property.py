"""What must hold for every dataset: no leakage, nothing lost, even shares, determinism."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_utils.config import ExperimentConfig
from fl_utils.data import DataError, ImageDataset, PartitionError, iid_partition, make_split, natural_partition
from fl_utils.data.splits import SplitKind, groups_by_class
from fl_utils.data.types import group_closure

SETTINGS = settings(max_examples=100, deadline=None)
KINDS = get_args(SplitKind)


@st.composite
def datasets(draw):
    """Small datasets with patients, copies, pictures saved again (both also under other labels, of other
    patients and in the other split), near-duplicates, series, natural hospitals, rare classes and several labels."""
    num = draw(st.integers(1, 80))
    num_classes = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    patients = rng.integers(0, draw(st.integers(1, 2 * num)), num)
    contents = rng.integers(0, draw(st.integers(1, 4 * num)), num)
    # A picture is one file or more: equal files show equal pictures, never the other way round.
    pictures = rng.integers(0, draw(st.integers(1, 8 * num)), contents.max() + 1)[contents].astype(str)
    contents = contents.astype(str)
    labels = rng.integers(0, num_classes, num)
    if draw(st.booleans()):  # one label a patient, as in most data
        labels = patients % num_classes
    if draw(st.integers(0, 4)) == 0:  # several findings an image
        labels = (rng.random((num, num_classes)) < 0.3).astype(np.uint8)
    patients = np.where(rng.random(num) < draw(st.floats(0, 1)), patients.astype(str), "")
    # Some pictures nearly look like others, in chains; some files are tied by their numbers; some images name
    # a hospital, and what they are tied to may lie in another.
    pairs = tuple(rng.integers(0, num, (2, draw(st.integers(0, 8)))))
    blocks = np.where(rng.random(num) < draw(st.floats(0, 0.5)), (np.arange(num) // 8).astype(str), "")
    hospitals = rng.choice(["", "north", "south"][draw(st.integers(0, 2)) :], num)
    return ImageDataset(
        name="drawn",
        images=np.zeros((num, 2, 2, 1), np.uint8),
        labels=labels if labels.ndim == 2 else labels.astype(np.int64),
        class_names=tuple("abcd"[:num_classes]),
        groups=group_closure(contents, pictures, patients, blocks, pairs=pairs),
        duplicate_groups=group_closure(contents),
        picture_groups=group_closure(contents, pictures),
        near_groups=group_closure(contents, pictures, pairs=pairs),
        patients=patients,
        hospitals=hospitals,
        published_split=np.where(rng.random(num) < 0.25, "test", "train"),
        sources=np.arange(num).astype(str),
        masks=None,
        fingerprint="0" * 64,
        synthetic=True,
    )


fractions = st.floats(0.05, 0.5)
seeds = st.integers(0, 2**31)


def try_split(data, **arguments):
    try:
        return make_split(data, **arguments)
    except DataError as error:
        assert "leaves no image" in str(error)
        return None


def values(column, indices=slice(None)):
    return set(np.asarray(column)[indices].tolist())


def sides_of(split):
    return split.train, split.validation, split.test


def assert_apart(columns, *sides):
    """No value of any of the columns lies in two of the sides; "" is no value."""
    for column in columns:
        for number, side in enumerate(sides):
            for other in sides[number + 1 :]:
                assert not (values(column, side) & values(column, other)) - {""}


def strata_of(data):
    """What is cut by itself: each class in each natural hospital."""
    return np.unique(data.hospitals, return_inverse=True)[1] * (data.num_classes + 1) + data.strata


def first_files(data):
    """The first file of each picture."""
    pictures = data.picture_groups.tolist()
    return sorted(pictures.index(picture) for picture in set(pictures))


def test_the_configuration_knows_the_same_kinds():
    assert get_args(ExperimentConfig.model_fields["split"].annotation) == KINDS


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(datasets(), fractions, fractions, seeds)
def test_every_kind(kind, data, validation_fraction, test_fraction, seed):
    """Sides are sorted and disjoint, nothing else is left out, copies are marked, the same seed gives the same."""
    arguments = {"validation_fraction": validation_fraction, "test_fraction": test_fraction, "seed": seed}
    split, again = (try_split(data, kind=kind, **arguments) for _ in range(2))
    assert (split is None) == (again is None)
    if split is None:
        return
    assert split.name == kind
    for side in sides_of(split):
        assert side.dtype == np.int64 and (np.diff(side) > 0).all()
    together = np.concatenate(sides_of(split)).tolist()
    assert len(together) == len(set(together))
    if kind in ("random", "published"):
        assert sorted(together) == list(range(len(data)))
    elif not kind.startswith("published"):
        assert sorted(together) == first_files(data)
    seen = values(data.picture_groups, np.concatenate([split.train, split.validation]))
    assert split.test_leaked.tolist() == [picture in seen for picture in data.picture_groups[split.test]]
    for side in ("train", "validation", "test", "test_leaked"):
        np.testing.assert_array_equal(getattr(split, side), getattr(again, side))


@SETTINGS
@given(datasets(), fractions, fractions, seeds)
def test_deduplicated(data, validation_fraction, test_fraction, seed):
    arguments = {"validation_fraction": validation_fraction, "test_fraction": test_fraction, "seed": seed}
    split = try_split(data, kind="deduplicated", **arguments)
    if split is None:
        assert len(values(data.groups)) < 2 * len(values(strata_of(data))) + 1
        return
    columns = (data.groups, data.patients, data.picture_groups, data.near_groups, data.duplicate_groups)
    assert_apart(columns, *sides_of(split))
    assert not split.test_leaked.any()
    kept = np.array(first_files(data))
    strata = strata_of(data)
    for members in groups_by_class(strata[kept], data.groups[kept]):
        members = [kept[positions] for positions in members]
        present = [bool(values(np.concatenate(members)) & set(side.tolist())) for side in sides_of(split)]
        assert present == [True, len(members) >= 3, len(members) >= 2]
        if len(members) < 3 or test_fraction * len(members) < 1:
            continue
        total, largest = sum(map(len, members)), max(map(len, members))
        in_test = len(set(np.concatenate(members).tolist()) & set(split.test.tolist()))
        # Nearest to the target that whole groups allow; two groups are kept back for the other sides.
        assert in_test <= test_fraction * total + largest / 2 + 1e-9
        assert in_test >= test_fraction * total - 2.5 * largest - 1e-9


@SETTINGS
@given(datasets(), seeds)
def test_the_looser_kinds_keep_together_what_they_say(data, seed):
    near, pictures = (try_split(data, kind=kind, seed=seed) for kind in ("near", "pictures"))
    if near is not None:
        assert_apart((data.near_groups, data.picture_groups, data.duplicate_groups), *sides_of(near))
        assert not near.test_leaked.any()
    if pictures is not None:
        assert_apart((data.picture_groups, data.duplicate_groups), *sides_of(pictures))
        assert not pictures.test_leaked.any()


@SETTINGS
@given(datasets(), fractions, seeds)
def test_random_goes_by_the_file(data, test_fraction, seed):
    split = try_split(data, kind="random", test_fraction=test_fraction, seed=seed)
    if split is None:
        return
    for stratum in np.unique(strata_of(data)):
        of_class = np.flatnonzero(strata_of(data) == stratum)
        in_test, total = len(np.intersect1d(of_class, split.test)), len(of_class)
        most = max(total - 2, min(1, total - 1))  # two are kept back for the other sides, where there are as many
        assert abs(in_test - np.clip(test_fraction * total, min(1, most), most)) <= 0.5 + 1e-9


@SETTINGS
@given(datasets(), fractions, seeds)
def test_published(data, validation_fraction, seed):
    split = try_split(data, kind="published", validation_fraction=validation_fraction, seed=seed)
    train_part, test_part = (np.flatnonzero(data.published_split == part) for part in ("train", "test"))
    if split is None:
        assert len(train_part) == 0 or len(test_part) == 0
        return
    np.testing.assert_array_equal(split.test, test_part)
    np.testing.assert_array_equal(np.sort(np.concatenate([split.train, split.validation])), train_part)
    columns = (data.groups, data.patients, data.picture_groups, data.near_groups, data.duplicate_groups)
    assert_apart(columns, split.train, split.validation)
    identical = values(data.duplicate_groups, train_part)  # equal files are leaks a fortiori
    assert all(split.test_leaked[[content in identical for content in data.duplicate_groups[split.test]]])


@SETTINGS
@given(datasets(), fractions, seeds)
def test_the_clean_published_split_and_its_control(data, validation_fraction, seed):
    arguments = {"validation_fraction": validation_fraction, "seed": seed}
    clean, thinned = (try_split(data, kind=f"published_{kind}", **arguments) for kind in ("clean", "thinned"))
    test_part = np.flatnonzero(data.published_split == "test")
    train_part = np.setdiff1d(np.arange(len(data)), test_part)
    tied = train_part[np.isin(data.groups[train_part], data.groups[test_part])]
    columns = (data.groups, data.patients, data.picture_groups, data.near_groups, data.duplicate_groups)
    if clean is None:
        assert len(test_part) == 0 or len(tied) == len(train_part)
    else:
        np.testing.assert_array_equal(clean.test, test_part)
        rest = np.concatenate([clean.train, clean.validation])
        assert_apart(columns, rest, test_part)
        assert_apart(columns, clean.train, clean.validation)
        assert sorted([*rest, *tied]) == train_part.tolist()  # nothing was left out but what is tied
        assert not clean.test_leaked.any()
    if thinned is None:
        assert len(test_part) == 0 or len(train_part) == 0
        return
    np.testing.assert_array_equal(thinned.test, test_part)
    rest = np.concatenate([thinned.train, thinned.validation])
    assert values(tied) <= values(rest)
    assert_apart(columns, thinned.train, thinned.validation)
    left_out = np.setdiff1d(train_part, rest)
    for stratum in np.unique(data.strata[train_part]):
        num_tied, num_all, num_left_out = (np.sum(data.strata[x] == stratum) for x in (tied, train_part, left_out))
        assert num_left_out == min(num_tied, num_all - num_tied)  # as many as "clean" leaves out, where there are such


@SETTINGS
@given(datasets(), seeds)
def test_the_numbers_of_the_groups_do_not_matter(data, seed):
    """Renaming groups in the same order, and copies and pictures in any order, gives the same split."""
    changes = {
        "groups": data.groups * 7 + 3,
        "duplicate_groups": data.duplicate_groups + 50,
        "picture_groups": 500 - 3 * data.picture_groups,
        "near_groups": data.near_groups * 2 + 1,
    }
    renamed = type(data)(**{**vars(data), **changes})
    for kind in ("deduplicated", "near", "published", "published_clean", "published_thinned"):
        first, second = (try_split(d, kind=kind, seed=seed) for d in (data, renamed))
        assert (first is None) == (second is None)
        if first is not None:
            for side in ("train", "validation", "test", "test_leaked"):
                np.testing.assert_array_equal(getattr(first, side), getattr(second, side))


@SETTINGS
@given(datasets(), st.integers(1, 8), seeds)
def test_iid_partition(data, num_clients, seed):
    num_groups = len(np.unique(data.groups))
    num_clients = min(num_clients, num_groups)
    first, second = (
        iid_partition(data.strata, data.groups, num_clients=num_clients, rng=np.random.default_rng(seed))
        for _ in range(2)
    )
    assert len(first) == num_clients and all(len(part) for part in first)
    assert all((np.diff(part) > 0).all() and part.dtype == np.int64 for part in first)
    assert sorted(np.concatenate(first).tolist()) == list(range(len(data)))
    owner = np.empty(len(data), int)
    for client, part in enumerate(first):
        owner[part] = client
        np.testing.assert_array_equal(part, second[client])
    assert_apart((data.groups, data.patients, data.picture_groups, data.near_groups), *first)
    for members in groups_by_class(data.strata, data.groups):
        sizes = np.zeros(num_clients, int)
        for positions in members:
            sizes[owner[positions[0]]] += len(positions)
        assert sizes.max() - sizes.min() <= max(map(len, members))


@SETTINGS
@given(st.lists(st.integers(0, 3), min_size=8, max_size=200), st.integers(1, 8), seeds)
def test_iid_partition_without_groups_is_even_in_every_class_and_in_total(labels, num_clients, seed):
    labels = np.array(labels)
    parts = iid_partition(labels, np.arange(len(labels)), num_clients=num_clients, rng=np.random.default_rng(seed))
    counts = np.array([np.bincount(labels[part], minlength=4) for part in parts])
    assert (counts.max(axis=0) - counts.min(axis=0) <= 1).all()
    assert np.ptp(counts.sum(axis=1)) <= 1


@SETTINGS
@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 120), seeds)
def test_natural_partition(num, num_hospitals, num_groups, seed):
    rng = np.random.default_rng(seed)
    # Uneven sizes, ties among them; names in another order than sizes.
    shares = rng.dirichlet(np.ones(num_hospitals))
    hospitals = rng.choice(["north", "east", "south", "a"][:num_hospitals], num, p=shares)
    groups = rng.integers(0, num_groups, num)
    size = {name: int(np.sum(hospitals == name)) for name in sorted(set(hospitals.tolist()))}
    of_group = {group: {h for h, g in zip(hospitals.tolist(), groups, strict=True) if g == group} for group in groups}
    expected = [min(of_group[group], key=lambda name: (size[name], name)) for group in groups]
    left_empty = sorted(set(size) - set(expected))
    try:
        parts = natural_partition(hospitals, groups)
    except PartitionError as error:
        assert left_empty and f"Hospital {', '.join(left_empty)} is left empty" in str(error)
        return
    assert not left_empty and list(parts) == list(size)
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts.values())
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(num))  # disjoint and complete
    assert_apart((groups,), *parts.values())
    for name, part in parts.items():
        assert [expected[index] for index in part] == [name] * len(part)
        moved = part[hospitals[part] != name]
        assert all(len(of_group[group]) > 1 for group in groups[moved])
