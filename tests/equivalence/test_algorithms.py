"""Every federated algorithm against its paper's formula in NumPy (float64), and against TFF's own where there is one.

Client steps are softmax regression of `learning.reference`; the normalisation layers' algorithms are checked against
`LocalTrainer` run by hand at each client. Tolerance as in `test_fedavg`.
"""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from fl_utils import seeding
from fl_utils.learning import reference
from fl_utils.learning.algorithms import ALGORITHMS, algorithm_named
from fl_utils.learning.centralized import CentralizedLearner
from fl_utils.learning.client_updates import norm_positions
from fl_utils.learning.local import LocalSettings, LocalTrainer
from fl_utils.models.classifiers import build_model
from tests.equivalence.helpers import (
    NUM_CLASSES, ONES, SEED, SHAPE, SIZES, TOLERANCE, assert_equals_tffs_own, batches_for_tff, batches_of,
    deltas_by_hand, distance, federation, hospitals, mean_by_examples, model_fn_for_tff, seed_cnn,
)

PLAIN = LocalSettings(batch_size=4, epochs=2, learning_rate=0.05, momentum=0.0)
CLASS_WEIGHTS = np.array([0.5, 1.0, 2.0], np.float32)
#: Server settings by algorithm, the same in all tests: what TFF compiled is then shared.
SERVER = {
    "fedsgd": {"learning_rate": 0.5},
    "fedavg": {"learning_rate": 0.5},
    "fedavgm": {"learning_rate": 0.5, "momentum": 0.8},
    "fedadam": {"learning_rate": 0.02},
    "fedyogi": {"learning_rate": 0.02},
    "fedadagrad": {"learning_rate": 0.02},
    "mimelite": {"learning_rate": 0.5, "momentum": 0.8},
    "scaffold": {"learning_rate": 0.5},
}
pytestmark = pytest.mark.usefixtures("folders")


def full_gradient(weights, index, class_weights=CLASS_WEIGHTS):
    images, labels, _ = hospitals(SIZES)
    pixels = images[index].reshape(len(index), -1) / 255.0
    return reference.softmax_regression_gradient(weights, pixels, labels[index], class_weights)


def local_sgd(weights, client, round_num, pull=lambda local: 0.0):
    """One client's round of `PLAIN` steps; `pull` (local weights -> list) is added to each gradient."""
    images, labels, parts = hospitals(SIZES)
    own, local = parts[client], [w.astype(np.float64) for w in weights]
    batches = batches_of(len(own), PLAIN, client, round_num)
    for batch in batches:
        gradient = full_gradient(local, own[batch])
        local = [w - PLAIN.learning_rate * (g + p) for w, g, p in zip(local, gradient, pull(local), strict=True)]
    return local, len(batches)


def minus(a, b):
    return [x - y for x, y in zip(a, b, strict=True)]


# Gradients of clients


def test_fedsgd_is_gradient_descent_on_the_pooled_data(folders):
    """Whatever the batches and passes that the settings name: one step a round along the pooled gradient."""
    learner = federation(folders, SIZES, PLAIN, class_weights=CLASS_WEIGHTS, algorithm="fedsgd", **SERVER["fedsgd"])
    expected = learner.weights()
    for round_num in (1, 2, 3):
        before, gradient = expected, full_gradient(expected, np.arange(sum(SIZES)))
        expected = [w - 0.5 * 0.05 * g for w, g in zip(expected, gradient, strict=True)]
        learner.do_round(round_num)
        assert distance(learner.weights(), expected) < TOLERANCE
        assert distance(expected, before) > 1e-3


MU = 0.7


def test_fedprox_adds_the_proximal_gradient(folders):
    settings = LocalSettings(batch_size=4, epochs=2, learning_rate=0.05, momentum=0.0, proximal_strength=MU)
    learner = federation(folders, SIZES, settings, class_weights=CLASS_WEIGHTS, algorithm="fedprox")
    expected = learner.weights()
    for round_num in (1, 2, 3):
        start = expected

        def pull(local):
            return [MU * (w - w_start) for w, w_start in zip(local, start, strict=True)]  # noqa: B023 (used at once)

        deltas = [minus(start, local_sgd(start, client, round_num, pull)[0]) for client in range(3)]
        without = [minus(start, local_sgd(start, client, round_num, lambda local: [0.0, 0.0])[0]) for client in range(3)]
        expected = minus(start, mean_by_examples(deltas, SIZES))
        learner.do_round(round_num)
        assert distance(learner.weights(), expected) < TOLERANCE
        assert distance(expected, minus(start, mean_by_examples(without, SIZES))) > 1e-4  # the term was felt


