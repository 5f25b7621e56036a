"""Preparing volumes on disk and streaming them back."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import weakref

import nibabel as nib
import numpy as np
import pytest

from fl_utils import paths
from fl_utils.data import prepare, volumes
from fl_utils.data.catalogue.segmentation import BRATS2020, HIPPOCAMPUS
from fl_utils.data.prepare import prepare_volumes, slices_of
from fl_utils.data.types import DataError
from fl_utils.data.volumes import Volume


@pytest.fixture
def data(tmp_path, monkeypatch):
    """An empty data folder and an empty cache."""
    monkeypatch.setenv("FL_UTILS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FL_UTILS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "data"


def write_cases(data, numbers, shape=(8, 10, 6), affine=None):
    for number in numbers:
        rng = np.random.default_rng(number)
        image, mask = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
        image[1:-1, 1:-1, 1:-1] = rng.integers(10, 900, [n - 2 for n in shape])
        mask[2:5, 2:5, 2 : 3 + number % 2] = rng.integers(1, 3, (3, 3, 1 + number % 2))
        for part, array in (("imagesTr", image), ("labelsTr", mask)):
            path = data / "hippocampus" / part / f"hippocampus_{number:03d}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)


def prepared(**arguments):
    return prepare_volumes(HIPPOCAMPUS, **{"image_size_px": 16, "progress": False, **arguments})


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- the slices of one volume ---


def landmarks(spacing_mm=(1, 1, 1), shape=(20, 20, 20)):
    """A volume whose only label lies at the right, front, top of the patient."""
    image = np.ones((*shape, 1), np.float32)
    mask = np.zeros(shape, np.uint8)
    mask[-shape[0] // 4 :, -shape[1] // 4 :, -shape[2] // 4 :] = 1
    return Volume(image, mask, np.array(spacing_mm, float), "landmarks")


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_directions(plane):
    """Right, front and top of the patient: in the last slices, at the top and at the left of the picture."""
    volume = landmarks()
    volume.image[volume.mask == 1] = 5
    slices = slices_of(volume, plane, 40)
    expected = np.zeros((20, 40, 40), np.uint8)
    expected[-5:, :10, :10] = 1
    np.testing.assert_array_equal(slices["mask"], expected)
    np.testing.assert_array_equal(slices["image"][..., 0] > 3, expected)


def test_each_plane_shows_its_own_axes():
    volume = landmarks(shape=(10, 20, 40))
    volume.image[3:5, 6:9, 12:16] = 5
    for plane, num, bright in (("axial", 40, 4), ("coronal", 20, 3), ("sagittal", 10, 2)):
        image = slices_of(volume, plane, 40)["image"]
        assert len(image) == num
        assert (image.max(axis=(1, 2, 3)) > 3).sum() == bright


def test_pixels_are_as_high_as_wide_in_mm():
    volume = landmarks(spacing_mm=(1, 2, 3), shape=(20, 20, 20))  # 20 x 40 x 60 mm
    sides = {}
    for plane in ("axial", "coronal", "sagittal"):
        inside = slices_of(volume, plane, 24)["image"][0, ..., 0] > 0
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        assert rows[0] == 23 - rows[-1] and columns[0] == 23 - columns[-1]  # padded alike on both sides
        sides[plane] = len(rows), len(columns)
    assert sides == {"axial": (24, 12), "coronal": (24, 8), "sagittal": (24, 16)}


def test_slices_without_foreground_are_left_out():
    volume = landmarks()
    volume.image[:, :, :7] = 0
    volume.mask[:, :, 18:] = 0
    slices = slices_of(volume, "axial", 20)
    assert len(slices) == 13 and slices.dtype["image"].base == np.float16
    assert slices["mask"].any(axis=(1, 2)).tolist() == [False] * 8 + [True] * 3 + [False] * 2


def test_masks_are_not_blended():
    volume = landmarks()
    volume.mask[:] = np.random.default_rng(0).choice([0, 3], volume.mask.shape)
    assert set(np.unique(slices_of(volume, "axial", 33)["mask"])) == {0, 3}


# --- preparation ---


def test_table_and_files(data):
    write_cases(data, [3, 4, 9])
    result = prepared()
    table = result.table.set_index("subject")
    assert result.subjects == ("hippocampus_003", "hippocampus_004", "hippocampus_009") and result.bad == ()
    assert table["slices"].tolist() == [4, 4, 4] and table["lesion_slices"].tolist() == [2, 1, 2]
    assert table["patient"].tolist() == [f"hippocampus_person_{n:03d}" for n in (2, 2, 5)]
    assert (table["hospital"] == "").all()
    labelled = table["voxels_anterior"] + table["voxels_posterior"]
    assert labelled.tolist() == [18, 9, 18] and (table["voxels_background"] + labelled == 480).all()
    stored = np.load(table["path"].iloc[0], mmap_mode="r")
    assert stored["image"].shape == (4, 16, 16, 1) and stored["mask"].shape == (4, 16, 16)
    assert paths.cache_root() in prepare.Path(table["path"].iloc[0]).parents


def test_what_is_finished_is_not_read_again(data, monkeypatch):
    write_cases(data, [1, 2, 3])
    first = prepared()
    read = []
    whole = volumes.read_case
    monkeypatch.setattr(volumes, "read_case", lambda case, card: read.append(case.subject) or whole(case, card))
    again = prepared()
    assert read == [] and again.fingerprint == first.fingerprint
    assert again.table.equals(first.table)
    write_cases(data, [4])
    assert prepared().fingerprint != first.fingerprint and read == ["hippocampus_004"]
    assert prepared(subjects=["hippocampus_001", "hippocampus_002", "hippocampus_003"]).fingerprint == first.fingerprint
    # A file that was only touched is read again and gives the same; one that changed gives something else.
    os.utime(data / "hippocampus/imagesTr/hippocampus_001.nii.gz", ns=(1, 1))
    only = {"subjects": ["hippocampus_001", "hippocampus_002", "hippocampus_003"]}
    assert prepared(**only).fingerprint == first.fingerprint and read == ["hippocampus_004", "hippocampus_001"]
    (data / "hippocampus/imagesTr/hippocampus_004.nii.gz").replace(data / "hippocampus/imagesTr/hippocampus_001.nii.gz")
    assert prepared(**only).fingerprint != first.fingerprint and read[2:] == ["hippocampus_001"]


def test_parameters_and_versions_have_files_of_their_own(data, monkeypatch):
    write_cases(data, [1])
    seen = {prepared().fingerprint, prepared(plane="coronal").fingerprint, prepared(image_size_px=17).fingerprint}
    monkeypatch.setattr(volumes, "READER_VERSION", volumes.READER_VERSION + 1)
    seen.add(prepared().fingerprint)
    assert len(seen) == 4 and len(list((paths.cache_root() / "volumes").iterdir())) == 4


def test_out_is_the_folder(data, tmp_path):
    write_cases(data, [1])
    result = prepared(out=tmp_path / "elsewhere")
    assert not paths.cache_root().exists()
    assert list((tmp_path / "elsewhere").iterdir())[0].name.startswith("hippocampus-")
    assert len(list(result.stream(result.subjects, batch_size=3))) == 2


@pytest.mark.parametrize("damage", ["cut data", "cut facts", "no facts", "other data"])
def test_damaged_files_are_made_again(data, damage):
    write_cases(data, [1])
    prepared()
    folder = next((paths.cache_root() / "volumes").iterdir())
    whole = files(folder)
    stored, facts = next(folder.glob("*.npy")), next(folder.glob("*.json"))
    if damage == "no facts":
        facts.unlink()
    elif damage == "other data":
        np.save(stored, np.zeros(4))
    else:
        broken = stored if damage == "cut data" else facts
        broken.write_bytes(broken.read_bytes()[:-5])
    assert files(folder) != whole
    prepared()
    assert files(folder) == whole


def test_a_killed_preparation_goes_on(data):
    """The real thing: a process that is killed between two cases, at no moment of its choosing."""
    write_cases(data, [1, 2, 3, 4])
    script = """
        import os, signal
        from fl_utils.data import volumes, prepare
        from fl_utils.data.catalogue.segmentation import HIPPOCAMPUS
        whole = volumes.read_case
        def read_case(case, card):
            if case.subject == "hippocampus_003":
                os.kill(os.getpid(), signal.SIGKILL)
            return whole(case, card)
        volumes.read_case = read_case
        prepare.prepare_volumes(HIPPOCAMPUS, image_size_px=16, progress=False)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=dict(os.environ), check=False)
    assert killed.returncode == -signal.SIGKILL
    folder = next((paths.cache_root() / "volumes").iterdir())
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(before) == 4
    resumed, left = prepared(), files(folder)
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before
    whole = prepared(out=data / "whole")
    assert files(data / "whole") == left and whole.fingerprint == resumed.fingerprint


