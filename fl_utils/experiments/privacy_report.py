"""Notebook 06: what each protection costs and stops, over seeds, from the records and the attacks."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from fl_utils.config import PROTECTION_LABELS, ExperimentConfig
from fl_utils.experiments.analysis import SIGNIFICANCE, panel, score
from fl_utils.experiments.inversion_plan import CONDITIONS
from fl_utils.experiments.inversion_runs import Inversion
from fl_utils.experiments.membership_runs import FPR, Membership
from fl_utils.experiments.privacy_plan import arm_of
from fl_utils.records import RunRecord
from fl_utils.statistics import holm, paired_seed_test, seed_interval
from fl_utils.trust.accounting import noise_multiplier_for
from fl_utils.trust.terms import patient_terms

#: The arm that an arm is compared with, where it is not "none".
BASELINE = {"none": None, "none_many": None, "hospital_many": "none_many", "hospital_many_adaptive": "none_many"}
#: What the curve of a frontier is called.
SERIES = {
    "patient": "Patient-level DP", "hospital_few": "Hospital-level DP, 5 hospitals",
    "hospital_few_adaptive": "Hospital-level DP, 5 hospitals, adaptive", "hospital_many": "Hospital-level DP, 50 hospitals",
    "hospital_many_adaptive": "Hospital-level DP, 50 hospitals, adaptive",
}
ATTACK_LABELS = {"loss": "Loss threshold", "lira": "LiRA"}
CHANCE = {"auc": 0.5, "tpr_at_fpr": FPR, "advantage": 0.0}


def accuracy_table(runs: Sequence[RunRecord], metric: str = "balanced_accuracy") -> pd.DataFrame:
    """Test scores of every arm, and its paired difference to the unprotected federation of as many hospitals.

    Args:
      runs: of `privacy_plan.configs_06`, several seeds an arm.
      metric: "accuracy" or "balanced_accuracy"; "local" is the mean over the hospitals' models.
    Returns:
      A row a data set and arm: dataset, panel, arm, label, unit, target (epsilon; NaN without), epsilon, delta,
      noise_multiplier, seeds, mean, low, high (t over seeds), difference, diff_low, diff_high, p_value, p_holm (over the
      whole table), verdict ("better", "worse", "not significant", "" for what is compared with), minutes (a run), diverged.
    """
    rows, arms = [], by_arm(runs)
    for (dataset, arm), members in arms.items():
        values, config = [score(run, metric) for run in members], members[0].config
        privacy = [run.environment.get("privacy", {}) for run in members]
        row = {
            "dataset": dataset, "panel": panel(dataset), "arm": arm, "label": PROTECTION_LABELS[arm],
            "unit": config["privacy_unit"] or "", "target": config["epsilon"] or math.nan,
            **{name: float(np.mean([p.get(name, math.nan) for p in privacy])) for name in ("epsilon", "noise_multiplier")},
            "delta": config["delta"] or math.nan, "seeds": len(members), **_interval(values),
            "minutes": float(np.mean([run.environment["duration_s"] for run in members])) / 60,
            "diverged": sum("diverged_at_round" in run.environment for run in members),
        }
        against = BASELINE.get(arm, "none")
        others = arms.get((dataset, against), [])
        if [run.config["seed"] for run in others] == [run.config["seed"] for run in members] and len(members) > 1:
            test = paired_seed_test(values, [score(run, metric) for run in others])
            difference = test.difference
            row |= {"difference": difference.mean, "diff_low": difference.low, "diff_high": difference.high, "p_value": test.p_value}
        rows.append(row)
    table = pd.DataFrame(rows).reindex(columns=[
        "dataset", "panel", "arm", "label", "unit", "target", "epsilon", "delta", "noise_multiplier", "seeds", "mean", "low",
        "high", "difference", "diff_low", "diff_high", "p_value", "minutes", "diverged",
    ])
    tested = table["p_value"].notna()
    table["p_holm"] = np.nan
    if tested.any():
        table.loc[tested, "p_holm"] = holm(table.loc[tested, "p_value"])
    table["verdict"] = [
        "" if not known else "not significant" if p >= SIGNIFICANCE else "better" if difference > 0 else "worse"
        for known, p, difference in zip(tested, table["p_holm"], table["difference"], strict=True)
    ]
    return table


def frontier(accuracy: pd.DataFrame, num_classes: Mapping[str, int]) -> pd.DataFrame:
    """For `plotting.privacy_frontier`: points of the arms with an epsilon, bands of those without, and chance.

    Args:
      accuracy: of `accuracy_table`.
      num_classes: by data set.
    """
    rows = []
    for row in accuracy.itertuples():
        shared = {"panel": row.panel, "mean": row.mean, "low": row.low, "high": row.high}
        if row.arm.startswith("patient_") or row.arm in SERIES:
            series = SERIES["patient" if row.unit == "patient" else row.arm]
            rows.append({**shared, "unit": row.unit, "series": series, "epsilon": row.target})
        elif row.arm in ("none", "none_many", "local"):
            rows.append({**shared, "unit": "", "series": row.label, "epsilon": math.nan})
    for dataset, name in accuracy.groupby("dataset", sort=False)["panel"].first().items():
        level = 1 / num_classes[dataset]
        rows.append({"panel": name, "unit": "", "series": "Chance", "epsilon": math.nan, "mean": level, "low": level, "high": level})
    return pd.DataFrame(rows)


def same_model(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """How far encrypted sums change a model: its test probabilities beside those of the same training in plain.

    Returns:
      A row a data set, arm and seed: dataset, arm, plain (arm), seed, max_difference (of a probability), flipped (test
      images whose predicted class differs), images.
    """
    rows, arms = [], by_arm(runs)
    for (dataset, arm), members in arms.items():
        plain = {"encrypted": "none", "both": "patient_8"}.get(arm)
        others = {other.config["seed"]: other for other in arms.get((dataset, plain), [])}
        for run in (run for run in members if run.config["seed"] in others):
            other = others[run.config["seed"]]
            columns = [name for name in run.predictions if name[0] == "p" and name[1:].isdigit()]
            a, b = run.predictions[columns].to_numpy(), other.predictions[columns].to_numpy()
            rows.append({
                "dataset": dataset, "arm": arm, "plain": plain, "seed": run.config["seed"],
                "max_difference": np.abs(a - b).max(), "flipped": int((a.argmax(1) != b.argmax(1)).sum()), "images": len(a),
            })
    return pd.DataFrame(rows, columns=["dataset", "arm", "plain", "seed", "max_difference", "flipped", "images"])


def inversion_table(found: Sequence[Inversion], measure: str = "ssim") -> pd.DataFrame:
    """How well images are reconstructed under each condition, over seeds, beside what other real images reach.

    Args:
      found: any data sets, several seeds each.
      measure: "ssim" or "psnr_db".
    Returns:
      A row a data set and condition: dataset, panel, condition, label, seeds, images (a seed), mean, low, high (t over
      seeds), noise, random_other, best_other (what an image of noise, a random and the most alike other image reach),
      above, above_low, above_high (over the random other image), p_value, p_holm (over the table), works (significantly
      better than a random other image), identified (share of the reconstructions that are more like their original
      than like any other image), labels_right, seconds.
    """
    rows = []
    for dataset in dict.fromkeys(one.dataset for one in found):
        scores = pd.concat([one.scores.assign(seed=one.seed) for one in found if one.dataset == dataset])
        for condition, table in scores.groupby("condition", sort=False):
            of_seed = table.groupby("seed").mean(numeric_only=True)
            row = {
                "dataset": dataset, "panel": panel(dataset), "condition": condition, "label": CONDITIONS[condition].label,
                "seeds": len(of_seed), "images": CONDITIONS[condition].images, **_interval(of_seed[measure]),
                **{name: of_seed[f"{name}_{measure}"].mean() for name in ("noise", "random_other", "best_other")},
                "identified": float((table["rank"] == 1).mean()), "labels_right": of_seed["labels_right"].mean(),
                "seconds": of_seed["duration_s"].mean(),
            }
            if len(of_seed) > 1:
                test = paired_seed_test(of_seed[measure], of_seed[f"random_other_{measure}"])
                above = test.difference
                row |= {"above": above.mean, "above_low": above.low, "above_high": above.high, "p_value": test.p_value}
            rows.append(row)
    table = pd.DataFrame(rows)
    if "p_value" in table:
        table["p_holm"] = holm(table["p_value"])
        table["works"] = (table["p_holm"] < SIGNIFICANCE) & (table["above"] > 0)
    return table


def inversion_points(found: Sequence[Inversion], measure: str = "ssim") -> pd.DataFrame:
    """For `plotting.inversion_scores`: a row an image and condition."""
    tables = []
    for one in found:
        scores = one.scores
        tables.append(pd.DataFrame({
            "panel": panel(one.dataset), "condition": [CONDITIONS[name].label for name in scores["condition"]],
            "image": [f"s{one.seed} {image}" for image in scores["image"]], "value": scores[measure],
            "random_other": scores[f"random_other_{measure}"], "best_other": scores[f"best_other_{measure}"],
        }))
    return pd.concat(tables, ignore_index=True)


def membership_summary(found: Sequence[Membership]) -> pd.DataFrame:
    """How well members are told, over attacked models.

    Returns:
      A row a data set, arm, attack, unit and metric: dataset, panel, arm, label, attack (words), unit, metric, targets,
      mean, low, high (t over attacked models, within 0 and 1), chance, gap (accuracy on members minus on others), num_shadows.
    """
    rows = []
    for one in found:
        gap = float((one.fit["accuracy_members"] - one.fit["accuracy_others"]).mean())
        for (attack, unit, metric), table in one.scores.groupby(["attack", "unit", "metric"], sort=False):
            rows.append({
                "dataset": one.dataset, "panel": panel(one.dataset), "arm": one.arm, "label": PROTECTION_LABELS[one.arm],
                "attack": ATTACK_LABELS[attack], "unit": unit, "metric": metric, "targets": len(table),
                **_share(table["mean"]), "chance": CHANCE[metric], "gap": gap,
                "num_shadows": one.facts["num_shadows"] if attack == "lira" else 0,
            })
    return pd.DataFrame(rows)


def membership_curves(found: Sequence[Membership], attack: str = "lira") -> pd.DataFrame:
    """For `plotting.membership_roc`: the mean curves of one attack; of the loss threshold where LiRA was not run."""
    tables = []
    for one in found:
        known = attack if (one.roc["attack"] == attack).any() else "loss"
        curve = one.roc[one.roc["attack"] == known]
        tables.append(curve.assign(panel=panel(one.dataset), arm=one.arm, attack=ATTACK_LABELS[known]))
    return pd.concat(tables, ignore_index=True)


def noise_by_size(
    sizes: Sequence[int] = (100, 1000, 10_000), epsilons: Sequence[float] = (8.0, 1.0), *, rate: float = 0.2, passes: int = 8,
) -> pd.DataFrame:
    """What patient-level privacy asks of hospitals of other sizes, by the accountant alone; nothing is trained.

    Args:
      sizes: patients of a hospital.
      epsilons: targets; delta is a tenth of 1 / patients.
      rate: share of the patients that a step takes.
      passes: over the patients.
    Returns:
      A row a size: patients, delta, and for each epsilon the deviation of the noise in a step's mean gradient, in shares of
      the clipping norm.
    """
    rows = []
    for num_patients in sizes:
        drawn, delta = rate * num_patients, 0.1 / num_patients
        terms = patient_terms(num_patients=num_patients, patients_per_step=drawn, steps=round(passes / rate), delta=delta)
        noise = {f"epsilon {epsilon:g}": noise_multiplier_for(epsilon, terms) / drawn for epsilon in epsilons}
        rows.append({"patients": num_patients, "delta": delta, **noise})
    return pd.DataFrame(rows)


def by_arm(runs: Sequence[RunRecord]) -> dict[tuple[str, str], list[RunRecord]]:
    """(data set, arm) -> records, ordered by seed."""
    found: dict[tuple[str, str], list[RunRecord]] = {}
    for run in sorted(runs, key=lambda run: run.config["seed"]):
        found.setdefault((run.config["dataset"], arm_of(ExperimentConfig(**run.config))), []).append(run)
    order = list(dict.fromkeys(run.config["dataset"] for run in runs))
    return dict(sorted(found.items(), key=lambda item: (order.index(item[0][0]), list(PROTECTION_LABELS).index(item[0][1]))))


def _interval(values: Sequence[float]) -> dict[str, float]:
    interval = seed_interval(list(values))
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def _share(values: Sequence[float]) -> dict[str, float]:
    """The interval of what cannot leave 0 to 1."""
    interval = _interval(values)
    return interval | {"low": max(interval["low"], 0.0), "high": min(interval["high"], 1.0)}
