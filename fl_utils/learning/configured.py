"""From a run's configuration to what trains: the same for the simulation and for the real federation."""

from fl_utils import seeding
from fl_utils.config import ExperimentConfig
from fl_utils.data.catalogue import card
from fl_utils.learning.local import LocalSettings
from fl_utils.models.classifiers import build_model


def local_settings(config: ExperimentConfig) -> LocalSettings:
    """How a hospital trains a classifier in a run."""
    return LocalSettings(
        batch_size=config.client_batch_size,
        epochs=config.client_epochs_per_round,
        learning_rate=config.client_learning_rate,
        momentum=config.client_momentum,
        augment=augmentation(config),
        proximal_strength=config.proximal_strength,
        norm_statistics=config.norm_statistics if config.model == "norm_cnn_batch" else None,
    )


def augmentation(config: ExperimentConfig) -> str:
    """The augmentation's name for `learning.local`: left-right flips only where anatomy allows."""
    if not config.augment:
        return "none"
    return "shift_rotate_flip" if card(config.dataset).flip_is_safe else "shift_rotate"


def initial_seed(config: ExperimentConfig) -> int:
    """All methods of one seed start from the same weights."""
    return seeding.derive_seed(config.seed, "init", config.model)


def new_classifier(config: ExperimentConfig, image_shape: tuple[int, int, int], num_classes: int):
    """A run's classifier (`keras.Model`) with its initial weights.

    Args:
      config: of the run.
      image_shape: (H, W, C).
      num_classes: K.
    """
    return build_model(config.model, image_shape, num_classes, seed=initial_seed(config))
