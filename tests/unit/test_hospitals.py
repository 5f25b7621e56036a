"""Who holds which images: natural and IID hospitals on a small made-up dataset with ties across hospitals."""

import numpy as np
import pytest

from fl_utils.config import make_config
from fl_utils.data import ImageDataset, PartitionError, make_split
from fl_utils.data.types import group_closure
from fl_utils.experiments.hospitals import SPLIT_SEED, share_out

PARTS = ("train", "validation", "test")


def dataset(hospitals=("big",) * 240 + ("mid",) * 120 + ("tiny",) * 60, labels=None, seed=0):
    """Patients with three images, copies and near-duplicates, a few of them in other hospitals."""
    rng = np.random.default_rng(seed)
    hospitals = np.array(hospitals)
    num = len(hospitals)
    patients = np.array([f"{hospital}/{number // 3}" for number, hospital in enumerate(hospitals)])
    patients[::10] = ""
    pictures = np.arange(num)
    copies = rng.choice(num, num // 25, replace=False)
    pictures[copies] = rng.integers(0, num, len(copies))  # from any hospital
    pairs = tuple(rng.integers(0, num, (2, num // 80)))
    pictures = pictures.astype(str)
    return ImageDataset(
        name="made_up",
        images=np.zeros((num, 4, 4, 1), np.uint8),
        labels=rng.integers(0, 2, num) if labels is None else labels,
        class_names=("a", "b"),
        groups=group_closure(pictures, patients, pairs=pairs),
        duplicate_groups=group_closure(pictures),
        picture_groups=group_closure(pictures),
        near_groups=group_closure(pictures, pairs=pairs),
        patients=patients,
        hospitals=hospitals,
        published_split=np.where(rng.random(num) < 0.2, "test", "train"),
        sources=np.array([f"{i}.png" for i in range(num)]),
        masks=None,
        fingerprint="0" * 64,
        synthetic=True,
    )


def config(partition="iid", num_clients=4, **fields):
    method = "centralized" if partition == "pooled" else "fedavg"
    return make_config(
        **{"dataset": "made_up", "method": method, "partition": partition, "num_clients": num_clients, "seed": 0}
        | {"profile": "smoke", "total_rounds": 1, "client_learning_rate": 0.1} | fields
    )


NATURAL = {"partition": "natural", "num_clients": 3}


def shares(held):
    """Every hospital's part of every kind: {(part, hospital): indices}."""
    return {(part, hospital): index for part in PARTS for hospital, index in enumerate(getattr(held, part))}


def several_owners(column, held, key):
    """Values of a column that lie in two hospitals (key 1) or in two parts (key 0)."""
    owners = {}
    for place, indices in shares(held).items():
        for value in column[indices].tolist():
            owners.setdefault(value, set()).add(place[key])
    return {value for value, places in owners.items() if len(places) > 1} - {""}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fields", [NATURAL, {"num_clients": 4}], ids=["natural", "iid"])
def test_nothing_is_shared_between_parts_and_nothing_is_lost(fields, seed):
    data = dataset(seed=seed)
    held = share_out(data, config(seed=seed, split_seed=seed, **fields))
    for part in PARTS:
        parts = getattr(held, part)
        assert len(parts) == fields["num_clients"] and all(len(index) for index in parts)
        assert sorted(np.concatenate(parts).tolist()) == getattr(held.split, part).tolist()
    for name in ("groups", "patients", "picture_groups", "near_groups", "duplicate_groups"):
        assert not several_owners(getattr(data, name), held, key=0), name


@pytest.mark.parametrize("seed", range(5))
def test_no_group_or_picture_is_in_two_natural_hospitals(seed):
    data = dataset(seed=seed)
    held = share_out(data, config(seed=seed, split_seed=seed, **NATURAL))
    assert len({h for g in set(data.groups) if len(h := frozenset(data.hospitals[data.groups == g])) > 1}) > 0
    for name in ("groups", "patients", "picture_groups", "near_groups", "duplicate_groups"):
        assert not several_owners(getattr(data, name), held, key=1), name


@pytest.mark.parametrize("seed", range(5))
def test_no_group_or_picture_is_in_two_iid_hospitals(seed):
    data = dataset(seed=seed)
    held = share_out(data, config(seed=seed, split_seed=seed))
    # Each part is dealt out by itself; what is tied lies in one part, so in one hospital of all.
    for name in ("groups", "patients", "picture_groups", "near_groups", "duplicate_groups"):
        assert not several_owners(getattr(data, name), held, key=1), name
    for part in PARTS:  # every hospital the same mix: within the largest group of the class
        for label in (0, 1):
            counts = [np.sum(data.labels[index] == label) for index in getattr(held, part)]
            assert max(counts) - min(counts) <= np.bincount(data.groups[getattr(held.split, part)]).max() + 2


def test_a_natural_hospital_holds_its_own_images_and_shared_groups_of_larger_ones():
    data = dataset()
    held = share_out(data, config(**NATURAL))
    moved = 0
    for number, name in enumerate(("big", "mid", "tiny")):
        index = np.concatenate([getattr(held, part)[number] for part in PARTS])
        guests = index[data.hospitals[index] != name]
        assert all(name in data.hospitals[data.groups == group] for group in data.groups[guests])
        moved += len(guests)
    # The largest hospital is given nothing, and what was given is a small part.
    assert set(data.hospitals[np.concatenate([getattr(held, part)[0] for part in PARTS])]) == {"big"}
    assert 0 < moved < len(data) / 3


def test_natural_hospitals_follow_the_split_seed_and_no_other():
    data = dataset()
    one, two, other = (
        share_out(data, config(seed=seed, split_seed=split_seed, **NATURAL))
        for seed, split_seed in ((0, 5), (9, 5), (0, 6))
    )
    for place, index in shares(one).items():
        np.testing.assert_array_equal(index, shares(two)[place])
    assert any(not np.array_equal(index, shares(other)[place]) for place, index in shares(one).items())


def test_the_split_is_frozen_unless_it_is_asked_for():
    data = dataset()
    frozen = [share_out(data, config(seed=seed)).split for seed in (0, 1)]
    stated = share_out(data, config(split_seed=SPLIT_SEED)).split
    made = make_split(data, kind="deduplicated", seed=SPLIT_SEED)
    other = share_out(data, config(split_seed=0)).split
    for part in PARTS:
        for split in (*frozen, stated):
            np.testing.assert_array_equal(getattr(split, part), getattr(made, part))
        assert not np.array_equal(getattr(other, part), getattr(made, part))


@pytest.mark.parametrize("kind", ["near", "random", "published", "published_clean", "published_thinned"])
def test_the_kind_of_split_is_that_of_the_configuration(kind):
    data = dataset()
    held = share_out(data, config("pooled", 1, split=kind, split_seed=3))
    made = make_split(data, kind=kind, seed=3)
    assert held.split.name == kind
    for part in PARTS:
        (index,) = getattr(held, part)
        np.testing.assert_array_equal(index, getattr(made, part))


def test_several_labels_are_shared_out_evenly_too():
    findings = np.zeros((420, 2), np.uint8)
    findings[::2, 0] = findings[::7, 1] = 1
    data = dataset(labels=findings)
    held = share_out(data, config())
    for index in held.train:
        assert np.mean(findings[index, 0]) == pytest.approx(0.5, abs=0.05)
        assert np.mean(findings[index, 1]) == pytest.approx(1 / 7, abs=0.04)


def test_the_number_of_natural_hospitals_must_be_theirs():
    with pytest.raises(PartitionError, match=r"has 3 natural hospitals \(big, mid, tiny\); num_clients is 4. Set num"):
        share_out(dataset(), config("natural", 4))


def test_no_natural_hospitals():
    with pytest.raises(PartitionError, match="name no hospital: there is no natural partition. Use 'iid'"):
        share_out(dataset(hospitals=("",) * 200), config("natural", 3))


def test_a_hospital_too_small_for_every_part():
    hospitals = ("big",) * 100 + ("tiny",) * 2
    data = dataset(hospitals)
    alone = np.arange(len(data))
    data = type(data)(**vars(data) | {name: alone for name in ("groups", "picture_groups", "near_groups")})
    with pytest.raises(PartitionError, match="made_up, validation part: no image of hospital tiny"):
        share_out(data, config("natural", 2))


def test_more_hospitals_than_a_part_has_groups():
    with pytest.raises(PartitionError, match="made_up, validation part: .* cannot be shared among 60 hospitals"):
        share_out(dataset(), config(num_clients=60))
