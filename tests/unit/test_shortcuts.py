"""The shortcut probe: finds the cue that is there, no other, and never by recognising a patient."""

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import balanced_accuracy_score

from fl_utils.data import DataError, ImageDataset, load_dataset, shortcuts
from fl_utils.data.shortcuts import CUES, NUM_FOLDS, cues, shortcut_probe

SIZE = 20  # the border is 1 pixel wide
FORESTS = shortcuts.RandomForestClassifier
NUM = 120


@pytest.fixture(autouse=True)
def fewer_trees(monkeypatch):
    """A sixth of the trees does here, for the time; the first test grows them all."""
    monkeypatch.setattr(
        shortcuts, "RandomForestClassifier", lambda **fields: FORESTS(**fields | {"n_estimators": 16})
    )


def only(monkeypatch, *names):
    monkeypatch.setattr(shortcuts, "CUES", {name: CUES[name] for name in names})


def dataset(images, labels, groups=None, pictures=None, hospitals=None):
    num = len(images)
    pictures = np.arange(num) if pictures is None else np.asarray(pictures, np.int64)
    groups = pictures if groups is None else np.asarray(groups, np.int64)
    labels = np.asarray(labels)
    return ImageDataset(
        name="phantom_chest",  # the card of generated images: there are no files to look at
        images=np.asarray(images, np.uint8),
        labels=labels.astype(np.uint8 if labels.ndim == 2 else np.int64),
        class_names=tuple("abc"[: labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1]),
        groups=groups,
        duplicate_groups=pictures,
        picture_groups=pictures,
        near_groups=pictures,
        patients=np.full(num, ""),
        hospitals=np.full(num, "") if hospitals is None else np.asarray(hospitals),
        published_split=np.full(num, "train"),
        sources=np.array([f"{i}.png" for i in range(num)]),
        masks=None,
        fingerprint="0" * 64,
        synthetic=True,
    )


def noise(num=NUM, seed=0):
    """Pictures of random brightness, with nothing to tell them apart by."""
    rng = np.random.default_rng(seed)
    level = rng.uniform(70, 150, (num, 1, 1, 1))
    return np.clip(level + rng.normal(0, 12, (num, SIZE, SIZE, 1)), 0, 255)


BORDER = np.pad(np.zeros((SIZE - 2, SIZE - 2), bool), 1, constant_values=True)


def with_bright_border(images, which):
    """A brighter frame; the middle is darker by as much in sum, so that the mean stays."""
    images = images.copy()
    for index in np.flatnonzero(which):
        images[index, BORDER] += 80
        images[index, ~BORDER] -= 80 * BORDER.sum() / (~BORDER).sum()
    return np.clip(images, 0, 255)


def holds_chance(row):
    return row["low"] <= row["chance"] <= row["high"]


LABELS = np.arange(NUM) % 2


def test_a_cue_in_the_border_is_found_there_and_nowhere_else(monkeypatch):
    monkeypatch.setattr(shortcuts, "RandomForestClassifier", FORESTS)
    data = dataset(with_bright_border(noise(), LABELS == 1), LABELS)
    border_table = shortcut_probe(data).set_index("cues")
    assert list(border_table.columns) == ["balanced_accuracy", "low", "high", "chance", "classes", "groups"]
    assert list(border_table.index) == ["border", "mean intensity", "all together"]  # no file, no cue of files
    border, mean, everything = (border_table.loc[name] for name in border_table.index)
    assert border["balanced_accuracy"] > 0.85 and border["low"] > 0.75
    assert holds_chance(mean) and mean["high"] < 0.7
    assert everything["low"] > 0.75
    assert (border_table["low"] <= border_table["balanced_accuracy"]).all()
    assert (border_table["balanced_accuracy"] <= border_table["high"]).all()
    assert (border_table["chance"] == 0.5).all() and (border_table["classes"] == 2).all()
    assert (border_table["groups"] == NUM).all()


def test_nothing_is_found_where_nothing_is():
    table = shortcut_probe(dataset(noise(seed=3), LABELS))
    assert table.apply(holds_chance, axis=1).all()


def test_copies_count_once_and_the_seed_decides(monkeypatch):
    only(monkeypatch, "mean intensity")
    images = noise()
    twice = dataset(np.repeat(images, 2, axis=0), np.repeat(LABELS, 2), pictures=np.repeat(np.arange(NUM), 2))
    first, again, other = (
        shortcut_probe(data, seed=seed) for data, seed in ((dataset(images, LABELS), 0), (twice, 0), (twice, 1))
    )
    assert first.equals(again) and not first.equals(other)


