"""What a model says about the test images: which classes it takes for which, and how sure it may be."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fl_utils.plotting.frames import checked, in_order, panel_grid, split_panels
from fl_utils.plotting.page import figure_function, new_figure, top_legend
from fl_utils.plotting.style import WIDTH, look


@figure_function
def confusion_matrices(df: pd.DataFrame, *, columns: int = 3) -> Figure:
    """One heat map a panel: of each true class (row), which share was called what (column).

    Args:
      df: columns true, predicted (class names), share (0 to 1, of the true class), count
        (images; a mean over seeds may be fractional); optional: panel. Classes stand in the
        order in which `true` first names them; a pair without a row is 0.
      columns: panels side by side.
    Raises:
      ValueError: a column is missing, empty or not finite; two rows for one place; a share
        outside 0..1; a predicted class that is not among the true ones.
    """
    optional = ["panel"] if "panel" in df.columns else []
    df = checked(
        df, "confusion_matrices", text=["true", "predicted"], numbers=["share", "count"],
        unique=[*optional, "true", "predicted"],
    )
    if not df["share"].between(0, 1 + 1e-9).all():
        raise ValueError("confusion_matrices: column 'share' has values outside 0 to 1.")
    panels = split_panels(df)
    columns = min(columns, len(panels))
    # Square heat maps: their side follows from the width that names and colour bar leave.
    side = min((WIDTH - 2.3) / columns, 3.3)
    figure, axes = panel_grid(list(panels), columns=columns, panel_height=side + 1.3)
    named = []
    for ax, table in zip(axes, panels.values(), strict=True):
        names = in_order(table["true"])
        unknown = set(table["predicted"]) - set(names)
        if unknown:
            raise ValueError(f"confusion_matrices: column 'predicted' has {sorted(unknown)}, the true are {names}.")
        share, count = (
            table.pivot(index="true", columns="predicted", values=value).reindex(index=names, columns=names).fillna(0)
            for value in ("share", "count")
        )
        image = ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
        cells(ax, share.to_numpy(), lambda r, c, s=share, n=count: f"{s.iat[r, c]:.0%}\n{_count(n.iat[r, c])}")
        words = [str(name).replace("_", " ") for name in names]
        ax.set_xticks(range(len(names)), words, rotation=30, ha="right", rotation_mode="anchor")
        first = ax.get_subplotspec().is_first_col()
        # The classes are named once a row, as long as they are the same.
        ax.set_yticks(range(len(names)), words if first or words != named else [""] * len(names))
        named = words
        ax.set(xlabel="Predicted class", ylabel="True class" if first else "")
    label = "Share of the true class\n(below it: images)"
    figure.colorbar(image, ax=axes, label=label, format="{x:.0%}", shrink=0.75, pad=0.02)
    return figure


def cells(ax, shades: np.ndarray, text) -> None:
    """Writes into each cell of a heat map, white on dark; hides the grid that would cross it.

    Args:
      ax: axes with the heat map.
      shades: [rows, columns], 0 (light) to 1 (dark).
      text: function of row and column.
    """
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    for row, column in np.ndindex(shades.shape):
        colour = "white" if shades[row, column] > 0.55 else "black"
        ax.text(column, row, text(row, column), ha="center", va="center", color=colour, fontsize=10)


def _count(value: float) -> str:
    # Means over seeds have decimals, of which large ones need none.
    return f"{value:.0f}" if value >= 10 or float(value).is_integer() else f"{value:.1f}"


@figure_function
def reliability(df: pd.DataFrame, *, by: str = "model", num_bins: int = 15) -> Figure:
    """Is a model that is 80 % sure right in 80 % of the cases? Below: how often it is how sure.

    Args:
      df: one row a bin of confidence: columns confidence (mean over the bin), accuracy, count
        (images in the bin), and the one named by `by`; optional: panel. Empty bins are left out.
      by: "model" or "method": the column whose names `style.LOOKS` knows.
      num_bins: equal-width bins of 0..1 in the histogram; those of the calibration error.
    Raises:
      ValueError: a column is missing, empty or not finite; a confidence or accuracy outside
        0..1; a name without a look.
    """
    df = checked(df, "reliability", text=[by], numbers=["confidence", "accuracy", "count"])
    for column in ("confidence", "accuracy"):
        if not df[column].between(0, 1).all():
            raise ValueError(f"reliability: column {column!r} has values outside 0 to 1.")
    df = df[df["count"] > 0]
    panels, names = split_panels(df), in_order(df[by])
    figure = new_figure(5.2, WIDTH if len(panels) > 1 else 0.6 * WIDTH)
    axes = figure.subplots(2, len(panels), squeeze=False, sharex=True, sharey="row", height_ratios=[3, 1])
    diagonal = {"color": "#000000", "linestyle": (0, (1, 1.2)), "linewidth": 1.6}
    for (upper, lower), (panel, table) in zip(axes.T, panels.items(), strict=True):
        upper.plot([0, 1], [0, 1], zorder=1, **diagonal)
        for name, rows in table.groupby(by, sort=False):
            drawn = look(name)
            rows = rows.sort_values("confidence")
            upper.plot(rows["confidence"], rows["accuracy"], **drawn.line(), clip_on=False)
            lower.hist(
                rows["confidence"], weights=rows["count"] / rows["count"].sum(), bins=np.linspace(0, 1, num_bins + 1),
                histtype="step", color=drawn.colour, linestyle=drawn.linestyle, linewidth=1.8,
            )
        upper.set(title=panel, ylim=(0, 1.02))
        lower.set(xlim=(0, 1.01), xlabel="Confidence (predicted probability)")
    axes[0, 0].set_ylabel("Accuracy")
    axes[1, 0].set_ylabel("Share of\nimages")
    handles = [Line2D([], [], **look(name).line()) for name in names]
    top_legend(figure, [*handles, Line2D([], [], label="perfectly calibrated", **diagonal)])
    return figure
