"""Readers: each layout written to a temporary folder as its publisher lays it out, and the real data where present."""

import io
import re
import warnings
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fl_utils import paths
from fl_utils.data import DataError, card, load_dataset, make_split, readers
from fl_utils.data.readers import read_medmnist
from fl_utils.data.readers.medmnist import find_file

PX = 16


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_UTILS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FL_UTILS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "data"


def noise(seed, size=(PX, PX)):
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def save(path, pixels, mode="L", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path, **options)


def at(dataset, ending):
    (index,) = [i for i, source in enumerate(dataset.sources) if source.endswith(ending)]
    return index


def by_source(dataset, column):
    return dict(zip(dataset.sources.tolist(), getattr(dataset, column).tolist(), strict=True))


# --- oct2017 -------------------------------------------------------------------------------

OCT_FILES = (
    "train/CNV/CNV-1016042-1.jpeg", "train/CNV/CNV-1016042-12.jpeg", "train/CNV/CNV-9997680-1.jpeg",
    "train/DME/DME-1072015-1.jpeg", "train/DRUSEN/DRUSEN-1001666-1.jpeg", "train/NORMAL/NORMAL-1016042-1.jpeg",
    "train/NORMAL/NORMAL-1038998-1.jpeg", "test/CNV/CNV-1016042-2.jpeg", "test/DME/DME-4240465-1.jpeg",
    "test/DRUSEN/DRUSEN-1219817-1.jpeg", "test/NORMAL/NORMAL-1384468-1.jpeg", "val/CNV/CNV-6294785-1.jpeg",
    "val/DME/DME-1072015-3.jpeg", "val/DRUSEN/DRUSEN-1219817-2.jpeg", "val/NORMAL/NORMAL-5171640-1.jpeg",
)  # fmt: skip


@pytest.fixture
def oct_root(data):
    for seed, name in enumerate(OCT_FILES):
        save(data / "oct2017/OCT2017" / name, noise(seed, (31, 48)))  # wider than high, as the scans are
    return data / "oct2017/OCT2017"


def test_oct_layout(oct_root):
    dataset = load_dataset("oct2017", image_size_px=24)
    assert dataset.images.shape == (15, 24, 24, 1) and dataset.sources.tolist() == sorted(OCT_FILES)
    assert dataset.class_names == ("cnv", "dme", "drusen", "normal")
    assert {source: label for source, label in by_source(dataset, "labels").items()} == {
        name: ["CNV", "DME", "DRUSEN", "NORMAL"].index(name.split("/")[1]) for name in OCT_FILES
    }
    # Kaggle's val was cut out of the publisher's test.
    assert by_source(dataset, "published_split") == {
        name: "train" if name.startswith("train") else "test" for name in OCT_FILES
    }
    assert by_source(dataset, "patients") == {name: name.split("-")[1] for name in OCT_FILES}
    assert set(dataset.hospitals) == {""} and dataset.excluded == ()


def test_oct_patients_tie_their_images_across_classes_and_parts(oct_root):
    dataset = load_dataset("oct2017", image_size_px=PX)
    groups = by_source(dataset, "groups")
    one = [name for name in OCT_FILES if "-1016042-" in name]
    assert len(one) == 4 and len({groups[name] for name in one}) == 1
    assert groups["train/DME/DME-1072015-1.jpeg"] == groups["val/DME/DME-1072015-3.jpeg"]
    assert groups["test/DRUSEN/DRUSEN-1219817-1.jpeg"] == groups["val/DRUSEN/DRUSEN-1219817-2.jpeg"]
    patients = {name.split("-")[1] for name in OCT_FILES}
    assert len(np.unique(dataset.groups)) == len(patients)
    split = make_split(dataset, kind="published_clean", validation_fraction=0, seed=0)
    assert not set(dataset.patients[split.train]) & set(dataset.patients[split.test]) and len(split.train) == 3


