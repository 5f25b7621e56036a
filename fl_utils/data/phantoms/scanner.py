"""Hospitals' scanners: the same phantoms, as different hospitals would have taken them.

Feature skew for federated experiments: the look of an image depends on its hospital and not on
its class. The profiles are invented; they stand for no vendor.
"""

import functools
import numbers
from dataclasses import dataclass

import numpy as np

from fl_utils.data.phantoms.shapes import MAX_SIZE_PX, MIN_SIZE_PX, Canvas, blur, check_generator, smooth_field

CORNERS = ("top_left", "top_right", "bottom_left", "bottom_right")
_LETTERS = {  # strokes of side markers; the letter's box is [0, 1] to the right and downwards
    "L": ((0.1, 0.0), (0.1, 1.0), (0.8, 1.0)),
    "R": ((0.1, 1.0), (0.1, 0.0), (0.7, 0.05), (0.8, 0.25), (0.7, 0.45), (0.1, 0.5), (0.8, 1.0)),
}
_MARKER_HEIGHT, _MARKER_MARGIN = 0.20, 0.07  # canvas units


@dataclass(frozen=True)
class ScannerProfile:
    """How one hospital's images look.

    Args:
      name: of the hospital, for tables and figures.
      gain: factor on the grey values (0..1), > 0; what gets brighter than white is cut off.
      gamma: exponent after the gain, > 0; below 1 brightens the dark parts.
      bias_field: sd of the logarithm of a smooth field that multiplies the image, >= 0.
      noise: sd of the Gaussian noise, on grey values of 0..1, >= 0.
      blur: sd of the Gaussian blur, in canvas units (the image spans 2), >= 0.
      side_marker: corner of a bright letter L or R, one of CORNERS; None for none.
    Raises:
      ValueError: a value is out of range.
    """

    name: str
    gain: float = 1.0
    gamma: float = 1.0
    bias_field: float = 0.0
    noise: float = 0.0
    blur: float = 0.0
    side_marker: str | None = None

    def __post_init__(self):
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"name is {self.name!r}; expected the hospital's name.")
        for field, zero_is_fine in (
            ("gain", False), ("gamma", False), ("bias_field", True), ("noise", True), ("blur", True),
        ):  # fmt: skip
            value = getattr(self, field)
            number = isinstance(value, numbers.Real) and not isinstance(value, bool) and np.isfinite(value)
            if not number or value < 0 or (value == 0 and not zero_is_fine):
                wanted = "0 or more" if zero_is_fine else "more than 0"
                raise ValueError(f"{field} of scanner {self.name!r} is {value!r}; expected a finite number, {wanted}.")
        if self.side_marker is not None and self.side_marker not in CORNERS:
            raise ValueError(
                f"side_marker of scanner {self.name!r} is {self.side_marker!r}; "
                f"expected None or one of {', '.join(CORNERS)}."
            )


PROFILES: tuple[ScannerProfile, ...] = (
    ScannerProfile("A: new digital", gain=1.0, gamma=1.0, bias_field=0.02, noise=0.008),
    ScannerProfile("B: dark and sharp", gain=0.9, gamma=1.4, bias_field=0.05, noise=0.015, side_marker="top_left"),
    ScannerProfile("C: bright and noisy", gain=1.05, gamma=0.75, bias_field=0.06, noise=0.03, side_marker="top_right"),
    ScannerProfile(
        "D: old film", gain=0.8, gamma=0.65, bias_field=0.08, noise=0.02, blur=0.02, side_marker="bottom_left"
    ),
)


def draw_scanners(num_scanners: int, *, rng: np.random.Generator) -> tuple[ScannerProfile, ...]:
    """Made-up scanners that differ as strongly as PROFILES do, without side markers: feature skew for any images.

    Args:
      num_scanners: at least 1; fewer are the first of more.
      rng: the only source of randomness.
    """
    check_generator(rng)
    draws = rng.random((num_scanners, 5))
    return tuple(
        ScannerProfile(
            f"scanner {number + 1}", gain=0.75 + 0.4 * a, gamma=float(np.exp(np.log(2) * (2 * b - 1))),
            bias_field=0.12 * c, noise=0.04 * d, blur=0.03 * e,
        )
        for number, (a, b, c, d, e) in enumerate(draws)
    )


