"""Notebook 03's runs as data: every configuration is valid, tuned as often as the others, and trained as long."""

import pytest

from fl_utils import records
from fl_utils.config import METHOD_FIELDS, ConfigError, ExperimentConfig
from fl_utils.experiments import grid
from fl_utils.experiments.plans import TUNING_SEED

CELLS = [(profile, dataset) for profile, settings in grid.GRIDS.items() for dataset in settings.total_rounds]


@pytest.fixture(params=range(6))
def trial(request, monkeypatch):
    """Tuning that ends with the trial of this number; nothing is trained."""

    def chosen(profile, dataset, method, model="small_cnn", progress=True):
        return (grid.TRIALS[method][request.param] if grid.GRIDS[profile].tuned else grid.UNTUNED[method]), {}

    monkeypatch.setattr(grid, "tuned", chosen)
    return request.param


def passes(config):
    """How often an image is seen by the model of its hospital, where all take part in every round."""
    return config.total_rounds * config.client_epochs_per_round


@pytest.mark.parametrize(("profile", "dataset"), CELLS)
def test_every_configuration_is_valid_and_asked_once(profile, dataset, trial):
    configs = grid.configs_03(profile, dataset, progress=False)
    assert all(ExperimentConfig(**config.model_dump()) == config for config in configs)
    assert len({records.run_id(config, "") for config in configs}) == len(configs)
    assert {(config.profile, config.dataset) for config in configs} == {(profile, dataset)}
    arms = {}
    for config in configs:
        arms.setdefault(config.model_copy(update={"seed": 0}), []).append(config.seed)
    assert all(tuple(seeds) == grid.GRIDS[profile].seeds for seeds in arms.values())
    assert TUNING_SEED not in grid.GRIDS[profile].seeds
    assert all(config.client_momentum == 0 and not config.augment for config in configs)


@pytest.mark.parametrize(("profile", "dataset"), CELLS)
def test_the_grid_is_whole_and_all_see_every_image_as_often(profile, dataset, trial):
    settings = grid.GRIDS[profile]
    arms = grid.grid_arms(profile, dataset)
    cells = {(arm["method"], arm["partition"]) for arm in arms}
    expected = {(method, partition) for method in ("local", *settings.methods) for partition in settings.partitions}
    scanners = {("centralized", "feature")} if "feature" in settings.partitions else set()
    assert cells == expected | scanners | {("centralized", "pooled")} and len(cells) == len(arms)
    configs = grid.with_settings(profile, dataset, arms, progress=False)
    assert {passes(config) for config in configs} == {settings.total_rounds[dataset]}
    assert {config.num_clients for config in configs if config.partition != "pooled"} == {grid.NUM_CLIENTS}
    # What is compared differs in its method and its tuned settings, and in nothing else.
    free = {"method", "total_rounds", "client_epochs_per_round", "client_learning_rate", "server_learning_rate", *METHOD_FIELDS}
    for partition in settings.partitions:
        rest = [config.model_dump(exclude=free) for config in configs if config.partition == partition and config.seed == 0]
        assert all(fields == rest[0] for fields in rest)


def test_beside_the_grid():
    brain, chest = (grid.beside_the_grid(name) for name in ("brain_mri", "chest_xray"))
    assert set(brain) == {"alphas", "personal", "longer", "norm"} and set(chest) == {"alphas", "personal", "many"}
    for parts in (brain, chest):
        assert {arm["partition"] for arm in parts["personal"]} == set(grid.GRIDS["paper"].partitions)
        assert grid.partition_fields("dirichlet", "brain_mri")["dirichlet_alpha"] not in {
            arm["dirichlet_alpha"] for arm in parts["alphas"]
        }
    assert {arm["method"] for arm in brain["longer"]} == set(grid.METHODS)


