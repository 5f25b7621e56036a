"""Partitions: which hospital holds which images.

Every partition but the natural one is a table of shares, shares[k, c] = which part of class k hospital c gets, and
one way to deal images out by such a table in whole groups. The shares are drawn once a run, so that a hospital's train,
validation and test parts have the same mix of classes.
"""

from collections.abc import Sequence

import numpy as np
from scipy.spatial.distance import pdist

from fl_utils.data.splits import groups_by_class
from fl_utils.statistics import gini


class PartitionError(ValueError):
    """A partition that cannot be made; the text says what was read and what to change."""


def iid_shares(num_classes: int, num_clients: int) -> np.ndarray:
    """Every hospital gets the same part of every class: float [K, C] of 1/C."""
    _check_clients(num_clients)
    return np.full((num_classes, num_clients), 1.0 / num_clients)


def dirichlet_shares(num_classes: int, num_clients: int, *, alpha: float, rng: np.random.Generator) -> np.ndarray:
    """Label skew: each class is shared over the hospitals with proportions ~ Dir(alpha).

    Args:
      num_classes, num_clients: K, C >= 1.
      alpha: unitless, > 0; smaller is more skewed, 100 is nearly even.
      rng: the only source of randomness.
    Returns:
      float [K, C]; rows sum to 1.
    Raises:
      PartitionError: alpha is not a positive number, or num_clients < 1.
    Source: Yurochkin et al. 2019, arXiv:1905.12022.
    """
    _check_clients(num_clients)
    _check_alpha("dirichlet_alpha", alpha)
    return rng.dirichlet(np.full(num_clients, alpha), size=num_classes)


def pathological_shares(
    num_classes: int, num_clients: int, *, classes_per_client: int, rng: np.random.Generator
) -> np.ndarray:
    """Each hospital sees `classes_per_client` classes only; a class is shared evenly by the hospitals that see it.

    Hospital c sees k consecutive classes of a shuffled cycle, starting where hospital c - 1 ended, so every class
    is seen as soon as C k >= K, and by nearly equally many hospitals.

    Returns:
      float [K, C]; rows sum to 1.
    Raises:
      PartitionError: classes_per_client not in 1..K, or too few hospitals to see every class.
    Source: McMahan et al. 2017, arXiv:1602.05629, section 3, "pathological non-IID".
    """
    _check_clients(num_clients)
    if not 1 <= classes_per_client <= num_classes:
        raise PartitionError(f"classes_per_client is {classes_per_client}; expected 1 to {num_classes}, the classes.")
    if num_clients * classes_per_client < num_classes:
        raise PartitionError(
            f"{num_clients} hospitals with {classes_per_client} classes each cannot hold {num_classes} classes. "
            "Use more hospitals or more classes_per_client."
        )
    cycle, seen = rng.permutation(num_classes), np.zeros((num_classes, num_clients))
    for client in range(num_clients):
        first = client * classes_per_client
        seen[cycle[np.arange(first, first + classes_per_client) % num_classes], client] = 1.0
    return seen / seen.sum(axis=1, keepdims=True)


def quantity_shares(num_classes: int, num_clients: int, *, alpha: float, rng: np.random.Generator) -> np.ndarray:
    """Quantity skew: hospitals of unequal size, sizes ~ Dir(alpha), all with the same mix of classes.

    Returns:
      float [K, C]; rows are equal and sum to 1.
    Raises:
      PartitionError: alpha is not a positive number, or num_clients < 1.
    Source: Li et al. 2022, arXiv:2102.02079, section 3.3, "quantity skew".
    """
    _check_clients(num_clients)
    _check_alpha("quantity_alpha", alpha)
    return np.tile(rng.dirichlet(np.full(num_clients, alpha)), (num_classes, 1))


def deal(
    labels: np.ndarray, groups: np.ndarray, shares: np.ndarray, *, rng: np.random.Generator, min_client_examples: int = 0
) -> list[np.ndarray]:
    """Deals images out in whole groups, each class as nearly in the given shares as groups allow.

    Class by class, larger groups first, each group goes to the hospital that lacks most of its due (on a tie to
    the one with the fewest images, then by lot). A group of mixed labels counts as its most frequent one.

    Args:
      labels: int [N], class ids 0..K-1.
      groups: int [N]; images of one group (patient, copies) go to one hospital.
      shares: float [K, C], rows sum to 1.
      rng: the only source of randomness.
      min_client_examples: images that a hospital holds at least; those below it are given whole groups of
        the largest hospitals, smallest group first, of a class that the hospital has a share of where there is one.
    Returns:
      C sorted, disjoint int64 arrays whose union is range(N).
    Raises:
      PartitionError: arrays that do not fit, or too few groups for every hospital's minimum.
    """
    labels, groups = _checked(labels, groups)
    num_clients = shares.shape[1]
    if len(labels) and labels.max() >= len(shares):
        raise PartitionError(f"labels go up to {labels.max()}, but shares has {len(shares)} classes.")
    dealt: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
    total = np.zeros(num_clients, dtype=np.int64)
    for members in groups_by_class(labels, groups):
        label = np.bincount(labels[members[0]]).argmax()
        members = [members[i] for i in rng.permutation(len(members))]
        members.sort(key=len, reverse=True)  # stable: equal sizes stay in random order
        due = shares[label] * sum(map(len, members))
        lot = rng.permutation(num_clients)
        for positions in members:
            client = np.lexsort((lot, total, -np.round(due, 9)))[0]
            dealt[client].append(positions)
            due[client] -= len(positions)
            total[client] += len(positions)
    _fill_up(dealt, labels, shares, min_client_examples)
    return [np.sort(np.concatenate([np.empty(0, np.int64), *parts])) for parts in dealt]


