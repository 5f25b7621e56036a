"""The head the brain phantom is cut from: the MNI152 template, with skull, face and neck around it.

The brain is the ICBM 2009a nonlinear symmetric average of 152 adults, as shipped by nilearn (1 mm,
already without skull). Positions are MNI millimetres: x to the right, y to the front, z up.
Source: Fonov et al. 2009, NeuroImage 47(S1):S102; Fonov et al. 2011, NeuroImage 54(1):313-327.
"""

import contextlib
import functools
import hashlib
import importlib.util
import zipfile
import zlib
from pathlib import Path

import nibabel
import numpy as np
import scipy
from scipy import ndimage

from fl_utils import paths
from fl_utils.data.phantoms import brain_face
from fl_utils.files import write_atomically

# Larger than the template (x -98..98, y -134..98, z -72..116): the face and the neck need room.
ORIGIN_MM = np.array([-120.0, -150.0, -150.0])
SHAPE_MM = (240, 280, 268)
SPACINGS_MM = (1, 2, 4, 8)
TISSUES = ("gm", "wm")
DISTANCES = ("depth", "outer")
_FILE = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"


@functools.lru_cache(maxsize=3)
def load_template(part):
    """One map of the template: uint8[240, 280, 268], 1 mm, voxel (0, 0, 0) at ORIGIN_MM.

    Args:
      part: "t1" (brain only, 0 outside), or "gm" or "wm" (probability of the tissue, 255 = 1).
    Raises:
      FileNotFoundError: nilearn, or the template in it, is not there.
      ValueError: the file does not have 1 mm voxels along MNI axes.
    """
    path = _template_path(part)
    file = nibabel.load(path)
    if not np.array_equal(file.affine[:3, :3], np.eye(3)):
        raise ValueError(f"{path} has the affine {file.affine.tolist()}; expected 1 mm voxels along x, y, z.")
    start = np.rint(file.affine[:3, 3] - ORIGIN_MM).astype(int)
    whole = np.zeros(SHAPE_MM, np.uint8)
    whole[tuple(slice(s, s + n) for s, n in zip(start, file.shape))] = np.asarray(file.dataobj, np.uint8)
    return whole


def _template_path(part):
    # find_spec does not run nilearn: importing nilearn.datasets takes seconds, this nothing.
    spec = importlib.util.find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("nilearn is not installed; the brain phantom is cut from the template it ships.")
    path = Path(spec.origin).parent / "datasets" / "data" / _FILE.format(part)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; expected the MNI152 template that nilearn ships. Install nilearn again "
            "(0.11 or later)."
        )
    return path


