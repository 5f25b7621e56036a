"""Scores of maps on examples small enough to count by hand, their baselines, and what is refused."""

import numpy as np
import pytest

from fl_utils.explain.baselines import centre_prior, normalised, random_maps
from fl_utils.explain.scores import (
    THRESHOLDS, best_iou, chance_of_pointing, deletion_insertion, energy_inside, iou, iou_curve, pointing_game,
)

#: The mask: 2 x 2 of 5 x 6 pixels.
MASK = np.zeros((5, 6), bool)
MASK[1:3, 1:3] = True


def peak(row, column):
    """A map that is 4 at one pixel and 1 at its right neighbour."""
    values = np.zeros((5, 6))
    values[row, column], values[row, column + 1] = 4, 1
    return values


MAPS = np.stack([peak(1, 1), peak(1, 2), peak(2, 3), peak(4, 4), np.zeros((5, 6)), np.ones((5, 6))])
MASKS = np.broadcast_to(MASK, MAPS.shape)


def test_pointing_game_by_hand():
    """Inside, inside, one pixel beside, far away, an all-zero map, a constant one (every pixel is its maximum)."""
    np.testing.assert_allclose(pointing_game(MAPS, MASKS), [1, 1, 0, 0, 0, 4 / 30])
    # Euclidean: (4, 4) is 2 down and 2 right of the mask's corner, 2.83 pixels.
    np.testing.assert_allclose(pointing_game(MAPS, MASKS, tolerance_px=1), [1, 1, 1, 0, 0, 12 / 30])
    np.testing.assert_allclose(pointing_game(MAPS[3:4], MASKS[:1], tolerance_px=2.8), [0])
    np.testing.assert_allclose(pointing_game(MAPS[3:4], MASKS[:1], tolerance_px=2.9), [1])


def test_a_shared_maximum_counts_by_its_share():
    two = np.zeros((1, 5, 6))
    two[0, 1, 1] = two[0, 4, 5] = two[0, 0, 0] = two[0, 2, 2] = 3
    assert pointing_game(two, MASKS[:1]) == 0.5


def test_chance_is_the_masks_share():
    np.testing.assert_allclose(chance_of_pointing(MASKS), 4 / 30)
    np.testing.assert_allclose(chance_of_pointing(MASKS, tolerance_px=1), 12 / 30)
    rng = np.random.default_rng(0)
    noise = rng.random((4000, 5, 6))
    hits = pointing_game(noise, np.broadcast_to(MASK, noise.shape)).mean()
    assert hits == pytest.approx(4 / 30, abs=4 * np.sqrt(4 / 30 * 26 / 30 / 4000))  # 4 standard errors


def test_energy_by_hand():
    np.testing.assert_allclose(energy_inside(MAPS, MASKS), [1, 0.8, 0, 0, 0, 4 / 30])


def test_iou_by_hand():
    """At half of the maximum one pixel is left of a peak, at a fifth two are."""
    np.testing.assert_allclose(iou(MAPS, MASKS), [1 / 4, 1 / 4, 0, 0, 0, 4 / 30])
    np.testing.assert_allclose(iou(MAPS, MASKS, threshold=0.2), [2 / 4, 1 / 5, 0, 0, 0, 4 / 30])
    np.testing.assert_allclose(best_iou(MAPS, MASKS), [2 / 4, 1 / 4, 0, 0, 0, 4 / 30])
    curve = iou_curve(MAPS, MASKS)
    assert curve.shape == (6, len(THRESHOLDS)) and THRESHOLDS[0] == 0.05 and THRESHOLDS[-1] == 0.95
    np.testing.assert_allclose(curve[0], [2 / 4 if threshold <= 0.25 else 1 / 4 for threshold in THRESHOLDS])
    np.testing.assert_array_equal(iou(MASKS.astype(float), MASKS), 1)


