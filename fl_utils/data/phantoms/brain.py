"""Phantom slices of contrast-enhanced brain MRI: glioma, meningioma, pituitary tumour, none."""

from types import SimpleNamespace

import numpy as np

from fl_utils.data.phantoms.brain_anatomy import draw_head
from fl_utils.data.phantoms.brain_lesions import (
    add_distractors,
    add_glioma,
    add_meningioma,
    add_pituitary,
)
from fl_utils.data.phantoms.shapes import Canvas, blur, generate, visible

# In the order of the real data set's class folders, sorted.
BRAIN_CLASSES = ("glioma_tumor", "meningioma_tumor", "no_tumor", "pituitary_tumor")
GLIOMA, MENINGIOMA, NO_TUMOR, PITUITARY = range(4)
_LESIONS = {GLIOMA: add_glioma, MENINGIOMA: add_meningioma, PITUITARY: add_pituitary}
# A change of 9 grey levels of 255 is what a reader still sees through the usual noise.
VISIBLE_CHANGE = 9 / 255
# Shared by all classes. A high axial slice does not pass through the sella, so pituitary tumours
# have none; that hint (and nothing else about the view) depends on the class, as in real data.
VIEWS = ("axial_high", "axial_low", "coronal", "sagittal")
VIEW_SHARES = {True: (0.0, 0.34, 0.33, 0.33), False: (0.25, 0.25, 0.25, 0.25)}


def generate_brain(num_images, *, image_size_px, rng, lesions=True):
    """Draws phantom brain MRI slices, the four classes in equal shares.

    Axial (high or through the sella), coronal and sagittal slices, with vessels, choroid plexus,
    normal pituitary, white-matter spots, cysts and ghosts as distractors in every class.
    Glioma: irregular, patchy bright rim, dark core, faint oedema. Meningioma: smooth, bright,
    homogeneous, on the dura or the falx. Pituitary tumour: small, bright, on the sella.
    Visible lesions cover, in % of the image at 64 pixels (smallest, median, largest of 250):
    glioma 2.9, 8.1, 19; meningioma 1.1, 3.0, 7.1; pituitary tumour 0.6, 1.6, 3.5.

    Args:
      num_images: N >= 1; any 4 consecutive images from a multiple of 4 hold each class once.
      image_size_px: H = W, 24 to 256.
      rng: the only source of randomness; one number is drawn from it.
      lesions: False leaves the lesions out and everything else as it is, noise included: the
        healthy counterpart of each image. Labels then still name the class that was left out.
    Returns:
      images uint8[N, H, W, 1]; labels int64[N], indices into BRAIN_CLASSES; masks uint8[N, H, W],
      1 where the lesion visibly changes the image, all 0 for no_tumor and for lesions=False.
    Raises:
      ValueError: num_images < 1, image_size_px out of range, rng not a numpy Generator.
    """
    return generate(render_brain, range(4), num_images, image_size_px, rng, lesions)


def render_brain(label, streams, size, lesions=True):
    """Draws one slice: (image float[H, W] in 0..1, mask bool[H, W], inside skull bool[H, W])."""
    anatomy, lesion_rng, acquisition = streams
    view = VIEWS[anatomy.choice(4, p=VIEW_SHARES[label == PITUITARY])]
    canvas = Canvas(
        size, anatomy, rotation_deg=6, scale=(0.92, 1.08), shift=0.04, warp=0.022, flip=True
    )
    tissue = _draw_contrast(anatomy)
    healthy, head = draw_head(canvas, anatomy, tissue, view)
    add_distractors(healthy, canvas, anatomy, tissue, head)
    develop, add_noise = _draw_scanner(canvas, acquisition)
    image = developed = develop(healthy)
    mask, region = np.zeros((size, size), bool), head.cavity > 0.5
    if label != NO_TUMOR and lesions:
        sick = _LESIONS[label](healthy.copy(), canvas, lesion_rng, tissue, head)
        image = develop(sick)
        mask = visible(image, developed, region, VISIBLE_CHANGE)
    return add_noise(image), mask, region


def _draw_contrast(rng):
    """Grey values of one examination; the grey/white contrast may be reversed, as in FLAIR."""
    grey = rng.uniform(0.30, 0.42)
    return SimpleNamespace(
        grey=grey,
        white=grey + rng.uniform(-0.05, 0.14),
        fluid=rng.uniform(0.06, 0.18),
        fat=rng.uniform(0.45, 0.85),
        bone=rng.uniform(0.03, 0.12),
        vessel=grey + rng.uniform(0.12, 0.35),
        enhancement=rng.uniform(0.32, 0.58),
    )


def _draw_scanner(canvas, rng):
    """Draws one scan: (develop: tissue -> noise-free picture, add_noise: picture -> image)."""
    bias = np.exp(np.float32(rng.uniform(0.03, 0.16)) * canvas.field(rng, 4))
    gain, gamma, width = rng.uniform(0.85, 1.2), rng.uniform(0.85, 1.2), rng.uniform(0, 0.022)
    sigma, ghost = rng.uniform(0.01, 0.03), rng.uniform(0.04, 0.12) * (rng.random() < 0.2)
    shift, ramp = int(canvas.size * rng.uniform(0.2, 0.5)), np.float32(gain) * bias

    def develop(image):
        return np.clip(blur(image, width, canvas) * ramp, 0, 1) ** np.float32(gamma)

    def add_noise(image):  # Rician, as in magnitude images; ghosts run along one axis
        real, imaginary = sigma * rng.standard_normal((2, *image.shape), dtype=np.float32)
        if ghost:
            image = image + np.float32(ghost) * np.roll(image, shift, axis=0)
        return np.sqrt((image + real) ** 2 + imaginary**2)

    return develop, add_noise
