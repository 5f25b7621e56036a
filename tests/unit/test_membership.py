"""Membership inference on made-up distributions whose answer is known."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from fl_utils.trust.lira import (
    MIN_SHADOWS_A_SIDE, OWN_VARIANCE_A_SIDE, balanced, lira_scores, scaled_confidence, shadow_members,
)
from fl_utils.trust.membership import (
    loss_scores, membership_table, patient_scores, roc, tpr_at_fpr, yeom_advantage,
)

NUM = 4000
MEMBERS = np.arange(NUM) % 2 == 0


def shifted(shift, seed=0):
    """Scores of two Gaussians of variance 1, the members' mean larger by `shift`."""
    return np.random.default_rng(seed).normal(0, 1, NUM) + shift * MEMBERS


def table(scores, members=MEMBERS, groups=None, num_resamples=100, **options):
    groups = np.arange(len(scores)) if groups is None else groups
    rows = membership_table(
        scores, members, groups, rng=np.random.default_rng(0), num_resamples=num_resamples, **options
    )
    return rows.set_index(["unit", "metric"])


# --- curves ---


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0])
def test_a_gaussian_shift_gives_the_closed_form(shift):
    """AUC = Phi(d / sqrt 2); TPR at FPR a = Phi(d - z), z the quantile at 1 - a; advantage = 2 Phi(d / 2) - 1."""
    rows = table(shifted(shift)).loc["image"]
    expected = {
        "auc": norm.cdf(shift / np.sqrt(2)), "tpr_at_fpr": norm.cdf(shift - norm.ppf(0.99)),
        "advantage": 2 * norm.cdf(shift / 2) - 1,
    }
    widths = rows.high - rows.low  # of 95 %: 3.92 standard errors
    for metric, value in expected.items():
        assert abs(rows["mean"][metric] - value) < widths[metric], metric
    # The standard error of the TPR: of the members found, and of where the others put the threshold.
    tpr, slope = expected["tpr_at_fpr"], norm.pdf(shift - norm.ppf(0.99)) / norm.pdf(norm.ppf(0.99))
    error = np.sqrt((tpr * (1 - tpr) + slope**2 * 0.01 * 0.99) / (NUM / 2))
    assert widths["tpr_at_fpr"] == pytest.approx(3.92 * error, rel=0.4)
    assert widths["auc"] < 0.05


def test_no_signal_is_chance():
    rows = table(shifted(0.0)).loc["image"]
    assert abs(rows["mean"]["auc"] - 0.5) < 4 * np.sqrt(1 / 12 / NUM * 4)
    assert abs(rows["mean"]["tpr_at_fpr"] - 0.01) < 4 * np.sqrt(2 * 0.01 * 0.99 / (NUM / 2))
    assert 0 <= rows["mean"]["advantage"] < 2 * np.sqrt(4 / NUM)  # Kolmogorov-Smirnov, far in the tail
    constant = table(np.zeros(400), MEMBERS[:400]).loc["image"]["mean"]
    assert constant["auc"] == 0.5 and constant["tpr_at_fpr"] == 0 and constant["advantage"] == 0


def test_tpr_by_hand():
    scores = np.array([9, 8, 7, 6, 5, 4, 3, 2.0])
    members = np.array([1, 1, 0, 1, 0, 1, 0, 0], bool)
    curve = roc(scores, members)
    assert tpr_at_fpr(*curve, 0.25) == 3 / 4  # one of the four others may be named: 7, not 5
    assert tpr_at_fpr(*curve, 0.5) == 1
    assert tpr_at_fpr(*curve, 0.2) == 2 / 4  # none
    assert tpr_at_fpr(*roc(np.zeros(8), members), 0.25) == 0  # ties: all or none


def test_the_loss_threshold_attack():
    """Exponential losses: AUC of rates a and b is a / (a + b); Yeom's rule is at the members' mean 1 / a."""
    rng = np.random.default_rng(1)
    losses = rng.exponential(np.where(MEMBERS, 0.5, 1.0))
    assert roc_auc_score(MEMBERS, loss_scores(losses)) == pytest.approx(2 / 3, abs=0.035)
    expected = (1 - np.exp(-1)) - (1 - np.exp(-0.5))
    assert yeom_advantage(losses, MEMBERS) == pytest.approx(expected, abs=0.06)


# --- patients ---


def test_patients_by_hand():
    scores = np.array([1.0, 3, 5, 2])
    values, members, patients = patient_scores(scores, np.array([True, False, True, False]), np.array([7, 4, 7, 2]))
    np.testing.assert_array_equal(patients, [2, 4, 7])
    np.testing.assert_array_equal(values, [2, 3, 3])
    np.testing.assert_array_equal(members, [False, False, True])


