"""Federated averaging in TFF against what it must equal: NumPy, TFF's own, and plain SGD.

All weights are float32 and below 1 here, so one operation rounds by at most 6e-8, and the NumPy side is float64. Measured
distances are below 1e-7; TOLERANCE, 1e-6, leaves room for other machines. A wrong share, order or sign moves the
weights by 1e-3 and more, which the tests show where it matters.
"""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from fl_utils import seeding
from fl_utils.learning import reference
from fl_utils.learning.centralized import CentralizedLearner
from fl_utils.learning.local import LocalSettings
from fl_utils.learning.process import REPORT_COLUMNS
from tests.equivalence.helpers import (
    NUM_CLASSES, ONES, SEED, SIZES, TOLERANCE, assert_equals_tffs_own, batches_for_tff, deltas_by_hand, distance,
    federation, hospitals, model_fn_for_tff, seed_cnn,
)

pytestmark = pytest.mark.usefixtures("folders")


def test_equals_numpy_over_three_rounds(folders):
    """Uneven hospitals, a smaller last batch, two passes, momentum, class weights."""
    settings = LocalSettings(batch_size=4, epochs=2, learning_rate=0.05, momentum=0.9)
    class_weights = np.array([0.5, 1.0, 2.0], np.float32)
    learner = federation(folders, SIZES, settings, class_weights=class_weights)
    expected = learner.weights()
    for round_num in (1, 2, 3):
        before = expected
        deltas = deltas_by_hand(expected, SIZES, settings, round_num, class_weights)
        expected = reference.federated_average(expected, deltas, SIZES)
        losses = learner.do_round(round_num)
        assert distance(learner.weights(), expected) < TOLERANCE
        assert distance(expected, before) > 1e-2  # there was something to agree on
        assert set(losses) == {"0", "1", "2"} and all(np.isfinite(list(losses.values())))
        report = dict(zip(REPORT_COLUMNS, learner.last_report.T, strict=True))
        np.testing.assert_array_equal(report["num_examples"], SIZES)
        norms = [np.sqrt(sum((part**2).sum() for part in delta)) for delta in deltas]
        np.testing.assert_allclose(report["update_norm"], norms, atol=1e-5)


def test_mean_is_by_examples_and_the_server_takes_its_step(folders):
    """One round's result fits neither a mean by batches nor one by clients, nor a full step of the server."""
    settings = LocalSettings(batch_size=4, learning_rate=0.05, momentum=0.0)
    learner = federation(folders, SIZES, settings, learning_rate=0.5)
    start = learner.weights()
    learner.do_round(1)
    deltas = deltas_by_hand(start, SIZES, settings, 1)

    def half_a_step(shares):
        mean = reference.federated_average(start, deltas, shares)
        return [w - 0.5 * (w - v) for w, v in zip(start, mean, strict=True)]

    assert distance(learner.weights(), half_a_step(SIZES)) < TOLERANCE
    for wrong in ([1, 2, 5], [1, 1, 1]):  # batches; clients
        assert distance(learner.weights(), half_a_step(wrong)) > 1e-3
    assert distance(learner.weights(), reference.federated_average(start, deltas, SIZES)) > 1e-3


def test_equals_tffs_own_on_the_seed_cnn(folders):
    """`tff.learning.algorithms.build_weighted_fed_avg`, fed by tf.data with the same batches, over two rounds."""
    sizes, settings = (6, 10), LocalSettings(batch_size=4, learning_rate=0.05, momentum=0.9)
    process = tff.learning.algorithms.build_weighted_fed_avg(
        model_fn_for_tff(seed_cnn, batches_for_tff(sizes, settings, 0, 1).element_spec),
        client_optimizer_fn=tff.learning.optimizers.build_sgdm(settings.learning_rate, settings.momentum),
        server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0),
        client_weighting=tff.learning.ClientWeighting.NUM_EXAMPLES,
    )
    assert_equals_tffs_own(federation(folders, sizes, settings, model=seed_cnn), process, sizes, settings)


