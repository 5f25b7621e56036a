"""Attacks on updates and released models, on made-up patients: computed once, found again, no picture published."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_utils import paths
from fl_utils.config import NUM_SHADOWS
from fl_utils.data.types import DataError
from fl_utils.experiments import inversion_attacks, inversion_plan, inversion_runs, membership_runs, privacy_plan
from fl_utils.experiments.hospitals import shadows, share_out
from fl_utils.experiments.inversion_attacks import Attacked, clipped_and_noised
from fl_utils.experiments.inversion_plan import CONDITIONS, AttackSettings, Condition
from fl_utils.experiments.inversion_runs import INVERSION, gallery, invert, pictures
from fl_utils.experiments.membership_runs import FPR, MEMBERSHIP, NUM_TARGETS, attack_members
from fl_utils.experiments.privacy_plan import UNTUNED, privacy_config
from fl_utils.learning.configured import initial_seed
from fl_utils.learning.local import make_predictor
from fl_utils.models.classifiers import build_model
from fl_utils.records import RecordError, RunRecord
from tests.unit.made_patients import NAME, made_patients

SIZE = 24  # of the smoke profile


@pytest.fixture(scope="module", autouse=True)
def eagerly():
    """For a few iterations the trace would take longer than the work."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


# --- what the attacker sees ---


def norm(parts):
    return float(np.sqrt(sum((part**2).sum() for part in parts)))


@settings(deadline=None, max_examples=50)
@given(scale=st.floats(1e-3, 1e3), clip=st.floats(1e-2, 1e2), seed=st.integers(0, 5))
def test_clipping_keeps_the_direction_and_bounds_the_norm(scale, clip, seed):
    rng = np.random.default_rng(seed)
    change = [scale * rng.normal(size=shape) for shape in ((3, 4), (5,), ())]
    seen = clipped_and_noised(change, clip, 0.0, rng)
    assert norm(seen) == pytest.approx(min(clip, norm(change)))
    for one, other in zip(seen, change, strict=True):
        np.testing.assert_allclose(one, other * (norm(seen) / norm(change)), rtol=1e-9)
        assert one.shape == other.shape


def test_noise_has_the_deviation_z_times_c_on_every_value():
    change = [np.full((60, 40), 3.0), np.full(1600, -4.0)]
    seen = clipped_and_noised(change, 2.0, 0.7, np.random.default_rng(0))
    noise = np.concatenate([(a - b * (2.0 / norm(change))).ravel() for a, b in zip(seen, change, strict=True)])
    assert abs(noise.std() / 1.4 - 1) < 4 / np.sqrt(2 * len(noise))
    assert abs(noise.mean()) < 4 * 1.4 / np.sqrt(len(noise))
    again = clipped_and_noised(change, 2.0, 0.7, np.random.default_rng(0))
    np.testing.assert_array_equal(seen[0], again[0])


@pytest.fixture(scope="module")
def data():
    return made_patients(60, size_px=SIZE)


@pytest.fixture(scope="module")
def attacked(data):
    config = privacy_config("smoke", NAME, "none", 0, **UNTUNED["none"])
    start = build_model(config.model, (SIZE, SIZE, 1), 2, seed=initial_seed(config))
    other = [weight * 1.5 for weight in start.get_weights()]
    return Attacked(config, data, np.arange(16), np.arange(40, 80), other)


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_conditions_steps_are_what_its_label_says(attacked, name):
    condition = CONDITIONS[name]
    steps = attacked._steps(condition)
    assert steps.num_images == condition.images
    if condition.batch is None:
        assert steps.batches == (tuple(range(condition.images)),) and steps.learning_rate == 1
        assert "one gradient" in condition.label or condition.images == 1
        return
    assert steps.learning_rate == UNTUNED["none"]["client_learning_rate"] and steps.momentum == 0
    assert f"{condition.images} images, {len(steps.batches)} steps" in condition.label
    assert {len(batch) for batch in steps.batches} == {condition.batch}
    a_pass = condition.images // condition.batch
    for start in range(0, len(steps.batches), a_pass):  # every image once a pass
        assert sorted(sum(steps.batches[start : start + a_pass], ())) == list(range(condition.images))


def test_every_condition_has_a_label_of_its_own():
    assert len({condition.label for condition in CONDITIONS.values()}) == len(CONDITIONS)


