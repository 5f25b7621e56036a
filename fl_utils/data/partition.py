"""Partitions: which hospital holds which training images."""

import numpy as np

from fl_utils.data.splits import groups_by_class


class PartitionError(ValueError):
    """A partition that cannot be made; the text says what was read and what to change."""


def iid_partition(
    labels: np.ndarray, groups: np.ndarray, *, num_clients: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Deals the images out evenly: every hospital gets the same mix of classes.

    Whole groups are dealt class by class, larger groups first, each to the hospital with the fewest images
    of that class so far (then the fewest images; then by lot). So two hospitals differ in a class by at
    most that class's largest group. A group of mixed labels counts as its most frequent one.

    Args:
      labels: int [N], class ids 0..K-1.
      groups: int [N]; images of one group (patient, copies) go to one hospital.
      num_clients: C >= 1.
      rng: the only source of randomness.
    Returns:
      C sorted, disjoint, non-empty int64 arrays whose union is range(N).
    Raises:
      PartitionError: num_clients < 1, arrays of different shape, or fewer groups than hospitals.
    """
    labels, groups = np.asarray(labels), np.asarray(groups)
    if labels.ndim != 1 or labels.shape != groups.shape:
        raise PartitionError(f"labels {labels.shape} and groups {groups.shape} must be 1-D and of one length.")
    if num_clients < 1:
        raise PartitionError(f"num_clients is {num_clients}; expected 1 or more.")
    num_groups = len(np.unique(groups))
    if num_groups < num_clients:
        raise PartitionError(
            f"{len(labels)} images in {num_groups} groups (patients, copies) cannot be shared among "
            f"{num_clients} hospitals: each needs at least one whole group. Use fewer hospitals or more images."
        )
    dealt: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
    total = np.zeros(num_clients, dtype=np.int64)
    for members in groups_by_class(labels, groups):
        members = [members[i] for i in rng.permutation(len(members))]
        members.sort(key=len, reverse=True)  # stable: equal sizes stay in random order
        of_class = np.zeros(num_clients, dtype=np.int64)
        lot = rng.permutation(num_clients)
        for positions in members:
            client = np.lexsort((lot, total, of_class))[0]
            dealt[client].append(positions)
            of_class[client] += len(positions)
            total[client] += len(positions)
    return [np.sort(np.concatenate(parts)) for parts in dealt]


def natural_partition(hospitals: np.ndarray, groups: np.ndarray) -> dict[str, np.ndarray]:
    """Every hospital keeps what it has; a group that lies in several goes to the smallest of them as a whole.

    A group lies in several hospitals where a collection took over images of another (covid19 holds images of
    chest_xray): the smaller one would vanish if the larger kept them.

    Args:
      hospitals: str [N], "" where unknown.
      groups: int [N].
    Returns:
      Hospital -> sorted int64 array; disjoint, their union is range(N); in the order of the names.
    Raises:
      PartitionError: an image without hospital, arrays of different shape, or a hospital that is left empty.
    """
    hospitals, groups = np.asarray(hospitals), np.asarray(groups)
    if hospitals.ndim != 1 or hospitals.shape != groups.shape:
        raise PartitionError(f"hospitals {hospitals.shape} and groups {groups.shape} must be 1-D and of one length.")
    unknown = int(np.sum(hospitals == ""))
    if unknown:
        raise PartitionError(
            f"{unknown} of {len(hospitals)} images name no hospital: there is no natural partition. Use 'iid'."
        )
    names, codes, sizes = np.unique(hospitals, return_inverse=True, return_counts=True)
    by_size = np.argsort(np.argsort(sizes, kind="stable"), kind="stable")  # 0 is the smallest
    _, group = np.unique(groups, return_inverse=True)
    smallest = np.full(group.max(initial=-1) + 1, len(names))
    np.minimum.at(smallest, group, by_size[codes])
    owner = np.argsort(by_size)[smallest[group]] if len(group) else codes
    parts = {name: np.flatnonzero(owner == code) for code, name in enumerate(names)}
    empty = [name for name, part in parts.items() if len(part) == 0]
    if empty:
        raise PartitionError(
            f"Hospital {', '.join(empty)} is left empty: all its groups lie in smaller hospitals, too."
        )
    return parts
