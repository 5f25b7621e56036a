"""Who holds which images: natural, IID and skewed hospitals on a small made-up dataset with ties across hospitals."""

import dataclasses

import numpy as np
import pytest

from fl_utils import seeding
from fl_utils.config import make_config
from fl_utils.data import ImageDataset, PartitionError, make_split, phantoms
from fl_utils.data.load import load_dataset
from fl_utils.data.types import group_closure
from fl_utils.experiments.hospitals import MIN_EXAMPLES, SPLIT_SEED, as_taken, partition_shares, pooled, share_out

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


# Skewed hospitals


SKEWS = {
    "dirichlet": {"dirichlet_alpha": 0.3}, "pathological": {"classes_per_client": 1}, "quantity": {"quantity_alpha": 0.4},
    "feature": {}, "iid": {},
}  # fmt: skip


def large(seed=0, size_px=4, num=1600):
    """Enough images for eight skewed hospitals; no ties between hospitals."""
    data = dataset(("",) * num, seed=seed)
    grey = np.full((num, size_px, size_px, 1), 128, np.uint8)
    return dataclasses.replace(data, images=grey)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("partition", SKEWS)
def test_skewed_hospitals_share_every_part_and_hold_their_minimum(partition, seed):
    data = large(seed)
    arguments = {"seed": seed, **SKEWS[partition]}
    held, again = (share_out(data, config(partition, 8, **arguments)) for _ in range(2))
    for part in PARTS:
        parts = getattr(held, part)
        assert len(parts) == 8 and min(map(len, parts)) >= MIN_EXAMPLES[part]
        assert sorted(np.concatenate(parts).tolist()) == getattr(held.split, part).tolist()
        assert all(np.array_equal(a, b) for a, b in zip(parts, getattr(again, part), strict=True))
    for name in ("groups", "patients", "picture_groups", "near_groups", "duplicate_groups"):
        assert not several_owners(getattr(data, name), held, key=1), name
        assert not several_owners(getattr(data, name), held, key=0), name
    other = share_out(data, config(partition, 8, **arguments | {"seed": seed + 10}))
    assert not all(np.array_equal(a, b) for a, b in zip(held.train, other.train, strict=True))
    np.testing.assert_array_equal(held.split.test, other.split.test)


@pytest.mark.parametrize("partition", ["dirichlet", "pathological", "quantity"])
def test_train_validation_and_test_of_a_hospital_have_the_same_mix(partition):
    """All parts follow one draw of shares, within the class's largest group, and what was moved to hold a minimum."""
    data, chosen = large(), config(partition, 8, **SKEWS[partition])
    held, wanted = share_out(data, chosen), partition_shares(chosen, 2)
    for part in PARTS:
        parts, everything = getattr(held, part), getattr(held.split, part)
        largest = np.bincount(data.groups[everything]).max()
        moved = sum(max(0, MIN_EXAMPLES[part] - wanted[:, client] @ np.bincount(data.labels[everything])) for client in range(8))
        for label in (0, 1):
            counts = np.array([np.sum(data.labels[index] == label) for index in parts])
            # A group of mixed labels counts as one of them: the other's images come on top.
            slack = 0.25 * counts.sum() * wanted[label].max() + 2 * largest + moved + MIN_EXAMPLES[part]
            assert (np.abs(counts - wanted[label] * counts.sum()) <= slack).all()
    mixes = {part: np.array([np.bincount(data.labels[index], minlength=2) for index in getattr(held, part)]) for part in PARTS}
    for one, other in (("train", "test"), ("train", "validation")):
        assert np.corrcoef(mixes[one].ravel(), mixes[other].ravel())[0, 1] > 0.85
    draw = partition_shares(config(partition, 8, seed=1, **SKEWS[partition]), 2)
    assert np.abs(draw - wanted).max() > 0.05  # another seed, other shares


def test_even_partitions_have_no_drawn_shares():
    assert partition_shares(config(), 2) is None and partition_shares(config("feature", 4), 2) is None


