"""Every metric against scikit-learn or the formula written out by hand."""

import numpy as np
import pytest
from sklearn import metrics as sk

from fl_utils.learning.evaluation import (
    CURVE_METRICS,
    auroc,
    classification_metrics,
    curve_metrics,
    expected_calibration_error,
)

NAMES = ("glioma", "meningioma", "no_tumor", "pituitary")


def case(num_classes=4, num=200, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.choice(num_classes, num, p=np.arange(1, num_classes + 1) / np.arange(1, num_classes + 1).sum())
    probabilities = rng.dirichlet(np.ones(num_classes), num)
    probabilities[np.arange(num), labels] += 0.4
    return labels, probabilities / probabilities.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_metrics_are_scikit_learns(num_classes, dtype):
    labels, probabilities = case(num_classes)
    predicted, names = probabilities.argmax(axis=1), NAMES[:num_classes]
    values = classification_metrics(labels, probabilities.astype(dtype), names)
    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "loss": sk.log_loss(labels, probabilities),
        "macro_f1": sk.f1_score(labels, predicted, average="macro"),
        "auroc": sk.roc_auc_score(
            labels, probabilities[:, 1] if num_classes == 2 else probabilities, multi_class="ovr", average="macro"
        ),
    }
    for number, name in enumerate(names):
        expected[f"sensitivity/{name}"] = sk.recall_score(labels == number, predicted == number)
        expected[f"specificity/{name}"] = sk.recall_score(labels != number, predicted != number)
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, abs=1e-6), name
    assert set(values) == set(expected) | {"ece", "brier"}
    assert all(type(value) is float for value in values.values())


def test_brier_is_the_mean_squared_distance_to_the_one_hot_label():
    labels, probabilities = np.array([0, 2]), np.array([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2]])
    by_hand = ((0.3**2 + 0.2**2 + 0.1**2) + (0.5**2 + 0.3**2 + 0.8**2)) / 2
    assert classification_metrics(labels, probabilities, "abc")["brier"] == pytest.approx(by_hand)
    binary, p = case(2)
    # scikit-learn's binary score counts one class only: half of ours.
    assert classification_metrics(binary, p, "ab")["brier"] == pytest.approx(2 * sk.brier_score_loss(binary, p[:, 1]))


def test_ece_by_the_formula():
    labels, probabilities = case()
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(labels, probabilities) == pytest.approx(expected)


@pytest.mark.parametrize(("labels", "expected"), [([0, 0], 0.0), ([1, 1], 1.0), ([0, 1], 0.5)])
def test_ece_of_a_model_that_is_always_sure(labels, expected):
    assert expected_calibration_error(np.array(labels), np.array([[1.0, 0.0]] * 2)) == pytest.approx(expected)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    # 0.5 closes the first of two bins; in the second it would share one with 0.9 and the gaps would cancel.
    labels, probabilities = np.array([0, 1]), np.array([[0.5, 0.5], [0.9, 0.1]])
    assert expected_calibration_error(labels, probabilities, num_bins=2) == pytest.approx((0.5 + 0.9) / 2)


def test_one_sure_mistake_costs_much_but_not_everything():
    probabilities = np.array([[1.0, 0.0], [0.5, 0.5]])
    loss = curve_metrics(np.array([1, 0]), probabilities)["loss"]
    assert loss == pytest.approx((-np.log(1e-7) - np.log(0.5)) / 2)


def test_curve_metrics_are_the_same_numbers():
    labels, probabilities = case()
    every = classification_metrics(labels, probabilities, NAMES)
    assert curve_metrics(labels, probabilities) == {name: every[name] for name in CURVE_METRICS}


def test_an_absent_class_is_left_out_of_means_and_nan_where_nothing_is_defined():
    labels, probabilities = np.array([0, 0, 1, 1]), np.full((4, 3), 0.1) + np.eye(3)[[0, 1, 1, 1]] * 0.7
    values = classification_metrics(labels, probabilities, "abc")
    assert values["balanced_accuracy"] == pytest.approx((0.5 + 1) / 2)
    assert np.isnan(values["auroc"]) and np.isnan(values["sensitivity/c"])
    assert values["specificity/c"] == 1 and values["sensitivity/a"] == 0.5
    # The class that is neither there nor predicted counts as F1 = 0: the mean is over all classes.
    assert values["macro_f1"] == pytest.approx((2 / 3 + 4 / 5 + 0) / 3)


def test_one_class_only():
    values = classification_metrics(np.zeros(3, int), np.array([[0.9, 0.1]] * 3), "ab")
    assert values["accuracy"] == values["balanced_accuracy"] == values["sensitivity/a"] == 1
    assert np.isnan(values["auroc"]) and np.isnan(values["specificity/a"]) and np.isnan(values["sensitivity/b"])


def test_auroc_forgives_rows_rounded_to_five_decimals():
    labels, probabilities = case(4, 500)
    assert auroc(labels, np.round(probabilities, 5)) == pytest.approx(auroc(labels, probabilities), abs=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_diverged_model_is_said_to_be_one(value):
    labels, probabilities = case()
    probabilities[7, 2] = value
    with pytest.raises(ValueError, match="not finite: the model has diverged"):
        classification_metrics(labels, probabilities, NAMES)


@pytest.mark.parametrize(
    ("labels", "probabilities", "names"),
    [(np.zeros(3, int), np.ones((2, 2)), "ab"), (np.zeros(2, int), np.ones((2, 2)), "abc"), (np.zeros(0, int), np.ones((0, 2)), "ab")],
)
def test_shapes_that_do_not_fit_are_named(labels, probabilities, names):
    with pytest.raises(ValueError, match=f"do not fit {len(names)} classes") as caught:
        classification_metrics(labels, probabilities, names)
    assert str(probabilities.shape) in str(caught.value)
