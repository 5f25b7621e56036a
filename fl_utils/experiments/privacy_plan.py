"""Notebook 06's runs as data: what is protected how, the shadow models of the membership attack, the trials.

All arms are one classifier with GroupNorm (DP-SGD hardly trains the same network without: De et al. 2022,
arXiv:2204.13650, and seen here on validation data), trained by FedAvg over the same hospitals, with as many passes over the images or, with
patient-level privacy, over the patients. None augments: the inversion attack is given no augmentation to guess. Classes
weigh alike; the federation's class shares, from which that follows, are taken as public.
"""

import dataclasses
from collections.abc import Callable

import pandas as pd

from fl_utils.config import NUM_SHADOWS, ExperimentConfig, make_config
from fl_utils.experiments.plans import TUNING_SEED, best_trial, validation_score

#: Experiment folders of the runs.
PRIVACY = "privacy"
PRIVACY_TUNING = "privacy_tuning"
PRIVACY_SHADOWS = "privacy_shadows"
NUM_HOSPITALS, MANY_HOSPITALS = 5, 50
#: Passes a round of the arm that trains longer between rounds.
LONGER_EPOCHS = 4
EPSILONS = (8, 3, 1)
HOSPITAL_EPSILON, HOSPITAL_DELTA = 8.0, 1e-2
#: The settings that are chosen on validation data, three trials each; a clipped gradient takes larger steps.
RATES = (0.02, 0.06, 0.2)
PATIENT_RATES = (0.1, 0.3, 1.0)
HOSPITAL_NORMS = (0.01, 0.1, 1.0)
#: Of each patient's gradient.
PATIENT_NORM = 1.0


@dataclasses.dataclass(frozen=True)
class DatasetSettings:
    """What differs between data sets.

    Attributes:
      total_rounds: a multiple of LONGER_EPOCHS.
      patients_per_step, delta: of patient-level privacy.
      left_out: arms of the profile that are not run here.
    """

    total_rounds: int
    patients_per_step: int
    delta: float
    left_out: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class PrivacySettings:
    """How large a profile is.

    Attributes:
      seeds: of the reported runs.
      datasets: name -> settings.
      arms: names of `ARMS`.
      membership_arms: arm -> how many of the shadow models are trained; with all NUM_SHADOWS LiRA is run.
      image_size_px, num_images: see `ExperimentConfig`.
      tuned: whether settings are chosen by trials (else `UNTUNED`).
    """

    seeds: tuple[int, ...]
    datasets: dict[str, DatasetSettings]
    arms: tuple[str, ...]
    membership_arms: dict[str, int]
    image_size_px: int = 32
    num_images: int | None = None
    tuned: bool = False


def _patient(epsilon: int) -> dict:
    return {"privacy_unit": "patient", "epsilon": float(epsilon), "clipping_norm": PATIENT_NORM}


def _hospital(**fields) -> dict:
    return {
        "privacy_unit": "hospital", "epsilon": HOSPITAL_EPSILON, "delta": HOSPITAL_DELTA, "clipping_norm": 0.1, **fields
    }


#: What is compared: name -> fields of the configuration.
ARMS = {
    "none": {},
    "longer": {"client_epochs_per_round": LONGER_EPOCHS},
    **{f"patient_{epsilon}": _patient(epsilon) for epsilon in EPSILONS},
    "hospital_few": _hospital(),
    "hospital_few_adaptive": _hospital(adaptive_clipping=True),
    "encrypted": {"encrypted": True},
    "both": {**_patient(EPSILONS[0]), "encrypted": True},
    "local": {"method": "local", "client_epochs_per_round": LONGER_EPOCHS},
    "none_many": {"num_clients": MANY_HOSPITALS},
    "hospital_many": _hospital(num_clients=MANY_HOSPITALS),
    "hospital_many_adaptive": _hospital(num_clients=MANY_HOSPITALS, adaptive_clipping=True),
}
#: Arms that take the settings of another one: the same training added up in secret, another epsilon, or a clipping norm
#: that adapts by itself.
TUNED_AS = {
    "encrypted": "none", "both": "patient_3", "patient_8": "patient_3", "patient_1": "patient_3",
    "hospital_few_adaptive": "none", "hospital_many_adaptive": "none_many",
}
#: Middle values, where nothing is tuned.
UNTUNED = {
    arm: {"client_learning_rate": 0.3 if fields.get("privacy_unit") == "patient" else 0.06} for arm, fields in ARMS.items()
}

