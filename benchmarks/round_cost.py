"""What a federated round costs beside the bare training loop, measured in one run.

Reference work: 10 clients x 128 images of 64x64x1, the seed CNN, batch 32, one local epoch, SGD with
momentum 0.9. The methods take turns round by round, so that whatever else the machine does hits all alike.

    python benchmarks/round_cost.py                 # the table: about 3 minutes on 2 cores
    python benchmarks/round_cost.py --rounds 200 --only ours     # cost and memory over 200 rounds

Times are medians; what counts are the ratios to the fastest bare loop.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from fl_utils.learning import engine
from fl_utils.learning.algorithms import FEDAVG
from fl_utils.learning.client_files import write_client_files
from fl_utils.learning.federated import FederatedLearner
from fl_utils.learning.client_updates import ClientTask, averaging
from fl_utils.learning.local import LocalSettings, LocalTrainer
from fl_utils.learning.process import build_process
from fl_utils.models.classifiers import build_model

import tensorflow as tf  # isort: skip  (after fl_utils, which sets TensorFlow's log level)
import tensorflow_federated as tff  # isort: skip

SHAPE, NUM_CLASSES, TOTAL_IMAGES, BATCH = (64, 64, 1), 4, 1280, 32
SETTINGS = LocalSettings(batch_size=BATCH, learning_rate=0.01, momentum=0.9)


def new_model():
    """The seed CNN with fixed weights."""
    return build_model("seed_cnn", SHAPE, NUM_CLASSES, seed=1)


def data(num_clients: int):
    """Random images: the cost does not depend on what they show."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (TOTAL_IMAGES, *SHAPE), dtype=np.uint8)
    labels = rng.integers(0, NUM_CLASSES, TOTAL_IMAGES)
    return images, labels, np.array_split(np.arange(TOTAL_IMAGES), num_clients)


def average(weights, deltas, sizes):
    """The server's step in NumPy."""
    shares = np.asarray(sizes) / np.sum(sizes)
    return [w - sum(s * d[i] for s, d in zip(shares, deltas, strict=True)) for i, w in enumerate(weights)]


def bare_keras(num_clients: int):
    """The loop one would write first: tf.data, a tf.function step, a Keras optimizer, averaging in NumPy."""
    images, labels, parts = data(num_clients)
    datasets = [
        tf.data.Dataset.from_tensor_slices((images[p], labels[p])).shuffle(len(p), seed=1).batch(BATCH) for p in parts
    ]
    model, loss_fn = new_model(), tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = tf.keras.optimizers.SGD(0.01, momentum=0.9)
    optimizer.build(model.trainable_variables)
    weights = model.get_weights()

    @tf.function(reduce_retracing=True)
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_fn(y, model(tf.cast(x, tf.float32) / 255.0, training=True))
        optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True))

    def one_round(round_num):
        nonlocal weights
        deltas = []
        for dataset in datasets:
            model.set_weights(weights)
            for variable in optimizer.variables:
                if variable.shape.rank:
                    variable.assign(tf.zeros_like(variable))
            for x, y in dataset:
                step(x, y)
            deltas.append([w - v for w, v in zip(weights, model.get_weights(), strict=True)])
        weights = average(weights, deltas, [len(p) for p in parts])

    return one_round


def bare_trainer(num_clients: int):
    """The suite's own local trainer in a Python loop, without TFF."""
    images, labels, parts = data(num_clients)
    trainer = LocalTrainer(new_model(), SETTINGS)
    tensors = [(tf.constant(images[p]), tf.constant(labels[p], tf.int32)) for p in parts]
    weights, ones = [v.numpy() for v in trainer.variables], tf.ones(NUM_CLASSES)

    def one_round(round_num):
        nonlocal weights
        deltas = []
        for client, (x, y) in enumerate(tensors):
            delta = averaging(trainer, ClientTask(weights, x, y, ones, tf.constant([round_num, client]))).delta
            deltas.append([d.numpy() for d in delta])
        weights = average(weights, deltas, [len(p) for p in parts])

    return one_round


def tff_default(num_clients: int):
    """TFF's `build_weighted_fed_avg` as its tutorials use it: datasets handed over in every round."""
    images, labels, parts = data(num_clients)
    datasets = [
        tf.data.Dataset.from_tensor_slices((images[p].astype(np.float32) / 255.0, labels[p].astype(np.int32)))
        .shuffle(len(p), seed=1).batch(BATCH) for p in parts
    ]
    spec = datasets[0].element_spec

    def model_fn():
        return tff.learning.models.from_keras_model(
            new_model(), input_spec=spec, loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )

    process = tff.learning.algorithms.build_weighted_fed_avg(
        model_fn, client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.01, 0.9),
        server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0),
    )
    new_model()  # Keras' classes as they were: see learning.algorithms.
    state = process.initialize()

    def one_round(round_num):
        nonlocal state
        state = process.next(state, datasets).state

    return one_round


def ours(num_clients: int):
    """The suite's FedAvg: the same TFF worker, files read inside the graph."""
    images, labels, parts = data(num_clients)
    folder = Path(tempfile.mkdtemp(prefix="round_cost-"))
    process = build_process(FEDAVG, new_model, SETTINGS)
    learner = FederatedLearner(
        process, write_client_files(folder, images, labels, parts), np.ones(NUM_CLASSES, np.float32),
        clients_per_round=num_clients, seed=0,
    )
    return learner.do_round


METHODS = {"bare, Keras": bare_keras, "bare, our trainer": bare_trainer, "TFF default": tff_default, "ours": ours}


def memory_mib() -> tuple[float, float]:
    """Resident memory of Python and of TFF's worker, MiB."""
    pid = engine.worker_pid()
    worker = psutil.Process(pid).memory_info().rss / 2**20 if pid else 0.0
    return psutil.Process().memory_info().rss / 2**20, worker


def measure(num_clients: int, rounds: int, names: list[str]) -> pd.DataFrame:
    """Times the methods in turns; the first two rounds of each are not counted."""
    methods = {name: METHODS[name](num_clients) for name in names}
    rows = []
    for round_num in range(1, rounds + 3):
        for name, one_round in methods.items():
            start = time.perf_counter()
            one_round(round_num)
            duration_s = time.perf_counter() - start
            python, worker = memory_mib()
            if round_num > 2:
                rows.append((num_clients, name, round_num - 2, duration_s, python, worker))
    return pd.DataFrame(rows, columns=["clients", "method", "round", "duration_s", "python_mib", "worker_mib"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--clients", type=int, nargs="*", default=[10])
    parser.add_argument("--only", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--concurrency", type=int, default=2, help="clients that the worker runs at once")
    arguments = parser.parse_args()
    engine.ensure_started(max_concurrent_computation_calls=arguments.concurrency)
    for num_clients in arguments.clients:
        table = measure(num_clients, arguments.rounds, arguments.only)
        summary = table.groupby("method", sort=False).agg(
            median_s=("duration_s", "median"), python_mib=("python_mib", "max"), worker_mib=("worker_mib", "max")
        )
        bare = [name for name in summary.index if name.startswith("bare")]
        if bare:
            summary["ratio"] = summary["median_s"] / summary.loc[bare, "median_s"].min()
        print(f"\n{num_clients} clients, {TOTAL_IMAGES} images in all, {arguments.rounds} rounds")
        print(summary.round(2).to_string(), flush=True)
        if arguments.rounds >= 40:
            shown = table[table["round"] % 20 == 0].groupby(["method", "round"], sort=False)
            print(shown[["duration_s", "python_mib", "worker_mib"]].mean().round(2).to_string())


if __name__ == "__main__":
    main()