def _fill_up(dealt: list[list[np.ndarray]], labels: np.ndarray, shares: np.ndarray, minimum: int) -> None:
    """Moves whole groups from the largest hospitals to those below the minimum."""
    sizes = np.array([sum(map(len, parts)) for parts in dealt])
    while len(sizes) and sizes.min() < minimum:
        poor, rich = int(sizes.argmin()), int(sizes.argmax())
        # Of a class that the hospital is to have, else any; the smallest group; the first on a tie.
        movable = sorted(
            range(len(dealt[rich])),
            key=lambda i: (shares[np.bincount(labels[dealt[rich][i]]).argmax(), poor] == 0, len(dealt[rich][i]), i),
        )
        if not movable or sizes[rich] - len(dealt[rich][movable[0]]) < minimum:
            raise PartitionError(
                f"{len(labels)} images cannot give each of {len(sizes)} hospitals at least {minimum} in whole groups "
                "(patients, copies). Use fewer hospitals or more images."
            )
        moved = dealt[rich].pop(movable[0])
        dealt[poor].append(moved)
        sizes[poor] += len(moved)
        sizes[rich] -= len(moved)


def iid_partition(
    labels: np.ndarray, groups: np.ndarray, *, num_clients: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Deals the images out evenly: every hospital gets the same mix of classes.

    Two hospitals differ in a class by at most that class's largest group.

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
    labels, groups = _checked(labels, groups)
    _check_clients(num_clients)
    num_groups = len(np.unique(groups))
    if num_groups < num_clients:
        raise PartitionError(
            f"{len(labels)} images in {num_groups} groups (patients, copies) cannot be shared among "
            f"{num_clients} hospitals: each needs at least one whole group. Use fewer hospitals or more images."
        )
    return deal(labels, groups, iid_shares(int(labels.max(initial=0)) + 1, num_clients), rng=rng)


def heterogeneity(counts: np.ndarray) -> dict[str, float]:
    """How unlike the hospitals are: in their mix of classes, and in size.

    Args:
      counts: int [C, K], images of each class at each hospital.
    Returns:
      js_distance: mean over pairs of hospitals of the Jensen-Shannon distance (base 2) of their class
        mixes: 0 alike, 1 no class in common; 0 for one hospital. Hospitals without an image are left out.
      size_gini: Gini coefficient of the sizes: 0 equal, towards 1 one hospital holds all.
    Source: Lin 1991, doi:10.1109/18.61115; Endres and Schindelin 2003, doi:10.1109/TIT.2003.813506 (its root is a metric).
    """
    counts = np.asarray(counts, float)
    if counts.ndim != 2 or counts.size == 0 or (counts < 0).any() or counts.sum() == 0:
        raise PartitionError(f"counts are {counts.shape}; expected images by hospital and class, not all zero.")
    sizes = counts.sum(axis=1)
    mixes = counts[sizes > 0] / sizes[sizes > 0, None]
    distances = pdist(mixes, lambda p, q: _js_distance(p, q))
    return {"js_distance": float(distances.mean()) if len(distances) else 0.0, "size_gini": gini(sizes)}


def _js_distance(p: np.ndarray, q: np.ndarray) -> float:
    # SciPy's jensenshannon gives NaN for equal mixes where rounding makes the divergence negative.
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = [np.where(x > 0, x * np.log2(x / middle), 0.0).sum() for x in (p, q)]
    return float(np.sqrt(max(sum(parts) / 2, 0.0)))


def _checked(labels: Sequence[int], groups: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    labels, groups = np.asarray(labels), np.asarray(groups)
    if labels.ndim != 1 or labels.shape != groups.shape:
        raise PartitionError(f"labels {labels.shape} and groups {groups.shape} must be 1-D and of one length.")
    return labels, groups


def _check_clients(num_clients: int) -> None:
    if num_clients < 1:
        raise PartitionError(f"num_clients is {num_clients}; expected 1 or more.")


def _check_alpha(name: str, alpha: float) -> None:
    if not (np.isfinite(alpha) and alpha > 0):
        raise PartitionError(f"{name} is {alpha}; expected a number above 0 (smaller is more skewed).")


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
