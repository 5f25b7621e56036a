"""Scores of where the models look, by data set and seed: computed once, written as a whole, found again by a hash.

All models of a seed explain the true class of the same test images, which are the same for all seeds.
"""

import dataclasses

import numpy as np
import pandas as pd
from scipy import ndimage
from tqdm.auto import tqdm

from fl_utils import paths, seeding
from fl_utils.config import ExperimentConfig
from fl_utils.data.markers import mark
from fl_utils.data.types import ImageDataset
from fl_utils.experiments.explain_plan import CAMS, COMPARED_CAMS, EXPLAIN, LOOKED_INTO, SETTINGS, STEPS, arms_of, explain_config
from fl_utils.experiments.hospitals import share_out
from fl_utils.experiments.measured import Content, Layout, digest, load_or_compute
from fl_utils.experiments.run import dataset_of, run, selected_weights
from fl_utils.records import RunRecord, load_record

#: Experiment folder of the scores, beside the runs'.
SCORES = "explain_scores"
VERSION = 2  # raise it when scores change their meaning: old ones are then ignored
_MARKED = "marked "  # begins the names of marked_maps in the file
_LAYOUT = Layout(
    "scores", ("scores", "agreement", "sanity", "shortcut"), "%.4g", dtype={"client": str, "model": str, "cam": str},
    arrays="maps",
)


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation:
    """What is known about the models of one data set and seed.

    Attributes:
      dataset, seed, facts: whose; facts: class_names, synthetic, runs (names), layer, grid.
      scores: a row an image, model, client and cam ("random" and "centre" are the baselines): example, label,
        predicted, probability (of the true class), empty (all-zero map), deletion, insertion, and, where the image has
        a lesion mask, pointing, energy, iou_half, iou_best, chance (the mask's share of the image).
      agreement: a row a pair of models, cam and label: first, second, images, ssim, rank_correlation (means).
      sanity: a row a model, cam and randomized layer: images, ssim, rank_correlation with the trained model's maps; and
        pointing and energy, where there are masks.
      shortcut: a row an arm with and without marks: arm, client, images, energy (of the last class's map in the marker's
        box, on marked sick images), area (the box's share), called_sick and called_sick_marked (share of healthy images).
      examples: int [N], the images' places in the data set.
      maps: (arm, cam) -> uint8 [N, h, w], COMPARED_CAMS on the layer's grid, each map divided by its maximum; "local" is
        the first hospital's model.
      marked_maps: (arm in which hospital 1 marks, cam) -> the same, of the last class, for the sick images with a mark;
        empty for data sets without a shortcut.
    """

    dataset: str
    seed: int
    facts: dict
    scores: pd.DataFrame
    agreement: pd.DataFrame
    sanity: pd.DataFrame
    shortcut: pd.DataFrame
    examples: np.ndarray
    maps: dict[tuple[str, str], np.ndarray]
    marked_maps: dict[tuple[str, str], np.ndarray]


def explain(profile: str, dataset: str, seed: int, *, progress: bool = True) -> Explanation:
    """The scores of a data set and seed: loaded if they are there, otherwise computed from the runs' models.

    Raises:
      RecordError: they are not there, and this command does not compute; or they cannot be written or read.
      DataError: they must be computed, and the images are not at hand.
    """
    records = {
        arm: run(explain_config(profile, dataset, arm, seed), experiment=EXPLAIN, progress=progress)
        for arm in arms_of(dataset)
    }
    folder = paths.runs_root(profile) / SCORES / _name(profile, dataset, seed, records)
    found = load_or_compute(folder, _LAYOUT, profile, lambda: _computed(profile, dataset, seed, records, progress))
    maps = found.arrays
    examples = maps.pop("examples")
    marked = {
        tuple(name.removeprefix(_MARKED).split()): maps.pop(name) for name in list(maps) if name.startswith(_MARKED)
    }
    maps = {tuple(name.split()): grids for name, grids in maps.items()}
    return Explanation(dataset, seed, found.facts, examples=examples, maps=maps, marked_maps=marked, **found.tables)


def test_examples(dataset: ImageDataset, config: ExperimentConfig, per_class: int) -> np.ndarray:
    """Up to `per_class` test images of each class, the same for all models and seeds; int64, ordered."""
    test, rng = share_out(dataset, config).split.test, seeding.generator(0, "explain", dataset.name)
    chosen = []
    for label in range(dataset.num_classes):
        members = test[dataset.labels[test] == label]
        chosen.append(rng.permutation(members)[:per_class])
    return np.sort(np.concatenate(chosen))


