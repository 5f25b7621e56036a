"""Tables from small made-up records: what they say, and what they refuse to compare."""

import numpy as np
import pandas as pd
import pytest

from fl_utils import records
from fl_utils.config import make_config
from fl_utils.experiments import analysis
from fl_utils.learning.evaluation import classification_metrics

CLASSES = ("glioma", "no_tumor", "pituitary")
NUM = 120
LABELS = np.arange(NUM) % 3
GROUPS = np.arange(NUM) // 2  # two images a patient
COPIES = (np.arange(NUM) < 30).astype(int)
SHARES = {"centralized": 0.9, "local": 0.6, "fedavg": 0.88}


def predictions(share_right, rng, models=1):
    """About `share_right` of the images right in each model."""
    tables = []
    for model in range(models):
        right = rng.random(NUM) < share_right
        p = np.full((NUM, 3), 0.1)
        p[np.arange(NUM), np.where(right, LABELS, (LABELS + 1) % 3)] = 0.8
        tables.append(
            pd.DataFrame(
                {"client": "all" if models == 1 else str(model), "split": "test", "example": np.arange(NUM) + 1000,
                 "group": GROUPS, "hospital": np.arange(NUM) % 4, "copy_in_train": COPIES, "label": LABELS}
            ).assign(p0=p[:, 0], p1=p[:, 1], p2=p[:, 2])
        )  # fmt: skip
    return pd.concat(tables, ignore_index=True)


def run(root, method="fedavg", seed=0, *, share=None, num_clients=4, table=None, **fields):
    clients = 1 if method == "centralized" else num_clients
    config = make_config(
        dataset="phantom_brain", method=method, partition="pooled" if method == "centralized" else "iid",
        num_clients=clients, seed=seed, profile="smoke", total_rounds=2, client_learning_rate=0.03, **fields,
    )  # fmt: skip
    models = [str(c) for c in range(clients)] if method == "local" else ["all"]
    metrics = pd.DataFrame(
        [
            (n, client, split, metric, 0.1 * n + 0.01 * number + 0.001 * seed)
            for n in (1, 2)
            for number, client in enumerate(models)
            for split in ("validation", "test")
            for metric in ("accuracy", "balanced_accuracy")
        ]
        # A hospital's own share, followed by a federated run: no part of the common curve.
        + ([(n, "0", "test", "balanced_accuracy", 9.0) for n in (1, 2)] if method == "fedavg" else []),
        columns=records.METRIC_COLUMNS,
    )
    if table is None:
        rng = np.random.default_rng([seed, len(method), clients])
        table = predictions(SHARES[method] if share is None else share, rng, len(models))
    return records.write_record(
        root, config, fingerprint="f" * 64, metrics=metrics, predictions=table, duration_s=1,
        facts={"class_names": list(CLASSES), "num_parameters": 1000},
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [run(root, method, seed) for seed in range(3) for method in ("centralized", "local", "fedavg")]


def balanced(run):
    tables = run.predictions.groupby("client")
    hits = [
        np.mean([(t[["p0", "p1", "p2"]].to_numpy().argmax(1) == t["label"])[t["label"] == k].mean() for k in range(3)])
        for _, t in tables
    ]
    return np.mean(hits)


# --- choosing and reading ---


def test_select_orders_by_seed_and_names_what_is_missing(runs):
    chosen = analysis.select(runs[::-1], method="fedavg")
    assert [run.config["seed"] for run in chosen] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"None of 9 records has \{'method': 'fedavg', 'num_clients': 7\}"):
        analysis.select(runs, method="fedavg", num_clients=7)


def test_an_arm_is_what_differs_in_more_than_the_seed(runs):
    table = analysis.arms(runs)
    assert len(table) == 3 and all([r.config["seed"] for r in members] == [0, 1, 2] for members in table.values())


