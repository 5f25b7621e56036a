"""Splits and partitions: stated cases and errors; the general rules are in tests/property."""

import numpy as np
import pytest

from fl_utils.data import DataError, ImageDataset, PartitionError, iid_partition, make_split, natural_partition


def dataset(
    labels, duplicate_groups=None, picture_groups=None, groups=None, published=None, near_groups=None, hospitals=None
):
    """Every image its own file; every file its own picture; every picture its own group, unless told."""
    num = len(labels)
    duplicate_groups = np.arange(num) if duplicate_groups is None else np.asarray(duplicate_groups, np.int64)
    picture_groups = duplicate_groups if picture_groups is None else np.asarray(picture_groups, np.int64)
    return ImageDataset(
        name="made_up",
        images=np.zeros((num, 4, 4, 1), np.uint8),
        labels=np.asarray(labels, np.int64 if np.ndim(labels) == 1 else np.uint8),
        class_names=tuple("abcdef"[: int(max(labels)) + 1 if np.ndim(labels) == 1 else np.shape(labels)[1]]),
        groups=picture_groups if groups is None else np.asarray(groups, np.int64),
        duplicate_groups=duplicate_groups,
        picture_groups=picture_groups,
        near_groups=picture_groups if near_groups is None else np.asarray(near_groups, np.int64),
        patients=np.full(num, ""),
        hospitals=np.full(num, "") if hospitals is None else np.asarray(hospitals),
        published_split=np.full(num, "train") if published is None else np.asarray(published),
        sources=np.array([f"{i}.png" for i in range(num)]),
        masks=None,
        fingerprint="0" * 64,
        synthetic=True,
    )


def test_deduplicated_fractions_without_groups_are_exact():
    data = dataset([0] * 100 + [1] * 50)
    split = make_split(data, kind="deduplicated", seed=0)
    assert split.name == "deduplicated"
    assert np.bincount(data.labels[split.test]).tolist() == [20, 10]
    assert np.bincount(data.labels[split.validation]).tolist() == [8, 4]
    assert np.bincount(data.labels[split.train]).tolist() == [72, 36]


COPIES = [0, 1, 0, 2, 3, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("saved_again", [False, True], ids=["byte-identical", "saved again"])
def test_deduplicated_keeps_the_first_of_each_picture(saved_again):
    copies = {"picture_groups" if saved_again else "duplicate_groups": COPIES}
    split = make_split(dataset([0] * 12, **copies), kind="deduplicated", seed=0)
    assert sorted([*split.train, *split.validation, *split.test]) == [0, 1, 3, 4, 6, 7, 8, 9, 10, 11]
    assert not split.test_leaked.any()


def test_deduplicated_numbers_of_pictures_need_not_follow_the_paths():
    data = dataset([0] * 12, picture_groups=[9 - copy for copy in COPIES], groups=COPIES)
    split = make_split(data, kind="deduplicated", seed=0)
    assert sorted([*split.train, *split.validation, *split.test]) == [0, 1, 3, 4, 6, 7, 8, 9, 10, 11]


def test_published_is_as_downloaded_and_marks_the_copies():
    contents = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 10, 10, 3]
    data = dataset([0] * 14, duplicate_groups=contents, published=["train"] * 10 + ["test"] * 4)
    split = make_split(data, kind="published", seed=1)
    assert split.test.tolist() == [10, 11, 12, 13]
    # The copies of 10 lie within test only: nothing of them was trained on.
    assert split.test_leaked.tolist() == [True, False, False, True]
    assert sorted([*split.train, *split.validation]) == list(range(10))


def test_published_marks_pictures_that_were_saved_again():
    pictures = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 10, 10, 3]
    data = dataset([0] * 14, picture_groups=pictures, published=["train"] * 10 + ["test"] * 4)
    assert len(np.unique(data.duplicate_groups)) == 14  # no two files alike
    for seed in range(10):  # whether train or validation got the twin
        split = make_split(data, kind="published", seed=seed)
        assert split.test.tolist() == [10, 11, 12, 13]
        assert split.test_leaked.tolist() == [True, False, False, True]
        assert sorted([*split.train, *split.validation]) == list(range(10))


