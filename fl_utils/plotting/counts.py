"""Who holds how many images, and what that means in one round of FedAvg."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fl_utils.plotting.frames import checked, in_order, panel_grid, split_panels
from fl_utils.plotting.page import figure_function, new_figure, top_legend
from fl_utils.plotting.predictions import cells
from fl_utils.plotting.style import BLUE, ORANGE, WIDTH, series_look


@figure_function
def class_counts(df: pd.DataFrame) -> Figure:
    """Images of each class in each part of the data, and how many of them are exact copies.

    Args:
      df: columns part (e.g. "train"), class_name, count; optional: duplicates (how many of
        `count` have a copy elsewhere; the cross-hatched foot of the bar) and panel.
    Raises:
      ValueError: a column is missing, empty, not finite or negative; two rows for one place;
        more duplicates than images.
    """
    numbers = ["count"] + (["duplicates"] if "duplicates" in df.columns else [])
    optional = ["panel"] if "panel" in df.columns else []
    df = checked(
        df, "class_counts", text=["part", "class_name"], numbers=numbers, unique=[*optional, "part", "class_name"]
    )
    for column in numbers:
        if (df[column] < 0).any():
            raise ValueError(f"class_counts: column {column!r} has negative values.")
    if "duplicates" in df and (df["duplicates"] > df["count"]).any():
        raise ValueError("class_counts: column 'duplicates' is larger than 'count' somewhere.")
    panels, parts = split_panels(df), in_order(df["part"])
    looks = {part: series_look(number, str(part)) for number, part in enumerate(parts)}
    figure, axes = panel_grid(list(panels), columns=2, panel_height=3.4, extra_height=0.4)
    width = 0.84 / len(parts)
    for ax, table in zip(axes, panels.values(), strict=True):
        names = in_order(table["class_name"])
        for number, part in enumerate(parts):
            rows = table[table["part"] == part].set_index("class_name").reindex(names)
            x = np.arange(len(names)) + (number - (len(parts) - 1) / 2) * width
            bars = ax.bar(x, rows["count"], 0.94 * width, **_bar(looks[part]))
            ax.bar_label(bars, [f"{c:.0f}" if c == c else "" for c in rows["count"]], fontsize=9, padding=2)
            if "duplicates" in rows:
                ax.bar(x, rows["duplicates"].fillna(0), 0.94 * width, **_COPIES)
        ax.set_xticks(range(len(names)), [str(name).replace("_", " ") for name in names])
        ax.set_ylabel("Images" if ax.get_subplotspec().is_first_col() else "")
        ax.grid(axis="x", visible=False)
        ax.margins(y=0.12)
    handles = [Patch(label=drawn.label, **_bar(drawn)) for drawn in looks.values()]
    if "duplicates" in df:
        handles.append(Patch(label="of these, with a copy in another part", **_COPIES))
    top_legend(figure, handles)
    return figure


_COPIES = {"facecolor": "white", "edgecolor": "black", "hatch": "xxxx", "linewidth": 0.8}


def _bar(drawn) -> dict:
    return {"facecolor": drawn.colour, "edgecolor": "white", "hatch": drawn.hatch, "linewidth": 0}


@figure_function
def partition_heatmap(df: pd.DataFrame) -> Figure:
    """How many images of each class each hospital holds, and how many in all.

    Args:
      df: columns client, class_name, count; a pair without a row is 0.
    Raises:
      ValueError: a column is missing, empty or not finite; two rows for one place.
    """
    df = checked(
        df, "partition_heatmap", text=["client", "class_name"], numbers=["count"], unique=["client", "class_name"]
    )
    clients, names = in_order(df["client"]), in_order(df["class_name"])
    counts = df.pivot(index="client", columns="class_name", values="count")
    counts = counts.reindex(index=clients, columns=names).fillna(0)
    figure = new_figure(0.5 * len(clients) + 1.3)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[2, 1])
    highest = max(counts.to_numpy().max(), 1)
    image = left.imshow(counts, cmap="Blues", vmin=0, vmax=highest, aspect="auto")
    cells(left, counts.to_numpy() / highest, lambda row, column: f"{counts.iat[row, column]:.0f}")
    left.set_xticks(range(len(names)), [str(name).replace("_", " ") for name in names])
    left.set_yticks(range(len(clients)), [str(client) for client in clients])
    left.set(xlabel="Class", ylabel="Hospital")
    figure.colorbar(image, ax=left, label="Images", pad=0.02)
    bars = right.barh(range(len(clients)), counts.sum(axis=1), color=BLUE, height=0.7)
    right.bar_label(bars, fmt="{:.0f}", padding=3, fontsize=10)
    right.set_xlabel("Images in all")
    right.xaxis.set_major_locator(MaxNLocator(4))
    right.grid(axis="y", visible=False)
    right.tick_params(axis="y", length=0)
    right.margins(x=0.18)
    return figure


@figure_function
def round_steps(df: pd.DataFrame) -> Figure:
    """One round of FedAvg: what each client weighs in the mean, how far it moved, how far the mean moves.

    Args:
      df: one row a client: columns client, num_examples, weight (0 to 1, sums to 1),
        update_norm (Euclidean length of the client's update); and one row with client "mean",
        whose update_norm is that of the weighted mean (its weight and num_examples are not used).
    Raises:
      ValueError: a column is missing, empty or not finite; two rows for a client; no row
        "mean"; weights that do not sum to 1.
    """
    df = checked(
        df, "round_steps", text=["client"], numbers=["update_norm"], gaps=["num_examples", "weight"], unique=["client"]
    )
    is_mean = df["client"].astype(str) == "mean"
    clients = checked(df[~is_mean], "round_steps", numbers=["num_examples", "weight"])
    if not is_mean.any():
        raise ValueError("round_steps: column 'client' has no row 'mean', with the update_norm of the weighted mean.")
    if abs(clients["weight"].sum() - 1) > 1e-3:
        raise ValueError(f"round_steps: column 'weight' sums to {clients['weight'].sum():.4f}, expected 1.")
    num = len(clients)
    figure = new_figure(0.5 * (num + 1) + 0.8, WIDTH)
    left, right = figure.subplots(1, 2, sharey=True)
    bars = left.barh(range(num), clients["weight"], color=BLUE, height=0.65)
    words = [f"{w:.0%} ({n:.0f} images)" for w, n in zip(clients["weight"], clients["num_examples"], strict=True)]
    left.bar_label(bars, words, padding=4, fontsize=10)
    left.set(xlabel="Weight in the mean = share of the images", ylabel="Hospital")
    left.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    # Room for the words beside the longest bar.
    left.set_xlim(0, clients["weight"].max() * 1.75)
    lengths = [*clients["update_norm"], df.loc[is_mean, "update_norm"].item()]
    bars = right.barh(range(num + 1), lengths, height=0.65, color=[BLUE] * num + [ORANGE])
    bars.patches[-1].set(hatch="//", edgecolor="white", linewidth=0)
    right.bar_label(bars, fmt="{:.3g}", padding=4, fontsize=10)
    right.set(xlabel="Length of the update", ylim=(num + 0.6, -0.6))
    right.margins(x=0.15)
    left.set_yticks(range(num + 1), [*(str(client) for client in clients["client"]), "weighted mean"])
    for ax in (left, right):
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0)
    return figure