def test_fedprox_without_proximal_strength_is_fedavg_bit_for_bit(folders):
    settings = LocalSettings(batch_size=4, learning_rate=0.05, momentum=0.9, proximal_strength=0.0)
    prox, plain = (federation(folders, SIZES, settings, algorithm=name) for name in ("fedprox", "fedavg"))
    for round_num in (1, 2):
        prox.do_round(round_num)
        plain.do_round(round_num)
        assert distance(prox.weights(), plain.weights()) == 0


def test_fedprox_equals_tffs_own_but_for_its_sign(folders):
    """TFF 0.87 adds mu (w_start - w) to the gradient, where the paper's term mu / 2 |w - w_start|^2 has mu (w - w_start).

    Its clients are so pushed away from the global model (learning/templates/proximal_client_work.py, `y - x`); the
    formula of the paper is checked above. All else agrees: TFF's mu is our -mu.
    """
    sizes, settings = (6, 10), LocalSettings(batch_size=4, learning_rate=0.05, momentum=0.0, proximal_strength=-MU)
    process = tff.learning.algorithms.build_weighted_fed_prox(
        model_fn_for_tff(seed_cnn, batches_for_tff(sizes, settings, 0, 1).element_spec),
        proximal_strength=MU,
        client_optimizer_fn=tff.learning.optimizers.build_sgdm(settings.learning_rate),
        server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0),
    )
    learner = federation(folders, sizes, settings, model=seed_cnn, algorithm="fedprox")
    assert_equals_tffs_own(learner, process, sizes, settings)


# Optimizers of the server: the mean change is its gradient


def fedavgm(step, m, v, d):
    v = 0.8 * v + d
    return 0.5 * v, m, v


def fedadam(step, m, v, d):
    m, v = 0.9 * m + 0.1 * d, 0.99 * v + 0.01 * d**2
    return 0.02 * np.sqrt(1 - 0.99**step) / (1 - 0.9**step) * m / (np.sqrt(v) + 1e-3), m, v


def fedyogi(step, m, v, d):
    m, v = 0.9 * m + 0.1 * d, v - 0.01 * d**2 * np.sign(v - d**2)
    return 0.02 * np.sqrt(1 - 0.99**step) / (1 - 0.9**step) * m / (np.sqrt(v) + 1e-3), m, v


def fedadagrad(step, m, v, d):
    # TFF has the adaptivity under the root, where the paper has it beside it.
    v = v + d**2
    return 0.02 * d / np.sqrt(v + 1e-3), m, v


@pytest.mark.parametrize(
    ("rule", "first"), [(fedavgm, 0.0), (fedadam, 0.0), (fedyogi, 1e-6), (fedadagrad, 1e-6)]
)
def test_server_optimizer_equals_numpy(folders, rule, first):
    """Hsu et al. 2019; Reddi et al. 2021, Algorithm 2, with TFF's bias correction."""
    name = rule.__name__
    learner = federation(folders, SIZES, PLAIN, class_weights=CLASS_WEIGHTS, algorithm=name, **SERVER[name])
    expected = learner.weights()
    state = [(np.zeros(w.shape), np.full(w.shape, first)) for w in expected]
    for step in (1, 2, 3):
        before = expected
        change = mean_by_examples(deltas_by_hand(expected, SIZES, PLAIN, step, CLASS_WEIGHTS), SIZES)
        moves = [rule(step, *parts, d) for parts, d in zip(state, change, strict=True)]
        expected, state = minus(expected, [move for move, _, _ in moves]), [parts for _, *parts in moves]
        learner.do_round(step)
        assert distance(learner.weights(), expected) < TOLERANCE
        assert distance(expected, before) > 5e-3


