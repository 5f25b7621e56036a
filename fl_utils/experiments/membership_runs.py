"""Was a patient in the training set? Membership attacks on federated models, by data set and kind of protection.

The models are those of `privacy_plan.shadow_configs`: each is trained on half of the training patients, so that for every
model the other half are patients of the same kind that it never saw. The first NUM_TARGETS are attacked, with the loss
threshold and, where all shadow models are there, with LiRA, whose shadows are all models but the attacked one. The
attacker sees what the released model gives for an image, nothing of the training.
"""

import dataclasses

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from fl_utils import paths, seeding
from fl_utils.config import NUM_SHADOWS, ExperimentConfig
from fl_utils.data.types import ImageDataset
from fl_utils.experiments.classifying import trained_model
from fl_utils.experiments.hospitals import share_out, shadows
from fl_utils.experiments.measured import Content, Layout, digest, load_or_compute
from fl_utils.experiments.privacy_plan import PRIVACY_SHADOWS, SETTINGS, shadow_config
from fl_utils.experiments.run import data_of, run, selected_weights
from fl_utils.records import RunRecord
from fl_utils.trust.lira import balanced, lira_scores, scaled_confidence
from fl_utils.trust.membership import loss_scores, membership_table, patient_scores, roc

#: Folder of the tables, beside the runs'.
MEMBERSHIP = "privacy_membership"
VERSION = 2  # raise it when scores change their meaning: old ones are then ignored
_LAYOUT = Layout("attacks", ("scores", "fit", "roc"), "%.5g")
NUM_TARGETS = 5
#: Where the true-positive rate is read, and the curve's false-positive rates.
FPR = 0.01
FPR_GRID = np.unique(np.concatenate([np.logspace(-3, 0, 61), [FPR]]))
NUM_RESAMPLES = 200


@dataclasses.dataclass(frozen=True, eq=False)
class Membership:
    """How well members are told from others, for one data set and kind of protection.

    Attributes:
      dataset, arm, facts: whose; facts: class_names, synthetic, runs (names), num_shadows of LiRA (0: not run).
      scores: a row an attacked model (target), attack ("loss", "lira"), unit ("image", "patient") and metric ("auc",
        "tpr_at_fpr", "advantage"): mean, low, high (over patients), num_members, num_others.
      fit: a row a target: accuracy on members' and on others' images; the gap is what a threshold lives on.
      roc: attack, fpr, tpr: the mean curve over targets, of patients.
    """

    dataset: str
    arm: str
    facts: dict
    scores: pd.DataFrame
    fit: pd.DataFrame
    roc: pd.DataFrame


def attack_members(profile: str, dataset: str, arm: str, *, progress: bool = True) -> Membership:
    """The attacks on one arm's models: loaded if they are there, otherwise done.

    Raises:
      RecordError: they are not there, and this command does not compute; or they cannot be written or read.
      DataError: they must be done, and the images are not at hand.
    """
    settings = SETTINGS[profile]
    records = [
        run(shadow_config(profile, dataset, arm, number), experiment=PRIVACY_SHADOWS, progress=progress)
        for number in range(settings.membership_arms[arm])
    ]
    folder = paths.runs_root(profile) / MEMBERSHIP / _name(dataset, arm, records)
    found = load_or_compute(folder, _LAYOUT, profile, lambda: _computed(dataset, arm, records, progress))
    return Membership(dataset, arm, found.facts, **found.tables)


def _computed(dataset: str, arm: str, records: list[RunRecord], progress: bool) -> Content:
    configs = [ExperimentConfig(**record.config) for record in records]
    data = data_of(configs[0])
    pool = share_out(data, configs[0]).split.train
    inside = shadows(data, share_out(data, configs[0]).split)[: len(records), pool]
    bar = tqdm(records, desc=f"{dataset} {arm}: outputs", unit="model", disable=not progress, leave=False)
    log_probabilities = np.stack([
        _outputs(config, data, pool, selected_weights(record, progress=progress)["all"])
        for config, record in zip(configs, bar, strict=True)
    ])
    labels, groups = data.labels[pool], data.groups[pool]
    scores, fit, curves = [], [], []
    for target in range(min(NUM_TARGETS, len(records))):
        members, given = inside[target], log_probabilities[target]
        right = given.argmax(axis=1) == labels
        fit.append((target, right[members].mean(), right[~members].mean()))
        for attack, values in _attacks(target, log_probabilities, labels, inside).items():
            rng = seeding.generator(target, "membership", dataset)
            table = membership_table(values, members, groups, rng=rng, fpr=FPR, num_resamples=NUM_RESAMPLES)
            scores.append(table.assign(target=target, attack=attack))
            by_patient, patients_in, _ = patient_scores(values, members, groups)
            fpr, tpr = roc(by_patient, patients_in)
            # The largest rate that a threshold reaches without exceeding the false-positive rate.
            reached = tpr[np.searchsorted(fpr, FPR_GRID + 1e-12, side="right") - 1]
            curves.append(pd.DataFrame({"attack": attack, "fpr": FPR_GRID, "tpr": reached}))
    tables = {
        "scores": pd.concat(scores, ignore_index=True),
        "fit": pd.DataFrame(fit, columns=["target", "accuracy_members", "accuracy_others"]),
        "roc": pd.concat(curves).groupby(["attack", "fpr"], as_index=False)["tpr"].mean(),
    }
    facts = {
        "version": VERSION, "class_names": list(data.class_names), "synthetic": data.synthetic,
        "runs": [record.path.name for record in records],
        "num_shadows": len(records) - 1 if len(records) == NUM_SHADOWS else 0,
    }
    return Content(tables, facts)


def _outputs(config: ExperimentConfig, data: ImageDataset, pool: np.ndarray, weights) -> np.ndarray:
    """float64 [N, K], log-probabilities; computed from logits, which do not round to 0 or 1."""
    import tensorflow as tf

    model = trained_model(config, data, weights)
    parts = np.array_split(pool, max(1, len(pool) // 512))
    logits = [model(data.images[part].astype(np.float32) / 255, training=False).numpy() for part in parts]
    return tf.nn.log_softmax(np.concatenate(logits).astype(np.float64)).numpy()


def _attacks(target: int, log_probabilities: np.ndarray, labels: np.ndarray, inside: np.ndarray) -> dict[str, np.ndarray]:
    """Attack -> float64 [N], larger means member."""
    own = log_probabilities[target, np.arange(len(labels)), labels]
    found = {"loss": loss_scores(-own)}
    if len(inside) == NUM_SHADOWS:
        confidence = scaled_confidence(log_probabilities, labels)
        others = np.arange(len(inside)) != target
        used = balanced(inside[others], rng=seeding.generator(target, "balanced_shadows"))
        found["lira"] = lira_scores(confidence[target], confidence[others], inside[others], used=used)
    return found


def _name(dataset: str, arm: str, records: list[RunRecord]) -> str:
    return f"{dataset}_{arm}_{digest([VERSION, NUM_TARGETS, FPR, [record.path.name for record in records]])}"
