"""Notebook 07's plan, what a configuration may ask for, and what the server is given."""

import numpy as np
import pytest

from fl_utils.config import (
    AGGREGATOR_LABELS, ATTACK_LABELS, MIN_MARKED_PX, ConfigError, ExperimentConfig, make_config,
)
from fl_utils.data.markers import mark
from fl_utils.data.partition import PartitionError
from fl_utils.experiments import poisoning_plan, poisoning_views
from fl_utils.experiments.hospitals import share_out
from fl_utils.experiments.plans import TUNING_SEED
from fl_utils.experiments.poisoning_plan import SETTINGS, STRENGTHS, cell_config, cells, configs_07, late_score, overview
from fl_utils.experiments.robust_learner import AttackJudge, attackers_of, factory_of, root_of, shared_trainer
from fl_utils.experiments.run import data_of
from fl_utils.learning.local import LocalSettings
from fl_utils.learning.rounds import View
from fl_utils.models.classifiers import build_model

BASE = {
    "dataset": "phantom_brain", "method": "fedavg", "partition": "iid", "num_clients": 10, "seed": 0, "profile": "smoke",
    "total_rounds": 2, "client_learning_rate": 0.1, "aggregator": "mean",
}  # fmt: skip
FLIP = {"attack": "sign_flip", "attack_fraction": 0.3, "attack_strength": 2.0}


@pytest.fixture
def untuned(monkeypatch):
    monkeypatch.setattr(poisoning_plan, "tuned", lambda profile, progress=False: (0.1, {}))