#: Fifty hospitals of ten patients each would be no hospitals; the last two for the time they take.
_NOT_ON_BRAIN = ("none_many", "hospital_many", "hospital_many_adaptive", "hospital_few_adaptive", "both")
_MEMBERSHIP = {"none": NUM_SHADOWS, "longer": 5, "patient_8": NUM_SHADOWS, "patient_1": 5, "hospital_few": 5}
SETTINGS = {
    "smoke": PrivacySettings(
        (0, 1), {"phantom_chest": DatasetSettings(2, 8, 1e-2)}, ("none", "patient_8", "hospital_few", "encrypted"),
        {"none": 2}, image_size_px=24, num_images=320,
    ),
    "quick": PrivacySettings(
        (0, 1), {"phantom_chest": DatasetSettings(8, 32, 1e-3)},
        ("none", "patient_8", "patient_1", "hospital_few", "encrypted", "local"), {"none": NUM_SHADOWS, "patient_8": 3},
        num_images=600,
    ),
    "paper": PrivacySettings(
        (0, 1, 2, 3, 4),
        {"chest_xray": DatasetSettings(8, 128, 1e-4), "brain_mri": DatasetSettings(16, 64, 1e-3, _NOT_ON_BRAIN)}, tuple(ARMS),
        _MEMBERSHIP, tuned=True,
    ),
}


def datasets_of(profile: str) -> tuple[str, ...]:
    """The data sets of a profile's plan."""
    return tuple(SETTINGS[profile].datasets)


def arms_of(profile: str, dataset: str) -> tuple[str, ...]:
    """The arms that are run on a data set."""
    settings = SETTINGS[profile]
    return tuple(arm for arm in settings.arms if arm not in settings.datasets[dataset].left_out)


def privacy_config(profile: str, dataset: str, arm: str, seed: int, **fields) -> ExperimentConfig:
    """The configuration of one arm and seed; `fields` adds and overrides.

    Raises:
      ConfigError: see `make_config`.
    """
    settings, of_data = SETTINGS[profile], SETTINGS[profile].datasets[dataset]
    own = {"method": "fedavg", "num_clients": NUM_HOSPITALS, "client_epochs_per_round": 1, **ARMS[arm]}
    private = own.get("privacy_unit") == "patient"
    return make_config(**{
        "dataset": dataset, "profile": profile, "seed": seed, "partition": "iid", "model": "norm_cnn_group",
        "image_size_px": settings.image_size_px, "num_images": settings.num_images,
        "total_rounds": of_data.total_rounds // own["client_epochs_per_round"],
        "client_batch_size": of_data.patients_per_step if private else 16, "client_momentum": 0.0, "augment": False,
        **({"delta": of_data.delta} if private else {}), **own, **fields,
    })


def trials_of(arm: str) -> list[dict]:
    """The settings that are tried for an arm."""
    fields = ARMS[arm]
    if fields.get("privacy_unit") == "hospital" and not fields.get("adaptive_clipping"):
        return [{"client_learning_rate": RATES[1], "clipping_norm": norm} for norm in HOSPITAL_NORMS]
    return [{"client_learning_rate": rate} for rate in (PATIENT_RATES if fields.get("privacy_unit") == "patient" else RATES)]


def tuning_configs(profile: str, dataset: str) -> list[ExperimentConfig]:
    """The trials of all arms of a profile; none where it is not tuned."""
    return [
        privacy_config(profile, dataset, arm, TUNING_SEED, **trial)
        for arm in arms_of(profile, dataset) if SETTINGS[profile].tuned and arm not in TUNED_AS for trial in trials_of(arm)
    ]


