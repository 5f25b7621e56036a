"""What a hospital's update tells of its images: gradient inversion under each protection, by data set and seed.

Computed once and written as a whole. The tables are results; the pictures are patients' and stay in the cache.

The attacker sees one round of one hospital, the first round unless a condition says otherwise (later rounds tell less),
knows all that `trust.inversion` lists, and is given the labels; how well these can be recovered is scored beside.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from fl_utils import paths, seeding
from fl_utils.config import ExperimentConfig
from fl_utils.data.types import DataError, ImageDataset
from fl_utils.experiments.hospitals import share_out
from fl_utils.experiments.inversion_plan import ATTACKS, CONDITIONS, SHOWN, TV_WEIGHT
from fl_utils.experiments.measured import Content, Layout, digest, load_or_compute
from fl_utils.experiments.privacy_plan import PATIENT_NORM, PRIVACY, arms_of, privacy_config, tuned
from fl_utils.experiments.protection import noise_of
from fl_utils.experiments.run import data_of, run, selected_weights
from fl_utils.files import write_atomically

#: Folder of the tables, beside the runs'.
INVERSION = "privacy_inversion"
VERSION = 1  # raise it when scores change their meaning: old ones are then ignored
_LAYOUT = Layout("attacks", ("scores",), "%.5g", dtype={"condition": str})
#: Other images that the reconstructions are compared with.
NUM_OTHERS = 100


@dataclasses.dataclass(frozen=True, eq=False)
class Inversion:
    """What was reconstructed for one data set and seed.

    Attributes:
      dataset, seed, facts: whose; facts: class_names, synthetic, image_size_px, model, iterations, noise multipliers.
      scores: a row a condition and image, as `trust.matching.score_reconstructions` gives it, and mismatch, labels_right
        (share of the labels that the last layer's bias gives away), duration_s.
      examples: places in the data set of the images attacked; a condition takes the first ones.
    """

    dataset: str
    seed: int
    facts: dict
    scores: pd.DataFrame
    examples: np.ndarray


def invert(profile: str, dataset: str, seed: int, *, progress: bool = True) -> Inversion:
    """The attacks on a data set and seed: loaded if they are there, otherwise done.

    Raises:
      RecordError: they are not there, and this command does not compute; or they cannot be written or read.
      DataError: they must be done, and the images are not at hand.
    """
    folder = paths.runs_root(profile) / INVERSION / _name(profile, dataset, seed)
    found = load_or_compute(folder, _LAYOUT, profile, lambda: _computed(profile, dataset, seed, progress))
    return Inversion(dataset, seed, found.facts, found.tables["scores"], np.array(found.facts["examples"]))


def pictures(profile: str, found: Inversion) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The attacked images and their reconstructions in the same order, if they are in the cache.

    Returns:
      (uint8 [N, H, W, C], condition -> float32 [n, H, W, C] in 0..1, n the condition's images).
    Raises:
      DataError: the images are not at hand, or the reconstructions are not in the cache.
    """
    config = privacy_config(profile, found.dataset, "none", found.seed, client_learning_rate=1.0)
    images = data_of(config).images[found.examples]
    path = _pictures_path(profile, found.dataset, found.seed)
    if not path.is_file():
        raise DataError(
            f"The reconstructions {path.name} are not in {path.parent}: patients' pictures are not published. Delete "
            f"{paths.runs_root(profile) / INVERSION / path.stem} and run again to make them anew."
        )
    with np.load(path) as arrays:
        return images, {name: arrays[name] for name in arrays.files}


def _computed(profile: str, dataset: str, seed: int, progress: bool) -> Content:
    """The tables; the pictures are put into the cache."""
    from fl_utils.experiments.inversion_attacks import Attacked  # loads TensorFlow

    settings = ATTACKS[profile]
    config = privacy_config(profile, dataset, "none", seed, **tuned(profile, dataset, "none")[0])
    data = data_of(config)
    noise = noise_multipliers(profile, dataset, seed, data)
    examples, others = _chosen(data, config)
    trained = None
    if any(CONDITIONS[name].trained for name in settings.conditions):
        trained = selected_weights(run(config, experiment=PRIVACY, progress=progress), progress=progress)["all"]
    attacked = Attacked(config, data, examples, others, trained)
    tables, found = [], {}
    for name in tqdm(settings.conditions, desc=f"{dataset} s{seed}: inversion", disable=not progress, leave=False):
        condition = CONDITIONS[name]
        multiplier = noise.get(condition.noise, condition.noise)
        table, found[name] = attacked.attack(name, condition, multiplier, PATIENT_NORM, settings.iterations)
        tables.append(table.assign(condition=name))
    facts = {
        "version": VERSION, "profile": profile, "class_names": list(data.class_names), "synthetic": data.synthetic,
        "image_size_px": config.image_size_px, "model": config.model, "iterations": settings.iterations,
        "client_learning_rate": config.client_learning_rate, "noise_multipliers": noise, "clipping_norm": PATIENT_NORM,
        "examples": [int(place) for place in examples],
    }
    # The pictures first: with the tables in place nobody would make them again.
    write_atomically(_pictures_path(profile, dataset, seed), lambda file: np.savez_compressed(file, **found))
    return Content({"scores": pd.concat(tables, ignore_index=True)}, facts)


def noise_multipliers(profile: str, dataset: str, seed: int, data: ImageDataset) -> dict[str, float]:
    """Arm -> noise multiplier, of the profile's arms with differential privacy."""
    multipliers = {}
    for arm in arms_of(profile, dataset):
        config = privacy_config(profile, dataset, arm, seed, client_learning_rate=1.0)  # the rate does not matter here
        if config.privacy_unit:
            multipliers[arm] = round(noise_of(config, data, share_out(data, config)).noise_multiplier, 4)
    return multipliers


def _chosen(data: ImageDataset, config: ExperimentConfig) -> tuple[np.ndarray, np.ndarray]:
    """Training images of the first hospital, each of another patient, and test images to compare with."""
    hospitals = share_out(data, config)
    rng = seeding.generator(config.seed, "inversion_images", data.name)
    own = rng.permutation(hospitals.train[0])
    _, first = np.unique(data.groups[own], return_index=True)
    most = max(condition.images for condition in CONDITIONS.values())
    return own[np.sort(first)][:most], rng.permutation(hospitals.split.test)[:NUM_OTHERS]


def _pictures_path(profile: str, dataset: str, seed: int) -> Path:
    return paths.cache_root() / "inversion" / f"{_name(profile, dataset, seed)}.npz"


def _name(profile: str, dataset: str, seed: int) -> str:
    """Of all that decides the scores and is known without the images: published tables are found without them."""
    settings = ATTACKS[profile]
    conditions = [dataclasses.astuple(dataclasses.replace(CONDITIONS[name], label="")) for name in settings.conditions]
    plan = [VERSION, profile, settings.iterations, TV_WEIGHT, settings.conditions, conditions]
    configs = [privacy_config(profile, dataset, "none", seed, **tuned(profile, dataset, "none")[0])]
    # Of the private arms the rate does not matter.
    configs += [privacy_config(profile, dataset, arm, seed, client_learning_rate=1.0) for arm in arms_of(profile, dataset)]
    decided_by = [plan, PATIENT_NORM, [config.model_dump(exclude_defaults=True) for config in configs]]
    return f"{dataset}_s{seed}_{digest(decided_by)}"


def gallery(profile: str, found: Inversion, columns: int = 4) -> tuple[np.ndarray, dict, list[str], dict]:
    """For `plotting.reconstruction_grid`: the first images, and what each of SHOWN makes of them.

    Returns:
      (uint8 [n, H, W], label -> float32 [n, H, W], NaN where a condition has fewer images, class names, label -> texts).
    Raises:
      DataError: see `pictures`.
    """
    images, found_images = pictures(profile, found)
    columns = min(columns, len(images))
    config = privacy_config(profile, found.dataset, "none", found.seed, client_learning_rate=1.0)
    labels = data_of(config).labels[found.examples]
    shown, texts = {}, {}
    for name in (name for name in SHOWN if name in found_images):
        scores = found.scores[found.scores["condition"] == name].set_index("image")["ssim"]
        num, label = min(columns, len(found_images[name])), CONDITIONS[name].label
        shown[label] = np.full((columns, *images.shape[1:3]), np.nan, np.float32)
        shown[label][:num] = found_images[name][:num, ..., 0]
        texts[label] = [f"SSIM {scores[place]:.2f}" if place < num else "" for place in range(columns)]
    names = [found.facts["class_names"][label] for label in labels[:columns]]
    return images[:columns, ..., 0], shown, names, texts
