"""The noise that a run's target epsilon asks for, planned before training from how many patients the hospitals have."""

import dataclasses
from collections.abc import Sequence

from fl_utils.config import ExperimentConfig
from fl_utils.trust.accounting import noise_multiplier_for
from fl_utils.trust.terms import PrivacyTerms, hospital_terms, patient_terms


@dataclasses.dataclass(frozen=True)
class Noise:
    """The noise of a run with differential privacy.

    Attributes:
      terms: what epsilon is about, over all rounds.
      noise_multiplier: z, the smallest that keeps epsilon; see `trust.terms`.
      steps_per_round: noisy sums of a round.
      num_units: patients of the smallest hospital, or hospitals.
    """

    terms: PrivacyTerms
    noise_multiplier: float
    steps_per_round: int
    num_units: int


def planned_noise(config: ExperimentConfig, num_patients: Sequence[int]) -> Noise:
    """The noise that keeps `config.epsilon` over all rounds.

    Args:
      config: of the run.
      num_patients: one number a hospital, of its training patients; not used at hospital level.
    Raises:
      ValueError: the run has no differential privacy, or its delta is too large for so few patients or hospitals.
    """
    if config.privacy_unit is None:
        raise ValueError("The run has no differential privacy: its privacy_unit is None.")
    if config.privacy_unit == "hospital":
        terms = hospital_terms(num_hospitals=config.num_clients, rounds=config.total_rounds, delta=config.delta)
        return Noise(terms, noise_multiplier_for(config.epsilon, terms), 1, config.num_clients)
    # The smallest hospital takes the largest share of its patients a step; all follow it.
    smallest = min(num_patients)
    drawn = min(config.client_batch_size, smallest)
    steps = max(1, round(config.client_epochs_per_round * smallest / drawn))
    terms = patient_terms(
        num_patients=smallest, patients_per_step=drawn, steps=steps * config.total_rounds, delta=config.delta
    )
    return Noise(terms, noise_multiplier_for(config.epsilon, terms), steps, smallest)
