"""Datasets at a glance: a slice a volume, rows of a contact sheet, distances of pairs. The volumes are small files."""

import hashlib

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from fl_utils.data.audit import audit
from fl_utils.data.decode import hashes_of
from fl_utils.data.near import pair_distances
from fl_utils.data.overview import WINDOW, sheet_rows, volume_overview
from fl_utils.data.types import DataError, ImageDataset

PX = 32
SHAPE = (20, 24, 16)


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_UTILS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FL_UTILS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "data"


def anatomy(seed, shape=SHAPE):
    """Soft blobs inside a box, 0 around it: what a perceptual hash is made for."""
    rng, image = np.random.default_rng(seed), np.zeros(shape, np.float32)
    for z in range(1, shape[2] - 1):
        blobs = Image.fromarray(rng.integers(30, 200, (6, 6), dtype=np.uint8)).resize((shape[1] - 4, shape[0] - 4), 3)
        image[2:-2, 2:-2, z] = np.maximum(1, np.asarray(blobs))
    return image


def ball(z=5, shape=SHAPE):
    """A mask with most of its voxels in the slice z."""
    mask = np.zeros(shape, np.uint8)
    mask[4:9, 4:9, z - 1 : z + 2] = 1
    mask[4:12, 4:9, z] = 2
    return mask


def save(path, array, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)


def write_case(data, number, image=None, mask=None, test=False):
    """A case of hippocampus: numbers 2n-1 and 2n are one patient; cases of the test part have no mask."""
    name = f"hippocampus_{number:03d}.nii"
    image = anatomy(number) if image is None else image
    save(data / "hippocampus" / ("imagesTs" if test else "imagesTr") / name, image)
    if not test:
        save(data / "hippocampus" / "labelsTr" / name, ball() if mask is None else mask)


def overview(**arguments):
    return volume_overview("hippocampus", **{"image_size_px": PX, **arguments})


# --- volumes ---


def test_every_column_belongs_to_its_case(data):
    for number, z in ((4, 3), (1, 9), (7, 12)):
        write_case(data, number, mask=ball(z))
    write_case(data, 2, test=True)
    found = overview()
    assert found.sources.tolist() == ["hippocampus_001", "hippocampus_002", "hippocampus_004", "hippocampus_007"]
    assert found.patients.tolist() == [f"hippocampus_person_{n:03d}" for n in (1, 1, 2, 4)]
    assert found.published_split.tolist() == ["train", "test", "train", "train"]
    assert found.hospitals.tolist() == [""] * 4 and found.excluded == () and not found.synthetic
    assert found.class_names == ("case",) and found.labels.tolist() == [0] * 4 and found.labels.dtype == np.int64
    assert found.images.shape == (4, PX, PX, 1) and found.images.dtype == np.uint8
    assert found.masks.shape == (4, PX, PX) and found.masks.dtype == np.uint8
    # 1 and 2 are one patient, the others are strangers.
    assert found.groups.tolist() == [0, 0, 1, 2] and found.near_groups.tolist() == [0, 1, 2, 3]
    assert found.picture_groups.tolist() == found.duplicate_groups.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(found.hashes, hashes_of(found.images))
    assert [bool(mask.any()) for mask in found.masks] == [True, False, True, True]


@pytest.mark.parametrize("z", [3, 12])
def test_the_slice_is_the_one_with_the_most_labelled_voxels(data, z):
    image = np.full(SHAPE, 100, np.float32)
    image[..., z] = 200
    write_case(data, 1, image, ball(z))
    found = overview(image_size_px=24)
    # 24 x 24 pixels hold the 20 x 24 voxels one to one, with 2 columns of background at either side.
    inside = found.images[0, :, 2:-2, 0]
    assert (found.masks[0] > 0).sum() == 40 and set(np.unique(found.masks[0])) == {0, 2}
    assert len(np.unique(inside)) == 1 and inside[0, 0] > 200


