"""The grid of partitions and methods: who differs from FedAvg, who recovers what, at which cost."""


import numpy as np
import pandas as pd
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from fl_utils.config import METHOD_LABELS
from fl_utils.plotting.comparison import intervals
from fl_utils.plotting.frames import checked, in_order, split_panels
from fl_utils.plotting.page import figure_function, new_figure
from fl_utils.plotting.style import BLACK, GREY, WIDTH, look

#: A difference of this size has full colour at the earliest.
LEAST_COLOUR_END = 0.05
@figure_function
def grid_heatmap(df: pd.DataFrame, *, metric_label: str = "Balanced accuracy") -> Figure:
    """The grid: partitions (rows) x methods (columns), coloured by the difference to FedAvg; a panel a data set.

    Each cell holds the mean and, below it, the difference; bold with a star where the difference is significant.
    FedAvg's column has no colour. The colours end at the 80th percentile of the differences' sizes, or at
    LEAST_COLOUR_END if that is more; arrows at the colour bar's ends say so where there is more beyond.

    Args:
      df: columns panel, partition, method, mean, difference (NaN for FedAvg), significant (bool); as from
        `experiments.heterogeneity.grid`. A pair without a row stays blank.
      metric_label: what `mean` is.
    Raises:
      ValueError: a column is missing, empty or not finite; two rows for one place; a method without a look; a
        difference that is missing for another method than FedAvg.
    """
    df = checked(
        df, "grid_heatmap", text=["panel", "partition", "method", "significant"], numbers=["mean"],
        gaps=["difference"], unique=["panel", "partition", "method"],
    )
    blank = df["difference"].isna() & (df["method"] != "fedavg")
    if blank.any():
        names = ", ".join(in_order(df[blank]["method"]))
        raise ValueError(f"grid_heatmap: column 'difference' has no value for {names}; only FedAvg may have none.")
    panels, methods = split_panels(df), in_order(df["method"])
    heights = [table["partition"].nunique() for table in panels.values()]
    figure = new_figure(0.5 * sum(heights) + 0.75 * len(panels) + 0.9)
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    # One method far off must not bleach all others, nor noise look like much.
    sizes = df["difference"].abs().dropna()
    highest = max(float(sizes.quantile(0.8)) if len(sizes) else 0.0, LEAST_COLOUR_END)
    scale = Normalize(-highest, highest)
    for ax, (name, table) in zip(axes, panels.items(), strict=True):
        ax.set_title(name)
        partitions = in_order(table["partition"])
        wide = table.pivot(index="partition", columns="method", values="difference")
        image = ax.imshow(wide.reindex(index=partitions, columns=methods), cmap="RdBu", norm=scale, aspect="auto")
        for row in table.itertuples():
            x, y = methods.index(row.method), partitions.index(row.partition)
            text = f"{row.mean:.3f}"
            if row.method != "fedavg":
                # Adding 0 turns a rounded -0.000 into +0.000.
                text += f"\n{round(row.difference, 3) + 0.0:+.3f}" + ("*" if row.significant else "")
            dark = abs(row.difference) > 0.62 * highest
            ax.text(
                x, y, text, ha="center", va="center", fontsize=9, color="white" if dark else "black", linespacing=1.1,
                fontweight="bold" if row.significant else "normal",
            )
        ax.set_xticks(range(len(methods)), [METHOD_LABELS[method] for method in methods], fontsize=9.5)
        ax.set_yticks(range(len(partitions)), partitions)
        ax.tick_params(length=0)
        ax.grid(False)
        ax.spines[:].set_visible(False)
    beyond = "both" if len(sizes) and sizes.max() > highest else "neither"
    bar = figure.colorbar(image, ax=list(axes), location="bottom", shrink=0.6, aspect=45, pad=0.02, extend=beyond)
    bar.set_label(f"{metric_label}: difference to FedAvg (* significant at 0.05 after Holm)", fontsize=10)
    return figure


