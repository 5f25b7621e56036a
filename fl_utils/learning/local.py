"""What one hospital computes: plain TensorFlow, no `tff.*`.

Centralized training, local-only training, the TFF simulation and any real deployment call
the same functions. One pass is a pure function of (weights, images, labels, seed): the order
of the examples and their augmentation come from stateless random operations.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class LocalSettings:
    """How a hospital trains.

    Attributes:
      batch_size: examples a gradient step; the last batch of an epoch may be smaller.
      epochs: passes over the hospital's examples in one round.
      learning_rate: of SGD.
      momentum: of SGD, classical form v <- m v + g; w <- w - lr v.
      augment: the augmentation's name: "none", "shift_rotate" or "shift_rotate_flip".
      proximal_strength: mu of FedProx: mu (w - w_start) is added to each gradient. Li et al. 2020, arXiv:1812.06127.
      norm_statistics: what becomes of BatchNorm's running statistics, which no gradient trains: "averaged" (they are
        weights like others) or "dropped" (each round starts at the initial ones, as in TFF). None refuses such models.
    """

    batch_size: int = 32
    epochs: int = 1
    learning_rate: float = 0.05
    momentum: float = 0.9
    augment: str = "none"
    proximal_strength: float = 0.0
    norm_statistics: str | None = None


def augment_batch(images: tf.Tensor, seed: tf.Tensor, kind: str) -> tf.Tensor:
    """Small rotations, shifts, zooms and contrast changes, as a second exposure would give.

    Args:
      images: float32 [N, H, W, C] in [0, 1].
      seed: int32 [2].
      kind: "none", "shift_rotate", or "shift_rotate_flip" (left-right too; not for chest
        X-rays, where the heart's side carries meaning).
    Returns:
      float32 [N, H, W, C] in [0, 1].
    Raises:
      ValueError: the kind is not known.
    """
    if kind == "none":
        return images
    transforms, draws = draw_transforms(images, seed, kind)
    images = move(images, transforms, interpolation="BILINEAR", fill_mode="NEAREST")
    contrast = (1.0 + 0.1 * draws[5])[:, None, None, None]
    brightness = (0.05 * draws[6])[:, None, None, None]
    return tf.clip_by_value((images - 0.5) * contrast + 0.5 + brightness, 0.0, 1.0)


def draw_transforms(images: tf.Tensor, seed: tf.Tensor, kind: str) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Draws a small rotation, zoom and shift, and for "shift_rotate_flip" a left-right flip, for each image.

    Returns:
      (float32 [N, 8], what `move` takes; 7 draws in [-1, 1], float32 [N] each, of which the last two are unused here).
    Raises:
      ValueError: the kind is not known.
    """
    if kind not in ("shift_rotate", "shift_rotate_flip"):
        raise ValueError(f"Augmentation {kind!r} is not known; expected none, shift_rotate or shift_rotate_flip.")
    shape = tf.shape(images)
    number, height, width = shape[0], tf.cast(shape[1], tf.float32), tf.cast(shape[2], tf.float32)
    # One draw of 7 numbers an image, uniform in [-1, 1].
    draws = tf.unstack(tf.random.stateless_uniform([number, 7], seed, -1.0, 1.0), axis=1)
    angle = draws[0] * (6.0 * math.pi / 180.0)
    scale = 1.0 + 0.05 * draws[1]
    shift_x, shift_y = 0.04 * width * draws[2], 0.04 * height * draws[3]
    flip = tf.where(draws[4] < 0, -1.0, 1.0) if kind == "shift_rotate_flip" else tf.ones([number])
    # Output (x, y) is read at input (a x + b y + c, d x + e y + f), about the image's centre.
    cos, sin = tf.cos(angle) * scale, tf.sin(angle) * scale
    centre_x, centre_y = (width - 1.0) / 2.0, (height - 1.0) / 2.0
    a, b, d, e = cos * flip, -sin, sin * flip, cos
    c = centre_x - a * centre_x - b * centre_y + shift_x
    f = centre_y - d * centre_x - e * centre_y + shift_y
    zero = tf.zeros([number])
    return tf.stack([a, b, c, d, e, f, zero, zero], axis=1), draws


def move(images: tf.Tensor, transforms: tf.Tensor, *, interpolation: str, fill_mode: str) -> tf.Tensor:
    """Images [N, H, W, C] under `draw_transforms`'s transforms; outside is 0 or, for fill mode "NEAREST", the edge."""
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images, transforms=transforms, output_shape=tf.shape(images)[1:3], fill_value=0.0,
        interpolation=interpolation, fill_mode=fill_mode,
    )


