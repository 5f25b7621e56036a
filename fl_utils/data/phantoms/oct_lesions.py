"""Lesions of the OCT phantoms: drusen, macular oedema, choroidal neovascularisation.

Each changes an eye (of `oct_anatomy.draw_eye`) in place and returns where it did so: the mask's
codes with the pixels to look at, {code: bool[H, W]}, in the order in which they are written.
"""

import numpy as np

from fl_utils.data.phantoms.oct_anatomy import ROW, boundaries, domes, raise_floor, waves, yield_to

DRUSEN_CODE, FLUID_CODE, MEMBRANE_CODE = 1, 2, 3
# How a swelling is shared out over the layers.
_SWELLING = {"gcl": 0.09, "ipl": 0.09, "inl": 0.29, "opl": 0.24, "onl": 0.29}


def add_drusen(eye, canvas, rng):
    """Three to eight humps of deposit that lift the pigment epithelium off Bruch's membrane."""
    number = rng.integers(3, 9)
    # Drusen gather around the fovea, and they run into each other.
    centres = np.clip(rng.normal(eye.fovea, 0.4, number), -0.85, 0.85)
    lift = domes(eye.x, centres, rng.uniform(0.07, 0.17, number), rng.uniform(0.08, 0.19, number))
    raise_floor(eye, lift)
    eye.value[ROW["ez"]] *= 1 - np.clip(3 * lift, 0, 0.4)
    return {DRUSEN_CODE: _band(canvas, eye, "ez", "bruch", lift > 0)}


def add_edema(eye, canvas, rng):
    """Four to eight cysts in a swollen retina; in three of ten also fluid under the fovea."""
    centre = np.clip(eye.fovea + rng.normal(0, 0.2), -0.6, 0.6)
    spread, swelling = rng.uniform(0.22, 0.42), rng.uniform(0.14, 0.36)
    bulge = np.exp(-(((eye.x - np.float32(centre)) / np.float32(1.3 * spread)) ** 2))
    for name, share in _SWELLING.items():
        eye.thickness[ROW[name]] += np.float32(swelling * share) * bulge
        eye.value[ROW[name]] *= 1 - np.float32(0.15) * bulge
    wet, half, depth = rng.random() < 0.3, rng.uniform(0.15, 0.3), rng.uniform(0.05, 0.12)
    fluid = domes(eye.x, [eye.fovea], [half], [depth * wet])
    eye.thickness[ROW["fluid"]] += fluid
    region = _add_cysts(eye, canvas, rng, centre, spread, rng.integers(4, 9))
    return {FLUID_CODE: region | _band(canvas, eye, "fluid", "fluid", fluid > 0)}


def add_membrane(eye, canvas, rng):
    """A bright spindle of new vessels over or under a broken pigment epithelium; often fluid."""
    centre = np.clip(eye.fovea + rng.normal(0, 0.2), -0.55, 0.55)
    half, height = rng.uniform(0.3, 0.55), rng.uniform(0.18, 0.34)
    smooth = domes(eye.x, [centre], [half], [height])
    hump = smooth * np.clip(1 + 0.18 * waves(rng, eye.x, 1, 9, 22)[0], 0.5, None)
    above = rng.uniform(0.7, 1.0) if rng.random() < 0.5 else rng.uniform(0.0, 0.3)
    eye.thickness[ROW["mass"]] += np.float32(above) * hump
    eye.thickness[ROW["deposit"]] += np.float32(1 - above) * hump
    yield_to(eye, "onl", 0.3 * smooth + (hump - smooth))  # the retina above stays smooth
    inside, grey = hump > 0, rng.uniform(0.5, 0.75)
    eye.value[ROW["mass"]] = grey
    eye.value[ROW["deposit"], inside] = grey - 0.06
    # The epithelium is broken, the photoreceptors above it are lost, and a shadow lies below.
    gaps = np.clip(0.5 + 0.6 * waves(rng, eye.x, 1, 8, 20)[0], 0, 1)
    eye.value[ROW["rpe"]] *= 1 - np.float32(0.35) * inside * gaps
    for name in ("elm", "ez", "os"):
        eye.value[ROW[name]] += np.float32(0.6) * inside * (0.35 - eye.value[ROW[name]])
    eye.value[ROW["capillaries"] :] *= 1 - np.clip(1.5 * hump, 0, 0.4)
    wet, shift = rng.random() < 0.55, rng.normal(0, 0.3) * half
    reach, depth = half * rng.uniform(1.1, 1.5), rng.uniform(0.04, 0.11)
    fluid = domes(eye.x, [centre + shift], [reach], [depth * wet])
    eye.thickness[ROW["fluid"]] += fluid
    region = _band(canvas, eye, "fluid", "fluid", fluid > 0)
    if rng.random() < 0.3:
        region |= _add_cysts(eye, canvas, rng, centre, half, rng.integers(1, 4))
    # Fluid comes first: where both touch, the membrane has the pixel.
    return {FLUID_CODE: region, MEMBRANE_CODE: _band(canvas, eye, "mass", "bruch", inside)}


def _add_cysts(eye, canvas, rng, centre, spread, number):
    """Adds dark cysts between the inner plexiform layer and the nuclei; returns bool[H, W]."""
    tops, region = boundaries(eye), np.zeros(canvas.x.shape, bool)
    for _ in range(number):
        cx = np.clip(rng.normal(centre, 0.7 * spread), -0.9, 0.9)
        roof = np.interp(cx, eye.x, tops[ROW["ipl"]])
        room = np.interp(cx, eye.x, tops[ROW["elm"]]) - roof
        a, b = rng.uniform(0.05, 0.13), room * rng.uniform(0.14, 0.34)
        cy = roof + b + rng.uniform(0.1, 0.9) * (room - 2 * b)
        eye.cysts.append((cx, cy, a, b, rng.uniform(0.06, 0.13)))
        region |= canvas.ellipse(cx, cy, a, b) > -0.7 * canvas.pixel
    return region & _band(canvas, eye, "rnfl", "onl", True)


def _band(canvas, eye, first, last, columns):
    """Pixels that layers `first` to `last` touch in `columns` (bool[W]), bool[H, W]."""
    tops, half = boundaries(eye), np.float32(0.5 * canvas.pixel)
    below = canvas.y > tops[ROW[first]] - half
    return below & (canvas.y < tops[ROW[last] + 1] + half) & columns
