"""Phantom frontal chest X-rays, normal or with pneumonia."""

import numpy as np

from fl_utils.data.phantoms.shapes import Canvas, blur, generate, visible

# In the order of the real data set's class folders.
CHEST_CLASSES = ("NORMAL", "PNEUMONIA")
NORMAL, PNEUMONIA = range(2)
# Three of five, near the published test set of the real twin (390 of 624; 0.74 in training), so
# that the handling of imbalance is exercised, too. Always saying PNEUMONIA is right in 60 %.
BLOCK = (NORMAL, NORMAL, PNEUMONIA, PNEUMONIA, PNEUMONIA)
# A change of 6 grey levels of 255: opacities are fainter and wider than tumours.
VISIBLE_CHANGE = 6 / 255


def generate_chest(num_images, *, image_size_px, rng, lesions=True):
    """Draws phantom chest X-rays, three of five with pneumonia.

    Lung fields with vessels, ribs, clavicles, spine, heart, diaphragm and soft tissue; no side
    markers. Pneumonia: one lobar or two to five patchy, ill-defined opacities inside the lungs.
    Distractors in both classes: breast shadows, crowded vessels, poor inspiration, scapulae,
    skin folds, scars, rotation, exposure.
    Visible opacities cover 2.7 % to 21 % of the image at 64 pixels (median 9.6; 360 opaque chests).

    Args:
      num_images: N >= 1; any 5 consecutive images from a multiple of 5 hold 3 with pneumonia.
      image_size_px: H = W, 24 to 256.
      rng: the only source of randomness; one number is drawn from it.
      lesions: False leaves the opacities out and everything else as it is, noise included: the
        healthy counterpart of each image. Labels then still name the class that was left out.
    Returns:
      images uint8[N, H, W, 1]; labels int64[N], indices into CHEST_CLASSES; masks uint8[N, H, W],
      1 where an opacity visibly changes the image, all 0 for NORMAL and for lesions=False.
    Raises:
      ValueError: num_images < 1, image_size_px out of range, rng not a numpy Generator.
    """
    return generate(render_chest, BLOCK, num_images, image_size_px, rng, lesions)


def render_chest(label, streams, size, lesions=True):
    """Draws one X-ray: (image float32[H, W] in 0..1, mask bool[H, W], lung fields bool[H, W])."""
    anatomy, lesion_rng, acquisition = streams
    canvas = Canvas(
        size, anatomy, rotation_deg=3, scale=(0.94, 1.08), shift=0.04, warp=0.022, flip=False
    )
    lungs, boxes, middle = _draw_lungs(canvas, anatomy)
    healthy, air = _draw_body(canvas, anatomy, lungs, middle)
    _add_distractors(healthy, canvas, anatomy, lungs, boxes)
    develop, add_noise = _draw_exposure(canvas, acquisition)
    image = developed = develop(healthy)
    mask, region = np.zeros((size, size), bool), lungs > 0.3
    if label == PNEUMONIA and lesions:
        sick = healthy + air * _draw_opacities(canvas, lesion_rng, boxes)
        image = develop(sick)
        mask = visible(image, developed, region, VISIBLE_CHANGE)
    return add_noise(image), mask, region


def _draw_lungs(canvas, rng):
    """Draws both lungs: (weight 0..1, [(inner, outer, top, base) of right and left], middle x)."""
    x, y = canvas.x, canvas.y
    middle = np.float32(rng.normal(0, 0.035))  # a turned patient shows the middle off-centre
    inspiration = rng.normal(0, 0.05)
    boxes, lungs = [], np.zeros_like(x)
    for side in (-1, 1):
        inner, outer = rng.uniform(0.11, 0.16), rng.uniform(0.62, 0.72)
        top, base = -0.70 + rng.normal(0, 0.02), 0.52 + inspiration + 0.05 * (side == 1)
        base += rng.normal(0, 0.03)
        across = side * (x - middle)
        height = np.clip((y - np.float32(top)) / np.float32(base + 0.25 - top), 0, 1)
        wall = np.float32(outer) * (0.35 + 0.65 * np.sqrt(np.sqrt(height)))
        dome = np.float32(base) + 0.5 * (across - 0.36) ** 2
        dome = dome + 0.5 * np.clip(across - 0.4, 0, 1) ** 2
        depth = np.minimum(np.minimum(across - np.float32(inner), wall - across), dome - y)
        round_top = canvas.ellipse(middle + side * 0.34, 0.1, 0.36, 0.1 - top)
        depth = np.minimum(depth, np.where(y < 0.1, round_top, np.float32(1)))
        lungs = np.maximum(lungs, canvas.edge(depth, 0.05))
        boxes.append((side * inner + middle, side * outer + middle, top, base))
    return lungs, boxes, middle


