"""Reading one case of a dataset of volumes: oriented, checked, normalised."""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from fl_utils.data.cases import Case, find_cases
from fl_utils.data.catalogue import DatasetCard
from fl_utils.data.types import DataError

__all__ = ["Case", "Volume", "find_cases", "read_case"]

READER_VERSION = 1  # raise it when read_case gives other values: what was prepared before is then ignored
LABEL_TOLERANCE = 1e-3  # float labels this near to a class value are taken for it
SPACE_TOLERANCE_MM = 0.1  # corners of two files of a case may lie this far apart: header rounding, no shift
CLIP_PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True, eq=False)
class Volume:
    """One case in memory, in RAS+ orientation: the axes run to the patient's right, front and top.

    Attributes:
      image: float32 [X, Y, Z, M], normalised (see `read_case`); background is exactly 0.
      mask: uint8 [X, Y, Z], codes 0..K-1 in the order of `card.classes`; None for an unlabelled case.
      spacing_mm: float64 [3], size of a voxel along X, Y, Z.
      subject: as in the case.
    """

    image: np.ndarray
    mask: np.ndarray | None
    spacing_mm: np.ndarray
    subject: str


def read_case(case: Case, card: DatasetCard) -> Volume:
    """Reads one case: oriented to RAS+, checked, each modality normalised by itself.

    Normalisation: foreground are the voxels > 0 (around a skull-stripped head everything is 0; a
    cut-out such as hippocampus is foreground nearly as a whole). The foreground is clipped to its 0.5 and 99.5
    percentiles and brought to mean 0 and standard deviation 1; all other voxels become 0. So 0 is both
    background and an average voxel, as is usual for these data (nnU-Net does the same within a brain mask).

    Memory: the float32 image and a few copies of one modality (of all, for 4-D files): BraTS about 0.3 GB.

    Raises:
      DataError: a missing file; not a NIfTI file; shapes or positions that differ within the case; values that
        are not finite; a modality without contrast; a label that is not in `card.classes`.
    """
    if case.problem:
        raise DataError(f"{case.subject}: {case.problem}.")
    first, image = None, None
    channels = {ours: number for number, ours in enumerate(card.modalities.values())}
    for path in dict.fromkeys(case.images.values()):
        data, affine = _read(path)
        if first is None:
            first = path, data.shape[:3], affine
            image = np.zeros((*data.shape[:3], len(channels)), np.float32)
        _check_space(first, (path, data.shape[:3], affine))
        for ours, values in _modalities(data, path, case, card).items():
            image[..., channels[ours]] = _normalised(values, f"{path.name} ({ours})")
    mask = None
    if case.mask is not None:
        data, affine = _read(case.mask)
        _check_space(first, (case.mask, data.shape, affine))
        mask = _codes(data, case.mask.name, card)
    return Volume(image, mask, nib.affines.voxel_sizes(first[2]), case.subject)


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """float32 data [X, Y, Z] or [X, Y, Z, M] in RAS+ orientation, and the affine that belongs to it."""
    try:
        stored = nib.load(path)
        data = np.asanyarray(stored.dataobj, dtype=np.float32)
    except MemoryError:
        raise
    except Exception as error:  # broken files fail in many ways: gzip, header, length
        reason = str(error).replace(str(path), path.name) or type(error).__name__
        raise DataError(f"{path.name}: not a whole NIfTI file ({reason}). Copy or download it again.") from error
    if data.ndim == 4 and data.shape[3] == 1:
        data = data[..., 0]
    if data.ndim not in (3, 4) or 0 in data.shape:
        raise DataError(f"{path.name}: shape {stored.shape}; expected [X, Y, Z] or [X, Y, Z, modalities].")
    affine = stored.affine
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise DataError(f"{path.name}: the affine of its header does not place the voxels in space:\n{affine}")
    if not np.isfinite(data).all():
        raise DataError(f"{path.name}: {(~np.isfinite(data)).sum()} voxels are not finite numbers.")
    canonical = nib.as_closest_canonical(nib.Nifti1Image(data, affine))
    return np.asanyarray(canonical.dataobj), canonical.affine


def _check_space(first: tuple, other: tuple) -> None:
    """Two files must have one shape and put its corners at the same places."""
    (path_a, shape_a, affine_a), (path_b, shape_b, affine_b) = first, other
    if tuple(shape_a) != tuple(shape_b):
        raise DataError(
            f"{path_b.name} has shape {tuple(shape_b)}, {path_a.name} has {tuple(shape_a)} (both in RAS order); all "
            "files of a case must agree."
        )
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape_a])).reshape(3, -1).T
    places_a, places_b = (nib.affines.apply_affine(affine, corners) for affine in (affine_a, affine_b))
    distance_mm = np.abs(places_a - places_b).max()
    if distance_mm > SPACE_TOLERANCE_MM:
        raise DataError(
            f"{path_b.name} lies up to {distance_mm:.3g} mm away from {path_a.name}; all files of a case must show the "
            f"same place, to within {SPACE_TOLERANCE_MM} mm. Register them first."
        )


def _modalities(data: np.ndarray, path: Path, case: Case, card: DatasetCard) -> dict[str, np.ndarray]:
    """Our name -> [X, Y, Z] of the modalities that a file holds."""
    names = [ours for ours, file in case.images.items() if file == path]
    num_channels = data.shape[3] if data.ndim == 4 else 1
    if num_channels != len(names):
        raise DataError(f"{path.name}: {num_channels} modalities, expected {len(names)} ({', '.join(names)}).")
    if data.ndim == 3:
        return {names[0]: data}
    return {ours: data[..., int(theirs)] for theirs, ours in card.modalities.items()}


def _normalised(values: np.ndarray, name: str) -> np.ndarray:
    inside = values > 0
    foreground = values[inside]
    if foreground.size == 0:
        raise DataError(f"{name}: no voxel is above 0.")
    foreground = np.clip(foreground, *np.percentile(foreground, CLIP_PERCENTILES))
    # In float64: squares of a million overflow the digits of float32.
    mean, deviation = foreground.mean(dtype=np.float64), foreground.std(dtype=np.float64)
    if not deviation > 1e-6 * abs(mean):
        raise DataError(f"{name}: no contrast, nearly all voxels above 0 have the value {mean:.6g}.")
    result = np.zeros(values.shape, np.float32)
    result[inside] = (foreground - mean) / deviation
    return result


def _codes(labels: np.ndarray, name: str, card: DatasetCard) -> np.ndarray:
    """File values -> codes 0..K-1."""
    codes, known = np.zeros(labels.shape, np.uint8), np.zeros(labels.shape, bool)
    for code, value in enumerate(card.classes):
        here = np.abs(labels - np.float32(value)) <= LABEL_TOLERANCE
        codes[here] = code
        known |= here
    if not known.all():
        strange = np.unique(labels[~known])
        shown = ", ".join(f"{value:g}" for value in strange[:5]) + (" and more" if len(strange) > 5 else "")
        raise DataError(
            f"{name}: label value {shown} in {(~known).sum()} voxels; expected {', '.join(card.classes)}, to within "
            f"{LABEL_TOLERANCE}."
        )
    return codes
