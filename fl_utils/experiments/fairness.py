"""Hospitals one by one: what each holds, its score on its own test images, the worst one, the spread."""

from collections.abc import Mapping, Sequence
from typing import Literal

import pandas as pd

from fl_utils.data.partition import heterogeneity
from fl_utils.data.types import ImageDataset
from fl_utils.experiments.analysis import panel
from fl_utils.experiments.cells import cells
from fl_utils.experiments.hospitals import Hospitals
from fl_utils.records import RunRecord
from fl_utils.statistics import Interval, seed_interval

#: A score on fewer own test images says nothing: one image more or less would move it by over a tenth.
MIN_TEST_IMAGES = 10
_BLOCK = ["dataset", "panel", "partition"]


def hospital_scores(
    runs: Sequence[RunRecord], metric: str = "balanced_accuracy", min_images: int = MIN_TEST_IMAGES
) -> pd.DataFrame:
    """Each hospital's score on its own test images, at the selected round.

    Balanced accuracy is over the classes that the hospital's test images have.

    Args:
      runs: records; centralized ones have no hospitals and are passed over.
      metric: "balanced_accuracy" or "accuracy".
      min_images: hospitals with fewer own test images are left out of `value`.
    Returns:
      One row a run and hospital: dataset, panel, partition, method, seed, hospital (from 1), num_images, value (NaN
      where left out).
    Raises:
      ValueError: a record without own_test scores at its selected round, or no record with hospitals.
    """
    rows = []
    for (dataset, partition, method), members in cells(
        [run for run in runs if run.config["method"] != "centralized"]
    ).items():
        for run in members:
            values = _own_test(run, metric)
            for client, counts in enumerate(run.environment["class_counts"]["test"]):
                value = float("nan")
                if sum(counts) >= min_images:
                    if str(client) not in values:
                        raise ValueError(
                            f"{run.path.name} has no own_test {metric} of hospital {client} at its selected round, "
                            f"though the hospital has {sum(counts)} test images. Delete the record and run again."
                        )
                    value = values[str(client)]
                rows.append(
                    {"dataset": dataset, "panel": panel(dataset), "partition": partition, "method": method}
                    | {"seed": run.config["seed"], "hospital": client + 1, "num_images": sum(counts), "value": value}
                )
    if not rows:
        raise ValueError(f"None of {len(runs)} records has hospitals.")
    return pd.DataFrame(rows)


def _own_test(run: RunRecord, metric: str) -> dict[str, float]:
    """client -> score at the round that was selected for it (its own model's, else the common model's)."""
    rows = run.metrics[(run.metrics["split"] == "own_test") & (run.metrics["metric"] == metric)]
    selected = run.environment["selected_round"]
    chosen = rows["client"].map(lambda client: selected.get(client, selected.get("all")))
    return rows[rows["round"] == chosen].groupby("client")["value"].mean().to_dict()


def fairness(
    runs: Sequence[RunRecord], metric: str = "balanced_accuracy", min_images: int = MIN_TEST_IMAGES
) -> pd.DataFrame:
    """How evenly a method serves the hospitals: the worst one, and the spread; mean over seeds with interval.

    Returns:
      One row dataset x partition x method: dataset, panel, partition, method, seeds (with 2 judged hospitals or more;
      the intervals are over these), mean, worst, std, range, each with _low and _high (t over seeds), judged and
      left_out (hospitals, added up over all seeds). std is of the population: these hospitals, not a sample.
    """
    rows = []
    scores = hospital_scores(runs, metric, min_images)
    for key, arm in scores.groupby([*_BLOCK, "method"], sort=False):
        by_seed = arm.dropna(subset="value").groupby("seed")["value"]
        values = pd.DataFrame(
            {"mean": by_seed.mean(), "worst": by_seed.min(), "std": by_seed.std(ddof=0)}
            | {"range": by_seed.max() - by_seed.min()}
        )[by_seed.size() >= 2]
        row = dict(zip([*_BLOCK, "method"], key, strict=True)) | {"seeds": len(values)}
        for name, column in values.items():
            interval = seed_interval(column) if len(column) else Interval(*[float("nan")] * 3, 0, "")
            row |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
        judged = int(arm["value"].notna().sum())
        rows.append(row | {"judged": judged, "left_out": len(arm) - judged})
    return pd.DataFrame(rows)


def personal_gain(
    runs: Sequence[RunRecord], metric: str = "balanced_accuracy",
    methods: Sequence[str] = ("local", "fedavg", "finetuned", "local_norm"), min_images: int = MIN_TEST_IMAGES,
) -> pd.DataFrame:
    """Each hospital's own test images under its own model, the common one, and the personal ones.

    Returns:
      One row dataset x partition x seed x hospital that all methods at hand judged: dataset, panel, partition, seed,
      hospital, num_images, and one column a method.
    Raises:
      ValueError: fewer than two of the methods are there, no hospital that all judged, or other test images.
    """
    there = [run for run in runs if run.config["method"] in methods]
    names = [method for method in methods if any(run.config["method"] == method for run in there)]
    if len(names) < 2:
        found = ", ".join(names) or "none"
        raise ValueError(f"The records have {found} of {', '.join(methods)}; expected two or more.")
    scores = hospital_scores(there, metric, min_images)
    keys = [*_BLOCK, "seed", "hospital", "num_images"]
    sizes = scores.groupby(keys[:-1])["num_images"].nunique()
    if (sizes > 1).any():
        dataset, _, partition, seed, hospital = sizes.index[sizes > 1][0]
        raise ValueError(
            f"{dataset}, {partition}: hospital {hospital} of seed {seed} has other test images under one method than "
            "under another; records of one grid share them. Train them again from one version."
        )
    wide = scores.pivot(index=keys, columns="method", values="value")[names].dropna().reset_index()
    if wide.empty:
        raise ValueError(f"No hospital with {min_images} test images or more was judged by all of {', '.join(names)}.")
    return wide.rename_axis(columns=None)


def partition_counts(
    dataset: ImageDataset, hospitals: Mapping[str, Hospitals], part: Literal["train", "validation", "test"] = "train"
) -> pd.DataFrame:
    """Who holds what under several partitions.

    Args:
      dataset: the images that were shared out.
      hospitals: panel -> who holds which, from `hospitals.share_out`.
      part: of the data.
    Returns:
      Columns panel, client (from 1), class_name, count.
    """
    rows = []
    for name, shared in hospitals.items():
        for client, index in enumerate(getattr(shared, part), start=1):
            counts = dataset.multi_hot[index].sum(axis=0)
            rows += [(name, client, *pair) for pair in zip(dataset.class_names, counts.tolist(), strict=True)]
    return pd.DataFrame(rows, columns=["panel", "client", "class_name", "count"])


def heterogeneity_numbers(counts: pd.DataFrame) -> pd.DataFrame:
    """How unlike the hospitals of each panel are; see `data.partition.heterogeneity`.

    Args:
      counts: as from `partition_counts`.
    Returns:
      One row a panel: panel, js_distance, size_gini.
    """
    rows = []
    for name, table in counts.groupby("panel", sort=False):
        matrix = table.pivot(index="client", columns="class_name", values="count").fillna(0)
        rows.append({"panel": name} | heterogeneity(matrix.to_numpy()))
    return pd.DataFrame(rows)
