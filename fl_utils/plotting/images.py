"""Pictures of images: what the classes look like, and single cases with what a model said."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from fl_utils.plotting.page import bottom_label, figure_function, new_figure, top_legend
from fl_utils.plotting.style import BLUE, ORANGE, VERMILLION, WIDTH

_TIGHT = {"w_pad": 0.03, "h_pad": 0.03, "wspace": 0, "hspace": 0}
_WINDOW_TEXT = "Grey window 0 (black) to 255 (white)"


@figure_function
def image_gallery(
    images: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    masks: np.ndarray | None = None,
    per_class: int = 6,
    outline: str = "Outline of the lesion",
) -> Figure:
    """The first images of each class, a class a row, pixel by pixel as a model gets them.

    Args:
      images: uint8 [N, H, W, 1].
      labels: int [N], index into `class_names`.
      class_names: K names.
      masks: [N, H, W], above 0 where the lesion is; drawn as an outline.
      per_class: images a row; a class with fewer leaves places empty.
      outline: what the outline of a mask is, for the legend.
    Raises:
      ValueError: shapes or type do not fit; no image.
    """
    labels = np.asarray(labels)
    _check_images("image_gallery", images, labels=labels, masks=masks)
    if labels.min() < 0 or labels.max() >= len(class_names):
        found = f"labels from {labels.min()} to {labels.max()} for {len(class_names)} class names"
        raise ValueError(f"image_gallery: {found}; expected 0 to the number of names - 1.")
    if per_class < 1:
        raise ValueError(f"image_gallery: per_class is {per_class}, expected at least 1.")
    side = (WIDTH - 0.5) / max(per_class, 4)
    height = len(class_names) * side + (0.8 if masks is not None else 0.42)
    figure = new_figure(height, per_class * side + 0.5, **_TIGHT)
    axes = figure.subplots(len(class_names), per_class, squeeze=False)
    for number, (row, class_name) in enumerate(zip(axes, class_names, strict=True)):
        members = np.flatnonzero(labels == number)[:per_class]
        for ax in row:
            bare(ax)
        for ax, index in zip(row, members, strict=False):
            draw_grey(ax, images[index])
            if masks is not None and np.any(masks[index]):
                ax.contour(np.asarray(masks[index]) > 0, levels=[0.5], colors=[ORANGE], linewidths=1.6)
        row[0].set_ylabel(wrapped(class_name.replace(", ", "\n").replace("_", " "), side), fontsize=10)
    if masks is not None:
        top_legend(figure, [Line2D([], [], color=ORANGE, linewidth=1.6, label=outline)])
    bottom_label(figure, _WINDOW_TEXT)
    return figure


@figure_function
def case_gallery(
    images: np.ndarray, titles: Sequence[str], borders: Sequence[bool], columns: int = 5
) -> Figure:
    """Single test images with what a model said about them.

    Args:
      images: uint8 [N, H, W, 1].
      titles: N texts that stand below the images, e.g. "glioma\\nsaid: pituitary, 0.91".
      borders: N times True where the model is right (thin solid frame), False where it is
        wrong (thick dashed frame).
      columns: images side by side.
    Raises:
      ValueError: shapes or type do not fit; no image.
    """
    borders = np.asarray(borders, dtype=bool)
    _check_images("case_gallery", images, titles=titles, borders=borders)
    columns = max(1, min(columns, len(images)))
    rows = -(-len(images) // columns)
    side = WIDTH / max(columns, 4)
    titles = [wrapped(title, side) for title in titles]
    lines = 1 + max(title.count("\n") for title in titles)
    figure = new_figure(rows * (side + 0.17 * lines) + 0.7, columns * side)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax in axes[len(images) :]:
        ax.remove()
    for ax, image, title, right in zip(axes, images, titles, borders, strict=False):
        bare(ax)
        draw_grey(ax, image)
        ax.set_xlabel(title, fontsize=10)
        ax.add_patch(Rectangle((0, 0), 1, 1, transform=ax.transAxes, fill=False, clip_on=False, **_frame(right)))
    handles = [
        Line2D([], [], label=label, **_frame(right)) for right, label in ((True, "right"), (False, "wrong"))
        if right in borders
    ]
    top_legend(figure, handles)
    bottom_label(figure, _WINDOW_TEXT)
    return figure


def _frame(right: bool) -> dict:
    if right:
        return {"color": BLUE, "linewidth": 2, "linestyle": "-"}
    return {"color": VERMILLION, "linewidth": 4, "linestyle": (0, (2, 1))}


def wrapped(text: str, width: float) -> str:
    """The text broken so that it fits `width` inches at 10 points."""
    return "\n".join(textwrap.fill(line, max(8, int(width / 0.088))) for line in text.split("\n"))


def draw_grey(ax: Axes, image: np.ndarray) -> None:
    """An image [H, W, 1] with the grey window 0 to 255."""
    # No smoothing and no stretching of grey values: both would show what the model does not see.
    ax.imshow(image[..., 0], cmap="gray", vmin=0, vmax=255, interpolation="nearest")


def bare(ax: Axes) -> None:
    """Axes without ticks, grid and frame."""
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)


def _check_images(figure: str, images: np.ndarray, **columns) -> None:
    if images.ndim != 4 or images.shape[-1] != 1 or images.dtype != np.uint8 or len(images) == 0:
        found = f"images is {images.dtype} {list(images.shape)}"
        raise ValueError(f"{figure}: {found}, expected uint8 [N, H, W, 1], N >= 1.")
    for name, column in columns.items():
        if column is not None and len(column) != len(images):
            raise ValueError(f"{figure}: {name} has {len(column)} entries for {len(images)} images.")
    if columns.get("masks") is not None and columns["masks"].shape != images.shape[:3]:
        raise ValueError(f"{figure}: masks is {list(columns['masks'].shape)}, expected {list(images.shape[:3])}.")
