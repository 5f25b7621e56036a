"""Sets up the learners of a configuration: the only room where the methods differ."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import tensorflow as tf

from fl_utils import paths, seeding
from fl_utils.config import ExperimentConfig
from fl_utils.data.types import ImageDataset
from fl_utils.experiments import protection
from fl_utils.experiments.hospitals import Hospitals
from fl_utils.learning.centralized import CentralizedLearner
from fl_utils.learning.client_files import local_patients, write_client_files
from fl_utils.learning.client_updates import hospital_update, norm_positions
from fl_utils.learning.configured import local_settings, new_classifier
from fl_utils.learning.local import LocalTrainer, class_weights, travelling_weights
from fl_utils.learning.rounds import Judge, PersonalJudge, TrainingResult, View, run_rounds

Result = tuple[str, TrainingResult, np.ndarray]


def train_hospital_models(
    config: ExperimentConfig,
    dataset: ImageDataset,
    hospitals: Hospitals,
    checkpoints: Path,
    on_round: Callable[[dict[str, float]], None],
    *,
    checkpoint_interval_s: float = 20.0,
    keep_diverged: bool = False,
) -> list[Result]:
    """Trains the one global model, or one model a hospital for method "local".

    Args:
      config: the run.
      dataset: its images.
      hospitals: who holds which.
      checkpoints: folder for the states of unfinished models.
      on_round: called after each round with the validation metrics (see `run_rounds`).
      checkpoint_interval_s: time between saves.
      keep_diverged: see `run_rounds`.
    Returns:
      For each model (client name, training result, class probabilities float32 [N, K] of the
      selected weights; rows outside validation and test are zero).
    """
    if config.method == "local":
        names = [str(client) for client in range(config.num_clients)]
    else:
        names = ["all"]
    return [
        _train_one(
            config, dataset, hospitals, name, checkpoints / f"{name}.npz", on_round, checkpoint_interval_s,
            keep_diverged,
        )
        for name in names
    ]


def _train_one(
    config, dataset, hospitals: Hospitals, name: str, checkpoint: Path, on_round, checkpoint_interval_s: float,
    keep_diverged: bool,
) -> Result:
    judge = _judge(config, dataset, hospitals, name)
    learner = federated_learner(config, dataset, hospitals) if config.federated else _alone(config, dataset, hospitals, name)
    result = run_rounds(
        learner, judge, total_rounds=config.total_rounds, checkpoint=checkpoint,
        checkpoint_interval_s=checkpoint_interval_s, on_round=reporter(on_round), keep_diverged=keep_diverged,
        select_last=config.aggregator is not None,
    )
    if config.method == "finetuned":
        return name, *_fine_tuned(config, dataset, hospitals, judge, result)
    return name, result, judge.predict(result.best_weights)


def reporter(on_round: Callable[[dict[str, float]], None]) -> Callable[[int, dict[str, float]], None]:
    """For `run_rounds`: calls `on_round` once a round, also for those of an earlier process."""
    done_before = 0

    def report(round_num: int, values: dict[str, float]) -> None:
        nonlocal done_before
        for _ in range(round_num - done_before):  # A resumed run's bar starts where it was left.
            on_round(values)
        done_before = round_num

    return report


def _judge(config, dataset: ImageDataset, hospitals: Hospitals, name: str) -> Judge:
    model, views = _new_model(config, dataset), views_of(hospitals, name, config)
    if config.aggregator:
        from fl_utils.experiments.robust_learner import AttackJudge

        return AttackJudge(model, dataset, views, hospitals.split.test, config.attack_target)
    if config.method != "local_norm":
        return Judge(model, dataset.images, dataset.labels, views)
    holdings = [np.concatenate(parts) for parts in zip(hospitals.validation, hospitals.test, strict=True)]
    home = norm_positions(LocalTrainer(model, local_settings(config)))
    return PersonalJudge(model, dataset.images, dataset.labels, views, holdings, home)


def _fine_tuned(config, dataset: ImageDataset, hospitals: Hospitals, judge: Judge, result: TrainingResult):
    """Each hospital goes on from the selected common model on its own images; it counts as one more round.

    Every image is then judged by the model of the hospital that holds it. The kept weights are the common ones.
    """
    settings = dataclasses.replace(local_settings(config), epochs=config.personal_epochs)
    trainer = LocalTrainer(_new_model(config, dataset), settings)
    weights = _class_weights(config, dataset, np.concatenate(hospitals.train))
    probabilities = np.zeros((len(dataset), dataset.num_classes), np.float32)
    for client in range(config.num_clients):
        trainer.set_weights(result.best_weights)
        trainer.reset_momentum()
        own, seed = hospitals.train[client], seeding.tf_seed(config.seed, "fine_tuning", client)
        trainer.run(
            tf.constant(dataset.images[own]), tf.constant(dataset.labels[own], tf.int32), tf.constant(weights),
            tf.constant(seed),
        )
        held = np.concatenate([hospitals.validation[client], hospitals.test[client]])
        if len(held):
            probabilities[held] = judge.predict([weight.numpy() for weight in trainer.weights])[held]
    scored, _ = judge.score_predictions(probabilities)
    last = config.total_rounds + 1
    rows = pd.DataFrame([(last, *row) for row in scored], columns=result.rows.columns)
    rows = pd.concat([result.rows, rows], ignore_index=True)
    return TrainingResult(rows, last, result.best_weights, result.diverged_at_round), probabilities


def _new_model(config: ExperimentConfig, dataset: ImageDataset):
    return new_classifier(config, dataset.images.shape[1:], dataset.num_classes)


def num_parameters(config: ExperimentConfig, dataset: ImageDataset) -> int:
    """Numbers that a hospital sends in a round: the model's weights, BatchNorm statistics only where they travel."""
    return sum(int(np.prod(weight.shape)) for weight in travelling_weights(_new_model(config, dataset), local_settings(config)))


