"""Slices of a volume as pictures: grey image, outlines of masks, side letters, scale bar, legend."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import Normal, Stroke
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from scipy.ndimage import distance_transform_edt

from fl_utils.data.overview import fullest_slice, windowed
from fl_utils.data.prepare import PLANES, Plane, as_seen
from fl_utils.plotting.images import bare, draw_grey
from fl_utils.plotting.style import GREEN, ORANGE, PURPLE, SKY_BLUE, VERMILLION, YELLOW

#: Of the foreground classes, light enough for a dark image; a digit in each part says the class as well.
CLASS_COLOURS = (ORANGE, SKY_BLUE, PURPLE, YELLOW, GREEN, VERMILLION)
TRUE_LINE, PREDICTED_LINE = {"linestyle": "-", "linewidth": 2.0}, {"linestyle": (0, (2.2, 1.6)), "linewidth": 1.5}
_BAR_LENGTHS_MM = (1, 2, 5, 10, 20, 50, 100)


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentedCase:
    """One case with its true mask and what models made of it, in the orientation of `volumes.Volume`.

    Attributes:
      modalities: name -> float [X, Y, Z], normalised; background is exactly 0.
      truth: uint8 [X, Y, Z], codes 0..K-1.
      predictions: name of the model -> uint8 [X, Y, Z].
      spacing_mm: size of a voxel along X, Y, Z.
      class_names: K names, the background first.
    Raises:
      ValueError: no modality or prediction; shapes, types, codes or spacing that do not fit.
    """

    modalities: Mapping[str, np.ndarray]
    truth: np.ndarray
    predictions: Mapping[str, np.ndarray]
    spacing_mm: Sequence[float]
    class_names: Sequence[str]

    def __post_init__(self):
        if self.truth.ndim != 3 or not self.modalities or not self.predictions:
            raise ValueError(
                f"SegmentedCase: truth {list(self.truth.shape)}, {len(self.modalities)} modalities, "
                f"{len(self.predictions)} predictions; expected truth [X, Y, Z], one or more of both others."
            )
        spacing = np.asarray(self.spacing_mm, float)
        if spacing.shape != (3,) or not (np.isfinite(spacing) & (spacing > 0)).all():
            raise ValueError(f"SegmentedCase: spacing_mm is {self.spacing_mm}; expected three numbers above 0.")
        for name, image in self.modalities.items():
            if image.shape != self.truth.shape or not np.issubdtype(image.dtype, np.floating):
                raise ValueError(_misfit("SegmentedCase", f"modality {name!r}", image, "float", self.truth.shape))
        masks = {"truth": self.truth} | {f"prediction {name!r}": mask for name, mask in self.predictions.items()}
        for name, mask in masks.items():
            check_codes("SegmentedCase", name, mask, self.truth.shape, self.class_names)

    def fullest_slice(self, plane: Plane) -> int:
        """The slice of the plane with the largest labelled area in the true mask; the middle one if there is none."""
        return fullest_slice(as_seen(self.truth, plane))


def draw_slice(ax: Axes, case: SegmentedCase, plane: Plane, number: int, modality: str | None, model: str | None):
    """One slice with its outlines, the class codes, the letters of two sides and a scale bar; see `segmentation`."""
    _, rows, columns = PLANES[plane]
    stacks = stacks_of(case, plane, modality, model)
    image, truth, predicted = (stack[number] for stack in stacks)
    window = window_of(*stacks)
    bare(ax)
    draw_grey(ax, windowed(image))
    zoom(ax, window)
    ax.set_aspect(case.spacing_mm[rows] / case.spacing_mm[columns])
    # All true outlines first: the dashes of a prediction are to be seen on top of any of them.
    for mask, line in ((truth, TRUE_LINE), (predicted, PREDICTED_LINE)):
        for code in range(1, len(case.class_names)):
            draw_outline(ax, mask == code, colour_of(code), **line)
    number_parts(ax, truth)
    white = {"transform": ax.transAxes, "color": "white", "fontsize": 9, "path_effects": stroked(2)}
    ax.text(0.02, 0.5, "RAS"[columns], ha="left", va="center", **white)
    ax.text(0.5, 0.98, "RAS"[rows], ha="center", va="top", **white)
    column_mm = case.spacing_mm[columns]
    longest = 0.35 * column_mm * np.ptp(window[1])
    length = max([mm for mm in _BAR_LENGTHS_MM if mm <= longest], default=_BAR_LENGTHS_MM[0])
    bar = AnchoredSizeBar(
        ax.transData, length / column_mm, f"{length} mm", "lower right", pad=0.2, borderpad=0.2, sep=2, color="white",
        size_vertical=np.ptp(window[0]) / 80, fontproperties={"size": 8},
    )
    bar.patch.set(facecolor="black", alpha=0.55, linewidth=0)
    ax.add_artist(bar)


def draw_outline(ax: Axes, region: np.ndarray, colour: str, **line) -> None:
    """The border of a bool mask [H, W], closed at the edge of the picture too."""
    if not region.any():
        return
    limits = {"xlim": ax.get_xlim(), "ylim": ax.get_ylim()}
    places = [np.arange(-1, length + 1) for length in region.shape]
    drawn = ax.contour(
        places[1], places[0], np.pad(region.astype(float), 1), levels=[0.5], colors=[colour],
        linestyles=[line["linestyle"]], linewidths=line["linewidth"],
    )
    drawn.set_path_effects(stroked(line["linewidth"] + 1.4))
    ax.set(**limits)


def number_parts(ax: Axes, mask: np.ndarray) -> None:
    """Writes each class's code into the mask, where it is thickest."""
    for code in range(1, int(mask.max()) + 1):
        if (mask == code).any():
            depth = distance_transform_edt(np.pad(mask == code, 1))[1:-1, 1:-1]
            y, x = np.unravel_index(depth.argmax(), depth.shape)
            ax.text(
                x, y, str(code), color="white", fontsize=8, ha="center", va="center", fontweight="bold",
                path_effects=stroked(2),
            )


