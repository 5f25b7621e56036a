"""The audit: counts on made-up datasets, and on the real ones where they are present."""

import functools

import numpy as np
import pandas as pd
import pytest

from fl_utils import paths
from fl_utils.data import ImageDataset, audit, card, load_dataset, make_split


def dataset(contents, labels, splits, pictures=None, near=None, groups=None, patients=None, excluded=()):
    num = len(contents)
    pictures = np.array(contents if pictures is None else pictures, np.int64)
    near = pictures if near is None else np.array(near, np.int64)
    multi_label = np.ndim(labels) == 2
    return ImageDataset(
        name="made_up",
        images=np.zeros((num, 4, 4, 1), np.uint8),
        labels=np.array(labels, np.uint8 if multi_label else np.int64),
        class_names=("a", "b"),
        groups=near if groups is None else np.array(groups, np.int64),
        duplicate_groups=np.array(contents, np.int64),
        picture_groups=pictures,
        near_groups=near,
        patients=np.full(num, "") if patients is None else np.array(patients),
        hospitals=np.full(num, ""),
        published_split=np.array(splits),
        sources=np.array([f"{i}.png" for i in range(num)]),
        masks=None,
        fingerprint="0" * 64,
        synthetic=True,
        excluded=excluded,
    )


COLUMNS = ["split", "class", "files", "distinct", "in_other_split", "near_in_other_split"]


def rows(report):
    assert list(report.table.columns) == COLUMNS
    return [tuple(row) for row in report.table.itertuples(index=False)]


#: What is counted where there is nothing to find.
NOTHING = {
    "duplicate_groups": 0,
    "cross_split_groups": 0,
    "label_conflicts": 0,
    "cross_split_pictures": 0,
    "test_pictures_in_train": 0,
    "near_duplicate_groups": 0,
    "near_cross_split_groups": 0,
    "near_label_conflicts": 0,
    "patients": 0,
    "patients_in_several_splits": 0,
    "excluded": 0,
}


def test_counts_table_and_examples():
    report = audit(
        dataset(
            contents=[0, 0, 1, 2, 2, 3, 3, 4],
            labels=[0, 0, 1, 1, 1, 0, 1, 1],
            splits=["train", "train", "train", "train", "test", "train", "train", "train"],
        )
    )
    # Copies alone are no near-duplicates: these are different pictures.
    assert report.counts() == NOTHING | {
        "files": 8,
        "distinct": 5,
        "duplicate_groups": 3,
        "cross_split_groups": 1,
        "label_conflicts": 1,
        "distinct_pictures": 5,
        "cross_split_pictures": 1,
        "test_pictures_in_train": 1,
        "independent_groups": 5,
    }
    assert report.examples == (("5.png", "6.png"), ("3.png", "4.png"), ("0.png", "1.png"))
    assert report.near_examples == ()
    assert rows(report) == [
        ("train", "a", 3, 2, 0, 0),
        ("train", "b", 4, 4, 1, 1),
        ("test", "a", 0, 0, 0, 0),
        ("test", "b", 1, 1, 1, 1),
    ]


def test_pictures_saved_again_cross_the_splits_though_no_file_does():
    data = dataset(
        contents=[0, 1, 1, 2, 3, 4, 5, 5, 6, 7],
        pictures=[0, 1, 1, 2, 2, 1, 0, 0, 3, 3],
        labels=[0, 1, 1, 0, 0, 1, 0, 0, 1, 1],
        splits=["train"] * 5 + ["test"] * 5,
    )
    report = audit(data)
    assert report.counts() == NOTHING | {
        "files": 10,
        "distinct": 8,
        "duplicate_groups": 2,
        "distinct_pictures": 4,
        "cross_split_pictures": 2,  # 0 and 1; picture 2 is in train only, picture 3 in test only
        "test_pictures_in_train": 3,
        "independent_groups": 4,
    }
    assert report.examples == (("1.png", "2.png"), ("6.png", "7.png"))  # examples are of identical files
    assert rows(report) == [
        ("train", "a", 3, 3, 1, 1),
        ("train", "b", 2, 1, 2, 2),
        ("test", "a", 2, 1, 2, 2),
        ("test", "b", 3, 3, 1, 1),
    ]
    assert report.test_pictures_in_train == make_split(data, kind="published", seed=0).test_leaked.sum()


