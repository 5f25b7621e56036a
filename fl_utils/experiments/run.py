"""One configuration to one record: load it if it is there, otherwise train, resuming what was begun."""

import functools
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from fl_utils import paths, records
from fl_utils.config import ExperimentConfig
from fl_utils.data.load import load_dataset
from fl_utils.data.types import DataError, ImageDataset
from fl_utils.experiments.hospitals import Hospitals, as_taken, pooled, share_out
from fl_utils.files import write_atomically
from fl_utils.records import RunRecord


def dataset_of(name: str, image_size_px: int, num_images: int | None) -> ImageDataset:
    """The data set of a configuration; the last two are kept in memory."""
    return _dataset(paths.data_root(), name, image_size_px, num_images)


@functools.lru_cache(maxsize=2)
def _dataset(data_root: Path, name: str, image_size_px: int, num_images: int | None) -> ImageDataset:
    # The folder belongs to the key: FL_UTILS_DATA may change while Python runs.
    return load_dataset(name, image_size_px=image_size_px, num_images=num_images)


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
    try:
        dataset = dataset_of(config.dataset, config.image_size_px, config.num_images)
    except DataError:
        # A published record can be read without the images that it was made from.
        record = records.find_record(root, config, None)
        if record is None:
            raise
        return record
    record = records.find_record(root, config, dataset.fingerprint)
    if record is None:
        name = records.run_id(config, dataset.fingerprint)
        _refuse_to_train(config.profile, f"There is no record of {name} in {root}")
    return record or _train(config, dataset, root, progress, checkpoint_interval_s, facts or {}, keep_diverged)


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
    if not all(path.is_file() for path in kept.values()):
        missing = f"The weights of {name} are not in {folder}"
        _refuse_to_train(record.config["profile"], missing)
        if not train:
            raise records.RecordError(f"{missing}. `selected_weights(record)` trains them again.")
        config = ExperimentConfig(**record.config)
        dataset = dataset_of(config.dataset, config.image_size_px, config.num_images)
        results = _models(config, dataset, progress, 20.0, keep_diverged=True)[2]
        _keep_weights(config, dataset, results)
        return {client: result.best_weights for client, result, _ in results}
    weights = {}
    for client, path in kept.items():
        with np.load(path) as arrays:
            weights[client] = [arrays[f"arr_{number}"] for number in range(len(arrays.files))]
    return weights


def _refuse_to_train(profile: str, what: str) -> None:
    if os.environ.get("FL_UTILS_NO_TRAINING"):
        raise records.RecordError(
            f"{what}, and this command does not train. Run `make reproduce PROFILE={profile}` to train it."
        )


def _models(
    config: ExperimentConfig, dataset: ImageDataset, progress: bool, checkpoint_interval_s: float, keep_diverged: bool
) -> tuple[ImageDataset, Hospitals, list]:
    """(the images as the hospitals hold them, who holds which, the trained models)."""
    # TensorFlow is loaded only when something is trained: figures are redrawn without it.
    from fl_utils.experiments.training import train_hospital_models

    hospitals = share_out(dataset, config)
    dataset = as_taken(dataset, hospitals, config)
    if config.method == "centralized":
        hospitals = pooled(hospitals)
    models = config.num_clients if config.method == "local" else 1
    with tqdm(
        total=models * config.total_rounds, unit="round", desc=f"{config.dataset} {config.method} s{config.seed}",
        disable=not progress, leave=False,
    ) as bar:

        def on_round(values: dict[str, float]) -> None:
            bar.set_postfix_str(f"validation accuracy {values['accuracy']:.3f}")
            bar.update()

        results = train_hospital_models(
            config, dataset, hospitals, _checkpoints(config, dataset), on_round,
            checkpoint_interval_s=checkpoint_interval_s, keep_diverged=keep_diverged,
        )
    return dataset, hospitals, results


def _checkpoints(config: ExperimentConfig, dataset: ImageDataset) -> Path:
    return paths.checkpoints_root() / records.run_id(config, dataset.fingerprint)


