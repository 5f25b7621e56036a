"""Loading: a dataset's name in, decoded images with labels, patients and groups out."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fl_utils import paths, seeding
from fl_utils.data import cache, phantoms
from fl_utils.data.catalogue import DatasetCard, card
from fl_utils.data.types import DataError, ImageDataset, group_closure

GENERATOR_VERSION = 1  # raise it when the phantoms look different: old run records are then ignored
IMAGE_SIZE_RANGE_PX = (16, 1024)
DEFAULT_NUM_PHANTOMS = 400

_IGNORED_FILES = {"thumbs.db", "desktop.ini"}  # besides hidden ones; left by file managers
_GENERATORS = {"phantom_brain": phantoms.generate_brain, "phantom_chest": phantoms.generate_chest}


@dataclass(frozen=True)
class _ImageFile:
    source: str  # POSIX path relative to the dataset's folder
    label: int
    published_split: str
    patient: str


def load_dataset(
    name: str, *, image_size_px: int, num_images: int | None = None, seed: int = 0, progress: bool = False
) -> ImageDataset:
    """Loads a dataset of the catalogue: real images from disk, or phantoms generated from a seed.

    Real images are turned grey, padded to a square and resized (see `cache.decode_image`); the result is
    cached on disk. Their order is that of the sorted file paths.

    Args:
      name: a name of `catalogue.CARDS`.
      image_size_px: height and width, 16 to 1024.
      num_images: phantoms only; default 400.
      seed: phantoms only, >= 0.
      progress: show progress bars.
    Raises:
      DataError: unknown name; size or number out of range; missing folder; missing, empty or
        unknown class folder; files that are not whole images (all are listed, up to ten).
    """
    info = card(name)
    num_images = _checked_arguments(info, image_size_px, num_images)
    if info.synthetic:
        return _generate(info, image_size_px, num_images, seed)
    root, files = _list_files(info)
    hashes = _hashes(root, files, progress)
    fingerprint = _fingerprint(files, hashes)
    images = cache.cached_images(
        f"{name}-{fingerprint[:16]}-{image_size_px}px-v{cache.DECODER_VERSION}",
        (len(files), image_size_px, image_size_px, 1),
        lambda: cache.decode_images(root, [file.source for file in files], image_size_px, progress=progress),
    )
    contents = np.array([sha for _, sha in hashes])
    pictures = cache.picture_hashes(root, [file.source for file in files], contents, images)
    patients = np.array([file.patient for file in files])
    return ImageDataset(
        name=name,
        images=images,
        labels=np.array([file.label for file in files], dtype=np.int64),
        class_names=info.class_names,
        groups=group_closure(contents, pictures, patients),
        duplicate_groups=group_closure(contents),
        picture_groups=group_closure(contents, pictures),
        patients=patients,
        published_split=np.array([file.published_split for file in files]),
        sources=np.array([file.source for file in files]),
        masks=None,
        fingerprint=fingerprint,
        synthetic=False,
    )


def source_fingerprint(
    name: str, *, image_size_px: int = 64, num_images: int | None = None, seed: int = 0
) -> str:
    """The `fingerprint` that `load_dataset` with the same arguments gives, without decoding.

    Real data: SHA-256 over path, size and content hash of every image file; the other arguments
    do not matter. Phantoms: SHA-256 over the generator's version and all arguments.

    Raises:
      DataError: as `load_dataset`, but for unreadable images.
    """
    info = card(name)
    num_images = _checked_arguments(info, image_size_px, num_images)
    if info.synthetic:
        return _phantom_fingerprint(name, image_size_px, num_images, seed)
    root, files = _list_files(info)
    return _fingerprint(files, _hashes(root, files, False))


def _checked_arguments(info: DatasetCard, image_size_px: int, num_images: int | None) -> int:
    """The number of phantoms to make; 0 for real data."""
    low, high = IMAGE_SIZE_RANGE_PX
    if not low <= image_size_px <= high:
        raise DataError(f"image_size_px is {image_size_px}; expected {low} to {high}.")
    if num_images is not None and not info.synthetic:
        raise DataError(
            f"num_images is {num_images}, but {info.name!r} is real data and is loaded whole; leave num_images "
            "out, or choose with ImageDataset.subset."
        )
    if num_images is not None and num_images < 1:
        raise DataError(f"num_images is {num_images}; expected 1 or more.")
    if info.synthetic:
        return DEFAULT_NUM_PHANTOMS if num_images is None else num_images
    return 0


def _list_files(info: DatasetCard) -> tuple[Path, list[_ImageFile]]:
    """The dataset's folder and its image files, sorted by path."""
    root = paths.dataset_root(info.folder)
    all_parts = ",".join(part for parts in info.splits.values() for part in parts)
    layout = f"{info.folder}/{{{all_parts}}}/{{{','.join(info.class_folders)}}}"
    if root is None:
        raise DataError(
            f"{info.name}: no folder {paths.data_root() / info.folder}. Set FL_UTILS_DATA to the folder that holds "
            f"{info.folder}/, or put the data there. Expected layout: {layout}/<image files>. Source: {info.source}"
        )
    files = []
    for published_split, parts in info.splits.items():
        for part in parts:
            if part in info.optional_parts and not (root / part).is_dir():
                continue
            if not (root / part).is_dir():
                raise DataError(f"{info.name}: {root} has no folder {part}/. Expected layout: {layout}/<image files>.")
            _check_class_folders(info, root / part, layout)
            for label, folder in enumerate(info.class_folders):
                names = _visible(root / part / folder)
                if not names:
                    raise DataError(f"{info.name}: {root / part / folder} holds no images. Download the dataset again.")
                files += [
                    _ImageFile(f"{part}/{folder}/{name}", label, published_split, info.patient(name, published_split))
                    for name in names
                ]
    return root, sorted(files, key=lambda file: file.source)


