"""The loop that all methods share, run on a learner that is told what to learn."""

import errno
import os

import numpy as np
import pandas as pd
import pytest

from fl_utils.learning.errors import CacheError, TrainingError
from fl_utils.learning.rounds import Judge, PersonalJudge, View, load_checkpoint, run_rounds, save_checkpoint
from fl_utils.models.classifiers import build_model


class Scripted:
    """A learner with stated weights a round; its state counts the rounds, so a wrong resume shows."""

    def __init__(self, script, losses=None, stop_at=None):
        self.script, self.losses, self.stop_at = script, losses or {}, stop_at
        self.done, self.seen = 0, []

    def do_round(self, round_num):
        if round_num == self.stop_at:
            raise KeyboardInterrupt
        assert round_num == self.done + 1, "a round was left out or repeated"
        self.done = round_num
        self.seen.append(round_num)
        return self.losses.get(round_num, {"0": 1.0 / round_num, "2": 2.0})

    def weights(self):
        return [np.asarray(weight, np.float32) for weight in self.script[self.done - 1]]

    def state(self):
        return [np.array([self.done])]

    def restore(self, state):
        self.done = int(state[0][0])


def classifier(*right, sure=1.0):
    """Weights of softmax regression on 2 x 2 images with one lit pixel: the pixels in `right` are told apart.

    Pixel p belongs to class p % 2.
    """
    matrix = np.zeros((4, 2))
    for pixel in range(4):
        matrix[pixel, pixel % 2 if pixel in right else 1 - pixel % 2] = sure
    return [matrix, np.zeros(2)]


@pytest.fixture(scope="module")
def judge():
    """Validation sees pixels 0 and 1, the test set 2 and 3: what is best on one is not on the other."""
    images = np.zeros((4, 4), np.uint8)
    np.fill_diagonal(images, 255)
    views = [View("all", "validation", np.array([0, 1])), View("all", "test", np.array([2, 3]))]
    return Judge(build_model("softmax_regression", (2, 2, 1), 2), images.reshape(4, 2, 2, 1), np.array([0, 1, 0, 1]), views)


SCRIPT = [classifier(0), classifier(0, 1), classifier(2, 3), classifier(0, 1, 2, 3, sure=0.5), classifier(0, 2)]


def values(result, round_num, split, metric):
    return result.rows.query("round == @round_num and split == @split and metric == @metric")["value"].tolist()


def test_selected_by_validation_not_by_test(judge):
    result = run_rounds(Scripted(SCRIPT[:3]), judge, total_rounds=3)
    assert result.best_round == 2 and np.array_equal(result.best_weights[0], SCRIPT[1][0])
    assert values(result, 2, "test", "accuracy") == [0.0] and values(result, 3, "test", "accuracy") == [1.0]


@pytest.mark.parametrize("sureness, best", [((1, 2, 1.5), 2), ((2, 1, 1.5), 1), ((1, 1, 1), 1)])
def test_ties_in_accuracy_are_decided_by_loss_then_by_the_earlier_round(judge, sureness, best):
    script = [classifier(0, 1, sure=sure) for sure in sureness]
    assert run_rounds(Scripted(script), judge, total_rounds=3).best_round == best


def test_rows_and_reports(judge):
    reported = []
    result = run_rounds(Scripted(SCRIPT), judge, total_rounds=5, on_round=lambda *report: reported.append(report))
    assert list(result.rows.columns) == ["round", "client", "split", "metric", "value"]
    assert len(result.rows) == 5 * (2 + 2 * 3)  # two clients' training losses, three metrics of two views
    assert values(result, 4, "train", "loss") == [0.25, 2.0]
    assert [round_num for round_num, _ in reported] == [1, 2, 3, 4, 5]
    assert [report["accuracy"] for _, report in reported] == [0.5, 1, 0, 1, 0.5]  # the first view's
    metrics = {"accuracy", "balanced_accuracy", "loss"}  # and those of its other split
    assert set(reported[0][1]) == metrics | {f"test_{metric}" for metric in metrics}
    assert [report["test_accuracy"] for _, report in reported] == [0, 0, 1, 1, 0.5]


def test_reports_leave_out_other_clients(judge):
    views = [*judge.views, View("0", "validation", np.array([0])), View("0", "own_test", np.array([2]))]
    reported = []
    run_rounds(Scripted(SCRIPT), Judge(judge.model, judge.images, judge.labels, views), total_rounds=2,
               on_round=lambda *report: reported.append(report[1]))  # fmt: skip
    assert set(reported[0]) == {f"{split}{metric}" for split in ("", "test_") for metric in ("accuracy", "balanced_accuracy", "loss")}
    assert [report["accuracy"] for report in reported] == [0.5, 1]


