"""Tiny federated computations for the tests of the engine."""

from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

CLIENT_INTEGERS = tff.FederatedType(np.int32, tff.CLIENTS)


def sum_round():
    """Adds the clients' integers."""
    return tff.federated_computation(lambda values: tff.federated_sum(values), CLIENT_INTEGERS)


def waiting_round(folder: Path):
    """Adds the clients' integers, after writing `round_started` and waiting in the worker for `round_may_end`."""
    started, may_end = str(folder / "round_started"), str(folder / "round_may_end")

    @tff.tensorflow.computation(np.int32)
    def wait(value):
        with tf.control_dependencies([tf.io.write_file(started, "")]):
            turns = tf.constant(0, tf.int64)

        def waits(turns):  # the path depends on the turn, or the look-up would be moved out of the loop
            nothing = tf.strings.substr(tf.strings.as_string(turns), 0, 0)
            return tf.equal(tf.size(tf.io.matching_files(tf.strings.join([may_end, nothing]))), 0)

        turns = tf.while_loop(waits, lambda turns: turns + 1, [turns])[0]
        return value + tf.cast(tf.minimum(turns, 0), tf.int32)

    return tff.federated_computation(lambda values: tff.federated_sum(tff.federated_map(wait, values)),
                                     CLIENT_INTEGERS)


def failing_round():
    """Fails in the clients' graph."""

    @tff.tensorflow.computation(np.int32)
    def fail(value):
        with tf.control_dependencies([tf.debugging.assert_less(value, 0, message="on purpose")]):
            return tf.identity(value)

    return tff.federated_computation(lambda values: tff.federated_sum(tff.federated_map(fail, values)),
                                     CLIENT_INTEGERS)
