"""What the brain phantom adds to a healthy head: tumours, and distractors that are none.

A `Part` is something drawn over the slice in every modality. A tumour is a list of parts, each
with the code it has in the mask.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from fl_utils.data.phantoms.brain_anatomy import MM, to_canvas
from fl_utils.data.phantoms.brain_face import SELLA_MM

CORE, OEDEMA, ENHANCING = 1, 2, 3  # mask codes: the indices of the BraTS card; 0 is background


@dataclass
class Part:
    """One layer of a tumour or distractor.

    code: in the mask, 0 for distractors. weight: float32[H, W], 0..1. values: {modality: grey
    value, a number or float32[H, W]}, which is added (times the weight) or, with cover=True,
    replaces what is there.
    """

    code: int
    weight: np.ndarray
    values: dict
    cover: bool = False


def draw_parts(images, modalities, parts):
    """Draws the parts over images float32[M, H, W], in place and in order."""
    for part in parts:
        for image, modality in zip(images, modalities):
            value = part.values[modality]
            image += part.weight * ((value - image) if part.cover else value)


def part_codes(parts, shape):
    """uint8[H, W]: the code of the last part that covers at least half; elsewhere of the first."""
    codes = np.full(shape, parts[0].code, np.uint8)
    for part in parts:
        codes[part.weight > 0.5] = part.code
    return codes


def _site(rng, plane, view, chances):
    """A random voxel of the plane with these chances, [A, B]: canvas (x, y) and its indices."""
    chances = chances.astype(np.float64).ravel()
    index = np.searchsorted(np.cumsum(chances), rng.random() * chances.sum(), side="right")
    i, j = np.unravel_index(min(index, chances.size - 1), plane.depth.shape)
    dx, dy = rng.uniform(-2, 2, 2)
    return *to_canvas(view, plane.x_mm[i, 0] + dx, plane.y_mm[0, j] + dy), i, j


def distractors(head, rng, tissue):
    """Vessels, spots, cysts: no tumour, equally likely in every class. Source of hard cases."""
    canvas, plane, parts = head.canvas, head.plane, []
    vessel, inside = np.zeros_like(head.depth), plane.depth > 0
    for _ in range(rng.integers(1, 5)):  # cortical vessels, cut lengthwise or across
        x, y, *_ = _site(rng, plane, head.view, inside / (6 + plane.depth.clip(0)))
        dx, dy = rng.normal(0, 8 * MM, 2)
        vessel = np.maximum(vessel, canvas.line([(x, y), (x + dx, y + dy)], rng.uniform(0.8, 2) * MM))
    for _ in range(rng.integers(0, 3)):  # lakes and sinuses on the dura
        x, y, *_ = _site(rng, plane, head.view, np.abs(plane.depth - 2) < 4)
        vessel = np.maximum(vessel, canvas.blob(x, y, rng.uniform(2, 6) * MM))
    if rng.random() < 0.15:  # a knot of vessels or an old scar that takes up contrast medium
        x, y, *_ = _site(rng, plane, head.view, (plane.wm + 0.3 * plane.gm) * (plane.depth > 0))
        vessel = np.maximum(vessel, rng.uniform(0.3, 0.8) * canvas.blob(x, y, rng.uniform(2, 6) * MM))
    inside = head.cavity
    parts.append(Part(0, vessel * inside, tissue.vessel))
    for _ in range(rng.poisson(0.6)):  # white-matter spots, scars, old infarcts
        x, y, *_ = _site(rng, plane, head.view, (plane.wm + 0.3 * plane.gm) * (plane.depth > 0))
        a, b = rng.uniform(3, 13, 2) * MM
        shape = canvas.ellipse(x, y, a, b, rng.uniform(0, 3)) + np.float32(3 * MM) * head.texture
        amount = np.float32(rng.uniform(0.3, 1))
        parts.append(Part(0, amount * canvas.edge(shape, 8 * MM) * inside, tissue.oedema))
    if rng.random() < 0.15:  # a cyst, as dark as fluid on T1
        x, y, *_ = _site(rng, plane, head.view, plane.depth > 0)
        shape = canvas.ellipse(x, y, *rng.uniform(3, 11, 2) * MM, rng.uniform(0, 3))
        parts.append(Part(0, canvas.edge(shape, 2 * MM) * inside, tissue.fluid, cover=True))
    return parts


def glioma(head, rng, tissue):
    """Irregular, in white matter: oedema along the white matter, patchy rim, dark core."""
    canvas, plane = head.canvas, head.plane
    x, y, *_ = _site(rng, plane, head.view, (plane.wm + 0.15 * plane.gm) * (plane.depth > 14))
    radius = rng.uniform(23, 36) * MM
    a, b = radius * np.exp(rng.uniform(-0.25, 0.25, 2))
    shape = canvas.ellipse(x, y, a, b, rng.uniform(0, 3))
    shape += np.float32(0.26 * min(a, b)) * canvas.field(rng, 13)
    wide = np.float32(rng.uniform(6, 11) * MM)
    swelling = np.float32(rng.uniform(2, 16) * MM)
    brain = head.cavity * canvas.edge(head.depth - np.float32(2 * MM), 3 * MM)
    # Swelling follows the fibres and spares cortex and ventricles.
    tracts = np.clip(1.2 * head.weights["wm"] + 0.25 * head.weights["gm"], 0, 1)
    oedema = canvas.edge(shape + swelling, 7 * MM) * brain * tracts
    low_grade, solid = rng.random() < 0.1, rng.random() < 0.08
    patchy = np.clip(0.95 + 0.4 * canvas.field(rng, 10), 0.2, 1.4)
    strength = np.float32(rng.uniform(0.8, 1.15))
    whole, core = canvas.edge(shape, 3 * MM) * brain, canvas.edge(shape - wide, wide) * brain
    parts = [Part(OEDEMA, oedema, tissue.oedema)]
    if low_grade:  # takes up no contrast medium
        return [*parts, Part(CORE, 0.9 * whole, tissue.tumour, cover=True)]
    enhanced = {name: value + strength * patchy * tissue.uptake[name] for name, value in tissue.tumour.items()}
    if solid:
        return [*parts, Part(ENHANCING, whole, enhanced, cover=True)]
    return [*parts, Part(ENHANCING, whole, enhanced, cover=True), Part(CORE, 0.9 * core, tissue.necrosis, cover=True)]


def meningioma(head, rng, tissue):
    """Smooth, even, bright with contrast medium; on the dura of the skull or of the falx."""
    canvas, plane = head.canvas, head.plane
    a, b = rng.uniform(14, 26) * np.exp(rng.uniform(-0.25, 0.25, 2))
    side, midline = np.abs(plane.x_mm if head.view != "sagittal" else 99.0), plane.depth > 12
    height = {"axial": head.position_mm, "coronal": plane.y_mm, "sagittal": -99.0}[head.view]
    falx = (side < 3) & midline & (height > 30)
    if falx.any() and rng.random() < 0.25:
        x, y, *_ = _site(rng, plane, head.view, falx * np.ones_like(plane.depth))
        x += rng.choice([-1, 1]) * 0.7 * a * MM
    else:
        surface = (plane.depth > 0) & (plane.depth < 5) & (plane.gm + plane.wm > 0.05)
        surface &= ndimage.maximum_filter(plane.depth, 7) > 12  # thin ledges may be bent out of the slice
        x, y, i, j = _site(rng, plane, head.view, surface)
        inwards = np.array([gradient[i, j] for gradient in np.gradient(plane.depth)])
        inwards *= 0.5 * min(a, b) / max(np.hypot(*inwards), 1e-6)
        origin, step = to_canvas(head.view, 0, 0), to_canvas(head.view, *inwards)
        x, y = x + step[0] - origin[0], y + step[1] - origin[1]
    shape = canvas.ellipse(x, y, a * MM, b * MM, rng.uniform(0, 3))
    shape += np.float32(0.07 * min(a, b) * MM) * canvas.field(rng, 9)
    ring = canvas.edge(shape + np.float32(rng.uniform(2, 9) * MM), 6 * MM)
    oedema = ring * np.float32(rng.random() < 0.4) * np.clip(1.2 * head.weights["wm"] + 0.2 * head.weights["gm"], 0, 1)
    strength = np.float32(rng.uniform(0.8, 1.2))
    values = {name: value + strength * tissue.uptake[name] for name, value in tissue.tumour.items()}
    whole = canvas.edge(shape, rng.uniform(1, 4) * MM) * head.cavity
    parts = [Part(ENHANCING, whole, values, cover=True)]
    return [Part(OEDEMA, oedema * head.cavity, tissue.oedema), *parts] if oedema.any() else parts


def pituitary(head, rng, tissue):
    """Round, in the sella, 6 to 25 mm wide, growing upwards; some are cystic."""
    canvas = head.canvas
    width = 25 - 19 * rng.random() ** 1.6
    height = width * rng.uniform(0.9, 1.6)
    axis_x, axis_y = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}[head.view]
    along = {0: (0, width), 1: (0, width), 2: (0.5 * max(height - 8, 0) - 1, height)}  # the floor of the sella stays
    x, y = to_canvas(
        head.view, SELLA_MM[axis_x] + along[axis_x][0] + rng.normal(0, 1.2), SELLA_MM[axis_y] + along[axis_y][0]
    )
    a, b = 0.5 * along[axis_x][1] * MM, 0.5 * along[axis_y][1] * MM
    shape = canvas.ellipse(x, y, a, b) + np.float32(0.1 * min(a, b)) * canvas.field(rng, 10)
    strength, cystic = np.float32(rng.uniform(0.65, 1.15)), width > 12 and rng.random() < 0.2
    values = {name: value + strength * tissue.uptake[name] for name, value in tissue.tumour.items()}
    whole = canvas.edge(shape, rng.uniform(1, 3) * MM) * head.solid
    parts = [Part(ENHANCING, whole, values, cover=True)]
    if cystic:
        inner = canvas.edge(shape - np.float32(2.5 * MM), 2 * MM) * head.solid
        parts.append(Part(CORE, inner, tissue.necrosis, cover=True))
    return parts
