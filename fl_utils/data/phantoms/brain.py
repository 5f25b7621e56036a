"""Phantom slices of brain MRI in four modalities: glioma, meningioma, pituitary tumour, none."""

from types import SimpleNamespace

import numpy as np

from fl_utils.data.phantoms.brain_anatomy import MATERIALS, draw_slice
from fl_utils.data.phantoms.brain_lesions import distractors, draw_parts, glioma, meningioma, part_codes, pituitary
from fl_utils.data.phantoms.shapes import blur, generate, visible

# In the order of the real data set's class folders, sorted.
BRAIN_CLASSES = ("glioma_tumor", "meningioma_tumor", "no_tumor", "pituitary_tumor")
GLIOMA, MENINGIOMA, NO_TUMOR, PITUITARY = range(4)
MODALITIES = ("t1", "t1ce", "t2", "flair")
_LESIONS = {GLIOMA: glioma, MENINGIOMA: meningioma, PITUITARY: pituitary}
# A change of 9 grey levels of 255 is what a reader still sees through the usual noise.
VISIBLE_CHANGE = 9 / 255


def generate_brain(num_images, *, image_size_px, rng, lesions=True, modalities=("t1ce",)):
    """Draws phantom brain MRI slices, the four classes in equal shares.

    Axial, coronal and sagittal slices through the MNI152 template with a drawn skull and face, posed
    and deformed; vessels, white-matter spots, cysts, uneven coils, ghosts and noise in every class.
    Glioma: irregular, in white matter, bright rim around a dark core, oedema; some without uptake.
    Meningioma: smooth, bright, even, on the dura or the falx. Pituitary tumour: round, in the sella.
    Visible lesions cover, in % of the image at 64 pixels, T1CE (smallest, median, largest of 250):
    glioma 1.6, 6.4, 14; meningioma 0.6, 2.4, 6.1; pituitary tumour 0.1, 0.8, 2.3.

    Args:
      num_images: N >= 1; any 4 consecutive images from a multiple of 4 hold each class once.
      image_size_px: H = W, 24 to 256.
      rng: the only source of randomness; one number is drawn from it.
      lesions: False leaves the lesions out and everything else as it is, noise included: the
        healthy counterpart of each image. Labels then still name the class that was left out.
      modalities: M different names of MODALITIES, the channels in their order. A channel is the
        same whatever else is drawn; the masks are not: they hold what any of the channels shows.
    Returns:
      images uint8[N, H, W, M]; labels int64[N], indices into BRAIN_CLASSES; masks uint8[N, H, W]:
      1 core (necrotic, cystic, or without uptake), 2 oedema, 3 enhancing part, where the lesion
      visibly changes the image; 0 elsewhere, for no_tumor and for lesions=False.
    Raises:
      ValueError: num_images < 1, image_size_px out of range, rng not a numpy Generator, modalities
        empty, repeated or unknown.
      FileNotFoundError: the template that nilearn ships is missing.
    Source: template Fonov et al. 2009, NeuroImage 47(S1):S102, and 2011, NeuroImage 54(1):313-327.
    """
    modalities = _checked_modalities(modalities)
    stacks = []

    def render(label, streams, size, with_lesions):
        images, codes, _ = render_brain(label, streams, size, with_lesions, modalities)
        stacks.append(np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8))
        return images[0], codes

    # `generate` keeps one channel an image; all of them are kept here.
    _, labels, masks = generate(render, range(4), num_images, image_size_px, rng, lesions)
    return np.stack(stacks).transpose(0, 2, 3, 1).copy(), labels, masks


def _checked_modalities(modalities):
    """The names as a tuple; an error names what is wrong with them."""
    if isinstance(modalities, str) or not modalities or len(set(modalities)) < len(modalities):
        raise ValueError(f"modalities is {modalities!r}; expected one or more different names of {MODALITIES}.")
    for name in modalities:
        if name not in MODALITIES:
            raise ValueError(f"modalities holds {name!r}; expected names of {MODALITIES}.")
    return tuple(modalities)


def render_brain(label, streams, size, lesions=True, modalities=("t1ce",)):
    """Draws one slice: (images float32[M, H, W] in 0..1, codes uint8[H, W], head bool[H, W])."""
    anatomy, lesion_rng, acquisition = streams
    head = draw_slice(size, anatomy, through_sella=label == PITUITARY)
    tissue = draw_contrast(anatomy)
    healthy = _mix(head, tissue, modalities)
    draw_parts(healthy, modalities, distractors(head, anatomy, tissue))
    develop, add_noise = _draw_scanner(head.canvas, acquisition)
    images = developed = develop(healthy)
    codes, region = np.zeros((size, size), np.uint8), head.solid > 0.5
    if label != NO_TUMOR and lesions:
        parts = _LESIONS[label](head, lesion_rng, tissue)
        sick = healthy.copy()
        draw_parts(sick, modalities, parts)
        images = develop(sick)
        change = np.abs(images - developed).max(axis=0)
        codes = part_codes(parts, change.shape) * visible(change, 0, region, VISIBLE_CHANGE)
    return add_noise(images, modalities), codes, region