def test_few_bad_cases_are_listed_and_many_refused(data):
    write_cases(data, range(1, 102), shape=(6, 6, 6))
    broken = data / "hippocampus/imagesTr/hippocampus_050.nii.gz"
    broken.write_bytes(b"")
    result = prepared()
    assert len(result.subjects) == 100 and "hippocampus_050" not in result.subjects
    ((subject, reason),) = result.bad
    assert subject == "hippocampus_050" and reason.startswith("hippocampus_050.nii.gz: not a whole NIfTI file")
    with pytest.raises(DataError, match="hippocampus_050 not among the 100 prepared subjects"):
        result.stream(["hippocampus_050"], batch_size=1)
    (data / "hippocampus/labelsTr/hippocampus_051.nii.gz").unlink()
    with pytest.raises(DataError, match="(?s)2 of 101 cases cannot be used, more than 1%.*_050: .*_051: no file"):
        prepared()
    broken.unlink()
    (data / "hippocampus/labelsTr/hippocampus_050.nii.gz").unlink()
    assert prepared().bad == (("hippocampus_051", "no file labelsTr/hippocampus_051 (.nii or .nii.gz)"),)


def test_one_bad_case_of_few_is_an_error(data):
    write_cases(data, [1, 2])
    (data / "hippocampus/labelsTr/hippocampus_002.nii.gz").unlink()
    with pytest.raises(DataError, match="1 of 2 cases cannot be used"):
        prepared()
    assert prepared(subjects=["hippocampus_001"]).bad == ()


