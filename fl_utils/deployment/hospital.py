"""What one hospital computes for the federation, on its own images. Knows nothing of networks."""

import dataclasses
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import tensorflow as tf

from fl_utils.config import ExperimentConfig
from fl_utils.deployment.hospital_data import Part, load_hospital
from fl_utils.learning.client_updates import hospital_update
from fl_utils.learning.configured import local_settings, new_classifier
from fl_utils.learning.local import LocalTrainer, make_predictor
from fl_utils.learning.private import PatientPrivacy, PrivateTrainer
from fl_utils.trust.terms import PrivacyTerms

PARTS = ("validation", "test")


@dataclasses.dataclass(frozen=True)
class Update:
    """What a hospital sends of a round.

    Attributes:
      delta: global - local weights, float32 arrays.
      num_examples: its weight in the mean.
      loss: training loss; 0 with differential privacy, which tells none.
    """

    delta: list[np.ndarray]
    num_examples: int
    loss: float


#: DP-SGD as the server proposes it: noise multiplier, sampling rate, steps of a round. The hospital's budget decides.
NoisePlan = tuple[float, float, int]


class Agreed(Protocol):
    """What a hospital must know of what was agreed on: a Flower federation, a training plan."""

    config: ExperimentConfig
    class_names: tuple[str, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]: ...


class Budget(Protocol):
    """What a hospital asks before it trains with differential privacy; it refuses with an error."""

    def charge(self, noise_multiplier: float, terms: PrivacyTerms) -> float: ...


class Hospital:
    """One hospital: its images, its model in memory, its privacy budget.

    The model and its compiled step stay from round to round.

    Args:
      agreed: on what the federation agreed.
      number: which hospital this is, from 0.
      data: folder of its images (`hospital_data`).
      budget: of its patients; needed where the training has differential privacy, and not used elsewhere.
    Raises:
      DataError: the images cannot be used.
    """

    def __init__(self, agreed: Agreed, number: int, data: Path, *, budget: Budget | None = None):
        self.agreed, self.number = agreed, number
        config = agreed.config
        parts = load_hospital(data, class_names=agreed.class_names, image_size_px=config.image_size_px)
        self._train, self._judged = parts["train"], {name: parts[name] for name in PARTS}
        self._images, self._labels = tf.constant(self._train.images), tf.constant(self._train.labels, tf.int32)
        self._model = new_classifier(config, agreed.image_shape, len(agreed.class_names))
        self._predict = make_predictor(self._model)
        self._trainer, self._noise = None, None
        self._budget = budget if config.privacy_unit else None

    @property
    def num_patients(self) -> int:
        return len(np.unique(self._train.patients))

    def introduction(self) -> dict:
        """What the server is told at the start: how many images of each class, and how many patients. No more."""
        counts = np.bincount(self._train.labels, minlength=len(self.agreed.class_names))
        return {
            "hospital": self.number, "num_examples": len(self._train.labels),
            "class_counts": counts.tolist(), "num_patients": self.num_patients,
        }

    def train(
        self, weights: Sequence[np.ndarray], class_weights: np.ndarray, round_num: int, noise: NoisePlan | None = None
    ) -> Update:
        """One round on the hospital's images: `client_updates.hospital_update`, as in the simulation.

        Args:
          weights: the common model's.
          class_weights: float32 [K], the same at all hospitals.
          round_num: from 1.
          noise: for differential privacy.
        Raises:
          ValueError: noise was not planned, or planned where the hospital has no budget.
          What the budget raises where the round would overspend, or cannot be written; nothing was computed.
        """
        config = self.agreed.config
        self._prepare(noise)
        seed, labels = config.seed, self._labels
        if noise is not None:
            noise_multiplier, rate, steps = noise
            terms = PrivacyTerms("patient", config.delta, steps, "all" if rate == 1 else "poisson", rate)
            self._budget.charge(noise_multiplier, terms)
            # Whoever knows the seed of the noise can take it out again; the server knows the federation's.
            seed = secrets.randbits(31)
            labels = tf.stack([self._labels, tf.constant(self._train.patients, tf.int32)], axis=1)
        result = hospital_update(
            self._trainer, weights, self._images, labels, tf.constant(class_weights), seed=seed, client=str(self.number),
            round_num=round_num,
        )
        return Update([part.numpy() for part in result.delta], len(self._train.labels), float(result.loss))

    def judge(self, weights: Sequence[np.ndarray]) -> dict:
        """How a model does on this hospital's validation and test images, as sums that the server can add up.

        Returns:
          For each part that has images `<part>_confusion`, K x K counts, row by row, true class by predicted one; and
          `<part>_loss`, the sum over images of -log p(true class), p clipped at 1e-7.
        """
        for variable, weight in zip(self._model.trainable_variables + self._model.non_trainable_variables, weights):
            variable.assign(weight)
        sums = {}
        for name, part in self._judged.items():
            if len(part.labels):
                sums |= {f"{name}_{key}": value for key, value in self._sums(part).items()}
        return sums

    def _sums(self, part: Part) -> dict:
        probabilities, number = self._predict(part.images), len(self.agreed.class_names)
        predicted = probabilities.argmax(axis=1)
        confusion = np.bincount(part.labels * number + predicted, minlength=number * number)
        true_class = np.clip(probabilities[np.arange(len(part.labels)), part.labels].astype(np.float64), 1e-7, 1.0)
        return {"confusion": confusion.tolist(), "loss": float(-np.log(true_class).sum())}

    def _prepare(self, noise: NoisePlan | None) -> None:
        if (noise is not None) != (self._budget is not None):
            raise ValueError("The server's plan and this hospital's differ about differential privacy.")
        if self._trainer is not None and noise == self._noise:
            return
        settings, config = local_settings(self.agreed.config), self.agreed.config
        self._noise = noise
        if noise is None:
            self._trainer = LocalTrainer(self._model, settings)
        else:
            self._trainer = PrivateTrainer(self._model, settings, privacy=PatientPrivacy(config.clipping_norm, *noise))
