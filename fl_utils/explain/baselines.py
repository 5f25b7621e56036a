"""Maps that know nothing of the image, made like class activation maps, and the scaling to [0, 1]. NumPy only.

A score says something where it is above that of `random_maps` (chance) and of `centre_prior` (lesions lie
in the middle of a picture more often than at its border).
"""

import numpy as np
from scipy import ndimage

_ORDERS = {"bilinear": 1, "nearest": 0}


def normalised(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each map divided by its maximum.

    Args:
      maps: float [N, H, W], finite and at least 0, as `explain.maps.class_maps` gives them.
    Returns:
      (float32 [N, H, W] in [0, 1], bool [N]: True where a map is all zero, and has stayed so).
    Raises:
      ValueError: another shape, a negative value, NaN or infinity.
    """
    maps = checked_maps(maps)
    high = maps.max(axis=(1, 2), keepdims=True)
    scaled = np.divide(maps, high, out=np.zeros_like(maps), where=high > 0)
    return scaled.astype(np.float32), high[:, 0, 0] == 0


def centre_prior(shape: tuple[int, int]) -> np.ndarray:
    """A Gaussian in the middle of the image, its standard deviation a quarter of each side.

    Args:
      shape: (H, W) in pixels, each at least 1.
    Returns:
      float32 [H, W], at most 1.
    """
    height, width = _checked_size("shape", shape)
    rows, columns = ((np.arange(size) - (size - 1) / 2) / (size / 4) for size in (height, width))
    return np.exp(-(rows[:, None] ** 2 + columns**2) / 2).astype(np.float32)


def random_maps(
    num: int, shape: tuple[int, int], rng: np.random.Generator, *, grid: tuple[int, int], upsampling: str = "bilinear"
) -> np.ndarray:
    """Uniform noise on the grid of a layer, upsampled as its maps are: as smooth as they, and blind.

    Args:
      num: N >= 1.
      shape: (H, W) of the image in pixels.
      rng: the only source of randomness.
      grid: (h, w) of the layer whose maps are compared; the first two of `explain.maps.layers_of(model)[layer]`.
      upsampling: as in `explain.maps.class_maps`.
    Returns:
      float32 [N, H, W] in [0, 1).
    Raises:
      ValueError: a size below 1 or an unknown upsampling.
    """
    shape, grid = _checked_size("shape", shape), _checked_size("grid", grid)
    if num < 1 or upsampling not in _ORDERS:
        known = ", ".join(_ORDERS)
        raise ValueError(f"num is {num}, upsampling {upsampling!r}; expected at least 1, and one of {known}.")
    noise = rng.random((num, *grid), np.float32)
    factors = (1, shape[0] / grid[0], shape[1] / grid[1])
    return ndimage.zoom(noise, factors, order=_ORDERS[upsampling], mode="nearest", grid_mode=True)


def checked_maps(maps: np.ndarray) -> np.ndarray:
    """The maps as float64.

    Raises:
      ValueError: not [N, H, W] with N >= 1, a negative value, NaN or infinity.
    """
    maps = np.asarray(maps, np.float64)
    if maps.ndim != 3 or maps.size == 0:
        raise ValueError(f"maps have shape {maps.shape}; expected [N, H, W] with at least one map.")
    good = (np.isfinite(maps) & (maps >= 0)).all(axis=(1, 2))
    if not good.all():
        raise ValueError(
            f"Map number {np.flatnonzero(~good)[0]} holds negative or non-finite values; expected maps after "
            "their ReLU."
        )
    return maps


def _checked_size(what: str, size: tuple[int, int]) -> tuple[int, int]:
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"{what} is {size}; expected (rows, columns), each at least 1.")
    return size