def test_oct_without_kaggles_val(oct_root):
    for path in sorted((oct_root / "val").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (oct_root / "val").rmdir()
    dataset = load_dataset("oct2017", image_size_px=PX)
    assert len(dataset) == 11 and (dataset.published_split == "test").sum() == 4


def test_oct_one_folder_too_deep_says_what_is_expected(oct_root):
    oct_root.rename(oct_root.with_name("OCT2017 "))  # as Kaggle's archive names it
    message = r"oct2017: no folder .*OCT2017\. .*fl-utils data fetch oct2017.*OCT2017/\{train"
    with pytest.raises(DataError, match=message):
        load_dataset("oct2017", image_size_px=PX)


# --- covid19 -------------------------------------------------------------------------------

COVID_FILES = {
    "train/Covid/01.jpeg": "RGB",
    "train/Covid/COVID-00003a.jpg": "L",
    "train/Covid/auntminnie-a-2020_01_28_23_51_6665_2020_01_28_Vietnam_coronavirus.jpeg": "RGB",
    "train/Normal/01.jpeg": "L",
    "train/Viral Pneumonia/01.jpeg": "L",
    "{test}/Covid/COVID-00003b.jpg": "RGB",
    "{test}/Covid/auntminnie-b-2020_01_28_23_51_6665_2020_01_28_Vietnam_coronavirus.jpeg": "L",
    "{test}/Covid/radiopaedia-2019-novel-coronavirus-infected-pneumonia.png": "RGB",
    "{test}/Normal/0101.jpeg": "L",
    "{test}/Viral Pneumonia/0101.png": "L",
}


def covid_tree(root, test):
    for seed, (name, mode) in enumerate(COVID_FILES.items()):
        save(root / name.format(test=test), noise(seed), mode)
    return [name.format(test=test) for name in COVID_FILES]


@pytest.mark.parametrize("test", ["val", "test"])
def test_covid_layout(data, test):
    root = data / "covid19/Covid19-dataset"
    files = covid_tree(root, test)
    modes = set()
    for name in files:
        with Image.open(root / name) as image:
            modes.add((image.format, image.mode))
    assert modes == {("JPEG", "L"), ("JPEG", "RGB"), ("PNG", "L"), ("PNG", "RGB")}
    dataset = load_dataset("covid19", image_size_px=PX)
    assert dataset.images.shape == (10, PX, PX, 1) and dataset.sources.tolist() == sorted(files)
    assert dataset.class_names == ("covid", "normal", "viral_pneumonia")
    assert np.bincount(dataset.labels).tolist() == [6, 2, 2]
    assert by_source(dataset, "published_split") == {
        name: "train" if name.startswith("train") else "test" for name in files
    }
    for seed in (7, 9):  # the PNG files
        name = list(COVID_FILES)[seed].format(test=test)
        np.testing.assert_array_equal(dataset.images[at(dataset, name), ..., 0], noise(seed))  # grey as it was
    assert dataset.patients[at(dataset, "COVID-00003a.jpg")] == "COVID-00003"
    one_case = "2020_01_28_23_51_6665_2020_01_28_Vietnam_coronavirus.jpeg"
    for first, second in (
        ("COVID-00003a.jpg", "COVID-00003b.jpg"), (f"auntminnie-a-{one_case}", f"auntminnie-b-{one_case}"),
    ):  # fmt: skip
        assert dataset.groups[at(dataset, first)] == dataset.groups[at(dataset, second)]
    assert len(np.unique(dataset.groups)) == 8 and set(dataset.hospitals) == {""}


def test_covid_with_both_folders_and_with_neither(data):
    root = data / "covid19/Covid19-dataset"
    covid_tree(root, "val")
    (root / "val").rename(root / "hidden")
    with pytest.raises(DataError, match=r"covid19: .* has no folder test/\. Expected layout"):
        load_dataset("covid19", image_size_px=PX)
    (root / "hidden").rename(root / "val")
    for seed, folder in enumerate(("Covid", "Normal", "Viral Pneumonia"), 30):
        save(root / "test" / folder / "new.png", noise(seed))
    dataset = load_dataset("covid19", image_size_px=PX)
    assert len(dataset) == 13 and (dataset.published_split == "test").sum() == 8


# --- nih -----------------------------------------------------------------------------------

# As the release of 2017 has them: brackets with commas that no quote protects, and a comma at the end.
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
ROWS = (
    ("00000001_000.png", "Cardiomegaly", 1, "058Y", "PA"),
    ("00000001_001.png", "Cardiomegaly|Emphysema", 1, "058Y", "AP"),  # the group goes by the patient's first image
    ("00000002_000.png", "No Finding", 2, "081Y", "AP"),
    ("00000003_000.png", "Hernia", 3, "049Y", "PA"),
    ("00000003_001.png", "Pleural_Thickening|Atelectasis|Hernia", 3, "051Y", "PA"),
    ("00000004_000.png", "No Finding", 4, "011M", "AP"),
    ("00000005_000.png", "Pneumonia", 5, "050Y", "PA"),
)
IN_SECOND_FOLDER = ("00000004_000.png", "00000005_000.png")


def line(name, findings, patient, age, view):
    return f"{name},{findings},0,{patient},{age},M,{view},2682,2749,0.143,0.143,"


def write_table(root, rows=ROWS, header=HEADER, name="Data_Entry_2017.csv"):
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("\n".join([header, *(line(*row) for row in rows)]) + "\n", encoding="utf-8")


@pytest.fixture(params=["one folder", "Kaggle"])
def nih_both(request, data):
    """The two ways the images lie about: all in images/, or in images_001/images/, images_002/images/, ..."""
    root = data / "nih"
    write_table(root)
    for seed, (name, *_) in enumerate(ROWS):
        folder = "images"
        if request.param == "Kaggle":
            folder = "images_002/images" if name in IN_SECOND_FOLDER else "images_001/images"
        save(root / folder / name, noise(seed), mode="RGBA" if seed == 2 else "L")  # a few of the real ones are RGBA
    return root


@pytest.fixture
def nih(data):
    root = data / "nih"
    write_table(root)
    for seed, (name, *_) in enumerate(ROWS):
        save(root / "images" / name, noise(seed))
    return root


def test_nih_layout(nih_both):
    (nih_both / "test_list.txt").write_text("00000002_000.png\n00000005_000.png\n00099999_000.png")
    (nih_both / "train_val_list.txt").write_text("00000001_000.png\n")  # not needed
    (nih_both / "README_CHESTXRAY.pdf").write_bytes(b"%PDF")
    dataset = load_dataset("nih", image_size_px=PX)
    names = [source.split("/")[-1] for source in dataset.sources]
    assert sorted(names) == [row[0] for row in ROWS] and dataset.sources.tolist() == sorted(dataset.sources)
    assert {source.rpartition("/")[0] for source in dataset.sources} in (
        {"images"}, {"images_001/images", "images_002/images"},
    )  # fmt: skip
    assert dataset.images.shape == (7, PX, PX, 1) and dataset.excluded == ()
    for name, image in zip(names, dataset.images, strict=True):
        np.testing.assert_array_equal(image[..., 0], noise([row[0] for row in ROWS].index(name)))

    assert dataset.is_multi_label and dataset.labels.shape == (7, 14) and dataset.labels.dtype == np.uint8
    assert dataset.num_classes == 14 and dataset.class_names[:3] == ("atelectasis", "cardiomegaly", "effusion")
    expected = {name: set(findings.lower().split("|")) - {"no finding"} for name, findings, *_ in ROWS}
    for name, row in zip(names, dataset.labels, strict=True):
        assert {dataset.class_names[k] for k in np.flatnonzero(row)} == expected[name]
    assert dataset.labels.max() == 1

    split = dict(zip(names, dataset.published_split.tolist(), strict=True))
    assert {name for name, part in split.items() if part == "test"} == {"00000002_000.png", "00000005_000.png"}
    assert dict(zip(names, dataset.patients.tolist(), strict=True)) == {row[0]: str(row[2]) for row in ROWS}
    groups = dict(zip(names, dataset.groups.tolist(), strict=True))
    assert len(set(groups.values())) == 5 and groups["00000001_000.png"] == groups["00000001_001.png"]
    assert dict(zip(names, dataset.hospitals.tolist(), strict=True)) == {
        "00000001_000.png": "standing, 50 and over",
        "00000001_001.png": "standing, 50 and over",
        "00000002_000.png": "bedside, 50 and over",
        "00000003_000.png": "standing, under 50",
        "00000003_001.png": "standing, under 50",
        "00000004_000.png": "bedside, under 50",
        "00000005_000.png": "standing, 50 and over",
    }
    # Hernia and cardiomegaly occur twice, the others once: an image counts as its rarest finding.
    strata = dict(zip(names, dataset.strata.tolist(), strict=True))
    assert [("none" if k == 14 else dataset.class_names[k]) for k in (strata[row[0]] for row in ROWS)] == [
        "cardiomegaly", "emphysema", "none", "hernia", "atelectasis", "none", "pneumonia",
    ]  # fmt: skip


def test_nih_without_a_test_list_is_all_train(nih):
    assert set(load_dataset("nih", image_size_px=PX).published_split) == {"train"}


@pytest.mark.parametrize(
    "variant", ["2020", "no comma at the end", "comma at the end of the rows only", "quoted", "Windows"]
)
def test_nih_tables_as_they_are_passed_around(nih, variant):
    expected = load_dataset("nih", image_size_px=PX)
    table = nih / "Data_Entry_2017.csv"
    text = table.read_text(encoding="utf-8")
    if variant == "2020":  # plain ages, another word, another name
        table.unlink()
        table = nih / "Data_Entry_2017_v2020.csv"
        text = re.sub(r",0(\d\d)[YM],", lambda match: f",{int(match[1])},", text).replace("Gender", "Sex")
        assert ",58," in text and ",11," in text
    elif variant == "no comma at the end":
        text = text.replace(",\n", "\n")
    elif variant == "comma at the end of the rows only":
        text = text.replace("y],\n", "y]\n")
    elif variant == "quoted":
        text = re.sub(r"OriginalImage\[Width,Height\]", '"OriginalImage[Width","Height]"', text)
    else:
        text = "\ufeff" + text.replace("\n", "\r\n")
    table.write_text(text, encoding="utf-8", newline="")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = load_dataset("nih", image_size_px=PX)
    for column in ("labels", "patients", "hospitals", "sources", "groups"):
        np.testing.assert_array_equal(getattr(dataset, column), getattr(expected, column))


def test_nih_a_partial_copy_is_loaded_and_said_to_be_one(nih):
    (nih / "images/00000003_000.png").unlink()
    (nih / "images/00000004_000.png").unlink()
    save(nih / "images/00000077_000.png", noise(77))
    save(nih / "images/00000066_000.png", noise(66))
    with pytest.warns(RuntimeWarning, match=r"(?s)nih: left out \(3\).*00000066.*00000077.*2 of 7 rows") as caught:
        dataset = load_dataset("nih", image_size_px=PX)
    assert len(caught) == 1
    assert dataset.excluded == (
        ("images/00000066_000.png", "no row in Data_Entry_2017.csv"),
        ("images/00000077_000.png", "no row in Data_Entry_2017.csv"),
        ("Data_Entry_2017.csv", "2 of 7 rows have no image file: a partial copy"),
    )
    assert len(dataset) == len(dataset.labels) == 5
    # Patient 3's first row is that of a missing image, and still says which group the patient is in.
    assert dataset.hospitals[at(dataset, "00000003_001.png")] == "standing, under 50"


def test_nih_left_out_files_are_told_by_the_name_of_the_table_that_was_read(nih):
    (nih / "Data_Entry_2017.csv").rename(nih / "Data_Entry_2017_v2020.csv")
    save(nih / "images/00000077_000.png", noise(77))
    with pytest.warns(RuntimeWarning, match="left out"):
        dataset = load_dataset("nih", image_size_px=PX)
    assert dataset.excluded == (("images/00000077_000.png", "no row in Data_Entry_2017_v2020.csv"),)


def test_nih_patient_groups_are_constant_per_patient(nih):
    rng = np.random.default_rng(3)
    names = [(f"{patient:08d}_{number:03d}.png", patient) for patient in range(1, 31) for number in range(3)]
    rows = [
        (name, "No Finding", patient, f"{rng.integers(1, 95):03d}Y", rng.choice(["AP", "PA"]))
        for name, patient in names
    ]
    write_table(nih, rows)
    for seed, row in enumerate(rows):
        save(nih / "images" / row[0], noise(seed))
    dataset = load_dataset("nih", image_size_px=PX)
    table = pd.DataFrame({"patient": dataset.patients, "hospital": dataset.hospitals})
    assert (table.groupby("patient")["hospital"].nunique() == 1).all() and table["patient"].nunique() == 30
    assert table["hospital"].nunique() == 4
    for _, _, patient, age, view in rows[::3]:
        place, band = {"AP": "bedside", "PA": "standing"}[view], "50 and over" if int(age[:3]) >= 50 else "under 50"
        assert set(table.loc[table["patient"] == str(patient), "hospital"]) == {f"{place}, {band}"}


def test_nih_one_unreadable_image_counts_against_its_findings(nih):
    rows = [(f"{patient:08d}_000.png", "No Finding", patient, "050Y", "PA") for patient in range(10, 130)]
    rows += [("00000200_000.png", "Hernia", 200, "050Y", "PA")]
    write_table(nih, (*ROWS, *rows))
    for seed, row in enumerate(rows, 100):
        save(nih / "images" / row[0], noise(seed))
    (nih / "images/00000050_000.png").write_bytes(b"broken")
    with pytest.warns(RuntimeWarning, match="00000050_000.png"):
        dataset = load_dataset("nih", image_size_px=PX)
    assert len(dataset) == len(dataset.labels) == 127 and len(dataset.excluded) == 1
    assert dataset.labels.sum() == 8 + 1 - 1 + 1 == 9
    np.testing.assert_array_equal(
        dataset.labels[at(dataset, "00000200_000.png")], [int(name == "hernia") for name in dataset.class_names]
    )
    (nih / "images/00000050_000.png").unlink()
    save(nih / "images/00000050_000.png", noise(50))
    (nih / "images/00000200_000.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"(?s)00000200_000.png.*hernia: 1 of 3"):
        load_dataset("nih", image_size_px=PX)


def test_nih_one_unreadable_image_in_a_hundred_overall(nih):
    """Images without any finding are of no class, and still count."""
    (nih / "images/00000002_000.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"(?s)00000002_000.png.*too much.*1 of 7 files"):
        load_dataset("nih", image_size_px=PX)


def replaced(row, **changes):
    fields = ("name", "findings", "patient", "age", "view")
    return tuple(changes.get(field, value) for field, value in zip(fields, row, strict=True))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((*ROWS[:-1], replaced(ROWS[-1], findings="Pneumonia|Fracture|Cough")),
         "unknown findings in Data_Entry_2017.csv: Cough, Fracture. Expected: Atelectasis, .*, No Finding"),
        ((*ROWS[:-1], replaced(ROWS[-1], findings="pneumonia")), "unknown findings .*: pneumonia"),
        ((*ROWS[:-1], replaced(ROWS[-1], findings="0")), "unknown findings .*: 0"),
        ((*ROWS, ROWS[2]), "names 00000002_000.png more than once"),
        ((*ROWS[:-1], replaced(ROWS[-1], findings="")), r"no Finding Labels in 1 row\(s\), the first of them row 7"),
        ((*ROWS[:-1], replaced(ROWS[-1], patient="")), r"no Patient ID in 1 row\(s\)"),
        ((*ROWS[:-1], replaced(ROWS[-1], name="")), r"no Image Index in 1 row\(s\)"),
        ((), "none of the 7 images in .* has a row in Data_Entry_2017.csv"),
        ((("00000099_000.png", "No Finding", 9, "050Y", "PA"),), "none of the 7 images"),
    ],
    ids=["unknown", "case", "number", "twice", "no finding", "no patient", "no name", "no rows", "no match"],
)  # fmt: skip
def test_nih_table_errors(nih, rows, message):
    write_table(nih, rows)
    with pytest.raises(DataError, match=f"nih: .*{message}"):
        load_dataset("nih", image_size_px=PX)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no Data_Entry_2017.csv or Data_Entry_2017_v2020.csv. Expected layout: nih/Data_Entry_2017.csv and"),
        (b"", "Data_Entry_2017.csv cannot be read as a table .*Download it again"),
        (b"\x89PNG\r\n\xff\xfe\x00", "cannot be read as a table"),
        (b"Image Index,Finding Labels\nx.png,No Finding\n",
         "has no column Patient Age, Patient ID, View Position; it has Image Index, Finding Labels. Expected"),
        (HEADER.replace("View Position", "View").encode(), "has no column View Position; it has Image Index"),
    ],
    ids=["missing", "empty", "binary", "columns", "column"],
)  # fmt: skip
def test_nih_tables_that_are_none(nih, content, message):
    (nih / "Data_Entry_2017.csv").unlink()
    if content is not None:
        (nih / "Data_Entry_2017.csv").write_bytes(content)
    with pytest.raises(DataError, match=f"nih: .*{message}"):
        load_dataset("nih", image_size_px=PX)


