"""The card of a data set, the made-up images of its shape, and the plan that comes of several cards."""

import copy
import hashlib
import json
import shutil

import numpy as np
import pytest

from fl_utils.config import ConfigError, make_config
from fl_utils.data import phantoms
from fl_utils.data.catalogue import CARDS
from fl_utils.data.types import DataError
from fl_utils.deployment.hospital_data import PARTS, load_hospital, write_hospital
from fl_utils.deployment.nvflare.card import make_card, plan_of, write_mock
from fl_utils.deployment.nvflare.plan import USUAL_OUTPUTS, canonical, make_plan
from fl_utils.deployment.nvflare.settings import ConsortiumError
from fl_utils.learning.local import class_weights
from fl_utils.trust.accounting import epsilon_of
from fl_utils.trust.noise import planned_noise

CLASSES = ("normal", "pneumonia", "rare")
SIZE = 24
#: Part -> class of each image, and whose it is.
LABELS = {"train": [0] * 7 + [1] * 4, "validation": [0, 0, 1], "test": [1, 1, 2, 0]}
PATIENTS = {"train": [1, 1, 1, 2, 3, 4, 5, 5, 6, 7, 7], "validation": [8, 9, 9], "test": [10, 11, 12, 13]}
ABOUT = {
    "name": "chests", "title": "Chest images", "class_names": CLASSES, "image_size_px": SIZE, "modality": "X-ray, drawn", "source": "Our own.",
    "synthetic": False,
}


def write(folder, labels=LABELS, patients=PATIENTS, seed=0, size=SIZE, classes=CLASSES):
    """A hospital's images, drawn as the mock's are: the nearest to them that a hospital can have."""
    number = sum(map(len, labels.values()))
    images, _, _ = phantoms.generate_chest(number, image_size_px=max(24, size), rng=np.random.default_rng(seed))
    parts, start = {}, 0
    for part, found in labels.items():
        parts[part] = images[start : start + len(found)]
        start += len(found)
    numbers = {part: np.array(found, np.int64) for part, found in labels.items()}
    names = {part: [f"{n:04}" for n in range(len(found))] for part, found in labels.items()}
    write_hospital(folder, parts, numbers, names, classes, {part: np.array(found) for part, found in patients.items()})
    return folder


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    return write(tmp_path_factory.mktemp("hospital") / "chests")


@pytest.fixture(scope="module")
def card(hospital):
    return make_card(hospital, **ABOUT)


def loaded(folder, size=SIZE, classes=CLASSES):
    return load_hospital(folder, class_names=classes, image_size_px=size)


def files(folder):
    """Path -> content of all files."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


def pictures(parts):
    return {image.tobytes() for part in parts.values() for image in part.images}


def counts_of(parts, classes=CLASSES):
    return {part: dict(zip(classes, np.bincount(found.labels, minlength=len(classes)).tolist())) for part, found in parts.items()}


# --- the card ---


def test_counts_and_patients_are_those_of_the_folder(card):
    assert card["counts"] == {
        "train": {"normal": 7, "pneumonia": 4, "rare": 0}, "validation": {"normal": 2, "pneumonia": 1, "rare": 0},
        "test": {"normal": 1, "pneumonia": 2, "rare": 1},
    }  # fmt: skip
    assert card["patients"] == {"train": 7, "validation": 2, "test": 4}
    assert {name: card[name] for name in ABOUT} == ABOUT | {"class_names": list(CLASSES)}
    assert set(card) == set(ABOUT) | {"counts", "patients"}


def test_a_card_is_json_and_tells_no_path_name_of_a_file_or_patient(card, hospital):
    assert json.loads(json.dumps(card)) == card
    text = json.dumps(card)
    assert str(hospital) not in text and ".png" not in text and "0003" not in text


def test_a_part_or_patients_may_be_missing(tmp_path):
    write(tmp_path / "one", {"train": [0, 1]}, {"train": [1, 1]})
    found = make_card(tmp_path / "one", **ABOUT)
    assert found["counts"]["test"] == {name: 0 for name in CLASSES} and found["patients"] == {"train": 1, "validation": 0, "test": 0}
    (tmp_path / "one" / "patients.csv").unlink()
    assert make_card(tmp_path / "one", **ABOUT)["patients"]["train"] == 2  # each image counts as a patient


def test_what_cannot_be_trained_on_has_no_card(hospital, tmp_path):
    with pytest.raises(DataError, match="not known: rare"):
        make_card(hospital, **ABOUT | {"class_names": CLASSES[:2]})
    with pytest.raises(DataError, match="no folder"):
        make_card(tmp_path / "nowhere", **ABOUT)


# --- the mock ---


def test_a_mock_has_the_cards_shape(card, tmp_path):
    mock = write_mock(card, tmp_path / "mock")
    assert mock == tmp_path / "mock" and make_card(mock, **ABOUT) == card
    parts = loaded(mock)
    assert tuple(parts) == PARTS and all(part.images.shape[1:] == (SIZE, SIZE, 1) for part in parts.values())


def test_nothing_of_a_mock_comes_from_the_hospitals_images(card, hospital, tmp_path):
    """Another hospital with the same card has the same mock; and none of its images is one of the hospital's."""
    other = write(tmp_path / "other", seed=1)
    assert not pictures(loaded(other)) & pictures(loaded(hospital))
    same = make_card(other, **ABOUT)
    assert same == card
    mocks = [write_mock(one, tmp_path / f"mock_{number}") for number, one in enumerate((card, same))]
    assert files(mocks[0]) == files(mocks[1])
    mine, theirs = loaded(mocks[0]), loaded(hospital)
    assert len(pictures(mine)) > 10 and not pictures(mine) & pictures(theirs)
    shares = [np.mean(image == picture) for part in mine.values() for image in part.images for own in theirs.values() for picture in own.images]
    assert max(shares) < 0.5  # nor is any nearly one: pixels agree here and there only


