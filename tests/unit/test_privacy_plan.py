"""Notebook 06's plan: arms are what they are called, trials are compared fairly, shadows are private like their arm."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fl_utils.config import NUM_SHADOWS, PROTECTION_LABELS, make_config
from fl_utils.experiments import inversion_plan, plans, privacy_answer, privacy_plan, privacy_report
from fl_utils.experiments.hospitals import share_out
from fl_utils.experiments.plans import TUNING_SEED
from fl_utils.experiments.privacy_plan import (
    ARMS, HOSPITAL_NORMS, PATIENT_RATES, PRIVACY_TUNING, RATES, SETTINGS, TUNED_AS, UNTUNED, arm_of, arms_of,
    configs_06, privacy_config, shadow_config, shadow_configs, trials_of, tuned, tuning_configs, tuning_facts,
)
from fl_utils.experiments.protection import noise_of
from fl_utils.learning.errors import TrainingError
from fl_utils.records import RunRecord
from fl_utils.trust.terms import hospital_terms
from tests.unit.made_patients import made_patients

ALL = [(profile, dataset) for profile in SETTINGS for dataset in privacy_plan.datasets_of(profile)]
PAPER = [(profile, dataset) for profile, dataset in ALL if profile == "paper"]


@pytest.fixture
def untuned(monkeypatch):
    monkeypatch.setattr(privacy_plan, "tuned", lambda profile, dataset, arm, progress=False: (UNTUNED[arm], {}))


# --- the arms ---


@pytest.mark.parametrize(("profile", "dataset"), ALL)
def test_every_arm_is_a_run_and_known_by_its_name(profile, dataset, untuned):
    configs, settings, arms = configs_06(profile, dataset), SETTINGS[profile], arms_of(profile, dataset)
    assert [(c.seed, arm_of(c)) for c in configs] == [(seed, arm) for seed in settings.seeds for arm in arms]
    assert len({config.model_dump_json() for config in configs}) == len(configs)
    # All see each image, or each patient, as often, and none is augmented.
    passes = {config.total_rounds * config.client_epochs_per_round for config in configs}
    assert passes == {settings.datasets[dataset].total_rounds}
    same = {
        (c.dataset, c.profile, c.partition, c.model, c.image_size_px, c.num_images, c.augment, c.split) for c in configs
    }
    shown = (settings.image_size_px, settings.num_images)
    assert same == {(dataset, profile, "iid", "norm_cnn_group", *shown, False, "deduplicated")}
    for config in configs:
        if config.privacy_unit == "hospital":  # its delta promises something
            hospital_terms(num_hospitals=config.num_clients, rounds=config.total_rounds, delta=config.delta)
        if config.privacy_unit == "patient":
            assert config.delta == settings.datasets[dataset].delta
            assert config.client_batch_size == settings.datasets[dataset].patients_per_step


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_of_the_published_plan_says_what_it_protects(arm):
    config = privacy_config("paper", "chest_xray", arm, 3, **UNTUNED[arm])
    assert arm_of(config) == arm and arm in SETTINGS["paper"].arms
    unit = "patient" if "patient" in arm or arm == "both" else "hospital" if "hospital" in arm else None
    assert config.privacy_unit == unit
    assert config.encrypted == (arm in ("encrypted", "both")) and config.adaptive_clipping == arm.endswith("adaptive")
    assert config.num_clients == (50 if "many" in arm else 5) and config.federated == (arm != "local")
    if arm.startswith("patient_"):
        assert config.epsilon == int(arm.removeprefix("patient_"))


def test_every_arm_has_a_label_and_an_answer_to_who_sees_what():
    assert list(ARMS) == sorted(ARMS, key=list(PROTECTION_LABELS).index) and set(ARMS) == set(PROTECTION_LABELS)
    assert set(privacy_answer.SEEN) == set(ARMS) == set(UNTUNED)
    assert {*privacy_report.BASELINE, *privacy_report.BASELINE.values()} <= {*ARMS, None}
    for seen in privacy_answer.SEEN.values():
        assert {seen.server, seen.hospital} <= {*inversion_plan.CONDITIONS, None}
        assert seen.members is None or seen.members in ARMS


@pytest.mark.parametrize("profile", SETTINGS)
def test_what_is_attacked_is_trained(profile):
    settings, attacks = SETTINGS[profile], inversion_plan.ATTACKS[profile]
    assert all(set(settings.membership_arms) <= set(arms_of(profile, dataset)) for dataset in settings.datasets)
    assert all(1 < number <= NUM_SHADOWS for number in settings.membership_arms.values())
    # LiRA is run somewhere, but for the profile of the tests.
    assert profile == "smoke" or NUM_SHADOWS in settings.membership_arms.values()
    for name in attacks.conditions:
        noise = inversion_plan.CONDITIONS[name].noise
        trained = all(noise in arms_of(profile, dataset) for dataset in settings.datasets)
        assert not isinstance(noise, str) or (trained and ARMS[noise]["privacy_unit"])
    assert set(inversion_plan.SHOWN) <= set(inversion_plan.CONDITIONS)


@pytest.mark.parametrize("fields", [
    {"num_clients": 7}, {"privacy_unit": "patient", "epsilon": 2.0, "delta": 1e-3, "clipping_norm": 1.0},
    {"client_epochs_per_round": 3}, {"privacy_unit": "hospital", "epsilon": 8.0, "delta": 1e-3, "clipping_norm": 1.0},
])  # fmt: skip
def test_another_run_is_no_arm(fields):
    config = make_config(**privacy_config("quick", "phantom_chest", "none", 0, **UNTUNED["none"]).model_dump() | fields)
    with pytest.raises(ValueError, match="phantom_chest fedavg with privacy_unit .* is no arm of notebook 06"):
        arm_of(config)


def test_the_published_plan_has_five_seeds_on_real_images():
    assert privacy_plan.datasets_of("paper") == ("chest_xray", "brain_mri") and SETTINGS["paper"].tuned
    assert len(SETTINGS["paper"].seeds) == 5 and set(arms_of("paper", "chest_xray")) == set(ARMS)
    # Left out on brain MRI are variants only: every kind of protection of the few hospitals is there.
    kinds = {"none", "longer", "patient_8", "patient_3", "patient_1", "hospital_few", "encrypted", "local"}
    assert kinds <= set(arms_of("paper", "brain_mri"))
    for settings in SETTINGS.values():
        assert all(set(one.left_out) < set(settings.arms) for one in settings.datasets.values())
    assert TUNING_SEED not in SETTINGS["paper"].seeds


@pytest.mark.parametrize("profile", SETTINGS)
def test_the_overview_has_a_row_a_data_set(profile):
    table = privacy_plan.overview(profile)
    assert table["data"].tolist() == list(privacy_plan.datasets_of(profile))
    assert table["seeds"].eq(len(SETTINGS[profile].seeds)).all()
    assert table["delta (patient)"].tolist() == [one.delta for one in SETTINGS[profile].datasets.values()]


# --- the trials ---


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm not in TUNED_AS])
def test_every_arm_is_tuned_as_much(arm):
    trials = trials_of(arm)
    tried = {tuple(trial.values()) for trial in trials}
    assert len(trials) == len(tried) == 3
    if arm in ("hospital_few", "hospital_many"):
        assert tried == {(RATES[1], norm) for norm in HOSPITAL_NORMS}
    else:
        assert tried == {(rate,) for rate in (PATIENT_RATES if arm.startswith("patient") else RATES)}


@pytest.mark.parametrize("arm", TUNED_AS)
def test_what_is_not_tuned_takes_the_choice_of_an_arm_that_is(arm):
    """Of as many hospitals, of the same unit or, where the clip adapts by itself, of none."""
    other = TUNED_AS[arm]
    assert other not in TUNED_AS
    own, theirs = (privacy_config("paper", "chest_xray", name, 0, **UNTUNED[name]) for name in (arm, other))
    assert own.num_clients == theirs.num_clients and own.client_epochs_per_round == theirs.client_epochs_per_round
    assert own.privacy_unit == theirs.privacy_unit or own.adaptive_clipping
    assert all(set(trial) == {"client_learning_rate"} for trial in trials_of(other))


def test_trials_are_runs_of_a_seed_of_their_own():
    for profile, dataset in ALL:
        configs = tuning_configs(profile, dataset)
        if not SETTINGS[profile].tuned:
            assert configs == []
            continue
        arms = [arm for arm in arms_of(profile, dataset) if arm not in TUNED_AS]
        assert [arm_of(config) for config in configs] == [arm for arm in arms for _ in range(3)]
        assert {config.seed for config in configs} == {TUNING_SEED}
        assert len({config.model_dump_json() for config in configs}) == len(configs)


@pytest.fixture
def scores(monkeypatch):
    """Validation scores by setting; None diverges, with a score before it. The runs that were asked for are noted."""
    table, asked = {}, []

    def made_run(config, *, experiment, progress, keep_diverged=False):
        assert experiment == PRIVACY_TUNING and keep_diverged and config.seed == TUNING_SEED
        asked.append(config)
        value = table[config.client_learning_rate, config.clipping_norm]
        environment = {"selected_round": {"all": 2}} | ({"diverged_at_round": {"all": 3}} if value is None else {})
        rows = [(2, "all", "validation", "balanced_accuracy", 0.99 if value is None else value),
                (1, "all", "validation", "balanced_accuracy", 0.999), (2, "all", "test", "balanced_accuracy", 0.01)]
        metrics = pd.DataFrame(rows, columns=["round", "client", "split", "metric", "value"])
        return RunRecord(config.model_dump(), metrics, pd.DataFrame(), environment, Path("made"))

    monkeypatch.setattr(plans, "run", made_run)
    return table, asked


@pytest.mark.parametrize(("profile", "dataset"), PAPER)
def test_the_best_trial_on_validation_data_is_taken(profile, dataset, scores):
    table, asked = scores
    low, middle, high = RATES
    table.update({(low, None): 0.7, (middle, None): 0.8123456, (high, None): 0.6})
    fields, facts = tuned(profile, dataset, "none")
    assert fields == {"client_learning_rate": middle}
    assert facts == {"tuning": {"seed": TUNING_SEED, "trials": [
        {"client_learning_rate": low, "score": 0.7}, {"client_learning_rate": middle, "score": 0.8123},
        {"client_learning_rate": high, "score": 0.6},
    ]}}  # fmt: skip
    assert [config.client_learning_rate for config in asked] == [low, middle, high]
    assert {arm_of(config) for config in asked} == {"none"}


def test_a_diverged_trial_is_out_though_it_was_best_before(scores):
    table, _ = scores
    table.update({(RATES[1], norm): score for norm, score in zip(HOSPITAL_NORMS, (0.5, 0.6, None), strict=True)})
    fields, facts = tuned("paper", "chest_xray", "hospital_few")
    assert fields == {"client_learning_rate": RATES[1], "clipping_norm": HOSPITAL_NORMS[1]}
    assert [trial["score"] for trial in facts["tuning"]["trials"]] == [0.5, 0.6, None]
    # What is chosen is a configuration of the arm.
    assert arm_of(privacy_config("paper", "chest_xray", "hospital_few", 0, **fields)) == "hospital_few"


def test_trials_that_all_diverge_are_an_error(scores):
    table, _ = scores
    table.update({(rate, None): None for rate in RATES})
    with pytest.raises(TrainingError, match="brain_mri longer: training diverged in each of 3 trials"):
        tuned("paper", "brain_mri", "longer")


@pytest.mark.parametrize("arm", TUNED_AS)
def test_arms_that_are_not_tuned_take_the_settings_of_another(arm, scores):
    table, asked = scores
    norms = {privacy_plan.PATIENT_NORM, None}
    table.update({(rate, norm): rate for rate in (*RATES, *PATIENT_RATES) for norm in norms})
    found = tuned("paper", "chest_xray", arm)
    assert {arm_of(config) for config in asked} == {TUNED_AS[arm]} and len(asked) == 3
    assert found == tuned("paper", "chest_xray", TUNED_AS[arm])
    rates = PATIENT_RATES if TUNED_AS[arm].startswith("patient") else RATES
    assert found[0] == {"client_learning_rate": max(rates)}
    assert arm_of(privacy_config("paper", "chest_xray", arm, 0, **found[0])) == arm


@pytest.mark.parametrize("profile", ["smoke", "quick"])
def test_where_nothing_is_tuned_nothing_is_trained(profile, scores):
    for arm in arms_of(profile, "phantom_chest"):
        assert tuned(profile, "phantom_chest", arm) == (UNTUNED[TUNED_AS.get(arm, arm)], {})
    facts = tuning_facts(profile, "phantom_chest")
    assert facts(configs_06(profile, "phantom_chest")[0]) == {"arm": "none"} and not scores[1]


def test_a_record_says_how_its_settings_were_chosen(scores):
    table, _ = scores
    norms = (None, privacy_plan.PATIENT_NORM, *HOSPITAL_NORMS)
    table.update({(rate, norm): rate for rate in (*RATES, *PATIENT_RATES) for norm in norms})
    facts = tuning_facts("paper", "chest_xray")
    for config in configs_06("paper", "chest_xray")[: len(ARMS)]:
        found = facts(config)
        assert found["arm"] == arm_of(config) and len(found["tuning"]["trials"]) == 3
        best = max(found["tuning"]["trials"], key=lambda trial: trial["score"])
        assert all(getattr(config, name) == value for name, value in best.items() if name != "score")


# --- the shadow models ---


@pytest.mark.parametrize(("profile", "dataset"), ALL)
def test_shadow_models_are_numbered_and_of_their_arm(profile, dataset, untuned):
    configs = shadow_configs(profile, dataset)
    wanted = [(arm, n) for arm, number in SETTINGS[profile].membership_arms.items() for n in range(number)]
    assert [(arm_of(config), config.shadow) for config in configs] == wanted
    assert all(config.seed == config.shadow for config in configs)
    for config in configs:
        arm = arm_of(config)
        whole = privacy_config(profile, dataset, arm, config.seed, **UNTUNED[arm])
        # Everything else is as in the arm; half of the patients a step, since there are half as many.
        batch = whole.client_batch_size // 2 if config.privacy_unit == "patient" else whole.client_batch_size
        assert config == whole.model_copy(update={"shadow": config.shadow, "client_batch_size": batch})


def test_shadow_models_keep_the_patients_rate_and_noise(untuned):
    """Half of the patients, half of them a step: the share of a step, and so the noise, is that of the arm."""
    data = made_patients(3000, size_px=1, most_images=1)
    whole = privacy_config("quick", "phantom_chest", "patient_8", 0, **UNTUNED["patient_8"])
    shadow = shadow_config("quick", "phantom_chest", "patient_8", 0)
    one, other = (noise_of(config, data, share_out(data, config)) for config in (whole, shadow))
    assert other.num_units == pytest.approx(one.num_units / 2, rel=0.1)
    # The smallest hospital's half is not a half to the patient.
    assert other.terms.rate == pytest.approx(one.terms.rate, rel=0.1)
    assert other.noise_multiplier == pytest.approx(one.noise_multiplier, rel=0.05)
    assert (other.terms.delta, other.terms.unit) == (one.terms.delta, "patient")


def test_a_step_of_a_shadow_model_has_a_patient(untuned, monkeypatch):
    small = dataclasses.replace(SETTINGS["smoke"].datasets["phantom_chest"], patients_per_step=1)
    monkeypatch.setitem(SETTINGS["smoke"].datasets, "phantom_chest", small)
    assert shadow_config("smoke", "phantom_chest", "patient_8", 2).client_batch_size == 1


def test_shadows_of_one_number_train_on_the_same_patients_under_every_protection(untuned):
    data = made_patients(200, size_px=1)
    trained = [
        np.sort(np.concatenate(share_out(data, shadow_config("quick", "phantom_chest", arm, 1)).train))
        for arm in ("none", "patient_8")
    ]
    np.testing.assert_array_equal(*trained)