def _draw_body(canvas, rng, lungs, middle):
    """Adds up what weakens the beam: (a healthy chest, what the air in the lungs takes off it)."""
    x, y = canvas.x - middle, canvas.y
    across = np.abs(x)
    shoulders = y + 1.15 - 0.45 * across
    trunk = np.minimum(0.95 - across - 0.1 * np.clip(-y, 0, 1), shoulders)
    trunk = np.maximum(trunk, 0.2 - across)
    image = np.float32(rng.uniform(0.42, 0.55)) * canvas.edge(trunk, 0.15)
    image += np.float32(rng.normal(0.03, 0.03)) * y  # thicker below, or brighter above
    belly = canvas.edge(y - np.float32(0.55), 0.3) * (1 - lungs)
    image += np.float32(rng.uniform(0.04, 0.14)) * belly
    air = np.float32(rng.uniform(0.24, 0.36)) * lungs
    image -= air
    heart = _add_mediastinum(image, canvas, rng, across, lungs)
    _add_bones(image, canvas, rng, across, lungs)
    # Vessels fan out from the hila and fade; their strength differs a lot from chest to chest.
    strength, texture = rng.uniform(0.02, 0.07), canvas.field(rng, 16)
    for side in (-1, 1):
        hx, hy = side * rng.uniform(0.15, 0.2), rng.uniform(-0.12, 0.0)
        u, v = side * (x - np.float32(hx)), y - np.float32(hy)
        far = np.sqrt(u * u + v * v)
        knots = rng.standard_normal(64)
        angle = np.arctan2(v, u) + 0.12 * texture * far
        fan = np.interp(angle, np.linspace(-np.pi, np.pi, 64), knots).astype(np.float32)
        fan = np.clip(fan, 0, 2) * np.exp(-2.2 * far) * canvas.edge(u, 0.1)
        image += np.float32(strength) * fan * lungs
        image += np.float32(rng.uniform(0.03, 0.1)) * np.exp(-((far / 0.09) ** 2))
    image += 0.012 * texture * (0.3 + lungs)
    return image, air * (1 - 0.85 * heart)


def _add_mediastinum(image, canvas, rng, across, lungs):
    spine = canvas.edge(0.1 - across, 0.06)
    discs = np.sin(np.float32(rng.uniform(36, 44)) * canvas.y + np.float32(rng.uniform(0, 6)))
    image += spine * (np.float32(rng.uniform(0.08, 0.16)) + 0.02 * discs)
    image += np.float32(0.05) * canvas.edge(0.17 - across - 0.03 * canvas.y, 0.1)
    trachea = canvas.edge(0.035 - across, 0.04) * canvas.edge(-0.25 - canvas.y, 0.15)
    image -= 0.05 * trachea
    a, b, low = rng.uniform(0.26, 0.38), rng.uniform(0.19, 0.26), rng.uniform(0.26, 0.36)
    heart = canvas.ellipse(0.12 + rng.normal(0, 0.03), low, a, b, 0.6)
    heart = np.maximum(heart, canvas.ellipse(-0.06, low - 0.05, 0.15, 0.22))
    heart = np.maximum(heart, canvas.ellipse(0.07, low - 0.3, 0.13, 0.3, -0.2))  # the great vessels
    # Where it replaces lung it stands out; over the middle it adds little.
    added = np.float32(rng.uniform(0.18, 0.28)) * lungs + np.float32(rng.uniform(0.02, 0.06))
    heart = canvas.edge(heart, 0.06)
    image += added * heart
    image += 0.5 * added * canvas.edge(canvas.ellipse(0.13, -0.24, 0.08, 0.09), 0.06)  # aortic arch
    return heart


def _add_bones(image, canvas, rng, across, lungs):
    y = canvas.y
    spacing, start, strength = rng.uniform(0.15, 0.19), rng.uniform(0, 1), rng.uniform(0.015, 0.05)
    cage = canvas.edge(0.78 - across, 0.1) * canvas.edge(0.62 - y, 0.15)
    cage = cage * canvas.edge(y + 0.85, 0.2) * (0.35 + 0.65 * lungs)
    # Behind, ribs leave the spine upwards and bend down; in front, they fall to the breastbone.
    behind = y - 1.1 * (across - 0.3) ** 2 - 0.1 * across
    front = y - 0.68 * (0.75 - across)
    for path, share in ((behind, 1.0), (front, 0.5)):
        phase = (path / np.float32(spacing) + np.float32(start)) % 1
        bar = canvas.edge((0.24 - np.abs(phase - 0.5)) * np.float32(spacing), 0.03)
        rim = canvas.edge((0.06 - np.abs(np.abs(phase - 0.5) - 0.2)) * np.float32(spacing), 0.02)
        image += np.float32(strength * share) * (0.7 * bar + 0.5 * rim) * cage
    lift = rng.normal(0, 0.03, 2)
    for side, up in zip((-1, 1), lift):
        points = [(0.07, -0.56), (0.3, -0.6 + up), (0.5, -0.68 + up), (0.78, -0.66 + up)]
        bone = canvas.line([(side * px, py) for px, py in points], 0.03)
        image += np.float32(rng.uniform(0.05, 0.13)) * bone