def test_one_client_is_plain_sgd(folders):
    """Full participation of the only client: FedAvg is SGD on its data. Without momentum, which clients do not keep."""
    settings = LocalSettings(batch_size=4, learning_rate=0.05, momentum=0.0, augment="shift_rotate_flip")
    federated = federation(folders, (14,), settings, model=seed_cnn)
    images, labels, _ = hospitals((14,))
    plain = CentralizedLearner(seed_cnn(), settings, images, labels, ONES, seed=SEED, client="0")
    start = plain.weights()
    assert distance(federated.weights(), start) == 0
    for round_num in (1, 2, 3):
        ours, theirs = federated.do_round(round_num), plain.do_round(round_num)
        assert ours["0"] == pytest.approx(theirs["0"], abs=TOLERANCE)
        assert distance(federated.weights(), plain.weights()) < TOLERANCE
    assert distance(plain.weights(), start) > 1e-2


def test_cohort_sampling_trains_only_the_cohort(folders):
    """Two of three clients a round: the mean is over those two, and who they are follows from seed and round."""
    settings = LocalSettings(batch_size=4, learning_rate=0.05, momentum=0.0)
    learner = federation(folders, SIZES, settings, clients_per_round=2)
    expected, cohorts = learner.weights(), set()
    for round_num in (1, 2, 3, 4):
        cohort = seeding.cohort(SEED, round_num, num_clients=3, clients_per_round=2)
        deltas = deltas_by_hand(expected, SIZES, settings, round_num)
        expected = reference.federated_average(expected, [deltas[c] for c in cohort], [SIZES[c] for c in cohort])
        assert set(learner.do_round(round_num)) == {str(client) for client in cohort}
        assert distance(learner.weights(), expected) < TOLERANCE
        cohorts.add(tuple(cohort))
    assert len(cohorts) > 1


def test_restored_state_goes_on_bit_for_bit(folders):
    settings = LocalSettings(batch_size=4, learning_rate=0.05, momentum=0.9)
    learner = federation(folders, SIZES, settings)
    learner.do_round(1)
    state = learner.state()
    learner.do_round(2)
    after = learner.weights()
    learner.restore(state)
    learner.do_round(2)
    assert distance(learner.weights(), after) == 0 and distance(after, state[: len(after)]) > 0


def test_gradient_of_the_reference():
    """Against TensorFlow's tape (float64) and central finite differences."""
    rng = np.random.default_rng(1)
    weights = [rng.normal(size=(5, NUM_CLASSES)), rng.normal(size=NUM_CLASSES)]
    images, labels, class_weights = rng.random((7, 5)), rng.integers(0, NUM_CLASSES, 7), np.array([0.5, 1.0, 3.0])

    def loss(matrix, bias):
        logits = tf.matmul(images, matrix) + bias
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
        return tf.reduce_mean(losses * tf.gather(class_weights, labels))

    by_hand = reference.softmax_regression_gradient(weights, images, labels, class_weights)
    variables = [tf.Variable(weight) for weight in weights]
    with tf.GradientTape() as tape:
        value = loss(*variables)
    assert distance(by_hand, [part.numpy() for part in tape.gradient(value, variables)]) < 1e-12
    step = 1e-6
    for i, weight in enumerate(weights):
        for position in np.ndindex(weight.shape):
            moved = [[w.copy() for w in weights] for _ in range(2)]
            moved[0][i][position] += step
            moved[1][i][position] -= step
            slope = (float(loss(*moved[0])) - float(loss(*moved[1]))) / (2 * step)
            assert by_hand[i][position] == pytest.approx(slope, abs=1e-8)


def test_gradient_of_the_reference_does_not_overflow():
    weights = [np.full((2, NUM_CLASSES), 1e4) * [1, 0, -1], np.zeros(NUM_CLASSES)]
    parts = reference.softmax_regression_gradient(weights, np.ones((2, 2)), np.array([2, 0]), np.ones(NUM_CLASSES))
    assert all(np.isfinite(part).all() for part in parts)
