"""The server's side of a training: who is there, one round after another, what is kept, what is published."""

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fl_utils.config import ExperimentConfig
from fl_utils.deployment.flower import messages
from fl_utils.deployment.flower.board import Board
from fl_utils.deployment.flower.members import Members
from fl_utils.deployment.flower.office import POLL_S, Answer, Office, StageGrid
from fl_utils.deployment.server_step import ServerStep, misfit
from fl_utils.deployment.flower.settings import Federation, FederationError
from fl_utils.deployment.tally import read_judged, tally
from fl_utils.learning.local import weights_of_counts
from fl_utils.learning.rounds import load_checkpoint, save_checkpoint
from fl_utils.trust.noise import Noise, planned_noise

CHECKPOINT = "checkpoint.npz"
#: A hospital that has not answered for so long is asked whether it began anew meanwhile.
ASK_AGAIN_S = 3.0


@dataclasses.dataclass
class Progress:
    """What a training has come to.

    Attributes:
      weights: the common model's.
      done: rounds that gave a model.
      rows: (round, client, split, metric, value).
      best_round, best_score, best_weights: the round that did best on the hospitals' validation images.
    """

    weights: list[np.ndarray]
    done: int = 0
    rows: list[tuple] = dataclasses.field(default_factory=list)
    best_round: int = 0
    best_score: tuple[float, float] = (-math.inf, -math.inf)
    best_weights: list[np.ndarray] = dataclasses.field(default_factory=list)

    def selected(self, config: ExperimentConfig) -> tuple[int, list[np.ndarray]]:
        """Round and weights of the published model: the last where an aggregator is set (see `config`) or none was scored."""
        if config.aggregator or not self.best_weights:
            return self.done, self.weights
        return self.best_round, self.best_weights


