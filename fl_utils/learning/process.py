"""From an algorithm's parts to a TFF process: who sends what to whom in a round.

A client is given the *name* of its data, not the data: its files are read inside the graph, so a round sends a few
bytes a client to TFF's worker, and the weights.
"""

import collections
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from fl_utils.learning.algorithms import Algorithm, ServerSettings
from fl_utils.learning.client_updates import ClientTask
from fl_utils.learning.local import LocalSettings, LocalTrainer, travelling_weights

REPORT_COLUMNS = ("num_examples", "train_loss", "update_norm")


def client_input(
    data: str, seed: np.ndarray, class_weights: np.ndarray, state: Sequence[np.ndarray] | None = None
) -> collections.OrderedDict:
    """What one client is handed in a round.

    Args:
      data: path prefix written by `client_files.write_client_files` or `slice_files.write_slice_files`.
      seed: int32 [2], the client's seed of this round.
      class_weights: float32 [K].
      state: what the client kept of its last round, for algorithms whose clients keep something.
    """
    given = collections.OrderedDict(data=data, seed=seed, class_weights=class_weights)
    return given if state is None else collections.OrderedDict(given, state=list(state))


def initial_client_state(
    algorithm: Algorithm, build_model: Callable[[], keras.Model], settings: LocalSettings,
    trainer_type: type[LocalTrainer] = LocalTrainer,
) -> list[np.ndarray] | None:
    """What a client holds before its first round; None for algorithms whose clients keep nothing."""
    if algorithm.client_state is None:
        return None
    return [np.asarray(value, np.float32) for value in algorithm.client_state(trainer_type(build_model(), settings))]


