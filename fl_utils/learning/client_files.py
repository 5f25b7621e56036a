"""Each client's training data as raw files, which TFF's worker reads inside the graph.

A dataset passed as an argument is serialised to the worker in every round; a file is written
once. Raw bytes need no parsing: the images are one block of uint8, the labels one of int32.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fl_utils.files import write_atomically
from fl_utils.learning.errors import CacheError


def write_client_files(
    folder: Path, images: np.ndarray, labels: np.ndarray, parts: Sequence[np.ndarray],
    groups: np.ndarray | None = None,
) -> list[str]:
    """Writes each client's images and labels, unless the same files are there already.

    Args:
      folder: e.g. `paths.cache_root() / "clients"`.
      images: uint8 [N, H, W, C].
      labels: int [N].
      parts: index arrays, one a client.
      groups: int [N], the patient of each image, for `private.PrivateTrainer`; None writes none. Numbers are counted
        anew within each client.
    Returns:
      One path prefix a client for `process.client_input`.
    Raises:
      ValueError: a client without examples, or images that are not uint8.
      CacheError: the disk is full or the folder cannot be written; no half file is left.
    """
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"images are {images.dtype} {images.shape}, expected uint8 [N, H, W, C].")
    prefixes = []
    for client, part in enumerate(parts):
        if len(part) == 0:
            raise ValueError(f"Hospital {client} has no training examples; use fewer hospitals or more images.")
        pixels, classes = images[part].tobytes(), labels[part].astype("<i4").tobytes()
        shape = repr(images.shape[1:]).encode()
        contents = {".images": pixels, ".labels": classes}
        if groups is not None:
            contents[".patients"] = local_patients(groups[part]).astype("<i4").tobytes()
        prefixes.append(write_once(folder, contents, told_apart_by=shape))
    return prefixes


def local_patients(groups: np.ndarray) -> np.ndarray:
    """int [N], the patients of one client counted anew, 0..P-1 without gaps, as `private.PrivateTrainer` takes them."""
    return np.unique(groups, return_inverse=True)[1]


def write_once(folder: Path, contents: Mapping[str, bytes], *, told_apart_by: bytes = b"") -> str:
    """Writes files of one name, unless the same are there already.

    Args:
      folder: made where it is missing.
      contents: suffix -> content.
      told_apart_by: what else the name depends on.
    Returns:
      The files' path without suffix, absolute: the worker has a folder of its own.
    Raises:
      CacheError: the disk is full or the folder cannot be written; no half file is left.
    """
    digest = hashlib.sha256(b"".join(contents.values()) + told_apart_by).hexdigest()[:24]
    prefix = Path(folder) / digest
    for suffix, content in contents.items():
        path = prefix.with_name(digest + suffix)
        if not path.is_file() or path.stat().st_size != len(content):
            try:
                write_atomically(path, lambda file, content=content: file.write(content))
            except OSError as error:
                raise CacheError(path, error) from error
    return str(prefix.resolve())
