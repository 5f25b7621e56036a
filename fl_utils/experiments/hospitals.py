"""Who holds which images: the frozen test set, and every hospital's own train, validation and test part."""

import dataclasses

import numpy as np

from fl_utils import seeding
from fl_utils.config import NUM_SHADOWS, SCANNER_PARTITIONS, ExperimentConfig
from fl_utils.data import phantoms
from fl_utils.data.markers import mark
from fl_utils.data.partition import (
    PartitionError, deal, dirichlet_shares, iid_partition, natural_partition, pathological_shares, quantity_shares,
)
from fl_utils.data.splits import Split, make_split
from fl_utils.data.types import ImageDataset
from fl_utils.trust.lira import shadow_members

# The test set is frozen: it does not change with a run's seed.
SPLIT_SEED = 2026
#: Images that a hospital holds at least, by part: enough to train on, and one to choose its best round with.
MIN_EXAMPLES = {"train": 10, "validation": 1, "test": 0}


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


def share_out(
    dataset: ImageDataset, config: ExperimentConfig, institutions: np.ndarray | None = None
) -> Hospitals:
    """Splits the data set once, then shares each part out over the hospitals by the same shares.

    Args:
      dataset: the images.
      config: the run.
      institutions: str [N], who holds what with partition "natural", where that is not `dataset.hospitals`; the split
        does not depend on it.
    Raises:
      PartitionError: too few images for the hospitals, or a partition that cannot be.
    """
    split_seed = SPLIT_SEED if config.split_seed is None else config.split_seed
    split = make_split(dataset, kind=config.split, seed=split_seed)
    if config.partition == "pooled":
        return Hospitals(split, [split.train], [split.validation], [split.test])
    if config.partition == "natural":
        return _natural(dataset, config, split, dataset.hospitals if institutions is None else institutions)
    shares = partition_shares(config, dataset.num_classes)
    parts = {}
    for name, minimum in MIN_EXAMPLES.items():
        index = getattr(split, name)
        rng = seeding.generator(config.seed, "partition", config.num_clients, name)
        try:
            if shares is None:
                dealt = iid_partition(
                    dataset.strata[index], dataset.groups[index], num_clients=config.num_clients, rng=rng
                )
            else:
                dealt = deal(
                    dataset.labels[index], dataset.groups[index], shares, rng=rng, min_client_examples=minimum
                )
        except PartitionError as error:
            # The part is much smaller than the data set that the user knows.
            raise PartitionError(f"{dataset.name}, {name} part: {error}") from None
        parts[name] = [index[share] for share in dealt]
    return Hospitals(split, **_shadowed(dataset, config, split, parts))


def _shadowed(dataset: ImageDataset, config: ExperimentConfig, split: Split, parts: dict) -> dict:
    """The parts, of training only that half that the run's shadow model takes, if it is one."""
    if config.shadow is None:
        return parts
    chosen = shadows(dataset, split)[config.shadow]
    return parts | {"train": [part[chosen[part]] for part in parts["train"]]}


def shadows(dataset: ImageDataset, split: Split) -> np.ndarray:
    """bool [NUM_SHADOWS, N]: which training examples each shadow model takes, whole patients; False outside of training.

    The same for all seeds, so that the models of a membership attack can be compared.
    """
    chosen = np.zeros((NUM_SHADOWS, len(dataset)), bool)
    rng = seeding.generator(0, "shadows", dataset.name)
    chosen[:, split.train] = shadow_members(dataset.groups[split.train], NUM_SHADOWS, rng=rng)
    return chosen


def partition_shares(config: ExperimentConfig, num_classes: int) -> np.ndarray | None:
    """The partition's shares [K, C], drawn once for the run's train, validation and test parts; None for even ones.

    Raises:
      PartitionError: a partition that cannot be.
    """
    rng = seeding.generator(config.seed, "partition", config.num_clients, "shares")
    size = {"num_classes": num_classes, "num_clients": config.num_clients}
    if config.partition == "dirichlet":
        return dirichlet_shares(**size, alpha=config.dirichlet_alpha, rng=rng)
    if config.partition == "pathological":
        return pathological_shares(**size, classes_per_client=config.classes_per_client, rng=rng)
    if config.partition in ("quantity", "mixed"):
        return quantity_shares(**size, alpha=config.quantity_alpha, rng=rng)
    return None


def as_taken(dataset: ImageDataset, hospitals: Hospitals, config: ExperimentConfig) -> ImageDataset:
    """The data set as the hospitals hold it; itself, where they add nothing.

    With partition "feature" or "mixed" each hospital has a made-up scanner (`phantoms.draw_scanners`) that changes tone, sharpness
    and noise of all its images, whatever their class. Marked hospitals put a mark on their training and validation
    images of the last class. Shuffled labels are dealt out anew within the train and the validation part. The test
    images keep their labels and bear no mark.
    """
    if config.partition in SCANNER_PARTITIONS:
        owner = owners(hospitals, len(dataset)).clip(0)
        scanners = phantoms.draw_scanners(config.num_clients, rng=seeding.generator(config.seed, "scanners"))
        noise = seeding.generator(config.seed, "scanner_noise")
        scanned = phantoms.scan(dataset.images, owner, profiles=scanners, rng=noise)
        dataset = dataclasses.replace(dataset, images=scanned)
    if config.marked_hospitals:
        held = [*hospitals.train[: config.marked_hospitals], *hospitals.validation[: config.marked_hospitals]]
        index = np.concatenate(held)
        index, images = index[dataset.labels[index] == dataset.num_classes - 1], dataset.images.copy()
        images[index] = mark(images[index])
        dataset = dataclasses.replace(dataset, images=images)
    if config.shuffled_labels:
        rng, labels = seeding.generator(config.seed, "shuffled_labels"), dataset.labels.copy()
        for index in (hospitals.split.train, hospitals.split.validation):
            labels[index] = rng.permutation(labels[index])
        dataset = dataclasses.replace(dataset, labels=labels)
    return dataset


def owners(hospitals: Hospitals, num_examples: int) -> np.ndarray:
    """int64 [N], the hospital that holds each example in one of its parts; -1 for none."""
    owner = np.full(num_examples, -1, np.int64)
    for parts in (hospitals.train, hospitals.validation, hospitals.test):
        for client, index in enumerate(parts):
            owner[index] = client
    return owner


def pooled(hospitals: Hospitals) -> Hospitals:
    """The same images in one place."""
    split = hospitals.split
    return Hospitals(split, [split.train], [split.validation], [split.test])


def _natural(dataset: ImageDataset, config: ExperimentConfig, split: Split, institutions: np.ndarray) -> Hospitals:
    used = np.sort(np.concatenate([split.train, split.validation, split.test]))
    owned = natural_partition(institutions[used], dataset.groups[used])
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
    return Hospitals(split, **_shadowed(dataset, config, split, parts))
