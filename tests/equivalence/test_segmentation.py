"""Segmentation through the same machinery as classification: the loss against NumPy, TFF's round against local training."""

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf

from fl_utils import seeding
from fl_utils.learning.algorithms import algorithm_named
from fl_utils.learning.centralized import CentralizedLearner
from fl_utils.learning.federated import FederatedLearner
from fl_utils.learning.local import LocalSettings, example_order
from fl_utils.learning.process import build_process
from fl_utils.learning.segmentation import SliceTrainer, dice_cross_entropy
from fl_utils.learning.slice_files import choose_slices, write_slice_files
from tests.equivalence.helpers import TOLERANCE, distance, mean_by_examples
from tests.equivalence.slices import CLASSES, prepared, small_unet

SEED, ONES = 11, np.ones(len(CLASSES), np.float32)
SETTINGS = LocalSettings(batch_size=4, epochs=2, learning_rate=0.05, momentum=0.9)
AUGMENTED = dataclasses.replace(SETTINGS, augment="shift_rotate_flip")
HOSPITALS = (["subject_0"], ["subject_1", "subject_2"])


def numpy_loss(logits, masks, class_weights):
    """Cross-entropy and batch Dice in float64, written from the formula."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=-1, keepdims=True)
    truth = np.eye(logits.shape[-1])[masks]
    cross_entropy = -(np.log(probabilities) * truth * class_weights).sum(axis=-1).mean()
    scores = []
    for k in range(1, logits.shape[-1]):
        p, g = probabilities[..., k], truth[..., k]
        scores.append((2 * (p * g).sum() + 1e-5) / (p.sum() + g.sum() + 1e-5))
    return cross_entropy + 1 - np.mean(scores)


@pytest.mark.parametrize("present", [(0, 1, 2, 3), (0, 2), (0,)])
def test_loss_equals_numpy(present):
    rng = np.random.default_rng(0)
    logits, masks = rng.normal(0, 2, (3, 5, 6, 4)), rng.choice(present, (3, 5, 6))
    weights = np.array([0.5, 1.0, 2.0, 3.0])
    found = float(dice_cross_entropy(tf.constant(logits, tf.float32), tf.constant(masks, tf.uint8), tf.constant(weights, tf.float32)))
    assert found == pytest.approx(numpy_loss(logits, masks, weights), abs=2e-6)


def test_loss_of_a_perfect_prediction_is_0_also_without_foreground():
    for masks in (np.zeros((2, 4, 4), int), np.random.default_rng(0).integers(0, 3, (2, 4, 4))):
        logits = 60.0 * np.eye(3)[masks]
        assert float(dice_cross_entropy(tf.constant(logits, tf.float32), tf.constant(masks), tf.ones(3))) < 1e-6


def test_dice_is_of_the_batch_not_of_each_slice():
    """A slice without foreground would have Dice 0 for the smallest false probability."""
    masks = np.zeros((2, 4, 4), int)
    masks[0, 1:3, 1:3] = 1
    logits = 5.0 * np.eye(2)[masks]
    whole = float(dice_cross_entropy(tf.constant(logits, tf.float32), tf.constant(masks), tf.ones(2)))
    alone = [float(dice_cross_entropy(tf.constant(logits[i : i + 1], tf.float32), tf.constant(masks[i : i + 1]), tf.ones(2))) for i in (0, 1)]
    assert whole < 0.1 and np.mean(alone) > 0.5


def test_training_steps_are_the_formula(tmp_path):
    """Two passes over three files in one block: files in the seed's order, slices in the block's, v <- m v + g."""
    volumes = prepared(tmp_path)
    files, slices = choose_slices(volumes, volumes.subjects)
    trainer, seed = SliceTrainer(small_unet(), SETTINGS), np.array([3, 4], np.int32)
    other = small_unet()
    velocity = [np.zeros(v.shape, np.float32) for v in other.trainable_variables]
    losses, fold_in = [], tf.random.experimental.stateless_fold_in
    for epoch in range(2):
        epoch_seed = fold_in(seed, epoch)
        records = np.concatenate([np.load(files[i]) for i in example_order(len(files), epoch_seed).numpy()])
        order = example_order(len(records), fold_in(epoch_seed, 0)).numpy()
        for start in range(0, len(records), 4):
            batch = records[order[start : start + 4]]
            with tf.GradientTape() as tape:
                logits = other(batch["image"].astype(np.float32))
                loss = dice_cross_entropy(logits, tf.constant(batch["mask"]), tf.constant(ONES))
            gradients = tape.gradient(loss, other.trainable_variables)
            velocity = [0.9 * v + g.numpy() for v, g in zip(velocity, gradients, strict=True)]
            for variable, v in zip(other.trainable_variables, velocity, strict=True):
                variable.assign_sub(0.05 * v)
            losses += [float(loss)] * len(batch)
    found = float(trainer.run(tf.constant(files), tf.constant(slices), tf.constant(ONES), tf.constant(seed)))
    assert found == pytest.approx(np.mean(losses), abs=1e-5)
    assert distance([v.numpy() for v in trainer.variables], [v.numpy() for v in other.trainable_variables]) < 1e-5
    assert distance([v.numpy() for v in trainer.variables], [v.numpy() for v in small_unet().trainable_variables]) > 1e-2


def federation(folder, lists):
    return FederatedLearner(_process(), write_slice_files(folder, lists), ONES, clients_per_round=len(lists), seed=SEED)


@functools.cache
def _process():
    return build_process(algorithm_named("fedavg"), small_unet, AUGMENTED, trainer_type=SliceTrainer)


def test_a_round_of_fedavg_is_the_weighted_mean_of_local_trainings(folders, tmp_path):
    volumes = prepared(tmp_path / "volumes")
    lists = [choose_slices(volumes, subjects) for subjects in HOSPITALS]
    sizes = [len(slices) for _, slices in lists]
    assert sizes == [5, 10]
    learner = federation(tmp_path / "clients", lists)
    weights = learner.weights()
    for round_num in (1, 2):
        ends = []
        for client, (files, slices) in enumerate(lists):
            trainer = SliceTrainer(small_unet(), AUGMENTED)
            trainer.set_weights(weights)
            seed = tf.constant(seeding.tf_seed(SEED, "batch_order", str(client), round_num))
            trainer.run(tf.constant(files), tf.constant(slices), tf.constant(ONES), seed)
            ends.append([v.numpy() for v in trainer.weights])
        losses = learner.do_round(round_num)
        expected = mean_by_examples(ends, sizes)
        assert distance(learner.weights(), expected) < 10 * TOLERANCE  # a round of 6 steps in float32 on both sides
        assert distance(expected, weights) > 1e-2 and distance(expected, mean_by_examples(ends, [1, 1])) > 1e-3
        assert set(losses) == {"0", "1"}
        np.testing.assert_array_equal(learner.last_report[:, 0], sizes)
        weights = learner.weights()


def test_one_client_is_centralized_training(folders, tmp_path):
    """For one round: after it a client starts with new momentum, and centralized training keeps its own."""
    volumes = prepared(tmp_path / "volumes")
    files, slices = choose_slices(volumes, volumes.subjects, background_ratio=0.5)
    federated = federation(tmp_path / "clients", [(files, slices)])
    alone = CentralizedLearner(
        small_unet(), AUGMENTED, files, slices, ONES, seed=SEED, client="0", trainer_type=SliceTrainer
    )
    start = alone.weights()
    losses = federated.do_round(1), alone.do_round(1)
    assert losses[0]["0"] == pytest.approx(losses[1]["0"], abs=1e-5)
    assert distance(federated.weights(), alone.weights()) < 10 * TOLERANCE < 1e-2 < distance(start, alone.weights())
