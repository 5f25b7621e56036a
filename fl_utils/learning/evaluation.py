"""Metrics of a classifier from its predicted probabilities; scikit-learn computes what it has."""

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn import metrics as sk

CURVE_METRICS = ("accuracy", "balanced_accuracy", "loss")


def curve_metrics(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """The few metrics that are followed over rounds: accuracy, balanced accuracy, log loss.

    Args:
      labels: int [N], N >= 1.
      probabilities: float [N, K]; rows sum to 1.
    """
    correct = probabilities.argmax(axis=1) == labels
    counts = np.bincount(labels)
    hits = np.bincount(labels, weights=correct)
    true_class = probabilities[np.arange(len(labels)), labels]
    return {
        "accuracy": float(correct.mean()),
        "balanced_accuracy": float((hits[counts > 0] / counts[counts > 0]).mean()),
        # Clipped as in scikit-learn, so that one sure mistake does not make the mean infinite.
        "loss": float(-np.log(np.clip(true_class, 1e-7, 1.0)).mean()),
    }


def classification_metrics(
    labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]
) -> dict[str, float]:
    """Every metric of the suite for one set of test predictions.

    Args:
      labels: int [N], classes 0..K-1.
      probabilities: float [N, K]; rows sum to 1.
      class_names: K names.
    Returns:
      accuracy, balanced_accuracy, loss, macro_f1, auroc (one-vs-rest, macro), ece, brier, and for
      each class sensitivity/<name> and specificity/<name>. NaN where a class is absent and
      the metric is not defined.
    Raises:
      ValueError: shapes do not fit, or the probabilities are not finite.
    """
    num_classes = len(class_names)
    if probabilities.shape != (len(labels), num_classes) or len(labels) == 0:
        raise ValueError(
            f"labels {labels.shape} and probabilities {probabilities.shape} do not fit {num_classes} classes."
        )
    if not np.isfinite(probabilities).all():
        raise ValueError("The predicted probabilities are not finite: the model has diverged.")
    predicted = probabilities.argmax(axis=1)
    values = curve_metrics(labels, probabilities)
    values["macro_f1"] = float(sk.f1_score(labels, predicted, average="macro", labels=range(num_classes), zero_division=0))
    values["auroc"] = auroc(labels, probabilities)
    values["ece"] = expected_calibration_error(labels, probabilities)
    values["brier"] = float(((probabilities - np.eye(num_classes)[labels]) ** 2).sum(axis=1).mean())
    matrices = sk.multilabel_confusion_matrix(labels, predicted, labels=range(num_classes))
    for name, ((tn, fp), (fn, tp)) in zip(class_names, matrices, strict=True):
        values[f"sensitivity/{name}"] = tp / (tp + fn) if tp + fn else float("nan")
        values[f"specificity/{name}"] = tn / (tn + fp) if tn + fp else float("nan")
    return {name: float(value) for name, value in values.items()}


def auroc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Area under the ROC curve: of class 1 for two classes, else one-vs-rest macro mean.

    Returns:
      The area, or NaN when a class is absent from `labels`.
    """
    num_classes = probabilities.shape[1]
    if len(np.unique(labels)) < num_classes:
        return float("nan")
    if num_classes == 2:
        return float(sk.roc_auc_score(labels, probabilities[:, 1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # scikit-learn checks that rows sum to 1 in float64; committed records hold 5 decimals.
        rows = probabilities / probabilities.sum(axis=1, keepdims=True)
        return float(sk.roc_auc_score(labels, rows, multi_class="ovr", average="macro"))


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray, num_bins: int = 15) -> float:
    """The mean gap between confidence and accuracy over equal-width bins of confidence.

    Source: Guo et al. 2017, arXiv:1706.04599, equation 3.
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    # Bins (0, 1/15], (1/15, 2/15], ... as in the paper: the right edge belongs to the bin.
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    gap = np.bincount(bins, weights=confidence - correct, minlength=num_bins)
    return float(np.abs(gap).sum() / len(labels))