@pytest.mark.parametrize("trial", [0], indirect=True)
def test_parts_beside_the_grid_have_their_sizes(trial):
    rounds = grid.GRIDS["paper"].total_rounds
    for dataset, total in rounds.items():
        for name, arms in grid.beside_the_grid(dataset).items():
            for config in grid.with_settings("paper", dataset, arms, progress=False):
                assert passes(config) == {"many": 60, "longer": 3 * total}.get(name, total)
                assert (config.num_clients, config.cohort_size) == ((50, 10) if name == "many" else (8, 8))
                assert (config.model != "small_cnn") == (name == "norm")
                assert grid.part_of(config.model_dump(), "paper") == name


@pytest.mark.parametrize("trial", [0], indirect=True)
def test_runs_of_the_grid_know_their_part(trial):
    for profile, dataset in CELLS:
        for config in grid.with_settings(profile, dataset, grid.grid_arms(profile, dataset), progress=False):
            assert grid.part_of(config.model_dump(), profile) == "grid"


def test_six_trials_a_method_with_a_seed_of_their_own():
    methods = {"centralized", "local", *grid.METHODS}
    assert methods | {"local_norm"} == set(grid.TRIALS) == set(grid.UNTUNED)
    assert all(len({tuple(sorted(trial.items())) for trial in trials}) == 6 for trials in grid.TRIALS.values())
    for dataset in grid.GRIDS["paper"].total_rounds:
        for method in methods:
            configs = grid.tuning_configs("paper", dataset, method)
            assert len({records.run_id(config, "") for config in configs}) == 6
            assert {config.seed for config in configs} == {TUNING_SEED}
            assert {config.partition for config in configs} == {"pooled" if method == "centralized" else "dirichlet"}
            assert {passes(config) for config in configs} == {grid.GRIDS["paper"].total_rounds[dataset]}


def test_the_trials_are_those_that_the_runs_ask_for():
    for profile, dataset in CELLS:
        trials = grid.tuning_03(profile, dataset)
        if not grid.GRIDS[profile].tuned:
            assert trials == []
            continue
        assert len({records.run_id(config, "") for config in trials}) == len(trials)
        by_pair = {}
        for config in trials:
            by_pair[config.method, config.model] = by_pair.get((config.method, config.model), 0) + 1
        norm = {("fedavg", "norm_cnn_group")} if dataset == "brain_mri" else set()
        assert set(by_pair) == {(method, "small_cnn") for method in ("centralized", "local", *grid.METHODS)} | norm
        assert set(by_pair.values()) == {6}


def test_pathological_hospitals_hold_half_of_the_classes():
    assert grid.partition_fields("pathological", "brain_mri")["classes_per_client"] == 2
    assert grid.partition_fields("pathological", "chest_xray")["classes_per_client"] == 1
    assert grid.partition_fields("iid", "brain_mri") == {"partition": "iid"}


def with_rounds(method, rounds):
    return grid.grid_config(
        "quick", "phantom_brain", method=method, partition="iid", seed=0, total_rounds=rounds, client_learning_rate=0.1
    )


@pytest.mark.parametrize("rounds", [1, 2, 3, 4, 12, 60])
def test_alone_makes_as_many_passes_as_the_federation_has_rounds(rounds):
    alone, together = with_rounds("local", rounds), with_rounds("fedavg", rounds)
    assert passes(alone) == passes(together) == rounds and together.client_epochs_per_round == 1
    assert alone.client_epochs_per_round <= grid.LOCAL_EPOCHS_PER_ROUND


@pytest.mark.parametrize("rounds", [6, 25])
def test_passes_that_would_be_lost_are_refused(rounds):
    assert with_rounds("fedavg", rounds).total_rounds == rounds
    with pytest.raises(ConfigError, match=f"total_rounds is {rounds}, and 'local' is judged every 4 passes; use a mult"):
        with_rounds("local", rounds)


def test_a_data_set_that_the_grid_has_not():
    with pytest.raises(ConfigError, match="The grid of profile 'quick' has phantom_brain, not 'brain_mri'"):
        grid.grid_config("quick", "brain_mri", method="fedavg", partition="iid", seed=0, client_learning_rate=0.1)
