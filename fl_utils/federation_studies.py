"""What notebook 08 shows of the deployed federation, measured once and kept beside the runs' records."""

import dataclasses
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from fl_utils import paths
from fl_utils.config import ExperimentConfig, make_config
from fl_utils.deployment.flower import Federation, Local, SecureSum, read_events, read_journal
from fl_utils.experiments import plans
from fl_utils.experiments.measured import Content, Layout, digest, load_or_compute
from fl_utils.experiments.run import data_of
from fl_utils.federations import deployed_run, federation_of, free_address, set_up
from fl_utils.records import RunRecord, describe_environment

#: Folder of the studies, below `results/runs/`.
STUDIES = "deployment_studies"
VERSION = 1  # raise it when what is measured changes its meaning: old studies are then ignored
#: How the messages of a federation can travel.
TRANSPORTS = {"plain": "No TLS, no keys", "tls": "TLS and keys", "secure": "TLS, keys and SecAgg+"}
#: Largest distance of the weights that counts as agreement after three rounds.
TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class Settings:
    """How large the studies of a profile are.

    Attributes:
      dataset: of the deployed runs and the interrupted one.
      seeds: of the deployed runs.
      rounds: of the interrupted federation; a hospital is killed after `killed_after` and started again after `back_after`.
      timed_rounds: counted rounds of the timing, a transport.
      methods: whose weights are compared with the simulation's.
    """

    dataset: str
    seeds: tuple[int, ...]
    rounds: int
    killed_after: int
    back_after: int
    timed_rounds: int
    methods: tuple[str, ...] = ("fedavg", "fedprox", "fedadam")


SETTINGS = {
    "smoke": Settings("phantom_brain", (0,), 6, 2, 4, 2, ("fedavg",)),
    "quick": Settings("phantom_brain", (0,), 12, 3, 7, 4),
    "paper": Settings("brain_mri", (0, 1, 2, 3, 4), 20, 5, 11, 10),
}


def deployed_configs(profile: str) -> list[ExperimentConfig]:
    """The runs that are deployed: those of notebook 02 with four hospitals, one a seed."""
    settings = SETTINGS[profile]
    return [
        config for config in plans.configs_02(profile, settings.dataset)
        if config.method == "fedavg" and config.split == "deduplicated" and config.num_clients == 4
        and config.clients_per_round is None and config.seed in settings.seeds
    ]


def deployed_runs(profile: str, progress: bool = True) -> list[RunRecord]:
    """Their records; see `federations.deployed_run`."""
    return [deployed_run(config, progress=progress) for config in deployed_configs(profile)]


def agreement(profile: str, progress: bool = True) -> pd.DataFrame:
    """How far the weights of Flower, TFF and NumPy are apart after three rounds on phantoms.

    Columns: method, pair, distance (largest over all weights), moved (how far the weights went), parameters. NumPy is
    the reference's softmax regression, gradients included; with other models it averages the hospitals' changes.
    """
    settings = SETTINGS[profile]

    def made() -> Content:
        from fl_utils.federation_agreement import distances

        table = pd.concat([distances(method) for method in settings.methods], ignore_index=True)
        return Content({"agreement": table}, {"rounds": 3} | describe_environment())

    return _study(profile, "agreement", ("agreement",), [settings.methods], made).tables["agreement"]


def interruption(profile: str, watch: Callable[[dict], None] | None = None) -> Content:
    """A federation in which a hospital is killed and comes back.

    Args:
      profile: of the notebooks.
      watch: is handed the status again and again while it runs.
    Returns:
      Tables events (round, hospital, text), metrics (as a record's), sent (the hospitals' logs); facts: exit_codes, the
      rounds at which the hospital was killed and started again, model_bytes, synthetic.
    """
    settings = SETTINGS[profile]
    config = _shortened(deployed_configs(profile)[0], settings.rounds)

    def made() -> Content:
        with _Folder(federation_of(config, address=free_address(), round_timeout_s=_timeout(profile))) as folder:
            with Local(folder) as local:
                local.wait(show=watch, until=lambda status: status["round"] >= settings.killed_after)
                local.kill_hospital(2)
                local.wait(show=watch, until=lambda status: status["round"] >= settings.back_after)
                local.start_hospital(2)
                local.wait(show=watch)
                codes = local.exit_codes()
            return _interrupted_content(folder, config, codes, settings)

    tables = ("events", "metrics", "sent")
    return _study(profile, "interruption", tables, [config.model_dump(mode="json"), settings.killed_after, settings.back_after], made)


