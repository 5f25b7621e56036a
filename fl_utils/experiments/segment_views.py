"""What notebook 05 shows of single subjects: volumes with their masks and predictions, and what the gates let through."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from fl_utils.config import ExperimentConfig
from fl_utils.data.cases import find_cases
from fl_utils.data.catalogue import card
from fl_utils.data.overview import contrast_channel, fullest_slice, windowed
from fl_utils.data.prepare import slices_of
from fl_utils.data.stream import PreparedVolumes
from fl_utils.data.types import DataError
from fl_utils.data.volumes import read_case
from fl_utils.experiments.hospitals import Hospitals
from fl_utils.experiments.run import data_of, followed_weights, selected_weights
from fl_utils.experiments.segmenting import hospitals_of, volumes_as_taken
from fl_utils.records import RunRecord


def taken_volumes(record: RunRecord) -> PreparedVolumes:
    """The slices that a run was trained and judged on.

    Raises:
      DataError: the volumes are not at hand.
    """
    return _held(record)[1]


def _held(record: RunRecord) -> tuple[Hospitals, PreparedVolumes]:
    config = ExperimentConfig(**record.config)
    data = data_of(config)
    hospitals = hospitals_of(config, data)
    return hospitals, volumes_as_taken(config, data, hospitals)


def case_fields(runs: Mapping[str, RunRecord], subjects: Sequence[str], *, train: bool = True) -> dict[str, dict]:
    """Whole volumes with what models make of them: the fields of `plotting.SegmentedCase`.

    Args:
      runs: what a model is called -> its run, centralized or federated.
      subjects: names of test subjects.
      train: train models again whose weights are not in the cache.
    Returns:
      Subject -> modalities, truth, predictions, spacing_mm, class_names.
    Raises:
      DataError: the volumes are not at hand. RecordError: weights are not, and nothing may be trained.
    """
    from fl_utils.experiments.segmenter_training import new_segmenter
    from fl_utils.learning.segmentation import make_slice_predictor, predict_subject

    predictors = {}
    for name, record in runs.items():
        volumes = taken_volumes(record)
        model = new_segmenter(ExperimentConfig(**record.config), volumes)
        model.set_weights(selected_weights(record, train=train)["all"])
        predictors[name] = (make_slice_predictor(model), volumes)
    info = card(volumes.name)
    cases, fields = {case.subject: case for case in find_cases(info)}, {}
    for subject in subjects:
        volume = read_case(cases[subject], info)
        fields[subject] = {
            "modalities": {name: volume.image[..., i] for i, name in enumerate(volumes.modalities)},
            "truth": volume.mask,
            "predictions": {name: predict_subject(*parts, volume) for name, parts in predictors.items()},
            "spacing_mm": volume.spacing_mm, "class_names": volumes.class_names,
        }
    return fields


@dataclasses.dataclass(frozen=True)
class GateMaps:
    """A gate's coefficients on a few slices, round by round.

    Attributes:
      images: float32 [N, S, S], normalised; masks: bool [N, S, S], all classes together.
      maps: round -> float [N, h, w], 0 to 1.
      inside: round -> (mean coefficient in the masks, mean outside them within the head), over the slices.
    """

    images: np.ndarray
    masks: np.ndarray
    maps: dict[int, np.ndarray]
    inside: dict[int, tuple[float, float]]


def gate_maps(record: RunRecord, subjects: Sequence[str], *, level: int = 2, train: bool = True) -> GateMaps:
    """What an attention gate lets through after 1, 2, 4, ... rounds, on each subject's slice with the largest label.

    Args:
      record: a federated run of the Attention U-Net.
      subjects: names of test subjects.
      level: of the gate; 2 is the finest there is.
      train: train again where the rounds' weights are not in the cache.
    Raises:
      DataError: no Attention U-Net, or the volumes are not at hand. RecordError: see `case_fields`.
    """
    import keras

    from fl_utils.experiments.segmenter_training import new_segmenter

    config = ExperimentConfig(**record.config)
    if config.model != "attention_unet" or not config.federated:
        raise DataError(f"{record.path.name} is no federated run of an Attention U-Net: no gates to look at.")
    volumes = taken_volumes(record)
    chosen = [volumes.load([subject], slices="lesion") for subject in subjects]
    best = [fullest_slice(masks) for _, masks in chosen]
    slices = np.stack([images[i] for i, (images, _) in zip(best, chosen, strict=True)])
    masks = np.stack([masks[i] > 0 for i, (_, masks) in zip(best, chosen, strict=True)])
    model = new_segmenter(config, volumes)
    gate = keras.Model(model.input, model.get_layer(f"gate{level}").output)
    shown, maps, inside = contrast_channel(volumes.modalities), {}, {}
    head = (slices != 0).any(axis=-1) & ~masks
    for round_num, weights in followed_weights(record, train=train).items():
        model.set_weights(weights)
        maps[round_num] = gate(slices.astype(np.float32)).numpy()[..., 0]
        scale = slices.shape[1] // maps[round_num].shape[1]
        large = maps[round_num].repeat(scale, axis=1).repeat(scale, axis=2)
        inside[round_num] = (float(large[masks].mean()), float(large[head].mean()))
    return GateMaps(slices[..., shown].astype(np.float32), masks, maps, inside)


def example_slice(name: str, *, image_size_px: int = 96, place: int = 0) -> tuple[np.ndarray, np.ndarray, tuple, tuple]:
    """A case's axial slice with the largest label.

    Args:
      name: a dataset of volumes.
      image_size_px: of the slice.
      place: of the case among the labelled ones.
    Returns:
      (image float32 [H, W, M], mask uint8 [H, W], names of the modalities, names of the classes).
    Raises:
      DataError: it is not at hand.
    """
    info = card(name)
    volume = read_case([case for case in find_cases(info) if case.mask is not None][place], info)
    slices = slices_of(volume, "axial", image_size_px)
    fullest = slices[fullest_slice(slices["mask"])]
    return fullest["image"].astype(np.float32), fullest["mask"], tuple(info.modalities.values()), info.class_names


def hospital_slices(record: RunRecord, *, per_hospital: int = 7) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray]:
    """Slices of training subjects as each hospital's scanner gives them, for `plotting.image_gallery`.

    Returns:
      (images uint8 [N, S, S, 1], hospital of each int [N], names of the hospitals with their size, masks).
    Raises:
      DataError: the volumes are not at hand.
    """
    hospitals, volumes = _held(record)
    channel, images, masks, rows, names = contrast_channel(volumes.modalities), [], [], [], []
    for number, index in enumerate(hospitals.train):
        names.append(f"Hospital {number + 1}, {len(index)} subjects")
        for subject in (volumes.subjects[i] for i in index[:per_hospital]):
            slices, labels = volumes.load([subject], slices="lesion")
            best = fullest_slice(labels)
            images.append(windowed(slices[best, ..., channel]))
            masks.append(labels[best])
            rows.append(number)
    return np.stack(images), np.array(rows), names, np.stack(masks)


def gate_contrast(gates: GateMaps) -> pd.DataFrame:
    """Mean coefficient in the masks and outside them by round: round, inside, outside, contrast (their difference)."""
    rows = [(number, *means) for number, means in gates.inside.items()]
    table = pd.DataFrame(rows, columns=["round", "inside", "outside"])
    return table.assign(contrast=table["inside"] - table["outside"])
