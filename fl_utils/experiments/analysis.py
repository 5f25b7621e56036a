"""From run records to the tables behind the figures: one function a table, no training, no TensorFlow."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from fl_utils import seeding
from fl_utils.data.catalogue import card
from fl_utils.learning.evaluation import classification_metrics, curve_metrics
from fl_utils.records import RunRecord
from fl_utils.statistics import Interval, cluster_bootstrap, holm, paired_seed_test, seed_interval

#: What tells the arms of a comparison apart; within an arm only the seed differs.
ARM_FIELDS = ("dataset", "split", "method", "model", "num_clients", "clients_per_round")
#: The non-inferiority bound of the first seed project: at most 10 % of the centralized metric lost.
ALLOWED_LOSS = 0.10
SIGNIFICANCE = 0.05
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": lambda labels, p: float((p.argmax(1) == labels).mean()),
    "balanced_accuracy": lambda labels, p: curve_metrics(labels, p)["balanced_accuracy"],
}


def panel(dataset: str) -> str:
    """A reader's name of a data set."""
    return card(dataset).label


def with_interval(row: pd.Series) -> str:
    """A row's mean, low and high in words; says so where there is no interval."""
    if row["low"] != row["low"]:
        return f"{row['mean']:.3f} (no interval)"
    return f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def select(runs: Sequence[RunRecord], **fields) -> list[RunRecord]:
    """The records whose configuration has these values, ordered by seed.

    Raises:
      ValueError: there is none; the text names what was asked for.
    """
    chosen = [run for run in runs if all(run.config[name] == value for name, value in fields.items())]
    if not chosen:
        raise ValueError(f"None of {len(runs)} records has {fields}.")
    return sorted(chosen, key=lambda run: run.config["seed"])


def arms(runs: Sequence[RunRecord]) -> dict[tuple, list[RunRecord]]:
    """The records by arm (see ARM_FIELDS), each arm's ordered by seed."""
    table: dict[tuple, list[RunRecord]] = {}
    for run in sorted(runs, key=lambda run: run.config["seed"]):
        table.setdefault(tuple(run.config[name] for name in ARM_FIELDS), []).append(run)
    return table


def arm_label(config: dict) -> str:
    """A reader's name of an arm."""
    hospitals = f"{config['num_clients']} hospitals"
    if config["method"] == "centralized":
        return "Centralized"
    if config["method"] == "local":
        return f"Each hospital alone ({config['num_clients']})"
    if config["clients_per_round"]:
        return f"Federated, {config['clients_per_round']} of {hospitals} a round"
    return f"Federated, {hospitals}"


def probabilities(run: RunRecord) -> np.ndarray:
    """Test predictions of a run: float [models, N, K]; one model, or one a hospital for "local"."""
    columns = sorted((c for c in run.predictions if c[0] == "p" and c[1:].isdigit()), key=lambda c: int(c[1:]))
    # By number: as text, hospital "10" would come before "2".
    clients = sorted(run.predictions.groupby("client"), key=lambda item: (len(item[0]), item[0]))
    models = [table[columns].to_numpy() for _, table in clients]
    return np.stack(models)


def test_set(run: RunRecord) -> pd.DataFrame:
    """The test examples of a run: example, group, hospital, copy_in_train, label; one row an image."""
    first = run.predictions["client"].iloc[0]
    return run.predictions.loc[run.predictions["client"] == first].reset_index(drop=True)


def score(run: RunRecord, metric: str, index: np.ndarray | slice = slice(None)) -> float:
    """A metric on (a part of) the common test set; for "local" the mean over the hospitals' models."""
    labels = test_set(run)["label"].to_numpy()[index]
    return float(np.mean([METRICS[metric](labels, p[index]) for p in probabilities(run)]))


