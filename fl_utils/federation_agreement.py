"""The same small training three ways: by real processes, by TFF, and without either; how far the weights are apart."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fl_utils import seeding
from fl_utils.children import free_addresses
from fl_utils.config import ExperimentConfig, make_config
from fl_utils.experiments.hospitals import share_out
from fl_utils.experiments.run import data_of
from fl_utils.experiments.training import federated_learner, hospital_updates
from fl_utils.federations import federation_of, quiet, run_federation, set_up
from fl_utils.learning import reference
from fl_utils.learning.configured import local_settings, new_classifier
from fl_utils.learning.local import class_weights, example_order
from fl_utils.learning.rounds import load_checkpoint

Weights = list[np.ndarray]
ROUNDS = 3
#: Softmax regression has gradients that NumPy can follow; the network has all that a network has.
_METHODS = {
    "fedavg": {"model": "softmax_regression", "augment": False},
    "fedprox": {"model": "small_cnn", "proximal_strength": 0.1},
    "fedadam": {"model": "small_cnn", "server_learning_rate": 0.01},
}


def agreement_config(method: str, **fields) -> ExperimentConfig:
    """A small training of three uneven hospitals on phantoms."""
    return make_config(**{
        "dataset": "phantom_brain", "method": method, "partition": "quantity", "quantity_alpha": 5.0, "num_clients": 3, "seed": 3,
        "profile": "smoke", "image_size_px": 24, "num_images": 120, "total_rounds": ROUNDS, "client_batch_size": 16,
        "client_learning_rate": 0.02, **_METHODS[method], **fields,
    })


def distances(method: str) -> pd.DataFrame:
    """Runs the training in each way that there is for the method.

    Returns:
      See `distance_table`.
    """
    quiet()
    config = agreement_config(method)
    deployed, others = by_flower(config), {"TFF": by_tff(config)}
    if config.model == "softmax_regression":
        others["NumPy"] = by_numpy(config)
    if method in ("fedavg", "fedprox"):
        others["the same code in one process"] = in_one_process(config)
    return distance_table(config, {f"Flower – {name}": (deployed, weights) for name, weights in others.items()})


def sensitivity(config: ExperimentConfig) -> pd.DataFrame:
    """The same for a training of a real model, beside what a change of its start in the seventh digit does to it.

    Returns:
      See `distance_table`.
    """
    quiet()
    deployed, alone = by_flower(config), in_one_process(config)
    signs = seeding.generator(config.seed, "moved_start")
    moved = [weight * (1 + 1e-7 * signs.choice([-1, 1], weight.shape)).astype(np.float32) for weight in _initial(config)]
    return distance_table(config, {
        "Flower – the same code in one process": (deployed, alone), "Flower – TFF": (deployed, by_tff(config)),
        "start moved in the seventh digit – not moved": (in_one_process(config, moved), alone),
    })


def distance_table(config: ExperimentConfig, pairs: Mapping[str, tuple[Weights, Weights]]) -> pd.DataFrame:
    """A row a pair: dataset, method, model, pair, distance (largest over all weights), moved (of the first from the start),
    parameters, rounds."""
    start = _initial(config)
    about = {"dataset": config.dataset, "method": config.method, "model": config.model}
    size = {"parameters": sum(weight.size for weight in start), "rounds": config.total_rounds}
    return pd.DataFrame([
        about | {"pair": pair, "distance": farthest(one, other), "moved": farthest(one, start)} | size
        for pair, (one, other) in pairs.items()
    ])


def by_flower(config: ExperimentConfig) -> Weights:
    """The common weights after the last round, by real processes."""
    with tempfile.TemporaryDirectory(prefix="fl_utils_federation_") as root:
        folder = Path(root) / "federation"
        set_up(folder, federation_of(config, address=free_addresses(1)[0]))
        run_federation(folder, progress=False)
        saved = load_checkpoint(folder / "server" / "checkpoint.npz")
    return saved["state"][: len(_initial(config))]


def by_tff(config: ExperimentConfig) -> Weights:
    """The same by the simulation."""
    dataset = data_of(config)
    learner = federated_learner(config, dataset, share_out(dataset, config))
    for number in range(1, config.total_rounds + 1):
        learner.do_round(number)
    return learner.weights()


def by_numpy(config: ExperimentConfig) -> Weights:
    """The same by `learning.reference`, in float64; softmax regression only."""
    dataset, settings = data_of(config), local_settings(config)
    hospitals, weights = share_out(dataset, config), _initial(config)
    counts = class_weights(dataset.labels[np.concatenate(hospitals.train)], dataset.num_classes, enabled=config.class_weighting)
    for number in range(1, config.total_rounds + 1):
        deltas = [
            reference.client_update(
                weights, dataset.images[own], dataset.labels[own], _batches(config, len(own), client, number), counts,
                settings.learning_rate, settings.momentum,
            )
            for client, own in enumerate(hospitals.train)
        ]
        weights = reference.federated_average(weights, deltas, [len(own) for own in hospitals.train])
    return weights


def in_one_process(config: ExperimentConfig, start: Weights | None = None) -> Weights:
    """The hospitals' own code, one after another in this process, averaged by NumPy; FedAvg and FedProx."""
    dataset = data_of(config)
    hospitals, weights = share_out(dataset, config), start or _initial(config)
    sizes = [len(own) for own in hospitals.train]
    for number in range(1, config.total_rounds + 1):
        deltas = hospital_updates(config, dataset, hospitals, weights, number)
        means = [
            sum(size / sum(sizes) * part for size, part in zip(sizes, parts, strict=True)) for parts in zip(*deltas, strict=True)
        ]
        weights = [weight - np.asarray(mean, np.float32) for weight, mean in zip(weights, means, strict=True)]
    return weights


def farthest(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float:
    """The largest difference of two models' weights."""
    return max(float(np.abs(np.asarray(a, np.float64) - b).max()) for a, b in zip(one, other, strict=True))


def _initial(config: ExperimentConfig) -> Weights:
    dataset = data_of(config)
    return [weight.numpy() for weight in new_classifier(config, dataset.images.shape[1:], dataset.num_classes).trainable_variables]


def _batches(config: ExperimentConfig, number: int, client: int, round_num: int) -> list[np.ndarray]:
    """The batches of a hospital's round, in the order of `LocalTrainer.run`."""
    import tensorflow as tf

    seed, batches = seeding.tf_seed(config.seed, "batch_order", str(client), round_num), []
    for epoch in range(config.client_epochs_per_round):
        order = example_order(number, tf.random.experimental.stateless_fold_in(seed, epoch)).numpy()
        batches += [order[start : start + config.client_batch_size] for start in range(0, number, config.client_batch_size)]
    return batches
