"""Who holds which images: the frozen test set, and every hospital's own train, validation and test part."""

import dataclasses

import numpy as np

from fl_utils import seeding
from fl_utils.config import ExperimentConfig
from fl_utils.data.partition import PartitionError, iid_partition, natural_partition
from fl_utils.data.splits import Split, make_split
from fl_utils.data.types import ImageDataset

# The test set is frozen: it does not change with a run's seed.
SPLIT_SEED = 2026


@dataclasses.dataclass(frozen=True)
class Hospitals:
    """One data set, shared out.

    Attributes:
      split: train, validation and test indices of the whole data set.
      train, validation, test: one index array a hospital, into the data set; their unions are
        the split's parts.
    """

    split: Split
    train: list[np.ndarray]
    validation: list[np.ndarray]
    test: list[np.ndarray]


def share_out(dataset: ImageDataset, config: ExperimentConfig) -> Hospitals:
    """Splits the data set once, then shares each part out over the hospitals by the same rule.

    Raises:
      PartitionError: fewer images than hospitals in one of the parts.
    """
    split_seed = SPLIT_SEED if config.split_seed is None else config.split_seed
    split = make_split(dataset, kind=config.split, seed=split_seed)
    if config.partition == "natural":
        return _natural(dataset, config, split)
    parts = {}
    for name in ("train", "validation", "test"):
        index = getattr(split, name)
        if config.partition == "pooled":
            parts[name] = [index]
            continue
        rng = seeding.generator(config.seed, "partition", config.num_clients, name)
        try:
            shares = iid_partition(
                dataset.strata[index], dataset.groups[index], num_clients=config.num_clients, rng=rng
            )
        except PartitionError as error:
            # The part is much smaller than the data set that the user knows.
            raise PartitionError(f"{dataset.name}, {name} part: {error}") from None
        parts[name] = [index[share] for share in shares]
    return Hospitals(split, **parts)


def _natural(dataset: ImageDataset, config: ExperimentConfig, split: Split) -> Hospitals:
    used = np.sort(np.concatenate([split.train, split.validation, split.test]))
    owned = natural_partition(dataset.hospitals[used], dataset.groups[used])
    if len(owned) != config.num_clients:
        raise PartitionError(
            f"{dataset.name} has {len(owned)} natural hospitals ({', '.join(owned)}); num_clients is "
            f"{config.num_clients}. Set num_clients to {len(owned)}."
        )
    parts = {}
    for name in ("train", "validation", "test"):
        parts[name] = [np.intersect1d(used[share], getattr(split, name)) for share in owned.values()]
        empty = [hospital for hospital, part in zip(owned, parts[name], strict=True) if len(part) == 0]
        if empty:
            raise PartitionError(f"{dataset.name}, {name} part: no image of hospital {', '.join(empty)}.")
    return Hospitals(split, **parts)
