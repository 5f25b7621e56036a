"""The classifiers: what goes in, what comes out, how many weights, and which draws they start from."""

import re

import numpy as np
import pytest

from fl_utils.models.classifiers import MODELS, build_model, build_norm_cnn, build_residual_network, build_seed_cnn

NAMES = sorted(MODELS)
DRAWN = [name for name in NAMES if name != "softmax_regression"]  # which starts at zero
STATED = ["seed_cnn", "residual_gn", "softmax_regression", "small_cnn"]


def weights(model):
    return [weight.numpy() for weight in model.trainable_weights]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape, num_classes", [((24, 24, 1), 4), ((16, 20, 3), 2), ((17, 16, 5), 7)])
def test_shapes_for_any_size_channels_and_classes(name, shape, num_classes):
    model = build_model(name, shape, num_classes)
    assert model.input_shape == (None, *shape) and model.output_shape == (None, num_classes)
    assert model(np.zeros((3, *shape), np.float32)).shape == (3, num_classes)


@pytest.mark.parametrize("name", DRAWN)
def test_gives_logits(name):
    """Logits may be negative and need not sum to 1; a softmax in the model would be applied twice."""
    images = np.random.default_rng(0).random((8, 24, 24, 1), np.float32)
    # Of several draws: one draw's logits may all be above 0 by chance.
    logits = np.concatenate([build_model(name, (24, 24, 1), 4, seed=seed)(images).numpy() for seed in range(4)])
    assert logits.min() < 0 and np.abs(logits.sum(axis=1) - 1).max() > 1e-2
    assert getattr(build_model(name, (24, 24, 1), 4).layers[-1].activation, "__name__", "") == "linear"


@pytest.mark.parametrize("name", STATED)
def test_parameter_count_is_the_docstrings(name):
    text = re.search(r"([\d,]+) for input \((\d+), (\d+), 1\) and 4 classes", MODELS[name].__doc__)
    count, height, width = (int(group.replace(",", "")) for group in text.groups())
    assert build_model(name, (height, width, 1), 4).count_params() == count


@pytest.mark.parametrize("name", ["norm_cnn_group", "norm_cnn_batch"])
def test_norm_layers_are_all_that_they_add_to_the_small_cnn(name):
    plain, normed = build_model("small_cnn", (24, 24, 1), 4), build_model(name, (24, 24, 1), 4)
    added = [weight for weight in normed.trainable_weights if "norm" in weight.name]
    assert sum(int(np.prod(weight.shape)) for weight in added) == 2 * (16 + 32)  # a scale and a shift a channel
    rest = [weight for weight in normed.trainable_weights if "norm" not in weight.name]
    assert [weight.name for weight in rest] == [weight.name for weight in plain.trainable_weights]
    # They start at the same draws, so that what differs is the layers.
    assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in zip(rest, plain.trainable_weights, strict=True))


def test_pooling_before_the_activation_is_the_same():
    """The small CNN pools first: maximum and ReLU are monotone."""
    model = build_model("small_cnn", (16, 16, 1), 3, seed=2)
    images = np.random.default_rng(0).random((4, 16, 16, 1), np.float32)
    x = images
    for number in (1, 2):
        x = model.get_layer(f"pool{number}")(model.get_layer(f"relu{number}")(model.get_layer(f"conv{number}")(x)))
    for name in ("flatten", "dense", "logits"):
        x = model.get_layer(name)(x)
    np.testing.assert_allclose(model(images).numpy(), x.numpy(), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_is_trained_by_gradients(name):
    """Running statistics would be neither averaged nor trained by a federation; only the model that shows it has them."""
    model = build_model(name, (24, 24, 1), 4)
    untrained = [weight.name for weight in model.non_trainable_weights]
    moving = [f"norm{number}/moving_{what}:0" for number in (1, 2) for what in ("mean", "variance")]
    assert untrained == (moving if name == "norm_cnn_batch" else [])
    assert len(model.trainable_weights) + len(untrained) == len(model.weights)
    assert not model.optimizer  # uncompiled


def test_norm_is_group_or_batch():
    with pytest.raises(ValueError, match="norm is 'layer'; expected 'group' or 'batch'"):
        build_norm_cnn((16, 16, 1), 3, norm="layer")


@pytest.mark.parametrize("name", DRAWN)
def test_seed_decides_the_initial_weights(name):
    first, again, other = (weights(build_model(name, (16, 16, 1), 3, seed=seed)) for seed in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    kernels = [i for i, weight in enumerate(first) if weight.ndim > 1]
    assert kernels and not any(np.array_equal(first[i], other[i]) for i in kernels)


def test_layers_of_one_shape_get_different_draws():
    model = build_residual_network((16, 16, 1), 3, seed=1)
    a, b = (model.get_layer(name).kernel.numpy() for name in ("block1a_conv", "block1b_conv"))
    assert a.shape == b.shape and not np.array_equal(a, b)


def test_softmax_regression_starts_at_zero():
    assert not any(weight.any() for weight in weights(build_model("softmax_regression", (16, 16, 1), 3, seed=9)))


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="'resnet50' is not known.*seed_cnn, residual_gn"):
        build_model("resnet50", (16, 16, 1), 3)


@pytest.mark.parametrize("num_classes", [1, 0, -3])
def test_fewer_than_two_classes(num_classes):
    with pytest.raises(ValueError, match=f"num_classes is {num_classes}; expected at least 2"):
        build_model("seed_cnn", (16, 16, 1), num_classes)


def test_widths_must_fit_the_groups():
    with pytest.raises(ValueError, match=r"widths \(16, 20\) must be multiples of groups = 8"):
        build_residual_network((16, 16, 1), 3, widths=(16, 20))
    assert build_residual_network((16, 16, 1), 3, widths=(8, 24), groups=4).output_shape == (None, 3)


def test_images_too_small_or_without_channel():
    with pytest.raises(ValueError):
        build_seed_cnn((3, 3, 1), 3)
    with pytest.raises(ValueError):
        build_model("seed_cnn", (16, 16), 3)
