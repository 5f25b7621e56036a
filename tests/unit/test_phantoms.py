"""Phantoms: what is promised about shapes, labels, masks, content at another size, errors."""

import numpy as np
import pytest

from fl_utils.data.phantoms import (
    BRAIN_CLASSES, CHEST_CLASSES, OCT_CLASSES, generate_brain, generate_chest, generate_oct,
)  # fmt: skip
from fl_utils.data.phantoms.brain import GLIOMA, MENINGIOMA, NO_TUMOR, PITUITARY, render_brain
from fl_utils.data.phantoms.chest import NORMAL, PNEUMONIA, render_chest
from fl_utils.data.phantoms.oct import CNV, DME, DRUSEN, render_oct
from fl_utils.data.phantoms.oct import NORMAL as NORMAL_EYE

# (generator, renderer, classes, the healthy class, codes that a mask may hold)
TASKS = {
    "brain": (generate_brain, render_brain, BRAIN_CLASSES, NO_TUMOR, {1, 2, 3}),
    "chest": (generate_chest, render_chest, CHEST_CLASSES, NORMAL, {1}),
    "oct": (generate_oct, render_oct, OCT_CLASSES, NORMAL_EYE, {1, 2, 3}),
}
each_task = pytest.mark.parametrize("task", TASKS)


def _generate(task, num_images=60, size=48, seed=5, **options):
    rng = np.random.default_rng(seed)
    return TASKS[task][0](num_images, image_size_px=size, rng=rng, **options)


def test_classes_are_those_of_the_real_datasets_in_their_order():
    assert BRAIN_CLASSES == ("glioma_tumor", "meningioma_tumor", "no_tumor", "pituitary_tumor")
    assert CHEST_CLASSES == ("NORMAL", "PNEUMONIA")
    assert OCT_CLASSES == ("CNV", "DME", "DRUSEN", "NORMAL")


@each_task
@pytest.mark.parametrize("size", [24, 33, 64, 256])
def test_shapes_and_dtypes(task, size):
    images, labels, masks = _generate(task, 5, size)
    assert images.shape == (5, size, size, 1) and images.dtype == np.uint8
    assert labels.shape == (5,) and labels.dtype == np.int64
    assert masks.shape == (5, size, size) and masks.dtype == np.uint8
    assert set(np.unique(masks)) - {0} <= TASKS[task][4]


def test_shares_of_the_classes():
    assert np.bincount(_generate("brain", 60, 24)[1]).tolist() == [15, 15, 15, 15]
    assert np.bincount(_generate("chest", 60, 24)[1]).tolist() == [24, 36]
    assert np.bincount(_generate("oct", 60, 24)[1]).tolist() == [15, 15, 15, 15]


@pytest.mark.parametrize(("task", "codes"), [("brain", {1, 2, 3}), ("chest", {1}), ("oct", {1, 2, 3})])
def test_every_code_of_the_masks_occurs(task, codes):
    assert set(np.unique(_generate(task, 80, 32)[2])) == {0} | codes


@each_task
def test_masks_are_empty_exactly_without_a_lesion(task):
    _, labels, masks = _generate(task, 200, 24)
    assert np.array_equal(masks.any(axis=(1, 2)), labels != TASKS[task][3])


# Share of the image in % (smallest, median, largest), as the docstrings state it for 250 lesions; chest: 360.
SIZES = {
    ("brain", GLIOMA): (1.6, 6.4, 14),
    ("brain", MENINGIOMA): (0.6, 2.4, 6.1),
    ("brain", PITUITARY): (0.1, 0.8, 2.3),
    ("chest", PNEUMONIA): (2.7, 9.6, 21),
    ("oct", CNV): (3.6, 7.1, 13),
    ("oct", DME): (2.5, 5.1, 9.1),
    ("oct", DRUSEN): (2.4, 6.0, 10),
}


@each_task
def test_lesions_keep_to_the_stated_sizes(task):
    _, labels, masks = _generate(task, 240, 64)
    for (_, label), (low, median, high) in ((key, sizes) for key, sizes in SIZES.items() if key[0] == task):
        share = 100 * (masks > 0).mean(axis=(1, 2))[labels == label]
        assert len(share) >= 60
        assert 0.7 * low < share.min() and share.max() < 1.25 * high
        assert 0.75 * median < np.median(share) < 1.25 * median


