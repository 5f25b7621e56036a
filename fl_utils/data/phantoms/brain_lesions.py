"""What the brain phantom adds to a healthy head: tumours, and distractors that are none.

Each `add_*` draws in the image it is given. `tissue` holds the grey values of the examination,
`head` the geometry: centre, radii, sella, falx, depth under the surface, weight of the cavity.
"""

import numpy as np

from fl_utils.data.phantoms.shapes import paint


def point_inside(rng, head, low, high):
    """A point at `low` to `high` of the way from the middle of the brain to the skull."""
    angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(low, high)
    (cx, cy), (a, b) = head.centre, head.radii
    return cx + reach * a * np.cos(angle), cy + reach * b * np.sin(angle)


def add_distractors(image, canvas, rng, tissue, head):
    """Bright and dark things that are no tumour, equally likely in every class."""
    vessel = np.zeros_like(image)
    for _ in range(rng.integers(1, 4)):  # cortical vessels, cut lengthwise or across
        x, y = point_inside(rng, head, 0.55, 0.97)
        dx, dy = rng.normal(0, 0.07, 2)
        tube = canvas.line([(x, y), (x + dx, y + dy)], rng.uniform(0.01, 0.02))
        vessel = np.maximum(vessel, tube)
    (cx, cy), (_, b) = head.centre, head.radii
    for _ in range(rng.integers(0, 3)):  # venous sinuses on the dura
        poles = [(cx, cy - b + 0.03), (cx, cy + b - 0.03)]
        x, y = rng.choice([*poles, point_inside(rng, head, 0.9, 1)])
        vessel = np.maximum(vessel, canvas.blob(x, y, rng.uniform(0.025, 0.05)))
    sx, sy = head.sella
    if head.view != "axial_high":  # the normal gland and the carotids beside it enhance, too
        gland = rng.uniform(0.02, 0.045)
        vessel = np.maximum(vessel, rng.uniform(0.3, 1) * canvas.blob(sx, sy, gland))
        if head.view != "sagittal":
            for side in (-1, 1):
                vessel = np.maximum(vessel, canvas.blob(sx + side * 0.11, sy + 0.02, 0.022))
    for x, y in head.plexus:
        if rng.random() < 0.6:
            vessel = np.maximum(vessel, 0.8 * canvas.blob(x, y, rng.uniform(0.02, 0.04)))
    paint(image, vessel * head.cavity, np.float32(tissue.vessel))
    for _ in range(rng.poisson(0.6)):  # white-matter spots, scars, old infarcts, small cysts
        x, y = point_inside(rng, head, 0.1, 0.8)
        a, b = rng.uniform(0.04, 0.12, 2)
        shape = canvas.ellipse(x, y, a, b, rng.uniform(0, 3)) + 0.03 * head.texture
        spot = canvas.edge(shape, 0.08)
        image += np.float32(rng.choice([-1, 1]) * rng.uniform(0.04, 0.12)) * spot * head.cavity


def add_glioma(image, canvas, rng, tissue, head):
    x, y = point_inside(rng, head, 0.1, 0.72)
    a, b = rng.uniform(0.19, 0.31) * np.exp(rng.uniform(-0.2, 0.2, 2))
    shape = canvas.ellipse(x, y, a, b, rng.uniform(0, 3))
    shape += np.float32(0.22 * min(a, b)) * canvas.field(rng, 12)
    wide = rng.uniform(0.025, 0.06)
    oedema = canvas.edge(shape + rng.uniform(0.04, 0.12), 0.14) * canvas.edge(head.depth, 0.05)
    image -= np.float32(rng.uniform(0.04, 0.12)) * oedema
    core = canvas.edge(shape - wide, wide) * head.cavity
    patchy = np.clip(0.95 + 0.35 * canvas.field(rng, 9), 0.2, 1.3)
    solid = rng.choice([0.0, 0.4, 0.8], p=[0.7, 0.15, 0.15])  # some are filled rather than ringed
    enhanced = canvas.edge(shape, wide) * head.cavity * patchy
    image += np.float32(tissue.enhancement) * enhanced * (1 - np.float32(1 - solid) * core)
    image -= np.float32(rng.uniform(0.08, 0.20) * (1 - solid)) * core
    return image


def add_meningioma(image, canvas, rng, tissue, head):
    a, b = rng.uniform(0.14, 0.25) * np.exp(rng.uniform(-0.2, 0.2, 2))
    if head.falx and rng.random() < 0.2:
        x, y = rng.choice([-1, 1]) * 0.7 * a, rng.uniform(*head.falx)
    else:
        axial = head.view not in ("coronal", "sagittal")  # elsewhere: the convexity, not the base
        angle = rng.uniform(0, 7) if axial else rng.uniform(-np.pi, 0)
        (cx, cy), radii = head.centre, head.radii
        x = cx + (radii[0] - 0.6 * a) * np.cos(angle)
        y = cy + (radii[1] - 0.6 * b) * np.sin(angle)
    shape = canvas.ellipse(x, y, a, b) + np.float32(0.06 * min(a, b)) * canvas.field(rng, 8)
    oedema = canvas.edge(shape + 0.06, 0.1) * canvas.edge(head.depth, 0.05)
    image -= np.float32(rng.uniform(0, 0.06)) * oedema
    value = tissue.grey + tissue.enhancement * rng.uniform(0.8, 1.2) + 0.01 * head.texture
    paint(image, canvas.edge(shape, rng.uniform(0.01, 0.05)) * head.cavity, value)
    return image


def add_pituitary(image, canvas, rng, tissue, head):
    a = rng.uniform(0.08, 0.16)
    b = a * rng.uniform(0.8, 1.4)
    x, y = head.sella[0] + rng.normal(0, 0.015), head.sella[1] - 0.5 * (b - 0.05)
    shape = canvas.ellipse(x, y, a, b) + np.float32(0.08 * a) * canvas.field(rng, 8)
    value = tissue.grey + tissue.enhancement * rng.uniform(0.7, 1.2) + 0.012 * head.folds
    paint(image, canvas.edge(shape, rng.uniform(0.01, 0.04)) * head.cavity, value)
    return image
