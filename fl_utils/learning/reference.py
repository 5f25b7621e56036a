"""One round of FedAvg written out in NumPy for softmax regression: what TFF must agree with.

It shares the order of the batches with `learning.local`, and nothing else: gradients, steps and
the average are written out here, so that agreement means something.
"""

from collections.abc import Sequence

import numpy as np

Weights = list[np.ndarray]


def softmax_regression_gradient(
    weights: Weights, images: np.ndarray, labels: np.ndarray, class_weights: np.ndarray
) -> Weights:
    """Gradient of the weighted cross-entropy of softmax regression.

    Args:
      weights: [matrix [D, K], bias [K]].
      images: float [N, D].
      labels: int [N].
      class_weights: float [K].
    Source: Bishop 2006, Pattern Recognition and Machine Learning, equation 4.109.
    """
    logits = images @ weights[0] + weights[1]
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    error = exponentials / exponentials.sum(axis=1, keepdims=True)
    error[np.arange(len(labels)), labels] -= 1.0
    error *= class_weights[labels][:, None] / len(labels)
    return [images.T @ error, error.sum(axis=0)]


def client_update(
    weights: Weights, images: np.ndarray, labels: np.ndarray, batches: Sequence[np.ndarray],
    class_weights: np.ndarray, learning_rate: float, momentum: float = 0.0,
) -> Weights:
    """Plain SGD over the batches; returns global weights minus local weights.

    Args:
      weights: the global model's.
      images: uint8 [N, H, W, C].
      labels: int [N].
      batches: index arrays, one a step.
      class_weights: float [K].
      learning_rate, momentum: v <- m v + g; w <- w - lr v.
    Source: McMahan et al. 2017, arXiv:1602.05629, Algorithm 1, ClientUpdate.
    """
    pixels = images.reshape(len(images), -1) / 255.0
    local, velocity = [w.astype(np.float64) for w in weights], [np.zeros(w.shape) for w in weights]
    for batch in batches:
        gradient = softmax_regression_gradient(local, pixels[batch], labels[batch], class_weights)
        velocity = [momentum * v + g for v, g in zip(velocity, gradient, strict=True)]
        local = [w - learning_rate * v for w, v in zip(local, velocity, strict=True)]
    return [w - v for w, v in zip(weights, local, strict=True)]


def federated_average(weights: Weights, deltas: Sequence[Weights], num_examples: Sequence[int]) -> Weights:
    """The server's step: subtract the mean of the updates, weighted by examples.

    Source: McMahan et al. 2017, arXiv:1602.05629, Algorithm 1: w <- sum_k n_k / n w_k.
    """
    shares = np.asarray(num_examples) / np.sum(num_examples)
    means = [sum(share * delta[i] for share, delta in zip(shares, deltas, strict=True)) for i in range(len(weights))]
    return [w - mean for w, mean in zip(weights, means, strict=True)]
