"""Cards of MedMNIST v2: small, standardised copies of other datasets, one .npz file a size."""

from collections.abc import Mapping

from fl_utils.data.catalogue.schema import DatasetCard, Download

# MedMNIST/MedMNIST, medmnist/info.py @ 3bb56be69bca38e5f105b21e4d6482b91354d3a4 (version 3.0.2): addresses, md5 by
# image size in pixels, labels and numbers of images.
_ZENODO = "https://zenodo.org/records/10519652/files"
_MD5 = {
    "pneumoniamnist": {
        28: "28209eda62fecd6e6a2d98b1501bb15f",
        64: "8f4eceb4ccffa70c672198ea285246c6",
        128: "05b46931834c231683c68f40c47b2971",
        224: "d6a3c71de1b945ea11211b03746c1fe1",
    },
    "octmnist": {
        28: "c68d92d5b585d8d81f7112f81e2d0842",
        64: "e229e9440236b774d9f0dfef9d07bdaf",
        128: "0a97e76651ace45c5d943ee3f65b63ae",
        224: "abc493b6d529d5de7569faaef2773ba3",
    },
    "chestmnist": {
        28: "02c8a6516a18b556561a56cbdd36c4a8",
        64: "9de6cd0b934ebb5b7426cfba5efbae16",
        128: "db107e5590b27930b62dbaf558aebee3",
        224: "45bd33e6f06c3e8cdb481c74a89152aa",
    },
}
_FETCHED_SIZES_PX = (28, 64)  # the larger files hold up to gigabytes, and the suite trains at 64 pixels or less

_CITATION = (
    "Yang et al. 2023, MedMNIST v2, Scientific Data 10:41, doi:10.1038/s41597-022-01721-8; "
    "data doi:10.5281/zenodo.10519652"
)
_NO_PATIENTS = (
    "Patient ids were dropped: images of one patient cannot be kept together in a new split, and copies can only "
    "be found by their pixels, which the reduction to 28 pixels blurs."
)
_EXCHANGED = (
    "Copies on code hosts may be re-ordered or saved again, with the published counts but another md5 "
    "(pneumoniamnist is an example). Compare the md5 before you compare with published results."
)


def _file_name(name: str, size_px: int) -> str:
    return f"{name}.npz" if size_px == 28 else f"{name}_{size_px}.npz"


def _download(name: str, size_px: int) -> Download:
    file_name = _file_name(name, size_px)
    return Download(
        kind="url",
        address=f"{_ZENODO}/{file_name}?download=1",
        file_name=file_name,
        checksum=f"md5:{_MD5[name][size_px]}",
        unpack=False,
    )


def _card(
    name: str, *, label: str, title: str, modality: str, classes: Mapping[str, str], counts: Mapping[str, int],
    original: str, ethics: str, faults: tuple[str, ...], note: str, multi_label: bool = False, flip_is_safe: bool,
) -> DatasetCard:
    larger = "; ".join(
        f"{_file_name(name, size_px)} (md5 {md5})"
        for size_px, md5 in _MD5[name].items()
        if size_px not in _FETCHED_SIZES_PX
    )
    return DatasetCard(
        name=name,
        label=label,
        title=title,
        task="multi-label" if multi_label else "multi-class",
        modality=modality,
        layout="medmnist",
        folder=name,
        splits={"train": ("train", "val"), "test": ("test",)},
        classes=classes,
        counts=counts,
        downloads=tuple(_download(name, size_px) for size_px in _FETCHED_SIZES_PX),
        flip_is_safe=flip_is_safe,
        licence="CC BY 4.0",
        citation=f"{_CITATION}. Made from: {original}",
        source="https://medmnist.com",
        ethics=f"{ethics} Names, ages and patient ids are not in the file. MedMNIST's makers write themselves that it "
        "is not for clinical use.",
        known_faults=(*faults, _NO_PATIENTS, _EXCHANGED),
        note=f"{note} The published val joins train, since the suite cuts its own validation part. Fetched at "
        f"28 and 64 pixels; larger ones lie at the same address and are read when put beside: {larger}.",
    )


PNEUMONIAMNIST = _card(
    "pneumoniamnist",
    label="PneumoniaMNIST",
    title="PneumoniaMNIST (MedMNIST v2)",
    modality="X-ray, 28 to 224 pixels",
    classes={"0": "normal", "1": "pneumonia"},
    counts={"train": 4_708, "val": 524, "test": 624},
    original="chest_xray, Kermany et al. 2018, Cell 172(5):1122-1131, doi:10.1016/j.cell.2018.02.010",
    ethics="Children of one to five years from one hospital; see chest_xray.",
    faults=(
        "The 5,856 images are those of chest_xray, centre-cropped and made small: never train on one and test on the "
        "other, nor count them as two hospitals.",
        "train and val were cut 9 to 1 from chest_xray's train part; nothing says that patients were kept together, "
        "so scores on the published val may be too good.",
    ),
    note="Labels are 0 and 1.",
    flip_is_safe=False,
)

OCTMNIST = _card(
    "octmnist",
    label="OCTMNIST",
    title="OCTMNIST (MedMNIST v2)",
    modality="Optical coherence tomography, 28 to 224 pixels",
    classes={"0": "cnv", "1": "dme", "2": "drusen", "3": "normal"},
    counts={"train": 97_477, "val": 10_832, "test": 1_000},
    original="Kermany et al. 2018, third version of the data, doi:10.17632/rscbjbr9sj.3",
    ethics="Adults from five institutions in the United States and China; see oct2017.",
    faults=(
        "Made from the third version of oct2017's data: most images of the two are the same. Never train on one "
        "and test on the other.",
        "train and val were cut 9 to 1 from one part; nothing says that patients were kept together, and neighbouring "
        "slices of one eye look alike: scores on the published val may be too good.",
        "The test part has 250 images a class, train is uneven: accuracy in train and in test mean different things.",
    ),
    note="Labels are 0 choroidal neovascularization, 1 diabetic macular edema, 2 drusen, 3 normal.",
    flip_is_safe=True,  # a mirrored right eye looks like a left eye
)

CHESTMNIST = _card(
    "chestmnist",
    label="ChestMNIST",
    title="ChestMNIST (MedMNIST v2)",
    modality="X-ray, 28 to 224 pixels",
    classes={
        "0": "atelectasis",
        "1": "cardiomegaly",
        "2": "effusion",
        "3": "infiltration",
        "4": "mass",
        "5": "nodule",
        "6": "pneumonia",
        "7": "pneumothorax",
        "8": "consolidation",
        "9": "edema",
        "10": "emphysema",
        "11": "fibrosis",
        "12": "pleural_thickening",
        "13": "hernia",
    },
    counts={"train": 78_468, "val": 11_219, "test": 22_433},
    original="nih, Wang et al. 2017, CVPR, doi:10.1109/CVPR.2017.369",
    ethics="Patients of the NIH Clinical Center; see nih.",
    faults=(
        "The 112,120 images are those of nih at small size: never train on one and test on the other.",
        "MedMNIST speaks of the official split, but its test part (22,433) is not the official one (25,596 images): "
        "results cannot be compared with those on nih.",
        "Labels were read from reports by a program; see nih. Many findings are too small to be seen at 28 pixels.",
    ),
    note="Each image has one 0 or 1 a finding; all 0 means that no finding was reported. MedMNIST calls finding 12 "
    "\"pleural\"; in nih it is Pleural_Thickening.",
    multi_label=True,
    flip_is_safe=False,
)

MEDMNIST = (PNEUMONIAMNIST, OCTMNIST, CHESTMNIST)