def test_incomplete_cases_are_told_before_the_work(data, monkeypatch):
    write_cases(data, [1, 2])
    (data / "hippocampus/labelsTr/hippocampus_002.nii.gz").unlink()
    monkeypatch.setattr(volumes, "read_case", lambda case, card: pytest.fail("read"))
    with pytest.raises(DataError, match="1 of 2"):
        prepared()


def test_unlabelled_cases_are_left_alone(data):
    write_cases(data, [1])
    (data / "hippocampus/imagesTs").mkdir()
    (data / "hippocampus/imagesTs/hippocampus_002.nii.gz").write_bytes(b"never read")
    assert prepared().subjects == ("hippocampus_001",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size_px": 8}, "image_size_px is 8; expected 16 to 512"),
        ({"plane": "oblique"}, "plane is 'oblique'; expected axial, coronal, sagittal"),
        ({"subjects": ["hippocampus_007"]}, "hippocampus_007 asked for; labelled subjects in the data: 1"),
        ({"subjects": []}, "no subjects at all"),
    ],
)
def test_wrong_arguments(data, arguments, message):
    write_cases(data, [1])
    with pytest.raises(DataError, match=message):
        prepared(**arguments)
    with pytest.raises(DataError, match="no dataset 'heart'"):
        prepare_volumes("heart", image_size_px=32)


def test_a_full_disk_is_no_bad_case(data, monkeypatch):
    write_cases(data, [1])

    def full(path, write):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare, "write_atomically", full)
    with pytest.raises(OSError, match="could not be written .*No space left.*finished cases are kept"):
        prepared()


def test_hospitals_are_looked_up_anew(data):
    root = data / "brats/MICCAI_BraTS2020_TrainingData"
    subject = "BraTS20_Training_001"
    (root / subject).mkdir(parents=True)
    for part in ("t1", "t1ce", "t2", "flair", "seg"):
        array = np.arange(6**3, dtype=np.int16).reshape(6, 6, 6) if part != "seg" else np.zeros((6, 6, 6), np.uint8)
        nib.save(nib.Nifti1Image(array, np.eye(4)), root / subject / f"{subject}_{part}.nii")
    unknown = prepare_volumes(BRATS2020, image_size_px=16, progress=False)
    (root / "name_mapping.csv").write_text(
        f"BraTS_2020_subject_ID,BraTS_2019_subject_ID\n{subject},BraTS19_CBICA_AAB_1\n", encoding="utf-8"
    )
    known = prepare_volumes(BRATS2020, image_size_px=16, progress=False)
    assert unknown.table["hospital"].tolist() == [""] and known.table["hospital"].tolist() == ["CBICA"]
    assert known.fingerprint != unknown.fingerprint
    assert known.modalities == ("t1", "t1ce", "t2", "flair") and known.lesion_slices[subject].tolist() == []


# --- streaming ---


def test_a_pass_in_order(data):
    write_cases(data, [1, 2, 3])
    result = prepared()
    images, masks = result.load(["hippocampus_003", "hippocampus_001"])
    assert images.shape == (8, 16, 16, 1) and images.dtype == np.float32
    assert masks.shape == (8, 16, 16) and masks.dtype == np.uint8
    stored = {s: np.load(p) for s, p in result.table[["subject", "path"]].itertuples(index=False)}
    np.testing.assert_array_equal(images[:4], stored["hippocampus_003"]["image"])
    np.testing.assert_array_equal(masks[4:], stored["hippocampus_001"]["mask"])
    batches = list(result.stream(["hippocampus_003", "hippocampus_001"], batch_size=3))
    assert [len(batch) for batch, _ in batches] == [3, 3, 2]
    np.testing.assert_array_equal(np.concatenate([batch for batch, _ in batches]), images)
    np.testing.assert_array_equal(np.concatenate([batch for _, batch in batches]), masks)


