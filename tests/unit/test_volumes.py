"""Finding and reading volumes: small files in the real layouts, and the real data where they are present."""

import csv
import dataclasses

import nibabel as nib
import numpy as np
import pytest

from fl_utils import paths
from fl_utils.data.catalogue.segmentation import BRATS2020, HIPPOCAMPUS, MSD_BRAIN, SEGMENTATION
from fl_utils.data.types import DataError
from fl_utils.data.volumes import find_cases, read_case

SHAPE = (7, 6, 5)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # BraTS files are stored this way
LPS[:2, 3] = 6, 5
RAS = np.eye(4)


def save(path, data, affine=RAS, dtype=np.int16):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(data).astype(dtype), affine), path)


def brain(seed, shape=SHAPE):
    """Positive inside a box, 0 around it, as a skull-stripped head."""
    image = np.zeros(shape, np.int16)
    image[1:-1, 1:-1, 1:-1] = np.random.default_rng(seed).integers(10, 500, [n - 2 for n in shape])
    return image


def labels(values, seed=0, shape=SHAPE):
    return np.random.default_rng(seed).choice(values, shape)


def write_brats(root, subject, suffix=".nii.gz", affine=LPS, modalities=("t1", "t1ce", "t2", "flair"), seg="{}_seg"):
    for seed, modality in enumerate(modalities):
        save(root / subject / f"{subject}_{modality}{suffix}", brain(seed), affine)
    if seg:
        save(root / subject / f"{seg.format(subject)}{suffix}", labels([0, 1, 2, 4]), affine, np.uint8)


def write_hippocampus(root, number, image=None, mask=None, dtype=np.float32, mask_dtype=np.uint8):
    name = f"hippocampus_{number:03d}.nii.gz"
    save(root / "imagesTr" / name, brain(number) + 3 if image is None else image, dtype=dtype)
    save(root / "labelsTr" / name, labels([0, 1, 2]) if mask is None else mask, dtype=mask_dtype)


def only(card, root):
    (case,) = find_cases(card, root)
    return case


# --- cards ---


def test_cards():
    assert [card.name for card in SEGMENTATION] == ["brats2020", "msd_brain", "hippocampus"]
    for card in SEGMENTATION:
        assert card.task == "segmentation" and card.class_names[0] == "background"
        assert card.known_faults and "TODO" not in card.ethics
    # One meaning a code and a channel, so that a model of one dataset can be run on the other.
    assert BRATS2020.class_names == MSD_BRAIN.class_names
    assert tuple(BRATS2020.modalities.values()) == tuple(MSD_BRAIN.modalities.values()) == ("t1", "t1ce", "t2", "flair")


# --- finding ---


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_brats_cases(tmp_path, suffix):
    for subject in ("BraTS20_Training_002", "BraTS20_Training_001"):
        write_brats(tmp_path, subject, suffix)
    first, second = find_cases(BRATS2020, tmp_path)
    assert (first.subject, second.subject) == ("BraTS20_Training_001", "BraTS20_Training_002")
    assert list(first.images) == ["t1", "t1ce", "t2", "flair"]
    assert first.images["t1ce"].name == f"BraTS20_Training_001_t1ce{suffix}"
    assert first.mask.name == f"BraTS20_Training_001_seg{suffix}"
    assert first.problem == first.hospital == "" and first.patient == first.subject
    assert len(first.files) == 5 and first.files[-1] == first.mask


def test_the_misnamed_mask_of_subject_355(tmp_path):
    write_brats(tmp_path, "BraTS20_Training_355", ".nii", seg="W39_1998.09.19_Segm")
    case = only(BRATS2020, tmp_path)
    assert case.mask.name == "W39_1998.09.19_Segm.nii" and not case.problem
    assert set(np.unique(read_case(case, BRATS2020).mask)) == {0, 1, 2, 3}


def test_incomplete_brats_cases_are_told(tmp_path):
    write_brats(tmp_path, "BraTS20_Training_001", modalities=("t1", "t2", "flair"))
    write_brats(tmp_path, "BraTS20_Training_002", seg=None)
    write_brats(tmp_path, "BraTS20_Validation_001", seg=None)
    no_t1ce, no_mask, validation = find_cases(BRATS2020, tmp_path)
    assert no_t1ce.problem == "no file BraTS20_Training_001_t1ce (.nii or .nii.gz)"
    assert no_mask.problem == "no file BraTS20_Training_002_seg (.nii or .nii.gz)"
    assert validation.problem == "" and validation.mask is None
    with pytest.raises(DataError, match="BraTS20_Training_001: no file BraTS20_Training_001_t1ce"):
        read_case(no_t1ce, BRATS2020)
    assert read_case(validation, BRATS2020).mask is None


