"""What a card of the catalogue holds. Adding a dataset of a known layout is adding a card."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

Task = Literal["multi-class", "multi-label", "segmentation"]
Layout = Literal["class_folders", "nih", "medmnist", "brats", "msd", "xray_sites", "generated"]


@dataclass(frozen=True)
class Download:
    """One thing to fetch.

    Attributes:
      kind: "url": a file at `address`; "kaggle": a Kaggle dataset handle "owner/name".
      address: the URL, or the handle.
      file_name: name of the file as it is kept; "" for Kaggle.
      checksum: "md5:<hex>" or "sha256:<hex>" as its publisher gives it; None where none is published: then
        the SHA-256 of what came is written down and told, and later fetches are compared with it.
      size_bytes: as published; None where unknown.
      unpack: the file is an archive (zip, tar, tar.gz) that is unpacked into the dataset's folder.
      strip: this many leading folders of the archive's paths are left out.
    """

    kind: Literal["url", "kaggle"]
    address: str
    file_name: str = ""
    checksum: str | None = None
    size_bytes: int | None = None
    unpack: bool = True
    strip: int = 0


@dataclass(frozen=True)
class DatasetCard:
    """What a dataset is and how its folder looks.

    Attributes:
      label: the short name that figures use.
      layout: which reader reads it; see `fl_utils.data.readers` and `fl_utils.data.volumes`.
      classes: the source's name of a class (folder, finding, label value) -> our name; the order
        gives the labels 0..K-1. For segmentation the first one is the background.
      splits: published split ("train", "test") -> the parts (folders) it consists of.
      optional_parts: parts that some copies of the dataset lack.
      modalities: segmentation: the file's name of a modality -> our name, in channel order.
      counts: published number of images (subjects, for segmentation) by part or class.
      size_bytes: of the download; None where it is not published.
      patient_key: regular expression; what its groups match at the start of a file name
        tells patients apart. None where the files do not say.
      patient_scope: "part": equal keys in the published train and test are different people;
        "dataset": they are one person.
      series_key: regular expression with the groups "series" and "number" for the end of a file's path, where
        files with neighbouring numbers often show one patient; see `fl_utils.data.near.series_blocks`.
      hospital_note: what the natural hospitals of the dataset are; "" where it has none.
      flip_is_safe: a left-right mirrored image is as plausible, so training may flip.
      access: what a user must do before a fetch can work; "" where nothing.
      note: how the key and the layout were judged.
    """

    name: str
    label: str
    title: str
    task: Task
    modality: str
    layout: Layout
    folder: str
    classes: Mapping[str, str]
    licence: str
    citation: str
    source: str
    ethics: str
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    optional_parts: tuple[str, ...] = ()
    modalities: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    size_bytes: int | None = None
    downloads: tuple[Download, ...] = ()
    access: str = ""
    patient_key: str | None = None
    patient_scope: Literal["part", "dataset"] = "dataset"
    series_key: str | None = None
    hospital_note: str = ""
    known_faults: tuple[str, ...] = ()
    note: str = ""
    flip_is_safe: bool = True
    synthetic: bool = False

    def __post_init__(self):
        # A card is shared by all callers, so its tables are made read-only.
        for table in ("classes", "splits", "modalities", "counts"):
            object.__setattr__(self, table, MappingProxyType(dict(getattr(self, table))))

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.classes.values())

    def patient(self, file_name: str, published_split: str) -> str:
        """The patient of a file, "" where the name does not say."""
        match = re.match(self.patient_key, file_name) if self.patient_key else None
        if match is None:
            return ""
        key = "".join(part for part in match.groups() if part)
        return f"{published_split}/{key}" if self.patient_scope == "part" else key

    def series(self, source: str) -> tuple[str, int]:
        """Series and number of a file by its path; ("", 0) where it belongs to none."""
        match = re.search(self.series_key, source) if self.series_key else None
        return (match["series"], int(match["number"])) if match else ("", 0)