def _train(
    config: ExperimentConfig, dataset: ImageDataset, root: Path, progress: bool, checkpoint_interval_s: float,
    facts: dict, keep_diverged: bool,
) -> RunRecord:
    from fl_utils.experiments.training import num_parameters

    start = time.monotonic()
    dataset, hospitals, results = _models(config, dataset, progress, checkpoint_interval_s, keep_diverged)
    duration_s = time.monotonic() - start
    metrics = pd.concat([result.rows for _, result, _ in results], ignore_index=True)
    predictions, final = [], []
    for client, result, probabilities in results:
        final += _final_rows(config, dataset, hospitals, client, result.best_round, probabilities)
        predictions.append(_prediction_table(dataset, hospitals, client, probabilities))
    record = records.write_record(
        root,
        config,
        fingerprint=dataset.fingerprint,
        metrics=pd.concat([metrics, pd.DataFrame(final, columns=records.METRIC_COLUMNS)], ignore_index=True),
        predictions=pd.concat(predictions, ignore_index=True),
        duration_s=duration_s,
        facts=_facts(dataset, hospitals, results, num_parameters(config, dataset)) | facts,
    )
    _keep_weights(config, dataset, results)
    return record


def _facts(dataset: ImageDataset, hospitals: Hospitals, results: list, parameters: int) -> dict:
    counts = {
        part: [np.bincount(dataset.labels[index], minlength=dataset.num_classes).tolist() for index in getattr(hospitals, part)]
        for part in ("train", "validation", "test")
    }
    diverged = {client: result.diverged_at_round for client, result, _ in results if result.diverged_at_round}
    return ({"diverged_at_round": diverged} if diverged else {}) | {
        "class_names": list(dataset.class_names),
        "synthetic": dataset.synthetic,
        "class_counts": counts,
        "selected_round": {client: result.best_round for client, result, _ in results},
        "num_parameters": parameters,
    }


def _final_rows(config, dataset, hospitals: Hospitals, client: str, round_num: int, probabilities) -> list[tuple]:
    """Every metric on the test set at the selected round; curves hold the few that are followed."""
    from fl_utils.learning.evaluation import CURVE_METRICS, classification_metrics

    test, leaked = hospitals.split.test, hospitals.split.test_leaked
    rows = []
    for split, index in (("test", test), ("test_without_copies", test[~leaked]), ("test_copies", test[leaked])):
        if len(index) == 0 or (split != "test" and not leaked.any()):
            continue
        values = classification_metrics(dataset.labels[index], probabilities[index], dataset.class_names)
        rows += [
            (round_num, client, split, metric, value)
            for metric, value in values.items()
            if split != "test" or metric not in CURVE_METRICS
        ]
    return rows


def _prediction_table(dataset: ImageDataset, hospitals: Hospitals, client: str, probabilities) -> pd.DataFrame:
    test = hospitals.split.test
    hospital = np.full(len(dataset), -1)
    for number, index in enumerate(hospitals.test):
        hospital[index] = number
    table = pd.DataFrame(
        {
            "client": client,
            "split": "test",
            "example": test,
            "group": dataset.groups[test],
            "hospital": hospital[test],
            "copy_in_train": hospitals.split.test_leaked.astype(int),
            "label": dataset.labels[test],
        }
    )
    return table.assign(**{f"p{k}": probabilities[test, k] for k in range(dataset.num_classes)})


def _keep_weights(config: ExperimentConfig, dataset: ImageDataset, results: list) -> None:
    """Keeps the selected weights in the cache, for the notebooks that look into the models; checkpoints have served."""
    folder, name = paths.cache_root() / "models", records.run_id(config, dataset.fingerprint)
    try:
        for client, result, _ in results:
            write_atomically(
                folder / f"{name}_{client}.npz", lambda file, weights=result.best_weights: np.savez(file, *weights)
            )
    except OSError as error:
        tqdm.write(f"The selected weights of {name} were not kept in the cache: {error.strerror}.")
    for path in _checkpoints(config, dataset).glob("*.npz"):
        path.unlink()
