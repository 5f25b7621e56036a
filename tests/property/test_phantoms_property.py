"""Phantoms: what holds for every seed, number of images and size."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_utils.data.phantoms import generate_brain, generate_chest, generate_oct

# (generator, the healthy class, length of a block)
tasks = st.sampled_from([(generate_brain, 2, 4), (generate_chest, 0, 5), (generate_oct, 3, 4)])
seeds = st.integers(0, 2**32 - 1)
small = settings(max_examples=25, deadline=None)


@small
@given(tasks, seeds, st.integers(1, 11), st.integers(0, 9), st.integers(24, 72))
def test_fewer_images_are_the_first_of_more(task, seed, num_images, more, size):
    generate = task[0]
    few = generate(num_images, image_size_px=size, rng=np.random.default_rng(seed))
    many = generate(num_images + more, image_size_px=size, rng=np.random.default_rng(seed))
    for part_few, part_many in zip(few, many):
        assert np.array_equal(part_few, part_many[:num_images])


@small
@given(tasks, seeds, st.integers(24, 72))
def test_a_mask_is_empty_exactly_without_a_lesion(task, seed, size):
    generate, healthy, block = task
    images, labels, masks = generate(block, image_size_px=size, rng=np.random.default_rng(seed))
    assert np.array_equal(masks.any(axis=(1, 2)), labels != healthy)
    assert all(image.std() > 5 for image in images)  # never a blank picture
    assert (images == 255).mean() < 0.5  # nor an overexposed one


@small
@given(tasks, seeds, st.integers(1, 6))
def test_every_block_holds_the_same_labels(task, seed, num_blocks):
    generate, _, block = task
    rng = np.random.default_rng(seed)
    labels = generate(num_blocks * block, image_size_px=24, rng=rng)[1].reshape(num_blocks, block)
    assert all(np.array_equal(np.sort(row), np.sort(labels[0])) for row in labels)
