"""Class activation maps as pictures: image, map, and the map laid over the image."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke

from fl_utils.plotting.images import bare, draw_grey, wrapped
from fl_utils.plotting.page import bottom_label, figure_function, new_figure, top_legend
from fl_utils.plotting.style import BLACK, BLUE, GREY, VERMILLION, WIDTH

#: Even in lightness, and in other hues than the grey image, for every common colour vision.
COLOURS = "plasma"
#: How much of the image the highest value hides; the lowest hides nothing.
STRONGEST = 0.7
_SCALE_TEXT = "Class activation, share of the map's maximum"
_BLACK_WHITE = (("black", 2.6), ("white", 1.0))


@figure_function
def map_gallery(
    images: np.ndarray,
    maps_by_name: Mapping[str, np.ndarray],
    titles: Sequence[str],
    right: Sequence[bool] | None = None,
    masks: np.ndarray | None = None,
    boxes: np.ndarray | None = None,
    outline: str = "lesion",
    box_label: str = "marker",
) -> Figure:
    """A row a case: the image, then the map and the overlay of every model, with one colour bar.

    Args:
      images: uint8 [N, H, W, 1].
      maps_by_name: what stands above the columns -> float [N, H, W], 0 to 1.
      titles: N texts that stand left of the rows.
      right: N times True where the model is right (thin solid frame around the image), False where it is wrong (thick
        dashed frame); None for no frames.
      masks: bool [N, H, W]; drawn as an outline, white on black, on image and overlay; an empty one is not drawn.
      boxes: bool [N, H, W], each one rectangle or empty; drawn as a dashed outline on all pictures.
      outline: what a mask is, for the legend.
      box_label: what a box is, for the legend.
    Raises:
      ValueError: shapes, types or values do not fit; no image or no map.
    """
    _check("map_gallery", images, maps_by_name, masks, boxes)
    if len(titles) != len(images) or (right is not None and len(right) != len(images)):
        verdicts = "no" if right is None else len(right)
        raise ValueError(f"map_gallery: {len(titles)} titles and {verdicts} verdicts for {len(images)} images.")
    columns, words = 1 + 2 * len(maps_by_name), 1.55
    # Small, as a gallery has many pictures and a notebook must stay small; but the words below need 5 inches.
    side = min((WIDTH - words - 0.1) / columns, max(0.72, 3.6 / columns))
    height = len(images) * (side + 0.04) + 1.35
    figure = new_figure(height, words + columns * side, w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    axes = figure.subplots(len(images), columns, squeeze=False)
    for number, row in enumerate(axes):
        for ax in row:
            bare(ax)
        draw_grey(row[0], images[number])
        title = "\n".join(wrapped(line.replace("_", " "), words - 0.1) for line in titles[number].split("\n"))
        row[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
        if right is not None:
            frame = {"transform": row[0].transAxes, "fill": False} | _verdict(right[number])
            row[0].add_patch(Rectangle((0, 0), 1, 1, **frame))
        for place, maps in enumerate(maps_by_name.values()):
            draw_map(row[1 + 2 * place], maps[number])
            draw_overlay(row[2 + 2 * place], images[number], maps[number])
        _outline(row[::2], None if masks is None else masks[number])
        _box(row, None if boxes is None else boxes[number])
    axes[0][0].set_title("image", loc="center", fontsize=10, fontweight="normal")
    for place, name in enumerate(maps_by_name):
        for offset, what in ((1, "map"), (2, "overlay")):
            size = 10 if side > 1 else 7.5
            text = "\n".join(wrapped(part, max(side * 10 / size, 0.97)) for part in [*name.split(", "), what])
            axes[0][2 * place + offset].set_title(text, loc="center", fontsize=size, fontweight="normal")
    _colour_bar(figure, axes)
    handles = [
        Line2D([], [], label=text, **_verdict(verdict))
        for verdict, text in ((True, "right"), (False, "wrong")) if right is not None and verdict in np.asarray(right, bool)
    ]
    if masks is not None and np.any(masks):
        handles.append(_key(outline, "-"))
    if boxes is not None and np.any(boxes):
        handles.append(_key(box_label, (0, (3, 1.5))))
    if handles:
        top_legend(figure, handles)
    bottom_label(figure, "Images: grey window 0 (black) to 255 (white)")
    return figure


@figure_function
def map_view(
    image: np.ndarray,
    class_map: np.ndarray,
    probabilities: Sequence[float],
    class_names: Sequence[str],
    *,
    asked: int,
    label: int,
    title: str = "",
    mask: np.ndarray | None = None,
) -> Figure:
    """One image, its map, the overlay, and what the model says.

    Args:
      image: uint8 [H, W, 1].
      class_map: float [H, W], 0 to 1.
      probabilities: K of them.
      class_names: K names.
      asked: the class whose map it is; its bar is hatched.
      label: the true class; its name is marked.
      title: stands above.
      mask: bool [H, W], outlined.
    Raises:
      ValueError: shapes, types or values do not fit.
    """
    _check("map_view", image[None], {"map": class_map[None]}, None if mask is None else mask[None], None)
    if len(probabilities) != len(class_names) or not (0 <= asked < len(class_names) and 0 <= label < len(class_names)):
        raise ValueError(
            f"map_view: {len(probabilities)} probabilities, classes {asked} and {label}, for {len(class_names)} names."
        )
    figure = new_figure(3.1)
    axes = figure.subplots(1, 4, width_ratios=[1, 1, 1, 1.1])
    for ax, what in zip(axes, ("image", "map", "overlay"), strict=False):
        bare(ax)
        ax.set_title(what, loc="center", fontsize=10, fontweight="normal")
    draw_grey(axes[0], image)
    draw_map(axes[1], class_map)
    draw_overlay(axes[2], image, class_map)
    _outline(axes[:3:2], mask)
    bars, places = axes[3], np.arange(len(class_names))
    for place in places:
        hatch = "//" if place == asked else ""
        bars.barh(place, probabilities[place], height=0.6, color=GREY, edgecolor="white", hatch=hatch)
        bars.annotate(
            f"{probabilities[place]:.2f}", (probabilities[place], place), xytext=(3, 0), textcoords="offset points",
            va="center", fontsize=9,
        )
    names = [name.replace("_", " ") + (" (true)" if place == label else "") for place, name in enumerate(class_names)]
    bars.set_yticks(places, [wrapped(name, 1.1) for name in names], fontsize=9)
    bars.set(xlim=(0, 1.25), ylim=(len(names) - 0.4, -0.6), xticks=(0, 0.5, 1))
    bars.grid(axis="y", visible=False)
    bars.set_title("probability (hatched: asked)", loc="center", fontsize=10, fontweight="normal")
    _colour_bar(figure, axes[:3])
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def draw_map(ax: Axes, class_map: np.ndarray) -> None:
    """A map [H, W] from 0 to 1; one that is all zero says so."""
    ax.imshow(class_map, cmap=COLOURS, vmin=0, vmax=1, interpolation="nearest")
    if not np.any(class_map):
        ax.text(0.5, 0.5, "all zero", transform=ax.transAxes, ha="center", va="center", fontsize=9, color="white")


def draw_overlay(ax: Axes, image: np.ndarray, class_map: np.ndarray) -> None:
    """The map over the image, the more opaque the higher it is."""
    draw_grey(ax, image)
    colours = colormaps[COLOURS](np.asarray(class_map, float))
    colours[..., 3] = STRONGEST * np.clip(class_map, 0, 1)
    ax.imshow(colours, interpolation="nearest")


def _outline(axes: Sequence[Axes], mask: np.ndarray | None) -> None:
    if mask is None or not np.any(mask):
        return
    for ax in axes:
        for colour, width in _BLACK_WHITE:
            ax.contour(np.asarray(mask, float), levels=[0.5], colors=[colour], linewidths=width)


def _box(axes: Sequence[Axes], box: np.ndarray | None) -> None:
    if box is None or not np.any(box):
        return
    rows, columns = np.flatnonzero(np.any(box, axis=1)), np.flatnonzero(np.any(box, axis=0))
    corner, size = (columns[0] - 0.5, rows[0] - 0.5), (len(columns), len(rows))
    for ax in axes:
        ax.add_patch(Rectangle(corner, *size, fill=False, color="black", linewidth=2.6))
        ax.add_patch(Rectangle(corner, *size, fill=False, color="white", linewidth=1.2, linestyle=(0, (3, 1.5))))


def _key(text: str, linestyle: str | tuple) -> Line2D:
    """For the legend: the outline as it is drawn on the pictures, a white line on a black one."""
    effects = [Stroke(linewidth=4, foreground="black"), Normal()]
    return Line2D([], [], color="white", linewidth=1.2, linestyle=linestyle, path_effects=effects, label=text)


def _verdict(right: bool) -> dict:
    if right:
        return {"color": BLUE, "linewidth": 2, "linestyle": "-", "clip_on": False}
    return {"color": VERMILLION, "linewidth": 4, "linestyle": (0, (2, 1)), "clip_on": False}


def _colour_bar(figure: Figure, axes: np.ndarray) -> None:
    scale = ScalarMappable(Normalize(0, 1), COLOURS)
    bar = figure.colorbar(scale, ax=list(axes.flat), location="bottom", shrink=0.5, aspect=40, pad=0.02)
    bar.set_label(_SCALE_TEXT, fontsize=10)
    bar.outline.set_edgecolor(BLACK)


def _check(figure: str, images, maps_by_name, masks, boxes) -> None:
    if images.ndim != 4 or images.shape[-1] != 1 or images.dtype != np.uint8 or len(images) == 0:
        raise ValueError(
            f"{figure}: images is {images.dtype} {list(images.shape)}, expected uint8 [N, H, W, 1], N >= 1."
        )
    if not maps_by_name:
        raise ValueError(f"{figure}: maps_by_name is empty; expected one model or more.")
    for name, maps in maps_by_name.items():
        if np.shape(maps) != images.shape[:3]:
            found, expected = list(np.shape(maps)), list(images.shape[:3])
            raise ValueError(f"{figure}: maps of {name!r} are {found}, expected {expected}.")
        if not (np.isfinite(maps).all() and np.min(maps) >= 0 and np.max(maps) <= 1 + 1e-6):  # upsampling may round up
            raise ValueError(f"{figure}: maps of {name!r} hold values outside 0 to 1; divide each by its maximum.")
    for name, region in (("masks", masks), ("boxes", boxes)):
        if region is not None and (np.shape(region) != images.shape[:3] or np.asarray(region).dtype != bool):
            found = f"{np.asarray(region).dtype} {list(np.shape(region))}"
            raise ValueError(f"{figure}: {name} is {found}, expected bool {list(images.shape[:3])}.")