def example_order(num_examples: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """The order of one epoch: an int32 permutation of range(num_examples) from an int32 [2] seed."""
    return tf.random.experimental.stateless_shuffle(tf.range(num_examples), seed)


def read_client_files(data: tf.Tensor, image_shape: tuple[int, int, int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Reads, inside the graph, what `client_files.write_client_files` wrote.

    Returns:
      (images uint8 [N, H, W, C], labels int32 [N]).
    """
    images = tf.io.decode_raw(tf.io.read_file(data + ".images"), tf.uint8)
    labels = tf.io.decode_raw(tf.io.read_file(data + ".labels"), tf.int32)
    return tf.reshape(images, [-1, *image_shape]), labels


class LocalTrainer:
    """Runs passes of SGD on one classifier; the model's variables are the working memory.

    `segmentation.SliceTrainer` does the same for segmenters: what differs is where examples come from, what is done to
    them, and the loss.

    Args:
      model: a Keras model that gives logits.
      settings: how to train.
    Attributes:
      variables: what gradients train.
      weights: what travels: the variables, and BatchNorm statistics where they are averaged.
    Raises:
      ValueError: the model has weights that SGD does not train (BatchNorm statistics), and the settings do not say
        what becomes of them.
    """

    def __init__(self, model: keras.Model, settings: LocalSettings):
        if model.non_trainable_weights and settings.norm_statistics is None:
            names = ", ".join(weight.name for weight in model.non_trainable_weights[:4])
            raise ValueError(
                f"The model has weights that are not trained by gradients ({names}). Averaging or dropping "
                "BatchNorm statistics silently changes the result; use GroupNorm, or set norm_statistics."
            )
        self.model, self.settings = model, settings
        self.variables = model.trainable_variables
        self.weights = travelling_weights(model, settings)
        # Statistics that do not travel go back to where they started, mean 0 and variance 1, in every round.
        dropped = settings.norm_statistics == "dropped"
        self._dropped = [(v, 1.0 if "variance" in v.name else 0.0) for v in model.non_trainable_variables if dropped]
        self.momenta = [tf.Variable(tf.zeros(v.shape), trainable=False) for v in self.variables]

    @tf.function(reduce_retracing=True)
    def run(
        self, images: tf.Tensor, labels: tf.Tensor, class_weights: tf.Tensor, seed: tf.Tensor, correction=()
    ) -> tf.Tensor:
        """`settings.epochs` passes from the variables' present values.

        Args:
          images: uint8 [N, H, W, C].
          labels: int32 [N], classes 0..K-1.
          class_weights: float32 [K], the weight of each class in the loss.
          seed: int32 [2]; the only source of randomness.
          correction: one tensor a variable that is added to every gradient (control variates, fixed momentum), or ().
        Returns:
          The weighted training loss, float32 scalar: mean over all examples seen.
        """
        num_examples = tf.shape(labels)[0]
        total = tf.constant(0.0)
        mu = self.settings.proximal_strength
        start_weights = [tf.identity(variable) for variable in self.variables] if mu else ()
        for epoch in tf.range(self.settings.epochs):
            epoch_seed = tf.random.experimental.stateless_fold_in(seed, epoch)
            total = self._pass(total, images, labels, class_weights, epoch_seed, correction, start_weights)
        return total / tf.cast(num_examples * self.settings.epochs, tf.float32)

    def _pass(self, total, images, labels, class_weights, seed, correction, start_weights) -> tf.Tensor:
        """Every example once, in the seed's order; adds their losses to `total`."""
        num_examples, batch_size = tf.shape(labels)[0], self.settings.batch_size
        order = example_order(num_examples, seed)
        for start in tf.range(0, num_examples, batch_size):
            index = order[start : tf.minimum(start + batch_size, num_examples)]
            batch_seed = tf.random.experimental.stateless_fold_in(seed, start + 1)
            batch, truth = self._prepare(tf.gather(images, index), tf.gather(labels, index), batch_seed)
            loss = self._step(batch, truth, class_weights, correction, start_weights)
            total += loss * tf.cast(tf.size(index), tf.float32)
        return total

    def _prepare(self, images, labels, seed) -> tuple[tf.Tensor, tf.Tensor]:
        """What the model is given of a batch, augmented, and what is expected of it."""
        return augment_batch(tf.cast(images, tf.float32) / 255.0, seed, self.settings.augment), labels

    def _loss(self, logits, labels, class_weights) -> tf.Tensor:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
        return tf.reduce_mean(losses * tf.gather(class_weights, labels))

    def read(self, data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """A client's examples, `images` and `labels` of `run`, by its path prefix; inside the graph."""
        return read_client_files(data, self.model.input_shape[1:])

    def num_steps(self, num_examples: tf.Tensor) -> tf.Tensor:
        """Gradient steps of one `run`, int32."""
        batches = -(-num_examples // self.settings.batch_size)
        return self.settings.epochs * batches

    @tf.function(reduce_retracing=True)
    def full_gradient(self, images, labels, class_weights, seed) -> tuple[list[tf.Tensor], tf.Tensor]:
        """The gradient of the mean loss over all examples at the present weights, and that loss; nothing is changed.

        Args: as in `run`.
        """
        num_examples = tf.shape(labels)[0]
        total, sums = tf.constant(0.0), [tf.zeros(variable.shape) for variable in self.variables]
        # In batches, for memory; large ones, for speed.
        for start in tf.range(0, num_examples, 256):
            end = tf.minimum(start + 256, num_examples)
            batch_seed = tf.random.experimental.stateless_fold_in(seed, start)
            batch, truth = self._prepare(images[start:end], labels[start:end], batch_seed)
            gradients, loss = self._gradient(batch, truth, class_weights)
            share = tf.cast(end - start, tf.float32) / tf.cast(num_examples, tf.float32)
            sums = [s + share * g for s, g in zip(sums, gradients, strict=True)]
            total += share * loss
        return sums, total

    def _gradient(self, images, labels, class_weights):
        with tf.GradientTape() as tape:
            loss = self._loss(self.model(images, training=True), labels, class_weights)
        return tape.gradient(loss, self.variables), loss

    def _step(self, images, labels, class_weights, correction, start_weights):
        gradients, loss = self._gradient(images, labels, class_weights)
        if correction:
            gradients = [g + c for g, c in zip(gradients, correction, strict=True)]
        if start_weights:
            mu = self.settings.proximal_strength
            gradients = [g + mu * (v - w) for g, v, w in zip(gradients, self.variables, start_weights, strict=True)]
        self._apply(gradients)
        return loss

    def _apply(self, gradients) -> None:
        """One step of SGD with momentum."""
        for variable, momentum, gradient in zip(self.variables, self.momenta, gradients, strict=True):
            # One fused pass over the memory; the dense layer alone is 8 MB.
            tf.raw_ops.ResourceApplyMomentum(
                var=variable.handle, accum=momentum.handle, grad=gradient,
                lr=self.settings.learning_rate, momentum=self.settings.momentum,
            )

    def set_weights(self, weights: Sequence) -> None:
        """Copies `weights` (one tensor a travelling weight) into the model."""
        for variable, weight in zip(self.weights, weights, strict=True):
            variable.assign(weight)
        for variable, initial in self._dropped:
            variable.assign(tf.fill(variable.shape, initial))

    def reset_momentum(self) -> None:
        """Sets the momentum to zero, as at the start of each round at a client."""
        for momentum in self.momenta:
            momentum.assign(tf.zeros_like(momentum))


def travelling_weights(model: keras.Model, settings: LocalSettings) -> list[tf.Variable]:
    """The weights that hospitals and server exchange; see `LocalTrainer.weights`."""
    statistics = model.non_trainable_variables if settings.norm_statistics == "averaged" else []
    return model.trainable_variables + statistics


def class_weights(labels: np.ndarray, num_classes: int, *, enabled: bool = True) -> np.ndarray:
    """Weights that make each class count alike: N / (K_present n_k); their mean over examples is 1.

    Args:
      labels: int [N].
      num_classes: K.
      enabled: False gives ones.
    Returns:
      float32 [K]; 0 for a class that is absent.
    Source: the "balanced" heuristic of King and Zeng 2001, as in scikit-learn.
    """
    return weights_of_counts(np.bincount(labels, minlength=num_classes), enabled=enabled)


def weights_of_counts(counts: np.ndarray, *, enabled: bool = True) -> np.ndarray:
    """`class_weights` from the number of examples of each class, int [K]."""
    counts = np.asarray(counts, np.float64)
    if not enabled:
        return np.ones(len(counts), np.float32)
    present = counts > 0
    weights = np.zeros(len(counts))
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return weights.astype(np.float32)


def make_predictor(model: keras.Model, batch_size: int = 256) -> Callable[[np.ndarray], np.ndarray]:
    """A function from uint8 images [N, H, W, C] to class probabilities float32 [N, K]."""

    @tf.function(reduce_retracing=True)
    def probabilities(images):
        return tf.nn.softmax(model(tf.cast(images, tf.float32) / 255.0, training=False))

    def predict(images: np.ndarray) -> np.ndarray:
        parts = [probabilities(images[i : i + batch_size]) for i in range(0, len(images), batch_size)]
        return np.concatenate([part.numpy() for part in parts])

    return predict
