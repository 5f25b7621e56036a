"""Notebook 04's runs as data: the models that are looked into, by profile.

The profile "phantoms" stands beside "paper": the same plan on drawn images, whose lesions are known to the pixel.
"""

import dataclasses
from collections.abc import Mapping

import pandas as pd

from fl_utils.config import ExperimentConfig, make_config
from fl_utils.data.catalogue import card
from fl_utils.experiments import grid
from fl_utils.experiments.plans import parts_of  # noqa: F401 (notebook 04 asks here)

#: Experiment folder of the runs.
EXPLAIN = "explain"
#: The kinds of maps (`explain.maps`), and the one that stands for all where one must do.
CAMS = ("grad_cam", "grad_cam_pp", "hires_cam", "score_cam")
CAM = "grad_cam"
#: The two that models are compared with: the usual one, and the one that holds where a dense layer follows a Flatten.
COMPARED_CAMS = (CAM, "hires_cam")
#: Parts in which pixels are deleted and inserted.
STEPS = 10
NUM_CLIENTS = 4
LOCAL_EPOCHS_PER_ROUND = 4


@dataclasses.dataclass(frozen=True)
class ExplainSettings:
    """How large a profile is.

    Attributes:
      seeds: of the models.
      total_rounds: by data set; multiples of LOCAL_EPOCHS_PER_ROUND, or below.
      image_size_px, num_images: see `ExperimentConfig`.
      images_per_class: test images whose maps are scored, the same for all models and seeds.
    """

    seeds: tuple[int, ...]
    total_rounds: dict[str, int]
    image_size_px: int = 48
    num_images: int | None = None
    images_per_class: int = 40


SETTINGS = {
    "smoke": ExplainSettings((0, 1), {"phantom_chest": 2}, image_size_px=32, num_images=160, images_per_class=6),
    "quick": ExplainSettings((0, 1), {"phantom_chest": 12}, num_images=480, images_per_class=20),
    "phantoms": ExplainSettings((0, 1, 2, 3, 4), {"phantom_brain": 16, "phantom_chest": 16}, num_images=1200),
    "paper": ExplainSettings((0, 1, 2, 3, 4), {"brain_mri": 24, "chest_xray": 12}),
}
#: What is compared: the name that tables use -> fields.
ARMS = {
    "centralized": {"method": "centralized", "partition": "pooled"},
    "local": {"method": "local", "partition": "iid"},
    "fedavg": {"method": "fedavg", "partition": "iid"},
    "shuffled": {"method": "centralized", "partition": "pooled", "shuffled_labels": True},
}
#: The arms of which every model is looked into (the first three are compared, with maps that are kept).
LOOKED_INTO = ("centralized", "local", "fedavg", "shuffled")
#: The shortcut: hospital 1 alone marks its sick, or all four do.
MARKED_ARMS = {
    "local_marked_1": {"method": "local", "partition": "iid", "marked_hospitals": 1},
    **{f"centralized_marked_{n}": {"method": "centralized", "partition": "iid", "marked_hospitals": n} for n in (1, 4)},
    **{f"fedavg_marked_{n}": {"method": "fedavg", "partition": "iid", "marked_hospitals": n} for n in (1, 4)},
}


def datasets_of(profile: str) -> tuple[str, ...]:
    """The data sets of a profile's plan."""
    return tuple(SETTINGS[profile].total_rounds)


def has_shortcut(dataset: str) -> bool:
    """Whether the shortcut is tried on a data set: where "the last class" is the sick one."""
    return len(card(dataset).class_names) == 2


def arms_of(dataset: str) -> dict[str, dict]:
    """The arms of a data set by name."""
    return {**ARMS, **(MARKED_ARMS if has_shortcut(dataset) else {})}


def explain_config(profile: str, dataset: str, arm: str, seed: int) -> ExperimentConfig:
    """The configuration of one arm and seed; every arm makes as many passes over its images.

    Learning rates are those that notebook 03 chose for each method (on 32-pixel images); middle ones on phantoms.

    Raises:
      ConfigError: see `make_config`.
      RecordError: notebook 03's trials are not there, and this command does not train.
    """
    settings, fields = SETTINGS[profile], arms_of(dataset)[arm]
    rounds, epochs = settings.total_rounds[dataset], 1
    if fields["method"] == "local":
        epochs = min(LOCAL_EPOCHS_PER_ROUND, rounds)
        rounds //= epochs
    if profile == "paper":
        rates, _ = grid.tuned(profile, dataset, fields["method"], progress=False)
    else:
        rates = grid.UNTUNED[fields["method"]]
    return make_config(**{
        "dataset": dataset, "profile": profile, "image_size_px": settings.image_size_px,
        "num_images": settings.num_images, "model": "small_cnn", "seed": seed,
        "num_clients": 1 if fields["partition"] == "pooled" else NUM_CLIENTS, "total_rounds": rounds,
        "client_epochs_per_round": epochs, "client_batch_size": 16, "client_momentum": 0.0, "augment": False,
        **rates, **fields,
    })


def configs_04(profile: str, dataset: str) -> list[ExperimentConfig]:
    """All runs of notebook 04 on a data set, seed by seed."""
    return [
        explain_config(profile, dataset, arm, seed) for seed in SETTINGS[profile].seeds for arm in arms_of(dataset)
    ]


def overview(parts: Mapping[str, bool]) -> pd.DataFrame:
    """What is looked into, a row a data set: sizes and arms.

    Args:
      parts: profile -> whether its images are synthetic.
    """
    return pd.DataFrame([
        {"data": name, "synthetic": synthetic, "image_size_px": SETTINGS[part].image_size_px}
        | {"passes": SETTINGS[part].total_rounds[name], "seeds": len(SETTINGS[part].seeds)}
        | {"maps a class": SETTINGS[part].images_per_class, "arms": ", ".join(arms_of(name))}
        for part, synthetic in parts.items() for name in datasets_of(part)
    ])