class PatientScorer:
    """The metric of several seeds' runs at once, on any draw of test patients: index array -> float."""

    def __init__(self, runs: Sequence[RunRecord], metric: str):
        self.table = test_set(runs[0])
        examples = self.table["example"].to_numpy()
        for run in runs:
            if not np.array_equal(test_set(run)["example"], examples):
                raise ValueError(f"{run.path.name} was judged on another test set than {runs[0].path.name}.")
        self.labels, self.groups = self.table["label"].to_numpy(), self.table["group"].to_numpy()
        # A draw only re-weights the images, so right and wrong is enough; found once.
        predicted = np.concatenate([probabilities(run) for run in runs]).argmax(axis=2)
        self._correct = (predicted == self.labels).mean(axis=0)
        self._balanced = metric == "balanced_accuracy"

    def __call__(self, index: np.ndarray) -> float:
        correct = self._correct[index]
        if not self._balanced:
            return float(correct.mean())
        labels = self.labels[index]
        counts = np.bincount(labels)
        return float((np.bincount(labels, weights=correct)[counts > 0] / counts[counts > 0]).mean())


def patient_interval(runs: Sequence[RunRecord], metric: str) -> Interval:
    """Bootstrap over test patients of the metric's mean over seeds (and hospitals' models)."""
    scorer = PatientScorer(runs, metric)
    return cluster_bootstrap(scorer, scorer.groups, rng=seeding.generator(0, "bootstrap", metric))


def summary(runs: Sequence[RunRecord], metric: str = "balanced_accuracy") -> pd.DataFrame:
    """Mean and both intervals of every arm on the common test set.

    Args:
      runs: records, several seeds an arm.
      metric: "accuracy" or "balanced_accuracy".
    Returns:
      One row an arm: ARM_FIELDS, label, seeds, mean, low, high (t over seeds), patient_low,
      patient_high (bootstrap over patients), patients.
    """
    rows = []
    for arm, members in arms(runs).items():
        seeds = seed_interval([score(run, metric) for run in members])
        patients = patient_interval(members, metric)
        rows.append(
            dict(zip(ARM_FIELDS, arm, strict=True))
            | {
                "label": arm_label(members[0].config), "seeds": seeds.num, "mean": seeds.mean, "low": seeds.low,
                "high": seeds.high, "patient_low": patients.low, "patient_high": patients.high,
                "patients": patients.num,
            }
        )
    return pd.DataFrame(rows)


def claims(runs: Sequence[RunRecord], metric: str = "balanced_accuracy") -> pd.DataFrame:
    """Both claims of the first seed project, for every federated arm.

    "within 10 %": the ratio federated / centralized, tested against 0.9 (non-inferiority). "better than
    alone": the difference to each hospital alone, mean over hospitals, where the same number of
    hospitals was trained alone, tested against 0. A claim holds when its 95 % bootstrap interval over
    patients lies beyond that value, and the paired t-test over seeds too, at 0.05 after Holm's
    correction over the whole table.

    Returns:
      One row a federated arm and claim: dataset, split, label, claim, estimate, low, high (bootstrap over
      patients), seed_low, seed_high (t over seeds, of the difference), p_value, p_holm, holds.
    Raises:
      ValueError: no federated run, none to compare it with, or other seeds or another test set there.
    """
    rows = []
    for members in arms(runs).values():
        config = members[0].config
        if config["method"] != "fedavg":
            continue
        shared = {name: config[name] for name in ("dataset", "split", "model")}
        rows.append(_claim(members, select(runs, method="centralized", **shared), "within 10 % of centralized", metric))
        alone = {**shared, "method": "local", "num_clients": config["num_clients"]}
        if any(all(run.config[name] == value for name, value in alone.items()) for run in runs):
            rows.append(_claim(members, select(runs, **alone), "better than a hospital alone", metric))
    if not rows:
        raise ValueError(f"None of {len(runs)} records is of a federated run.")
    table = pd.DataFrame(rows)
    p_holm = holm(table["p_value"])
    return table.assign(p_holm=p_holm, holds=table["holds"] & (p_holm < SIGNIFICANCE))


