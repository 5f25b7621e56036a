"""Which slices of prepared volumes a client trains on, as two small files; the slices stay where they were prepared.

BraTS at 128 pixels is 7 GB of slices: copying them for every client and every way of sharing out would fill a disk,
and passing them to TFF's worker would fill its memory. So a client's files are lists, and `segmentation.SliceTrainer`
streams the prepared files inside the graph.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fl_utils.data.stream import PreparedVolumes
from fl_utils.data.types import DataError
from fl_utils.learning.client_files import write_once

#: (paths of prepared files, str [F]; slices, int32 [N, 2]: position of the file and number of the slice in it).
SliceList = tuple[np.ndarray, np.ndarray]


def choose_slices(
    volumes: PreparedVolumes, subjects: Sequence[str], *, background_ratio: float | None = None
) -> SliceList:
    """The slices of some subjects that are trained on.

    Args:
      volumes: the prepared dataset.
      subjects: names from its table, each once.
      background_ratio: slices without a label for each slice with one, by subject; they are taken at even distances
        through the volume. 0 takes none, None all. In BraTS more than half of the slices show no tumour.
    Raises:
      DataError: an unknown or repeated subject, a ratio below 0, no slice, a file that is gone.
    """
    if background_ratio is not None and not background_ratio >= 0:
        raise DataError(f"background_ratio is {background_ratio}; expected None or a number from 0.")
    rows = volumes.table.set_index("subject")
    unknown = [subject for subject in subjects if subject not in rows.index]
    if unknown or len(set(subjects)) < len(subjects):
        raise DataError(
            f"{volumes.name}: {', '.join(unknown[:5]) or 'a subject given twice'} cannot be chosen; expected names of "
            f"the {len(rows)} prepared subjects, each once."
        )
    files, chosen = [], []
    for subject in subjects:
        with_label = volumes.lesion_slices[subject]
        without = np.setdiff1d(np.arange(rows.loc[subject, "slices"]), with_label)
        if background_ratio is not None:
            number = min(len(without), round(background_ratio * len(with_label)))
            without = without[np.linspace(0, len(without) - 1, number).round().astype(int)]
        numbers = np.sort(np.concatenate([with_label, without])).astype(np.int32)
        if len(numbers):
            chosen.append(np.column_stack([np.full(len(numbers), len(files), np.int32), numbers]))
            files.append(_checked(Path(rows.loc[subject, "path"]), volumes))
    if not chosen:
        raise DataError(f"{volumes.name}: {len(subjects)} subjects hold no slice to train on; choose other subjects.")
    return np.array(files), np.concatenate(chosen)


def write_slice_files(folder: Path, lists: Sequence[SliceList]) -> list[str]:
    """Writes each client's lists, unless the same files are there already.

    Args:
      folder: e.g. `paths.cache_root() / "clients"`.
      lists: one of `choose_slices` a client.
    Returns:
      One path prefix a client for `process.client_input`.
    Raises:
      CacheError: the disk is full or the folder cannot be written; no half file is left.
    """
    return [
        write_once(folder, {".files": "\n".join(files).encode(), ".slices": slices.astype("<i4").tobytes()})
        for files, slices in lists
    ]


def header_bytes(dtype: np.dtype) -> int:
    """Where the first slice begins in a prepared file: NumPy pads the header of a growing array to one length."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.zeros(0, dtype))
    return file.tell()


def _checked(path: Path, volumes: PreparedVolumes) -> str:
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{volumes.name}: {path} cannot be read ({error}). Call prepare_volumes again.") from error
    if stored.offset != header_bytes(stored.dtype):
        raise DataError(
            f"{volumes.name}: {path} has a header of {stored.offset} bytes; expected {header_bytes(stored.dtype)}, as "
            "this NumPy writes it. Delete the file and call prepare_volumes again."
        )
    return str(path.resolve())  # TFF's worker has a folder of its own