def test_near_duplicates():
    report = audit(
        dataset(
            contents=[0, 0, 1, 2, 3, 4, 5, 6, 7],
            pictures=[0, 0, 1, 2, 3, 4, 5, 5, 7],
            near=[0, 0, 0, 1, 1, 2, 3, 3, 2],  # 3 is one picture saved again: no near-duplicate
            labels=[0, 0, 0, 0, 1, 1, 1, 1, 1],
            splits=["train", "train", "test", "train", "train", "train", "train", "train", "test"],
        )
    )
    assert report.counts() == NOTHING | {
        "files": 9,
        "distinct": 8,
        "duplicate_groups": 1,
        "distinct_pictures": 7,
        "near_duplicate_groups": 3,  # 0, 1 and 2
        "near_cross_split_groups": 2,  # 0 and 2
        "near_label_conflicts": 1,  # 1
        "independent_groups": 4,
    }
    # Conflicts first, then what crosses the splits.
    assert report.near_examples == (("3.png", "4.png"), ("0.png", "1.png", "2.png"), ("5.png", "8.png"))
    assert rows(report) == [
        ("train", "a", 3, 2, 0, 2),
        ("train", "b", 4, 4, 0, 1),
        ("test", "a", 1, 1, 0, 1),
        ("test", "b", 1, 1, 0, 1),
    ]


def test_patients_groups_and_excluded_files():
    report = audit(
        dataset(
            contents=range(7),
            labels=[0] * 7,
            splits=["train", "train", "train", "train", "test", "test", "test"],
            patients=["p", "p", "q", "", "q", "r", ""],  # "" is nobody, and not one patient in both parts
            groups=[0, 0, 1, 2, 1, 3, 4],
            excluded=(("a.png", "not an image"), ("b.png", "no row in the table")),
        )
    )
    assert report.counts() == NOTHING | {
        "files": 7,
        "distinct": 7,
        "distinct_pictures": 7,
        "patients": 3,
        "patients_in_several_splits": 1,
        "independent_groups": 5,
        "excluded": 2,
    }


def test_several_labels():
    report = audit(
        dataset(
            contents=[0, 0, 1, 2, 3],
            labels=[[1, 1], [1, 0], [0, 0], [0, 1], [1, 0]],
            splits=["train", "test", "train", "test", "test"],
            near=[0, 0, 2, 2, 3],
            pictures=[0, 0, 1, 2, 3],
        )
    )
    # An image with two findings counts in both rows; the one without any in none.
    assert rows(report) == [
        ("train", "a", 1, 1, 1, 1),
        ("train", "b", 1, 1, 1, 1),
        ("test", "a", 2, 2, 1, 1),
        ("test", "b", 1, 1, 0, 1),
    ]
    assert report.label_conflicts == 1  # [1, 1] against [1, 0]
    assert report.near_label_conflicts == 1 and report.near_examples == (("2.png", "3.png"),)


def test_a_clean_dataset():
    report = audit(load_dataset("phantom_chest", image_size_px=32, num_images=20))
    assert report.counts() == NOTHING | {
        "files": 20, "distinct": 20, "distinct_pictures": 20, "patients": 20, "independent_groups": 20
    }
    assert report.examples == report.near_examples == ()
    assert report.table["files"].sum() == 20


def test_the_number_of_examples_is_limited():
    pairs = np.repeat(np.arange(30), 2)
    report = audit(dataset(pairs, [0] * 60, ["train"] * 60), num_examples=4)
    assert report.duplicate_groups == 30 and len(report.examples) == 4
    report = audit(dataset(np.arange(60), [0] * 60, ["train"] * 60, near=pairs), num_examples=4)
    assert report.near_duplicate_groups == 30 and len(report.near_examples) == 4
    assert len(audit(dataset(pairs, [0] * 60, ["train"] * 60)).examples) == 10


# --- real data ---


@functools.cache
def loaded(name):
    return load_dataset(name, image_size_px=64)


def real(name):
    if paths.dataset_root(card(name).folder) is None:
        pytest.skip(f"no real data: set FL_UTILS_DATA to a folder that holds {card(name).folder}/")
    return loaded(name)


@pytest.mark.real_data
def test_real_brain_mri():
    data = real("brain_mri")
    report = audit(data)
    assert report.counts() == NOTHING | {
        "files": 3264,
        "distinct": 3027,
        "duplicate_groups": 166,
        "cross_split_groups": 64,
        "distinct_pictures": 2870,
        "cross_split_pictures": 213,
        "test_pictures_in_train": 251,
        "near_duplicate_groups": 344,
        "near_cross_split_groups": 33,
        "near_label_conflicts": 2,
        "independent_groups": 751,
    }
    of_conflicts = [{source.split("/")[1] for source in sources} for sources in report.near_examples]
    assert of_conflicts[:2] == [{"glioma_tumor", "meningioma_tumor"}] * 2
    assert all(len(classes) == 1 for classes in of_conflicts[2:])
    table = report.table.set_index(["split", "class"])
    assert table["files"].tolist() == [826, 822, 395, 827, 100, 115, 105, 74]
    assert table["in_other_split"].tolist() == [16, 109, 107, 12, 18, 106, 105, 22]
    assert table["near_in_other_split"].tolist() == [16, 113, 113, 16, 20, 110, 105, 32]
    is_test = data.published_split == "test"
    identical = np.isin(data.duplicate_groups, data.duplicate_groups[~is_test]) & is_test
    assert identical.sum() == 88 and set(data.labels[identical]) == {data.class_names.index("no_tumor")}
    per_picture = pd.DataFrame({"file": data.duplicate_groups, "split": data.published_split}).groupby(
        data.picture_groups
    ).nunique()
    saved_again = per_picture["file"] > 1
    assert saved_again.sum() == 157 and (saved_again & (per_picture["split"] > 1)).sum() == 156
    faults = " ".join(card("brain_mri").known_faults)
    for stated in (
        "3,264 files but 3,027 distinct contents", "166 groups of byte-identical files", "64 of them across",
        "88 of the 105 no_tumor", "157 more pairs or groups, 156 of them across", "2,870 distinct pictures",
        "251 of the 394 test images",
    ):
        assert stated in faults


