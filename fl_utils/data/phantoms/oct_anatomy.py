"""The eye of an OCT phantom: a stack of layers, column by column, and what else lies in it.

Lengths are in canvas units, as in `shapes`. A layer is a thickness per column; a lesion that
needs room (fluid, drusen, a membrane) is a layer, too, with thickness 0 in a healthy eye.
"""

from types import SimpleNamespace

import numpy as np

from fl_utils.data.phantoms.shapes import paint

# From the vitreous down: (name, thickness, reflectivity on the usual logarithmic grey scale).
# A retina of 0.5 canvas units is 300 micrometres; as in published scans the height is stretched.
_STACK = (
    ("vitreous", 0.0, 0.10),
    ("rnfl", 0.050, 0.72),  # nerve fibres
    ("gcl", 0.060, 0.48),  # ganglion cells
    ("ipl", 0.055, 0.56),
    ("inl", 0.060, 0.33),
    ("opl", 0.045, 0.53),
    ("onl", 0.125, 0.25),  # photoreceptor nuclei
    ("elm", 0.014, 0.42),
    ("myoid", 0.030, 0.29),
    ("ez", 0.030, 0.74),  # ellipsoid zone, the IS/OS line
    ("os", 0.028, 0.46),
    ("fluid", 0.0, 0.10),  # lesion: under the retina
    ("mass", 0.0, 0.66),  # lesion: neovascular tissue over the pigment epithelium
    ("rpe", 0.040, 0.95),  # pigment epithelium
    ("deposit", 0.0, 0.33),  # lesion: under the pigment epithelium
    ("bruch", 0.012, 0.55),
    ("capillaries", 0.050, 0.47),
    ("choroid", 0.300, 0.38),
    ("sclera", 0.0, 0.30),
)
LAYERS = tuple(name for name, _, _ in _STACK)
ROW = {name: row for row, name in enumerate(LAYERS)}
_INNER = slice(ROW["rnfl"], ROW["onl"])  # missing in the middle of the fovea


def waves(rng, x, rows, slowest, fastest):
    """Smooth random curves along x, float32[rows, W], mean 0, variance ~1; the same at any size."""
    pitch = rng.uniform(slowest, fastest, (rows, 3, 1))
    phase = rng.uniform(0, 2 * np.pi, (rows, 3, 1))
    return (np.sin(pitch * x + phase).sum(axis=1) * np.sqrt(2 / 3)).astype(np.float32)


def domes(x, centres, half_widths, heights):
    """The upper outline of round humps on a flat floor, float32[W]."""
    t = (x[None, :] - np.asarray(centres)[:, None]) / np.asarray(half_widths)[:, None]
    humps = np.asarray(heights)[:, None] * np.clip(1 - t**2, 0, None) ** 0.8
    return humps.max(axis=0, initial=0).astype(np.float32)


def draw_eye(canvas, rng):
    """Draws all there is to know of a healthy eye; nothing is painted yet.

    Returns:
      A namespace: x float32[W]; thickness, value float32[len(LAYERS), W]; floor float32[W], where
      Bruch's membrane begins; tilt; fovea (its x); and what `paint_eye` adds to the layers.
    """
    x = canvas.x[0]
    eye = SimpleNamespace(x=x, fovea=rng.normal(0, 0.18), side=rng.choice([-1, 1]))
    # The floor: the bowl of the eye, tilted as the scanner's beam comes in.
    tilt, bowl = np.clip(rng.normal(0, 0.055), -0.13, 0.13), rng.normal(-0.06, 0.04)
    eye.tilt = tilt
    eye.floor = rng.uniform(0.34, 0.48) + tilt * x + bowl * (x**2 - 0.3)
    eye.floor = (eye.floor + 0.012 * waves(rng, x, 1, 2, 6)[0]).astype(np.float32)
    eye.thickness = np.repeat(np.float32([[t] for _, t, _ in _STACK]), len(x), axis=1)
    eye.thickness *= np.float32(rng.uniform(1.18, 1.36)) * (1 + 0.06 * waves(rng, x, len(LAYERS), 1, 5))
    _dig_fovea(eye, rng)
    eye.thickness[ROW["rnfl"]] *= 1 + 0.7 * eye.side * x  # thicker towards the optic nerve
    eye.thickness[ROW["choroid"]] *= np.float32(rng.uniform(0.6, 1.4))
    value = np.float32([[v] for _, _, v in _STACK]) * rng.uniform(0.9, 1.1, (len(LAYERS), 1))
    eye.value = (value * (1 + 0.05 * waves(rng, x, len(LAYERS), 1, 6))).astype(np.float32)
    eye.texture, eye.fine = canvas.field(rng, 12), canvas.field(rng, 34)
    eye.decay = np.float32(rng.uniform(0.3, 0.7))  # depth at which the choroid has lost 63 %
    eye.cysts = []
    _draw_distractors(eye, canvas, rng)
    return eye


def _dig_fovea(eye, rng):
    present, width = rng.random() < 0.85, rng.uniform(0.18, 0.34)
    depth = rng.uniform(0.55, 0.95) * present  # other scans miss the fovea
    far = (eye.x - np.float32(eye.fovea)) / np.float32(width)
    pit = np.float32(depth) * np.exp(-(far**2))
    rim = np.float32(0.22 * present) * np.exp(-((np.abs(far) - 1.9) ** 2))
    eye.thickness[_INNER] *= (1 - pit) * (1 + rim)
    eye.thickness[ROW["onl"]] *= 1 + 0.45 * pit
    eye.thickness[ROW["os"]] *= 1 + 0.5 * pit