def class_keys(class_names: Sequence[str]) -> list[Patch]:
    """For the legend: colour, code and name of the foreground classes."""
    return [
        Patch(facecolor=colour_of(code), edgecolor="black", label=f"{code} {name.replace('_', ' ')}")
        for code, name in enumerate(class_names) if code
    ]


def outline_keys() -> list[Line2D]:
    """For the legend: how true and predicted outlines are drawn."""
    return [
        Line2D([], [], color="white", label=label, path_effects=stroked(line["linewidth"] + 2), **line)
        for line, label in ((TRUE_LINE, "true"), (PREDICTED_LINE, "predicted"))
    ]


def stroked(width: float) -> list:
    """A black edge around light lines and letters, so that they are seen on bright voxels too."""
    return [Stroke(linewidth=width, foreground="black"), Normal()]


def colour_of(code: int) -> str:
    """The colour of a foreground class."""
    return CLASS_COLOURS[(code - 1) % len(CLASS_COLOURS)]


def stacks_of(case: SegmentedCase, plane: Plane, modality: str | None, model: str | None) -> list[np.ndarray]:
    """Image, true and predicted mask, each [slices, rows, columns]."""
    modality = known("SegmentedCase", "modality", modality, list(case.modalities))
    model = known("SegmentedCase", "model", model, list(case.predictions))
    return [as_seen(own, plane) for own in (case.modalities[modality], case.truth, case.predictions[model])]


def window_of(*stacks: np.ndarray) -> list[tuple[int, int]]:
    """First and last + 1 of the rows, then of the columns, where anything of the stacks [N, H, W] is not 0."""
    inside = np.any([(stack != 0).any(axis=0) for stack in stacks], axis=0)
    places = [np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0)]
    lengths = inside.shape
    return [(own[0], own[-1] + 1) if len(own) else (0, length) for own, length in zip(places, lengths, strict=True)]


def zoom(ax: Axes, window: list[tuple[int, int]]) -> None:
    """Shows the rows and columns of a window (see `window_of`) only."""
    (top, bottom), (left, right) = window
    ax.set(xlim=(left - 0.5, right - 0.5), ylim=(bottom - 0.5, top - 0.5))


def known(figure: str, what: str, name: str | None, names: Sequence[str]) -> str:
    """The name if it is one of the names, the first of them for None. Raises: ValueError."""
    if name is not None and name not in names:
        raise ValueError(f"{figure}: {what} {name!r} is not known; there are {', '.join(names)}.")
    return names[0] if name is None else name


def check_codes(figure: str, name: str, mask: np.ndarray, shape: tuple, class_names: Sequence[str]) -> None:
    """Raises ValueError where a mask is not uint8 of this shape with codes of these classes."""
    if mask.shape != shape or mask.dtype != np.uint8:
        raise ValueError(_misfit(figure, name, mask, "uint8", shape))
    if mask.size and mask.max() >= len(class_names):
        expected = f"0 to {len(class_names) - 1} ({', '.join(class_names)})"
        raise ValueError(f"{figure}: {name} holds code {mask.max()}; expected {expected}.")


def _misfit(figure: str, name: str, array: np.ndarray, kind: str, shape: tuple) -> str:
    return f"{figure}: {name} is {array.dtype} {list(array.shape)}, expected {kind} {list(shape)}."
