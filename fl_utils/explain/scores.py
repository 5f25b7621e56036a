"""How well a map fits a mask, and how much the model depends on what the map marks. NumPy only.

Every score is one number an image, so that intervals over images and seeds can be had; larger is better except for
deletion. An all-zero map scores 0: it points nowhere. An image without any masked pixel has no score and is an error.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

from fl_utils.explain.baselines import checked_maps

#: Where `iou_curve` cuts, as shares of a map's maximum.
THRESHOLDS = tuple(np.arange(1, 20) / 20)
BASELINES = ("blur", "mean")


def pointing_game(maps: np.ndarray, masks: np.ndarray, *, tolerance_px: float = 0) -> np.ndarray:
    """Whether a map's maximum lies in the mask.

    Args:
      maps: float [N, H, W], at least 0.
      masks: bool [N, H, W], at least one pixel each.
      tolerance_px: how far outside, in pixels (Euclidean), still counts; Zhang et al. take 15 on photographs of
        some 500 x 300 pixels, which is far too much for 64.
    Returns:
      float [N]: 1 or 0; where several pixels share the maximum, the share of them that hit.
    Raises:
      ValueError: shapes or values that do not fit, an empty mask.
    Source: Zhang et al. 2018, arXiv:1608.00507.
    """
    maps, masks = _checked(maps, masks)
    high = maps.max(axis=(1, 2), keepdims=True)
    top = (maps == high) & (high > 0)
    return _ratio((top & _widened(masks, tolerance_px)).sum(axis=(1, 2)), top.sum(axis=(1, 2)))


def chance_of_pointing(masks: np.ndarray, *, tolerance_px: float = 0) -> np.ndarray:
    """What a random pixel would score in `pointing_game`: the share of the image that counts as a hit, float [N]."""
    return _widened(_checked_masks(masks), tolerance_px).mean(axis=(1, 2))


def energy_inside(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The share of a map's sum that lies in the mask, float [N]; by chance it is the mask's share of the image.

    Raises:
      ValueError: shapes or values that do not fit, an empty mask.
    Source: the energy-based pointing game of Wang et al. 2020, arXiv:1910.01279, section 4.3.
    """
    maps, masks = _checked(maps, masks)
    return _ratio((maps * masks).sum(axis=(1, 2)), maps.sum(axis=(1, 2)))


def iou(maps: np.ndarray, masks: np.ndarray, *, threshold: float = 0.5) -> np.ndarray:
    """Intersection over union of the mask and the pixels of at least `threshold` times the map's maximum, float [N]."""
    return iou_curve(maps, masks, thresholds=(threshold,))[:, 0]


def best_iou(maps: np.ndarray, masks: np.ndarray, *, thresholds: Sequence[float] = THRESHOLDS) -> np.ndarray:
    """The largest IoU of an image over `thresholds`, float [N].

    The threshold is chosen with the mask in hand, so this is a bound: compare it with the same bound of
    `baselines.random_maps`. One threshold for all images is had from the mean of `iou_curve` on validation images.
    """
    return iou_curve(maps, masks, thresholds=thresholds).max(axis=1)