# --- the configuration ---


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"aggregator": None, **FLIP}, "without an aggregator; set one"),
        ({"attack": "label_flip"}, "an attack needs a fraction"),
        ({"attack_fraction": 0.3}, "an attack needs a fraction, and without one there is neither"),
        ({"attack_schedule": "changing"}, "attack_schedule 'changing' with attack None"),
        ({"attack": "label_flip", "attack_fraction": 0.04}, "which is none; expected at least 0.1"),
        ({**FLIP, "attack_strength": None}, "attack_strength is None with attack 'sign_flip'"),
        ({"attack": "label_flip", "attack_fraction": 0.3, "attack_strength": 2.0}, "and to no other"),
        ({"attack": "backdoor", "attack_fraction": 0.3}, "attack_target is None with attack 'backdoor'"),
        ({"attack": "source_target", "attack_fraction": 0.3, "attack_source": 1, "attack_target": 1}, "expected two classes"),
        ({"aggregator": "krum"}, "assumed_attackers is None with aggregator 'krum'"),
        ({"assumed_attackers": 3}, "assumed_attackers is 3 with aggregator 'mean'"),
        ({"aggregator": "krum", "assumed_attackers": 5}, "5 of 10 hospitals; expected less than half"),
        ({"aggregator": "fltrust"}, "root_examples is None"),
        ({"method": "scaffold", "client_momentum": 0.0}, "for classifiers without BatchNorm and methods 'fedavg' and 'fedprox'"),
        ({"model": "norm_cnn_batch"}, "without BatchNorm"),
        ({"clients_per_round": 5}, "5 of 10 hospitals a round; the server must see the update of each"),
        ({"encrypted": True}, "encrypted True"),
        (
            {"attack": "backdoor", "attack_fraction": 0.3, "attack_target": 1, "image_size_px": MIN_MARKED_PX - 1},
            "its marker needs at least 28",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(fields, said):
    with pytest.raises(ConfigError) as error:
        make_config(**BASE | fields)
    assert said in str(error.value)


def test_the_fields_leave_the_names_of_older_records_alone():
    fields = ("aggregator", "attack", "attack_fraction", "attack_schedule", "attack_strength", "attack_source", "attack_target",
              "assumed_attackers", "root_examples")  # fmt: skip
    plain = make_config(**BASE | {"aggregator": None}).model_dump(exclude_defaults=True)
    assert not set(fields) & set(plain)
    assert all(ExperimentConfig.model_fields[name].default in (None, "fixed") for name in fields)


# --- the plan ---


@pytest.mark.parametrize("profile", SETTINGS)
def test_every_cell_is_run_once_in_every_seed(profile, untuned):
    configs, settings = configs_07(profile), SETTINGS[profile]
    assert len({config.model_dump_json() for config in configs}) == len(configs)
    assert len(configs) == len(list(cells(profile))) * len(settings.seeds) == overview(profile)["runs"].sum()
    assert TUNING_SEED not in settings.seeds
    clean = {(c.partition, c.aggregator) for c in configs if c.attack is None}
    # What is attacked is also run without an attack, and so is the mean, with which all is compared.
    assert clean >= {(c.partition, c.aggregator) for c in configs} | {(c.partition, "mean") for c in configs}
    for config in configs:
        assert config.aggregator in AGGREGATOR_LABELS and (config.attack or "clean") in ATTACK_LABELS
        if config.assumed_attackers is not None:  # Krum's guarantee
            assert config.num_clients >= 2 * config.assumed_attackers + 3


def test_paper_covers_what_notebook_07_speaks_of(untuned):
    configs = configs_07("paper")
    assert {c.aggregator for c in configs} == set(AGGREGATOR_LABELS)
    assert {c.attack for c in configs} >= set(STRENGTHS) | {"label_flip", "source_target", "backdoor", "replacement"}
    assert {c.attack_fraction for c in configs} >= {0.1, 0.3} and {c.partition for c in configs} == {"iid", "dirichlet"}


def test_a_replacement_is_as_strong_as_replacing_asks():
    config = cell_config("paper", 0, attack="replacement", aggregator="mean", client_learning_rate=0.1, fraction=0.3)
    assert config.attack_strength == pytest.approx(10 / 3) and config.num_attackers == 3


def test_rates_are_tuned_on_another_seed_without_an_attack():
    trials = poisoning_plan.tuning_configs("paper")
    assert {c.client_learning_rate for c in trials} == set(poisoning_plan.RATES)
    assert {(c.seed, c.attack, c.aggregator) for c in trials} == {(TUNING_SEED, None, "mean")}
    assert poisoning_plan.tuning_configs("quick") == [] and poisoning_plan.tuned("quick")[1] == {}


# --- what the server is given, and what is judged ---


def test_the_servers_images_are_of_the_validation_part_and_as_many_steps(folders):
    config = make_config(**BASE | {"aggregator": "fltrust", "root_examples": 20, "image_size_px": 28, "num_images": 400})
    data = data_of(config)
    hospitals = share_out(data, config)
    root = root_of(config, data, hospitals)
    assert len(root.images) == len(root.labels) == 20
    validation = {image.tobytes() for image in data.images[hospitals.split.validation]}
    assert all(image.tobytes() in validation for image in root.images)
    assert root.epochs == max(1, round(np.mean([len(own) for own in hospitals.train]) / 20))
    with pytest.raises(PartitionError, match="root_examples is 5000"):
        root_of(make_config(**config.model_dump() | {"root_examples": 5000}), data, hospitals)


def test_the_judge_scores_recall_and_marked_images(folders):
    config = make_config(**BASE | {"image_size_px": 28, "num_images": 200})
    data = data_of(config)
    test = share_out(data, config).split.test
    views = [View("all", "test", test)]
    model = build_model("small_cnn", data.images.shape[1:], data.num_classes, seed=1)
    judge = AttackJudge(model, data, views, test, None)
    rows = {(split, metric): value for _, split, metric, value in judge.score(model.get_weights())[0]}
    called = np.asarray(model(mark(data.images[test]).astype(np.float32) / 255)).argmax(1)
    plain = np.asarray(model(data.images[test].astype(np.float32) / 255)).argmax(1)
    for k in range(data.num_classes):
        own = data.labels[test] == k
        assert rows[f"true_{k}", "accuracy"] == pytest.approx((plain[own] == k).mean())
        assert rows[f"marked_{k}", "accuracy"] == pytest.approx((called[~own] == k).mean())
    splits = {view.split for view in AttackJudge(model, data, views, test, 2).views}
    assert splits == {"test", "true_0", "true_1", "true_2", "true_3", "marked_2"}


def test_a_trainer_is_traced_once_for_all_runs_of_a_process():
    settings = LocalSettings(batch_size=4)
    assert shared_trainer("small_cnn", (28, 28, 1), 4, settings) is shared_trainer("small_cnn", (28, 28, 1), 4, settings)
    other = LocalSettings(batch_size=8)
    assert shared_trainer("small_cnn", (28, 28, 1), 4, settings) is not shared_trainer("small_cnn", (28, 28, 1), 4, other)


def test_every_rule_has_a_factory():
    for name in AGGREGATOR_LABELS:
        assert factory_of(name, num_clients=10, assumed_attackers=3) is not None


def test_late_scores_are_means_of_the_last_rounds(untuned):
    import pandas as pd

    from fl_utils.records import RunRecord

    rows = [(number, "all", "validation", "balanced_accuracy", number / 10) for number in range(1, 9)]
    rows += [(number, "0", "validation", "balanced_accuracy", 0.0) for number in range(1, 9)]
    metrics = pd.DataFrame(rows, columns=["round", "client", "split", "metric", "value"])
    record = RunRecord({}, metrics, pd.DataFrame(), {}, poisoning_plan.__file__)
    assert late_score(record) == pytest.approx(np.mean([0.5, 0.6, 0.7, 0.8]))


def test_bad_images_are_changed_ones(folders):
    images, rows, names = poisoning_views.bad_images("smoke", per_row=4)
    assert len(names) == 4 and np.bincount(rows).tolist() == [4, 4, 4, 4] and images.dtype == np.uint8
    assert np.array_equal(images[rows == 2], 255 - images[rows == 0])
    assert attackers_of(make_config(**BASE), 1) == []
