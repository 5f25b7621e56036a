"""The server's process: Flower's SuperLink, the training on it, and what is left when it is over."""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from fl_utils.deployment.flower import credentials
from fl_utils.deployment.flower.board import Board
from fl_utils.deployment.flower.coordinator import Coordinator, Progress
from fl_utils.deployment.flower.journal import fingerprint
from fl_utils.deployment.flower.settings import Federation, FederationError, read_federation, server_folder
from fl_utils.deployment.flower.superlink import running, superlink
from fl_utils.files import write_atomically
from fl_utils.learning.configured import local_settings, new_classifier
from fl_utils.learning.errors import CacheError
from fl_utils.learning.local import travelling_weights
from fl_utils.records import METRIC_COLUMNS

MODEL, METRICS, FACTS = "model.npz", "metrics.csv", "model.json"


def run_server(folder: Path, *, say: Callable[[str], None] = print) -> Path:
    """Serves a training from its first round, or from where an earlier server left it, to its end.

    Args:
      folder: of the federation.
      say: is handed a line for the user now and then.
    Returns:
      The server's folder, with model.npz (the selected round's weights), metrics.csv and model.json.
    Raises:
      FederationError: too few hospitals answered, the address is taken, or there is no such federation.
      CredentialError: the server's certificate or a hospital's key cannot be used.
      CacheError: the disk is full; the checkpoint of before is kept.
    """
    logging.getLogger("flwr").setLevel(logging.WARNING)
    own = server_folder(folder)
    federation = read_federation(own)
    credentials.check_certificate(own)
    board = Board(own, federation.config.num_clients, say)
    began, ended = time.monotonic(), "stopped"
    try:
        board.show(total_rounds=federation.config.total_rounds)
        initial = _initial_weights(federation)
        with superlink(federation, own) as (control, inner), running(federation, own, control, inner) as (grid, nodes):
            board.event(f"Listening at {federation.address}.")
            progress = Coordinator(federation, grid, nodes, initial, own, board).run()
        _write(own, federation, progress, time.monotonic() - began)
        ended = "finished"
        board.event(f"Finished after round {progress.done}; the model is in server/{MODEL}.")
    except (FederationError, CacheError) as error:
        ended = "failed"
        board.event(str(error))
        raise
    finally:
        board.show(state=ended)
        board.close()
    return own


def _initial_weights(federation: Federation) -> list[np.ndarray]:
    model = new_classifier(federation.config, federation.image_shape, len(federation.class_names))
    return [weight.numpy() for weight in travelling_weights(model, local_settings(federation.config))]


def _write(folder: Path, federation: Federation, progress: Progress, duration_s: float) -> None:
    round_num, weights = progress.selected(federation.config)
    facts = {
        "fingerprint": federation.fingerprint, "selected_round": round_num,
        "rounds": progress.done, "weights_sha256": fingerprint(weights), "last_weights_sha256": fingerprint(progress.weights),
        "duration_s": round(duration_s, 1),
    }
    table = pd.DataFrame(progress.rows, columns=METRIC_COLUMNS).sort_values("round", kind="stable")
    write_atomically(folder / MODEL, lambda file: np.savez(file, *weights))
    write_atomically(folder / METRICS, lambda file: file.write(table.to_csv(index=False, float_format="%.8g").encode()))
    write_atomically(folder / FACTS, lambda file: file.write(json.dumps(facts, indent=2).encode()))
