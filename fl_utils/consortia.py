"""A governed consortium out of a run's configuration: hospitals hold what the simulation deals them, and their owners decide."""

import contextlib
import dataclasses
import importlib.metadata
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm.auto import tqdm

from fl_utils import paths
from fl_utils.children import free_addresses
from fl_utils.config import ExperimentConfig
from fl_utils.data import card as catalogue_card
from fl_utils.deployment import nvflare as governed
from fl_utils.experiments.governance_plan import GOVERNED
from fl_utils.experiments.hospitals import as_taken, share_out
from fl_utils.experiments.run import data_of, recorded
from fl_utils.federations import quiet, write_deployed_record, write_images
from fl_utils.records import RunRecord

RESEARCHER = "researcher@university.org"
#: What an owner allows unless told otherwise.
OUTPUTS = ("model_update", "num_examples", "training_loss", "score_counts")


@dataclasses.dataclass(frozen=True)
class OwnerRules:
    """What each owner asks of trainings on the data set; see `nvflare.Store.publish`."""

    min_patients: int = 5
    max_runs: int = 3
    outputs: tuple[str, ...] = OUTPUTS
    epsilon: float | None = None
    delta: float | None = None


def fill(folder: Path, config: ExperimentConfig) -> None:
    """Gives each hospital its images, as `share_out` deals them; nothing is published by that.

    Raises:
      DataError: the data set is not at hand.
    """
    dataset = data_of(config)
    hospitals = share_out(dataset, config)
    dataset = as_taken(dataset, hospitals, config)
    for number, name in enumerate(governed.hospital_names(config.num_clients)):
        write_images(governed.data_folder(folder, name, config.dataset), dataset, hospitals, number)


def publish(folder: Path, hospital: str, config: ExperimentConfig, rules: OwnerRules, *, by: str) -> dict:
    """An owner publishes the hospital's data set, and lets researchers see it and train on it; returns the card."""
    known, dataset = catalogue_card(config.dataset), data_of(config)
    card = governed.make_card(
        governed.data_folder(folder, hospital, config.dataset), name=config.dataset, title=known.title, class_names=dataset.class_names,
        image_size_px=config.image_size_px, modality=known.modality, source=known.source, synthetic=dataset.synthetic,
    )
    store = governed.Store(Path(folder) / hospital)
    store.publish(card, **dataclasses.asdict(rules), by=by)
    for action in ("see", "train"):
        store.grant(config.dataset, "lead", action, by)
    store.grant(config.dataset, "member", "see", by)
    return card


def owner_of(hospital: str) -> str:
    """The name of a hospital's owner, as `new_consortium` makes it."""
    return f"owner@{hospital.replace('_', '')}.org"


def add_owner_account(folder: Path, hospital: str) -> Path:
    """An account for the owner's page, with a password of its own in a file that only its owner can read; returns the file."""
    password = secrets.token_urlsafe(12)
    governed.Store(Path(folder) / hospital).add_account(owner_of(hospital), password, "org_admin", days=90)
    file = Path(folder) / hospital / "owner_password.txt"
    file.touch(mode=0o600)
    file.write_text(password + "\n")
    return file


def sign(folder: Path, plan, person: str = RESEARCHER) -> bytes:
    """A plan, signed with a person's key."""
    kit = governed.member_folder(folder, person) / "startup"
    return governed.sign_plan(plan, (kit / "client.key").read_bytes(), (kit / "client.crt").read_bytes())


def cards_of(folder: Path, config: ExperimentConfig) -> dict[str, dict]:
    """The published cards of a configuration's data set, by hospital, read where they lie; for who holds all folders."""
    return {name: governed.Store(Path(folder) / name).dataset(config.dataset).card for name in governed.hospital_names(config.num_clients)}


@contextlib.contextmanager
def running_consortium(config: ExperimentConfig, rules: OwnerRules) -> Iterator[tuple[Path, "governed.Running"]]:
    """A whole consortium on this machine, with images and published cards, its processes running; gone after the block."""
    root = Path(tempfile.mkdtemp(prefix="fl_utils_consortium_"))
    try:
        folder = root / "consortium"
        governed.new_consortium(folder, hospitals=config.num_clients, address=free_addresses(1)[0])
        fill(folder, config)
        for name in governed.hospital_names(config.num_clients):
            publish(folder, name, config, rules, by=owner_of(name))
        with governed.Running(folder) as running:
            yield folder, running
    finally:
        shutil.rmtree(root, ignore_errors=True)


def approved_training(folder: Path, line: "governed.Line", plan, into: Path, *, hospitals: Sequence[str] | None = None,
                      show: Callable[[str], None] | None = None) -> "governed.Answer":
    """Both sides of a plan in one call: handed in, approved by each owner, handed in again and trained."""
    signed = sign(folder, plan)
    line.hand_in(signed, into.with_name(into.name + "_request"))
    for name in plan.hospitals if hospitals is None else hospitals:
        governed.Store(Path(folder) / name).decide(plan.hash, True, "", owner_of(name))
    return line.hand_in(signed, into, show=show)


def governed_run(config: ExperimentConfig, *, progress: bool = True) -> RunRecord:
    """The record of a configuration that was trained as an approved plan by real processes: loaded, or trained and written.

    A consortium is made for it, with owners whose budget is the plan's own epsilon, and put away again. The record is
    as `run.run` writes it; its facts say what the owners' stores and logs say of the run.

    Raises:
      RuleBroken, ConsortiumError: the training failed.
      DataError, RecordError: as `run.run`.
    """
    root = paths.runs_root(config.profile) / GOVERNED
    record = recorded(config, root)
    if record is not None:
        return record
    quiet()
    bar = tqdm(total=3, desc=f"governed {config.dataset} s{config.seed}", unit="step", disable=not progress, leave=False)
    with bar, running_consortium(config, OwnerRules(epsilon=config.epsilon, delta=config.delta)) as (folder, _):
        bar.update()
        plan = governed.plan_of(
            cards_of(folder, config), config, title="Governed training", purpose="To compare with the simulation.", min_hospitals=config.num_clients
        )
        with governed.Line(governed.member_folder(folder, RESEARCHER)) as line:
            line.wait_for(config.num_clients)
            bar.update()
            began = time.monotonic()
            answer = approved_training(folder, line, plan, folder / "came")
            duration_s = time.monotonic() - began
        if not answer.finished:
            raise governed.ConsortiumError(f"The governed training ended with {answer.status}: {answer.hospitals}")
        outcome = answer.outcome("outcome")
        return write_deployed_record(
            config, data_of(config), answer.folder, root, selected_round=outcome["selected_round"], duration_s=round(duration_s, 1),
            facts={
                "nvflare": importlib.metadata.version("nvflare"), "deployed": "NVFlare: one process a site, one a site and job, on one machine, mutual TLS",
                "plan": plan.hash, "governed": [_told(folder, name, config, outcome) for name in plan.hospitals],
            },
        )


def _told(folder: Path, hospital: str, config: ExperimentConfig, outcome: dict) -> dict:
    store = governed.Store(Path(folder) / hospital)
    number, seal = outcome["log_heads"][hospital].split(":")
    path = Path(folder) / hospital / governed.AUDIT
    return {
        "hospital": hospital, "epsilon_spent": store.spent(config.dataset) if config.privacy_unit else None,
        "runs": [run.state for run in store.runs()], "log_entries": len(governed.read_log(path)),
        "log_problems": governed.verify_log(path, [(int(number), seal)]),
    }