def test_hospitals_come_from_the_ids_of_earlier_years(tmp_path):
    ids = {
        "001": ("Brats17_TCIA05_1_1", "Brats18_CBICA_AAB_1", "BraTS19_CBICA_AAB_1"),
        "002": ("NA", "NA", "BraTS19_TCIA01_131_1"),
        "003": ("Brats17_2013_2_1", "Brats18_2013_2_1", "NA"),
        "004": ("NA", "NA", "NA"),
    }
    for number in [*ids, "005"]:
        write_brats(tmp_path, f"BraTS20_Training_{number}")
    with (tmp_path / "name_mapping.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["Grade", "BraTS_2017_subject_ID", "BraTS_2018_subject_ID", "TCGA_TCIA_subject_ID",
                       "BraTS_2019_subject_ID", "BraTS_2020_subject_ID"])  # fmt: skip
        for number, (year17, year18, year19) in ids.items():
            rows.writerow(["HGG", year17, year18, "NA", year19, f"BraTS20_Training_{number}"])
    assert [case.hospital for case in find_cases(BRATS2020, tmp_path)] == ["CBICA", "TCIA01", "2013", "", ""]


def test_msd_cases_and_hidden_files(tmp_path):
    write_hippocampus(tmp_path, 3)
    write_hippocampus(tmp_path, 4)
    save(tmp_path / "imagesTs" / "hippocampus_002.nii.gz", brain(0))
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (tmp_path / folder / "._hippocampus_003.nii.gz").write_bytes(b"Mac OS X")
    (tmp_path / "dataset.json").write_text("{}")
    test, *train = find_cases(HIPPOCAMPUS, tmp_path)
    assert test.subject == "hippocampus_002" and test.mask is None and not test.problem
    assert [case.subject for case in train] == ["hippocampus_003", "hippocampus_004"]
    assert all(case.mask is not None and not case.problem for case in train)


def test_msd_cases_without_image_or_mask(tmp_path):
    for number in (1, 2):
        write_hippocampus(tmp_path, number)
    (tmp_path / "imagesTr" / "hippocampus_001.nii.gz").unlink()
    (tmp_path / "labelsTr" / "hippocampus_002.nii.gz").unlink()
    problems = [case.problem for case in find_cases(HIPPOCAMPUS, tmp_path)]
    ending = "(.nii or .nii.gz)"
    assert problems == [f"no file imagesTr/hippocampus_001 {ending}", f"no file labelsTr/hippocampus_002 {ending}"]


def test_two_hippocampi_are_one_patient(tmp_path):
    for number in (1, 2, 3, 4, 394):
        write_hippocampus(tmp_path, number)
    patients = [case.patient for case in find_cases(HIPPOCAMPUS, tmp_path)]
    assert patients[0] == patients[1] != patients[2] == patients[3] == "hippocampus_person_002"
    assert patients[4] == "hippocampus_person_197"


def test_wrong_folders_are_told(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="holds no case. Expected layout: hippocampus/imagesTr"):
        find_cases(HIPPOCAMPUS, tmp_path)
    monkeypatch.setenv("FL_UTILS_DATA", str(tmp_path))
    with pytest.raises(DataError, match="no folder .*MICCAI_BraTS2020_TrainingData. Set FL_UTILS_DATA"):
        find_cases(BRATS2020)
    with pytest.raises(DataError, match="'nih' holds no volumes"):
        find_cases(dataclasses.replace(HIPPOCAMPUS, layout="nih"), tmp_path)
    for part in ("a", "b"):
        write_brats(tmp_path / part, "BraTS20_Training_001")
    with pytest.raises(DataError, match="BraTS20_Training_001 more than once"):
        find_cases(BRATS2020, tmp_path)


