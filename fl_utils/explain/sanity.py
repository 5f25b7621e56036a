"""Does a map depend on what the model has learned? Weights are made random, and maps compared.

A method whose maps stay alike when the weights are random shows the image's edges, not the model.
"""

from collections.abc import Iterator

import keras
import numpy as np

from fl_utils import seeding
from fl_utils.explain.similarity import SSIM_WINDOW_PX, similarity

__all__ = ["SSIM_WINDOW_PX", "cascading_randomization", "drawn_again", "similarity"]


def cascading_randomization(model: keras.Model, *, seed: int) -> Iterator[tuple[str, keras.Model]]:
    """Models with random weights from the logits down to a layer, one layer more each time.

    Args:
      model: stays as it is.
      seed: root seed; a layer's new weights depend on it and on the layer's name only.
    Yields:
      (name of the layer that was made random last, a model of its own). Layers without weights are passed over. New
      weights are drawn by the layer's own initializers, so a bias is 0 and a scale 1 again, as before training.
    Raises:
      ValueError: no layer has weights.
    Source: Adebayo et al. 2018, arXiv:1810.03292, section 4.
    """
    names = [layer.name for layer in reversed(model.layers) if layer.weights]
    if not names:
        raise ValueError(f"Model {model.name!r} has no layer with weights.")
    drawn = {name: drawn_again(model.get_layer(name), seed) for name in names}
    for number, last in enumerate(names, start=1):
        clone = keras.models.clone_model(model)
        clone.set_weights(model.get_weights())
        for name in names[:number]:
            clone.get_layer(name).set_weights(drawn[name])
        yield last, clone


def drawn_again(layer: keras.layers.Layer, seed: int) -> list[np.ndarray]:
    """The initial weights of a layer like this one, its initializers seeded from (seed, name of the layer)."""
    config = layer.get_config()
    for key, value in config.items():
        if key.endswith("_initializer") and isinstance(value, dict) and "seed" in value.get("config", {}):
            value["config"]["seed"] = seeding.derive_seed(seed, "randomization", layer.name, key)
    fresh = type(layer).from_config(config)
    fresh.build(layer.input_shape)
    return fresh.get_weights()
