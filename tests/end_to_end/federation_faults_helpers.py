"""Federations whose hospitals take orders: to stop in the middle of training, to send nonsense, to write down what they do.

This file is also the hospital's program: `python -m tests.end_to_end.federation_faults_helpers <parent's pid> client ...`, from
the repository's folder, is `fl-utils client ...` with `Hospital.train` obeying the files in hospital_N/orders. So a test
decides in which round something happens, and no clock does.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fl_utils.config import make_config
from fl_utils.deployment.flower import Local, read_events, read_federation
from fl_utils.federations import federation_of, set_up
from tests.end_to_end.federation_helpers import checkpoint, free_port, initial_weights

ROOT = Path(__file__).resolve().parents[2]
_PROGRAM = "tests.end_to_end.federation_faults_helpers"
LIMIT_S = 240  # against hanging for ever; far more than a busy machine needs
#: What a bad hospital sends, one after another: each until the server has named it.
FAULTS = ("not finite", "shape", "dtype", "num_examples", "loss")
MANY = 5000  # rounds: more than a test waits for; it ends the training when it has seen what it wants
STOP, SPOIL, RECORD, HEARTBEAT = "stop_in_round", "spoil", "record", "heartbeat_s"


def new_federation(folder: Path, *, hospitals: int, total_rounds: int = MANY, class_weighting=True, address=None, **agreed):
    """A federation of hospitals of unequal size on a few small phantoms; `agreed` are fields of `Federation`."""
    config = make_config(
        dataset="phantom_brain", method="fedavg", partition="quantity", quantity_alpha=5.0, num_clients=hospitals, seed=3,
        profile="smoke", image_size_px=24, num_images=120, model="softmax_regression", augment=False,
        class_weighting=class_weighting, total_rounds=total_rounds, client_learning_rate=0.05, client_batch_size=16,
    )
    federation = federation_of(config, address=address or f"127.0.0.1:{free_port()}", **agreed)
    set_up(folder, federation)
    return federation


class Obedient(Local):
    """As `Local`, with hospitals that obey `order`."""

    def failed(self) -> bool:
        """Whether the server ended, or a hospital by itself and not well."""
        return self.server.poll() is not None or any((one.poll() or 0) > 0 for one in self.hospitals.values())

    def start_hospital(self, hospital: int, *options: str) -> None:
        self.hospitals[hospital] = start_client(self.folder, hospital, *options)


def start_client(
    folder: Path, number: int, *options: str, client_folder: Path | None = None, within: Sequence[str] = ()
) -> subprocess.Popen:
    """A hospital's process that ends with this one, and obeys orders.

    Args:
      folder: of the federation.
      number: which hospital it says that it is.
      options: further ones of `fl-utils client`.
      client_folder: for --folder; default the federation's.
      within: a command to put in front, such as `ip netns exec NAME`.
    """
    arguments = ["client", str(number), "--folder", str(client_folder or folder), *options]
    return start(arguments, client_folder or folder / f"hospital_{number}", within)


def start(arguments: Sequence[str], place: Path, within: Sequence[str] = ()) -> subprocess.Popen:
    """`fl-utils` with these arguments as a process that ends with this one; what it says is in `place`/console.log."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    with (place / "console.log").open("ab") as log:
        return subprocess.Popen(
            [*within, sys.executable, "-m", _PROGRAM, str(os.getpid()), *arguments], stdin=subprocess.DEVNULL, stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True, env=environment, cwd=ROOT,
        )


def order(folder: Path, hospital: int, what: str, text: str = "") -> None:
    """Tells a hospital what to do.

    Args:
      folder: of the federation.
      hospital: its number.
      what: STOP, in the training of round `text` or a later one; SPOIL what it sends; RECORD what it is given and computes;
        HEARTBEAT (read at the start), of so many seconds.
      text: see there.
    """
    orders = folder / f"hospital_{hospital}" / "orders"
    orders.mkdir(exist_ok=True)
    (orders / f".{what}").write_text(text)
    (orders / f".{what}").rename(orders / what)  # whole or not at all: the hospital may look at any moment


def await_(found: Callable[[], object], what: str, federation: Obedient):
    """Waits until `found` gives something, and gives that.

    Raises:
      AssertionError: nothing came, or a process failed first; with the last words of all.
    """
    end = time.monotonic() + LIMIT_S
    while True:
        failed = federation.failed()
        if result := found():
            return result
        if failed or time.monotonic() > end:
            logs = sorted(federation.folder.glob("*/console.log"))
            words = [f"{log.parent.name}: {log.read_text(errors='replace')[-600:]}" for log in logs]
            raise AssertionError(f"{what}: not seen{', and a process failed' if failed else ''}.\n" + "\n".join(words))
        time.sleep(0.05)


