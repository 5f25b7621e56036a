"""Protected runs: what is refused, the noise that a target epsilon asks for, the budget, halves for shadow models."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_utils import records
from fl_utils.config import NUM_SHADOWS, PRIVACY_FIELDS, ConfigError, make_config
from fl_utils.data.splits import make_split
from fl_utils.experiments.hospitals import SPLIT_SEED, Hospitals, shadows, share_out
from fl_utils.experiments.protection import ChargedLearner, Noise, facts_of, noise_of
from fl_utils.trust import noise as noise_plan
from fl_utils.trust.accounting import NOISE_TOLERANCE, epsilon_of
from fl_utils.trust.budget import PrivacyBudgetExceeded
from fl_utils.trust.terms import PrivacyTerms
from tests.unit.made_patients import made_patients

RUNS = Path(__file__).resolve().parents[2] / "results" / "runs"

PLAIN = {
    "dataset": "phantom_chest", "method": "fedavg", "partition": "iid", "num_clients": 4, "seed": 0, "profile": "smoke",
    "total_rounds": 3, "client_learning_rate": 0.1, "model": "small_cnn",
}  # fmt: skip
PRIVATE = {"epsilon": 8.0, "delta": 1e-3, "clipping_norm": 1.0}
PATIENT = PLAIN | PRIVATE | {"privacy_unit": "patient", "client_batch_size": 10}
HOSPITAL = PLAIN | PRIVATE | {"privacy_unit": "hospital"}
UNET = {
    "dataset": "hippocampus", "model": "unet", "plane": "axial", "model_width": 8, "model_depth": 3,
    "class_weighting": False,
}  # fmt: skip
FIELDS = ("privacy_unit", *PRIVACY_FIELDS, "adaptive_clipping", "encrypted", "shadow")


def refused(fields):
    with pytest.raises(ConfigError) as caught:
        make_config(**fields)
    return str(caught.value)


# --- the configuration ---


@pytest.mark.parametrize("fields", [
    PATIENT, HOSPITAL, HOSPITAL | {"adaptive_clipping": True}, PLAIN | {"encrypted": True},
    PATIENT | {"encrypted": True}, PATIENT | {"shadow": 0}, PLAIN | {"shadow": NUM_SHADOWS - 1, "clients_per_round": 2},
    HOSPITAL | {"model": "norm_cnn_group"}, PLAIN | {"shadow": 3, "encrypted": True},
])  # fmt: skip
def test_good_protections_pass_and_survive_json(fields):
    config = make_config(**fields)
    assert make_config(**json.loads(json.dumps(config.model_dump()))) == config


@pytest.mark.parametrize("field", PRIVACY_FIELDS)
@pytest.mark.parametrize("unit", ["patient", "hospital"])
def test_differential_privacy_needs_its_fields_and_nothing_else_takes_them(unit, field):
    said = "a run with differential privacy needs epsilon, delta, clipping_norm, and no other takes them"
    whole = PATIENT | {"privacy_unit": unit}
    assert f"{field} is None with privacy_unit '{unit}'; {said}" in refused(whole | {field: None})
    for other in (PLAIN, PLAIN | {"encrypted": True}):
        assert f"{field} is 0.5 with privacy_unit None; {said}" in refused(other | {field: 0.5})


@pytest.mark.parametrize(("field", "fields"), [
    ("privacy_unit", PATIENT), ("privacy_unit", HOSPITAL), ("encrypted", PLAIN | {"encrypted": True}),
    ("shadow", PLAIN | {"shadow": 0}),
])  # fmt: skip
@pytest.mark.parametrize("other", [
    {"method": "local"}, {"method": "centralized", "partition": "pooled", "num_clients": 1},
    {"method": "fedprox", "proximal_strength": 0.1}, {"method": "scaffold", "client_momentum": 0.0}, UNET,
])  # fmt: skip
def test_protection_is_for_classifiers_by_fedavg(field, fields, other):
    wrong = fields | other
    text = refused(wrong)
    assert f"{field} is {fields[field]!r} with method {wrong['method']!r} and model {wrong['model']!r}" in text
    assert "it is for classifiers with method 'fedavg'" in text


@pytest.mark.parametrize(("fields", "said"), [
    (PATIENT | {"adaptive_clipping": True}, "adaptive_clipping is for privacy_unit 'hospital', not 'patient'"),
    (PLAIN | {"adaptive_clipping": True}, "adaptive_clipping is for privacy_unit 'hospital', not None"),
    (PATIENT | {"model": "norm_cnn_batch"}, "sends BatchNorm statistics without noise; take norm_cnn_group"),
    (HOSPITAL | {"model": "norm_cnn_batch"}, "'norm_cnn_batch' sends BatchNorm statistics without noise"),
    (PATIENT | {"clients_per_round": 3}, "clients_per_round is 3 of 4; privacy is accounted"),
    (HOSPITAL | {"clients_per_round": 3}, "for rounds of all hospitals: leave it out"),
    (PLAIN | {"encrypted": True, "clients_per_round": 3}, "clients_per_round is 3 of 4"),
    (HOSPITAL | {"encrypted": True}, "the server would have to clip and noise what it cannot read"),
    (HOSPITAL | {"encrypted": True}, "take privacy_unit 'patient', whose noise is added in the hospitals"),
])  # fmt: skip
def test_protections_that_cannot_be_are_refused(fields, said):
    assert said in refused(fields)


@pytest.mark.parametrize(("field", "value", "expected"), [
    ("privacy_unit", "image", "'patient' or 'hospital'"), ("epsilon", 0.0, "greater than 0"),
    ("epsilon", float("inf"), "finite number"), ("delta", 0.0, "greater than 0"), ("delta", 1.0, "less than 1"),
    ("clipping_norm", 0.0, "greater than 0"), ("clipping_norm", float("inf"), "finite number"),
    ("shadow", -1, "greater than or equal to 0"), ("shadow", NUM_SHADOWS, f"less than {NUM_SHADOWS}"),
])  # fmt: skip
def test_a_wrong_value_says_field_expected_and_read(field, value, expected):
    text = refused(PATIENT | {field: value})
    line = next(line for line in text.splitlines() if line.strip().startswith(f"{field}:"))
    assert expected in line and f"(read {value!r})" in line


def test_records_without_protection_keep_their_names():
    """A record from before these fields existed: its name is the hash of what it was asked then."""
    folder = sorted((RUNS / "heterogeneity").glob("chest_xray_fedavg_*_s0_*"))[0]
    written = json.loads((folder / "config.json").read_text())
    assert not {*FIELDS} & set(written)
    fingerprint = json.loads((folder / "environment.json").read_text())["dataset_fingerprint"]
    config = make_config(**written)
    assert records.run_id(config, fingerprint) == folder.name
    with_defaults = make_config(**written | {name: getattr(config, name) for name in FIELDS})
    assert records.run_id(with_defaults, fingerprint) == folder.name
    asked = {name: value for name, value in config.model_dump(exclude_defaults=True).items() if name in written}
    digest = hashlib.sha256((json.dumps(asked, sort_keys=True) + fingerprint).encode()).hexdigest()[:8]
    assert folder.name.endswith(f"_s0_{digest}")


def test_each_field_makes_another_run():
    changes = (
        PLAIN, PATIENT, HOSPITAL, HOSPITAL | {"adaptive_clipping": True}, PATIENT | {"epsilon": 3.0},
        PATIENT | {"delta": 1e-4}, PATIENT | {"clipping_norm": 2.0}, PLAIN | {"encrypted": True},
        PATIENT | {"encrypted": True}, PLAIN | {"shadow": 0}, PLAIN | {"shadow": 1},
    )  # fmt: skip
    assert len({records.run_id(make_config(**change), "") for change in changes}) == len(changes)


# --- the noise ---


@pytest.fixture(scope="module")
def data():
    return made_patients(240, size_px=4)


def shared(data, **fields):
    config = make_config(**PATIENT | fields)
    return config, share_out(data, config)


def num_patients(data, hospitals):
    return [len(set(data.groups[index].tolist())) for index in hospitals.train]


@pytest.fixture(scope="module")
def patient_noise(data):
    config, hospitals = shared(data)
    return noise_of(config, data, hospitals)


@pytest.fixture(scope="module")
def hospital_noise():
    config = make_config(**HOSPITAL)
    return noise_of(config, None, None)  # neither images nor their owners matter


def test_patients_noise_is_the_smallest_that_keeps_epsilon(data, patient_noise):
    _, hospitals = shared(data)
    fewest = min(num_patients(data, hospitals))
    assert patient_noise.num_units == fewest and patient_noise.terms.unit == "patient"
    assert patient_noise.steps_per_round == round(fewest / 10) and patient_noise.terms.steps == 3 * round(fewest / 10)
    assert patient_noise.terms.rate == 10 / fewest and patient_noise.terms.sampling == "poisson"
    assert patient_noise.terms.delta == 1e-3
    assert epsilon_of(patient_noise.noise_multiplier, patient_noise.terms) <= 8
    assert epsilon_of(patient_noise.noise_multiplier - 2 * NOISE_TOLERANCE, patient_noise.terms) > 8


def test_hospitals_noise_is_the_smallest_that_keeps_epsilon(hospital_noise):
    assert hospital_noise.terms == PrivacyTerms("hospital", 1e-3, 3)
    assert (hospital_noise.steps_per_round, hospital_noise.num_units) == (1, 4)
    assert epsilon_of(hospital_noise.noise_multiplier, hospital_noise.terms) <= 8
    assert epsilon_of(hospital_noise.noise_multiplier - 2 * NOISE_TOLERANCE, hospital_noise.terms) > 8


def test_a_smaller_epsilon_and_more_rounds_ask_for_more_noise(hospital_noise):
    for fields in ({"epsilon": 1.0}, {"total_rounds": 12}, {"delta": 1e-5}):
        assert noise_of(make_config(**HOSPITAL | fields), None, None).noise_multiplier > hospital_noise.noise_multiplier


@pytest.fixture
def asked(monkeypatch):
    """The targets that noise was asked for, without the accountant's work."""
    calls = []

    def noted(epsilon, terms):
        calls.append((epsilon, terms))
        return 2.5

    monkeypatch.setattr(noise_plan, "noise_multiplier_for", noted)
    return calls


