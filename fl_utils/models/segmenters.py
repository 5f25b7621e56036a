"""Segmenters: U-Net and Attention U-Net on slices, with GroupNorm.

Builders return uncompiled Keras models that map float32 images [N, H, W, C] (normalised, background 0) to logits
[N, H, W, K]. None uses BatchNorm, for the reason given in `classifiers`.

Parameters at full width, one channel and two classes, against the published models:
  U-Net 31,042,434. Ronneberger et al. name no number; their layers hold 31,030,658, the "31 M" of later papers, and
    same padding changes none of it. GroupNorm adds 11,776, a scale and a shift a channel of each 3x3 convolution.
  Attention U-Net 31,559,429: the gates of the paper (all skips but the finest) add 516,995. Oktay et al. count a
    narrower 3-D network (6.4 M). The 34.9 M that is often quoted for two dimensions is a rewrite that upsamples with
    3x3 convolutions in place of transposed 2x2 ones: 5 more taps a pair of channels, 3,481,600 weights.
"""

import keras

from fl_utils.models.classifiers import initializers

_GATES_FIRST_LAYER = 500  # the gates' draws: a U-Net and an Attention U-Net of one seed start alike elsewhere


def build_unet(
    input_shape: tuple[int, int, int], num_classes: int, *, width: int = 64, depth: int = 4, groups: int = 8,
    seed: int = 0,
) -> keras.Model:
    """U-Net: `depth` poolings, two 3x3 convolutions a level, skips by concatenation.

    Args:
      input_shape: (H, W, C); H and W multiples of 2**depth.
      num_classes: K >= 2, the background included.
      width: channels of the finest level, a multiple of `groups`; each level below has twice as many.
      depth: number of poolings, >= 1.
      groups: of GroupNorm.
      seed: of the initial weights (He normal).
    Returns:
      A model that gives logits [N, H, W, K]; the softmax is in the loss.
    Raises:
      ValueError: sizes that do not fit.
    Source: Ronneberger et al. 2015, arXiv:1505.04597, with same padding, so that the output is as large as the
      input, and GroupNorm (Wu and He 2018, arXiv:1803.08494).
    """
    return _build(input_shape, num_classes, width, depth, groups, seed, first_gate=None, name="unet")


def build_attention_unet(
    input_shape: tuple[int, int, int], num_classes: int, *, width: int = 64, depth: int = 4, groups: int = 8,
    seed: int = 0, first_gate: int = 2,
) -> keras.Model:
    """The same U-Net with an additive attention gate on its skips.

    The gate of level l scales the skip x by coefficients in [0, 1], one a pixel, from x and from the gating signal g
    of the level below (the decoder's output there; at the deepest level the bottleneck):
      alpha = sigmoid(psi . relu(W_x x + W_g g + b_g) + b_psi).
    x is brought to g's grid by the stride of W_x, alpha back to x's by bilinear interpolation. Layer "gate<l>" gives
    alpha [N, h, w, 1]; level 1 is the finest.

    Args: as in `build_unet`, and
      first_gate: the finest level with a gate. 2 as in the paper, whose authors leave the finest level out
        ("do not represent the input data in a high dimensional space"); 1 gates all skips, as many rewrites do.
    Raises:
      ValueError: sizes that do not fit, or no level with a gate.
    Source: Oktay et al. 2018, arXiv:1804.03999, equations 1 and 2. W_x and W_g have half as many channels as x.
    """
    if not 1 <= first_gate <= depth:
        raise ValueError(f"first_gate is {first_gate}; expected a level from 1 to depth = {depth}.")
    return _build(input_shape, num_classes, width, depth, groups, seed, first_gate=first_gate, name="attention_unet")


def _build(input_shape, num_classes, width, depth, groups, seed, *, first_gate, name) -> keras.Model:
    _check(input_shape, num_classes, width, depth, groups)
    init, gate_init = initializers(seed, he=True), initializers(seed, he=True, first_layer=_GATES_FIRST_LAYER)
    layers = keras.layers

    def block(x, filters, name):
        for part in "ab":
            x = layers.Conv2D(filters, 3, padding="same", kernel_initializer=next(init), name=f"{name}{part}")(x)
            x = layers.GroupNormalization(groups, name=f"{name}{part}_norm")(x)
            x = layers.ReLU(name=f"{name}{part}_relu")(x)
        return x

    image = keras.Input(input_shape, name="image")
    x, skips = image, []
    for level in range(1, depth + 1):
        x = block(x, width * 2 ** (level - 1), f"down{level}")
        skips.append(x)
        x = layers.MaxPooling2D(name=f"pool{level}")(x)
    x = block(x, width * 2**depth, "bottom")
    for level in range(depth, 0, -1):
        filters, skip = width * 2 ** (level - 1), skips[level - 1]
        if first_gate is not None and level >= first_gate:
            skip = _gated(skip, x, f"gate{level}", gate_init)
        x = layers.Conv2DTranspose(filters, 2, 2, kernel_initializer=next(init), name=f"upsample{level}")(x)
        x = block(layers.Concatenate(name=f"join{level}")([skip, x]), filters, f"up{level}")
    return keras.Model(image, layers.Conv2D(num_classes, 1, kernel_initializer=next(init), name="logits")(x), name=name)


def _gated(skip, signal, name: str, init):
    """The skip times its gate's coefficients; see `build_attention_unet`."""
    layers, filters = keras.layers, max(1, skip.shape[-1] // 2)
    from_skip = layers.Conv2D(filters, 1, 2, use_bias=False, kernel_initializer=next(init), name=f"{name}_x")(skip)
    from_signal = layers.Conv2D(filters, 1, kernel_initializer=next(init), name=f"{name}_g")(signal)
    both = layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([from_skip, from_signal]))
    psi = layers.Conv2D(1, 1, activation="sigmoid", kernel_initializer=next(init), name=f"{name}_psi")(both)
    alpha = layers.UpSampling2D(2, interpolation="bilinear", name=name)(psi)
    return layers.Multiply(name=f"{name}_skip")([skip, alpha])


def _check(input_shape, num_classes: int, width: int, depth: int, groups: int) -> None:
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}; expected at least 2, the background included.")
    if depth < 1:
        raise ValueError(f"depth is {depth}; expected at least 1.")
    if len(input_shape) != 3 or any(side is None or side < 1 or side % 2**depth for side in input_shape[:2]):
        raise ValueError(
            f"input_shape is {tuple(input_shape)}; expected (H, W, C) with H and W multiples of 2**depth = {2**depth}. "
            "Choose another image_size_px or a smaller depth."
        )
    if groups < 1 or width < 1 or width % groups:
        raise ValueError(f"width is {width}; expected a multiple of groups = {groups}.")


SEGMENTERS = {"unet": build_unet, "attention_unet": build_attention_unet}


def build_segmenter(
    name: str, input_shape: tuple[int, int, int], num_classes: int, *, seed: int = 0, **sizes: int
) -> keras.Model:
    """Builds a registered segmenter.

    Args:
      name: of SEGMENTERS.
      input_shape, num_classes, seed: as in `build_unet`.
      **sizes: width, depth, groups, and what else the builder takes.
    Raises:
      ValueError: the name is not registered, or an argument is out of range.
    """
    if name not in SEGMENTERS:
        raise ValueError(f"Segmenter {name!r} is not known; expected one of {', '.join(SEGMENTERS)}.")
    return SEGMENTERS[name](tuple(input_shape), num_classes, seed=seed, **sizes)