def test_fedavgm_without_momentum_is_fedavg(folders):
    plain, still = (federation(folders, SIZES, PLAIN, algorithm=name, **SERVER["fedavg"]) for name in ("fedavg", "fedavgm"))
    for round_num in (1, 2):
        plain.do_round(round_num)
        still.do_round(round_num)
        assert distance(plain.weights(), still.weights()) == 0


# Mime-lite


def test_mime_lite_equals_numpy(folders):
    """Local steps along g + beta a with the server's a; then a <- beta a + mean full gradient at the global weights."""
    beta = SERVER["mimelite"]["momentum"]
    learner = federation(folders, SIZES, PLAIN, class_weights=CLASS_WEIGHTS, algorithm="mimelite", **SERVER["mimelite"])
    expected = learner.weights()
    accumulator = [np.zeros(w.shape) for w in expected]
    for round_num in (1, 2, 3):
        start, fixed = expected, [beta * a for a in accumulator]
        deltas = [
            minus(start, local_sgd(start, client, round_num, lambda local: fixed)[0])  # noqa: B023 (used at once)
            for client in range(3)
        ]
        pooled = full_gradient(start, np.arange(sum(SIZES)))  # the clients' full gradients, weighted by examples
        accumulator = [beta * a + g for a, g in zip(accumulator, pooled, strict=True)]
        expected = [w - 0.5 * d for w, d in zip(start, mean_by_examples(deltas, SIZES), strict=True)]
        learner.do_round(round_num)
        assert distance(learner.weights(), expected) < TOLERANCE
        assert distance(np_list(learner._state["broadcast"]), accumulator) < TOLERANCE
    assert max(np.abs(a).max() for a in accumulator) > 1e-2


def test_mime_lite_equals_tffs_own(folders):
    sizes, settings = (6, 10), LocalSettings(batch_size=4, learning_rate=0.05, momentum=0.0)
    process = tff.learning.algorithms.build_weighted_mime_lite(
        model_fn_for_tff(seed_cnn, batches_for_tff(sizes, settings, 0, 1).element_spec),
        base_optimizer=tff.learning.optimizers.build_sgdm(settings.learning_rate, 0.9),
        server_optimizer=tff.learning.optimizers.build_sgdm(1.0),
    )
    learner = federation(folders, sizes, settings, model=seed_cnn, algorithm="mimelite", momentum=0.9)
    assert_equals_tffs_own(learner, process, sizes, settings, rounds=(1, 2, 3))


# SCAFFOLD


def np_list(parts):
    return [np.asarray(part) for part in parts]


@pytest.mark.parametrize("clients_per_round", [3, 2])
def test_scaffold_equals_numpy(folders, clients_per_round):
    """Algorithm 1, option II, clients weighted by examples; c stays the weighted mean of all c_i, who ever takes part."""
    learner = federation(
        folders, SIZES, PLAIN, class_weights=CLASS_WEIGHTS, algorithm="scaffold", clients_per_round=clients_per_round,
        **SERVER["scaffold"],
    )
    weights = learner.weights()
    control = [np.zeros(w.shape) for w in weights]
    own = [control for _ in SIZES]
    cohorts = set()
    for round_num in (1, 2, 3, 4):
        cohort = seeding.cohort(SEED, round_num, num_clients=3, clients_per_round=clients_per_round)
        deltas = []
        before, pulled = [list(c_i) for c_i in own], minus(control, own[cohort[0]])
        for client in cohort:
            correction = minus(control, own[client])
            local, steps = local_sgd(weights, client, round_num, lambda local: correction)  # noqa: B023 (used at once)
            deltas.append(minus(weights, local))
            own[client] = [
                c_i - c + d / (steps * PLAIN.learning_rate)
                for c_i, c, d in zip(own[client], control, deltas[-1], strict=True)
            ]
        sizes = [SIZES[client] for client in cohort]
        weights = [w - 0.5 * d for w, d in zip(weights, mean_by_examples(deltas, sizes), strict=True)]
        changes = [minus(own[client], before[client]) for client in cohort]
        control = [
            c + sum(sizes) / sum(SIZES) * change
            for c, change in zip(control, mean_by_examples(changes, sizes), strict=True)
        ]
        assert distance(control, mean_by_examples(own, SIZES)) < 1e-12
        learner.do_round(round_num)
        assert distance(learner.weights(), weights) < TOLERANCE
        # A control variate is a change divided by steps x rate = 0.1 to 0.5, which divides its rounding as well.
        assert distance(np_list(learner._state["broadcast"]), control) < 10 * TOLERANCE
        for client in range(3):
            assert distance(learner.client_states[client], own[client]) < 10 * TOLERANCE
        assert distance(np_list(learner._state["broadcast"]), mean_by_examples(learner.client_states, SIZES)) < TOLERANCE
        cohorts.add(tuple(cohort))
    assert distance(pulled, [0, 0]) > 1e-2  # the corrections were not zero
    assert len(cohorts) > 1 or clients_per_round == 3


