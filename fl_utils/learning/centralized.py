"""Training without a federation: the pooled data, or one hospital alone."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from fl_utils import seeding
from fl_utils.learning.local import LocalSettings, LocalTrainer


class CentralizedLearner:
    """Plain SGD on one set of images; a round is `settings.epochs` passes. See `rounds.Learner`.

    Unlike a client of a federation it keeps its momentum from round to round.

    Args:
      model: starts from its present weights.
      settings: how to train.
      images, labels: as the trainer takes them: uint8 [N, H, W, C] and int [N] for `LocalTrainer`.
      class_weights: float32 [K].
      seed: root seed of the run.
      client: name of the data in the records, "all" or the hospital's number.
      trainer_type: `LocalTrainer` for classifiers, `segmentation.SliceTrainer` for segmenters.
    """

    def __init__(
        self, model: keras.Model, settings: LocalSettings, images: np.ndarray, labels: np.ndarray,
        class_weights: np.ndarray, *, seed: int, client: str = "all", trainer_type: type[LocalTrainer] = LocalTrainer,
    ):
        self._trainer = trainer_type(model, settings)
        self._data = (tf.constant(images), tf.constant(labels, tf.int32), tf.constant(class_weights))
        self._seed, self._client = seed, client

    def do_round(self, round_num: int) -> dict[str, float]:
        seed = tf.constant(seeding.tf_seed(self._seed, "batch_order", self._client, round_num))
        return {self._client: float(self._trainer.run(*self._data, seed))}

    def weights(self) -> list[np.ndarray]:
        return [variable.numpy() for variable in self._trainer.weights]

    def state(self) -> list[np.ndarray]:
        return self.weights() + [momentum.numpy() for momentum in self._trainer.momenta]

    def restore(self, state: Sequence[np.ndarray]) -> None:
        for variable, value in zip(self._trainer.weights + self._trainer.momenta, state, strict=True):
            variable.assign(value)
