"""Sets up the learners of segmenters, and scores whole test volumes. The loop is that of classification."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from fl_utils import paths, seeding
from fl_utils.config import NORM_GROUPS, ExperimentConfig
from fl_utils.data.cases import find_cases
from fl_utils.data.catalogue import card
from fl_utils.data.stream import PreparedVolumes
from fl_utils.data.volumes import read_case
from fl_utils.experiments.hospitals import Hospitals
from fl_utils.experiments.training import reporter, views_of
from fl_utils.files import write_atomically
from fl_utils.learning.centralized import CentralizedLearner
from fl_utils.learning.configured import augmentation
from fl_utils.learning.local import LocalSettings
from fl_utils.learning.rounds import Learner, TrainingResult, run_rounds
from fl_utils.learning.segmentation import SliceTrainer, VolumeJudge, make_slice_predictor, predict_subject
from fl_utils.learning.segmentation_scores import score_subject
from fl_utils.learning.slice_files import SliceList, choose_slices, write_slice_files
from fl_utils.models.segmenters import build_segmenter

Result = tuple[str, TrainingResult, pd.DataFrame]


def train_segmenters(
    config: ExperimentConfig,
    volumes: PreparedVolumes,
    hospitals: Hospitals,
    checkpoints: Path,
    on_round: Callable[[dict[str, float]], None],
    *,
    followed: Mapping[int, Path] | None = None,
    checkpoint_interval_s: float = 20.0,
    keep_diverged: bool = False,
) -> list[Result]:
    """Trains the one global model, or one model a hospital for method "local".

    Args:
      config: the run.
      volumes: the slices as the hospitals hold them.
      hospitals: who holds which subjects, indices into `volumes.subjects`.
      checkpoints: folder for the states of unfinished models.
      on_round: called after each round with the validation metrics (see `run_rounds`).
      followed: round -> where the weights after it are kept.
      checkpoint_interval_s: time between saves.
      keep_diverged: see `run_rounds`.
    Returns:
      For each model (client name, training result, `volume_scores` of the selected weights).
    """
    names = [str(client) for client in range(config.num_clients)] if config.method == "local" else ["all"]
    lists = [
        choose_slices(volumes, [volumes.subjects[i] for i in index], background_ratio=config.background_ratio)
        for index in hospitals.train
    ]
    results = []
    for name in names:
        judge = VolumeJudge(new_segmenter(config, volumes), volumes, views_of(hospitals, name, config))
        learner = (_federated if config.federated else _alone)(config, volumes, lists, name)
        result = run_rounds(
            _Followed(learner, followed or {}), judge, total_rounds=config.total_rounds,
            checkpoint=checkpoints / f"{name}.npz", checkpoint_interval_s=checkpoint_interval_s,
            on_round=reporter(on_round), keep_diverged=keep_diverged,
        )
        test = [volumes.subjects[i] for i in hospitals.split.test]
        results.append((name, result, volume_scores(judge.model, result.best_weights, volumes, test)))
    return results


def volume_scores(
    model: keras.Model, weights: Sequence[np.ndarray], volumes: PreparedVolumes, subjects: Sequence[str]
) -> pd.DataFrame:
    """Scores of whole volumes at the resolution of their files.

    Args:
      model: a segmenter; its weights are overwritten.
      weights: to be scored.
      volumes: the slices that are predicted.
      subjects: names from its table.
    Returns:
      One row a subject and region: subject, and the columns of `segmentation_scores.SCORE_COLUMNS`.
    """
    for variable, weight in zip(model.trainable_variables, weights, strict=True):
        variable.assign(weight)
    predict, info = make_slice_predictor(model), card(volumes.name)
    cases, rows = {case.subject: case for case in find_cases(info)}, []
    for subject in tqdm(subjects, desc="Whole volumes", unit="case", leave=False, disable=None):
        volume = read_case(cases[subject], info)
        predicted = predict_subject(predict, volumes, volume)
        rows.append(score_subject(predicted, volume.mask, volume.spacing_mm, volumes.class_names))
        rows[-1].insert(0, "subject", subject)
    return pd.concat(rows, ignore_index=True)


def new_segmenter(config: ExperimentConfig, volumes: PreparedVolumes) -> keras.Model:
    """A segmenter with a run's initial weights: those of a U-Net and an Attention U-Net of one seed are alike."""
    shape = (volumes.image_size_px, volumes.image_size_px, len(volumes.modalities))
    return build_segmenter(
        config.model, shape, len(volumes.class_names), seed=seeding.derive_seed(config.seed, "init", "segmenter"),
        width=config.model_width, depth=config.model_depth, groups=NORM_GROUPS,
    )


