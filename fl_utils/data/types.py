"""What the data floor hands to everyone else: one dataset in memory, its groups, and its error."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components


class DataError(ValueError):
    """Data that cannot be used; the text says what was read, what was expected and what to do."""


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Decoded images with all that is needed to split them without leakage.

    Attributes:
      name: name in the catalogue, e.g. "brain_mri".
      images: uint8 [N, H, W, C], 0 (black) to 255.
      labels: int64 [N], index into `class_names`; for multi-label data uint8 [N, K], 1 = finding present.
      class_names: K names.
      groups: int64 [N]; images that share a patient, a picture, a near-duplicate or a block of a numbered
        series, directly or through others, share a group. Images of one group must stay on one side of every split.
      duplicate_groups: int64 [N]; images whose files are byte-identical share a number.
      picture_groups: int64 [N]; images that show the same pixels at full resolution share a number:
        byte-identical files, and files that were saved again. What splits go by.
      near_groups: int64 [N]; as `picture_groups`, but near-duplicates share a number as well
        (see `fl_utils.data.near`).
      patients: str [N], "" where the patient is not known.
      hospitals: str [N], the natural hospital (institution, device, source); "" where the data does not say.
      published_split: str [N], "train" or "test", as the data's authors gave it.
      sources: str [N], POSIX path of the file relative to the dataset's folder.
      masks: uint8 [N, H, W], 0 = healthy, above 0 the parts of a lesion; None for data without masks.
      excluded: files that were left out, each with the reason (path, reason).
      hashes: uint8 [N, 32], perceptual hashes (256 bits packed) of real images; None for generated ones.
      fingerprint: hex SHA-256 of what the images were made from.
      synthetic: True for generated images.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    groups: np.ndarray
    duplicate_groups: np.ndarray
    picture_groups: np.ndarray
    near_groups: np.ndarray
    patients: np.ndarray
    hospitals: np.ndarray
    published_split: np.ndarray
    sources: np.ndarray
    masks: np.ndarray | None
    fingerprint: str
    synthetic: bool
    excluded: tuple[tuple[str, str], ...] = ()
    hashes: np.ndarray | None = None

    def __post_init__(self):
        for field in _PER_IMAGE:
            column = getattr(self, field)
            if column is not None and len(column) != len(self.images):
                raise DataError(
                    f"Dataset {self.name!r}: {field} has {len(column)} entries for {len(self.images)} images."
                )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def is_multi_label(self) -> bool:
        return self.labels.ndim == 2

    @property
    def multi_hot(self) -> np.ndarray:
        """uint8 [N, K], 1 where an image is of the class or shows the finding."""
        return self.labels if self.is_multi_label else np.eye(self.num_classes, dtype=np.uint8)[self.labels]

    @property
    def strata(self) -> np.ndarray:
        """int64 [N], what splits and partitions balance: the label; for multi-label data the image's
        rarest finding, K where it has none."""
        if not self.is_multi_label:
            return self.labels
        rarity = np.argsort(np.argsort(self.labels.sum(axis=0), kind="stable"), kind="stable")
        first = np.where(self.labels > 0, rarity, self.num_classes).argmin(axis=1)
        return np.where(self.labels.any(axis=1), first, self.num_classes).astype(np.int64)

    def subset(self, indices) -> "ImageDataset":
        """The images at `indices` (int array, or bool mask [N]), in that order.

        The fingerprint changes with the choice, so that a run on a part is never mistaken for
        a run on the whole.
        """
        indices = np.asarray(indices)
        indices = np.flatnonzero(indices) if indices.dtype == bool else indices.astype(np.int64)
        columns = {
            field: None if getattr(self, field) is None else getattr(self, field)[indices]
            for field in _PER_IMAGE
        }
        digest = hashlib.sha256(self.fingerprint.encode() + indices.astype("<i8").tobytes())
        return replace(self, **columns, fingerprint=digest.hexdigest())


_PER_IMAGE = (
    "images", "labels", "groups", "duplicate_groups", "picture_groups", "near_groups", "patients", "hospitals",
    "published_split", "sources", "masks", "hashes",
)


def group_closure(*keys: np.ndarray, pairs: tuple[np.ndarray, np.ndarray] | None = None) -> np.ndarray:
    """Numbers the groups of images that are tied by any of the keys, directly or through others.

    Args:
      *keys: str arrays [N]; equal entries of one array tie two images, "" ties nothing.
      pairs: (first, second), int arrays [P] of images that are tied as well.
    Returns:
      int64 [N], 0..G-1 in the order in which the groups first appear.
    """
    num = len(keys[0])
    images, ties, next_tie = [], [], num
    for key in keys:
        values, codes = np.unique(key, return_inverse=True)
        known = np.flatnonzero(key != "")
        images.append(known)
        ties.append(codes[known] + next_tie)
        next_tie += len(values)
    if pairs is not None:
        images.append(pairs[0])
        ties.append(pairs[1])
    rows, columns = np.concatenate(images), np.concatenate(ties)
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(next_tie, next_tie))
    components = connected_components(graph, directed=False)[1][:num]
    _, first, inverse = np.unique(components, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)