def test_the_folder_of_the_card_is_the_default(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_UTILS_DATA", str(tmp_path))
    write_brats(tmp_path / "brats" / "MICCAI_BraTS2020_TrainingData", "BraTS20_Training_001")
    assert only(BRATS2020, None).subject == "BraTS20_Training_001"


# --- reading ---


def test_a_brats_case_is_turned_and_coded(tmp_path):
    write_brats(tmp_path, "BraTS20_Training_001")
    volume = read_case(only(BRATS2020, tmp_path), BRATS2020)
    assert volume.image.shape == (*SHAPE, 4) and volume.image.dtype == np.float32
    assert volume.mask.shape == SHAPE and volume.mask.dtype == np.uint8
    # Stored left-posterior, read right-anterior: both axes are reversed.
    codes = {0: 0, 1: 1, 2: 2, 4: 3}
    expected = np.vectorize(codes.get)(labels([0, 1, 2, 4]))[::-1, ::-1]
    np.testing.assert_array_equal(volume.mask, expected)
    for channel in range(4):
        np.testing.assert_array_equal(volume.image[..., channel] != 0, brain(channel)[::-1, ::-1] > 0)
        order = brain(channel)[::-1, ::-1][1:-1, 1:-1, 1:-1].ravel().argsort(kind="stable")
        assert (np.diff(volume.image[1:-1, 1:-1, 1:-1, channel].ravel()[order]) >= 0).all()
    np.testing.assert_allclose(volume.spacing_mm, 1)


def test_msd_channels_come_in_our_order(tmp_path):
    stored = np.stack([brain(seed) for seed in (10, 11, 12, 13)], axis=-1)  # FLAIR, T1w, t1gd, T2w
    mask = labels([0, 1, 2, 3])
    save(tmp_path / "imagesTr" / "BRATS_001.nii.gz", stored, dtype=np.float32)
    save(tmp_path / "labelsTr" / "BRATS_001.nii.gz", mask, dtype=np.uint8)
    volume = read_case(only(MSD_BRAIN, tmp_path), MSD_BRAIN)
    for channel, seed in enumerate((11, 12, 13, 10)):  # t1, t1ce, t2, flair
        assert np.corrcoef(volume.image[..., channel].ravel(), brain(seed).ravel())[0, 1] > 0.5
        order = brain(seed)[1:-1, 1:-1, 1:-1].ravel().argsort(kind="stable")
        assert (np.diff(volume.image[1:-1, 1:-1, 1:-1, channel].ravel()[order]) >= 0).all()
    # 1 edema, 2 non-enhancing, 3 enhancing -> necrotic_core 1, oedema 2, enhancing 3
    np.testing.assert_array_equal(volume.mask, np.array([0, 2, 1, 3])[mask])


def test_both_brain_datasets_give_one_volume(tmp_path):
    write_brats(tmp_path / "b", "BraTS20_Training_001", affine=RAS)
    stored = np.stack([brain(3), brain(0), brain(1), brain(2)], axis=-1)
    save(tmp_path / "m" / "imagesTr" / "BRATS_001.nii.gz", stored)
    save(tmp_path / "m" / "labelsTr" / "BRATS_001.nii.gz", np.array([0, 2, 1, -1, 3])[labels([0, 1, 2, 4])])
    ours = read_case(only(BRATS2020, tmp_path / "b"), BRATS2020)
    theirs = read_case(only(MSD_BRAIN, tmp_path / "m"), MSD_BRAIN)
    np.testing.assert_array_equal(ours.image, theirs.image)
    np.testing.assert_array_equal(ours.mask, theirs.mask)


def test_normalisation_by_hand(tmp_path):
    image = brain(5, (12, 12, 12)).astype(np.float32)
    image[6, 6, 6] = 3e6  # one outlier, as in hippocampus
    image[0, 0, 0] = -7
    write_hippocampus(tmp_path, 1, image, labels([0, 1, 2], shape=(12, 12, 12)))
    volume = read_case(only(HIPPOCAMPUS, tmp_path), HIPPOCAMPUS)
    inside = image > 0
    low, high = np.percentile(image[inside], (0.5, 99.5))
    clipped = np.clip(image, low, high)
    expected = np.where(inside, (clipped - clipped[inside].mean()) / clipped[inside].std(), 0)
    np.testing.assert_allclose(volume.image[..., 0], expected, atol=2e-5)
    assert volume.image[0, 0, 0, 0] == 0 and np.abs(volume.image).max() < 10


def test_intensity_scale_does_not_matter(tmp_path):
    images = []
    for factor in (1, 1000):
        write_hippocampus(tmp_path / str(factor), 1, (brain(2) + 3) * np.float32(factor))
        images.append(read_case(only(HIPPOCAMPUS, tmp_path / str(factor)), HIPPOCAMPUS).image)
    np.testing.assert_allclose(*images, atol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "mask_dtype"), [(np.uint8, np.uint8), (np.float32, np.float32), (np.float64, np.int16)]
)
def test_file_types_do_not_matter(tmp_path, dtype, mask_dtype):
    image = brain(1) % 200 + 3
    write_hippocampus(tmp_path, 1, image, dtype=dtype, mask_dtype=mask_dtype)
    write_hippocampus(tmp_path / "other", 1, image)
    one, other = (read_case(only(HIPPOCAMPUS, root), HIPPOCAMPUS) for root in (tmp_path, tmp_path / "other"))
    np.testing.assert_array_equal(one.image, other.image)
    np.testing.assert_array_equal(one.mask, other.mask)