@pytest.mark.parametrize(
    ("config", "label"),
    [
        ({"method": "centralized", "num_clients": 1, "clients_per_round": None}, "Centralized"),
        ({"method": "local", "num_clients": 4, "clients_per_round": None}, "Each hospital alone (4)"),
        ({"method": "fedavg", "num_clients": 5, "clients_per_round": None}, "Federated, 5 hospitals"),
        ({"method": "fedavg", "num_clients": 5, "clients_per_round": 3}, "Federated, 3 of 5 hospitals a round"),
    ],
)
def test_arms_have_names_for_readers(config, label):
    assert analysis.arm_label(config) == label


def test_probabilities_keep_models_and_examples_apart(runs):
    local = analysis.select(runs, method="local")[0]
    p = analysis.probabilities(local)
    assert p.shape == (4, NUM, 3) and np.allclose(p.sum(axis=2), 1)
    third = local.predictions.query("client == '2'")[["p0", "p1", "p2"]].to_numpy()
    np.testing.assert_array_equal(p[2], third)
    assert len(analysis.test_set(local)) == NUM


def test_hospital_ten_comes_after_hospital_two(tmp_path):
    table = predictions(1.0, np.random.default_rng(0), 12)
    table["p0"] = table["client"].astype(int) / 100
    p = analysis.probabilities(run(tmp_path, "local", num_clients=12, table=table))
    np.testing.assert_allclose(p[:, 0, 0], np.arange(12) / 100)


def test_score_is_the_metric_and_for_local_the_mean_over_hospitals(runs):
    for record in runs:
        assert analysis.score(record, "balanced_accuracy") == pytest.approx(balanced(record))
    part = np.flatnonzero(LABELS == 0)
    one = analysis.score(runs[0], "accuracy", part)
    assert one == pytest.approx((analysis.probabilities(runs[0])[0][part].argmax(1) == 0).mean())


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy"])
def test_the_fast_scorer_is_the_metric_on_any_draw(runs, metric):
    members = analysis.select(runs, method="local")
    scorer, rng = analysis.PatientScorer(members, metric), np.random.default_rng(0)
    for _ in range(5):
        draw = rng.integers(0, NUM, NUM)
        assert scorer(draw) == pytest.approx(np.mean([analysis.score(run, metric, draw) for run in members]))


# --- tables ---


def test_summary_has_both_intervals(runs):
    table = analysis.summary(runs).set_index("method")
    assert set(table.index) == {"centralized", "local", "fedavg"}
    for method, row in table.iterrows():
        values = [balanced(run) for run in analysis.select(runs, method=method)]
        assert row["mean"] == pytest.approx(np.mean(values)) and row["seeds"] == 3 and row["patients"] == NUM // 2
        assert row["low"] <= row["mean"] <= row["high"] and row["patient_low"] <= row["mean"] <= row["patient_high"]
        half = 4.302653 * np.std(values, ddof=1) / np.sqrt(3)
        assert row["high"] - row["mean"] == pytest.approx(half, rel=1e-5)
    assert analysis.summary(runs[::-1]).set_index("method").loc["fedavg", "patient_low"] == table.loc["fedavg", "patient_low"]


def claims_by_name(runs, metric="balanced_accuracy"):
    return analysis.claims(runs, metric).set_index("claim")


def test_a_clear_win(runs):
    table = claims_by_name(runs)
    within, better = table.loc["within 10 % of centralized"], table.loc["better than a hospital alone"]
    assert within["quantity"] == "ratio" and 0.9 <= within["low"] <= within["estimate"] <= within["high"] and within["holds"]
    assert better["quantity"] == "difference" and better["low"] > 0 and better["seed_low"] > 0 and better["holds"]
    federated, alone = (
        np.mean([balanced(r) for r in analysis.select(runs, method=method)]) for method in ("fedavg", "local")
    )
    assert better["estimate"] == pytest.approx(federated - alone) == better["difference"]
    assert better["p_holm"] < 0.05 and (table["p_holm"] >= table["p_value"]).all()
    central = np.mean([balanced(r) for r in analysis.select(runs, method="centralized")])
    assert within["estimate"] == pytest.approx(federated / central)


