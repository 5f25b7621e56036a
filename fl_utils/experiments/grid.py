"""Notebook 03's runs as data: data set x partition x algorithm x seed, and what is beside the grid.

Every image is seen equally often by every method: R rounds of one pass in the federation, R passes alone, R passes over
the pooled data. A hospital so takes as many steps alone as in the federation; the pooled model takes as many as all
hospitals together, one after another, and is the upper anchor. Its curve after R / C passes is that of equal steps.
"""

import dataclasses
import functools
from collections.abc import Callable

from fl_utils.config import ConfigError, ExperimentConfig, make_config
from fl_utils.data.catalogue import card
from fl_utils.experiments.plans import TUNING_SEED, best_trial

#: Experiment folders of the runs and of those that chose their settings.
GRID, GRID_TUNING = "heterogeneity", "heterogeneity_tuning"
NUM_CLIENTS = 8
DIRICHLET_ALPHA = 0.5
#: Passes that "local" makes between two looks at its validation data: it is judged C times, on all test images.
LOCAL_EPOCHS_PER_ROUND = 4
METHODS = ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "mimelite", "scaffold", "fedsgd")
#: The partition on which every method's settings are chosen, with a seed (and so a draw) of its own.
TUNING_PARTITION = "dirichlet"

_RATES = (0.02, 0.06, 0.2)


def _pairs(field: str, values: tuple[float, float], rates: tuple[float, ...] = _RATES) -> list[dict]:
    return [{"client_learning_rate": rate, field: value} for rate in rates for value in values]


#: Six trials a method: the same budget for all. The values of the adaptive server optimizers and of Mime-lite were
#: moved once, after the best of a first six lay at their edge (validation scores only).
TRIALS: dict[str, list[dict]] = {
    **{
        method: [{"client_learning_rate": rate} for rate in (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)]
        for method in ("centralized", "local", "fedavg", "local_norm")
    },
    "fedsgd": [{"client_learning_rate": rate} for rate in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)],
    "fedprox": _pairs("proximal_strength", (0.01, 0.1)),
    "fedavgm": _pairs("server_momentum", (0.5, 0.9)),
    "fedadam": _pairs("server_learning_rate", (0.01, 0.03)),
    "fedyogi": _pairs("server_learning_rate", (0.01, 0.03)),
    "fedadagrad": _pairs("server_learning_rate", (0.03, 0.1)),
    # Each of its local steps carries the server's momentum, so that the same rate moves further.
    "mimelite": _pairs("server_momentum", (0.5, 0.9), rates=(0.002, 0.006, 0.02)),
    "scaffold": _pairs("server_learning_rate", (0.5, 1.0)),
}
#: Used where nothing is tuned (profiles on phantoms): middle values.
UNTUNED: dict[str, dict] = {
    **{method: {"client_learning_rate": 0.1} for method in ("centralized", "local", "fedavg", "local_norm")},
    "fedsgd": {"client_learning_rate": 0.4},
    "fedprox": {"client_learning_rate": 0.1, "proximal_strength": 0.1},
    "fedavgm": {"client_learning_rate": 0.06, "server_momentum": 0.5},
    "fedadam": {"client_learning_rate": 0.06, "server_learning_rate": 0.01},
    "fedyogi": {"client_learning_rate": 0.06, "server_learning_rate": 0.01},
    "fedadagrad": {"client_learning_rate": 0.06, "server_learning_rate": 0.03},
    "mimelite": {"client_learning_rate": 0.02, "server_momentum": 0.5},
    "scaffold": {"client_learning_rate": 0.1},
}


@dataclasses.dataclass(frozen=True)
class GridSettings:
    """How large the grid of a profile is.

    Attributes:
      seeds: of the reported runs.
      total_rounds: by data set.
      methods, partitions: of the grid.
      image_size_px, num_images: see `ExperimentConfig`.
      tuned: whether settings are tuned (else `UNTUNED`).
      beside: which parts of `beside_the_grid` are run.
    """

    seeds: tuple[int, ...]
    total_rounds: dict[str, int]
    methods: tuple[str, ...] = METHODS
    partitions: tuple[str, ...] = ("iid", "dirichlet", "pathological", "quantity", "feature")
    image_size_px: int = 32
    num_images: int | None = None
    tuned: bool = False
    beside: tuple[str, ...] = ()


GRIDS = {
    "smoke": GridSettings(
        (0, 1), {"phantom_brain": 2}, ("fedavg", "fedadam", "scaffold"), ("iid", "pathological"), image_size_px=24,
        num_images=600,
    ),
    "quick": GridSettings(
        (0, 1), {"phantom_brain": 12}, ("fedavg", "fedprox", "fedadam", "scaffold"), ("iid", "dirichlet", "pathological"),
        num_images=600,
    ),
    "paper": GridSettings(
        (0, 1, 2, 3, 4), {"brain_mri": 24, "chest_xray": 12}, tuned=True,
        beside=("alphas", "personal", "many", "natural", "norm", "longer"),
    ),
}


