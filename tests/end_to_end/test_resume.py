"""A training process is killed at a random round, started again, and gives what an uninterrupted one gives: every bit.

That the last bit holds is measured, not promised by TFF: TFF adds the clients' updates in the order of the cohort, all
random numbers are stateless, and TensorFlow's kernels on one machine add in a fixed order. On another machine or
with another number of cores the bits differ (see tests/golden), but then all runs do.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from fl_utils.experiments import plans
from fl_utils.experiments.run import run
from fl_utils.learning import rounds

LIMIT_S = 240
ROOT = Path(__file__).resolve().parents[2]
TOTAL_ROUNDS = 8
FEDERATED = ("fedavg", "scaffold")
pytestmark = pytest.mark.timeout(3 * LIMIT_S)


def train(method: str, folder: Path, hold_before_save: int = 0):
    """Trains with a save after each round, in `folder`; keeps the last checkpoint, which `run` removes.

    With `hold_before_save` = r it stops for ever when round r is computed and not saved: there it is killed.
    """
    # Two of three hospitals a round, and SCAFFOLD's keep something: also who stays away must find it again.
    fields = {"num_clients": 3, "clients_per_round": 2} if method in FEDERATED else {}
    if method == "scaffold":
        fields |= {"model": "small_cnn", "client_momentum": 0.0, "client_learning_rate": 0.1}
    config = plans.base_config(
        "smoke", "phantom_brain", method=method, num_images=60, image_size_px=24, total_rounds=TOTAL_ROUNDS,
        client_epochs_per_round=2, **fields,
    )
    save = rounds.save_checkpoint

    def save_and_keep(path, **content):
        if content["done"] == hold_before_save:
            engine = sys.modules.get("fl_utils.learning.engine")
            note = json.dumps({"worker": engine.worker_pid() if engine else None})
            (folder / "holding.tmp").write_text(note)
            os.replace(folder / "holding.tmp", folder / "holding.json")
            time.sleep(2 * LIMIT_S)
        save(path, **content)
        if content["done"] == TOTAL_ROUNDS:
            shutil.copy(path, folder / "last.npz")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "save_checkpoint", save_and_keep)
        patch.setenv("FL_UTILS_RESULTS", str(folder / "results"))
        patch.setenv("FL_UTILS_CACHE", str(folder / "cache"))
        patch.delenv("FL_UTILS_NO_TRAINING", raising=False)
        return run(config, experiment="resume", progress=False, checkpoint_interval_s=0)


def start(method: str, folder: Path, hold_before_save: int = 0) -> subprocess.Popen:
    code = f"""
from pathlib import Path
from tests.end_to_end.test_resume import train
train({method!r}, Path({str(folder)!r}), {hold_before_save})
"""
    with (folder / "log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
                                stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def wait_for(condition, process: subprocess.Popen | None, what: str, folder: Path):
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        ended = process is not None and process.poll() is not None
        assert not ended and time.monotonic() < deadline, f"no {what}:\n{(folder / 'log').read_text()[-3000:]}"
        time.sleep(0.05)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def everything(folder: Path) -> dict[str, bytes]:
    """All that a run decides, as bytes: its tables, selected weights, last state and curve."""
    found = {path.name: path.read_bytes() for path in folder.glob("results/smoke/runs/resume/*/*.csv")}
    (selected,) = folder.glob("cache/models/*.npz")
    for name, path in (("selected", selected), ("last", folder / "last.npz")):
        with np.load(path) as arrays:
            found |= {f"{name}/{key}": arrays[key].tobytes() for key in arrays.files}
    return found


@pytest.mark.parametrize("method, seed", [("fedavg", 1), ("centralized", 2), ("scaffold", 5)])
def test_killed_and_started_again(method, seed, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir()
    whole.mkdir()
    victim = int(np.random.default_rng(seed).integers(2, TOTAL_ROUNDS))  # 2..7: a checkpoint there, rounds to go
    process = start(method, killed, hold_before_save=victim)
    try:
        wait_for((killed / "holding.json").exists, process, f"round {victim}", killed)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=LIMIT_S)
    assert process.returncode == -signal.SIGKILL
    worker = json.loads((killed / "holding.json").read_text())["worker"]
    assert (worker is not None) == (method in FEDERATED)
    if worker is not None:
        wait_for(lambda: gone(worker), None, f"end of worker {worker}", killed)
    (checkpoint,) = (killed / "cache" / "checkpoints").glob("*/*.npz")
    assert rounds.load_checkpoint(checkpoint)["done"] == victim - 1
    assert not list(killed.glob("results/smoke/runs/resume/*"))

    process = start(method, killed)
    try:
        assert process.wait(timeout=LIMIT_S) == 0, (killed / "log").read_text()[-3000:]
    finally:
        process.kill()
    assert not list((killed / "cache" / "checkpoints").rglob("*.npz"))

    record = train(method, whole)
    assert set(record.metrics["round"]) == set(range(1, TOTAL_ROUNDS + 1))
    resumed, uninterrupted = everything(killed), everything(whole)
    assert set(resumed) == set(uninterrupted) >= {"metrics.csv", "predictions.csv", "last/facts", "last/state_0000"}
    assert [name for name in resumed if resumed[name] != uninterrupted[name]] == []