def test_nih_without_images(nih):
    for path in (nih / "images").iterdir():
        path.unlink()
    (nih / "images/.DS_Store").write_bytes(b"x")
    (nih / "images/images_001.tar.gz").write_bytes(b"x")  # not unpacked
    with pytest.raises(DataError, match="nih: .* holds no images. Expected layout: nih/Data_Entry_2017.csv"):
        load_dataset("nih", image_size_px=PX)


def test_nih_without_its_folder(data):
    with pytest.raises(DataError, match="nih: no folder .*FL_UTILS_DATA.*data fetch nih.*Source: https://nihcc"):
        load_dataset("nih", image_size_px=PX)


# --- medmnist ------------------------------------------------------------------------------


def arrays(seed=0, num=(6, 3, 4), size=28, rgb=False, labels=None):
    """MedMNIST's six arrays; `labels` maps a number of images to their labels."""
    rng = np.random.default_rng(seed)
    labels = labels or (lambda count: (np.arange(count) % 2)[:, None].astype(np.uint8))
    stored = {}
    for part, count in zip(("train", "val", "test"), num, strict=True):
        shape = (count, size, size, 3) if rgb else (count, size, size)
        stored[f"{part}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
        stored[f"{part}_labels"] = labels(count)
    return stored


def medmnist(data, name="pneumoniamnist", file_name=None, **stored):
    path = data / name / (file_name or f"{name}.npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **stored)
    return path


def test_medmnist_layout(data):
    stored = arrays()
    medmnist(data, **stored)
    dataset = load_dataset("pneumoniamnist", image_size_px=28)
    assert dataset.images.shape == (13, 28, 28, 1) and dataset.images.dtype == np.uint8
    expected = np.concatenate([stored[f"{part}_images"] for part in ("train", "val", "test")])
    np.testing.assert_array_equal(dataset.images[..., 0], expected)
    assert dataset.labels.dtype == np.int64
    assert dataset.labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0, 0, 1, 0, 1]
    assert dataset.published_split.tolist() == ["train"] * 9 + ["test"] * 4  # val joins train
    assert dataset.sources[[0, 5, 6, 9, 12]].tolist() == [
        "train/000000", "train/000005", "val/000000", "test/000000", "test/000003",
    ]  # fmt: skip
    assert dataset.class_names == ("normal", "pneumonia") and dataset.strata is dataset.labels
    assert set(dataset.patients) == set(dataset.hospitals) == {""} and dataset.excluded == ()
    assert len(np.unique(dataset.groups)) == 13 and not dataset.synthetic and dataset.masks is None


def test_medmnist_copies_are_found_by_their_pixels(data):
    stored = arrays()
    stored["test_images"][2] = stored["train_images"][1]
    medmnist(data, **stored)
    dataset = load_dataset("pneumoniamnist", image_size_px=32)
    for column in (dataset.duplicate_groups, dataset.picture_groups, dataset.near_groups, dataset.groups):
        assert column[1] == column[11] and len(np.unique(column)) == 12


def test_medmnist_fingerprint_is_that_of_the_content(data):
    path = medmnist(data, **arrays(0))
    first = load_dataset("pneumoniamnist", image_size_px=28)
    assert load_dataset("pneumoniamnist", image_size_px=28).fingerprint == first.fingerprint
    medmnist(data, **arrays(1))
    assert load_dataset("pneumoniamnist", image_size_px=28).fingerprint != first.fingerprint
    assert len(first.fingerprint) == 64 and path.is_file()


@pytest.mark.parametrize(
    ("at_hand", "asked", "chosen"),
    [
        ((28, 64), 16, 28), ((28, 64), 28, 28), ((28, 64), 29, 64), ((28, 64), 64, 64), ((28, 64), 65, 64),
        ((28,), 64, 28), ((64,), 28, 64), ((28, 64, 128, 224), 100, 128), ((64, 128, 224), 1024, 224),
    ],
)  # fmt: skip
def test_medmnist_takes_the_smallest_file_that_is_large_enough(data, at_hand, asked, chosen):
    names = {size: "octmnist.npz" if size == 28 else f"octmnist_{size}.npz" for size in at_hand}
    (data / "octmnist").mkdir(parents=True)
    for name in (*names.values(), "octmnist_224.npz.part", "pneumoniamnist.npz", "octmnist_large.npz"):
        (data / "octmnist" / name).write_bytes(b"")
    assert find_file(card("octmnist"), asked).name == names[chosen]


def test_medmnist_reads_the_file_that_fits(data):
    small, large = arrays(0, size=28), arrays(1, size=64)
    medmnist(data, **small)
    medmnist(data, file_name="pneumoniamnist_64.npz", **large)
    for size, stored in ((28, small), (64, large)):
        images = load_dataset("pneumoniamnist", image_size_px=size).images
        np.testing.assert_array_equal(images[:6, ..., 0], stored["train_images"])
    assert load_dataset("pneumoniamnist", image_size_px=48).images.shape == (13, 48, 48, 1)


def test_medmnist_resizing_shrinks_what_is_there(data):
    stored = arrays(size=64)
    stored["train_images"][0] = 90
    stored["train_images"][0, :, 32:] = 170
    medmnist(data, file_name="pneumoniamnist_64.npz", **stored)
    image = load_dataset("pneumoniamnist", image_size_px=32).images[0, ..., 0]
    assert (image[:, :15] == 90).all() and (image[:, 17:] == 170).all()


def test_medmnist_colour_becomes_grey(data):
    grey, colour = arrays(0), arrays(0)
    for part in ("train", "val", "test"):
        colour[f"{part}_images"] = np.repeat(grey[f"{part}_images"][..., None], 3, axis=-1)
    colour["train_images"][0] = (255, 0, 0)
    medmnist(data, **colour)
    images = load_dataset("pneumoniamnist", image_size_px=28).images[..., 0]
    assert (images[0] == 76).all()  # luminance of red, ITU-R 601
    np.testing.assert_array_equal(images[1:6], grey["train_images"][1:])


def test_medmnist_multi_label(data):
    rng = np.random.default_rng(4)
    findings = {count: rng.integers(0, 2, (count, 14)).astype(np.int64) for count in (6, 3, 4)}
    findings[6][0] = 0
    medmnist(data, "chestmnist", **arrays(labels=findings.get))
    dataset = load_dataset("chestmnist", image_size_px=28)
    assert dataset.is_multi_label and dataset.labels.dtype == np.uint8
    assert dataset.class_names == card("nih").class_names
    np.testing.assert_array_equal(dataset.labels, np.concatenate([findings[6], findings[3], findings[4]]))
    assert dataset.strata[0] == 14 and dataset.published_split.tolist() == ["train"] * 9 + ["test"] * 4


def without(stored, name):
    return {key: value for key, value in stored.items() if key != name}


def changed(**changes):
    stored = arrays()
    return stored | {name: change(stored[name]) for name, change in changes.items()}


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (without(arrays(), "val_images"), "cannot be read .*val_images.*Expected a whole MedMNIST file"),
        (without(arrays(), "test_labels"), "cannot be read .*test_labels"),
        (changed(train_images=lambda a: a.astype(np.float32)), "has train_images float32 .*expected uint8"),
        (changed(train_images=lambda a: a.reshape(6, -1)), r"train_images uint8 \[6, 784\] .*uint8 \[N, H, W\]"),
        (changed(val_images=lambda a: a[..., None]), r"val_images uint8 \[3, 28, 28, 1\]"),
        (changed(val_images=lambda a: a[:0], val_labels=lambda a: a[:0]), r"val_images uint8 \[0, 28, 28\]"),
        (changed(test_labels=lambda a: a[:3]), r"test_labels \[3, 1\]; expected .*\[N, 1\]"),
        (changed(test_labels=lambda a: a[:, 0]), r"test_labels \[4\]"),
        (changed(train_labels=lambda a: np.repeat(a, 14, axis=1)), r"train_labels \[6, 14\]"),
        (changed(test_labels=lambda a: a + 1), "has labels 1 to 2; expected 0 to 1"),
        (changed(val_labels=lambda a: a.astype(np.int16) - 1), "has labels -1 to 0; expected 0 to 1"),
        (changed(val_labels=lambda a: a.astype(object)), "cannot be read"),  # would run code when unpickled
    ],
    ids=[
        "no images", "no labels", "float", "flat", "one channel", "empty", "too few", "1-D", "many", "high", "low",
        "object",
    ],
)  # fmt: skip
def test_medmnist_wrong_arrays(data, stored, message):
    medmnist(data, **stored)
    with pytest.raises(DataError, match=f"pneumoniamnist: pneumoniamnist.npz .*{message}"):
        load_dataset("pneumoniamnist", image_size_px=28)


