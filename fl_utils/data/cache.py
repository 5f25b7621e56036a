"""Decoding, and what is kept on disk between calls: content hashes of the files, and decoded images.

Everything here can be made again, so a cache that cannot be read is rebuilt, and one that
cannot be written (full disk, read-only folder) costs a warning and time, never a result.
"""

import hashlib
import json
import os
import warnings
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from fl_utils import paths
from fl_utils.data.types import DataError
from fl_utils.files import write_atomically

DECODER_VERSION = 1  # raise it when decode_image gives other pixels: old caches are then ignored


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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
      N pairs (size in bytes, hex SHA-256).
    Raises:
      DataError: files that cannot be read; the text lists them.
    """
    key = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    path = paths.cache_root() / "manifests" / f"{root.name}-{key}.json"
    known, manifest, changed, unreadable = _read_manifest(path), {}, [], []
    for source in sources:
        try:
            status = (root / source).stat()
        except OSError as error:
            unreadable.append((source, error.strerror or str(error)))
            continue
        manifest[source] = known.get(source)
        if manifest[source] is None or manifest[source][:2] != [status.st_size, status.st_mtime_ns]:
            manifest[source] = [status.st_size, status.st_mtime_ns, None]
            changed.append(source)
    for source in tqdm(changed, desc=f"Checking {root.name}", unit="file", disable=not (progress and changed)):
        try:
            manifest[source][2] = _sha256(root / source)
        except OSError as error:
            unreadable.append((source, error.strerror or str(error)))
    if unreadable:
        raise DataError(bad_files_message(root.name, unreadable))
    if changed or len(known) != len(manifest):
        _write(path, lambda file: file.write(json.dumps(manifest).encode()))
    return [(manifest[source][0], manifest[source][2]) for source in sources]


def bad_files_message(name: str, bad: Sequence[tuple[str, str]]) -> str:
    """One text for all files that could not be read: their number, and up to ten with the reason."""
    lines = [f"  {source}: {reason}" for source, reason in sorted(bad)[:10]]
    if len(bad) > 10:
        lines.append(f"  and {len(bad) - 10} more")
    return (
        f"{name}: {len(bad)} file(s) could not be read as an image:\n" + "\n".join(lines)
        + "\nExpected whole image files (JPEG, PNG, BMP, TIFF). Copy or download these files again, or take "
        "them out of the folder."
    )


def cached_images(key: str, shape: tuple[int, ...], build: Callable[[], np.ndarray]) -> np.ndarray:
    """The decoded images of `key`, from disk if a whole copy is there, else from `build`.

    Args:
      key: file name without ending; must hold all that the images depend on.
      shape: the expected shape [N, H, W, C].
      build: makes the images, uint8 of that shape.
    """
    path = paths.cache_root() / "images" / f"{key}.npz"
    try:
        # The zip container holds a checksum for its members: cut and altered files are noticed.
        with np.load(path, allow_pickle=False) as stored:
            images = stored["images"]
        if images.shape == shape and images.dtype == np.uint8:
            return images
        problem = f"holds {images.dtype} {images.shape}, expected uint8 {shape}"
    except (FileNotFoundError, NotADirectoryError):
        problem = None
    except Exception as error:  # a damaged file makes the readers fail in many ways; all mean: decode again
        problem = str(error) or type(error).__name__
    if problem:
        warnings.warn(f"The cache {path} is damaged ({problem}); decoding again.", RuntimeWarning, stacklevel=2)
    images = build()
    _write(path, lambda file: _write_npz(file, images))
    return images


def _write_npz(file: BinaryIO, images: np.ndarray) -> None:
    # As np.savez, which leaves its archive open when a write fails and then complains a second time.
    with zipfile.ZipFile(file, "w") as archive, archive.open("images.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, images, allow_pickle=False)


def decode_image(path: Path, image_size_px: int) -> np.ndarray:
    """One image file as grey uint8 [image_size_px, image_size_px].

    Colour becomes luminance (ITU-R 601). Transparent parts become black. 16-bit values are scaled
    from the smallest depth of 8, 10, 12, 14 or 16 bits that holds the image's maximum, because most
    devices store 10 to 14 bits in 16; the exposure of an image within its depth is kept.

    The image is padded with black to a square, not stretched: lesions and heads keep their shape,
    and the border tells less about the class (brain_mri, logistic regression on a 2-pixel frame at 64
    pixels, no_tumor against the rest: AUROC 0.90 padded, 0.93 stretched). Resizing is bilinear with
    the filter widened to the shrinking factor (Pillow), so nothing aliases.

    Raises:
      OSError, ValueError and others of Pillow: not a whole image, or of a mode without a rule.
    """
    grey = _grey(path)
    side = max(grey.size)
    square = Image.new("L", (side, side))
    square.paste(grey, ((side - grey.width) // 2, (side - grey.height) // 2))
    return np.asarray(square.resize((image_size_px, image_size_px), Image.Resampling.BILINEAR))


def _grey(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return _to_grey(image)


def picture_hashes(root: Path, sources: Sequence[str], contents: np.ndarray, images: np.ndarray) -> np.ndarray:
    """One hash a picture: equal exactly where two files show the same grey pixels at full resolution.

    A file that was saved again, or whose metadata changed, has other bytes and the same picture.
    Equal pictures are equal after resizing too, so only files that tie there are decoded again.

    Args:
      root: the dataset's folder.
      sources: N POSIX paths relative to it.
      contents: str [N], the hash of each file.
      images: uint8 [N, H, W, C], the resized images.
    Returns:
      str [N].
    Raises:
      DataError: files that tie and can no longer be read; the text lists them, up to ten.
    """
    resized = np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in images])
    _, first, inverse = np.unique(contents, return_index=True, return_inverse=True)
    values, counts = np.unique(resized[first], return_counts=True)
    ties = set(values[counts > 1])
    pictures, bad = resized[first].astype(object), []
    for position, index in enumerate(first):
        if resized[index] in ties:
            try:
                grey = _grey(root / sources[index])
            except MemoryError:
                raise
            except Exception as error:  # `images` may come from the cache, so this read can be the first to fail
                bad.append((sources[index], _reason(error, root)))
                continue
            pictures[position] = hashlib.sha256(repr(grey.size).encode() + grey.tobytes()).hexdigest()
    if bad:
        raise DataError(bad_files_message(root.name, bad))
    return pictures[inverse].astype(str)


def _reason(error: Exception, root: Path) -> str:
    return str(error).replace(str(root) + os.sep, "") or type(error).__name__


def _to_grey(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels (mode F): the intensity range is not known")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"pixel values {values.min()} to {values.max()}; expected 0 to 65535")
        full = next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if values.max() < 2**bits)
        return Image.fromarray(np.rint(values * (255 / full)).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return image.convert("RGB").convert("L") if image.mode not in ("L", "1") else image.convert("L")


def decode_images(root: Path, sources: Sequence[str], image_size_px: int, *, progress: bool = False) -> np.ndarray:
    """All images of a dataset; every file is tried before any is complained about.

    Args:
      root: the dataset's folder.
      sources: N POSIX paths relative to it.
      image_size_px: height and width of the result.
      progress: show a bar.
    Returns:
      uint8 [N, image_size_px, image_size_px, 1].
    Raises:
      DataError: files that are not whole images; the text lists them, up to ten.
    """

    def decode(source: str):
        try:
            return decode_image(root / source, image_size_px)
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders fail in many ways on broken files; all are reported
            return source, _reason(error, root)

    images, bad = np.zeros((len(sources), image_size_px, image_size_px, 1), np.uint8), []
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # Pillow decodes outside the interpreter lock
        results = pool.map(decode, sources)
        bar = tqdm(results, total=len(sources), desc=f"Decoding {root.name}", unit="image", disable=not progress)
        for index, result in enumerate(bar):
            if isinstance(result, tuple):
                bad.append(result)
            else:
                images[index, ..., 0] = result
    if bad:
        raise DataError(bad_files_message(root.name, bad))
    return images