def test_the_seed_and_the_name_decide_on_the_mock(card, tmp_path):
    folders = [
        write_mock(card, tmp_path / "a"), write_mock(card, tmp_path / "b", seed=0), write_mock(card, tmp_path / "c", seed=1),
        write_mock(card | {"name": "others"}, tmp_path / "d"),
    ]  # fmt: skip
    found = [files(folder) for folder in folders]
    assert found[0] == found[1] and set(found[0]) == set(found[2]) == set(found[3])
    images = [{name: seal for name, seal in one.items() if name.endswith("png")} for one in found]
    assert not set(images[0].values()) & set(images[2].values()) and not set(images[0].values()) & set(images[3].values())


def larger(card, times):
    found = copy.deepcopy(card)
    for part in PARTS:
        found["counts"][part] = {name: number * times for name, number in found["counts"][part].items()}
        found["patients"][part] *= times
    return found


@pytest.mark.parametrize(("times", "most"), [(100, 200), (100, 50), (1000, 3), (1, 18), (1, 17), (1, 1)])
def test_a_mock_of_many_images_has_few_and_keeps_classes_and_shares(card, tmp_path, times, most):
    parts, big = loaded(write_mock(larger(card, times), tmp_path / "mock", most=most)), larger(card, times)
    found, cells = counts_of(parts), sum(number > 0 for part in card["counts"].values() for number in part.values())
    whole = sum(sum(part.values()) for part in big["counts"].values())
    assert sum(sum(part.values()) for part in found.values()) <= min(whole, most + cells)
    for part in PARTS:
        for name, number in big["counts"][part].items():
            assert (found[part][name] > 0) == (number > 0) and 0 <= found[part][name] - number * min(1, most / whole) < 1
        share = big["patients"][part] / max(1, sum(big["counts"][part].values()))
        images = sum(found[part].values())
        assert len(set(parts[part].patients.tolist())) == max(1, round(images * share))


@pytest.mark.parametrize("labels", [{"train": [0]}, {"train": [2]}, {"train": [0, 0, 0, 0, 0, 0]}, {"train": [1], "test": [0]}], ids=str)
def test_a_mock_of_very_few_images(tmp_path, labels):
    patients = {part: [f"{part}{n}" for n in range(len(found))] for part, found in labels.items()}
    few = make_card(write(tmp_path / "hospital", labels, patients), **ABOUT)
    assert make_card(write_mock(few, tmp_path / "mock"), **ABOUT) == few


