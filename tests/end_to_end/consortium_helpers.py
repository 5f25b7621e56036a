"""Shared by the tests of the governed consortium: a small one on loopback with real processes, what its plans should come to,
and what its members' logs say.

What is to happen in the middle of a training happens while a hospital stands at a `Gate`, in a round that the test knows. So no
clock decides.
"""

import contextlib
import errno
import io
import json
import os
import stat
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil

from fl_utils.children import free_addresses
from fl_utils.config import ExperimentConfig, make_config
from fl_utils.deployment.nvflare.audit import read_log
from fl_utils.deployment.nvflare.consortium import authority_of, new_consortium
from fl_utils.deployment.nvflare.jobs import write_training_job
from fl_utils.deployment.nvflare.line import Answer, Line
from fl_utils.deployment.nvflare.plan import NoiseTerms, TrainingPlan, make_plan, read_signed, sign_plan
from fl_utils.deployment.nvflare.settings import AUDIT, DATA, REVOKED, hospital_names, member_folder
from fl_utils.deployment.nvflare.store import Store
from fl_utils.experiments.hospitals import as_taken, share_out
from fl_utils.experiments.run import data_of
from fl_utils.federation_agreement import agreement_config
from fl_utils.federations import write_images
from fl_utils.files import write_atomically
from fl_utils.learning.local import class_weights

#: Of every wait, in seconds: far beyond what it takes, so that a busy machine does not fail a test.
LIMIT_S = 400
RESEARCHER, OBSERVER = "researcher@university.org", "observer@authority.org"
OUTPUTS = ("model_update", "num_examples", "training_loss", "score_counts")
#: Softmax regression, three uneven hospitals, three rounds.
PLAIN = agreement_config("fedavg")
#: With differential privacy, on another data set of the same hospitals; its four rounds cost epsilon 0.33.
EPSILON, DELTA, NOISE = 1.0, 1e-3, NoiseTerms(noise_multiplier=4.0, sampling_rate=0.2, steps=2)
PRIVATE = make_config(
    dataset="phantom_chest", method="fedavg", partition="iid", num_clients=3, seed=0, profile="smoke", image_size_px=24,
    num_images=120, model="softmax_regression", augment=False, total_rounds=4, client_batch_size=16, client_learning_rate=0.05,
    privacy_unit="patient", epsilon=EPSILON, delta=DELTA, clipping_norm=1.0,
)
Weights = list[np.ndarray]


# --- a consortium ---


def made(folder: Path, configs: Sequence[ExperimentConfig]) -> Path:
    """A consortium whose hospitals hold the images of each configuration, published for researchers; nothing runs yet."""
    new_consortium(folder, hospitals=configs[0].num_clients, address=free_addresses(1)[0])
    for config in configs:
        dataset = data_of(config)
        hospitals = share_out(dataset, config)
        dataset = as_taken(dataset, hospitals, config)
        for number, name in enumerate(hospital_names(config.num_clients)):
            write_images(folder / name / DATA / config.dataset, dataset, hospitals, number)
            publish(folder, name, config, card_of(config, len(np.unique(dataset.groups[hospitals.train[number]]))))
    return folder


def publish(folder: Path, hospital: str, config: ExperimentConfig, card: dict | None = None, **changed) -> None:
    """The owner's rules, or others, for the card that is published, or another; by default nothing is in the way of `plan_of`."""
    own = store(folder, hospital)
    budget = {"epsilon": EPSILON, "delta": DELTA} if config.privacy_unit else {"epsilon": None, "delta": None}
    rules = {"min_patients": 3, "max_runs": 3, "outputs": OUTPUTS} | budget | changed
    own.publish(card or own.dataset(config.dataset).card, **rules, by="owner")
    for action in ("see", "train"):
        own.grant(config.dataset, "lead", action, "owner")