@pytest.mark.parametrize("score", [pointing_game, energy_inside, iou, best_iou])
@pytest.mark.parametrize(
    "maps, masks, said",
    [
        (MAPS[:2], MASKS, "do not fit"),
        (MAPS[0], MASKS[0], r"expected \[N, H, W\]"),
        (-MAPS, MASKS, "Map number 0 holds negative"),
        (np.where(MAPS == 4, np.nan, MAPS), MASKS, "non-finite"),
        (MAPS, MASKS.astype(np.uint8), "expected bool"),
        (MAPS, MASKS & (np.arange(6) != 2)[:, None, None], r"Mask number 2 is empty \(1 of 6 are\)"),
    ],
)
def test_bad_maps_and_masks_are_named(score, maps, masks, said):
    with pytest.raises(ValueError, match=said):
        score(maps, masks)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="tolerance_px is -1"):
        pointing_game(MAPS, MASKS, tolerance_px=-1)
    for thresholds in ((), (0,), (0.5, 1.1)):
        with pytest.raises(ValueError, match="thresholds are"):
            iou_curve(MAPS, MASKS, thresholds=thresholds)


# --- baselines ---


def test_normalised_reports_what_is_empty():
    scaled, empty = normalised(MAPS)
    np.testing.assert_array_equal(empty, [False, False, False, False, True, False])
    np.testing.assert_allclose(scaled.max(axis=(1, 2)), [1, 1, 1, 1, 0, 1])
    np.testing.assert_allclose(scaled[0], MAPS[0] / 4)
    assert scaled.dtype == np.float32


@pytest.mark.parametrize("shape", [(8, 8), (9, 5), (1, 1)])
def test_centre_prior_is_in_the_centre(shape):
    prior = centre_prior(shape)
    assert prior.shape == shape
    np.testing.assert_array_equal(prior, prior[::-1, ::-1])
    rows, columns = np.nonzero(prior == prior.max())
    assert rows.mean() == (shape[0] - 1) / 2 and columns.mean() == (shape[1] - 1) / 2
    if shape == (8, 8):  # one and three quarters of a side from the centre: 1.75 standard deviations at the corner
        assert prior[0, 0] == pytest.approx(np.exp(-(1.75**2)), rel=1e-6)


def test_random_maps_are_as_coarse_as_their_grid():
    maps = random_maps(5, (32, 48), np.random.default_rng(0), grid=(8, 8), upsampling="nearest")
    np.testing.assert_array_equal(maps, maps[:, ::4, ::6].repeat(4, axis=1).repeat(6, axis=2))
    smooth = random_maps(5, (32, 48), np.random.default_rng(0), grid=(8, 8))
    assert smooth.shape == (5, 32, 48) and 0 <= smooth.min() and smooth.max() < 1
    assert np.abs(np.diff(smooth, axis=1)).max() <= 1 / 4 + 1e-6  # a quarter of a cell a pixel
    assert not np.array_equal(smooth[0], smooth[1])


