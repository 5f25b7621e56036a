"""The answers: methods side by side with their intervals, and every hospital with and without the others."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fl_utils.plotting.frames import checked, in_order, panel_grid, split_panels
from fl_utils.plotting.page import bottom_label, figure_function, new_figure, top_legend
from fl_utils.plotting.style import GREY, WIDTH, look, series_look


@figure_function
def intervals(
    df: pd.DataFrame,
    *,
    x_label: str,
    interval_label: str = "mean and 95 % interval over seeds",
    reference_label: str | None = None,
    decimals: int = 2,
) -> Figure:
    """A dot and its interval a row, a panel a data set: the comparison of methods.

    Args:
      df: columns panel, label (the row's words), method (its look), mean, low, high (NaN: no
        interval); optional: reference (a value to reach, the same in a panel or one a row;
        NaN: none). Rows stand in the order in which labels first appear, top to bottom.
      x_label: what is compared, e.g. "Balanced accuracy on the common test set".
      interval_label: what dot and line are; must name the interval.
      reference_label: what the reference is, e.g. "90 % of centralized"; needed with one.
      decimals: of the numbers beside the dots.
    Raises:
      ValueError: a column is missing, empty or not finite; two rows for one place; low > mean or
        mean > high; a reference without its label.
    """
    gaps = ["low", "high"] + (["reference"] if "reference" in df.columns else [])
    df = checked(
        df, "intervals", text=["panel", "label", "method"], numbers=["mean"], gaps=gaps, unique=["panel", "label"]
    )
    if (df["low"] > df["mean"]).any() or (df["mean"] > df["high"]).any():
        raise ValueError("intervals: a mean lies outside its interval; expected columns low <= mean <= high.")
    referenced = "reference" in df and df["reference"].notna().any()
    if referenced and not reference_label:
        raise ValueError("intervals: column 'reference' is there, but reference_label does not say what it is.")
    labels, panels = in_order(df["label"]), split_panels(df)
    figure = new_figure(0.42 * len(labels) + 1.4)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (name, table) in zip(axes, panels.items(), strict=True):
        ax.set_title(name, fontsize=12 if len(panels) < 3 else 10.5)
        _rows(ax, table, labels, decimals)
        ax.set_xlabel(x_label if len(panels) == 1 else "")
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.margins(x=0.12)
        ax.xaxis.set_major_locator(MaxNLocator(5))
    axes[0].set_yticks(range(len(labels)), labels, fontsize=11)
    axes[0].set_ylim(len(labels) - 0.4, -0.6)
    if len(panels) > 1:
        bottom_label(figure, x_label)
    handles = [Line2D([], [], color=GREY, marker="o", markersize=8, label=interval_label)]
    if referenced:
        handles.append(Line2D([], [], label=reference_label, **_REFERENCE))
    top_legend(figure, handles)
    return figure


_REFERENCE = {"color": "#000000", "linestyle": (0, (1, 1.2)), "linewidth": 1.6}


def _rows(ax: Axes, table: pd.DataFrame, labels: list, decimals: int) -> None:
    references = table["reference"] if "reference" in table else pd.Series(dtype=float)
    shared = references.nunique() == 1 and references.notna().all()
    if shared:
        ax.axvline(references.iloc[0], zorder=1, **_REFERENCE)
    for row in table.itertuples():
        y, drawn = labels.index(row.label), look(row.method)
        if np.isfinite(row.low) and np.isfinite(row.high):
            ax.plot([row.low, row.high], [y, y], color=drawn.colour, linewidth=3, alpha=0.75, solid_capstyle="butt")
        ax.plot([row.mean], [y], color=drawn.colour, marker=drawn.marker, markersize=9, linestyle="")
        ax.annotate(
            f"{row.mean:.{decimals}f}", (row.mean, y), xytext=(0, 8), textcoords="offset points", ha="center",
            fontsize=10, color="#222222", bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.6},
        )
        if not shared and np.isfinite(getattr(row, "reference", np.nan)):
            ax.plot([row.reference] * 2, [y - 0.4, y + 0.4], zorder=1, **_REFERENCE)


@figure_function
def hospital_gain(df: pd.DataFrame, *, metric_label: str = "Balanced accuracy") -> Figure:
    """Each hospital in each seed: its own model against the federated one; above the line federation helps.

    Args:
      df: columns seed, hospital, alone, federated (the metric of both models on the same
        images); optional: panel.
      metric_label: what is compared.
    Raises:
      ValueError: a column is missing, empty or not finite; two rows for one place.
    """
    optional = ["panel"] if "panel" in df.columns else []
    df = checked(
        df, "hospital_gain", text=["seed", "hospital"], numbers=["alone", "federated"],
        unique=[*optional, "seed", "hospital"],
    )
    panels, hospitals = split_panels(df), in_order(df["hospital"])
    looks = {hospital: series_look(number, f"Hospital {hospital}") for number, hospital in enumerate(hospitals)}
    figure, axes = panel_grid(list(panels), columns=2, panel_height=WIDTH / 2, extra_height=0.3)
    for ax, table in zip(axes, panels.values(), strict=True):
        values = table[["alone", "federated"]].to_numpy()
        margin = 0.06 * (np.ptp(values) or 1)
        ends = values.min() - margin, values.max() + margin
        ax.plot(ends, ends, zorder=1, **_REFERENCE)
        for hospital, rows in table.groupby("hospital", sort=False):
            drawn = looks[hospital]
            ax.plot(
                rows["alone"], rows["federated"], color=drawn.colour, marker=drawn.marker, markersize=8, alpha=0.8,
                markeredgecolor="white", linestyle="",
            )
        better, num = int((table["federated"] > table["alone"]).sum()), len(table)
        gain = (table["federated"] - table["alone"]).mean()
        # Beside the panel's name, where no point can lie under it.
        ax.set_title(f"better in {better} of {num}, mean {gain:+.3f}", loc="right", fontsize=10, fontweight="normal")
        ax.set(xlim=ends, ylim=ends, aspect="equal", xlabel=f"{metric_label}, hospital alone")
        ax.set_ylabel(f"{metric_label}, federated")
    handles = [
        Line2D([], [], color=drawn.colour, marker=drawn.marker, markersize=8, linestyle="", label=drawn.label)
        for drawn in looks.values()
    ]
    handles.append(Line2D([], [], label="no difference", **_REFERENCE))
    top_legend(figure, handles, handle_length=1.5)
    return figure