def test_a_clear_loss_and_a_gap_over_ten_percent(tmp_path):
    shares = {"centralized": 0.95, "local": 0.8, "fedavg": 0.6}
    runs = [run(tmp_path, method, seed, share=shares[method]) for seed in range(3) for method in shares]
    table = claims_by_name(runs)
    within, better = table.loc["within 10 % of centralized"], table.loc["better than a hospital alone"]
    assert within["high"] < 0.9 and not within["holds"]
    assert better["high"] < 0 and better["seed_high"] < 0 and not better["holds"]
    assert better["p_value"] < 0.05  # different for certain, but the other way round


def test_no_difference_is_a_result_too(tmp_path):
    tables = [predictions(0.7, np.random.default_rng(seed)) for seed in range(3)]
    runs = [
        run(tmp_path, method, seed, table=tables[seed], num_clients=1)
        for seed in range(3)
        for method in ("centralized", "local", "fedavg")
    ]
    table = claims_by_name(runs)
    assert table.loc["better than a hospital alone", "estimate"] == 0
    assert table.loc["better than a hospital alone", "p_value"] == 1 and not table.loc["better than a hospital alone", "holds"]
    assert table.loc["within 10 % of centralized", "estimate"] == 1 and table.loc["within 10 % of centralized", "holds"]


def test_claims_need_something_to_compare(runs, tmp_path):
    with pytest.raises(ValueError, match="None of 6 records is of a federated run"):
        analysis.claims([run for run in runs if run.config["method"] != "fedavg"])
    with pytest.raises(ValueError, match="None of 6 records has {'method': 'centralized'"):
        analysis.claims([run for run in runs if run.config["method"] != "centralized"])
    # Where no hospital was trained alone, only the other claim is made.
    without_local = analysis.claims([run for run in runs if run.config["method"] != "local"])
    assert without_local["claim"].tolist() == ["within 10 % of centralized"]
    with pytest.raises(ValueError, match=r"seeds \[0, 1, 2\], Centralized \[1, 2, 3\]"):
        shifted = [run(tmp_path, "centralized", seed) for seed in (1, 2, 3)]
        analysis.claims([r for r in runs if r.config["method"] != "centralized"] + shifted)


def test_other_test_sets_are_not_compared(runs, tmp_path):
    table = predictions(0.9, np.random.default_rng(0)).assign(example=lambda t: t["example"] + 1)
    others = [run(tmp_path, "centralized", seed, table=table) for seed in range(3)]
    rest = [r for r in runs if r.config["method"] != "centralized"]
    with pytest.raises(ValueError, match="was judged on another test set than"):
        analysis.claims(rest + others)
    with pytest.raises(ValueError, match="was judged on another test set than"):
        analysis.patient_interval([runs[0], others[1]], "accuracy")


def test_curves_share_one_axis(runs):
    table = analysis.curves(runs)
    assert list(table.columns) == ["round", "value", "dataset", "method", "model", "num_clients", "seed"]
    rounds = table.groupby("method")["round"].unique().map(list).to_dict()
    # One pass over the pooled data is as many steps as four rounds of four hospitals.
    assert rounds == {"centralized": [4, 8], "fedavg": [1, 2], "local": [4, 8]}
    value = table.query("seed == 1").set_index(["method", "round"])["value"]
    assert value["fedavg", 2] == pytest.approx(0.201) and value["centralized", 8] == pytest.approx(0.201)
    assert value["local", 4] == pytest.approx(0.1 + 0.01 * 1.5 + 0.001)  # mean over the four hospitals' models
    assert analysis.curves(analysis.select(runs, method="centralized"))["round"].unique().tolist() == [1, 2]


