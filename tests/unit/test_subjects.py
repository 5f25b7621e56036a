"""Subjects of volumes as a dataset: their groups, and institutions that join to hospitals."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_utils import paths
from fl_utils.data.catalogue import card
from fl_utils.data.partition import PartitionError
from fl_utils.data.phantoms.volumes import institutions_of
from fl_utils.data.subjects import join_institutions, load_subjects
from fl_utils.data.types import DataError
from tests.unit.made_volumes import few_tumours

NUM, SHAPE = 8, {"plane": "axial", "image_size_px": 24}


@pytest.fixture(scope="module", autouse=True)
def few_phantoms(folders):
    with few_tumours(NUM):
        yield


@pytest.fixture(scope="module")
def phantoms(few_phantoms):
    return load_subjects("phantom_tumours", **SHAPE)


# --- load_subjects ---


def test_one_image_a_subject(phantoms):
    volumes, subjects = phantoms.volumes, phantoms.subjects
    assert len(subjects) == NUM and subjects.sources.tolist() == list(volumes.subjects) and subjects.synthetic
    assert subjects.images.shape == (NUM, 24, 24, 1) and subjects.images.dtype == np.uint8
    assert not subjects.labels.any() and subjects.num_classes == 1
    assert subjects.hospitals.tolist() == [own.name for own in institutions_of(NUM)]
    for path, mask in zip(volumes.table["path"], subjects.masks, strict=True):
        sizes = (np.load(path)["mask"] > 0).sum(axis=(1, 2))
        assert (mask > 0).sum() == sizes.max() > 0  # the slice that shows most


def test_drawn_subjects_are_not_tied(phantoms):
    subjects = phantoms.subjects
    for name in ("groups", "near_groups", "picture_groups", "duplicate_groups"):
        assert len(np.unique(getattr(subjects, name))) == NUM, name


def test_copies_share_a_picture_and_cases_of_one_patient_a_group(phantoms, monkeypatch):
    """What the preparation says of a case decides: here subject 1 is a copy of 0, and 3 is of 2's patient."""
    table = phantoms.volumes.table.copy()
    table.loc[1, "content"], table.loc[3, "patient"] = table.loc[0, "content"], table.loc[2, "patient"]
    changed = dataclasses.replace(phantoms.volumes, table=table)
    monkeypatch.setattr("fl_utils.data.subjects.prepare_volumes", lambda *_, **__: changed)
    subjects = load_subjects("phantom_tumours", **SHAPE).subjects
    assert subjects.groups.tolist() == [0, 0, 1, 1, 2, 3, 4, 5]
    assert subjects.picture_groups.tolist() == subjects.duplicate_groups.tolist() == [0, 0, 1, 2, 3, 4, 5, 6]


def test_the_first_subjects(phantoms):
    few = load_subjects("phantom_tumours", **SHAPE, num_subjects=3)
    assert few.volumes.subjects == phantoms.volumes.subjects[:3] and few.fingerprint != phantoms.fingerprint
    np.testing.assert_array_equal(few.subjects.images, phantoms.subjects.images[:3])
    again = load_subjects("phantom_tumours", **SHAPE, num_subjects=NUM)
    assert again.fingerprint == phantoms.fingerprint == load_subjects("phantom_tumours", **SHAPE).fingerprint


def test_another_form_is_another_dataset():
    coronal = load_subjects("phantom_tumours", **SHAPE | {"plane": "coronal"}, num_subjects=2)
    larger = load_subjects("phantom_tumours", **SHAPE | {"image_size_px": 25}, num_subjects=2)
    same = load_subjects("phantom_tumours", **SHAPE, num_subjects=2)
    assert len({data.fingerprint for data in (same, coronal, larger)}) == 3
    assert larger.subjects.images.shape == (2, 25, 25, 1)


def test_more_subjects_than_there_are():
    with pytest.raises(DataError, match=f"phantom_tumours: {NUM + 1} subjects were asked for; {NUM} have masks"):
        load_subjects("phantom_tumours", **SHAPE, num_subjects=NUM + 1)


@pytest.mark.parametrize("name", ["phantom_brain", "brain_mri"])
def test_a_dataset_of_images(name):
    with pytest.raises(DataError, match=f"{name} is a dataset of images, not of volumes: choose a classifier"):
        load_subjects(name, **SHAPE)


@pytest.mark.real_data
def test_real_hippocampi_of_one_person_share_a_group():
    if paths.dataset_root(card("hippocampus").folder) is None:
        pytest.skip("no real data: set FL_UTILS_DATA to a folder that holds hippocampus/")
    subjects = load_subjects("hippocampus", **SHAPE, num_subjects=60).subjects
    person = np.array([(int(subject[-3:]) + 1) // 2 for subject in subjects.sources])
    groups = {number: set(subjects.groups[person == number]) for number in person}
    assert all(len(own) == 1 for own in groups.values())
    # Cut-outs of different people look alike, but not so alike that chance ties half of them.
    assert len(np.unique(subjects.groups)) >= 0.9 * len(groups) and len(groups) < len(subjects)


# --- join_institutions ---


def sizes_of(joined):
    return dict(zip(*np.unique(joined, return_counts=True), strict=True))


def test_institutions_are_joined_to_even_hospitals():
    names = np.repeat(["a", "b", "c", "d", "e"], [10, 6, 5, 4, 3])
    assert sizes_of(join_institutions(names, 3)) == {"a": 10, "b+e": 9, "c+d": 9}
    assert sizes_of(join_institutions(names, 5)) == {"a": 10, "b": 6, "c": 5, "d": 4, "e": 3}
    assert set(join_institutions(names, 1)) == {"a+b+c+d+e"}


def test_unknown_institutions_count_as_one():
    names = np.array(["", "x", "", "x", "y", ""])
    assert join_institutions(names, 2).tolist() == ["unknown", "x+y", "unknown", "x+y", "x+y", "unknown"]
    assert join_institutions(np.array(["", ""]), 1).tolist() == ["unknown", "unknown"]


def test_too_few_institutions():
    said = r"2 institutions \(unknown, x\) cannot make 3 hospitals. Set num_clients to 2 or less"
    with pytest.raises(PartitionError, match=said):
        join_institutions(np.array(["x", "", "x"]), 3)


@given(data=st.data(), sizes=st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_whole_institutions_as_even_as_they_allow(data, sizes):
    names = np.repeat([f"site {number}" for number in range(len(sizes))], sizes)
    names = names[data.draw(st.permutations(range(len(names))))] if len(names) < 100 else names
    wanted = data.draw(st.integers(1, len(sizes)))
    joined = join_institutions(names, wanted)
    totals = sizes_of(joined)
    assert joined.shape == names.shape and len(totals) == wanted
    members = [name for hospital in totals for name in hospital.split("+")]
    assert sorted(members) == sorted(set(names))  # a union, each institution once
    assert all(name in hospital.split("+") for name, hospital in zip(names, joined, strict=True))
    # Whoever was given the last institution was the smallest then.
    assert max(totals.values()) - min(totals.values()) <= max(sizes)
    assert join_institutions(names[::-1], wanted)[::-1].tolist() == joined.tolist()  # the order does not matter
