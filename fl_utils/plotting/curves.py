"""What happens over the rounds."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fl_utils.plotting.frames import checked, in_order, panel_grid, split_panels
from fl_utils.plotting.page import figure_function, top_legend
from fl_utils.plotting.style import ROUND_LABEL, Look, look
from fl_utils.statistics import seed_interval


@figure_function
def learning_curves(
    df: pd.DataFrame, *, y_label: str, x_label: str = ROUND_LABEL, by: str = "method", columns: int = 2,
    share_y: bool = True, bands: bool = True,
) -> Figure:
    """A metric over the rounds: mean over seeds, with a band.

    The band is the 95 % t-interval of the mean over the seeds (`statistics.seed_interval`); with
    one seed there is none. Several values of one seed and round, such as those of the hospitals
    that learn alone, are averaged first, so that the interval is over seeds alone.

    Args:
      df: columns round, value, seed, and the one named by `by`; optional: panel (one small
        picture each, e.g. the data set) and selected_round (a ring marks the lower median of
        the selected rounds, NaN where there is none).
      y_label: what `value` is, e.g. "Balanced accuracy (validation)".
      x_label: what a round is, where it is not one of communication.
      by: "method" or "model": the column whose names `style.LOOKS` knows.
      columns: panels side by side.
      share_y: one scale for all panels.
      bands: False leaves them out, where nine of them would hide the lines.
    Raises:
      ValueError: a column is missing, empty or not finite; a name without a look.
    """
    gaps = ["selected_round"] if "selected_round" in df.columns else []
    df = checked(df, "learning_curves", text=["seed", by], numbers=["round", "value"], gaps=gaps)
    panels = split_panels(df)
    names = in_order(df[by])
    looks = {name: look(name) for name in names}
    figure, axes = panel_grid(list(panels), columns=columns, panel_height=3.4, extra_height=0.5, sharey=share_y)
    for ax, table in zip(axes, panels.values(), strict=True):
        for name, rows in table.groupby(by, sort=False):
            _curve(ax, rows, looks[name], bands)
        ax.set_xlabel(x_label)
        ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    for ax in axes:
        if not share_y or ax.get_subplotspec().is_first_col():
            ax.set_ylabel(y_label)
    handles = [Line2D([], [], **looks[name].line()) for name in names]
    if gaps and df["selected_round"].notna().any():
        handles.append(Line2D([], [], linestyle="", label="selected (median)", **_RING, color="#000000"))
    top_legend(figure, handles)
    return figure


_RING = {"marker": "o", "markersize": 12, "markerfacecolor": "none", "markeredgewidth": 1.5}


def _curve(ax: Axes, rows: pd.DataFrame, drawn: Look, band: bool) -> None:
    by_seed = rows.groupby(["round", "seed"])["value"].mean()
    intervals = {round_num: seed_interval(values) for round_num, values in by_seed.groupby("round")}
    rounds = np.array(list(intervals))
    mean, low, high = (np.array([getattr(i, end) for i in intervals.values()]) for end in ("mean", "low", "high"))
    # A marker at about every eighth round: enough to tell the lines apart without colour.
    ax.plot(rounds, mean, **drawn.line(), markevery=max(1, len(rounds) // 8))
    if band:
        ax.fill_between(rounds, low, high, color=drawn.colour, alpha=0.2, linewidth=0)
    selected = rows["selected_round"].dropna() if "selected_round" in rows else []
    if len(selected):
        at = np.quantile(selected, 0.5, method="lower")
        if at in intervals:
            ax.plot([at], [intervals[at].mean], color=drawn.colour, **_RING)