def test_medmnist_multi_label_values_are_0_and_1(data):
    medmnist(data, "chestmnist", **arrays(labels=lambda count: np.full((count, 14), 2, np.uint8)))
    with pytest.raises(DataError, match="chestmnist: chestmnist.npz has labels 2 to 2; expected 0 to 1"):
        load_dataset("chestmnist", image_size_px=28)
    medmnist(data, "chestmnist", **arrays())
    with pytest.raises(DataError, match=r"train_labels \[6, 1\]; expected .*\[N, 14\]"):
        load_dataset("chestmnist", image_size_px=28)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "flipped", "an image", "flipped stream"])
def test_medmnist_damaged_files(data, damage):
    path = medmnist(data, **arrays())
    content = bytearray(path.read_bytes())
    if damage == "flipped":  # in the middle of the packed images
        content[len(content) // 2] ^= 0xFF
    elif damage == "flipped stream":  # where the packed data begins: the unpacker itself gives up
        with zipfile.ZipFile(path) as archive:
            name = archive.getinfo("train_images.npy")
        start = name.header_offset + 30 + len(name.filename) + int.from_bytes(
            content[name.header_offset + 28 : name.header_offset + 30], "little"
        )
        content[start : start + 8] = b"\xff" * 8
    elif damage == "truncated":
        content = content[: len(content) * 2 // 3]
    elif damage == "an image":
        picture = io.BytesIO()
        Image.fromarray(noise(0)).save(picture, "PNG")
        content = picture.getvalue()
    else:
        content = {"empty": b"", "text": b"<html>Not Found</html>" * 50}[damage]
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="pneumoniamnist: pneumoniamnist.npz cannot be read .*Download it again"):
        load_dataset("pneumoniamnist", image_size_px=28)


def test_medmnist_without_its_file(data):
    with pytest.raises(DataError, match="pneumoniamnist: no folder .*pneumoniamnist/pneumoniamnist.npz"):
        load_dataset("pneumoniamnist", image_size_px=28)
    medmnist(data, file_name="octmnist.npz", **arrays())
    with pytest.raises(DataError, match="holds no pneumoniamnist.npz.*fl-utils data fetch pneumoniamnist"):
        load_dataset("pneumoniamnist", image_size_px=28)


def test_medmnist_parts_belong_together(data):
    """What the reader itself hands on, before anything is grouped."""
    path = medmnist(data, "octmnist", **arrays(labels=lambda count: (np.arange(count) % 4)[:, None]))
    content = read_medmnist(card("octmnist"), 20)
    assert content.path == path and content.images.shape == (13, 20, 20, 1)
    lengths = {len(column) for column in (content.images, content.labels, content.published_split, content.sources)}
    assert lengths == {13} and content.labels.tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2, 0, 1, 2, 3]


