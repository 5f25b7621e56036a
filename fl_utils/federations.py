"""A deployed federation out of a run's configuration: who would hold what in the simulation holds it in folders."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fl_utils.config import ConfigError, ExperimentConfig
from fl_utils.data.types import ImageDataset
from fl_utils.deployment.flower import Federation, make_federation, new_federation, write_hospital
from fl_utils.experiments.hospitals import Hospitals, as_taken, share_out
from fl_utils.experiments.run import data_of


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

    The files are numbered as the data set numbers them, so that a hospital reads them in the simulation's order.

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
        _write_images(Path(folder) / f"hospital_{number}" / "data", dataset, hospitals, number)


def _write_images(folder: Path, dataset: ImageDataset, hospitals: Hospitals, number: int) -> None:
    index = {part: getattr(hospitals, part)[number] for part in ("train", "validation", "test")}
    write_hospital(
        folder, {part: dataset.images[own] for part, own in index.items()},
        {part: dataset.labels[own] for part, own in index.items()},
        {part: [f"{place:06d}" for place in own] for part, own in index.items()}, dataset.class_names,
        {part: np.asarray(dataset.groups[own]) for part, own in index.items()},
    )
