"""The audit: counts on a made-up dataset, and on the real ones where they are present."""

import numpy as np
import pandas as pd
import pytest

from fl_utils import paths
from fl_utils.data import ImageDataset, audit, card, load_dataset, make_split


def dataset(contents, labels, splits, pictures=None):
    num = len(contents)
    pictures = np.array(contents if pictures is None else pictures, np.int64)
    return ImageDataset(
        name="made_up",
        images=np.zeros((num, 4, 4, 1), np.uint8),
        labels=np.array(labels, np.int64),
        class_names=("a", "b"),
        groups=pictures,
        duplicate_groups=np.array(contents, np.int64),
        picture_groups=pictures,
        patients=np.full(num, ""),
        hospitals=np.full(num, ""),
        published_split=np.array(splits),
        sources=np.array([f"{i}.png" for i in range(num)]),
        masks=None,
        fingerprint="0" * 64,
        synthetic=True,
    )


def test_counts_table_and_examples():
    report = audit(
        dataset(
            contents=[0, 0, 1, 2, 2, 3, 3, 4],
            labels=[0, 0, 1, 1, 1, 0, 1, 1],
            splits=["train", "train", "train", "train", "test", "train", "train", "train"],
        )
    )
    assert report.counts() == {
        "files": 8,
        "distinct": 5,
        "duplicate_groups": 3,
        "cross_split_groups": 1,
        "label_conflicts": 1,
        "distinct_pictures": 5,
        "cross_split_pictures": 1,
        "test_pictures_in_train": 1,
    }
    assert report.examples == (("5.png", "6.png"), ("3.png", "4.png"), ("0.png", "1.png"))
    assert list(report.table.columns) == ["split", "class", "files", "distinct", "in_other_split"]
    rows = [tuple(row) for row in report.table.itertuples(index=False)]
    assert rows == [
        ("train", "a", 3, 2, 0),
        ("train", "b", 4, 4, 1),
        ("test", "a", 0, 0, 0),
        ("test", "b", 1, 1, 1),
    ]


def test_pictures_saved_again_cross_the_splits_though_no_file_does():
    data = dataset(
        contents=[0, 1, 1, 2, 3, 4, 5, 5, 6, 7],
        pictures=[0, 1, 1, 2, 2, 1, 0, 0, 3, 3],
        labels=[0, 1, 1, 0, 0, 1, 0, 0, 1, 1],
        splits=["train"] * 5 + ["test"] * 5,
    )
    report = audit(data)
    assert report.counts() == {
        "files": 10,
        "distinct": 8,
        "duplicate_groups": 2,
        "cross_split_groups": 0,
        "label_conflicts": 0,
        "distinct_pictures": 4,
        "cross_split_pictures": 2,  # 0 and 1; picture 2 is in train only, picture 3 in test only
        "test_pictures_in_train": 3,
    }
    assert report.examples == (("1.png", "2.png"), ("6.png", "7.png"))  # examples are of identical files
    rows = [tuple(row) for row in report.table.itertuples(index=False)]
    assert rows == [
        ("train", "a", 3, 3, 1),
        ("train", "b", 2, 1, 2),
        ("test", "a", 2, 1, 2),
        ("test", "b", 3, 3, 1),
    ]
    assert report.test_pictures_in_train == make_split(data, kind="published", seed=0).test_leaked.sum()


def test_a_clean_dataset():
    report = audit(load_dataset("phantom_chest", image_size_px=32, num_images=20))
    assert report.counts() == {
        "files": 20,
        "distinct": 20,
        "duplicate_groups": 0,
        "cross_split_groups": 0,
        "label_conflicts": 0,
        "distinct_pictures": 20,
        "cross_split_pictures": 0,
        "test_pictures_in_train": 0,
    }
    assert report.examples == ()
    assert report.table["files"].sum() == 20


def test_the_number_of_examples_is_limited():
    report = audit(dataset(np.repeat(np.arange(30), 2), [0] * 60, ["train"] * 60), num_examples=4)
    assert report.duplicate_groups == 30 and len(report.examples) == 4


def real(name):
    if paths.dataset_root(name) is None:
        pytest.skip(f"no real data: set FL_UTILS_DATA to a folder that holds {name}/")
    return load_dataset(name, image_size_px=64)


@pytest.mark.real_data
def test_real_brain_mri():
    data = real("brain_mri")
    report = audit(data)
    assert report.counts() == {
        "files": 3264,
        "distinct": 3027,
        "duplicate_groups": 166,
        "cross_split_groups": 64,
        "label_conflicts": 0,
        "distinct_pictures": 2870,
        "cross_split_pictures": 213,
        "test_pictures_in_train": 251,
    }
    table = report.table.set_index(["split", "class"])
    assert table["files"].tolist() == [826, 822, 395, 827, 100, 115, 105, 74]
    assert table["in_other_split"].tolist() == [16, 109, 107, 12, 18, 106, 105, 22]
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
def test_real_chest_xray():
    data = real("chest_xray")
    report = audit(data)
    assert report.counts() == {
        "files": 5840,
        "distinct": 5808,
        "duplicate_groups": 30,
        "cross_split_groups": 0,
        "label_conflicts": 0,
        "distinct_pictures": 5808,
        "cross_split_pictures": 0,
        "test_pictures_in_train": 0,
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
