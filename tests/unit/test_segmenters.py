"""U-Net and Attention U-Net: shapes, counts, seeds, and the gate against its formula."""

import numpy as np
import pytest
from keras import Model

from fl_utils.models.segmenters import SEGMENTERS, build_attention_unet, build_segmenter, build_unet

SMALL = {"width": 8, "depth": 2}


def parameters(model, part=""):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights if part in weight.name)


def images(shape=(2, 16, 24, 3), seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_parameters_at_full_width():
    """The layers of Ronneberger et al. 2015, figure 1, counted by hand, for one channel and two classes."""
    widths = [64, 128, 256, 512, 1024]
    down = sum(9 * a * b + b + 9 * b * b + b for a, b in zip([1, *widths], widths, strict=False))
    up = sum(4 * 2 * b * b + b + 9 * 2 * b * b + b + 9 * b * b + b for b in widths[:-1])
    paper = down + up + 64 * 2 + 2
    assert paper == 31_030_658  # the "31 M"
    unet, attention = build_unet((32, 32, 1), 2), build_attention_unet((32, 32, 1), 2)
    norm = 2 * (2 * sum(widths) + 2 * sum(widths[:-1]))  # a scale and a shift a channel of each 3x3 convolution
    assert parameters(unet, "norm") == norm == 11_776
    assert parameters(unet) == unet.count_params() == paper + norm == 31_042_434
    # 34.9 M is of a rewrite with 3x3 convolutions where the paper has transposed 2x2 ones, and gates of other widths.
    gates = sum(b * b // 2 + 2 * b * b // 2 + b // 2 + b // 2 + 1 for b in widths[1:4])
    assert parameters(attention, "gate") == gates == 516_995
    assert attention.count_params() == paper + norm + gates == 31_559_429
    assert paper + 5 * sum(2 * b * b for b in widths[:-1]) == 34_512_258


@pytest.mark.parametrize("name", SEGMENTERS)
def test_logits_have_the_images_size(name):
    """Any channels, classes, width and depth; the softmax is in the loss."""
    for shape, num_classes, sizes in (((16, 24, 3), 4, SMALL), ((8, 8, 1), 2, {"width": 6, "depth": 3, "groups": 3})):
        model = build_segmenter(name, shape, num_classes, **sizes)
        logits = model(images((2, *shape))).numpy()
        assert logits.shape == (2, *shape[:2], num_classes) and np.isfinite(logits).all()
        assert logits.min() < 0 and np.abs(logits.sum(axis=-1) - 1).max() > 1e-2
        assert model.layers[-1].activation.__name__ == "linear"
        assert not model.non_trainable_weights and not model.optimizer


@pytest.mark.parametrize("name", SEGMENTERS)
def test_seed_decides_the_initial_weights(name):
    first, again, other = (
        [w.numpy() for w in build_segmenter(name, (8, 8, 1), 3, seed=seed, **SMALL).weights] for seed in (5, 5, 6)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    kernels = [i for i, weight in enumerate(first) if weight.ndim > 1]
    assert not any(np.array_equal(first[i], other[i]) for i in kernels)


def test_both_models_of_a_seed_start_alike_but_for_the_gates():
    unet, attention = (build_segmenter(name, (8, 8, 1), 3, seed=4, **SMALL) for name in SEGMENTERS)
    shared = {weight.name: weight.numpy() for weight in attention.weights if "gate" not in weight.name}
    assert len(shared) == len(unet.weights) < len(attention.weights)
    assert all(np.array_equal(shared[weight.name], weight.numpy()) for weight in unet.weights)


def forced(model, bias):
    """Every gate's coefficient is sigmoid(bias), whatever it sees."""
    for layer in model.layers:
        if layer.name.endswith("_psi"):
            layer.set_weights([np.zeros_like(layer.kernel), np.full(1, bias, np.float32)])
    return model


def test_with_open_gates_it_is_the_unet():
    unet, attention = (build_segmenter(name, (16, 24, 3), 4, seed=1, **SMALL) for name in SEGMENTERS)
    x = images()
    closed_to_none = np.abs(attention(x).numpy() - unet(x).numpy()).max()
    np.testing.assert_allclose(forced(attention, 40.0)(x).numpy(), unet(x).numpy(), atol=1e-6)
    assert closed_to_none > 1e-3


def bilinear_twice(coarse):
    """[h, w] -> [2h, 2w] with the centres of the pixels as fixed points, as images are resized."""
    for axis in (0, 1):
        number = coarse.shape[axis]
        at = np.clip((np.arange(2 * number) + 0.5) / 2 - 0.5, 0, number - 1)
        low = np.floor(at).astype(int)
        high, part = np.minimum(low + 1, number - 1), at - low
        part = part[:, None] if axis == 0 else part[None, :]
        coarse = np.take(coarse, low, axis) * (1 - part) + np.take(coarse, high, axis) * part
    return coarse


@pytest.mark.parametrize("level", [1, 2])
def test_gate_is_the_papers_formula(level):
    """Oktay et al. 2018, equations 1 and 2, in NumPy; level 2's signal is the bottleneck, level 1's the decoder above it."""
    model = build_attention_unet((8, 12, 2), 3, seed=2, first_gate=1, **SMALL)
    rng = np.random.default_rng(0)
    for layer in (model.get_layer(f"gate{level}_g"), model.get_layer(f"gate{level}_psi")):
        layer.set_weights([layer.kernel.numpy(), rng.normal(size=layer.bias.shape)])
    signal_name = {1: "up2b_relu", 2: "bottomb_relu"}[level]
    names = (f"down{level}b_relu", signal_name, f"gate{level}", f"gate{level}_skip")
    x, g, alpha, gated = (out.numpy() for out in Model(model.input, [model.get_layer(n).output for n in names])(images((2, 8, 12, 2))))
    w_x, w_g, psi = (model.get_layer(f"gate{level}_{part}").get_weights() for part in ("x", "g", "psi"))
    hidden = np.maximum(x[:, ::2, ::2] @ w_x[0][0, 0] + g @ w_g[0][0, 0] + w_g[1], 0)
    coarse = 1 / (1 + np.exp(-(hidden @ psi[0][0, 0] + psi[1])[..., 0]))
    expected = np.stack([bilinear_twice(picture) for picture in coarse])[..., None]
    assert alpha.shape == (*x.shape[:3], 1) and alpha.min() > 0 and alpha.max() < 1 and np.ptp(alpha) > 1e-3
    np.testing.assert_allclose(alpha, expected, atol=1e-5)
    np.testing.assert_allclose(gated, x * expected, atol=1e-4)


def test_which_levels_have_gates():
    for first_gate, levels in ((1, [1, 2, 3]), (2, [2, 3]), (3, [3])):
        model = build_attention_unet((8, 8, 1), 2, width=8, depth=3, first_gate=first_gate)
        names = {layer.name for layer in model.layers}
        assert [level for level in (1, 2, 3) if f"gate{level}" in names] == levels


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"input_shape": (20, 16, 1), "depth": 3}, r"multiples of 2\*\*depth = 8. Choose another image_size_px"),
        ({"input_shape": (16, 16)}, r"input_shape is \(16, 16\); expected \(H, W, C\)"),
        ({"width": 12}, "width is 12; expected a multiple of groups = 8"),
        ({"depth": 0}, "depth is 0; expected at least 1"),
        ({"num_classes": 1}, "num_classes is 1; expected at least 2"),
    ],
)
def test_sizes_that_do_not_fit(arguments, said):
    given = {"input_shape": (16, 16, 1), "num_classes": 3, **SMALL, **arguments}
    for name in SEGMENTERS:
        with pytest.raises(ValueError, match=said if "depth is 0" not in said or name == "unet" else "depth"):
            build_segmenter(name, given["input_shape"], given["num_classes"], width=given["width"], depth=given["depth"])


def test_no_level_left_for_a_gate():
    with pytest.raises(ValueError, match="first_gate is 2; expected a level from 1 to depth = 1"):
        build_attention_unet((8, 8, 1), 2, width=8, depth=1)


def test_unknown_name():
    with pytest.raises(ValueError, match="'vnet' is not known; expected one of unet, attention_unet"):
        build_segmenter("vnet", (8, 8, 1), 2)
