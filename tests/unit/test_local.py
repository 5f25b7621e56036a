"""What one hospital computes: augmentation, class weights, gradient steps, predictions. No TFF here."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage
from sklearn.utils.class_weight import compute_class_weight

from fl_utils.learning import local
from fl_utils.learning.client_updates import ClientTask, averaging
from fl_utils.learning.local import (
    LocalSettings, LocalTrainer, augment_batch, class_weights, example_order, make_predictor,
)
from fl_utils.models.classifiers import build_model

SEED = np.array([3, 4], np.int32)
KINDS = ("shift_rotate", "shift_rotate_flip")
ANGLE, SCALE, SHIFT_X, SHIFT_Y, FLIP, CONTRAST, BRIGHTNESS = range(7)  # columns of the draws


def images_of(num, height=16, width=16, channels=1, seed=0):
    """Smooth images, so that an interpolated value says something about its neighbours too."""
    noise = np.random.default_rng(seed).random((num, height, width, channels))
    smooth = ndimage.gaussian_filter(noise, (0, 1.5, 1.5, 0))
    return ((smooth - smooth.min()) / np.ptp(smooth)).astype(np.float32)


@pytest.fixture
def draw(monkeypatch):
    """Gives every image the stated draws instead of random ones; unnamed ones are 0, the flip is off."""

    def fix(**values):
        row = np.zeros(7, np.float32)
        row[FLIP] = 1
        for name, value in values.items():
            row[globals()[name.upper()]] = value
        monkeypatch.setattr(
            tf.random, "stateless_uniform", lambda shape, *_: tf.constant(np.tile(row, (int(shape[0]), 1)))
        )

    return fix


def test_none_changes_nothing():
    images = tf.constant(images_of(3))
    assert augment_batch(images, SEED, "none") is images


@pytest.mark.parametrize("kind", ["flip", "", "NONE"])
def test_unknown_augmentation(kind):
    with pytest.raises(ValueError, match="is not known; expected none, shift_rotate or shift_rotate_flip"):
        augment_batch(tf.constant(images_of(1)), SEED, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_shape_and_range(kind):
    """Black and white images are where contrast and brightness would leave the range."""
    images = np.concatenate([images_of(6, 12, 20, 3), np.zeros((1, 12, 20, 3)), np.ones((1, 12, 20, 3))])
    out = augment_batch(tf.constant(images, tf.float32), SEED, kind).numpy()
    assert out.shape == images.shape and out.dtype == np.float32
    assert out.min() >= 0 and out.max() <= 1 and np.isfinite(out).all()


@pytest.mark.parametrize("kind", KINDS)
def test_seed_decides_and_each_image_has_its_own_draw(kind):
    images = tf.constant(np.repeat(images_of(1), 4, axis=0))
    first, again = (augment_batch(images, SEED, kind).numpy() for _ in range(2))
    other = augment_batch(images, SEED + 1, kind).numpy()
    assert np.array_equal(first, again)
    assert np.abs(first - other).max() > 0.01
    assert all(np.abs(first[0] - image).max() > 0.01 for image in first[1:])


@pytest.mark.parametrize("kind, expected", [("shift_rotate", 0), ("shift_rotate_flip", 100)])
def test_flips_only_where_allowed(kind, expected):
    """An image with one bright side: mirrored about half of the time, or never."""
    image = np.zeros((24, 24, 1), np.float32)
    image[:, :8] = 1
    out = augment_batch(tf.constant(np.repeat(image[None], 200, axis=0)), SEED, kind).numpy()
    mirrored = (out[:, :, 16:].mean(axis=(1, 2, 3)) > out[:, :, :8].mean(axis=(1, 2, 3))).sum()
    assert abs(mirrored - expected) <= (30 if expected else 0)  # 30: 4 standard deviations


def test_flip_mirrors_left_and_right_exactly(draw):
    images = images_of(2, 10, 15)
    draw(flip=-0.3)  # only its sign counts
    assert np.abs(augment_batch(tf.constant(images), SEED, "shift_rotate_flip").numpy() - images[:, :, ::-1]).max() < 1e-5
    assert np.abs(augment_batch(tf.constant(images), SEED, "shift_rotate").numpy() - images).max() < 1e-5


@pytest.mark.parametrize("shift, moved_to", [({"shift_x": 1}, (12, 9)), ({"shift_y": 1}, (11, 10)), ({"shift_y": -1}, (13, 10))])
def test_one_bright_pixel_is_shifted(draw, shift, moved_to):
    """4 % of 25 pixels is one; the output is read at +1, so the picture moves by -1."""
    image = np.zeros((1, 25, 25, 1), np.float32)
    image[0, 12, 10] = 1
    draw(**shift)
    out = augment_batch(tf.constant(image), SEED, "shift_rotate").numpy()[0, :, :, 0]
    assert np.unravel_index(out.argmax(), out.shape) == moved_to
    assert out.max() == pytest.approx(1, abs=1e-4) and out.sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("angle, scale, shift_x, shift_y, flip", [(1, 0, 0, 0, 1), (-0.5, 1, 0.3, -0.8, 1), (0.7, -0.6, -1, 0.4, -1)])
def test_geometry_is_scipys(draw, angle, scale, shift_x, shift_y, flip):
    """The same rotation, zoom, shift and mirror by scipy.ndimage, in (row, column) coordinates about the centre."""
    images = images_of(2, 20, 26, 2)
    draw(angle=angle, scale=scale, shift_x=shift_x, shift_y=shift_y, flip=flip)
    out = augment_batch(tf.constant(images), SEED, "shift_rotate_flip").numpy()
    turn, zoom = np.deg2rad(6 * angle), 1 + 0.05 * scale
    matrix = zoom * np.array([[np.cos(turn), np.sin(turn) * flip], [-np.sin(turn), np.cos(turn) * flip]])
    centre = np.array([9.5, 12.5])
    offset = centre - matrix @ centre + [0.04 * 20 * shift_y, 0.04 * 26 * shift_x]
    for image, result in zip(images, out, strict=True):
        for channel in range(2):
            expected = ndimage.affine_transform(image[..., channel], matrix, offset, order=1, mode="nearest")
            assert np.abs(result[..., channel] - expected).max() < 1e-4


def test_contrast_and_brightness(draw):
    images = images_of(2)
    draw(contrast=1, brightness=-1)
    out = augment_batch(tf.constant(images), SEED, "shift_rotate").numpy()
    assert np.abs(out - np.clip((images - 0.5) * 1.1 + 0.45, 0, 1)).max() < 1e-5


def test_draws_stay_small():
    """Angles, zooms and shifts at their limits keep the middle of the image in the image."""
    image = np.zeros((64, 25, 25, 1), np.float32)
    image[:, 10:15, 10:15] = 1
    out = augment_batch(tf.constant(image), SEED, "shift_rotate_flip").numpy()
    assert out[:, 12, 12].min() > 0.8 and out[:, :6].max() < 0.2 and out[:, :, :6].max() < 0.2


def test_order_is_a_permutation_that_the_seed_decides():
    first, again, other = (example_order(50, SEED + step).numpy() for step in (0, 0, 1))
    assert sorted(first) == list(range(50)) and np.array_equal(first, again) and not np.array_equal(first, other)


def test_class_weights_are_the_balanced_ones():
    labels = np.array([0] * 10 + [1] * 3 + [2] * 7)
    weights = class_weights(labels, 3)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, compute_class_weight("balanced", classes=np.arange(3), y=labels), rtol=1e-6)
    np.testing.assert_allclose(weights * [10, 3, 7], 20 / 3, rtol=1e-6)  # each class counts alike
    assert weights[labels].mean() == pytest.approx(1)


def test_class_weights_with_an_absent_class_or_switched_off():
    np.testing.assert_allclose(class_weights(np.array([0, 0, 0, 2]), 4), [2 / 3, 0, 2, 0], rtol=1e-6)
    assert np.array_equal(class_weights(np.array([0, 0, 1]), 2, enabled=False), [1, 1])


def data_of(num, shape=(6, 6, 1), num_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (num, *shape), np.uint8), rng.integers(0, num_classes, num).astype(np.int32)


def tensors(images, labels, weights=(1, 1, 1), seed=SEED):
    return tf.constant(images), tf.constant(labels), tf.constant(weights, tf.float32), tf.constant(seed)


def test_batch_normalisation_is_refused():
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.BatchNormalization(), keras.layers.Flatten(), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="moving_mean.*use GroupNorm"):
        LocalTrainer(model, LocalSettings())


def gradient(trainer, images, labels, weights):
    """The weighted mean's gradient at the model's present values."""
    with tf.GradientTape() as tape:
        probabilities = tf.nn.softmax(trainer.model(images / np.float32(255)))
        rows = tf.gather(probabilities, labels, axis=1, batch_dims=1)
        loss = tf.reduce_mean(-tf.math.log(rows) * np.asarray(weights, np.float32)[labels])
    return [part.numpy() for part in tape.gradient(loss, trainer.variables)], float(loss)


def test_momentum_step_is_the_formula():
    """v <- m v + g, w <- w - lr v, on the seed CNN; the momentum lives until it is reset."""
    images, labels = data_of(7, (8, 8, 1))
    weights = [0.5, 1.0, 2.0]
    trainer = LocalTrainer(build_model("seed_cnn", (8, 8, 1), 3), LocalSettings(batch_size=7, learning_rate=0.1, momentum=0.8))
    expected = [variable.numpy() for variable in trainer.variables]
    velocity = [np.zeros_like(weight) for weight in expected]
    for step in range(3):
        g, loss = gradient(trainer, images, labels, weights)
        velocity = [0.8 * v + part for v, part in zip(velocity, g, strict=True)]
        expected = [w - 0.1 * v for w, v in zip(expected, velocity, strict=True)]
        assert float(trainer.run(*tensors(images, labels, weights, SEED + step))) == pytest.approx(loss, abs=1e-5)
        for variable, value in zip(trainer.variables, expected, strict=True):
            np.testing.assert_allclose(variable.numpy(), value, atol=2e-6)
    trainer.reset_momentum()
    assert not any(momentum.numpy().any() for momentum in trainer.momenta)


def test_last_smaller_batch_is_used():
    """5 examples in batches of 4: two steps, the second on one example."""
    images, labels = data_of(5)
    trainer = LocalTrainer(build_model("softmax_regression", (6, 6, 1), 3), LocalSettings(batch_size=4, learning_rate=0.1, momentum=0.9))
    order = example_order(5, tf.random.experimental.stateless_fold_in(SEED, 0)).numpy()
    expected = [variable.numpy() for variable in trainer.variables]
    velocity, losses = [np.zeros_like(weight) for weight in expected], []
    for batch in (order[:4], order[4:]):
        trainer.set_weights(expected)
        g, loss = gradient(trainer, images[batch], labels[batch], [1, 1, 1])
        velocity = [0.9 * v + part for v, part in zip(velocity, g, strict=True)]
        expected = [w - 0.1 * v for w, v in zip(expected, velocity, strict=True)]
        losses += [loss] * len(batch)
    trainer.set_weights([np.zeros_like(weight) for weight in expected])
    loss = trainer.run(*tensors(images, labels))
    for variable, value in zip(trainer.variables, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, atol=1e-6)
    assert float(loss) == pytest.approx(np.mean(losses), abs=1e-6)  # by examples, not by batches


@pytest.mark.parametrize("augment", ["none", "shift_rotate_flip"])
def test_a_pass_is_a_pure_function_of_weights_data_and_seed(augment):
    images, labels = data_of(11, (8, 8, 1))
    trainer = LocalTrainer(build_model("seed_cnn", (8, 8, 1), 3), LocalSettings(batch_size=4, epochs=2, augment=augment))
    start = [variable.numpy() for variable in trainer.variables]
    deltas = []
    for seed in (SEED, SEED, SEED + 1):
        result = averaging(trainer, ClientTask(start, *tensors(images, labels, seed=seed)))
        deltas.append([part.numpy() for part in result.delta])
        assert float(result.num_examples) == 11  # examples, not batches, and once, whatever the number of passes
    assert all(np.array_equal(a, b) for a, b in zip(deltas[0], deltas[1], strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(deltas[0], deltas[2], strict=True))
    # The sign: global minus local.
    for weight, part, variable in zip(start, deltas[2], trainer.variables, strict=True):
        np.testing.assert_allclose(weight - part, variable.numpy(), atol=1e-7)


def test_each_epoch_has_an_order_of_its_own(monkeypatch):
    """Two epochs of one example a step: were the order the same, so would be the result of running it twice."""
    images, labels = data_of(6)
    seen = []
    monkeypatch.setattr(local, "example_order", lambda num, seed: seen.append(seed) or example_order(num, seed))
    trainer = LocalTrainer(build_model("softmax_regression", (6, 6, 1), 3), LocalSettings(batch_size=1, epochs=2))
    tf.config.run_functions_eagerly(True)
    try:
        trainer.run(*tensors(images, labels))
    finally:
        tf.config.run_functions_eagerly(False)
    orders = [example_order(6, seed).numpy().tolist() for seed in seen]
    assert len(orders) == 2 and orders[0] != orders[1]


def test_predictor_gives_probabilities_whatever_the_batch():
    model = build_model("seed_cnn", (8, 8, 1), 3)
    images, _ = data_of(7, (8, 8, 1))
    whole, parts = make_predictor(model)(images), make_predictor(model, batch_size=3)(images)
    logits = model(images / np.float32(255)).numpy()
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert whole.shape == (7, 3) and whole.dtype == np.float32
    np.testing.assert_allclose(whole, expected, atol=1e-6)
    np.testing.assert_allclose(parts, whole, atol=1e-6)


def trainer_of(model="softmax_regression", **settings):
    return LocalTrainer(build_model(model, (6, 6, 1), 3), LocalSettings(**{"momentum": 0.0, "learning_rate": 0.1} | settings))


def values_of(variables):
    return [variable.numpy() for variable in variables]


def test_correction_is_added_to_every_gradient():
    images, labels = data_of(6)
    correction = [np.random.default_rng(i).normal(size=v.shape).astype(np.float32) for i, v in enumerate(trainer_of().variables)]
    trainer = trainer_of(batch_size=6, epochs=2)
    expected = values_of(trainer.variables)
    for _ in range(2):
        trainer.set_weights(expected)
        parts, _ = gradient(trainer, images, labels, [1, 1, 1])
        expected = [w - 0.1 * (g + c) for w, g, c in zip(expected, parts, correction, strict=True)]
    trainer.set_weights([np.zeros_like(weight) for weight in expected])
    trainer.run(*tensors(images, labels), correction=[tf.constant(c) for c in correction])
    for variable, value in zip(trainer.variables, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, atol=1e-6)


def test_proximal_term_pulls_back_to_where_the_round_started():
    """The first step feels nothing of it; with gradients of 0 (class weights 0) nothing moves at all."""
    images, labels = data_of(8)
    start = [np.full(v.shape, 0.01, np.float32) for v in trainer_of().variables]
    ends = {}
    for mu in (0.0, 0.5, 5.0):
        for passes in (1, 4):
            trainer = trainer_of(batch_size=8, epochs=passes, proximal_strength=mu)
            trainer.set_weights(start)
            trainer.run(*tensors(images, labels))
            ends[mu, passes] = sum(float(np.square(v - w).sum()) for v, w in zip(values_of(trainer.variables), start, strict=True))
    assert ends[0.0, 1] == ends[0.5, 1] == ends[5.0, 1] > 0
    assert ends[0.0, 4] > ends[0.5, 4] > ends[5.0, 4] > 0
    trainer.set_weights(start)
    trainer.run(*tensors(images, labels, weights=(0, 0, 0)))
    assert all(np.array_equal(v, w) for v, w in zip(values_of(trainer.variables), start, strict=True))


@pytest.mark.parametrize("num", [5, 256, 257, 600])
def test_full_gradient_is_that_of_all_examples(num):
    """Taken in parts of 256; nothing is changed by it."""
    images, labels = data_of(num)
    weights = [0.5, 1.0, 2.0]
    trainer = trainer_of()
    trainer.set_weights([np.random.default_rng(2).normal(size=v.shape, scale=0.1) for v in trainer.variables])
    before = values_of(trainer.variables)
    expected, loss = gradient(trainer, images, labels, weights)
    found, found_loss = trainer.full_gradient(*tensors(images, labels, weights))
    for part, value in zip(found, expected, strict=True):
        np.testing.assert_allclose(part.numpy(), value, atol=1e-6)
    assert float(found_loss) == pytest.approx(loss, abs=1e-6)
    assert all(np.array_equal(v, w) for v, w in zip(values_of(trainer.variables), before, strict=True))


@pytest.mark.parametrize("num, epochs, steps", [(1, 1, 1), (8, 1, 2), (9, 1, 3), (9, 3, 9)])
def test_number_of_steps(num, epochs, steps):
    assert int(trainer_of(batch_size=4, epochs=epochs).num_steps(tf.constant(num))) == steps


@pytest.mark.parametrize("statistics, num_weights", [("averaged", 16), ("dropped", 12)])
def test_what_travels_of_batch_norm(statistics, num_weights):
    """Dropped statistics go back to 0 and 1 with every new set of weights; averaged ones are part of it."""
    images, labels = data_of(8)
    trainer = trainer_of("norm_cnn_batch", batch_size=4, norm_statistics=statistics)
    assert len(trainer.weights) == num_weights and len(trainer.variables) == 12
    initial = values_of(trainer.model.non_trainable_variables)
    assert [set(value.ravel()) for value in initial] == [{0.0}, {1.0}] * 2
    start = values_of(trainer.weights)
    trainer.run(*tensors(images, labels))
    moved = values_of(trainer.model.non_trainable_variables)
    assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(initial, moved, strict=True))
    if statistics == "averaged":
        trainer.set_weights(values_of(trainer.weights))
        assert all(np.array_equal(a, v.numpy()) for a, v in zip(moved, trainer.model.non_trainable_variables, strict=True))
    trainer.set_weights(start)
    assert all(np.array_equal(a, v.numpy()) for a, v in zip(initial, trainer.model.non_trainable_variables, strict=True))
