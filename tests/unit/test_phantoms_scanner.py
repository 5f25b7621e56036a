"""Scanner profiles: hospitals look different, lesions stay visible, images keep to their streams."""

import dataclasses

import numpy as np
import pytest

from fl_utils.data.phantoms import PROFILES, ScannerProfile, generate_brain, generate_chest, generate_oct, scan
from fl_utils.data.phantoms.scanner import CORNERS

TASKS = {"brain": generate_brain, "chest": generate_chest, "oct": generate_oct}
PLAIN = ScannerProfile("plain")


def _rng(seed=3):
    return np.random.default_rng(seed)


def _grey(num_images=4, size=32, value=128, channels=1):
    return np.full((num_images, size, size, channels), value, np.uint8)


def test_four_hospitals_with_names_of_their_own():
    assert len(PROFILES) == 4 and len({profile.name for profile in PROFILES}) == 4


def test_a_plain_profile_changes_nothing():
    images = generate_chest(4, image_size_px=32, rng=_rng())[0]
    assert np.array_equal(scan(images, [0] * 4, profiles=(PLAIN,), rng=_rng()), images)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [24, 33, 256])
def test_shape_and_dtype_stay_and_the_input_is_left_alone(size, channels):
    images = _grey(4, size, channels=channels)
    scanned = scan(images, np.arange(4), rng=_rng())
    assert scanned.shape == images.shape and scanned.dtype == np.uint8
    assert (images == 128).all() and (scanned != 128).any()
    assert (scanned == scanned[..., :1]).all()  # grey stays grey


def test_no_images_give_no_images():
    assert scan(_grey(0), np.zeros(0, int), rng=_rng()).shape == (0, 32, 32, 1)


def test_fewer_images_are_the_first_of_more_and_other_hospitals_do_not_matter():
    images, hospitals = generate_chest(9, image_size_px=24, rng=_rng())[0], np.arange(9) % 4
    scanned = scan(images, hospitals, rng=_rng())
    assert np.array_equal(scan(images[:5], hospitals[:5], rng=_rng()), scanned[:5])
    moved = np.where(np.arange(9) == 7, hospitals, 0)
    assert np.array_equal(scan(images, moved, rng=_rng())[7], scanned[7])


def test_another_seed_gives_other_noise_and_a_generator_moves_on():
    rng = _rng()
    first = scan(_grey(), np.arange(4), rng=rng)
    assert not np.array_equal(first, scan(_grey(), np.arange(4), rng=rng))
    assert not np.array_equal(first, scan(_grey(), np.arange(4), rng=_rng(4)))


def test_one_number_is_drawn_from_the_generator():
    few, many = _rng(), _rng()
    scan(_grey(1), [0], rng=few)
    scan(_grey(4), [0, 1, 2, 3], rng=many)
    assert few.random() == many.random()


def test_images_of_one_hospital_have_noise_of_their_own():
    scanned = scan(_grey(2), [2, 2], rng=_rng())
    assert not np.array_equal(scanned[0], scanned[1])


def test_gain_gamma_noise_blur_and_field_do_what_they_say():
    def one(image, **look):
        return scan(image, [0], profiles=(ScannerProfile("one", **look),), rng=_rng())[0, ..., 0].astype(float)

    grey = _grey(1, 64)
    assert np.all(one(grey, gain=1.5) == 192) and np.all(one(grey, gain=3.0) == 255)
    assert np.all(one(grey, gamma=2.0) == round(255 * (128 / 255) ** 2))
    assert one(grey, noise=0.05).std() == pytest.approx(0.05 * 255, rel=0.05)
    step = grey.copy()
    step[:, :, 32:] = 0
    soft = one(step, blur=0.1)  # 3.2 pixels
    assert soft[32, 31] == pytest.approx(64, abs=8) and soft[32, 20] == 128 and soft[32, 43] == 0
    assert np.all(np.abs(np.diff(one(grey, bias_field=0.2), axis=0)) < 12)  # smooth
    profile = ScannerProfile("b", bias_field=0.2)
    fields = np.log(scan(_grey(100), [0] * 100, profiles=(profile,), rng=_rng()) / 128)
    assert fields.std() == pytest.approx(0.2, rel=0.2)


@pytest.mark.parametrize("corner", CORNERS)
def test_a_side_marker_sits_in_its_corner_only(corner):
    profile = ScannerProfile("marked", side_marker=corner)
    scanned = scan(_grey(20, 64, 0), [0] * 20, profiles=(profile,), rng=_rng())[..., 0]
    rows = slice(0, 20) if corner.startswith("top") else slice(44, 64)
    columns = slice(0, 20) if corner.endswith("left") else slice(44, 64)
    assert (scanned[:, rows, columns].max(axis=(1, 2)) > 200).all()
    scanned[:, rows, columns] = 0
    assert not scanned.any()


