"""From configuration to record: who holds what, which runs a profile has, and what a run leaves behind."""

import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from fl_utils import paths, records, seeding
from fl_utils.config import ConfigError, ExperimentConfig
from fl_utils.data import DataError, PartitionError
from fl_utils.data.load import load_dataset
from fl_utils.experiments import plans
from fl_utils.experiments import run as run_module
from fl_utils.experiments.hospitals import share_out
from fl_utils.experiments.run import dataset_of, run
from fl_utils.experiments.training import num_parameters
from fl_utils.learning.centralized import CentralizedLearner
from fl_utils.learning.errors import TrainingError
from fl_utils.learning.local import LocalSettings, LocalTrainer, class_weights, make_predictor
from fl_utils.models.classifiers import build_model

METHODS = ("centralized", "local", "fedavg")
PARTS = ("train", "validation", "test")
pytestmark = pytest.mark.usefixtures("folders")


def smoke(method, **fields):
    return plans.base_config("smoke", "phantom_brain", method=method, **fields)


@pytest.fixture(scope="module")
def dataset():
    """96 phantoms in groups of up to three, as if patients had several images."""
    phantoms = load_dataset("phantom_brain", image_size_px=24, num_images=96)
    return dataclasses.replace(phantoms, groups=np.random.default_rng(0).integers(0, 60, 96))


# Who holds what


@pytest.mark.parametrize("num_clients", [1, 4, 5])
def test_hospitals_share_every_part_and_keep_groups_whole(dataset, num_clients):
    shared = share_out(dataset, smoke("fedavg", num_clients=num_clients))
    for part in PARTS:
        hospitals, whole = getattr(shared, part), getattr(shared.split, part)
        assert len(hospitals) == num_clients and all(len(index) for index in hospitals)
        assert np.array_equal(np.sort(np.concatenate(hospitals)), np.sort(whole))  # a union, and disjoint
        owners = [set(dataset.groups[index]) for index in hospitals]
        assert sum(map(len, owners)) == len(set().union(*owners))
    everyone = [set(dataset.groups[getattr(shared.split, part)]) for part in PARTS]
    assert sum(map(len, everyone)) == len(set().union(*everyone))


def test_pooled_is_one_holder_of_the_same_split(dataset):
    pooled, shared = share_out(dataset, smoke("centralized")), share_out(dataset, smoke("fedavg"))
    for part in PARTS:
        (index,) = getattr(pooled, part)
        assert np.array_equal(index, getattr(shared.split, part))


def test_seed_deals_anew_and_the_test_set_stays(dataset):
    first, again, other = (share_out(dataset, smoke("local", seed=seed)) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first.train, again.train, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first.train, other.train, strict=True))
    assert np.array_equal(first.split.test, other.split.test)


def test_local_and_federated_hospitals_are_the_same(dataset):
    local, federated = share_out(dataset, smoke("local")), share_out(dataset, smoke("fedavg"))
    assert all(np.array_equal(a, b) for a, b in zip(local.train, federated.train, strict=True))


def test_fewer_images_than_hospitals(dataset):
    """The message names the part that is too small: 96 images would do for 30 hospitals."""
    with pytest.raises(PartitionError, match=r"phantom_brain, \w+ part: \d+ images in \d+ groups .* among 30 hospitals"):
        share_out(dataset, smoke("fedavg", num_clients=30))
    with pytest.raises(PartitionError, match="fewer hospitals or more images"):
        run(smoke("local", num_clients=200), experiment="none", progress=False)
    assert not (paths.runs_root("smoke") / "none").exists()


# Which runs a profile has


@pytest.fixture
def without_tuning(monkeypatch):
    monkeypatch.setattr(plans, "tuned", lambda *_, **__: {"client_learning_rate": 0.01, "augment": True})


@pytest.mark.parametrize("profile", sorted(plans.PROFILES))
def test_every_configuration_of_every_profile(profile, without_tuning):
    """All are valid, all differ, all are the profile's, and all seeds are there for each arm."""
    seeds = plans.settings_of(profile).seeds
    for name in plans.datasets_of(profile):
        first, second = plans.configs_01(profile, name), plans.configs_02(profile, name)
        for configs in (first, second):
            assert all(ExperimentConfig(**config.model_dump()) == config for config in configs)
            assert len({records.run_id(config, "") for config in configs}) == len(configs)
            arms = pd.Series([config.seed for config in configs]).groupby(
                [json.dumps(config.model_dump(exclude={"seed"})) for config in configs]
            )
            assert all(tuple(sorted(arm)) == seeds for _, arm in arms)
        assert {config.profile for config in first + second} == {profile}
        assert {config.model for config in first} == {"seed_cnn", "residual_gn"}
        assert {config.method for config in second} == set(METHODS)
        assert {config.num_clients for config in second if config.method == "local"} == {4}
        federated = {(config.num_clients, config.clients_per_round) for config in second if config.method == "fedavg"}
        # Three of five hospitals a round: left out of the published sweep for their time.
        assert (4, None) in federated and ((5, 3) in federated) == (profile != "paper")
        assert any(config.split == "published" for config in second) == (name == "brain_mri")
        # Both notebooks draw on the same centralized runs.
        assert {c for c in second if c.method == "centralized" and c.split == "deduplicated"} <= set(first)


