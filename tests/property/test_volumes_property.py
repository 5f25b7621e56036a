"""What must hold for every volume: orientation, codes, and a stream that loses and repeats nothing."""

import itertools
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_utils.data import prepare, volumes
from fl_utils.data.catalogue.segmentation import BRATS2020, HIPPOCAMPUS, MSD_BRAIN
from fl_utils.data.stream import PreparedVolumes, slice_dtype
from fl_utils.data.volumes import Case, read_case

SETTINGS = settings(max_examples=60, deadline=None)
ORIENTATIONS = [
    np.array([list(order), list(signs)]).T
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
shapes = st.tuples(*[st.integers(2, 6)] * 3)
seeds = st.integers(0, 2**32 - 1)


def stored_as(data, affine, orientation):
    """The same volume with its axes permuted and flipped."""
    turned = nib.apply_orientation(data, orientation)
    return nib.Nifti1Image(turned, affine @ nib.orientations.inv_ornt_aff(orientation, data.shape[:3]))


def test_there_are_48_orientations():
    assert len({orientation.tobytes() for orientation in ORIENTATIONS}) == 48


@SETTINGS
@given(
    shapes, seeds, st.sampled_from(ORIENTATIONS), st.sampled_from(ORIENTATIONS),
    st.tuples(*[st.sampled_from((0.5, 1.0, 3.0))] * 3), st.booleans(),
)  # fmt: skip
def test_orientation_does_not_matter(shape, seed, for_image, for_mask, spacing_mm, four_d):
    rng = np.random.default_rng(seed)
    card = MSD_BRAIN if four_d else HIPPOCAMPUS
    image = rng.integers(0, 1000, (*shape, 4) if four_d else shape).astype(np.float32)
    image[0, 0, 0], image[1, 1, 1] = 10, 700  # contrast in every modality
    mask = rng.integers(0, len(card.classes), shape).astype(np.uint8)
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = rng.normal(size=3) * 50
    with tempfile.TemporaryDirectory() as folder:
        images = {ours: Path(folder, "image.nii") for ours in card.modalities.values()}
        case = Case("subject", images, Path(folder, "mask.nii"), "subject")
        nib.save(nib.Nifti1Image(image, affine), images["t1"])
        nib.save(nib.Nifti1Image(mask, affine), case.mask)
        expected = read_case(case, card)
        nib.save(stored_as(image, affine, for_image), images["t1"])
        nib.save(stored_as(mask, affine, for_mask), case.mask)
        volume = read_case(case, card)
    np.testing.assert_array_equal(volume.image, expected.image)
    np.testing.assert_array_equal(volume.mask, expected.mask)
    np.testing.assert_allclose(volume.spacing_mm, spacing_mm, rtol=1e-5)


@SETTINGS
@given(
    shapes, seeds, st.sampled_from([BRATS2020, MSD_BRAIN, HIPPOCAMPUS]),
    st.sampled_from([np.uint8, np.int16, np.float32, np.float64]), st.floats(0, 9e-4),
)  # fmt: skip
def test_codes_stand_for_the_values_of_the_file(shape, seed, card, dtype, noise):
    rng = np.random.default_rng(seed)
    values = np.array([int(value) for value in card.classes])
    codes = rng.integers(0, len(values), shape)
    stored = values[codes].astype(dtype)
    if np.issubdtype(dtype, np.floating):
        stored = (stored + rng.uniform(-noise, noise, shape)).astype(dtype)
    image = rng.integers(1, 100, shape).astype(np.float32)
    image[0, 0, 0], image[1, 1, 1] = 10, 70
    with tempfile.TemporaryDirectory() as folder:
        images = {ours: Path(folder, f"{ours}.nii") for ours in card.modalities.values()}
        case = Case("s", images, Path(folder, "m.nii"), "s")
        if card.layout == "msd":
            case = Case("s", dict.fromkeys(case.images, Path(folder, "i.nii")), case.mask, "s")
            image = np.repeat(image[..., None], len(card.modalities), axis=3)
        for path in case.files[:-1]:
            nib.save(nib.Nifti1Image(image, np.eye(4)), path)
        nib.save(nib.Nifti1Image(stored, np.eye(4)), case.mask)
        mask = read_case(case, card).mask
    np.testing.assert_array_equal(mask, codes)
    assert mask.dtype == np.uint8


# --- streams ---


@contextmanager
def prepared(counts, seed=0):
    """A prepared dataset whose every slice is told by the number in its first pixel."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        rows, lesions, number = [], {}, 0
        for subject, count in enumerate(counts):
            slices = np.zeros(count, slice_dtype(4, 2))
            slices["image"][:, 0, 0, 1] = np.arange(number, number + count)
            slices["mask"][:, 1, 1] = has_lesion = rng.integers(0, 2, count)
            path, name = Path(folder, f"{subject}.npy"), f"s{subject:02d}"
            np.save(path, slices)
            rows.append((name, count, str(path)))
            lesions[name] = np.flatnonzero(has_lesion)
            number += count
        table = pd.DataFrame(rows, columns=["subject", "slices", "path"])
        yield PreparedVolumes("drawn", "axial", 4, ("background", "a"), ("t1", "t2"), table, lesions, (), "0" * 64)


counts = st.lists(st.integers(1, 9), min_size=1, max_size=14)


@SETTINGS
@given(counts, seeds, st.integers(1, 20), st.integers(1, 60), st.booleans())
def test_every_slice_comes_once(counts, seed, batch_size, shuffle_buffer, shuffled):
    with prepared(counts) as data:
        rng = np.random.default_rng(seed) if shuffled else None
        stream = data.stream(data.subjects, batch_size=batch_size, rng=rng, shuffle_buffer=shuffle_buffer)
        batches = list(stream)
        seen = np.concatenate([images[:, 0, 0, 1] for images, _ in batches]).astype(int).tolist()
        assert sorted(seen) == list(range(sum(counts)))
        assert shuffled or seen == sorted(seen)
        assert [len(images) for images, _ in batches[:-1]] == [batch_size] * (len(batches) - 1)
        stored = np.concatenate([np.load(path)["mask"] for path in data.table["path"]])
        np.testing.assert_array_equal(np.concatenate([masks for _, masks in batches]), stored[seen])


@SETTINGS
@given(counts, seeds, st.integers(1, 30))
def test_lesion_streams_hold_just_those(counts, seed, shuffle_buffer):
    with prepared(counts, seed) as data:
        total = sum(len(numbers) for numbers in data.lesion_slices.values())
        if total == 0:
            return
        rng = np.random.default_rng(seed)
        stream = data.stream(data.subjects, batch_size=3, rng=rng, shuffle_buffer=shuffle_buffer, slices="lesion")
        masks = np.concatenate([masks for _, masks in stream])
        assert len(masks) == total and masks.any(axis=(1, 2)).all()


@SETTINGS
@given(counts, seeds, st.integers(1, 30))
def test_the_order_is_that_of_the_generator(counts, seed, shuffle_buffer):
    with prepared(counts) as data:

        def order(rng, batch_size):
            stream = data.stream(data.subjects, batch_size=batch_size, rng=rng, shuffle_buffer=shuffle_buffer)
            rng.integers(1000)  # what is drawn after the call does not matter
            return np.concatenate([images[:, 0, 0, 1] for images, _ in stream]).tolist()

        assert order(np.random.default_rng(seed), 2) == order(np.random.default_rng(seed), 5)
        if sum(counts) >= 12:  # two generators agree by chance in less than one of 10^8
            assert order(np.random.default_rng(seed), 2) != order(np.random.default_rng(seed + 1), 2)


def test_all_orders_of_a_small_set_come_up_alike():
    with prepared([3]) as data:
        rng = np.random.default_rng(0)
        orders = Counter(
            tuple(next(data.stream(data.subjects, batch_size=3, rng=rng))[0][:, 0, 0, 1]) for _ in range(1200)
        )
    assert len(orders) == 6 and min(orders.values()) > 140


# --- preparation ---


@pytest.fixture(scope="module")
def root():
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1, 6):
            rng = np.random.default_rng(number)
            for part, array in (
                ("imagesTr", rng.integers(1, 900, (6, 7, 5)).astype(np.float32)),
                ("labelsTr", rng.integers(0, 3, (6, 7, 5)).astype(np.uint8)),
            ):
                path = Path(folder, "hippocampus", part, f"hippocampus_{number:03d}.nii")
                path.parent.mkdir(parents=True, exist_ok=True)
                nib.save(nib.Nifti1Image(array, np.eye(4)), path)
        yield Path(folder)


class Killed(BaseException):
    """Stands for the end of the process."""


@settings(max_examples=25, deadline=None)
@given(kills=st.lists(st.tuples(st.sampled_from(["read", "write"]), st.integers(1, 9)), max_size=4))
def test_a_killed_preparation_ends_as_an_uninterrupted_one(root, kills):
    def run(out, kill=None):
        """Prepares; `kill` = (step, n): ends at the n-th such step."""
        steps = Counter()

        def counted(step, function):
            def call(*arguments):
                steps[step] += 1
                if (step, steps[step]) == kill:
                    raise Killed
                return function(*arguments)

            return call

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FL_UTILS_DATA", str(root))
            patch.setattr(volumes, "read_case", counted("read", volumes.read_case))
            patch.setattr(prepare, "write_atomically", counted("write", prepare.write_atomically))
            return prepare.prepare_volumes(HIPPOCAMPUS, image_size_px=16, out=out, progress=False), steps

    with tempfile.TemporaryDirectory() as folder:
        whole, _ = run(Path(folder, "whole"))
        for kill in kills:
            try:
                run(Path(folder, "resumed"), kill)
            except Killed:
                pass
        resumed, _ = run(Path(folder, "resumed"))
        contents = [
            {path.name: path.read_bytes() for path in Path(folder, part).rglob("*") if path.is_file()}
            for part in ("whole", "resumed")
        ]
        assert contents[0] == contents[1] and len(contents[0]) == 10
        assert whole.fingerprint == resumed.fingerprint
        assert whole.table.drop(columns="path").equals(resumed.table.drop(columns="path"))