def num_parameters(config: ExperimentConfig, volumes: PreparedVolumes) -> int:
    """Numbers that a hospital sends in a round."""
    return new_segmenter(config, volumes).count_params()


class _Followed:
    """A learner whose weights of some rounds are kept in the cache; else it is the learner itself."""

    def __init__(self, learner: Learner, followed: Mapping[int, Path]):
        self._learner, self._followed = learner, followed
        self.weights, self.state, self.restore = learner.weights, learner.state, learner.restore

    def do_round(self, round_num: int) -> dict[str, float]:
        losses = self._learner.do_round(round_num)
        if round_num in self._followed:
            path, weights = self._followed[round_num], self._learner.weights()
            try:
                write_atomically(path, lambda file: np.savez(file, *weights))
            except OSError as error:
                tqdm.write(f"The weights of round {round_num} were not kept in the cache: {error.strerror}.")
        return losses


def _settings(config: ExperimentConfig) -> LocalSettings:
    return LocalSettings(
        batch_size=config.client_batch_size, epochs=config.client_epochs_per_round,
        learning_rate=config.client_learning_rate, momentum=config.client_momentum, augment=augmentation(config),
        proximal_strength=config.proximal_strength,
    )


def _alone(config: ExperimentConfig, volumes: PreparedVolumes, lists: list[SliceList], name: str) -> Learner:
    client, settings = 0 if name == "all" else int(name), _settings(config)
    if config.method == "local":
        # A small hospital passes more often over what it has: all make as many steps as an average one.
        sizes = np.array([len(slices) for _, slices in lists])
        epochs = max(1, round(settings.epochs * sizes.mean() / sizes[client]))
        settings = dataclasses.replace(settings, epochs=epochs)
    return CentralizedLearner(
        new_segmenter(config, volumes), settings, *lists[client], _ones(volumes), seed=config.seed, client=name,
        trainer_type=SliceTrainer,
    )


def _federated(config: ExperimentConfig, volumes: PreparedVolumes, lists: list[SliceList], name: str) -> Learner:
    # TFF takes seconds to import; only a federated run needs it.
    from fl_utils.learning.algorithms import ServerSettings, algorithm_named
    from fl_utils.learning.federated import FederatedLearner
    from fl_utils.learning.process import build_process, initial_client_state

    algorithm, settings = algorithm_named(config.method), _settings(config)
    server = ServerSettings(
        config.server_learning_rate, config.server_momentum, num_examples=sum(len(slices) for _, slices in lists)
    )

    def new_model():
        return new_segmenter(config, volumes)

    return FederatedLearner(
        build_process(algorithm, new_model, settings, server, trainer_type=SliceTrainer),
        write_slice_files(paths.cache_root() / "clients", lists),
        _ones(volumes),
        clients_per_round=config.cohort_size,
        seed=config.seed,
        client_state=initial_client_state(algorithm, new_model, settings, SliceTrainer),
    )


def _ones(volumes: PreparedVolumes) -> np.ndarray:
    """No class weighs more: Dice in the loss cares for rare classes."""
    return np.ones(len(volumes.class_names), np.float32)