def hospital_updates(
    config: ExperimentConfig, dataset: ImageDataset, hospitals: Hospitals, weights: list[np.ndarray], round_num: int
) -> list[list[np.ndarray]]:
    """What the hospitals would send in a round that starts at these weights, for methods with plain local SGD.

    Args:
      config: of the federated run.
      dataset: the images as the hospitals hold them (`hospitals.as_taken`).
      hospitals: who holds which.
      weights: the common model's, one array a travelling weight.
      round_num: of which round the order of the examples and their augmentation are.
    Returns:
      For each hospital global - local weights, float32 arrays; `client_updates.averaging`.
    """
    trainer = LocalTrainer(_new_model(config, dataset), local_settings(config))
    class_weighting = tf.constant(_class_weights(config, dataset, np.concatenate(hospitals.train)))
    updates = []
    for client, own in enumerate(hospitals.train):
        images, labels = tf.constant(dataset.images[own]), tf.constant(dataset.labels[own], tf.int32)
        result = hospital_update(
            trainer, weights, images, labels, class_weighting, seed=config.seed, client=str(client), round_num=round_num
        )
        updates.append([part.numpy() for part in result.delta])
    return updates


def views_of(hospitals: Hospitals, name: str, config: ExperimentConfig) -> list[View]:
    """What a model is judged on; the first view selects its round.

    A hospital alone can select on its own validation images only; a federation adds up what
    its hospitals report, which is the validation data of all.
    """
    split = hospitals.split
    if config.method == "local":
        client = int(name)
        views = [
            View(name, "validation", hospitals.validation[client]),
            View(name, "test", split.test),
            View(name, "own_test", hospitals.test[client]),
        ]
    else:
        views = [View("all", "validation", split.validation), View("all", "test", split.test)]
        if config.federated and not config.attack:
            for client in range(config.num_clients):
                views.append(View(str(client), "validation", hospitals.validation[client]))
                views.append(View(str(client), "own_test", hospitals.test[client]))
    # A small hospital may hold no test image of its own.
    return [view for view in views if len(view.index)]


