"""The healthy head of the brain phantom in four views: scalp, skull, fluid, cortex, ventricles."""

from types import SimpleNamespace

import numpy as np

from fl_utils.data.phantoms.shapes import paint


def draw_head(canvas, rng, tissue, view):
    """Draws head, skull, brain and fluid; returns (image, geometry that the lesions need)."""
    draw = {"coronal": _coronal, "sagittal": _sagittal}.get(view, _axial)
    folds, texture = canvas.field(rng, 22), canvas.field(rng, 11)
    head = SimpleNamespace(view=view, folds=folds, texture=texture)
    rim = (rng.uniform(0.04, 0.09), rng.uniform(0.04, 0.08), rng.uniform(0.01, 0.03))
    image = np.full((canvas.size, canvas.size), rng.uniform(0.0, 0.04), np.float32)
    outline, inner = draw(canvas, rng, head, sum(rim[:2]))
    paint(image, canvas.edge(outline), np.float32(tissue.fat) * (1 + 0.12 * texture))
    if view != "axial_high" and view != "axial_low":  # face and neck: muscle, air and mucosa
        face = 0.32 + 0.11 * folds + 0.12 * texture
        paint(image, canvas.edge(outline - rim[0]), np.clip(face, 0.02, 0.8))
    paint(image, canvas.edge(inner + rim[1]), np.float32(tissue.bone))
    head.cavity = canvas.edge(inner)
    paint(image, head.cavity, np.float32(tissue.fluid))
    depth = inner - np.float32(rim[2])
    # Sulci reach in from the surface; the ribbon of cortex under them follows the same folds.
    sulci = canvas.edge(0.14 - np.abs(folds), 0.25) * canvas.edge(0.15 - depth, 0.14)
    paint(image, canvas.edge(depth) * (1 - 0.85 * sulci), np.float32(tissue.grey))
    ribbon = depth - 0.075 - 0.035 * folds - 0.02 * texture
    paint(image, canvas.edge(ribbon, 0.04), np.float32(tissue.white))
    image += head.cavity * (0.014 * texture + 0.010 * folds)
    head.depth = depth
    head.details(image, tissue)
    return image, head


def _axial(canvas, rng, head, rim):
    a, b = rng.uniform(0.58, 0.68), rng.uniform(0.74, 0.82)
    inner = canvas.ellipse(0, 0, a, b)
    size = rng.uniform(0.6, 1.5)  # of the ventricles: young to old
    low, angles = head.view == "axial_low", rng.uniform(0.15, 0.4, 2)
    head.centre, head.radii, head.falx = (0.0, 0.0), (a, b), (-0.62, 0.6)
    head.sella = (rng.normal(0, 0.015), rng.uniform(-0.2, -0.1))

    def details(image, tissue):
        middle = np.abs(canvas.y) - (0.5 if low else 0.3)
        fissure = canvas.edge(0.012 - np.abs(canvas.x), 0.02) * canvas.edge(middle, 0.1)
        paint(image, fissure * head.cavity * 0.8, np.float32(tissue.fluid))
        if low:  # brain stem, cerebellum and the cistern around the sella
            sx, sy = head.sella
            paint(image, 0.8 * canvas.edge(canvas.ellipse(sx, sy, 0.2, 0.13), 0.06), tissue.fluid)
            paint(image, canvas.edge(canvas.ellipse(0, 0.14, 0.17, 0.15), 0.03), tissue.white)
            cerebellum = canvas.edge(canvas.ellipse(0, 0.47, 0.4, 0.24), 0.04)
            stripes = np.sin(60 * (canvas.y + 0.25 * canvas.x**2) + 1.5 * head.texture)
            paint(image, 0.8 * cerebellum, tissue.grey + 0.03 * stripes.astype(np.float32))
            for side in (-1, 1):  # petrous bones
                wedge = canvas.ellipse(side * 0.42, 0.16, 0.16, 0.05, side * -0.4)
                paint(image, 0.8 * canvas.edge(wedge, 0.04), np.float32(tissue.bone))
            return
        for side, tilt in zip((-1, 1), angles):
            nuclei = canvas.ellipse(side * 0.22, 0.02, 0.12, 0.2, -side * 0.2)
            paint(image, 0.8 * canvas.edge(nuclei, 0.05), np.float32(tissue.grey))
            front = canvas.ellipse(side * 0.09 * size, -0.17, 0.05 * size, 0.15, side * tilt)
            back = canvas.ellipse(side * 0.19, 0.26, 0.055 * size, 0.15, -side * tilt)
            paint(image, canvas.edge(np.maximum(front, back), 0.02), np.float32(tissue.fluid))

    head.details, head.plexus = details, [] if low else [(-0.18, 0.27), (0.18, 0.27)]
    return inner + np.float32(rim), inner