def test_whole_groups_are_in_a_fold(monkeypatch):
    """The brightness tells the group, and only the group the label: as a patient's look does."""
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(40), 8)
    labels = rng.permutation(np.arange(40) % 2)[groups]
    images = np.ones((len(groups), SIZE, SIZE, 1)) * (10 + 5 * groups)[:, np.newaxis, np.newaxis, np.newaxis]
    only(monkeypatch, "mean intensity")
    tied = shortcut_probe(dataset(images, labels, groups=groups)).set_index("cues").loc["mean intensity"]
    assert holds_chance(tied) and tied["groups"] == 40
    # Without the groups, the same images are told from their siblings.
    torn = shortcut_probe(dataset(images, labels)).set_index("cues").loc["mean intensity"]
    assert torn["low"] > 0.8 > tied["high"]


def test_no_group_is_on_both_sides_of_a_fold(monkeypatch):
    seen = []

    class Spy(shortcuts.StratifiedGroupKFold):
        def split(self, features, answer, groups):
            for train, test in super().split(features, answer, groups):
                seen.append((set(groups[train]), set(groups[test])))
                yield train, test

    monkeypatch.setattr(shortcuts, "StratifiedGroupKFold", Spy)
    groups = np.random.default_rng(0).integers(0, 30, 90)
    answer = np.arange(90) % 2
    predicted = shortcuts._cross_validated(answer[:, np.newaxis].astype(float), answer, groups, seed=0)
    np.testing.assert_array_equal(predicted, answer)  # every image is predicted
    assert len(seen) == NUM_FOLDS and not any(train & test for train, test in seen)
    assert set().union(*(test for _, test in seen)) == set(groups)


def test_the_hospital_as_target(monkeypatch):
    only(monkeypatch, "border", "mean intensity")
    hospitals = np.array(["north", "east", "south"])[np.arange(NUM) % 3]
    images = with_bright_border(noise(), hospitals == "east")
    data = dataset(images, LABELS, hospitals=hospitals)
    table = shortcut_probe(data, target="hospital").set_index("cues")
    assert (table["chance"] == 1 / 3).all() and (table["classes"] == 3).all()
    # One of three is known, the two others are guessed.
    assert table.loc["border", "low"] > 1 / 2 and table.loc["border", "high"] < 0.85
    assert holds_chance(table.loc["mean intensity"])


def test_several_labels_count_as_any_finding(monkeypatch):
    only(monkeypatch, "border")
    findings = np.zeros((NUM, 2), np.uint8)
    findings[::4, 0] = findings[1::4, 1] = 1
    images = with_bright_border(noise(), findings.any(axis=1))
    table = shortcut_probe(dataset(images, findings)).set_index("cues")
    assert (table["classes"] == 2).all() and table.loc["border", "low"] > 0.75


