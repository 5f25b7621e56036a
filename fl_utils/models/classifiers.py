"""Classifiers: the CNN of the seed design, a residual network, and small CNNs with and without normalisation.

Builders return uncompiled Keras models that map float32 images [N, H, W, C] in [0, 1] to
logits [N, K]. None uses BatchNorm (its running statistics are not model updates, and TFF does not train
them; DESIGN section 2, rule 5) but `norm_cnn_batch`, which is there to show what goes wrong.
"""

import functools

import keras


def build_seed_cnn(input_shape: tuple[int, int, int], num_classes: int, *, seed: int = 0) -> keras.Model:
    """Conv32-pool-Conv64-pool-Dense128-softmax, the CNN of the seed design.

    Parameters: 2,116,612 for input (64, 64, 1) and 4 classes; nearly all in the dense layer.

    Args:
      input_shape: (H, W, C) in pixels and channels; H and W at least 4.
      num_classes: K >= 2.
      seed: of the initial weights (Glorot uniform).
    Returns:
      A model that gives logits; the softmax is in the loss.
    Source: Conv-pool-Conv-pool-Dense as in McMahan et al. 2017, arXiv:1602.05629, section 3.
    """
    init = initializers(seed)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input(input_shape, name="image"),
            layers.Conv2D(32, 3, padding="same", activation="relu", kernel_initializer=next(init), name="conv1"),
            layers.MaxPooling2D(name="pool1"),
            layers.Conv2D(64, 3, padding="same", activation="relu", kernel_initializer=next(init), name="conv2"),
            layers.MaxPooling2D(name="pool2"),
            layers.Flatten(name="flatten"),
            layers.Dense(128, activation="relu", kernel_initializer=next(init), name="dense"),
            layers.Dense(num_classes, kernel_initializer=next(init), name="logits"),
        ],
        name="seed_cnn",
    )


def build_residual_network(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    seed: int = 0,
    widths: tuple[int, ...] = (16, 32, 64),
    groups: int = 8,
) -> keras.Model:
    """A small residual network: a strided stem, one pre-activation block a width, GroupNorm.

    Parameters: 77,172 for input (64, 64, 1) and 4 classes at the default widths.

    Args:
      input_shape: (H, W, C).
      num_classes: K >= 2.
      seed: of the initial weights (He normal).
      widths: channels of each stage; each halves the resolution. Multiples of `groups`.
      groups: of GroupNorm.
    Returns:
      A model that gives logits.
    Raises:
      ValueError: a width is not a multiple of `groups`.
    Source: blocks of He et al. 2016, arXiv:1603.05027; GroupNorm of Wu and He 2018,
      arXiv:1803.08494, in place of BatchNorm as Hsieh et al. 2020, arXiv:1910.00189, advise.
    """
    if any(width % groups for width in widths):
        raise ValueError(f"widths {widths} must be multiples of groups = {groups}.")
    init = initializers(seed, he=True)
    layers = keras.layers

    def conv(x, filters, size, strides, name):
        return layers.Conv2D(
            filters, size, strides, padding="same", use_bias=False, kernel_initializer=next(init), name=name
        )(x)

    def norm_relu(x, name):
        x = layers.GroupNormalization(groups, name=f"{name}_norm")(x)
        return layers.ReLU(name=f"{name}_relu")(x)

    image = keras.Input(input_shape, name="image")
    x = conv(image, widths[0], 3, 2, "stem")
    for stage, width in enumerate(widths, start=1):
        name = f"block{stage}"
        y = norm_relu(x, f"{name}a")
        strides = 1 if stage == 1 else 2
        # The shortcut is projected only where the shape changes.
        shortcut = x if stage == 1 else conv(y, width, 1, strides, f"{name}_shortcut")
        y = conv(y, width, 3, strides, f"{name}a_conv")
        y = conv(norm_relu(y, f"{name}b"), width, 3, 1, f"{name}b_conv")
        x = layers.Add(name=f"{name}_add")([shortcut, y])
    x = layers.GlobalAveragePooling2D(name="average")(norm_relu(x, "last"))
    logits = layers.Dense(num_classes, kernel_initializer=next(init), name="logits")(x)
    return keras.Model(image, logits, name="residual_gn")


