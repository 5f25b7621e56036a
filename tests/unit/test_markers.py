"""The side marker: where it lies, what it looks like, and that nothing else of an image changes."""

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_utils.data.markers import mark, marker_box, marker_mask

SIZES = st.integers(28, 160)


@given(SIZES)
def test_the_box_lies_in_the_upper_right_corner_and_is_small(size):
    rows, columns = marker_box(size)
    assert 0 < rows.start < rows.stop < size / 2 < columns.start < columns.stop < size
    mask = marker_mask(size)
    assert mask.dtype == bool and mask.shape == (size, size)
    assert mask.sum() == (rows.stop - rows.start) * (columns.stop - columns.start) == mask[rows, columns].sum()
    assert 0.005 < mask.mean() < 0.06


@settings(deadline=None, max_examples=30)
@given(st.data(), SIZES, st.integers(1, 3), st.sampled_from([1, 3]))
def test_marking_changes_the_box_alone_and_always_alike(data, size, num, channels):
    seed = data.draw(st.integers(0, 2**32 - 1))
    images = np.random.default_rng(seed).integers(0, 256, (num, size, size, channels), np.uint8)
    before, marked, mask = images.copy(), mark(images), marker_mask(size)
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(marked[:, ~mask], images[:, ~mask])
    assert set(np.unique(marked[:, mask])) == {0, 255}
    np.testing.assert_array_equal(mark(marked), marked)
    np.testing.assert_array_equal(marked[:, mask], mark(np.zeros_like(images))[:, mask])


def test_the_mark_is_an_l_with_a_dark_rim():
    box = mark(np.full((1, 32, 32, 1), 128, np.uint8))[0, ..., 0][marker_box(32)]
    np.testing.assert_array_equal(
        box == 255,
        np.array(["00000", "01000", "01000", "01000", "01000", "01110", "00000"]).view("U1").reshape(7, 5) == "1",
    )
    # At twice the size, every stroke is twice as wide.
    large = mark(np.full((1, 64, 64, 1), 128, np.uint8))[0, ..., 0][marker_box(64)]
    np.testing.assert_array_equal(large, np.kron(box, np.ones((2, 2), np.uint8)))


@given(arrays.arrays(np.uint8, (1, 27, 27, 1)))
def test_images_too_small_for_a_stroke_are_refused(images):
    with pytest.raises(ValueError, match="image_size_px is 27; a marker needs at least 28"):
        mark(images)


@pytest.mark.parametrize(
    "images", [np.zeros((1, 32, 32, 1), np.float32), np.zeros((1, 32, 40, 1), np.uint8), np.zeros((32, 32, 1), np.uint8)]
)
def test_other_images_are_refused(images):
    with pytest.raises(ValueError, match="expected uint8"):
        mark(images)