def _check_class_folders(info: DatasetCard, part: Path, layout: str) -> None:
    entries = _visible(part)
    folders = [entry for entry in entries if (part / entry).is_dir()]
    images = [e for e in entries if e not in folders and Path(e).suffix.lower() in Image.registered_extensions()]
    missing = [folder for folder in info.class_folders if folder not in folders]
    unknown = [folder for folder in folders if folder not in info.class_folders]
    for wrong, text in (
        (missing, "no class folder"),
        (unknown, "class folders that are not known:"),
        (images, "images outside the class folders:"),
    ):
        if wrong:
            shown = ", ".join(wrong[:10]) + (f" and {len(wrong) - 10} more" if len(wrong) > 10 else "")
            raise DataError(f"{info.name}: {part} has {text} {shown}. Expected layout: {layout}/<image files>.")


def _visible(folder: Path) -> list[str]:
    """Names in a folder without hidden ones (.DS_Store) and what file managers leave."""
    return [e.name for e in folder.iterdir() if not e.name.startswith(".") and e.name.lower() not in _IGNORED_FILES]


def _hashes(root: Path, files: list[_ImageFile], progress: bool) -> list[tuple[int, str]]:
    return cache.content_hashes(root, [file.source for file in files], progress=progress)


def _fingerprint(files: list[_ImageFile], hashes: list[tuple[int, str]]) -> str:
    lines = [f"{file.source}\0{size}\0{sha}\n" for file, (size, sha) in zip(files, hashes, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _phantom_fingerprint(name: str, image_size_px: int, num_images: int, seed: int) -> str:
    key = f"v{GENERATOR_VERSION}\0{name}\0{image_size_px}\0{num_images}\0{seed}"
    return hashlib.sha256(key.encode()).hexdigest()


def _generate(info: DatasetCard, image_size_px: int, num_images: int, seed: int) -> ImageDataset:
    """Phantoms; a fifth of each class is given the published split "test"."""
    rng = seeding.generator(seed, "phantoms", info.name)
    try:
        images, labels, masks = _GENERATORS[info.name](num_images, image_size_px=image_size_px, rng=rng)
    except ValueError as error:  # phantoms need more pixels than real images do
        raise DataError(f"{info.name}: {error}") from None
    labels = np.asarray(labels, np.int64)
    split = np.full(num_images, "train", dtype="<U5")
    for label in np.unique(labels):
        split[np.flatnonzero(labels == label)[4::5]] = "test"
    each_its_own = np.arange(num_images, dtype=np.int64)
    return ImageDataset(
        name=info.name,
        images=images,
        labels=labels,
        class_names=info.class_names,
        groups=each_its_own,
        duplicate_groups=each_its_own.copy(),
        picture_groups=each_its_own.copy(),
        patients=np.array([f"phantom{i:06d}" for i in range(num_images)]),
        published_split=split,
        sources=np.array([f"generated/{info.class_names[k]}/{i:06d}" for i, k in enumerate(labels)]),
        masks=masks,
        fingerprint=_phantom_fingerprint(info.name, image_size_px, num_images, seed),
        synthetic=True,
    )