@pytest.mark.parametrize("name", sorted(name for name, one in CARDS.items() if one.task != "segmentation"))
def test_each_modality_of_the_catalogue_has_a_mock(tmp_path, name):
    known = CARDS[name]
    counts = {part: {one: 2 for one in known.class_names} for part in PARTS}
    made = {
        "name": name, "title": known.title, "class_names": list(known.class_names), "image_size_px": 32, "modality": known.modality, "source": "",
        "synthetic": True, "counts": counts, "patients": {part: len(known.class_names) for part in PARTS},
    }  # fmt: skip
    parts = loaded(write_mock(made, tmp_path / "mock"), 32, known.class_names)
    assert counts_of(parts, known.class_names) == counts and len(pictures(parts)) == 6 * len(known.class_names)  # none is there twice
    for part in parts.values():
        assert len(set(part.patients.tolist())) == len(known.class_names) and len(np.unique(part.images)) > 10  # drawn, not empty


def test_a_mock_looks_like_its_modality(tmp_path, card):
    """Each is the drawing that its own program makes."""
    drawn = {}
    for modality in ("X-ray", "MRI, 2-D slices", "Optical coherence tomography", "Something new"):
        made = card | {"modality": modality}
        drawn[modality] = pictures(loaded(write_mock(made, tmp_path / modality[:3])))
    assert drawn["Something new"] == drawn["X-ray"]
    assert not drawn["X-ray"] & drawn["MRI, 2-D slices"] and not drawn["MRI, 2-D slices"] & drawn["Optical coherence tomography"]


@pytest.mark.parametrize("size", [16, 24, 40])
def test_a_mock_has_the_size_of_the_images(tmp_path, size):
    made = make_card(write(tmp_path / "hospital", size=size), **ABOUT | {"image_size_px": size})
    parts = loaded(write_mock(made, tmp_path / "mock"), size)
    assert all(part.images.shape[1:] == (size, size, 1) for part in parts.values())
    assert make_card(tmp_path / "mock", **ABOUT | {"image_size_px": size}) == made


def test_a_mock_overwrites_nothing(card, hospital, tmp_path):
    copied = shutil.copytree(hospital, tmp_path / "own")
    before = files(copied)
    with pytest.raises(DataError, match="is there already"):
        write_mock(card, copied)
    assert files(copied) == before


# --- the plan ---


def cards_of(*counts, patients=None, classes=("normal", "pneumonia")):
    """A card a hospital, with so many training images a class, and patients."""
    return {
        f"hospital_{number}": {
            "name": "chests", "title": "", "class_names": list(classes), "image_size_px": 24, "modality": "X-ray", "source": "", "synthetic": True,
            "counts": {part: dict(zip(classes, found if part == "train" else [0] * len(classes))) for part in PARTS},
            "patients": {"train": (patients or [sum(one) for one in counts])[number - 1], "validation": 0, "test": 0},
        } for number, found in enumerate(counts, 1)
    }  # fmt: skip


def config_of(hospitals, **fields):
    return make_config(**{
        "dataset": "chests", "method": "fedavg", "partition": "natural", "num_clients": hospitals, "seed": 0, "profile": "quick", "image_size_px": 24,
        "model": "softmax_regression", "total_rounds": 4, "client_learning_rate": 0.1, "client_batch_size": 8, "augment": False,
    } | fields)  # fmt: skip


PRIVATE = {"privacy_unit": "patient", "epsilon": 2.0, "delta": 1e-3, "clipping_norm": 1.0}
WORDS = {"title": "Chests", "purpose": "To try it."}


@pytest.mark.parametrize("counts", [((30, 10), (5, 25)), ((30, 0), (5, 0)), ((1, 0), (0, 1), (17, 3))], ids=str)
@pytest.mark.parametrize("weighting", [True, False])
def test_class_weights_are_those_of_all_hospitals_together(counts, weighting):
    plan = plan_of(cards_of(*counts), config_of(len(counts), class_weighting=weighting), **WORDS)
    pooled = np.concatenate([np.repeat([0, 1], one) for one in counts])
    assert plan.class_weights == tuple(float(one) for one in class_weights(pooled, 2, enabled=weighting))
    if weighting and min(np.sum(counts, axis=0)):
        assert np.mean(np.array(plan.class_weights)[pooled]) == pytest.approx(1, abs=1e-6)
    assert np.array(plan.class_weights, np.float32).tolist() == list(plan.class_weights)  # as a hospital will have them