def _claim(federated: Sequence[RunRecord], other: Sequence[RunRecord], claim: str, metric: str) -> dict:
    seeds = [[run.config["seed"] for run in members] for members in (federated, other)]
    if seeds[0] != seeds[1]:
        raise ValueError(
            f"{arm_label(federated[0].config)} has the seeds {seeds[0]}, {arm_label(other[0].config)} {seeds[1]}; "
            "a paired comparison needs the same."
        )
    scores = [np.array([score(run, metric) for run in members]) for members in (federated, other)]
    ratio = claim.startswith("within")
    pairs = paired_seed_test(*scores)
    test = paired_seed_test(scores[0], (1 - ALLOWED_LOSS) * scores[1]) if ratio else pairs
    ours, theirs = PatientScorer(federated, metric), PatientScorer(other, metric)
    if not np.array_equal(ours.table["example"], theirs.table["example"]):
        raise ValueError(f"{other[0].path.name} was judged on another test set than {federated[0].path.name}.")

    def compare(index: np.ndarray) -> float:
        if not ratio:
            return ours(index) - theirs(index)
        return ours(index) / theirs(index) if theirs(index) else float("nan")

    interval = cluster_bootstrap(
        compare,
        ours.groups,
        rng=seeding.generator(0, "bootstrap", metric, claim),
    )
    holds = interval.low > (1 - ALLOWED_LOSS if ratio else 0.0) and test.difference.mean > 0
    return {
        "dataset": federated[0].config["dataset"], "split": federated[0].config["split"],
        "label": arm_label(federated[0].config), "claim": claim, "quantity": "ratio" if ratio else "difference",
        "estimate": interval.mean, "low": interval.low, "high": interval.high,
        "difference": pairs.difference.mean, "seed_low": pairs.difference.low, "seed_high": pairs.difference.high,
        "p_value": test.p_value, "holds": holds,
    }


def curves(runs: Sequence[RunRecord], metric: str = "balanced_accuracy", split: str = "test") -> pd.DataFrame:
    """Learning curves on one axis: the number of gradient steps, counted in federated rounds.

    One round of C hospitals takes each through its data once: as many steps as 1/C pass over the
    pooled data. For "local" the value is the mean over the hospitals' models.

    Returns:
      Columns dataset, method, model, num_clients, seed, round, value.
    Raises:
      ValueError: federations of different size, whose rounds cannot share an axis.
    """
    tables = []
    federated = {run.config["num_clients"] for run in runs if run.config["method"] == "fedavg"}
    if len(federated) > 1:
        raise ValueError(f"Federations of {sorted(federated)} hospitals have no axis in common; call once for each.")
    unit = federated.pop() if federated else 1
    for run in runs:
        config = run.config
        client = "client != ''" if config["method"] == "local" else "client == 'all'"
        rows = run.metrics.query(f"split == @split and metric == @metric and {client}")
        # Rounds of the selected model's full scores repeat the curve's; the mean over them is the same.
        value = rows.groupby("round")["value"].mean()
        scale = 1 if config["method"] == "fedavg" else unit
        fields = {name: config[name] for name in ("dataset", "method", "model", "num_clients", "seed")}
        tables.append(pd.DataFrame({"round": value.index * scale, "value": value.to_numpy()}).assign(**fields))
    return pd.concat(tables, ignore_index=True)


def hospital_gain(runs: Sequence[RunRecord], metric: str = "balanced_accuracy") -> pd.DataFrame:
    """Each hospital's own model against the federated one, on the common test set.

    Returns:
      Columns dataset, num_clients, seed, hospital, alone, federated.
    """
    rows = []
    for run in runs:
        if run.config["method"] != "local":
            continue
        shared = {name: run.config[name] for name in ("dataset", "split", "model", "num_clients", "seed")}
        federated = score(select(runs, method="fedavg", clients_per_round=None, **shared)[0], metric)
        labels = test_set(run)["label"].to_numpy()
        for hospital, p in enumerate(probabilities(run)):
            rows.append(
                {name: shared[name] for name in ("dataset", "num_clients", "seed")}
                | {"hospital": hospital, "alone": METRICS[metric](labels, p), "federated": federated}
            )
    return pd.DataFrame(rows)