@each_task
def test_masks_lie_inside_the_head_the_lungs_or_the_retina(task):
    _, render, classes, *_ = TASKS[task]
    for index in range(40):
        streams = [np.random.default_rng([9, index, part]) for part in range(3)]
        _, mask, region = render(index % len(classes), streams, 48)
        if task == "oct":  # drusen and membranes lie right under the retina
            region = region | np.roll(region, 2, axis=0) | np.roll(region, -2, axis=0)
        assert not ((mask > 0) & ~region).any()
        assert 0.05 < region.mean() < 0.8


@each_task
def test_a_lesion_changes_its_mask_and_nothing_else(task):
    images, labels, masks = _generate(task)
    healthy, labels_again, no_masks = _generate(task, lesions=False)
    assert np.array_equal(labels, labels_again) and not no_masks.any()
    # In an eye the layers next to a lesion give way, and a membrane throws a shadow.
    contrast = {"brain": 3, "chest": 3, "oct": 2}[task]
    for image, twin, label, mask in zip(images, healthy, labels, masks > 0):
        change = np.abs(image[..., 0].astype(float) - twin[..., 0])
        if label == TASKS[task][3]:
            assert not change.any()
        else:  # grey levels of 255
            assert change[mask].mean() > 4
            assert change[mask].mean() > contrast * change[~mask].mean()


@each_task
def test_lesions_shift_the_mean_in_their_class(task):
    images, labels, masks = _generate(task, 200, 32)
    healthy = _generate(task, 200, 32, lesions=False)[0].astype(float)
    shift = (images - healthy)[..., 0]
    inside = [(shift[i] * (masks[i] > 0)).sum() / max((masks[i] > 0).sum(), 1) for i in range(len(images))]
    inside = np.array(inside)
    # A glioma, drusen and a membrane have bright and dark parts; the others only brighten, or darken.
    signs = {"brain": {MENINGIOMA: 1, PITUITARY: 1}, "chest": {PNEUMONIA: 1}, "oct": {DME: -1}}[task]
    for label, sign in signs.items():
        assert (sign * inside[labels == label] > 2).mean() > 0.9


@each_task
def test_no_two_images_are_identical(task):
    images = _generate(task, 200, 24)[0]
    assert len({image.tobytes() for image in images}) == 200


@each_task
def test_same_seed_same_images_other_seed_other_images(task):
    first, again, other = _generate(task, 8), _generate(task, 8), _generate(task, 8, seed=6)
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert not np.array_equal(first[0], other[0])


@each_task
def test_a_generator_moves_on_between_calls(task):
    rng = np.random.default_rng(1)
    first = TASKS[task][0](4, image_size_px=24, rng=rng)[0]
    assert not np.array_equal(first, TASKS[task][0](4, image_size_px=24, rng=rng)[0])


@each_task
def test_the_anatomy_is_the_same_at_another_size(task):
    small, labels, _ = _generate(task, 12, 48)
    large, labels_large, _ = _generate(task, 12, 96)
    assert np.array_equal(labels, labels_large)
    reduced = large[..., 0].reshape(12, 48, 2, 48, 2).mean(axis=(2, 4))
    for a, b in zip(small[..., 0], reduced):
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.85


@each_task
def test_mean_grey_alone_does_not_give_the_class_away(task):
    images, labels, _ = _generate(task, 300, 24)
    means = images.mean(axis=(1, 2, 3))
    groups = [means[labels == label] for label in np.unique(labels)]
    spread = max(group.mean() for group in groups) - min(group.mean() for group in groups)
    assert spread < 1.0 * means.std()


@each_task
@pytest.mark.parametrize("num_images", [0, -3, 2.5, True, None])
def test_bad_number_of_images(task, num_images):
    with pytest.raises(ValueError, match="num_images is .* expected a whole number"):
        _generate(task, num_images)


@each_task
@pytest.mark.parametrize("size", [0, 23, 257, 48.0, "64"])
def test_bad_image_size(task, size):
    with pytest.raises(ValueError, match="image_size_px is .* 24 to 256 pixels"):
        _generate(task, 4, size)


@each_task
@pytest.mark.parametrize("rng", [None, 3, np.random.RandomState(0)])
def test_bad_rng(task, rng):
    with pytest.raises(ValueError, match="expected a numpy.random.Generator"):
        TASKS[task][0](4, image_size_px=24, rng=rng)
