"""Small multiples of data sets x partitions with a row a method: the recovered share, the cost, the hospitals."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fl_utils.config import METHOD_LABELS
from fl_utils.plotting.frames import checked, in_order, split_panels
from fl_utils.plotting.page import bottom_label, figure_function, new_figure, top_legend
from fl_utils.plotting.style import BLACK, GREY, VERMILLION, look

_LINE = {"color": BLACK, "linestyle": (0, (1, 1.2)), "linewidth": 1.4}
_HOLLOW = {"color": GREY, "marker": "o", "markerfacecolor": "white", "linestyle": ""}


def _method_rows(
    df: pd.DataFrame, draw: Callable[[Axes, pd.DataFrame, list], None], *, x_label: str, row_height: float = 0.25
) -> tuple[Figure, np.ndarray]:
    """A grid of axes, data sets x partitions; in each a row a method. `draw` fills one of them."""
    panels, partitions, methods = split_panels(df), in_order(df["partition"]), in_order(df["method"])
    figure = new_figure((row_height * len(methods) + 0.75) * len(panels) + 1.0, wspace=0.02)
    axes = figure.subplots(len(panels), len(partitions), squeeze=False, sharex=True, sharey=True)
    for line, (name, table) in zip(axes, panels.items(), strict=True):
        for ax, partition in zip(line, partitions, strict=True):
            draw(ax, table[table["partition"] == partition], methods)
            ax.grid(axis="y", visible=False)
            ax.tick_params(axis="y", length=0)
            ax.set_title(_broken(partition) if ax.get_subplotspec().is_first_row() else "", fontsize=10)
        line[0].set_ylabel(name, fontsize=11, fontweight="bold")
        line[0].set_yticks(range(len(methods)), [METHOD_LABELS[method] for method in methods], fontsize=10)
        line[0].set_ylim(len(methods) - 0.4, -0.6)
    bottom_label(figure, x_label)
    return figure, axes


def _broken(words: str) -> str:
    """A partition's name on two lines where it is long."""
    if len(words) <= 14 or " " not in words:
        return words
    middle = min((k for k, letter in enumerate(words) if letter == " "), key=lambda k: abs(k - len(words) / 2))
    return words[:middle] + "\n" + words[middle + 1 :]


@figure_function
def gap_bars(df: pd.DataFrame, *, ends: tuple[float, float] = (-0.5, 1.5)) -> Figure:
    """The share of the gap that each method recovers, with its interval; 0 is alone, 1 is centralized.

    Args:
      df: columns panel, partition, method, share, low, high (NaN: no interval, or no gap); as from
        `experiments.heterogeneity.gap_recovered`.
      ends: of the axis. What lies beyond is marked by an arrow head at the edge, and the legend says so.
    Raises:
      ValueError: a column is missing or empty; two rows for one place; a method without a look.
    """
    df = checked(
        df, "gap_bars", text=["panel", "partition", "method"], gaps=["share", "low", "high"],
        unique=["panel", "partition", "method"],
    )
    seen = {"clipped": False, "open": False, "none": False}

    def draw(ax: Axes, table: pd.DataFrame, methods: list) -> None:
        ax.set_xlim(*ends)
        for x in (0, 1):
            ax.axvline(x, zorder=1, **_LINE)
        for row in table.itertuples():
            y, drawn = methods.index(row.method), look(row.method)
            if not np.isfinite(row.share):
                seen["none"] = True
                ax.text(np.mean(ends), y, "no gap", ha="center", va="center", fontsize=9, color=GREY)
                continue
            known = np.isfinite(row.low) and np.isfinite(row.high)
            seen["open"] |= not known
            if known:
                low, high = np.clip([row.low, row.high], *ends)
                ax.plot([low, high], [y, y], color=drawn.colour, linewidth=2.5, alpha=0.7, solid_capstyle="butt")
            face = drawn.colour if known else "white"
            if ends[0] <= row.share <= ends[1]:
                ax.plot([row.share], [y], color=drawn.colour, marker=drawn.marker, markerfacecolor=face, linestyle="")
            values = [value for value in (row.share, row.low, row.high) if np.isfinite(value)]
            for edge, marker, beyond in ((ends[0], 8, min(values) < ends[0]), (ends[1], 9, max(values) > ends[1])):
                if beyond:
                    seen["clipped"] = True
                    ax.plot([edge], [y], color=BLACK, marker=marker, markersize=6, linestyle="", clip_on=False)

    figure, axes = _method_rows(df, draw, x_label="Share of the gap between hospitals alone (0) and centralized (1)")
    axes[0][0].set_xticks([0, 0.5, 1])
    for ax in axes[:, 0]:
        ax.tick_params(axis="y", pad=8)  # Room for the arrow heads at the edge.
    handles = [Line2D([], [], color=GREY, marker="o", label="share and 95 % interval over seeds")]
    if seen["open"]:
        handles.append(Line2D([], [], label="interval without end", **_HOLLOW))
    if seen["clipped"]:
        handles.append(Line2D([], [], color=BLACK, marker=9, linestyle="", label="goes on beyond the axis"))
    top_legend(figure, handles)
    return figure


