"""Notebook 04: the maps' scores over seeds and images, who differs from whom, the sanity checks, the cases to show."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from fl_utils import seeding
from fl_utils.experiments.analysis import SIGNIFICANCE, panel
from fl_utils.experiments.explain_plan import CAM, CAMS, COMPARED_CAMS
from fl_utils.experiments.explaining import Explanation, upsampled
from fl_utils.statistics import holm, paired_seed_test, seed_interval

METRICS = ("pointing", "energy", "iou_half", "iou_best", "deletion", "insertion")
METRIC_LABELS = {
    "pointing": "Pointing game", "energy": "Energy in the lesion", "iou_half": "IoU at half of the maximum",
    "iou_best": "IoU at the best threshold", "deletion": "Deletion (area, small is good)",
    "insertion": "Insertion (area)",
}
CAM_LABELS = {
    "grad_cam": "Grad-CAM", "grad_cam_pp": "Grad-CAM++", "hires_cam": "HiResCAM", "score_cam": "Score-CAM",
    "random": "Random map", "centre": "Centre prior",
}
MODEL_LABELS = {
    "centralized": "Centralized", "local": "Alone", "fedavg": "FedAvg", "shuffled": "Shuffled labels",
    "untrained": "Untrained",
}
#: Compared in `comparisons`: first minus second, both with each of COMPARED_CAMS.
MODEL_PAIRS = (("fedavg", "centralized"), ("fedavg", "local"), ("local", "centralized"))
#: Where the mask's share of the image is what a blind map scores.
_WITH_CHANCE = ("pointing", "energy")
_RESAMPLES = 1000


def score_table(
    explanations: Sequence[Explanation], metrics: Sequence[str] = METRICS, *, by_class: bool = False
) -> pd.DataFrame:
    """Mean and both intervals of every model and kind of map.

    Args:
      explanations: any number of data sets, several seeds each, of the same images.
      metrics: of METRICS.
      by_class: a row a class, too.
    Returns:
      One row dataset x metric x model x cam (x class_name): dataset, panel, metric, model, cam, label (words), seeds,
      mean, low, high (t over seeds), image_low, image_high (percentile bootstrap over images of their means over seeds
      and hospitals), images, chance (the mask's mean share; NaN for other metrics than pointing and energy). "local" is
      the mean over the hospitals' models. What has no value, such as pointing without masks, has no row.
    Raises:
      ValueError: a metric that there is not, one seed twice, or seeds of different images.
    """
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown:
        raise ValueError(f"metrics has {', '.join(unknown)}; expected some of {', '.join(METRICS)}.")
    rows, keys = [], ["model", "cam", *(["label"] if by_class else [])]
    for dataset, members in by_dataset(explanations).items():
        names = members[0].facts["class_names"]
        scores = pd.concat([member.scores.assign(seed=member.seed) for member in members], ignore_index=True)
        for metric in metrics:
            for key, group in scores.dropna(subset=metric).groupby(keys, sort=False):
                seeds = seed_interval(group.groupby("seed")[metric].mean())
                low, high = _over_images(group.groupby("example")[metric].mean().to_numpy(), metric)
                chance = group["chance"].mean() if metric in _WITH_CHANCE else float("nan")
                rows.append(
                    {"dataset": dataset, "panel": panel(dataset), "metric": metric, "model": key[0], "cam": key[1]}
                    | {"label": f"{MODEL_LABELS[key[0]]}, {CAM_LABELS[key[1]]}"}
                    | ({"class_name": names[key[2]]} if by_class else {})
                    | {"seeds": seeds.num, "mean": seeds.mean, "low": seeds.low, "high": seeds.high}
                    | {"image_low": low, "image_high": high, "images": group["example"].nunique(), "chance": chance}
                )
    return pd.DataFrame(rows)


def by_dataset(explanations: Sequence[Explanation]) -> dict[str, list[Explanation]]:
    """The explanations by data set, each ordered by seed.

    Raises:
      ValueError: none at all, one seed twice, or seeds of different images.
    """
    if not explanations:
        raise ValueError("There is no explanation; expected one or more of `explaining.explain`.")
    table: dict[str, list[Explanation]] = {}
    for one in sorted(explanations, key=lambda one: one.seed):
        members = table.setdefault(one.dataset, [])
        if members and members[-1].seed == one.seed:
            raise ValueError(f"{one.dataset} has two explanations of seed {one.seed}; expected one a seed.")
        if members and not np.array_equal(members[0].examples, one.examples):
            raise ValueError(
                f"{one.dataset}: seed {one.seed} explains other images than seed {members[0].seed}; take all from one profile."
            )
        members.append(one)
    return {name: table[name] for name in dict.fromkeys(one.dataset for one in explanations)}


def _over_images(values: np.ndarray, metric: str) -> tuple[float, float]:
    """95 % interval of the mean of one value an image."""
    if len(values) < 2 or np.ptp(values) == 0:
        return float(values.mean()), float(values.mean())
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=_RESAMPLES, method="percentile",
        random_state=seeding.generator(0, "bootstrap", "images", metric),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def comparisons(
    explanations: Sequence[Explanation], metrics: Sequence[str] = ("pointing", "energy", "insertion", "deletion")
) -> pd.DataFrame:
    """Paired t-tests over seeds: the models' maps against each other, and against the random map.

    A random map's deletion and insertion belong to the model whose score they follow; the hospitals' own models have
    none, so there "local" is compared by its fit to the masks only (where a random map is the same for all).

    Returns:
      One row a data set, metric and pair: dataset, panel, metric, comparison (words), first, first_cam, second,
      second_cam, seeds, difference (first minus second), low, high, p_value, p_holm (over the whole table),
      significant.
    Raises:
      ValueError: see `by_dataset`; fewer than 2 seeds.
    """
    rows = []
    for dataset, members in by_dataset(explanations).items():
        for metric in metrics:
            means = {
                member.seed: member.scores.dropna(subset=metric).groupby(["model", "cam"])[metric].mean()
                for member in members
            }
            for first, second in _pairs(metric):
                if not all({first, second} <= set(table.index) for table in means.values()):
                    continue  # no masks
                test = paired_seed_test(*([table[side] for table in means.values()] for side in (first, second)))
                words = [f"{MODEL_LABELS[model]}, {CAM_LABELS[cam]}" for model, cam in (first, second)]
                rows.append(
                    {"dataset": dataset, "panel": panel(dataset), "metric": metric, "comparison": " minus ".join(words)}
                    | {"first": first[0], "first_cam": first[1], "second": second[0], "second_cam": second[1]}
                    | {"seeds": test.difference.num, "difference": test.difference.mean}
                    | {"low": test.difference.low, "high": test.difference.high, "p_value": test.p_value}
                )
    return with_holm(pd.DataFrame(rows))


def _pairs(metric: str) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    pairs = []
    for cam in COMPARED_CAMS:
        pairs += [((first, cam), (second, cam)) for first, second in MODEL_PAIRS]
        pairs += [((model, cam), (model, "random")) for model in ("centralized", "fedavg")]
        if metric in _WITH_CHANCE:
            pairs.append((("local", cam), ("fedavg", "random")))
    return pairs


def with_holm(table: pd.DataFrame) -> pd.DataFrame:
    """The table with p_holm, corrected over all its rows, and significant."""
    p_holm = holm(table["p_value"])
    return table.assign(p_holm=p_holm, significant=p_holm < SIGNIFICANCE)


def sanity_table(explanations: Sequence[Explanation]) -> pd.DataFrame:
    """What is left of the maps when weights are made random from the logits upwards.

    Returns:
      One row dataset x model x cam x measure x layer: dataset, panel, model, cam, measure ("rank_correlation" and
      "ssim" with the trained model's maps; "pointing" and "energy" where there are masks), depth (1 is the logits), layer (the
      last that was made random), seeds, mean, low, high (t over seeds). For pointing and energy depth 0, layer
      "trained" is the trained model. Seeds in which no map could be compared (all constant) do not count.
    """
    rows = []
    for dataset, members in by_dataset(explanations).items():
        tables = [member.sanity.assign(seed=member.seed) for member in members]
        layers = list(dict.fromkeys(tables[0]["layer"]))
        found = [name for name in _WITH_CHANCE if name in tables[0]]
        for member in members:
            trained = member.scores[member.scores["cam"].isin(CAMS)].groupby(["model", "cam"])[found].mean()
            trained = trained.reset_index().assign(layer="trained", seed=member.seed)
            tables.append(trained[trained["model"].isin(member.sanity["model"])])
        table = pd.concat(tables, ignore_index=True)
        for measure in ("rank_correlation", "ssim", *found):
            known = table.dropna(subset=measure)
            for (model, cam), group in known.groupby(["model", "cam"], sort=False):
                for depth, layer in enumerate(["trained", *layers]):
                    values = group.loc[group["layer"] == layer, measure]
                    if len(values) == 0:
                        continue
                    interval = seed_interval(values)
                    rows.append(
                        {"dataset": dataset, "panel": panel(dataset), "model": model, "cam": cam, "measure": measure}
                        | {"depth": depth, "layer": layer, "seeds": interval.num}
                        | {"mean": interval.mean, "low": interval.low, "high": interval.high}
                    )
    return pd.DataFrame(rows)


def chosen_cases(explanation: Explanation, model: str = "fedavg") -> pd.DataFrame:
    """The images that a gallery shows: of each class the surest right, the surest wrong and the least certain one.

    All by the probability of the true class: highest, lowest, nearest to a half. No image comes twice.

    Args:
      explanation: of one seed.
      model: with one common model, such as "fedavg".
    Returns:
      Up to three rows a class: index (into `explanation.examples`), example, label, predicted, probability (of the true
      class), right, kind, title (words, two lines or three). A kind that does not occur has no row.
    Raises:
      ValueError: no such model.
    """
    scores = explanation.scores
    own = scores[(scores["model"] == model) & (scores["client"] == "all") & (scores["cam"] == CAM)]
    if own.empty:
        raise ValueError(f"There are no scores of a common model {model!r}; expected centralized, fedavg or shuffled.")
    names, rows = explanation.facts["class_names"], []
    places = {example: place for place, example in enumerate(explanation.examples)}
    own = own.assign(index=own["example"].map(places), right=own["label"] == own["predicted"])
    for label, group in own.groupby("label"):
        group = group.sort_values("probability", kind="stable")
        kinds = {"surest right": group[group["right"]].tail(1), "surest wrong": group[~group["right"]].head(1)}
        rest = group.drop(index=[place for table in kinds.values() for place in table.index])
        kinds["least certain"] = rest.loc[(rest["probability"] - 0.5).abs().sort_values(kind="stable").index[:1]]
        for kind, table in kinds.items():
            for case in table.itertuples():
                said = "" if case.right else f"\nsaid: {names[case.predicted]}"
                rows.append(
                    {"index": case.index, "example": case.example, "label": label, "predicted": case.predicted}
                    | {"probability": case.probability, "right": case.right, "kind": kind}
                    | {"title": f"{names[label]}\n{kind}\np(true) {case.probability:.2f}{said}"}
                )
    return pd.DataFrame(rows)


def maps_of(explanation: Explanation, cases: pd.DataFrame, cam: str = COMPARED_CAMS[1]) -> dict[str, np.ndarray]:
    """The maps of chosen cases as `plotting.map_gallery` takes them: model's words -> float32 [N, H, W] in 0..1."""
    index, size = cases["index"].to_numpy(), explanation.facts["image_size_px"]
    return {
        MODEL_LABELS[arm]: upsampled(grids[index], size) / 255 for (arm, kind), grids in explanation.maps.items() if kind == cam
    }