def test_personal_judge_takes_the_model_of_the_hospital_that_holds_the_image(judge):
    """Hospital 0 has pixels 0 and 2, hospital 1 has 1 and 3, and the matrix stays at home; nobody holds nothing."""
    personal = PersonalJudge(judge.model, judge.images, judge.labels, judge.views, [np.array([0, 2]), np.array([3, 1]), np.array([], int)], [0])
    bias = np.array([0.25, 0.0], np.float32)
    matrices = [classifier(0, 2, sure=3.0)[0], classifier(3, sure=2.0)[0], np.full((4, 2), np.nan)]
    found = personal.predict([np.full((4, 2), np.nan), bias, *matrices])
    for client, held in ((0, [0, 2]), (1, [1, 3])):
        logits = matrices[client][held] + bias
        expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(found[held], expected, atol=1e-6)
    assert found.argmax(axis=1).tolist() == [0, 0, 0, 1]
    rows, (accuracy, _) = personal.score([np.full((4, 2), np.nan), bias, *matrices])
    assert accuracy == 0.5 and ("all", "test", "accuracy", 1.0) in rows


def test_personal_judge_with_the_same_model_everywhere_is_the_judge(judge):
    weights = [np.asarray(weight, np.float32) for weight in classifier(0, 3)]
    personal = PersonalJudge(judge.model, judge.images, judge.labels, judge.views, [np.array([0, 1]), np.array([2, 3])], [0, 1])
    assert np.array_equal(personal.predict([*weights, *weights, *weights]), judge.predict(weights))


