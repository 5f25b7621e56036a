"""Class activation maps of any classifier: Grad-CAM, Grad-CAM++, HiResCAM, Score-CAM, batched.

All weigh the channels A_k [h, w] of one layer for a class c and keep what speaks for it, ReLU(sum_k w_k A_k); they
differ in w_k. With g_k = d score_c / d A_k:

- grad_cam: w_k is the mean of g_k over the pixels (Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2).
- grad_cam_pp: w_k = sum over pixels of a_k ReLU(g_k), a_k = g_k^2 / (2 g_k^2 + g_k^3 sum A_k) (Chattopadhay et al.
  2018, arXiv:1710.11063, equation 19). Their score is exp(logit); its factor exp(logit), equal for a whole image,
  is left out: it scales the map and overflows for large logits.
- hires_cam: w_k = g_k, pixel by pixel (Draelos and Carin 2020, arXiv:2011.08891). Where a dense layer follows a
  Flatten, the mean of Grad-CAM forgets which place a weight belongs to, and Grad-CAM may light up what the model
  cannot use; this map does not.
- score_cam: w = softmax over k of the score of the image times A_k, which is upsampled and scaled to [0, 1] first; no
  gradient (Wang et al. 2020, arXiv:1910.01279, algorithm 1). The black image's score, which they subtract, is the same
  for all k and cancels in the softmax. A constant channel hides the whole image. Costs one forward pass a channel.

The score is the logit, not the probability: that would also move when the other classes do.
"""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

METHODS = ("grad_cam", "grad_cam_pp", "hires_cam", "score_cam")
UPSAMPLING = ("bilinear", "nearest")
#: In place of a class id: the class with the largest logit.
PREDICTED = -1

_layers = keras.layers
_CONVOLUTIONS = (_layers.Conv2D, _layers.SeparableConv2D, _layers.DepthwiseConv2D, _layers.LocallyConnected2D)
_ACTIVATIONS = (_layers.Activation, _layers.ReLU, _layers.LeakyReLU, _layers.PReLU, _layers.ELU)


