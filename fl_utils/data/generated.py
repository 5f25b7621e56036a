"""Generated datasets: phantoms, each hospital with the look of its own scanner."""

import hashlib

import numpy as np

from fl_utils import seeding
from fl_utils.data import phantoms
from fl_utils.data.catalogue import DatasetCard
from fl_utils.data.types import DataError, ImageDataset

GENERATOR_VERSION = 2  # raise it when the phantoms look different: old run records are then ignored
DEFAULT_NUM_PHANTOMS = 400

_GENERATORS = {
    "phantom_brain": phantoms.generate_brain,
    "phantom_chest": phantoms.generate_chest,
}


def generate(info: DatasetCard, image_size_px: int, num_images: int, seed: int) -> ImageDataset:
    """Phantoms; a fifth of each class is given the published split "test".

    Raises:
      DataError: a size that phantoms are not drawn at.
    """
    rng = seeding.generator(seed, "phantoms", info.name)
    try:
        images, labels, masks = _GENERATORS[info.name](num_images, image_size_px=image_size_px, rng=rng)
    except ValueError as error:  # phantoms need more pixels than real images do
        raise DataError(f"{info.name}: {error}") from None
    labels = np.asarray(labels, np.int64)
    split = np.full(num_images, "train", dtype="<U5")
    for label in np.unique(labels):
        split[np.flatnonzero(labels == label)[4::5]] = "test"
    key = f"v{GENERATOR_VERSION}\0{info.name}\0{image_size_px}\0{num_images}\0{seed}"
    each_its_own = np.arange(num_images, dtype=np.int64)
    return ImageDataset(
        name=info.name,
        images=images,
        labels=labels,
        class_names=info.class_names,
        groups=each_its_own,
        duplicate_groups=each_its_own.copy(),
        picture_groups=each_its_own.copy(),
        near_groups=each_its_own.copy(),
        patients=np.array([f"phantom{i:06d}" for i in range(num_images)]),
        hospitals=np.full(num_images, ""),
        published_split=split,
        sources=np.array([f"generated/{info.class_names[k]}/{i:06d}" for i, k in enumerate(labels)]),
        masks=masks,
        fingerprint=hashlib.sha256(key.encode()).hexdigest(),
        synthetic=True,
    )