def test_side_markers_are_left_or_right():
    profile = ScannerProfile("marked", side_marker="top_left")
    scanned = scan(_grey(20, 64, 0), [0] * 20, profiles=(profile,), rng=_rng())
    assert len({image.tobytes() for image in scanned}) == 2


@pytest.mark.parametrize("task", TASKS)
def test_lesions_stay_visible_and_counterparts_share_the_noise(task):
    images, _, masks = TASKS[task](40, image_size_px=48, rng=_rng())
    healthy = TASKS[task](40, image_size_px=48, rng=_rng(), lesions=False)[0]
    before = np.abs(images.astype(float) - healthy)[..., 0]
    sick = np.flatnonzero(masks.any(axis=(1, 2)))
    for hospital in range(4):
        pair = [scan(part, np.full(40, hospital), rng=_rng(8)) for part in (images, healthy)]
        change = np.abs(pair[0].astype(float) - pair[1])[..., 0]
        kept = [change[i][masks[i] > 0].mean() / before[i][masks[i] > 0].mean() for i in sick]
        assert np.median(kept) > 0.6 and min(kept) > 0.35
        same = np.setdiff1d(np.arange(40), sick)
        assert not change[same].any()  # no lesion, no difference: the noise is the same


@pytest.mark.parametrize("task", TASKS)
def test_thumbnails_give_the_hospital_away(task):
    linear_model = pytest.importorskip("sklearn.linear_model")
    images = TASKS[task](400, image_size_px=32, rng=_rng())[0]
    hospitals = _rng(2).integers(0, 4, 400)
    scanned = scan(images, hospitals, rng=_rng())[..., 0] / 255
    thumbnails = scanned.reshape(400, 16, 2, 16, 2).mean(axis=(2, 4)).reshape(400, -1)
    model = linear_model.LogisticRegression(C=0.1, max_iter=500).fit(thumbnails[:300], hospitals[:300])
    assert model.score(thumbnails[300:], hospitals[300:]) > 0.7  # chance is 0.25


@pytest.mark.parametrize(
    ("field", "value"),
    [("gain", 0), ("gain", -1.0), ("gamma", 0.0), ("gamma", np.inf), ("bias_field", -0.1), ("noise", -0.01),
     ("noise", "much"), ("blur", np.nan), ("blur", True)],
)  # fmt: skip
def test_bad_values_of_a_profile(field, value):
    with pytest.raises(ValueError, match=f"{field} of scanner 'bad' is .* expected a finite number"):
        ScannerProfile("bad", **{field: value})


def test_bad_marker_and_bad_name():
    with pytest.raises(ValueError, match="side_marker of scanner 'bad' is 'middle'; expected None or one of top_left"):
        ScannerProfile("bad", side_marker="middle")
    with pytest.raises(ValueError, match="name is ''; expected the hospital's name"):
        ScannerProfile("")


def test_a_profile_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAIN.gain = 2.0


@pytest.mark.parametrize(
    ("images", "hospitals", "message"),
    [
        (_grey().astype(float), [0] * 4, "images are float64"),
        (_grey()[..., 0], [0] * 4, r"expected uint8\[N, H, W, C\]"),
        (_grey()[:, :30], [0] * 4, "with H = W"),
        (_grey(size=23), [0] * 4, "from 24 to 256 pixels"),
        (_grey(), [0] * 3, "one whole number for each of the 4 images"),
        (_grey(), [0.0] * 4, "hospitals are float64"),
        (_grey(), [0, 1, 2, 4], "run from 0 to 4; expected 0 to 3"),
        (_grey(), [-1, 1, 2, 3], "run from -1 to 3"),
    ],
)
def test_bad_images_and_hospitals(images, hospitals, message):
    with pytest.raises(ValueError, match=message):
        scan(images, hospitals, rng=_rng())


@pytest.mark.parametrize("profiles", [(), (PLAIN, "B")])
def test_bad_profiles(profiles):
    with pytest.raises(ValueError, match="expected at least one ScannerProfile"):
        scan(_grey(), [0] * 4, profiles=profiles, rng=_rng())


def test_bad_rng():
    with pytest.raises(ValueError, match="expected a numpy.random.Generator"):
        scan(_grey(), [0] * 4, rng=3)
