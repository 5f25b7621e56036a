"""Is a dataset on disk whole? Every file is read; nothing is changed."""

import gzip
import json
import math
import os
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import nibabel
import numpy as np
import pooch
from PIL import Image
from tqdm.auto import tqdm

from fl_utils import paths
from fl_utils.data.catalogue import DatasetCard, card
from fl_utils.data.types import DataError

MARKER = ".fetched.json"  # what `fetch` notes in a dataset's folder when it is whole

_CLUTTER = {"thumbs.db", "desktop.ini"}  # besides hidden files; left by file managers
_CHUNK_BYTES = 1 << 20
_VOLUMES = (".nii", ".nii.gz")
_SUBJECTS = {"msd": _VOLUMES, "brats": ("_seg.nii", "_seg.nii.gz")}


@dataclass(frozen=True)
class VerifyReport:
    """What was found in a dataset's folder.

    Attributes:
      name: name of the card.
      folder: the folder that was read.
      files: number of files, hidden ones left out.
      size_bytes: of these files together.
      found: number of files (of subjects, for segmentation) by part, class and part/class; of
        images by split for .npz files.
      published: the card's counts.
      problems: files that are damaged, missing or changed, each with the reason (path, reason).
      notes: differences that need not be faults.
    """

    name: str
    folder: Path
    files: int
    size_bytes: int
    found: Mapping[str, int] = field(default_factory=dict)
    published: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(name_or_card: str | DatasetCard, *, root: Path | None = None, progress: bool = True) -> VerifyReport:
    """Reads every file of a dataset and reports those that are damaged, missing or changed.

    Images are decoded whole; .npz and .zip files are compared with their checksums; .nii.gz and .gz files are
    read to their end, where gzip's checksum is, and volumes must hold what their header announces. If `fetch`
    put the dataset there, its list of files and its checksums are compared as well. Other counts than the
    published ones are notes: many people hold a part of a dataset.

    Args:
      name_or_card: a name of `catalogue.CARDS`, or a card.
      root: the folder that holds the datasets; default `paths.data_root()`.
      progress: show a bar.
    Raises:
      DataError: unknown name; generated dataset, or one put together from others; no folder, or no files in it.
    """
    info = card(name_or_card) if isinstance(name_or_card, str) else name_or_card
    if info.synthetic:
        raise DataError(f"{info.name} is generated: there are no files to verify.")
    if not info.folder:
        raise DataError(f"{info.name} has no folder of its own. {info.access}")
    folder = (Path(root) if root is not None else paths.data_root()) / info.folder
    names = visible_files(folder)
    if not names:
        raise DataError(
            f"{info.name}: no files in {folder}. Fetch the dataset, or set FL_UTILS_DATA to the folder that holds "
            f"{info.folder}/. Source: {info.source}"
        )
    problems = _damaged(folder, names, progress)
    known = read_marker(folder)
    problems += _changed(folder, known)
    notes = [] if known else ["Not put there by `fetch`: there is no list of files to compare with."]
    notes += _other_files(folder, info, known)
    found = _counts(folder, names, info, {path for path, _ in problems})
    for key, published in info.counts.items():
        if found.get(key, 0) != published:
            notes.append(f"{key}: {found.get(key, 0):,} found, {published:,} published.")
    size_bytes = sum((folder / name).stat().st_size for name in names)
    return VerifyReport(
        info.name, folder, len(names), size_bytes, found, dict(info.counts), tuple(sorted(set(problems))), tuple(notes)
    )