def build_softmax_regression(input_shape: tuple[int, int, int], num_classes: int, *, seed: int = 0) -> keras.Model:
    """Softmax regression on the pixels: small enough to be written out in NumPy (`learning.reference`).

    Parameters: (H W C + 1) K; 16,388 for input (64, 64, 1) and 4 classes. Starts at zero, so `seed`
    does not matter. Gives logits.
    """
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input(input_shape, name="image"),
            layers.Flatten(name="flatten"),
            layers.Dense(num_classes, kernel_initializer="zeros", name="logits"),
        ],
        name="softmax_regression",
    )


def build_small_cnn(input_shape: tuple[int, int, int], num_classes: int, *, seed: int = 0) -> keras.Model:
    """The seed CNN at half its widths: Conv16-pool-Conv32-pool-Dense64; for experiments of hundreds of runs.

    Parameters: 136,196 for input (32, 32, 1) and 4 classes; a step costs about a quarter of the seed CNN's. Gives logits.
    """
    return _plain_cnn(input_shape, num_classes, seed, norm=None)


def build_norm_cnn(
    input_shape: tuple[int, int, int], num_classes: int, *, seed: int = 0, norm: str = "group", groups: int = 8
) -> keras.Model:
    """`build_small_cnn` with a normalisation layer after each convolution and pooling.

    Args:
      input_shape, num_classes, seed: as above.
      norm: "group" (GroupNorm) or "batch" (BatchNorm, whose running mean and variance are no gradient's work:
        what a federation does with them is a choice, and wrong ones are common; Li et al. 2021, arXiv:2102.07623).
      groups: of GroupNorm.
    Returns:
      A model that gives logits; the normalisation layers' names contain "norm".
    """
    layers = keras.layers

    def make(name):
        if norm == "group":
            return layers.GroupNormalization(groups, name=name)
        # Keras's momentum of 0.99 needs hundreds of steps to follow; a round of a small hospital has ten.
        return layers.BatchNormalization(momentum=0.9, name=name)

    if norm not in ("group", "batch"):
        raise ValueError(f"norm is {norm!r}; expected 'group' or 'batch'.")
    return _plain_cnn(input_shape, num_classes, seed, norm=make)


def _plain_cnn(input_shape, num_classes: int, seed: int, norm) -> keras.Model:
    init, layers = initializers(seed), keras.layers
    stack = [keras.Input(input_shape, name="image")]
    for number, width in enumerate((16, 32), start=1):
        stack.append(layers.Conv2D(width, 3, padding="same", kernel_initializer=next(init), name=f"conv{number}"))
        # The pooling first: all that follows costs a quarter (for ReLU with the same result, as both are monotone).
        stack.append(layers.MaxPooling2D(name=f"pool{number}"))
        if norm:
            stack.append(norm(f"norm{number}"))
        stack.append(layers.ReLU(name=f"relu{number}"))
    stack += [
        layers.Flatten(name="flatten"),
        layers.Dense(64, activation="relu", kernel_initializer=next(init), name="dense"),
        layers.Dense(num_classes, kernel_initializer=next(init), name="logits"),
    ]
    return keras.Sequential(stack, name="small_cnn" if norm is None else "norm_cnn")


def initializers(seed: int, he: bool = False, first_layer: int = 0):
    """One initializer a layer, each with its own seed: equal seeds would give equal draws.

    Args:
      seed: of the model.
      he: He normal in place of Glorot uniform.
      first_layer: where the count of layers starts; parts with numbers of their own do not shift the others' draws.
    """
    make = keras.initializers.HeNormal if he else keras.initializers.GlorotUniform
    layer = first_layer
    while True:
        yield make(seed=(seed * 1009 + layer) % (2**31))
        layer += 1


MODELS = {
    "seed_cnn": build_seed_cnn,
    "residual_gn": build_residual_network,
    "softmax_regression": build_softmax_regression,
    "small_cnn": build_small_cnn,
    "norm_cnn_group": functools.partial(build_norm_cnn, norm="group"),
    "norm_cnn_batch": functools.partial(build_norm_cnn, norm="batch"),
}


def build_model(name: str, input_shape: tuple[int, int, int], num_classes: int, *, seed: int = 0) -> keras.Model:
    """Builds a registered model.

    Raises:
      ValueError: the name is not registered, or an argument is out of range.
    """
    if name not in MODELS:
        raise ValueError(f"Model {name!r} is not known; expected one of {', '.join(MODELS)}.")
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}; expected at least 2.")
    return MODELS[name](tuple(input_shape), num_classes, seed=seed)
