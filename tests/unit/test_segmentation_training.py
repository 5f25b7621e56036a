"""Training of segmenters on streamed slices, and the judge of volumes. No TFF here."""

import re

import numpy as np
import pytest
import tensorflow as tf

from fl_utils.data.prepare import slices_of
from fl_utils.data.types import DataError
from fl_utils.data.volumes import Volume
from fl_utils.learning.centralized import CentralizedLearner
from fl_utils.learning.local import LocalSettings
from fl_utils.learning.rounds import View, run_rounds
from fl_utils.learning.segmentation import (
    SliceTrainer, VolumeJudge, augment_slices, dice_cross_entropy, make_slice_predictor, predict_volume,
)
from fl_utils.learning.slice_files import choose_slices, header_bytes, write_slice_files
from tests.equivalence.slices import CLASSES, prepared, small_unet

SEED = np.array([3, 4], np.int32)
ONES = np.ones(len(CLASSES), np.float32)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("volumes"), lengths=(5, 3, 7, 4))


# --- which slices ---


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(None, [0, 1, 2, 3, 4]), (0, [1, 2, 3, 4]), (0.25, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4])],
)
def test_background_slices_by_ratio(volumes, ratio, expected):
    files, slices = choose_slices(volumes, ["subject_0"], background_ratio=ratio)
    assert len(files) == 1 and slices.dtype == np.int32 and slices.tolist() == [[0, n] for n in expected]


def test_slices_of_several_subjects_point_to_their_files(volumes):
    files, slices = choose_slices(volumes, ["subject_2", "subject_1"], background_ratio=0)
    assert [name.rsplit("/", 1)[1] for name in files] == ["subject_2.npy", "subject_1.npy"]
    assert slices.tolist() == [[0, n] for n in range(1, 7)] + [[1, 1], [1, 2]]


def test_what_cannot_be_chosen(volumes, tmp_path):
    with pytest.raises(DataError, match="discs: subject_9 cannot be chosen; expected names of the 4 prepared"):
        choose_slices(volumes, ["subject_0", "subject_9"])
    with pytest.raises(DataError, match="a subject given twice cannot be chosen"):
        choose_slices(volumes, ["subject_0", "subject_0"])
    with pytest.raises(DataError, match="background_ratio is -1; expected None or a number from 0"):
        choose_slices(volumes, ["subject_0"], background_ratio=-1)
    with pytest.raises(DataError, match="1 subjects hold no slice to train on"):
        choose_slices(prepared(tmp_path, lengths=(1,)), ["subject_0"], background_ratio=0)
    with pytest.raises(DataError, match="0 subjects hold no slice"):
        choose_slices(volumes, [])


def test_file_that_is_gone_or_of_another_kind(tmp_path):
    volumes = prepared(tmp_path)
    path = tmp_path / "subject_0.npy"
    content = path.read_bytes()
    path.write_bytes(content[:20])
    with pytest.raises(DataError, match="subject_0.npy cannot be read .* Call prepare_volumes again"):
        choose_slices(volumes, ["subject_0"])
    # The same slices behind a header with 64 more spaces, which NumPy reads as well.
    length = int.from_bytes(content[8:10], "little")
    header = content[10 : 10 + length].rstrip(b"\n") + b" " * 64 + b"\n"
    path.write_bytes(content[:8] + len(header).to_bytes(2, "little") + header + content[10 + length :])
    assert len(np.load(path)) == 5
    with pytest.raises(DataError, match="subject_0.npy has a header of .* bytes; expected"):
        choose_slices(volumes, ["subject_0"])


@pytest.mark.parametrize("number", [0, 1, 9, 155, 12345])
def test_header_has_one_length(tmp_path, number):
    dtype = np.load(prepared(tmp_path).table["path"][0]).dtype
    np.save(tmp_path / "x.npy", np.zeros(number, dtype))
    assert (tmp_path / "x.npy").stat().st_size == header_bytes(dtype) + number * dtype.itemsize


def trainer_of(block_bytes=None, **settings):
    sizes = {} if block_bytes is None else {"block_bytes": block_bytes}
    return SliceTrainer(small_unet(), LocalSettings(**{"batch_size": 4, "momentum": 0.0} | settings), **sizes)


