"""Scores of masks where the answer is known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl_utils.learning.segmentation_scores import (
    EMPTY_HD95_MM, SCORE_COLUMNS, dice, dice_of_counts, hd95_mm, regions_of, score_subject,
)

BRATS = ("background", "necrotic_core", "oedema", "enhancing")
SPACING = (0.5, 1.0, 3.0)
# surface-distance 0.1 uses names that SciPy moved; the lock file keeps a SciPy that has them.
pytestmark = pytest.mark.filterwarnings("ignore:Please (import|use) `:DeprecationWarning")
masks = hnp.arrays(np.bool_, (5, 6, 4))


def cube(start, side=8, shape=(24, 24, 24)):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(s, s + side) for s in start)] = True
    return mask


def test_perfect_prediction():
    truth = np.random.default_rng(0).integers(0, 4, (9, 8, 7))
    table = score_subject(truth, truth, SPACING, BRATS)
    assert tuple(table.columns) == SCORE_COLUMNS
    assert (table["dice"] == 1).all() and (table["hd95_mm"] == 0).all()
    assert (table["volume_error_ml"] == 0).all() and (table["relative_volume_error"] == 0).all()
    voxels = {"whole_tumour": truth > 0, "tumour_core": np.isin(truth, [1, 3]), "enhancing": truth == 3, "oedema": truth == 2}
    for region, there in voxels.items():
        assert table.set_index("region").loc[region, "volume_ml"] == pytest.approx(there.sum() * 1.5 / 1000)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shift", [1, 3])
def test_shifted_cube(axis, shift):
    """Side s, shift d along one axis: Dice is (s - d) / s, and a face, 1 of 6 or more of the surface, is d mm away."""
    start = [8, 8, 8]
    start[axis] += shift
    truth, predicted = cube((8, 8, 8)), cube(start)
    assert dice(predicted, truth) == pytest.approx((8 - shift) / 8)
    isotropic = hd95_mm(predicted, truth, (1, 1, 1))
    assert isotropic == pytest.approx(shift)
    assert hd95_mm(predicted, truth, (2, 2, 2)) == pytest.approx(2 * shift)
    # Anisotropic: faces across the axis are 8 x 8 voxels of the other two spacings, still above 5 % of the surface.
    assert hd95_mm(predicted, truth, SPACING) == pytest.approx(shift * SPACING[axis])


def test_a_speck_far_away_does_not_count_but_a_twentieth_of_the_surface_does():
    """95 %, not the maximum: one voxel has 6 of 486 faces, a cube of side 3 54 of 534."""
    truth, predicted = cube((1, 1, 1), 9), cube((1, 1, 1), 9)
    predicted[20, 20, 20] = True
    assert hd95_mm(predicted, truth, (1, 1, 1)) == 0
    predicted[19:22, 19:22, 19:22] = True
    assert hd95_mm(predicted, truth, (1, 1, 1)) > 10


def test_empty_parts_as_in_brats():
    nothing, something = np.zeros((6, 6, 6), int), np.zeros((6, 6, 6), int)
    something[2:4, 2:4, 2:4] = 3
    assert EMPTY_HD95_MM == pytest.approx(373.13, abs=0.005)
    both, false_alarm, missed = (
        score_subject(a, b, (1, 1, 1), BRATS).set_index("region") for a, b in ((nothing, nothing), (something, nothing), (nothing, something))
    )
    assert (both["dice"] == 1).all() and (both["hd95_mm"] == 0).all() and (both["relative_volume_error"] == 0).all()
    for table, error in ((false_alarm, 0.008), (missed, -0.008)):
        for region in ("whole_tumour", "tumour_core", "enhancing"):
            assert table.loc[region, "dice"] == 0 and table.loc[region, "hd95_mm"] == EMPTY_HD95_MM
            assert table.loc[region, "volume_error_ml"] == pytest.approx(error)
        assert table.loc["oedema", "dice"] == 1 and table.loc["oedema", "hd95_mm"] == 0
    assert math.isnan(false_alarm.loc["enhancing", "relative_volume_error"])
    assert missed.loc["enhancing", "relative_volume_error"] == 1


def test_regions():
    assert regions_of(BRATS) == {"whole_tumour": (1, 2, 3), "tumour_core": (1, 3), "necrotic_core": (1,), "oedema": (2,), "enhancing": (3,)}
    assert regions_of(("background", "anterior", "posterior")) == {"foreground": (1, 2), "anterior": (1,), "posterior": (2,)}
    assert regions_of(("background", "lesion")) == {"lesion": (1,)}


def test_a_swapped_class_is_seen_by_class_and_not_by_region():
    """Core taken for enhancing: the whole is right, the parts are wrong."""
    truth = cube((2, 2, 2), 4, (8, 8, 8)).astype(int)
    table = score_subject(truth * 3, truth, (1, 1, 1), BRATS).set_index("region")
    assert table.loc[["whole_tumour", "tumour_core"], "dice"].eq(1).all()
    assert table.loc[["necrotic_core", "enhancing"], "dice"].eq(0).all()


def test_volume_error_is_signed_and_in_ml():
    truth, predicted = cube((2, 2, 2), 10).astype(int), cube((2, 2, 2), 11).astype(int)
    row = score_subject(predicted, truth, (1, 1, 2), ("background", "lesion")).iloc[0]
    assert row["volume_ml"] == pytest.approx(2.0) and row["volume_error_ml"] == pytest.approx(2 * (1.331 - 1))
    assert row["relative_volume_error"] == pytest.approx(0.331)
    back = score_subject(truth, predicted, (1, 1, 2), ("background", "lesion")).iloc[0]
    assert back["volume_error_ml"] == pytest.approx(-row["volume_error_ml"]) and back["relative_volume_error"] > 0


@settings(max_examples=60, deadline=None, derandomize=True)
@given(masks, masks)
def test_both_ways_round(a, b):
    assert dice(a, b) == dice(b, a) and 0 <= dice(a, b) <= 1
    assert hd95_mm(a, b, SPACING) == hd95_mm(b, a, SPACING)
    assert (dice(a, b) == 1) == np.array_equal(a, b)
    assert hd95_mm(a, a, SPACING) == 0


@settings(max_examples=30, deadline=None, derandomize=True)
@given(masks, masks, st.sampled_from([(0,), (1,), (2,), (0, 2), (0, 1, 2)]))
def test_flips_change_nothing(a, b, axes):
    flipped = np.flip(a, axes), np.flip(b, axes)
    assert dice(*flipped) == dice(a, b)
    # A percentile of areas summed in another order may fall on the next surface element.
    distances = [hd95_mm(*pair, (1, 1, 1)) for pair in (flipped, (a, b))]
    assert distances[0] == pytest.approx(distances[1], abs=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(masks, masks)
def test_dice_is_the_sets(a, b):
    inside_a, inside_b = set(map(tuple, np.argwhere(a))), set(map(tuple, np.argwhere(b)))
    total = len(inside_a) + len(inside_b)
    assert dice(a, b) == pytest.approx(2 * len(inside_a & inside_b) / total if total else 1)


def test_dice_of_counts_by_subject_and_class():
    found = dice_of_counts(np.array([[0, 2], [3, 0]]), np.array([[0, 4], [3, 1]]), np.array([[0, 2], [3, 0]]))
    np.testing.assert_allclose(found, [[1, 2 / 3], [1, 0]])


@pytest.mark.parametrize(
    ("predicted", "truth", "spacing", "said"),
    [
        (np.zeros((3, 3, 3)), np.zeros((3, 3, 4)), (1, 1, 1), r"masks are \(3, 3, 3\) and \(3, 3, 4\)"),
        (np.zeros((3, 3)), np.zeros((3, 3)), (1, 1, 1), "expected one shape"),
        (np.zeros((3, 3, 3)), np.zeros((3, 3, 3)), (1, 0, 1), "expected three numbers above 0"),
        (np.zeros((3, 3, 3)), np.zeros((3, 3, 3)), (1, 1), "expected three numbers above 0"),
        (np.full((3, 3, 3), 4), np.zeros((3, 3, 3)), (1, 1, 1), "predicted mask holds 4 to 4; expected codes 0 to 3"),
    ],
)
def test_what_does_not_fit(predicted, truth, spacing, said):
    with pytest.raises(ValueError, match=said):
        score_subject(predicted.astype(int), truth.astype(int), spacing, BRATS)
