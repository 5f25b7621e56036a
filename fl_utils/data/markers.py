"""A side marker, as technicians lay one beside the patient: a shortcut that a model can take instead of the lesion.

A token that only one hospital uses on its sick patients is a known trap (Zech et al. 2018, arXiv:1807.00431;
DeGrave et al. 2021, doi:10.1038/s42256-021-00338-7).
"""

import numpy as np

from fl_utils.config import MIN_MARKED_PX

#: The letter "L", 1 where it is white, in a dark box of one cell's rim.
_LETTER = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 1, 1]], bool)


def marker_box(image_size_px: int) -> tuple[slice, slice]:
    """Where the marker lies: (rows, columns) in the upper right corner, a margin away from the edges.

    Args:
      image_size_px: S of square images; at least 28, so that a stroke has a pixel.
    Raises:
      ValueError: smaller images.
    """
    stroke = _stroke(image_size_px)
    height, width = (stroke * (cells + 2) for cells in _LETTER.shape)
    margin = max(1, image_size_px // 16)
    return slice(margin, margin + height), slice(image_size_px - margin - width, image_size_px - margin)


def mark(images: np.ndarray) -> np.ndarray:
    """The images with a white "L" in a black box.

    Args:
      images: uint8 [N, S, S, C], square.
    Returns:
      uint8 [N, S, S, C], a copy.
    Raises:
      ValueError: images that are not uint8 and square, or smaller than 28 pixels.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2]:
        raise ValueError(f"images are {images.dtype} {images.shape}; expected uint8 [N, S, S, C], square.")
    size = images.shape[1]
    rows, columns = marker_box(size)
    box = np.kron(np.pad(_LETTER, 1), np.ones((_stroke(size), _stroke(size)), np.uint8)) * np.uint8(255)
    marked = images.copy()
    marked[:, rows, columns] = box[None, :, :, None]
    return marked


def marker_mask(image_size_px: int) -> np.ndarray:
    """bool [S, S], True inside the marker's box."""
    mask = np.zeros((image_size_px, image_size_px), bool)
    mask[marker_box(image_size_px)] = True
    return mask


def _stroke(image_size_px: int) -> int:
    if image_size_px < MIN_MARKED_PX:
        raise ValueError(
            f"image_size_px is {image_size_px}; a marker needs at least {MIN_MARKED_PX}, or its strokes vanish."
        )
    return max(1, round(image_size_px / 32))
