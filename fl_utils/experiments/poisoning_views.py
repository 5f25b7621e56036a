"""What a bad hospital's images look like beside the honest ones."""

import numpy as np

from fl_utils import seeding
from fl_utils.config import ATTACK_LABELS
from fl_utils.experiments.hospitals import share_out
from fl_utils.experiments.poisoning_plan import CLASSES, SETTINGS, UNTUNED_RATE, cell_config
from fl_utils.experiments.run import data_of
from fl_utils.trust.poisoning import poison_data

#: Attacks that can be seen in an image.
VISIBLE = ("backdoor", "inverted", "rotated")


def bad_images(profile: str, per_row: int = 6) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Training images of the source class as they are, and as each visible attack makes them.

    Returns:
      (images uint8 [N, S, S, 1], row of each int64 [N], names of the rows), for `plotting.image_gallery`.
    Raises:
      DataError: the images are not at hand.
    """
    config = cell_config(profile, SETTINGS[profile].seeds[0], attack="clean", aggregator="mean", client_learning_rate=UNTUNED_RATE)
    data, (source, target) = data_of(config), CLASSES[config.dataset]
    train = share_out(data, config).split.train
    # Twice as many, since a backdoor marks half of them.
    images = data.images[train[data.labels[train] == source][: 2 * per_row]]
    rows = [images[:per_row]]
    for attack in VISIBLE:
        changed, _ = poison_data(
            images, np.full(len(images), source), attack, num_classes=data.num_classes, target=target,
            rng=seeding.generator(config.seed, "poison", "picture"),
        )
        rows.append(changed[(changed != images).any(axis=(1, 2, 3))][:per_row])
    names = ["As they are", *(ATTACK_LABELS[attack] for attack in VISIBLE)]
    return np.concatenate(rows), np.repeat(np.arange(len(rows)), [len(row) for row in rows]), names
