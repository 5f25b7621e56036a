"""Class activation maps against their papers' formulas in NumPy, one image at a time.

The models' float32 maps are compared with float64 sums, relative to each map's maximum; 1e-5 leaves room for
another order of summation. A wrong mean, sign or class moves a map by 1e-2 and more, which the last test shows.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from skimage.transform import resize

from fl_utils.explain.baselines import random_maps
from fl_utils.explain.maps import METHODS, class_maps, default_layer, make_mapper
from fl_utils.models.classifiers import build_model

TOLERANCE = 1e-5
SHAPE, NUM_CLASSES = (12, 16, 2), 3
GRADIENT_METHODS = [method for method in METHODS if method != "score_cam"]


def draw(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape)


def one_conv_model(head):
    """conv -> ReLU -> pooling to half -> head -> linear, with weights of both signs."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input(SHAPE),
            layers.Conv2D(5, 3, padding="same", activation="relu", name="conv"),
            layers.AveragePooling2D(name="pool"),
            layers.GlobalAveragePooling2D() if head == "average" else layers.Flatten(),
            layers.Dense(NUM_CLASSES, name="logits"),
        ]
    )
    model.set_weights([draw(weight.shape, seed) for seed, weight in enumerate(model.get_weights())])
    return model


def conv_relu(images, kernel, bias):
    """A 3 x 3 convolution with a border of zeros, then ReLU, in float64."""
    padded = np.pad(images.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = images.shape[1:3]
    kernel, total = kernel.astype(np.float64), bias.astype(np.float64)
    for row in range(3):
        for column in range(3):
            total = total + padded[:, row : row + height, column : column + width] @ kernel[row, column]
    return np.maximum(total, 0)


def channel_weights(method, activation, gradient):
    """w_k (or w_k,ij for HiResCAM) of one image as the papers write it: activation, gradient [h, w, K]."""
    if method == "grad_cam":
        return gradient.mean(axis=(0, 1))
    if method == "hires_cam":
        return gradient
    weights = np.zeros(activation.shape[-1])
    for k in range(activation.shape[-1]):
        for g in gradient[..., k].ravel():
            if g != 0:
                alpha = g**2 / (2 * g**2 + activation[..., k].sum() * g**3)
                weights[k] += alpha * max(g, 0)
    return weights


def expected_map(weights, activation, size):
    grid = np.maximum((weights * activation).sum(axis=-1), 0)
    return resize(grid, size, order=1, mode="edge", anti_aliasing=False)


def assert_same(maps, expected):
    scale = expected.max(axis=(1, 2), keepdims=True)
    assert (scale > 0).any()  # there is something to agree on
    np.testing.assert_allclose(maps / np.maximum(scale, 1e-12), expected / np.maximum(scale, 1e-12), atol=TOLERANCE)


@pytest.mark.parametrize("head", ["average", "flatten"])
@pytest.mark.parametrize("layer", ["conv", "pool"])
@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_equals_the_formula_with_gradients_in_closed_form(method, layer, head):
    """All is linear after the ReLU, so the gradients can be written down; no automatic differentiation here."""
    model = one_conv_model(head)
    images, classes = np.random.default_rng(7).random((6, *SHAPE), np.float32), np.arange(6) % NUM_CLASSES
    kernel, bias, dense, _ = model.get_weights()
    conv = conv_relu(images, kernel, bias)
    pooled = conv.reshape(6, 6, 2, 8, 2, 5).mean(axis=(2, 4))
    expected = []
    for i, c in enumerate(classes):
        if head == "average":
            gradient = np.broadcast_to(dense[:, c].astype(np.float64) / 48, (6, 8, 5))
        else:
            gradient = dense[:, c].astype(np.float64).reshape(6, 8, 5)
        activation = pooled[i]
        if layer == "conv":  # each pixel is a quarter of its pooled cell
            gradient, activation = gradient.repeat(2, axis=0).repeat(2, axis=1) / 4, conv[i]
        expected.append(expected_map(channel_weights(method, activation, gradient), activation, SHAPE[:2]))
    assert_same(class_maps(model, images, classes, method=method, layer=layer), np.stack(expected))


@pytest.mark.parametrize("method", GRADIENT_METHODS)
@pytest.mark.parametrize("name, layer", [("seed_cnn", None), ("norm_cnn_batch", None), ("residual_gn", "block3b_relu")])
def test_equals_a_gradient_tape_one_image_at_a_time(method, name, layer):
    """Through a dense layer, normalisation and a shortcut; the tape's gradients go into the NumPy formula."""
    model = build_model(name, (24, 24, 1), NUM_CLASSES, seed=3)
    images, classes = np.random.default_rng(1).random((3, 24, 24, 1), np.float32), np.array([2, 0, 1])
    both = keras.Model(model.inputs, [model.get_layer(layer or default_layer(model)).output, model.output])
    expected = []
    for image, c in zip(images, classes, strict=True):
        with tf.GradientTape() as tape:
            activation, logits = both(image[None], training=False)
            logit = logits[0, c]
        gradient = tape.gradient(logit, activation)[0].numpy().astype(np.float64)
        activation = activation[0].numpy().astype(np.float64)
        expected.append(expected_map(channel_weights(method, activation, gradient), activation, (24, 24)))
    assert_same(class_maps(model, images, classes, method=method, layer=layer, batch_size=2), np.stack(expected))


@pytest.mark.parametrize("layer", ["conv", "pool"])
def test_score_cam_equals_a_plain_loop(layer):
    """Channel by channel and image by image; the third channel is dead, so it masks everything."""
    model = one_conv_model("flatten")
    weights = model.get_weights()
    weights[1][2] = -100
    model.set_weights(weights)
    images, classes = np.random.default_rng(7).random((3, *SHAPE), np.float32), np.array([0, 1, 2])
    features = keras.Model(model.inputs, model.get_layer(layer).output)(images).numpy().astype(np.float64)
    black = model(np.zeros((1, *SHAPE), np.float32)).numpy()[0]
    expected = []
    for image, activation, c in zip(images, features, classes, strict=True):
        increases = []
        for k in range(activation.shape[-1]):
            mask = resize(activation[..., k], SHAPE[:2], order=1, mode="edge", anti_aliasing=False)
            mask = (mask - mask.min()) / (np.ptp(mask) or 1)
            masked = (image * mask[..., None]).astype(np.float32)[None]
            increases.append(float(model(masked)[0, c]) - black[c])
        assert increases[2] == pytest.approx(0, abs=1e-6) and max(increases) - min(increases) > 0.1
        shares = np.exp(increases) / np.exp(increases).sum()
        expected.append(expected_map(shares, activation, SHAPE[:2]))
    assert_same(class_maps(model, images, classes, method="score_cam", layer=layer), np.stack(expected))


def test_seg_grad_cam_is_a_score_summed_over_pixels():
    """A segmenter with one linear layer after its features: the sum's gradient is h w times the kernel."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input(SHAPE), layers.Conv2D(5, 3, padding="same", activation="relu", name="features"),
            layers.Conv2D(NUM_CLASSES, 1, name="logits"),
        ]
    )
    model.set_weights([draw(weight.shape, seed) for seed, weight in enumerate(model.get_weights())])
    images, classes = np.random.default_rng(2).random((4, *SHAPE), np.float32), np.array([0, 1, 2, 1])

    def summed_logit(outputs, classes):
        return tf.reduce_sum(tf.gather(outputs, classes, axis=3, batch_dims=1), axis=(1, 2))

    assert default_layer(model) == "features"
    kernel, bias, head, _ = model.get_weights()
    conv = conv_relu(images, kernel, bias)
    expected = np.stack([np.maximum(conv[i] @ head[0, 0, :, c].astype(np.float64), 0) for i, c in enumerate(classes)])
    assert_same(class_maps(model, images, classes, score=summed_logit), expected)


@pytest.mark.parametrize("upsampling, order", [("bilinear", 1), ("nearest", 0)])
@pytest.mark.parametrize("size", [(24, 24), (16, 40)])
def test_upsampling_keeps_pixel_centres(upsampling, order, size):
    """TensorFlow's resize is scikit-image's with borders repeated; the random maps' is the same."""
    grids = np.random.default_rng(5).random((3, 8, 8), np.float32)
    ours = random_maps(3, size, np.random.default_rng(5), grid=(8, 8), upsampling=upsampling)
    theirs = np.stack([resize(grid, size, order=order, mode="edge", anti_aliasing=False) for grid in grids])
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    np.testing.assert_allclose(ours, tf.image.resize(grids[..., None], size, method=upsampling)[..., 0], atol=1e-6)


def test_a_wrong_formula_would_be_seen():
    """Methods and classes differ by far more than the tolerance."""
    model = one_conv_model("flatten")
    images = np.random.default_rng(7).random((6, *SHAPE), np.float32)
    maps = {(m, c): make_mapper(model, method=m, layer="pool")(images, c) for m in METHODS for c in (0, 1)}
    scaled = [values / max(values.max(), 1e-12) for values in maps.values()]
    for i, one in enumerate(scaled):
        for other in scaled[:i]:
            assert np.abs(one - other).max() > 1e-2