def test_scaffold_with_one_client_is_plain_sgd(folders):
    """c = c_1: nothing to correct."""
    learner = federation(folders, (14,), PLAIN, model=seed_cnn, algorithm="scaffold")
    images, labels, _ = hospitals((14,))
    plain = CentralizedLearner(seed_cnn(), PLAIN, images, labels, ONES, seed=SEED, client="0")
    start = plain.weights()
    for round_num in (1, 2, 3):
        learner.do_round(round_num)
        plain.do_round(round_num)
        assert distance(learner.weights(), plain.weights()) < TOLERANCE
    assert distance(plain.weights(), start) > 1e-2


# Normalisation layers


@functools.cache
def norm_cnn(norm):
    return lambda: build_model(f"norm_cnn_{norm}", SHAPE, NUM_CLASSES, seed=5)


def by_hand(model, settings, start, client, round_num, sizes):
    """The weights of one client after its round, by `LocalTrainer` outside of TFF."""
    images, labels, parts = hospitals(sizes)
    trainer = LocalTrainer(model(), settings)
    trainer.set_weights(start)
    own = parts[client]
    seed = tf.constant(seeding.tf_seed(SEED, "batch_order", str(client), round_num))
    trainer.run(tf.constant(images[own]), tf.constant(labels[own], tf.int32), tf.constant(ONES), seed)
    return [weight.numpy() for weight in trainer.weights], [v.numpy() for v in trainer.model.non_trainable_variables]


NORM_SIZES = (6, 12)
GROUP_NORM = LocalSettings(batch_size=4, learning_rate=0.05, momentum=0.0)
BATCH_NORM = LocalSettings(batch_size=4, learning_rate=0.05, momentum=0.0, norm_statistics="averaged")


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_norm_layers_stay_at_home(folders, norm):
    """The server's never move, each client's own do; all else is FedAvg of what the clients compute with their own."""
    settings, model = BATCH_NORM if norm == "batch" else GROUP_NORM, norm_cnn(norm)
    learner = federation(folders, NORM_SIZES, settings, model=model, algorithm="local_norm")
    fedavg = federation(folders, NORM_SIZES, settings, model=model)
    start = learner.weights()
    home = norm_positions(LocalTrainer(model(), settings))
    assert len(home) == (4 if norm == "group" else 8)  # two layers: scale and shift, and with BatchNorm mean and variance
    away = [i for i in range(len(start)) if i not in home]
    common, own = start, [[start[i] for i in home] for _ in NORM_SIZES]
    for round_num in (1, 2):
        ends = []
        for client in range(2):
            begin = list(common)
            for position, weight in zip(home, own[client], strict=True):
                begin[position] = weight
            end, _ = by_hand(model, settings, begin, client, round_num, NORM_SIZES)
            own[client] = [end[i] for i in home]
            ends.append(end)
        mean = mean_by_examples(ends, NORM_SIZES)
        common = [common[i] if i in home else mean[i] for i in range(len(start))]
        learner.do_round(round_num)
        assert distance(learner.weights(), common) < TOLERANCE
        assert all(np.array_equal(learner.weights()[i], start[i]) for i in home)
        for client in range(2):
            assert distance(learner.client_states[client], own[client]) < TOLERANCE
        if round_num == 1:
            fedavg.do_round(1)
            assert distance([learner.weights()[i] for i in away], [fedavg.weights()[i] for i in away]) < TOLERANCE
    assert distance(own[0], own[1]) > 1e-3 and distance(own[0], [start[i] for i in home]) > 1e-3