def _alone(config, dataset: ImageDataset, hospitals: Hospitals, name: str) -> CentralizedLearner:
    index = hospitals.train[0 if name == "all" else int(name)]
    return CentralizedLearner(
        _new_model(config, dataset), local_settings(config), dataset.images[index], dataset.labels[index],
        _class_weights(config, dataset, index), seed=config.seed, client=name,
    )


def federated_learner(config: ExperimentConfig, dataset: ImageDataset, hospitals: Hospitals):
    """What trains a federated run round by round, at its start (`rounds.Learner`)."""
    if config.aggregator:
        return _robust(config, dataset, hospitals)
    # TFF takes seconds to import; only a federated run needs it.
    from fl_utils.learning.algorithms import ServerSettings, algorithm_named
    from fl_utils.learning.federated import FederatedLearner, PersonalLearner
    from fl_utils.learning.process import build_process, initial_client_state

    algorithm, settings = algorithm_named(config.method), local_settings(config)
    everything = np.concatenate(hospitals.train)
    server = ServerSettings(config.server_learning_rate, config.server_momentum, num_examples=len(everything))

    def new_model():
        return _new_model(config, dataset)

    noise = protection.noise_of(config, dataset, hospitals) if config.privacy_unit else None
    trainer_type = protection.trainer_of(config, noise)
    # The hospitals add up their class counts once, so that all weigh the classes alike.
    weights = _class_weights(config, dataset, everything)
    if config.encrypted:
        learner = _encrypted(config, dataset, hospitals, weights, trainer_type)
    else:
        process = build_process(
            algorithm, new_model, settings, server, aggregator=protection.aggregator_of(config, noise),
            trainer_type=trainer_type,
        )
        files = write_client_files(
            paths.cache_root() / "clients", dataset.images, dataset.labels, hospitals.train,
            groups=dataset.groups if config.privacy_unit == "patient" else None,
        )
        learner = (PersonalLearner if config.method == "local_norm" else FederatedLearner)(
            process, files, weights, clients_per_round=config.cohort_size, seed=config.seed,
            client_state=initial_client_state(algorithm, new_model, settings),
        )
    return learner if noise is None else protection.ChargedLearner(learner, noise, config.epsilon)


def _encrypted(config, dataset: ImageDataset, hospitals: Hospitals, weights: np.ndarray, trainer_type):
    from fl_utils.experiments.encrypted_learner import EncryptedLearner

    labels = [dataset.labels[index] for index in hospitals.train]
    if config.privacy_unit == "patient":
        labels = [
            np.stack([own, local_patients(dataset.groups[index])], axis=1)
            for own, index in zip(labels, hospitals.train, strict=True)
        ]
    return EncryptedLearner(
        _new_model(config, dataset), local_settings(config), [dataset.images[index] for index in hospitals.train], labels,
        weights, seed=config.seed, trainer_type=trainer_type,
    )


def _robust(config, dataset: ImageDataset, hospitals: Hospitals):
    from fl_utils.experiments.robust_learner import RobustLearner, last_layer_of, root_of, shared_trainer

    settings, model = local_settings(config), _new_model(config, dataset)
    shared = functools.partial(shared_trainer, config.model, dataset.images.shape[1:], dataset.num_classes)
    root = None
    if config.root_examples:
        root = root_of(config, dataset, hospitals)
        root = shared(dataclasses.replace(settings, epochs=root.epochs)), root
    return RobustLearner(
        shared(settings), model.get_weights(), [(dataset.images[own], dataset.labels[own]) for own in hospitals.train],
        _class_weights(config, dataset, np.concatenate(hospitals.train)), config, root=root,
        last_layer=last_layer_of(model),
    )


def _class_weights(config, dataset: ImageDataset, index: np.ndarray) -> np.ndarray:
    return class_weights(dataset.labels[index], dataset.num_classes, enabled=config.class_weighting)
