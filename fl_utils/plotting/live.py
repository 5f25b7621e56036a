"""The two pictures of the interactive cell.

They keep their size and margins whatever they show, so that nothing jumps while a slider moves; and nothing has to be
laid out, which would take longer than the drawing.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.ticker import MaxNLocator

from fl_utils.plotting.frames import checked, in_order
from fl_utils.plotting.page import NotebookFigure
from fl_utils.plotting.predictions import cells
from fl_utils.plotting.style import BLUE, GREY, ROUND_LABEL, WIDTH, series_look, style

#: Side of an example image: twenty of them stand side by side.
_THUMBNAIL_POINTS = 25


@style()
def live_partition(
    df: pd.DataFrame, images: Sequence[np.ndarray], *, title: str, numbers: str, note: str = ""
) -> Figure:
    """Who holds what, hospitals from left to right: images in all, images of each class, and what one looks like.

    Args:
      df: columns client, class_name, count; a pair without a row is 0.
      images: one a hospital, uint8 [H, W, 1].
      title: one line above, e.g. the partition.
      numbers: another below it, e.g. how unlike the hospitals are.
      note: one line below.
    Raises:
      ValueError: a column is missing, empty or not finite; two rows for one place.
    """
    pair = ["client", "class_name"]
    df = checked(df, "live_partition", text=pair, numbers=["count"], unique=pair)
    clients, names = in_order(df["client"]), in_order(df["class_name"])
    counts = df.pivot(index="class_name", columns="client", values="count").reindex(index=names, columns=clients)
    counts = counts.fillna(0)
    figure = NotebookFigure(figsize=(WIDTH, 4.2))
    margins = {"left": 0.17, "right": 0.99, "top": 0.87, "bottom": 0.16, "hspace": 0.06}
    top, below, strip = figure.subplots(3, 1, sharex=True, height_ratios=[1, 1.5, 0.5], gridspec_kw=margins)
    bars = top.bar(range(len(clients)), counts.sum(), color=BLUE, width=0.7)
    top.bar_label(bars, fmt="{:.0f}", padding=2, fontsize=9)
    figure.text(0.01, 0.985, title, va="top", fontsize=12, fontweight="bold")
    figure.text(0.01, 0.925, numbers, va="top", fontsize=10)
    top.set_ylabel("Images")
    top.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    top.grid(axis="x", visible=False)
    top.tick_params(axis="x", length=0, labelbottom=False)
    top.margins(y=0.25)
    highest = max(counts.to_numpy().max(), 1)
    below.imshow(counts, cmap="Blues", vmin=0, vmax=highest, aspect="auto")
    cells(below, counts.to_numpy() / highest, lambda row, column: f"{counts.iat[row, column]:.0f}")
    below.set_yticks(range(len(names)), [str(name).replace("_", " ") for name in names])
    below.tick_params(axis="x", labelbottom=False)
    for place, picture in enumerate(images):
        box = OffsetImage(picture[..., 0], cmap="gray", norm=Normalize(0, 255), zoom=_THUMBNAIL_POINTS / len(picture))
        strip.add_artist(AnnotationBbox(box, (place, 0.5), frameon=False))
    strip.set_xticks(range(len(clients)), [str(client) for client in clients])
    strip.set_yticks([0.5], ["one image"])
    strip.set(xlabel="Hospital", ylim=(0, 1))
    strip.grid(False)
    strip.spines[:].set_visible(False)
    strip.tick_params(length=0)
    _write(figure, note)
    return figure


@style()
def live_curves(df: pd.DataFrame, *, total_rounds: int, note: str = "") -> Figure:
    """Balanced accuracy by round: the last run bold, with its validation curve dotted; earlier ones thin.

    Args:
      df: columns run (its words in the legend), run_num (0, 1, ...; a run keeps its look by it), split ("validation"
        or "test"), round, value. May have no rows.
      total_rounds: the x axis goes so far at least.
      note: one line below.
    Raises:
      ValueError: a column is missing or not finite.
    """
    figure = NotebookFigure(figsize=(WIDTH, 3.3))
    margins = {"left": 0.08, "right": 0.99, "top": 0.97, "bottom": 0.2, "wspace": 0.03}
    ax, side = figure.subplots(1, 2, width_ratios=[1.6, 1], gridspec_kw=margins)
    side.set_axis_off()
    if len(df):
        df = checked(df, "live_curves", text=["run", "split"], numbers=["run_num", "round", "value"])
        last = df["run_num"].max()
        # The newest first in the legend; "test" before "validation".
        groups = df.groupby(["run_num", "split"])
        for (number, split), rows in sorted(groups, key=lambda item: (-item[0][0], item[0][1])):
            if number != last and split != "test":
                continue
            bold, dotted = number == last, split == "validation"
            look = series_look(int(number), "the same, on validation images" if dotted else rows["run"].iloc[0])
            ax.plot(
                rows["round"], rows["value"], color=look.colour, marker=look.marker, label=look.label,
                linestyle=(0, (2, 1.5)) if dotted else "-", markerfacecolor="white" if dotted else look.colour,
                linewidth=2.2 if bold else 0.9, markersize=5 if bold else 3.5, zorder=3 if bold else 2,
            )
        total_rounds = max(total_rounds, int(df["round"].max()))
        side.legend(*ax.get_legend_handles_labels(), loc="center left", fontsize=9, handlelength=2.5, borderaxespad=0)
    else:
        ax.text(0.5, 0.5, "no run yet", transform=ax.transAxes, ha="center", color=GREY)
    ax.set(xlim=(0.5, total_rounds + 0.5), ylim=(0, 1.02), xlabel=ROUND_LABEL, ylabel="Balanced accuracy (test images)")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    _write(figure, note)
    return figure


def _write(figure: Figure, note: str) -> None:
    figure.text(0.99, 0.02, note, ha="right", va="bottom", fontsize=10, fontstyle="italic", color=GREY)
