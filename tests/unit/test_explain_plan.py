"""Notebook 04's plan, and what its marked and shuffled arms do to the images and labels that hospitals hold."""

import numpy as np
import pytest

from fl_utils.config import ConfigError, make_config
from fl_utils.data.load import load_dataset
from fl_utils.data.markers import mark, marker_mask
from fl_utils.experiments import explain_plan, grid, notebooks
from fl_utils.experiments.hospitals import as_taken, pooled, share_out

ALL = [(profile, dataset) for profile in explain_plan.SETTINGS for dataset in explain_plan.datasets_of(profile)]


@pytest.fixture(scope="module")
def chest():
    return load_dataset("phantom_chest", image_size_px=32, num_images=160)


@pytest.fixture
def without_tuning(monkeypatch):
    monkeypatch.setattr(grid, "tuned", lambda profile, dataset, method, progress: (grid.UNTUNED[method], []))


def taken(dataset, arm, seed=0):
    config = explain_plan.explain_config("smoke", "phantom_chest", arm, seed)
    hospitals = share_out(dataset, config)
    return hospitals, as_taken(dataset, hospitals, config), config


@pytest.mark.parametrize(("profile", "dataset"), ALL)
def test_every_arm_makes_as_many_passes(profile, dataset, without_tuning):
    configs = explain_plan.configs_04(profile, dataset)
    settings, arms = explain_plan.SETTINGS[profile], explain_plan.arms_of(dataset)
    assert len(configs) == len(settings.seeds) * len(arms)
    passes = {config.total_rounds * config.client_epochs_per_round for config in configs}
    assert passes == {settings.total_rounds[dataset]}
    assert len({config.model_dump_json() for config in configs}) == len(configs)
    assert {(config.image_size_px, config.num_images, config.model) for config in configs} == {
        (settings.image_size_px, settings.num_images, "small_cnn")
    }
    # Whoever is compared shares hospitals: the same number, the same partition.
    assert {(c.num_clients, c.partition) for c in configs} == {(1, "pooled"), (4, "iid")}


def test_the_published_plan_has_five_seeds_on_real_images_and_on_phantoms():
    assert explain_plan.parts_of("paper") == ("paper", "phantoms") and explain_plan.parts_of("quick") == ("quick",)
    assert notebooks.datasets_of("04", "paper") == ("brain_mri", "chest_xray", "phantom_brain", "phantom_chest")
    assert all(len(explain_plan.SETTINGS[part].seeds) == 5 for part in ("paper", "phantoms"))


def test_the_shortcut_is_for_two_classes():
    assert explain_plan.has_shortcut("phantom_chest") and explain_plan.has_shortcut("chest_xray")
    assert explain_plan.arms_of("brain_mri") == explain_plan.ARMS
    assert set(explain_plan.arms_of("chest_xray")) == {*explain_plan.ARMS, *explain_plan.MARKED_ARMS}
    with pytest.raises(KeyError):
        explain_plan.explain_config("phantoms", "phantom_brain", "fedavg_marked_1", 0)


@pytest.mark.parametrize(("arm", "number"), [("local_marked_1", 1), ("fedavg_marked_1", 1), ("fedavg_marked_4", 4),
                                             ("centralized_marked_1", 1), ("centralized_marked_4", 4)])  # fmt: skip
def test_the_sick_of_the_first_hospitals_are_marked_and_no_test_image(chest, arm, number):
    hospitals, marked, _ = taken(chest, arm)
    changed = np.flatnonzero((marked.images != chest.images).any(axis=(1, 2, 3)))
    held = np.concatenate([*hospitals.train[:number], *hospitals.validation[:number]])
    wanted = np.sort(held[chest.labels[held] == 1])
    assert len(wanted) > 5
    np.testing.assert_array_equal(changed, wanted)
    np.testing.assert_array_equal(marked.images[wanted], mark(chest.images[wanted]))
    assert not np.isin(changed, hospitals.split.test).any()
    np.testing.assert_array_equal(marked.labels, chest.labels)
    outside = ~marker_mask(32)
    np.testing.assert_array_equal(marked.images[:, outside], chest.images[:, outside])


def test_pooled_marks_are_those_that_the_hospitals_made(chest):
    """The centralized arm shares out first, so that it sees the federation's images."""
    one, marked, config = taken(chest, "centralized_marked_1")
    other, federated, _ = taken(chest, "fedavg_marked_1")
    np.testing.assert_array_equal(marked.images, federated.images)
    assert config.method == "centralized" and config.partition == "iid"
    np.testing.assert_array_equal(np.sort(np.concatenate(other.train)), np.sort(pooled(one).train[0]))


@pytest.mark.parametrize("seed", [0, 1])
def test_shuffled_labels_keep_their_counts_in_each_part_and_spare_the_test_set(chest, seed):
    hospitals, shuffled, _ = taken(chest, "shuffled", seed)
    for index in (hospitals.split.train, hospitals.split.validation):
        np.testing.assert_array_equal(np.bincount(shuffled.labels[index]), np.bincount(chest.labels[index]))
    test = hospitals.split.test
    np.testing.assert_array_equal(shuffled.labels[test], chest.labels[test])
    train = hospitals.split.train
    moved = (shuffled.labels[train] != chest.labels[train]).mean()
    shares = np.bincount(chest.labels[train]) / len(train)
    # A random deal changes 1 - sum of squared shares of the labels.
    assert moved == pytest.approx(1 - (shares**2).sum(), abs=0.2) and moved > 0.2
    assert shuffled.images is chest.images
    np.testing.assert_array_equal(taken(chest, "shuffled", seed)[1].labels, shuffled.labels)


def test_shuffled_labels_depend_on_the_seed(chest):
    assert (taken(chest, "shuffled", 0)[1].labels != taken(chest, "shuffled", 1)[1].labels).any()


def test_arms_without_marks_hold_the_images_as_they_are(chest):
    assert all(taken(chest, arm)[1] is chest for arm in ("centralized", "local", "fedavg"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"marked_hospitals": 5}, "marked_hospitals is 5 with 4 hospitals"),
        ({"marked_hospitals": -1}, "marked_hospitals"),
        ({"method": "centralized", "partition": "pooled", "num_clients": 1, "marked_hospitals": 1}, "marked_hospitals is 1"),
        ({"method": "centralized"}, "partition 'iid' was given with method 'centralized'"),
        ({"shuffled_labels": "perhaps"}, "shuffled_labels"),
    ],
)
def test_configurations_that_cannot_be(changes, said):
    fields = explain_plan.explain_config("smoke", "phantom_chest", "fedavg", 0).model_dump()
    with pytest.raises(ConfigError, match=said):
        make_config(**fields | changes)