def _add_distractors(image, canvas, rng, lungs, boxes):
    """What looks like an opacity and is none, equally likely in both classes."""
    if rng.random() < 0.5:  # breasts or pectoral muscles: both sides, with a sharper lower rim
        low, wide, dense = rng.uniform(0.15, 0.4), rng.uniform(0.22, 0.34), rng.uniform(0.02, 0.07)
        for side in (-1, 1):
            rim = canvas.ellipse(side * 0.42, low, wide, 0.8 * wide)
            image += np.float32(dense * rng.uniform(0.6, 1.2)) * canvas.edge(rim, 0.12)
    for side in (-1, 1):
        if rng.random() < 0.5:  # shoulder blade over the outer lung
            blade = canvas.ellipse(side * rng.uniform(0.6, 0.8), -0.3, 0.12, 0.36, side * 0.25)
            image += np.float32(rng.uniform(0.02, 0.08)) * canvas.edge(blade, 0.05)
    if rng.random() < 0.35:  # gas in the stomach
        gas = canvas.edge(canvas.ellipse(0.35, boxes[1][3] + 0.22, 0.16, 0.1), 0.05)
        image -= np.float32(rng.uniform(0.06, 0.2)) * gas * (1 - lungs)
    for _ in range(rng.poisson(0.6)):  # skin folds, lines, scars: long and thin
        x, y = rng.uniform(-0.7, 0.7), rng.uniform(-0.6, 0.6)
        dx, dy = rng.normal(0, 0.25, 2)
        fold = canvas.line([(x, y), (x + dx, y + dy)], rng.uniform(0.01, 0.03))
        image += np.float32(rng.uniform(0.02, 0.07)) * fold
    image += np.float32(rng.uniform(0, 0.03)) * canvas.field(rng, 5)  # uneven soft tissue


def _draw_opacities(canvas, rng, boxes):
    """Draws pneumonia: the share of the air that fluid replaces, float32[H, W]; ill-defined."""
    texture, fine = canvas.field(rng, 9), canvas.field(rng, 18)
    lobar = rng.random() < 0.5
    density, total = rng.uniform(0.95, 1.35), np.zeros_like(texture)
    for _ in range(1 if lobar else rng.integers(2, 6)):
        inner, outer, top, base = boxes[rng.integers(2)]
        along, down = rng.uniform(0.2, 0.75), rng.uniform(0.2, 0.9)
        x, y = inner + along * (outer - inner), top + down * (base - top)
        width = rng.uniform(0.22, 0.38) if lobar else rng.uniform(0.13, 0.21)
        shape = canvas.ellipse(x, y, width, width * rng.uniform(0.7, 1.5), rng.uniform(0, 3))
        shape += np.float32(0.25 * width) * texture
        total = np.maximum(total, canvas.edge(shape, width) * np.float32(rng.uniform(0.7, 1)))
    # Air-filled bronchi and unaffected lobules keep it from being even.
    return np.float32(density) * total * (1 + 0.25 * fine)


def _draw_exposure(canvas, rng):
    """Draws one exposure: (develop: attenuation -> noise-free picture, add_noise)."""
    gain, gamma, width = rng.uniform(1.1, 1.4), rng.uniform(0.85, 1.15), rng.uniform(0, 0.025)
    lift, sigma = rng.normal(0.0, 0.025), rng.uniform(0.008, 0.025)
    heel = np.float32(rng.normal(0, 0.06)) * canvas.x + np.float32(rng.normal(0, 0.06)) * canvas.y
    ramp, offset = 1 + heel, np.float32(lift)

    def develop(image):
        return np.clip(gain * blur(image, width, canvas) * ramp + offset, 0, 1) ** np.float32(gamma)

    def add_noise(image):  # fewer photons, more noise where the film is bright
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        return image + np.float32(sigma) * noise * (0.6 + image)

    return develop, add_noise
