"""What an audit found: how near pictures are to each other, and pairs to look at."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fl_utils.plotting.frames import checked, in_order
from fl_utils.plotting.images import bare, draw_grey, wrapped
from fl_utils.plotting.page import figure_function, new_figure, top_legend
from fl_utils.plotting.style import WIDTH, series_look


@figure_function
def pair_distances(df: pd.DataFrame, *, threshold: float) -> Figure:
    """How many pairs of different pictures lie at each distance of their perceptual hashes.

    Args:
      df: columns label (a data set), distance (bits), pairs (their number).
      threshold: pairs up to it count as near-duplicates.
    Raises:
      ValueError: a column is missing, empty or not finite; two rows for one place.
    """
    df = checked(df, "pair_distances", text=["label"], numbers=["distance", "pairs"], unique=["label", "distance"])
    figure = new_figure(3.6)
    ax = figure.subplots()
    handles = []
    for number, label in enumerate(in_order(df["label"])):
        rows, drawn = df[df["label"] == label].sort_values("distance"), series_look(number, str(label))
        line = {"color": drawn.colour, "linestyle": drawn.linestyle, "marker": drawn.marker, "markersize": 5}
        ax.plot(rows["distance"], rows["pairs"].cumsum(), **line)
        handles.append(Line2D([], [], label=label, **line))
    limit = {"color": "#000000", "linestyle": (0, (1, 1.2)), "linewidth": 1.6}
    ax.axvline(threshold, zorder=1, **limit)
    handles.append(Line2D([], [], label=f"threshold, {threshold:g} bits", **limit))
    ax.set_yscale("symlog", linthresh=1)
    ax.set(xlabel="Distance of the perceptual hashes, bits of 256", ylabel="Pairs at most so far apart")
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    top_legend(figure, handles)
    return figure


@figure_function
def pair_gallery(first: np.ndarray, second: np.ndarray, titles: Sequence[str], columns: int = 4) -> Figure:
    """Pairs of images side by side.

    Args:
      first, second: uint8 [N, H, W, 1], N >= 1.
      titles: N texts below the pairs.
      columns: pairs in a row.
    Raises:
      ValueError: shapes or types that do not fit; no pair.
    """
    fits = all(side.shape == first.shape and side.dtype == np.uint8 for side in (first, second))
    if not fits or first.ndim != 4 or first.shape[-1] != 1 or len(first) == 0 or len(titles) != len(first):
        raise ValueError(
            f"pair_gallery: first is {first.dtype} {list(first.shape)}, second {second.dtype} {list(second.shape)}, "
            f"with {len(titles)} titles; expected twice uint8 [N, H, W, 1], N >= 1, and N titles."
        )
    columns = max(1, min(columns, len(first)))
    rows, width = -(-len(first) // columns), WIDTH / max(columns, 3)
    titles = [wrapped(title, width) for title in titles]
    lines = 1 + max(title.count("\n") for title in titles)
    figure = new_figure(rows * (width / 2 + 0.17 * lines), columns * width)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax in axes[len(first) :]:
        ax.remove()
    gap = np.full((*first.shape[1:2], max(1, first.shape[2] // 24), 1), 255, np.uint8)
    for ax, left, right, title in zip(axes, first, second, titles, strict=False):
        bare(ax)
        draw_grey(ax, np.concatenate([left, gap, right], axis=1))
        ax.set_xlabel(title, fontsize=10)
    return figure