def _draw_distractors(eye, canvas, rng):
    """What looks like a lesion and is none, equally likely in every class."""
    x = eye.x
    number = rng.poisson(2.0)  # unevenness of the pigment epithelium, lower than drusen are
    centres, widths = rng.uniform(-0.95, 0.95, number), rng.uniform(0.04, 0.12, number)
    raise_floor(eye, domes(x, centres, widths, rng.uniform(0.008, 0.03, number)))
    number = rng.poisson(0.5)  # thin pigment epithelium: more light reaches the choroid
    for centre, width in zip(rng.uniform(-0.9, 0.9, number), rng.uniform(0.06, 0.25, number)):
        window = np.exp(-(((x - centre) / width) ** 4))
        eye.value[ROW["capillaries"] :] *= 1 + np.float32(rng.uniform(0.2, 0.6)) * window
        eye.value[ROW["rpe"]] *= 1 - np.float32(0.2) * window
    number = rng.poisson(1.5)  # exudates: (x, depth as a share of the retina, size, brightness)
    eye.dots = rng.uniform((-0.9, 0.2, 0.012, 0.15), (0.9, 0.75, 0.035, 0.45), (number, 4))
    number = rng.poisson(2.5)  # vessels: (x, half-width, how dark their shadow is)
    eye.vessels = rng.uniform((-0.95, 0.012, 0.15), (0.95, 0.04, 0.55), (number, 3))
    # Vitreous: haze, and its rear face once it has come off.
    eye.haze = np.float32(rng.uniform(0.01, 0.07)) * np.clip(canvas.field(rng, 6), 0, None)
    gap = rng.uniform(0.05, 0.3) * (1 + 0.4 * waves(rng, x, 1, 1, 4)[0])
    eye.face = (boundaries(eye)[ROW["rnfl"]] - gap).astype(np.float32)
    eye.face_grey = rng.uniform(0.08, 0.3) * (rng.random() < 0.35)


def raise_floor(eye, lift):
    """Puts a deposit of height `lift` (float32[W]) under the pigment epithelium; the nuclei give way."""
    eye.thickness[ROW["deposit"]] += lift
    yield_to(eye, "onl", 0.8 * lift)


def yield_to(eye, name, amount):
    """Thins a layer (in place) by `amount` (float32[W]), but not to less than two fifths."""
    row = eye.thickness[ROW[name]]
    eye.thickness[ROW[name]] = np.maximum(row - amount, 0.4 * row)


def boundaries(eye):
    """Where each layer begins, float32[layers, W], in canvas units downwards; row 0 means nothing."""
    depth = np.cumsum(eye.thickness, axis=0)
    return eye.floor + depth - eye.thickness - depth[ROW["bruch"]]


def paint_eye(canvas, eye):
    """Paints an eye: float32[H, W], 0..1, without speckle or the scanner's curve."""
    tops = boundaries(eye)
    # A ramp one pixel wide is the exact share of the pixel: layers thinner than a pixel fade.
    depth = (canvas.y[None] - tops[:, None, :]) / np.float32(canvas.pixel)
    under = np.clip(depth + np.float32(0.5), 0, 1)  # share of the pixel below the top of each layer
    under[0] = 1
    image = eye.value[0] + np.einsum("kw,khw->hw", np.diff(eye.value, axis=0), under[1:])
    retina = under[ROW["rnfl"]] - under[ROW["capillaries"]]
    image *= 1 + 0.05 * retina * (eye.texture + eye.fine)
    image *= 1 + under[ROW["capillaries"]] * (0.14 * eye.texture + 0.18 * eye.fine)
    mass = under[ROW["mass"]] - under[ROW["rpe"]]
    image *= 1 + 0.16 * mass * (eye.texture + eye.fine)
    vitreous, thin = 1 - under[ROW["rnfl"]], np.float32(0.02)
    image += eye.haze * vitreous
    face = np.clip(1 - np.abs(canvas.y - eye.face) / max(thin, canvas.pixel), 0, 1)
    image += np.float32(eye.face_grey * min(1, thin / canvas.pixel)) * face * vitreous
    _paint_inside(image, canvas, eye, tops, under)
    deep = np.clip(canvas.y - tops[ROW["capillaries"]], 0, None)
    return image * np.exp(-deep / eye.decay)


def _paint_inside(image, canvas, eye, tops, under):
    """Adds (in place) what lies in the retina: cysts, exudates, vessels with their shadows."""
    room = under[ROW["rnfl"]] - under[ROW["elm"]]
    for cx, cy, a, b, grey in eye.cysts:
        paint(image, canvas.edge(canvas.ellipse(cx, cy, a, b), 0.02) * room, np.float32(grey))
    roof, ground = tops[ROW["rnfl"]], tops[ROW["rpe"]]
    for cx, share, width, bright in eye.dots:
        cy = np.interp(cx, eye.x, roof + np.float32(share) * (ground - roof))
        faint = min(1, (2 * width / canvas.pixel) ** 2)
        image += np.float32(bright * faint) * canvas.blob(cx, cy, width)
    for cx, half, dark in eye.vessels:  # light that a vessel takes is missing below it
        column = canvas.edge(np.float32(half) - np.abs(canvas.x - np.float32(cx)), 0.02)
        column *= np.float32(min(1, 2 * half / canvas.pixel))
        image *= 1 - np.float32(dark) * column * under[ROW["gcl"]]
        image += np.float32(0.12) * column * (under[ROW["rnfl"]] - under[ROW["ipl"]])
