"""The healthy slice of the brain phantom: a plane through the MNI152 head, posed and deformed."""

from types import SimpleNamespace

import numpy as np

from fl_utils.data.phantoms import brain_template
from fl_utils.data.phantoms.brain_face import SELLA_MM
from fl_utils.data.phantoms.shapes import Canvas

HALF_FIELD_MM = 116.0  # the image spans 232 mm
MM = 1 / HALF_FIELD_MM  # a millimetre in canvas units
VIEWS = ("axial", "coronal", "sagittal")
# What the image's x (to the right) and y (down) and the direction through the plane are in MNI space:
# (axis, sign, mm in the middle of the image) for x and y, and the axis of the slice.
_FRAMES = {
    "axial": ((0, 1, 0.0), (1, -1, -14.0), 2),
    "coronal": ((0, 1, 0.0), (2, -1, -12.0), 1),
    "sagittal": ((1, -1, -10.0), (2, -1, -12.0), 0),
}
_RANGES_MM = {"axial": (-20, 50), "coronal": (-50, 30), "sagittal": (-35, 35)}
# Pituitary tumours are seen on slices through the sella, so the other classes get many of those, too.
SELLA_SHARE = 0.75
MATERIALS = ("csf", "gm", "wm", "fat", "muscle", "bone", "fluid", "enhance")


def draw_slice(size, rng, through_sella):
    """Draws a plane and cuts the head along it.

    Args:
      size: pixels a side.
      rng: source of view, position, pose, deformation and of the person's own features.
      through_sella: False: such a slice in SELLA_SHARE of the draws; True: always.
    Returns:
      A namespace: canvas; view; position_mm; depth, float32[H, W], canvas units under the inner
      table of the skull; cavity and solid, weights float32[H, W] of what is inside the skull and of
      the whole head; weights, {material: float32[H, W]}, 0..1, of MATERIALS; plane (below).
    """
    view = VIEWS[rng.integers(3)]
    anywhere, near_sella = rng.uniform(*_RANGES_MM[view]), SELLA_MM[_FRAMES[view][2]] + rng.normal(0, 2.5)
    position = near_sella if (rng.random() < SELLA_SHARE) | through_sella else anywhere
    canvas = Canvas(size, rng, rotation_deg=3, scale=(0.95, 1.05), shift=0.02, warp=0.015, flip=view != "sagittal")
    points = _points(canvas, rng, view, position)
    spacing = brain_template.spacing_for(2 * HALF_FIELD_MM / size)
    maps = brain_template.sample(spacing, ("depth", "enhance"), points)
    head = SimpleNamespace(canvas=canvas, view=view, position_mm=position, depth=maps["depth"] * np.float32(MM))
    # Most maps matter on one side of the skull only; half of the running time is saved by that.
    maps |= brain_template.sample(spacing, ("gm", "wm"), points, head.depth > -canvas.pixel)
    around = head.depth < canvas.pixel
    maps |= brain_template.sample(spacing, ("outer", "block", "fat", "muscle", "fluid"), points, around)
    maps["outer"] = np.where(around, maps["outer"], maps["depth"])
    head.plane = _plane(view, position)
    head.folds, head.texture = canvas.field(rng, 26), canvas.field(rng, 12)
    head.weights = _compose(maps, head, rng)
    return head


def to_canvas(view, along_x_mm, along_y_mm):
    """Canvas coordinates of in-plane MNI millimetres (along the image's x and y)."""
    (_, sign_x, x0), (_, sign_y, y0), _ = _FRAMES[view]
    return sign_x * (along_x_mm - x0) * MM, sign_y * (along_y_mm - y0) * MM