def upsampled(grids: np.ndarray, size_px: int) -> np.ndarray:
    """Maps from a layer's grid to the image, bilinear, as `explain.maps` does it; uint8 or float [N, h, w] -> float32."""
    return ndimage.zoom(
        np.asarray(grids, np.float32), (1, size_px / grids.shape[1], size_px / grids.shape[2]), order=1, mode="nearest",
        grid_mode=True,
    )


def _computed(profile, dataset_name, seed, records: dict[str, RunRecord], progress: bool) -> Content:
    from fl_utils.experiments.explain_models import Looked, agreement, sanity, scores, shortcut  # loads TensorFlow

    settings = SETTINGS[profile]
    config = ExperimentConfig(**records["fedavg"].config)
    data = dataset_of(dataset_name, settings.image_size_px, settings.num_images)
    looked = Looked(data, test_examples(data, config, settings.images_per_class), config, seed)
    bar = tqdm(total=6, desc=f"{dataset_name} s{seed}: where the models look", disable=not progress, leave=False)

    def done(value):
        bar.update()
        return value

    with bar:
        models = done({
            (arm, client): weights
            for arm, record in records.items()
            for client, weights in selected_weights(record, progress=progress).items()
            if arm in LOOKED_INTO or client in ("all", "0")
        })
        compared = {key: weights for key, weights in models.items() if key[0] in LOOKED_INTO}
        tables = {
            "scores": done(scores(looked, compared)),
            "agreement": done(agreement(looked, compared)),
            "sanity": done(sanity(looked, compared)),
            "shortcut": done(shortcut(looked, models)),
        }
        marked = {
            f"{_MARKED}{arm} {cam}": looked.marked_grids(weights, cam)
            for (arm, _), weights in models.items() if arm.endswith("_marked_1") for cam in COMPARED_CAMS
        }
        maps = done({
            f"{arm} {cam}": looked.grids(models[arm, "0" if arm == "local" else "all"], cam)
            for arm in LOOKED_INTO[:3] for cam in COMPARED_CAMS
        })
    facts = {
        "version": VERSION, "profile": profile, "class_names": list(data.class_names), "synthetic": data.synthetic,
        "runs": {arm: record.path.name for arm, record in records.items()}, "layer": looked.layer,
        "image_size_px": settings.image_size_px,
    }
    return Content(tables, facts, {"examples": looked.examples, **maps, **marked})


def _name(profile: str, dataset: str, seed: int, records: dict[str, RunRecord]) -> str:
    runs = [record.path.name for record in records.values()]
    return f"{dataset}_s{seed}_{digest([VERSION, CAMS, STEPS, SETTINGS[profile].images_per_class, runs])}"


def records_of(explanation: Explanation) -> dict[str, RunRecord]:
    """The records of the explained runs, by arm.

    Raises:
      RecordError: one is not there.
    """
    root = paths.runs_root(explanation.facts["profile"]) / EXPLAIN
    return {arm: load_record(root / name) for arm, name in explanation.facts["runs"].items()}


def images_of(explanation: Explanation) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The explained images, if they are at hand: (uint8 [N, H, W, C], labels int [N], masks bool [N, H, W] or None).

    Raises:
      DataError: they are not.
    """
    settings = SETTINGS[explanation.facts["profile"]]
    data = dataset_of(explanation.dataset, settings.image_size_px, settings.num_images)
    index = explanation.examples
    return data.images[index], data.labels[index], None if data.masks is None else data.masks[index] > 0


def marked_cases(explanation: Explanation, num: int = 3) -> tuple[np.ndarray, dict[str, np.ndarray], list[str]]:
    """The first sick images with a mark, and the sick class's maps where hospital 1 marks.

    Returns:
      (uint8 [num, H, W, C], (arm, cam) -> float32 [num, H, W] in 0..1, titles).
    Raises:
      DataError: the images are not at hand.
    """
    images, labels, _ = images_of(explanation)
    sick = images[labels == len(explanation.facts["class_names"]) - 1][:num]
    maps = {key: upsampled(grids[:num], images.shape[1]) / 255 for key, grids in explanation.marked_maps.items()}
    return mark(sick), maps, [f"{explanation.facts['class_names'][-1]}, marked"] * len(sick)