# --- xray_sites ----------------------------------------------------------------------------

CHEST_FILES = (
    "train/NORMAL/IM-0115-0001.jpeg", "train/NORMAL/scan.jpeg", "train/PNEUMONIA/person1_bacteria_1.jpeg",
    "train/PNEUMONIA/person1_bacteria_2.jpeg", "test/NORMAL/IM-0001-0001.jpeg", "test/PNEUMONIA/person1_virus_6.jpeg",
)  # fmt: skip


@pytest.fixture
def sites(data, nih):
    (nih / "test_list.txt").write_text("00000005_000.png\n")
    for seed, name in enumerate(CHEST_FILES, 300):
        save(data / "chest_xray" / name, noise(seed))
    return data


def test_sites_layout(sites):
    dataset = load_dataset("xray_sites", image_size_px=PX)
    expected = {
        "chest_xray/train/NORMAL/IM-0115-0001.jpeg": (0, "chest_xray", "chest_xray/IM-0115", "train"),
        "chest_xray/train/NORMAL/scan.jpeg": (0, "chest_xray", "", "train"),
        "chest_xray/train/PNEUMONIA/person1_bacteria_1.jpeg": (1, "chest_xray", "chest_xray/person1_bacteria", "train"),
        "chest_xray/train/PNEUMONIA/person1_bacteria_2.jpeg": (1, "chest_xray", "chest_xray/person1_bacteria", "train"),
        "chest_xray/test/NORMAL/IM-0001-0001.jpeg": (0, "chest_xray", "chest_xray/IM-0001", "test"),
        "chest_xray/test/PNEUMONIA/person1_virus_6.jpeg": (1, "chest_xray", "chest_xray/person1_virus", "test"),
        "nih/images/00000002_000.png": (0, "nih bedside", "nih/2", "train"),
        "nih/images/00000004_000.png": (0, "nih bedside", "nih/4", "train"),
        "nih/images/00000005_000.png": (1, "nih standing", "nih/5", "test"),
    }
    columns = (dataset.labels, dataset.hospitals, dataset.patients, dataset.published_split)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    assert dict(zip(dataset.sources.tolist(), rows, strict=True)) == expected
    assert dataset.sources.tolist() == sorted(expected) and dataset.class_names == ("normal", "pneumonia")
    assert not dataset.is_multi_label and dataset.labels.dtype == np.int64 and dataset.excluded == ()
    for source, image in zip(dataset.sources, dataset.images, strict=True):
        if source.startswith("nih/"):
            number = [row[0] for row in ROWS].index(source.rpartition("/")[2])
            np.testing.assert_array_equal(image[..., 0], noise(number))