def draw_contrast(rng):
    """Grey values of one examination: of the materials, of what lesions add, in each modality."""
    draw = rng.uniform
    grey, step, csf, fat = draw(0.22, 0.32), draw(0.05, 0.13), draw(0.04, 0.12), draw(0.45, 0.9)
    t1 = dict(csf=csf, gm=grey, wm=grey + step, fat=fat, muscle=draw(0.16, 0.28), bone=draw(0.02, 0.08), fluid=csf)
    grey, bright = draw(0.36, 0.46), draw(0.7, 0.95)
    t2 = dict(csf=bright, gm=grey, wm=grey - draw(0.08, 0.15), fat=draw(0.3, 0.6), muscle=draw(0.1, 0.18))
    t2 |= dict(bone=draw(0.02, 0.06), fluid=bright)
    grey, dark = draw(0.38, 0.48), draw(0.03, 0.1)
    flair = dict(csf=dark, gm=grey, wm=grey - draw(0.04, 0.11), fat=draw(0.25, 0.5), muscle=draw(0.14, 0.24))
    flair |= dict(bone=draw(0.02, 0.06), fluid=dark)
    uptake = draw(0.57, 0.77)
    greys = {"t1": t1, "t1ce": t1, "t2": t2, "flair": flair}
    enhance = {"t1": -0.03, "t1ce": uptake * draw(0.35, 0.62), "t2": -0.25, "flair": -0.12}
    vessel = {"t1": -0.05, "t1ce": uptake * draw(0.25, 0.52), "t2": -0.2, "flair": -0.1}
    swell = draw(0.5, 1.0)
    dip, _ = draw(0.02, 0.08), draw(0.03, 0.10)
    return SimpleNamespace(
        greys=greys,
        fluid={m: greys[m]["csf"] for m in MODALITIES},
        enhance=enhance,
        vessel=vessel,
        oedema={"t1": -0.13 * swell, "t1ce": -0.13 * swell, "t2": 0.32 * swell, "flair": 0.38 * swell},
        tumour={m: greys[m]["gm"] + d for m, d in zip(MODALITIES, (-dip, -dip, 0.14, 0.12))},
        necrosis={m: greys[m]["csf"] * 0.8 + greys[m]["gm"] * 0.2 for m in MODALITIES},
        uptake={"t1": 0.0, "t1ce": uptake, "t2": 0.0, "flair": 0.0},
    )


def _mix(head, tissue, modalities):
    """The healthy slice in each modality, float32[M, H, W], from the weights of its materials."""
    stack = np.stack([head.weights[name] for name in MATERIALS])
    images = []
    for m in modalities:
        values = [tissue.greys[m].get(name, tissue.enhance[m]) for name in MATERIALS]
        images.append(np.tensordot(np.float32(values), stack, 1))
    images = np.clip(np.stack(images), 0, None)
    return images + head.cavity * (0.008 * head.texture + 0.006 * head.folds)


def _draw_scanner(canvas, rng):
    """Draws one scan: (develop: tissue -> noise-free pictures, add_noise: pictures -> images)."""
    bias = np.exp(np.float32(rng.uniform(0.03, 0.12)) * canvas.field(rng, 4))
    gain, gamma, width = rng.uniform(0.88, 1.15), rng.uniform(0.9, 1.15), rng.uniform(0, 0.012)
    sigma, ghost = rng.uniform(0.008, 0.024), rng.uniform(0.04, 0.12) * (rng.random() < 0.2)
    shift, ramp = int(canvas.size * rng.uniform(0.2, 0.5)), np.float32(gain) * bias
    seed = int(rng.integers(2**62))

    def develop(images):
        blurred = np.stack([blur(image, width, canvas) for image in images])
        return np.clip(blurred * ramp, 0, 1) ** np.float32(gamma)

    def add_noise(images, modalities):  # Rician, as in magnitude images; ghosts run along one axis
        noisy = []
        for image, modality in zip(images, modalities):
            own = np.random.default_rng([seed, MODALITIES.index(modality)])
            real, imaginary = sigma * own.standard_normal((2, *image.shape), dtype=np.float32)
            if ghost:
                image = image + np.float32(ghost) * np.roll(image, shift, axis=0)
            noisy.append(np.sqrt((image + real) ** 2 + imaginary**2))
        return np.stack(noisy)

    return develop, add_noise
