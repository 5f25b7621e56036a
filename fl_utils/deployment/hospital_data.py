"""One hospital's images, in a folder of its own that its data team can fill by hand.

    data/
      train/<class>/<file>         PNG, JPEG, BMP or TIFF; a class of which the hospital has no case may be missing
      validation/<class>/<file>    may be missing
      test/<class>/<file>          may be missing
      patients.csv                 optional: columns file (e.g. train/glioma/0001.png) and patient

Without patients.csv each image counts as a patient of its own. With it, a patient in two parts is refused: the model would be
judged on patients that it was trained on.
"""

import csv
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fl_utils.data import decode
from fl_utils.data.types import DataError

PARTS = ("train", "validation", "test")
PATIENTS = "patients.csv"
_LAYOUT = "Expected: train/<class>/<image files>, and likewise validation and test where there are such images."
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_IGNORED = ("thumbs.db", "desktop.ini")  # besides hidden ones; left by file managers


@dataclass(frozen=True, eq=False)
class Part:
    """The training, validation or test images of one hospital.

    Attributes:
      images: uint8 [N, H, W, 1], 0 (black) to 255.
      labels: int32 [N], index into the class names.
      patients: int32 [N], counted within the part: 0..P-1 without gaps, in order of first appearance.
    """

    images: np.ndarray
    labels: np.ndarray
    patients: np.ndarray


def load_hospital(folder: Path, *, class_names: Sequence[str], image_size_px: int) -> dict[str, Part]:
    """A hospital's images: grey, padded to a square, resized (`decode.decode_image`), ordered by file name, ties by class.

    Args:
      folder: laid out as above; hidden files are ignored.
      class_names: names of the class folders, in the order of the labels.
      image_size_px: side of the images, >= 1.
    Returns:
      "train", "validation" and "test"; the last two may have no images.
    Raises:
      DataError: the folder is missing or laid out otherwise, there are no training images, a file is not an image,
        patients.csv does not fit the files, or a patient has images in more than one part.
    """
    folder = Path(folder)
    _check_classes(class_names)
    if image_size_px < 1:
        raise DataError(f"image_size_px is {image_size_px}; expected 1 or more.")
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}. Name the folder that holds the hospital's images. {_LAYOUT}")
    unknown = [entry.name for entry in _visible(folder) if entry.is_dir() and entry.name not in PARTS]
    if unknown:
        raise DataError(f"{folder} has folders that are not known: {_some(unknown)}. {_LAYOUT}")
    files = {part: _files(folder / part, class_names) for part in PARTS}
    if not files["train"]:
        raise DataError(f"{folder / 'train'} holds no images. {_LAYOUT} The classes are {', '.join(class_names)}.")
    sources = {part: [f"{part}/{class_names[label]}/{name}" for name, label in files[part]] for part in PARTS}
    patient_of = _read_patients(folder / PATIENTS, sources)
    parts, bad = {}, []
    for part in PARTS:
        images = np.zeros((len(files[part]), image_size_px, image_size_px, 1), np.uint8)
        _, failed = decode.decode_images(folder, sources[part], images)
        reasons = dict(failed) | {
            index: "not named as a PNG, JPEG, BMP or TIFF file"
            for index, (name, _) in enumerate(files[part]) if not name.lower().endswith(_SUFFIXES)
        }
        bad += [(sources[part][index], reason) for index, reason in reasons.items()]
        labels = np.array([label for _, label in files[part]], np.int32)
        parts[part] = Part(images, labels, _counted(patient_of[source] for source in sources[part]))
    if bad:
        raise DataError(decode.bad_files_message(str(folder), bad))
    return parts


def write_hospital(
    folder: Path, images: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], names: Mapping[str, Sequence[str]],
    class_names: Sequence[str], patients: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes a hospital's folder, whole or not at all; `load_hospital` gives the same images back, in the same order.

    Args:
      folder: new, or empty; its images are PNG files (lossless), its mode is 0700.
      images: part -> uint8 [N, H, W, 1]; "train" with at least one image, "validation" and "test" may be missing.
      labels: part -> int [N], index into `class_names`.
      names: part -> N file names without ".png", in ascending order, because that is how they are read back.
      class_names: names of the class folders.
      patients: part -> [N], whose image it is, by ids that hold over all parts; None: patients.csv is not written.
    Raises:
      DataError: the folder holds something, the arrays do not fit each other, a name cannot be a file's or is out of
        order, or a patient has images in more than one part. Nothing was written.
      OSError: the disk is full, or the folder cannot be written; nothing is left behind.
    """
    folder = Path(folder)
    _check_classes(class_names)
    given = {"images": images, "labels": labels, "names": names} | ({} if patients is None else {"patients": patients})
    if "train" not in images or any(set(mapping) != set(images) or set(mapping) - set(PARTS) for mapping in given.values()):
        have = "; ".join(f"{what}: {', '.join(mapping) or 'none'}" for what, mapping in given.items())
        raise DataError(f"Parts of the hospital are {have}. Expected train, and validation and test or not, the same for each.")
    for part in images:
        _check_part(part, images[part], labels[part], names[part], len(class_names))
    sources = {
        part: [f"{part}/{class_names[label]}/{name}.png" for name, label in zip(names[part], labels[part], strict=True)]
        for part in images
    }
    rows = []
    if patients is not None:
        for part in images:
            if np.shape(patients[part]) != (len(sources[part]),):
                raise DataError(f"{part}: {np.shape(patients[part])} patients for {len(sources[part])} images; expected one each.")
            rows += zip(sources[part], map(str, patients[part]), strict=True)
        if not all(patient for _, patient in rows):
            raise DataError("An image's patient is the empty text; expected a number or a text for each.")
        _check_leakage(dict(rows), "The patients given")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise DataError(f"{folder} is there already, and not an empty folder. Name another, or move it away.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    try:
        for part in images:
            for source, image in zip(sources[part], images[part], strict=True):
                (temporary / source).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image[..., 0]).save(temporary / source)
        if patients is not None:
            with (temporary / PATIENTS).open("w", newline="", encoding="utf-8") as file:
                csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("file", "patient"), *rows])
        temporary.rename(folder)  # also over an empty folder
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _files(part: Path, class_names: Sequence[str]) -> list[tuple[str, int]]:
    """(file name, label) of one part's files, in order; none where the part is missing."""
    if not part.is_dir():
        return []
    entries = _visible(part)
    unknown = [entry.name for entry in entries if entry.is_dir() and entry.name not in class_names]
    if unknown:
        raise DataError(f"{part} has class folders that are not known: {_some(unknown)}. Expected: {', '.join(class_names)}.")
    outside = [entry.name for entry in entries if not entry.is_dir() and entry.name.lower().endswith(_SUFFIXES)]
    if outside:
        raise DataError(f"{part} has images outside the class folders: {_some(outside)}. Put each into the folder of its class: "
                        f"{', '.join(class_names)}.")
    folders = [entry for entry in entries if entry.is_dir()]
    return sorted((file.name, class_names.index(entry.name)) for entry in folders for file in _visible(entry))


