"""A deployed federation out of a run's configuration: who would hold what in the simulation holds it in folders."""

import importlib.metadata
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from fl_utils import paths, records
from fl_utils.children import free_addresses
from fl_utils.config import ConfigError, ExperimentConfig
from fl_utils.data.types import ImageDataset
from fl_utils.deployment.flower import Federation, Local, make_federation, new_federation, read_federation
from fl_utils.deployment.hospital_data import write_hospital
from fl_utils.experiments.classifying import judged
from fl_utils.experiments.hospitals import Hospitals, as_taken, share_out
from fl_utils.experiments.run import data_of, recorded
from fl_utils.records import RunRecord

#: Folder of the records of deployed runs, beside the simulated ones'.
DEPLOYMENT = "deployment"


def federation_of(config: ExperimentConfig, *, min_hospitals: int | None = None, **fields) -> Federation:
    """What the hospitals of a run agree on.

    Args:
      config: of the run.
      min_hospitals: default more than half.
      fields: further fields of `settings.Federation`.
    Raises:
      ConfigError: names each field that is wrong.
      DataError: the data set is not at hand.
    """
    if config.segments:
        raise ConfigError(f"model {config.model!r} segments; a deployed federation trains classifiers.")
    needed = config.num_clients // 2 + 1 if min_hospitals is None else min_hospitals
    return make_federation(config=config.model_dump(), class_names=data_of(config).class_names, min_hospitals=needed, **fields)


def set_up(folder: Path, federation: Federation, *, hosts: Sequence[str] = ()) -> None:
    """Makes a federation on this machine, with each hospital's images in its folder, as `share_out` deals them.

    The files are numbered in the simulation's order, which decides what stands in a batch, and then as in the data set.

    Args:
      folder: new or empty.
      federation: of `federation_of`.
      hosts: see `setup.new_federation`.
    Raises:
      FederationError, CredentialError: see there.
    """
    config = federation.config
    dataset = data_of(config)
    hospitals = share_out(dataset, config)
    dataset = as_taken(dataset, hospitals, config)
    new_federation(folder, federation, hosts=hosts)
    for number in range(config.num_clients):
        write_images(Path(folder) / f"hospital_{number}" / "data", dataset, hospitals, number)


def write_images(folder: Path, dataset: ImageDataset, hospitals: Hospitals, number: int) -> None:
    """A hospital's images, in the order in which the simulation takes them."""
    index = {part: getattr(hospitals, part)[number] for part in ("train", "validation", "test")}
    write_hospital(
        folder, {part: dataset.images[own] for part, own in index.items()},
        {part: dataset.labels[own] for part, own in index.items()},
        {part: [f"{order:05d}_{place:06d}" for order, place in enumerate(own)] for part, own in index.items()}, dataset.class_names,
        {part: np.asarray(dataset.groups[own]) for part, own in index.items()},
    )


def deployed_run(config: ExperimentConfig, *, experiment: str = DEPLOYMENT, progress: bool = True) -> RunRecord:
    """The record of a configuration that was trained by real processes on this machine: loaded, or trained and written.

    The record is as `run.run` writes it, so that the two compare line by line: curves from what the hospitals counted, the
    test predictions of the selected weights, judged here as the simulation's. A federation that was stopped goes on.

    Args:
      config: of a federated run.
      experiment: folder of the record below `results/runs/` (or `results/<profile>/runs/`).
      progress: show a bar.
    Raises:
      FederationError: the training failed.
      DataError, RecordError: as `run.run`.
    """
    root = paths.runs_root(config.profile) / experiment
    record = recorded(config, root)
    if record is not None:
        return record
    quiet()
    dataset = data_of(config)
    folder = paths.cache_root() / "federations" / records.run_id(config, dataset.fingerprint)
    if not (folder / "federation.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        set_up(folder, federation_of(config, address=free_addresses(1)[0]))
    run_federation(folder, progress=progress)
    facts = json.loads((folder / "server" / "model.json").read_text())
    record = write_deployed_record(
        config, dataset, folder / "server", root, selected_round=facts["selected_round"], duration_s=facts["duration_s"],
        facts={
            "flwr": importlib.metadata.version("flwr"),
            "deployed": "one process a hospital and one for the server, on one machine, TLS on loopback",
        },
    )
    shutil.rmtree(folder, ignore_errors=True)  # keys and images have no business there any more
    return record


def run_federation(folder: Path, *, progress: bool = True) -> dict:
    """Runs a federation of this machine to its end, with a bar; returns its last status."""
    total = read_federation(folder).config.total_rounds
    with Local(folder) as local, tqdm(total=total, unit="round", desc="federation", disable=not progress, leave=False) as bar:

        def show(status: dict) -> None:
            joined = sum(one["state"] == "joined" for one in status["hospitals"].values())
            score = status["validation"]
            bar.set_postfix_str(f"validation {score['balanced_accuracy']:.3f}" if score else f"{joined} hospitals joined")
            bar.update(status["round"] - bar.n)

        return local.wait(show=show)


def quiet() -> None:
    """TensorFlow warns of functions that are traced again, which several models in one process always are."""
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


def write_deployed_record(
    config: ExperimentConfig, dataset: ImageDataset, folder: Path, root: Path, *, selected_round: int, duration_s: float, facts: dict
) -> RunRecord:
    """The record of a training by real processes, as `run.run` writes that of a simulated one.

    Args:
      config, dataset: of the run.
      folder: with model.npz, the selected round's weights, and metrics.csv.
      root: where the record belongs.
      selected_round, duration_s, facts: for its environment.json.
    """
    from fl_utils.experiments.training import views_of  # load TensorFlow
    from fl_utils.learning.configured import new_classifier
    from fl_utils.learning.rounds import Judge, TrainingResult

    rows = pd.read_csv(folder / "metrics.csv", dtype={"client": str})
    with np.load(folder / "model.npz") as arrays:
        weights = [arrays[name] for name in arrays.files]
    hospitals = share_out(dataset, config)
    dataset = as_taken(dataset, hospitals, config)
    judge = Judge(
        new_classifier(config, dataset.images.shape[1:], dataset.num_classes), dataset.images, dataset.labels,
        views_of(hospitals, "all", config),
    )
    result = TrainingResult(rows, selected_round, weights)
    trained = judged(config, dataset, hospitals, [("all", result, judge.predict(weights))])
    final = pd.DataFrame(trained.final_rows, columns=records.METRIC_COLUMNS)
    return records.write_record(
        root, config, fingerprint=data_of(config).fingerprint, metrics=pd.concat([rows, final], ignore_index=True),
        predictions=trained.predictions, duration_s=duration_s, facts=trained.facts | {"selected_round": {"all": selected_round}} | facts,
    )
