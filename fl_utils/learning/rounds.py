"""The loop that every method shares: do a round, check it, judge it, keep the best, save, report.

Because centralized, local-only and federated training run through this one loop, they are
selected, judged and resumed in the same way (DESIGN section 2, rule 1).
"""

import dataclasses
import json
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import keras
import numpy as np
import pandas as pd

from fl_utils.files import write_atomically
from fl_utils.learning.errors import CacheError, TrainingError
from fl_utils.learning.evaluation import curve_metrics
from fl_utils.learning.local import make_predictor
from fl_utils.records import METRIC_COLUMNS


class Learner(Protocol):
    """What a method must offer to be run round by round.

    It may have `observed`: further rows (client, split, metric, value) of its last round for the record.
    """

    def do_round(self, round_num: int) -> dict[str, float]:
        """Trains one round, a pure function of (state, round_num); returns train loss by client."""

    def weights(self) -> list[np.ndarray]:
        """The weights that are judged, one array a variable."""

    def state(self) -> list[np.ndarray]:
        """All that the next round depends on."""

    def restore(self, state: Sequence[np.ndarray]) -> None:
        """Goes back to a state that `state` gave."""


@dataclasses.dataclass(frozen=True)
class View:
    """Images that are judged together: the rows of `Judge.images` at `index`."""

    client: str
    split: str
    index: np.ndarray


class Judge:
    """Predicts once a round and scores every view of the predictions.

    Args:
      model: any model of the right shape; its weights are overwritten.
      images: uint8 [N, H, W, C], every image of every view.
      labels: int [N].
      views: what is scored; the first one selects the round.
    """

    def __init__(self, model: keras.Model, images: np.ndarray, labels: np.ndarray, views: Sequence[View]):
        self.model, self.images, self.labels, self.views = model, images, labels, list(views)
        self._predict = make_predictor(model)
        self._used = np.unique(np.concatenate([view.index for view in views]))

    def predict(self, weights: Sequence[np.ndarray]) -> np.ndarray:
        """Class probabilities float32 [N, K]; rows that no view uses are zero."""
        return self._predicted(weights, self._used)

    def _predicted(self, weights: Sequence[np.ndarray], index: np.ndarray) -> np.ndarray:
        # Statistics that did not travel stay as the model was built with.
        variables = self.model.trainable_variables + self.model.non_trainable_variables
        for variable, weight in zip(variables[: len(weights)], weights, strict=True):
            variable.assign(weight)
        probabilities = np.zeros((len(self.images), self.model.output_shape[-1]), np.float32)
        probabilities[index] = self._predict(self.images[index])
        return probabilities

    def score(self, weights: Sequence[np.ndarray]) -> tuple[list[tuple], tuple[float, float]]:
        """Rows (client, split, metric, value), and the score that selects: higher is better."""
        return self.score_predictions(self.predict(weights))

    def score_predictions(self, probabilities: np.ndarray) -> tuple[list[tuple], tuple[float, float]]:
        """The same from class probabilities float32 [N, K]."""
        rows, selection = [], None
        for view in self.views:
            values = curve_metrics(self.labels[view.index], probabilities[view.index])
            # Small validation sets tie often in accuracy; the loss decides then.
            selection = selection or (values["balanced_accuracy"], -values["loss"])
            rows += [(view.client, view.split, metric, value) for metric, value in values.items()]
        return rows, selection


class PersonalJudge(Judge):
    """Judges every image by the model of the hospital that holds it: the common weights with its own in their places.

    Args:
      model, images, labels, views: as in `Judge`.
      holdings: one index array a hospital: the images that it holds.
      home: positions of the weights that stay at home.
    """

    def __init__(self, model, images, labels, views, holdings: Sequence[np.ndarray], home: Sequence[int]):
        super().__init__(model, images, labels, views)
        self._holdings, self._home = [np.intersect1d(held, self._used) for held in holdings], list(home)

    def predict(self, weights: Sequence[np.ndarray]) -> np.ndarray:
        """As `Judge.predict`; `weights` are the common ones, then each hospital's own."""
        num_own = len(self._home)
        common, own = weights[: -num_own * len(self._holdings)], weights[-num_own * len(self._holdings) :]
        probabilities = np.zeros((len(self.images), self.model.output_shape[-1]), np.float32)
        for client, held in enumerate(self._holdings):
            model_weights = list(common)
            for position, weight in zip(self._home, own[client * num_own : (client + 1) * num_own], strict=True):
                model_weights[position] = weight
            if len(held):
                probabilities[held] = self._predicted(model_weights, held)[held]
        return probabilities


@dataclasses.dataclass
class TrainingResult:
    """The curve, and the weights of the selected round: the one that did best on validation data, or the last.

    Attributes:
      rows: columns round, client, split, metric, value; rounds count from 1.
      best_round: the selected round.
      best_weights: one array a variable.
      diverged_at_round: the round that gave values that are not finite, where the run ended early; else None.
    """

    rows: pd.DataFrame
    best_round: int
    best_weights: list[np.ndarray]
    diverged_at_round: int | None = None


