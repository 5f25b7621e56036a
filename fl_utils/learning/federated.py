"""Federated training in simulation: TFF runs each round of the cohort's client updates."""

from collections.abc import Sequence

import numpy as np
import tensorflow_federated as tff

from fl_utils import seeding
from fl_utils.learning import engine
from fl_utils.learning.process import client_input


def leaves_of(state) -> list[np.ndarray]:
    """The arrays of a TFF process's state, in order: what a checkpoint keeps of it."""
    return [np.asarray(leaf) for leaf in tff.structure.flatten(_as_struct(state))]


def with_leaves(state, leaves: Sequence[np.ndarray]):
    """A state like this one, with the arrays that `leaves_of` gave."""
    return tff.structure.pack_sequence_as(_as_struct(state), list(leaves))


def _as_struct(state):
    return tff.structure.from_container(state, recursive=True)


class FederatedLearner:
    """Runs a federated process round by round. See `rounds.Learner`.

    Args:
      process: of `process.build_process`.
      client_data: one path prefix a client, of `client_files.write_client_files`.
      class_weights: float32 [K], the same for all clients.
      clients_per_round: size of the cohort.
      seed: root seed of the run.
      client_state: what each client holds before its first round (`process.initial_client_state`), or None.
    """

    def __init__(
        self, process: tff.templates.IterativeProcess, client_data: Sequence[str], class_weights: np.ndarray,
        *, clients_per_round: int, seed: int, client_state: Sequence[np.ndarray] | None = None,
    ):
        engine.ensure_started()
        self._process, self._client_data, self._class_weights = process, list(client_data), class_weights
        self._clients_per_round, self._seed = clients_per_round, seed
        self._state = process.initialize()
        #: What each client keeps between rounds: a list of arrays a client, or None.
        self.client_states = None if client_state is None else [list(client_state) for _ in self._client_data]
        #: float32 [cohort, 3]: `process.REPORT_COLUMNS` of the last round.
        self.last_report = None

    def do_round(self, round_num: int) -> dict[str, float]:
        cohort = seeding.cohort(
            self._seed, round_num, num_clients=len(self._client_data), clients_per_round=self._clients_per_round
        )
        clients = [
            client_input(
                self._client_data[client],
                seeding.tf_seed(self._seed, "batch_order", str(client), round_num),
                self._class_weights,
                self.client_states and self.client_states[client],
            )
            for client in cohort
        ]
        self._state, outputs = self._process.next(self._state, clients)
        self.last_report = np.stack([output["report"] for output in outputs])
        if self.client_states:
            for client, output in zip(cohort, outputs, strict=True):
                self.client_states[client] = [np.asarray(part) for part in output["state"]]
        return {str(client): float(loss) for client, loss in zip(cohort, self.last_report[:, 1], strict=True)}

    def weights(self) -> list[np.ndarray]:
        return [np.asarray(weight) for weight in self._state["global_model_weights"]]

    def state(self) -> list[np.ndarray]:
        return leaves_of(self._state) + [part for state in self.client_states or () for part in state]

    def restore(self, state: Sequence[np.ndarray]) -> None:
        num_server = len(leaves_of(self._state))
        self._state = with_leaves(self._state, state[:num_server])
        if self.client_states:
            kept, size = list(state[num_server:]), len(self.client_states[0])
            self.client_states = [kept[i : i + size] for i in range(0, len(kept), size)]


class PersonalLearner(FederatedLearner):
    """A federation whose hospitals keep a part of the model; `weights` holds all parts, for `rounds.PersonalJudge`."""

    def weights(self) -> list[np.ndarray]:
        return super().weights() + [part for state in self.client_states for part in state]