def partition_fields(partition: str, dataset: str) -> dict:
    """The fields of one of the grid's partitions: {"partition": ..., and its parameter}."""
    parameters = {
        "dirichlet": {"dirichlet_alpha": DIRICHLET_ALPHA},
        # Half of the classes: one of two, two of four.
        "pathological": {"classes_per_client": max(1, len(card(dataset).class_names) // 2)},
        "quantity": {"quantity_alpha": 0.5},
    }
    return {"partition": partition, **parameters.get(partition, {})}


def grid_config(profile: str, dataset: str, /, **fields) -> ExperimentConfig:
    """One run at the grid's sizes for a data set; `fields` adds and overrides (also the data set).

    Raises:
      ConfigError: see `make_config`; the profile's grid has no such data set; "local" with rounds that are no multiple
        of `LOCAL_EPOCHS_PER_ROUND`.
    """
    settings = GRIDS[profile]
    if dataset not in settings.total_rounds:
        raise ConfigError(f"The grid of profile {profile!r} has {', '.join(settings.total_rounds)}, not {dataset!r}.")
    rounds, epochs = fields.pop("total_rounds", settings.total_rounds[dataset]), 1
    if fields["method"] == "local":
        epochs = min(LOCAL_EPOCHS_PER_ROUND, rounds)
        if rounds % epochs:
            raise ConfigError(
                f"total_rounds is {rounds}, and 'local' is judged every {epochs} passes; use a multiple of {epochs}, "
                "or it would make fewer passes than the federation."
            )
        rounds //= epochs
    pooled = fields.get("partition") == "pooled"
    return make_config(**{
        "dataset": dataset, "profile": profile, "image_size_px": settings.image_size_px,
        "num_images": settings.num_images, "model": "small_cnn", "num_clients": 1 if pooled else NUM_CLIENTS,
        "total_rounds": rounds, "client_epochs_per_round": epochs, "client_batch_size": 16, "client_momentum": 0.0,
        "augment": False, **fields,
    })


def tuning_configs(profile: str, dataset: str, method: str, model: str = "small_cnn") -> list[ExperimentConfig]:
    """The six trials of a method."""
    partition = {"partition": "pooled"} if method == "centralized" else partition_fields(TUNING_PARTITION, dataset)
    return [
        grid_config(profile, dataset, method=method, model=model, seed=TUNING_SEED, **partition, **trial)
        for trial in TRIALS[method]
    ]


def tuned(profile: str, dataset: str, method: str, model: str = "small_cnn", progress: bool = True) -> tuple[dict, dict]:
    """The trial with the best validation score, training what is not there; and how it was found, for the record.

    A trial that diverged is out, whatever its score before that.

    Returns:
      (fields of a configuration, {"tuning": {seed, partition, trials: [{..., score}]}}).
    Raises:
      TrainingError: every trial diverged.
    """
    if not GRIDS[profile].tuned:
        return UNTUNED[method], {}
    return best_trial(
        TRIALS[method], tuning_configs(profile, dataset, method, model), experiment=GRID_TUNING, progress=progress,
        name=f"{dataset} {method}", facts={"partition": "pooled" if method == "centralized" else TUNING_PARTITION},
    )


def grid_arms(profile: str, dataset: str) -> list[dict]:
    """The arms of one seed: anchors first, then partition x method."""
    settings, arms = GRIDS[profile], [{"method": "centralized", "partition": "pooled"}]
    for partition in settings.partitions:
        fields = partition_fields(partition, dataset)
        if partition == "feature":
            arms.append({"method": "centralized", **fields})
        arms += [{"method": method, **fields} for method in ("local", *settings.methods)]
    return arms


def beside_the_grid(dataset: str) -> dict[str, list[dict]]:
    """What notebook 03 can run beside the grid, by part (see `GridSettings.beside`); all with every seed.

    alphas: FedAvg over the Dirichlet parameter. many: 50 hospitals, 10 a round. natural: three real sources of chest
    X-rays. longer: one cell of the grid at three times the rounds. personal: fine-tuned models. norm: normalisation
    layers.
    """
    pathological = partition_fields("pathological", dataset)
    parts = {
        "alphas": [
            {"method": "fedavg", "partition": "dirichlet", "dirichlet_alpha": alpha} for alpha in (100.0, 1.0, 0.1)
        ],
        "personal": [
            {"method": "finetuned", "personal_epochs": 2, **partition_fields(partition, dataset)}
            for partition in GRIDS["paper"].partitions
        ],
    }
    if dataset == "chest_xray":
        parts["many"] = [
            {"method": method, "num_clients": 50, "clients_per_round": 10, "total_rounds": 60, **fields}
            for fields in (partition_fields("iid", dataset), partition_fields("dirichlet", dataset))
            for method in ("fedavg", "fedavgm", "fedadam", "scaffold")
        ]
        # Same classes, other hospitals: its settings are those of chest X-ray.
        natural = {"dataset": "xray_sites", "num_clients": 3}
        parts["natural"] = [{**natural, "method": "centralized", "partition": "pooled", "num_clients": 1}] + [
            {**natural, "method": method, "partition": "natural"}
            for method in ("local", "fedavg", "fedprox", "fedadam", "scaffold")
        ]
    if dataset == "brain_mri":
        parts["longer"] = [
            {"method": method, "total_rounds": 3 * GRIDS["paper"].total_rounds[dataset], **pathological}
            for method in METHODS
        ]
        parts["norm"] = [
            {"model": model, **arm, **fields}
            for fields in (partition_fields("iid", dataset), pathological, partition_fields("feature", dataset))
            for model, arm in (
                ("norm_cnn_group", {"method": "fedavg"}),
                ("norm_cnn_batch", {"method": "fedavg"}),
                ("norm_cnn_batch", {"method": "fedavg", "norm_statistics": "dropped"}),
                ("norm_cnn_group", {"method": "local_norm"}),
                ("norm_cnn_batch", {"method": "local_norm"}),
            )
        ]
    return parts


def with_settings(profile: str, dataset: str, arms: list[dict], progress: bool = True) -> list[ExperimentConfig]:
    """Every arm with every seed and its tuned settings, seed by seed."""
    pairs = dict.fromkeys(map(_tuned_as, arms))
    chosen = {pair: tuned(profile, dataset, *pair, progress=progress)[0] for pair in pairs}
    return [
        grid_config(profile, dataset, seed=seed, **{**chosen[_tuned_as(arm)], **arm})
        for seed in GRIDS[profile].seeds
        for arm in arms
    ]


def _tuned_as(arm: dict) -> tuple[str, str]:
    """(method, model) of the trials whose winner an arm takes."""
    if arm.get("model", "").startswith("norm_cnn"):
        # One choice for all normalisation layers, so that none has more tries than the others.
        return "fedavg", "norm_cnn_group"
    return ("fedavg" if arm["method"] == "finetuned" else arm["method"]), "small_cnn"


def tuning_03(profile: str, dataset: str) -> list[ExperimentConfig]:
    """The trials of all methods of `configs_03`; none where the profile does not tune."""
    if not GRIDS[profile].tuned:
        return []
    arms = [arm for part in (grid_arms(profile, dataset), *_beside(profile, dataset)) for arm in part]
    return [
        config for pair in dict.fromkeys(map(_tuned_as, arms)) for config in tuning_configs(profile, dataset, *pair)
    ]


def tuning_facts() -> Callable[[ExperimentConfig], dict]:
    """A function of a configuration: how its settings were chosen, for its record; {} where the profile does not tune."""

    @functools.cache  # Hundreds of runs share a dozen choices.
    def facts(profile: str, dataset: str, method: str, model: str) -> dict:
        return tuned(profile, dataset, method, model, progress=False)[1]

    return lambda config: facts(
        config.profile, "chest_xray" if config.dataset == "xray_sites" else config.dataset,
        *_tuned_as({"method": config.method, "model": config.model}),
    )


def part_of(config: dict, profile: str) -> str:
    """Which part of notebook 03 a record's configuration belongs to: "grid", or one of `beside_the_grid`."""
    if config["dataset"] == "xray_sites":
        return "natural"
    rounds = GRIDS[profile].total_rounds[config["dataset"]]
    if config["num_clients"] > NUM_CLIENTS:
        return "many"
    if config["model"] != "small_cnn":
        return "norm"
    if config["method"] == "finetuned":
        return "personal"
    if config["total_rounds"] * config["client_epochs_per_round"] > rounds:
        return "longer"
    return "alphas" if config["dirichlet_alpha"] not in (None, DIRICHLET_ALPHA) else "grid"


def configs_03(profile: str, dataset: str, progress: bool = True) -> list[ExperimentConfig]:
    """All runs of notebook 03 on a data set: the grid, then what is beside it."""
    return [
        config
        for arms in (grid_arms(profile, dataset), *_beside(profile, dataset))
        for config in with_settings(profile, dataset, arms, progress)
    ]


def _beside(profile: str, dataset: str) -> list[list[dict]]:
    parts = beside_the_grid(dataset)
    return [parts[name] for name in GRIDS[profile].beside if name in parts]
