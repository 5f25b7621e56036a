"""How a run is protected: the noise that its target epsilon asks for, who adds it, and the budget that pays for it.

Patient level: every hospital runs DP-SGD over its own patients, and sends what is private already. All hospitals take
the same share of their patients a step and the same noise, so that one epsilon holds for the patients of each. Hospital
level: TFF's server clips each hospital's update, adds them up and adds noise; the server itself sees them before.

Not covered: the rounds are chosen on validation data, and settings by trials, from the images of other patients than
those trained on; how many images and patients a hospital has, and the class shares of all together, are told.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from fl_utils.config import ExperimentConfig
from fl_utils.data.types import ImageDataset
from fl_utils.experiments.hospitals import Hospitals
from fl_utils.trust.accounting import epsilon_of
from fl_utils.trust.budget import PrivacyBudget
from fl_utils.trust.noise import Noise, planned_noise


def noise_of(config: ExperimentConfig, dataset: ImageDataset, hospitals: Hospitals) -> Noise:
    """The noise that keeps `config.epsilon` over all rounds; see `trust.noise.planned_noise`."""
    patients = ()
    if config.privacy_unit == "patient":
        patients = [len(np.unique(dataset.groups[index])) for index in hospitals.train]
    return planned_noise(config, patients)


def facts_of(config: ExperimentConfig, dataset: ImageDataset, hospitals: Hospitals) -> dict:
    """For the record: what the run's epsilon is and means; nothing without differential privacy."""
    if config.privacy_unit is None:
        return {}
    noise = noise_of(config, dataset, hospitals)
    spent = epsilon_of(noise.noise_multiplier, noise.terms)
    return {"privacy": {
        "epsilon": round(spent, 4), "noise_multiplier": round(noise.noise_multiplier, 4), "steps": noise.terms.steps,
        "rate": round(noise.terms.rate, 4), "num_units": noise.num_units, "accountant": "pld",
        "statement": noise.terms.statement(spent),
    }}


def trainer_of(config: ExperimentConfig, noise: Noise | None):
    """What trains in a hospital: `LocalTrainer`, or `PrivateTrainer` with its noise."""
    from fl_utils.learning.local import LocalTrainer
    from fl_utils.learning.private import PatientPrivacy, PrivateTrainer

    if config.privacy_unit != "patient":
        return LocalTrainer
    return functools.partial(PrivateTrainer, privacy=PatientPrivacy(
        config.clipping_norm, noise.noise_multiplier, noise.terms.rate, noise.steps_per_round
    ))


def aggregator_of(config: ExperimentConfig, noise: Noise | None):
    """TFF's clipped and noised mean of the hospitals, each of which counts alike; None where updates are averaged as usual.

    TFF draws this noise from the operating system: such a run cannot be repeated to the digit.

    Source: Andrew et al. 2021, arXiv:1905.03871 (adaptive clipping, at the median; part of the noise goes to the count).
    """
    if config.privacy_unit != "hospital":
        return None
    import tensorflow_federated as tff

    factory = tff.aggregators.DifferentiallyPrivateFactory
    if config.adaptive_clipping:
        # The paper's deviation for the count, a twentieth of the cohort, leaves nothing for the updates of few hospitals.
        deviation = max(config.num_clients / 20, noise.noise_multiplier)
        made = factory.gaussian_adaptive(
            noise_multiplier=noise.noise_multiplier, clients_per_round=float(config.num_clients),
            initial_l2_norm_clip=config.clipping_norm, clipped_count_stddev=deviation,
        )
    else:
        made = factory.gaussian_fixed(
            noise_multiplier=noise.noise_multiplier, clients_per_round=float(config.num_clients), clip=config.clipping_norm
        )
    return tff.aggregators.as_weighted_aggregator(made)


class ChargedLearner:
    """A learner whose rounds are charged to a budget before they begin. See `rounds.Learner`.

    Args:
      learner: does the rounds.
      noise: of the run.
      epsilon: the budget.
    """

    def __init__(self, learner, noise: Noise, epsilon: float):
        self._learner, self._noise, self._charged = learner, noise, 0
        self.budget = PrivacyBudget(unit=noise.terms.unit, epsilon=epsilon, delta=noise.terms.delta)

    def do_round(self, round_num: int) -> dict[str, float]:
        """Raises `PrivacyBudgetExceeded`, and trains nothing, where the round would overspend."""
        # After a resume the rounds of before are charged with the first one. At patient level a round that is repeated
        # after a kill gives the same noisy sums again, from the same seed, which tell nothing more. At hospital level
        # its noise is new; what the killed process had computed is taken as never released.
        due = round_num - self._charged
        if due > 0:
            steps = due * self._noise.steps_per_round
            self.budget.charge(self._noise.noise_multiplier, dataclasses.replace(self._noise.terms, steps=steps))
            self._charged = round_num
        return self._learner.do_round(round_num)

    def weights(self) -> list[np.ndarray]:
        return self._learner.weights()

    def state(self) -> list[np.ndarray]:
        return self._learner.state()

    def restore(self, state: Sequence[np.ndarray]) -> None:
        self._learner.restore(state)
