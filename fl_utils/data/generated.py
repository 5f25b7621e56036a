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
    "phantom_oct": phantoms.generate_oct,
}


def generate(info: DatasetCard, image_size_px: int, num_images: int, seed: int) -> ImageDataset:
    """Phantoms from four hospitals, each image as its hospital's scanner shows it.

    Every hospital (`phantoms.PROFILES`) has the same share of each class: the hospitals differ in how their images
    look, not in what they treat. Masks are those of the undisturbed phantom. A fifth of each class in each hospital
    is given the published split "test". All of it is drawn from `seed`; fewer images are the first of more.

    Raises:
      DataError: a size that phantoms are not drawn at.
    """
    rng = seeding.generator(seed, "phantoms", info.name)
    try:
        images, labels, masks = _GENERATORS[info.name](num_images, image_size_px=image_size_px, rng=rng)
    except ValueError as error:  # phantoms need more pixels than real images do
        raise DataError(f"{info.name}: {error}") from None
    labels = np.asarray(labels, np.int64)
    rng = seeding.generator(seed, "phantoms", info.name, "hospitals")
    hospitals, in_test = _assign(labels, len(info.class_names), rng)
    images = phantoms.scan(images, hospitals, rng=seeding.generator(seed, "phantoms", info.name, "scanners"))
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
        hospitals=np.array([profile.name for profile in phantoms.PROFILES])[hospitals],
        published_split=np.where(in_test, "test", "train"),
        sources=np.array([f"generated/{info.class_names[k]}/{i:06d}" for i, k in enumerate(labels)]),
        masks=masks,
        fingerprint=hashlib.sha256(key.encode()).hexdigest(),
        synthetic=True,
    )


def _assign(labels: np.ndarray, num_classes: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Shares each class out over the hospitals, and each hospital's part of it over the published splits.

    Any four consecutive images of a class, from a multiple of four, go to the four hospitals in random order: a
    turn. In five turns each hospital gives one of its five images to the test part; a class of fewer than eight
    images may have none there.

    Args:
      labels: int64 [N].
      num_classes: K.
      rng: the only source of randomness; each class has a generator of its own, so fewer images are the first of more.
    Returns:
      Indices into `phantoms.PROFILES`, int64 [N]; bool [N], True for the test part.
    """
    num_hospitals = len(phantoms.PROFILES)
    hospitals, turns = np.zeros((2, len(labels)), np.int64)
    for label, own in enumerate(rng.spawn(num_classes)):
        members = np.flatnonzero(labels == label)
        turns[members] = np.arange(len(members)) // num_hospitals
        orders = own.random((-(-len(members) // num_hospitals), num_hospitals)).argsort(axis=1)
        hospitals[members] = orders.ravel()[: len(members)]
    # Turn 1 gives hospital 0's image away, turn 2 hospital 1's, ...; turn 0 of every five gives none.
    return hospitals, hospitals == turns % (num_hospitals + 1) - 1
