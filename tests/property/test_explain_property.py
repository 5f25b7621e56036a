"""What must hold of the scores of every map and mask."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl_utils.explain.baselines import centre_prior, normalised, random_maps
from fl_utils.explain.scores import (
    best_iou, chance_of_pointing, deletion_insertion, energy_inside, iou, iou_curve, pointing_game,
)
from fl_utils.explain.similarity import similarity

SETTINGS = settings(max_examples=60, deadline=None)
SCORES = (pointing_game, energy_inside, iou, best_iou)
# Multiples of 1/8, so that sums and scalings by powers of two are exact.
values = st.integers(0, 16).map(lambda number: number / 8)


@st.composite
def maps_and_masks(draw):
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 7)))
    maps, masks = draw(hnp.arrays(float, shape, elements=values)), draw(hnp.arrays(bool, shape))
    masks[:, 0, 0] |= ~masks.any(axis=(1, 2))
    return maps, masks


@SETTINGS
@given(maps_and_masks(), st.sampled_from([0.25, 2, 1024]))
def test_scores_are_shares_and_forget_the_scale(case, scale):
    maps, masks = case
    for score in SCORES:
        result = score(maps, masks)
        assert result.shape == (len(maps),) and (0 <= result).all() and (result <= 1).all()
        np.testing.assert_array_equal(score(maps * scale, masks), result)
        assert (result[maps.max(axis=(1, 2)) == 0] == 0).all()


@SETTINGS
@given(maps_and_masks(), st.integers(0, 3))
def test_scores_are_one_by_one_and_turn_with_the_image(case, turns):
    maps, masks = case
    for score in SCORES:
        whole = score(maps, masks)
        alone = [score(maps[i : i + 1], masks[i : i + 1])[0] for i in range(len(maps))]
        np.testing.assert_array_equal(whole, alone)
        np.testing.assert_allclose(score(np.rot90(maps, turns, (1, 2)), np.rot90(masks, turns, (1, 2))), whole)


@SETTINGS
@given(maps_and_masks(), st.floats(0, 4), st.floats(0, 4))
def test_the_whole_image_the_complement_and_a_wider_tolerance(case, small, large):
    maps, masks = case
    something = maps.max(axis=(1, 2)) > 0
    everything = np.ones_like(masks)
    np.testing.assert_array_equal(energy_inside(maps, everything), something)
    np.testing.assert_array_equal(pointing_game(maps, everything), something)
    np.testing.assert_array_equal(chance_of_pointing(everything), 1)
    split = ~masks.all(axis=(1, 2))
    if split.any():
        for score in (energy_inside, pointing_game):
            both = score(maps[split], masks[split]) + score(maps[split], ~masks[split])
            np.testing.assert_allclose(both, something[split])
    small, large = sorted((small, large))
    assert (pointing_game(maps, masks, tolerance_px=small) <= pointing_game(maps, masks, tolerance_px=large)).all()
    assert (chance_of_pointing(masks, tolerance_px=small) <= chance_of_pointing(masks, tolerance_px=large)).all()
    # A map without any preference scores by chance.
    flat = np.ones_like(maps)
    np.testing.assert_allclose(
        pointing_game(flat, masks, tolerance_px=small), chance_of_pointing(masks, tolerance_px=small)
    )
    np.testing.assert_allclose(energy_inside(flat, masks), masks.mean(axis=(1, 2)))


@SETTINGS
@given(maps_and_masks(), st.lists(st.floats(0.01, 1), min_size=1, max_size=5))
def test_iou_is_symmetric_and_best_is_the_best(case, thresholds):
    maps, masks = case
    np.testing.assert_array_equal(iou(masks.astype(float), masks), 1)
    regions = maps >= 1
    both = regions.any(axis=(1, 2))
    if both.any():
        one, other = regions[both], masks[both]
        np.testing.assert_array_equal(iou(one.astype(float), other), iou(other.astype(float), one))
    curve = iou_curve(maps, masks, thresholds=thresholds)
    np.testing.assert_array_equal(best_iou(maps, masks, thresholds=thresholds), curve.max(axis=1))
    for column, threshold in enumerate(thresholds):
        np.testing.assert_array_equal(iou(maps, masks, threshold=threshold), curve[:, column])


@SETTINGS
@given(maps_and_masks())
def test_normalised_keeps_order_and_zeros(case):
    maps, _ = case
    scaled, empty = normalised(maps)
    np.testing.assert_array_equal(empty, maps.max(axis=(1, 2)) == 0)
    assert (scaled.max(axis=(1, 2)) == ~empty).all() and scaled.min() >= 0
    np.testing.assert_array_equal(normalised(scaled)[0], scaled)
    np.testing.assert_allclose(scaled * maps.max(axis=(1, 2), keepdims=True), maps, atol=1e-6)


@SETTINGS
@given(maps_and_masks(), st.integers(1, 60), st.integers(0, 2**32 - 1), st.sampled_from(["blur", "mean"]))
def test_deleting_nothing_and_inserting_all_is_the_image(case, steps, seed, baseline):
    """With the mean brightness as score: it falls and rises by what is exchanged, whatever the steps."""
    maps, masks = case
    images = (masks * 8 + maps)[..., None].astype(np.float32)

    def predict(pictures):
        return pictures.mean(axis=(1, 2), dtype=np.float64) * [1, 0]

    curves = deletion_insertion(
        predict, images, maps, np.zeros(len(maps), int), steps=steps, rng=np.random.default_rng(seed), baseline=baseline
    )
    assert curves.deletion.shape == curves.insertion.shape == (len(maps), steps + 1)
    assert curves.fractions[0] == 0 and curves.fractions[-1] == 1 and (np.diff(curves.fractions) >= 0).all()
    whole = predict(images)[:, 0]
    np.testing.assert_array_equal(curves.deletion[:, 0], whole)
    np.testing.assert_array_equal(curves.insertion[:, -1], whole)
    np.testing.assert_array_equal(curves.deletion[:, -1], curves.insertion[:, 0])
    # What is not deleted is what is yet to be inserted: for a linear score the two sum to both ends.
    ends = whole + curves.insertion[:, 0]
    assert np.abs(curves.deletion + curves.insertion - ends[:, None]).max() < 1e-5
    np.testing.assert_allclose(curves.deletion_auc + curves.insertion_auc, ends, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(12, 12), (13, 20)]), st.sampled_from([0.5, 3, 100]))
def test_similarity_is_symmetric_and_forgets_the_scale(seed, shape, scale):
    rng = np.random.default_rng(seed)
    a, b = random_maps(2, shape, rng, grid=(4, 4)), random_maps(2, shape, rng, grid=(4, 4))
    columns = ["ssim", "rank_correlation"]
    one, other = similarity(a, b)[columns], similarity(b, scale * a)[columns]
    np.testing.assert_allclose(one, other, atol=1e-5)
    assert (one.abs() <= 1 + 1e-9).all().all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from(["bilinear", "nearest"]))
def test_baselines_for_any_size(height, width, seed, upsampling):
    prior = centre_prior((height, width))
    assert prior.shape == (height, width) and 0 < prior.min() and prior.max() <= 1
    grid = (max(1, height // 3), max(1, width // 4))
    maps = random_maps(2, (height, width), np.random.default_rng(seed), grid=grid, upsampling=upsampling)
    again = random_maps(2, (height, width), np.random.default_rng(seed), grid=grid, upsampling=upsampling)
    assert maps.shape == (2, height, width) and maps.min() >= 0 and maps.max() < 1
    np.testing.assert_array_equal(maps, again)
