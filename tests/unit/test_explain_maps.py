"""Class activation maps: batches, classes and layers, what is refused, and a model whose right region is known."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from fl_utils.explain.maps import METHODS, class_maps, default_layer, layers_of, make_mapper
from fl_utils.explain.sanity import cascading_randomization, drawn_again
from fl_utils.explain.scores import chance_of_pointing, energy_inside, pointing_game
from fl_utils.explain.similarity import SSIM_WINDOW_PX, similarity
from fl_utils.models.classifiers import build_model

SHAPE, NUM_CLASSES = (24, 24, 1), 3
IMAGES = np.random.default_rng(0).random((7, *SHAPE), np.float32)


@pytest.fixture(scope="module")
def small_cnn():
    return build_model("small_cnn", SHAPE, NUM_CLASSES, seed=1)


# --- which layer, which class, which batch ---


@pytest.mark.parametrize(
    "name, layer",
    [("seed_cnn", "conv2"), ("small_cnn", "relu2"), ("norm_cnn_group", "relu2"), ("norm_cnn_batch", "relu2"),
     ("residual_gn", "last_relu")],
)  # fmt: skip
def test_default_layer_is_the_last_activation(name, layer):
    model = build_model(name, SHAPE, NUM_CLASSES)
    assert default_layer(model) == layer
    shapes = layers_of(model)
    assert list(shapes).index(layer) > 0 and not {"image", "flatten", "dense", "average", "logits"} & set(shapes)
    outputs = keras.Model(model.inputs, [model.get_layer(name).output for name in shapes])(IMAGES[:1])
    assert [output.shape[1:] for output in outputs] == list(shapes.values())


def test_a_segmenters_output_is_no_layer_to_explain():
    image = keras.Input(SHAPE)
    features = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="features")(image)
    model = keras.Model(image, keras.layers.Conv2D(2, 1, name="mask")(features))
    assert list(layers_of(model)) == ["features"]
    with pytest.raises(ValueError, match="state `classes`"):
        class_maps(model, IMAGES)


@pytest.mark.parametrize("method", METHODS)
def test_batches_equal_one_by_one(small_cnn, method):
    """Up to float32: another batch size may sum in another order."""
    whole = class_maps(small_cnn, IMAGES, method=method)
    assert whole.shape == (7, 24, 24) and whole.dtype == np.float32 and whole.min() >= 0 < whole.max()
    assert np.abs(whole[0] / whole[0].max() - whole[1] / whole[1].max()).max() > 1e-2  # images do matter
    mapper = make_mapper(small_cnn, method=method)
    for batch_size in (1, 3, 7):
        np.testing.assert_allclose(mapper(IMAGES, batch_size=batch_size), whole, rtol=1e-4, atol=1e-5 * whole.max())
    order = np.array([4, 0, 6, 2, 1, 5, 3])
    np.testing.assert_allclose(mapper(IMAGES[order]), whole[order], rtol=1e-4, atol=1e-5 * whole.max())


@pytest.mark.parametrize("method", METHODS)
def test_no_class_is_the_predicted_class(small_cnn, method):
    predicted = small_cnn(IMAGES).numpy().argmax(axis=1)
    mapper = make_mapper(small_cnn, method=method)
    np.testing.assert_array_equal(mapper(IMAGES), mapper(IMAGES, predicted))
    np.testing.assert_array_equal(mapper(IMAGES, 1), mapper(IMAGES, [1] * 7))
    assert np.abs(mapper(IMAGES, 1) - mapper(IMAGES, 2)).max() > 0


def test_bytes_are_scaled_as_in_training(small_cnn):
    images = np.random.default_rng(1).integers(0, 256, (3, *SHAPE), np.uint8)
    np.testing.assert_array_equal(class_maps(small_cnn, images), class_maps(small_cnn, images.astype(np.float32) / 255))


def test_a_mapper_follows_the_weights(small_cnn):
    model = keras.models.clone_model(small_cnn)
    model.set_weights(small_cnn.get_weights())
    mapper = make_mapper(model)
    before = mapper(IMAGES)
    model.set_weights([-weight for weight in model.get_weights()])
    np.testing.assert_array_equal(mapper(IMAGES), class_maps(model, IMAGES))
    assert np.abs(mapper(IMAGES) - before).max() > 0


def test_batch_norm_uses_its_running_statistics():
    """In inference mode an image's map does not depend on its neighbours, and no statistic moves."""
    model = build_model("norm_cnn_batch", SHAPE, NUM_CLASSES, seed=2)
    before = model.get_weights()
    together, alone = class_maps(model, IMAGES), class_maps(model, IMAGES[:1])
    np.testing.assert_allclose(together[:1], alone, rtol=1e-4, atol=1e-5 * alone.max())
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


