"""Layout "medmnist": one .npz with images and labels of three parts (MedMNIST v2, Yang et al. 2023)."""

import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fl_utils.data.catalogue import DatasetCard
from fl_utils.data.readers.files import existing_root
from fl_utils.data.types import DataError

#: MedMNIST's parts -> the published split; its small "val" joins "train", the suite cuts its own.
PARTS = {"train": "train", "val": "train", "test": "test"}


@dataclass(frozen=True, eq=False)
class MedMnist:
    """The content of one file.

    Attributes:
      path: the file.
      images: uint8 [N, H, W, 1] at the asked size.
      labels: int64 [N], or uint8 [N, K] for multi-label data.
      published_split: str [N].
      sources: str [N], "part/number".
    """

    path: Path
    images: np.ndarray
    labels: np.ndarray
    published_split: np.ndarray
    sources: np.ndarray


def find_file(card: DatasetCard, image_size_px: int) -> Path:
    """The smallest file that is at least as large as asked, else the largest: name.npz is 28 px, name_64.npz 64 px.

    Raises:
      DataError: there is no such file.
    """
    root = existing_root(card, f"{card.folder}/{card.name}.npz (28 px) or {card.name}_64.npz, _128.npz, _224.npz")
    pattern = re.compile(rf"{re.escape(card.name)}(?:_(\d+))?\.npz")
    found = {int(match[1] or 28): path for path in root.iterdir() if (match := pattern.fullmatch(path.name))}
    if not found:
        raise DataError(
            f"{card.name}: {root} holds no {card.name}.npz. Get it with `fl-utils data fetch {card.name}`. "
            f"Source: {card.source}"
        )
    return found[min((size for size in found if size >= image_size_px), default=max(found))]


def read_medmnist(card: DatasetCard, image_size_px: int) -> MedMnist:
    """Reads a MedMNIST file; images become grey and are resized (bilinear) to the asked size.

    Raises:
      DataError: the file is missing, damaged, or holds other arrays than MedMNIST's.
    """
    path = find_file(card, image_size_px)
    try:
        with np.load(path, allow_pickle=False) as stored:
            parts = {part: (stored[f"{part}_images"], stored[f"{part}_labels"]) for part in PARTS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{card.name}: {path.name} cannot be read ({error}). Expected a whole MedMNIST file with the arrays "
            "train_images, train_labels, val_..., test_.... Download it again."
        ) from None
    for part, (images, labels) in parts.items():
        _check(card, path, part, images, labels)
    labels = np.concatenate([labels for _, labels in parts.values()])
    return MedMnist(
        path=path,
        images=np.concatenate([_resized(images, image_size_px) for images, _ in parts.values()]),
        labels=labels.astype(np.uint8) if card.task == "multi-label" else labels[:, 0].astype(np.int64),
        published_split=np.concatenate([np.full(len(images), PARTS[part]) for part, (images, _) in parts.items()]),
        sources=np.array([f"{part}/{i:06d}" for part, (images, _) in parts.items() for i in range(len(images))]),
    )


def _check(card: DatasetCard, path: Path, part: str, images: np.ndarray, labels: np.ndarray) -> None:
    columns = len(card.classes) if card.task == "multi-label" else 1
    highest = 1 if card.task == "multi-label" else len(card.classes) - 1
    grey_or_rgb = images.ndim in (3, 4) and images.shape[3:] in ((), (3,))
    fits = grey_or_rgb and images.dtype == np.uint8 and labels.shape == (len(images), columns)
    if not fits or len(images) == 0:
        raise DataError(
            f"{card.name}: {path.name} has {part}_images {images.dtype} {list(images.shape)} and {part}_labels "
            f"{list(labels.shape)}; expected uint8 [N, H, W] or [N, H, W, 3], N > 0, and [N, {columns}]."
        )
    if labels.min() < 0 or labels.max() > highest:
        found = f"labels {labels.min()} to {labels.max()}"
        raise DataError(f"{card.name}: {path.name} has {found}; expected 0 to {highest}.")


def _resized(images: np.ndarray, size: int) -> np.ndarray:
    resized = np.empty((len(images), size, size, 1), np.uint8)
    for index, image in enumerate(images):
        grey = Image.fromarray(image).convert("L")
        resized[index, :, :, 0] = np.asarray(grey.resize((size, size), Image.Resampling.BILINEAR))
    return resized