def overhead(profile: str, progress: bool = True) -> pd.DataFrame:
    """Seconds of a round beside the slowest hospital's own work, by transport, measured in one run of each.

    The reference work: 4 hospitals of 128 images of 64 x 64 pixels, the seed's CNN, batches of 32, one pass a round. The first
    round, in which TensorFlow traces its step, is not counted.

    Columns: transport, label, round, duration_s, work_s, over_s, sent_bytes (of one hospital), model_bytes.
    """
    settings = SETTINGS[profile]

    def made() -> Content:
        rows = [row for transport in TRANSPORTS for row in _timed(transport, settings.timed_rounds, profile)]
        columns = ["transport", "label", "round", "duration_s", "work_s", "over_s", "sent_bytes", "model_bytes"]
        return Content({"overhead": pd.DataFrame(rows, columns=columns)}, describe_environment())

    return _study(profile, "overhead", ("overhead",), [settings.timed_rounds], made).tables["overhead"]


def _study(profile: str, name: str, tables: tuple[str, ...], decided_by: list, made: Callable[[], Content]) -> Content:
    layout = Layout("studies", tables, "%.8g", dtype={"client": str, "split": str, "metric": str}, verb="make")
    folder = paths.runs_root(profile) / STUDIES / f"{name}_{digest([VERSION, name, *decided_by])}"
    return load_or_compute(folder, layout, profile, made)


class _Folder:
    """A federation in a folder that is gone after the block, with its keys and images."""

    def __init__(self, federation: Federation):
        self._federation = federation

    def __enter__(self) -> Path:
        self._root = Path(tempfile.mkdtemp(prefix="fl_utils_federation_"))
        set_up(self._root / "federation", self._federation)
        return self._root / "federation"

    def __exit__(self, *_) -> None:
        shutil.rmtree(self._root, ignore_errors=True)


def _interrupted_content(folder: Path, config: ExperimentConfig, codes: dict, settings: Settings) -> Content:
    events = pd.DataFrame(read_events(folder / "server"))
    for column in ("round", "hospital"):
        events[column] = events[column] if column in events else np.nan
    took_part = events[events["hospitals"].notna()] if "hospitals" in events else events[:0]
    rows = [(int(one["round"]), hospital) for _, one in took_part.iterrows() for hospital in one["hospitals"]]
    metrics = pd.read_csv(folder / "server" / "metrics.csv", dtype={"client": str})
    part = pd.DataFrame([(number, str(hospital), "round", "took_part", 1.0) for number, hospital in rows], columns=metrics.columns)
    sent = pd.concat([
        pd.DataFrame(read_journal(folder / f"hospital_{number}")).assign(hospital=number) for number in range(config.num_clients)
    ])
    facts = {
        "exit_codes": codes, "killed_after": settings.killed_after, "back_after": settings.back_after,
        "synthetic": data_of(config).synthetic, "rounds": config.total_rounds, "model_bytes": _model_bytes(folder),
    }
    return Content({
        "events": events[["round", "hospital", "text"]], "metrics": pd.concat([metrics, part], ignore_index=True),
        "sent": sent.drop(columns="time_utc"),
    }, facts | describe_environment())


def _model_bytes(folder: Path) -> int:
    with np.load(folder / "server" / "model.npz") as arrays:
        return int(sum(arrays[name].nbytes for name in arrays.files))


def _timed(transport: str, rounds: int, profile: str) -> list[tuple]:
    config = make_config(
        dataset="phantom_brain", method="fedavg", partition="iid", num_clients=4, seed=0, profile=profile, image_size_px=64,
        num_images=720, model="seed_cnn", total_rounds=rounds + 1, client_learning_rate=0.015, client_batch_size=32, augment=False,
    )
    secure = SecureSum(threshold=3) if transport == "secure" else None
    federation = federation_of(
        config, address=free_address(), secure=secure and secure.model_dump(), transport="plain" if transport == "plain" else "tls"
    )
    with _Folder(federation) as folder, Local(folder) as local:
        local.wait()
        metrics = pd.read_csv(folder / "server" / "metrics.csv", dtype={"client": str})
        journal = read_journal(folder / "hospital_0")
        model_bytes = _model_bytes(folder)
    metrics = metrics[(metrics["split"] == "round") & (metrics["round"] > 1)]
    duration = metrics[metrics["metric"] == "duration_s"].set_index("round")["value"]
    work = metrics[metrics["metric"] == "work_s"].groupby("round")["value"].max()
    sent = np.diff([line["sent_bytes_before"] for line in journal if line["round"] != "1"] or [0, 0])
    each = int(sent.sum() / max(1, rounds - 1)) if rounds > 1 else 0
    return [
        (transport, TRANSPORTS[transport], number, duration[number], work[number], duration[number] - work[number], each, model_bytes)
        for number in duration.index
    ]


def _shortened(config: ExperimentConfig, rounds: int) -> ExperimentConfig:
    return make_config(**(config.model_dump() | {"total_rounds": rounds}))


def _timeout(profile: str) -> float:
    """Long enough for a hospital that trains on a busy machine, short enough to see one go."""
    return 30.0 if profile == "paper" else 15.0