def test_too_little_to_probe():
    images = noise(40)
    with pytest.raises(DataError, match="no target 'patient'; expected 'label' or 'hospital'"):
        shortcut_probe(dataset(images, LABELS[:40]), target="patient")
    with pytest.raises(DataError, match=r"phantom_chest: 1 class\(es\) of the target 'hospital', with \[40\] groups"):
        shortcut_probe(dataset(images, LABELS[:40]), target="hospital")
    few = np.where(np.arange(40) < 36, 0, 1)
    with pytest.raises(DataError, match=r"2 class\(es\).*\[36, 4\] groups.*two classes with 5 groups each"):
        shortcut_probe(dataset(images, few))
    # Twenty images of a class, but of four patients.
    with pytest.raises(DataError, match=r"\[4, 4\] groups"):
        shortcut_probe(dataset(images, np.arange(40) // 5 % 2, groups=np.arange(40) // 5))


@pytest.mark.parametrize("num_classes", [2, 4])
def test_the_fast_balanced_accuracy_is_that_of_scikit_learn(num_classes):
    rng = np.random.default_rng(0)
    for _ in range(20):
        answer, predicted = rng.integers(0, num_classes, (2, 50))
        assert shortcuts._balanced(answer, predicted) == pytest.approx(balanced_accuracy_score(answer, predicted))
    # A draw of the bootstrap may lack a class.
    answer, predicted = np.array([0, 0, 2, 2]), np.array([0, 1, 2, 2])
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        expected = balanced_accuracy_score(answer, predicted)
    assert shortcuts._balanced(answer, predicted) == expected == 0.75


# --- the cues themselves ---


def test_cues_of_the_picture():
    flat = np.full((SIZE, SIZE, 1), 100.0)
    framed, half_black = flat.copy(), flat.copy()
    framed[BORDER] = 5
    half_black[:, : SIZE // 2] = 9
    table = cues(dataset([flat, framed, half_black, flat + 3], [0, 1, 0, 1]))
    assert list(table.columns) == ["border_mean", "border_sd", "border_black", "mean"]
    assert table["border_mean"].tolist() == pytest.approx([100, 5, 54.5, 103])
    assert table["border_sd"].tolist() == pytest.approx([0, 0, 45.5, 0])
    assert table["border_black"].tolist() == pytest.approx([0, 1, 0.5, 0])
    assert table["mean"].tolist() == pytest.approx([100, 100 - 95 * BORDER.sum() / SIZE**2, 54.5, 103])


@pytest.mark.parametrize(("size", "width"), [(16, 1), (48, 2), (64, 3), (100, 5)])
def test_the_border_is_five_percent_on_each_side(size, width):
    inside = np.full((2, size, size, 1), 200.0)
    inside[0, width:-width, width:-width] = 0  # only the border is bright
    inside[1, width - 1 : size - width + 1, width - 1 : size - width + 1] = 0  # and one ring less of it
    table = cues(dataset(inside, [0, 1]))
    assert table["border_mean"][0] == 200 and table["border_mean"][1] < 200


@pytest.fixture
def chest(tmp_path, monkeypatch):
    """Small files in the real layout: normal images are grey, those with pneumonia in colour, and nothing else."""
    monkeypatch.setenv("FL_UTILS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FL_UTILS_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(5)
    for number in range(50):
        for folder, mode, name in (
            ("NORMAL", "L", f"IM-{number:04d}-0001"),
            ("PNEUMONIA", "RGB", f"person{number}_virus_1"),
        ):
            path = tmp_path / "data" / "chest_xray" / ("test" if number < 5 else "train") / folder / f"{name}.jpeg"
            path.parent.mkdir(parents=True, exist_ok=True)
            width = int(rng.integers(30, 60))
            pixels = Image.fromarray(rng.integers(0, 256, (40, width), dtype=np.uint8)).convert(mode)
            pixels.save(path, quality=int(rng.integers(40, 95)))
    return tmp_path / "data" / "chest_xray"


def test_cues_of_the_files(chest):
    (chest / "test/PNEUMONIA/person0_virus_1.jpeg").unlink()
    other = chest / "test/PNEUMONIA/person0_virus_1.PNG"
    Image.fromarray(np.full((50, 75), 7, np.uint8)).save(other)
    data = load_dataset("chest_xray", image_size_px=16)
    table = cues(data)
    assert set(table.columns) == {column for family in CUES.values() for column in family} and len(table) == 100
    for source, row in zip(data.sources, table.to_dict("records"), strict=True):
        path = chest / source
        with Image.open(path) as image:
            assert (row["width_px"], row["height_px"], row["mode"]) == (*image.size, image.mode)
        assert row["file_kb"] == path.stat().st_size / 1024 and row["aspect"] == row["width_px"] / row["height_px"]
    png = table.iloc[data.sources.tolist().index("test/PNEUMONIA/person0_virus_1.PNG")]
    assert (png["ending"], png["mode"], png["width_px"], png["height_px"], png["aspect"]) == (".png", "L", 75, 50, 1.5)
    assert set(table["ending"]) == {".jpeg", ".png"}


def test_a_cue_of_the_files_is_found(chest):
    table = shortcut_probe(load_dataset("chest_xray", image_size_px=16)).set_index("cues")
    assert list(table.index) == [*CUES, "all together"]
    mode = table.loc["colour mode and file type"]
    assert mode["balanced_accuracy"] == mode["low"] == mode["high"] == 1
    for name in ("image size", "border", "mean intensity"):
        assert table.loc[name, "low"] < 0.5 and table.loc[name, "high"] < 0.65, name


# --- slices of volumes ---


def write_case(root, number, mask):
    for folder, values in (("imagesTr", np.random.default_rng(number).random(mask.shape, np.float32) + 1), ("labelsTr", mask)):
        path = root / "hippocampus" / folder / f"hippocampus_{number:03d}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(values, np.eye(4)), path)


def middle(number):
    """In the middle of the axial axis, anywhere along the others."""
    mask = np.zeros((12, 12, 13), np.uint8)
    rng = np.random.default_rng(number)
    for axial in range(4, 9):
        mask[rng.integers(12), rng.integers(12), axial] = 1
    return mask


def test_position_tells_where_the_structure_lies_in_the_middle(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_UTILS_DATA", str(tmp_path))
    for number in range(1, 17, 2):
        write_case(tmp_path, number, middle(number))
    table = shortcuts.position_probe("hippocampus").set_index("plane")
    assert table.loc["axial", "auc"] == 1.0 and table.loc["axial", "present"] == 5 / 13
    for plane in ("sagittal", "coronal"):
        assert table.loc[plane, "low"] < 0.5 < table.loc[plane, "high"] and table.loc[plane, "subjects"] == 8


def test_position_needs_slices_with_and_without_the_structure(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_UTILS_DATA", str(tmp_path))
    write_case(tmp_path, 1, np.ones((12, 12, 12), np.uint8))
    with pytest.raises(DataError, match="hippocampus, sagittal: the structure is on every slice, or on none"):
        shortcuts.position_probe("hippocampus")
    with pytest.raises(DataError, match="brain_mri is a dataset of images, not of volumes"):
        shortcuts.position_probe("brain_mri")
