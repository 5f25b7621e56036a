"""The work behind `explaining`: TensorFlow models, their maps, and the tables made of them."""

import functools
from collections.abc import Mapping

import numpy as np
import pandas as pd

from fl_utils import seeding
from fl_utils.config import ExperimentConfig
from fl_utils.data.markers import mark, marker_mask
from fl_utils.data.types import ImageDataset
from fl_utils.experiments.explain_plan import CAM, CAMS, COMPARED_CAMS, STEPS
from fl_utils.explain import sanity as checks
from fl_utils.explain.baselines import centre_prior, random_maps
from fl_utils.explain.maps import default_layer, layers_of, make_mapper
from fl_utils.explain.scores import best_iou, deletion_insertion, energy_inside, iou, pointing_game
from fl_utils.learning.local import make_predictor
from fl_utils.models.classifiers import build_model

#: (arm, client) -> weights.
Models = Mapping[tuple[str, str], list[np.ndarray]]


class Looked:
    """The images that are explained, and one model that takes on the weights of each in turn."""

    def __init__(self, data: ImageDataset, examples: np.ndarray, config: ExperimentConfig, seed: int):
        self.data, self.examples, self.config, self.seed = data, examples, config, seed
        self.images, self.labels = data.images[examples], data.labels[examples]
        self.masks = None if data.masks is None else data.masks[examples] > 0
        #: Where there is something to find.
        self.with_lesion = np.zeros(len(examples), bool) if self.masks is None else self.masks.any(axis=(1, 2))
        self.model = build_model(config.model, data.images.shape[1:], data.num_classes)
        self.layer = default_layer(self.model)
        self.grid = layers_of(self.model)[self.layer][:2]
        self.predict = make_predictor(self.model)

    @functools.cache
    def mapper(self, cam: str, upsampling: str = "bilinear"):
        return make_mapper(self.model, method=cam, upsampling=upsampling)

    def maps(self, weights: list[np.ndarray], cam: str = CAM) -> np.ndarray:
        """float32 [N, H, W] of the true class."""
        self.model.set_weights(weights)
        return self.mapper(cam)(self.images, self.labels)

    def grids(self, weights: list[np.ndarray], cam: str) -> np.ndarray:
        """uint8 [N, h, w], `maps` on the layer's grid, each divided by its maximum."""
        return self._grids(weights, self.images, self.labels, cam)

    def marked_grids(self, weights: list[np.ndarray], cam: str) -> np.ndarray:
        """The same for the images of the last class with a mark."""
        sick = self.labels == self.data.num_classes - 1
        return self._grids(weights, mark(self.images[sick]), self.labels[sick], cam)

    def _grids(self, weights, images, labels, cam) -> np.ndarray:
        self.model.set_weights(weights)
        step = images.shape[1] // self.grid[0]
        cells = self.mapper(cam, "nearest")(images, labels)[:, step // 2 :: step, step // 2 :: step]
        high = cells.max(axis=(1, 2), keepdims=True)
        return np.rint(255 * np.divide(cells, high, out=np.zeros_like(cells), where=high > 0)).astype(np.uint8)

    def untrained(self) -> list[np.ndarray]:
        """Weights as before training."""
        seed = seeding.derive_seed(self.seed, "untrained")
        return build_model(self.config.model, self.images.shape[1:], self.data.num_classes, seed=seed).get_weights()


def scores(looked: Looked, models: Models) -> pd.DataFrame:
    """See `explaining.Explanation.scores`. The hospitals' own models are scored with two kinds of maps, for their time."""
    num, size = len(looked.examples), looked.images.shape[1:3]
    rng = seeding.generator(looked.seed, "random_maps", looked.data.name)
    blind = {
        "random": random_maps(num, size, rng, grid=looked.grid),
        "centre": np.broadcast_to(centre_prior(size), (num, *size)),
    }
    tables = []
    for (arm, client), weights in models.items():
        looked.model.set_weights(weights)
        probabilities = looked.predict(looked.images)
        about = {
            "model": arm, "client": client, "example": looked.examples, "label": looked.labels,
            "predicted": probabilities.argmax(axis=1), "probability": probabilities[np.arange(num), looked.labels],
        }
        for cam in CAMS if client == "all" else COMPARED_CAMS:
            tables.append(_scored(looked, looked.maps(weights, cam), cam, about))
        if client == "all":
            tables += [_scored(looked, maps, name, about) for name, maps in blind.items()]
    return pd.concat(tables, ignore_index=True)


def _scored(looked: Looked, maps: np.ndarray, cam: str, about: dict) -> pd.DataFrame:
    # The same generator for all: pixels of equal value go in the same order whatever the map.
    rng = seeding.generator(looked.seed, "deletion", looked.data.name)
    curves = deletion_insertion(looked.predict, looked.images, maps, looked.labels, steps=STEPS, rng=rng)
    table = pd.DataFrame(about | {"cam": cam, "empty": (maps.max(axis=(1, 2)) == 0).astype(int)})
    table = table.assign(deletion=curves.deletion_auc, insertion=curves.insertion_auc)
    found = looked.with_lesion
    for name in ("pointing", "energy", "iou_half", "iou_best", "chance"):
        table[name] = np.nan
    if found.any():
        inside, masks = maps[found], looked.masks[found]
        table.loc[found, "pointing"] = pointing_game(inside, masks)
        table.loc[found, "energy"] = energy_inside(inside, masks)
        table.loc[found, "iou_half"] = iou(inside, masks)
        table.loc[found, "iou_best"] = best_iou(inside, masks)
        table.loc[found, "chance"] = masks.mean(axis=(1, 2))
    return table


def agreement(looked: Looked, models: Models) -> pd.DataFrame:
    """See `explaining.Explanation.agreement`; each pair once, and each model with one that was never trained."""
    tables, models = [], {**models, ("untrained", "all"): looked.untrained()}
    keys = list(models)
    for cam in COMPARED_CAMS:
        maps = {key: looked.maps(weights, cam) for key, weights in models.items()}
        for place, first in enumerate(keys):
            for second in keys[place + 1 :]:
                alike = checks.similarity(maps[first], maps[second]).assign(label=looked.labels)
                pair = {"first": first[0], "first_client": first[1], "second": second[0], "second_client": second[1]}
                tables.append(_means(alike, "label").assign(**pair, cam=cam))
    return pd.concat(tables, ignore_index=True)


def sanity(looked: Looked, models: Models) -> pd.DataFrame:
    """See `explaining.Explanation.sanity`; of the common models, without the one on shuffled labels."""
    tables = []
    for (arm, client), weights in models.items():
        if client != "all" or arm == "shuffled":
            continue
        original = {cam: looked.maps(weights, cam) for cam in CAMS}
        looked.model.set_weights(weights)
        for layer, clone in checks.cascading_randomization(looked.model, seed=looked.seed):
            for cam, before in original.items():
                after = looked.maps(clone.get_weights(), cam)
                looked.model.set_weights(weights)
                alike = checks.similarity(before, after).assign(label=0)
                about = {"model": arm, "layer": layer, "cam": cam}
                if looked.with_lesion.any():
                    masks = looked.masks[looked.with_lesion]
                    about["pointing"] = pointing_game(after[looked.with_lesion], masks).mean()
                    about["energy"] = energy_inside(after[looked.with_lesion], masks).mean()
                tables.append(_means(alike, "label").assign(**about).drop(columns="label"))
    return pd.concat(tables, ignore_index=True)


def shortcut(looked: Looked, models: Models) -> pd.DataFrame:
    """See `explaining.Explanation.shortcut`. Of the hospitals alone, the first one's model: the one that marks."""
    columns = ["arm", "client", "cam", "images", "energy", "area", "called_sick", "called_sick_marked"]
    sick = looked.data.num_classes - 1
    if not any("marked" in arm for arm, _ in models):
        return pd.DataFrame(columns=columns)
    marked, box = mark(looked.images), marker_mask(looked.images.shape[1])
    ill, healthy = looked.labels == sick, looked.labels != sick
    rows = []
    for (arm, client), weights in models.items():
        if arm == "shuffled" or client not in ("all", "0"):
            continue
        looked.model.set_weights(weights)
        called = [(looked.predict(images[healthy]).argmax(axis=1) == sick).mean() for images in (looked.images, marked)]
        for cam in CAMS:
            maps = looked.mapper(cam)(marked[ill], np.full(ill.sum(), sick))
            energy = energy_inside(maps, np.broadcast_to(box, maps.shape)).mean()
            rows.append((arm, client, cam, int(ill.sum()), energy, box.mean(), *called))
    return pd.DataFrame(rows, columns=columns)


def _means(alike: pd.DataFrame, by: str) -> pd.DataFrame:
    """Means over the images whose maps can be compared, and how many these are."""
    grouped = alike.groupby(by)
    means = grouped[["ssim", "rank_correlation"]].mean()
    return means.assign(images=grouped["ssim"].count()).reset_index()