def card_of(config: ExperimentConfig, patients: int) -> dict:
    return {
        "name": config.dataset, "title": "Drawn images", "class_names": list(data_of(config).class_names),
        "image_size_px": config.image_size_px, "counts": {"train": {}}, "patients": {"train": patients}, "source": "drawn", "synthetic": True,
    }


def store(folder: Path, hospital: str) -> Store:
    return Store(Path(folder) / hospital)


def plan_of(config: ExperimentConfig = PLAIN, *, title: str, **changed) -> TrainingPlan:
    """A plan for all hospitals; the weights of classes are those of the simulation."""
    dataset = data_of(config)
    labels = dataset.labels[np.concatenate(share_out(dataset, config).train)]
    weights = class_weights(labels, dataset.num_classes, enabled=config.class_weighting)
    return make_plan(**{
        "title": title, "purpose": "To try it.", "config": config, "hospitals": hospital_names(config.num_clients),
        "class_names": dataset.class_names, "class_weights": tuple(map(float, weights)), "min_hospitals": config.num_clients,
        "noise": NOISE if config.privacy_unit else None,
    } | changed)


def sign(folder: Path, plan: TrainingPlan, name: str = RESEARCHER) -> bytes:
    startup = member_folder(folder, name) / "startup"
    return sign_plan(plan, (startup / "client.key").read_bytes(), (startup / "client.crt").read_bytes())


def approve(folder: Path, signed: bytes, plan: TrainingPlan, hospitals: Sequence[str] = ()) -> None:
    """Each owner (or those) approves; the plan is put before them as the site does."""
    for name in hospitals or plan.hospitals:
        store(folder, name).file_request(read_signed(signed, authority_of(folder)))
        store(folder, name).decide(plan.hash, True, "", "owner")


def submitted(
    line: Line, signed: bytes, plan: TrainingPlan, work: Path, change: Callable[[Path], None] = lambda job: None
) -> Answer:
    """What came of a plan's job that was written, changed by hand and handed in as a job; nothing here looks at the plan."""
    job = write_training_job(work, signed, plan)
    change(job)
    return line.submit_folder(job, work / "came")


# --- what should come of a plan ---


def in_one_process(folder: Path, plan: TrainingPlan) -> list[Weights]:
    """The weights before the first round and after each, by the hospitals' own code and data without any network."""
    from fl_utils.deployment.hospital import Hospital
    from fl_utils.deployment.nvflare.site_parts import initial_weights
    from fl_utils.deployment.server_step import ServerStep

    hospitals = [Hospital(plan, n, folder / name / DATA / plan.config.dataset) for n, name in enumerate(plan.hospitals)]
    found = [initial_weights(plan)]
    step = ServerStep(plan.config, found[0])
    for number in range(1, plan.config.total_rounds + 1):
        updates = [hospital.train(found[-1], np.array(plan.class_weights, np.float32), number) for hospital in hospitals]
        change = step.combine([update.delta for update in updates], [update.num_examples for update in updates])
        found.append(step.apply(found[-1], change))
    return found


def weights_in(path: Path) -> Weights:
    with np.load(path) as arrays:
        return [arrays[name] for name in arrays.files]


# --- what was said ---


def log_of(folder: Path, member: str, event: str | None = None, since: int = 0, **facts) -> list[dict]:
    """Entries of a member's audit log behind number `since`, of an event and with these facts."""
    wanted = facts | ({} if event is None else {"event": event})
    entries = [entry for entry in read_log(Path(folder) / member / AUDIT) if entry["number"] > since]
    return [entry for entry in entries if all(entry.get(name) == value for name, value in wanted.items())]


def heads(folder: Path) -> dict[str, int]:
    """How many entries each hospital's log has: a later `since`."""
    return {path.parent.name: len(read_log(path)) for path in Path(folder).glob(f"hospital_*/{AUDIT}")}


