"""One configuration to one record: load it if it is there, otherwise train, resuming what was begun."""

import os
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from fl_utils import paths, records
from fl_utils.config import ExperimentConfig
from fl_utils.data.types import DataError
from fl_utils.experiments import classifying, segmenting
from fl_utils.experiments.classifying import dataset_of
from fl_utils.experiments.trained import Trained
from fl_utils.files import write_atomically
from fl_utils.learning.errors import CacheError
from fl_utils.records import RunRecord

__all__ = ["data_of", "dataset_of", "followed_weights", "recorded", "run", "selected_weights"]


def data_of(config: ExperimentConfig):
    """What a configuration trains on, with its `fingerprint`: images, or subjects with their volumes.

    Raises:
      DataError: it is not at hand.
    """
    return _task(config).data_of(config)


def _task(config: ExperimentConfig) -> ModuleType:
    return segmenting if config.segments else classifying


def run(
    config: ExperimentConfig, *, experiment: str, progress: bool = True, checkpoint_interval_s: float = 20.0,
    facts: dict | None = None, keep_diverged: bool = False,
) -> RunRecord:
    """The record of a configuration: loaded if it exists, otherwise trained and written.

    A run that was killed goes on from its last checkpoint and ends with the same weights as an
    uninterrupted one.

    Args:
      config: what to run.
      experiment: folder of the record below `results/runs/` (or `results/<profile>/runs/`).
      progress: show a bar with rounds, time left and the validation accuracy.
      checkpoint_interval_s: time between saves of an unfinished run; 0 saves after each round.
      facts: further facts for the record's environment.json, e.g. how the learning rate was chosen.
      keep_diverged: a run that diverges is recorded up to there, with its best round (`rounds.run_rounds`), and says so
        in environment.json (diverged_at_round, by client). For grids, where it is an answer; else it is an error.
    Raises:
      DataError: there is no such record, and the images are not at hand to train it.
      TrainingError, CacheError, EngineError, RecordError: see there.
    """
    root = paths.runs_root(config.profile) / experiment
    return recorded(config, root) or _train(config, root, progress, checkpoint_interval_s, facts or {}, keep_diverged)


def recorded(config: ExperimentConfig, root: Path) -> RunRecord | None:
    """The record of a configuration in a folder of records; None where there is none, and it must be trained.

    Raises:
      DataError: there is no such record, and the images are not at hand to train it.
      RecordError: there is none and this command does not train, or see `records.find_record`.
    """
    try:
        fingerprint = data_of(config).fingerprint
    except DataError:
        # A published record can be read without the images that it was made from.
        record = records.find_record(root, config, None)
        if record is None:
            raise
        return record
    record = records.find_record(root, config, fingerprint)
    if record is None:
        name = records.run_id(config, fingerprint)
        _refuse_to_train(config.profile, f"There is no record of {name} in {root}")
    return record


def selected_weights(record: RunRecord, *, progress: bool = True, train: bool = True) -> dict[str, list[np.ndarray]]:
    """The selected weights of a run's models, for those who look into them.

    They are not part of the record, but kept in the cache; where they are not, they are trained again.

    Args:
      record: of the run.
      progress: show a bar while they are trained again.
      train: False to refuse to.
    Returns:
      Client name ("all", or one a hospital for "local") -> one array a variable, as `keras.Model.get_weights`.
    Raises:
      DataError: they must be trained again, and the images are not at hand.
      RecordError: they must be trained again, and this command does not train.
    """
    folder, name = paths.cache_root() / "models", record.path.name
    kept = {client: folder / f"{name}_{client}.npz" for client in record.environment["selected_round"]}
    trained = _train_again_if_missing(record, kept, progress, train)
    if trained:  # What was just trained is at hand, whether or not the cache could be written.
        return {client: result.best_weights for client, result in trained.results.items()}
    return _weights_in(kept)


