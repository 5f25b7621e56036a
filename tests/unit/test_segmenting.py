"""Runs of segmenters before they are trained: who holds which subjects, through which scanner, which runs there are."""

import itertools
import types

import numpy as np
import pandas as pd
import pytest

from fl_utils import records, seeding
from fl_utils.config import SEGMENTERS, ExperimentConfig, make_config
from fl_utils.data import PartitionError, phantoms
from fl_utils.data.catalogue import card
from fl_utils.data.scanned import scan_slices
from fl_utils.experiments import plans, segment_plan, segmenting
from fl_utils.experiments.hospitals import MIN_EXAMPLES, owners, pooled
from fl_utils.experiments.segment_plan import METHODS, NUM_CLIENTS, SETTINGS, segment_config
from fl_utils.experiments.segmenting import followed_rounds, hospitals_of, volumes_as_taken
from fl_utils.learning.errors import TrainingError
from fl_utils.learning.slice_files import choose_slices
from fl_utils.records import RecordError
from tests.unit.made_volumes import LENGTH, made_subjects

PARTS = ("train", "validation", "test")
#: Five institutions of unequal size; pairs of subjects are of one patient and one institution.
INSTITUTIONS = tuple(np.repeat(["A", "B", "C", "D", "E"], [60, 40, 40, 30, 30]))
PARTITIONS = {
    "mixed": {"quantity_alpha": 2.0}, "natural": {}, "iid": {}, "feature": {}, "quantity": {"quantity_alpha": 2.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory, folders):
    return made_subjects(tmp_path_factory.mktemp("made"), INSTITUTIONS)


def config(partition="mixed", method="fedavg", seed=0, **fields):
    size = {"num_clients": 1 if partition == "pooled" else NUM_CLIENTS}
    return make_config(
        **{"dataset": "made_up", "method": method, "partition": partition, "seed": seed, "profile": "smoke"}
        | {"model": "unet", "plane": "axial", "model_width": 8, "model_depth": 2, "class_weighting": False}
        | {"total_rounds": 1, "client_learning_rate": 0.1, "image_size_px": 24, "augment": False}
        | size | PARTITIONS.get(partition, {}) | fields
    )


POOLED = config("pooled", "centralized")


# --- who holds which subjects ---


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("partition", PARTITIONS)
def test_every_subject_has_one_place_and_no_patient_two(data, partition, seed):
    held = hospitals_of(config(partition, seed=seed), data)
    places = {(part, c): index for part in PARTS for c, index in enumerate(getattr(held, part))}
    assert len(places) == len(PARTS) * NUM_CLIENTS
    assert sorted(np.concatenate(list(places.values())).tolist()) == list(range(len(INSTITUTIONS)))
    for part in PARTS:
        dealt = np.sort(np.concatenate(getattr(held, part)))
        np.testing.assert_array_equal(dealt, getattr(held.split, part))
        # Tests are of all hospitals together: of its own a small hospital may hold none.
        assert min(map(len, getattr(held, part))) >= (0 if partition == "natural" else MIN_EXAMPLES[part])
    patients = [set(data.subjects.patients[index]) for index in places.values()]
    assert sum(map(len, patients)) == len(INSTITUTIONS) // 2


def test_one_split_for_all_methods_partitions_and_seeds(data):
    """What makes their scores comparable, subject by subject."""
    chosen = [config(*arm) for arm in itertools.product(PARTITIONS, ("fedavg", "local"), (0, 7))]
    chosen += [config(*arm) for arm in itertools.product(("pooled", "mixed"), ("centralized",), (0, 7))]
    splits = [hospitals_of(one, data).split for one in (*chosen, config("natural", num_clients=3))]
    for part in PARTS:
        assert all(np.array_equal(getattr(split, part), getattr(splits[0], part)) for split in splits)
    assert len(splits[0].test) == pytest.approx(0.2 * len(INSTITUTIONS), abs=4)


def test_hospitals_of_the_methods_are_the_same(data):
    for partition in PARTITIONS:
        methods = ("local", "fedavg", "centralized") if partition in ("mixed", "feature") else ("local", "fedavg")
        held = [hospitals_of(config(partition, method), data) for method in methods]
        for other in held[1:]:
            assert all(np.array_equal(a, b) for a, b in zip(held[0].train, other.train, strict=True))


def test_mixed_hospitals_differ_in_size_and_by_seed(data):
    first, other = (hospitals_of(config(seed=seed), data) for seed in (0, 1))
    sizes = sorted(map(len, first.train))
    assert sizes[0] >= MIN_EXAMPLES["train"] and sizes[-1] > 1.5 * sizes[0]
    assert [len(index) for index in first.train] != [len(index) for index in other.train]


def test_natural_hospitals_are_whole_institutions(data):
    five = hospitals_of(config("natural"), data)
    for index, name in zip(five.train, "ABCDE", strict=True):
        assert set(data.subjects.hospitals[index]) == {name}
    three = hospitals_of(config("natural", num_clients=3), data)  # A, B+D, C+E: 60, 70, 70 subjects
    assert [set(data.subjects.hospitals[index]) for index in three.train] == [{"A"}, {"B", "D"}, {"C", "E"}]
    # Every institution has a test part of its own.
    assert set(data.subjects.hospitals[five.split.test]) == set("ABCDE")
    with pytest.raises(PartitionError, match=r"5 institutions \(A, B, C, D, E\) cannot make 6 hospitals"):
        hospitals_of(config("natural", num_clients=6), data)


def test_pooled_is_one_holder_of_all(data):
    held, mixed = hospitals_of(POOLED, data), hospitals_of(config(), data)
    for part in PARTS:
        (index,) = getattr(held, part)
        np.testing.assert_array_equal(index, getattr(pooled(mixed), part)[0])


# --- through which scanner ---


@pytest.mark.parametrize("partition", ["pooled", "natural", "iid", "quantity"])
def test_without_scanners_the_volumes_are_the_prepared_ones(data, partition):
    chosen = POOLED if partition == "pooled" else config(partition)
    assert volumes_as_taken(chosen, data, hospitals_of(chosen, data)) is data.volumes


@pytest.mark.parametrize("partition", ["mixed", "feature"])
def test_every_subject_goes_through_its_hospitals_scanner(data, partition):
    chosen = config(partition)
    held = hospitals_of(chosen, data)
    taken = volumes_as_taken(chosen, data, held)
    scanners = phantoms.draw_scanners(NUM_CLIENTS, rng=seeding.generator(0, "scanners"))
    owner = owners(held, len(data.subjects))
    for number in range(0, len(owner), 23):
        before, after = (np.load(volumes.table["path"][number]) for volumes in (data.volumes, taken))
        noise = seeding.generator(0, "scanner_noise", data.volumes.subjects[number])
        np.testing.assert_array_equal(after, scan_slices(before, scanners[owner[number]], noise))
    # All methods of a seed see the same slices; another seed has other hospitals and other scanners.
    for method in ("local", "centralized"):
        other = config(partition, method)
        assert volumes_as_taken(other, data, hospitals_of(other, data)).table.equals(taken.table)
    other = config(partition, seed=1)
    assert not set(volumes_as_taken(other, data, hospitals_of(other, data)).table["path"]) & set(taken.table["path"])


# --- equal effort ---


@pytest.mark.parametrize("partition", ["mixed", "natural"])
def test_methods_make_as_many_steps_one_after_another(data, partition, monkeypatch):
    """Examples that each model is trained on in a whole run: as many passes, pooled or shared out."""
    from fl_utils.experiments import segmenter_training

    # The settings are all that is looked at: no model need be built.
    monkeypatch.setattr(segmenter_training, "new_segmenter", lambda *_: None)
    monkeypatch.setattr(segmenter_training, "CentralizedLearner", lambda model, settings, *_, **__: settings)
    passes, seen = 3, {}
    for method in METHODS:
        rounds, epochs = segment_plan._rounds(method, passes)
        where = "pooled" if (method, partition) == ("centralized", "natural") else partition
        chosen = config(where, method, total_rounds=rounds, client_epochs_per_round=epochs)
        held = hospitals_of(chosen, data)
        held = pooled(held) if method == "centralized" else held
        lists = [choose_slices(data.volumes, [data.volumes.subjects[i] for i in index]) for index in held.train]
        sizes = np.array([len(slices) for _, slices in lists])
        if method == "fedavg":  # a round is as long as an average client's pass
            seen[method] = rounds * epochs * sizes.mean()
            continue
        names = ["all"] if method == "centralized" else [str(client) for client in range(NUM_CLIENTS)]
        trained = [segmenter_training._alone(chosen, data.volumes, lists, name).epochs for name in names]
        examples = rounds * np.array(trained) * sizes
        seen[method] = examples.mean()
        # A hospital's passes are whole: it is off by half a pass a round at most.
        assert (np.abs(examples - passes * sizes.sum()) <= rounds * sizes / 2).all()
    total = passes * LENGTH * len(hospitals_of(POOLED, data).split.train)
    assert seen["centralized"] == seen["fedavg"] == total
    assert seen["local"] == pytest.approx(total, rel=0.1)


# --- the plan ---


def without_tuning(monkeypatch):
    monkeypatch.setattr(segment_plan, "tuned", lambda profile, method, progress=False: segment_plan.UNTUNED)


def _passes(config) -> float:
    """Passes over the pooled data that make as many steps one after another: a hospital holds 1/C of the data."""
    return config.total_rounds * config.client_epochs_per_round / (1 if config.method == "centralized" else NUM_CLIENTS)


@pytest.mark.parametrize("profile", SETTINGS)
def test_every_configuration_of_every_profile(profile, monkeypatch):
    without_tuning(monkeypatch)
    configs, settings = segment_plan.configs_05(profile), SETTINGS[profile]
    assert all(ExperimentConfig(**one.model_dump()) == one and one.segments for one in configs)
    assert len({records.run_id(one, "") for one in configs}) == len(configs)
    usual = [one for one in configs if _passes(one) == settings.pooled_passes]
    arms = {(one.model, one.method, one.seed) for one in usual}
    assert arms == set(itertools.product(SEGMENTERS, METHODS, settings.seeds)) and len(arms) == len(usual)
    # Beside them pooled runs on as many gradients as the federation computes in all.
    longer = [one for one in configs if one not in usual]
    assert [(one.model, one.method, one.seed) for one in longer] == [
        ("unet", "centralized", seed) for seed in settings.seeds[: settings.longer]
    ]
    assert all(_passes(one) == NUM_CLIENTS * settings.pooled_passes for one in longer)
    assert {one.profile for one in configs} == {profile} and {one.dataset for one in configs} == {settings.dataset}
    assert card(settings.dataset).synthetic == (profile != "paper")
    alike = {"image_size_px", "num_images", "plane", "model_width", "model_depth", "background_ratio"}
    assert len({one.model_dump_json(include=alike) for one in configs}) == 1
    assert settings.image_size_px % 2**settings.model_depth == 0
    for one in configs:
        pooled_images = one.method == "centralized" and settings.partition["partition"] == "natural"
        assert one.partition == ("pooled" if pooled_images else settings.partition["partition"])
        assert one.num_clients == (1 if pooled_images else NUM_CLIENTS)


def test_the_published_plan_is_that_of_the_issue():
    paper = SETTINGS["paper"]
    assert (paper.dataset, len(paper.seeds), NUM_CLIENTS, paper.num_images) == ("hippocampus", 5, 5, None)
    assert segment_plan.TUNING_SEED not in paper.seeds and paper.tuning_passes
    assert segment_plan.parts_of("paper") == ("paper", "phantoms") and segment_plan.parts_of("quick") == ("quick",)
    assert segment_plan.overview("paper")["synthetic"].tolist() == [False, True]


def test_trials_are_the_same_for_every_method():
    configs = segment_plan.tuning_configs("paper")
    assert {one.seed for one in configs} == {segment_plan.TUNING_SEED} and {one.model for one in configs} == {"unet"}
    for method in METHODS:
        grid = [(one.client_learning_rate, one.augment) for one in configs if one.method == method]
        assert grid == list(segment_plan.TUNING_GRID)
    assert not any(segment_plan.tuning_configs(profile) for profile in ("smoke", "quick", "phantoms"))


def fake_runs(monkeypatch, dice_of):
    """Records of a validation Dice in place of training; the selected round is the second of three."""
    asked = []

    def run(config, *, experiment, progress, keep_diverged=False):
        asked.append((config, experiment))
        dice = dice_of(config)
        if dice == "at once":
            raise TrainingError("Round 1: a value that is not finite")
        clients = [str(c) for c in range(NUM_CLIENTS)] if config.method == "local" else ["all"]
        rows = [
            (number, client, split, metric, value)
            for c, client in enumerate(clients)
            for split, metric, gain in (("validation", "dice", 0), ("test", "dice", 0.5), ("validation", "dice/a", 0.7))
            # Hospitals differ around the mean.
            for number, value in ((1, 0.1), (2, (dice or 0.99) + gain + 0.01 * (c - (len(clients) - 1) / 2)), (3, 0.2))
        ]
        facts = {"selected_round": dict.fromkeys(clients, 2)} | ({} if dice else {"diverged_at_round": {"all": 3}})
        return types.SimpleNamespace(metrics=pd.DataFrame(rows, columns=records.METRIC_COLUMNS), environment=facts)

    monkeypatch.setattr(plans, "run", run)
    return asked


def test_the_trial_with_the_best_validation_dice_is_chosen(monkeypatch):
    scores = dict(zip(segment_plan.TUNING_GRID, (0.5, 0.7, 0.6, 0.4), strict=True))
    best = {"centralized": (0.03, True), "local": (0.1, False), "fedavg": (0.1, True)}

    def dice_of(config):
        trial = (config.client_learning_rate, config.augment)
        return 0.8 if trial == best[config.method] else scores[trial]

    asked = fake_runs(monkeypatch, dice_of)
    assert {method: segment_plan.tuned("paper", method) for method in METHODS} == best
    assert {experiment for _, experiment in asked} == {segment_plan.SEGMENTATION_TUNING}
    table = segment_plan.trials("paper")
    assert len(table) == len(METHODS) * len(segment_plan.TUNING_GRID)
    for method, rate, augment, dice in table.itertuples(index=False):  # the hospitals' mean at the selected round
        assert dice == pytest.approx(0.8 if (rate, augment) == best[method] else scores[rate, augment])
    chosen = {(c.method, c.client_learning_rate, c.augment) for c in segment_plan.configs_05("paper")}
    assert chosen == {(method, *trial) for method, trial in best.items()}  # the Attention U-Net takes the same


@pytest.mark.parametrize("when", ["at once", None])
def test_a_trial_that_diverged_is_out_whatever_its_score_before(monkeypatch, when):
    fake_runs(monkeypatch, lambda config: when if config.client_learning_rate == 0.1 else 0.3 + 0.1 * config.augment)
    assert segment_plan.tuned("paper", "fedavg") == (0.03, True)
    assert segment_plan.trials("paper").query("learning_rate == 0.1")["dice"].isna().all()


def test_every_trial_diverged(monkeypatch):
    fake_runs(monkeypatch, lambda config: "at once")
    with pytest.raises(RecordError, match="local: training diverged in each trial"):
        segment_plan.tuned("paper", "local")


def test_what_is_not_tuned_asks_for_no_run(monkeypatch):
    monkeypatch.setattr(plans, "run", lambda *_, **__: pytest.fail("trained"))
    assert segment_plan.tuned("quick", "fedavg") == segment_plan.UNTUNED
    assert {c.client_learning_rate for c in segment_plan.configs_05("smoke")} == {segment_plan.UNTUNED[0]}


def followed(**fields):
    return followed_rounds(config("iid", model="attention_unet", **fields))


@pytest.mark.parametrize(
    ("total", "expected"),
    [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 4]), (10, [1, 2, 4, 8, 10]), (16, [1, 2, 4, 8, 16])],
)
def test_followed_rounds_double(total, expected):
    assert followed(total_rounds=total) == expected


def test_only_federations_with_attention_are_followed():
    assert followed_rounds(config("iid")) == [] and followed(method="local") == []
    paths = {segmenting.followed_path("a_run", number) for number in (1, 2)}
    assert len(paths) == 2 and all("a_run" in path.name for path in paths)


def test_pooled_and_natural_runs_of_a_plan():
    pooled_run, federated = (
        segment_config("smoke", "unet", method, 3, learning_rate=0.2, augment=True)
        for method in ("centralized", "fedavg")
    )
    assert (pooled_run.partition, pooled_run.num_clients, pooled_run.seed) == ("pooled", 1, 3)
    assert (federated.partition, federated.num_clients, federated.client_learning_rate) == ("natural", 5, 0.2)
    assert pooled_run.augment and federated.augment and not federated.class_weighting
