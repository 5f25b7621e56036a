"""What leakage is worth: which runs are planned, and the tables made from small made-up records."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fl_utils import paths, records
from fl_utils.config import ExperimentConfig, make_config
from fl_utils.data import load_dataset
from fl_utils.data.splits import make_split
from fl_utils.experiments import leakage
from fl_utils.experiments.hospitals import share_out
from fl_utils.experiments.leakage import LADDER, SAME_TEST, configs_00, ladder, same_test

# --- the plan ---


@pytest.fixture
def no_tuning(monkeypatch):
    """Learning rates without training; says for what they were asked."""
    asked = []
    monkeypatch.setattr(
        leakage, "tuned",
        lambda *arguments, **fields: asked.append(arguments) or {"client_learning_rate": 0.05, "augment": False},
    )
    return asked


@pytest.mark.parametrize("dataset", ["phantom_brain", "phantom_chest"])
@pytest.mark.parametrize("profile", ["smoke", "quick"])
def test_phantoms_have_nothing_to_leak(no_tuning, profile, dataset):
    assert configs_00(profile, dataset) == [] and no_tuning == []


def arms_of(configs):
    return sorted((config.seed, config.split, config.split_seed) for config in configs)


def test_brain_mri_has_the_ladder_and_the_published_test_part(no_tuning):
    configs = configs_00("paper", "brain_mri")
    assert no_tuning == [("paper", "brain_mri", "centralized")]
    kinds = ("random", "pictures", "near", "deduplicated")
    published = ("published", "published_thinned", "published_clean")
    expected = [(seed, kind, seed) for seed in range(5) for kind in kinds]
    expected += [(seed, kind, None) for seed in range(5) for kind in published]
    assert len(configs) == 35 and arms_of(configs) == sorted(expected, key=str) == sorted(arms_of(configs), key=str)
    assert [config.seed for config in configs] == sorted(config.seed for config in configs)  # a seed's arms together
    # The arms differ in nothing else.
    varied = {"seed", "split", "split_seed"}
    assert len({config.model_dump_json(exclude=varied) for config in configs}) == 1
    one = configs[0]
    assert isinstance(one, ExperimentConfig) and (one.method, one.model) == ("centralized", "seed_cnn")
    assert (one.client_learning_rate, one.augment) == (0.05, False)


def test_chest_xray_has_two_steps_of_the_ladder(no_tuning):
    configs = configs_00("paper", "chest_xray")
    expected = [(seed, kind, seed) for seed in range(5) for kind in ("deduplicated", "random")]
    assert len(configs) == 10 and arms_of(configs) == expected


def test_the_names_are_kinds_of_splits():
    assert list(LADDER) == ["random", "pictures", "near", "deduplicated"]
    assert set(SAME_TEST) == {"published", "published_thinned", "published_clean"}


# --- tables ---

NUM = 60
LABELS = np.arange(NUM) % 2
GROUPS = np.arange(NUM) // 2


def predictions(num_wrong, rng, first_example=0):
    """So many of the images of each class wrong: balanced accuracy 1 - num_wrong / 30."""
    predicted = LABELS.copy()
    for label in (0, 1):
        predicted[rng.choice(np.flatnonzero(label == LABELS), num_wrong, replace=False)] = 1 - label
    return pd.DataFrame(
        {"client": "all", "split": "test", "example": np.arange(NUM) + first_example, "group": GROUPS, "hospital": 0}
        | {"copy_in_train": 0, "label": LABELS, "p0": 0.9 - 0.8 * predicted, "p1": 0.1 + 0.8 * predicted}
    )


def record(root, split, seed, num_wrong, *, dataset="brain_mri", on_ladder=True):
    config = make_config(
        dataset=dataset, method="centralized", partition="pooled", num_clients=1, seed=seed, profile="smoke",
        total_rounds=1, client_learning_rate=0.1, split=split, split_seed=seed if on_ladder else None,
    )
    # On the ladder every seed has a test set of its own.
    table = predictions(num_wrong, np.random.default_rng([seed, num_wrong]), 1000 * seed if on_ladder else 0)
    return records.write_record(
        root, config, fingerprint="f" * 64, metrics=pd.DataFrame(columns=records.METRIC_COLUMNS), predictions=table,
        duration_s=1, facts={"class_names": ["a", "b"]},
    )


WRONG = {
    "random": [1, 2, 0], "pictures": [3, 3, 3], "near": [4, 6, 5], "deduplicated": [6, 7, 9],
    "published": [1, 1, 2], "published_thinned": [4, 3, 6], "published_clean": [8, 9, 7],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    made = [
        record(root, split, seed, wrong, on_ladder=split in LADDER)
        for split, column in WRONG.items()
        for seed, wrong in enumerate(column)
    ]
    made += [
        record(root, split, seed, wrong, dataset="chest_xray")
        for split, column in {"deduplicated": [2, 3, 2], "random": [2, 1, 1]}.items()
        for seed, wrong in enumerate(column)
    ]
    return made[::-1]  # the order must not matter


def scores(split):
    return 1 - np.array(WRONG[split]) / 30


def half_width(values):
    return stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))


def test_the_ladder_by_hand(runs):
    table = ladder(runs)
    assert table[["dataset", "split"]].apply(tuple, axis=1).tolist() == [
        ("chest_xray", "random"), ("chest_xray", "deduplicated"),
        *(("brain_mri", kind) for kind in ("random", "pictures", "near", "deduplicated")),
    ]
    brain = table[table["dataset"] == "brain_mri"].set_index("split")
    strict = scores("deduplicated")
    for kind in LADDER:
        row, values = brain.loc[kind], scores(kind)
        assert row["kept_together"] == LADDER[kind] and row["seeds"] == 3
        assert row["mean"] == pytest.approx(values.mean())
        assert [row["low"], row["high"]] == pytest.approx(values.mean() + half_width(values) * np.array([-1, 1]))
        difference = values - strict
        assert row["excess"] == pytest.approx(difference.mean())
        assert [row["excess_low"], row["excess_high"]] == pytest.approx(
            difference.mean() + half_width(difference) * np.array([-1, 1])
        )
    assert brain.loc["random", "excess"] == pytest.approx((5 + 5 + 9) / 90)
    assert brain.loc["deduplicated", ["excess", "excess_low", "excess_high"]].tolist() == [0, 0, 0]
    chest = table[table["dataset"] == "chest_xray"].set_index("split")
    assert chest.loc["random", "excess"] == pytest.approx((0 + 2 + 1) / 90)


def test_the_published_test_part_by_hand(runs):
    table = same_test(runs)
    assert table[["dataset", "split"]].apply(tuple, axis=1).tolist() == [
        ("brain_mri", "published_thinned"), ("brain_mri", "published")
    ]
    clean, p_values = scores("published_clean"), []
    for row in table.itertuples():
        values = scores(row.split)
        difference = values - clean
        assert (row.mean, row.clean) == pytest.approx((values.mean(), clean.mean()))
        assert row.difference == pytest.approx(difference.mean())
        assert [row.low, row.high] == pytest.approx(difference.mean() + half_width(difference) * np.array([-1, 1]))
        assert row.patient_low < row.difference < row.patient_high
        p_values.append(2 * stats.t.sf(abs(difference.mean() / (np.std(difference, ddof=1) / np.sqrt(3))), 2))
    assert table["p_value"].tolist() == pytest.approx(p_values)
    smaller, larger = sorted(p_values)
    by_hand = {smaller: 2 * smaller, larger: max(2 * smaller, larger)}
    assert table["p_holm"].tolist() == pytest.approx([by_hand[p] for p in p_values])


def test_the_bootstrap_of_a_difference_is_over_groups(runs):
    """Every group holds one image of each class: the groups' own differences give the interval's width."""
    chosen = [run for run in runs if run.config["dataset"] == "brain_mri" and run.config["split_seed"] is None]

    def correct(split):
        members = [run.predictions for run in chosen if run.config["split"] == split]
        return np.mean([(table["p1"] > 0.5) == table["label"] for table in members], axis=0)

    table = same_test(runs).set_index("split")
    for kind in ("published", "published_thinned"):
        of_groups = (correct(kind) - correct("published_clean")).reshape(-1, 2).mean(axis=1)
        error = of_groups.std() / np.sqrt(len(of_groups))
        low, high = table.loc[kind, ["patient_low", "patient_high"]]
        assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.15)


def test_another_metric(runs):
    # Every class is as large, so both metrics are the same.
    pd.testing.assert_frame_equal(ladder(runs, "accuracy"), ladder(runs))
    with pytest.raises(KeyError):
        ladder(runs, "luck")


def test_nothing_to_compare(runs):
    assert len(ladder([])) == len(same_test([])) == 0
    assert len(same_test([run for run in runs if run.config["dataset"] == "chest_xray"])) == 0
    without = [run for run in runs if run.config["split"] != "deduplicated"]
    with pytest.raises(ValueError, match="None of .* records has .*'split': 'deduplicated'"):
        ladder(without)
    without = [run for run in runs if run.config["split"] != "published_thinned"]
    with pytest.raises(ValueError, match="None of .* records has .*'split': 'published_thinned'"):
        same_test(without)


@pytest.mark.parametrize(("kind", "table"), [("random", ladder), ("published", same_test)])
def test_an_unfinished_sweep_is_not_paired_with_other_seeds(runs, kind, table):
    """As many seeds on both sides, but not the same: no mean of differences between strangers."""
    reference = "deduplicated" if table is ladder else "published_clean"
    brain = [run for run in runs if run.config["dataset"] == "brain_mri"]
    kept = [
        run for run in brain
        if (run.config["split"], run.config["seed"]) not in {(kind, 0), (reference, 2)}
        and run.config["split"] in (kind, reference, "published_thinned")
        and not (run.config["split"] == "published_thinned" and run.config["seed"] == 2)
    ]
    with pytest.raises(ValueError, match=rf"'{kind}' has the seeds \[1, 2\], '{reference}' \[0, 1\]"):
        table(kept)


# --- the records ---


@pytest.mark.real_data
@pytest.mark.parametrize("dataset", ["brain_mri", "chest_xray"])
def test_published_records_were_judged_on_the_splits_of_today(dataset):
    root = paths.runs_root("paper") / leakage.LEAKAGE
    if paths.dataset_root(dataset) is None:
        pytest.skip(f"no real data: set FL_UTILS_DATA to a folder that holds {dataset}/")
    found = list(records.load_all(root, dataset=dataset)) if root.is_dir() else []
    if not found:
        pytest.skip(f"no records of {dataset} below {root.name}/")
    data = load_dataset(dataset, image_size_px=64)  # the size changes neither fingerprint nor groups
    for run in found:
        config = make_config(**run.config)
        assert run.environment["dataset_fingerprint"] == data.fingerprint, run.path.name
        split = share_out(data, config).split
        assert run.predictions["example"].tolist() == split.test.tolist(), run.path.name
        assert run.predictions["group"].tolist() == data.groups[split.test].tolist()
        if config.split == "deduplicated":
            strict = make_split(data, kind="deduplicated", seed=config.seed)
            np.testing.assert_array_equal(strict.test, split.test)
            seen = np.concatenate([split.train, split.validation])
            assert not set(run.predictions["group"]) & set(data.groups[seen].tolist())
