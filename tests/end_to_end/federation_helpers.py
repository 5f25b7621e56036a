"""Shared by the tests of the real federation: small ones on loopback, what they should come to, and what is left of them."""

import contextlib
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil

from fl_utils.config import make_config
from fl_utils.deployment.flower import Federation, read_events, read_federation
from fl_utils.federations import federation_of, set_up
from fl_utils.learning.rounds import load_checkpoint

#: Of every wait: far beyond what it takes, so that a slow machine does not fail a test.
LIMIT_S = 200
_OF_FEDERATION = (
    "address", "min_hospitals", "join_timeout_s", "round_timeout_s", "max_void_rounds", "secure", "transport",
)
Weights = list[np.ndarray]


def new_federation(folder: Path, *, hospitals: int = 2, rounds: int = 3, **fields) -> Federation:
    """Makes a federation on phantoms, at a free port of loopback; `fields` are the run's and `settings.Federation`'s."""
    agreed = {"address": f"127.0.0.1:{free_port()}"} | {name: fields.pop(name) for name in _OF_FEDERATION if name in fields}
    run = {
        "dataset": "phantom_brain", "method": "fedavg", "partition": "quantity", "profile": "smoke", "seed": 11, "num_images": 120,
        "image_size_px": 24, "model": "softmax_regression", "augment": False, "client_batch_size": 16, "client_learning_rate": 0.05,
    } | fields
    if run["partition"] == "quantity":
        run.setdefault("quantity_alpha", 5.0)
    federation = federation_of(make_config(num_clients=hospitals, total_rounds=rounds, **run), **agreed)
    set_up(folder, federation)
    return federation


def free_port() -> int:
    """Below the ports that the system hands out itself, so that nobody takes it while a server is started again."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


# --- what a training should come to ---


def initial_weights(federation: Federation) -> Weights:
    from fl_utils.learning.configured import local_settings, new_classifier
    from fl_utils.learning.local import travelling_weights

    model = new_classifier(federation.config, federation.image_shape, len(federation.class_names))
    return [weight.numpy() for weight in travelling_weights(model, local_settings(federation.config))]


def reference(folder: Path, contributions: Sequence[Sequence[int]], *, joined: Sequence[int] | None = None) -> Weights:
    """The weights after the same training in this process: no server, no network, no other process.

    Args:
      folder: of a federation without differential privacy and without a secure sum.
      contributions: for each round the hospitals whose updates count.
      joined: who was there when the training began, which decides on the class weights; default all.
    """
    from fl_utils.deployment.hospital import Hospital
    from fl_utils.deployment.server_step import ServerStep
    from fl_utils.learning.local import class_weights

    federation = read_federation(folder / "server")
    everybody = range(federation.config.num_clients)
    hospitals = [Hospital(federation, n, folder / f"hospital_{n}" / "data") for n in everybody]
    counts = np.sum([hospitals[n].introduction()["class_counts"] for n in everybody if joined is None or n in joined], axis=0)
    labels = np.repeat(np.arange(len(counts)), counts)
    weighting = class_weights(labels, len(counts), enabled=federation.config.class_weighting)
    weights = initial_weights(federation)
    step = ServerStep(federation.config, weights)
    for number, who in enumerate(contributions, 1):
        updates = [hospitals[n].train(weights, weighting, number) for n in sorted(who)]
        change = step.combine([update.delta for update in updates], [update.num_examples for update in updates])
        weights = step.apply(weights, change)
    return weights


def checkpoint(folder: Path) -> dict:
    """The server's checkpoint; there must be one that can be read."""
    saved = load_checkpoint(folder / "server" / "checkpoint.npz")
    assert saved is not None, f"no usable checkpoint in {folder}"
    return saved


def final_weights(folder: Path) -> Weights:
    """The common weights after the last round; the optimizer's state comes after them in the checkpoint."""
    return checkpoint(folder)["state"][: len(initial_weights(read_federation(folder / "server")))]


def contributions(folder: Path) -> list[list[int]]:
    """For each round the hospitals whose updates the server took, as its checkpoint says; the events must say the same."""
    saved = checkpoint(folder)
    taken = {number: set() for number in range(1, saved["done"] + 1)}
    for number, client, split, metric, _ in saved["rows"]:
        if (split, metric) == ("train", "loss"):
            taken[number].add(int(client))
    for event in events(folder):
        if "hospitals" in event:
            assert set(event["hospitals"]) == taken[event["round"]], event
    return [sorted(who) for who in taken.values()]


def distance(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float:
    """The largest absolute difference of two lists of weights."""
    return max(float(np.abs(x.astype(np.float64) - y).max()) for x, y in zip(a, b, strict=True))


def same_bits(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> bool:
    return len(a) == len(b) and all(x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in zip(a, b))


def model_in(member: Path) -> Weights:
    """The published model in the folder of the server or of a hospital."""
    with np.load(member / "model.npz") as arrays:
        return [arrays[name] for name in arrays.files]


# --- what happens ---


def events(folder: Path) -> list[dict]:
    return read_events(folder / "server")


def said(folder: Path, text: str, hospital: int | None = None) -> list[dict]:
    """The events whose text holds `text`, of one hospital or of any."""
    return [event for event in events(folder) if text in event["text"] and hospital in (None, event.get("hospital"))]


def wait_until(condition: Callable[[], object], what: str, folder: Path | None = None):
    """Waits until a condition gives something true, and returns that."""
    end = time.monotonic() + LIMIT_S
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < end, f"{what} did not come in {LIMIT_S} s; {last_words(folder) if folder else ''}"
        time.sleep(0.03)


def wait_for_event(folder: Path, text: str, *, since: int = 0, hospital: int | None = None) -> int:
    """Waits for an event whose text holds `text`.

    Args:
      folder: of the federation.
      text: to look for.
      since: events before this place are not looked at.
      hospital: only events about this one.
    Returns:
      The place after it: a later `since`.
    """

    def place() -> int:
        for number, event in enumerate(events(folder)[since:], since + 1):
            if text in event["text"] and hospital in (None, event.get("hospital")):
                return number
        return 0

    return wait_until(place, f"the event {text!r}", folder)


def last_words(folder: Path) -> str:
    """What a test that failed should show."""
    logs = sorted(folder.glob("*/console.log")) + sorted(folder.glob("*.log"))
    words = [f"{log.parent.name}/{log.name}: {log.read_text(errors='replace')[-1000:]}" for log in logs]
    return "\n".join([*map(str, events(folder)[-8:]), *words])


# --- processes ---


def typed(*arguments) -> list[str]:
    """The command as a user types it, of this Python's environment."""
    return [str(Path(sys.executable).with_name("fl-utils")), *map(str, arguments)]


@contextlib.contextmanager
def commands() -> Iterator[Callable[..., subprocess.Popen]]:
    """Gives a function that starts a command (its output in a file); those that still run at the end are killed."""
    started: list[subprocess.Popen] = []

    def start(command: Sequence[str], log: Path, **options) -> subprocess.Popen:
        with log.open("ab") as file:
            started.append(subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, **options
            ))
        return started[-1]

    try:
        yield start
    finally:
        for process in started:
            process.kill()
            process.wait()


def ended(process: subprocess.Popen, log: Path) -> int:
    """Exit code of a process that must end by itself."""
    try:
        return process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"{log} did not end: {log.read_text(errors='replace')[-2000:]}") from None


def left_over(folder: Path) -> dict[int, str]:
    """Processes whose command line names the folder: id -> command line. Those that wait to be buried do not count."""
    found = {}
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or ())
        if str(folder) in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found[process.pid] = line
    return found
