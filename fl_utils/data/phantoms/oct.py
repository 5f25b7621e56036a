"""Phantom B-scans of optical coherence tomography: neovascularisation, oedema, drusen, none."""

import numpy as np
from scipy import ndimage

from fl_utils.data.phantoms.oct_anatomy import ROW, boundaries, draw_eye, paint_eye
from fl_utils.data.phantoms.oct_lesions import add_drusen, add_edema, add_membrane
from fl_utils.data.phantoms.shapes import Canvas, blur, generate, visible

# In the order of the real data set's class folders.
OCT_CLASSES = ("CNV", "DME", "DRUSEN", "NORMAL")
CNV, DME, DRUSEN, NORMAL = range(4)
_LESIONS = {CNV: add_membrane, DME: add_edema, DRUSEN: add_drusen}
# A change of 12 grey levels of 255: speckle hides what is fainter.
VISIBLE_CHANGE = 12 / 255


def generate_oct(num_images, *, image_size_px, rng, lesions=True):
    """Draws phantom OCT B-scans of the macula, the four classes in equal shares.

    Vitreous, eleven bands of the retina with or without a foveal pit, choroid and sclera; tilt,
    vessel shadows, speckle. CNV: a bright, spindle-shaped membrane over or under a broken
    pigment epithelium, in 55 % with fluid around it, in 30 % with cysts. DME: dark cysts in a
    swollen retina, in 30 % with fluid under the fovea. DRUSEN: humps under the pigment
    epithelium. Distractors in every class: low humps, exudates, windows to the choroid, haze and
    a detached vitreous face, broad shadows, white borders of a scan that was turned or cut.
    Masks cover, in % of the image at 64 pixels (smallest, median, largest of 250): CNV 3.6, 7.1,
    13; DME 2.5, 5.1, 9.1; DRUSEN 2.4, 6.0, 10.

    A lesion pushes the layers next to it aside, as it does in an eye; these shifts are not in
    the mask, and neither is the shadow under a membrane.

    Args:
      num_images: N >= 1; any 4 consecutive images from a multiple of 4 hold each class once.
      image_size_px: H = W, 24 to 256.
      rng: the only source of randomness; one number is drawn from it.
      lesions: False leaves the lesions out and everything else as it is, the speckle's random
        numbers included: the healthy counterpart of each image. Labels then still name the
        class that was left out.
    Returns:
      images uint8[N, H, W, 1]; labels int64[N], indices into OCT_CLASSES; masks uint8[N, H, W]:
      1 drusen, 2 fluid, 3 neovascular membrane, each where it visibly changes the image; all 0
      for NORMAL and for lesions=False.
    Raises:
      ValueError: num_images < 1, image_size_px out of range, rng not a numpy Generator.
    Source: classes of Kermany et al. 2018, doi:10.1016/j.cell.2018.02.010; layers and their
      order as in Staurenghi et al. 2014, doi:10.1016/j.ophtha.2014.02.023.
    """
    return generate(render_oct, range(4), num_images, image_size_px, rng, lesions)


def render_oct(label, streams, size, lesions=True):
    """Draws one B-scan: (image float32[H, W] in 0..1, mask uint8[H, W], retina bool[H, W])."""
    anatomy, lesion_rng, acquisition = streams
    # The eye draws its own tilt, so the canvas is straight.
    canvas = Canvas(size, anatomy, rotation_deg=0, scale=(1, 1), shift=0, warp=0, flip=False)
    eye = draw_eye(canvas, anatomy)
    develop, add_noise = _draw_scanner(canvas, acquisition, eye)
    image = developed = develop(paint_eye(canvas, eye))
    mask = np.zeros((size, size), np.uint8)
    if label != NORMAL and lesions:
        regions = _LESIONS[label](eye, canvas, lesion_rng)
        image = develop(paint_eye(canvas, eye))
        for code, region in regions.items():
            mask[visible(image, developed, region, VISIBLE_CHANGE)] = code
    tops = boundaries(eye)
    retina = (canvas.y > tops[ROW["rnfl"]]) & (canvas.y < tops[ROW["capillaries"]])
    return add_noise(image), mask, retina


def _draw_scanner(canvas, rng, eye):
    """Draws one acquisition: (develop: reflectivity -> noise-free picture, add_noise)."""
    gain, gamma, width = rng.uniform(0.9, 1.15), rng.uniform(0.9, 1.2), rng.uniform(0.0, 0.016)
    floor, speckle = rng.uniform(0.0, 0.07), rng.uniform(0.10, 0.24)
    speckle *= min(1, canvas.size / 128) ** 0.5  # a wide pixel averages several grains
    # The signal falls towards the sides and with the distance from the focus.
    focus, depth = rng.normal(0, 0.4), rng.uniform(0.0, 0.25)
    vignette = 1 - np.float32(depth) * (canvas.x - np.float32(focus)) ** 2
    number = rng.poisson(0.25)  # lashes, floaters: broad shadows through the whole depth
    for centre, half, dark in rng.uniform((-1, 0.05, 0.2), (1, 0.2, 0.6), (number, 3)):
        vignette = vignette * (1 - np.float32(dark) * np.exp(-(((canvas.x - centre) / half) ** 2)))
    vignette, white = vignette.astype(np.float32), _draw_borders(canvas, rng, eye)

    def develop(image):
        image = np.clip(gain * blur(image, width, canvas) * vignette + np.float32(floor), 0, 1)
        return image ** np.float32(gamma) * (1 - white)

    def add_noise(image):  # speckle multiplies, and its grains are wider than they are high
        grain = rng.standard_normal(image.shape, dtype=np.float32)
        grain = 0.75 * grain + 1.25 * ndimage.gaussian_filter(grain, (0.5, 0.9), truncate=3.0)
        hiss = np.float32(0.02) * rng.standard_normal(image.shape, dtype=np.float32)
        return (image * (1 + np.float32(speckle) * grain) + hiss) * (1 - white) + white

    return develop, add_noise


def _draw_borders(canvas, rng, eye):
    """Draws the white borders of a published scan that was turned upright or cut, float32[H, W]."""
    top, bottom = rng.uniform(0.02, 0.4, 2)
    at_top, at_bottom = rng.random(2) < 0.16
    level = canvas.y - np.float32(eye.tilt) * canvas.x  # borders run along with the retina
    room = float(boundaries(eye)[ROW["rnfl"]].min()) - 0.3 - abs(eye.tilt)
    above = canvas.edge(np.float32(min(top - 1, room)) - level) * at_top
    below = canvas.edge(level - np.float32(1 - bottom)) * at_bottom
    return np.maximum(above, below)
