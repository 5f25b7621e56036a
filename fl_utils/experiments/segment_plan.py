"""Notebook 05's runs as data: two segmenters, three ways to train them, by profile."""

import dataclasses
import itertools
from collections.abc import Sequence

import pandas as pd

from fl_utils.config import SEGMENTERS, ExperimentConfig, make_config
from fl_utils.data.catalogue import card
from fl_utils.experiments.plans import TUNING_SEED, equal_steps, parts_of, trial_score, validation_score
from fl_utils.learning.errors import TrainingError
from fl_utils.records import RecordError

#: Experiment folders of the runs.
SEGMENTATION = "segmentation"
SEGMENTATION_TUNING = "segmentation_tuning"
NUM_CLIENTS = 5
METHODS = ("centralized", "local", "fedavg")
#: How the settings are chosen: by validation Dice, for each method by itself, on a seed of its own (TUNING_SEED).
TUNING_GRID = tuple(itertools.product((0.03, 0.1), (False, True)))
#: Where nothing is tuned: (learning rate, augmentation).
UNTUNED = (0.1, False)


@dataclasses.dataclass(frozen=True)
class SegmentSettings:
    """How large a profile is.

    Attributes:
      dataset: of volumes.
      seeds: of the reported runs.
      pooled_passes: passes of the centralized model; `plans.equal_steps` derives the rest.
      partition: fields of the configuration.
      image_size_px, num_images (subjects), plane, model_width, model_depth, background_ratio, client_batch_size:
        see `ExperimentConfig`.
      tuning_passes: pooled passes of a trial; 0 for profiles that are not tuned.
      longer: in how many seeds the pooled U-Net is also trained with as many passes as the federation has rounds.
    """

    dataset: str
    seeds: tuple[int, ...]
    pooled_passes: int
    partition: dict
    image_size_px: int = 40
    num_images: int | None = None
    plane: str = "axial"
    model_width: int = 8
    model_depth: int = 3
    background_ratio: float = 0.25
    client_batch_size: int = 16
    tuning_passes: int = 0
    longer: int = 0


_NATURAL = {"partition": "natural"}
SETTINGS = {
    "smoke": SegmentSettings("phantom_tumours", (0,), 1, _NATURAL, 32, 24, model_depth=2, client_batch_size=8),
    "quick": SegmentSettings("phantom_tumours", (0,), 2, _NATURAL, 32, 40, client_batch_size=8),
    "phantoms": SegmentSettings("phantom_tumours", (0,), 3, _NATURAL, client_batch_size=8),
    "paper": SegmentSettings(
        "hippocampus", (0, 1, 2, 3, 4), 2, {"partition": "mixed", "quantity_alpha": 2.0}, tuning_passes=1, longer=1
    ),
}


def segment_config(
    profile: str, model: str, method: str, seed: int, *, learning_rate: float, augment: bool, passes: int | None = None
) -> ExperimentConfig:
    """One run; a centralized one is trained on what the hospitals hold, as their scanners give it.

    Raises:
      ConfigError: see `make_config`.
    """
    settings = SETTINGS[profile]
    rounds, epochs = _rounds(method, passes or settings.pooled_passes)
    partition = settings.partition
    if method == "centralized" and partition == _NATURAL:
        partition = {"partition": "pooled"}
    return make_config(
        dataset=settings.dataset, profile=profile, model=model, method=method, seed=seed,
        num_clients=1 if partition["partition"] == "pooled" else NUM_CLIENTS, total_rounds=rounds,
        client_epochs_per_round=epochs, client_learning_rate=learning_rate, augment=augment, class_weighting=False,
        **partition,
        **{
            field: getattr(settings, field) for field in
            ("image_size_px", "num_images", "plane", "model_width", "model_depth", "background_ratio", "client_batch_size")
        },
    )


def _rounds(method: str, passes: int) -> tuple[int, int]:
    """(rounds, passes a round), so that all methods make as many steps one after another."""
    return equal_steps(method, 1 if method == "centralized" else NUM_CLIENTS, passes)


def tuning_configs(profile: str) -> list[ExperimentConfig]:
    """The trials: the U-Net only, whose choices the Attention U-Net takes over."""
    passes = SETTINGS[profile].tuning_passes
    return [
        segment_config(
            profile, "unet", method, TUNING_SEED, learning_rate=rate, augment=augment, passes=passes
        )
        for method in METHODS for rate, augment in TUNING_GRID if passes
    ]


def trials(profile: str, methods: Sequence[str] = METHODS, *, progress: bool = False) -> pd.DataFrame:
    """The trials of a profile that is tuned: method, learning_rate, augment, dice (NaN where training diverged).

    Args:
      profile: one whose settings have `tuning_passes`.
      methods: only theirs.
      progress: show bars.
    Raises:
      RecordError: a trial is not there, and this command does not train.
    """
    rows = []
    for config in (config for config in tuning_configs(profile) if config.method in methods):
        try:
            dice = trial_score(
                config, experiment=SEGMENTATION_TUNING, progress=progress,
                score=lambda record: validation_score(record, "dice"),
            )
        except TrainingError:  # in its first round: there is nothing to keep
            dice = None
        rows.append((config.method, config.client_learning_rate, config.augment, dice))
    return pd.DataFrame(rows, columns=["method", "learning_rate", "augment", "dice"]).astype({"dice": float})


def tuned(profile: str, method: str, *, progress: bool = False) -> tuple[float, bool]:
    """(learning rate, augmentation) with the best validation Dice; UNTUNED where the profile is not tuned."""
    if not SETTINGS[profile].tuning_passes:
        return UNTUNED
    table = trials(profile, [method], progress=progress)
    if table["dice"].isna().all():
        raise RecordError(f"{method}: training diverged in each trial of {TUNING_GRID}.")
    best = table.loc[table["dice"].idxmax()]
    return float(best["learning_rate"]), bool(best["augment"])


def configs_05(profile: str, *, progress: bool = False) -> list[ExperimentConfig]:
    """All runs of notebook 05 in a profile: two networks, three ways to train, seed by seed; then the longer pooled ones.

    The longer ones have as many passes over all images as the federation makes in its rounds: as many gradients, where
    the others have as many steps one after another. The U-Net only, for the time it takes.
    """
    chosen = {method: tuned(profile, method, progress=progress) for method in METHODS}
    arms = [(seed, model, method, 1) for seed in SETTINGS[profile].seeds for model in SEGMENTERS for method in METHODS]
    few = SETTINGS[profile].seeds[: SETTINGS[profile].longer]
    arms += [(seed, SEGMENTERS[0], METHODS[0], NUM_CLIENTS) for seed in few]
    return [
        segment_config(
            profile, model, method, seed, learning_rate=chosen[method][0], augment=chosen[method][1],
            passes=times * SETTINGS[profile].pooled_passes,
        )
        for seed, model, method, times in arms
    ]


def overview(profile: str) -> pd.DataFrame:
    """What is trained, a row a data set: sizes, rounds and passes by method."""
    rows = []
    for part in parts_of(profile):
        settings, info = SETTINGS[part], card(SETTINGS[part].dataset)
        rounds = {method: _rounds(method, settings.pooled_passes) for method in METHODS}
        rows.append(
            {"data": info.name, "synthetic": info.synthetic, "hospitals": NUM_CLIENTS, **settings.partition}
            | {"plane": settings.plane, "image_size_px": settings.image_size_px, "width": settings.model_width}
            | {"depth": settings.model_depth, "seeds": len(settings.seeds)}
            | {f"rounds x passes, {method}": f"{r} x {e}" for method, (r, e) in rounds.items()}
        )
    return pd.DataFrame(rows)