class Coordinator:
    """Runs a training to its end, or resumes it.

    Args:
      federation: what was agreed on.
      grid: Flower's.
      nodes: Flower's id of each hospital.
      weights: the initial model's.
      folder: the server's; holds the checkpoint.
      board: shows and logs.
    """

    def __init__(
        self, federation: Federation, grid, nodes: dict[int, int], weights: Sequence[np.ndarray], folder: Path, board: Board
    ):
        self._federation, self._config, self._grid, self._board = federation, federation.config, grid, board
        self._office = Office(grid, nodes)
        self._members = Members(self._office, federation, board)
        self._step = ServerStep(self._config, weights)
        self._checkpoint = Path(folder) / CHECKPOINT
        self.progress = Progress([np.asarray(weight) for weight in weights])
        self._judged: dict = {}
        self._planned_for: list[int] = []
        self._noise: Noise | None = None

    def run(self) -> Progress:
        """Waits for the hospitals, trains, judges the last model, tells the hospitals.

        Raises:
          FederationError: too few hospitals answered in several rounds, or the checkpoint is of another training. The
            checkpoint stays.
          CacheError: the checkpoint cannot be written; the one of before stays.
        """
        resumed = self._resume()
        everybody, needed = self._config.num_clients, self._federation.min_hospitals
        # After a restart one that is gone for good must not stop the others.
        self._members.wait_for(
            everybody, patience_s=self._federation.round_timeout_s if resumed else self._federation.join_timeout_s
        )
        self._members.wait_for(needed, patience_s=None)
        self._plan()
        void = 0
        while self.progress.done < self._config.total_rounds:
            if self._round(self.progress.done + 1):
                void = 0
                continue
            void += 1
            if void == self._federation.max_void_rounds:
                raise FederationError(
                    f"{void} rounds in a row had fewer than {self._federation.min_hospitals} updates; the training stops with the "
                    f"model of round {self.progress.done}. Start the server again when more hospitals are there: it goes on."
                )
        self._judge_last()
        self._save()
        self._members.finish(self.progress.selected(self._config)[1])
        return self.progress

    def _resume(self) -> bool:
        saved = load_checkpoint(self._checkpoint)
        if saved is None:
            return False
        if saved["fingerprint"] != self._federation.fingerprint:
            raise FederationError(
                f"{self._checkpoint.name} in the server's folder is of a training that was agreed on otherwise. Move it away to "
                "begin this one, or take back the change in federation.json."
            )
        number = len(self.progress.weights)
        self.progress = Progress(
            saved["state"][:number], saved["done"], saved["rows"], saved["best_round"], tuple(saved["best_score"]),
            saved["best_weights"],
        )
        self._step.restore(saved["state"][number:])
        self._members.recall({int(number): facts for number, facts in saved["introduced"].items()})
        self._planned_for = saved["planned_for"]
        self._board.event(f"Going on after round {self.progress.done}.")
        return True

    def _plan(self) -> None:
        # Those of the training's start, also after a restart: whoever joined later changes neither weights nor noise.
        self._planned_for = self._planned_for or sorted(self._members.introduced)
        facts = {hospital: self._members.introduced[hospital] for hospital in self._planned_for}
        counts = np.sum([known["class_counts"] for known in facts.values()], axis=0)
        self._class_weights = weights_of_counts(counts, enabled=self._config.class_weighting)
        if self._config.privacy_unit:
            self._noise = planned_noise(self._config, [known["num_patients"] for known in facts.values()])
            self._members.fewest_patients = self._noise.num_units
        self._board.show(state="training", total_rounds=self._config.total_rounds, round=self.progress.done)

    def _round(self, number: int) -> bool:
        """One round; False where too few answered, and nothing has changed."""
        began, needed = time.perf_counter(), self._federation.min_hospitals
        self._members.wait_for(needed, patience_s=self._federation.round_timeout_s)
        self._judged = {}
        rows: list[tuple] = []
        who, change = (self._secured if self._federation.secure else self._plain)(number, rows)
        if self._judged and number > 1:
            self._score(number - 1)
        if change is None:
            self._board.event(f"Round {number}: no new model: {len(who)} updates, {needed} are needed.", round=number)
            return False
        self.progress.weights = self._step.apply(self.progress.weights, change)
        self.progress.done = number
        duration_s = time.perf_counter() - began
        rows += [(number, "all", "round", "updates", float(len(who))), (number, "all", "round", "duration_s", duration_s)]
        self.progress.rows += rows
        self._save()
        self._board.event(
            f"Round {number} of {self._config.total_rounds}: {len(who)} of {self._config.num_clients} updates, {duration_s:.1f} s"
            + self._last_score(), round=number, hospitals=who,
        )
        self._board.show(round=number)
        return True

    def _task(self, number: int) -> dict:
        task = {"round": number, "class_weights": json.dumps([float(weight) for weight in self._class_weights])}
        if self._noise is not None:
            task |= {
                "noise_multiplier": self._noise.noise_multiplier, "sampling_rate": self._noise.terms.rate,
                "steps": self._noise.steps_per_round,
            }
        return task

    def _plain(self, number: int, rows: list) -> tuple[list[int], list[np.ndarray] | None]:
        """Whose updates came, and their combination, or None where they are too few; so does `_secured`."""
        task, weights = self._task(number), self.progress.weights
        received: dict[int, Answer] = {}
        open_for = self._members.present()
        self._office.post(sorted(open_for), messages.TRAIN, task, weights, number)
        began = asked = time.monotonic()
        while open_for and time.monotonic() - began < self._federation.round_timeout_s:
            for answer in self._office.collect():
                if answer.kind != messages.TRAIN or answer.round_num != number:
                    anew = self._members.take(answer)
                    if anew and answer.hospital in open_for:  # its question went down with the process of before
                        self._office.post([answer.hospital], messages.TRAIN, task, weights, number)
                elif answer.hospital in open_for:
                    open_for.discard(answer.hospital)
                    if self._usable(answer, number, rows):
                        received[answer.hospital] = answer
            if time.monotonic() - asked > ASK_AGAIN_S:
                self._members.ask(open_for)
                asked = time.monotonic()
            time.sleep(POLL_S)
        for hospital in sorted(open_for):
            self._members.missed(hospital, f"did not answer round {number} within {self._federation.round_timeout_s:g} s.")
        answers = [received[hospital] for hospital in sorted(received)]
        if len(answers) < self._federation.min_hospitals:
            return sorted(received), None
        change = self._step.combine([answer.arrays for answer in answers], [answer.facts["num_examples"] for answer in answers])
        return sorted(received), change

    def _usable(self, answer: Answer, number: int, rows: list) -> bool:
        """Whether an answer's update counts, which is then noted; where it does not, the hospital is named."""
        hospital, wrong = answer.hospital, answer.error
        if answer.gone:
            self._members.missed(hospital, f"is gone; no update in round {number}.")
            return False
        if wrong is None:
            wrong = misfit(answer.arrays, self.progress.weights)
        examples, loss = answer.facts.get("num_examples"), answer.facts.get("loss")
        known = self._members.introduced[hospital]["num_examples"]
        if wrong is None and examples != known:
            wrong = f"it counts {examples} examples, and said {known} when it joined"
        if wrong is None and not (isinstance(loss, float) and math.isfinite(loss)):
            wrong = f"its training loss is {loss}"
        if wrong is None:
            wrong = self._take_judged(hospital, answer.facts)
        if wrong is not None:
            self._members.left_out(hospital, number, wrong)
            return False
        self._note(hospital, number, answer.facts, answer.received_bytes, answer.message_id, rows)
        return True

    def _secured(self, number: int, rows: list) -> tuple[list[int], list[np.ndarray] | None]:
        from fl_utils.deployment.flower import secure

        agreed, present = self._federation.secure, sorted(self._members.present())
        settings = secure.SecureSettings(
            threshold=agreed.threshold, clipping_range=agreed.clipping_range, timeout_s=agreed.stage_timeout_s
        )
        result = secure.secure_round(
            StageGrid(self._grid), weights=self.progress.weights, node_ids=[self._office.nodes[hospital] for hospital in present],
            round_num=number, config=self._task(number), settings=settings,
            max_examples=max(known["num_examples"] for known in self._members.introduced.values()),
        )
        answered = {self._office.hospital_of(node): facts for node, facts in result.answered.items()}
        for hospital in set(present) - set(answered):
            self._members.missed(hospital, f"dropped out of the secure sum of round {number}.")
        for node, text in result.failures:
            if node is not None:
                self._members.left_out(self._office.hospital_of(node), number, text)
        if result.mean is None:
            self._board.event(f"Round {number}: the secure sum failed: {result.reason}", round=number)
            return sorted(answered), None
        change = [np.asarray(part, np.float32) for part in result.mean]
        wrong = misfit(change, self.progress.weights)
        if wrong is not None:
            self._board.event(f"Round {number}: the sum cannot be used: {wrong}. No single update is known, so nobody is named.")
            return sorted(answered), None
        for hospital, facts in answered.items():
            self._take_judged(hospital, facts)
            self._note(hospital, number, facts, 0, "", rows)
        return sorted(answered), change if len(answered) >= self._federation.min_hospitals else None

    def _take_judged(self, hospital: int, facts: dict) -> str | None:
        try:
            self._judged[hospital] = read_judged(facts.get("judged", ""), len(self._federation.class_names))
        except ValueError as error:
            return str(error)
        return None

    def _note(self, hospital: int, number: int, facts: dict, received: int, message_id: str, rows: list) -> None:
        told = (facts.get("loss"), facts.get("work_s"))
        loss, work_s = (value if isinstance(value, float) else math.nan for value in told)
        rows += [(number, str(hospital), "train", "loss", loss), (number, str(hospital), "round", "work_s", work_s)]
        if received:
            rows.append((number, str(hospital), "round", "received_bytes", float(received)))
        seen = self._board.status["hospitals"][str(hospital)]["bytes"]
        self._board.hospital(
            hospital, round=number, bytes=seen + received, state="joined", last_word=f"round {number}: {work_s:.1f} s of work",
            last_message=message_id,
        )
        self._board.show()

    def _score(self, number: int) -> None:
        """Scores the model of a round, from what the hospitals counted."""
        rows, score = tally(number, self._judged)
        # A round that is done again has the model of before judged again: the later scores stand for the earlier ones.
        parts = {row[2] for row in rows}
        self.progress.rows = [row for row in self.progress.rows if row[0] != number or row[2] not in parts] + rows
        if score > self.progress.best_score:
            self.progress.best_round, self.progress.best_score = number, score
            self.progress.best_weights = list(self.progress.weights)
        if np.isfinite(score[0]):
            self._board.show(validation={"round": number, "balanced_accuracy": score[0]})

    def _last_score(self) -> str:
        seen = self._board.status["validation"]
        return f"; validation balanced accuracy after round {seen['round']}: {seen['balanced_accuracy']:.3f}" if seen else ""

    def _judge_last(self) -> None:
        self._judged, number = {}, self.progress.done
        open_for = self._members.present()
        self._office.post(sorted(open_for), messages.JUDGE, {"round": number}, self.progress.weights, number)
        began = time.monotonic()
        while open_for and time.monotonic() - began < self._federation.round_timeout_s:
            for answer in self._office.collect():
                if answer.kind != messages.JUDGE:
                    self._members.take(answer)
                    continue
                open_for.discard(answer.hospital)
                wrong = answer.error or self._take_judged(answer.hospital, answer.facts)
                if wrong:
                    self._board.event(f"its scores of the last model are missing: {wrong}", answer.hospital)
            time.sleep(POLL_S)
        if self._judged:
            self._score(number)

    def _save(self) -> None:
        progress = self.progress
        save_checkpoint(
            self._checkpoint, state=[*progress.weights, *self._step.state()], best_weights=progress.best_weights,
            rows=progress.rows, done=progress.done, best_round=progress.best_round, best_score=progress.best_score,
            fingerprint=self._federation.fingerprint, introduced=self._members.introduced, planned_for=self._planned_for,
        )