def test_without_a_mask_the_slice_in_the_middle_is_shown(data):
    image = np.full(SHAPE, 100, np.float32)
    image[..., SHAPE[2] // 2] = 200
    write_case(data, 1, test=True, image=image)
    found = overview(image_size_px=24)
    assert found.published_split.tolist() == ["test"] and not found.masks.any()
    assert found.images[0, :, 2:-2].min() > 200


def test_the_window_runs_from_black_to_white_and_the_background_is_black(data):
    image = np.zeros(SHAPE, np.float32)
    image[2:-2, 2:-2, 1:-1] = np.linspace(100, 1000, 16, dtype=np.float32)[:, None, None]
    write_case(data, 1, image)
    grey = overview(image_size_px=24).images[0, ..., 0]
    values = image[2:-2, 2:-2, 1:-1]
    scores = (np.linspace(100, 1000, 16) - values.mean()) / values.std()
    expected = np.rint(np.clip((scores - WINDOW[0]) / (WINDOW[1] - WINDOW[0]), 0, 1) * 255)
    # The right of the patient, the end of the axis with the high values, is at the left.
    np.testing.assert_allclose(grey[12, 4:20], expected[::-1], atol=1)
    assert grey[12, 4] > 200 and 0 < grey[12, 19] < 60
    border = np.ones((24, 24), bool)
    border[2:-2, 4:20] = False
    assert (grey[border] == 0).all()


def test_far_outliers_are_clipped_and_do_not_wrap_around(data):
    image = np.full(SHAPE, 100, np.float32)
    image[:, :, ::2] += np.float32(1)
    image[5:7, 5:7, :] = 1  # 1 % of the voxels, far below all others
    image[9:11, 9:11, :] = 199
    write_case(data, 1, image)
    grey = overview(image_size_px=24).images[0, ..., 0]
    assert grey.max() == 255 and grey[2:-2, 2:-2].min() == 0
    middle = np.median(grey[:, 2:-2])
    assert 100 < middle < 155


def test_copies_pictures_and_near_duplicates_are_told_apart(data):
    write_case(data, 1)
    write_case(data, 3, anatomy(1), mask=ball(9))  # the image of 1, with another mask
    write_case(data, 5, anatomy(1).astype(np.int16))  # its voxels in another type: other bytes
    write_case(data, 7, np.where(anatomy(1) > 0, anatomy(1) + anatomy(99) * np.float32(0.02), 0))  # nearly its voxels
    write_case(data, 9)
    found = overview()
    assert found.duplicate_groups.tolist() == [0, 0, 1, 2, 3]
    assert found.picture_groups.tolist() == [0, 0, 0, 1, 2]
    assert found.near_groups.tolist() == found.groups.tolist() == [0, 0, 0, 0, 1]


def test_a_training_case_that_lies_in_the_test_part_is_found(data):
    """It has no mask there, and its slice is another one: only the image can tell."""
    write_case(data, 1, mask=ball(3))
    write_case(data, 11, anatomy(1), test=True)
    write_case(data, 13, anatomy(13), test=True)
    found = overview()
    assert not np.array_equal(found.images[0], found.images[1])
    counts = audit(found).counts()
    assert counts["duplicate_groups"] == counts["cross_split_groups"] == counts["test_pictures_in_train"] == 1
    assert counts["distinct"] == 2


def test_cases_that_cannot_be_read_are_listed(data):
    for number in (1, 3, 5):
        write_case(data, number)
    cut = data / "hippocampus" / "imagesTr" / "hippocampus_003.nii"
    cut.write_bytes(cut.read_bytes()[:400])
    (data / "hippocampus" / "labelsTr" / "hippocampus_005.nii").unlink()
    found = overview()
    assert found.sources.tolist() == ["hippocampus_001"] and found.patients.tolist() == ["hippocampus_person_001"]
    (cut_case, why_cut), (torn_case, why_torn) = found.excluded
    assert cut_case == "hippocampus_003" and "not a whole NIfTI file" in why_cut
    assert torn_case == "hippocampus_005" and "no file labelsTr/hippocampus_005" in why_torn
    assert audit(found).excluded == 2


def test_not_one_case_that_can_be_read_is_an_error(data):
    for number in (1, 3):
        write_case(data, number, np.zeros(SHAPE, np.float32))
    with pytest.raises(DataError, match=r"hippocampus: none of 2 cases can be read. The first: .*no voxel is above 0"):
        overview()


@pytest.mark.parametrize("size", [0, 15, 1025])
def test_sizes_out_of_range(data, size):
    write_case(data, 1)
    with pytest.raises(DataError, match=f"image_size_px is {size}; expected 16 to 1024"):
        overview(image_size_px=size)


def test_images_unknown_names_and_missing_folders_are_refused(data):
    with pytest.raises(DataError, match="brain_mri is a dataset of images, not of volumes; use load_dataset"):
        volume_overview("brain_mri")
    with pytest.raises(DataError, match="There is no dataset 'spleen_ct'"):
        volume_overview("spleen_ct")
    with pytest.raises(DataError, match="hippocampus: no folder .*Set FL_UTILS_DATA"):
        overview()


def test_the_fingerprint_is_that_of_images_and_masks(data):
    write_case(data, 1)
    first = overview().fingerprint
    assert overview(image_size_px=16).fingerprint == first
    write_case(data, 1, mask=ball(9))
    other_mask = overview().fingerprint
    write_case(data, 1, image=anatomy(2), mask=ball(9))
    assert len({first, other_mask, overview().fingerprint}) == 3
    files = [data / "hippocampus" / part / "hippocampus_001.nii" for part in ("imagesTr", "labelsTr")]
    shas = " ".join(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    assert overview().fingerprint == hashlib.sha256(shas.encode()).hexdigest()


def write_brats(root, number, seed):
    subject = f"BraTS20_Training_{number:03d}"
    for k, modality in enumerate(("t1", "t1ce", "t2", "flair")):
        save(root / subject / f"{subject}_{modality}.nii", anatomy(seed + k))
    save(root / subject / f"{subject}_seg.nii", ball())


def test_brats_shows_the_modality_with_contrast_agent_and_names_the_hospitals(data):
    root = data / "brats" / "MICCAI_BraTS2020_TrainingData"
    write_brats(root, 1, 10)
    write_brats(root, 2, 20)
    (root / "name_mapping.csv").write_text(
        "BraTS_2019_subject_ID,BraTS_2020_subject_ID\nBraTS19_CBICA_AAB_1,BraTS20_Training_002\n"
    )
    found = volume_overview("brats2020", image_size_px=24)
    assert found.hospitals.tolist() == ["", "CBICA"] and found.masks.any(axis=(1, 2)).all()
    write_case(data, 1, anatomy(11))  # the voxels of t1ce of the first
    np.testing.assert_array_equal(overview(image_size_px=24).images[0], found.images[0])
    index, rows, titles = sheet_rows(found)
    assert (index.tolist(), rows.tolist(), titles) == ([0, 1], [0, 1], ("case", "case, CBICA"))


# --- the rows of a contact sheet ---


def made_up(labels, hospitals, class_names):
    num, ids = len(labels), np.arange(len(labels))
    return ImageDataset(
        name="made_up", images=np.zeros((num, 16, 16, 1), np.uint8), labels=np.asarray(labels), class_names=class_names,
        groups=ids, duplicate_groups=ids, picture_groups=ids, near_groups=ids, patients=np.full(num, ""),
        hospitals=np.array(hospitals), published_split=np.full(num, "train"), sources=ids.astype(str), masks=None,
        fingerprint="", synthetic=False,
    )


def row_members(dataset):
    index, rows, titles = sheet_rows(dataset)
    assert set(rows.tolist()) == set(range(len(titles)))
    return {title: index[rows == row].tolist() for row, title in enumerate(titles)}


def test_a_row_a_class():
    dataset = made_up([1, 0, 1, 2, 0], [""] * 5, ("normal", "covid", "viral"))
    assert row_members(dataset) == {"normal": [1, 4], "covid": [0, 2], "viral": [3]}
    assert sheet_rows(dataset)[2] == ("normal", "covid", "viral")


def test_a_row_a_class_and_hospital_that_has_it():
    dataset = made_up([0, 1, 0, 1, 1], ["b", "a", "a", "a", ""], ("normal", "pneumonia"))
    members = row_members(dataset)
    assert members == {"normal, a": [2], "normal, b": [0], "pneumonia": [4], "pneumonia, a": [1, 3]}
    assert list(members) == ["normal, a", "normal, b", "pneumonia", "pneumonia, a"]


def test_a_class_without_images_has_no_row():
    assert row_members(made_up([2, 2], ["", ""], ("a", "b", "c"))) == {"c": [0, 1]}


def test_an_image_with_two_findings_stands_in_both_rows_and_one_without_any_in_its_own():
    labels = np.array([[1, 0], [1, 1], [0, 0], [0, 1], [0, 0]], np.uint8)
    dataset = made_up(labels, ["x", "x", "x", "y", "y"], ("hernia", "mass"))
    assert row_members(dataset) == {
        "hernia, x": [0, 1], "mass, x": [1], "mass, y": [3], "no finding, x": [2], "no finding, y": [4],
    }  # fmt: skip
    all_ill = made_up(np.ones((2, 2), np.uint8), ["", ""], ("hernia", "mass"))
    assert row_members(all_ill) == {"hernia": [0, 1], "mass": [0, 1]}


# --- how far apart pictures are ---


def with_ones(*places):
    bits = np.zeros(256, np.uint8)
    bits[list(places)] = 1
    return np.packbits(bits)


def test_pairs_of_different_pictures_are_counted_by_distance():
    # Distances: 0-1 2, 0-2 2, 1-2 4, 3-4 0, and 60 or more from 3 and 4 to the others.
    hashes = np.array([with_ones(0, 1), with_ones(0, 2), with_ones(1, 3), *[with_ones(*range(64))] * 2])
    table = pair_distances(hashes, np.arange(5), max_distance=8)
    assert list(table.columns) == ["distance", "pairs"] and table["distance"].tolist() == [0, 2, 4, 6, 8]
    assert table["pairs"].tolist() == [1, 2, 1, 0, 0]
    assert pair_distances(hashes, np.arange(5))["pairs"].sum() == 10
    assert pair_distances(hashes, np.arange(5))["distance"].max() == 64


def test_a_picture_counts_once_however_many_files_it_has():
    hashes = np.array([with_ones(0, 1), with_ones(0, 1), with_ones(0, 2), with_ones(0, 1)])
    assert pair_distances(hashes, np.array([7, 7, 3, 7]), max_distance=4)["pairs"].tolist() == [0, 1, 0]
    assert pair_distances(hashes, np.arange(4), max_distance=4)["pairs"].tolist() == [3, 3, 0]


def test_an_odd_distance_is_counted_below_it_and_nothing_is_lost():
    hashes = np.array([with_ones(), with_ones(0), with_ones(0, 1, 2)])  # 1, 3 and 2 bits apart
    assert pair_distances(hashes, np.arange(3), max_distance=4)["pairs"].tolist() == [1, 2, 0]


def test_one_picture_has_no_pairs():
    assert pair_distances(np.zeros((2, 32), np.uint8), np.zeros(2, int), max_distance=2)["pairs"].tolist() == [0, 0]
