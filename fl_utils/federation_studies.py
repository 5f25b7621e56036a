"""What notebook 08 shows of the deployed federation, measured once and kept beside the runs' records."""

import dataclasses
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fl_utils import paths
from fl_utils.children import free_addresses
from fl_utils.config import ExperimentConfig, make_config
from fl_utils.deployment.flower import Federation, Local, SecureSum, read_events, read_journal
from fl_utils.experiments import analysis, plans
from fl_utils.experiments.measured import Content, Layout, digest, load_or_compute
from fl_utils.experiments.run import data_of
from fl_utils.federations import deployed_run, federation_of, set_up
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
      held: rounds on phantoms are over sooner than a process starts, so the server is held until it is there.
      timed_rounds: counted rounds of the timing, a transport.
      transports: of `TRANSPORTS`, that are timed.
      methods: whose weights are compared with the simulation's.
    """

    dataset: str
    seeds: tuple[int, ...]
    rounds: int
    killed_after: int
    back_after: int
    timed_rounds: int
    held: bool = True
    transports: tuple[str, ...] = ("tls", "secure")
    methods: tuple[str, ...] = ("fedavg", "fedprox", "fedadam")


SETTINGS = {
    "smoke": Settings("phantom_brain", (0, 1), 6, 2, 3, 2, transports=("secure",), methods=("fedavg",)),
    "quick": Settings("phantom_brain", (0, 1), 12, 3, 6, 4, methods=("fedavg", "fedadam")),
    "paper": Settings("brain_mri", (0, 1, 2, 3, 4), 20, 5, 7, 10, held=False, transports=tuple(TRANSPORTS)),
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


def agreement(profile: str) -> pd.DataFrame:
    """How far the weights of Flower, TFF and NumPy are apart after three rounds.

    On small trainings, and, with real images, of the deployed run: columns dataset, method, model, pair, distance
    (largest over all weights), moved (how far the weights went), parameters, rounds.
    """
    settings, real = SETTINGS[profile], profile == "paper"
    config = _shortened(deployed_configs(profile)[0], 3)

    def made() -> Content:
        from fl_utils.federation_agreement import distances, sensitivity

        tables = [distances(method) for method in settings.methods] + ([sensitivity(config)] if real else [])
        return Content({"agreement": pd.concat(tables, ignore_index=True)}, describe_environment())

    decided_by = [list(settings.methods), config.model_dump(mode="json") if real else None]
    return _study(profile, "agreement", ("agreement",), decided_by, made).tables["agreement"]


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
        with _Folder(federation_of(config, address=free_addresses(1)[0], round_timeout_s=_timeout(profile))) as folder:
            with Local(folder) as local:
                local.wait(show=watch, until=lambda status: status["round"] >= settings.killed_after)
                local.kill_hospital(2)
                local.wait(show=watch, until=lambda status: status["round"] >= settings.back_after)
                _start_again(local, 2, held=settings.held)
                local.wait(show=watch)
                codes, status = local.exit_codes(), local.status()
            return _interrupted_content(folder, config, {"exit_codes": codes, "status": status}, settings)

    tables = ("events", "metrics", "sent")
    return _study(profile, "interruption", tables, [config.model_dump(mode="json"), settings.killed_after, settings.back_after], made)


def overhead(profile: str) -> pd.DataFrame:
    """Seconds of a round beside the slowest hospital's own work, by transport, measured in one run of each.

    The work is that of the deployed runs. The first round, in which TensorFlow traces its step, is not counted.

    Columns: transport, label, round, duration_s, work_s, over_s, sent_bytes (of one hospital), model_bytes.
    """
    config = _timed_config(profile)

    def made() -> Content:
        return Content({"overhead": measured_rounds(profile)}, describe_environment())

    return _study(profile, "overhead", ("overhead",), [config.model_dump(mode="json")], made).tables["overhead"]


def measured_rounds(profile: str) -> pd.DataFrame:
    """`overhead`, measured anew and not kept."""
    rows = [row for transport in SETTINGS[profile].transports for row in _timed(transport, _timed_config(profile))]
    columns = ["transport", "label", "round", "duration_s", "work_s", "over_s", "sent_bytes", "model_bytes"]
    return pd.DataFrame(rows, columns=columns)


def _timed_config(profile: str) -> ExperimentConfig:
    return _shortened(deployed_configs(profile)[0], SETTINGS[profile].timed_rounds + 1)


def deployed_summary(profile: str, simulated: Sequence[RunRecord], deployed: Sequence[RunRecord], metric: str) -> pd.DataFrame:
    """Mean and intervals of the pooled model, each hospital alone, the simulation and the real processes.

    Args:
      profile: of the notebook.
      simulated: records of notebook 02.
      deployed: records of the same federated configurations by real processes.
      metric: of `analysis.summary`.
    """
    table, real = analysis.summary(simulated, metric), analysis.summary(deployed, metric)
    table["label"] = table["label"].replace(real["label"].iloc[0], "Simulated federation (TFF)")
    return pd.concat([table, real.assign(method="deployed", label="Real processes (Flower)")], ignore_index=True)


def comparable(profile: str, progress: bool = True) -> list[RunRecord]:
    """The simulated runs beside the deployed ones: pooled, each hospital alone, and the federation, the same seeds."""
    settings = SETTINGS[profile]
    wanted = [
        config for config in plans.configs_02(profile, settings.dataset)
        if config.split == "deduplicated" and config.num_clients in (1, 4) and config.clients_per_round is None
        and config.seed in settings.seeds
    ]
    return plans.sweep(wanted, progress=progress)


def curve_differences(simulated: Sequence[RunRecord], deployed: Sequence[RunRecord], metric: str) -> pd.DataFrame:
    """How far the deployed curve lies from the simulated one, beside how far seeds lie from each other.

    Args:
      simulated, deployed: records of the same federated configurations, one a seed.
      metric: of the curves on the test images.
    Returns:
      One row: rounds, seeds, mean_difference (deployed - simulated, over seeds and rounds), largest_mean_difference (of a
      round's mean over seeds), mean_distance (absolute, same seed), seed_distance (absolute, two seeds of the
      simulation; NaN with one).
    """
    both = [analysis.curves(runs, metric).pivot(index="round", columns="seed", values="value") for runs in (simulated, deployed)]
    difference = (both[1] - both[0]).dropna()
    pairs = [(both[0][a] - both[0][b]).abs().mean() for a in both[0] for b in both[0] if a < b]
    return pd.DataFrame([{
        "rounds": len(difference), "seeds": difference.shape[1], "mean_difference": difference.to_numpy().mean(),
        "largest_mean_difference": difference.mean(axis=1).abs().max(), "mean_distance": difference.abs().to_numpy().mean(),
        "seed_distance": float(np.mean(pairs)) if pairs else np.nan,
    }])


def presence(content: Content) -> pd.DataFrame:
    """Of an `interruption`: columns round, client, counted (whether a hospital's update counted in the round)."""
    metrics = content.tables["metrics"]
    came = set(metrics.loc[metrics["metric"] == "took_part", ["round", "client"]].itertuples(index=False, name=None))
    return pd.DataFrame([
        (number, f"Hospital {client}", (number, client) in came)
        for client in content.facts["status"]["hospitals"] for number in range(1, content.facts["rounds"] + 1)
    ], columns=["round", "client", "counted"])  # fmt: skip


def member_files(config: ExperimentConfig) -> pd.DataFrame:
    """What the members of a federation are given: columns member, file, mode, bytes; images are one row a hospital."""
    rows = []
    with _Folder(federation_of(config)) as folder:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            member, _, file = str(path.relative_to(folder)).partition("/")
            rows.append((member, file or member, f"{path.stat().st_mode & 0o777:o}", path.stat().st_size))
    table = pd.DataFrame(rows, columns=["member", "file", "mode", "bytes"])
    images = table["file"].str.startswith("data/") & table["file"].str.endswith(".png")
    counted = table[images].groupby("member").agg(file=("file", "size"), mode=("mode", "first"), bytes=("bytes", "sum")).reset_index()
    counted["file"] = "data/…: " + counted["file"].astype(str) + " images"
    return pd.concat([table[~images], counted]).sort_values(["member", "file"], ignore_index=True)


def members(profile: str) -> pd.DataFrame:
    """`member_files` of the deployed run: loaded, so that it can be shown without the images."""
    config = deployed_configs(profile)[0]

    def made() -> Content:
        return Content({"files": member_files(config)}, describe_environment())

    return _study(profile, "members", ("files",), [config.model_dump(mode="json")], made).tables["files"]


def sent_rows(content: Content) -> pd.DataFrame:
    """Of an `interruption`: hospital 0's log, with the bytes of all its calls from one update to the next."""
    sent = content.tables["sent"].query("hospital == 0")
    return sent.assign(bytes_a_round=-sent["sent_bytes_before"].diff(-1), hash=sent["message_sha256"].str[:16] + "…")[
        ["what", "round", "hash", "content_bytes", "bytes_a_round"]
    ].reset_index(drop=True)


def status_rows(status: dict) -> pd.DataFrame:
    """A federation's status, a row a hospital; what `fl-utils federation status` shows."""
    return pd.DataFrame([
        {"hospital": number, "state": one["state"], "round": one["round"], "received_MB": one["bytes"] / 1e6, "last word": one["last_word"]}
        for number, one in status["hospitals"].items()
    ])


def live_table() -> Callable[[dict], None]:
    """For notebooks: a place in the output where the status is shown, and shown anew; empty at the end."""
    from IPython.display import HTML, display

    place = display(HTML(""), display_id=True)

    def show(status: dict) -> None:
        over = status["state"] in ("finished", "failed", "stopped")
        title = f"<b>{status['state']}, round {status['round']} of {status['total_rounds']}.</b> {status['last_word']}"
        place.update(HTML("" if over else title + status_rows(status).to_html(index=False)))

    return show


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


def _start_again(local: Local, hospital: int, *, held: bool) -> None:
    """Starts a hospital; held: the server does nothing until its process has connected, or ended."""
    if held:
        local.server.send_signal(signal.SIGSTOP)
    try:
        local.start_hospital(hospital)
        while held and local.hospitals[hospital].poll() is None:
            if local.last_words(local.folder / f"hospital_{hospital}") == "Joined.":
                break
            time.sleep(0.1)
    finally:
        local.server.send_signal(signal.SIGCONT)


def _interrupted_content(folder: Path, config: ExperimentConfig, end: dict, settings: Settings) -> Content:
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
    facts = end | {
        "killed_after": settings.killed_after, "back_after": settings.back_after,
        "synthetic": data_of(config).synthetic, "rounds": config.total_rounds, "model_bytes": _model_bytes(folder),
    }
    return Content({
        "events": events[["round", "hospital", "text"]], "metrics": pd.concat([metrics, part], ignore_index=True),
        "sent": sent.drop(columns="time_utc"),
    }, facts | describe_environment())


def _model_bytes(folder: Path) -> int:
    with np.load(folder / "server" / "model.npz") as arrays:
        return int(sum(arrays[name].nbytes for name in arrays.files))


def _timed(transport: str, config: ExperimentConfig) -> list[tuple]:
    rounds = config.total_rounds - 1
    secure = SecureSum(threshold=3) if transport == "secure" else None
    federation = federation_of(
        config, address=free_addresses(1)[0], secure=secure and secure.model_dump(), transport="plain" if transport == "plain" else "tls"
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
    return 30.0 if profile == "paper" else 90.0