def wait_until(condition: Callable[[], object], what: str, folder: Path):
    """Waits until a condition gives something true, and returns that."""
    end = time.monotonic() + LIMIT_S
    while not (found := condition()):
        assert time.monotonic() < end, f"{what}: not seen in {LIMIT_S} s. {last_words(folder)}"
        time.sleep(0.1)
    return found


def last_words(folder: Path) -> str:
    """What a test that failed should show."""
    logs = [*Path(folder).glob("*/console.log"), *Path(folder).glob("hospital_*/*/log.txt")]
    words = [f"{name} log: {json.dumps(log_of(folder, name)[-4:])}" for name in ("hospital_1", "hospital_2", "hospital_3")]
    return "\n".join(["", *words, *(f"{log.parent.name}/{log.name}: {log.read_text(errors='replace')[-1500:]}" for log in logs)])


# --- meanwhile ---


class Meanwhile:
    """A training that is handed in by a thread, so that a test can do something in the middle of it."""

    def __init__(self, line: Line, signed: bytes, into: Path):
        self.answer: Answer | None = None
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(line, signed, into), daemon=True)
        self._thread.start()

    def _run(self, line: Line, signed: bytes, into: Path) -> None:
        try:
            self.answer = line.hand_in(signed, into)
        except Exception as error:
            self.error = error

    def result(self) -> Answer:
        """Waits for its end, and gives the answer, or raises."""
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive(), "the training did not end"
        if self.error:
            raise self.error
        return self.answer


class Gate:
    """Where a hospital waits until the test lets it in: its list of revoked certificates as a pipe.

    A hospital looks at the list when a plan is submitted, before each round, and before it takes the last model.
    """

    def __init__(self, folder: Path, hospital: str):
        self.folder, self.hospital, self._path = folder, hospital, folder / hospital / REVOKED
        self._content, self._pipe = self._path.read_bytes(), None
        self._renew()

    def arrived(self) -> None:
        """Waits until the hospital stands at the gate."""
        self._pipe = wait_until(self._opened, f"{self.hospital} at the gate", self.folder)

    def let_in(self) -> None:
        """Lets it in, when it comes."""
        if self._pipe is None:
            self.arrived()
        self._renew()  # a new pipe: whoever comes next is not taken for this one
        self._answer(self._content)

    def put_back(self) -> None:
        """Makes the list a file again, which can be changed; who stands at the gate waits on."""
        if stat.S_ISFIFO(self._path.stat().st_mode):
            write_atomically(self._path, lambda file: file.write(self._content))

    def open(self) -> None:
        """Takes the gate away; who stands there reads what the list is now."""
        self.put_back()
        if self._pipe is not None:
            self._answer(self._path.read_bytes())

    def _renew(self) -> None:
        made = self._path.with_suffix(".pipe")
        os.mkfifo(made)
        made.replace(self._path)

    def _opened(self) -> int | None:
        try:
            return os.open(self._path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return None  # nobody reads

    def _answer(self, content: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # who was killed there reads nothing
            os.write(self._pipe, content)
        os.close(self._pipe)
        self._pipe = None


def contents(folder: Path) -> Iterator[bytes]:
    """What every file below a folder holds, also within archives."""
    for path in Path(folder).rglob("*"):
        if path.is_file():
            yield from _within(path.read_bytes())


def _within(content: bytes) -> Iterator[bytes]:
    yield content
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                yield from _within(archive.read(name))


@contextlib.contextmanager
def timed(what: str):
    began = time.monotonic()
    yield
    print(f"[{what}: {time.monotonic() - began:.1f} s]")


def left_over(folder: Path) -> dict[int, str]:
    """Processes that work in a consortium's folder, those of jobs too: id -> command line; without those that only wait to be
    buried.
    """
    found = {}
    for process in psutil.process_iter(["cwd", "cmdline", "status"]):
        if str(folder) in (process.info["cwd"] or "") and process.info["status"] != psutil.STATUS_ZOMBIE:
            found[process.pid] = " ".join(process.info["cmdline"] or ())
    return found