def test_batch_norm_statistics_averaged(folders):
    """They travel and become the mean of the clients', weighted by examples; the next round starts from it."""
    learner = federation(folders, NORM_SIZES, BATCH_NORM, model=norm_cnn("batch"))
    weights = learner.weights()
    for round_num in (1, 2):
        ends = [by_hand(norm_cnn("batch"), BATCH_NORM, weights, client, round_num, NORM_SIZES) for client in range(2)]
        assert distance(ends[0][1], ends[1][1]) > 1e-3  # the hospitals' statistics differ
        weights = mean_by_examples([end for end, _ in ends], NORM_SIZES)
        learner.do_round(round_num)
        assert distance(learner.weights(), weights) < TOLERANCE
        assert distance(learner.weights()[-4:], mean_by_examples([end for _, end in ends], NORM_SIZES)) < TOLERANCE


def test_batch_norm_statistics_dropped(folders):
    """They do not travel: every client starts each round at mean 0 and variance 1, and what it found is lost."""
    settings = LocalSettings(batch_size=4, learning_rate=0.05, momentum=0.0, norm_statistics="dropped")
    model = norm_cnn("batch")
    learner = federation(folders, NORM_SIZES, settings, model=model)
    weights = learner.weights()
    assert len(weights) == len(model().trainable_variables)
    for round_num in (1, 2):
        ends = [by_hand(model, settings, weights, client, round_num, NORM_SIZES) for client in range(2)]
        weights = mean_by_examples([end for end, _ in ends], NORM_SIZES)
        learner.do_round(round_num)
        assert distance(learner.weights(), weights) < TOLERANCE
    trainer = LocalTrainer(model(), settings)
    for variable in trainer.model.non_trainable_variables:
        variable.assign(tf.fill(variable.shape, 7.0))
    trainer.set_weights(weights)
    for variable in trainer.model.non_trainable_variables:
        assert np.array_equal(variable.numpy(), np.full(variable.shape, 1.0 if "variance" in variable.name else 0.0))


# All of them


@pytest.mark.parametrize("algorithm", ["scaffold", "local_norm", "mimelite", "fedadam"])
def test_restored_state_goes_on_bit_for_bit(folders, algorithm):
    """Also what a client keeps that did not take part in the last round."""
    if algorithm == "local_norm":
        learner = federation(
            folders, NORM_SIZES, GROUP_NORM, model=norm_cnn("group"), algorithm=algorithm, clients_per_round=1
        )
    else:
        learner = federation(folders, SIZES, PLAIN, algorithm=algorithm, clients_per_round=2, **SERVER[algorithm])
    learner.do_round(1)
    learner.do_round(2)
    state = [np.array(part) for part in learner.state()]
    for round_num in (3, 4):
        learner.do_round(round_num)
    after, started = learner.state(), learner.weights()
    learner.restore(state)
    assert distance(learner.state(), state) == 0 and distance(learner.weights(), started) > 0
    for round_num in (3, 4):
        learner.do_round(round_num)
    assert len(after) == len(state) and distance(learner.state(), after) == 0


def test_each_algorithm_goes_its_own_way(folders):
    """Two rounds from the same weights on the same batches: no two algorithms are one under two names."""
    # FedAvg in the federation; needs layers; needs its strength.
    assert set(ALGORITHMS) == set(SERVER) | {"finetuned", "local_norm", "fedprox"}
    ends = {}
    for name, server in SERVER.items():
        learner = federation(folders, SIZES, PLAIN, algorithm=name, **server)
        for round_num in (1, 2):
            learner.do_round(round_num)
        ends[name] = learner.weights()
    for name, weights in ends.items():
        assert all(distance(weights, other) > 1e-4 for key, other in ends.items() if key != name), name


def test_unknown_algorithm():
    with pytest.raises(ValueError, match="'fedfoo' is not known; expected one of fedsgd, fedavg, .*local_norm"):
        algorithm_named("fedfoo")