def test_hospital_gain_sets_each_hospital_against_the_federation_of_its_seed(runs):
    table = analysis.hospital_gain(runs)
    assert len(table) == 3 * 4 and list(table.columns) == ["dataset", "num_clients", "seed", "hospital", "alone", "federated"]
    for seed, rows in table.groupby("seed"):
        (federated,), (local,) = (analysis.select(runs, method=m, seed=seed) for m in ("fedavg", "local"))
        assert rows["hospital"].tolist() == [0, 1, 2, 3]
        assert rows["federated"].unique() == pytest.approx([balanced(federated)])
        assert rows["alone"].mean() == pytest.approx(balanced(local))
    with pytest.raises(ValueError, match="'method': 'fedavg'"):
        analysis.hospital_gain(analysis.select(runs, method="local"))


def test_metric_table_with_and_without_copies(runs):
    fedavg = analysis.select(runs, method="fedavg")
    for without, keep in ((False, np.ones(NUM, bool)), (True, COPIES == 0)):
        table = analysis.metric_table(runs, without_copies=without).set_index(["method", "metric"])
        values = [
            classification_metrics(LABELS[keep], analysis.probabilities(r)[0][keep], CLASSES) for r in fedavg
        ]
        for name in values[0]:
            row = table.loc[("fedavg", name)]
            assert row["mean"] == pytest.approx(np.mean([v[name] for v in values])), name
            assert row["low"] <= row["mean"] + 1e-12 and row["mean"] <= row["high"] + 1e-12


def test_a_metric_that_no_seed_defines_stays_empty(tmp_path):
    table = predictions(0.9, np.random.default_rng(0)).query("label != 2")
    metrics = analysis.metric_table([run(tmp_path, "fedavg", seed, table=table) for seed in range(2)]).set_index("metric")
    assert np.isnan(metrics.loc["auroc", ["mean", "low", "high"]].astype(float)).all()
    assert np.isfinite(metrics.loc["accuracy", "mean"])


def test_confusion_counts_every_model_and_seed(runs):
    table = analysis.confusion(runs)
    assert {name.split(", ", 1)[1] for name in table["panel"]} == {
        f"{label}, seed_cnn" for label in ("centralized", "each hospital alone (4)", "federated, 4 hospitals")
    }
    local = table[table["panel"].str.contains("alone")]
    assert local["count"].sum() == 3 * 4 * NUM
    np.testing.assert_allclose(table.groupby(["panel", "true"])["share"].sum(), 1)
    diagonal = local.query("true == predicted")["share"].mean()
    assert diagonal == pytest.approx(np.mean([balanced(r) for r in analysis.select(runs, method="local")]))


def test_reliability_bins_confidence(runs):
    table = analysis.reliability(analysis.select(runs, method="fedavg"))
    # Every prediction has confidence 0.8: one bin, with the accuracy of all.
    assert len(table) == 1 and table["count"].item() == 3 * NUM
    assert table["confidence"].item() == pytest.approx(0.8)
    assert table["accuracy"].item() == pytest.approx(
        np.mean([analysis.score(r, "accuracy") for r in analysis.select(runs, method="fedavg")])
    )
    assert len(analysis.reliability(runs)) == 3


def test_communication_counts_both_ways_and_the_cohort_only(tmp_path):
    assert analysis.communication(run(tmp_path)) == {"upload_bytes_a_round": 4000, "total_bytes": 2 * 4000 * 2 * 4}
    sampled = run(tmp_path, num_clients=5, clients_per_round=3)
    assert analysis.communication(sampled)["total_bytes"] == 2 * 4000 * 2 * 3


def test_predictions_are_read_once_and_not_in_every_draw(runs, monkeypatch):
    calls, original = [], analysis.probabilities
    monkeypatch.setattr(analysis, "probabilities", lambda run: calls.append(run) or original(run))
    analysis.patient_interval(analysis.select(runs, method="local"), "balanced_accuracy")
    assert len(calls) == 3
