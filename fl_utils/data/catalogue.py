"""The catalogue: one card a dataset. Adding a dataset of a known layout is adding a card."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from fl_utils.data.types import DataError


@dataclass(frozen=True)
class DatasetCard:
    """What a dataset is and how its folder looks: `folder/part/class folder/image`.

    Attributes:
      label: the short name that figures use.
      splits: published split ("train", "test") -> the parts (folders) it consists of.
      optional_parts: parts that some copies of the dataset lack.
      class_folders: class folder -> class name; the order gives the labels 0..K-1.
      patient_key: regular expression; what its groups match at the start of a file name
        tells patients apart. None where the files do not say.
      patient_scope: "part": equal keys in the published train and test are different people;
        "dataset": they are one person.
      flip_is_safe: a left-right mirrored image is as plausible, so training may flip.
      note: how the key and the layout were judged.
    """

    name: str
    label: str
    title: str
    task: str
    folder: str
    class_folders: Mapping[str, str]
    licence: str
    citation: str
    source: str
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    optional_parts: tuple[str, ...] = ()
    channels: int = 1
    patient_key: str | None = None
    patient_scope: Literal["part", "dataset"] = "dataset"
    known_faults: tuple[str, ...] = ()
    note: str = ""
    flip_is_safe: bool = True
    synthetic: bool = False

    def __post_init__(self):
        # A card is shared by all callers, so its tables are made read-only.
        for table in ("class_folders", "splits"):
            object.__setattr__(self, table, MappingProxyType(dict(getattr(self, table))))

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.class_folders.values())

    def patient(self, file_name: str, published_split: str) -> str:
        """The patient of a file, "" where the name does not say."""
        match = re.match(self.patient_key, file_name) if self.patient_key else None
        if match is None:
            return ""
        key = "".join(part for part in match.groups() if part)
        return f"{published_split}/{key}" if self.patient_scope == "part" else key


_BRAIN_MRI = DatasetCard(
    name="brain_mri",
    label="Brain MRI",
    title="Brain Tumor Classification (MRI)",
    task="multi-class",
    folder="brain_mri",
    splits={"train": ("Training",), "test": ("Testing",)},
    class_folders={
        "glioma_tumor": "glioma",
        "meningioma_tumor": "meningioma",
        "no_tumor": "no_tumor",
        "pituitary_tumor": "pituitary",
    },
    licence="MIT (Kaggle page)",
    citation="Bhuvaji et al. 2020, Brain Tumor Classification (MRI), Kaggle, doi:10.34740/KAGGLE/DSV/1183165",
    source="https://www.kaggle.com/datasets/sartajbhuvaji/brain-tumor-classification-mri",
    known_faults=(
        "3,264 files but 3,027 distinct contents: 166 groups of byte-identical files, 64 of them across "
        "Training and Testing, all no_tumor: 88 of the 105 no_tumor test images have a copy in Training.",
        "Copies that differ in bytes but not in pixels: 157 more pairs or groups, 156 of them across Training and "
        "Testing; 2,870 distinct pictures remain. 251 of the 394 test images have the same pixels as a training "
        "image. The splits go by pixels, not by bytes.",
        "The classes come from different sources: 90 % of glioma and pituitary images are 512 x 512 pixels, "
        "1 % of no_tumor; 70 % of no_tumor are not square, 8 % of glioma. Image shape gives the class away.",
    ),
    note="No patient ids: slices of one patient may lie on both sides of any split; only copies can be kept together.",
)

_CHEST_XRAY = DatasetCard(
    name="chest_xray",
    label="Chest X-ray",
    title="Chest X-Ray Images (Pneumonia)",
    task="multi-class",
    folder="chest_xray",
    # The official val/ holds 16 images, too few to select a model on: they join "train".
    splits={"train": ("train", "val"), "test": ("test",)},
    optional_parts=("val",),
    class_folders={"NORMAL": "normal", "PNEUMONIA": "pneumonia"},
    patient_key=r"(person\d+_(?:bacteria|virus))_|((?:NORMAL2-)?IM-\d+)-",
    patient_scope="dataset",
    flip_is_safe=False,  # the side of the heart and of the stomach carries meaning
    licence="CC BY 4.0",
    citation="Kermany et al. 2018, Cell 172(5):1122-1131, doi:10.1016/j.cell.2018.02.010; "
    "data doi:10.17632/rscbjbr9sj.2",
    source="https://www.kaggle.com/datasets/paultimothymooney/chest-xray-pneumonia",
    known_faults=(
        "30 groups of byte-identical files, each within one published part; in one of them the two files bear "
        "different patient numbers (NORMAL2-IM-0095 and -0096).",
        "Children of one to five years from one hospital; pneumonia is three times as frequent as normal.",
        "The published test part has 62 % pneumonia, the train part 74 %.",
    ),
    note="Patients: person number plus type for pneumonia (person12_bacteria), IM number with its prefix for "
    "normal (IM-0439-0001-0002 is a further image of IM-0439). The type belongs to the key: 808 numbers occur "
    "with both types in train, and their images resemble each other no more than those of strangers (median "
    "correlation at 32 pixels 0.737 against 0.733; one patient's images 0.782). IM- and NORMAL2-IM- are two "
    "numberings: 328 numbers are in both, again no more alike than strangers. 170 bare person numbers recur in "
    "train and test, always with the other type. No key recurs in train and test.",
)


def _phantom(name: str, title: str, twin: DatasetCard) -> DatasetCard:
    return DatasetCard(
        name=name,
        label=f"{twin.label} phantoms",
        title=title,
        task=twin.task,
        folder="",
        class_folders=twin.class_folders,
        flip_is_safe=twin.flip_is_safe,
        licence="generated by this project",
        citation="none: synthetic images",
        source="fl_utils.data.phantoms",
        note="Synthetic. For learning how the suite works and for tests; says nothing about real images.",
        synthetic=True,
    )


CARDS: Mapping[str, DatasetCard] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            _BRAIN_MRI,
            _CHEST_XRAY,
            _phantom("phantom_brain", "Brain MRI phantoms", _BRAIN_MRI),
            _phantom("phantom_chest", "Chest X-ray phantoms", _CHEST_XRAY),
        )
    }
)


def card(name: str) -> DatasetCard:
    """The card of a dataset.

    Raises:
      DataError: the name is not in the catalogue; the text lists those that are.
    """
    try:
        return CARDS[name]
    except KeyError:
        raise DataError(f"There is no dataset {name!r}. Known names: {', '.join(sorted(CARDS))}.") from None