def followed_weights(record: RunRecord, *, progress: bool = True, train: bool = True) -> dict[int, list[np.ndarray]]:
    """The common weights after some rounds (`segmenting.followed_rounds`); as `selected_weights` else.

    Raises:
      CacheError: they were trained again and could not be kept.
    """
    config, diverged = ExperimentConfig(**record.config), record.environment.get("diverged_at_round", {}).get("all")
    kept = {
        number: segmenting.followed_path(record.path.name, number) for number in segmenting.followed_rounds(config)
        if diverged is None or number < diverged
    }
    _train_again_if_missing(record, kept, progress, train)
    try:
        return _weights_in(kept)
    except OSError as error:
        raise CacheError(paths.cache_root() / "models", error) from error


def _train_again_if_missing(record: RunRecord, kept: dict, progress: bool, train: bool) -> Trained | None:
    name = record.path.name
    if all(path.is_file() for path in kept.values()):
        return None
    missing = f"The weights of {name} are not in {paths.cache_root() / 'models'}"
    _refuse_to_train(record.config["profile"], missing)
    if not train:
        raise records.RecordError(f"{missing}. `selected_weights(record)` trains them again.")
    config = ExperimentConfig(**record.config)
    trained = _trained(config, progress, 20.0, keep_diverged=True)
    _keep_weights(config, trained.results)
    return trained


def _weights_in(kept: dict) -> dict:
    weights = {}
    for key, path in kept.items():
        with np.load(path) as arrays:
            weights[key] = [arrays[f"arr_{number}"] for number in range(len(arrays.files))]
    return weights


def _refuse_to_train(profile: str, what: str) -> None:
    if os.environ.get("FL_UTILS_NO_TRAINING"):
        raise records.RecordError(
            f"{what}, and this command does not train. Run `make reproduce PROFILE={profile}` to train it."
        )


def _trained(config: ExperimentConfig, progress: bool, checkpoint_interval_s: float, keep_diverged: bool) -> Trained:
    models = config.num_clients if config.method == "local" else 1
    with tqdm(
        total=models * config.total_rounds, unit="round", desc=f"{config.dataset} {config.method} s{config.seed}",
        disable=not progress, leave=False,
    ) as bar:

        def on_round(score: str) -> None:
            bar.set_postfix_str(score)
            bar.update()

        return _task(config).train(
            config, data_of(config), _checkpoints(config), on_round, checkpoint_interval_s=checkpoint_interval_s,
            keep_diverged=keep_diverged,
        )


def _name(config: ExperimentConfig) -> str:
    return records.run_id(config, data_of(config).fingerprint)


def _checkpoints(config: ExperimentConfig) -> Path:
    return paths.checkpoints_root() / _name(config)


def _train(
    config: ExperimentConfig, root: Path, progress: bool, checkpoint_interval_s: float, facts: dict,
    keep_diverged: bool,
) -> RunRecord:
    start = time.monotonic()
    trained = _trained(config, progress, checkpoint_interval_s, keep_diverged)
    duration_s = time.monotonic() - start
    metrics = pd.concat([result.rows for result in trained.results.values()], ignore_index=True)
    final = pd.DataFrame(trained.final_rows, columns=records.METRIC_COLUMNS)
    record = records.write_record(
        root,
        config,
        fingerprint=data_of(config).fingerprint,
        metrics=pd.concat([metrics, final], ignore_index=True),
        predictions=trained.predictions,
        duration_s=duration_s,
        facts=_facts(trained) | facts,
    )
    _keep_weights(config, trained.results)
    return record


def _facts(trained: Trained) -> dict:
    diverged = {name: result.diverged_at_round for name, result in trained.results.items() if result.diverged_at_round}
    selected = {client: result.best_round for client, result in trained.results.items()}
    return ({"diverged_at_round": diverged} if diverged else {}) | {"selected_round": selected} | trained.facts


def _keep_weights(config: ExperimentConfig, results: dict) -> None:
    """Keeps the selected weights in the cache, for the notebooks that look into the models; checkpoints have served."""
    folder, name = paths.cache_root() / "models", _name(config)
    try:
        for client, result in results.items():
            write_atomically(
                folder / f"{name}_{client}.npz", lambda file, weights=result.best_weights: np.savez(file, *weights)
            )
    except OSError as error:
        tqdm.write(f"The selected weights of {name} were not kept in the cache: {error.strerror}.")
    for path in _checkpoints(config).glob("*.npz"):
        path.unlink()
