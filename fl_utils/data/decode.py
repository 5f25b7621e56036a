"""Decoding: a file in, a grey square out; and what tells pictures apart at full resolution."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from fl_utils.data.types import DataError

DECODER_VERSION = 1  # raise it when decode_image gives other pixels: old caches are then ignored
HASH_SIDE = 16  # the perceptual hash has HASH_SIDE ** 2 = 256 bits


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
    return _square(_grey(path), image_size_px)


def _square(grey: Image.Image, image_size_px: int) -> np.ndarray:
    side = max(grey.size)
    square = Image.new("L", (side, side))
    square.paste(grey, ((side - grey.width) // 2, (side - grey.height) // 2))
    return np.asarray(square.resize((image_size_px, image_size_px), Image.Resampling.BILINEAR))


def perceptual_hash(grey: Image.Image) -> np.ndarray:
    """The 256 bits of a picture's perceptual hash, bool [256]: equal up to the size and the mean of the picture.

    Source: imagehash.phash, the signs of the 16 x 16 lowest cosine frequencies against their median (Zauner 2010).
    """
    return imagehash.phash(grey, hash_size=HASH_SIDE).hash.ravel()


def _grey(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return _to_grey(image)


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


def decode_images(
    root: Path, sources: Sequence[str], images: np.ndarray, *, progress: bool = False
) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """All images of a dataset; every file is tried.

    Args:
      root: the dataset's folder.
      sources: N POSIX paths relative to it.
      images: uint8 [N, H, H, 1], filled here; those of bad files are left as they are.
      progress: show a bar.
    Returns:
      Perceptual hashes, uint8 [N, 32] (256 bits packed); and (index, reason) of files that are not whole images.
    """

    def decode(source: str):
        try:
            grey = _grey(root / source)
            return _square(grey, images.shape[1]), np.packbits(perceptual_hash(grey))
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders fail in many ways on broken files; all are reported
            return _reason(error, root)

    hashes, bad = np.zeros((len(sources), HASH_SIDE**2 // 8), np.uint8), []
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # Pillow decodes outside the interpreter lock
        # In slices, so that results of a hundred thousand files do not wait in memory for a slow disk.
        with tqdm(total=len(sources), desc=f"Decoding {root.name}", unit="image", disable=not progress) as bar:
            for start in range(0, len(sources), 1024):
                for index, result in enumerate(pool.map(decode, sources[start : start + 1024]), start):
                    if isinstance(result, str):
                        bad.append((index, result))
                    else:
                        images[index, ..., 0], hashes[index] = result
                    bar.update()
    return hashes, bad


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


def hashes_of(images: np.ndarray) -> np.ndarray:
    """Perceptual hashes of images in memory, uint8 [N, H, W, 1] -> uint8 [N, 32] (256 bits packed)."""
    return np.array([np.packbits(perceptual_hash(Image.fromarray(image[..., 0]))) for image in images])


def _reason(error: Exception, root: Path) -> str:
    return str(error).replace(str(root) + os.sep, "") or type(error).__name__
