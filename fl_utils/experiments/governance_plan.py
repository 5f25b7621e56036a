"""Notebook 09's runs as data: one plan without and one with differential privacy, for hospitals from different sources.

Without privacy it is the natural federation of notebook 03 (`grid.beside_the_grid`), so that its simulated records are the
counterpart of the governed ones. With privacy the model has GroupNorm (see `privacy_plan`), and its rate is chosen by
three simulated trials on validation data.
"""

import dataclasses

from fl_utils.config import ExperimentConfig
from fl_utils.experiments.grid import GRIDS, configs_03, grid_config
from fl_utils.experiments.plans import TUNING_SEED, best_trial
from fl_utils.experiments.privacy_plan import PATIENT_NORM, PATIENT_RATES

#: Experiment folders: simulated runs with privacy, their trials, and governed runs of either kind.
PRIVATE, PRIVATE_TUNING, GOVERNED = "governance_simulated", "governance_tuning", "governance"


@dataclasses.dataclass(frozen=True)
class GovernanceSettings:
    """How large notebook 09 is in a profile.

    Attributes:
      dataset: whose images are dealt.
      num_hospitals, partition: how.
      seeds, private_seeds: of the governed runs without and with privacy.
      private: fields of the configuration with patient-level privacy.
      tuned: whether its rate is chosen by trials.
    """

    dataset: str
    num_hospitals: int
    seeds: tuple[int, ...]
    private_seeds: tuple[int, ...]
    private: dict
    partition: str = "natural"
    tuned: bool = False


#: delta is below 1 / patients of the largest hospital, else its store refuses the budget.
_PRIVATE = {
    "privacy_unit": "patient", "epsilon": 8.0, "clipping_norm": PATIENT_NORM, "delta": 1e-4, "model": "norm_cnn_group",
    "client_batch_size": 64, "client_learning_rate": 0.3,
}
SETTINGS = {
    "smoke": GovernanceSettings("phantom_chest", 2, (0, 1), (0,), _PRIVATE | {"client_batch_size": 8, "delta": 5e-3}, partition="iid"),
    "quick": GovernanceSettings("phantom_chest", 4, (0, 1), (0, 1), _PRIVATE | {"client_batch_size": 32, "delta": 1e-3}),
    "paper": GovernanceSettings("xray_sites", 3, (0, 1, 2, 3, 4), (0, 1, 2, 3, 4), _PRIVATE, tuned=True),
}
#: Of the profiles on phantoms: images and rounds.
_SIZES = {"smoke": {"num_images": 240, "total_rounds": 2, "image_size_px": 24}, "quick": {"num_images": 600, "total_rounds": 8, "image_size_px": 32}}


def simulated_configs(profile: str) -> list[ExperimentConfig]:
    """The simulation beside the governed runs: pooled, each hospital alone, FedAvg; every seed."""
    settings = SETTINGS[profile]
    if profile == "paper":
        wanted = ("centralized", "local", "fedavg")
        found = [config for config in configs_03(profile, "chest_xray", progress=False) if config.dataset == settings.dataset]
        return [config for config in found if config.method in wanted]
    arms = [("centralized", "pooled", 1), ("local", settings.partition, settings.num_hospitals), ("fedavg", settings.partition, settings.num_hospitals)]
    return [
        _phantoms(profile, method=method, partition=partition, num_clients=clients, seed=seed, client_learning_rate=0.1)
        for seed in settings.seeds for method, partition, clients in arms
    ]


def plain_config(profile: str, seed: int) -> ExperimentConfig:
    """The governed training without differential privacy."""
    return next(config for config in simulated_configs(profile) if config.method == "fedavg" and config.seed == seed)


def private_config(profile: str, seed: int, **fields) -> ExperimentConfig:
    """The governed training with patient-level privacy; `fields` add and override."""
    settings = SETTINGS[profile]
    if profile == "paper":
        common = {"dataset": settings.dataset, "method": "fedavg", "partition": "natural", "num_clients": settings.num_hospitals, "seed": seed}
        return grid_config(profile, "chest_xray", **common, **settings.private | fields)
    return _phantoms(
        profile, method="fedavg", partition=settings.partition, num_clients=settings.num_hospitals, seed=seed, **settings.private | fields
    )


def tuning_configs(profile: str) -> list[ExperimentConfig]:
    """The trials of the private plan's rate; none where nothing is tuned."""
    if not SETTINGS[profile].tuned:
        return []
    return [private_config(profile, TUNING_SEED, client_learning_rate=rate) for rate in PATIENT_RATES]


def tuned_private(profile: str, progress: bool = False) -> tuple[dict, dict]:
    """The rate with the best validation score, and how it was found, for the record; see `plans.best_trial`."""
    if not SETTINGS[profile].tuned:
        return {}, {}
    trials = [{"client_learning_rate": rate} for rate in PATIENT_RATES]
    return best_trial(trials, tuning_configs(profile), experiment=PRIVATE_TUNING, progress=progress, name="governed private plan", facts={})


def private_configs(profile: str) -> list[ExperimentConfig]:
    """The plan with privacy, every seed."""
    chosen, _ = tuned_private(profile)
    return [private_config(profile, seed, **chosen) for seed in SETTINGS[profile].private_seeds]


def _phantoms(profile: str, **fields) -> ExperimentConfig:
    return grid_config(profile, next(iter(GRIDS[profile].total_rounds)), **{"dataset": SETTINGS[profile].dataset, **_SIZES[profile], **fields})
