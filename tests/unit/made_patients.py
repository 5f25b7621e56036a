"""Shared by the tests of notebook 06: made-up patients with one to three images, of a data set in the catalogue."""

import numpy as np

from fl_utils.data.types import ImageDataset

#: Whose label and phantoms' card stand for the made-up images.
NAME = "phantom_chest"


def made_patients(num_patients=120, size_px=8, most_images=3, seed=0):
    """Images of noise, brighter for the second class; classes alternate from patient to patient."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(num_patients), np.arange(num_patients) % most_images + 1)
    num, labels = len(groups), groups % 2
    images = rng.integers(0, 100 + 100 * labels[:, None, None, None], (num, size_px, size_px, 1), dtype=np.uint8)
    own = np.arange(num)
    return ImageDataset(
        name=NAME, images=images, labels=labels, class_names=("normal", "pneumonia"), groups=groups,
        duplicate_groups=own, picture_groups=own, near_groups=own, patients=groups.astype(str),
        hospitals=np.full(num, ""), published_split=np.full(num, "train"), sources=own.astype(str), masks=None,
        fingerprint="0" * 64, synthetic=True,
    )