def test_paper_has_five_seeds_on_real_data_and_tunes_on_another():
    settings = plans.settings_of("paper")
    assert len(settings.seeds) == 5 and settings.tuned and plans.TUNING_SEED not in settings.seeds
    assert plans.datasets_of("paper") == ("brain_mri", "chest_xray")
    assert not any(name.startswith("phantom") != (profile != "paper") for profile in plans.PROFILES for name in plans.datasets_of(profile))


@pytest.mark.parametrize("method", METHODS)
def test_tuning_tries_the_same_rates_for_each_method(method):
    configs = plans.tuning_configs("paper", "brain_mri", method)
    assert [config.client_learning_rate for config in configs] == list(plans.LEARNING_RATES)
    assert {config.seed for config in configs} == {plans.TUNING_SEED}


def test_unknown_profile_or_data_set():
    with pytest.raises(ConfigError, match="'huge' is not known; expected one of smoke, quick, paper"):
        plans.settings_of("huge")
    with pytest.raises(ConfigError, match="'smoke' has no data set 'brain_mri'; it has phantom_brain"):
        plans.base_config("smoke", "brain_mri", method="local")
    with pytest.raises(ConfigError, match="momentum: no such field"):
        smoke("fedavg", momentum=0.5)


@pytest.mark.parametrize("num_clients", [4, 5])
@pytest.mark.parametrize("epochs", [2, 10])
def test_equal_steps(dataset, num_clients, epochs):
    """Gradient steps one after another agree within the rounding of batches, examples within that of shares."""
    index = {method: share_out(dataset, smoke(method, num_clients=1 if method == "centralized" else num_clients)).train for method in METHODS}
    batch_size = smoke("local").client_batch_size
    steps, examples = {}, {}
    for method in METHODS:
        total_rounds, passes = plans.equal_steps(method, num_clients if method != "centralized" else 1, epochs)
        steps[method] = [total_rounds * passes * math.ceil(len(part) / batch_size) for part in index[method]]
        examples[method] = [total_rounds * passes * len(part) for part in index[method]]
    assert steps["local"] == steps["fedavg"] and examples["local"] == examples["fedavg"]
    (pooled,), passes = steps["centralized"], epochs * num_clients
    # Each pass may end in one smaller batch: at most one step more or less a pass than the even share.
    assert all(abs(alone - pooled) <= passes for alone in steps["local"])
    assert sum(examples["local"]) == num_clients * examples["centralized"][0]


def record_of(config, score):
    """What tuning reads of a record: the validation curve and the selected round."""
    rows = [(1, "all", "validation", "balanced_accuracy", score), (1, "all", "test", "balanced_accuracy", 1 - score),
            (2, "all", "validation", "balanced_accuracy", 0.0)]
    return records.RunRecord(config.model_dump(), pd.DataFrame(rows, columns=records.METRIC_COLUMNS), pd.DataFrame(),
                             {"selected_round": {"all": 1}}, None)


def test_tuning_chooses_by_validation_and_leaves_out_what_diverged(monkeypatch):
    scores = {0.005: 0.6, 0.015: 0.7}

    def fake(config, **_):
        if config.client_learning_rate not in scores:
            raise TrainingError("Round 1: a value that is not finite.")
        return record_of(config, scores[config.client_learning_rate] - 0.1 * config.augment)

    monkeypatch.setattr(plans, "run", fake)
    assert plans.tuned("paper", "brain_mri", "fedavg", progress=False) == {"client_learning_rate": 0.015, "augment": False}
    scores.clear()
    with pytest.raises(TrainingError, match="diverged at each of"):
        plans.tuned("paper", "brain_mri", "fedavg", progress=False)


def test_nothing_is_tuned_on_phantoms(monkeypatch):
    monkeypatch.setattr(plans, "run", lambda *_, **__: pytest.fail("trained"))
    assert plans.tuned("smoke", "phantom_brain", "local")["client_learning_rate"] == plans.FIXED_LEARNING_RATE["seed_cnn"]


