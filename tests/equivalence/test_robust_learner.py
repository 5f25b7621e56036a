"""A federation with bad hospitals against FedAvg in TFF and against NumPy.

TOLERANCE is that of `test_fedavg`, for float32 against float64. A wrong order, sign or share moves the weights by 1e-3.
"""

import numpy as np
import pytest
import tensorflow as tf

from fl_utils.config import make_config
from fl_utils.experiments.robust_learner import RobustLearner, Root, attackers_of, last_layer_of
from fl_utils.learning import reference
from fl_utils.learning import robust as robust_rules
from fl_utils.learning.client_updates import hospital_update
from fl_utils.learning.local import LocalSettings, LocalTrainer
from fl_utils.trust.detection import look
from tests.equivalence.helpers import (
    ONES, SEED, SIZES, TOLERANCE, deltas_by_hand, distance, federation, hospitals, softmax_regression,
)

pytestmark = pytest.mark.usefixtures("folders")

SETTINGS = LocalSettings(batch_size=4, epochs=2, learning_rate=0.05, momentum=0.9)


def config_of(num_clients=len(SIZES), **fields):
    return make_config(**{
        "dataset": "phantom_brain", "method": "fedavg", "partition": "iid", "num_clients": num_clients, "seed": SEED,
        "profile": "smoke", "model": "small_cnn", "total_rounds": 3, "client_learning_rate": 0.1, "aggregator": "mean",
    } | fields)  # fmt: skip


def robust(config, root=None, sizes=SIZES):
    images, labels, parts = hospitals(sizes)
    model = softmax_regression()
    return RobustLearner(
        LocalTrainer(softmax_regression(), SETTINGS), model.get_weights(),
        [(images[part], labels[part]) for part in parts], ONES, config, root=root,
        last_layer=last_layer_of(model),
    )


def flat(parts):
    return np.concatenate([np.ravel(part) for part in parts])


def test_the_mean_without_attack_is_fedavg_in_tff_and_in_numpy(folders):
    learner, plain = robust(config_of()), federation(folders, SIZES, SETTINGS)
    expected = learner.weights()
    for round_num in (1, 2):
        deltas = deltas_by_hand(expected, SIZES, SETTINGS, round_num)
        expected = reference.federated_average(expected, deltas, SIZES)
        losses, theirs = learner.do_round(round_num), plain.do_round(round_num)
        assert distance(learner.weights(), expected) < TOLERANCE
        assert distance(learner.weights(), plain.weights()) < TOLERANCE
        assert losses == pytest.approx(theirs, abs=TOLERANCE)


def test_a_flipped_sign_in_the_mean_and_the_median_by_hand():
    for aggregator in ("mean", "coordinate_median"):
        config = config_of(aggregator=aggregator, attack="sign_flip", attack_fraction=0.34, attack_strength=2.0)
        (bad,) = attackers_of(config, 1)
        learner = robust(config)
        start = learner.weights()
        deltas = [flat(delta) for delta in deltas_by_hand(start, SIZES, SETTINGS, 1)]
        deltas[bad] = -2 * deltas[bad]
        expected = np.average(deltas, axis=0, weights=SIZES) if aggregator == "mean" else np.median(deltas, axis=0)
        learner.do_round(1)
        moved = flat(start) - flat(learner.weights())
        np.testing.assert_allclose(moved, expected, atol=TOLERANCE)


def test_bad_data_is_trained_on_by_the_bad_hospital_only():
    config = config_of(attack="inverted", attack_fraction=0.34)
    (bad,) = attackers_of(config, 1)
    learner, honest = robust(config), robust(config_of())
    losses, theirs = learner.do_round(1), honest.do_round(1)
    for client, loss in theirs.items():
        assert (losses[client] == pytest.approx(loss, abs=TOLERANCE)) == (client != str(bad))
    assert distance(learner.weights(), honest.weights()) > 1e-3


