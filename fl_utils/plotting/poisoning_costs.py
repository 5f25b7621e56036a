"""What robust rules cost: the honest but unusual hospital, and the secrecy of single updates."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from fl_utils.config import AGGREGATOR_LABELS
from fl_utils.plotting.frames import checked, in_order, panel_grid
from fl_utils.plotting.gaps import NOT_RUN, check_range, hatch, known_names, left_label, mark_gaps
from fl_utils.plotting.page import bottom_label, figure_function, top_legend
from fl_utils.plotting.privacy import check_intervals
from fl_utils.plotting.style import BLACK, GREY, look, series_look


@figure_function
def unusual_hospitals(
    df: pd.DataFrame, fits: pd.DataFrame | None = None, *, interval_label: str = "95 % bootstrap band", columns: int = 3
) -> Figure:
    """What a rule costs an honest hospital that is merely unusual: a panel an aggregator, a dot a hospital and seed.

    Args:
      df: columns aggregator (a key of `config.AGGREGATOR_LABELS`, drawn in their order), distance (total variation
        between its class mix and that of all hospitals, 0 to 1), difference (its own test accuracy minus the same
        hospital's under the plain mean, -1 to 1; NaN: not known), seed, client.
      fits: a least-squares line an aggregator with its band: columns aggregator, x, y, low, high. None: no lines.
      interval_label: what the band is; must name the interval.
      columns: panels side by side.
    Raises:
      ValueError: a column is missing or empty; two rows for one hospital; a value out of range; no difference at all; a
        line outside its band, or for an aggregator without dots; an unknown aggregator.
    """
    df = checked(
        df, "unusual_hospitals", text=["aggregator", "seed", "client"], numbers=["distance"], gaps=["difference"],
        unique=["aggregator", "seed", "client"],
    )
    aggregators = known_names(df, "unusual_hospitals", "aggregator", AGGREGATOR_LABELS)
    check_range(df, "unusual_hospitals", "distance", 0, 1)
    check_range(df, "unusual_hospitals", "difference", -1, 1)
    if df["difference"].isna().all():
        raise ValueError("unusual_hospitals: column 'difference' is empty; nothing was run.")
    if fits is not None:
        fits = checked(fits, "unusual_hospitals (fits)", text=["aggregator"], numbers=["x", "y", "low", "high"])
        check_intervals(fits.rename(columns={"y": "mean"}), "unusual_hospitals (fits)")
        known_names(fits, "unusual_hospitals (fits)", "aggregator", aggregators)
    names = [AGGREGATOR_LABELS[name] for name in aggregators]
    figure, axes = panel_grid(names, columns=columns, panel_height=2.2, extra_height=1.1, sharex=True, sharey=True)
    for ax, name in zip(axes, aggregators, strict=True):
        rows, drawn = df[df["aggregator"] == name], look(name)
        ax.tick_params(labelbottom=True)
        if rows["difference"].isna().all():
            hatch(ax, NOT_RUN)
            continue
        ax.axhline(0, color=BLACK, linewidth=1.2, zorder=1)
        dots = {"marker": drawn.marker, "markersize": 5, "alpha": 0.55, "markeredgewidth": 0}
        ax.plot(rows["distance"], rows["difference"], color=drawn.colour, linestyle="", **dots)
        if fits is not None:
            line = fits[fits["aggregator"] == name].sort_values("x")
            ax.plot(line["x"], line["y"], color=BLACK, linestyle=(0, (5, 2)), linewidth=1.8)
            ax.fill_between(line["x"], line["low"], line["high"], color=GREY, alpha=0.3, linewidth=0)
    bottom_label(figure, "How unlike all hospitals' its class mix is (total variation distance)")
    left_label(figure, "Own test accuracy minus that under the mean")
    handles = [
        Line2D([], [], color=GREY, marker="o", markersize=5, linestyle="", label="a hospital in one seed"),
        Line2D([], [], color=BLACK, linewidth=1.2, label="as under the mean"),
    ]
    if fits is not None:
        handles.append(Line2D([], [], color=BLACK, linestyle=(0, (5, 2)), linewidth=1.8, label="least-squares line"))
        handles.append(Line2D([], [], color=GREY, linewidth=7, alpha=0.4, label=interval_label))
    top_legend(figure, handles, handle_length=2.2)
    return figure


@figure_function
def group_error(df: pd.DataFrame, *, columns: int = 2) -> Figure:
    """What a robust rule is worth when the server sees only sums of groups: a panel a rule, a line a number of bad.

    Args:
      df: columns rule (a key of `config.AGGREGATOR_LABELS`, or the panel's words), group_size (hospitals whose sum is
        all the server sees), attackers (how many are bad), error (distance of the aggregate to the honest mean over the
        honest mean's length, >= 0; NaN: not run). An error of 0 is a hollow mark at the bottom of the log scale.
      columns: panels side by side.
    Raises:
      ValueError: a column is missing, empty or not finite; no error at all; two rows for one place; an error below 0.
    """
    df = checked(
        df, "group_error", text=["rule"], numbers=["group_size", "attackers"], gaps=["error"],
        unique=["rule", "group_size", "attackers"],
    )
    if df["error"].isna().all():
        raise ValueError("group_error: column 'error' is empty; nothing was run.")
    if (df["error"] < 0).any() or np.isinf(df["error"]).any():
        found = f"{df['error'].min():g} to {df['error'].max():g}"
        raise ValueError(f"group_error: column 'error' goes from {found}; expected finite values of 0 or more.")
    sizes, attackers, rules = np.unique(df["group_size"]), np.unique(df["attackers"]), in_order(df["rule"])
    looks = {num: series_look(number, _bad(num)) for number, num in enumerate(attackers)}
    positive = df["error"][df["error"] > 0]
    bottom = positive.min() / 4 if len(positive) else 0.1
    names = [AGGREGATOR_LABELS.get(rule, rule) for rule in rules]
    figure, axes = panel_grid(names, columns=columns, panel_height=2.6, extra_height=1.1, sharey=True)
    for ax, rule in zip(axes, rules, strict=True):
        wide = df[df["rule"] == rule].pivot(index="group_size", columns="attackers", values="error")
        wide = wide.reindex(index=sizes, columns=attackers).set_axis(range(len(sizes)))
        for num in attackers:
            error, line = wide[num], looks[num].line()
            ax.plot(error.index, error.replace(0, bottom), **line)
            none = error[error == 0]
            ax.plot(none.index, 0 * none + bottom, **line | {"linestyle": ""}, markerfacecolor="white", zorder=4)
        ax.set(yscale="log", xlim=(-0.5, len(sizes) - 0.5))
        ax.set_xticks(range(len(sizes)), [f"{size:g}" for size in sizes])
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
        mark_gaps(
            ax, wide, {num: drawn.label for num, drawn in looks.items()}, half_width=0.3, at="size {}",
            words={place: f"{size:g}" for place, size in enumerate(sizes)},
        )
    bottom_label(figure, "Group size: hospitals whose sum is all the server sees")
    left_label(figure, "Error / length of the honest mean")
    handles = [Line2D([], [], **drawn.line()) for drawn in looks.values()]
    if (df["error"] == 0).any():
        hollow = {"color": GREY, "marker": "o", "markerfacecolor": "white", "linestyle": ""}
        handles.append(Line2D([], [], label="no error (0, below the scale)", **hollow))
    top_legend(figure, handles, handle_length=2.6)
    return figure


def _bad(num: float) -> str:
    return "no bad hospital" if num == 0 else f"{num:g} bad hospital" + ("" if num == 1 else "s")
