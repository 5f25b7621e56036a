"""What must hold for all masks: those of a pair cancel, and a sum of masked numbers gives back the sum of the numbers."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fl_utils.deployment.flower.secure import mask_integers

SETTINGS = settings(max_examples=100, deadline=None)
shapes = st.lists(arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5), max_size=5)
ranges = st.integers(0, 32).map(lambda bits: 2**bits)
seeds = st.binary(max_size=64)


@SETTINGS
@given(seed=seeds, num_range=ranges, dimensions=shapes)
def test_a_mask_and_its_negative_cancel(seed, num_range, dimensions):
    masks, again = (mask_integers(seed, num_range, dimensions) for _ in range(2))
    assert [mask.shape for mask in masks] == dimensions
    for mask, other in zip(masks, again, strict=True):
        assert mask.dtype == np.int64 and ((mask >= 0) & (mask < num_range)).all()
        assert ((mask + (-other) % num_range) % num_range == 0).all()


@SETTINGS
@given(seed=seeds, num_range=ranges, dimensions=shapes)
def test_shapes_cut_one_stream_in_order(seed, num_range, dimensions):
    masks = mask_integers(seed, num_range, dimensions)
    whole = mask_integers(seed, num_range, [(sum(mask.size for mask in masks) + 3,)])[0]
    flat = np.concatenate([mask.ravel() for mask in masks]) if masks else np.zeros(0, np.int64)
    np.testing.assert_array_equal(flat, whole[:-3])


@SETTINGS
@given(pair_seeds=st.lists(seeds, min_size=6, max_size=6), num_range=st.integers(8, 32).map(lambda b: 2**b), data=st.data())
def test_pairwise_masks_of_four_leave_the_sum(pair_seeds, num_range, data):
    numbers = data.draw(arrays.arrays(np.int64, (4, 7), elements=st.integers(0, num_range // 4 - 1)))
    masked = numbers.copy()
    for (i, j), seed in zip([(i, j) for i in range(4) for j in range(i)], pair_seeds, strict=True):
        mask = mask_integers(seed, num_range, [(7,)])[0]
        masked[i], masked[j] = masked[i] + mask, masked[j] - mask
    np.testing.assert_array_equal((masked % num_range).sum(axis=0) % num_range, numbers.sum(axis=0))