def test_sites_pneumonia_beside_other_findings_counts(sites, nih):
    write_table(nih, (ROWS[0], replaced(ROWS[1], findings="Cardiomegaly|Pneumonia"), *ROWS[2:]))
    dataset = load_dataset("xray_sites", image_size_px=PX)
    index = at(dataset, "00000001_001.png")
    # Taken at the bedside, but the patient's first image was taken standing: a patient is in one hospital only.
    assert dataset.labels[index] == 1 and dataset.hospitals[index] == "nih standing" and len(dataset) == 10


def test_sites_equal_patients_of_two_sources_are_two(sites, nih):
    dataset = load_dataset("xray_sites", image_size_px=PX)
    assert len(np.unique(dataset.groups)) == len(dataset) - 1  # person1_bacteria has two images, nobody else
    for name in ("chest_xray", "nih"):
        own = load_dataset(name, image_size_px=PX)
        for source, image in zip(own.sources, own.images, strict=True):
            same = np.flatnonzero(dataset.sources == f"{name}/{source}")
            assert all((dataset.images[index] == image).all() for index in same)


def test_sites_tell_what_their_sources_leave_out(sites, nih):
    (nih / "images/00000003_000.png").unlink()
    save(nih / "images/00000077_000.png", noise(77))
    with pytest.warns(RuntimeWarning, match="xray_sites: left out"):
        dataset = load_dataset("xray_sites", image_size_px=PX)
    assert dataset.excluded == (
        ("nih/images/00000077_000.png", "no row in Data_Entry_2017.csv"),
        ("nih/Data_Entry_2017.csv", "1 of 7 rows have no image file: a partial copy"),
    )


