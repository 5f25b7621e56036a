"""What privacy costs: accuracy against epsilon, and the grid of protections at a glance."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import NullLocator

from fl_utils.plotting.frames import checked, in_order, panel_grid, split_panels
from fl_utils.plotting.images import wrapped
from fl_utils.plotting.page import bottom_label, figure_function, new_figure, top_legend
from fl_utils.plotting.style import GREY, LOOKS, VERMILLION, WIDTH, look, series_look

#: Series that have no epsilon and lie across the panel, by their label.
BANDS = {LOOKS[name].label: LOOKS[name] for name in ("none", "none_many", "local")}
CHANCE = "Chance"
_CHANCE_LINE = {"color": GREY, "linestyle": (0, (1, 3)), "linewidth": 1.4}
#: White to a colour on which black letters still read (contrast 5 to 1).
_BADNESS = LinearSegmentedColormap.from_list("badness", ["#FFFFFF", VERMILLION])
#: A place where nothing was measured or can be.
EMPTY = {"facecolor": "#E3E3E3", "edgecolor": "#8C8C8C", "hatch": "////", "linewidth": 0}
_UNRATED = {"facecolor": "#F2F2F2", "edgecolor": "#BDBDBD", "linewidth": 0.8}
_LABEL_WIDTH = 2.1  # inches that a row's label may take


@figure_function
def privacy_frontier(
    df: pd.DataFrame, *, y_label: str = "Balanced accuracy (test)", interval_label: str = "95 % interval over seeds",
    columns: int = 2,
) -> Figure:
    """Accuracy against epsilon: a panel a data set, a line a series; what has no epsilon lies across as a band.

    Patient-level series have filled markers, hospital-level series hollow ones: their epsilons do not compare.

    Args:
      df: columns panel, unit ("patient" or "hospital"; not read where epsilon is NaN), series, epsilon (> 0; inf: no
        noise, drawn apart on the right), mean, low, high (NaN: no interval). Rows of the series "Chance" and of those
        in BANDS have epsilon NaN, all others have one.
      y_label: what `mean` is.
      interval_label: what error bars and bands are; must name the interval.
      columns: panels side by side.
    Raises:
      ValueError: a column is missing, empty or not finite; two rows for one place; a mean outside its interval; an
        epsilon that is missing or not above 0, or one where a band is expected; another unit, or two for one series.
    """
    df = checked(
        df, "privacy_frontier", text=["panel", "unit", "series"], numbers=["mean"], gaps=["epsilon", "low", "high"],
        unique=["panel", "series", "epsilon"],
    )
    check_intervals(df, "privacy_frontier")
    points = _points(df)
    units = points.groupby("series", sort=False)["unit"].first()
    looks = {
        name: series_look(number, name if f"{unit}-level" in name.lower() else f"{name} ({unit}-level)")
        for number, (name, unit) in enumerate(units.items())
    }
    faces = {name: "white" if units[name] == "hospital" else drawn.colour for name, drawn in looks.items()}
    axis, panels = _EpsilonAxis(points["epsilon"]), split_panels(df)
    figure, axes = panel_grid(list(panels), columns=columns, panel_height=3.0, extra_height=1.0)
    for ax, table in zip(axes, panels.values(), strict=True):
        for row in table[table["epsilon"].isna()].itertuples():
            _across(ax, row)
        for number, (name, drawn) in enumerate(looks.items()):
            rows = table[table["series"] == name].sort_values("epsilon")
            # Side by side, so that intervals do not hide each other.
            x = axis.place(rows["epsilon"], number - (len(looks) - 1) / 2)
            noisy = np.isfinite(rows["epsilon"].to_numpy())
            ax.vlines(x, rows["low"], rows["high"], color=drawn.colour, linewidth=2.2, alpha=0.6)
            for part in (noisy, ~noisy):
                ax.plot(x[part], rows["mean"][part], **drawn.line(), markerfacecolor=faces[name], zorder=3)
        axis.set_on(ax)
        ax.margins(y=0.1)
        if ax.get_subplotspec().is_first_col():
            ax.set_ylabel(y_label)
    whose = f"{units.iloc[0].capitalize()}-level ε" if units.nunique() == 1 else "ε of the unit named in the legend"
    bottom_label(figure, f"{whose} (log scale; smaller is more private)")
    handles = [Line2D([], [], markerfacecolor=faces[name], **drawn.line()) for name, drawn in looks.items()]
    for name in in_order(df[df["epsilon"].isna()]["series"]):
        handles.append(Line2D([], [], label=name, **_band_line(name)))
    handles.append(Line2D([], [], color=GREY, linewidth=6, alpha=0.4, label=interval_label))
    top_legend(figure, handles, handle_length=2.6)
    return figure


def _points(df: pd.DataFrame) -> pd.DataFrame:
    """The rows that have an epsilon, after a look at all of them."""
    flat, blank = df["series"].isin([*BANDS, CHANCE]), df["epsilon"].isna()
    for wrong, said in ((flat & ~blank, "has an epsilon; expected NaN"), (~flat & blank, "has no epsilon")):
        if wrong.any():
            raise ValueError(
                f"privacy_frontier: series {df['series'][wrong].iloc[0]!r} {said}. Without epsilon are "
                f"{', '.join([*BANDS, CHANCE])}, and no other."
            )
    points = df[~flat]
    if len(points) == 0:
        raise ValueError("privacy_frontier: no row has an epsilon; expected one or more beside the bands.")
    if (points["epsilon"] <= 0).any():
        raise ValueError(f"privacy_frontier: epsilon is {points['epsilon'].min():g}; expected above 0.")
    if not points["unit"].isin(["patient", "hospital"]).all():
        raise ValueError(f"privacy_frontier: unit is {in_order(points['unit'])}; expected 'patient' or 'hospital'.")
    several = points.groupby("series")["unit"].nunique() > 1
    if several.any():
        raise ValueError(f"privacy_frontier: series {several.idxmax()!r} has two units; expected one a series.")
    return points


class _EpsilonAxis:
    """A log axis with a place for infinity; the same in all panels."""

    def __init__(self, epsilons: pd.Series):
        finite = np.unique(epsilons[np.isfinite(epsilons)])
        self.logs = np.log10(finite) if len(finite) else np.zeros(1)
        self.span = max(np.ptp(self.logs), 0.5)
        self.infinity = self.logs[-1] + 0.22 * self.span if np.isinf(epsilons).any() else None

    def place(self, epsilons: pd.Series, step: float) -> np.ndarray:
        logs = np.log10(epsilons.to_numpy(float))
        return np.where(np.isinf(logs), self.infinity, logs) + 0.014 * self.span * step

    def set_on(self, ax: Axes) -> None:
        ticks = []
        for log in self.logs:
            if not ticks or log - ticks[-1] > 0.09 * self.span:
                ticks.append(log)
        words = [np.format_float_positional(10**tick, precision=3, fractional=False, trim="-") for tick in ticks]
        end = self.logs[-1]
        if self.infinity is not None:
            ax.axvline((self.infinity + end) / 2, color=GREY, linewidth=0.8, zorder=0)
            ticks, words, end = [*ticks, self.infinity], [*words, "∞\n(no noise)"], self.infinity
        ax.set_xticks(ticks, words)
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlim(self.logs[0] - 0.1 * self.span, end + 0.1 * self.span)


def _across(ax: Axes, row) -> None:
    line = _band_line(row.series)
    ax.axhline(row.mean, zorder=1, **line)
    if row.series != CHANCE and np.isfinite(row.low) and np.isfinite(row.high):
        ax.axhspan(row.low, row.high, color=line["color"], alpha=0.13, linewidth=0, zorder=0)


def _band_line(name: str) -> dict:
    if name == CHANCE:
        return _CHANCE_LINE
    return {"color": BANDS[name].colour, "linestyle": BANDS[name].linestyle, "linewidth": 1.6}


def check_intervals(df: pd.DataFrame, figure: str) -> None:
    """ValueError where a mean lies outside its interval, columns low and high; NaN is no interval."""
    if (df["low"] > df["mean"]).any() or (df["mean"] > df["high"]).any():
        raise ValueError(f"{figure}: a mean lies outside its interval; expected columns low <= mean <= high.")


@figure_function
def protection_heatmap(df: pd.DataFrame) -> Figure:
    """The grid of protections: a block a data set, a row an arm, a column a measure; the worse, the darker.

    Args:
      df: columns panel, arm (a key of `style.LOOKS`), column (the heading), value (NaN: not measured, or cannot be;
        hatched), text (what the cell says; broken before a bracket), badness (0 good and white, to 1 bad and dark; NaN:
        has a value, but no good or bad). A cell without a row is hatched too.
    Raises:
      ValueError: a column is missing or empty; two rows for one cell; badness outside 0 to 1; an arm without a look.
    """
    df = checked(
        df, "protection_heatmap", text=["panel", "arm", "column", "text"], gaps=["value", "badness"],
        unique=["panel", "arm", "column"],
    )
    if not df["badness"].dropna().between(0, 1).all():
        found = f"{df['badness'].min():g} to {df['badness'].max():g}"
        raise ValueError(f"protection_heatmap: column 'badness' goes from {found}; expected 0 (good) to 1 (bad).")
    panels, headings = split_panels(df), in_order(df["column"])
    heights = [table["arm"].nunique() for table in panels.values()]
    figure = new_figure(0.41 * sum(heights) + 0.95 * len(panels) + 0.9)
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    width = (WIDTH - _LABEL_WIDTH - 0.3) / len(headings)
    for ax, (name, table) in zip(axes, panels.items(), strict=True):
        arms = in_order(table["arm"])
        cells = {(row.arm, row.column): row for row in table.itertuples()}
        for y, arm in enumerate(arms):
            for x, heading in enumerate(headings):
                _cell(ax, x, y, cells.get((arm, heading)), width)
        ax.set(xlim=(-0.5, len(headings) - 0.5), ylim=(len(arms) - 0.5, -0.5))
        ax.xaxis.tick_top()
        ax.set_xticks(range(len(headings)), [wrapped(heading, 1.05 * width) for heading in headings], fontsize=9)
        ax.set_yticks(range(len(arms)), [wrapped(look(arm).label, 1.1 * _LABEL_WIDTH) for arm in arms], fontsize=9)
        ax.set_title(name)
        ax.tick_params(length=0)
        ax.grid(False)
        ax.spines[:].set_visible(False)
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), _BADNESS), ax=list(axes), location="bottom", shrink=0.4, aspect=35, pad=0.02
    )
    bar.set_ticks([0, 1], labels=["good", "bad"])
    handles = [Patch(label="not measured, or cannot be", **EMPTY)] if _has_gaps(df, panels, headings) else []
    if (df["value"].notna() & df["badness"].isna()).any():
        handles.append(Patch(label="neither good nor bad", **_UNRATED))
    if handles:
        top_legend(figure, handles, handle_length=2)
    return figure


def _cell(ax: Axes, x: int, y: int, row, width: float) -> None:
    empty = row is None or not np.isfinite(row.value)
    rated = not empty and np.isfinite(row.badness)
    drawn = {"facecolor": _BADNESS(row.badness), "edgecolor": "#BDBDBD", "linewidth": 0.8} if rated else _UNRATED
    ax.add_patch(Rectangle((x - 0.49, y - 0.48), 0.98, 0.96, **(EMPTY if empty else drawn)))
    if row is None or not str(row.text):
        return
    words = wrapped(str(row.text).replace(" [", "\n[").replace(" (", "\n("), 1.4 * width)
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.2} if empty else None
    ax.text(x, y, words, ha="center", va="center", fontsize=8, linespacing=1.1, bbox=box)


def _has_gaps(df: pd.DataFrame, panels: dict[str, pd.DataFrame], headings: list) -> bool:
    whole = sum(table["arm"].nunique() * len(headings) for table in panels.values())
    return bool(df["value"].isna().any()) or len(df) < whole
