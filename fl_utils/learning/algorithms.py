"""Federated algorithms as TFF processes, each a few lines that read as the paper's pseudo-code.

A process is built from four parts: the client update (plain TensorFlow, `learning.local`), how
updates are aggregated (a TFF aggregation factory), how the server applies them (a TFF finalizer),
and how clients find their data. A client is given the *name* of its data, not the data: its
files are read inside the graph, so a round sends a few bytes a client to TFF's worker.
"""

import collections
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from fl_utils.learning.local import LocalSettings, LocalTrainer, local_update


REPORT_COLUMNS = ("num_examples", "train_loss", "update_norm")


def client_input(position: int, data: str, seed: np.ndarray, class_weights: np.ndarray) -> collections.OrderedDict:
    """What one client is handed in a round.

    Args:
      position: the client's place in the cohort, 0..cohort_size-1.
      data: path prefix written by `client_files.write_client_files`.
      seed: int32 [2], the client's seed of this round.
      class_weights: float32 [K].
    """
    return collections.OrderedDict(position=position, data=data, seed=seed, class_weights=class_weights)


def read_client_files(data: tf.Tensor, image_shape: tuple[int, int, int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Reads, inside the graph, what `client_files.write_client_files` wrote.

    Returns:
      (images uint8 [N, H, W, C], labels int32 [N]).
    """
    images = tf.io.decode_raw(tf.io.read_file(data + ".images"), tf.uint8)
    labels = tf.io.decode_raw(tf.io.read_file(data + ".labels"), tf.int32)
    return tf.reshape(images, [-1, *image_shape]), labels


def build_federated_averaging(
    build_model: Callable[[], keras.Model],
    settings: LocalSettings,
    *,
    cohort_size: int,
    server_learning_rate: float = 1.0,
    aggregator: tff.aggregators.WeightedAggregationFactory | None = None,
) -> tff.templates.IterativeProcess:
    """FedAvg: clients train locally, the server averages their changes by number of examples.

    Args:
      build_model: gives a new model with the initial weights; called inside TFF's graphs.
      settings: the clients' training.
      cohort_size: clients in a round.
      server_learning_rate: 1.0 is plain averaging.
      aggregator: how updates are averaged; default `tff.aggregators.MeanFactory()`.
    Returns:
      An iterative process: `initialize()` gives the server's state (keys global_model_weights,
      aggregator, finalizer), `next(state, clients)` takes a list of `client_input` and gives
      (state, float32 [cohort_size, 3] with REPORT_COLUMNS of each client by position).
    Source: McMahan et al. 2017, arXiv:1602.05629, Algorithm 1; server step as in Reddi et al.
      2021, arXiv:2003.00295, Algorithm 1 with SGD.
    """
    model = build_model()
    image_shape, num_classes = tuple(model.input_shape[1:]), model.output_shape[-1]
    initial = [weight.numpy() for weight in model.trainable_weights]
    weights_type = tff.types.to_type([(weight.dtype.type, weight.shape) for weight in initial])
    client_type = tff.types.to_type(client_input(np.int32, np.str_, (np.int32, [2]), (np.float32, [num_classes])))

    aggregation = (aggregator or tff.aggregators.MeanFactory()).create(weights_type, tff.TensorType(np.float32))
    finalizer = tff.learning.templates.build_apply_optimizer_finalizer(
        tff.learning.optimizers.build_sgdm(server_learning_rate),
        tff.types.to_type(tff.learning.models.ModelWeights(weights_type, ())),
    )

    @tff.tensorflow.computation
    def initial_weights():
        return [tf.constant(weight) for weight in initial]

    @tff.tensorflow.computation(weights_type, client_type)
    def client_update(weights, client):
        # Built here so that its variables belong to the computation.
        trainer = LocalTrainer(build_model(), settings)

        @tf.function
        def update(weights, client):
            images, labels = read_client_files(client["data"], image_shape)
            return local_update(trainer, weights, images, labels, client["class_weights"], client["seed"])

        delta, num_examples, loss = update(list(weights), client)
        # TFF has no way to collect values, but a sum of one-row matrices is the table of all rows.
        row = tf.stack([num_examples, loss, tf.linalg.global_norm(delta)])
        report = tf.one_hot(client["position"], cohort_size)[:, None] * row
        return collections.OrderedDict(delta=delta, num_examples=num_examples, report=report)

    # TFF traces in a TF1 graph, where Keras swaps the base classes of its layers for all models,
    # those outside too. Building a model out here swaps them back.
    build_model()

    @tff.federated_computation
    def initialize():
        weights = tff.federated_eval(initial_weights, tff.SERVER)
        return tff.federated_zip(
            collections.OrderedDict(
                global_model_weights=weights, aggregator=aggregation.initialize(), finalizer=finalizer.initialize()
            )
        )

    as_model_weights = tff.tensorflow.computation(
        lambda weights: tff.learning.models.ModelWeights(weights, ()), weights_type
    )
    trainable = tff.tensorflow.computation(
        lambda weights: weights.trainable, tff.learning.models.ModelWeights(weights_type, ())
    )

    @tff.federated_computation(
        initialize.type_signature.result, tff.FederatedType(client_type, tff.CLIENTS)
    )
    def next_round(state, clients):
        weights = tff.federated_broadcast(state.global_model_weights)
        updates = tff.federated_map(client_update, (weights, clients))
        mean_delta = aggregation.next(state.aggregator, updates.delta, updates.num_examples)
        server = finalizer.next(
            state.finalizer, tff.federated_map(as_model_weights, state.global_model_weights), mean_delta.result
        )
        new_state = tff.federated_zip(
            collections.OrderedDict(
                global_model_weights=tff.federated_map(trainable, server.result),
                aggregator=mean_delta.state,
                finalizer=server.state,
            )
        )
        return new_state, tff.federated_sum(updates.report)

    return tff.templates.IterativeProcess(initialize, next_round)
