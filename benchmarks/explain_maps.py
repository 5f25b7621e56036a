"""What 1,000 class activation maps of the seed CNN cost beside its forward and backward passes alone.

Reference work: 1,000 images of 64x64x1, batches of 64, the last convolution. "passes" is the forward pass and the
gradient of the asked logits with respect to all weights, compiled, and nothing else. A map is one call of `class_maps`
with all images, its compilation included; "mapper" is the same compiled before. The methods take turns, so that
whatever else the machine does hits all alike.

    python benchmarks/explain_maps.py                  # about a minute on 2 cores
    python benchmarks/explain_maps.py --score-cam      # with Score-CAM: 64 more forward passes an image

What counts is the ratio, taken in each turn. Ends with exit code 1 if the median of Grad-CAM's is above LIMIT.
"""

import argparse
import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is loaded

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import tensorflow as tf  # noqa: E402

from fl_utils.explain.maps import class_logit, class_maps, make_mapper  # noqa: E402
from fl_utils.models.classifiers import build_model  # noqa: E402

SHAPE, NUM_CLASSES, BATCH, LIMIT = (64, 64, 1), 4, 64, 3.0


def passes(model):
    """Forward and backward of the logits, as training does it, without the step."""

    @tf.function(input_signature=[tf.TensorSpec((None, *SHAPE)), tf.TensorSpec([None], tf.int32)])
    def one_batch(images, classes):
        with tf.GradientTape() as tape:
            score = tf.reduce_sum(class_logit(model(images, training=False), classes))
        return tape.gradient(score, model.trainable_variables)

    def run(images, classes):
        for start in range(0, len(images), BATCH):
            gradients = one_batch(images[start : start + BATCH], classes[start : start + BATCH])
        return gradients[0].numpy()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--maps", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--score-cam", action="store_true")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    images = rng.random((arguments.maps, *SHAPE), np.float32)
    classes = rng.integers(0, NUM_CLASSES, arguments.maps).astype(np.int32)
    model = build_model("seed_cnn", SHAPE, NUM_CLASSES, seed=1)
    methods = {"passes": passes(model)}
    for method in ("grad_cam", "grad_cam_pp", "hires_cam"):
        methods[method] = lambda images, classes, method=method: class_maps(
            model, images, classes, method=method, batch_size=BATCH
        )
    methods["grad_cam, mapper"] = lambda images, classes, mapper=make_mapper(model): mapper(
        images, classes, batch_size=BATCH
    )
    if arguments.score_cam:
        methods["score_cam, mapper"] = make_mapper(model, method="score_cam")
    rows = []
    for turn in range(arguments.repeats + 1):
        for name, run in methods.items():
            start = time.perf_counter()
            run(images, classes)
            if turn:  # the first compiles
                rows.append((turn, name, time.perf_counter() - start))
    table = pd.DataFrame(rows, columns=["turn", "method", "duration_s"]).pivot(
        index="turn", columns="method", values="duration_s"
    )[list(methods)]
    ratios = table.div(table["passes"], axis=0)
    summary = pd.DataFrame(
        {"median_s": table.median(), "ratio": ratios.median(), "ratio_min": ratios.min(), "ratio_max": ratios.max()}
    )
    print(f"{arguments.maps} maps, {arguments.repeats} turns")
    print(summary.round(2).to_string())
    if summary.loc["grad_cam", "ratio"] > LIMIT:
        sys.exit(f"Grad-CAM takes more than {LIMIT} times the passes alone.")


if __name__ == "__main__":
    main()
