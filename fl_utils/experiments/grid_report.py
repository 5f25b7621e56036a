"""Notebook 03: what stands around the comparison of methods: partitions, settings, anchors, the answer in words."""

from collections.abc import Sequence

import pandas as pd

from fl_utils.config import METHOD_FIELDS, METHOD_LABELS
from fl_utils.experiments.analysis import SIGNIFICANCE, panel, score
from fl_utils.experiments.cells import cells
from fl_utils.experiments.cost import centralized_anchor
from fl_utils.records import RunRecord
from fl_utils.statistics import Interval, seed_interval


def recorded_counts(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Who holds what, from the records themselves: no images are needed.

    Args:
      runs: one record a partition.
    Returns:
      Columns panel (the partition), client (from 1), class_name, count, of the training part.
    """
    rows = []
    for (_, partition, _), (run, *_) in cells(runs).items():
        names = run.environment["class_names"]
        for client, counts in enumerate(run.environment["class_counts"]["train"], start=1):
            rows += [(partition, client, name, count) for name, count in zip(names, counts, strict=True)]
    return pd.DataFrame(rows, columns=["panel", "client", "class_name", "count"])


def chosen_settings(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """The settings of every method and, where they were tuned, how the trials did.

    Returns:
      One row a data set and method: panel, method, client_learning_rate, server_learning_rate, other (further fields),
      trials, lowest, best (validation score of the trials; NaN where nothing was tuned), diverged (trials).
    """
    rows = {}
    for run in runs:
        config, tuning = run.config, run.environment.get("tuning", {"trials": []})
        scores = [trial["score"] for trial in tuning["trials"]]
        finite = [value for value in scores if value is not None]
        other = [f"{field} {config[field]:g}" for field in METHOD_FIELDS if config.get(field)]
        rows[config["dataset"], config["method"]] = {
            "panel": panel(config["dataset"]), "method": config["method"],
            "client_learning_rate": config["client_learning_rate"],
            "server_learning_rate": config["server_learning_rate"], "other": ", ".join(other), "trials": len(scores),
            "lowest": min(finite, default=float("nan")), "best": max(finite, default=float("nan")),
            "diverged": len(scores) - len(finite),
        }
    return pd.DataFrame(rows.values()).sort_values("panel", kind="stable").reset_index(drop=True)


def anchor_table(runs: Sequence[RunRecord], metric: str = "balanced_accuracy") -> pd.DataFrame:
    """What the federations stand between, as text "mean [low, high]" over seeds.

    Returns:
      One row a data set and partition with hospitals alone: panel, partition, alone, centralized_equal_steps,
      centralized_equal_passes.
    """
    rows = []
    for (dataset, partition, _), members in cells([run for run in runs if run.config["method"] == "local"]).items():
        pooled = centralized_anchor(runs, members[0].config)
        rounds = max(1, pooled[0].config["total_rounds"] // members[0].config["num_clients"])
        rows.append(
            {"panel": panel(dataset), "partition": partition}
            | {"alone": str(seed_interval([score(run, metric) for run in members]))}
            | {"centralized_equal_steps": str(seed_interval([_early(run, metric, rounds) for run in pooled]))}
            | {"centralized_equal_passes": str(seed_interval([score(run, metric) for run in pooled]))}
        )
    return pd.DataFrame(rows)


def _early(run: RunRecord, metric: str, rounds: int) -> float:
    """The test score at the best validation round among the first ones: what a shorter run would have selected."""
    rows = run.metrics[(run.metrics["client"] == "all") & (run.metrics["round"] <= rounds)]
    curve = rows[rows["metric"] == metric].groupby(["split", "round"])["value"].mean()
    return float(curve["test"][curve["validation"].idxmax()])


def method_intervals(runs: Sequence[RunRecord], metric: str = "balanced_accuracy") -> pd.DataFrame:
    """Mean and interval over seeds of every cell, as `plotting.intervals` takes it.

    Returns:
      Columns dataset, dataset_label, partition, method, label (the method's words), seeds, mean, low, high.
    """
    rows = []
    for (dataset, partition, method), members in cells(runs).items():
        interval: Interval = seed_interval([score(run, metric) for run in members])
        rows.append(
            {"dataset": dataset, "dataset_label": panel(dataset), "partition": partition, "method": method}
            | {"label": METHOD_LABELS[method], "seeds": interval.num}
            | {"mean": interval.mean, "low": interval.low, "high": interval.high}
        )
    return pd.DataFrame(rows)


def answer(table: pd.DataFrame, gap: pd.DataFrame, ranks: pd.DataFrame) -> list[str]:
    """The notebook's answer in sentences of Markdown.

    Args:
      table, gap, ranks: of `heterogeneity.grid`, `gap_recovered` and `ranks`.
    Returns:
      One sentence or two a data set, then one on the ranks.
    """
    sentences = []
    for dataset, rows in gap[gap["method"] == "fedavg"].groupby("dataset", sort=False):
        text = f"**{panel(dataset)}.** "
        known = rows.dropna(subset="share").sort_values("share", ascending=False)
        if len(known):
            said = [
                f"{row.share:.0%} [{row.low:.0%}, {row.high:.0%}] on {row.partition}" if row.low == row.low
                else f"{row.share:.0%} (no interval: {row.reason}) on {row.partition}"
                for row in known.itertuples()
            ]
            text += f"Of the gap between a hospital alone and the pooled model, FedAvg recovers {'; '.join(said)}. "
        compared = table[(table["dataset"] == dataset) & table["p_holm"].notna()]
        for verdict in ("better", "worse"):
            found = compared[compared["verdict"] == verdict]
            names = "; ".join(f"{METHOD_LABELS[r.method]} on {r.partition} ({r.difference:+.3f})" for r in found.itertuples())
            text += f"Significantly {verdict} than FedAvg: {len(found)} of {len(compared)} comparisons" + (
                f" ({names}). " if names else ". "
            )
        # What so few seeds could show at all: a reader sees how much the correction takes away.
        before = compared[compared["p_value"] < SIGNIFICANCE]
        text += (
            f"Before the correction it would be {(before['difference'] > 0).sum()} better and "
            f"{(before['difference'] < 0).sum()} worse, with {SIGNIFICANCE * len(compared):.0f} expected by chance."
        )
        sentences.append(text)
    by_method = ranks.set_index("method")["average_rank"]
    sentences.append(
        f"**Ranks** over {ranks['blocks'].iloc[0]} blocks: best {METHOD_LABELS[by_method.idxmin()]} with "
        f"{by_method.min():.2f}, FedAvg {by_method['fedavg']:.2f}, last {METHOD_LABELS[by_method.idxmax()]} with "
        f"{by_method.max():.2f}; ranks closer than {ranks['critical_difference'].iloc[0]:.2f} are not told apart."
    )
    return sentences


def order_in_words(longer: pd.DataFrame) -> str:
    """One sentence a block of `heterogeneity.longer_run`: did longer training change the order?"""
    sentences = []
    for (name, partition), rows in longer.groupby(["panel", "partition"], sort=False):
        first = [METHOD_LABELS[rows.loc[rows[rank].idxmin(), "method"]] for rank in ("rank_short", "rank_long")]
        moved = int((rows["rank_short"] != rows["rank_long"]).sum())
        best = f"{first[0]} stays first" if first[0] == first[1] else f"the first is {first[1]} instead of {first[0]}"
        sentences.append(
            f"{name}, {partition}: after {rows['rounds_long'].iloc[0]} rounds instead of {rows['rounds_short'].iloc[0]}, "
            f"{moved} of {len(rows)} methods have another rank (Kendall's tau {rows['kendall_tau'].iloc[0]:.2f}), and {best}."
        )
    return " ".join(sentences)