def read_marker(folder: Path) -> dict:
    """What `fetch` noted about a dataset's folder; empty if it noted nothing, or nothing that can be read."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return marker if isinstance(marker["files"], dict) and isinstance(marker["downloads"], list) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def changed_files(folder: Path, files: Mapping[str, int]) -> list[tuple[str, str]]:
    """The files that are missing or have another size: (path, reason)."""
    changed = []
    for name, size in files.items():
        try:
            now = (folder / name).stat().st_size
        except OSError:
            changed.append((name, "missing"))
        else:
            if now != size:
                changed.append((name, f"has {now:,} bytes, had {size:,} when it was fetched"))
    return changed


def visible_files(folder: Path) -> list[str]:
    """POSIX paths of the files below a folder, sorted, without hidden files and folders."""
    found, entered = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):  # images may be kept on another disk
        if os.path.realpath(parent) in entered:  # a link that leads back
            folders.clear()
            continue
        entered.add(os.path.realpath(parent))
        folders[:] = [name for name in folders if not name.startswith(".")]
        base = Path(parent).relative_to(folder)
        found += [
            (base / name).as_posix() for name in names if not name.startswith(".") and name.lower() not in _CLUTTER
        ]
    return sorted(found)


def _damaged(folder: Path, names: list[str], progress: bool) -> list[tuple[str, str]]:
    Image.init()  # all formats, before the threads ask for them
    endings = set(Image.registered_extensions())

    def check(name: str) -> str:
        try:
            return _check(folder / name, endings)
        except MemoryError:
            raise
        except Exception as error:  # the decoders fail in many ways on broken files; all are reported
            return (str(error) or type(error).__name__).replace(str(folder) + os.sep, "")

    with warnings.catch_warnings(), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")  # about odd metadata in whole images
        bar = tqdm(pool.map(check, names), total=len(names), desc="Verifying", unit="file", disable=not progress)
        return [(name, reason) for name, reason in zip(names, bar, strict=True) if reason]


def _check(path: Path, endings: set[str]) -> str:
    """What is wrong with a file; "" for nothing."""
    name = path.name.lower()
    if path.stat().st_size == 0:
        return "the file is empty"
    if name.endswith(_VOLUMES):
        return _check_volume(path)
    if name.endswith((".npz", ".zip")):
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        return f"the checksum of its part {broken} does not hold" if broken else ""
    if name.endswith(".npy"):
        np.load(path, mmap_mode="r", allow_pickle=False)
    elif name.endswith((".gz", ".tgz")):
        _gzip_bytes(path)
    elif path.suffix.lower() in endings:
        with Image.open(path) as image:
            image.verify()
        with Image.open(path) as image:  # verify() uses an image up
            image.load()
    return ""


def _check_volume(path: Path) -> str:
    volume = nibabel.load(path)
    start = int(volume.dataobj.offset)
    expected = start + math.prod(volume.shape) * volume.get_data_dtype().itemsize
    have = _gzip_bytes(path) if path.name.lower().endswith(".gz") else path.stat().st_size
    return f"holds {have:,} bytes, its header announces {expected:,}" if have < expected else ""


def _gzip_bytes(path: Path) -> int:
    """Length of the content. Reading to the end compares gzip's checksum."""
    total = 0
    try:
        with gzip.open(path) as file:
            while chunk := file.read(_CHUNK_BYTES):
                total += len(chunk)
    except (EOFError, zlib.error) as error:
        raise OSError(f"the gzip stream is damaged: {error}") from None
    return total


def _changed(folder: Path, known: dict) -> list[tuple[str, str]]:
    problems = changed_files(folder, known.get("files", {}))
    different = {name for name, _ in problems}
    for entry in known.get("downloads", []):
        name = entry.get("file_name", "")
        if entry.get("unpacked") or not name or name in different or not (folder / name).is_file():
            continue
        now = pooch.file_hash(str(folder / name), alg="sha256")
        if now != entry["sha256"]:
            problems.append((name, f"its SHA-256 is {now}, was {entry['sha256']} when it was fetched"))
    return problems


def _other_files(folder: Path, info: DatasetCard, known: dict) -> list[str]:
    """Files or archives that somebody put there by hand and that are not the published ones."""
    notes = []
    recorded = {entry.get("file_name") for entry in known.get("downloads", []) if not entry.get("unpacked")}
    for download in info.downloads:
        path = folder / download.file_name
        if not download.checksum or not download.file_name or download.file_name in recorded or not path.is_file():
            continue
        algorithm, expected = download.checksum.split(":")
        now = pooch.file_hash(str(path), alg=algorithm)
        if now != expected.lower():
            notes.append(f"{download.file_name} is not the published file: its {algorithm} is {now}, not {expected}.")
    return notes


def _counts(folder: Path, names: list[str], info: DatasetCard, damaged: set[str]) -> dict[str, int]:
    """Counts under every name that a card may use: part, published split, source's class, our class, part/class."""
    parts_of = {split: set(own) for split, own in info.splits.items()}
    if info.layout == "msd":
        parts_of.setdefault("test", {"imagesTs"})
    # An image is a file; so is a subject of the Decathlon; one of BraTS is a folder with one segmentation.
    endings = _SUBJECTS.get(info.layout, tuple(Image.registered_extensions()))
    counted = [name for name in names if name.lower().endswith(endings)]
    found = Counter()
    for name in counted:
        folders = PurePosixPath(name).parts[:-1]
        keys = {"total"} | {"/".join(folders[i:j]) for j in range(1, len(folders) + 1) for i in range(j)}
        keys |= {info.classes[folder] for folder in folders if folder in info.classes}
        found.update(keys | {split for split, own in parts_of.items() if own & {".", *folders}})
    images = {PurePosixPath(name).name for name in counted}
    for key in info.counts:
        if key.endswith(".txt") and (folder / key).is_file():  # a part that is a list of images
            found[key] = len(images & set((folder / key).read_text(encoding="utf-8", errors="replace").split()))
    for name in names:
        if name.lower().endswith(".npz") and name not in damaged:
            for split, count in _npz_counts(folder / name).items():
                found[split] = max(found[split], count)  # several files hold the same images in other sizes
    return dict(sorted(found.items()))


def _npz_counts(path: Path) -> dict[str, int]:
    """Images by split of a MedMNIST file: `train_images` -> train, from the headers alone."""
    counts = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if member.endswith("_images.npy"):
                with archive.open(member) as file:
                    version = np.lib.format.read_magic(file)
                    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else (
                        np.lib.format.read_array_header_2_0)  # fmt: skip
                    counts[member.removesuffix("_images.npy")] = read(file)[0][0]
    return counts