# What a run leaves behind


@pytest.fixture(scope="module")
def smoke_runs(folders):
    return {method: run(smoke(method), experiment="unit", progress=False) for method in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_smoke_run_writes_the_expected_record(smoke_runs, method):
    record = smoke_runs[method]
    config, data = record.config, dataset_of("phantom_brain", 24, 96)
    assert ExperimentConfig(**config) == smoke(method)
    assert record.path == paths.runs_root("smoke") / "unit" / records.run_id(smoke(method), data.fingerprint)
    rounds, clients, final = config["total_rounds"], config["num_clients"], 4 + 2 * data.num_classes
    models = clients if method == "local" else 1
    views = {"centralized": 2, "local": 3, "fedavg": 2 + 2 * clients}[method]
    losses = clients if method == "fedavg" else 1
    assert len(record.metrics) == models * (rounds * (losses + 3 * views) + final)
    assert list(record.metrics.columns) == records.METRIC_COLUMNS and record.metrics["value"].notna().all()
    assert set(record.metrics["round"]) == set(range(1, rounds + 1))
    names = [str(client) for client in range(clients)]
    assert set(record.metrics["client"]) == {"centralized": {"all"}, "local": set(names), "fedavg": {"all", *names}}[method]
    split = share_out(data, smoke(method)).split
    assert len(record.predictions) == models * len(split.test)
    assert set(record.predictions["example"]) == set(split.test) and set(record.predictions["split"]) == {"test"}
    assert np.allclose(record.predictions[[f"p{k}" for k in range(4)]].sum(axis=1), 1, atol=1e-4)
    assert np.array_equal(record.predictions["label"], data.labels[record.predictions["example"]])
    environment = record.environment
    assert environment["dataset_fingerprint"] == data.fingerprint and environment["synthetic"] is True
    assert sum(map(sum, environment["class_counts"]["train"])) == len(split.train)
    assert environment["num_parameters"] == build_model("seed_cnn", (24, 24, 1), 4).count_params()
    assert "diverged_at_round" not in environment
    assert set(environment["selected_round"]) == (set(names) if method == "local" else {"all"})


@pytest.mark.parametrize("method", METHODS)
def test_predictions_give_the_metrics_of_the_selected_round(smoke_runs, method):
    """What is published can be computed again from the committed predictions."""
    record = smoke_runs[method]
    for client, rows in record.predictions.groupby("client"):
        selected = record.environment["selected_round"][client]  # noqa: F841 (read by the queries below)
        accuracy = (rows[[f"p{k}" for k in range(4)]].to_numpy().argmax(axis=1) == rows["label"]).mean()
        test = record.metrics.query("client == @client and split == 'test' and round == @selected and metric == 'accuracy'")
        assert test["value"].item() == pytest.approx(accuracy, abs=1e-6)
        curve = record.metrics.query("client == @client and split == 'validation' and metric == 'balanced_accuracy'")
        assert curve["value"].max() == curve.query("round == @selected")["value"].item()


def test_all_methods_start_alike_and_share_the_test_set(smoke_runs):
    tests = [frozenset(record.predictions["example"]) for record in smoke_runs.values()]
    assert len(set(tests)) == 1 and len({record.environment["num_parameters"] for record in smoke_runs.values()}) == 1


def test_only_the_selected_weights_are_kept(smoke_runs):
    assert not list(paths.checkpoints_root().rglob("*.npz"))
    record = smoke_runs["fedavg"]
    with np.load(paths.cache_root() / "models" / f"{record.path.name}_all.npz") as weights:
        assert sum(weights[name].size for name in weights.files) == record.environment["num_parameters"]


@pytest.mark.parametrize("method", METHODS)
def test_record_is_loaded_instead_of_trained(smoke_runs, method, monkeypatch):
    monkeypatch.setattr(run_module, "_train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setenv("FL_UTILS_NO_TRAINING", "1")
    again = run(smoke(method), experiment="unit", progress=False)
    assert again.path == smoke_runs[method].path
    pd.testing.assert_frame_equal(again.metrics, smoke_runs[method].metrics)


def test_no_training_says_what_to_run(monkeypatch):
    monkeypatch.setenv("FL_UTILS_NO_TRAINING", "1")
    with pytest.raises(records.RecordError, match="no record of phantom_brain_local_iid_s7_.*make reproduce PROFILE=smoke"):
        run(smoke("local", seed=7), experiment="unit", progress=False)


def test_published_record_is_found_without_the_images(tmp_path, monkeypatch):
    """The committed records are read on a machine that has no real data; what has no record says what is missing."""
    monkeypatch.setenv("FL_UTILS_DATA", str(tmp_path / "nothing"))
    monkeypatch.setenv("FL_UTILS_RESULTS", str(tmp_path / "results"))
    config = plans.base_config("paper", "brain_mri", method="fedavg", client_learning_rate=0.05)
    metrics = pd.DataFrame([(1, "all", "test", "accuracy", 0.5)], columns=records.METRIC_COLUMNS)
    written = records.write_record(
        paths.runs_root("paper") / "classification", config, fingerprint="f" * 64, metrics=metrics,
        predictions=pd.DataFrame({"client": ["all"], "split": ["test"]}), duration_s=1.0,
    )
    found = run(config, experiment="classification", progress=False)
    assert found.path == written.path == tmp_path / "results" / "runs" / "classification" / written.path.name
    with pytest.raises(DataError, match="Set FL_UTILS_DATA"):
        run(config.model_copy(update={"client_learning_rate": 0.015}), experiment="classification", progress=False)


def test_cohort_of_each_round_is_the_seeds(folders):
    config = smoke("fedavg", num_clients=5, clients_per_round=3, total_rounds=4, seed=3)
    record = run(config, experiment="unit", progress=False)
    trained = record.metrics.query("split == 'train'").groupby("round")["client"].apply(set)
    for round_num in range(1, 5):
        cohort = seeding.cohort(3, round_num, num_clients=5, clients_per_round=3)
        assert trained[round_num] == {str(client) for client in cohort}
    assert len(set(map(frozenset, trained))) > 1
    # Judged is every hospital, whoever trained.
    assert set(record.metrics.query("split == 'own_test'")["client"]) == set("01234")


def test_diverged_run_leaves_no_record(folders):
    with pytest.raises(TrainingError, match="Round 1"):
        run(smoke("centralized", client_learning_rate=1e30), experiment="diverged", progress=False)
    assert not list((paths.runs_root("smoke") / "diverged").glob("*"))


def test_a_run_that_diverges_is_recorded_where_that_is_an_answer(folders, monkeypatch):
    """Hospital 1's second round gives no finite loss, whatever it learned; the others go on to their end."""
    learned = CentralizedLearner.do_round

    def do_round(learner, round_num):
        losses = learned(learner, round_num)
        return {client: math.nan if (client, round_num) == ("1", 2) else loss for client, loss in losses.items()}

    monkeypatch.setattr(CentralizedLearner, "do_round", do_round)
    config = smoke("local", total_rounds=3, client_epochs_per_round=1, seed=5)
    with pytest.raises(TrainingError, match=r"Round 2: .*client\(s\) 1"):
        run(config, experiment="diverged", progress=False)
    assert not list((paths.runs_root("smoke") / "diverged").glob("*"))

    record = run(config, experiment="diverged", progress=False, keep_diverged=True)
    assert record.environment["diverged_at_round"] == {"1": 2} and record.environment["selected_round"]["1"] == 1
    last = record.metrics.query("split == 'validation'").groupby("client")["round"].max()
    assert last.to_dict() == {"0": 3, "1": 1, "2": 3, "3": 3}
    assert record.metrics["value"].notna().all() and set(record.predictions["client"]) == set("0123")
    monkeypatch.setattr(run_module, "_train", lambda *_: pytest.fail("trained again"))
    assert run(config, experiment="diverged", progress=False).path == record.path


@pytest.mark.parametrize(
    ("model", "fields"),
    [("seed_cnn", {}), ("norm_cnn_group", {}), ("norm_cnn_batch", {}), ("norm_cnn_batch", {"norm_statistics": "dropped"})],
)
def test_the_number_of_parameters_is_what_a_hospital_sends(dataset, model, fields):
    network = build_model(model, (24, 24, 1), 4)
    sent = network.trainable_variables if fields else network.weights
    config = smoke("fedavg", model=model, client_learning_rate=0.05, **fields)
    assert num_parameters(config, dataset) == sum(math.prod(weight.shape) for weight in sent)
    averaged = sum(math.prod(weight.shape) for weight in network.non_trainable_variables)
    assert (averaged > 0) == (model == "norm_cnn_batch")


def test_sweep_runs_all_and_hands_on_the_facts(smoke_runs, folders):
    configs = [smoke(method) for method in METHODS]
    runs = plans.sweep(configs, experiment="unit", progress=False, facts=lambda config: {"never": "written"})
    assert [record.path for record in runs] == [record.path for record in smoke_runs.values()]
    assert not any("never" in record.environment for record in runs)  # they were there, and stay as they are
    (record,) = plans.sweep(
        [smoke("centralized", seed=4, total_rounds=1)], experiment="facts", progress=False,
        facts=lambda config: {"tuning": {"seed": config.seed}},
    )  # fmt: skip
    assert record.environment["tuning"] == {"seed": 4} and record.environment["synthetic"] is True


# Methods that end with a model a hospital


PERSONAL = {"client_momentum": 0.0, "client_learning_rate": 0.05, "total_rounds": 2}


def kept_weights(record):
    with np.load(paths.cache_root() / "models" / f"{record.path.name}_all.npz") as arrays:
        return [arrays[name] for name in arrays.files]


def assert_predictions(record, expected):
    """The record's test predictions are `expected` [N, K], where a column of it is kept to 5 decimals."""
    found = record.predictions[[f"p{k}" for k in range(4)]].to_numpy()
    np.testing.assert_allclose(found, expected[record.predictions["example"]], atol=2e-5)


def test_fine_tuning_is_local_training_from_fedavgs_best_model(folders):
    """Trained by hand at each hospital on its own images; each image is judged by the model of its hospital."""
    config = smoke("finetuned", model="small_cnn", personal_epochs=2, **PERSONAL)
    record = run(config, experiment="personal", progress=False)
    common = run(smoke("fedavg", model="small_cnn", **PERSONAL), experiment="personal", progress=False)
    start, data = kept_weights(record), dataset_of("phantom_brain", 24, 96)
    assert all(np.array_equal(a, b) for a, b in zip(start, kept_weights(common), strict=True))
    hospitals = share_out(data, config)
    everything = np.concatenate(hospitals.train)
    weights = class_weights(data.labels[everything], 4)
    settings = LocalSettings(config.client_batch_size, 2, config.client_learning_rate, 0.0, "shift_rotate_flip")
    expected = np.zeros((len(data), 4), np.float32)
    for client, own in enumerate(hospitals.train):
        trainer = LocalTrainer(build_model("small_cnn", (24, 24, 1), 4), settings)
        trainer.set_weights(start)
        seed = seeding.tf_seed(config.seed, "fine_tuning", client)
        trainer.run(tf.constant(data.images[own]), tf.constant(data.labels[own], tf.int32), tf.constant(weights), tf.constant(seed))
        held = hospitals.test[client]
        expected[held] = make_predictor(trainer.model)(data.images[held])
    assert_predictions(record, expected)
    assert np.abs(common.predictions["p0"] - record.predictions["p0"]).max() > 1e-3  # the tuning moved something
    # It counts as one more round; those before are FedAvg's.
    assert record.environment["selected_round"] == {"all": 3} and set(record.metrics["round"]) == {1, 2, 3}
    curve = record.metrics.query("round < 3").reset_index(drop=True)
    federated = common.metrics[common.metrics["metric"].isin(set(curve["metric"]))].reset_index(drop=True)
    pd.testing.assert_frame_equal(curve, federated)
    last = record.metrics.query("round == 3 and split == 'own_test' and metric == 'accuracy'").set_index("client")["value"]
    for client, held in enumerate(hospitals.test):
        assert last[str(client)] == pytest.approx(np.mean(expected[held].argmax(axis=1) == data.labels[held]), abs=1e-6)


@pytest.mark.parametrize("model", ["norm_cnn_group", "norm_cnn_batch"])
def test_own_norm_layers_are_judged_at_home(folders, model):
    """The kept weights are the common ones, then every hospital's own; each image is predicted by its hospital's."""
    config = smoke("local_norm", model=model, **PERSONAL)
    record = run(config, experiment="personal", progress=False)
    data, hospitals = dataset_of("phantom_brain", 24, 96), share_out(dataset_of("phantom_brain", 24, 96), config)
    network = build_model(model, (24, 24, 1), 4)
    variables = network.trainable_variables + network.non_trainable_variables
    home = [i for i, variable in enumerate(variables) if "norm" in variable.name]
    kept = kept_weights(record)
    assert len(kept) == len(variables) + 4 * len(home)
    expected = np.zeros((len(data), 4), np.float32)
    for client, held in enumerate(hospitals.test):
        own = dict(zip(home, kept[len(variables) + client * len(home) :], strict=False))
        for i, variable in enumerate(variables):
            variable.assign(own.get(i, kept[i]))
        expected[held] = make_predictor(network)(data.images[held])
    assert_predictions(record, expected)
    initial = [weight for weight in build_model(model, (24, 24, 1), 4).weights if "norm" in weight.name]
    scales = [kept[i] for i in home]
    assert sorted(map(float, map(np.sum, scales))) == sorted(float(np.sum(weight)) for weight in initial)  # never moved