def ladder_data():
    """60 images in 6 groups of 10, each of 2 near groups of 5, each of 4 pictures, one of them twice."""
    number = np.arange(60)
    pictures = number - (number % 5 == 4)
    return dataset([0, 1] * 30, picture_groups=pictures, near_groups=number // 5, groups=number // 10)


@pytest.mark.parametrize(
    ("kind", "together", "torn"),
    [
        ("deduplicated", ["groups", "near_groups", "picture_groups"], []),
        ("near", ["near_groups", "picture_groups"], ["groups"]),
        ("pictures", ["picture_groups"], ["groups", "near_groups"]),
        ("random", [], ["groups", "near_groups", "picture_groups"]),
    ],
)
def test_each_step_of_the_ladder_lets_go_of_more(kind, together, torn):
    data = ladder_data()
    on_several_sides = {name: 0 for name in together + torn}
    for seed in range(10):
        split = make_split(data, kind=kind, seed=seed)
        sides = (split.train, split.validation, split.test)
        assert sum(map(len, sides)) == (60 if kind == "random" else 48)
        for name in on_several_sides:
            column = getattr(data, name)
            on_several_sides[name] += sum(sum(group in column[side] for side in sides) > 1 for group in set(column))
        if kind != "random":
            assert not split.test_leaked.any()
    assert [on_several_sides[name] for name in together] == [0] * len(together)
    assert all(on_several_sides[name] > 10 for name in torn)  # over ten splits


def test_the_clean_published_split_leaves_out_what_is_tied_and_its_control_what_is_not():
    # Groups 0 to 3 lie in test (images 30 to 33) and, with 8 images of class a and 2 of b, in train.
    groups = [0, 0, 1, 1, 2, 2, 3, 3, *range(10, 20), 0, 1, *range(20, 30), 0, 1, 2, 3]
    labels = [0] * 18 + [1] * 12 + [0, 0, 1, 1]
    data = dataset(labels, groups=groups, published=["train"] * 30 + ["test"] * 4)
    for seed in range(10):
        clean, thinned, full = (
            make_split(data, kind=kind, seed=seed) for kind in ("published_clean", "published_thinned", "published")
        )
        for split, counts in ((clean, [10, 10]), (thinned, [10, 10]), (full, [18, 12])):
            assert split.test.tolist() == [30, 31, 32, 33]
            assert np.bincount(data.labels[[*split.train, *split.validation]]).tolist() == counts
        assert sorted([*clean.train, *clean.validation]) == [*range(8, 18), *range(20, 30)]
        assert {*range(8), 18, 19} < {*thinned.train.tolist(), *thinned.validation.tolist()}
    left_out = {tuple(make_split(data, kind="published_thinned", seed=seed).train) for seed in range(10)}
    assert len(left_out) == 10  # drawn by the seed


def test_the_control_leaves_out_all_that_is_untied_where_more_is_tied():
    groups = [0] * 5 + [1, 2, 3] + list(range(4, 14)) + [0]
    data = dataset([0] * 8 + [1] * 11, groups=groups, published=["train"] * 18 + ["test"])
    split = make_split(data, kind="published_thinned", seed=0)
    assert sorted([*split.train, *split.validation]) == [0, 1, 2, 3, 4, *range(8, 18)]


def test_the_clean_published_split_may_be_empty():
    data = dataset([0] * 6, groups=[0] * 6, published=["train"] * 5 + ["test"])
    with pytest.raises(DataError, match="published_clean split leaves no image for train"):
        make_split(data, kind="published_clean", seed=0)
    assert len(make_split(data, kind="published_thinned", seed=0).train) == 5


def test_each_hospital_has_a_share_of_every_side():
    data = dataset([0, 1] * 50, hospitals=["north"] * 80 + ["south"] * 20)
    for seed in range(5):
        split = make_split(data, kind="deduplicated", seed=seed)
        for hospital, counts in (("north", [8, 8]), ("south", [2, 2])):
            side = split.test[data.hospitals[split.test] == hospital]
            assert np.bincount(data.labels[side]).tolist() == counts


def test_several_labels_are_balanced_by_the_rarest_finding():
    findings = np.zeros((100, 3), np.uint8)
    findings[:60, 0] = findings[50:80, 1] = findings[55:65, 2] = 1  # 60, 30 and 10; the last 20 have none
    data = dataset(findings)
    assert data.is_multi_label and data.num_classes == 3
    assert data.strata.tolist() == [0] * 50 + [1] * 5 + [2] * 10 + [1] * 15 + [3] * 20
    split = make_split(data, kind="deduplicated", seed=0)
    assert np.bincount(data.strata[split.test]).tolist() == [10, 4, 2, 4]


def test_strata_of_one_label_are_the_labels():
    np.testing.assert_array_equal(dataset([0, 2, 1]).strata, [0, 2, 1])


def test_a_class_of_few_images_is_spread_as_far_as_it_goes():
    data = dataset([0] * 40 + [1] * 3 + [2] * 2 + [3])
    for seed in range(20):
        split = make_split(data, kind="deduplicated", seed=seed)
        counts = [np.bincount(data.labels[side], minlength=4) for side in (split.train, split.validation, split.test)]
        assert [c[1] for c in counts] == [1, 1, 1]
        assert [c[2] for c in counts] == [1, 0, 1]
        assert [c[3] for c in counts] == [1, 0, 0]


def test_no_validation():
    split = make_split(dataset([0] * 10 + [1] * 10), kind="deduplicated", validation_fraction=0, seed=0)
    assert len(split.validation) == 0 and len(split.train) == 16 and len(split.test) == 4


def test_the_seed_decides_and_nothing_else():
    data = dataset([0, 1] * 50)
    first, second, other = (make_split(data, kind="deduplicated", seed=seed) for seed in (0, 0, 1))
    for side in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(first, side), getattr(second, side))
    assert not np.array_equal(first.test, other.test)


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan")])
def test_fractions_out_of_range(fraction):
    data = dataset([0, 1] * 10)
    with pytest.raises(DataError, match="validation_fraction is"):
        make_split(data, kind="deduplicated", validation_fraction=fraction, seed=0)
    with pytest.raises(DataError, match="test_fraction is"):
        make_split(data, kind="deduplicated", test_fraction=fraction, seed=0)