def iou_curve(maps: np.ndarray, masks: np.ndarray, *, thresholds: Sequence[float] = THRESHOLDS) -> np.ndarray:
    """`iou` at each of T thresholds, float [N, T].

    Raises:
      ValueError: a threshold not in (0, 1], shapes or values that do not fit, an empty mask.
    """
    if not len(thresholds) or not all(0 < threshold <= 1 for threshold in thresholds):
        raise ValueError(f"thresholds are {tuple(thresholds)}; expected shares of the maximum, above 0 and up to 1.")
    maps, masks = _checked(maps, masks)
    high = maps.max(axis=(1, 2), keepdims=True)
    columns = []
    for threshold in thresholds:
        region = (maps >= threshold * high) & (high > 0)
        columns.append(_ratio((region & masks).sum(axis=(1, 2)), (region | masks).sum(axis=(1, 2))))
    return np.stack(columns, axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class PerturbationCurves:
    """What a model's score does while pixels go and come, in the order of a map.

    Attributes:
      fractions: float [steps + 1], the share of pixels deleted or inserted, 0 to 1.
      deletion, insertion: float [N, steps + 1], the score of the asked class.
      deletion_auc, insertion_auc: float [N], area by the trapezoidal rule over `fractions`. A map that finds what
        the model uses has a low first and a high second.
    """

    fractions: np.ndarray
    deletion: np.ndarray
    insertion: np.ndarray
    deletion_auc: np.ndarray
    insertion_auc: np.ndarray


def deletion_insertion(
    predict: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    maps: np.ndarray,
    classes: np.ndarray,
    *,
    steps: int,
    rng: np.random.Generator,
    baseline: str = "blur",
) -> PerturbationCurves:
    """Replaces pixels by a baseline, those with the largest value of the map first, and the reverse.

    Args:
      predict: images [N, H, W, C] of the dtype of `images` -> scores [N, K]; probabilities, by custom.
      images: [N, H, W, C], uint8 or floats.
      maps: float [N, H, W], at least 0.
      classes: int [N], whose score is followed.
      steps: S >= 1 equal parts; 2 S calls of `predict`.
      rng: puts pixels of equal value in order. A ReLU leaves many at 0, and the order of the array would delete
        them from the top of the picture to its bottom.
      baseline: "blur", the image under a Gaussian of 1/8 of its shorter side; or "mean", its own mean a channel.
    Returns:
      The curves. Deletion starts at the image and ends at the baseline, insertion the other way.
    Raises:
      ValueError: an argument out of range, or predictions that are not finite.
    Source: Petsiuk et al. 2018, arXiv:1806.07421 (RISE), who delete to grey and insert into a blur.
    """
    maps, num = checked_maps(maps), len(images)
    if images.ndim != 4 or maps.shape != images.shape[:3] or np.shape(classes) != (num,) or steps < 1:
        raise ValueError(
            f"images {images.shape}, maps {maps.shape}, classes {np.shape(classes)}, steps {steps}; expected "
            "[N, H, W, C], [N, H, W], [N] and at least 1."
        )
    other = _baseline(images, baseline)
    values = maps.reshape(num, -1)
    order = np.lexsort((rng.random(values.shape), -values), axis=1)
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(values.shape[1])[None], axis=1)
    ranks = ranks.reshape(*maps.shape, 1)

    def follow(pictures):
        scores = np.asarray(predict(pictures))
        if scores.ndim != 2 or len(scores) != num or not np.isfinite(scores).all():
            raise ValueError(f"predict gave {scores.shape} for {num} images; expected finite scores [{num}, K].")
        if np.min(classes) < 0 or np.max(classes) >= scores.shape[1]:
            raise ValueError(
                f"classes go from {np.min(classes)} to {np.max(classes)}; predict knows 0 to {scores.shape[1] - 1}."
            )
        return scores[np.arange(num), classes]

    counts = np.rint(np.linspace(0, values.shape[1], steps + 1))
    whole, gone = follow(images), follow(other)
    deletion, insertion = [whole], [gone]
    for count in counts[1:-1]:
        first = ranks < count
        deletion.append(follow(np.where(first, other, images)))
        insertion.append(follow(np.where(first, images, other)))
    fractions = counts / values.shape[1]
    curves = [np.stack([*deletion, gone], axis=1), np.stack([*insertion, whole], axis=1)]
    return PerturbationCurves(fractions, *curves, *(np.trapz(curve, fractions, axis=1) for curve in curves))


def _baseline(images, baseline):
    if baseline not in BASELINES:
        raise ValueError(f"baseline is {baseline!r}; expected one of {', '.join(BASELINES)}.")
    if baseline == "mean":
        other = np.broadcast_to(images.mean(axis=(1, 2), keepdims=True, dtype=np.float64), images.shape)
    else:
        sigma = min(images.shape[1:3]) / 8
        other = ndimage.gaussian_filter(images.astype(np.float64), (0, sigma, sigma, 0), mode="nearest")
    return (np.rint(other) if np.issubdtype(images.dtype, np.integer) else other).astype(images.dtype)


def _widened(masks, tolerance_px):
    if tolerance_px < 0:
        raise ValueError(f"tolerance_px is {tolerance_px}; expected 0 or more.")
    if tolerance_px == 0:
        return masks
    return np.stack([ndimage.distance_transform_edt(~mask) <= tolerance_px for mask in masks])


def _ratio(part, whole):
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)


def _checked(maps, masks):
    maps, masks = checked_maps(maps), _checked_masks(masks)
    if maps.shape != masks.shape:
        raise ValueError(f"maps {maps.shape} and masks {masks.shape} do not fit; expected the same [N, H, W].")
    return maps, masks


def _checked_masks(masks):
    masks = np.asarray(masks)
    if masks.dtype != bool or masks.ndim != 3 or masks.size == 0:
        raise ValueError(f"masks are {masks.dtype} {masks.shape}; expected bool [N, H, W], such as `data.masks > 0`.")
    empty = ~masks.any(axis=(1, 2))
    if empty.any():
        raise ValueError(
            f"Mask number {np.flatnonzero(empty)[0]} is empty ({empty.sum()} of {len(masks)} are); leave images "
            "without a lesion out."
        )
    return masks