@pytest.mark.parametrize(("batch", "epochs", "rate", "steps"), [
    (10, 1, 10 / 30, 3), (10, 4, 10 / 30, 12), (12, 1, 12 / 30, 2), (30, 2, 1.0, 2), (500, 3, 1.0, 3),
])  # fmt: skip
def test_the_smallest_hospital_sets_rate_and_steps(data, asked, batch, epochs, rate, steps):
    config = make_config(**PATIENT | {"client_batch_size": batch, "client_epochs_per_round": epochs})
    split = make_split(data, kind="deduplicated", seed=SPLIT_SEED)
    # Whole patients: 30, 40 and 50 of them, whatever their images.
    bounds = (0, 50, 80, 120)
    trains = [np.flatnonzero((data.groups >= a) & (data.groups < b)) for a, b in zip(bounds, bounds[1:], strict=False)]
    noise = noise_of(config, data, Hospitals(split, trains, [], []))
    assert (noise.num_units, noise.noise_multiplier, noise.steps_per_round) == (30, 2.5, steps)
    assert noise.terms.rate == pytest.approx(rate) and noise.terms.steps == steps * config.total_rounds
    assert noise.terms.sampling == ("all" if rate == 1 else "poisson")
    assert asked == [(8.0, noise.terms)]


def test_a_delta_that_would_publish_a_patient_is_refused(data, asked):
    config, hospitals = shared(data, delta=0.05)
    fewest = min(num_patients(data, hospitals))
    with pytest.raises(ValueError, match=f"delta is 0.05 for {fewest} patients; expected less"):
        noise_of(config, data, hospitals)
    with pytest.raises(ValueError, match="delta is 0.25 for 4 hospitals; expected less than 1/4"):
        noise_of(make_config(**HOSPITAL | {"delta": 0.25}), data, hospitals)
    assert not asked


