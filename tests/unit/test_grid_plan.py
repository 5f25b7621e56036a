"""Notebook 03's runs as data: every configuration is valid, tuned as often as the others, and trained as long."""

import pandas as pd
import pytest

from fl_utils import records
from fl_utils.config import METHOD_FIELDS, ConfigError, ExperimentConfig
from fl_utils.experiments import grid, plans
from fl_utils.experiments.plans import TUNING_SEED
from fl_utils.learning.errors import TrainingError

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
    # What is beside the grid of chest X-ray has a part on other hospitals' images.
    named = {dataset, "xray_sites"} if (profile, dataset) == ("paper", "chest_xray") else {dataset}
    assert {config.profile for config in configs} == {profile} and {config.dataset for config in configs} == named
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
    assert set(brain) == {"alphas", "personal", "longer", "norm"}
    assert set(chest) == {"alphas", "personal", "many", "natural"}
    assert set(grid.GRIDS["paper"].beside) == set(brain) | set(chest), "a part that no profile runs, or that is unknown"
    for parts in (brain, chest):
        assert {arm["partition"] for arm in parts["personal"]} == set(grid.GRIDS["paper"].partitions)
        assert grid.partition_fields("dirichlet", "brain_mri")["dirichlet_alpha"] not in {
            arm["dirichlet_alpha"] for arm in parts["alphas"]
        }
    assert {arm["method"] for arm in brain["longer"]} == set(grid.METHODS)
    some = ["centralized", "local", "fedavg", "fedprox", "fedadam", "scaffold"]
    assert [arm["method"] for arm in chest["natural"]] == some


@pytest.mark.parametrize("trial", [0], indirect=True)
def test_parts_beside_the_grid_have_their_sizes(trial):
    rounds = grid.GRIDS["paper"].total_rounds
    for dataset, total in rounds.items():
        for name, arms in grid.beside_the_grid(dataset).items():
            for config in grid.with_settings("paper", dataset, arms, progress=False):
                assert passes(config) == {"many": 60, "longer": 3 * total}.get(name, total)
                clients = {"many": (50, 10), "natural": (1, 1) if config.method == "centralized" else (3, 3)}
                assert (config.num_clients, config.cohort_size) == clients.get(name, (8, 8))
                assert (config.model != "small_cnn") == (name == "norm")
                assert grid.part_of(config.model_dump(), "paper") == name


@pytest.mark.parametrize("trial", [3], indirect=True)
def test_real_sources_of_chest_x_rays_take_the_settings_chosen_on_chest_x_ray(trial):
    natural = [c for c in grid.configs_03("paper", "chest_xray", progress=False) if c.dataset == "xray_sites"]
    assert len(natural) == 6 * len(grid.GRIDS["paper"].seeds)
    for config in natural:
        assert grid.TRIALS[config.method][trial].items() <= config.model_dump().items()
        assert config.partition == ("pooled" if config.method == "centralized" else "natural")
    # Nothing is tuned on the sources themselves.
    assert {config.dataset for config in grid.tuning_03("paper", "chest_xray")} == {"chest_xray"}


def test_a_record_says_how_its_settings_were_chosen(monkeypatch):
    asked = []

    def chosen(profile, dataset, method, model="small_cnn", progress=True):
        asked.append((profile, dataset, method, model))
        return grid.TRIALS[method][0], {"tuning": (dataset, method, model)}

    monkeypatch.setattr(grid, "tuned", chosen)

    def part(dataset, name):
        return grid.with_settings("paper", dataset, grid.beside_the_grid(dataset)[name], progress=False)

    parts = {name: part(dataset, name) for dataset, name in (
        ("chest_xray", "natural"), ("chest_xray", "personal"), ("brain_mri", "norm"),
    )}  # fmt: skip
    asked.clear()
    facts = grid.tuning_facts()
    told = {name: {(config.method, facts(config)["tuning"]) for config in configs} for name, configs in parts.items()}
    assert told["natural"] == {
        (method, ("chest_xray", method, "small_cnn"))
        for method in ("centralized", "local", "fedavg", "fedprox", "fedadam", "scaffold")
    }
    assert told["personal"] == {("finetuned", ("chest_xray", "fedavg", "small_cnn"))}
    assert told["norm"] == {(method, ("brain_mri", "fedavg", "norm_cnn_group")) for method in ("fedavg", "local_norm")}
    assert len(asked) == len(set(asked)), "one look at the trials for all runs that share them"


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


def tried(monkeypatch, scores, diverged=()):
    """Trials whose validation scores are these, by client learning rate; nothing is trained."""
    asked = []

    def run(config, *, experiment, progress, keep_diverged):
        assert experiment == grid.GRID_TUNING and keep_diverged
        asked.append(config)
        rate = config.client_learning_rate
        parts = {"validation": scores[rate], "test": 1 - scores[rate]}
        rows = [(1, "all", part, "balanced_accuracy", value) for part, value in parts.items()]
        facts = {"selected_round": {"all": 1}} | ({"diverged_at_round": {"all": 2}} if rate in diverged else {})
        metrics = pd.DataFrame(rows, columns=records.METRIC_COLUMNS)
        return records.RunRecord(config.model_dump(), metrics, pd.DataFrame(), facts, None)

    monkeypatch.setattr(plans, "run", run)
    return asked


SCORES = {0.01: 0.5, 0.02: 0.6, 0.05: 0.7, 0.1: 0.8, 0.2: 0.9, 0.4: 0.95}


def test_the_trial_with_the_best_validation_score_that_did_not_diverge_is_taken(monkeypatch):
    asked = tried(monkeypatch, SCORES, diverged=(0.4, 0.01))
    chosen, facts = grid.tuned("paper", "brain_mri", "fedavg")
    assert chosen == {"client_learning_rate": 0.2} and asked == grid.tuning_configs("paper", "brain_mri", "fedavg")
    assert facts["tuning"]["seed"] == TUNING_SEED and facts["tuning"]["partition"] == "dirichlet"
    scores = {trial["client_learning_rate"]: trial["score"] for trial in facts["tuning"]["trials"]}
    assert scores == pytest.approx(SCORES | {0.4: None, 0.01: None})
    assert grid.tuned("paper", "brain_mri", "centralized")[1]["tuning"]["partition"] == "pooled"


def test_a_method_that_diverges_in_every_trial_is_an_error(monkeypatch):
    tried(monkeypatch, SCORES, diverged=tuple(SCORES))
    with pytest.raises(TrainingError, match="brain_mri fedavg: training diverged in each of 6 trials"):
        grid.tuned("paper", "brain_mri", "fedavg")


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