def is_stopped(process: subprocess.Popen) -> bool:
    """Whether it obeyed the order to stop."""
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def said_of(folder: Path, hospital: int, text: str = "") -> list[dict]:
    """Events about a hospital that hold a text."""
    return [event for event in whole_events(folder) if event.get("hospital") == hospital and text in event["text"]]


def said_since(folder: Path, since: dict, hospital: int, *texts: str) -> list[dict]:
    """Events after another one about a hospital that hold one of the texts."""
    events = whole_events(folder)
    later = events[events.index(since) + 1 :] if since in events else []
    return [event for event in later if event.get("hospital") == hospital and any(text in event["text"] for text in texts)]


def whole_events(folder: Path) -> list[dict]:
    """The server's events; none while the last line is being written, so that nothing is taken for missing."""
    try:
        return read_events(folder / "server")
    except json.JSONDecodeError:
        return []


def rounds_of(folder: Path) -> dict[int, list[int]]:
    """Round -> hospitals whose updates the server says it used."""
    return {event["round"]: event["hospitals"] for event in whole_events(folder) if "hospitals" in event}


def first_round_after(folder: Path, event: dict) -> dict | None:
    """The event that ends the round in which another was told: with `hospitals`, or without where there was no new model."""
    events = whole_events(folder)
    later = events[events.index(event) + 1 :] if event in events else []
    return next((one for one in later if one["text"].startswith("Round ")), None)


def counted_after(folder: Path, hospital: int, event: dict) -> list[int]:
    """Rounds with a hospital's update that the server told of after an event."""
    events = whole_events(folder)
    later = events[events.index(event) :] if event in events else []
    return [one["round"] for one in later if hospital in one.get("hospitals", ())]


def checkpoint_of(folder: Path) -> tuple[int, list[np.ndarray]]:
    """Rounds done and the common model's weights, as the server saved them."""
    saved = checkpoint(folder)
    return saved["done"], saved["state"]


def used_updates(folder: Path) -> list[list[int]]:
    """Of each round that the checkpoint knows, the hospitals whose updates were used.

    The checkpoint's rows say it and the events say it. Where the server was ended between the two, the last round's event
    is missing; nothing else may differ.
    """
    saved = checkpoint(folder)
    rows = [
        sorted(int(who) for number, who, split, metric, _ in saved["rows"] if (number, split, metric) == (wanted, "train", "loss"))
        for wanted in range(1, saved["done"] + 1)
    ]
    told = rounds_of(folder)
    assert saved["done"] - 1 <= len(told) and sorted(told) == list(range(1, len(told) + 1)), sorted(told)
    assert rows[: len(told)] == [told[number] for number in range(1, min(len(told), saved["done"]) + 1)]
    return rows


class Reference:
    """The same training in this process, without a network, from the same folders.

    Args:
      folder: of the federation.
      planned_for: hospitals that had joined when the training was planned, whose images give the class weights; default all.
    """

    def __init__(self, folder: Path, planned_for: Sequence[int] | None = None):
        from fl_utils.deployment.hospital import Hospital
        from fl_utils.learning.local import class_weights

        self.federation = federation = read_federation(folder / "server")
        number = federation.config.num_clients
        folders = [folder / f"hospital_{n}" for n in range(number)]
        self.hospitals = [Hospital(federation, n, own / "data") for n, own in enumerate(folders)]
        self.introduced = [hospital.introduction() for hospital in self.hospitals]
        known = [self.introduced[n]["class_counts"] for n in (range(number) if planned_for is None else planned_for)]
        counts = np.sum(known, axis=0)
        self.class_weights = class_weights(
            np.repeat(np.arange(len(counts)), counts), len(counts), enabled=federation.config.class_weighting
        )
        self.initial = initial_weights(federation)

    def update(self, hospital: int, weights: Sequence[np.ndarray], round_num: int):
        return self.hospitals[hospital].train(weights, self.class_weights, round_num)

    def after(self, contributions: Sequence[Sequence[int]], weights: Sequence[np.ndarray] | None = None, first: int = 1):
        """The weights after these rounds, each the mean of these hospitals' updates weighted by their examples (float64).

        Args:
          contributions: of each round, the hospitals.
          weights: to begin with; default the initial model's.
          first: number of the first of these rounds.
        """
        weights = self.initial if weights is None else weights
        for round_num, hospitals in enumerate(contributions, first):
            updates = [self.update(hospital, weights, round_num) for hospital in hospitals]
            total = sum(update.num_examples for update in updates)
            shares = [update.num_examples / total for update in updates]
            parts = zip(*(update.delta for update in updates), strict=True)
            change = [sum(share * one.astype(np.float64) for share, one in zip(shares, part, strict=True)) for part in parts]
            weights = [(weight - part).astype(np.float32) for weight, part in zip(weights, change, strict=True)]
        return weights