def test_runs_without_differential_privacy_have_no_noise(data):
    config, hospitals = make_config(**PLAIN), shared(data)[1]
    with pytest.raises(ValueError, match="no differential privacy: its privacy_unit is None"):
        noise_of(config, data, hospitals)
    assert facts_of(config, data, hospitals) == {}
    assert facts_of(make_config(**PLAIN | {"encrypted": True}), data, hospitals) == {}


def test_the_record_says_what_epsilon_means(data, patient_noise):
    config, hospitals = shared(data)
    facts = facts_of(config, data, hospitals)["privacy"]
    assert 7.9 < facts["epsilon"] <= 8 and facts["noise_multiplier"] == round(patient_noise.noise_multiplier, 4)
    assert (facts["steps"], facts["num_units"]) == (patient_noise.terms.steps, patient_noise.num_units)
    sums = f"over {patient_noise.terms.steps} noisy sums"
    for part in ("one patient", "added or removed", "0.001", sums, "(Poisson)"):
        assert part in facts["statement"]


# --- the budget ---


class Rounds:
    """A learner that only notes what it is asked."""

    def __init__(self):
        self.done, self.restored = [], None

    def do_round(self, round_num):
        self.done.append(round_num)
        return {"0": float(round_num)}

    def weights(self):
        return [np.array([len(self.done)])]

    def state(self):
        return [np.array([7])]

    def restore(self, state):
        self.restored = state


