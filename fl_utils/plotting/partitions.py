"""Partitions side by side: who holds which classes, and how much."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fl_utils.plotting.frames import checked, in_order, split_panels
from fl_utils.plotting.page import figure_function, new_figure
from fl_utils.plotting.predictions import cells
from fl_utils.plotting.style import BLUE, WIDTH


@figure_function
def partition_gallery(df: pd.DataFrame, *, columns: int = 3) -> Figure:
    """A small picture a partition: the mix of classes at each hospital (rows), and its size as a bar.

    The shade is the share of the hospital's own images, so that small hospitals are seen as well as large ones; the
    numbers are images. The bars of all panels share one scale.

    Args:
      df: columns panel (the partition's words), client, class_name, count; a pair without a row is 0. Optional, the
        same in a panel: js_distance, size_gini; they stand in its title.
      columns: panels side by side.
    Raises:
      ValueError: a column is missing, empty, not finite or negative; two rows for one place.
    """
    optional = [name for name in ("js_distance", "size_gini") if name in df.columns]
    df = checked(
        df, "partition_gallery", text=["panel", "client", "class_name"], numbers=["count", *optional],
        unique=["panel", "client", "class_name"],
    )
    if (df["count"] < 0).any():
        raise ValueError("partition_gallery: column 'count' has negative values.")
    panels = split_panels(df)
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    most = df.groupby("panel")["client"].nunique().max()
    largest = df.groupby(["panel", "client"])["count"].sum().max()
    # Many hospitals (50) get thin rows without numbers.
    row_height = 0.27 if most <= 12 else 0.09
    width = WIDTH if columns > 1 else 0.6 * WIDTH
    figure = new_figure(rows * (row_height * most + 1.25) + 0.5, width)
    axes = figure.subplots(rows, 2 * columns, squeeze=False, width_ratios=[2.2, 1] * columns)
    places = axes.reshape(-1, 2)
    for ax in places[len(panels) :].flat:
        ax.remove()
    places = places[: len(panels)]
    for number, ((left, right), (name, table)) in enumerate(zip(places, panels.items(), strict=True)):
        image = _one(left, right, table, numbers=most <= 12)
        title = name
        if optional:
            words = {"js_distance": "JS", "size_gini": "Gini"}
            title += "\n" + ", ".join(f"{words[column]} {table[column].iloc[0]:.2f}" for column in optional)
        left.set_title(title, fontsize=10.5)
        left.set_ylabel("Hospital" if number % columns == 0 else "")
        right.set_xlim(0, 1.05 * max(largest, 1))
        # The classes are the same in all panels: named once, below the last row.
        if number // columns == rows - 1:
            right.set_xlabel("Images", fontsize=10)
        else:
            left.set_xticklabels([])
    bar = figure.colorbar(
        image, ax=places.ravel().tolist(), location="bottom", shrink=0.4, aspect=40, pad=0.02,
        format=PercentFormatter(1, decimals=0),
    )
    bar.set_label("Share of the hospital's images", fontsize=10)
    return figure


def _one(left, right, table: pd.DataFrame, numbers: bool):
    clients, names = in_order(table["client"]), in_order(table["class_name"])
    counts = table.pivot(index="client", columns="class_name", values="count")
    counts = counts.reindex(index=clients, columns=names).fillna(0)
    sizes = counts.sum(axis=1)
    share = counts.div(sizes.where(sizes > 0, 1), axis=0)
    image = left.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    cells(left, share.to_numpy(), lambda r, c: f"{counts.iat[r, c]:.0f}" if numbers else "")
    for text in left.texts:
        text.set_fontsize(8)
    left.set_xticks(
        range(len(names)), [str(name).replace("_", " ") for name in names], rotation=40, ha="right",
        rotation_mode="anchor", fontsize=9,
    )
    left.set_yticks(range(len(clients)), clients if numbers else [""] * len(clients), fontsize=9)
    right.barh(range(len(clients)), sizes, color=BLUE, height=0.7)
    right.set_ylim(left.get_ylim())
    right.set_yticks([])
    right.tick_params(labelsize=9)
    right.xaxis.set_major_locator(MaxNLocator(2, integer=True))
    right.grid(axis="y", visible=False)
    return image
