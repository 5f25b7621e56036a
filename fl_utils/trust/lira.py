"""LiRA, the likelihood-ratio membership attack, from the outputs of shadow models. Works on arrays.

Threat model, on top of `membership`: the attacker trains shadow models in the same way on images of the same kind, half
of them with the image in question ("online"), or none of them ("offline").
"""

import numpy as np
from scipy.special import logsumexp

from fl_utils.trust.membership import finite

#: Shadow models needed of each kind (with and without an example): a mean of fewer says little.
MIN_SHADOWS_A_SIDE = 4
#: From so many a side on every example has its own variance; below, all share one. Carlini et al. 2022 find the shared
#: one better under 64 models in all.
OWN_VARIANCE_A_SIDE = 32
MODES = ("online", "offline")


def scaled_confidence(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)) of the true class, which is nearly Gaussian over models; computed without rounding at p = 1.

    Args:
      logits: float [..., N, K]; log-probabilities give the same.
      labels: int [N], classes 0..K-1.
    Returns:
      float64 [..., N].
    Raises:
      ValueError: shapes do not fit, a label is out of range, a value is not finite.
    Source: Carlini et al. 2022, arXiv:2112.03570, section IV-C.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    if logits.ndim < 2 or labels.shape != logits.shape[-2:-1] or not np.isfinite(logits).all():
        raise ValueError(f"Logits {logits.shape} and labels {labels.shape}; expected finite [..., N, K] and [N].")
    own = labels[:, None] == np.arange(logits.shape[-1])
    if not (own.sum(axis=1) == 1).all():
        raise ValueError(f"Labels from {labels.min()} to {labels.max()}; expected 0 to {logits.shape[-1] - 1}.")
    return np.where(own, logits, 0).sum(axis=-1) - logsumexp(np.where(own, -np.inf, logits), axis=-1)


def shadow_members(groups: np.ndarray, num_shadows: int, *, rng: np.random.Generator) -> np.ndarray:
    """Which examples each shadow model is trained on: whole patients, each in exactly half of the models.

    Args:
      groups: int [N], patient (or duplicate group) of each example.
      num_shadows: S, even, at least 2 * MIN_SHADOWS_A_SIDE.
      rng: the only source of randomness.
    Returns:
      bool [S, N].
    Raises:
      ValueError: num_shadows is odd or too small.
    """
    if num_shadows % 2 or num_shadows < 2 * MIN_SHADOWS_A_SIDE:
        raise ValueError(
            f"num_shadows is {num_shadows}; expected an even number of at least {2 * MIN_SHADOWS_A_SIDE}."
        )
    _, of_group = np.unique(groups, return_inverse=True)
    half = np.arange(num_shadows) < num_shadows // 2
    table = rng.permuted(np.tile(half, (of_group.max() + 1, 1)), axis=1)
    return table[of_group].T


def balanced(shadow_membership: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """Which shadow models to use so that every example has as many with it as without it; the surplus is drawn.

    Where one of a set of models is attacked by the others, and each example is in half of the set, a member is left with
    fewer models with it than without. Their mean is then less sure, which lowers a member's score for no other reason.

    Args:
      shadow_membership: bool [S, N].
      rng: the only source of randomness.
    Returns:
      bool [S, N].
    """
    inside = np.asarray(shadow_membership)
    order = rng.random(inside.shape)
    kept = np.minimum(inside.sum(axis=0), (~inside).sum(axis=0))
    used = np.zeros_like(inside)
    for side in (inside, ~inside):
        ranks = np.where(side, order, np.inf).argsort(axis=0).argsort(axis=0)
        used |= side & (ranks < kept)
    return used


def lira_scores(
    target: np.ndarray, shadows: np.ndarray, shadow_membership: np.ndarray, *, mode: str = "online",
    used: np.ndarray | None = None,
) -> np.ndarray:
    """The likelihood-ratio attack: is a confidence more like those of models with the example, or without?

    "online" gives log N(c; with) - log N(c; without). "offline" needs no model trained with the example and gives
    (c - mean) / deviation of those without, which orders as 1 - Pr[Z > c] does and does not run into 1.
    Under OWN_VARIANCE_A_SIDE models of a kind for any example, the variance of that kind is shared: pooled within
    examples. (The authors' code takes the deviation of all values there, into which examples' differences go too.)

    Args:
      target: float [N], `scaled_confidence` under the attacked model.
      shadows: float [S, N], the same under the shadow models.
      shadow_membership: bool [S, N], which examples each was trained on.
      mode: "online" or "offline".
      used: bool [S, N], the shadow models that count for an example; None: all. Of `balanced`, where the attacked model
        is one of a set in which every example is in exactly half.
    Returns:
      float64 [N].
    Raises:
      ValueError: shapes do not fit, an example with fewer than MIN_SHADOWS_A_SIDE models of a kind that is needed, or
        models that all agree, so that there is no variance.
    Source: Carlini et al. 2022, arXiv:2112.03570, Algorithm 1 and section IV.
    """
    target, shadows = finite(target, "target", 1), finite(shadows, "shadows", 2)
    inside = np.asarray(shadow_membership)
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; expected one of {', '.join(MODES)}.")
    if inside.dtype != bool or inside.shape != shadows.shape or shadows.shape[1:] != target.shape:
        raise ValueError(
            f"target {target.shape}, shadows {shadows.shape}, shadow_membership {inside.dtype} {inside.shape}; "
            "expected [N], [S, N] and bool [S, N]."
        )
    used = np.ones_like(inside) if used is None else np.asarray(used)
    if used.dtype != bool or used.shape != inside.shape:
        raise ValueError(f"used is {used.dtype} {used.shape}; expected bool {inside.shape}.")
    mean_out, deviation_out = _gaussian(shadows, ~inside & used, "without")
    z_out = (target - mean_out) / deviation_out
    if mode == "offline":
        return z_out
    mean_in, deviation_in = _gaussian(shadows, inside & used, "with")
    z_in = (target - mean_in) / deviation_in
    return (z_out**2 - z_in**2) / 2 + np.log(deviation_out / deviation_in)


def _gaussian(shadows, chosen, kind) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the chosen models' values, a number an example."""
    counts = chosen.sum(axis=0)
    if counts.min() < MIN_SHADOWS_A_SIDE:
        raise ValueError(
            f"Example {counts.argmin()} has {counts.min()} shadow models {kind} it; expected at least "
            f"{MIN_SHADOWS_A_SIDE}. Train more, on the sets that shadow_members draws."
        )
    mean = np.where(chosen, shadows, 0).sum(axis=0) / counts
    squares = np.where(chosen, (shadows - mean) ** 2, 0).sum(axis=0)
    own = counts.min() >= OWN_VARIANCE_A_SIDE
    variance = squares / (counts - 1) if own else np.full(len(mean), squares.sum() / (counts - 1).sum())
    if not (variance > 0).all():
        raise ValueError(f"The shadow models {kind} an example all agree on it: they are not trained independently.")
    return mean, np.sqrt(variance)
