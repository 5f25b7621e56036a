"""A dataset at a glance: volumes as one slice a case, and the rows of a contact sheet."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
from tqdm.auto import tqdm

from fl_utils.data import decode
from fl_utils.data.cases import find_cases
from fl_utils.data.catalogue import card
from fl_utils.data.load import IMAGE_SIZE_RANGE_PX
from fl_utils.data.near import near_pairs
from fl_utils.data.prepare import slices_of
from fl_utils.data.types import DataError, ImageDataset, group_closure
from fl_utils.data.volumes import read_case
from fl_utils.files import sha256_of

#: Normalised intensities that become black and white in a picture of a slice.
WINDOW = (-2.5, 2.5)


def volume_overview(name: str, *, image_size_px: int = 64, progress: bool = False) -> ImageDataset:
    """One axial slice a case, so that volumes can be audited and looked at like images.

    The slice with the most labelled voxels, or the middle one, of the modality with contrast agent where there is
    one. Copies are told by the bytes of the image files, pictures by the voxels of the image, near-duplicates by the
    slice. Masks are not compared: a case of train that lies in test as well has none there.
    All labels are 0; labelled cases are "train", unlabelled ones "test". Cases that cannot be read are in `excluded`.

    Raises:
      DataError: not a dataset of volumes; size out of range; no case can be read.
    """
    info = card(name)
    if info.task != "segmentation":
        raise DataError(f"{name} is a dataset of images, not of volumes; use load_dataset.")
    low, high = IMAGE_SIZE_RANGE_PX
    if not low <= image_size_px <= high:
        raise DataError(f"image_size_px is {image_size_px}; expected {low} to {high}.")
    kept, images, masks, voxels, excluded = [], [], [], [], []
    channel = contrast_channel(tuple(info.modalities.values()))
    for case in tqdm(find_cases(info), desc=f"Reading {name}", unit="case", disable=not progress):
        try:
            volume = read_case(case, info)
        except DataError as error:
            excluded.append((case.subject, str(error)))
            continue
        voxels.append(hashlib.sha256(volume.image.tobytes()).hexdigest())
        if volume.mask is None:
            volume = dataclasses.replace(volume, mask=np.zeros(volume.image.shape[:3], np.uint8))
        slices = slices_of(volume, "axial", image_size_px)
        best = fullest_slice(slices["mask"])
        images.append(windowed(slices["image"][best, ..., channel]))
        masks.append(slices["mask"][best])
        kept.append(case)
    if not kept:
        raise DataError(f"{name}: none of {len(excluded)} cases can be read. The first: {excluded[0][1]}")
    shas = [[sha256_of(file) for file in case.files] for case in kept]
    # The mask is the last file of a case.
    contents = np.array([" ".join(own[:-1] if case.mask else own) for own, case in zip(shas, kept, strict=True)])
    voxels, patients = np.array(voxels), np.array([case.patient for case in kept])
    images = np.stack(images)
    hashes = decode.hashes_of(images)
    pairs = near_pairs(hashes)[:2]
    return ImageDataset(
        name=name, images=images, labels=np.zeros(len(kept), np.int64), class_names=("case",),
        groups=group_closure(contents, voxels, patients, pairs=pairs), duplicate_groups=group_closure(contents),
        picture_groups=group_closure(contents, voxels), near_groups=group_closure(contents, voxels, pairs=pairs),
        patients=patients, hospitals=np.array([case.hospital for case in kept]),
        published_split=np.array(["train" if case.mask else "test" for case in kept]),
        sources=np.array([case.subject for case in kept]), masks=np.stack(masks),
        fingerprint=hashlib.sha256("".join(map(" ".join, shas)).encode()).hexdigest(), synthetic=info.synthetic,
        excluded=tuple(excluded), hashes=hashes,
    )


def fullest_slice(masks: np.ndarray) -> int:
    """The number of the slice [S, H, W] with the largest labelled area; the middle one if nothing is labelled."""
    areas = (masks > 0).sum(axis=(1, 2))
    return int(areas.argmax()) if areas.any() else len(masks) // 2


def contrast_channel(modalities: Sequence[str]) -> int:
    """The modality that is shown where one must do: with contrast agent if there is one, else the first."""
    return list(modalities).index("t1ce") if "t1ce" in modalities else 0


def windowed(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 1] of a normalised slice [H, W] in WINDOW; the background, exactly 0, becomes black."""
    low, high = WINDOW
    grey = np.clip((image.astype(np.float32) - low) / (high - low), 0, 1) * (image != 0)
    return np.rint(grey * 255).astype(np.uint8)[..., None]


def sheet_rows(dataset: ImageDataset) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """The rows of a contact sheet: every class in every natural hospital that has it.

    An image with several findings stands in the row of each; one with none in "no finding".

    Returns:
      index [M] into the dataset, row [M], and the names of the rows.
    """
    classes, names = dataset.multi_hot, list(dataset.class_names)
    if dataset.is_multi_label:
        classes, names = np.column_stack([classes, ~classes.any(axis=1)]), [*names, "no finding"]
    indices, rows, titles = [], [], []
    for k, name in enumerate(names):
        for hospital in np.unique(dataset.hospitals):
            members = np.flatnonzero((classes[:, k] > 0) & (dataset.hospitals == hospital))
            if len(members):
                indices.append(members)
                rows.append(np.full(len(members), len(titles)))
                titles.append(f"{name}, {hospital}" if hospital else name)
    return np.concatenate(indices), np.concatenate(rows), tuple(titles)