def test_many_images_of_a_patient_tell_more():
    """Four images with independent noise: the patient's mean has half the deviation, so d doubles. 1000 patients."""
    groups = np.repeat(np.arange(NUM // 4), 4)
    members = groups % 2 == 0
    scores = np.random.default_rng(2).normal(0, 1, NUM) + 0.5 * members
    rows = table(scores, members, groups)
    assert rows["mean"]["patient", "auc"] == pytest.approx(norm.cdf(1 / np.sqrt(2)), abs=0.06)
    assert rows["mean"]["image", "auc"] == pytest.approx(norm.cdf(0.5 / np.sqrt(2)), abs=0.04)
    assert rows["num_members"]["patient", "auc"] == NUM // 8 and rows["num_others"]["image", "auc"] == NUM // 2


def test_intervals_draw_whole_patients():
    """Five equal copies of each patient's image tell no more than one: the interval must not shrink."""
    single = shifted(1.0)[:1000]
    one = table(single, MEMBERS[:1000], fpr=0.1).loc["image"]
    copied = table(np.repeat(single, 5), np.repeat(MEMBERS[:1000], 5), np.repeat(np.arange(1000), 5), fpr=0.1)
    width = (one.high - one.low)["auc"]
    # Independent images would give 0.45 of it.
    assert (copied.high - copied.low)["image", "auc"] == pytest.approx(width, rel=0.3)


# --- LiRA ---


def shadows(num_shadows, num=4000, spread=3.0, shift=1.0, seed=0):
    """Confidences N(mean of the example + shift if inside, 1): how easy an example is differs more than membership."""
    rng = np.random.default_rng(seed)
    means = rng.normal(0, spread, num)
    inside = shadow_members(np.arange(num), num_shadows, rng=rng)
    values = rng.normal(means, 1, (num_shadows, num)) + shift * inside
    members = rng.random(num) < 0.5
    target = rng.normal(means, 1) + shift * members
    return target, values, inside, members, means


def test_lira_reaches_the_best_test_where_a_threshold_cannot():
    """Best: AUC Phi(d / sqrt 2). A common threshold sees the examples' spread s: Phi(d / sqrt(2 (1 + s^2)))."""
    target, values, inside, members, _ = shadows(64)
    aucs = [roc_auc_score(members, lira_scores(target, values, inside, mode=mode)) for mode in ("online", "offline")]
    best, common = norm.cdf(1 / np.sqrt(2)), norm.cdf(1 / np.sqrt(2 * 10))
    assert roc_auc_score(members, target) == pytest.approx(common, abs=0.03)
    for auc in aucs:  # 32 models a side cost a little of the best
        assert best - 0.04 < auc < best + 0.03


def test_lira_with_few_shadows_shares_the_variance():
    """With 8 shadows the means have variance 1/4: online sees d of a linear rule, within sampling error."""
    target, values, inside, members, _ = shadows(2 * MIN_SHADOWS_A_SIDE)
    online = lira_scores(target, values, inside)
    assert norm.cdf(1 / np.sqrt(2)) - 0.12 < roc_auc_score(members, online) < norm.cdf(1 / np.sqrt(2))
    offline = lira_scores(target, values, inside, mode="offline")
    # (c - mean of 4) has variance 1 + 1/4 on both sides.
    assert roc_auc_score(members, offline) == pytest.approx(norm.cdf(1 / np.sqrt(2 * 1.25)), abs=0.03)


@pytest.mark.parametrize("num_shadows", [2 * MIN_SHADOWS_A_SIDE, 2 * OWN_VARIANCE_A_SIDE])
def test_lira_equals_its_definition(num_shadows):
    target, values, inside, _, _ = shadows(num_shadows, num=30)
    sides = [[values[chosen[:, n], n] for n in range(30)] for chosen in (inside, ~inside)]
    own = num_shadows == 2 * OWN_VARIANCE_A_SIDE
    online, offline = [], []
    for n, value in enumerate(target):
        variances = [[values.var(ddof=1) for values in side] for side in sides]
        sd_in, sd_out = (np.sqrt(of_side[n] if own else np.mean(of_side)) for of_side in variances)
        mean_in, mean_out = (side[n].mean() for side in sides)
        online.append(norm.logpdf(value, mean_in, sd_in) - norm.logpdf(value, mean_out, sd_out))
        offline.append(1 - norm.sf(value, mean_out, sd_out))
    np.testing.assert_allclose(lira_scores(target, values, inside), online, atol=1e-9)
    np.testing.assert_allclose(norm.cdf(lira_scores(target, values, inside, mode="offline")), offline, atol=1e-12)


def test_without_a_signal_lira_finds_none():
    target, values, inside, members, _ = shadows(16, shift=0.0, num=20000)
    scores = lira_scores(target, values, inside)
    assert roc_auc_score(members, scores) == pytest.approx(0.5, abs=4 * np.sqrt(1 / 3 / 20000))
    assert tpr_at_fpr(*roc(scores, members)) == pytest.approx(0.01, abs=4 * np.sqrt(2 * 0.01 * 0.99 / 10000))


def test_offline_needs_no_model_with_the_example():
    target, values, inside, members, _ = shadows(16, num=200)
    outside = np.zeros_like(inside)
    scores = lira_scores(target, values - inside, outside, mode="offline")
    assert roc_auc_score(members, scores) > 0.65
    with pytest.raises(ValueError, match="0 shadow models with it"):
        lira_scores(target, values, outside)


def test_confidence_is_the_logit_of_the_true_class():
    logits = np.array([[2.0, 1.0, -1.0], [0.0, 0.0, 0.0], [500.0, 0.0, 0.0]])
    p = np.exp(logits[:2]) / np.exp(logits[:2]).sum(axis=1, keepdims=True)
    expected = [np.log(p[0, 0] / (1 - p[0, 0])), np.log(0.5)]
    np.testing.assert_allclose(scaled_confidence(logits, [0, 1, 0])[:2], expected)
    np.testing.assert_allclose(scaled_confidence(np.log(p), [0, 1]), expected)
    assert scaled_confidence(logits, [0, 1, 0])[2] == pytest.approx(500 - np.log(2))  # softmax would round to 1
    assert scaled_confidence(np.stack([logits, logits]), [0, 1, 0]).shape == (2, 3)


# --- what is refused ---

NAN = np.where(np.arange(8) == 3, np.nan, 0.0)
EIGHT = np.arange(8) % 2 == 0


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: loss_scores(NAN), "losses"),
        (lambda: yeom_advantage(np.zeros(8), np.ones(8, bool)), "both members and others"),
        (lambda: table(np.zeros(8), EIGHT), "4 images outside of the training set cannot show"),
        (lambda: table(np.zeros(800), np.tile(EIGHT, 100), np.tile(np.arange(8), 100)), "4 patients outside"),
        (lambda: table(np.zeros(8), EIGHT.astype(int)), "expected bool"),
        (lambda: table(np.zeros(7), EIGHT, np.arange(8)), "7 scores"),
        (lambda: patient_scores(np.zeros(8), EIGHT, np.zeros(8, int)), "Split by patient"),
        (lambda: shadow_members(np.arange(4), 9, rng=np.random.default_rng(0)), "even number of at least 8"),
        (lambda: shadow_members(np.arange(4), 6, rng=np.random.default_rng(0)), "even number of at least 8"),
        (lambda: scaled_confidence(np.zeros((2, 3)), [0, 3]), "expected 0 to 2"),
        (lambda: scaled_confidence(np.zeros((2, 3)), [0]), "expected finite"),
        (lambda: lira_scores(np.zeros(2), np.zeros((8, 3)), np.zeros((8, 3), bool)), r"expected \[N\]"),
        (lambda: lira_scores(np.zeros(2), np.zeros((8, 2)), np.zeros((8, 2), bool), mode="both"), "online, offline"),
        (lambda: lira_scores(np.zeros(2), np.zeros((3, 2)), np.zeros((3, 2), bool), mode="offline"), "has 3 shadow"),
        (lambda: lira_scores(np.zeros(2), np.zeros((8, 2)), np.zeros((8, 2), bool), mode="offline"), "all agree"),
    ],
)
def test_bad_input_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.parametrize("with_it", [5, 6])
def test_balanced_shadows_are_as_many_with_an_example_as_without(with_it):
    rng = np.random.default_rng(0)
    inside = rng.permuted(np.tile(np.arange(11) < with_it, (40, 1)), axis=1).T
    used = balanced(inside, rng=rng)
    assert ((inside & used).sum(axis=0) == 5).all() and ((~inside & used).sum(axis=0) == 5).all()
    assert len(np.unique(used, axis=1).T) > 1  # drawn for each example by itself


def test_lira_without_a_leak_is_chance_only_with_balanced_shadows():
    """A member has one model fewer with it than without among the others: its mean there is less sure."""
    rng, num = np.random.default_rng(1), 20_000
    everyone = rng.permuted(np.tile(np.arange(12) < 6, (num, 1)), axis=1).T
    confidence = rng.normal(size=everyone.shape)
    target, shadows, inside, members = confidence[0], confidence[1:], everyone[1:], everyone[0]

    def area(**options):
        return roc_auc_score(members, lira_scores(target, shadows, inside, **options))

    assert area() < 0.49
    assert abs(area(used=balanced(inside, rng=rng)) - 0.5) < 0.012  # three deviations of an area from 20,000 examples


def test_used_shadows_must_fit():
    with pytest.raises(ValueError, match=r"used is float64 \(3,\); expected bool \(11, 2\)"):
        lira_scores(np.zeros(2), np.zeros((11, 2)), np.ones((11, 2), bool), used=np.zeros(3))