@pytest.mark.parametrize("missing", ["chest_xray", "nih"])
def test_sites_name_the_source_that_is_missing(sites, missing):
    (sites / missing).rename(sites / "elsewhere")
    with pytest.raises(DataError, match=f"^{missing}: no folder .*fl-utils data fetch {missing}") as error:
        load_dataset("xray_sites", image_size_px=PX)
    assert str(sites / missing) in str(error.value)


def test_sites_name_the_source_of_an_unreadable_file(sites):
    (sites / "nih/images/00000002_000.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"(?s)xray_sites: 1 file.*nih/images/00000002_000.png: .*normal: 1 of 5"):
        load_dataset("xray_sites", image_size_px=PX)


@pytest.mark.parametrize("name", ["brats2020", "hippocampus", "pneumoniamnist", "phantom_brain"])
def test_only_folders_of_images_are_listed(name):
    with pytest.raises(DataError, match=f"{name} is laid out as '{card(name).layout}', which is not a folder of"):
        readers.list_files(card(name))


# --- the real data -------------------------------------------------------------------------

REAL_PX = 64  # the size that the audit's tests and the experiments decode to: one cache for all


@pytest.fixture(scope="module")
def real():
    """Loads a real dataset, once a module."""
    loaded = {}

    def load(name):
        for folder in (card(name).folder,) if card(name).folder else ("chest_xray", "nih"):
            if paths.dataset_root(folder) is None:
                pytest.skip(f"no real data: set FL_UTILS_DATA to a folder that holds {folder}/")
        if name not in loaded:
            loaded[name] = load_dataset(name, image_size_px=REAL_PX)
        return loaded[name]

    return load


def counts(dataset):
    """Images by part and class, in the order of the classes."""
    return {
        part: np.bincount(dataset.labels[dataset.published_split == part], minlength=dataset.num_classes).tolist()
        for part in ("train", "test")
    }


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "expected", "distinct"),
    [
        ("brain_mri", {"train": [826, 822, 395, 827], "test": [100, 115, 105, 74]}, 3027),
        ("chest_xray", {"train": [1341, 3875], "test": [234, 390]}, 5808),
        ("covid19", {"train": [111, 70, 70], "test": [26, 20, 20]}, 307),
        ("pneumoniamnist", {"train": [1349, 3883], "test": [234, 390]}, 5827),
    ],
)
def test_real_counts(real, name, expected, distinct):
    dataset = real(name)
    assert counts(dataset) == expected and len(dataset) == sum(map(sum, expected.values()))
    assert dataset.images.shape == (len(dataset), REAL_PX, REAL_PX, 1) and dataset.images.dtype == np.uint8
    assert len(np.unique(dataset.duplicate_groups)) == distinct and dataset.excluded == ()
    assert set(dataset.hospitals) == {""} and not dataset.is_multi_label
    # Pictures, not black squares (the flattest of pneumoniamnist has 6); and groups that only ever grow coarser.
    assert dataset.images.reshape(len(dataset), -1).std(axis=1).min() > 3
    columns = [dataset.duplicate_groups, dataset.picture_groups, dataset.near_groups, dataset.groups]
    numbers = [len(np.unique(column)) for column in columns]
    assert numbers == sorted(numbers, reverse=True)
    for fine, coarse in zip(columns, columns[1:], strict=False):
        assert len(np.unique(np.stack([fine, coarse]), axis=1).T) == len(np.unique(fine))