def run_rounds(
    learner: Learner,
    judge: Judge,
    *,
    total_rounds: int,
    checkpoint: Path | None = None,
    checkpoint_interval_s: float = 20.0,
    on_round: Callable[[int, dict[str, float]], None] = lambda round_num, values: None,
    keep_diverged: bool = False,
    select_last: bool = False,
) -> TrainingResult:
    """Runs, or resumes, `total_rounds` rounds.

    Args:
      learner: the method; left at the last round's state.
      judge: scores each round; its first view selects the best round.
      total_rounds: R >= 1.
      checkpoint: file to resume from and to save to; None keeps nothing.
      checkpoint_interval_s: time between saves; a resumed run repeats the rounds since the last one.
      on_round: called after each round with the round (from 1) and the first view's metrics; those of the same
        client's other splits by names such as "test_accuracy". What it raises ends the run.
      keep_diverged: a run whose values are no longer finite ends there and gives its best round so far, which is what
        selection on validation data would have chosen. Without a round before it, it is an error all the same.
      select_last: the last round whose predictions are finite is selected, whatever its score.
    Raises:
      TrainingError: a weight or a training loss is not finite; names the round and the clients.
      CacheError: the checkpoint cannot be written.
    """
    rows, done, best_round, best_score, best_weights = [], 0, 0, (-np.inf, -np.inf), []
    saved = load_checkpoint(checkpoint) if checkpoint else None
    if saved is not None:
        learner.restore(saved["state"])
        best_weights, rows, done = saved["best_weights"], saved["rows"], saved["done"]
        best_round, best_score = saved["best_round"], tuple(saved["best_score"])
    last_save, diverged_at_round = time.monotonic(), None
    for round_num in range(done + 1, total_rounds + 1):
        losses = learner.do_round(round_num)
        weights = learner.weights()
        try:
            _check_finite(round_num, losses, weights)
        except TrainingError:
            if keep_diverged and best_round:
                diverged_at_round = round_num
                break
            raise
        rows += [(round_num, client, "train", "loss", loss) for client, loss in losses.items()]
        scored, score = judge.score(weights)
        rows += [(round_num, *row) for row in (*scored, *getattr(learner, "observed", ()))]
        # (-inf, -inf) is the start, so that a model which predicts nothing finite is never selected.
        if score > best_score or (select_last and np.isfinite(score).all()):
            best_round, best_score, best_weights = round_num, score, weights
        first = judge.views[0]
        on_round(round_num, {
            metric if split == first.split else f"{split}_{metric}": value
            for client, split, metric, value in scored if client == first.client
        })
        if checkpoint and (time.monotonic() - last_save >= checkpoint_interval_s or round_num == total_rounds):
            save_checkpoint(
                checkpoint, state=learner.state(), best_weights=best_weights, rows=rows,
                done=round_num, best_round=best_round, best_score=best_score,
            )
            last_save = time.monotonic()
    return TrainingResult(pd.DataFrame(rows, columns=METRIC_COLUMNS), best_round, best_weights, diverged_at_round)


def _check_finite(round_num: int, losses: dict[str, float], weights: Sequence[np.ndarray]) -> None:
    bad = [client for client, loss in losses.items() if not np.isfinite(loss)]
    if bad or not all(np.isfinite(weight).all() for weight in weights):
        who = f"at client(s) {', '.join(bad)}" if bad else "in the aggregated weights"
        raise TrainingError(
            f"Round {round_num}: a value that is not finite {who}. The learning rate is probably too "
            "high; lower client_learning_rate (or server_learning_rate) and run again."
        )


def save_checkpoint(path: Path, *, state, best_weights, **facts) -> None:
    """Saves the state of a run, whole or not at all.

    TFF's FileProgramStateManager was left aside: it is asynchronous, so it needs its own event loop
    in a notebook, and the state, the best weights and the curve must be saved as one.

    Raises:
      CacheError: the disk is full or the folder cannot be written; the checkpoint of before is kept.
    """
    arrays = {f"state_{i:04d}": array for i, array in enumerate(state)}
    arrays |= {f"best_{i:04d}": array for i, array in enumerate(best_weights)}
    try:
        write_atomically(path, lambda file: np.savez(file, facts=np.array(json.dumps(facts)), **arrays))
    except OSError as error:
        raise CacheError(path, error) from error


def load_checkpoint(path: Path) -> dict | None:
    """What `save_checkpoint` saved, or None when there is nothing usable."""
    if not path.is_file():
        return None
    try:
        with np.load(path) as arrays:
            saved = json.loads(str(arrays["facts"]))
            saved["rows"] = [tuple(row) for row in saved["rows"]]
            for field, prefix in (("state", "state_"), ("best_weights", "best_")):
                saved[field] = [arrays[name] for name in sorted(arrays.files) if name.startswith(prefix)]
        return saved
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        # A damaged checkpoint costs time, never a result: the run starts again.
        return None
