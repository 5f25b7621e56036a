"""Notebook 07: what attacks do under each rule, over seeds, from the records alone."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from fl_utils import seeding
from fl_utils.config import AGGREGATOR_LABELS
from fl_utils.experiments.analysis import SIGNIFICANCE, probabilities, test_set
from fl_utils.experiments.fairness import MIN_TEST_IMAGES
from fl_utils.experiments.poisoning_cells import (
    CELL, COMPARED, by_cell, clean_mean, compared, corrected, interval, score_of, share,
)
from fl_utils.experiments.poisoning_plan import followed
from fl_utils.records import RunRecord
from fl_utils.statistics import cluster_bootstrap
from fl_utils.trust.detection import precision_recall

__all__ = [
    "accuracy_table", "at_fraction", "backdoor_table", "by_fraction", "clean_cost", "curves", "detection_table",
    "score_of", "source_recall_table", "unusual_correlation", "unusual_hospitals", "update_points",
]

#: A rule survives where the 95 % interval of its loss against the clean plain mean ends above the first limit; it is
#: ruined where the interval begins and ends below the second.
SURVIVES, RUINED = -0.05, -0.10
#: Flag of `detection.look` -> what figures call the detector.
DETECTORS = {"flag_pca": "pca", "flag_cosine": "cosine"}


def accuracy_table(runs: Sequence[RunRecord], metric: str = "balanced_accuracy") -> pd.DataFrame:
    """Test scores of every cell, and their paired differences to the plain mean without an attack.

    Args:
      runs: several seeds a cell.
      metric: "accuracy" or "balanced_accuracy".
    Returns:
      A row a cell: CELL, label (of the rule), hospitals, attackers (hospitals that are bad in a round), seeds, mean,
      low, high (t over seeds), difference, diff_low, diff_high, p_value (NaN without the same seeds of the clean
      mean), p_holm (over the whole table), diverged (runs that broke down), verdict.

      The verdict is of the single interval: "survives" (above SURVIVES), "ruined" (below RUINED, or a training broke
      down), "harmed" (below 0), else "unclear"; "" for what cannot be compared. Whether a difference is more than the
      chance of so many comparisons, p_holm says.
    """
    cells = by_cell(runs)
    table = compared(cells, lambda run: score_of(run, metric))
    configs = [members[0].config for members in cells.values()]
    table["label"] = [AGGREGATOR_LABELS[name] for name in table["aggregator"]]
    table["hospitals"] = [config["num_clients"] for config in configs]
    table["attackers"] = [round(cell[4] * config["num_clients"]) for cell, config in zip(cells, configs, strict=True)]
    table["diverged"] = [sum("diverged_at_round" in run.environment for run in members) for members in cells.values()]
    table["verdict"] = [_verdict(row) for row in table.itertuples()]
    return table


def _verdict(row) -> str:
    if row.diverged:
        return "ruined"
    if math.isnan(row.diff_low):
        return ""
    if row.diff_low > SURVIVES:
        return "survives"
    return "ruined" if row.diff_high < RUINED else "harmed" if row.diff_high < 0 else "unclear"


def at_fraction(table: pd.DataFrame, fraction: float, schedule: str = "fixed") -> pd.DataFrame:
    """The rows of one fraction and schedule, and those without an attack: for heat maps."""
    attacked = (table["fraction"] == fraction) & (table["schedule"] == schedule)
    return table[attacked | (table["attack"] == "clean")].reset_index(drop=True)


def by_fraction(table: pd.DataFrame, panel: str, schedule: str = "fixed") -> pd.DataFrame:
    """One panel's attacks from fraction 0 on, where all start from the rule's own clean runs: for lines."""
    table = table[(table["panel"] == panel) & (table["schedule"] == schedule)]
    attacked = table[table["attack"] != "clean"]
    clean = [
        table[(table["attack"] == "clean") & table["aggregator"].isin(rows["aggregator"])].assign(attack=attack)
        for attack, rows in attacked.groupby("attack", sort=False)
    ]
    return pd.concat([*clean, attacked], ignore_index=True)


def clean_cost(runs: Sequence[RunRecord], metric: str = "balanced_accuracy") -> pd.DataFrame:
    """What each rule costs where nobody attacks: the paired difference to the plain mean.

    Returns:
      A row a data set, panel and rule, columns as in `accuracy_table`; p_holm is over this table. verdict: "better",
      "worse", "not significant", "" for the mean itself.
    """
    table = accuracy_table([run for run in runs if run.config.get("attack") is None], metric)
    table["verdict"] = [
        "" if math.isnan(row.p_holm) else "not significant" if row.p_holm >= SIGNIFICANCE
        else "better" if row.difference > 0 else "worse"
        for row in table.itertuples()
    ]
    return table


def source_recall_table(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """What is left of the class whose images attackers call another, beside federations without an attack.

    Scores are means over the last rounds (`score_of`), here and in all tables.

    Returns:
      A row a cell of "source_target" or "clean" and pair of classes: CELL, source, target (names), seeds, mean, low,
      high (recall of the source on the test set), called, called_low, called_high (its share that is called the
      target; of the selected round alone), difference (of the recall, to the clean plain mean), diff_low, diff_high,
      p_value, p_holm (over the table).
    """
    tables = []
    for (_, source, target), cells in _beside_clean(runs, ("source_target",), ("attack_source", "attack_target")):
        names = next(iter(cells.values()))[0].environment["class_names"]
        recall = compared(cells, lambda run, source=source: score_of(run, "accuracy", f"true_{source}"))
        called = compared(cells, lambda run, source=source, target=target: _called(run, source, target))
        tables.append(recall.assign(
            source=names[source], target=names[target], called=called["mean"], called_low=called["low"],
            called_high=called["high"],
        ))
    return _joined(tables, ["source", "target", "called", "called_low", "called_high"])


def backdoor_table(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """How often a marked test image is called the target though it is not, beside federations without an attack.

    Returns:
      A row a cell of "backdoor", "replacement" or "clean" and target: CELL, target (name), seeds, mean, low, high
      (share of the marked images), difference (to the clean plain mean), diff_low, diff_high, p_value, p_holm (over
      the table).
    """
    tables = []
    for (_, target), cells in _beside_clean(runs, ("backdoor", "replacement"), ("attack_target",)):
        names = next(iter(cells.values()))[0].environment["class_names"]
        table = compared(cells, lambda run, target=target: score_of(run, "accuracy", f"marked_{target}"))
        tables.append(table.assign(target=names[target]))
    return _joined(tables, ["target"])


def detection_table(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """How well two looks at the updates find the attackers; see `trust.detection`.

    Scores of a round are averaged over the rounds in which they are defined, then over seeds. Rounds without an
    attacker among the updates (a clean federation, or updates that are not finite and left out before) count for
    false alarms only.

    Args:
      runs: those with aggregator "mean" are used.
    Returns:
      A row a cell, detector and metric: CELL, detector ("pca", "cosine"), metric ("precision", "recall",
      "false_alarms"), seeds (in which it is defined), mean, low, high (t over seeds; NaN where it never is).
    """
    rows = []
    for cell, members in by_cell(_of_mean(runs)).items():
        scores = [_detected(run) for run in members]
        for key in scores[0]:
            finite = [score[key] for score in scores if not math.isnan(score[key])]
            if cell[2] != "clean" or key[1] == "false_alarms":
                rows.append(dict(zip(CELL, cell, strict=True)) | dict(zip(("detector", "metric"), key, strict=True))
                            | {"seeds": len(finite), **share(finite)})
    return pd.DataFrame(rows, columns=[*CELL, "detector", "metric", "seeds", "mean", "low", "high"])


def _detected(run: RunRecord) -> dict[tuple[str, str], float]:
    """(detector, metric) -> mean over rounds."""
    found: dict[tuple[str, str], list[float]] = {}
    for _, seen in _updates(run).groupby("round"):
        attackers = seen["attacker"].to_numpy()
        for flag, detector in DETECTORS.items():
            scores = precision_recall(seen[flag].to_numpy(), attackers)
            for metric, score in zip(("precision", "recall", "false_alarms"), scores, strict=True):
                counts = not math.isnan(score) and (metric == "false_alarms" or attackers.any())
                found.setdefault((detector, metric), []).extend([score] if counts else [])
    return {key: float(np.mean(values)) if values else math.nan for key, values in found.items()}


def update_points(runs: Sequence[RunRecord], rounds: Sequence[int], seed: int) -> pd.DataFrame:
    """The components of single updates, for a picture by round.

    Args:
      runs: of one data set, panel and, for each attack, one fraction and schedule; those with aggregator "mean" are
        used.
      rounds, seed: which ones.
    Returns:
      Columns attack, round, client, pca_0, pca_1, attacker, flagged (by the components; bool).
    Raises:
      ValueError: two cells of one attack, or nothing is left.
    """
    tables: dict[str, pd.DataFrame] = {}
    for cell, members in by_cell(_of_mean(runs)).items():
        for run in (run for run in members if run.config["seed"] == seed):
            if cell[2] in tables:
                raise ValueError(
                    f"Attack {cell[2]!r} has several cells, one of them {cell}. Choose one with `analysis.select`."
                )
            seen = _updates(run).reset_index().rename(columns={"flag_pca": "flagged"}).assign(attack=cell[2])
            tables[cell[2]] = seen[seen["round"].isin(rounds)]
    if not sum(map(len, tables.values())):
        raise ValueError(f"None of {len(runs)} records has updates of seed {seed} in the rounds {list(rounds)}.")
    points = pd.concat(tables.values(), ignore_index=True)
    return points[["attack", "round", "client", "pca_0", "pca_1", "attacker", "flagged"]]


def unusual_hospitals(
    runs: Sequence[RunRecord], metric: str = "accuracy", min_images: int = MIN_TEST_IMAGES
) -> pd.DataFrame:
    """What a rule does to honest hospitals that are unlike the others: their own test images, against the plain mean.

    Args:
      runs: those without an attack and with Dirichlet partitions are used.
      metric: of the hospital's own test images.
      min_images: hospitals with fewer own test images are left out.
    Returns:
      A row a rule, seed and hospital: dataset, panel, aggregator, seed, client, distance (total variation between the
      class mixes of its training images and of all, 0 to 1), difference (rule minus mean).
    """
    chosen = [run for run in runs if run.config.get("attack") is None and run.config["partition"] == "dirichlet"]
    cells, rows = by_cell(chosen), []
    for cell, members in cells.items():
        means = {run.config["seed"]: run for run in cells.get(clean_mean(cell), [])}
        for run in (run for run in members if cell[3] != "mean" and run.config["seed"] in means):
            counts, pair = run.environment["class_counts"], (run, means[run.config["seed"]])
            for client, distance in enumerate(_distances(counts["train"])):
                if sum(counts["test"][client]) >= min_images:
                    scores = [score_of(one, metric, "own_test", str(client)) for one in pair]
                    rows.append((*cell[:2], cell[3], run.config["seed"], client, distance, scores[0] - scores[1]))
    return pd.DataFrame(rows, columns=["dataset", "panel", "aggregator", "seed", "client", "distance", "difference"])


def unusual_correlation(hospitals: pd.DataFrame) -> pd.DataFrame:
    """Whether a rule harms a hospital more the more unusual it is.

    Args:
      hospitals: of `unusual_hospitals`.
    Returns:
      A row a rule: dataset, panel, aggregator, seeds, hospitals, mean (Spearman's correlation of distance and
      difference; negative: the unusual lose more), low, high (95 % bootstrap over seeds; NaN with one, or where it is
      not defined).
    """
    rows = []
    for key, table in hospitals.groupby(["dataset", "panel", "aggregator"], sort=False):
        values, seeds = table[["distance", "difference"]].to_numpy(), table["seed"].to_numpy()
        row = {"seeds": table["seed"].nunique(), "hospitals": len(table), "mean": _spearman(values)}
        if row["seeds"] > 1 and not math.isnan(row["mean"]):
            rng = seeding.generator(0, "bootstrap", "unusual", *key)
            found = cluster_bootstrap(lambda index, values=values: _spearman(values[index]), seeds, rng=rng)
            row |= {"low": found.low, "high": found.high}
        rows.append(dict(zip(("dataset", "panel", "aggregator"), key, strict=True)) | row)
    return pd.DataFrame(rows, columns=["dataset", "panel", "aggregator", "seeds", "hospitals", "mean", "low", "high"])


def curves(runs: Sequence[RunRecord], metric: str = "balanced_accuracy", split: str = "test") -> pd.DataFrame:
    """A metric by round.

    Returns:
      A row a cell and round: CELL, round, seeds (that have the round: fewer where a training broke down), mean, low,
      high (t over seeds). Cells without the split are left out.
    """
    rows = []
    for cell, members in by_cell(runs).items():
        values = pd.concat([followed(run, metric, split) for run in members])
        rows += [
            dict(zip(CELL, cell, strict=True)) | {"round": number, "seeds": len(found), **(interval if metric == "loss" else share)(found)}
            for number, found in values.groupby(level=0)
        ]
    return pd.DataFrame(rows, columns=[*CELL, "round", "seeds", "mean", "low", "high"])


def _joined(tables: Sequence[pd.DataFrame], own: Sequence[str]) -> pd.DataFrame:
    """One table, corrected as one; with its columns where there is nothing to join."""
    empty = pd.DataFrame(columns=[*CELL, *own, "seeds", "mean", "low", "high", *COMPARED, "p_holm"])
    return corrected(pd.concat(tables, ignore_index=True))[empty.columns] if tables else empty


def _beside_clean(
    runs: Sequence[RunRecord], attacks: Sequence[str], fields: Sequence[str]
) -> Iterator[tuple[tuple, dict[tuple, list[RunRecord]]]]:
    """For each data set and values of the fields among these attacks: those runs' cells, and the clean ones'."""
    attacked = [run for run in runs if run.config.get("attack") in attacks]
    keys = dict.fromkeys((run.config["dataset"], *(run.config[field] for field in fields)) for run in attacked)
    for dataset, *values in keys:
        wanted = dict(zip(fields, values, strict=True))
        same = [run for run in attacked if all(run.config[field] == value for field, value in wanted.items())]
        clean = [run for run in runs if run.config.get("attack") is None]
        yield (dataset, *values), by_cell([run for run in clean + same if run.config["dataset"] == dataset])


def _of_mean(runs: Sequence[RunRecord]) -> list[RunRecord]:
    return [run for run in runs if run.config.get("aggregator") == "mean"]


def _updates(run: RunRecord) -> pd.DataFrame:
    """What the server saw: a row a round and client (index), flags and attacker as bool."""
    rows = run.metrics[run.metrics["split"] == "update"]
    if rows.empty:
        raise ValueError(f"{run.path.name} has no rows of split 'update'. Delete the record and run again.")
    rows = rows.assign(client=rows["client"].astype(int))
    table = rows.pivot(index=["round", "client"], columns="metric", values="value")
    return table.astype(dict.fromkeys(["attacker", *DETECTORS], bool)).rename_axis(columns=None)


def _called(run: RunRecord, source: int, name: int) -> float:
    """Share of the source's test images that are called this class; NaN is refused by the interval."""
    of_source = test_set(run)["label"].to_numpy() == source
    return float((probabilities(run)[0][of_source].argmax(axis=1) == name).mean())


def _distances(counts: Sequence[Sequence[int]]) -> np.ndarray:
    """Total variation distance of each row's mix to that of all rows."""
    counts = np.asarray(counts, float)
    return np.abs(counts / counts.sum(axis=1, keepdims=True) - counts.sum(axis=0) / counts.sum()).sum(axis=1) / 2


def _spearman(values: np.ndarray) -> float:
    """NaN where one of the two columns does not vary. From ranks: thousands of draws ask for no p-value."""
    if (np.ptp(values, axis=0) == 0).any():
        return math.nan
    return float(np.corrcoef(stats.rankdata(values, axis=0), rowvar=False)[0, 1])
