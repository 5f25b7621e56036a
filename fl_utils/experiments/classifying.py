"""The runs of classifiers: their images, their training, and the tables of their records."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from fl_utils import paths
from fl_utils.config import ExperimentConfig
from fl_utils.data.load import load_dataset
from fl_utils.data.types import ImageDataset
from fl_utils.experiments.hospitals import Hospitals, as_taken, owners, pooled, share_out
from fl_utils.experiments.protection import facts_of
from fl_utils.experiments.trained import Trained

if TYPE_CHECKING:
    import keras

    from fl_utils.learning.rounds import TrainingResult


def dataset_of(name: str, image_size_px: int, num_images: int | None) -> ImageDataset:
    """The data set of a configuration; the last two are kept in memory."""
    return _dataset(paths.data_root(), name, image_size_px, num_images)


@functools.lru_cache(maxsize=2)
def _dataset(data_root: Path, name: str, image_size_px: int, num_images: int | None) -> ImageDataset:
    # The folder belongs to the key: FL_UTILS_DATA may change while Python runs.
    return load_dataset(name, image_size_px=image_size_px, num_images=num_images)


def data_of(config: ExperimentConfig) -> ImageDataset:
    """The images of a configuration."""
    return dataset_of(config.dataset, config.image_size_px, config.num_images)


def train(
    config: ExperimentConfig, dataset: ImageDataset, checkpoints: Path, on_round: Callable[[str], None], **options
) -> Trained:
    """Trains a configuration's models; see `training.train_hospital_models` for the options."""
    # TensorFlow is loaded only when something is trained: figures are redrawn without it.
    from fl_utils.experiments.training import train_hospital_models

    hospitals = share_out(dataset, config)
    dataset = as_taken(dataset, hospitals, config)
    if config.method == "centralized":
        hospitals = pooled(hospitals)
    results = train_hospital_models(
        config, dataset, hospitals, checkpoints,
        lambda values: on_round(f"validation accuracy {values['accuracy']:.3f}"), **options,
    )
    return judged(config, dataset, hospitals, results)


def judged(
    config: ExperimentConfig, dataset: ImageDataset, hospitals: Hospitals, results: Sequence[tuple[str, "TrainingResult", np.ndarray]]
) -> Trained:
    """What the record of trained models holds.

    Args:
      config, dataset, hospitals: of the run; the images as the hospitals hold them.
      results: of each model its client, its training, its class probabilities float32 [N, K].
    """
    from fl_utils.experiments.training import num_parameters

    final, predictions = [], []
    for client, result, probabilities in results:
        final += _final_rows(config, dataset, hospitals, client, result.best_round, probabilities)
        predictions.append(_prediction_table(dataset, hospitals, client, probabilities))
    return Trained(
        {client: result for client, result, _ in results}, final, pd.concat(predictions, ignore_index=True),
        _facts(dataset, hospitals, num_parameters(config, dataset)) | facts_of(config, dataset, hospitals),
    )


def trained_model(config: ExperimentConfig, dataset: ImageDataset, weights: Sequence[np.ndarray]) -> "keras.Model":
    """A run's classifier with its weights; statistics that did not travel stay as the model was built with.

    Args:
      config: of the run.
      dataset: its images, for their shape and classes.
      weights: one array a travelling weight, see `run.selected_weights`.
    Raises:
      ValueError: the weights are another model's.
    """
    from fl_utils.models.classifiers import build_model

    model = build_model(config.model, dataset.images.shape[1:], dataset.num_classes)
    variables = model.trainable_variables
    if len(weights) != len(variables):
        variables = variables + model.non_trainable_variables
    for variable, weight in zip(variables, weights, strict=True):
        variable.assign(weight)
    return model


def _facts(dataset: ImageDataset, hospitals: Hospitals, parameters: int) -> dict:
    counts = {
        part: [np.bincount(dataset.labels[index], minlength=dataset.num_classes).tolist() for index in getattr(hospitals, part)]
        for part in ("train", "validation", "test")
    }
    return {
        "class_names": list(dataset.class_names),
        "synthetic": dataset.synthetic,
        "class_counts": counts,
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
    table = pd.DataFrame(
        {
            "client": client,
            "split": "test",
            "example": test,
            "group": dataset.groups[test],
            "hospital": owners(hospitals, len(dataset))[test],
            "copy_in_train": hospitals.split.test_leaked.astype(int),
            "label": dataset.labels[test],
        }
    )
    return table.assign(**{f"p{k}": probabilities[test, k] for k in range(dataset.num_classes)})