def test_bad_sizes_are_named():
    rng = np.random.default_rng(0)
    for call in (
        lambda: centre_prior((0, 4)), lambda: random_maps(0, (8, 8), rng, grid=(2, 2)),
        lambda: random_maps(1, (8, 8), rng, grid=(0, 2)), lambda: random_maps(1, (8,), rng, grid=(2, 2)),
        lambda: random_maps(1, (8, 8), rng, grid=(2, 2), upsampling="cubic"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="expected"):
            call()


# --- deletion and insertion ---

IMAGES = np.random.default_rng(1).integers(0, 256, (3, 4, 4, 1), np.uint8)
CLASSES = np.array([0, 1, 1])


def brightness(images):
    """A model with two classes: the sum over the left half, and over the right, over 1000."""
    assert images.dtype == np.uint8
    sums = images.astype(float).sum(axis=(1, 3))
    return np.stack([sums[:, :2].sum(axis=1), sums[:, 2:].sum(axis=1)], axis=1) / 1000


def test_curves_by_hand():
    """Pixel by pixel against a plain loop; distinct values, so that the order is the map's alone."""
    maps = np.random.default_rng(2).permuted(np.arange(48.0).reshape(3, 16), axis=1).reshape(3, 4, 4)
    curves = deletion_insertion(
        brightness, IMAGES, maps, CLASSES, steps=16, rng=np.random.default_rng(0), baseline="mean"
    )
    np.testing.assert_allclose(curves.fractions, np.arange(17) / 16)
    for i, c in enumerate(CLASSES):
        deleted, mean = IMAGES[i : i + 1].copy(), np.uint8(np.rint(IMAGES[i].mean()))
        inserted = np.full_like(deleted, mean)
        for step, pixel in enumerate([None, *np.argsort(-maps[i].ravel())]):
            if pixel is not None:
                deleted.reshape(16)[pixel] = mean
                inserted.reshape(16)[pixel] = IMAGES[i].reshape(16)[pixel]
            assert curves.deletion[i, step] == brightness(deleted)[0, c]
            assert curves.insertion[i, step] == brightness(inserted)[0, c]
    # The trapezoidal rule as in the paper's code.
    for auc, curve in ((curves.deletion_auc, curves.deletion), (curves.insertion_auc, curves.insertion)):
        np.testing.assert_allclose(auc, (curve.sum(axis=1) - curve[:, 0] / 2 - curve[:, -1] / 2) / 16)


@pytest.mark.parametrize("baseline", ["blur", "mean"])
def test_ends_and_a_map_that_knows(baseline):
    """The true evidence, deleted first, brings the score down sooner, and inserted first brings it up sooner."""
    images = np.zeros((1, 16, 16, 1), np.float32)
    images[0, 4:8, 4:8] = 1
    evidence = images[..., 0].astype(float)

    def predict(pictures):
        return pictures[:, 4:8, 4:8].mean(axis=(1, 2)) * [0, 1]

    def curves(maps):
        rng = np.random.default_rng(0)
        return deletion_insertion(predict, images, maps, np.array([1]), steps=16, rng=rng, baseline=baseline)

    right, wrong = curves(evidence), curves(1 - evidence)
    assert right.deletion[0, 0] == right.insertion[0, -1] == 1
    assert right.deletion[0, -1] == right.insertion[0, 0] < 0.5
    assert right.deletion[0, 1] == right.deletion[0, -1]  # one step of 16 is the whole evidence
    assert right.deletion_auc[0] < wrong.deletion_auc[0] and right.insertion_auc[0] > wrong.insertion_auc[0]


def test_equal_pixels_go_in_random_order():
    """A map without values says nothing, so its deletion is as a random one's, not from top to bottom."""
    images = np.zeros((200, 8, 8, 1), np.float32)
    images[:, :4] = 1

    def predict(pictures):
        return pictures[:, :4].mean(axis=(1, 2)) * [1, 1]

    curves = deletion_insertion(
        predict, images, np.zeros((200, 8, 8)), np.zeros(200, int), steps=2, baseline="mean",
        rng=np.random.default_rng(0),
    )  # fmt: skip
    # Half of the pixels, half of them in the upper half: 1 -> 0.75; by rows it would be 0.5.
    assert curves.deletion[:, 1].mean() == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"steps": 0}, "steps 0"),
        ({"baseline": "noise"}, "expected one of blur, mean"),
        ({"maps": MAPS}, r"maps \(6, 5, 6\)"),
        ({"classes": CLASSES[:2]}, r"classes \(2,\)"),
        ({"predict": lambda images: np.full((3, 2), np.nan)}, "expected finite scores"),
        ({"predict": lambda images: np.zeros((2, 2))}, r"gave \(2, 2\) for 3 images"),
        ({"classes": np.array([0, 1, 2])}, "classes go from 0 to 2; predict knows 0 to 1"),
        ({"classes": np.array([0, -1, 1])}, "classes go from -1"),
    ],
)
def test_bad_perturbations_are_named(change, said):
    arguments = {"predict": brightness, "images": IMAGES, "maps": np.ones((3, 4, 4)), "classes": CLASSES, "steps": 2}
    with pytest.raises(ValueError, match=said):
        deletion_insertion(**{**arguments, **change}, rng=np.random.default_rng(0))
