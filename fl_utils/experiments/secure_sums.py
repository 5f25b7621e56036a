"""What encrypted aggregation costs and how exact it is, on real updates: measured once, written whole, then loaded.

    sums = measure("paper", record=record)      # of a federated classifier run
    sums.aggregation, sums.head, sums.facts

Times are of one machine at one time, which `facts` describes; they are not measured anew when a notebook is executed.
"""

import dataclasses
import importlib.metadata
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from fl_utils import paths
from fl_utils.config import ExperimentConfig
from fl_utils.data.types import ImageDataset
from fl_utils.experiments.classifying import trained_model
from fl_utils.experiments.explaining import test_examples
from fl_utils.experiments.hospitals import as_taken, share_out
from fl_utils.experiments.measured import Content, Layout, digest, load_or_compute
from fl_utils.experiments.run import data_of, selected_weights
from fl_utils.experiments.secret_numbers import five_in_shares, recombined, sum_in_shares, what_one_share_tells
from fl_utils.experiments.secure_costs import REPETITIONS, aggregation, encrypted_head_table
from fl_utils.records import RunRecord, describe_environment

__all__ = [
    "SecureSums", "aggregation", "encrypted_head_table", "five_in_shares", "measure", "recombined", "sum_in_shares",
    "what_one_share_tells",
]
#: Folder of the measurements, beside the runs'.
SECURE_SUMS = "secure_sums"
VERSION = 1  # raise it when measurements change their meaning: old ones are then ignored
#: Test images for the encrypted last layer, at most.
NUM_IMAGES = 8
_LAYOUT = Layout("measurements", ("aggregation", "head"), "%.4g", verb="make")
_LIBRARIES = ("tenseal", "mpyc")


@dataclasses.dataclass(frozen=True, eq=False)
class SecureSums:
    """The measurements on one run's model and updates.

    Attributes:
      aggregation: see `aggregation`; of one round that starts at the run's selected weights.
      head: see `encrypted_head_table`; of the run's selected model. `image` is the example's place in the data set.
      facts: run (its name), dataset, synthetic, class_names, model, num_parameters, num_examples (by hospital),
        round (whose updates they are), image_size_px, repetitions, and of the machine cpu_count, platform, python,
        versions, git_commit.
      path: the folder.
    """

    aggregation: pd.DataFrame
    head: pd.DataFrame
    facts: dict
    path: Path


def measure(profile: str, *, record: RunRecord, progress: bool = True) -> SecureSums:
    """The measurements for a run: loaded if they are there, otherwise made; minutes for a model of a million values.

    The updates are what the run's hospitals send in the round after the selected one, computed from the selected
    weights (trained again where the cache does not hold them).

    Args:
      profile: below whose runs the measurements are.
      record: a run of a federated classifier whose hospitals send the change of plain local SGD ("fedavg" and others).
      progress: show a bar.
    Raises:
      RecordError: they are not there, and this command does not make them; or they cannot be written or read.
      DataError: they must be made, and the images are not at hand.
      ValueError: the run is of another kind.
    """
    folder = paths.runs_root(profile) / SECURE_SUMS / _name(record)
    found = load_or_compute(folder, _LAYOUT, profile, lambda: _measured(profile, record, progress))
    return SecureSums(**found.tables, facts=found.facts, path=folder)


def _name(record: RunRecord) -> str:
    return f"{record.config['dataset']}_s{record.config['seed']}_{digest([VERSION, record.path.name])}"


def _measured(profile: str, record: RunRecord, progress: bool) -> Content:
    config = ExperimentConfig(**record.config)
    _check(config, record.path.name)
    from fl_utils.experiments.training import hospital_updates  # loads TensorFlow

    data = data_of(config)
    hospitals = share_out(data, config)
    weights = selected_weights(record, progress=progress)["all"]
    round_num = record.environment["selected_round"]["all"] + 1
    title = f"{config.dataset} s{config.seed}: sums in secret"
    with tqdm(total=3, desc=title, disable=not progress, leave=False) as bar:
        sent = hospital_updates(config, as_taken(data, hospitals, config), hospitals, weights, round_num)
        updates = {f"hospital {client}": update for client, update in enumerate(sent)}
        num_examples = {name: len(own) for name, own in zip(updates, hospitals.train, strict=True)}
        bar.update()
        added = aggregation(updates, num_examples, repetitions=REPETITIONS)
        bar.update()
        examples = test_examples(data, config, max(1, NUM_IMAGES // data.num_classes))[:NUM_IMAGES]
        layer = _last_layer(config, data, weights, examples)
        head = encrypted_head_table(*layer, data.labels[examples], repetitions=REPETITIONS)
        bar.update()
    environment = describe_environment()
    environment["versions"] |= {name: importlib.metadata.version(name) for name in _LIBRARIES}
    facts = {
        "version": VERSION, "profile": profile, "run": record.path.name, "dataset": config.dataset,
        "synthetic": data.synthetic, "class_names": list(data.class_names), "model": config.model,
        "num_parameters": sum(part.size for part in sent[0]), "num_examples": num_examples, "round": round_num,
        "image_size_px": config.image_size_px, "repetitions": REPETITIONS,
    }
    return Content({"aggregation": added, "head": head.assign(image=examples)}, facts | environment)


def _check(config: ExperimentConfig, name: str) -> None:
    """Refuses runs whose hospitals send something else than the change of plain local SGD."""
    wanted = config.federated and not config.segments and config.privacy_unit is None
    if wanted:
        from fl_utils.learning.algorithms import FEDAVG, algorithm_named  # loads TFF

        wanted = algorithm_named(config.method).client_update is FEDAVG.client_update
    if not wanted:
        raise ValueError(
            f"The run {name} is of method {config.method!r}, model {config.model!r}, privacy_unit "
            f"{config.privacy_unit!r}; expected a federated classifier whose hospitals send what plain local SGD "
            "changed, such as method 'fedavg'."
        )


def _last_layer(
    config: ExperimentConfig, data: ImageDataset, weights: list[np.ndarray], examples: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the last layer is given for the examples, float32 [N, F]; its kernel [F, K] and bias [K]."""
    import keras

    model = trained_model(config, data, weights)
    last = model.layers[-1]
    features = keras.Model(model.inputs, last.input)(data.images[examples].astype(np.float32) / 255.0, training=False)
    return features.numpy(), *last.get_weights()
