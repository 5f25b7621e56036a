"""Sets up the learners of a configuration: the only room where the methods differ."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fl_utils import paths, seeding
from fl_utils.config import ExperimentConfig
from fl_utils.data.catalogue import card
from fl_utils.data.types import ImageDataset
from fl_utils.experiments.hospitals import Hospitals
from fl_utils.learning.centralized import CentralizedLearner
from fl_utils.learning.client_files import write_client_files
from fl_utils.learning.local import LocalSettings, class_weights
from fl_utils.learning.rounds import Judge, TrainingResult, View, run_rounds
from fl_utils.models.classifiers import build_model

Result = tuple[str, TrainingResult, np.ndarray]


def train_hospital_models(
    config: ExperimentConfig,
    dataset: ImageDataset,
    hospitals: Hospitals,
    checkpoints: Path,
    on_round: Callable[[dict[str, float]], None],
    *,
    checkpoint_interval_s: float = 20.0,
) -> list[Result]:
    """Trains the one global model, or one model a hospital for method "local".

    Args:
      config: the run.
      dataset: its images.
      hospitals: who holds which.
      checkpoints: folder for the states of unfinished models.
      on_round: called after each round with the validation metrics.
      checkpoint_interval_s: time between saves.
    Returns:
      For each model (client name, training result, class probabilities float32 [N, K] of the
      selected weights; rows outside validation and test are zero).
    """
    if config.method == "local":
        names = [str(client) for client in range(config.num_clients)]
    else:
        names = ["all"]
    return [
        _train_one(config, dataset, hospitals, name, checkpoints / f"{name}.npz", on_round, checkpoint_interval_s)
        for name in names
    ]


def _train_one(
    config, dataset, hospitals: Hospitals, name: str, checkpoint: Path, on_round, checkpoint_interval_s: float
) -> Result:
    judge = Judge(_new_model(config, dataset), dataset.images, dataset.labels, _views(hospitals, name, config))
    done_before = 0
    learner = _federated(config, dataset, hospitals) if config.method == "fedavg" else _alone(
        config, dataset, hospitals, name
    )

    def report(round_num: int, values: dict[str, float]) -> None:
        nonlocal done_before
        for _ in range(round_num - done_before):  # A resumed run's bar starts where it was left.
            on_round(values)
        done_before = round_num

    result = run_rounds(
        learner, judge, total_rounds=config.total_rounds, checkpoint=checkpoint,
        checkpoint_interval_s=checkpoint_interval_s, on_round=report,
    )
    return name, result, judge.predict(result.best_weights)


def _new_model(config: ExperimentConfig, dataset: ImageDataset):
    return build_model(
        config.model, dataset.images.shape[1:], dataset.num_classes, seed=_initial_seed(config)
    )


def _settings(config: ExperimentConfig) -> LocalSettings:
    return LocalSettings(
        batch_size=config.client_batch_size,
        epochs=config.client_epochs_per_round,
        learning_rate=config.client_learning_rate,
        momentum=config.client_momentum,
        augment=_augmentation(config),
    )


def _views(hospitals: Hospitals, name: str, config: ExperimentConfig) -> list[View]:
    """What a model is judged on; the first view selects its round.

    A hospital alone can select on its own validation images only; a federation adds up what
    its hospitals report, which is the validation data of all.
    """
    split = hospitals.split
    if config.method == "local":
        client = int(name)
        return [
            View(name, "validation", hospitals.validation[client]),
            View(name, "test", split.test),
            View(name, "own_test", hospitals.test[client]),
        ]
    views = [View("all", "validation", split.validation), View("all", "test", split.test)]
    if config.method == "fedavg":
        for client in range(config.num_clients):
            views.append(View(str(client), "validation", hospitals.validation[client]))
            views.append(View(str(client), "own_test", hospitals.test[client]))
    return views


def _alone(config, dataset: ImageDataset, hospitals: Hospitals, name: str) -> CentralizedLearner:
    index = hospitals.train[0 if name == "all" else int(name)]
    labels = dataset.labels[index]
    weights = class_weights(labels, dataset.num_classes, enabled=config.class_weighting)
    return CentralizedLearner(
        _new_model(config, dataset), _settings(config), dataset.images[index], labels, weights,
        seed=config.seed, client=name,
    )


def _federated(config, dataset: ImageDataset, hospitals: Hospitals):
    # TFF takes seconds to import; only a federated run needs it.
    from fl_utils.learning.algorithms import build_federated_averaging
    from fl_utils.learning.federated import FederatedLearner

    # The hospitals add up their class counts once, so that all weigh the classes alike.
    labels = dataset.labels[np.concatenate(hospitals.train)]
    weights = class_weights(labels, dataset.num_classes, enabled=config.class_weighting)
    process = build_federated_averaging(
        lambda: _new_model(config, dataset),
        _settings(config),
        cohort_size=config.cohort_size,
        server_learning_rate=config.server_learning_rate,
    )
    files = write_client_files(paths.cache_root() / "clients", dataset.images, dataset.labels, hospitals.train)
    return FederatedLearner(
        process, files, weights, clients_per_round=config.cohort_size, seed=config.seed
    )


def _augmentation(config: ExperimentConfig) -> str:
    """The augmentation's name for `learning.local`: left-right flips only where anatomy allows."""
    if not config.augment:
        return "none"
    return "shift_rotate_flip" if card(config.dataset).flip_is_safe else "shift_rotate"


def _initial_seed(config: ExperimentConfig) -> int:
    """All methods of one seed start from the same weights."""
    return seeding.derive_seed(config.seed, "init", config.model)
