"""Shared by tests: subjects with small prepared files on disk, made of noise around a bright disc; few phantoms."""

import contextlib
import dataclasses

import numpy as np
import pandas as pd
import pytest

from fl_utils.data import catalogue
from fl_utils.data.stream import PreparedVolumes, slice_dtype
from fl_utils.data.subjects import SubjectData
from fl_utils.data.types import ImageDataset, group_closure

SIZE, CHANNELS, LENGTH = 24, 2, 3  # 24 pixels: the smallest that a scanner takes


@contextlib.contextmanager
def few_tumours(number: int):
    """The catalogue's phantom tumours, no more of them than are used."""
    few = dataclasses.replace(catalogue.card("phantom_tumours"), counts={"total": number})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalogue, "CARDS", {**catalogue.CARDS, few.name: few})
        yield


def made_slices(seed: int, length: int = LENGTH) -> np.ndarray:
    """Normalised slices: exact 0 outside a circle and nowhere inside, a labelled disc in all but the first."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2 + 0.5
    head = np.hypot(y, x) < 10
    slices = np.zeros(length, slice_dtype(SIZE, CHANNELS))
    slices["mask"][1:] = np.hypot(y - 2, x + 2) < 4
    values = rng.normal(size=slices["image"].shape) + 2 * slices["mask"][..., None]
    values = (values - values[:, head].mean(axis=(0, 1))) / values[:, head].std(axis=(0, 1))
    slices["image"] = np.where(head[..., None], values + 1e-3 * (np.abs(values) < 1e-3), 0)
    return slices


def made_subjects(folder, hospitals, *, patients=None) -> SubjectData:
    """One subject a hospital's name; by default subjects 2n and 2n+1 are of one patient."""
    folder.mkdir(parents=True, exist_ok=True)
    number = len(hospitals)
    names = [f"subject_{n:03d}" for n in range(number)]
    patients = np.array([f"patient_{n // 2}" for n in range(number)] if patients is None else patients)
    files = [folder / f"{name}-{n:012d}.npy" for n, name in enumerate(names)]
    for n, file in enumerate(files):
        np.save(file, made_slices(n))
    table = pd.DataFrame({
        "subject": names, "patient": patients, "hospital": hospitals, "slices": LENGTH, "lesion_slices": LENGTH - 1,
        "content": names, "path": [str(file) for file in files],
    })
    volumes = PreparedVolumes(
        "made_up", "axial", SIZE, ("background", "disc"), ("a", "b"), table,
        {name: np.arange(1, LENGTH) for name in names}, (), "f" * 64,
    )
    contents = np.array(names)
    subjects = ImageDataset(
        name="made_up", images=np.zeros((number, SIZE, SIZE, 1), np.uint8), labels=np.zeros(number, np.int64),
        class_names=("case",), groups=group_closure(contents, patients), duplicate_groups=group_closure(contents),
        picture_groups=group_closure(contents), near_groups=group_closure(contents), patients=patients,
        hospitals=np.array(hospitals), published_split=np.full(number, "train"), sources=contents,
        masks=np.zeros((number, SIZE, SIZE), np.uint8), fingerprint="e" * 64, synthetic=True,
    )
    return SubjectData(volumes, subjects)