def _read_patients(path: Path, sources: Mapping[str, list[str]]) -> dict[str, str]:
    """Source -> patient of every image."""
    images = [source for part in sources.values() for source in part]
    if not path.exists():
        return {source: source for source in images}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True, strict=True)
            columns, rows = list(reader.fieldnames or []), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}. Expected text (UTF-8) with the columns file,patient.") from error
    if not {"file", "patient"} <= set(columns):
        raise DataError(f"{path} has the columns {', '.join(columns) or '(none)'}; expected file,patient, separated by commas.")
    patient_of, times, known = {row["file"]: row["patient"] for row in rows}, Counter(row["file"] for row in rows), set(images)
    for wrong, text, advice in (
        ([file or "(empty)" for file in times if file not in known], "names files that are not there",
         f"Expected paths below {path.parent}, e.g. {images[0]}."),
        ([file for file in times if times[file] > 1], "names files more than once", "Keep one line each."),
        ([source for source in images if source not in patient_of], "lacks files",
         "Add a line for each, or take patients.csv away: then each image counts as a patient of its own."),
        ([source for source in images if source in patient_of and not patient_of[source]], "names no patient for",
         "Give each image a patient; any text will do that no other patient has."),
    ):
        if wrong:
            raise DataError(f"{path} {text}: {_some(wrong)}. {advice}")
    _check_leakage(patient_of, str(path))
    return patient_of


def _check_leakage(patient_of: Mapping[str, str], what: str) -> None:
    parts_of = {}
    for source, patient in patient_of.items():
        parts_of.setdefault(patient, {})[source.split("/")[0]] = True
    leaking = [f"{patient} ({', '.join(parts)})" for patient, parts in parts_of.items() if len(parts) > 1]
    if leaking:
        raise DataError(f"{what}: {len(leaking)} patient(s) have images in more than one part: {_some(leaking)}. The model would "
                        "be judged on patients that it was trained on. Move all images of a patient into one part.")


def _check_part(part: str, images: np.ndarray, labels: np.ndarray, names: Sequence[str], num_classes: int) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 1 or 0 in images.shape[1:]:
        raise DataError(f"{part}: images are {images.dtype} {list(images.shape)}; expected uint8 [N, H, W, 1].")
    if part == "train" and not len(images):
        raise DataError("train: no images; a hospital without any cannot take part.")
    labels = np.asarray(labels)
    if labels.shape != (len(images),) or len(names) != len(images):
        raise DataError(f"{part}: {len(images)} images, labels {list(labels.shape)}, {len(names)} names; expected one each.")
    if len(labels) and not (labels.dtype.kind in "iu" and 0 <= labels.min() and labels.max() < num_classes):
        raise DataError(f"{part}: labels are {labels.dtype}, {labels.min()} to {labels.max()}; expected integers from 0 to "
                        f"{num_classes - 1}.")
    wrong = [name for name in names if not _can_be_name(name)]
    if wrong:
        raise DataError(f"{part}: {_some(map(repr, wrong))} cannot be the name of an image file.")
    order = [(f"{name}.png", label) for name, label in zip(names, labels.tolist(), strict=True)]
    for before, after in zip(order, order[1:]):
        if before >= after:
            raise DataError(f"{part}: {before[0]} (class {before[1]}) comes before {after[0]} (class {after[1]}), but images are "
                            "read back in ascending order of file name, then class. Sort them, or number them with leading zeros.")


def _check_classes(class_names: Sequence[str]) -> None:
    if not class_names or len(set(class_names)) < len(class_names) or not all(map(_can_be_name, class_names)):
        raise DataError(f"class_names are {list(class_names)}; expected different names of folders.")


def _can_be_name(name: str) -> bool:
    return bool(name) and not name.startswith(".") and not set(name) & set("/\\\0")


def _visible(folder: Path) -> list[Path]:
    entries = sorted(folder.iterdir())
    return [entry for entry in entries if not entry.name.startswith(".") and entry.name.lower() not in _IGNORED]


def _counted(ids: Iterable[str]) -> np.ndarray:
    numbers = {}
    return np.array([numbers.setdefault(one, len(numbers)) for one in ids], np.int32)


def _some(things: Iterable[str]) -> str:
    things = list(things)
    return ", ".join(things[:3]) + (f" and {len(things) - 3} more" if len(things) > 3 else "")
