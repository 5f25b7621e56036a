"""Shared by the tests of segmentation: a few small prepared volumes on disk, and a small U-Net for them."""

import numpy as np
import pandas as pd

from fl_utils.data.stream import PreparedVolumes, slice_dtype
from fl_utils.models.segmenters import build_segmenter

SIZE, CHANNELS, CLASSES = 8, 2, ("background", "core", "rim")


def prepared(folder, lengths=(5, 3, 7), seed=0):
    """Subjects of bright discs (core) with a darker rim on noise; the first slice of each shows nothing."""
    rng, rows, lesions = np.random.default_rng(seed), [], {}
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:SIZE, :SIZE]
    for number, length in enumerate(lengths):
        slices = np.zeros(length, slice_dtype(SIZE, CHANNELS))
        for position in range(length):
            distance = np.hypot(y - rng.uniform(2, 5), x - rng.uniform(2, 5))
            mask = (distance < 3).astype(np.uint8) * 2
            mask[distance < 1.8] = 1
            mask *= position > 0
            slices["mask"][position] = mask
            signal = np.array([0.0, 2.0, 1.0])[mask]
            slices["image"][position] = signal[..., None] + 0.3 * rng.normal(size=(SIZE, SIZE, CHANNELS))
        subject = f"subject_{number}"
        np.save(folder / f"{subject}.npy", slices)
        lesions[subject] = np.flatnonzero(slices["mask"].any(axis=(1, 2)))
        rows.append((subject, subject, "", length, len(lesions[subject]), str(folder / f"{subject}.npy")))
    columns = ["subject", "patient", "hospital", "slices", "lesion_slices", "path"]
    return PreparedVolumes(
        "discs", "axial", SIZE, CLASSES, ("a", "b"), pd.DataFrame(rows, columns=columns), lesions, (), "f" * 64
    )


def small_unet():
    return build_segmenter("unet", (SIZE, SIZE, CHANNELS), len(CLASSES), seed=3, width=4, depth=1, groups=2)
