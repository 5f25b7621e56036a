"""OCT phantoms: what is promised about shapes, labels, mask codes, anatomy, distractors, errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_utils.data.phantoms import OCT_CLASSES, generate_oct
from fl_utils.data.phantoms.oct import CNV, DME, DRUSEN, NORMAL, render_oct

CODES = {CNV: {2, 3}, DME: {2}, DRUSEN: {1}, NORMAL: set()}


def _generate(num_images=60, size=48, seed=5, **options):
    return generate_oct(num_images, image_size_px=size, rng=np.random.default_rng(seed), **options)


@pytest.fixture(scope="module")
def many():
    """(images, labels, masks) of 300 phantoms and the images of their healthy counterparts."""
    return *_generate(300), _generate(300, lesions=False)[0]


def test_classes_are_those_of_the_real_dataset_in_their_order():
    assert OCT_CLASSES == ("CNV", "DME", "DRUSEN", "NORMAL")


@pytest.mark.parametrize("size", [24, 33, 64, 256])
def test_shapes_and_dtypes(size):
    images, labels, masks = _generate(5, size)
    assert images.shape == (5, size, size, 1) and images.dtype == np.uint8
    assert labels.shape == (5,) and labels.dtype == np.int64
    assert masks.shape == (5, size, size) and masks.dtype == np.uint8


def test_every_four_images_hold_each_class_once(many):
    assert np.array_equal(np.sort(many[1].reshape(-1, 4), axis=1), np.tile(range(4), (75, 1)))


def test_masks_hold_the_codes_of_their_class(many):
    _, labels, masks, _ = many
    for label, mask in zip(labels, masks):
        found = set(np.unique(mask)) - {0}
        assert found <= CODES[label] and bool(found) == (label != NORMAL)
        assert label != CNV or 3 in found  # fluid may be missing, the membrane may not
    fluid = (masks == 2).any(axis=(1, 2))[labels == CNV].mean()
    assert 0.4 < fluid < 0.85


def test_lesions_keep_to_the_stated_sizes(many):
    _, labels, masks, _ = many
    share = (masks > 0).mean(axis=(1, 2))[labels != NORMAL]
    assert 0.015 < share.min() and share.max() < 0.16


def test_a_lesion_changes_its_mask_most(many):
    images, labels, masks, healthy = many
    for image, twin, label, mask in zip(images, healthy, labels, masks > 0):
        change = np.abs(image[..., 0].astype(float) - twin[..., 0])
        if label == NORMAL:
            assert not change.any()
        else:  # grey levels of 255; the layers around a lesion move, so they change, too
            assert change[mask].mean() > 15
            assert change[mask].mean() > 2 * change[~mask].mean()


def test_healthy_counterparts_keep_the_labels_and_have_empty_masks():
    labels = _generate(8)[1]
    _, labels_again, masks = _generate(8, lesions=False)
    assert np.array_equal(labels, labels_again) and not masks.any()


def test_fluid_darkens_and_the_membrane_brightens(many):
    images, labels, masks, healthy = many
    shift = images[..., 0].astype(float) - healthy[..., 0]
    for code, label, sign in ((2, DME, -1), (3, CNV, 1)):
        inside = [shift[i][masks[i] == code].mean() for i in np.flatnonzero(labels == label)]
        assert sign * np.median(inside) > 10  # a membrane also replaces bright bands: not in each


def test_masks_lie_in_the_retina_or_right_under_it():
    for index in range(40):
        streams = [np.random.default_rng([9, index, part]) for part in range(3)]
        _, mask, retina = render_oct(index % 4, streams, 64)
        near = retina | np.roll(retina, 2, axis=0) | np.roll(retina, -2, axis=0)
        assert not ((mask > 0) & ~near).any()
        assert 0.2 < retina.mean() < 0.6


def test_vitreous_is_dark_and_the_pigment_epithelium_is_the_brightest():
    """Median profile over the depth, aligned to the healthy retina's upper and lower end."""
    vitreous, retina, last = [], [], []
    for index in range(60):
        streams = [np.random.default_rng([4, index, part]) for part in range(3)]
        image, _, inside = render_oct(NORMAL, streams, 96)
        column, held = image[:, 48], np.flatnonzero(inside[:, 48])
        vitreous.append(np.median(column[held[0] - 8 : held[0] - 2]))
        retina.append(column[held].mean())
        last.append(column[held[-8:]].max())
    assert np.median(vitreous) < 0.6 * np.median(retina)
    assert np.median(last) > 1.4 * np.median(retina)


def test_no_two_images_are_identical(many):
    assert len({image.tobytes() for image in many[0]}) == 300


def test_same_seed_same_images_other_seed_other_images():
    first, again, other = _generate(8), _generate(8), _generate(8, seed=6)
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert not np.array_equal(first[0], other[0])


def test_a_generator_moves_on_between_calls():
    rng = np.random.default_rng(1)
    first = generate_oct(4, image_size_px=24, rng=rng)[0]
    assert not np.array_equal(first, generate_oct(4, image_size_px=24, rng=rng)[0])


def test_the_anatomy_is_the_same_at_another_size():
    small, labels, _ = _generate(12, 48)
    large, labels_large, _ = _generate(12, 96)
    assert np.array_equal(labels, labels_large)
    reduced = large[..., 0].reshape(12, 48, 2, 48, 2).mean(axis=(2, 4))
    for a, b in zip(small[..., 0], reduced):
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.85


def test_simple_statistics_do_not_give_the_class_away(many):
    linear_model = pytest.importorskip("sklearn.linear_model")
    images, labels = many[0][..., 0].astype(float) / 255, many[1]
    border = np.concatenate([images[:, [0, -1]].reshape(300, -1), images[:, :, [0, -1]].reshape(300, -1)], axis=1)
    flat = images.reshape(300, -1)
    found = np.stack([flat.mean(1), flat.std(1), flat.min(1), flat.max(1), border.mean(1)], axis=1)
    found = (found - found.mean(axis=0)) / (found.std(axis=0) + 1e-9)
    model = linear_model.LogisticRegression(max_iter=2000).fit(found[:150], labels[:150])
    assert model.score(found[150:], labels[150:]) < 0.45  # the classes are even: chance is 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_images": 0}, "num_images is 0; expected a whole number"),
        ({"size": 23}, "image_size_px is 23; .* 24 to 256 pixels"),
        ({"size": 257}, "image_size_px is 257; .* 24 to 256 pixels"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        _generate(**options)


def test_bad_rng():
    with pytest.raises(ValueError, match="expected a numpy.random.Generator"):
        generate_oct(4, image_size_px=24, rng=None)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 11), st.integers(0, 9), st.integers(24, 72))
def test_fewer_images_are_the_first_of_more(seed, num_images, more, size):
    for few, all_of_them in zip(_generate(num_images, size, seed), _generate(num_images + more, size, seed)):
        assert np.array_equal(few, all_of_them[:num_images])


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(24, 72))
def test_no_image_is_blank_and_no_lesion_is_lost(seed, size):
    images, labels, masks = _generate(4, size, seed)
    assert np.array_equal(masks.any(axis=(1, 2)), labels != NORMAL)
    assert all(image.std() > 5 for image in images)
    assert (images == 255).mean() < 0.5