def recorded(folder: Path, hospital: int) -> dict[int, dict]:
    """Round -> `weights` given to a hospital and the `delta` that it computed, as its own process wrote them down."""
    found = {}
    for path in (folder / f"hospital_{hospital}" / "recorded").glob("*.npz"):
        with np.load(path) as arrays:
            found[int(path.stem)] = {
                kind: [arrays[name] for name in sorted(arrays.files) if name.startswith(kind)] for kind in ("weights", "delta")
            }
    return found


def distance(weights: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    """The largest difference of any two numbers; shapes must agree."""
    assert [one.shape for one in weights] == [other.shape for other in others]
    return max(float(np.abs(one.astype(np.float64) - other).max()) for one, other in zip(weights, others, strict=True))


def sent_by(folder: Path) -> list[bytes]:
    """What a hospital sent with --keep-sent, call by call."""
    return [path.read_bytes() for path in sorted(folder.glob("*.bin"))]


def pieces(delta: Sequence[np.ndarray], kind: type = np.float32) -> list[bytes]:
    """An update's bytes in pieces of 8 numbers of one array; without those that hold a 0 and could be anything's."""
    rows = np.concatenate([part.ravel()[: part.size // 8 * 8].reshape(-1, 8) for part in delta])
    return [row.astype(kind).tobytes() for row in rows if row.all()]


# --- the hospital's program ---


def _obeying(honest):
    """`Hospital.train` that looks for orders first."""
    from fl_utils.deployment.hospital import Update

    def spoiled(update: Update, fault: str) -> Update:
        first, *others = update.delta
        delta, num_examples, loss = {
            "not finite": ([np.full_like(first, np.nan), *others], update.num_examples, update.loss),
            "shape": ([first[1:], *others], update.num_examples, update.loss),
            "dtype": ([first.astype(np.int32), *others], update.num_examples, update.loss),
            "num_examples": (update.delta, 1000 * update.num_examples, update.loss),
            "loss": (update.delta, update.num_examples, float("nan")),
        }[fault]
        return Update(delta, num_examples, loss)

    def train(self, weights, class_weights, round_num, noise=None):
        own = self._folder
        stop = own / "orders" / STOP
        if stop.is_file() and round_num >= int(stop.read_text()):
            stop.unlink()
            os.kill(os.getpid(), signal.SIGSTOP)  # the whole process, here and now, until SIGCONT or SIGKILL
        update = honest(self, weights, class_weights, round_num, noise)
        if (own / "orders" / RECORD).is_file():
            (own / "recorded").mkdir(exist_ok=True)
            arrays = {f"weights_{n:03d}": array for n, array in enumerate(weights)}
            arrays |= {f"delta_{n:03d}": array for n, array in enumerate(update.delta)}
            np.savez(own / "recorded" / f"{round_num}.npz", **arrays)
        if (own / "orders" / SPOIL).is_file():
            named = len(said_of(own.parent, self.number, "left out"))
            if named < len(FAULTS):
                return spoiled(update, FAULTS[named])
        return update

    return train


def _warm(make):
    """`Hospital.__init__` that also traces what a round needs: the tests' short time limits are not for that."""
    from fl_utils.deployment.hospital import Hospital

    honest = Hospital.train

    def init(self, federation, number, data, *, budget=None):
        make(self, federation, number, data, budget=budget)
        self._folder = data.parent  # where its orders are
        weights = [weight.numpy() for weight in self._model.trainable_variables + self._model.non_trainable_variables]
        self.judge(weights)
        honest(self, weights, np.ones(len(federation.class_names), np.float32), 1)

    return init


def main() -> None:
    from fl_utils import children, cli

    if not children.end_with_parent(int(sys.argv.pop(1))):
        sys.exit(1)
    if sys.argv[1] == "client":
        _obey()
    cli.main()


def _obey() -> None:
    from fl_utils.deployment.flower import link
    from fl_utils.deployment.hospital import Hospital

    heartbeat = Path(sys.argv[sys.argv.index("--folder") + 1]) / f"hospital_{sys.argv[2]}" / "orders" / HEARTBEAT
    if heartbeat.is_file():
        link.HEARTBEAT_S = float(heartbeat.read_text())
    Hospital.__init__, Hospital.train = _warm(Hospital.__init__), _obeying(Hospital.train)


if __name__ == "__main__":
    main()
