"""What a reader hands on: the image files of a dataset, before anything is decoded."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from fl_utils import paths
from fl_utils.data.catalogue import DatasetCard
from fl_utils.data.types import DataError

_IGNORED_FILES = {"thumbs.db", "desktop.ini"}  # besides hidden ones; left by file managers


@dataclass(frozen=True)
class ImageFile:
    """One image file.

    Attributes:
      source: POSIX path relative to the listing's root.
      label: index of its class; for multi-label data one 0 or 1 a finding.
      published_split: "train" or "test".
      patient: "" where unknown.
      hospital: the natural hospital, "" where the data does not say.
    """

    source: str
    label: int | tuple[int, ...]
    published_split: str
    patient: str
    hospital: str = ""


@dataclass(frozen=True)
class Listing:
    """The image files of a dataset, sorted by source.

    Attributes:
      root: the folder that the sources are relative to.
      files: what can be decoded.
      excluded: (what, reason) of files and rows that cannot be used.
    """

    root: Path
    files: list[ImageFile]
    excluded: tuple[tuple[str, str], ...] = ()


def visible(folder: Path) -> list[str]:
    """Names in a folder without hidden ones (.DS_Store) and what file managers leave."""
    return [e.name for e in folder.iterdir() if not e.name.startswith(".") and e.name.lower() not in _IGNORED_FILES]


def is_image_name(name: str) -> bool:
    """Whether the ending is one that Pillow reads."""
    return Path(name).suffix.lower() in Image.registered_extensions()


def existing_root(card: DatasetCard, layout: str) -> Path:
    """The dataset's folder.

    Raises:
      DataError: it is not there; the text says where it was looked for and how it is got.
    """
    root = paths.dataset_root(card.folder)
    if root is None:
        raise DataError(
            f"{card.name}: no folder {paths.data_root() / card.folder}. Set FL_UTILS_DATA to the folder that holds "
            f"{card.folder}/, or get the data with `fl-utils data fetch {card.name}`. "
            f"Expected layout: {layout}. Source: {card.source}"
        )
    return root
