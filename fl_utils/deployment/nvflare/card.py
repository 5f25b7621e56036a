"""The card of a data set: what a hospital tells of it without giving an image away, and a made-up set of the same shape."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fl_utils import seeding
from fl_utils.config import ConfigError, ExperimentConfig
from fl_utils.data import phantoms
from fl_utils.deployment.hospital_data import PARTS, load_hospital, write_hospital
from fl_utils.deployment.nvflare.plan import USUAL_OUTPUTS, TrainingPlan, make_plan
from fl_utils.deployment.nvflare.settings import ConsortiumError
from fl_utils.learning.local import weights_of_counts
from fl_utils.trust.noise import planned_noise

_DRAWN = {"MRI": phantoms.generate_brain, "X-ray": phantoms.generate_chest, "Optical": phantoms.generate_oct}


def make_card(data: Path, *, name: str, title: str, class_names: Sequence[str], image_size_px: int, modality: str, source: str,
              synthetic: bool) -> dict:
    """The card of a hospital's images.

    Args:
      data: folder of the images (`hospital_data`).
      name: as plans will name it.
      title, source: for people.
      class_names: in the order of the labels.
      image_size_px: at which they were looked at.
      modality: as the catalogue says it: "X-ray", "MRI, 2-D slices", ...
      synthetic: whether the images are drawn.
    Returns:
      name, title, class_names, image_size_px, modality, source, synthetic; counts: part -> class -> images; patients: part -> number.
    Raises:
      DataError: the images cannot be used.
    """
    parts = load_hospital(data, class_names=class_names, image_size_px=image_size_px)
    counts = {part: np.bincount(found.labels, minlength=len(class_names)).tolist() for part, found in parts.items()}
    return {
        "name": name, "title": title, "class_names": list(class_names), "image_size_px": image_size_px, "modality": modality, "source": source,
        "synthetic": synthetic, "counts": {part: dict(zip(class_names, found, strict=True)) for part, found in counts.items()},
        "patients": {part: len(np.unique(found.patients)) for part, found in parts.items()},
    }


def write_mock(card: dict, folder: Path, *, seed: int = 0, most: int = 200) -> Path:
    """A made-up data set of the card's shape, to develop on: phantoms under the card's class names, laid out as in a hospital.

    Nothing of it comes from the hospital but the card: same classes, parts and size, and the same shares, of about `most`
    images at most: no class of a part goes missing. A model that was trained on it knows nothing of the real task.

    Args:
      card: see `make_card`.
      folder: new.
      seed: of the drawing.
      most: images in all; numbers are rounded up, so there may be one more for each class of a part.
    """
    names = card["class_names"]
    counts = {(part, k): card["counts"][part][name] for part in PARTS for k, name in enumerate(names)}
    shrink = min(1.0, most / max(1, sum(counts.values())))
    wanted = {key: math.ceil(number * shrink) for key, number in counts.items()}
    draw = next((draw for kind, draw in _DRAWN.items() if card["modality"].startswith(kind)), phantoms.generate_chest)
    number = sum(wanted.values())
    size = max(24, card["image_size_px"])  # phantoms are not drawn smaller
    images, labels, _ = draw(number, image_size_px=size, rng=seeding.generator(seed, "mock", card["name"]))
    labels = np.asarray(labels) % len(names)
    pool = {k: list(np.flatnonzero(labels == k)) for k in range(len(names))}
    rest = [place for k, places in pool.items() for place in places[sum(wanted[part, k] for part in PARTS) :]]
    chosen: dict[str, list[int]] = {part: [] for part in PARTS}
    truth: dict[str, list[int]] = {part: [] for part in PARTS}
    for (part, k), many in wanted.items():
        for _ in range(many):  # where a class of the card has more images than were drawn, another's stand in
            chosen[part].append(pool[k].pop(0) if pool[k] else rest.pop(0) if rest else 0)
            truth[part].append(k)
    write_hospital(
        Path(folder), {part: images[own] for part, own in chosen.items()}, {part: np.array(found, np.int64) for part, found in truth.items()},
        {part: [f"mock_{part}_{place:05d}" for place in range(len(own))] for part, own in chosen.items()}, names,
        {part: _patients(part, len(own), card) for part, own in chosen.items()},
    )
    return Path(folder)


def plan_of(cards: Mapping[str, dict], config: ExperimentConfig, *, title: str, purpose: str, min_hospitals: int | None = None, **fields
            ) -> TrainingPlan:
    """A plan for hospitals whose cards are known: class weights and noise come from what the cards say.

    Args:
      cards: hospital -> card of the data set, in the order of the configuration's clients.
      config: of the training.
      title, purpose: for the owners.
      min_hospitals: default more than half.
      fields: further fields of `TrainingPlan`.
    Raises:
      ConsortiumError: the cards' classes differ.
      ConfigError: the plan cannot be.
    """
    classes = {tuple(card["class_names"]) for card in cards.values()}
    if len(classes) != 1:
        raise ConsortiumError(f"The hospitals' classes differ: {'; '.join(map(', '.join, sorted(classes)))}. They cannot train one model.")
    (class_names,) = classes
    counts = np.sum([[card["counts"]["train"][name] for name in class_names] for card in cards.values()], axis=0)
    weights = weights_of_counts(counts, enabled=config.class_weighting)
    if config.privacy_unit:
        try:
            noise = planned_noise(config, [card["patients"]["train"] for card in cards.values()])
        except ValueError as error:
            raise ConfigError(f"No noise can be planned: {error}") from None
        fields["noise"] = {"noise_multiplier": noise.noise_multiplier, "sampling_rate": noise.terms.rate, "steps": noise.steps_per_round}
        fields.setdefault("outputs", tuple(name for name in USUAL_OUTPUTS if name != "training_loss"))  # a mean over patients without noise
    return make_plan(
        title=title, purpose=purpose, config=config, hospitals=tuple(cards), class_names=class_names,
        class_weights=tuple(float(weight) for weight in weights), min_hospitals=min_hospitals or len(cards) // 2 + 1, **fields,
    )


def _patients(part: str, images: int, card: dict) -> np.ndarray:
    """As many patients a part as the card's share; each image is one patient's."""
    total = max(1, sum(card["counts"][part].values()))
    patients = max(1, round(images * card["patients"][part] / total))
    return np.array([f"{part}{place % patients:05d}" for place in range(images)])