def build_process(
    algorithm: Algorithm,
    build_model: Callable[[], keras.Model],
    settings: LocalSettings,
    server: ServerSettings = ServerSettings(),  # noqa: B008 (frozen)
    *,
    aggregator: tff.aggregators.WeightedAggregationFactory | None = None,
    trainer_type: type[LocalTrainer] = LocalTrainer,
) -> tff.templates.IterativeProcess:
    """One round: broadcast, client updates, their weighted mean, the server's step.

    Args:
      algorithm: of `algorithms.ALGORITHMS`.
      build_model: gives a new model with the initial weights; called inside TFF's graphs.
      settings: the clients' training.
      server: the server's step.
      aggregator: how the weights' changes are averaged; default `tff.aggregators.MeanFactory()`.
      trainer_type: `LocalTrainer` for classifiers, `segmentation.SliceTrainer` for segmenters; reads the files.
    Returns:
      An iterative process: `initialize()` gives the server's state (keys global_model_weights, aggregator, finalizer,
      and for some algorithms broadcast), `next(state, clients)` takes a list of `client_input` and gives
      (state, one dictionary a client: report float32 [3] (REPORT_COLUMNS), and state where the client keeps one).
    Source: McMahan et al. 2017, arXiv:1602.05629, Algorithm 1; server step as in Reddi et al.
      2021, arXiv:2003.00295, Algorithm 1.
    """
    model = build_model()
    num_classes = model.output_shape[-1]
    initial = [weight.numpy() for weight in travelling_weights(model, settings)]
    trainable = [weight.numpy() for weight in model.trainable_variables]
    weights_type, trainable_type = _type_of(initial), _type_of(trainable)
    kept = initial_client_state(algorithm, build_model, settings, trainer_type)
    client_type = tff.types.to_type(
        client_input(np.str_, (np.int32, [2]), (np.float32, [num_classes]), kept and _type_of(kept))
    )
    # What is broadcast beside the weights has one number for each that gradients train.
    has_broadcast = algorithm.next_broadcast is not None
    message_type = tff.types.to_type(collections.OrderedDict(
        weights=weights_type, **({"broadcast": trainable_type} if has_broadcast else {})
    ))

    weight_mean = (aggregator or tff.aggregators.MeanFactory()).create(weights_type, tff.TensorType(np.float32))
    message_mean = tff.aggregators.MeanFactory().create(trainable_type, tff.TensorType(np.float32))
    finalizer = tff.learning.templates.build_apply_optimizer_finalizer(
        algorithm.server_optimizer(server),
        tff.types.to_type(tff.learning.models.ModelWeights(weights_type, ())),
    )

    @tff.tensorflow.computation
    def initial_weights():
        return [tf.constant(weight) for weight in initial]

    @tff.tensorflow.computation
    def zeros():
        return [tf.zeros(weight.shape) for weight in trainable]

    @tff.tensorflow.computation(message_type, client_type)
    def client_update(message, client):
        # Built here so that its variables belong to the computation.
        trainer = trainer_type(build_model(), settings)

        @tf.function
        def update(message, client):
            images, labels = trainer.read(client["data"])
            result = algorithm.client_update(
                trainer,
                ClientTask(
                    list(message["weights"]), images, labels, client["class_weights"], client["seed"],
                    list(message.get("broadcast", ())), list(client.get("state", ())),
                ),
                server,
            )
            report = tf.stack([result.num_examples, result.loss, tf.linalg.global_norm(result.delta)])
            return (
                collections.OrderedDict(delta=result.delta, num_examples=result.num_examples)
                | ({"message": result.message} if has_broadcast else {}),
                collections.OrderedDict(report=report) | ({"state": result.state} if kept else {}),
            )

        return update(message, client)

    # TFF traces in a TF1 graph, where Keras swaps the base classes of its layers for all models,
    # those outside too. Building a model out here swaps them back.
    build_model()

    @tff.federated_computation
    def initialize():
        parts = collections.OrderedDict(
            global_model_weights=tff.federated_eval(initial_weights, tff.SERVER),
            aggregator=weight_mean.initialize(),
            finalizer=finalizer.initialize(),
        )
        if has_broadcast:
            parts["broadcast"] = tff.federated_eval(zeros, tff.SERVER)
            parts["message_aggregator"] = message_mean.initialize()
        return tff.federated_zip(parts)

    as_model_weights = tff.tensorflow.computation(
        lambda weights: tff.learning.models.ModelWeights(weights, ()), weights_type
    )
    from_model_weights = tff.tensorflow.computation(
        lambda weights: weights.trainable, tff.learning.models.ModelWeights(weights_type, ())
    )

    if has_broadcast:

        @tff.tensorflow.computation(trainable_type, trainable_type, np.float32)
        def next_broadcast(before, mean, num_examples):
            return algorithm.next_broadcast(list(before), list(mean), num_examples, server)

    @tff.federated_computation(initialize.type_signature.result, tff.FederatedType(client_type, tff.CLIENTS))
    def next_round(state, clients):
        message = collections.OrderedDict(weights=state.global_model_weights)
        if has_broadcast:
            message["broadcast"] = state.broadcast
        message = tff.federated_broadcast(tff.federated_zip(message))
        updates, kept_by_clients = tff.federated_map(client_update, (message, clients))
        mean_delta = weight_mean.next(state.aggregator, updates.delta, updates.num_examples)
        stepped = finalizer.next(
            state.finalizer, tff.federated_map(as_model_weights, state.global_model_weights), mean_delta.result
        )
        parts = collections.OrderedDict(
            global_model_weights=tff.federated_map(from_model_weights, stepped.result),
            aggregator=mean_delta.state,
            finalizer=stepped.state,
        )
        if has_broadcast:
            mean_message = message_mean.next(state.message_aggregator, updates.message, updates.num_examples)
            total = tff.federated_sum(updates.num_examples)
            parts["broadcast"] = tff.federated_map(next_broadcast, (state.broadcast, mean_message.result, total))
            parts["message_aggregator"] = mean_message.state
        return tff.federated_zip(parts), kept_by_clients

    return tff.templates.IterativeProcess(initialize, next_round)


def _type_of(weights: Sequence[np.ndarray]) -> tff.Type:
    return tff.types.to_type([(weight.dtype.type, weight.shape) for weight in weights])