def scan(images, hospitals, *, profiles=PROFILES, rng):
    """Takes each image as its hospital's scanner would have: feature skew without label skew.

    Image i is a pure function of (one number drawn from `rng`, i, its own profile), so fewer
    images are the first of more, and a generator of the same state gives a phantom's healthy
    counterpart the same field, the same noise and the same marker. Masks stay as they are: nothing moves.

    Args:
      images: uint8[N, H, W, C], H = W from 24 to 256 pixels; the channels get the same noise.
      hospitals: int[N], indices into `profiles`.
      profiles: one ScannerProfile a hospital.
      rng: the only source of randomness; one number is drawn from it.
    Returns:
      uint8[N, H, W, C]; the images given are left as they are.
    Raises:
      ValueError: shapes, types or indices are not as above, or rng is not a numpy Generator.
    """
    images, hospitals = np.asarray(images), np.asarray(hospitals)
    _check(images, hospitals, profiles, rng)
    root = int(rng.integers(2**62))
    scanned = np.empty_like(images)
    for index, hospital in enumerate(hospitals):
        stream = np.random.default_rng([root, 3, index])
        scanned[index] = _scan_one(images[index], profiles[hospital], stream)
    return scanned


def _scan_one(image, profile, rng):
    """Scans uint8[H, W, C]; draws the same numbers for every profile."""
    size = len(image)
    field = smooth_field(rng, size, 4)
    noise = rng.standard_normal((size, size), dtype=np.float32)
    letter = "LR"[rng.integers(2)]
    canvas = _canvas(size)
    tone = (np.float32(profile.gain) * np.exp(np.float32(profile.bias_field) * field))[..., None]
    out = np.empty(image.shape, np.float32)
    for channel in range(image.shape[-1]):
        out[..., channel] = blur(image[..., channel].astype(np.float32) / 255, profile.blur, canvas)
    out = np.clip(out * tone, 0, 1) ** np.float32(profile.gamma)
    if profile.side_marker is not None:
        out = np.maximum(out, 0.92 * _marker(size, letter, profile.side_marker)[..., None])
    out += np.float32(profile.noise) * noise[..., None]
    return np.rint(np.clip(out, 0, 1) * 255).astype(np.uint8)


@functools.lru_cache(maxsize=8)
def _canvas(size):
    straight = dict(rotation_deg=0, scale=(1, 1), shift=0, warp=0, flip=False)
    return Canvas(size, np.random.default_rng(0), **straight)


@functools.lru_cache(maxsize=64)
def _marker(size, letter, corner):
    """Weight 0..1 of a letter in a corner, float32[H, W]; the letter is never mirrored."""
    height, width = _MARKER_HEIGHT, 0.6 * _MARKER_HEIGHT
    left = _MARKER_MARGIN - 1 if corner.endswith("left") else 1 - _MARKER_MARGIN - width
    top = _MARKER_MARGIN - 1 if corner.startswith("top") else 1 - _MARKER_MARGIN - height
    points = [(left + width * u, top + height * v) for u, v in _LETTERS[letter]]
    strokes = _canvas(size).line(points, 0.02)
    strokes.setflags(write=False)  # shared by every image of this size
    return strokes


def _check(images, hospitals, profiles, rng):
    square = images.ndim == 4 and images.shape[1] == images.shape[2]
    if not square or not MIN_SIZE_PX <= images.shape[1] <= MAX_SIZE_PX or images.dtype != np.uint8:
        raise ValueError(
            f"images are {images.dtype}{list(images.shape)}; expected uint8[N, H, W, C] "
            f"with H = W from {MIN_SIZE_PX} to {MAX_SIZE_PX} pixels."
        )
    if hospitals.shape != images.shape[:1] or not np.issubdtype(hospitals.dtype, np.integer):
        raise ValueError(
            f"hospitals are {hospitals.dtype}{list(hospitals.shape)}; expected one whole number "
            f"for each of the {len(images)} images."
        )
    if not len(profiles) or not all(isinstance(profile, ScannerProfile) for profile in profiles):
        raise ValueError(f"profiles are {profiles!r}; expected at least one ScannerProfile.")
    if len(hospitals) and not 0 <= hospitals.min() <= hospitals.max() < len(profiles):
        raise ValueError(
            f"hospitals run from {hospitals.min()} to {hospitals.max()}; expected 0 to "
            f"{len(profiles) - 1}, an index into the {len(profiles)} profiles."
        )
    check_generator(rng)
