"""Shared by the equivalence tests: small uneven hospitals, a federation on them, and the batches that it takes."""

import functools

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from fl_utils import seeding
from fl_utils.learning import reference
from fl_utils.learning.algorithms import ServerSettings, algorithm_named
from fl_utils.learning.client_files import write_client_files
from fl_utils.learning.federated import FederatedLearner
from fl_utils.learning.local import example_order
from fl_utils.learning.process import build_process, initial_client_state
from fl_utils.models.classifiers import build_model

#: Of float32 weights below 1 against float64; see `test_fedavg`.
TOLERANCE = 1e-6
SHAPE, NUM_CLASSES, SEED = (8, 8, 1), 3, 11
ONES = np.ones(NUM_CLASSES, np.float32)
SIZES = (1, 5, 20)  # with batches of 4: 1, 2 and 5 steps


def softmax_regression():
    return build_model("softmax_regression", SHAPE, NUM_CLASSES)


def seed_cnn():
    return build_model("seed_cnn", SHAPE, NUM_CLASSES, seed=3)


def hospitals(sizes):
    """Each hospital has a favourite class and a brightness of its own, so that their updates differ."""
    rng = np.random.default_rng(0)
    images, labels = [], []
    for client, size in enumerate(sizes):
        images.append(rng.integers(0, 100 + 70 * client, (size, *SHAPE), np.uint8))
        labels.append(np.where(rng.random(size) < 0.6, client % NUM_CLASSES, rng.integers(0, NUM_CLASSES, size)))
    parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    return np.concatenate(images), np.concatenate(labels), parts


def federation(
    folder, sizes, settings, model=softmax_regression, class_weights=ONES, algorithm="fedavg", clients_per_round=None,
    **server,
):
    """A learner as `experiments.training` sets it up; `server` are the fields of ServerSettings."""
    images, labels, parts = hospitals(sizes)
    chosen = algorithm_named(algorithm)
    return FederatedLearner(
        _process(algorithm, model, settings, ServerSettings(num_examples=sum(sizes), **server)),
        write_client_files(folder / "clients", images, labels, parts),
        class_weights,
        clients_per_round=clients_per_round or len(sizes),
        seed=SEED,
        client_state=initial_client_state(chosen, model, settings),
    )


@functools.cache
def _process(algorithm, model, settings, server):
    """Learners of the same settings share what TFF compiled, which holds no state and takes seconds."""
    return build_process(algorithm_named(algorithm), model, settings, server)


def batches_of(num_examples, settings, client, round_num):
    """The batches of one client's round, in the order of `LocalTrainer.run`."""
    round_seed, batches = seeding.tf_seed(SEED, "batch_order", str(client), round_num), []
    for epoch in range(settings.epochs):
        order = example_order(num_examples, tf.random.experimental.stateless_fold_in(round_seed, epoch)).numpy()
        batches += [order[i : i + settings.batch_size] for i in range(0, num_examples, settings.batch_size)]
    return batches


def deltas_by_hand(weights, sizes, settings, round_num, class_weights=ONES):
    """Every client's global - local weights of plain SGD, in float64."""
    images, labels, parts = hospitals(sizes)
    return [
        reference.client_update(
            weights, images[part], labels[part], batches_of(len(part), settings, client, round_num), class_weights,
            settings.learning_rate, settings.momentum,
        )
        for client, part in enumerate(parts)
    ]


def mean_by_examples(parts, sizes):
    """The mean of the clients' lists of arrays, weighted by their examples."""
    return [sum(n * part[i] for n, part in zip(sizes, parts, strict=True)) / sum(sizes) for i in range(len(parts[0]))]


def batches_for_tff(sizes, settings, client, round_num):
    """The same batches as a tf.data.Dataset, for TFF's own algorithms."""
    images, labels, parts = hospitals(sizes)
    order = np.concatenate(batches_of(sizes[client], settings, client, round_num))
    pixels, classes = images[parts[client]][order] / np.float32(255), labels[parts[client]][order]
    return tf.data.Dataset.from_tensor_slices((pixels, classes.astype(np.int32))).batch(settings.batch_size)


def model_fn_for_tff(model, spec):
    def model_fn():
        return tff.learning.models.from_keras_model(
            model(), loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True), input_spec=spec
        )

    return model_fn


def assert_equals_tffs_own(learner, process, sizes, settings, rounds=(1, 2)):
    """Round by round on the same batches; the learner is there first, as it starts the engine."""
    start = learner.weights()
    state = process.set_model_weights(process.initialize(), tff.learning.models.ModelWeights(start, []))
    for round_num in rounds:
        learner.do_round(round_num)
        clients = [batches_for_tff(sizes, settings, client, round_num) for client in range(len(sizes))]
        state = process.next(state, clients).state
        theirs = [np.asarray(weight) for weight in process.get_model_weights(state).trainable]
        assert distance(learner.weights(), theirs) < TOLERANCE
    assert distance(learner.weights(), start) > 1e-2


def distance(a, b):
    """The largest absolute difference of two lists of weights."""
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))