def metric_table(runs: Sequence[RunRecord], without_copies: bool = False) -> pd.DataFrame:
    """Every metric of every arm: mean over seeds with the t-interval.

    Args:
      runs: records.
      without_copies: leave out test images whose picture is also in the training data.
    Returns:
      One row an arm and metric: ARM_FIELDS, label, metric, mean, low, high.
    """
    rows = []
    for arm, members in arms(runs).items():
        values = pd.DataFrame([_all_metrics(run, without_copies) for run in members])
        for metric in values:
            finite = values[metric].dropna()
            interval = seed_interval(finite) if len(finite) else Interval(*[float("nan")] * 3, 0, "")
            rows.append(
                dict(zip(ARM_FIELDS, arm, strict=True))
                | {"label": arm_label(members[0].config), "metric": metric}
                | {"mean": interval.mean, "low": interval.low, "high": interval.high}
            )
    return pd.DataFrame(rows)


def _all_metrics(run: RunRecord, without_copies: bool) -> dict[str, float]:
    examples = test_set(run)
    keep = examples["copy_in_train"].to_numpy() == 0 if without_copies else np.ones(len(examples), bool)
    labels, names = examples["label"].to_numpy()[keep], run.environment["class_names"]
    models = [classification_metrics(labels, p[keep], names) for p in probabilities(run)]
    return pd.DataFrame(models).mean().to_dict()


def confusion(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Confusion matrices summed over seeds (and hospitals' models): panel, true, predicted, count, share of the true class."""
    rows = []
    for members in arms(runs).values():
        names = members[0].environment["class_names"]
        counts = np.zeros((len(names), len(names)), int)
        for run in members:
            labels = test_set(run)["label"].to_numpy()
            for p in probabilities(run):
                np.add.at(counts, (labels, p.argmax(axis=1)), 1)
        for i, j in itertools.product(range(len(names)), repeat=2):
            rows.append(
                {"panel": f"{panel(members[0].config['dataset'])}, {arm_label(members[0].config).lower()}, {members[0].config['model']}",
                 "true": names[i], "predicted": names[j], "count": counts[i, j],
                 "share": counts[i, j] / max(counts[i].sum(), 1)}
            )
    return pd.DataFrame(rows)


def reliability(runs: Sequence[RunRecord], num_bins: int = 15) -> pd.DataFrame:
    """Confidence against accuracy in equal bins, over all seeds: panel, model, confidence, accuracy, count."""
    tables = []
    for members in arms(runs).values():
        stacked = [(probabilities(run), test_set(run)["label"].to_numpy()) for run in members]
        confidence = np.concatenate([p.max(axis=2).ravel() for p, _ in stacked])
        correct = np.concatenate([(p.argmax(axis=2) == labels).ravel() for p, labels in stacked])
        # The right edge belongs to the bin, as in `evaluation.expected_calibration_error`.
        bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
        frame = pd.DataFrame({"bin": bins, "confidence": confidence, "accuracy": correct})
        binned = frame.groupby("bin").agg(
            confidence=("confidence", "mean"), accuracy=("accuracy", "mean"), count=("accuracy", "size")
        )
        tables.append(binned.reset_index(drop=True).assign(
            panel=panel(members[0].config["dataset"]), model=members[0].config["model"], method=members[0].config["method"]
        ))
    return pd.concat(tables, ignore_index=True)


def communication(run: RunRecord) -> dict[str, float]:
    """What a federated run sent: bytes a hospital and round in each direction, and in total (float32 weights)."""
    one_way = 4 * run.environment["num_parameters"]
    rounds, cohort = run.config["total_rounds"], run.config["clients_per_round"] or run.config["num_clients"]
    return {"upload_bytes_a_round": one_way, "total_bytes": 2 * one_way * rounds * cohort}