def class_logit(outputs: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    """The score of a classifier: the logit of the asked class. [N, K] and int [N] -> [N]."""
    return tf.gather(outputs, classes, axis=1, batch_dims=1)


def layers_of(model: keras.Model) -> dict[str, tuple[int, int, int]]:
    """The layers that a map can be made for, from the image to the logits: name -> (h, w, channels).

    Those with a grid of more than one cell as output, but neither the input nor the model's own output.
    """
    found = {}
    for layer in model.layers:
        shape = getattr(layer, "output_shape", None)
        if isinstance(layer, _layers.InputLayer) or not isinstance(shape, tuple) or len(shape) != 4:
            continue
        if shape[1] * shape[2] > 1 and layer.name not in model.output_names:
            found[layer.name] = tuple(shape[1:])
    return found


def default_layer(model: keras.Model) -> str:
    """The last convolution or activation of `layers_of`: the coarsest features, after their activation.

    conv2 of the seed CNN, relu2 of the small CNNs, last_relu of the residual network.

    Raises:
      ValueError: the model has none.
    """
    for name in reversed(layers_of(model)):
        if isinstance(model.get_layer(name), _CONVOLUTIONS + _ACTIVATIONS):
            return name
    raise ValueError(f"Model {model.name!r} has no convolution or activation with a grid as output to map.")


def class_maps(
    model: keras.Model,
    images: np.ndarray,
    classes: int | Sequence[int] | np.ndarray | None = None,
    *,
    method: str = "grad_cam",
    layer: str | None = None,
    batch_size: int = 64,
    upsampling: str = "bilinear",
    score: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = class_logit,
) -> np.ndarray:
    """Where the model looks: one class activation map an image.

    Args:
      model: Keras model with one image input and one output, logits [N, K]; run in inference mode.
      images: [N, H, W, C]; uint8 0 to 255, divided by 255 as in training, or floats as the model takes them.
      classes: class ids, one an image or one for all; None for the class with the largest logit.
      method: one of METHODS; see the head of this module.
      layer: one of `layers_of(model)`; None for `default_layer(model)`.
      batch_size: images at a time; changes time and memory, not the maps.
      upsampling: from the layer's grid to the image, "bilinear" or "nearest"; pixel centres are kept in place
        (half-pixel centres, as OpenCV and PyTorch's align_corners=False), borders are repeated.
      score: (outputs, classes [N]) -> [N], what the map explains. For seg-Grad-CAM (Vinogradova et al. 2020,
        arXiv:2002.11434) it sums a class's logits over pixels; `classes` must then be given.
    Returns:
      float32 [N, H, W], at least 0, not scaled: magnitudes of two images or models do not compare. All zero where
      nothing speaks for the class.
    Raises:
      ValueError: unknown method, layer or upsampling; images or classes that do not fit the model; NaN or infinity.
    """
    mapper = make_mapper(model, method=method, layer=layer, upsampling=upsampling, score=score)
    return mapper(images, classes, batch_size=batch_size)


def make_mapper(
    model: keras.Model,
    *,
    method: str = "grad_cam",
    layer: str | None = None,
    upsampling: str = "bilinear",
    score: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = class_logit,
) -> Callable[..., np.ndarray]:
    """`class_maps` in two steps: the returned (images, classes=None, *, batch_size=64) -> maps is compiled once.

    It follows the model's weights when they change.
    """
    _check_choice("method", method, METHODS)
    _check_choice("upsampling", upsampling, UPSAMPLING)
    if layer is None:
        layer = default_layer(model)
    _check_choice(f"layer of model {model.name!r}", layer, layers_of(model))
    both = keras.Model(model.inputs, [model.get_layer(layer).output, model.output])
    size = model.input_shape[1:3]

    def upsampled(grids):
        return tf.image.resize(grids, size, method=upsampling)

    def asked(outputs, classes):
        if len(outputs.shape) != 2:
            return classes
        return tf.where(classes == PREDICTED, tf.argmax(outputs, axis=1, output_type=tf.int32), classes)

    def by_gradient(images, classes):
        features, outputs = both(images, training=False)
        scores = score(outputs, asked(outputs, classes))
        # Goes back to the layer and no further; a GradientTape would go on to the image.
        (gradients,) = tf.gradients(scores, features, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return features, _WEIGHTS[method](features, gradients)

    def by_score(images, classes):
        features, outputs = both(images, training=False)
        classes = asked(outputs, classes)
        masks = upsampled(features)
        low = tf.reduce_min(masks, axis=(1, 2), keepdims=True)
        high = tf.reduce_max(masks, axis=(1, 2), keepdims=True)
        masks = tf.transpose(tf.math.divide_no_nan(masks - low, high - low), (3, 0, 1, 2))[..., tf.newaxis]
        # One channel after another, or the masked images of all would be in memory at once.
        scores = tf.map_fn(
            lambda mask: score(model(images * mask, training=False), classes), masks, parallel_iterations=1
        )
        return features, tf.nn.softmax(tf.transpose(scores))[:, tf.newaxis, tf.newaxis]

    weigh = by_score if method == "score_cam" else by_gradient

    @tf.function(input_signature=[tf.TensorSpec((None, *model.input_shape[1:])), tf.TensorSpec([None], tf.int32)])
    def batch_maps(images, classes):
        features, weights = weigh(images, classes)
        return upsampled(tf.nn.relu(tf.reduce_sum(weights * features, axis=-1, keepdims=True)))[..., 0]

    def mapper(images, classes=None, *, batch_size=64):
        _check_images(images, model.input_shape)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1.")
        if classes is None and len(model.output_shape) != 2:
            raise ValueError(f"The model gives outputs {model.output_shape}, no logits [N, K]: state `classes`.")
        if classes is None:
            classes = np.full(len(images), PREDICTED, np.int32)
        else:
            classes = _checked_classes(classes, len(images), model.output_shape[-1])
        maps = np.empty((len(images), *size), np.float32)
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            maps[part] = batch_maps(_as_floats(images[part]), classes[part])
        _check_finite(maps, "The map", "the model's weights are not finite or overflow: look at its training.")
        return maps

    return mapper


def _grad_cam(features, gradients):
    return tf.reduce_mean(gradients, axis=(1, 2), keepdims=True)


def _grad_cam_pp(features, gradients):
    total = tf.reduce_sum(features, axis=(1, 2), keepdims=True)
    # g^2 / (2 g^2 + g^3 total) without its common factor g^2, which underflows; 0 where g is 0, as ReLU(g) makes it.
    alphas = tf.math.divide_no_nan(tf.ones_like(gradients), 2 + gradients * total)
    return tf.reduce_sum(alphas * tf.nn.relu(gradients), axis=(1, 2), keepdims=True)


def _hires_cam(features, gradients):
    return gradients


_WEIGHTS = {"grad_cam": _grad_cam, "grad_cam_pp": _grad_cam_pp, "hires_cam": _hires_cam}


def _as_floats(images):
    return images.astype(np.float32) / 255.0 if images.dtype == np.uint8 else images.astype(np.float32)


def _check_choice(what, value, known):
    if value not in known:
        raise ValueError(f"{what} is {value!r}; expected one of {', '.join(known)}.")


def _check_images(images, input_shape):
    if images.ndim != 4 or images.shape[1:] != input_shape[1:] or len(images) == 0:
        raise ValueError(f"images have shape {images.shape}; the model takes {input_shape}, at least one image.")
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"images are {images.dtype}; expected uint8 (0 to 255) or floats as the model takes them.")
    if images.dtype != np.uint8:
        _check_finite(images, "Image", "look at how it was read.")


def _check_finite(values, what, advice):
    good = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if not good.all():
        raise ValueError(f"{what} number {np.flatnonzero(~good)[0]} holds NaN or infinity; {advice}")


def _checked_classes(classes, num_images, num_classes):
    classes = np.asarray(classes)
    if not np.issubdtype(classes.dtype, np.integer) or classes.shape not in ((), (num_images,)):
        raise ValueError(
            f"classes are {classes.dtype} of shape {classes.shape}; expected one integer, or one for each of "
            f"{num_images} images."
        )
    if classes.min() < 0 or classes.max() >= num_classes:
        raise ValueError(
            f"classes go from {classes.min()} to {classes.max()}; the model knows 0 to {num_classes - 1}."
        )
    return np.broadcast_to(classes, num_images).astype(np.int32)
