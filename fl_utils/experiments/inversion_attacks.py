"""The work behind `inversion_runs`: a hospital's update as the attacker sees it, and what is made of it. TensorFlow."""

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from fl_utils import seeding
from fl_utils.config import ExperimentConfig
from fl_utils.data.types import ImageDataset
from fl_utils.experiments.inversion_plan import TV_WEIGHT, Condition
from fl_utils.learning.configured import initial_seed
from fl_utils.learning.local import make_predictor
from fl_utils.models.classifiers import build_model
from fl_utils.trust.closed_form import recover_label_counts
from fl_utils.trust.functional import LocalSteps, local_update, pure_function, variant
from fl_utils.trust.inversion import InversionSettings, reconstruct
from fl_utils.trust.matching import score_reconstructions

#: DLG ends by itself earlier; its iterations are dearer.
DLG_ITERATIONS = 300
#: `Condition.plain`.
PLAIN = "small_cnn"


class Attacked:
    """One hospital's images and the model that they are attacked through.

    Args:
      config: of the federation.
      data: its images.
      examples, others: places of the attacked images and of those to compare with.
      trained: weights of the trained model, or None.
    """

    def __init__(self, config: ExperimentConfig, data: ImageDataset, examples, others, trained):
        self._config, self._trained, self._num_classes = config, trained, data.num_classes
        self._images = data.images[examples].astype(np.float32) / 255
        self._labels = data.labels[examples]
        self._others = data.images[others].astype(np.float32) / 255
        shape, seed = data.images.shape[1:], initial_seed(config)
        self._start, self._plain = (build_model(name, shape, data.num_classes, seed=seed) for name in (config.model, PLAIN))

    def attack(
        self, name: str, condition: Condition, noise_multiplier: float | None, clipping_norm: float, iterations: int
    ) -> tuple[pd.DataFrame, np.ndarray]:
        """The scores of one condition, a row an image, and the reconstructions in the order of the images."""
        rounds = [
            self.attack_from(first, name, condition, noise_multiplier, clipping_norm, iterations)
            for first in range(condition.repeats)
        ]
        return pd.concat([table for table, _ in rounds], ignore_index=True), np.concatenate([found for _, found in rounds])

    def attack_from(
        self, first: int, name: str, condition: Condition, noise_multiplier: float | None, clipping_norm: float, iterations: int
    ) -> tuple[pd.DataFrame, np.ndarray]:
        """One attack on the images from place `first` on."""
        # The first one's seed is that of the condition.
        seed = seeding.derive_seed(self._config.seed, "inversion", name, *([first] if first else []))
        images, labels = (part[first : first + condition.images] for part in (self._images, self._labels))
        model, steps = self._model(condition), self._steps(condition)
        change = self._seen(model, images, labels, steps)
        if noise_multiplier is not None:
            change = clipped_and_noised(change, clipping_norm, noise_multiplier, seeding.generator(seed, "noise"))
        method = "cosine_tv" if condition.attack == "cosine_tv" else "dlg"
        settings = InversionSettings(
            method, iterations if method == "cosine_tv" else min(iterations, DLG_ITERATIONS), tv_weight=TV_WEIGHT
        )
        found = reconstruct(model, change, labels, steps=steps, seed=seed, settings=settings)
        table = score_reconstructions(images, found.images, self._others, rng=seeding.generator(seed, "baselines"))
        right, order = self._labels_right(model, change, labels, steps), table["reconstruction"].to_numpy()
        table = table.assign(
            image=table["image"] + first, mismatch=found.mismatch, labels_right=right, duration_s=round(found.duration_s, 1)
        )
        return table, found.images[order]

    def _model(self, condition: Condition) -> keras.Model:
        if condition.plain:
            return self._plain
        if condition.trained:
            model = keras.models.clone_model(self._start)
            model.set_weights(self._trained)
            return model
        if condition.attack == "dlg_smooth":
            return variant(self._start, activation="sigmoid", pooling="average")
        return self._start

    def _steps(self, condition: Condition) -> LocalSteps:
        if condition.batch is None:
            return LocalSteps.one_gradient(condition.images)
        rng = seeding.generator(self._config.seed, "inversion_order")
        orders = [rng.permutation(condition.images) for _ in range(condition.passes)]
        return LocalSteps.epochs(orders, condition.batch, learning_rate=self._config.client_learning_rate)

    def _seen(self, model, images, labels, steps) -> list[np.ndarray]:
        weights = [variable.numpy() for variable in model.trainable_variables]
        truth = tf.one_hot(labels, self._num_classes)
        return [part.numpy() for part in local_update(pure_function(model), weights, tf.constant(images), truth, steps)]

    def _labels_right(self, model, change, labels, steps) -> float:
        """Share of the labels that follow from the last bias; probabilities are guessed on images of noise."""
        noise = seeding.generator(self._config.seed, "inversion_dummies").integers(0, 256, (32, *model.input_shape[1:]))
        mean = make_predictor(model)(noise.astype(np.uint8)).mean(axis=0)
        counts = recover_label_counts(steps.mean_gradient(change)[-1], mean / mean.sum(), len(labels))
        return float(np.minimum(counts, np.bincount(labels, minlength=self._num_classes)).sum() / len(labels))


def clipped_and_noised(change, clipping_norm: float, noise_multiplier: float, rng: np.random.Generator) -> list[np.ndarray]:
    """The change scaled to the norm C at most, with Gaussian noise of deviation z C; arrays of the same shapes."""
    norm = np.sqrt(sum((part.astype(np.float64) ** 2).sum() for part in change))
    scale = min(1.0, clipping_norm / norm)
    deviation = noise_multiplier * clipping_norm
    return [part * scale + deviation * rng.standard_normal(part.shape) for part in change]