def tensors(lists, seed=SEED):
    return tf.constant(lists[0]), tf.constant(lists[1]), tf.constant(ONES), tf.constant(seed)


def test_what_is_written_is_what_the_graph_reads(volumes, tmp_path):
    lists = [choose_slices(volumes, volumes.subjects[:3]), choose_slices(volumes, volumes.subjects[3:])]
    prefixes = write_slice_files(tmp_path, lists)
    assert write_slice_files(tmp_path, lists) == prefixes and len(list(tmp_path.iterdir())) == 4
    for prefix, (files, slices) in zip(prefixes, lists, strict=True):
        read_files, read_slices = trainer_of().read(tf.constant(prefix))
        assert [name.decode() for name in read_files.numpy()] == list(files)
        np.testing.assert_array_equal(read_slices, slices)


# --- streaming ---


def streamed(trainer, lists, seed=SEED):
    blocks = [trainer._decode(raw) for raw in trainer._stream(*tensors(lists)[:2], tf.constant(seed))]
    return [len(masks) for _, masks in blocks], *(np.concatenate([b[i].numpy() for b in blocks]) for i in (0, 1))


@pytest.mark.parametrize(("batches_a_block", "sizes"), [(1, [4, 4, 4, 3]), (2, [8, 7]), (9, [15])])
def test_every_chosen_slice_comes_once_whatever_the_block(volumes, batches_a_block, sizes):
    lists = choose_slices(volumes, volumes.subjects, background_ratio=0)
    record = np.load(lists[0][0]).dtype.itemsize
    trainer = trainer_of(block_bytes=record * 4 * batches_a_block)
    found_sizes, images, masks = streamed(trainer, lists)
    assert found_sizes == sizes and int(trainer._num_blocks(lists[1])) == len(sizes)
    expected = np.concatenate([np.load(file)[lists[1][lists[1][:, 0] == i, 1]] for i, file in enumerate(lists[0])])
    assert sorted(map(bytes, images)) == sorted(map(bytes, expected["image"]))
    assert sorted(map(bytes, masks)) == sorted(map(bytes, expected["mask"]))
    pairs = {bytes(record["image"]): bytes(record["mask"]) for record in expected}
    assert all(pairs[bytes(image)] == bytes(mask) for image, mask in zip(images, masks, strict=True))
    assert not masks.reshape(len(masks), -1).max(axis=1).min() == 0  # none without a label


def test_seed_decides_the_order_of_files(volumes):
    lists, trainer = choose_slices(volumes, volumes.subjects), trainer_of()
    orders = [streamed(trainer, lists, np.array([0, n], np.int32))[1].tobytes() for n in (1, 1, 2, 3, 4)]
    assert orders[0] == orders[1] and len(set(orders)) > 2


def test_blocks_hold_whole_batches():
    """64 MB of BraTS slices at 128 pixels, a few copies of which stay far below 4 GB; small data are one block."""
    trainer = trainer_of(batch_size=16)
    assert trainer._block % 16 == 0 and 0.9 < trainer._block * trainer._record / 64e6 <= 1
    assert trainer_of(block_bytes=1, batch_size=16)._block == 16


# --- steps ---


def values(trainer):
    return [variable.numpy() for variable in trainer.weights]