@figure_function
def rank_diagram(df: pd.DataFrame) -> Figure:
    """Demsar's diagram: average ranks on a line, methods that are not told apart joined by a bar.

    Args:
      df: columns method, average_rank, critical_difference (the same in all rows).
    Raises:
      ValueError: a column is missing, empty or not finite; two rows for a method; more than one critical difference.
    Source: Demsar 2006, JMLR 7, 1-30, figure 1.
    """
    df = checked(
        df, "rank_diagram", text=["method"], numbers=["average_rank", "critical_difference"], unique=["method"]
    )
    if df["critical_difference"].nunique() > 1:
        raise ValueError("rank_diagram: column 'critical_difference' must be the same in all rows.")
    df = df.sort_values("average_rank", kind="stable")
    ranks, methods, distance = df["average_rank"].tolist(), df["method"].tolist(), df["critical_difference"].iloc[0]
    num = len(ranks)
    groups, half = rank_groups(ranks, distance), -(-num // 2)
    depth = 0.55 + 0.22 * len(groups)  # where the names begin, below the bars
    bottom = depth + 0.42 * half
    figure = new_figure(0.62 * bottom + 1.0, 0.8 * WIDTH)
    ax = figure.subplots()
    ax.axis("off")
    ax.plot([1, num], [0, 0], color=BLACK, linewidth=1.4)
    for tick in range(1, num + 1):
        ax.plot([tick, tick], [0, -0.14], color=BLACK, linewidth=1.4)
        ax.text(tick, -0.24, str(tick), ha="center", va="bottom", fontsize=10)
    # The best half is named on the left, the others on the right, the outermost lowest line last.
    for place, (rank, method) in enumerate(zip(ranks, methods, strict=True)):
        left = place < half
        y = depth + 0.42 * (place if left else num - 1 - place)
        end, drawn = (0.75, look(method)) if left else (num + 0.25, look(method))
        ax.plot([rank, rank, end], [0, y, y], color=GREY, linewidth=1.1)
        ax.plot([rank], [0], color=drawn.colour, marker=drawn.marker, markersize=8, linestyle="", zorder=3)
        ax.plot([end], [y], color=drawn.colour, marker=drawn.marker, markersize=8, linestyle="", zorder=3)
        text = f"{METHOD_LABELS[method]}  {rank:.2f}" if left else f"{rank:.2f}  {METHOD_LABELS[method]}"
        ax.text(end + (-0.25 if left else 0.25), y, text, ha="right" if left else "left", va="center", fontsize=11)
    for number, (first, last) in enumerate(groups):
        y = 0.28 + 0.22 * number
        ax.plot([ranks[first] - 0.05, ranks[last] + 0.05], [y, y], color=BLACK, linewidth=4, solid_capstyle="butt")
    ax.plot([1, 1 + distance], [-0.85, -0.85], color=BLACK, linewidth=1.8, marker="|", markersize=10)
    ax.text(1 + distance / 2, -0.98, f"critical difference {distance:.2f}", ha="center", va="bottom", fontsize=10)
    ax.text(num + 0.05, -0.85, "average rank (1 is best)", ha="right", va="center", fontsize=10)
    side = 0.32 * num
    ax.set(xlim=(1 - side, max(num, 1 + distance) + side), ylim=(bottom, -1.5))
    return figure


def rank_groups(ranks: list[float], distance: float) -> list[tuple[int, int]]:
    """The longest runs of sorted ranks within the critical difference: (first, last) places, two methods or more."""
    groups: list[tuple[int, int]] = []
    for first, rank in enumerate(ranks):
        last = max(place for place, other in enumerate(ranks) if other - rank <= distance)
        if last > first and (not groups or last > groups[-1][1]):
            groups.append((first, last))
    return groups


def norm_panel(df: pd.DataFrame, *, x_label: str = "Balanced accuracy on the common test set") -> Figure:
    """Batch against group normalisation: a dot and its interval a row, a panel a partition; drawn by `intervals`.

    Args:
      df: columns panel, label, model (its look), mean, low, high; as from `experiments.heterogeneity.norm_panel`.
      x_label: what is compared.
    Raises:
      ValueError: see `intervals`.
    """
    df = checked(df, "norm_panel", text=["panel", "label", "model"], numbers=["mean"], gaps=["low", "high"])
    return intervals(df.assign(method=df["model"]).drop(columns="reference", errors="ignore"), x_label=x_label)


@figure_function
def order_check(df: pd.DataFrame) -> Figure:
    """The order of the methods after short and after longer training; lines that cross changed places.

    Args:
      df: columns panel, partition, method, short, long (scores), rounds_short, rounds_long, kendall_tau; as from
        `experiments.heterogeneity.longer_run`.
    Raises:
      ValueError: a column is missing, empty or not finite; two rows for one place.
    """
    numbers = ["short", "long", "rounds_short", "rounds_long"]
    df = checked(
        df, "order_check", text=["panel", "partition", "method"], numbers=numbers, gaps=["kendall_tau"],
        unique=["panel", "partition", "method"],
    )
    blocks = list(df.groupby(["panel", "partition"], sort=False))
    columns = min(2, len(blocks))
    rows = -(-len(blocks) // columns)
    most = df.groupby(["panel", "partition"]).size().max()
    figure = new_figure(rows * (0.33 * most + 0.9), WIDTH if columns > 1 else 0.6 * WIDTH)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[len(blocks) :]:
        ax.remove()
    for ax, ((panel, partition), table) in zip(axes, blocks, strict=False):
        tau = table["kendall_tau"].iloc[0]
        words = f"Kendall's tau {tau:.2f}" if np.isfinite(tau) else "Kendall's tau not defined"
        ax.set_title(f"{panel}, {partition}\n{words}", fontsize=10.5)
        # Ties keep the table's order: each method has a line of its own.
        places = {end: table[end].rank(ascending=False, method="first") for end in ("short", "long")}
        for index, row in table.iterrows():
            drawn = look(row["method"])
            heights = [places["short"][index], places["long"][index]]
            ax.plot([0, 1], heights, color=drawn.colour, marker=drawn.marker, linestyle=drawn.linestyle, markersize=7)
            name = METHOD_LABELS[row["method"]]
            ax.text(-0.06, heights[0], f"{name}  {row['short']:.3f}", ha="right", va="center", fontsize=10)
            ax.text(1.06, heights[1], f"{row['long']:.3f}  {name}", ha="left", va="center", fontsize=10)
        ax.set(xlim=(-0.9, 1.9), ylim=(len(table) + 0.5, 0.5), yticks=[])
        ax.set_xticks([0, 1], [f"{table[end].iloc[0]:.0f} rounds" for end in ("rounds_short", "rounds_long")])
        ax.grid(False)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
    return figure
