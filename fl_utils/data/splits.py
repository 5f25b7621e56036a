"""Train, validation and test: two ways to cut them, both pure functions of (dataset, arguments)."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from fl_utils import seeding
from fl_utils.data.types import DataError, ImageDataset


SplitKind = Literal[
    "deduplicated", "near", "pictures", "random", "published", "published_clean", "published_thinned"
]


@dataclass(frozen=True, eq=False)
class Split:
    """Indices into a dataset.

    Attributes:
      train, validation, test: sorted int64 arrays, pairwise disjoint.
      test_leaked: bool [len(test)]; True where the same picture lies in train or validation.
      name: the kind of split.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    test_leaked: np.ndarray
    name: str


def make_split(
    dataset: ImageDataset,
    *,
    kind: SplitKind,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int,
) -> Split:
    """Cuts a dataset into train, validation and test.

    "deduplicated", the leak-free split that the suite uses: keeps one image of each picture (the first by path),
    pools the published parts and cuts anew. No group (patient, copies, near-duplicates, block of a series)
    straddles two sides. The others show what each of these ties is worth:
    "near": as "deduplicated", but only copies and near-duplicates are kept together.
    "pictures": one image of each picture, cut as if nothing else tied them.
    "random": every file for itself, copies included.
    "published": test is the published test part as downloaded, copies included, as others report
    it; validation is cut from the published train part. Groups that the publishers themselves put
    on both sides stay there, and `test_leaked` marks the copies.
    "published_clean": the same test part; train and validation without every image whose group is in it.
    "published_thinned": the control of "published_clean": as many images of each class are left out, but
    such that have nothing to do with the test part, as far as there are such.

    Each class (of each natural hospital) is cut in the stated fractions as nearly as whole groups allow: within
    half the class's largest group. Each side gets every class that has three groups or more; with two
    groups a class is in train and test, with one in train only.

    Args:
      dataset: the images.
      kind: see above.
      validation_fraction: share of what is not test, 0 <= fraction < 1; 0 gives no validation.
      test_fraction: share of the images kept, 0 < fraction < 1; not for the published kinds.
      seed: >= 0; the only source of randomness.
    Raises:
      DataError: a fraction out of range, an unknown kind, or no image left for train or test.
    """
    if not 0 <= validation_fraction < 1:
        raise DataError(f"validation_fraction is {validation_fraction}; expected 0 <= fraction < 1.")
    if not 0 < test_fraction < 1:
        raise DataError(f"test_fraction is {test_fraction}; expected 0 < fraction < 1.")
    if kind not in get_args(SplitKind):
        raise DataError(f"There is no split {kind!r}; expected one of {', '.join(map(repr, get_args(SplitKind)))}.")
    kept, groups = _ties(dataset, kind)
    if kind.startswith("published"):
        test = np.flatnonzero(dataset.published_split == "test")
        rest = _published_train(dataset, kind, test, seed)
    else:
        spare = 2 if validation_fraction else 1  # what train and validation need of a class
        test = _draw(dataset, groups, kept, test_fraction, spare, seeding.generator(seed, "split", kind, "test"))
        rest = np.setdiff1d(kept, test)
    validation = np.array([], dtype=np.int64)
    if validation_fraction:
        # The published kinds draw alike, so that what they leave out is all that they differ in.
        rng = seeding.generator(seed, "split", kind.partition("_")[0], "validation")
        validation = _draw(dataset, groups, rest, validation_fraction, 1, rng)
    train = np.setdiff1d(rest, validation)
    for side, indices in (("train", train), ("test", test)):
        if len(indices) == 0:
            raise DataError(
                f"{dataset.name}: the {kind} split leaves no image for {side}; {len(dataset)} images in "
                f"{len(np.unique(dataset.groups))} groups were read. Use more images or other fractions."
            )
    leaked = np.isin(dataset.picture_groups[test], dataset.picture_groups[rest])
    return Split(train, validation, test, leaked, kind)


def _ties(dataset: ImageDataset, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Which images a kind of split uses, and the groups (int [N]) that it keeps together."""
    everything = np.arange(len(dataset))
    if kind == "random":
        return everything, everything
    if kind.startswith("published"):
        return everything, dataset.groups
    kept = np.sort(np.unique(dataset.picture_groups, return_index=True)[1])
    return kept, {"pictures": dataset.picture_groups, "near": dataset.near_groups}.get(kind, dataset.groups)


def _published_train(dataset: ImageDataset, kind: str, test: np.ndarray, seed: int) -> np.ndarray:
    rest = np.setdiff1d(np.arange(len(dataset)), test)
    if kind == "published":
        return rest
    tied = np.isin(dataset.groups[rest], dataset.groups[test])
    if kind == "published_clean":
        return rest[~tied]
    rng = seeding.generator(seed, "split", kind)
    left_out = [rest[:0]]  # where there is no training image at all
    for label in np.unique(dataset.strata[rest]):
        of_class = dataset.strata[rest] == label
        others = rng.permutation(rest[of_class & ~tied])
        left_out.append(others[: np.sum(of_class & tied)])
    return np.setdiff1d(rest, np.concatenate(left_out))


def groups_by_class(labels: np.ndarray, groups: np.ndarray) -> list[list[np.ndarray]]:
    """Whole groups, listed under their class: the most frequent label in the group, the smaller on a tie.

    Args:
      labels: int [N].
      groups: int [N].
    Returns:
      For each class that occurs, ascending, a list of sorted position arrays into `labels`.
    """
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1) if len(order) else []
    by_class: dict[int, list[np.ndarray]] = {}
    for positions in members:
        by_class.setdefault(int(np.bincount(labels[positions]).argmax()), []).append(positions)
    return [by_class[label] for label in sorted(by_class)]


def _draw(dataset: ImageDataset, groups, indices, fraction: float, spare: int, rng: np.random.Generator) -> np.ndarray:
    """Draws whole groups with about `fraction` of each class, sorted; leaves `spare` groups where it can.

    scikit-learn's StratifiedGroupKFold takes 1/k only and may leave a class out of a fold.
    """
    drawn = [np.array([], dtype=np.int64)]
    # A class is cut in every natural hospital by itself, so that each has a test part of its own.
    hospitals = np.unique(dataset.hospitals, return_inverse=True)[1]
    strata = hospitals * (dataset.num_classes + 1) + dataset.strata
    for members in groups_by_class(strata[indices], groups[indices]):
        target = fraction * sum(map(len, members))
        most = max(len(members) - spare, min(1, len(members) - 1))
        members = [members[i] for i in rng.permutation(len(members))]
        taken, size = [], 0
        for positions in members:
            # Takes a group if the total comes nearer to the target with it than without it.
            if len(taken) < most and size + len(positions) / 2 <= target:
                taken.append(positions)
                size += len(positions)
        if not taken and most:
            taken = [min(members, key=len)]
        drawn += taken
    return np.sort(np.asarray(indices)[np.concatenate(drawn)])