def test_scaled_files_and_voxel_sizes(tmp_path):
    affine = np.diag([0.5, 2.0, 3.0, 1.0])
    write_hippocampus(tmp_path, 1)
    name = "hippocampus_001.nii.gz"
    stored = nib.Nifti1Image(brain(0) + np.int16(3), affine)
    stored.header.set_slope_inter(0.25, 0)
    nib.save(stored, tmp_path / "imagesTr" / name)
    save(tmp_path / "labelsTr" / name, labels([0, 1, 2]), affine)
    np.testing.assert_allclose(read_case(only(HIPPOCAMPUS, tmp_path), HIPPOCAMPUS).spacing_mm, (0.5, 2, 3))


def test_labels_near_an_integer_are_rounded_and_others_refused(tmp_path):
    mask = labels([0, 1, 2]).astype(np.float32)
    write_hippocampus(tmp_path, 1, mask=mask + 9e-4, mask_dtype=np.float32)
    volume = read_case(only(HIPPOCAMPUS, tmp_path), HIPPOCAMPUS)
    np.testing.assert_array_equal(volume.mask, mask)
    write_hippocampus(tmp_path, 1, mask=mask + 2e-3, mask_dtype=np.float32)
    with pytest.raises(DataError, match=r"hippocampus_001.nii.gz: label value 0.002, 1.002, 2.002 in 210 voxels"):
        read_case(only(HIPPOCAMPUS, tmp_path), HIPPOCAMPUS)


def bad_affine():
    affine = RAS.copy()
    affine[0, 3] = 0.2
    return affine


NAN_IMAGE = brain(0).astype(np.float32)
NAN_IMAGE[2, 2, 2] = np.nan


@pytest.mark.parametrize(
    ("modality", "data", "affine", "dtype", "message"),
    [
        ("seg", labels([0, 1, 3]), RAS, np.uint8, "_seg.nii.gz: label value 3 .*expected 0, 1, 2, 4"),
        ("seg", labels([0, 1], shape=(7, 6, 4)), RAS, np.uint8, r"_seg.nii.gz has shape \(7, 6, 4\), .*\(7, 6, 5\)"),
        ("seg", labels([0, 1], shape=(7, 6, 5, 2)), RAS, np.uint8, r"_seg.nii.gz has shape \(7, 6, 5, 2\)"),
        ("t2", brain(0, (7, 6, 4)), RAS, np.int16, r"_t2.nii.gz has shape \(7, 6, 4\)"),
        ("t2", brain(0), bad_affine(), np.int16, "_t2.nii.gz lies up to 0.2 mm away from .*_t1.nii.gz"),
        ("flair", brain(0), LPS @ np.diag([1, -1, 1, 1]), np.int16, "flair.nii.gz lies up to"),
        ("t1ce", NAN_IMAGE, RAS, np.float32, "_t1ce.nii.gz: 1 voxels are not finite"),
        ("t1ce", np.zeros(SHAPE), RAS, np.int16, r"_t1ce.nii.gz \(t1ce\): no voxel is above 0"),
        ("t1ce", np.full(SHAPE, 7), RAS, np.int16, r"\(t1ce\): no contrast, .* the value 7"),
        ("t1", np.zeros((*SHAPE, 3)) + 1, RAS, np.int16, "_t1.nii.gz: 3 modalities, expected 1"),
        ("t1", np.zeros(SHAPE[:2]) + 1, RAS, np.int16, r"_t1.nii.gz: shape \(7, 6\); expected"),
    ],
)
def test_odd_cases_are_refused(tmp_path, modality, data, affine, dtype, message):
    write_brats(tmp_path, "BraTS20_Training_001", affine=RAS)
    save(tmp_path / "BraTS20_Training_001" / f"BraTS20_Training_001_{modality}.nii.gz", data, affine, dtype)
    with pytest.raises(DataError, match=message):
        read_case(only(BRATS2020, tmp_path), BRATS2020)


