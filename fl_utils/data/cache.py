"""What is kept on disk between calls: content hashes of the files, and decoded images.

Everything here can be made again, so a cache that cannot be read is rebuilt, and one that
cannot be written (full disk, read-only folder) costs a warning and time, never a result.
"""

import contextlib
import hashlib
import json
import math
import os
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm.auto import tqdm

from fl_utils import paths
from fl_utils.data.types import DataError
from fl_utils.files import sha256_of, write_atomically

#: Larger sets of decoded images are not held in memory but mapped from disk.
MAX_IN_MEMORY_BYTES = 2**30


def _write(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Writes a cache file whole, or warns and goes on without."""
    try:
        write_atomically(path, write)
    except OSError as error:
        warnings.warn(
            f"Could not write the cache {path}: {error}. Going on without it; the next call does the work "
            "again. Free some space or set FL_UTILS_CACHE to a folder that can be written.",
            RuntimeWarning,
            stacklevel=3,
        )


def _read_manifest(path: Path) -> dict[str, list]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        return {source: [int(size), int(mtime_ns), str(sha)] for source, (size, mtime_ns, sha) in manifest.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # missing or damaged: everything is hashed again


def content_hashes(root: Path, sources: Sequence[str], *, progress: bool = False) -> list[tuple[int, str]]:
    """Size in bytes and SHA-256 of each file; files that did not change are not read again.

    A file counts as unchanged if its size and modification time are those of the last call.

    Args:
      root: the dataset's folder.
      sources: N POSIX paths relative to it.
      progress: show a bar for the files that must be read.
    Returns:
      N pairs (size in bytes, hex SHA-256); (0, "") for a file that cannot be read, which decoding then reports.
    """
    key = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    path = paths.cache_root() / "manifests" / f"{root.name}-{key}.json"
    known, manifest, changed, unreadable = _read_manifest(path), {}, [], set()
    for source in sources:
        try:
            status = (root / source).stat()
        except OSError:
            unreadable.add(source)
            continue
        manifest[source] = known.get(source)
        if manifest[source] is None or manifest[source][:2] != [status.st_size, status.st_mtime_ns]:
            manifest[source] = [status.st_size, status.st_mtime_ns, None]
            changed.append(source)
    for source in tqdm(changed, desc=f"Checking {root.name}", unit="file", disable=not (progress and changed)):
        try:
            manifest[source][2] = sha256_of(root / source)
        except OSError:
            unreadable.add(source)
            manifest.pop(source)
    if changed or len(known) != len(manifest):
        _write(path, lambda file: file.write(json.dumps(manifest).encode()))
    return [(0, "") if source in unreadable else (manifest[source][0], manifest[source][2]) for source in sources]


@dataclass(frozen=True, eq=False)
class Decoded:
    """The decoded images of some files.

    Attributes:
      images: uint8 [N, H, H, 1]; black where a file is bad. Mapped from disk where it is large.
      hashes: uint8 [N, 32], perceptual hashes, 256 bits packed.
      bad: (index, reason) of the files that could not be decoded.
    """

    images: np.ndarray
    hashes: np.ndarray
    bad: list[tuple[int, str]]


def cached_decode(key: str, shape: tuple[int, ...], build: Callable[[np.ndarray], tuple[np.ndarray, list]]) -> Decoded:
    """The decoded images of `key`, from disk if a whole copy is there, else from `build`.

    Args:
      key: file name without ending; must hold all that the images depend on.
      shape: the expected shape [N, H, H, 1].
      build: fills the array of this shape that it is given; returns hashes and bad files, as in `Decoded`.
    Raises:
      DataError: more than `MAX_IN_MEMORY_BYTES`, and the cache cannot be written.
    """
    folder = paths.cache_root() / "images"
    large = math.prod(shape) > MAX_IN_MEMORY_BYTES
    path, pixels = folder / f"{key}.npz", folder / f"{key}.npy"
    try:
        # The zip container holds a checksum for its members: cut and altered files are noticed.
        with np.load(path, allow_pickle=False) as stored:
            hashes, bad = stored["hashes"], json.loads(str(stored["bad"]))
            images = np.load(pixels, mmap_mode="r") if large else stored["images"]
        if images.shape == shape and images.dtype == np.uint8 and len(hashes) == shape[0]:
            return Decoded(images, hashes, [(index, reason) for index, reason in bad])
        problem = f"holds {images.dtype} {images.shape}, expected uint8 {shape}"
    except (FileNotFoundError, NotADirectoryError):
        problem = None
    except Exception as error:  # a damaged file makes the readers fail in many ways; all mean: decode again
        problem = str(error) or type(error).__name__
    if problem:
        warnings.warn(f"The cache {path} is damaged ({problem}); decoding again.", RuntimeWarning, stacklevel=2)
    if large:
        images, hashes, bad = _decode_to_disk(pixels, shape, build)
    else:
        images = np.zeros(shape, np.uint8)
        hashes, bad = build(images)
    members = {"hashes": hashes, "bad": np.array(json.dumps(bad))} | ({} if large else {"images": images})
    _write(path, lambda file: _write_npz(file, members))
    return Decoded(images, hashes, list(bad))


def _decode_to_disk(pixels: Path, shape: tuple[int, ...], build) -> tuple[np.ndarray, np.ndarray, list]:
    """Decodes into a file that is mapped, so that memory holds only what is being written."""
    temporary = pixels.with_name(f".writing-{pixels.name}-{os.getpid()}")
    try:
        pixels.parent.mkdir(parents=True, exist_ok=True)
        images = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        with temporary.open("r+b") as file:  # a full disk is an error here; writing to the map, it ends the process
            os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
        hashes, bad = build(images)
        images.flush()
        del images
        os.replace(temporary, pixels)
        return np.load(pixels, mmap_mode="r"), hashes, bad
    except OSError as error:
        raise DataError(
            f"{math.prod(shape) / 1e9:.1f} GB of decoded images are too much for memory and could not be written to "
            f"{pixels.parent}: {error}. Free some space, set FL_UTILS_CACHE to a larger disk, or use smaller images."
        ) from None
    finally:
        with contextlib.suppress(OSError):  # where the folder is no folder; the error above says so
            temporary.unlink(missing_ok=True)


def _write_npz(file: BinaryIO, members: dict[str, np.ndarray]) -> None:
    # As np.savez, which leaves its archive open when a write fails and then complains a second time.
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in members.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
