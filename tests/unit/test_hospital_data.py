"""One hospital's folder of images: read in a fixed order, refused with a sentence, written whole or not at all."""

import csv
import re
import stat

import numpy as np
import pytest
from PIL import Image

from fl_utils.data.types import DataError
from fl_utils.deployment import hospital_data
from fl_utils.deployment.hospital_data import PARTS, load_hospital, write_hospital

CLASSES = ("glioma", "meningioma", "no_tumor")


def save(path, value=None, size=(8, 8), mode="L", seed=0):
    """An image of one grey value, or of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full(size[::-1], value, np.uint8) if value is not None else np.random.default_rng(seed).integers(
        0, 256, size[::-1], dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path):
    """Five images by hand; the grey value of each tells which it is."""
    save(tmp_path / "train" / "no_tumor" / "0001.png", 10)
    save(tmp_path / "train" / "glioma" / "0002.png", 20)
    save(tmp_path / "train" / "no_tumor" / "0003.png", 30)
    save(tmp_path / "validation" / "glioma" / "0004.png", 40)
    save(tmp_path / "test" / "meningioma" / "0005.png", 50)
    return tmp_path


def load(folder, size=8, class_names=CLASSES):
    return load_hospital(folder, class_names=class_names, image_size_px=size)


def greys(part):
    return part.images[:, 0, 0, 0].tolist()


def patients_csv(folder, *rows, header="file,patient"):
    (folder / "patients.csv").write_text("\n".join((header, *rows)) + "\n", encoding="utf-8")


def says(*texts):
    """All of these stand in the message, in this order."""
    return "(?s)" + ".*".join(map(re.escape, texts))


# --- reading ---


def test_three_parts_with_the_promised_types(folder):
    parts = load(folder)
    assert tuple(parts) == PARTS == ("train", "validation", "test")
    for part, count in zip(parts.values(), (3, 1, 1), strict=True):
        assert part.images.dtype == np.uint8 and part.images.shape == (count, 8, 8, 1)
        assert part.labels.dtype == part.patients.dtype == np.int32
        assert part.labels.shape == part.patients.shape == (count,)
    assert [greys(part) for part in parts.values()] == [[10, 20, 30], [40], [50]]
    assert [part.labels.tolist() for part in parts.values()] == [[2, 0, 2], [0], [1]]


def test_order_is_by_file_name_and_then_by_class_not_by_folder(tmp_path):
    save(tmp_path / "train" / "meningioma" / "b.png", 1)
    save(tmp_path / "train" / "glioma" / "b.png", 2)
    save(tmp_path / "train" / "no_tumor" / "a.bmp", 3)
    save(tmp_path / "train" / "glioma" / "c.tif", 4)
    save(tmp_path / "train" / "no_tumor" / "b.png", 5)
    assert greys(load(tmp_path)["train"]) == [3, 2, 1, 5, 4]
    backwards = load(tmp_path, class_names=list(CLASSES[::-1]))["train"]  # ties go by the label, not by the alphabet
    assert greys(backwards) == [3, 5, 1, 2, 4] and backwards.labels.tolist() == [0, 0, 1, 2, 2]


def test_images_are_made_grey_padded_and_resized(tmp_path):
    save(tmp_path / "train" / "glioma" / "wide.png", 200, size=(40, 20), mode="RGB")
    image = load(tmp_path, size=16)["train"].images[0, ..., 0]
    assert image.shape == (16, 16) and (image[5:11] == 200).all() and (image[:3] == 0).all() and (image[-3:] == 0).all()


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.jpg", "a.jpeg", "a.JPG", "a.bmp", "a.tif", "a.tiff"])
def test_every_promised_format_is_read(tmp_path, name):
    save(tmp_path / "train" / "glioma" / name, 77)
    assert abs(greys(load(tmp_path)["train"])[0] - 77) <= 1  # JPEG is not exact


def test_validation_test_and_classes_may_be_missing_or_empty(tmp_path):
    save(tmp_path / "train" / "no_tumor" / "1.png", 9)
    (tmp_path / "validation" / "glioma").mkdir(parents=True)
    parts = load(tmp_path)
    for name in ("validation", "test"):
        part = parts[name]
        assert part.images.shape == (0, 8, 8, 1) and part.images.dtype == np.uint8
        assert part.labels.shape == part.patients.shape == (0,) and part.labels.dtype == part.patients.dtype == np.int32


def test_hidden_files_and_what_file_managers_leave_are_ignored(folder):
    for place in (folder, folder / "train", folder / "train" / "glioma"):
        for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._0002.png"):
            (place / name).write_bytes(b"no image")
        (place / ".hidden").mkdir()
    (folder / "README.txt").write_text("ours")
    (folder / "train" / "notes.txt").write_text("ours")
    assert greys(load(folder)["train"]) == [10, 20, 30]


# --- patients ---


def test_without_patients_each_image_is_a_patient_of_its_own(folder):
    assert [part.patients.tolist() for part in load(folder).values()] == [[0, 1, 2], [0], [0]]


def test_patients_are_counted_in_order_of_first_appearance_within_each_part(folder):
    patients_csv(folder, "test/meningioma/0005.png,z", "train/no_tumor/0003.png,p9", "train/glioma/0002.png,a",
                 "validation/glioma/0004.png,7", "train/no_tumor/0001.png,p9")
    assert [part.patients.tolist() for part in load(folder).values()] == [[0, 1, 0], [0], [0]]


def test_a_table_from_a_spreadsheet_is_read(folder):
    """Byte order mark, Windows line ends, blanks after commas, quotes, more columns in another order."""
    lines = ["patient, age, file", 'p1, 50, "train/no_tumor/0001.png"', "p2, 60, train/glioma/0002.png", "p1, , train/no_tumor/0003.png",
             '"p, 4", 1, validation/glioma/0004.png', "p5, 2, test/meningioma/0005.png"]
    (folder / "patients.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert load(folder)["train"].patients.tolist() == [0, 1, 0]


FULL = ["train/no_tumor/0001.png,1", "train/glioma/0002.png,2", "train/no_tumor/0003.png,3", "validation/glioma/0004.png,4",
        "test/meningioma/0005.png,5"]


@pytest.mark.parametrize(
    ("rows", "texts"),
    [
        (FULL[1:], ["patients.csv lacks files: train/no_tumor/0001.png.", "take patients.csv away"]),
        ([], ["lacks files: train/no_tumor/0001.png, train/glioma/0002.png, train/no_tumor/0003.png and 2 more"]),
        ([*FULL, "train/glioma/0009.png,9"], ["names files that are not there: train/glioma/0009.png", "e.g. train/no_tumor/0001.png"]),
        ([*FULL, ",9"], ["names files that are not there: (empty)"]),
        ([*FULL, FULL[1]], ["names files more than once: train/glioma/0002.png"]),
        ([*FULL[:4], "test/meningioma/0005.png,"], ["names no patient for: test/meningioma/0005.png"]),
        ([*FULL[:4], "test/meningioma/0005.png"], ["names no patient for: test/meningioma/0005.png"]),
        ([*FULL[:4], '"test/meningioma/0005.png,5'], ["patients.csv cannot be read"]),
    ],
)
def test_a_patient_table_that_does_not_fit_is_refused(folder, rows, texts):
    patients_csv(folder, *FULL)
    load(folder)
    patients_csv(folder, *rows)
    with pytest.raises(DataError, match=says("patients.csv", *[text.removeprefix("patients.csv ") for text in texts])):
        load(folder)


@pytest.mark.parametrize(("header", "shown"), [("file,person", "file, person"), ("file;patient", "file;patient"), ("", "(none)")])
def test_a_patient_table_without_the_columns_is_refused(folder, header, shown):
    (folder / "patients.csv").write_text("\n".join((header, *FULL)) if header else "")
    with pytest.raises(DataError, match=says("has the columns", shown, "expected file,patient")):
        load(folder)


def test_a_patient_table_in_another_encoding_is_refused(folder):
    patients_csv(folder, *FULL)
    (folder / "patients.csv").write_bytes((folder / "patients.csv").read_bytes() + "train/x.png,Müller\n".encode("latin-1"))
    with pytest.raises(DataError, match=says("cannot be read", "UTF-8")):
        load(folder)


@pytest.mark.parametrize("other", ["validation", "test"])
def test_a_patient_in_two_parts_is_refused(folder, other):
    rows = [row if not row.startswith(other) else f"{row.split(',')[0]},2" for row in FULL]
    patients_csv(folder, *rows)
    with pytest.raises(DataError, match=says("1 patient(s)", f"more than one part: 2 (train, {other}).")):
        load(folder)


def test_up_to_three_leaking_patients_are_named(tmp_path):
    rows = []
    for number in range(5):
        for part in PARTS:
            save(tmp_path / part / "glioma" / f"{number}.png", number)
            rows.append(f"{part}/glioma/{number}.png,P{number}")
    patients_csv(tmp_path, *rows)
    with pytest.raises(DataError, match=says("5 patient(s)", "P0 (train, validation, test), P1", "P2", " and 2 more")) as caught:
        load(tmp_path)
    assert "P3" not in str(caught.value)


# --- folders that cannot be used ---


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=says("There is no folder", "nowhere", "train/<class>")):
        load(tmp_path / "nowhere")


def test_no_training_images_is_refused(tmp_path):
    for made in ("", "train", "train/glioma", "train/no_tumor"):
        (tmp_path / made).mkdir(exist_ok=True)
        (tmp_path / made / ".gitkeep").touch()
        with pytest.raises(DataError, match=says("train holds no images", "glioma, meningioma, no_tumor")):
            load(tmp_path)
    save(tmp_path / "test" / "glioma" / "1.png")
    with pytest.raises(DataError, match="train holds no images"):
        load(tmp_path)


@pytest.mark.parametrize("part", PARTS)
def test_an_unknown_class_is_refused_with_the_expected_ones(folder, part):
    save(folder / part / "Glioma" / "1.png")
    with pytest.raises(DataError, match=says(f"{part} has class folders that are not known: Glioma.", "glioma, meningioma, no_tumor")):
        load(folder)


def test_an_unknown_part_is_refused_because_its_images_would_be_lost(folder):
    (folder / "validation").rename(folder / "val")
    with pytest.raises(DataError, match=says("not known: val.", "validation")):
        load(folder)


def test_images_outside_the_class_folders_are_refused(folder):
    save(folder / "train" / "0009.PNG")
    with pytest.raises(DataError, match=says("outside the class folders: 0009.PNG")):
        load(folder)


def test_all_unreadable_files_are_named_with_the_reason(folder):
    (folder / "train" / "glioma" / "0009.png").write_bytes(b"no image")
    whole = folder / "test" / "meningioma" / "0005.png"
    save(whole, size=(64, 64))
    whole.write_bytes(whole.read_bytes()[:800])
    save(folder / "validation" / "glioma" / "x.gif", 3)
    (folder / "train" / "glioma" / "notes.txt").write_text("ours")
    (folder / "train" / "glioma" / "more").mkdir()
    with pytest.raises(DataError, match=says("5 file(s) could not be read")) as caught:
        load(folder)
    text = str(caught.value)
    for source, reason in (("train/glioma/0009.png", "cannot identify"), ("test/meningioma/0005.png", "truncated"),
                           ("validation/glioma/x.gif", "not named as"), ("train/glioma/notes.txt", "not named as"),
                           ("train/glioma/more", "not named as")):
        assert re.search(f"  {re.escape(source)}: .*{reason}", text), source


@pytest.mark.parametrize(
    "class_names", [(), ("a", "a"), ("a", ""), ("a", "b/c"), ("a", ".b"), ("a", "..")]
)
def test_class_names_that_cannot_be_folders_are_refused(folder, class_names):
    with pytest.raises(DataError, match="class_names"):
        load(folder, class_names=class_names)


def test_a_size_that_is_none_is_refused(folder):
    with pytest.raises(DataError, match="image_size_px is 0"):
        load(folder, size=0)


# --- writing ---


def made(counts=(7, 2, 3), size=8, seed=1):
    """Arguments for `write_hospital`: noise, with ids of patients that hold over all parts."""
    rng = np.random.default_rng(seed)
    counted = dict(zip(PARTS, counts, strict=True))
    return {
        "images": {part: rng.integers(0, 256, (count, size, size, 1), dtype=np.uint8) for part, count in counted.items()},
        "labels": {part: rng.integers(0, 3, count) for part, count in counted.items()},
        "names": {part: [f"{number:05d}" for number in range(count)] for part, count in counted.items()},
        "class_names": CLASSES,
        "patients": {part: rng.integers(0, 3, count) * 10 + at for at, (part, count) in enumerate(counted.items())},
    }


def first_appearance(ids):
    order = list(dict.fromkeys(ids))
    return [order.index(one) for one in ids]


def test_what_is_written_is_read_back_exactly(tmp_path):
    given = made()
    write_hospital(tmp_path / "data", **given)
    parts = load(tmp_path / "data")
    for name, part in parts.items():
        np.testing.assert_array_equal(part.images, given["images"][name])
        np.testing.assert_array_equal(part.labels, given["labels"][name])
        assert part.patients.tolist() == first_appearance(given["patients"][name].tolist())
    assert len(set(parts["train"].patients.tolist())) < len(parts["train"].patients)  # some patient has several images


def test_the_folder_is_laid_out_as_a_data_team_would(tmp_path):
    given = made()
    write_hospital(tmp_path / "data", **given)
    files = {path.relative_to(tmp_path / "data").as_posix() for path in (tmp_path / "data").rglob("*") if path.is_file()}
    expected = [f"{part}/{CLASSES[label]}/{name}.png" for part in PARTS
                for name, label in zip(given["names"][part], given["labels"][part], strict=True)]
    assert files == {"patients.csv", *expected}
    with (tmp_path / "data" / "patients.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == expected
    assert [row["patient"] for row in rows] == [str(one) for part in PARTS for one in given["patients"][part]]
    with Image.open(tmp_path / "data" / expected[0]) as image:
        assert (image.format, image.mode) == ("PNG", "L")
        np.testing.assert_array_equal(np.asarray(image), given["images"]["train"][0, ..., 0])
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700  # patients' images
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_without_patients_no_table_is_written(tmp_path):
    write_hospital(tmp_path / "data", **(made() | {"patients": None}))
    assert not (tmp_path / "data" / "patients.csv").exists()
    assert load(tmp_path / "data")["train"].patients.tolist() == list(range(7))


def test_equal_file_names_in_two_classes_stay_apart(tmp_path):
    given = made((2, 1, 0)) | {"labels": {"train": [0, 2], "validation": [1], "test": []}, "patients": None}
    given["names"] = {"train": ["same", "same"], "validation": ["same"], "test": []}
    write_hospital(tmp_path / "data", **given)
    parts = load(tmp_path / "data")
    np.testing.assert_array_equal(parts["train"].images, given["images"]["train"])
    assert parts["train"].labels.tolist() == [0, 2] and len(parts["test"].labels) == 0


def test_parts_may_be_missing(tmp_path):
    given = {key: value if key == "class_names" else {"train": value["train"]} for key, value in made().items()}
    write_hospital(tmp_path / "data", **given)
    np.testing.assert_array_equal(load(tmp_path / "data")["train"].images, given["images"]["train"])


def test_an_empty_folder_is_filled_and_a_full_one_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    write_hospital(tmp_path / "data", **made())
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=says("data is there already", "another")):
        write_hospital(tmp_path / "data", **made(seed=2))
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="is there already"):
        write_hospital(tmp_path / "file", **made())
    assert (tmp_path / "file").read_text() == "mine"


def test_nothing_is_left_when_the_disk_fails(tmp_path, monkeypatch):
    real, saved = Image.Image.save, []

    def full(self, path, *args, **options):
        if len(saved) == 9:  # in the test part
            raise OSError(28, "No space left on device")
        saved.append(path)
        real(self, path, *args, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space"):
        write_hospital(tmp_path / "deep" / "data", **made())
    assert len(saved) == 9 and list((tmp_path / "deep").iterdir()) == []


def test_somebody_who_fills_the_folder_meanwhile_keeps_it(tmp_path, monkeypatch):
    real = hospital_data.csv.writer

    def meanwhile(*args, **options):
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "theirs").touch()
        return real(*args, **options)

    monkeypatch.setattr(hospital_data.csv, "writer", meanwhile)
    with pytest.raises(OSError):
        write_hospital(tmp_path / "data", **made())
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "theirs"]


def changed(part, **arrays):
    given = made()
    for name, value in arrays.items():
        given[name] = {**given[name], part: value}
    return given


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (changed("train", images=np.zeros((7, 8, 8, 1), np.float32)), "train: images are float32"),
        (changed("test", images=np.zeros((3, 8, 8), np.uint8)), "test: images are uint8 [3, 8, 8]"),
        (changed("test", images=np.zeros((3, 8, 8, 3), np.uint8)), "expected uint8 [N, H, W, 1]"),
        (changed("test", images=np.zeros((3, 0, 8, 1), np.uint8)), "expected uint8 [N, H, W, 1]"),
        (changed("train", images=np.zeros((0, 8, 8, 1), np.uint8), labels=np.zeros(0, int), names=[], patients=[]), "no images"),
        (changed("test", labels=np.zeros(2, int)), "3 images, labels [2], 3 names"),
        (changed("test", names=["a", "b"]), "3 images, labels [3], 2 names"),
        (changed("test", patients=np.zeros(2, int)), "(2,) patients for 3 images"),
        (changed("test", labels=np.array([0, 1, 3])), "0 to 3; expected integers from 0 to 2"),
        (changed("test", labels=np.array([0, -1, 2])), "-1 to 2"),
        (changed("test", labels=np.array([0.0, 1.0, 2.0])), "labels are float64"),
        (changed("test", names=["a", "c", "b"]), "c.png (class"),
        (changed("test", names=["9", "10", "11"]), "leading zeros"),
        (changed("test", names=["a", "a", "a"], labels=np.array([0, 1, 1])), "a.png (class 1) comes before a.png (class 1)"),
        (changed("test", names=["a", "b", "../c"]), "'../c' cannot be the name"),
        (changed("test", names=[".a", "b", "c"]), "'.a' cannot be the name"),
        (changed("test", names=["", "b", "c"]), "'' cannot be the name"),
        (changed("test", patients=["", "b", "c"]), "patient is the empty text"),
        (changed("test", patients=np.array([0, 102, 102])), "The patients given: 1 patient(s)"),
        (made() | {"patients": {}}, "patients: none"),
        (made() | {"class_names": ("a", "b", "c/d")}, "class_names"),
        ({key: value if key == "class_names" else {"test": value["test"]} for key, value in made().items()}, "Expected train"),
        ({key: value if key == "class_names" else {"train": value["train"], "val": value["test"]} for key, value in made().items()},
         "images: train, val"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, given, text):
    if text.startswith("The patients given"):
        assert 0 in given["patients"]["train"].tolist()
    with pytest.raises(DataError, match=re.escape(text)):
        write_hospital(tmp_path / "data", **given)
    assert list(tmp_path.iterdir()) == []


def test_names_are_ordered_as_file_names_not_as_stems(tmp_path):
    """"a-b.png" comes before "a.png", though "a" comes before "a-b"."""
    given = made((2, 0, 0)) | {"patients": None, "names": {"train": ["a-b", "a"], "validation": [], "test": []}}
    write_hospital(tmp_path / "data", **given)
    np.testing.assert_array_equal(load(tmp_path / "data")["train"].images, given["images"]["train"])
    with pytest.raises(DataError, match=says("a.png", "comes before a-b.png")):
        write_hospital(tmp_path / "other", **(given | {"names": {"train": ["a", "a-b"], "validation": [], "test": []}}))