def test_files_that_agree_in_space_may_be_stored_differently(tmp_path):
    write_brats(tmp_path, "BraTS20_Training_001", affine=RAS)
    expected = read_case(only(BRATS2020, tmp_path), BRATS2020)
    turned = np.diag([-1.0, -1.0, 1.0, 1.0])
    turned[:2, 3] = 6, 5  # the same places, stored from the other end; rounded a little
    turned[0, 3] += 0.05
    save(tmp_path / "BraTS20_Training_001/BraTS20_Training_001_seg.nii.gz", labels([0, 1, 2, 4])[::-1, ::-1], turned)
    np.testing.assert_array_equal(read_case(only(BRATS2020, tmp_path), BRATS2020).mask, expected.mask)


@pytest.mark.parametrize("content", [b"", b"no image at all", "cut"])
def test_broken_files_are_refused(tmp_path, content):
    write_hippocampus(tmp_path, 1)
    path = tmp_path / "imagesTr" / "hippocampus_001.nii.gz"
    path.write_bytes(path.read_bytes()[:-40] if content == "cut" else content)
    with pytest.raises(DataError, match="^hippocampus_001.nii.gz: not a whole NIfTI file"):
        read_case(only(HIPPOCAMPUS, tmp_path), HIPPOCAMPUS)


def test_a_wrong_number_of_channels_is_refused(tmp_path):
    save(tmp_path / "imagesTr" / "BRATS_001.nii.gz", np.stack([brain(0)] * 3, axis=-1))
    save(tmp_path / "labelsTr" / "BRATS_001.nii.gz", labels([0, 1]))
    with pytest.raises(DataError, match="BRATS_001.nii.gz: 3 modalities, expected 4"):
        read_case(only(MSD_BRAIN, tmp_path), MSD_BRAIN)


# --- real data ---


def real(card):
    if paths.dataset_root(card.folder) is None:
        pytest.skip(f"no real data: set FL_UTILS_DATA to a folder that holds {card.folder}/")
    return find_cases(card)


@pytest.mark.real_data
def test_real_hippocampus():
    cases = [case for case in real(HIPPOCAMPUS) if case.mask is not None]
    assert len(cases) in (200, HIPPOCAMPUS.counts["train"])
    assert not [case.problem for case in cases if case.problem]
    for case in cases:
        volume = read_case(case, HIPPOCAMPUS)
        assert set(np.unique(volume.mask)) == {0, 1, 2} and (volume.spacing_mm == 1).all()
        assert np.abs(volume.image).max() < 10
        # RAS+: the anterior part lies in front of the posterior one.
        assert np.argwhere(volume.mask == 1)[:, 1].mean() > np.argwhere(volume.mask == 2)[:, 1].mean()


@pytest.mark.real_data
def test_real_hippocampi_of_one_patient_resemble_each_other():
    sizes = {}
    for case in real(HIPPOCAMPUS):
        if case.mask is not None:
            mask = read_case(case, HIPPOCAMPUS).mask
            sizes[int(case.subject[-3:])] = case.patient, np.array([(mask == 1).sum(), (mask == 2).sum()]) / 1000
    pairs = [(sizes[n], sizes[n + 1]) for n in sizes if n + 1 in sizes]
    same = [np.abs(a[1] - b[1]).sum() for a, b in pairs if a[0] == b[0]]
    others = [np.abs(a[1] - b[1]).sum() for a, b in pairs if a[0] != b[0]]
    assert len(same) >= 49 and len(others) >= 51
    assert np.median(same) < 0.7 * np.median(others)


@pytest.mark.real_data
def test_real_brats_enhances_where_the_mask_says_so():
    for case in real(BRATS2020):
        volume = read_case(case, BRATS2020)
        brightness = [np.median(volume.image[volume.mask == code, 1]) for code in (1, 2, 3)]  # in t1ce
        assert brightness[2] > max(brightness[:2])
        left_out = (volume.image == 0).all(axis=-1)
        assert 0.5 < left_out.mean() < 0.95 and (volume.mask[left_out] == 0).mean() > 0.999