# --- what is refused ---


@pytest.mark.parametrize(
    "change, said",
    [
        ({"method": "gradcam"}, "method is 'gradcam'; expected one of grad_cam, grad_cam_pp"),
        ({"layer": "flatten"}, "layer of model 'small_cnn' is 'flatten'; expected one of conv1, pool1"),
        ({"upsampling": "bicubic"}, "expected one of bilinear, nearest"),
        ({"classes": 3}, "the model knows 0 to 2"),
        ({"classes": -1}, "go from -1"),
        ({"classes": [0, 1]}, "one for each of 7 images"),
        ({"classes": 0.5}, "expected one integer"),
        ({"images": IMAGES[0]}, r"shape \(24, 24, 1\)"),
        ({"images": IMAGES[:, :20]}, r"the model takes \(None, 24, 24, 1\)"),
        ({"images": IMAGES[:0]}, "at least one image"),
        ({"images": IMAGES.astype(np.int64)}, "images are int64"),
        ({"images": np.where(np.arange(7)[:, None, None, None] == 4, np.nan, IMAGES)}, "Image number 4 holds NaN"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_bad_arguments_are_named(small_cnn, change, said):
    images = change.pop("images", IMAGES)
    with pytest.raises(ValueError, match=said):
        class_maps(small_cnn, images, **change)


def test_a_diverged_model_is_named(small_cnn):
    model = keras.models.clone_model(small_cnn)
    model.set_weights([np.full_like(weight, np.nan) for weight in model.get_weights()])
    with pytest.raises(ValueError, match="The map number 0 holds NaN"):
        class_maps(model, IMAGES, 0)


def test_a_model_without_a_grid_is_named():
    with pytest.raises(ValueError, match="softmax_regression.*no convolution"):
        class_maps(build_model("softmax_regression", SHAPE, 3), IMAGES)


# --- the right region is known ---

CELL, GRID, PATCH = 4, 4, (slice(4, 12), slice(8, 16))  # 2 x 2 of 4 x 4 cells of 4 x 4 pixels
REGION = np.zeros((CELL * GRID, CELL * GRID), bool)
REGION[PATCH] = True
#: Expected rate of hits by chance: the patch's share of the cells.
CHANCE = 0.25
NUM_RANDOMIZATIONS = 200
#: Fixed beforehand: a model at chance falls outside with a probability below 0.001.
CONFIDENCE = 0.999


def patch_model():
    """Each cell has kernels of its own, and a mean over cells follows: which cells count is in the weights alone."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((CELL * GRID, CELL * GRID, 1)),
            layers.LocallyConnected2D(6, CELL, strides=CELL, activation="relu", use_bias=False, name="cells"),
            layers.Conv2D(8, 1, activation="relu", use_bias=False, name="features"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10, use_bias=False, name="logits"),
        ]
    )


def weights_by_hand(model):
    """Kernels are 0 outside the patch and above 0 inside; class 0 takes every feature as evidence."""
    rng = np.random.default_rng(3)
    cells, features, logits = (np.abs(rng.standard_normal(weight.shape)) for weight in model.get_weights())
    cells *= REGION[::CELL, ::CELL].ravel()[:, None, None]
    logits[:, 1:] *= -1
    return [cells, features, logits]


@pytest.fixture(scope="module")
def by_hand():
    model = patch_model()
    model.set_weights(weights_by_hand(model))
    return model


@pytest.mark.parametrize("upsampling", ["bilinear", "nearest"])
@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_can_only_use_one_patch_is_found_out(by_hand, method, upsampling):
    images = np.random.default_rng(4).random((50, *REGION.shape, 1), np.float32)
    changed = np.where(REGION[..., None], images, 1 - images)
    np.testing.assert_array_equal(by_hand(images), by_hand(changed))  # it cannot use anything else
    maps = class_maps(by_hand, images, method=method, upsampling=upsampling)
    masks = np.broadcast_to(REGION, maps.shape)
    assert pointing_game(maps, masks).mean() == 1.0
    assert chance_of_pointing(masks).mean() == CHANCE
    if upsampling == "nearest":  # bilinear maps reach half a cell over the border
        np.testing.assert_allclose(energy_inside(maps, masks), 1)


@pytest.fixture(scope="module")
def randomizations(by_hand):
    return [randomized_weights(by_hand, seed) for seed in range(NUM_RANDOMIZATIONS)]


@pytest.mark.parametrize("method", METHODS)
def test_with_random_weights_it_points_by_chance(randomizations, method):
    """One new image a randomization, so hits are independent; no cell is special, so a hit has probability CHANCE.

    Upsampled by "nearest": a bilinear map is smoothed less at the border, where maxima would be more frequent.
    """
    model = patch_model()
    mapper = make_mapper(model, method=method, upsampling="nearest")
    rng, maps = np.random.default_rng(5), []
    for weights in randomizations:
        model.set_weights(weights)
        maps.append(mapper(rng.random((1, *REGION.shape, 1), np.float32))[0])
    maps = np.stack(maps)
    maps = maps[maps.max(axis=(1, 2)) > 0]  # whether a map is all zero does not depend on the order of the cells
    assert len(maps) >= 0.9 * NUM_RANDOMIZATIONS
    hits = pointing_game(maps, np.broadcast_to(REGION, maps.shape))
    assert set(hits) == {0.0, 1.0}
    low, high = stats.binom.interval(CONFIDENCE, len(maps), CHANCE)
    assert low <= hits.sum() <= high


def randomized_weights(model, seed):
    """All weights anew; as the last step of the cascade, which the next test shows, without 200 clones."""
    return [weight for layer in model.layers if layer.weights for weight in drawn_again(layer, seed)]


# --- sanity checks ---


def test_the_cascade_goes_from_the_logits_down(by_hand):
    steps = list(cascading_randomization(by_hand, seed=9))
    assert [name for name, _ in steps] == ["logits", "features", "cells"]
    before = by_hand.get_weights()  # cells, features, logits
    for number, (_, model) in enumerate(steps, start=1):
        same = [np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)]
        assert same == [True] * (3 - number) + [False] * number
    final = steps[-1][1].get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(final, randomized_weights(by_hand, 9), strict=True))
    # A layer's draw is the same in every step, and another with another seed.
    np.testing.assert_array_equal(steps[0][1].get_weights()[2], final[2])
    assert not np.array_equal(randomized_weights(by_hand, 10)[2], final[2])


@pytest.mark.parametrize("name", ["seed_cnn", "norm_cnn_group", "norm_cnn_batch"])
def test_a_cascade_through_the_classifiers(name):
    model = build_model(name, SHAPE, NUM_CLASSES, seed=1)
    trained = [weight + 1 for weight in model.get_weights()]
    model.set_weights(trained)
    *_, (last, randomized) = cascading_randomization(model, seed=0)
    assert last == "conv1"
    for weight, old, new in zip(randomized.weights, trained, randomized.get_weights(), strict=True):
        assert not np.array_equal(old, new), weight.name
        if "kernel" in weight.name:
            assert np.unique(new).size > new.size / 2 and np.abs(new).max() < 1.5
        elif "bias" in weight.name or "beta" in weight.name or "moving_mean" in weight.name:
            assert (new == 0).all()
        else:
            assert (new == 1).all()
    assert all(np.array_equal(a, b) for a, b in zip(trained, model.get_weights(), strict=True))


def test_a_cascade_needs_weights():
    with pytest.raises(ValueError, match="no layer with weights"):
        next(cascading_randomization(keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten()]), seed=0))


def test_similarity_of_maps():
    rng = np.random.default_rng(0)
    maps, other = rng.random((3, 16, 16)), rng.random((3, 16, 16))
    same = similarity(maps, 5 * maps)
    np.testing.assert_allclose(same[["ssim", "rank_correlation"]], 1, atol=1e-6)
    unlike = similarity(maps, other)
    assert unlike[["ssim", "rank_correlation"]].abs().max().max() < 0.3
    # Ranks are blind to a monotone change, SSIM is not.
    cubed = similarity(maps, maps**3)
    assert (cubed["rank_correlation"] > 0.999).all() and (cubed["ssim"] < 0.99).all()
    reverse = similarity(maps, maps.max() - maps)
    np.testing.assert_allclose(reverse["rank_correlation"], -1, atol=1e-6)


def test_a_constant_map_has_no_similarity_and_says_why():
    maps = np.random.default_rng(0).random((4, 16, 16))
    a, b = maps.copy(), maps.copy()
    a[1], b[2], a[3], b[3] = 0, 0.5, 0, 0
    table = similarity(a, b)
    which = ["first", "second", "first and second"]
    assert list(table["reason"]) == ["", *(f"constant map: {name}" for name in which)]
    assert table[["ssim", "rank_correlation"]].isna().all(axis=1).tolist() == [False, True, True, True]


@pytest.mark.parametrize("shapes", [((2, 16, 16), (3, 16, 16)), ((2, SSIM_WINDOW_PX - 1, 16),) * 2])
def test_maps_that_cannot_be_compared(shapes):
    with pytest.raises(ValueError, match="expected the same shape, and at least 11"):
        similarity(*(np.random.default_rng(0).random(shape) for shape in shapes))


def test_grad_cam_may_mark_what_a_dense_layer_ignores():
    """Why hires_cam is there: after a Flatten, Grad-CAM forgets which place a weight belongs to."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)), layers.Conv2D(1, 1, activation="relu", use_bias=False, name="conv"),
            layers.Flatten(), layers.Dense(2, use_bias=False),
        ]
    )
    used = np.zeros((8, 8), bool)
    used[:2, :2] = True
    model.set_weights([np.ones((1, 1, 1, 1)), np.stack([used.ravel(), 0 * used.ravel()], axis=1)])
    images = np.random.default_rng(0).random((5, 8, 8, 1), np.float32)
    inside = {
        method: energy_inside(class_maps(model, images, 0, method=method), np.broadcast_to(used, (5, 8, 8)))
        for method in ("grad_cam", "hires_cam")
    }
    np.testing.assert_allclose(inside["hires_cam"], 1, rtol=1e-6)
    assert inside["grad_cam"].max() < 0.2  # 4 of 64 pixels are used


def test_a_score_of_ones_own():
    """The difference of two classes: linear in the logits, so before the ReLU its map is the difference of theirs."""
    model = build_model("seed_cnn", SHAPE, NUM_CLASSES, seed=1)

    def against_class_0(outputs, classes):
        return tf.gather(outputs, classes, axis=1, batch_dims=1) - outputs[:, 0]

    swapped = keras.models.clone_model(model)
    weights = model.get_weights()
    weights[-2] = weights[-2] - weights[-2][:, :1]  # the same difference, as a logit
    swapped.set_weights(weights)
    maps = class_maps(model, IMAGES, 2, score=against_class_0)
    np.testing.assert_allclose(maps, class_maps(swapped, IMAGES, 2), rtol=1e-3, atol=1e-5 * maps.max())