def test_statistics_that_did_not_travel_stay_at_their_beginning():
    """Judged are mean 0 and variance 1 of BatchNorm where its statistics are dropped, those given where they travel."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 8, 8, 1), np.uint8)
    model = build_model("norm_cnn_batch", (8, 8, 1), 2, seed=1)
    dropped = Judge(model, images, rng.integers(0, 2, 6), [View("all", "validation", np.arange(6))])
    weights = [weight.numpy() for weight in model.trainable_variables]
    statistics = [weight.numpy() for weight in model.non_trainable_variables]
    assert np.array_equal(dropped.predict(weights), dropped.predict(weights + statistics))
    for variable, value in zip(model.non_trainable_variables, statistics, strict=True):
        assert np.array_equal(variable.numpy(), value)
    moved = dropped.predict(weights + [value + 1 for value in statistics])
    assert np.abs(moved - dropped.predict(weights + statistics)).max() > 1e-3


def test_rows_that_no_view_uses_are_not_predicted(judge):
    few = Judge(judge.model, judge.images, judge.labels, [View("all", "validation", np.array([1, 3]))])
    probabilities = few.predict(SCRIPT[1])
    assert not probabilities[[0, 2]].any() and np.allclose(probabilities[[1, 3]].sum(axis=1), 1)


def test_loss_that_is_not_finite_names_round_and_clients(judge):
    learner = Scripted(SCRIPT, losses={3: {"0": 1.0, "2": np.nan, "4": np.inf}})
    with pytest.raises(TrainingError, match=r"Round 3: .*client\(s\) 2, 4\..*lower client_learning_rate"):
        run_rounds(learner, judge, total_rounds=5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_name_the_round(judge, value):
    broken = [np.full((4, 2), value), np.zeros(2)]
    with pytest.raises(TrainingError, match="Round 2: .*in the aggregated weights"):
        run_rounds(Scripted([SCRIPT[0], broken]), judge, total_rounds=2)


def test_diverged_round_is_not_saved(judge, tmp_path):
    """The next start must not resume from weights that are not finite."""
    path = tmp_path / "c.npz"
    with pytest.raises(TrainingError):
        run_rounds(Scripted(SCRIPT, losses={3: {"0": np.nan}}), judge, total_rounds=5, checkpoint=path, checkpoint_interval_s=0)
    assert load_checkpoint(path)["done"] == 2


@pytest.mark.parametrize(
    "broken",
    [{"losses": {4: {"0": 1.0, "2": np.nan}}}, {"script": [*SCRIPT[:3], [np.full((4, 2), np.inf), np.zeros(2)]]}],
)
def test_a_run_that_diverges_is_kept_up_to_there_where_asked(judge, broken):
    result = run_rounds(Scripted(**{"script": SCRIPT} | broken), judge, total_rounds=5, keep_diverged=True)
    assert result.diverged_at_round == 4 and result.best_round == 2
    assert np.array_equal(result.best_weights[0], SCRIPT[1][0])
    whole = run_rounds(Scripted(SCRIPT), judge, total_rounds=3)
    assert whole.diverged_at_round is None
    same(result, whole)  # the rounds before it as they were, and nothing of the round that diverged


def test_a_run_without_a_good_round_is_an_error_also_where_it_would_be_kept(judge):
    with pytest.raises(TrainingError, match="Round 1: a value that is not finite"):
        run_rounds(Scripted(SCRIPT, losses={1: {"0": np.nan}}), judge, total_rounds=5, keep_diverged=True)


def test_a_run_that_diverged_does_so_again_when_it_is_resumed(judge, tmp_path):
    losses, path = {4: {"0": np.nan}}, tmp_path / "c.npz"
    first, again = (
        run_rounds(Scripted(SCRIPT, losses=losses), judge, total_rounds=5, checkpoint=path, checkpoint_interval_s=0,
                   keep_diverged=True)
        for _ in range(2)
    )  # fmt: skip
    assert load_checkpoint(path)["done"] == 3
    assert (first.diverged_at_round, again.diverged_at_round) == (4, 4)
    same(first, again)


def same(a, b):
    pd.testing.assert_frame_equal(a.rows, b.rows, check_exact=True)
    return a.best_round == b.best_round and all(np.array_equal(x, y) for x, y in zip(a.best_weights, b.best_weights, strict=True))


@pytest.mark.parametrize("stop_at", [1, 2, 3, 5])
def test_interrupted_run_goes_on_where_it_was(judge, tmp_path, stop_at):
    whole = run_rounds(Scripted(SCRIPT), judge, total_rounds=5)
    path = tmp_path / "folder" / "c.npz"
    with pytest.raises(KeyboardInterrupt):
        run_rounds(Scripted(SCRIPT, stop_at=stop_at), judge, total_rounds=5, checkpoint=path, checkpoint_interval_s=0)
    learner, reported = Scripted(SCRIPT), []
    resumed = run_rounds(learner, judge, total_rounds=5, checkpoint=path, on_round=lambda n, _: reported.append(n))
    assert learner.seen == reported == list(range(stop_at, 6)) and same(whole, resumed)


def test_finished_run_is_read_back_without_training(judge, tmp_path):
    path = tmp_path / "c.npz"
    whole = run_rounds(Scripted(SCRIPT), judge, total_rounds=5, checkpoint=path)  # saved at the end, whatever the interval
    learner = Scripted(SCRIPT)
    assert same(whole, run_rounds(learner, judge, total_rounds=5, checkpoint=path)) and learner.seen == []


def test_saved_no_more_often_than_asked(judge, tmp_path):
    path = tmp_path / "c.npz"
    with pytest.raises(KeyboardInterrupt):
        run_rounds(Scripted(SCRIPT, stop_at=4), judge, total_rounds=5, checkpoint=path, checkpoint_interval_s=3600)
    assert not path.exists()


def _no_zip(content):
    return b"not a checkpoint"


def _cut(content):
    return content[: len(content) // 2]


def _one_bit(content):
    middle = content.index(b"NUMPY") + 140  # in the first array's numbers: the container's checksum notices
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [_no_zip, _cut, _one_bit, lambda content: b"", lambda content: b"PK\x03\x04" + content[:60]],
                         ids=["text", "cut", "bit", "empty", "head"])
def test_damaged_checkpoint_costs_time_only(judge, tmp_path, damage):
    path = tmp_path / "c.npz"
    whole = run_rounds(Scripted(SCRIPT), judge, total_rounds=5, checkpoint=path)
    path.write_bytes(damage(path.read_bytes()))
    assert load_checkpoint(path) is None
    learner = Scripted(SCRIPT)
    assert same(whole, run_rounds(learner, judge, total_rounds=5, checkpoint=path)) and learner.seen == [1, 2, 3, 4, 5]


def test_checkpoint_of_another_kind_is_ignored(tmp_path):
    np.savez(tmp_path / "c.npz", weights=np.ones(3))
    assert load_checkpoint(tmp_path / "c.npz") is None and load_checkpoint(tmp_path / "none.npz") is None


def test_checkpoint_keeps_every_bit(tmp_path):
    rng = np.random.default_rng(0)
    state = [rng.normal(size=(3, 2)).astype(np.float32), np.array(7, np.int64), np.zeros((0, 4), np.float32)] + [np.array(i) for i in range(12)]
    rows = [(1, "all", "test", "loss", 0.1 + 0.2), (2, "0", "train", "loss", float("nan"))]
    save_checkpoint(tmp_path / "c.npz", state=state, best_weights=state[:1], rows=rows, done=2, best_round=1, best_score=(1 / 3, -np.inf))
    saved = load_checkpoint(tmp_path / "c.npz")
    assert len(saved["state"]) == 15 and len(saved["best_weights"]) == 1
    for a, b in zip(saved["state"], state, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    assert saved["rows"][0] == rows[0] and np.isnan(saved["rows"][1][-1]) and saved["best_score"] == [1 / 3, -np.inf]


@pytest.mark.parametrize("where", ["write", "rename"])
def test_full_disk_keeps_the_checkpoint_of_before(judge, tmp_path, monkeypatch, where):
    path = tmp_path / "c.npz"
    with pytest.raises(KeyboardInterrupt):
        run_rounds(Scripted(SCRIPT, stop_at=3), judge, total_rounds=5, checkpoint=path, checkpoint_interval_s=0)
    before = path.read_bytes()

    def full(file=None, *_, **__):
        if where == "write":
            file.write(b"PK half of a checkpoint")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((np, "savez", full) if where == "write" else (os, "replace", full)))
    with pytest.raises(CacheError, match="No space left on device.*FL_UTILS_CACHE"):
        run_rounds(Scripted(SCRIPT), judge, total_rounds=5, checkpoint=path, checkpoint_interval_s=0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.npz"] and path.read_bytes() == before
