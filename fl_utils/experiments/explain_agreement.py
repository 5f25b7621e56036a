"""Notebook 04: do two models look at the same places, and does one model do so twice?"""

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd

from fl_utils.experiments.analysis import panel
from fl_utils.experiments.explain_report import CAM_LABELS, by_dataset
from fl_utils.experiments.explaining import Explanation, upsampled
from fl_utils.explain.similarity import similarity
from fl_utils.statistics import Interval, seed_interval

MEASURES = ("rank_correlation", "ssim")
#: The order of rows and columns.
NAMES = ("centralized", "fedavg", "alone", "shuffled", "untrained")


def agreement_matrix(explanations: Sequence[Explanation]) -> pd.DataFrame:
    """How alike the maps of two models of one seed are, mean over images.

    "alone" stands for the hospitals' own models: with another model the mean over the hospitals, with itself the mean
    over pairs of different hospitals.

    Returns:
      One row dataset x cam x measure x first x second, both ways round: dataset, panel ("data set, kind of map"), cam,
      measure ("rank_correlation", "ssim"), first, second, seeds, mean, low, high (t over seeds). Images whose map is constant in one of the models cannot be
      compared and do not count.
    Raises:
      ValueError: see `explain_report.by_dataset`.
    """
    rows = []
    for dataset, members in by_dataset(explanations).items():
        table = pd.concat([member.agreement.assign(seed=member.seed) for member in members], ignore_index=True)
        table = table[table["images"] > 0].replace({column: {"local": "alone"} for column in ("first", "second")})
        for (cam, of_cam), measure in itertools.product(table.groupby("cam", sort=False), MEASURES):
            weighted = of_cam.assign(weighted=of_cam[measure] * of_cam["images"])
            # Labels weigh by their images, pairs of hospitals alike.
            keys = ["seed", "first", "first_client", "second", "second_client"]
            pairs = weighted.groupby(keys)[["weighted", "images"]].sum()
            values = (pairs["weighted"] / pairs["images"]).groupby(["seed", "first", "second"]).mean()
            for (first, second), group in values.groupby(["first", "second"]):
                interval = seed_interval(group)
                for names in dict.fromkeys([(first, second), (second, first)]):
                    rows.append(
                        {"dataset": dataset, "panel": f"{panel(dataset)}, {CAM_LABELS[cam]}", "cam": cam, "measure": measure}
                        | dict(zip(("first", "second"), names, strict=True))
                        | {"seeds": interval.num, "mean": interval.mean, "low": interval.low, "high": interval.high}
                    )
    order = {name: place for place, name in enumerate(NAMES)}
    columns = ["dataset", "cam", "measure", "first", "second"]
    return pd.DataFrame(rows).sort_values(
        columns, key=lambda column: column.map(order) if column.name in ("first", "second") else column, kind="stable"
    ).reset_index(drop=True)


def repeatability(explanations: Sequence[Explanation]) -> pd.DataFrame:
    """How alike the maps of one arm are when it is trained again with another seed.

    A seed draws the initial weights, the batches and who holds what anew; "local" is the first hospital's model, which
    therefore also sees other images. Maps are kept on the layer's grid, and upsampled to the image for the comparison.

    Returns:
      One row dataset x arm x cam x measure: dataset, panel, model, cam, measure, pairs (of seeds), mean, low, high (over seeds, by
      the jackknife, as pairs share their seeds; NaN below 3 seeds).
    Raises:
      ValueError: see `explain_report.by_dataset`; a data set with one seed only.
    """
    rows = []
    for dataset, members in by_dataset(explanations).items():
        if len(members) < 2:
            raise ValueError(f"{dataset} has the seed {members[0].seed} only; repeatability needs two or more.")
        size = members[0].facts["image_size_px"]
        for model, cam in members[0].maps:
            maps = [upsampled(member.maps[model, cam], size) for member in members]
            pairs = {
                pair: similarity(maps[pair[0]], maps[pair[1]])[list(MEASURES)].mean()
                for pair in itertools.combinations(range(len(members)), 2)
            }
            for measure in MEASURES:
                values = {pair: means[measure] for pair, means in pairs.items() if np.isfinite(means[measure])}
                if not values:
                    continue
                interval = _jackknife(values, len(members))
                rows.append(
                    {"dataset": dataset, "panel": panel(dataset), "model": model, "cam": cam, "measure": measure}
                    | {"pairs": len(values), "mean": interval.mean, "low": interval.low, "high": interval.high}
                )
    return pd.DataFrame(rows)


def _jackknife(values: dict[tuple[int, int], float], num: int) -> Interval:
    """The mean over pairs of seeds with an interval over seeds: t of the jackknife's pseudo-values.

    Source: Arvesen 1969, doi:10.1214/aoms/1177697287 (jackknifing U-statistics).
    """
    mean = float(np.mean(list(values.values())))
    without = [np.mean([value for pair, value in values.items() if seed not in pair] or np.nan) for seed in range(num)]
    if num < 3 or not np.isfinite(without).all():
        return Interval(mean, float("nan"), float("nan"), num, "jackknife over seeds")
    pseudo = seed_interval(num * mean - (num - 1) * np.array(without))
    # With all pairs there, the pseudo-values' mean is the mean over pairs.
    half = (pseudo.high - pseudo.low) / 2
    return Interval(mean, mean - half, mean + half, num, "jackknife over seeds")