def spent_after(noise, rounds):
    steps = rounds * noise.steps_per_round
    return epsilon_of(noise.noise_multiplier, PrivacyTerms(**{**vars(noise.terms), "steps": steps}))


def test_each_round_is_charged_and_the_one_beyond_is_refused_and_not_trained(hospital_noise):
    inner = Rounds()
    learner = ChargedLearner(inner, hospital_noise, 8.0)
    assert learner.budget.spent == 0 and learner.budget.unit == "hospital" and learner.budget.delta == 1e-3
    for number in (1, 2, 3):
        assert learner.do_round(number) == {"0": float(number)}
        assert learner.budget.spent == pytest.approx(spent_after(hospital_noise, number))
    assert 7.9 < learner.budget.spent <= 8
    with pytest.raises(PrivacyBudgetExceeded, match="This round .* would bring epsilon at hospital level to"):
        learner.do_round(4)
    assert inner.done == [1, 2, 3] and learner.weights()[0] == 3
    assert learner.budget.spent == pytest.approx(spent_after(hospital_noise, 3))


def test_a_round_of_several_noisy_sums_is_charged_for_each():
    noise = Noise(PrivacyTerms("patient", 1e-3, 6), 3.0, steps_per_round=2, num_units=100)
    learner = ChargedLearner(Rounds(), noise, 8.0)
    learner.do_round(1)
    (release,) = learner.budget.state()["releases"]
    assert release["steps"] == 2 and release["noise_multiplier"] == 3.0
    learner.do_round(2)
    (release,) = learner.budget.state()["releases"]
    assert release["steps"] == 4 and learner.budget.spent == pytest.approx(spent_after(noise, 2))


def test_too_little_noise_is_refused_before_the_first_round():
    inner = Rounds()
    learner = ChargedLearner(inner, Noise(PrivacyTerms("hospital", 1e-3, 3), 0.2, 1, 4), 8.0)
    with pytest.raises(PrivacyBudgetExceeded):
        learner.do_round(1)
    assert inner.done == [] and learner.budget.spent == 0


