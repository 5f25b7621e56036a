"""Resident memory of Python and of TFF's worker over 200 rounds of a small FedAvg.

    python benchmarks/memory_200_rounds.py [rounds]

Prints MiB every 20 rounds, then the growth after round 20, when all graphs have been built.
"""

import sys
import time

import numpy as np
import psutil

from fl_utils.learning import engine  # before TensorFlow: sets its log level

import tensorflow as tf  # noqa: E402
import tensorflow_federated as tff  # noqa: E402

NUM_CLIENTS, EXAMPLES, SIZE_PX, NUM_CLASSES, BATCH_SIZE = 4, 64, 16, 4, 16
WARM_UP_ROUNDS, REPORT_EVERY = 20, 20


def model_fn():
    model = tf.keras.Sequential([
        tf.keras.layers.Input((SIZE_PX, SIZE_PX, 1)),
        tf.keras.layers.Conv2D(8, 3, activation="relu"),
        tf.keras.layers.MaxPool2D(),
        tf.keras.layers.Flatten(),
        tf.keras.layers.Dense(NUM_CLASSES),
    ])
    spec = (tf.TensorSpec((None, SIZE_PX, SIZE_PX, 1), tf.float32), tf.TensorSpec((None,), tf.int64))
    return tff.learning.models.from_keras_model(
        model, loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True), input_spec=spec)


def main(total_rounds: int) -> None:
    tf.keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    clients = [tf.data.Dataset.from_tensor_slices(  # built once: a new data set a round makes Python grow
        (rng.random((EXAMPLES, SIZE_PX, SIZE_PX, 1), dtype=np.float32), rng.integers(0, NUM_CLASSES, EXAMPLES))
    ).batch(BATCH_SIZE) for _ in range(NUM_CLIENTS)]
    engine.ensure_started()
    process = tff.learning.algorithms.build_weighted_fed_avg(
        model_fn, client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.05))
    state = process.initialize()
    first_worker, sizes, started = engine.worker_pid(), {}, time.monotonic()
    print("round  python_mib  worker_mib")
    for round_num in range(1, total_rounds + 1):
        state = process.next(state, clients).state
        if round_num % REPORT_EVERY == 0:
            sizes[round_num] = [psutil.Process(pid).memory_info().rss / 2**20 for pid in (None, engine.worker_pid())]
            print("{:5d}  {:10.1f}  {:10.1f}".format(round_num, *sizes[round_num]), flush=True)
    growth = np.subtract(sizes[max(sizes)], sizes[WARM_UP_ROUNDS])
    print(f"growth after round {WARM_UP_ROUNDS}: python {growth[0]:+.1f} MiB, worker {growth[1]:+.1f} MiB; "
          f"{(time.monotonic() - started) / total_rounds:.2f} s a round; "
          f"same worker throughout: {engine.worker_pid() == first_worker}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
