"""What maps are worth: who agrees with whom, what random weights leave, who looks at the marker."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fl_utils.plotting.frames import checked, in_order, panel_grid, split_panels
from fl_utils.plotting.images import wrapped
from fl_utils.plotting.page import figure_function, new_figure, top_legend
from fl_utils.plotting.style import BLACK, GREY, look

_LINE = {"color": BLACK, "linestyle": (0, (1, 1.2)), "linewidth": 1.6}
_MEASURES = {
    "rank_correlation": "Rank correlation of two maps", "ssim": "SSIM of two maps",
    "pointing": "Pointing game", "energy": "Energy in the lesion",
}


@figure_function
def agreement_heatmap(df: pd.DataFrame, *, measure: str = "rank_correlation", columns: int = 2) -> Figure:
    """Models x models, a panel a data set: how alike their maps are, with the interval below.

    Args:
      df: columns panel, measure, first, second, mean, low, high (NaN: no interval), as from
        `experiments.explain_agreement.agreement_matrix`. A pair without a row stays blank.
      measure: which rows: "rank_correlation" or "ssim".
      columns: panels side by side.
    Raises:
      ValueError: a column is missing, empty or not finite; two rows for one place; no row of the measure.
    """
    df = checked(
        df, "agreement_heatmap", text=["panel", "measure", "first", "second"], numbers=["mean"], gaps=["low", "high"]
    )
    df = df[df["measure"] == measure]
    df = checked(df, "agreement_heatmap", text=["panel"], unique=["panel", "first", "second"])
    panels, names = split_panels(df), in_order(df["first"])
    figure, axes = panel_grid(list(panels), columns=columns, panel_height=0.62 * len(names) + 0.7, extra_height=0.7)
    lowest = min(0.0, float(df["mean"].min()))
    for ax, table in zip(axes, panels.values(), strict=True):
        wide = table.pivot(index="first", columns="second", values="mean").reindex(index=names, columns=names)
        picture = ax.imshow(wide, cmap="cividis", vmin=lowest, vmax=1, aspect="auto")
        for row in table.itertuples():
            # Cividis is dark below its middle.
            dark = (row.mean - lowest) / (1 - lowest) < 0.55
            known = np.isfinite(row.low)
            for y, text, size in (
                (-0.14 if known else 0, f"{row.mean:.2f}", 9.5), (0.2, f"[{row.low:.2f}, {row.high:.2f}]", 6.8),
            )[: 1 + known]:
                ax.text(
                    names.index(row.second), names.index(row.first) + y, text, ha="center", va="center", fontsize=size,
                    color="white" if dark else "black",
                )
        words = [name.replace("_", " ") for name in names]
        ax.set_xticks(range(len(names)), words, fontsize=9)
        ax.set_yticks(range(len(names)), words, fontsize=9)
        ax.tick_params(length=0)
        ax.grid(False)
        ax.spines[:].set_visible(False)
    bar = figure.colorbar(picture, ax=axes, location="bottom", shrink=0.6, aspect=45, pad=0.02)
    bar.set_label(f"{_MEASURES[measure]}, mean and 95 % interval over seeds", fontsize=10)
    return figure


@figure_function
def sanity_lines(df: pd.DataFrame, *, measure: str = "rank_correlation", columns: int = 2) -> Figure:
    """What is left of the maps while weights become random from the logits upwards: a line a kind of map.

    Args:
      df: columns panel, model, cam, measure, depth, layer, mean, low, high (NaN: no interval), as from
        `experiments.explain_report.sanity_table`. A panel is a data set and model.
      measure: which rows.
      columns: panels side by side.
    Raises:
      ValueError: a column is missing, empty or not finite; two rows for one place; no row of the measure; a cam or
        model without a look.
    """
    df = checked(
        df, "sanity_lines", text=["panel", "model", "cam", "measure", "layer"], numbers=["depth", "mean"],
        gaps=["low", "high"],
    )
    df = df[df["measure"] == measure]
    df = checked(df, "sanity_lines", text=["panel"], unique=["panel", "model", "cam", "depth"])
    df["panel"] = df["panel"] + ": " + df["model"].map(lambda name: look(name).label.split(" (")[0])
    panels, cams = split_panels(df), in_order(df["cam"])
    figure, axes = panel_grid(
        list(panels), columns=columns, panel_height=2.5, extra_height=0.5, sharey=True, sharex=False
    )
    for ax, table in zip(axes, panels.values(), strict=True):
        for cam, rows in table.groupby("cam", sort=False):
            rows, drawn = rows.sort_values("depth"), look(cam)
            # Side by side, so that intervals do not hide each other.
            x = rows["depth"] + 0.14 * (cams.index(cam) - (len(cams) - 1) / 2)
            ax.plot(x, rows["mean"], **drawn.line())
            ax.vlines(x, rows["low"], rows["high"], color=drawn.colour, linewidth=2.5, alpha=0.45)
        layers = table.drop_duplicates("depth").sort_values("depth")
        ax.set_xticks(layers["depth"], layers["layer"], fontsize=9)
        ax.set_xlabel("Random from the logits to this layer", fontsize=10)
        ax.axhline(0, zorder=1, **_LINE)
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.grid(axis="x", visible=False)
        if ax.get_subplotspec().is_first_col():
            ax.set_ylabel(_MEASURES[measure].removesuffix(" of two maps"), fontsize=10)
    handles = [Line2D([], [], **look(cam).line()) for cam in cams]
    handles.append(Line2D([], [], color=GREY, linewidth=2.5, alpha=0.6, label="95 % interval over seeds"))
    top_legend(figure, handles)
    return figure


@figure_function
def shortcut_dots(df: pd.DataFrame) -> Figure:
    """The marker: a column a quantity, a row an arm, a block a data set; hollow where no hospital marks.

    Args:
      df: columns panel, label (the arm's words), method (its look), marked (hospitals that mark), quantity_label, mean,
        low, high (NaN: no interval), chance (NaN: none), as from `experiments.explain_shortcut.shortcut_table`.
    Raises:
      ValueError: a column is missing, empty or not finite; two rows for one place; a method without a look.
    """
    df = checked(
        df, "shortcut_dots", text=["panel", "label", "method", "quantity_label"], numbers=["mean", "marked"],
        gaps=["low", "high", "chance"], unique=["panel", "label", "quantity_label"],
    )
    panels, labels, quantities = split_panels(df), in_order(df["label"]), in_order(df["quantity_label"])
    figure = new_figure((0.3 * len(labels) + 0.75) * len(panels) + 0.7)
    axes = figure.subplots(len(panels), len(quantities), squeeze=False, sharey=True, sharex="col")
    for line, (name, table) in zip(axes, panels.items(), strict=True):
        for ax, quantity in zip(line, quantities, strict=True):
            _arms(ax, table[table["quantity_label"] == quantity], labels)
            words = wrapped(quantity.replace(", ", "\n"), 6.5 / len(quantities))
            ax.set_xlabel(words if ax.get_subplotspec().is_last_row() else "", fontsize=10)
        line[0].set_title(name, fontsize=12)
        line[0].set_yticks(range(len(labels)), labels, fontsize=9.5)
        line[0].set_ylim(len(labels) - 0.4, -0.6)
    handles = [
        Line2D([], [], color=GREY, marker="o", label="mean and 95 % interval over seeds"),
        Line2D([], [], color=GREY, marker="o", markerfacecolor="white", linestyle="", label="no hospital marks"),
    ]
    if df["chance"].notna().any():
        handles.append(Line2D([], [], label="chance, or no effect", **_LINE))
    top_legend(figure, handles, handle_length=2)
    return figure


def _arms(ax: Axes, table: pd.DataFrame, labels: list) -> None:
    for row in table.itertuples():
        y, drawn = labels.index(row.label), look(row.method)
        if np.isfinite(row.low) and np.isfinite(row.high):
            ax.plot([row.low, row.high], [y, y], color=drawn.colour, linewidth=2.5, alpha=0.7, solid_capstyle="butt")
        ax.plot(
            [row.mean], [y], color=drawn.colour, marker=drawn.marker, markersize=8, linestyle="",
            markerfacecolor=drawn.colour if row.marked else "white",
        )
    if table["chance"].notna().any():
        ax.axvline(table["chance"].mean(), zorder=1, **_LINE)
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_locator(MaxNLocator(4))