def tuned(profile: str, dataset: str, arm: str, progress: bool = False) -> tuple[dict, dict]:
    """The trial with the best balanced accuracy on validation data, and how it was found, for the record.

    A trial that diverged is out.

    Returns:
      (fields of a configuration, {"tuning": {seed, trials: [{..., score}]}}).
    Raises:
      TrainingError: every trial diverged.
    """
    arm = TUNED_AS.get(arm, arm)
    if not SETTINGS[profile].tuned:
        return UNTUNED[arm], {}
    trials = trials_of(arm)
    configs = [privacy_config(profile, dataset, arm, TUNING_SEED, **trial) for trial in trials]
    return best_trial(
        trials, configs, name=f"{dataset} {arm}", experiment=PRIVACY_TUNING, progress=progress,
        score=lambda record: round(validation_score(record), 4),
    )


def tuning_facts(profile: str, dataset: str) -> Callable[[ExperimentConfig], dict]:
    """A function of a configuration: how its settings were chosen, for its record."""
    facts = {arm: tuned(profile, dataset, arm)[1] for arm in arms_of(profile, dataset)}
    return lambda config: {"arm": arm_of(config), **facts[arm_of(config)]}


def arm_of(config: ExperimentConfig) -> str:
    """The name in `ARMS` of a run's protection.

    Raises:
      ValueError: the configuration is not of this plan.
    """
    for arm, fields in ARMS.items():
        whole = {
            "method": "fedavg", "num_clients": NUM_HOSPITALS, "client_epochs_per_round": 1, "privacy_unit": None,
            "epsilon": None, "encrypted": False, "adaptive_clipping": False, **fields,
        }
        if all(getattr(config, name) == value for name, value in whole.items() if name != "clipping_norm"):
            return arm
    raise ValueError(f"{config.dataset} {config.method} with privacy_unit {config.privacy_unit!r} is no arm of notebook 06.")


def configs_06(profile: str, dataset: str, progress: bool = False) -> list[ExperimentConfig]:
    """The arms of all seeds, seed by seed."""
    chosen = {arm: tuned(profile, dataset, arm, progress)[0] for arm in arms_of(profile, dataset)}
    return [
        privacy_config(profile, dataset, arm, seed, **fields) for seed in SETTINGS[profile].seeds for arm, fields in chosen.items()
    ]


def shadow_configs(profile: str, dataset: str, progress: bool = False) -> list[ExperimentConfig]:
    """The shadow models of the membership attack: each trains on its half of the training patients, in half of the batch."""
    return [
        shadow_config(profile, dataset, arm, number, progress)
        for arm, number_of in SETTINGS[profile].membership_arms.items() for number in range(number_of)
    ]


def shadow_config(profile: str, dataset: str, arm: str, number: int, progress: bool = False) -> ExperimentConfig:
    """One shadow model: its number is its seed, so that hospitals, start and batches differ as well."""
    config = privacy_config(profile, dataset, arm, number, **tuned(profile, dataset, arm, progress)[0])
    fields = {"shadow": number}
    if config.privacy_unit == "patient":  # the same share of the patients a step, so the same noise multiplier
        fields["client_batch_size"] = max(1, config.client_batch_size // 2)
    return make_config(**(config.model_dump() | fields))


def overview(profile: str) -> pd.DataFrame:
    """The plan of a profile, a row a data set."""
    settings = SETTINGS[profile]
    return pd.DataFrame([
        {
            "data": name, "hospitals": NUM_HOSPITALS, "passes": of_data.total_rounds, "seeds": len(settings.seeds),
            "patients a step": of_data.patients_per_step, "delta (patient)": of_data.delta, "delta (hospital)": HOSPITAL_DELTA,
            "tuned": settings.tuned, "shadow models": ", ".join(f"{arm}: {num}" for arm, num in settings.membership_arms.items()),
        }
        for name, of_data in settings.datasets.items()
    ])
