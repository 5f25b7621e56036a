"""Federated training in simulation: TFF runs each round of the cohort's client updates."""

from collections.abc import Sequence

import numpy as np
import tensorflow_federated as tff

from fl_utils import seeding
from fl_utils.learning import engine
from fl_utils.learning.algorithms import client_input


class FederatedLearner:
    """Runs a federated process round by round. See `rounds.Learner`.

    Args:
      process: of `learning.algorithms`; built for cohorts of `clients_per_round`.
      client_data: one path prefix a client, of `client_files.write_client_files`.
      class_weights: float32 [K], the same for all clients.
      clients_per_round: size of the cohort.
      seed: root seed of the run.
    """

    def __init__(
        self, process: tff.templates.IterativeProcess, client_data: Sequence[str], class_weights: np.ndarray,
        *, clients_per_round: int, seed: int,
    ):
        engine.ensure_started()
        self._process, self._client_data, self._class_weights = process, list(client_data), class_weights
        self._clients_per_round, self._seed = clients_per_round, seed
        self._state = process.initialize()
        #: float32 [cohort, 3]: `algorithms.REPORT_COLUMNS` of the last round.
        self.last_report = None

    def do_round(self, round_num: int) -> dict[str, float]:
        cohort = seeding.cohort(
            self._seed, round_num, num_clients=len(self._client_data), clients_per_round=self._clients_per_round
        )
        clients = [
            client_input(
                position,
                self._client_data[client],
                seeding.tf_seed(self._seed, "batch_order", str(client), round_num),
                self._class_weights,
            )
            for position, client in enumerate(cohort)
        ]
        self._state, self.last_report = self._process.next(self._state, clients)
        return {str(client): float(loss) for client, loss in zip(cohort, self.last_report[:, 1], strict=True)}

    def weights(self) -> list[np.ndarray]:
        return [np.asarray(weight) for weight in self._state["global_model_weights"]]

    def state(self) -> list[np.ndarray]:
        return [np.asarray(leaf) for leaf in tff.structure.flatten(self._as_struct())]

    def restore(self, state: Sequence[np.ndarray]) -> None:
        self._state = tff.structure.pack_sequence_as(self._as_struct(), list(state))

    def _as_struct(self):
        return tff.structure.from_container(self._state, recursive=True)