def _points(canvas, rng, view, position):
    """MNI coordinates of the pixels, float32[3, H, W]: a plane, tilted, bent, with own ventricles."""
    (axis_x, sign_x, x0), (axis_y, sign_y, y0), through = _FRAMES[view]
    tilt, half = 0.06 * np.clip(rng.standard_normal(2), -2, 2), np.float32(HALF_FIELD_MM)
    points = np.empty((3, canvas.size, canvas.size), np.float32)
    points[axis_x] = x0 + sign_x * (half * canvas.x + 1.4 * canvas.field(rng, 16))
    points[axis_y] = y0 + sign_y * (half * canvas.y + 1.4 * canvas.field(rng, 16))
    sella = to_canvas(view, SELLA_MM[axis_x], SELLA_MM[axis_y])  # the tilt turns about the sella
    lean = np.float32(tilt[0]) * (canvas.x - np.float32(sella[0])) + np.float32(tilt[1]) * (
        canvas.y - np.float32(sella[1])
    )
    points[through] = position + half * lean + 2 * canvas.field(rng, 7)
    # Looking nearer to the ventricles' middle than one should widens them: young to old.
    middle = np.array([0, -20, 12], np.float32).reshape(3, 1, 1)
    offset = points - middle
    reach = np.array([22, 40, 18], np.float32).reshape(3, 1, 1)
    widening = np.float32(rng.uniform(-0.25, 0.42))
    return points - widening * offset * np.exp(-0.5 * ((offset / reach) ** 2).sum(axis=0))


def _compose(maps, head, rng):
    """Weights of the materials: scalp, skull and cavity from the distances, the rest from the maps."""
    edge, depth, skull, scalp = head.canvas.edge, head.depth, rng.uniform(4, 8) * MM, rng.uniform(4, 9) * MM
    outer, block = maps["outer"] * np.float32(MM) + np.float32(skull), maps["block"]
    head.cavity = cavity = edge(depth)
    skull = np.float32(skull) * (1 - 0.5 * block)  # the base is thinner
    bone = edge(depth + skull) - cavity
    under_scalp = edge(outer) * (1 - block)
    head.solid = np.maximum(edge(outer + np.float32(scalp)), block)  # all that is not air around the head
    skin = (head.solid - block - under_scalp).clip(0)
    weights = {
        "fat": maps["fat"] + skin * (0.92 + 0.08 * head.texture) + 0.15 * under_scalp,
        "muscle": maps["muscle"] + 0.8 * under_scalp,
        "fluid": maps["fluid"],
    }
    for name in weights:
        weights[name] = weights[name] * (1 - cavity - bone)
    marrow = edge(0.22 * skull - np.abs(depth + 0.5 * skull), 1.5 * MM)
    weights["fat"] += np.float32(rng.uniform(0.1, 0.5)) * marrow * bone
    weights["bone"] = bone * (1 - marrow)
    # Sulci of one's own: fluid takes from the cortex where the random folds say so.
    shrink = np.clip(np.float32(rng.uniform(0.0, 0.4)) + 0.22 * head.folds, 0, 0.8)
    surface = np.clip(1.3 - depth / np.float32(22 * MM), 0, 1)
    weights["gm"] = maps["gm"] * cavity * (1 - shrink * surface * np.clip(1.25 - maps["gm"], 0, 1))
    weights["wm"] = maps["wm"] * cavity
    weights["csf"] = np.clip(cavity - weights["gm"] - weights["wm"], 0, 1)
    weights["enhance"] = maps["enhance"]
    return weights


def _plane(view, position):
    """The undeformed slice at 4 mm, the same at every image size: where lesions can be.

    A namespace: gm, wm (0..1) and depth (mm; -99 where no lesion belongs), each [A, B] over in-plane
    MNI positions x_mm [A, 1] and y_mm [1, B] along the image's x and y.
    """
    (axis_x, _, _), (axis_y, _, _), through = _FRAMES[view]
    axes = [axis.ravel() for axis in brain_template.axes_mm(4)]
    index = int(np.abs(axes[through] - position).argmin())
    plane = SimpleNamespace()
    for name in ("gm", "wm", "depth"):  # the remaining axes come in rising order, which is (x, y) here
        values = np.take(brain_template.head(4)[name], index, axis=through).astype(np.float32)
        setattr(plane, name, values if name == "depth" else values / 255)
    plane.x_mm, plane.y_mm = axes[axis_x][:, None], axes[axis_y][None, :]
    x, y = to_canvas(view, plane.x_mm, plane.y_mm)
    z = plane.y_mm if view != "axial" else position
    in_brain = (np.maximum(np.abs(x), np.abs(y)) < 0.8) & (z > -62)  # in the picture, above the neck
    plane.depth = np.where(in_brain, plane.depth, -99)
    return plane