def test_lesion_slices_only(data):
    write_cases(data, [1, 2, 3])
    result = prepared()
    _, masks = result.load(result.subjects, slices="lesion")
    assert len(masks) == result.table["lesion_slices"].sum() == 5 and masks.any(axis=(1, 2)).all()


def test_shuffling_mixes_subjects(data):
    write_cases(data, range(1, 13), shape=(8, 10, 22))
    result = prepared()
    whose = {}
    for subject in result.subjects:
        whose |= {image.tobytes(): subject for image in result.load([subject])[0]}
    assert len(whose) == 12 * 20

    def order(**arguments):
        stream = result.stream(result.subjects, batch_size=20, rng=np.random.default_rng(0), **arguments)
        return [[whose[image.tobytes()] for image in images] for images, _ in stream]

    # A batch of a whole shuffle would hold 20 slices of about 10 of the 12 subjects.
    assert all(len(set(batch)) >= 6 for batch in order()[:6])
    assert max(len(set(batch)) for batch in order(shuffle_buffer=1)) <= 12 - 1
    assert sum(order(), []) != sum(order(shuffle_buffer=1), [])


def test_no_more_than_a_few_cases_are_open(data, monkeypatch):
    write_cases(data, range(1, 31), shape=(6, 6, 6))
    result = prepared()
    opened, load = [], np.load

    def remembered(*arguments, **keywords):
        stored = load(*arguments, **keywords)
        opened.append(weakref.ref(stored))
        return stored

    monkeypatch.setattr(np, "load", remembered)
    stream = result.stream(result.subjects, batch_size=1, rng=np.random.default_rng(0), shuffle_buffer=60)
    assert opened == []
    at_a_time = []
    for _ in stream:
        at_a_time.append(sum(reference() is not None for reference in opened))
    assert len(at_a_time) == 30 * 4 and len(opened) == 30
    assert 2 <= max(at_a_time) <= 9  # 8 and the one that was just used up


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "both must be at least 1"),
        ({"shuffle_buffer": 0}, "both must be at least 1"),
        ({"slices": "none"}, "expected 'all' or 'lesion'"),
        ({"subjects": ["hippocampus_001"] * 2}, "some twice"),
        ({"subjects": ["x"]}, "x not among the 1 prepared subjects"),
        ({"subjects": []}, "0 subjects hold no slices"),
    ],
)
def test_wrong_streams_are_refused_at_once(data, arguments, message):
    write_cases(data, [1])
    result = prepared()
    arguments = {"subjects": result.subjects, "batch_size": 2, **arguments}
    with pytest.raises(DataError, match=message):
        result.stream(arguments.pop("subjects"), **arguments)


def test_a_file_that_vanished_is_told(data):
    write_cases(data, [1])
    result = prepared()
    prepare.Path(result.table["path"].item()).unlink()
    with pytest.raises(DataError, match="cannot be read.*Call prepare_volumes again"):
        result.load(result.subjects)


# --- real data ---


@pytest.mark.real_data
@pytest.mark.parametrize("info", [BRATS2020, HIPPOCAMPUS], ids=lambda info: info.name)
def test_real_data_prepare_and_stream(info, tmp_path):
    if paths.dataset_root(info.folder) is None:
        pytest.skip(f"no real data: set FL_UTILS_DATA to a folder that holds {info.folder}/")
    subjects = [case.subject for case in volumes.find_cases(info) if case.mask is not None][:12]
    result = prepare_volumes(info, image_size_px=64, out=tmp_path, subjects=subjects, progress=False)
    assert result.bad == () and list(result.subjects) == subjects
    batches = list(result.stream(subjects, batch_size=32, rng=np.random.default_rng(1)))
    assert sum(len(images) for images, _ in batches) == result.table["slices"].sum()
    images = np.concatenate([images for images, _ in batches])
    assert np.isfinite(images).all() and abs(images[images != 0].mean()) < 0.2 and 0.7 < images[images != 0].std() < 1.1
    assert set(np.unique(np.concatenate([masks for _, masks in batches]))) == set(range(len(info.classes)))


def test_a_card_of_ones_own(data):
    write_cases(data, [1])
    (data / "hippocampus").rename(data / "mine")
    info = dataclasses.replace(HIPPOCAMPUS, name="mine", folder="mine")
    result = prepare_volumes(info, image_size_px=16, progress=False)
    assert result.name == "mine" and json.loads(next((paths.cache_root()).rglob("*.json")).read_text())["slices"] == 4
