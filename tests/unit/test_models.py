"""The classifiers: what goes in, what comes out, how many weights, and which draws they start from."""

import re

import numpy as np
import pytest

from fl_utils.models.classifiers import MODELS, build_model, build_residual_network, build_seed_cnn

NAMES = sorted(MODELS)
DRAWN = ["seed_cnn", "residual_gn"]  # softmax regression starts at zero


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
    logits = build_model(name, (24, 24, 1), 4)(images).numpy()
    assert logits.min() < 0 and np.abs(logits.sum(axis=1) - 1).min() > 1e-3
    assert getattr(build_model(name, (24, 24, 1), 4).layers[-1].activation, "__name__", "") == "linear"


@pytest.mark.parametrize("name", NAMES)
def test_parameter_count_is_the_docstrings(name):
    text = re.search(r"([\d,]+) for input \(64, 64, 1\) and 4 classes", MODELS[name].__doc__)
    assert build_model(name, (64, 64, 1), 4).count_params() == int(text.group(1).replace(",", ""))


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_is_trained_by_gradients(name):
    """Running statistics would be neither averaged nor trained by a federation."""
    model = build_model(name, (24, 24, 1), 4)
    assert model.non_trainable_weights == [] and len(model.trainable_weights) == len(model.weights)
    assert not model.optimizer  # uncompiled


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