def _coronal(canvas, rng, head, rim):
    a, b = rng.uniform(0.60, 0.70), rng.uniform(0.54, 0.62)
    skull = canvas.ellipse(0, -0.2, a, b)
    sella_y = rng.uniform(0.20, 0.26)
    base = canvas.ellipse(0, sella_y + 0.22, 0.24, 0.16)  # sphenoid bone below the sella
    inner = np.minimum(skull, -base)
    size, width = rng.uniform(0.6, 1.5), rng.uniform(0.42, 0.52)
    face = np.minimum(width - np.abs(canvas.x) - 0.05 * canvas.y, canvas.y)
    head.centre, head.radii, head.falx = (0.0, -0.2), (a, b), (-0.7, -0.25)
    head.sella = (rng.normal(0, 0.015), sella_y)

    def details(image, tissue):
        fissure = canvas.edge(0.012 - np.abs(canvas.x), 0.02) * canvas.edge(-0.3 - canvas.y, 0.1)
        paint(image, fissure * head.cavity * 0.8, np.float32(tissue.fluid))
        air = canvas.edge(canvas.ellipse(0, sella_y + 0.23, 0.14, 0.08), 0.03)
        paint(image, air * 0.9, np.float32(0.03))
        third = canvas.ellipse(0, -0.02, 0.02 * size, 0.09)
        for side in (-1, 1):
            horn = canvas.ellipse(side * 0.09 * size, -0.2, 0.045 * size, 0.11, -side * 0.6)
            third = np.maximum(third, horn)
            cleft = canvas.line([(side * 0.6, 0.02), (side * 0.32, -0.05)], 0.018)
            paint(image, 0.8 * cleft * head.cavity, np.float32(tissue.fluid))
        paint(image, canvas.edge(third, 0.02), np.float32(tissue.fluid))

    head.details, head.plexus = details, [(-0.1, -0.17), (0.1, -0.17)]
    return np.maximum(skull + np.float32(rim), face), inner


def _sagittal(canvas, rng, head, rim):
    a, b = rng.uniform(0.70, 0.78), rng.uniform(0.52, 0.60)
    skull = canvas.ellipse(0.05, -0.2, a, b)
    back = canvas.ellipse(0.36, 0.22, 0.34, 0.24)  # the posterior fossa
    sx, sy = rng.uniform(-0.2, -0.12), rng.uniform(0.19, 0.25)
    base = canvas.ellipse(sx - 0.12, sy + 0.26, 0.3, 0.2, 0.3)
    inner = np.minimum(np.maximum(skull, back), -base)
    face = np.minimum(0.5 - np.abs(canvas.x + 0.28 + 0.1 * canvas.y), canvas.y + 0.15)
    head.centre, head.radii, head.falx = (0.05, -0.2), (a, b), None
    head.sella, size = (sx, sy), rng.uniform(0.6, 1.4)

    def details(image, tissue):
        stem = canvas.line([(0.06, 0.1), (0.11, 0.3), (0.2, 1.0)], 0.065)
        paint(image, np.clip(1.6 * stem, 0, 1), np.float32(tissue.white))
        cerebellum = canvas.edge(canvas.ellipse(0.4, 0.22, 0.25, 0.18), 0.03)
        stripes = np.sin(16 * np.arctan2(canvas.y - 0.22, canvas.x - 0.2) + head.texture)
        paint(image, 0.8 * cerebellum, tissue.grey + 0.04 * stripes.astype(np.float32))
        arch = [(-0.24, -0.1), (-0.2, -0.24), (0.0, -0.31), (0.22, -0.26), (0.32, -0.12)]
        vault = [(x * 0.85, y + 0.09) for x, y in arch[1:-1]]
        paint(image, canvas.line(vault, 0.03 * size), np.float32(tissue.fluid))
        paint(image, canvas.line(arch, 0.025), np.float32(max(tissue.white, tissue.grey) + 0.05))
        air = canvas.edge(canvas.ellipse(sx - 0.16, sy + 0.2, 0.13, 0.08, 0.3), 0.03)
        paint(image, 0.9 * air, np.float32(0.03))

    head.details, head.plexus = details, [(0.16, -0.16)]
    return np.maximum(np.maximum(skull, back) + np.float32(rim), face), inner