@pytest.mark.real_data
def test_splits_of_real_brain_mri_go_by_pictures():
    data = real("brain_mri")
    published = make_split(data, kind="published", seed=0)
    assert len(published.test) == 394 and published.test_leaked.sum() == 251
    split = make_split(data, kind="deduplicated", seed=0)
    together = np.concatenate([split.train, split.validation, split.test])
    assert len(together) == 2870 == len(np.unique(data.picture_groups[together]))
    assert not split.test_leaked.any()
    # A picture looks one way at the size that models see: grouping by full resolution missed none of its files.
    alike = pd.Series([image.tobytes() for image in data.images]).groupby(data.picture_groups).nunique()
    assert (alike == 1).all() and len({data.images[i].tobytes() for i in together}) == 2870


@pytest.mark.real_data
def test_the_suites_split_of_real_brain_mri_ties_what_belongs_together():
    data = real("brain_mri")
    is_test = data.published_split == "test"
    tied = np.isin(data.groups[is_test], data.groups[~is_test])
    assert tied.sum() == 267  # of 394; 251 by copies alone
    for kind in ("published_clean", "published_thinned"):  # without the 388 training images tied to it; the control
        split = make_split(data, kind=kind, seed=0)
        assert len(split.train) + len(split.validation) == 2482 and len(split.test) == 394
    for seed in range(3):
        split = make_split(data, kind="deduplicated", seed=seed)
        sides = (split.train, split.validation, split.test)
        for column in (data.groups, data.near_groups, data.picture_groups, data.duplicate_groups):
            values = [set(column[side].tolist()) for side in sides]
            assert not values[0] & values[1] and not values[0] & values[2] and not values[1] & values[2]
        shares = np.array([np.bincount(data.labels[side], minlength=4) for side in sides]) / np.bincount(
            data.labels[np.concatenate(sides)]
        )
        np.testing.assert_allclose(shares, [[0.72] * 4, [0.08] * 4, [0.2] * 4], atol=0.03)


@pytest.mark.real_data
def test_real_covid19():
    report = audit(real("covid19"))
    assert report.counts() == NOTHING | {
        "files": 317,
        "distinct": 307,
        "duplicate_groups": 10,
        "cross_split_groups": 6,
        "distinct_pictures": 307,
        "cross_split_pictures": 6,
        "test_pictures_in_train": 6,
        "near_duplicate_groups": 6,
        "near_cross_split_groups": 3,
        "patients": 40,
        "patients_in_several_splits": 5,
        "independent_groups": 295,
    }
    assert report.table["files"].tolist() == [111, 70, 70, 26, 20, 20]
    assert report.table["near_in_other_split"].tolist() == [7, 0, 0, 9, 0, 0]
    faults = " ".join(card("covid19").known_faults)
    assert "10 groups of byte-identical files, 6 of them across train and test" in faults


@pytest.mark.real_data
def test_real_chest_xray():
    data = real("chest_xray")
    report = audit(data)
    assert report.counts() == NOTHING | {
        "files": 5840,
        "distinct": 5808,
        "duplicate_groups": 30,
        "distinct_pictures": 5808,
        "patients": 4082,
        "independent_groups": 4081,
    }
    assert report.table["files"].tolist() == [1341, 3875, 234, 390]
    assert report.table["in_other_split"].tolist() == [0, 0, 0, 0]
    assert (data.patients != "").all()
    assert len(np.unique(data.patients)) == 4082 and len(np.unique(data.groups)) == 4081
    is_test = data.published_split == "test"
    for column in (data.patients, data.groups):  # the published split is by patient
        assert not set(column[is_test]) & set(column[~is_test])
    for kind in ("deduplicated", "published"):
        split = make_split(data, kind=kind, seed=0)
        sides = [set(data.patients[side]) for side in (split.train, split.validation, split.test)]
        assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
        assert not split.test_leaked.any()
