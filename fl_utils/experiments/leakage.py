"""What leakage is worth: the same model and seeds, trained and judged on splits that keep less and less together."""

from collections.abc import Sequence

import pandas as pd

from fl_utils import seeding
from fl_utils.config import ExperimentConfig
from fl_utils.data.catalogue import card
from fl_utils.experiments.analysis import PatientScorer, score, select
from fl_utils.experiments.plans import base_config, settings_of, tuned
from fl_utils.records import RunRecord
from fl_utils.statistics import cluster_bootstrap, holm, paired_seed_test, seed_interval

#: Experiment folder of these runs.
LEAKAGE = "leakage"
#: Splits cut anew with each seed, from the loosest to the one that the suite uses; and what each keeps together.
LADDER = {
    "random": "nothing: every file for itself",
    "pictures": "copies (same pixels)",
    "near": "copies and near-duplicates",
    "deduplicated": "also patients and series (the suite's split)",
}
#: Splits with the published test part: as published; without all that is tied to the test part; and the control.
SAME_TEST = {
    "published": "as published",
    "published_thinned": "as many others left out",
    "published_clean": "what is tied to the test part left out",
}


def configs_00(profile: str, dataset: str, progress: bool = True) -> list[ExperimentConfig]:
    """Notebook 00: the centralized seed CNN on every kind of split that differs on this data set.

    Data with patient numbers and hardly any copies (chest X-ray) has two steps of the ladder: "random" and
    "deduplicated"; and a published test part that shares nothing with the train part needs no control. Phantoms
    share nothing with each other and have none of it.
    """
    if card(dataset).synthetic:
        return []
    arms = [{"split": kind, "ladder": True} for kind in LADDER]
    if card(dataset).patient_key:
        arms = [arm for arm in arms if arm["split"] in ("random", "deduplicated")]
    else:
        arms += [{"split": kind, "ladder": False} for kind in SAME_TEST]
    settings = tuned(profile, dataset, "centralized", progress=progress)
    return [
        base_config(
            profile, dataset, method="centralized", seed=seed, split=arm["split"],
            # Another test set each time: the interval then holds the choice of the test images, too.
            split_seed=seed if arm["ladder"] else None, **settings,
        )
        for seed in settings_of(profile).seeds
        for arm in arms
    ]


def ladder(runs: Sequence[RunRecord], metric: str = "balanced_accuracy") -> pd.DataFrame:
    """Scores by what the split keeps together, each seed with a split of its own.

    Returns:
      One row a data set and step: dataset, split, kept_together, seeds, mean, low, high (t-interval over seeds, thus
      over splits), excess (its mean minus that of the suite's split), excess_low, excess_high (paired t over seeds).
    Raises:
      ValueError: no record of the suite's split, other seeds there, or a single seed.
    """
    rows = []
    chosen = [run for run in runs if run.config["split_seed"] is not None]
    for dataset in dict.fromkeys(run.config["dataset"] for run in chosen):
        strict = select(chosen, dataset=dataset, split="deduplicated")
        for kind, kept_together in LADDER.items():
            if not any(run.config["split"] == kind and run.config["dataset"] == dataset for run in chosen):
                continue
            scores, of_strict = _paired(select(chosen, dataset=dataset, split=kind), strict, metric)
            interval, excess = seed_interval(scores), paired_seed_test(scores, of_strict).difference
            rows.append(
                {"dataset": dataset, "split": kind, "kept_together": kept_together, "seeds": interval.num}
                | {"mean": interval.mean, "low": interval.low, "high": interval.high}
                | {"excess": excess.mean, "excess_low": excess.low, "excess_high": excess.high}
            )
    return pd.DataFrame(rows)


def same_test(runs: Sequence[RunRecord], metric: str = "balanced_accuracy") -> pd.DataFrame:
    """What the training images that are tied to the published test part are worth on that same test part.

    The control leaves out as many images of each class, so the difference is not one of the number of images.

    Returns:
      One row a comparison with "published_clean": dataset, split, mean, clean, difference, low, high (paired t over
      seeds), patient_low, patient_high (bootstrap over test pictures), p_value, p_holm.
    Raises:
      ValueError: one of the three splits has no record, other seeds than the others, or a single one.
    """
    rows = []
    chosen = [run for run in runs if run.config["split"] in SAME_TEST and run.config["split_seed"] is None]
    for dataset in dict.fromkeys(run.config["dataset"] for run in chosen):
        clean = select(chosen, dataset=dataset, split="published_clean")
        for kind in ("published_thinned", "published"):
            other = select(chosen, dataset=dataset, split=kind)
            ours, theirs = _paired(other, clean, metric)
            test = paired_seed_test(ours, theirs)
            one, two = PatientScorer(other, metric), PatientScorer(clean, metric)
            pictures = cluster_bootstrap(
                lambda index, one=one, two=two: one(index) - two(index), one.groups,
                rng=seeding.generator(0, "bootstrap", "leakage", kind),
            )
            rows.append(
                {"dataset": dataset, "split": kind, "mean": sum(ours) / len(ours), "clean": sum(theirs) / len(theirs)}
                | {"difference": test.difference.mean, "low": test.difference.low, "high": test.difference.high}
                | {"patient_low": pictures.low, "patient_high": pictures.high, "p_value": test.p_value}
            )
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table["p_value"])) if len(table) else table


def _paired(ours: Sequence[RunRecord], theirs: Sequence[RunRecord], metric: str) -> tuple[list[float], list[float]]:
    """The scores of two arms, seed by seed."""
    seeds = [[run.config["seed"] for run in members] for members in (ours, theirs)]
    if seeds[0] != seeds[1]:
        splits = [members[0].config["split"] for members in (ours, theirs)]
        raise ValueError(
            f"The split {splits[0]!r} has the seeds {seeds[0]}, {splits[1]!r} {seeds[1]}; a paired comparison needs "
            "the same. Let the sweep finish."
        )
    return [score(run, metric) for run in ours], [score(run, metric) for run in theirs]