@figure_function
def cost_to_target(df: pd.DataFrame, *, quantity: str = "rounds") -> Figure:
    """What each method needs to reach the target; a hollow mark at its last round (for bytes: at the end) where it never did.

    Args:
      df: columns panel, partition, method, rounds, total_rounds, total_bytes, seeds_reached, seeds; as from
        `experiments.heterogeneity.cost_to_target` (NaN rounds and bytes: not reached).
      quantity: "rounds" or "total_bytes" (drawn in MB, on a log scale).
    Raises:
      ValueError: a column is missing or empty; two rows for one place; another quantity.
    """
    if quantity not in ("rounds", "total_bytes"):
        raise ValueError(f"cost_to_target: quantity is {quantity!r}; expected 'rounds' or 'total_bytes'.")
    df = checked(
        df, "cost_to_target", text=["panel", "partition", "method"],
        numbers=["total_rounds", "seeds_reached", "seeds"], gaps=["rounds", "total_bytes"],
        unique=["panel", "partition", "method"],
    )
    rounds = quantity == "rounds"
    df["x"] = df["rounds"] if rounds else df["total_bytes"] / 1e6
    end = float(df["total_rounds"].max()) if rounds else float(df["x"].max(skipna=True))
    end = 1.0 if not np.isfinite(end) else end * (1 if rounds else 2)

    def draw(ax: Axes, table: pd.DataFrame, methods: list) -> None:
        for row in table.itertuples():
            y, drawn = methods.index(row.method), look(row.method)
            there = np.isfinite(row.x)
            x = row.x if there else row.total_rounds if rounds else end
            ax.plot(
                [x], [y], color=drawn.colour, marker=drawn.marker, markersize=7, linestyle="", clip_on=False,
                markerfacecolor=drawn.colour if there else "white",
            )
            if 0 < row.seeds_reached < row.seeds:
                right = x > 0.6 * end if rounds else x > 0.2 * end
                ax.annotate(
                    f"{row.seeds_reached:.0f}/{row.seeds:.0f}", (x, y), xytext=(-7 if right else 7, 0),
                    textcoords="offset points", ha="right" if right else "left", va="center", fontsize=8,
                )

    what = "Communication rounds" if rounds else "MB sent and received by all hospitals"
    figure, axes = _method_rows(df, draw, x_label=f"{what} until the target")
    ax = axes[0][0]
    if rounds:
        ax.set_xlim(0, 1.06 * end)
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    else:
        ax.set_xscale("log")
        ax.set_xlim(right=1.3 * end)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    handles = [Line2D([], [], color=GREY, marker="o", linestyle="", label="reached by the mean over seeds")]
    if df["x"].isna().any():
        handles.append(Line2D([], [], label="not reached when training ended", **_HOLLOW))
    if ((df["seeds_reached"] > 0) & (df["seeds_reached"] < df["seeds"])).any():
        handles.append(Line2D([], [], linestyle="", label="3/5: seeds that reach it"))
    top_legend(figure, handles, handle_length=1.5)
    return figure


@figure_function
def hospital_spread(df: pd.DataFrame, *, metric_label: str = "Balanced accuracy") -> Figure:
    """A dot a hospital and seed: its score on its own test images; the worst of each seed is marked.

    Args:
      df: columns panel, partition, method, seed, hospital, value (NaN: too few test images, not drawn); as from
        `experiments.heterogeneity.hospital_scores`.
      metric_label: what `value` is.
    Raises:
      ValueError: a column is missing or empty; two rows for one place; no value at all; a method without a look.
    """
    df = checked(
        df, "hospital_spread", text=["panel", "partition", "method", "seed", "hospital"], gaps=["value"],
        unique=["panel", "partition", "method", "seed", "hospital"],
    )
    if df["value"].isna().all():
        raise ValueError("hospital_spread: column 'value' is empty; no hospital has enough test images.")

    def draw(ax: Axes, table: pd.DataFrame, methods: list) -> None:
        for method, rows in table.dropna(subset="value").groupby("method", sort=False):
            y, drawn = methods.index(method), look(method)
            seeds = in_order(table["seed"])
            # Seeds stand below each other within the row, so that dots do not hide each other.
            shift = {seed: 0.5 * ((n + 0.5) / len(seeds) - 0.5) for n, seed in enumerate(seeds)}
            heights = y + rows["seed"].map(shift)
            ax.plot(
                rows["value"], heights, color=drawn.colour, marker="o", markersize=4, alpha=0.45, linestyle="",
                markeredgewidth=0,
            )
            worst = rows.loc[rows.groupby("seed")["value"].idxmin()]
            ax.plot(
                worst["value"], y + worst["seed"].map(shift), color=VERMILLION, marker="x", markersize=5,
                markeredgewidth=1.4, linestyle="",
            )
            mean = rows.groupby("seed")["value"].mean().mean()
            ax.plot([mean, mean], [y - 0.36, y + 0.36], color=BLACK, linewidth=2)

    figure, axes = _method_rows(df, draw, x_label=f"{metric_label} on a hospital's own test images", row_height=0.34)
    axes[0][0].xaxis.set_major_locator(MaxNLocator(4))
    handles = [
        Line2D([], [], color=GREY, marker="o", markersize=4, linestyle="", label="a hospital in one seed"),
        Line2D([], [], color=VERMILLION, marker="x", linestyle="", label="worst hospital of a seed"),
        Line2D([], [], color=BLACK, marker="|", markersize=10, markeredgewidth=2, linestyle="", label="mean"),
    ]
    top_legend(figure, handles, handle_length=1.5)
    return figure