def test_unknown_kind():
    known = "'deduplicated', 'near', 'pictures', 'random', 'published', 'published_clean', 'published_thinned'"
    with pytest.raises(DataError, match=f"no split 'by patient'; expected one of {known}"):
        make_split(dataset([0, 1]), kind="by patient", seed=0)


def test_a_side_without_images():
    with pytest.raises(DataError, match="leaves no image for test"):
        make_split(dataset([0, 0, 0], duplicate_groups=[0, 0, 0]), kind="deduplicated", seed=0)
    with pytest.raises(DataError, match="leaves no image for test"):
        make_split(dataset([0, 0, 0], picture_groups=[0, 0, 0]), kind="deduplicated", seed=0)
    with pytest.raises(DataError, match="published split leaves no image for test"):
        make_split(dataset([0] * 5), kind="published", seed=0)
    for kind in ("published", "published_clean", "published_thinned"):
        with pytest.raises(DataError, match=f"{kind} split leaves no image for train"):
            make_split(dataset([0] * 5, published=["test"] * 5), kind=kind, seed=0)


def test_iid_partition_is_even():
    labels = np.repeat([0, 1, 2], [50, 31, 7])
    parts = iid_partition(labels, np.arange(88), num_clients=4, rng=np.random.default_rng(0))
    counts = np.array([np.bincount(labels[part], minlength=3) for part in parts])
    assert (counts.max(axis=0) - counts.min(axis=0) <= 1).all()
    assert counts.sum(axis=1).tolist() == [22, 22, 22, 22]


def test_one_hospital_gets_everything():
    (part,) = iid_partition(np.zeros(5, int), np.arange(5), num_clients=1, rng=np.random.default_rng(0))
    assert part.tolist() == [0, 1, 2, 3, 4]


def test_fewer_images_than_hospitals():
    rng = np.random.default_rng(0)
    with pytest.raises(PartitionError, match="3 images in 3 groups.*5 hospitals.*fewer hospitals or more images"):
        iid_partition(np.zeros(3, int), np.arange(3), num_clients=5, rng=rng)
    with pytest.raises(PartitionError, match="6 images in 2 groups"):
        iid_partition(np.zeros(6, int), np.repeat([0, 1], 3), num_clients=5, rng=rng)
    with pytest.raises(PartitionError, match="0 images"):
        iid_partition(np.zeros(0, int), np.zeros(0, int), num_clients=1, rng=rng)


def test_bad_partition_arguments():
    rng = np.random.default_rng(0)
    with pytest.raises(PartitionError, match="num_clients is 0"):
        iid_partition(np.zeros(3, int), np.arange(3), num_clients=0, rng=rng)
    with pytest.raises(PartitionError, match="of one length"):
        iid_partition(np.zeros(3, int), np.arange(4), num_clients=1, rng=rng)


def test_natural_hospitals_keep_what_they_have():
    parts = natural_partition(np.array(["south", "north", "south", "south"]), np.arange(4))
    assert {name: part.tolist() for name, part in parts.items()} == {"north": [1], "south": [0, 2, 3]}


def test_a_group_in_several_hospitals_goes_to_the_smallest_as_a_whole():
    hospitals = np.array(["big"] * 6 + ["mid"] * 4 + ["tiny"] * 2)
    groups = np.array([0, 0, 1, 2, 3, 4, 0, 1, 5, 6, 1, 7])  # 0: big and mid; 1: all three
    parts = natural_partition(hospitals, groups)
    assert {name: part.tolist() for name, part in parts.items()} == {
        "big": [3, 4, 5], "mid": [0, 1, 6, 8, 9], "tiny": [2, 7, 10, 11],
    }


def test_natural_partitions_that_cannot_be():
    with pytest.raises(PartitionError, match="2 of 3 images name no hospital.*Use 'iid'"):
        natural_partition(np.array(["", "a", ""]), np.arange(3))
    with pytest.raises(PartitionError, match="of one length"):
        natural_partition(np.array(["a", "b"]), np.arange(3))
    with pytest.raises(PartitionError, match="Hospital big is left empty"):
        natural_partition(np.array(["big", "big", "big", "tiny", "tiny"]), np.array([0, 0, 1, 0, 1]))