def test_the_model_under_attack_is_the_conditions(attacked, data):
    start, trained = attacked._model(Condition("")), attacked._model(Condition("", trained=True))
    for one, other in zip(start.get_weights(), trained.get_weights(), strict=True):
        np.testing.assert_allclose(other, one * 1.5)
    plain = attacked._model(Condition("", plain=True))
    norms = [any("norm" in layer.name for layer in model.layers) for model in (start, trained, plain)]
    assert norms == [True, True, False] and plain.output_shape == start.output_shape
    smooth = attacked._model(Condition("", attack="dlg_smooth"))
    for one, other in zip(start.get_weights(), smooth.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    images = data.images[:2].astype(np.float32) / 255
    assert not np.allclose(start(images), smooth(images), atol=1e-4)


def test_one_gradients_last_bias_gives_its_label_away(attacked, data):
    table, found = attacked.attack("one", Condition(""), None, 1.0, 2)
    assert table["labels_right"].tolist() == [1.0] and table["mismatch"].item() < 0.8
    assert found.shape == (1, SIZE, SIZE, 1) and found.min() >= 0 and found.max() <= 1


def test_noise_is_on_what_is_seen(attacked):
    """Overwhelming noise has no direction in common with any update; the same seed draws the same noise."""
    (noisy, first), (again, second) = (attacked.attack("one", Condition(""), 50.0, 1.0, 2) for _ in range(2))
    assert noisy["mismatch"].item() == pytest.approx(1, abs=0.1)
    assert again["mismatch"].item() == pytest.approx(noisy["mismatch"].item(), abs=1e-5)
    np.testing.assert_allclose(first, second, atol=1e-3)


# --- gradient inversion, computed once ---

SHOWN = ("one", "update", "trained", "patient_8")


@pytest.fixture(scope="module")
def inverted(folders, data):
    """A plan of a few iterations; the trained model is made up, the noise is the accountant's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(inversion_plan.ATTACKS, "smoke", AttackSettings(3, SHOWN))
        smoke = dataclasses.replace(privacy_plan.SETTINGS["smoke"], arms=("none", "patient_8"))
        patch.setitem(privacy_plan.SETTINGS, "smoke", smoke)
        patch.setattr(inversion_runs, "data_of", lambda config: data)
        patch.setattr(inversion_runs, "run", lambda config, *, experiment, progress: config)
        patch.setattr(inversion_runs, "selected_weights", lambda config, *, progress: {"all": build_model(
            config.model, (SIZE, SIZE, 1), 2, seed=5).get_weights()})
        yield invert("smoke", NAME, 0, progress=False)


def inversion_folder():
    (folder,) = (paths.runs_root("smoke") / INVERSION).iterdir()
    return folder


def test_the_attacked_are_training_patients_of_the_first_hospital(inverted, data):
    hospitals = share_out(data, privacy_config("smoke", NAME, "none", 0, **UNTUNED["none"]))
    assert set(inverted.examples) <= set(hospitals.train[0])
    assert len(set(data.groups[inverted.examples])) == len(inverted.examples) >= 4  # each of another patient


def test_scores_have_a_row_an_image_and_condition(inverted):
    images = {name: CONDITIONS[name].images * CONDITIONS[name].repeats for name in SHOWN}
    assert inverted.scores.groupby("condition", sort=False).size().to_dict() == images
    for name, number in images.items():
        assert inverted.scores.query("condition == @name")["image"].tolist() == list(range(number))
    for column in ("ssim", "noise_ssim", "random_other_ssim", "best_other_ssim"):
        assert inverted.scores[column].between(-1, 1).all()
    assert (inverted.scores["best_other_ssim"] >= inverted.scores["random_other_ssim"]).all()
    assert inverted.scores["labels_right"].between(0, 1).all() and inverted.scores["duration_s"].gt(0).all()
    assert inverted.facts["iterations"] == 3 and inverted.facts["clipping_norm"] == privacy_plan.PATIENT_NORM
    assert inverted.facts["synthetic"] is True and inverted.facts["class_names"] == ["normal", "pneumonia"]


def test_the_noise_is_that_of_the_arms(inverted, data):
    from fl_utils.experiments.protection import noise_of

    config = privacy_config("smoke", NAME, "patient_8", 0, **UNTUNED["patient_8"])
    noise = noise_of(config, data, share_out(data, config))  # the accountant remembers
    assert inverted.facts["noise_multipliers"] == {"patient_8": round(noise.noise_multiplier, 4)}


def test_a_second_call_loads_what_was_written(inverted, monkeypatch):
    monkeypatch.setattr(inversion_runs, "_computed", lambda *args: pytest.fail("computed again"))
    monkeypatch.setenv("FL_UTILS_NO_TRAINING", "1")
    again = invert("smoke", NAME, 0, progress=False)
    pd.testing.assert_frame_equal(again.scores, inverted.scores)
    np.testing.assert_array_equal(again.examples, inverted.examples)
    assert again.facts == inverted.facts and (again.dataset, again.seed) == (NAME, 0)


def test_published_tables_are_found_without_images(inverted, monkeypatch):
    def nothing(config):
        raise DataError("not at hand")

    monkeypatch.setattr(inversion_runs, "data_of", nothing)
    pd.testing.assert_frame_equal(invert("smoke", NAME, 0, progress=False).scores, inverted.scores)
    with pytest.raises(DataError, match="not at hand"):
        pictures("smoke", inverted)
    with pytest.raises(DataError, match="not at hand"):
        invert("smoke", NAME, 1, progress=False)


def test_another_seed_or_plan_is_another_attack_and_not_done_where_that_is_forbidden(inverted, monkeypatch):
    monkeypatch.setenv("FL_UTILS_NO_TRAINING", "1")
    with pytest.raises(RecordError, match="no attacks phantom_chest_s1_.*make reproduce PROFILE=smoke"):
        invert("smoke", NAME, 1, progress=False)
    monkeypatch.setitem(inversion_plan.ATTACKS, "smoke", AttackSettings(4, SHOWN))
    with pytest.raises(RecordError, match="no attacks phantom_chest_s0_.*make reproduce PROFILE=smoke"):
        invert("smoke", NAME, 0, progress=False)


def test_pictures_stay_in_the_cache(inverted, data):
    folder = inversion_folder()
    assert sorted(path.name for path in folder.iterdir()) == ["facts.json", "scores.csv"]
    assert not [path for path in paths.results_root("smoke").rglob("*") if path.suffix in (".npz", ".png", ".npy")]
    originals, found = pictures("smoke", inverted)
    np.testing.assert_array_equal(originals, data.images[inverted.examples])
    for name, images in found.items():
        number = CONDITIONS[name].images * CONDITIONS[name].repeats
        assert images.shape == (number, SIZE, SIZE, 1) and images.dtype == np.float32
        assert images.min() >= 0 and images.max() <= 1
    assert tuple(found) == SHOWN
    assert (paths.cache_root() / "inversion" / f"{folder.name}.npz").is_file()


def test_pictures_are_in_the_order_of_their_scores(inverted):
    from fl_utils.trust.matching import ssim_table

    originals, found = pictures("smoke", inverted)
    for name, images in found.items():
        scores = inverted.scores.query("condition == @name")["ssim"]
        own = ssim_table(originals[: len(images)].astype(np.float32) / 255, images).diagonal()
        np.testing.assert_allclose(own, scores, atol=1e-4)


def test_pictures_that_are_gone_say_what_to_do(inverted, tmp_path, monkeypatch):
    monkeypatch.setenv("FL_UTILS_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="not published.*run again to make them anew") as caught:
        pictures("smoke", inverted)
    named = str(caught.value).split("Delete ")[1].split(" and run")[0]
    assert Path(named) == inversion_folder()  # the folder that keeps them from being made


def test_the_gallery_shows_what_was_attacked(inverted):
    images, shown, names, texts = gallery("smoke", inverted, columns=5)
    assert images.shape == (5, SIZE, SIZE) and len(names) == 5 and set(names) <= {"normal", "pneumonia"}
    labels = [CONDITIONS[name].label for name in SHOWN if name in inversion_plan.SHOWN]
    assert list(shown) == list(texts) and set(shown) == set(labels)
    one, update = (CONDITIONS[name].label for name in ("one", "update"))
    for label in (one, update):  # four images each: the fifth place stays empty
        assert np.isfinite(shown[label][:4]).all() and np.isnan(shown[label][4]).all()
    ssim = inverted.scores.query("condition == 'one'")["ssim"]
    assert texts[one] == [*(f"SSIM {value:.2f}" for value in ssim), ""]


def test_damaged_tables_say_what_to_do(inverted, tmp_path, monkeypatch):
    monkeypatch.setenv("FL_UTILS_RESULTS", str(tmp_path))
    folder = paths.runs_root("smoke") / INVERSION / inversion_runs._name("smoke", NAME, 0)
    folder.mkdir(parents=True)
    (folder / "facts.json").write_text("{")
    with pytest.raises(RecordError, match="cannot be read: .* Delete it and run again"):
        invert("smoke", NAME, 0, progress=False)


def test_tables_are_written_whole_or_not_at_all_and_after_the_pictures(inverted, tmp_path, monkeypatch):
    genuine, kept = json.dumps, []

    class Quick:
        def __init__(self, *args):
            pass

        def attack(self, *args):
            return pd.DataFrame({"image": [0]}), np.zeros((1, SIZE, SIZE, 1))

    def full(value, **options):
        if "indent" not in options:  # a name, not facts
            return genuine(value, **options)
        kept.extend((tmp_path / "cache" / "inversion").glob("*.npz"))
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("FL_UTILS_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("FL_UTILS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(inversion_attacks, "Attacked", Quick)
    monkeypatch.setattr(json, "dumps", full)
    with pytest.raises(RecordError, match="The attacks .* could not be written .*No space left on device"):
        invert("smoke", NAME, 0, progress=False)
    assert len(kept) == 1 and not list((tmp_path / "results").rglob("*.csv"))


# --- membership ---

PATIENTS = 330  # of which about 237 are trained on, and 1 / FPR or more are not in a half


@pytest.fixture(scope="module")
def many():
    return made_patients(PATIENTS, size_px=1)


def outputs_of(many, gap, seed=0):
    """A stand-in for `_outputs`: members' confidence in the true class is `gap` deviations above the others'."""

    def made(config, data, pool, weights):
        assert weights == f"weights {config.shadow}"
        rng = np.random.default_rng([seed, config.shadow])
        member = shadows(many, share_out(many, config).split)[config.shadow, pool]
        logit = rng.normal(0, 1, len(pool)) + gap * member
        true = -np.logaddexp(0, -logit)
        table = np.stack([-np.logaddexp(0, logit), true], axis=1)
        table[many.labels[pool] == 0] = table[many.labels[pool] == 0][:, ::-1]
        return table

    return made


@pytest.fixture
def made(many, tmp_path, monkeypatch):
    """The smoke plan without training: all shadows without protection, two with."""
    monkeypatch.setenv("FL_UTILS_RESULTS", str(tmp_path))
    monkeypatch.delenv("FL_UTILS_NO_TRAINING", raising=False)
    plan = dataclasses.replace(privacy_plan.SETTINGS["smoke"], membership_arms={"none": NUM_SHADOWS, "patient_8": 2})
    monkeypatch.setitem(privacy_plan.SETTINGS, "smoke", plan)
    monkeypatch.setattr(membership_runs, "data_of", lambda config: many)
    monkeypatch.setattr(membership_runs, "NUM_RESAMPLES", 20)

    def run(config, *, experiment, progress):
        assert experiment == privacy_plan.PRIVACY_SHADOWS
        name = f"{config.dataset}_shadow_{config.shadow}_{config.privacy_unit}"
        return RunRecord(config.model_dump(), pd.DataFrame(), pd.DataFrame(), {}, Path(name))

    def weights(record, *, progress):
        return {"all": f"weights {record.config['shadow']}"}

    monkeypatch.setattr(membership_runs, "run", run)
    monkeypatch.setattr(membership_runs, "selected_weights", weights)
    return monkeypatch


def test_certain_members_are_found(made, many):
    made.setattr(membership_runs, "_outputs", outputs_of(many, 100.0))
    found = attack_members("smoke", NAME, "none", progress=False)
    assert found.facts["num_shadows"] == NUM_SHADOWS - 1 and len(found.facts["runs"]) == NUM_SHADOWS
    table = found.scores.set_index(["attack", "unit", "metric"])["mean"]
    assert (table == 1).all()
    assert found.scores.groupby(["attack", "unit", "metric"]).size().eq(NUM_TARGETS).all()
    assert set(found.scores["attack"]) == {"loss", "lira"} and set(found.scores["target"]) == set(range(NUM_TARGETS))
    assert (found.roc["tpr"] == 1).all() and FPR in found.roc["fpr"].to_numpy()


def test_where_members_do_not_differ_the_attack_is_chance(made, many):
    made.setattr(membership_runs, "_outputs", outputs_of(many, 0.0))
    found = attack_members("smoke", NAME, "none", progress=False)
    of_patients = found.scores[found.scores["unit"] == "patient"].groupby(["attack", "metric"])["mean"].mean()
    num = PATIENTS * 0.72
    # Five models' AUC, each of deviation sqrt(1 / (3 n)) with n / 2 members (Mann and Whitney 1947).
    near = 4 * np.sqrt(1 / (3 * num) / NUM_TARGETS)
    for attack in ("loss", "lira"):
        assert of_patients[attack, "auc"] == pytest.approx(0.5, abs=near)
        assert of_patients[attack, "tpr_at_fpr"] < 0.06
    curve = found.roc[found.roc["attack"] == "loss"]
    assert np.abs(curve["tpr"] - curve["fpr"]).max() < 0.1
    assert abs((found.fit["accuracy_members"] - found.fit["accuracy_others"]).mean()) < 0.1


def test_lira_is_run_only_with_all_shadows(made, many):
    made.setattr(membership_runs, "_outputs", outputs_of(many, 2.0))
    two, all_of = (attack_members("smoke", NAME, arm, progress=False) for arm in ("patient_8", "none"))
    assert set(two.scores["attack"]) == {"loss"} and two.facts["num_shadows"] == 0 and len(two.fit) == 2
    assert set(two.roc["attack"]) == {"loss"} and set(all_of.roc["attack"]) == {"loss", "lira"}
    for found in (two, all_of):  # members are two deviations above others
        auc = found.scores.query("attack == 'loss' and unit == 'image' and metric == 'auc'")["mean"]
        assert auc.between(0.87, 0.97).all()  # Phi(sqrt(2)) = 0.921
        assert (found.fit["accuracy_members"] - found.fit["accuracy_others"]).gt(0.2).all()


def test_the_curve_is_the_mean_of_the_targets(made, many):
    """What the mean curve shows at FPR is the mean of the true-positive rates in the table."""
    made.setattr(membership_runs, "_outputs", outputs_of(many, 1.0))
    found = attack_members("smoke", NAME, "none", progress=False)
    for attack in ("loss", "lira"):
        rates = found.scores.query("attack == @attack and unit == 'patient' and metric == 'tpr_at_fpr'")["mean"]
        curve = found.roc[found.roc["attack"] == attack].set_index("fpr")["tpr"]
        assert curve[FPR] == pytest.approx(rates.mean(), abs=1e-4) and curve.is_monotonic_increasing and curve[1.0] == 1
        low_high = found.scores.query("attack == @attack")
        assert (low_high["low"] <= low_high["high"]).all()


def test_members_and_others_are_the_training_patients(made, many):
    made.setattr(membership_runs, "_outputs", outputs_of(many, 1.0))
    found = attack_members("smoke", NAME, "patient_8", progress=False)
    split = share_out(many, privacy_config("smoke", NAME, "none", 0, **UNTUNED["none"])).split
    inside = shadows(many, split)
    for target in (0, 1):
        patients = found.scores.query("target == @target and unit == 'patient' and metric == 'auc'").iloc[0]
        assert patients["num_members"] == len(set(many.groups[inside[target]]))
        assert patients["num_members"] + patients["num_others"] == len(set(many.groups[split.train]))


def test_membership_is_loaded_as_it_was_written(made, many):
    made.setattr(membership_runs, "_outputs", outputs_of(many, 1.0))
    first = attack_members("smoke", NAME, "patient_8", progress=False)
    (folder,) = (paths.runs_root("smoke") / MEMBERSHIP).iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["facts.json", "fit.csv", "roc.csv", "scores.csv"]
    made.setattr(membership_runs, "_computed", lambda *args: pytest.fail("computed again"))
    made.setenv("FL_UTILS_NO_TRAINING", "1")
    again = attack_members("smoke", NAME, "patient_8", progress=False)
    for name in ("scores", "fit", "roc"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(first, name))
    assert again.facts == first.facts and (again.dataset, again.arm) == (NAME, "patient_8")
    with pytest.raises(RecordError, match="no attacks phantom_chest_none_.*make reproduce PROFILE=smoke"):
        attack_members("smoke", NAME, "none", progress=False)
    (folder / "roc.csv").write_text("")
    with pytest.raises(RecordError, match="cannot be read: .* Delete it and run again"):
        attack_members("smoke", NAME, "patient_8", progress=False)


def test_outputs_are_the_models_log_probabilities(data):
    config = privacy_config("smoke", NAME, "none", 0, **UNTUNED["none"])
    model = build_model(config.model, (SIZE, SIZE, 1), 2, seed=3)
    pool = np.arange(5, 50)
    found = membership_runs._outputs(config, data, pool, model.get_weights())
    assert found.shape == (45, 2) and found.dtype == np.float64
    np.testing.assert_allclose(np.exp(found), make_predictor(model)(data.images[pool]), atol=1e-6)
    # A model that is sure of everything: no value rounds to log 0.
    sure = [weight * (1e4 if weight.ndim == 2 else 1) for weight in model.get_weights()]
    assert np.isfinite(membership_runs._outputs(config, data, pool, sure)).all()