def coarsen(volume, factor):
    """Means over blocks of factor^3 voxels, float32; a last incomplete block is filled with zeros."""
    pad = [(0, -n % factor) for n in volume.shape]
    volume = np.pad(volume, pad).astype(np.float32) if any(b for _, b in pad) else volume
    for axis in range(3):  # an axis at a time: much faster than all at once
        shape = list(volume.shape)
        shape[axis : axis + 1] = [shape[axis] // factor, factor]
        volume = volume.reshape(shape).mean(axis=axis + 1, dtype=np.float32)
    return volume


@functools.lru_cache(maxsize=4)
def head(spacing_mm):
    """The head at one voxel size: {name: volume}.

    gm, wm, fat, muscle, fluid, enhance, block: uint8, 255 = all of the voxel (see
    `brain_face.build_surroundings`); depth, outer: float32, mm under the inner table of the skull
    and under the smooth hull that the scalp follows.
    All have `spacing_mm`, except that around the brain nothing is finer than 2 mm. What takes seconds to compute is
    kept in the cache folder; nothing else depends on whether it is there.
    """
    if spacing_mm == 1:
        return {**head(2), **{name: _sharpened()[name] for name in TISSUES}}
    path = paths.cache_root() / "phantoms" / f"head-{_origin_hash()[:16]}-{spacing_mm}mm.npz"
    volumes = _read(path)
    if volumes is None:
        volumes = _compute(spacing_mm)
        with contextlib.suppress(OSError):  # a full disk or a read-only folder costs the next process some seconds
            write_atomically(path, lambda file: np.savez(file, **volumes))
    return volumes


@functools.lru_cache(maxsize=1)
def _origin_hash():
    """Hex SHA-256 of all that the head is made from: the template, the code, the versions of the libraries."""
    files = [_template_path(part) for part in ("t1", *TISSUES)] + [Path(__file__), Path(brain_face.__file__)]
    key = "".join(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    return hashlib.sha256(f"{key}{np.__version__} {scipy.__version__}".encode()).hexdigest()


def _read(path):
    """The volumes of a cache file; None where it is missing or damaged."""
    try:
        with np.load(path) as file:  # the zip's checksums are looked at
            return {name: file[name] for name in file.files}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
        return None


def _compute(spacing_mm):
    """Computes `head` at 2, 4 or 8 mm."""
    if spacing_mm == 2:
        brain = coarsen(load_template("t1") > 0, 2) > 0.5
        around = brain_face.build_surroundings(brain, *axes_mm(2))
        cord = around.pop("cord")
        volumes = {name: coarsen(_sharpened()[name], 2) for name in TISSUES}
        volumes["wm"] = np.maximum(volumes["wm"], 255 * cord)
        volumes |= {name: volume if name in DISTANCES else 255 * volume for name, volume in around.items()}
    else:
        volumes = {name: coarsen(volume, 2) for name, volume in head(spacing_mm // 2).items()}
    return {name: v if name in DISTANCES else np.rint(v).astype(np.uint8) for name, v in volumes.items()}


@functools.lru_cache(maxsize=1)
def _sharpened():
    """gm and wm with steeper borders: one person's, where the template averages 152."""
    gm, wm, inside = load_template("gm"), load_template("wm"), load_template("t1") > 0
    levels = np.arange(256, dtype=np.float32) / 255
    grey, white = levels[:, None] ** 2, levels[None, :] ** 2
    rest = np.clip(1 - levels[:, None] - levels[None, :], 0.02, 1) ** 2
    total = grey + white + rest
    table = {"gm": np.rint(255 * grey / total).astype(np.uint8), "wm": np.rint(255 * white / total).astype(np.uint8)}
    return {name: table[name][gm, wm] * inside for name in TISSUES}


def axes_mm(spacing_mm):
    """MNI coordinates of the voxel centres, broadcastable: x [X, 1, 1], y [1, Y, 1], z [1, 1, Z]."""
    counts = [-(-n // spacing_mm) for n in SHAPE_MM]
    starts = ORIGIN_MM + (spacing_mm - 1) / 2
    return np.ix_(*[(s + spacing_mm * np.arange(n)).astype(np.float32) for s, n in zip(starts, counts)])


def spacing_for(pixel_mm):
    """The voxel size that neither aliases nor blurs much in pixels of `pixel_mm`."""
    return max(s for s in SPACINGS_MM if s == 1 or s <= 1.2 * pixel_mm)


def sample(spacing_mm, names, points, where=None):
    """Linear interpolation of maps of head(spacing_mm) at MNI points.

    Args:
      spacing_mm: one of SPACINGS_MM.
      names: of the maps.
      points: float32[3, H, W], mm.
      where: bool[H, W], pixels to look at; the others get 0. Default: all.
    Returns:
      {name: float32[H, W]}; 0..1, distances in mm.
    """
    where = np.ones(points.shape[1:], bool) if where is None else where
    maps = {}
    for name in names:
        own = spacing_mm if name in TISSUES else max(spacing_mm, 2)
        start = (ORIGIN_MM + (own - 1) / 2).astype(np.float32)
        voxels = (points[:, where] - start[:, None]) / np.float32(own)
        values = ndimage.map_coordinates(head(spacing_mm)[name], voxels, np.float32, order=1, mode="nearest")
        maps[name] = np.zeros(where.shape, np.float32)
        maps[name][where] = values if name in DISTANCES else values / np.float32(255)
    return maps