@pytest.mark.parametrize("patients", [[40, 60], [12, 200], [9, 9]])
def test_the_noise_is_the_one_that_a_simulation_plans(patients):
    cards, config = cards_of((30, 10), (5, 25), patients=patients), config_of(2, **PRIVATE)
    plan, wanted = plan_of(cards, config, **WORDS), planned_noise(config, patients)
    assert plan.noise.noise_multiplier == wanted.noise_multiplier and plan.noise.steps == wanted.steps_per_round
    assert plan.round_terms(config.total_rounds) == wanted.terms
    assert 1.9 < epsilon_of(plan.noise.noise_multiplier, plan.round_terms(config.total_rounds)) <= 2.0


def test_a_private_plan_asks_for_no_mean_over_patients_unless_told_to():
    cards = cards_of((30, 10), (5, 25))
    assert plan_of(cards, config_of(2), **WORDS).outputs == USUAL_OUTPUTS and "training_loss" in USUAL_OUTPUTS
    private = plan_of(cards, config_of(2, **PRIVATE), **WORDS)
    assert private.outputs == tuple(name for name in USUAL_OUTPUTS if name != "training_loss")
    assert plan_of(cards, config_of(2, **PRIVATE), outputs=USUAL_OUTPUTS, **WORDS).outputs == USUAL_OUTPUTS
    assert plan_of(cards, config_of(2), **WORDS).noise is None


def test_hospitals_classes_and_further_fields_are_taken_over():
    cards = cards_of((30, 10), (5, 25), (4, 4))
    cards = {name: cards[name] for name in ("hospital_3", "hospital_1", "hospital_2")}
    plan = plan_of(cards, config_of(3), encrypted=True, round_timeout_s=77, **WORDS)
    assert plan.hospitals == ("hospital_3", "hospital_1", "hospital_2") and plan.class_names == ("normal", "pneumonia")
    assert plan.encrypted and plan.round_timeout_s == 77 and (plan.title, plan.purpose) == ("Chests", "To try it.")
    assert make_plan(**json.loads(canonical(plan))) == plan


@pytest.mark.parametrize(("hospitals", "needed"), [(2, 2), (3, 2), (4, 3), (5, 3)])
def test_by_default_a_round_needs_more_than_half_of_the_hospitals(hospitals, needed):
    cards = cards_of(*[(5, 5)] * hospitals)
    assert plan_of(cards, config_of(hospitals), **WORDS).min_hospitals == needed > hospitals / 2
    assert plan_of(cards, config_of(hospitals), min_hospitals=1, **WORDS).min_hospitals == 1


@pytest.mark.parametrize("classes", [("normal", "glioma"), ("pneumonia", "normal"), ("normal", "pneumonia", "rare")])
def test_hospitals_with_other_classes_cannot_train_one_model(classes):
    """Nor with the same ones in another order: labels are numbers."""
    cards = cards_of((30, 10), (5, 25))
    cards["hospital_2"] = cards_of((1, 1), (1, 1) + (0,) * (len(classes) - 2), classes=classes)["hospital_2"]
    with pytest.raises(ConsortiumError) as error:
        plan_of(cards, config_of(2), **WORDS)
    assert "normal, pneumonia" in str(error.value) and ", ".join(classes) in str(error.value)


def test_what_cannot_be_planned_is_told_as_an_error_of_the_configuration():
    with pytest.raises(ConfigError, match="delta is 0.001 for 1000 patients; expected less than 1/1000"):
        plan_of(cards_of((900, 100), (900, 200)), config_of(2, **PRIVATE), **WORDS)
    with pytest.raises(ConfigError, match="noise.noise_multiplier: Input should be less than or equal to 1000"):
        plan_of(cards_of((5, 5), (5, 5)), config_of(2, **PRIVATE | {"epsilon": 1e-4, "delta": 1e-7}), **WORDS)
    with pytest.raises(ConfigError, match="expected 3 different ones"):
        plan_of(cards_of((5, 5), (5, 5)), config_of(3), **WORDS)
    with pytest.raises(ConfigError, match="min_hospitals is 3 of 2"):
        plan_of(cards_of((5, 5), (5, 5)), config_of(2), min_hospitals=3, **WORDS)