def test_after_a_resume_the_rounds_of_before_are_charged_with_the_first(hospital_noise):
    inner = Rounds()
    learner = ChargedLearner(inner, hospital_noise, 8.0)
    learner.restore(learner.state())
    assert inner.restored == [np.array([7])] and learner.budget.spent == 0
    learner.do_round(3)
    assert learner.budget.spent == pytest.approx(spent_after(hospital_noise, 3))
    with pytest.raises(PrivacyBudgetExceeded):
        learner.do_round(4)
    resumed_too_late = ChargedLearner(inner, hospital_noise, 8.0)
    with pytest.raises(PrivacyBudgetExceeded):
        resumed_too_late.do_round(4)
    assert inner.done == [3]


@settings(deadline=None, max_examples=40)
@given(numbers=st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_what_is_spent_depends_on_the_last_round_that_was_done(hospital_noise, numbers):
    """Whatever is done twice, left out or refused: never more than the budget, never less than what was trained."""
    inner = Rounds()
    learner = ChargedLearner(inner, hospital_noise, 8.0)
    for number in numbers:
        try:
            learner.do_round(number)
        except PrivacyBudgetExceeded:
            assert number > 3
    assert inner.done == [number for number in numbers if number <= 3]
    assert learner.budget.spent == pytest.approx(spent_after(hospital_noise, max(inner.done)) if inner.done else 0)
    assert learner.budget.spent <= 8


# --- halves for shadow models ---


@settings(deadline=None, max_examples=15)
@given(num=st.integers(30, 90), most=st.integers(1, 4), seed=st.integers(0, 3))
def test_each_training_patient_is_in_half_of_the_shadows(num, most, seed):
    data = made_patients(num, size_px=1, most_images=most)
    split = make_split(data, kind="deduplicated", seed=seed)
    taken = shadows(data, split)
    assert taken.shape == (NUM_SHADOWS, len(data)) and taken.dtype == bool
    inside = np.zeros(len(data), bool)
    inside[split.train] = True
    assert not taken[:, ~inside].any()
    assert (taken[:, inside].sum(axis=0) == NUM_SHADOWS // 2).all()
    for patient in np.unique(data.groups[split.train]):  # whole patients
        of_patient = taken[:, data.groups == patient]
        assert (of_patient == of_patient[:, :1]).all()
    np.testing.assert_array_equal(taken, shadows(data, split))


@pytest.mark.parametrize(("partition", "fields"), [("iid", {}), ("dirichlet", {"dirichlet_alpha": 5.0})])
def test_a_shadow_model_trains_on_its_half_whatever_the_seed(data, partition, fields):
    for seed in (0, 5):
        whole = {"seed": seed, "partition": partition, **fields}
        plain = share_out(data, make_config(**PLAIN | whole))
        taken, seen = shadows(data, plain.split), set()
        for number in (0, 1, NUM_SHADOWS - 1):
            half = share_out(data, make_config(**PLAIN | whole | {"shadow": number}))
            for own, all_of in zip(half.train, plain.train, strict=True):
                np.testing.assert_array_equal(own, all_of[taken[number, all_of]])
            together = np.sort(np.concatenate(half.train))
            np.testing.assert_array_equal(together, np.flatnonzero(taken[number]))
            for part in ("validation", "test"):  # judged like every other run
                for one, other in zip(getattr(half, part), getattr(plain, part), strict=True):
                    np.testing.assert_array_equal(one, other)
            seen.add(together.tobytes())
        assert len(seen) == 3


def test_natural_hospitals_train_on_their_half_as_well(data):
    names = np.array(["north", "south"])[data.groups % 2]
    fields = {"partition": "natural", "num_clients": 2}
    plain = share_out(data, make_config(**PLAIN | fields), names)
    half = share_out(data, make_config(**PLAIN | fields | {"shadow": 2}), names)
    taken = shadows(data, plain.split)[2]
    for own, all_of in zip(half.train, plain.train, strict=True):
        np.testing.assert_array_equal(own, all_of[taken[all_of]])
        assert 0 < len(own) < len(all_of)