@pytest.mark.parametrize("augment", ["none", "shift_rotate_flip"])
def test_a_pass_is_a_pure_function_of_weights_slices_and_seed(volumes, augment):
    lists = choose_slices(volumes, volumes.subjects)
    trainer, ends = trainer_of(augment=augment, block_bytes=1, learning_rate=0.1), []
    start = values(trainer)
    for seed in (SEED, SEED, SEED + 1):
        trainer.set_weights(start)
        assert np.isfinite(float(trainer.run(*tensors(lists, seed))))
        ends.append(values(trainer))
    assert all(np.array_equal(a, b) for a, b in zip(ends[0], ends[1], strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(ends[0], ends[2], strict=True))


def test_full_gradient_is_the_mean_over_batches(volumes):
    """One batch of all: the gradient of the loss itself; in batches of one block each: the mean weighted by slices."""
    lists = choose_slices(volumes, volumes.subjects)
    trainer = trainer_of(batch_size=64)
    before = values(trainer)
    gradients, loss = trainer.full_gradient(*tensors(lists))
    images, masks = streamed(trainer, lists)[1:]
    with tf.GradientTape() as tape:
        expected_loss = dice_cross_entropy(trainer.model(images.astype(np.float32)), tf.constant(masks), tf.constant(ONES))
    for found, expected in zip(gradients, tape.gradient(expected_loss, trainer.variables), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert float(loss) == pytest.approx(float(expected_loss), abs=1e-5)
    assert all(np.array_equal(a, b) for a, b in zip(before, values(trainer), strict=True))
    small, (sizes, images, masks) = trainer_of(block_bytes=1), streamed(trainer_of(block_bytes=1), lists)
    first = np.cumsum([0, *sizes])
    parts = [
        float(dice_cross_entropy(small.model(images[a:b].astype(np.float32)), tf.constant(masks[a:b]), tf.constant(ONES)))
        for a, b in zip(first, first[1:], strict=False)
    ]
    assert float(small.full_gradient(*tensors(lists))[1]) == pytest.approx(np.average(parts, weights=sizes), abs=1e-5)


# --- augmentation ---


def discs(num=6, size=32):
    y, x = np.mgrid[:size, :size]
    masks = np.stack([(np.hypot(y - 12 - n, x - 18 + n) < 7).astype(np.uint8) * 2 for n in range(num)])
    return masks[..., None].astype(np.float32) * 1.5, masks  # image 3 where the mask is 2


def test_image_and_mask_move_together():
    images, masks = discs()
    moved, moved_masks = (part.numpy() for part in augment_slices(tf.constant(images), tf.constant(masks), SEED, "shift_rotate_flip"))
    assert moved_masks.dtype == np.uint8 and set(np.unique(moved_masks)) == {0, 2}
    assert all((a != b).sum() > 10 for a, b in zip(masks, moved_masks, strict=True))  # they did move
    inside = moved[..., 0] > 1.5
    assert (inside != (moved_masks == 2)).mean() < 0.01  # the rim's pixels alone may differ
    contrast = [image[mask == 2].max() / 3 for image, mask in zip(moved[..., 0], moved_masks, strict=True)]
    assert 0.9 <= min(contrast) < max(contrast) <= 1.1 and np.ptp(contrast) > 0.01


def test_background_comes_in_from_outside():
    """Images of the edge's value alone: what comes in is 0, not the edge drawn out, and has no label."""
    images, masks = np.ones((8, 20, 20, 1), np.float32), np.ones((8, 20, 20), np.uint8)
    moved, moved_masks = (part.numpy() for part in augment_slices(tf.constant(images), tf.constant(masks), SEED, "shift_rotate"))
    assert (moved == 0).any() and (moved_masks == 0).any() and moved[moved_masks == 0].max() < 0.6


def test_augmentation_none_and_unknown():
    images, masks = (tf.constant(part) for part in discs())
    assert augment_slices(images, masks, SEED, "none") == (images, masks)
    with pytest.raises(ValueError, match="'elastic' is not known; expected none, shift_rotate or shift_rotate_flip"):
        augment_slices(images, masks, SEED, "elastic")


# --- the judge ---


def views(volumes):
    return [View("all", "validation", np.array([3, 1])), View("all", "test", np.array([0]))]


def test_judge_scores_whole_volumes(volumes):
    model = small_unet()
    judge, weights = VolumeJudge(small_unet(), volumes, views(volumes), batch_size=3), [w.numpy() + 0.05 for w in model.weights]
    for variable, weight in zip(model.weights, weights, strict=True):
        variable.assign(weight)
    predict, expected = make_slice_predictor(model, batch_size=2), {}
    for i in (0, 1, 3):
        record = np.load(volumes.table["path"][i])
        probabilities = predict(record["image"])
        found, truth = probabilities.argmax(axis=-1), record["mask"]
        assert probabilities.dtype == np.float32 and probabilities.shape == (*truth.shape, 3)
        dice = [2 * ((found == k) & (truth == k)).sum() / ((found == k).sum() + (truth == k).sum()) for k in (1, 2)]
        loss = -np.log(np.take_along_axis(probabilities, truth[..., None].astype(int), -1)).mean()
        expected[i] = [*dice, loss]
    table = judge.subject_dice(weights)
    assert list(table.columns) == ["core", "rim", "loss"] and list(table.index) == [0, 1, 3]
    np.testing.assert_allclose(table.to_numpy(), [expected[i] for i in (0, 1, 3)], atol=1e-5)
    rows, selection = judge.score(weights)
    values = {(split, metric): value for _, split, metric, value in rows}
    mean = np.mean([expected[1], expected[3]], axis=0)
    assert values["validation", "dice"] == pytest.approx(mean[:2].mean()) == pytest.approx(selection[0])
    assert values["validation", "dice/core"] == pytest.approx(mean[0]) and values["validation", "loss"] == pytest.approx(-selection[1])
    assert values["test", "dice/rim"] == pytest.approx(expected[0][1])


def test_centralized_training_learns_and_resumes(volumes, tmp_path):
    """The loop of classification, whole: the loss falls, Dice rises, and a resumed run equals an uninterrupted one."""
    files, slices = choose_slices(volumes, ["subject_0", "subject_2"])
    settings = LocalSettings(batch_size=4, learning_rate=0.1, momentum=0.9, epochs=4)

    def learner():
        return CentralizedLearner(small_unet(), settings, files, slices, ONES, seed=1, trainer_type=SliceTrainer)

    judge, checkpoint = VolumeJudge(small_unet(), volumes, views(volumes)), tmp_path / "run.npz"
    whole = run_rounds(learner(), judge, total_rounds=6)
    curve = whole.rows.query("split == 'validation' and metric == 'dice'")["value"].to_numpy()
    losses = whole.rows.query("split == 'train'")["value"].to_numpy()
    assert losses[-1] < 0.6 * losses[0] and curve[-1] > curve[0] + 0.1
    assert whole.best_round == curve.argmax() + 1
    run_rounds(learner(), judge, total_rounds=2, checkpoint=checkpoint)
    resumed = run_rounds(learner(), judge, total_rounds=6, checkpoint=checkpoint)
    assert resumed.rows.equals(whole.rows) and resumed.best_round == whole.best_round


# --- back to the volume ---


def volume_of(shape, spacing_mm, plane="axial"):
    rng = np.random.default_rng(1)
    mask = np.kron(rng.integers(0, 3, [n // 4 for n in shape]), np.ones((4, 4, 4))).astype(np.uint8)
    image = rng.normal(size=(*shape, 2)).astype(np.float32)
    return Volume(image, mask, np.array(spacing_mm, float), "blocks")


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize(("scale", "agreement"), [(1, 1.0), (2, 0.999)])
def test_a_perfect_prediction_comes_back_as_the_mask(plane, scale, agreement):
    """20 x 16 x 12 voxels of 1 mm, slices of the longer side's pixels or of twice as many; all axes differ."""
    volume = volume_of((20, 16, 12), (1, 1, 1))
    side = {"axial": 20, "coronal": 20, "sagittal": 16}[plane]
    truth = slices_of(volume, plane, side * scale)["mask"]
    found = predict_volume(lambda images: np.eye(3, dtype=np.float32)[truth], volume, plane=plane, image_size_px=side * scale)
    assert found.dtype == np.uint8 and found.shape == volume.mask.shape
    assert (found == volume.mask).mean() >= agreement


def test_anisotropic_voxels_and_slices_left_out():
    volume = volume_of((16, 16, 8), (1, 2, 3))
    volume.image[:, :, :2] = 0
    truth = slices_of(volume, "axial", 32)["mask"]
    found = predict_volume(lambda images: np.eye(3, dtype=np.float32)[truth], volume, plane="axial", image_size_px=32)
    assert not found[:, :, :2].any()
    assert (found[:, :, 2:] == volume.mask[:, :, 2:]).mean() > 0.98


def test_predictions_of_another_volume():
    volume = volume_of((16, 16, 8), (1, 1, 1))
    with pytest.raises(DataError, match=re.escape("blocks: predictions of shape (7, 16, 16, 3) for 8 axial slices")):
        predict_volume(lambda images: np.zeros((7, 16, 16, 3), np.float32), volume, plane="axial", image_size_px=16)