def test_who_is_not_finite_is_left_out_named_and_the_round_goes_on():
    config = config_of(attack="not_finite", attack_fraction=0.34)
    (bad,) = attackers_of(config, 1)
    learner = robust(config)
    start = learner.weights()
    deltas = deltas_by_hand(start, SIZES, SETTINGS, 1)
    kept = [client for client in range(len(SIZES)) if client != bad]
    expected = reference.federated_average(start, [deltas[k] for k in kept], [SIZES[k] for k in kept])
    losses = learner.do_round(1)
    assert set(losses) == {str(client) for client in kept}
    assert distance(learner.weights(), expected) < TOLERANCE
    assert (str(bad), "update", "left_out", 1.0) in learner.observed
    assert not any(client == str(bad) and metric != "left_out" for client, _, metric, _ in learner.observed)


def test_what_the_server_sees_is_the_look_at_what_is_sent():
    config = config_of(attack="sign_flip", attack_fraction=0.34, attack_strength=2.0)
    learner = robust(config)
    deltas = np.stack([flat(delta) for delta in deltas_by_hand(learner.weights(), SIZES, SETTINGS, 1)])
    (bad,) = attackers_of(config, 1)
    deltas[bad] *= -2
    learner.do_round(1)
    model = softmax_regression()
    seen = look(deltas, last_layer_of(model))
    found = {(client, metric): value for client, split, metric, value in learner.observed if split == "update"}
    for client in range(len(SIZES)):
        assert found[str(client), "norm"] == pytest.approx(seen["norm"][client], rel=1e-4)
        assert found[str(client), "attacker"] == (client == bad)


def test_fltrust_moves_as_far_as_the_server_would_alone():
    images, labels, parts = hospitals(SIZES)
    own = Root(images[parts[-1]], labels[parts[-1]], 1)
    trainer = LocalTrainer(softmax_regression(), SETTINGS)
    config = config_of(aggregator="fltrust", root_examples=20)
    learner = robust(config, root=(trainer, own))
    start = learner.weights()
    result = hospital_update(
        trainer, start, tf.constant(own.images), tf.constant(own.labels, tf.int32), ONES, seed=SEED, client="server",
        round_num=1,
    )
    server = flat(result.delta)
    updates = np.stack([flat(delta) for delta in deltas_by_hand(start, SIZES, SETTINGS, 1)])
    expected = robust_rules.fltrust(updates, server).numpy()
    learner.do_round(1)
    np.testing.assert_allclose(flat(start) - flat(learner.weights()), expected, atol=TOLERANCE)
    assert 0 < np.linalg.norm(expected) <= np.linalg.norm(server) * (1 + 1e-5)


@pytest.mark.parametrize("aggregator", ["norm_clipping", "coordinate_median"])
def test_a_resumed_federation_goes_on_as_the_undisturbed_one(aggregator):
    config = config_of(aggregator=aggregator, attack="sign_flip", attack_fraction=0.34, attack_strength=2.0)
    whole, first, second = robust(config), robust(config), robust(config)
    for round_num in (1, 2, 3):
        whole.do_round(round_num)
    for round_num in (1, 2):
        first.do_round(round_num)
    second.restore(first.state())
    second.do_round(3)
    assert distance(second.weights(), whole.weights()) == 0


def test_bad_hospitals_are_drawn_from_the_seed_alone_fixed_or_anew():
    fields = {"num_clients": 10, "attack": "label_flip", "attack_fraction": 0.3}
    fixed = config_of(**fields)
    assert len(attackers_of(fixed, 1)) == 3 and attackers_of(fixed, 1) == attackers_of(fixed, 9)
    assert attackers_of(fixed, 1) == attackers_of(config_of(**fields | {"aggregator": "coordinate_median"}), 1)
    changing = config_of(**fields, attack_schedule="changing")
    drawn = {tuple(attackers_of(changing, number)) for number in range(1, 9)}
    assert len(drawn) > 3 and all(len(bad) == 3 for bad in drawn)
    assert attackers_of(config_of(num_clients=10), 1) == []
