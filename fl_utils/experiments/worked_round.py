"""One round of a small federation, taken apart: by hand in NumPy, and by TFF."""

import dataclasses

import numpy as np
import pandas as pd

from fl_utils import paths, seeding
from fl_utils.data.types import ImageDataset


@dataclasses.dataclass(frozen=True)
class WorkedRound:
    """What a round did.

    Attributes:
      table: one row a hospital and one "mean": client, num_examples, weight, update_norm.
      max_difference: largest absolute difference between the weights by hand and TFF's.
      largest_weight: largest absolute weight after the round, to judge the difference by.
    """

    table: pd.DataFrame
    max_difference: float
    largest_weight: float


def worked_round(
    dataset: ImageDataset, *, sizes: tuple[int, ...] = (40, 80, 120, 160), learning_rate: float = 0.05,
    batch_size: int = 16, seed: int = 0,
) -> WorkedRound:
    """Softmax regression, one round over hospitals of uneven size, by hand and by TFF.

    Args:
      dataset: where the hospitals' images are drawn from.
      sizes: images a hospital; uneven, so that the weights of the mean are seen.
      learning_rate, batch_size: of the hospitals' SGD, one pass, no momentum.
      seed: draws the images and the order of the batches.
    Raises:
      ValueError: the data set has fewer images than the sizes need.
    """
    import tensorflow as tf

    from fl_utils.learning import reference
    from fl_utils.learning.algorithms import FEDAVG
    from fl_utils.learning.client_files import write_client_files
    from fl_utils.learning.federated import FederatedLearner
    from fl_utils.learning.local import LocalSettings, example_order
    from fl_utils.learning.process import build_process
    from fl_utils.models.classifiers import build_softmax_regression

    if sum(sizes) > len(dataset):
        raise ValueError(f"The hospitals need {sum(sizes)} images, {dataset.name} has {len(dataset)}.")
    drawn = seeding.generator(seed, "worked_round").permutation(len(dataset))[: sum(sizes)]
    parts = np.split(drawn, np.cumsum(sizes)[:-1])
    shape, num_classes = dataset.images.shape[1:], dataset.num_classes
    ones = np.ones(num_classes, np.float32)

    process = build_process(
        FEDAVG,
        lambda: build_softmax_regression(shape, num_classes),
        LocalSettings(batch_size=batch_size, learning_rate=learning_rate, momentum=0.0),
    )
    files = write_client_files(paths.cache_root() / "clients", dataset.images, dataset.labels, parts)
    learner = FederatedLearner(process, files, ones, clients_per_round=len(sizes), seed=seed)
    start = learner.weights()
    learner.do_round(1)

    deltas = []
    for client, part in enumerate(parts):
        # The first epoch's seed, as in LocalTrainer.run.
        round_seed = seeding.tf_seed(seed, "batch_order", str(client), 1)
        order = example_order(len(part), tf.random.experimental.stateless_fold_in(round_seed, 0)).numpy()
        batches = [order[i : i + batch_size] for i in range(0, len(part), batch_size)]
        images, labels = dataset.images[part], dataset.labels[part]
        deltas.append(reference.client_update(start, images, labels, batches, ones, learning_rate))
    by_hand = reference.federated_average(start, deltas, sizes)

    rows = [
        {"client": f"Hospital {client}", "num_examples": size, "weight": size / sum(sizes), "update_norm": _norm(delta)}
        for client, (size, delta) in enumerate(zip(sizes, deltas, strict=True))
    ]
    mean = [w - v for w, v in zip(start, by_hand, strict=True)]
    rows.append({"client": "mean", "num_examples": np.nan, "weight": np.nan, "update_norm": _norm(mean)})
    difference = max(float(np.abs(a - b).max()) for a, b in zip(by_hand, learner.weights(), strict=True))
    return WorkedRound(pd.DataFrame(rows), difference, max(float(np.abs(w).max()) for w in by_hand))


def _norm(arrays) -> float:
    return float(np.sqrt(sum((array**2).sum() for array in arrays)))
