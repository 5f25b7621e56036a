"""Notebook 07's tables and sentences from made-up runs, against numbers by hand."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fl_utils.config import AGGREGATOR_LABELS, ATTACK_LABELS
from fl_utils.experiments.poisoning_answer import answer, headline, main_fraction, meaning
from fl_utils.experiments.poisoning_cells import CELL, by_cell, cell_of
from fl_utils.experiments.poisoning_plan import LAST_ROUNDS, cell_config
from fl_utils.experiments.poisoning_report import (
    accuracy_table, at_fraction, backdoor_table, by_fraction, clean_cost, curves, detection_table, score_of,
    source_recall_table, unusual_correlation, unusual_hospitals, update_points,
)
from fl_utils.plotting.poisoning import attack_curves, attack_heatmap, fraction_lines
from fl_utils.plotting.poisoning_detection import detection_scores, update_map
from fl_utils.records import METRIC_COLUMNS, RunRecord
from tests.unit.made_tables import interval, row

SEEDS, ROUNDS, HOSPITALS = (0, 1, 2, 3), 6, 10
NAMES = ["glioma", "meningioma", "no_tumor", "pituitary"]
NOISE = np.array([0.0, 0.01, -0.01, 0.02])
IID, UNEVEN = "IID", "Dirichlet 0.5"
#: (attack, aggregator, fraction, partition, schedule) -> balanced accuracy of each seed.
SCORES = {
    ("clean", "mean", 0.3, "iid", "fixed"): 0.80 + NOISE,
    ("clean", "krum", 0.3, "iid", "fixed"): 0.60 + NOISE[::-1],
    ("clean", "multi_krum", 0.3, "iid", "fixed"): 0.79 + NOISE,
    ("sign_flip", "mean", 0.1, "iid", "fixed"): 0.50 + NOISE,
    ("sign_flip", "mean", 0.3, "iid", "fixed"): 0.25 + NOISE[::-1],
    ("sign_flip", "krum", 0.3, "iid", "fixed"): 0.61 + NOISE,
    ("sign_flip", "multi_krum", 0.3, "iid", "fixed"): 0.78 + NOISE,
    ("sign_flip", "multi_krum", 0.3, "iid", "changing"): 0.77 + NOISE,
    ("source_target", "mean", 0.3, "iid", "fixed"): 0.72 + NOISE[::-1],
    ("source_target", "multi_krum", 0.3, "iid", "fixed"): 0.77 + NOISE,
    ("replacement", "mean", 0.1, "iid", "fixed"): 0.79 + 3 * NOISE[::-1],
    ("replacement", "mean", 0.3, "iid", "fixed"): 0.40 + NOISE,
    ("replacement", "krum", 0.3, "iid", "fixed"): 0.55 + NOISE,
    ("replacement", "multi_krum", 0.3, "iid", "fixed"): 0.30 + NOISE[::-1],
    ("not_finite", "mean", 0.3, "iid", "fixed"): 0.81 + NOISE,
    ("clean", "mean", 0.3, "dirichlet", "fixed"): 0.70 + NOISE,
    ("clean", "krum", 0.3, "dirichlet", "fixed"): 0.40 + NOISE,
}  # fmt: skip
#: Training images of each hospital by class under Dirichlet: the first two have one class, the others what is left.
UNEVEN_COUNTS = [[40, 0, 0, 0], [0, 30, 0, 0], *[[5, 6, 10, 10]] * 8]
TEST_COUNTS = [[12, 0, 0, 0], [0, 9, 0, 0], *[[2, 3, 4, 4]] * 8]


def rows_of(values, split, metric, client="all", rounds=range(1, ROUNDS + 1)):
    return [(number, client, split, metric, float(value)) for number, value in zip(rounds, values, strict=True)]


def curve(late):
    """Starts at 0.2; the last rounds go around their mean."""
    around = [0.02, -0.02, 0.01, -0.01]
    assert len(around) == LAST_ROUNDS
    return [*[0.2] * (ROUNDS - LAST_ROUNDS), *(late + step for step in around)]


def update_rows(attack, seed):
    """Hospitals 0 to 2 are bad; components flag 0 to 3 in odd rounds and nobody in even ones, the cosine 0 and 1."""
    rows = []
    for number in range(1, ROUNDS + 1):
        for client in range(3 if attack == "not_finite" else 0, HOSPITALS):
            values = {
                "norm": 1.0, "cosine_distance": 0.1 * client, "pca_0": client + seed, "pca_1": number,
                "flag_pca": number % 2 and client < 4, "flag_cosine": client < 2,
                "attacker": attack not in ("clean", "not_finite") and client < 3,
            }
            rows += [(number, str(client), "update", metric, float(value)) for metric, value in values.items()]
    return rows


def predictions_of(called, label):
    """100 images of class 0, of which `called` are called class 2, the others rightly; and one of every other class."""
    labels = np.array([0] * 100 + [1, 2, 3])
    p = np.eye(4)[np.where(np.arange(103) < called, 2, labels)]
    columns = {"client": "all", "split": "test", "example": range(103), "label": labels}
    return pd.DataFrame(columns | {f"p{k}": p[:, k] for k in range(4)})


def own_accuracy(aggregator, client, seed):
    """Under Krum the two unusual hospitals (0 and 1) lose 0.3, the usual ones 0.1 at most."""
    lost = 0.0 if aggregator == "mean" else 0.3 if client < 2 else 0.01 * client
    return 0.8 + 0.01 * seed - lost


def run_of(cell, seed, score=None, **environment):
    attack, aggregator, fraction, partition, schedule = cell
    config = cell_config(
        "paper", seed, attack=attack, aggregator=aggregator, fraction=fraction, partition=partition, schedule=schedule,
        client_learning_rate=0.1,
    )
    score = SCORES[cell][SEEDS.index(seed)] if score is None else score
    rows = rows_of(curve(score), "test", "balanced_accuracy")
    rows += rows_of(curve(score - 0.1), "validation", "balanced_accuracy")
    recall = {"clean": 0.9, "source_target": 0.4}.get(attack, 0.8) + 0.01 * seed
    rows += rows_of(curve(recall), "true_0", "accuracy")
    success = {"clean": 0.1, "replacement": 0.2 if aggregator == "krum" else 0.95}.get(attack)
    if success:
        rows += rows_of(curve(success + 0.001 * seed), "marked_2", "accuracy")
    if aggregator == "mean":
        rows += update_rows(attack, seed)
    if attack == "clean":
        for client in range(HOSPITALS):
            rows += rows_of(curve(own_accuracy(aggregator, client, seed)), "own_test", "accuracy", str(client))
    counts = {"train": [[5] * 4] * HOSPITALS}
    if partition == "dirichlet":
        counts = {"train": UNEVEN_COUNTS, "test": TEST_COUNTS}
    return RunRecord(
        config.model_dump(), pd.DataFrame(rows, columns=METRIC_COLUMNS),
        predictions_of({"clean": 5, "source_target": 50 + seed}.get(attack, 10), 0),
        {"class_names": NAMES, "class_counts": counts, "synthetic": False} | environment,
        Path(f"{attack}_{aggregator}_{fraction}_{partition}_{schedule}_s{seed}"),
    )


@pytest.fixture(scope="module")
def runs():
    # Out of order: neither cells nor seeds come sorted.
    return [run_of(cell, seed) for seed in SEEDS[::-1] for cell in list(SCORES)[::-1]]


@pytest.fixture(scope="module")
def accuracy(runs):
    return accuracy_table(runs)


# --- cells and scores ---


def test_a_score_is_the_mean_of_the_last_rounds(runs):
    for run in runs[:5]:
        attack, *_ = run.path.name.split("_m")
        wanted = run.metrics.query("split == 'test'")["value"].tail(LAST_ROUNDS).mean()
        assert score_of(run) == pytest.approx(wanted)
        assert score_of(run, split="validation") == pytest.approx(wanted - 0.1)
    with pytest.raises(ValueError, match="auroc of all, test"):
        score_of(runs[0], "auroc")


def test_cells_stand_in_the_order_of_the_configuration(runs):
    cells = by_cell(runs)
    assert len(cells) == len(SCORES)
    assert all([run.config["seed"] for run in found] == list(SEEDS) for found in cells.values())
    keys = list(cells)
    assert keys[0] == ("brain_mri", IID, "clean", "mean", 0.0, "fixed") and keys[-1][1:4] == (UNEVEN, "clean", "krum")
    attacks = [key[2] for key in keys if key[1] == IID]
    assert attacks == sorted(attacks, key=list(ATTACK_LABELS).index)
    assert cell_of(run_of(("sign_flip", "multi_krum", 0.3, "iid", "changing"), 0).config)[4:] == (0.3, "changing")


def test_runs_of_other_notebooks_are_passed_over_and_doubles_refused(runs):
    other = run_of(list(SCORES)[0], 0)
    other.config["aggregator"] = None
    assert len(by_cell([*runs, other])) == len(SCORES)
    double = run_of(("sign_flip", "mean", 0.3, "iid", "fixed"), 2)
    double.config["attack_strength"] = 9.0
    with pytest.raises(ValueError, match="two records of seed 2, which differ in attack_strength"):
        accuracy_table([*runs, double])


# --- accuracy ---


def test_means_intervals_and_paired_differences_by_hand(accuracy):
    assert len(accuracy) == len(SCORES) and accuracy["seeds"].eq(4).all()
    for (attack, rule, fraction, partition, schedule), values in SCORES.items():
        panel, fraction = {"iid": IID, "dirichlet": UNEVEN}[partition], 0.0 if attack == "clean" else fraction
        found = row(accuracy, attack=attack, aggregator=rule, fraction=fraction, panel=panel, schedule=schedule)
        assert (found["mean"], found["low"], found["high"]) == pytest.approx(interval(values))
        assert found["label"] == AGGREGATOR_LABELS[rule]
        assert (found["hospitals"], found["attackers"]) == (HOSPITALS, round(10 * fraction))
        difference = values - SCORES["clean", "mean", 0.3, partition, "fixed"]
        if (attack, rule) == ("clean", "mean"):
            assert found[["difference", "diff_low", "p_value", "p_holm"]].isna().all() and found["verdict"] == ""
            continue
        assert (found["difference"], found["diff_low"], found["diff_high"]) == pytest.approx(interval(difference))
        if difference.std() > 1e-12:
            assert found["p_value"] == pytest.approx(stats.ttest_1samp(difference, 0).pvalue)


def test_holm_is_over_the_whole_table(accuracy):
    tested = accuracy.dropna(subset="p_value").sort_values("p_value")
    number, largest = len(tested), 0.0
    assert number == len(SCORES) - 2
    for place, (_, found) in enumerate(tested.iterrows()):
        largest = max(largest, min(1.0, (number - place) * found["p_value"]))
        assert found["p_holm"] == pytest.approx(largest)


def test_verdicts_follow_from_the_stated_limits(accuracy):
    wanted = {
        ("sign_flip", "mean", 0.1): "ruined", ("sign_flip", "mean", 0.3): "ruined",
        ("sign_flip", "krum", 0.3): "ruined", ("sign_flip", "multi_krum", 0.3): "survives",
        ("source_target", "mean", 0.3): "harmed",
        ("source_target", "multi_krum", 0.3): "survives", ("replacement", "mean", 0.1): "unclear",
        ("replacement", "multi_krum", 0.3): "ruined", ("not_finite", "mean", 0.3): "survives",
    }  # fmt: skip
    for (attack, rule, fraction), verdict in wanted.items():
        found = row(accuracy, attack=attack, aggregator=rule, fraction=fraction, schedule="fixed")
        assert found["verdict"] == verdict, found


@pytest.mark.parametrize(
    ("loss", "verdict"),
    [(0.049, "survives"), (0.051, "harmed"), (0.099, "harmed"), (0.101, "ruined"), (-0.2, "survives")],
)
def test_the_limits_are_where_they_are_said_to_be(loss, verdict):
    clean, cell = list(SCORES)[0], ("sign_flip", "mean", 0.3, "iid", "fixed")
    table = accuracy_table([run_of(clean, s, 0.75) for s in SEEDS] + [run_of(cell, s, 0.75 - loss) for s in SEEDS])
    assert row(table, attack="sign_flip")["verdict"] == verdict


def test_a_training_that_broke_down_is_ruin():
    clean, cell = list(SCORES)[0], ("sign_flip", "multi_krum", 0.3, "iid", "fixed")
    members = [run_of(cell, seed, **({"diverged_at_round": {"all": 7}} if seed == 1 else {})) for seed in SEEDS]
    found = row(accuracy_table([run_of(clean, s) for s in SEEDS] + members), attack="sign_flip")
    assert found["diverged"] == 1 and found["verdict"] == "ruined" and found["diff_low"] > -0.05


def test_without_the_same_seeds_nothing_is_compared():
    clean, cell = list(SCORES)[0], ("sign_flip", "mean", 0.3, "iid", "fixed")
    table = accuracy_table([run_of(clean, 0), run_of(clean, 1), *(run_of(cell, seed) for seed in SEEDS)])
    assert table["p_value"].isna().all() and (table["verdict"] == "").all()
    # Fewer seeds than the clean mean has are compared on theirs.
    table = accuracy_table([run_of(clean, seed) for seed in SEEDS] + [run_of(cell, seed) for seed in (1, 3)])
    wanted = (SCORES[cell] - SCORES[clean])[[1, 3]].mean()
    assert row(table, attack="sign_flip")["difference"] == pytest.approx(wanted)


def test_one_seed_has_no_interval():
    table = accuracy_table([run_of(list(SCORES)[0], 0), run_of(("sign_flip", "mean", 0.3, "iid", "fixed"), 0)])
    assert table[["low", "high", "difference"]].isna().all(axis=None) and table["mean"].notna().all()


def test_heat_maps_and_lines_take_the_tables(accuracy, runs):
    grid = at_fraction(accuracy, 0.3)
    assert set(grid["fraction"]) == {0.0, 0.3} and set(grid["schedule"]) == {"fixed"}
    attack_heatmap(grid, value_label="Balanced accuracy (test)")
    assert set(at_fraction(accuracy, 0.3, "changing")["attack"]) == {"clean", "sign_flip"}
    lines = by_fraction(accuracy, IID)
    start = row(lines, attack="sign_flip", aggregator="multi_krum", fraction=0.0)
    assert start["mean"] == row(accuracy, attack="clean", aggregator="multi_krum", panel=IID)["mean"]
    assert lines.query("attack == 'source_target' and fraction == 0")["aggregator"].tolist() == ["mean", "multi_krum"]
    assert (lines["attack"] != "clean").all() and lines["schedule"].eq("fixed").all()
    fraction_lines(lines, value_label="Balanced accuracy (test)")
    rounds = curves([run for run in runs if run.config["attack_schedule"] == "fixed"])
    attack_curves(at_fraction(rounds, 0.3).query("panel == 'IID'"), value_label="Balanced accuracy (test)")


# --- the other tables ---


def test_clean_cost_has_its_own_correction(runs, accuracy):
    cost = clean_cost(runs)
    assert set(cost["attack"]) == {"clean"} and len(cost) == 5
    krum, multi = (row(cost, aggregator=name, panel=IID) for name in ("krum", "multi_krum"))
    assert krum["verdict"] == "worse" and krum["difference"] == pytest.approx(-0.2)
    assert krum["p_holm"] < row(accuracy, attack="clean", aggregator="krum", panel=IID)["p_holm"]
    assert multi["difference"] == pytest.approx(-0.01) and row(cost, aggregator="mean", panel=IID)["verdict"] == ""
    swapped = [run_of(("clean", "multi_krum", 0.3, "iid", "fixed"), seed, 0.8 + NOISE[3 - seed]) for seed in SEEDS]
    close = clean_cost([run_of(list(SCORES)[0], seed) for seed in SEEDS] + swapped)
    assert row(close, aggregator="multi_krum")["verdict"] == "not significant"


def test_source_recall_and_what_it_is_called(runs):
    table = source_recall_table(runs)
    assert set(table["attack"]) == {"clean", "source_target"} and set(table["source"]) == {"glioma"}
    found = row(table, attack="source_target", aggregator="mean")
    assert found["target"] == "no_tumor" and found["mean"] == pytest.approx(0.415)
    called = interval([0.5, 0.51, 0.52, 0.53])
    assert (found["called"], found["called_low"], found["called_high"]) == pytest.approx(called)
    assert found["difference"] == pytest.approx(-0.5) and found["p_holm"] < 0.05
    clean = row(table, attack="clean", aggregator="krum", panel=UNEVEN)
    assert (clean["called"], clean["mean"]) == pytest.approx((0.05, 0.915))


def test_backdoors_stand_beside_clean_federations(runs):
    table = backdoor_table(runs)
    assert set(table["attack"]) == {"clean", "replacement"} and set(table["target"]) == {"no_tumor"}
    values = 0.95 + 0.001 * np.array(SEEDS)
    found = row(table, attack="replacement", aggregator="multi_krum")
    assert (found["mean"], found["low"], found["high"]) == pytest.approx(interval(values))
    assert found["difference"] == pytest.approx(0.85)
    assert len(table[table["attack"] == "clean"]) == 5
    assert backdoor_table([run for run in runs if run.config["attack"] is None]).empty


def test_shares_stay_within_0_and_1():
    cell = ("replacement", "mean", 0.3, "iid", "fixed")
    members = [run_of(cell, seed) for seed in SEEDS]
    for run, value in zip(members, (1.0, 1.0, 1.0, 0.7), strict=True):
        run.metrics.loc[run.metrics["split"] == "marked_2", "value"] = value
    found = row(backdoor_table(members), attack="replacement")
    mean, low, high = interval((1, 1, 1, 0.7))
    assert high > 1 and (found["mean"], found["low"], found["high"]) == pytest.approx((mean, low, 1.0))


def test_detection_by_hand(runs):
    table = detection_table(runs)
    assert set(table["aggregator"]) == {"mean"}
    cell = {"attack": "sign_flip", "fraction": 0.3}
    wanted = {
        ("pca", "precision"): 3 / 4, ("pca", "recall"): 1 / 2, ("pca", "false_alarms"): 1 / 14,
        ("cosine", "precision"): 1.0, ("cosine", "recall"): 2 / 3, ("cosine", "false_alarms"): 0.0,
    }  # fmt: skip
    for (detector, metric), value in wanted.items():
        found = row(table, **cell, detector=detector, metric=metric)
        # Equal in all seeds: the interval is a point. Even rounds without a flag have no precision.
        assert (found["mean"], found["low"], found["high"], found["seeds"]) == pytest.approx((value, value, value, 4))
    for attack in ("clean", "not_finite"):
        rows = table[(table["attack"] == attack) & (table["panel"] == IID)]
        assert rows["mean"].notna().sum() == 2
        assert set(rows.dropna(subset="mean")["metric"]) == {"false_alarms"}
    assert row(table, attack="clean", panel=IID, detector="cosine", metric="false_alarms")["mean"] == pytest.approx(0.2)
    assert row(table, attack="not_finite", detector="pca", metric="false_alarms")["mean"] == pytest.approx(1 / 14)
    detection_scores(table[(table["panel"] == IID) & table["fraction"].isin([0.0, 0.3])])


def test_seeds_in_which_a_score_is_not_defined_are_left_out():
    members = [run_of(("sign_flip", "mean", 0.3, "iid", "fixed"), seed) for seed in SEEDS]
    quiet = members[0].metrics
    quiet.loc[quiet["metric"] == "flag_pca", "value"] = 0.0
    table = detection_table(members)
    assert row(table, detector="pca", metric="precision")["seeds"] == 3
    assert row(table, detector="pca", metric="recall")["mean"] == pytest.approx(3 / 4 * 1 / 2)
    without = members[0].metrics[members[0].metrics["split"] != "update"]
    with pytest.raises(ValueError, match="no rows of split 'update'"):
        detection_table([RunRecord(members[0].config, without, members[0].predictions, {}, Path("broken"))])


def test_points_of_single_updates(runs):
    chosen = [run for run in runs if run.config["partition"] == "iid" and run.config["attack_fraction"] in (None, 0.3)]
    points = update_points(chosen, [2, 5], seed=3)
    assert set(points["attack"]) == {"clean", "sign_flip", "source_target", "replacement", "not_finite"}
    found = row(points, attack="sign_flip", round=5, client=2)
    assert (found["pca_0"], found["pca_1"], found["attacker"], found["flagged"]) == (5.0, 5.0, True, True)
    assert not row(points, attack="sign_flip", round=2, client=2)["flagged"]
    assert not points[points["attack"] == "clean"]["attacker"].any()
    update_map(points)
    with pytest.raises(ValueError, match="'sign_flip' has several cells"):
        update_points(runs, [2], seed=3)
    with pytest.raises(ValueError, match=r"has updates of seed 3 in the rounds \[99\]"):
        update_points(chosen, [99], seed=3)


def test_unusual_hospitals_by_hand(runs):
    table = unusual_hospitals(runs)
    # Hospital 1 has 9 test images, one too few; the mean is not compared with itself; IID is left out.
    assert set(table["aggregator"]) == {"krum"} and len(table) == 4 * 9 and 1 not in set(table["client"])
    assert set(table["panel"]) == {UNEVEN}
    everyone = np.sum(UNEVEN_COUNTS, axis=0) / np.sum(UNEVEN_COUNTS)
    found = row(table, client=0, seed=2)
    assert found["distance"] == pytest.approx(1 - everyone[0]) and found["difference"] == pytest.approx(-0.3)
    usual = row(table, client=4, seed=2)
    assert usual["distance"] == pytest.approx(np.abs(np.array([5, 6, 10, 10]) / 31 - everyone).sum() / 2)
    assert usual["difference"] == pytest.approx(-0.04)


def test_correlation_with_its_interval_over_seeds(runs):
    hospitals = unusual_hospitals(runs)
    found = row(unusual_correlation(hospitals), aggregator="krum")
    assert found["mean"] == pytest.approx(stats.spearmanr(hospitals["distance"], hospitals["difference"]).statistic)
    assert (found["seeds"], found["hospitals"]) == (4, 36) and found["low"] <= found["mean"] <= found["high"] < 0
    pd.testing.assert_series_equal(found, row(unusual_correlation(hospitals), aggregator="krum"))
    alone = row(unusual_correlation(hospitals[hospitals["seed"] == 0]), aggregator="krum")
    assert math.isnan(alone["low"]) and alone["mean"] < 0
    level = row(unusual_correlation(hospitals.assign(difference=0.0)), aggregator="krum")
    assert math.isnan(level["mean"]) and math.isnan(level["low"])


def test_the_seeds_are_drawn_not_the_hospitals():
    """Seeds that disagree make the interval wide, however many hospitals they have."""
    rng = np.random.default_rng(0)
    distance = np.tile(np.linspace(0, 1, 50), 4)
    sign = np.repeat([1, 1, -1, -1], 50)
    table = pd.DataFrame({
        "dataset": "brain_mri", "panel": UNEVEN, "aggregator": "krum", "seed": np.repeat(range(4), 50), "client": 0,
        "distance": distance, "difference": sign * distance + 0.01 * rng.normal(size=200),
    })
    found = unusual_correlation(table).iloc[0]
    assert found["low"] < -0.5 and found["high"] > 0.5


def test_curves_by_round(runs):
    table = curves(runs)
    assert len(table) == len(SCORES) * ROUNDS
    cell = ("sign_flip", "mean", 0.3, "iid", "fixed")
    last = row(table, attack="sign_flip", aggregator="mean", fraction=0.3, round=ROUNDS)
    assert (last["mean"], last["low"], last["high"]) == pytest.approx(interval(SCORES[cell] - 0.01))
    assert row(table, attack="sign_flip", aggregator="mean", fraction=0.3, round=1)["mean"] == pytest.approx(0.2)
    marked = curves(runs, "accuracy", "marked_2")
    assert set(marked["attack"]) == {"clean", "replacement"} and set(CELL) <= set(marked)
    short = [run_of(cell, seed) for seed in SEEDS]
    short[0] = RunRecord(short[0].config, short[0].metrics.query("round < 4"), short[0].predictions, {}, Path("short"))
    assert curves(short)["seeds"].tolist() == [4, 4, 4, 3, 3, 3]


# --- sentences ---


def said(runs, **replaced):
    tables = {
        "accuracy": accuracy_table(runs), "cost": clean_cost(runs), "backdoor": backdoor_table(runs),
        "source": source_recall_table(runs), "detection": detection_table(runs),
        "unusual": unusual_correlation(unusual_hospitals(runs)),
    }
    (text,) = answer(**tables | replaced)
    return text


@pytest.fixture(scope="module")
def text(runs):
    return said(runs)


def line(text, start):
    (found,) = [line for line in text.split("\n") if line.startswith(f"* **{start}")]
    return found


def number(row, kind=""):
    names = ("difference", "diff_low", "diff_high") if kind else ("mean", "low", "high")
    form = "{:+.3f} [{:+.3f}, {:+.3f}]" if kind else "{:.3f} [{:.3f}, {:.3f}]"
    return form.format(*(row[name] for name in names))


def test_one_bad_hospital_and_the_mean(text, accuracy):
    assert text.startswith("**Brain MRI**\n")
    found = line(text, "One bad hospital of 10** and the plain mean, IID")
    assert f"(clean {number(row(accuracy, attack='clean', aggregator='mean', panel=IID))})" in found
    flipped = row(accuracy, attack="sign_flip", aggregator="mean", fraction=0.1)
    replaced = row(accuracy, attack="replacement", aggregator="mean", fraction=0.1)
    assert f"ruined by Sign flipped, 5 times {number(flipped, 'difference')}" in found
    assert f"unclear under Backdoor, scaled up {number(replaced, 'difference')}" in found


def test_what_ruins_the_mean_is_said_from_the_lowest_fraction_on(text):
    found = line(text, "The mean is ruined** (IID)")
    assert "Sign flipped, 5 times (from 10% on" in found and "Backdoor, scaled up (from 30% on" in found
    assert "not shown to be ruined by Source called target, Not finite (fault)" in found
    # Nothing is ruined where nothing is.
    calm = [run_of(c, s) for c in SCORES for s in SEEDS if c[0] in ("clean", "source_target", "not_finite")]
    wanted = "No attack that was run is shown to ruin the mean** (IID; Source called target, Not finite (fault))"
    assert wanted in said(calm)


def test_who_survives_and_what_nobody_survives(text, accuracy):
    found = line(text, "30% bad hospitals, IID** (4 attacks, 3 rules)")
    assert "no rule is shown to survive all that was run against it" in found
    best = row(accuracy, attack="replacement", aggregator="krum", fraction=0.3)
    wanted = f"Backdoor, scaled up (all 3 rules ruined; best Krum {number(best)}, ruined)"
    assert f"no rule is shown to survive {wanted}" in found
    assert "10% bad hospitals" not in text  # one rule alone
    without = [run_of(c, s) for c in SCORES for s in SEEDS if c[0] != "replacement"]
    found = line(said(without), "30% bad hospitals, IID** (3 attacks, 3 rules)")
    assert "is survived by Multi-Krum (2 run); each attack is survived by some rule." in found


def test_changing_cost_backdoor_and_source(text, accuracy, runs):
    changing = row(accuracy, attack="sign_flip", schedule="changing")
    found = line(text, "Other bad hospitals in each round** (IID)")
    assert f"Multi-Krum {number(changing, 'difference')} (survives)" in found
    cost = clean_cost(runs)
    for name in ("krum", "multi_krum"):
        found = row(cost, aggregator=name, panel=IID)
        wanted = f"{AGGREGATOR_LABELS[name]} {number(found, 'difference')} ({found['verdict']})"
        assert wanted in line(text, "Cost without an attack** against the mean, IID")
    doors = backdoor_table(runs)
    found = line(text, "Backdoor, scaled up** (30% bad hospitals, IID), share of marked images called no_tumor")
    for name in ("mean", "krum", "multi_krum"):
        one = row(doors, attack="replacement", aggregator=name, fraction=0.3)
        assert f"{AGGREGATOR_LABELS[name]} {number(one)} (above it)" in found
    clean = row(doors, attack="clean", aggregator="mean", panel=IID)
    assert f"in a clean federation with the mean {number(clean)}" in found
    recall = number(row(source_recall_table(runs), attack="source_target", aggregator="mean"))
    found = line(text, "glioma called no_tumor** (30% bad hospitals, IID)")
    assert f"recall of glioma: Mean {recall} (below it)" in found


def test_a_backdoor_without_effect_is_not_called_one():
    cells = [("clean", "mean", 0.3, "iid", "fixed"), ("replacement", "krum", 0.3, "iid", "fixed")]
    members = [run_of(cell, seed) for cell in cells for seed in SEEDS]
    for run in members:
        marked = run.metrics["split"] == "marked_2"
        run.metrics.loc[marked, "value"] = 0.1 + 0.01 * (-1) ** (run.config["seed"] + (run.config["attack"] is None))
    assert "Krum 0.100 [0.082, 0.118] (not significant)" in line(said(members), "Backdoor, scaled up**")


def test_looks_and_unusual_hospitals(text, runs):
    found = line(text, "Seen in the updates** by two principal components (IID)")
    assert "Sign flipped, 5 times 50% (75%)" in found and "Not finite" not in found
    assert "where nobody attacks, it flags a share of 0.200 [0.200, 0.200] of a round's hospitals" in found
    assert "Sign flipped, 5 times 67% (100%)" in line(text, "Seen in the updates** by cosine distance (IID)")
    correlation = unusual_correlation(unusual_hospitals(runs))
    wanted = f"Krum {number(correlation.iloc[0])} (the more unusual, the more it loses)"
    assert wanted in line(text, "Honest but unusual hospitals** (Dirichlet 0.5)")
    for low, high, words in ((-0.2, 0.3, "no link shown"), (0.1, 0.3, "the less it loses")):
        table = correlation.assign(mean=(low + high) / 2, low=low, high=high)
        assert words in line(said(runs, unusual=table), "Honest but unusual hospitals**")


def test_one_seed_claims_nothing():
    text = said([run_of(cell, 0) for cell in SCORES])
    assert "not compared under Sign flipped, 5 times without a difference" in text
    assert "too few seeds to say who survives" in text
    for claim in ("survives ", "survived by", "ruined by Sign", "(above it)", "(worse)", "the more it loses"):
        assert claim not in text, claim


def test_what_was_not_run_is_not_spoken_of():
    text = said([run_of(cell, seed) for cell in SCORES if cell[0] in ("clean", "sign_flip") for seed in SEEDS])
    for word in ("Backdoor", "recall of", "nan", "Source"):
        assert word not in text, word
    nobody = said([run_of(cell, seed) for cell in SCORES if cell[0] == "clean" for seed in SEEDS])
    assert "ruin" not in nobody and "Cost without an attack" in nobody


def test_the_main_fraction_is_that_of_most_cells(accuracy):
    assert main_fraction(accuracy) == 0.3
    assert main_fraction(accuracy[accuracy["fraction"] == 0.1]) == 0.1
    assert main_fraction(accuracy[accuracy["attack"] == "clean"]) == 0.0


def test_the_words_of_the_verdicts_are_explained_with_their_limits():
    assert "-0.05" in meaning() and "-0.10" in meaning()


def test_the_headline_is_of_the_rule_that_survives_most(accuracy, runs):
    backdoor = backdoor_table(runs)
    found, fraction = headline(accuracy, backdoor), main_fraction(accuracy)
    iid = accuracy[(accuracy["panel"] == IID) & (accuracy["fraction"] == fraction) & (accuracy["schedule"] == "fixed")]
    worst = iid[iid["aggregator"] == "mean"].sort_values("mean").iloc[0]
    assert f"With {fraction:.0%} bad hospitals" in found and f"to {number(worst)}." in found
    rule = next(key for key, label in AGGREGATOR_LABELS.items() if f"**{label} is shown to survive most" in found)
    opened = set(backdoor[(backdoor["panel"] == IID) & (backdoor["diff_low"] > 0)][["attack", "aggregator"]].itertuples(index=False, name=None))
    good = {
        name: sum(row.verdict == "survives" and (row.attack, name) not in opened for row in rows.itertuples())
        for name, rows in iid.groupby("aggregator")
    }
    assert good[rule] == max(good.values()) and f"{good[rule]} of the {(iid['aggregator'] == rule).sum()} attacks" in found
    assert headline(accuracy[accuracy["attack"] == "clean"], backdoor) == "No attack was run."
