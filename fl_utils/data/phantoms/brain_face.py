"""What the MNI152 template lacks: cisterns, dura, sella, skull base, eyes, face and neck.

All of it is drawn from ellipsoids and distances, in MNI millimetres, once per process. It makes
slices look like heads; it is no atlas.
"""

import numpy as np
from scipy import ndimage

# Centre of the pituitary fossa: 12 mm under the optic chiasm, which is at z = -17 in the template.
SELLA_MM = (0.0, 2.0, -29.0)


def build_surroundings(brain, x, y, z):
    """Draws the head around a brain.

    Args:
      brain: bool[X, Y, Z], voxels of 2 mm.
      x, y, z: their MNI coordinates, broadcastable against each other.
    Returns:
      {name: float32[X, Y, Z]}: depth, mm under the inner table of the skull (< 0 outside); outer,
      the same under a smooth hull, for the outer table and the scalp; the rest 0..1: cord;
      fat, muscle and fluid of face, orbits and neck; block, where these replace the scalp; enhance,
      where contrast medium gathers: dura, sinuses, gland, plexus, mucosa.
    """
    rng = np.random.default_rng(152)
    noise = 0.7 * _noise(brain.shape, 4, rng) + 0.7 * _noise(brain.shape, 2, rng)
    inside = ndimage.binary_closing(np.pad(brain, 6), _ball(4))[6:-6, 6:-6, 6:-6] | brain
    for centre, radii in (((0, 0, -20), (13, 12, 7)), ((0, -13, -36), (13, 8, 22)), (SELLA_MM, (8, 7, 6))):
        inside |= _ellipsoid(x, y, z, centre, radii) > 0  # cisterns around chiasm and pons; the sella
    canal = np.sqrt(x**2 + (y + 46 - 0.05 * (z + 72)) ** 2)
    inside |= (canal < 9) & (z < -66)
    depth = _signed_distance(inside, 2)
    outer = _head_depth(inside & (z > -80))
    cord = np.clip((6 - canal) / 2 + 0.5, 0, 1) * (z < -71)
    block, skin = _outline(x, y, z, inside.shape)
    tissue = _face(x, y, z, noise, skin)
    tissue = {name: np.float32(1) * block * volume for name, volume in tissue.items()}
    tissue["enhance"] = np.maximum(0.8 * tissue.pop("mucosa"), _enhancing(x, y, z, depth))
    volumes = {"depth": depth, "outer": outer, "cord": cord, "block": block, **tissue}
    return {name: np.ascontiguousarray(np.broadcast_to(v, brain.shape), np.float32) for name, v in volumes.items()}


def _ball(radius):
    axis = np.arange(-radius, radius + 1) ** 2
    return axis[:, None, None] + axis[None, :, None] + axis[None, None, :] <= radius**2