@pytest.mark.real_data
def test_real_nih(real):
    dataset = real("nih")
    assert dataset.images.shape == (910, REAL_PX, REAL_PX, 1) and dataset.labels.shape == (910, 14)
    assert len(np.unique(dataset.patients)) == 617 and set(dataset.published_split) == {"train"}
    assert (dataset.labels.sum(axis=0) > 0).all() and (dataset.labels.sum(axis=1) == 0).sum() == 500
    # Against the table, counted another way.
    table = pd.read_csv(paths.dataset_root("nih") / "Data_Entry_2017.csv").set_index("Image Index")
    table = table.loc[[source.rpartition("/")[2] for source in dataset.sources]]
    for k, finding in enumerate(card("nih").classes):
        expected = table["Finding Labels"].str.contains(finding).to_numpy()
        np.testing.assert_array_equal(dataset.labels[:, k] == 1, expected)
    names = [source.rpartition("/")[2] for source in dataset.sources]
    assert [int(name[:8]) for name in names] == [int(patient) for patient in dataset.patients]
    groups = pd.DataFrame({"patient": dataset.patients, "hospital": dataset.hospitals, "group": dataset.groups})
    assert (groups.groupby("patient")[["hospital", "group"]].nunique() == 1).all(axis=None)
    assert groups["hospital"].nunique() == 4
    view = table["View Position"].map({"AP": "bedside", "PA": "standing"}).to_numpy()
    assert (view == np.array([hospital.split(",")[0] for hospital in dataset.hospitals])).mean() > 0.8
    assert dataset.strata.max() == 14 and (dataset.strata == 14).sum() == 500


@pytest.mark.real_data
def test_real_sites(real):
    chest, nih_data, dataset = real("chest_xray"), real("nih"), real("xray_sites")
    pneumonia = nih_data.labels[:, nih_data.class_names.index("pneumonia")] == 1
    healthy = ~nih_data.labels.any(axis=1)
    assert len(dataset) == len(chest) + (pneumonia | healthy).sum()
    of_nih = np.char.startswith(dataset.sources, "nih/")
    assert np.bincount(dataset.labels[of_nih]).tolist() == [healthy.sum(), pneumonia.sum()] == [500, 410]
    assert np.bincount(dataset.labels[~of_nih]).tolist() == np.bincount(chest.labels).tolist()
    hospitals = pd.Series(dataset.hospitals).value_counts()
    assert set(hospitals.index) == {"chest_xray", "nih bedside", "nih standing"}
    assert hospitals["chest_xray"] == 5840 and hospitals.sum() == 6750 and hospitals.min() > 100
    assert set(np.unique(dataset.hospitals[of_nih])) == {"nih bedside", "nih standing"}
    table = pd.DataFrame({"patient": dataset.patients, "hospital": dataset.hospitals, "group": dataset.groups})
    assert (table["patient"] != "").all() and table["patient"].nunique() == 4082 + 617
    assert (table.groupby("patient")["hospital"].nunique() == 1).all()
    assert (table.groupby("group")["hospital"].nunique() == 1).all()  # no picture is in two hospitals
