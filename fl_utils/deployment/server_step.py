"""From the hospitals' updates to the next model: how they are combined, and the server's step."""

from collections.abc import Sequence

import numpy as np

from fl_utils.config import ExperimentConfig


class ServerStep:
    """Combines updates and takes the server's step; keeps the optimizer's state.

    The optimizers are those of the simulation (`learning.algorithms`). Plain averaging is done without TFF, whose import
    takes seconds.

    Args:
      config: of the run.
      weights: the initial model's, float32 arrays.
    """

    def __init__(self, config: ExperimentConfig, weights: Sequence[np.ndarray]):
        self._config = config
        self._optimizer = self._state = None
        if config.method not in ("fedavg", "fedprox"):
            import tensorflow as tf

            from fl_utils.learning.algorithms import ServerSettings, algorithm_named

            settings = ServerSettings(config.server_learning_rate, config.server_momentum)
            self._optimizer = algorithm_named(config.method).server_optimizer(settings)
            self._state = self._optimizer.initialize([tf.TensorSpec(array.shape, array.dtype) for array in weights])

    def combine(self, deltas: Sequence[Sequence[np.ndarray]], num_examples: Sequence[int]) -> list[np.ndarray]:
        """One change from all: their mean weighted by examples, or the configured rule, which counts hospitals alike."""
        if self._config.aggregator in (None, "mean"):
            shares = np.asarray(num_examples, np.float64) / sum(num_examples)
            return [
                sum(share * part for share, part in zip(shares, parts, strict=True)).astype(np.float32)
                for parts in zip(*deltas, strict=True)
            ]
        rows = np.stack([np.concatenate([part.ravel() for part in delta]) for delta in deltas])
        return _unflat(np.asarray(self._rule(rows)), deltas[0])

    def apply(self, weights: Sequence[np.ndarray], change: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The next weights; the change (global - local) is the server's gradient."""
        if self._optimizer is None:
            rate = np.float32(self._config.server_learning_rate)
            return [weight - rate * part for weight, part in zip(weights, change, strict=True)]
        import tensorflow as tf

        tensors = [tf.constant(part) for part in change]
        self._state, stepped = self._optimizer.next(self._state, [tf.constant(weight) for weight in weights], tensors)
        return [np.asarray(weight) for weight in stepped]

    def state(self) -> list[np.ndarray]:
        """All that the next step depends on."""
        import tensorflow as tf

        return [np.asarray(leaf) for leaf in tf.nest.flatten(self._state)] if self._state is not None else []

    def restore(self, state: Sequence[np.ndarray]) -> None:
        """Goes back to a state that `state` gave."""
        if self._state is not None:
            import tensorflow as tf

            # TFF keeps rates and the step as Python's numbers, with which TensorFlow computes otherwise than with float64.
            leaves = [
                type(old)(leaf) if isinstance(old, (int, float)) else tf.constant(leaf)
                for old, leaf in zip(tf.nest.flatten(self._state), state, strict=True)
            ]
            self._state = tf.nest.pack_sequence_as(self._state, leaves)

    def _rule(self, rows: np.ndarray):
        from fl_utils.learning import robust

        number, assumed = len(rows), self._config.assumed_attackers
        rules = {
            "coordinate_median": lambda: robust.coordinate_median(rows),
            "trimmed_mean": lambda: robust.trimmed_mean(rows, share=assumed / self._config.num_clients),
            "krum": lambda: robust.krum(rows, num_malicious=assumed),
            "multi_krum": lambda: robust.multi_krum(rows, num_malicious=assumed, num_selected=max(1, number - assumed - 2)),
            "geometric_median": lambda: robust.geometric_median(rows),
        }
        return rules[self._config.aggregator]()


def _unflat(row: np.ndarray, like: Sequence[np.ndarray]) -> list[np.ndarray]:
    ends = np.cumsum([part.size for part in like])
    return [piece.reshape(part.shape) for piece, part in zip(np.split(row, ends[:-1]), like, strict=True)]


def misfit(arrays: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> str | None:
    """What is wrong with arrays that should be like the expected ones; None where nothing is."""
    if len(arrays) != len(expected):
        return f"{len(arrays)} arrays were sent, the model has {len(expected)}"
    for number, (array, wanted) in enumerate(zip(arrays, expected, strict=True)):
        if array.shape != wanted.shape or array.dtype != wanted.dtype:
            return f"array {number} is {array.dtype} {array.shape}, the model's is {wanted.dtype} {wanted.shape}"
        if not np.isfinite(array).all():
            return f"array {number} of shape {array.shape} holds {np.count_nonzero(~np.isfinite(array))} numbers that are not finite"
    return None
