"""Notebook 06's tables and sentences from made-up runs and attacks, against numbers by hand."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fl_utils.config import PROTECTION_LABELS
from fl_utils.experiments import privacy_answer, privacy_report
from fl_utils.experiments.inversion_plan import CONDITIONS
from fl_utils.experiments.inversion_runs import Inversion
from fl_utils.experiments.membership_runs import FPR, Membership
from fl_utils.experiments.privacy_answer import COLUMNS, SEEN, answer, grid_table, protection_grid
from fl_utils.experiments.privacy_plan import UNTUNED, arm_of, privacy_config
from fl_utils.experiments.privacy_report import (
    accuracy_table, frontier, inversion_points, inversion_table, membership_curves, membership_summary, same_model,
)
from fl_utils.records import RunRecord
from tests.unit.made_tables import interval, row

DATASET, PANEL, SEEDS = "chest_xray", "Chest X-ray", (0, 1, 2, 3)
#: Right among 20 sick and 20 healthy test images, by seed: the balanced accuracy is their sum over 40.
RIGHT = {
    "none": (34, 36, 35, 37), "longer": (35, 36, 36, 37), "patient_8": (28, 31, 29, 30), "patient_1": (20, 22, 21, 21),
    "encrypted": (34, 36, 35, 37), "both": (28, 31, 29, 30), "hospital_few": (24, 26, 26, 25),
    "none_many": (33, 34, 36, 35), "hospital_many": (25, 36, 34, 28),
}  # fmt: skip
SICK = {arm: tuple(right // 2 for right in rights) for arm, rights in RIGHT.items()}
MINUTES = {"none": 1.0, "longer": 1.5, "patient_8": 5.0, "encrypted": 2.0}
LABELS = np.repeat([0, 1], 20)


def predictions(right, sick, sure=0.8):
    """`sick` of 20 sick and `right - sick` of 20 healthy images are right."""
    called = np.concatenate([np.arange(20) >= right - sick, np.arange(20) < sick])
    p1 = np.where(called, sure, 1 - sure)
    columns = {"client": "all", "split": "test", "example": range(40), "label": LABELS, "p0": 1 - p1, "p1": p1}
    return pd.DataFrame(columns)


def run_of(arm, seed, table=None, dataset=DATASET, **environment):
    config = privacy_config("paper", dataset, arm, seed, **UNTUNED[arm])
    assert arm_of(config) == arm
    if table is None:
        place = SEEDS.index(seed)
        table = predictions(RIGHT[arm][place], SICK[arm][place])
    facts = {"duration_s": 60 * MINUTES.get(arm, 1.0), "class_names": ["normal", "pneumonia"]}
    if config.privacy_unit:
        facts["privacy"] = {"epsilon": config.epsilon - 0.01, "noise_multiplier": 1.5}
    return RunRecord(config.model_dump(), pd.DataFrame(), table, facts | environment, Path(f"{dataset}_{arm}_s{seed}"))


def local_run(seed):
    """Five hospitals' models: right in 30, 32, 34, 36 and 38 of 40."""
    tables = [predictions(right, right // 2).assign(client=str(c)) for c, right in enumerate((30, 32, 34, 36, 38))]
    return run_of("local", seed, pd.concat(tables))


@pytest.fixture(scope="module")
def runs():
    # Out of order: neither arms nor seeds come sorted.
    return [run_of(arm, seed) for seed in SEEDS[::-1] for arm in RIGHT] + [local_run(seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def accuracy(runs):
    return accuracy_table(runs)


# --- accuracy ---


def test_means_and_intervals_by_hand(accuracy):
    assert set(accuracy["arm"]) == {*RIGHT, "local"} and accuracy["seeds"].eq(4).all()
    for arm, right in RIGHT.items():
        found = row(accuracy, arm=arm)
        low, high = interval(np.array(right) / 40)[1:]
        assert (found["mean"], found["low"], found["high"]) == pytest.approx((np.mean(right) / 40, low, high))
        assert found["label"] == PROTECTION_LABELS[arm] and found["panel"] == PANEL and found["dataset"] == DATASET
        assert found["minutes"] == pytest.approx(MINUTES.get(arm, 1.0))
    local = row(accuracy, arm="local")
    assert local["mean"] == pytest.approx(34 / 40) and local["low"] == local["high"] == pytest.approx(34 / 40)
    assert accuracy["arm"].tolist() == [arm for arm in PROTECTION_LABELS if arm in {*RIGHT, "local"}]


def test_differences_are_paired_by_seed_and_against_as_many_hospitals(accuracy):
    for arm, against in (("patient_1", "none"), ("longer", "none"), ("both", "none"), ("hospital_many", "none_many")):
        found = row(accuracy, arm=arm)
        difference = (np.array(RIGHT[arm]) - np.array(RIGHT[against])) / 40
        wanted = interval(difference)
        assert (found["difference"], found["diff_low"], found["diff_high"]) == pytest.approx(wanted)
        assert found["p_value"] == pytest.approx(stats.ttest_1samp(difference, 0).pvalue)
    for arm in ("none", "none_many"):  # compared with nothing
        assert row(accuracy, arm=arm)[["difference", "p_value", "p_holm"]].isna().all()
        assert row(accuracy, arm=arm)["verdict"] == ""


def test_holm_over_the_whole_table_and_its_verdicts(accuracy):
    tested = accuracy.dropna(subset="p_value").sort_values("p_value")
    number, largest = len(tested), 0.0
    assert number == len(RIGHT) + 1 - 2
    for place, (_, found) in enumerate(tested.iterrows()):
        largest = max(largest, min(1.0, (number - place) * found["p_value"]))
        assert found["p_holm"] == pytest.approx(largest)
        if largest >= 0.05:
            assert found["verdict"] == "not significant"
        else:
            assert found["verdict"] == ("better" if found["difference"] > 0 else "worse")
    verdicts = accuracy.set_index("arm")["verdict"]
    assert verdicts[["patient_1", "patient_8", "hospital_few"]].eq("worse").all()
    # Equal runs do not differ; a large difference that varies as much is none.
    assert verdicts["encrypted"] == "not significant" and row(accuracy, arm="encrypted")["p_value"] == 1
    assert verdicts["hospital_many"] == "not significant" and row(accuracy, arm="hospital_many")["difference"] < -0.08
    better = [run_of("none", s) for s in SEEDS] + [run_of("longer", s, predictions(39, 19)) for s in SEEDS]
    assert row(accuracy_table(better), arm="longer")["verdict"] == "better"


def test_epsilon_stands_with_its_unit_and_only_where_there_is_one(accuracy):
    eight, few = row(accuracy, arm="patient_8"), row(accuracy, arm="hospital_few")
    assert (eight["unit"], eight["target"], eight["delta"]) == ("patient", 8.0, 1e-4)
    assert eight["epsilon"] == pytest.approx(7.99) and eight["noise_multiplier"] == 1.5
    assert (few["unit"], few["target"], few["delta"]) == ("hospital", 8.0, 1e-2)
    plain = accuracy[accuracy["unit"] == ""]
    assert set(plain["arm"]) == {"none", "longer", "encrypted", "local", "none_many"}
    assert plain[["target", "epsilon", "delta", "noise_multiplier"]].isna().all(axis=None)


def test_seeds_that_do_not_pair_are_not_tested():
    table = accuracy_table([run_of("none", 0), run_of("none", 1), run_of("longer", 1), run_of("longer", 2)])
    assert table["p_value"].isna().all() and table["verdict"].eq("").all()
    one = accuracy_table([run_of("none", 0), run_of("patient_8", 0)])
    assert one["low"].isna().all() and one["verdict"].eq("").all() and one["mean"].notna().all()


def test_balanced_accuracy_is_the_mean_of_the_classes_and_accuracy_that_of_the_images():
    uneven = predictions(34, 20).iloc[10:]  # 4 of 10 healthy, 20 of 20 sick
    runs = [run_of("none", 0, uneven)]
    assert accuracy_table(runs)["mean"].item() == pytest.approx((4 / 10 + 1) / 2)
    assert accuracy_table(runs, "accuracy")["mean"].item() == pytest.approx(24 / 30)


def test_diverged_runs_are_counted():
    runs = [run_of("none", 0), run_of("none", 1, diverged_at_round={"all": 2})]
    assert accuracy_table(runs)["diverged"].item() == 1


def test_data_sets_are_not_mixed():
    arms = [(name, arm) for name in (DATASET, "brain_mri") for arm in ("none", "longer")]
    table = accuracy_table([run_of(arm, seed, dataset=name) for name, arm in arms for seed in SEEDS])
    assert list(zip(table["dataset"], table["arm"], strict=True)) == arms
    for name in (DATASET, "brain_mri"):
        assert row(table, dataset=name, arm="longer")["p_value"] < 1


# --- the frontier ---


def test_the_frontier_has_points_with_an_epsilon_and_bands_without(accuracy):
    table = frontier(accuracy, {DATASET: 2})
    points = table.dropna(subset="epsilon")
    patient = points[points["series"] == "Patient-level DP"].set_index("epsilon")
    assert sorted(patient.index) == [1, 8] and patient["unit"].eq("patient").all()
    for epsilon in (1, 8):
        found = row(accuracy, arm=f"patient_{epsilon}")
        for name in ("mean", "low", "high"):
            assert patient.loc[epsilon, name] == found[name]
    assert set(points["series"]) == {
        "Patient-level DP", "Hospital-level DP, 5 hospitals", "Hospital-level DP, 50 hospitals",
    }  # fmt: skip
    bands = table[table["epsilon"].isna()].set_index("series")
    assert set(bands.index) == {*(PROTECTION_LABELS[arm] for arm in ("none", "local", "none_many")), "Chance"}
    assert bands.loc["Chance", ["mean", "low", "high"]].tolist() == [0.5, 0.5, 0.5]
    assert table["panel"].eq(PANEL).all() and bands["unit"].eq("").all()
    # The same model twice would be one point drawn twice.
    assert len(points) == 4


def test_chance_is_that_of_the_data_sets_classes(accuracy):
    assert row(frontier(accuracy, {DATASET: 4}), series="Chance")["mean"] == 0.25


# --- the same model ---


def test_encrypted_sums_are_compared_with_the_same_training_in_plain():
    plain = [run_of("none", seed) for seed in (0, 1)]
    moved = predictions(RIGHT["none"][1], SICK["none"][1])
    moved.loc[3, ["p0", "p1"]] = [0.49, 0.51]  # a healthy image that was right at 0.2
    secret = [run_of("encrypted", 0), run_of("encrypted", 1, moved)]
    table = same_model(secret + plain)
    assert table[["dataset", "arm", "plain"]].drop_duplicates().to_numpy().tolist() == [[DATASET, "encrypted", "none"]]
    for name, values in {"seed": [0, 1], "flipped": [0, 1], "images": [40, 40]}.items():
        assert table[name].tolist() == values
    assert table["max_difference"].tolist() == pytest.approx([0, 0.31])
    both = same_model([run_of(arm, 0) for arm in ("patient_8", "both", "none")])
    assert both[["arm", "plain"]].to_numpy().tolist() == [["both", "patient_8"]]


def test_without_encrypted_runs_there_is_nothing_to_compare_and_nothing_is_said(accuracy, inversion, membership):
    same = same_model([run_of("none", 0), run_of("patient_8", 0)])
    assert same.empty
    assert "Encrypted" not in answer(accuracy[accuracy["arm"] == "none"], inversion, membership, same)[0]


def test_seeds_without_a_plain_run_are_left_out():
    assert same_model([run_of("encrypted", 0)]).empty
    table = same_model([run_of("none", 1), run_of("none", 2)] + [run_of("encrypted", seed) for seed in (0, 1)])
    assert table["seed"].tolist() == [1] and table["max_difference"].tolist() == [0]


def test_noise_by_size_is_the_accountants_over_the_patients_of_a_step(monkeypatch):
    asked = []

    def noted(epsilon, terms):
        asked.append((epsilon, terms.rate, terms.steps, terms.delta, terms.unit))
        return 2.0 / epsilon

    monkeypatch.setattr(privacy_report, "noise_multiplier_for", noted)
    table = privacy_report.noise_by_size((100, 1000), (8.0, 1.0), rate=0.2, passes=4)
    assert asked == [(e, 0.2, 20, 0.1 / n, "patient") for n in (100, 1000) for e in (8.0, 1.0)]
    assert table["patients"].tolist() == [100, 1000] and table["delta"].tolist() == [1e-3, 1e-4]
    assert table["epsilon 1"].tolist() == pytest.approx([2 / 20, 2 / 200])
    assert table["epsilon 8"].tolist() == pytest.approx([0.25 / 20, 0.25 / 200])


# --- inversion ---

SSIM = {  # by seed, for each image
    "one": [[0.9], [0.8], [0.85], [0.95]], "four": [[0.5, 0.6, 0.4, 0.5]] * 2 + [[0.55, 0.6, 0.45, 0.5]] * 2,
    "patient_8": [[0.05], [0.3], [0.1], [0.2]], "longer": [[0.3, 0.5, 0.3, 0.3], [0.4] * 4, [0.2] * 4, [0.4] * 4],
    "hospital_few": [[0.1], [0.1], [0.12], [0.08]],
}  # fmt: skip
OTHER = 0.2


def inversion_of(seed, dataset=DATASET, ssim=SSIM):
    rows = []
    for condition, by_seed in ssim.items():
        for image, value in enumerate(by_seed[seed]):
            rows.append({
                "image": image, "reconstruction": image, "ssim": value, "psnr_db": 40 * value, "noise_ssim": 0.01,
                "noise_psnr_db": 7.0, "random_other_ssim": OTHER + 0.01 * seed, "random_other_psnr_db": 12.0,
                "best_other_ssim": 0.6, "best_other_psnr_db": 18.0, "rank": 1 if value > 0.45 else 5, "mismatch": 0.1,
                "labels_right": 1.0 if condition == "one" else 0.5, "duration_s": 3.0, "condition": condition,
            })
    return Inversion(dataset, seed, {"synthetic": False}, pd.DataFrame(rows), np.arange(4))


@pytest.fixture(scope="module")
def inverted():
    return [inversion_of(seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def inversion(inverted):
    return inversion_table(inverted)


def test_inversion_is_over_seeds_of_means_over_images(inversion):
    for condition, by_seed in SSIM.items():
        means = [np.mean(values) for values in by_seed]
        found, (low, high) = row(inversion, condition=condition), interval(means)[1:]
        assert (found["mean"], found["low"], found["high"]) == pytest.approx((np.mean(means), low, high))
        assert found["label"] == CONDITIONS[condition].label
        assert (found["images"], found["seeds"]) == (len(by_seed[0]), 4)
        above = np.array(means) - [OTHER, OTHER + 0.01, OTHER + 0.02, OTHER + 0.03]
        assert found["above"] == pytest.approx(above.mean())
        assert found["p_value"] == pytest.approx(stats.ttest_1samp(above, 0).pvalue)
        assert (found["noise"], found["best_other"]) == pytest.approx((0.01, 0.6))
        assert found["random_other"] == pytest.approx(OTHER + 0.015)
    assert row(inversion, condition="one")[["identified", "labels_right", "seconds"]].tolist() == [1, 1, 3]
    wanted = np.mean(np.array(SSIM["four"]) > 0.45)
    assert row(inversion, condition="four")["identified"] == pytest.approx(wanted)


def test_an_attack_works_where_it_beats_a_random_other_image_after_holm(inversion):
    order = inversion.sort_values("p_value")
    largest = 0.0
    for place, (_, found) in enumerate(order.iterrows()):
        largest = max(largest, min(1.0, (len(order) - place) * found["p_value"]))
        assert found["p_holm"] == pytest.approx(largest)
    works = inversion.set_index("condition")["works"]
    assert works["one"] and works["four"]
    # Significantly below a random image is no success; above it, but not significantly, neither.
    assert row(inversion, condition="hospital_few")["p_holm"] < 0.05 and not works["hospital_few"]
    assert row(inversion, condition="longer")["above"] > 0 and not works["longer"]


def test_one_seed_has_neither_interval_nor_verdict():
    table = inversion_table([inversion_of(0)])
    assert table["low"].isna().all() and "works" not in table and table["mean"].notna().all()


def test_psnr_is_compared_with_psnr(inverted):
    found = row(inversion_table(inverted, "psnr_db"), condition="one")
    assert found["mean"] == pytest.approx(40 * np.mean(SSIM["one"])) and found["random_other"] == 12
    assert found["above"] == pytest.approx(found["mean"] - 12) and found["best_other"] == 18


def test_points_are_images(inverted):
    points = inversion_points(inverted)
    assert len(points) == 4 * sum(len(by_seed[0]) for by_seed in SSIM.values())
    assert set(points["condition"]) == {CONDITIONS[name].label for name in SSIM} and points["panel"].eq(PANEL).all()
    of_one = points[points["condition"] == CONDITIONS["one"].label]
    assert of_one["value"].tolist() == [0.9, 0.8, 0.85, 0.95] and of_one["image"].nunique() == 4


# --- membership ---


def membership_of(arm, tpr, auc=0.6, lira=None):
    """By target: the rates of the loss threshold, and of LiRA where it was run."""
    rows = []
    for attack, rates in {"loss": tpr, "lira": lira}.items():
        for target, rate in enumerate(rates or ()):
            for unit, shift in (("image", 0.01), ("patient", 0.0)):
                for metric, value in (("auc", auc), ("tpr_at_fpr", rate + shift), ("advantage", 0.1)):
                    rows.append((unit, metric, value, 0.0, 1.0, 150, 150, target, attack))
    columns = ["unit", "metric", "mean", "low", "high", "num_members", "num_others", "target", "attack"]
    fit = pd.DataFrame({"accuracy_members": [0.9, 1.0, 0.95], "accuracy_others": [0.8, 0.85, 0.9]})
    known = ["loss"] + (["lira"] if lira else [])
    curves = pd.DataFrame([(a, f, f**0.5) for a in known for f in (0.01, 0.1, 1.0)], columns=["attack", "fpr", "tpr"])
    facts = {"num_shadows": 11 if lira else 0, "class_names": ["normal", "pneumonia"], "synthetic": False}
    return Membership(DATASET, arm, facts, pd.DataFrame(rows, columns=columns), fit, curves)


@pytest.fixture(scope="module")
def attacked():
    none = membership_of("none", (0.04, 0.05, 0.06), lira=(0.1, 0.12, 0.14))
    return [
        none, membership_of("patient_8", (0.01, 0.012, 0.008)), membership_of("hospital_few", (0.001, 0.003, 0.002)),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def membership(attacked):
    return membership_summary(attacked)


def test_membership_is_over_targets(membership):
    found = row(membership, arm="none", attack="LiRA", unit="patient", metric="tpr_at_fpr")
    half = 4.30265273 * 0.02 / math.sqrt(3)
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((0.12, 0.12 - half, 0.12 + half))
    assert (found["targets"], found["chance"], found["num_shadows"]) == (3, FPR, 11)
    assert found["gap"] == pytest.approx((0.1 + 0.15 + 0.05) / 3) and found["label"] == PROTECTION_LABELS["none"]
    loss = row(membership, arm="patient_8", attack="Loss threshold", unit="image", metric="tpr_at_fpr")
    assert loss["mean"] == pytest.approx(0.02) and loss["num_shadows"] == 0
    chance = membership.groupby("metric")["chance"].first()
    assert chance["auc"] == 0.5 and chance["advantage"] == 0
    assert set(membership.query("arm == 'patient_8'")["attack"]) == {"Loss threshold"}


def test_curves_are_liras_where_it_was_run(attacked):
    curves = membership_curves(attacked)
    assert curves.groupby("arm")["attack"].unique().map(list).to_dict() == {
        "none": ["LiRA"], "patient_8": ["Loss threshold"], "hospital_few": ["Loss threshold"],
    }  # fmt: skip
    assert set(membership_curves(attacked, "loss")["attack"]) == {"Loss threshold"}


# --- the grid ---

BYTES = {"plain": 1e6, "CKKS": 5e6}


@pytest.fixture(scope="module")
def grid(accuracy, inversion, membership):
    return protection_grid(accuracy, inversion, membership, BYTES)


def cell(grid, arm, column):
    return row(grid, arm=arm, column=COLUMNS[column])


def test_the_grid_has_every_arm_and_column_with_badness_in_range(grid, accuracy):
    assert len(grid) == len(accuracy) * len(COLUMNS) and not grid.duplicated(["panel", "arm", "column"]).any()
    known = grid["badness"].dropna()
    assert known.between(0, 1).all() and len(known) > len(accuracy)
    for arm in accuracy["arm"]:
        assert grid.loc[grid["arm"] == arm, "open"].unique().tolist() == [SEEN[arm].open]
    assert grid["text"].map(len).gt(0).all()


def test_accuracy_is_bad_by_its_distance_from_the_best(grid, accuracy):
    best, worst = accuracy["mean"].max(), accuracy["mean"].min()
    for found in accuracy.itertuples():
        one = cell(grid, found.arm, "accuracy")
        assert one["value"] == found.mean and one["badness"] == pytest.approx((best - found.mean) / (best - worst))
        assert f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]" == one["text"]
    assert cell(grid, "patient_1", "accuracy")["badness"] == 1


def test_epsilon_says_its_unit(grid):
    assert cell(grid, "patient_8", "epsilon")["text"] == "8 (patient)"
    assert cell(grid, "hospital_many", "epsilon")["text"] == "8 (hospital)"
    without = cell(grid, "encrypted", "epsilon")
    assert without["text"] == "none" and math.isnan(without["value"])


def test_inversion_is_bad_above_a_random_other_image_and_empty_where_there_is_nothing(grid, inversion):
    one = row(inversion, condition="one")
    found = cell(grid, "none", "server")
    assert found["value"] == one["mean"] and found["text"] == f"{one['mean']:.2f} [{one['low']:.2f}, {one['high']:.2f}]"
    assert found["badness"] == pytest.approx((one["mean"] - one["random_other"]) / (1 - one["random_other"]))
    assert cell(grid, "patient_8", "server")["badness"] == 0  # no better than a random image
    assert cell(grid, "hospital_few", "server")["value"] == one["mean"]  # the server sees it before the noise
    assert cell(grid, "hospital_few", "hospital")["badness"] == 0
    # What cannot be attacked, and what was not: neither good nor bad.
    for arm, column in (("encrypted", "server"), ("both", "server"), ("local", "server"), ("patient_1", "server")):
        nothing = cell(grid, arm, column)
        assert math.isnan(nothing["value"]) and math.isnan(nothing["badness"]) and nothing["text"] == "-"
    assert cell(grid, "encrypted", "hospital")["value"] == row(inversion, condition="four")["mean"]


def test_the_strongest_membership_attack_on_patients_counts(grid):
    found = cell(grid, "none", "members")
    assert found["value"] == pytest.approx(0.12) and found["text"].startswith("0.120 [")
    assert found["badness"] == pytest.approx(math.sqrt((0.12 - 0.01) / 0.99))
    assert cell(grid, "encrypted", "members")["value"] == pytest.approx(0.12)  # the same model
    assert cell(grid, "both", "members")["value"] == cell(grid, "patient_8", "members")["value"] == pytest.approx(0.01)
    assert cell(grid, "hospital_few", "members")["badness"] == 0
    assert math.isnan(cell(grid, "patient_1", "members")["value"])


def test_costs_are_times_the_unprotected(grid):
    assert cell(grid, "none", "minutes")["badness"] == 0 == cell(grid, "none", "megabytes")["badness"]
    assert cell(grid, "patient_8", "minutes")["badness"] == pytest.approx(math.log(5) / math.log(20))
    assert [cell(grid, arm, "megabytes")["text"] for arm in ("encrypted", "longer")] == ["5.00", "1.00"]
    assert cell(grid, "both", "megabytes")["badness"] == pytest.approx(math.log(5) / math.log(20))
    assert cell(grid, "local", "megabytes")["text"] == "no round"
    assert math.isnan(cell(grid, "local", "megabytes")["badness"])


@settings(deadline=None, max_examples=25)
@given(
    ssim=st.lists(st.floats(-1, 1), min_size=5, max_size=5), other=st.floats(-1, 0.99), tpr=st.floats(0, 1),
    scale=st.floats(1e-3, 1e3), minutes=st.floats(1e-3, 1e3),
)  # fmt: skip
def test_badness_stays_in_range(accuracy, inversion, membership, ssim, other, tpr, scale, minutes):
    times = np.linspace(minutes, 1, len(accuracy))
    made = protection_grid(
        accuracy.assign(minutes=times), inversion.assign(mean=ssim, random_other=other), membership.assign(mean=tpr),
        {"plain": 1e6, "CKKS": 1e6 * scale},
    )
    assert made["badness"].dropna().between(0, 1).all()
    attacked = made[made["column"].isin([COLUMNS["server"], COLUMNS["hospital"], COLUMNS["members"]])]
    assert (attacked["badness"].isna() == attacked["value"].isna()).all()


def test_the_table_to_read_has_the_grids_texts(grid, accuracy):
    table = grid_table(grid)
    assert table.columns.tolist() == ["Data", "Protection", *COLUMNS.values(), "Not protected"]
    assert table["Protection"].tolist() == accuracy["label"].tolist() and table["Data"].eq(PANEL).all()
    for arm in accuracy["arm"]:
        line = row(table, Protection=PROTECTION_LABELS[arm])
        for column in COLUMNS:
            assert line[COLUMNS[column]] == cell(grid, arm, column)["text"]
        assert line["Not protected"] == SEEN[arm].open


def test_bytes_and_classes_come_from_what_was_measured(runs):
    table = pd.DataFrame({"way": ["plain", "CKKS", "Shamir"], "upload_bytes": [10.0, 70.0, 30.0]})
    assert privacy_answer.upload_of(table) == {"plain": 10.0, "CKKS": 70.0, "Shamir": 30.0}
    assert privacy_answer.classes_of(runs) == {DATASET: 2}


# --- the answer ---


def test_the_answer_holds_the_numbers_of_the_tables(runs, accuracy, inversion, membership):
    same = same_model(runs)
    (text,) = answer(accuracy, inversion, membership, same)
    assert text.startswith(f"**{PANEL}**\n")
    for found in accuracy[accuracy["arm"].isin(privacy_answer._SAID_ARMS)].itertuples():
        beside = f" ({found.verdict})" if found.verdict else ""
        assert f"{found.label} {found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]{beside}" in text
    for found in inversion[inversion["condition"].isin(privacy_answer._SAID_CONDITIONS)].itertuples():
        beside = f"(another image at random {found.random_other:.2f}; identified {found.identified:.0%})"
        assert f"{found.label} {found.mean:.3f} [{found.low:.3f}, {found.high:.3f}] {beside}" in text
    for metric in ("auc", "tpr_at_fpr"):
        by_patient = membership.query("unit == 'patient' and metric == @metric")
        for _, attacks in by_patient.groupby("arm"):  # the stronger one is said
            found = attacks.loc[attacks["mean"].idxmax()]
            number = f"{found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
            assert f"{found['label']} {number} ({found['attack']})" in text
    assert "leave 100.0% of the predicted classes as they are" in text


def test_the_answer_says_what_encryption_changed(accuracy, inversion, membership):
    same = pd.DataFrame({"dataset": DATASET, "max_difference": [1e-6, 3.21e-5], "flipped": [1, 2], "images": [40, 40]})
    (text,) = answer(accuracy, inversion, membership, same)
    assert f"leave {77 / 80:.1%} of the predicted classes as they are" in text


def test_each_data_set_has_its_own_paragraph(membership):
    runs = [run_of("none", seed, dataset=name) for name in (DATASET, "brain_mri") for seed in SEEDS]
    found = [inversion_of(seed, name) for name in (DATASET, "brain_mri") for seed in SEEDS]
    texts = answer(accuracy_table(runs), inversion_table(found), membership, same_model(runs))
    assert [text.split("\n")[0] for text in texts] == [f"**{PANEL}**", "**Brain MRI**"]
    assert "LiRA" in texts[0] and "LiRA" not in texts[1]  # attacked on the first one only
