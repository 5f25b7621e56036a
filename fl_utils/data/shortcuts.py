"""The shortcut probe: how well the label, or the hospital, is told from what has nothing to do with the patient.

A model that sees the picture can use these cues too; a score near that of the probe needs no medicine.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import LabelEncoder
from tqdm.auto import tqdm

from fl_utils import paths, seeding, statistics
from fl_utils.data.cases import find_cases
from fl_utils.data.catalogue import card
from fl_utils.data.types import DataError, ImageDataset
from fl_utils.data.volumes import read_case

#: Families of cues, each probed alone and all together.
CUES = {
    "file size": ("file_kb",),
    "image size": ("width_px", "height_px", "aspect"),
    "colour mode and file type": ("mode", "ending"),
    "border": ("border_mean", "border_sd", "border_black"),
    "mean intensity": ("mean",),
}
NUM_FOLDS = 5


def cues(dataset: ImageDataset) -> pd.DataFrame:
    """What is known of each image without looking at its middle.

    File size, image size, mode and file type come from the file's head; generated and MedMNIST images have none,
    these columns are left out. Border: the outer 5 % of the image, on each side, as the models see it.

    Returns:
      One row an image: file_kb, width_px, height_px, aspect, mode, ending, border_mean, border_sd, border_black
      (share of it below 10 of 255), mean (0 to 255).
    """
    info = card(dataset.name)
    table = pd.DataFrame(index=range(len(dataset)))
    if info.layout not in ("generated", "medmnist"):
        root = paths.data_root() / info.folder
        table = pd.DataFrame([_head(root / source) for source in dataset.sources])
    size = dataset.images.shape[1]
    frame = np.ones((size, size), bool)
    width = max(1, round(0.05 * size))
    frame[width:-width, width:-width] = False
    border = dataset.images[:, frame].reshape(len(dataset), -1).astype(np.float32)
    return table.assign(
        border_mean=border.mean(axis=1), border_sd=border.std(axis=1), border_black=(border < 10).mean(axis=1),
        mean=dataset.images.reshape(len(dataset), -1).mean(axis=1),
    )


def _head(path: Path) -> dict:
    with Image.open(path) as image:  # reads the head only
        width, height, mode = *image.size, image.mode
    return {
        "file_kb": path.stat().st_size / 1024, "width_px": width, "height_px": height, "aspect": width / height,
        "mode": mode, "ending": path.suffix.lower(),
    }


def shortcut_probe(dataset: ImageDataset, *, target: str = "label", seed: int = 0) -> pd.DataFrame:
    """How well a random forest tells the target from each family of cues alone, and from all.

    Predictions come from 5-fold cross-validation with whole groups (patients, copies, series) in a fold, on one
    image of each picture; classes weigh alike.

    Args:
      dataset: the images.
      target: "label" (for multi-label data: whether there is any finding) or "hospital".
      seed: of the folds and the forest.
    Returns:
      One row a family and one for "all together": cues, balanced_accuracy, low, high (95 % bootstrap over
      groups), chance (1 / number of classes), classes, groups.
    Raises:
      DataError: an unknown target, fewer than two classes, or fewer than `NUM_FOLDS` groups in one.
    """
    if target not in ("label", "hospital"):
        raise DataError(f"There is no target {target!r}; expected 'label' or 'hospital'.")
    dataset = dataset.subset(np.sort(np.unique(dataset.picture_groups, return_index=True)[1]))
    answer = dataset.hospitals if target == "hospital" else dataset.labels
    if answer.ndim == 2:
        answer = answer.any(axis=1)
    answer = LabelEncoder().fit_transform(answer)
    groups_of = [len(np.unique(dataset.groups[answer == k])) for k in np.unique(answer)]
    if len(groups_of) < 2 or min(groups_of) < NUM_FOLDS:
        raise DataError(
            f"{dataset.name}: {len(groups_of)} class(es) of the target {target!r}, with {groups_of} groups; a probe "
            f"needs two classes with {NUM_FOLDS} groups each."
        )
    table = pd.get_dummies(cues(dataset), prefix_sep="=", dtype=float)  # "mode=L" is 1 where the mode is L
    families = {
        name: [column for column in table if column.partition("=")[0] in known]
        for name, known in CUES.items() if any(column.partition("=")[0] in known for column in table)
    }
    families["all together"] = list(table)
    rows = []
    for name, columns in families.items():
        predicted = _cross_validated(table[columns].to_numpy(), answer, dataset.groups, seed)
        interval = statistics.cluster_bootstrap(
            lambda index, predicted=predicted: _balanced(answer[index], predicted[index]), dataset.groups,
            rng=seeding.generator(seed, "shortcuts", target, name),
        )
        rows.append(
            {"cues": name, "balanced_accuracy": interval.mean, "low": interval.low, "high": interval.high}
            | {"chance": 1 / len(groups_of), "classes": len(groups_of), "groups": interval.num}
        )
    return pd.DataFrame(rows)


def position_probe(name: str, *, seed: int = 0, progress: bool = False) -> pd.DataFrame:
    """How well a slice's place in its volume alone tells whether the labelled structure is in it.

    Near 1, a classifier of slices "present or absent" need not see the structure, and maps of it say nothing.

    Args:
      name: a data set of volumes with masks.
    Returns:
      One row a plane: plane, slices, present (share), auc of minus the distance from the middle (1 at the middle),
      low, high (95 % bootstrap over subjects), subjects.
    Raises:
      DataError: not a data set of volumes; no case with a mask, or none without it on some slice.
    """
    info, rows, planes = card(name), [], ("sagittal", "coronal", "axial")
    if info.task != "segmentation":
        raise DataError(f"{name} is a dataset of images, not of volumes.")
    cases = [case for case in find_cases(info) if case.mask is not None]
    for number, case in enumerate(tqdm(cases, desc=f"Reading {name}", unit="case", disable=not progress)):
        mask = read_case(case, info).mask > 0
        for axis, plane in enumerate(planes):
            present = mask.any(axis=tuple({0, 1, 2} - {axis}))
            off_middle = np.abs(np.linspace(-1, 1, len(present)))
            rows += [(plane, number, here, -away) for here, away in zip(present, off_middle, strict=True)]
    table = pd.DataFrame(rows, columns=["plane", "subject", "present", "score"])
    results = []
    for plane in planes:
        own = table[table["plane"] == plane].reset_index(drop=True)
        if own["present"].nunique() < 2:
            raise DataError(f"{name}, {plane}: the structure is on every slice, or on none: nothing to tell apart.")
        present, score = own["present"].to_numpy(), own["score"].to_numpy()
        interval = statistics.cluster_bootstrap(
            lambda index, present=present, score=score: roc_auc_score(present[index], score[index]),
            own["subject"].to_numpy(), rng=seeding.generator(seed, "position", name, plane), num_resamples=200,
        )
        results.append(
            {"plane": plane, "slices": len(own), "present": present.mean(), "auc": interval.mean}
            | {"low": interval.low, "high": interval.high, "subjects": interval.num}
        )
    return pd.DataFrame(results)


def _balanced(answer: np.ndarray, predicted: np.ndarray) -> float:
    # As scikit-learn's balanced_accuracy_score, without its checks: the bootstrap calls it thousands of times.
    counts = np.bincount(answer)
    hits = np.bincount(answer[predicted == answer], minlength=len(counts))
    return float((hits[counts > 0] / counts[counts > 0]).mean())


def _cross_validated(features: np.ndarray, answer: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    predicted = np.empty_like(answer)
    folds = StratifiedGroupKFold(NUM_FOLDS, shuffle=True, random_state=seeding.derive_seed(seed, "folds"))
    for train, test in folds.split(features, answer, groups):
        forest = RandomForestClassifier(
            n_estimators=50, min_samples_leaf=5, class_weight="balanced", n_jobs=1,
            random_state=seeding.derive_seed(seed, "forest"),
        )
        predicted[test] = forest.fit(features[train], answer[train]).predict(features[test])
    return predicted
