"""From the records of segmenters to the tables behind notebook 05; no training, no TensorFlow.

A subject's score is the mean over the seeds, and for hospitals alone over their models; intervals are a bootstrap over
patients (both hippocampi of a person are drawn together), tests pair the seeds.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from fl_utils import seeding
from fl_utils.config import METHOD_LABELS, SEGMENTERS
from fl_utils.experiments.analysis import SIGNIFICANCE, panel, with_interval
from fl_utils.experiments.segment_plan import METHODS, SEGMENTATION, configs_05
from fl_utils.experiments.parallel import sweep
from fl_utils.learning.segmentation_scores import headline_regions
from fl_utils.records import RunRecord
from fl_utils.statistics import Interval, cluster_bootstrap, holm, paired_seed_test, seed_interval

#: Of the centralized Dice, what the federation is to reach. Sheller et al. 2020, doi:10.1038/s41598-020-69250-1.
WANTED_SHARE = 0.99
HEADLINE = "headline"
MODEL_LABELS = {"unet": "U-Net", "attention_unet": "Attention U-Net"}
LONGER = ("centralized_longer", SEGMENTERS[0])
Arms = Mapping[tuple[str, str], list[RunRecord]]


def records_of(profile: str, *, progress: bool = True) -> list[RunRecord]:
    """The runs of a profile: loaded where they are there, else trained."""
    return sweep(configs_05(profile, progress=progress), experiment=SEGMENTATION, progress=progress)


def longer(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The centralized runs with as many passes as the federation has rounds, by seed (`segment_plan.configs_05`)."""
    rounds = max((run.config["total_rounds"] for run in runs if run.config["method"] == "fedavg"), default=0)
    chosen = [run for run in runs if run.config["method"] == "centralized" and run.config["total_rounds"] == rounds]
    return sorted(chosen, key=lambda run: run.config["seed"])


def arms_of(runs: Sequence[RunRecord]) -> Arms:
    """The records by (method, model), in the order of METHODS and SEGMENTERS, each arm's by seed; without `longer`."""
    left_out = {run.path for run in longer(runs)}
    arms = {
        (method, model): sorted(
            (
                run for run in runs
                if (run.config["method"], run.config["model"]) == (method, model) and run.path not in left_out
            ),
            key=lambda run: run.config["seed"],
        )
        for method, model in itertools.product(METHODS, SEGMENTERS)
    }
    seeds = {key: [run.config["seed"] for run in members] for key, members in arms.items()}
    if len({tuple(value) for value in seeds.values()}) > 1 or not any(seeds.values()):
        raise ValueError(f"Every arm needs the same seeds; there are {seeds}.")
    return arms


def subject_scores(runs: Sequence[RunRecord], score: str = "dice") -> pd.DataFrame:
    """A score of every test subject, mean over the runs and their models.

    Args:
      runs: of one arm.
      score: a column of `segmentation_scores.SCORE_COLUMNS`.
    Returns:
      Indexed by (subject, group), a column a region and "headline", the mean of `headline_regions`.
    """
    table = pd.concat([run.predictions for run in runs])
    wide = table.pivot_table(index=["subject", "group"], columns="region", values=score, aggfunc="mean", sort=False)
    regions = list(dict.fromkeys(table["region"]))
    return wide[regions].assign(**{HEADLINE: wide[list(_headline(runs[0]))].mean(axis=1)})


def _headline(run: RunRecord) -> tuple[str, ...]:
    return headline_regions(run.environment["class_names"])


def score_table(
    runs: Sequence[RunRecord], score: str = "dice", regions: Sequence[str] | None = None
) -> pd.DataFrame:
    """Every arm and region on the common test subjects.

    Args:
      runs: records, the same seeds in every arm.
      score: a column of `segmentation_scores.SCORE_COLUMNS`.
      regions: only these (HEADLINE is one); None for all.
    Returns:
      Columns data, region, method, model, mean, low, high (bootstrap over patients), seed_low, seed_high (t over
      seeds), subjects, seeds.
    """
    rows = []
    for (method, model), members in arms_of(runs).items():
        scores, by_seed = subject_scores(members, score), _by_seed(members, score)
        groups = scores.index.get_level_values("group").to_numpy()
        for region in regions or scores:
            values = scores[region].to_numpy()
            interval = cluster_bootstrap(
                lambda index, values=values: values[index].mean(), groups, rng=seeding.generator(0, "bootstrap", score)
            )
            seeds = seed_interval(by_seed[region])
            rows.append({
                "data": panel(members[0].config["dataset"]), "region": region, "method": method, "model": model,
                "mean": interval.mean, "low": interval.low, "high": interval.high, "seed_low": seeds.low,
                "seed_high": seeds.high, "subjects": len(values), "seeds": len(members),
            })
    return pd.DataFrame(rows)


def _by_seed(runs: Sequence[RunRecord], score: str) -> pd.DataFrame:
    """A row a run: the mean over subjects and models, a column a region."""
    # Equal means of floats may differ in the last digit, which a paired test would take for a difference.
    return pd.DataFrame([subject_scores([run], score).mean() for run in runs]).round(12)


