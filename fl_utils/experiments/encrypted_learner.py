"""FedAvg whose updates nobody but the sending hospital can read: in each round they are added by CKKS."""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from fl_utils.learning.client_updates import hospital_update
from fl_utils.learning.local import LocalSettings
from fl_utils.trust.encrypted import new_federation


class EncryptedLearner:
    """A federation without TFF: each hospital trains, encrypts, and decrypts the mean. See `rounds.Learner`.

    The hospitals compute what they compute in `federated.FederatedLearner`, from the same seeds, so that the weights
    agree with those of the plain federation up to rounding. Keys are made anew for every process, which a resumed run is.

    Args:
      model: starts from its present weights.
      settings: of the hospitals' training.
      images, labels: one array a hospital, as the trainer takes them.
      class_weights: float32 [K].
      seed: root seed of the run.
      trainer_type: makes the trainer from model and settings.
    """

    def __init__(
        self, model: keras.Model, settings: LocalSettings, images: Sequence[np.ndarray], labels: Sequence[np.ndarray],
        class_weights: np.ndarray, *, seed: int, trainer_type: Callable,
    ):
        self._trainer = trainer_type(model, settings)
        self._data = [(tf.constant(i), tf.constant(k, tf.int32)) for i, k in zip(images, labels, strict=True)]
        self._class_weights, self._seed = tf.constant(class_weights), seed
        self._weights = [weight.numpy() for weight in self._trainer.weights]
        names = [f"hospital {number}" for number in range(len(self._data))]
        self._hospitals, self._server = new_federation(names)
        #: Bytes that each hospital sent and received in the last round.
        self.upload_bytes: list[int] = []
        self.download_bytes: list[int] = []

    def do_round(self, round_num: int) -> dict[str, float]:
        losses, sent = {}, {}
        for client, (name, hospital) in enumerate(self._hospitals.items()):
            result = hospital_update(
                self._trainer, self._weights, *self._data[client], self._class_weights, seed=self._seed,
                client=str(client), round_num=round_num,
            )
            losses[str(client)] = float(result.loss)
            delta = [part.numpy() for part in result.delta]
            sent[name] = hospital.encrypt_update(delta, weight=float(result.num_examples), round_num=round_num)
        back = self._server.add(sent, round_num=round_num)
        self.upload_bytes = [len(message) for message in sent.values()]
        self.download_bytes = [len(message) for message in back.values()]
        # Every hospital decrypts the same sum; here the first one does it for all.
        name, hospital = next(iter(self._hospitals.items()))
        mean = hospital.decrypt_mean(back[name], round_num=round_num, shapes=[weight.shape for weight in self._weights])
        self._weights = [weight - part.astype(np.float32) for weight, part in zip(self._weights, mean, strict=True)]
        return losses

    def weights(self) -> list[np.ndarray]:
        return list(self._weights)

    def state(self) -> list[np.ndarray]:
        return self.weights()

    def restore(self, state: Sequence[np.ndarray]) -> None:
        self._weights = list(state)