def _noise(shape, factor, rng):
    """Smooth noise, about N(0, 1), features of `factor` voxels: the same head every time."""
    coarse = rng.standard_normal([-(-n // factor) + 1 for n in shape], dtype=np.float32)
    fine = ndimage.zoom(coarse, factor, order=1)[tuple(slice(n) for n in shape)]
    return fine / fine.std()


def _ellipsoid(x, y, z, centre, radii):
    """Depth under the surface of an ellipsoid, about in mm."""
    (a, b, c), (p, q, r) = radii, centre
    return (1 - np.sqrt(((x - p) / a) ** 2 + ((y - q) / b) ** 2 + ((z - r) / c) ** 2)) * min(radii)


def _signed_distance(inside, spacing):
    far = ndimage.distance_transform_edt(~inside, sampling=spacing)
    return (ndimage.distance_transform_edt(inside, sampling=spacing) - far).astype(np.float32)


def _head_depth(inside):
    """Depth under a smooth hull of the brain (mm, 2 mm voxels): what skull and scalp lie on."""
    coarse = np.pad(inside[::2, ::2, ::2], 12)
    hull = _signed_distance(_signed_distance(coarse, 4) > -40, 4) - 40  # grown and shrunk: fills hollows
    hull = hull[12:-12, 12:-12, 12:-12]
    fine = ndimage.zoom(hull, 2, order=1, grid_mode=True, mode="nearest")
    return fine[tuple(slice(n) for n in inside.shape)]


def _outline(x, y, z, shape):
    """Weights 0..1 of face and neck, and of the layer of fat under their skin."""
    heights = [-150, -122, -112, -98, -88, -78, -68, -50, -30, -15, 0, 12]
    front = np.interp(z, heights, [15, 25, 78, 88, 84, 90, 86, 86, 82, 84, 80, 60]).astype(np.float32)
    width = np.interp(z, heights, [50, 50, 48, 54, 58, 62, 66, 70, 70, 68, 60, 50]).astype(np.float32)
    cheeks = np.minimum(front - x**2 / 60, 1e3)
    face = np.minimum(np.minimum(cheeks - y, width - np.abs(x)), np.minimum(y + 25, 12 - z))
    ridge = np.interp(z, [-68, -62, -55, -30, -18], [84, 108, 110, 94, 82]).astype(np.float32)
    nose = np.minimum(np.minimum(ridge - y, y - 60), 15 - 0.4 * np.maximum(y - 85, 0) - np.abs(x))
    nose = np.minimum(nose, np.minimum(z + 68, -18 - z))
    neck = np.minimum((1 - np.sqrt((x / 60) ** 2 + ((y + 38) / 58) ** 2)) * 58, -42 - z)
    ears = _ellipsoid(np.abs(x), y, z, (83, -34, -30), (5, 10, 22))
    solid = np.maximum(np.maximum(face, nose), np.maximum(neck, ears))
    solid = ndimage.gaussian_filter(np.clip(np.broadcast_to(solid, shape) / 2 + 0.5, 0, 1).astype(np.float32), 0.7)
    deep = ndimage.gaussian_filter(solid, 4)
    return solid, np.clip((0.80 - deep) * 8, 0, 1)


def _face(x, y, z, noise, skin):
    """fat, muscle, fluid, mucosa of the face, weights 0..1; bone and air are what is left."""
    side = np.abs(x)

    def solid(centre, radii, lump=0.0):
        return np.clip(_ellipsoid(side, y, z, centre, radii) / 2 + 0.5 + lump * noise, 0, 1)

    streaks = np.clip(0.4 * noise - 0.1, 0, 0.6)  # fat between the muscles
    fat = np.maximum(skin, streaks)
    marrow = np.maximum(solid((0, -18, -48), (11, 9, 16)), solid((0, -4, -39), (10, 6, 9)))  # clivus
    discs = np.clip(np.sin((z + 70) * (2 * np.pi / 17)) * 3 + 1.8, 0, 1)
    column = np.clip(4.5 - np.maximum(side, np.abs(y + 28 - 0.05 * (z + 72))) / 2, 0, 1) * (z < -66)
    marrow = np.maximum(marrow, column * discs)
    palate = np.maximum(solid((0, 60, -70), (24, 30, 4)), solid((40, 40, -95), (9, 36, 11), 0.1))  # and jaw
    petrous = solid((44, -22, -42), (22, 11, 9), 0.4)
    dark = np.maximum(np.maximum(petrous, palate), column * (1 - discs))
    air = np.maximum(solid((11, 18, -44), (9, 13, 9), 0.1), solid((29, 50, -58), (13, 15, 13)))  # sphenoid, maxilla
    cells = np.maximum(solid((6, 45, -33), (8, 24, 9)), solid((7, 60, -52), (9, 32, 15)))  # ethmoid, nose
    air = np.maximum(air, cells * np.clip(0.6 - 1.2 * noise, 0, 1))
    air = np.maximum(air, np.maximum(solid((0, 6, -85), (7, 5, 38)), solid((0, 58, -77), (20, 26, 2.5))))  # throat
    air = np.maximum(air, np.maximum(solid((9, 80, 4), (11, 4, 8)), solid((54, -36, -42), (8, 10, 12), 0.6)))
    fat = np.maximum(fat, 0.75 * marrow)
    for weight in (palate * 0.6, petrous * 0.9):
        fat = np.maximum(fat * (1 - weight), 0.35 * weight)
    cone = np.maximum(solid((33, 53, -36), (18, 22, 17)), solid((20, 30, -34), (10, 18, 9)))  # orbits
    rods = np.minimum(np.abs(side - 33 - 0.45 * (y - 53)), np.abs(side - 33 - 0.95 * (y - 53)))  # nerve, muscles
    nerve = np.clip(2.5 - rods, 0, 1) * np.clip(3 - np.abs(z + 37), 0, 1) * (y < 52)
    fat = np.maximum(fat * (1 - cone), cone * (1 - nerve))
    eye, lens = solid((33, 62, -36), (12.5, 12.5, 12.5)), solid((33, 72, -36), (4.5, 2.5, 4.5))
    fluid = eye * (1 - lens)
    gaps = (1 - air) * (1 - cone)
    fat = fat * (1 - eye) * np.where(cone > 0, 1, 1 - air)
    muscle = (1 - fat) * (1 - eye) * (1 - 0.8 * np.maximum(dark, marrow)) * np.where(cone > 0.5, 1, 1 - air)
    mucosa = np.maximum(np.maximum(cells, solid((0, 5, -66), (18, 10, 12))), 0.5 * streaks) * gaps
    return {"fat": fat, "muscle": muscle * 0.9, "fluid": fluid, "mucosa": mucosa}


def _enhancing(x, y, z, depth):
    """Dura, venous sinuses, cavernous sinus and carotids, gland, choroid plexus: weights 0..1."""
    side, near = np.abs(x), np.clip(1.5 - np.abs(depth) / 1.5, 0, 1)
    ellipse = ((y + 18) / 55) ** 2 + ((z - 5) / 27) ** 2  # falx: the midline outside corpus callosum
    falx = np.clip(1.5 - side, 0, 1) * (ellipse > 1) * (z > 4 + 0.35 * (y + 40) * (y < -40)) * (depth > 0)
    top = np.clip((4.5 - side) / 2, 0, 1) * np.clip(4.5 - np.abs(depth - 1), 0, 1) * ((z > 20) | (y < -80)) * (z > -15)
    transverse = np.clip(3 - np.abs(z + 20) / 2, 0, 1) * np.clip(4.5 - np.abs(depth - 1), 0, 1)
    transverse = transverse * (y < -55) * (side < 62)
    weight = np.maximum(np.maximum(0.35 * near, 0.5 * falx), np.maximum(top, transverse))
    for centre, radii, value in (
        ((12, 0, -30), (5, 11, 6), 0.7),  # cavernous sinus
        (SELLA_MM, (6.5, 5, 4), 0.9),  # the gland, and its stalk:
        ((0, 0, -22), (1.5, 1.5, 7), 0.6),
        ((24, -40, 8), (3, 7, 5), 0.7),  # choroid plexus
        ((17, -24, 17), (2, 12, 2), 0.5),
    ):
        bump = np.clip(_ellipsoid(side, y, z, centre, radii) / 2 + 0.5, 0, 1)
        weight = np.maximum(weight, np.float32(value) * bump)
    carotid = np.clip(2.5 - np.sqrt((side - 12) ** 2 + (y - 4) ** 2), 0, 1) * (z < -26) * (z > -40)
    return weight * (1 - 0.8 * carotid)