def comparisons(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """What is claimed of the headline Dice, each tested over seeds, Holm over all of them.

    Returns:
      Columns claim, first, second, quantity ("ratio" or "difference"), estimate, low, high (bootstrap over patients), seeds,
      p_value (paired t over seeds, for ratios of first - 0.99 second; NaN with one seed), p_holm, holds (bool: the
      interval is on the right side and p_holm below 0.05; for models, which have no right side: on either).
    """
    arms, rows, more = arms_of(runs), [], longer(runs)
    for model in SEGMENTERS:
        rows.append(_compared(f"at least {WANTED_SHARE:.0%} of centralized", arms, ("fedavg", model), ("centralized", model)))
        rows.append(_compared("better than alone", arms, ("fedavg", model), ("local", model)))
    if more:
        seeds = [run.config["seed"] for run in more]
        same = [run for run in arms["fedavg", SEGMENTERS[0]] if run.config["seed"] in seeds]
        claim = f"at least {WANTED_SHARE:.0%} of centralized on as many gradients"
        pair = {("fedavg", SEGMENTERS[0]): same, LONGER: more}
        rows.append(_compared(claim, pair, ("fedavg", SEGMENTERS[0]), LONGER))
    for method in METHODS:
        rows.append(_compared("models differ", arms, (method, SEGMENTERS[1]), (method, SEGMENTERS[0])))
    table = pd.DataFrame(rows)
    tested = table["p_value"].notna()
    table["p_holm"] = np.nan
    if tested.any():
        table.loc[tested, "p_holm"] = holm(table.loc[tested, "p_value"])
    wanted = np.where(table["quantity"] == "ratio", WANTED_SHARE, 0.0)
    right_side = (table["low"] > wanted) | ((table["claim"] == "models differ") & (table["high"] < 0))
    return table.assign(holds=right_side & (table["p_holm"] < SIGNIFICANCE))


def _compared(claim: str, arms: Arms, first: tuple[str, str], second: tuple[str, str]) -> dict:
    ours, theirs = (subject_scores(arms[key])[HEADLINE] for key in (first, second))
    if not ours.index.equals(theirs.index):
        raise ValueError(f"{first} and {second} were judged on different test subjects.")
    ratio = claim.startswith("at least")
    a, b = ours.to_numpy(), theirs.to_numpy()

    def statistic(index):
        if not ratio:
            return a[index].mean() - b[index].mean()
        return a[index].mean() / b[index].mean() if b[index].any() else np.nan

    groups = ours.index.get_level_values("group").to_numpy()
    interval = Interval(np.nan, np.nan, np.nan, len(a), "nothing was found, so there is no ratio")
    if not ratio or b.any():
        interval = cluster_bootstrap(statistic, groups, rng=seeding.generator(0, "bootstrap", claim))
    seeds = [_by_seed(arms[key], "dice")[HEADLINE].to_numpy() for key in (first, second)]
    p_value = np.nan
    if len(seeds[0]) > 1:
        test = paired_seed_test(seeds[0], seeds[1] * (WANTED_SHARE if ratio else 1.0))
        p_value = test.p_value
    names = [_name(key) for key in (first, second)]
    return {
        "claim": claim, "first": names[0], "second": names[1], "quantity": "ratio" if ratio else "difference",
        "estimate": interval.mean, "low": interval.low, "high": interval.high, "seeds": len(seeds[0]),
        "p_value": p_value,
    }


def _name(key: tuple[str, str]) -> str:
    method, model = key
    return f"{'Centralized, more passes' if key == LONGER else METHOD_LABELS[method]}, {MODEL_LABELS[model]}"


def hospital_scores(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Headline Dice of every hospital on its own test subjects, by its own model and by the federated one.

    Returns:
      Columns seed, hospital (1 has the most training subjects in its seed), num_train, num_test, model, method, dice.
      A hospital without test subjects of its own has no row.
    """
    rows = []
    for run in runs:
        if run.config["method"] == "centralized":
            continue
        sizes, headline = run.environment["subjects"]["train"], _headline(run)
        rank = {int(h): number + 1 for number, h in enumerate(np.argsort(-np.array(sizes), kind="stable"))}
        table = run.predictions[run.predictions["region"].isin(headline)]
        if run.config["method"] == "local":
            table = table[table["client"] == table["hospital"].astype(str)]
        for hospital, own in table.groupby("hospital"):
            rows.append({
                "seed": run.config["seed"], "hospital": rank[hospital], "num_train": sizes[hospital],
                "num_test": own["subject"].nunique(), "model": run.config["model"], "method": run.config["method"],
                "dice": own["dice"].mean(),
            })
    return pd.DataFrame(rows)


def hospital_table(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """`hospital_scores` over the seeds, for `plotting.hospital_dice`: hospital, num_train (mean), model, method, mean, low, high."""
    scores, rows = hospital_scores(runs), []
    sizes = scores.drop_duplicates(["seed", "hospital"]).groupby("hospital")["num_train"].mean().round()
    for (hospital, model, method), own in scores.groupby(["hospital", "model", "method"]):
        interval = seed_interval(own["dice"])
        rows.append({
            "hospital": str(hospital), "num_train": sizes[hospital], "model": model, "method": method,
            "mean": interval.mean, "low": interval.low, "high": interval.high, "seeds": interval.num,
        })
    return pd.DataFrame(rows)


def worst_hospital(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """The lowest of the hospitals' own Dice in each seed, mean and t-interval over seeds: model, method, worst, low, high."""
    lowest = hospital_scores(runs).groupby(["model", "method", "seed"], sort=False)["dice"].min()
    rows = []
    for (model, method), values in lowest.groupby(level=["model", "method"], sort=False):
        interval = seed_interval(values)
        rows.append({"model": model, "method": method, "worst": interval.mean, "low": interval.low, "high": interval.high})
    return pd.DataFrame(rows)


def gain_counts(runs: Sequence[RunRecord]) -> tuple[int, int]:
    """(pairs of hospital, model and seed in which the federated model is better than the hospital's own, all pairs)."""
    wide = hospital_scores(runs).pivot(index=["seed", "hospital", "model"], columns="method", values="dice")
    return int((wide["fedavg"] > wide["local"]).sum()), len(wide)


def curves(runs: Sequence[RunRecord], split: str = "validation") -> pd.DataFrame:
    """Dice by round on one axis, steps counted in federated rounds, for `plotting.learning_curves`.

    Returns:
      Columns panel (the model), method, seed, round, value; for hospitals alone the mean over their models.
    """
    tables, rounds = [], max(run.config["total_rounds"] for run in runs if run.config["method"] == "fedavg")
    for run in (run for members in arms_of(runs).values() for run in members):
        config = run.config
        rows = run.metrics.query("split == @split and metric == 'dice'")
        if config["method"] != "local":
            rows = rows[rows["client"] == "all"]
        value = rows.groupby("round")["value"].mean()
        tables.append(pd.DataFrame({
            "panel": MODEL_LABELS[config["model"]], "method": config["method"], "seed": config["seed"],
            "round": value.index * (rounds // config["total_rounds"]), "value": value.to_numpy(),
        }))
    return pd.concat(tables, ignore_index=True)


def volume_table(run: RunRecord) -> pd.DataFrame:
    """True and predicted volumes of a run's test subjects, headline regions, for `plotting.volume_agreement`."""
    table = run.predictions[run.predictions["region"].isin(_headline(run))]
    return table[["subject", "region", "volume_ml", "volume_error_ml"]].reset_index(drop=True)


def chosen_subjects(run: RunRecord) -> pd.DataFrame:
    """Best, median and worst test subject of a run by headline Dice: case, subject, dice."""
    scores = subject_scores([run])[HEADLINE].sort_values(ascending=False, kind="stable")
    names = scores.index.get_level_values("subject")
    places = {"best": 0, "median": len(scores) // 2, "worst": len(scores) - 1}
    return pd.DataFrame([(case, names[i], scores.iloc[i]) for case, i in places.items()], columns=["case", "subject", "dice"])


def answer(runs: Sequence[RunRecord]) -> list[str]:
    """The notebook's answer in sentences of Markdown, computed from the tables."""
    table = score_table(runs, regions=[HEADLINE]).set_index(["method", "model"])
    compared, name = comparisons(runs), panel(runs[0].config["dataset"])
    regions = ", ".join(region.replace("_", " ") for region in _headline(runs[0]))
    text = f"**{name}** (mean Dice of {regions}; 95 % bootstrap over patients). "
    for model in SEGMENTERS:
        said = [f"{METHOD_LABELS[method].lower()} {with_interval(table.loc[(method, model)])}" for method in METHODS]
        text += f"{MODEL_LABELS[model]}: {', '.join(said)}. "
    if longer(runs):
        scores = subject_scores(longer(runs))[HEADLINE]
        number = len(longer(runs))
        text += f"{_name(LONGER)}: {scores.mean():.3f} ({number} seed{'s' if number > 1 else ''}). "
    sentences = [text.strip()]
    for row in compared.itertuples():
        p = "one seed, no test" if row.p_holm != row.p_holm else f"p = {row.p_holm:.2g} after Holm"
        value = f"{row.estimate:.3f} [{row.low:.3f}, {row.high:.3f}], {p}"
        word = {"ratio": "over", "difference": "minus"}[row.quantity]
        verdict = ("yes" if row.holds else "**not shown**")
        sentences.append(f"{row.claim.capitalize()}: {verdict}. {row.first} {word} {row.second}: {value}.")
    better, pairs = gain_counts(runs)
    sentences.append(f"The federated model is better than the hospital's own on its own test subjects in {better} of {pairs} pairs of hospital, model and seed.")
    return sentences