def test_images_without_patients_follow_the_shares_exactly():
    """Single images: every class at every hospital within one image of its share, in every part."""
    data = large()
    alone = np.arange(len(data))
    names = ("groups", "duplicate_groups", "picture_groups", "near_groups")
    data = dataclasses.replace(data, **{name: alone for name in names}, patients=np.full(len(data), ""))
    for partition in ("dirichlet", "quantity"):
        chosen = config(partition, 4, seed=3, **{field: 2.0 for field in SKEWS[partition]})
        held, wanted = share_out(data, chosen), partition_shares(chosen, 2)
        assert (wanted.sum(axis=0).min() > 0.05) and len(held.split.validation) > 100  # nothing had to be moved
        for part in PARTS:
            for label in (0, 1):
                counts = np.array([np.sum(data.labels[index] == label) for index in getattr(held, part)])
                assert (np.abs(counts - wanted[label] * counts.sum()) < 1 + 1e-6).all()


def test_a_skew_that_leaves_too_little_names_the_part():
    with pytest.raises(PartitionError, match="made_up, train part: .* cannot give each of 60 hospitals at least 10"):
        share_out(dataset(), config("quantity", 60, quantity_alpha=0.1))
    with pytest.raises(PartitionError, match="3 hospitals with 1 classes each cannot hold 4|classes_per_client is 3"):
        share_out(dataset(), config("pathological", 4, classes_per_client=3))


def test_scanners_change_the_look_and_nothing_else():
    data, chosen = large(size_px=24, num=600), config("feature", 6)
    held, even = share_out(data, chosen), share_out(data, config("iid", 6))
    for part in PARTS:  # the deal is the even one
        assert all(np.array_equal(a, b) for a, b in zip(getattr(held, part), getattr(even, part), strict=True))
    seen = as_taken(data, held, chosen)
    assert seen.images.shape == data.images.shape and seen.images.dtype == np.uint8
    assert (data.images == 128).all() and np.abs(seen.images.astype(int) - 128).mean() > 10
    for name in ("labels", "groups", "patients", "sources", "class_names", "fingerprint", "picture_groups"):
        np.testing.assert_array_equal(getattr(seen, name), getattr(data, name))
    np.testing.assert_array_equal(as_taken(data, held, chosen).images, seen.images)
    assert as_taken(data, even, config("iid", 6)) is data


def test_a_hospitals_images_come_from_one_scanner_in_every_part():
    """Grey images: their brightness says which scanner they went through."""
    data, chosen = large(size_px=24, num=600), config("feature", 6)
    held = share_out(data, chosen)
    brightness = as_taken(data, held, chosen).images.mean(axis=(1, 2, 3))
    scanners = phantoms.draw_scanners(6, rng=seeding.generator(0, "scanners"))
    # The drawn one's tone: gain, then gamma. A smooth field of each image's own is around it, by chance up to 10 in
    # the mean of a hospital's few validation images.
    tone = np.array([255 * min(128 / 255 * scanner.gain, 1) ** scanner.gamma for scanner in scanners])
    assert np.ptp(tone) > 60
    for part, allowed in (("train", 6), ("test", 8), ("validation", 12)):
        means = np.array([brightness[index].mean() for index in getattr(held, part)])
        assert np.abs(means - tone).max() < allowed, part
    owner = np.zeros(len(data), int)
    for client, parts in enumerate(zip(held.train, held.validation, held.test, strict=True)):
        owner[np.concatenate(parts)] = client
    noise = seeding.generator(0, "scanner_noise")
    expected = phantoms.scan(data.images, owner, profiles=scanners, rng=noise)
    np.testing.assert_array_equal(as_taken(data, held, chosen).images, expected)


def test_scanners_are_reproducible_and_fewer_are_the_first_of_more():
    few, many, other = (
        phantoms.draw_scanners(number, rng=seeding.generator(seed, "scanners")) for number, seed in ((3, 0), (8, 0), (3, 1))
    )
    assert many[:3] == few and other != few and len({scanner.gamma for scanner in many}) == 8


def test_the_size_of_the_images_does_not_matter():
    """Who holds what is decided by labels and groups: a larger image is the same experiment, sharper."""
    sizes = [load_dataset("phantom_brain", image_size_px=size_px, num_images=120) for size_px in (24, 28)]
    for partition, fields in SKEWS.items():
        chosen = config(partition, 4, **fields)
        held = [share_out(data, chosen) for data in sizes]
        for part in PARTS:
            assert all(np.array_equal(a, b) for a, b in zip(*(getattr(h, part) for h in held), strict=True))


def test_pooled_hospitals_are_the_split():
    held = share_out(dataset(), config())
    together = pooled(held)
    assert together.split is held.split
    for part in PARTS:
        (index,) = getattr(together, part)
        np.testing.assert_array_equal(index, getattr(held.split, part))
