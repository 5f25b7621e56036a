"""What bad hospitals do to the shared model, by attack and aggregator: the grid, the rounds, the fractions."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from fl_utils.config import AGGREGATOR_LABELS, ATTACK_LABELS
from fl_utils.plotting.frames import checked, panel_grid, split_panels
from fl_utils.plotting.gaps import NOT_RUN, hatched_words, known_names, left_label, mark_gaps, text_colour
from fl_utils.plotting.images import wrapped
from fl_utils.plotting.page import bottom_label, figure_function, new_figure, top_legend
from fl_utils.plotting.privacy import EMPTY, check_intervals
from fl_utils.plotting.style import BLACK, GREY, ROUND_LABEL, Look, look

INTERVAL_LABEL = "95 % interval over seeds"
#: Values that lie closer together than this do not get the whole range of colours.
LEAST_COLOUR_SPAN = 0.2
_ASSUMED = {"color": BLACK, "linestyle": (0, (1, 1.5)), "linewidth": 1.6}
_LABEL_WIDTH = 1.6  # inches that an attack's name may take


@figure_function
def attack_heatmap(
    df: pd.DataFrame, *, value_label: str, chance: float | None = None, interval_label: str = INTERVAL_LABEL
) -> Figure:
    """The grid of attacks (rows) x aggregators (columns), a panel a partition: the mean, and its interval below it.

    Args:
      df: columns panel, attack, aggregator (keys of `config.ATTACK_LABELS` and `AGGREGATOR_LABELS`, drawn in their
        order), mean, low, high (NaN: no interval), seeds; a cell without a row or with mean NaN was not run. Cells of
        fewer seeds than the others say so.
      value_label: what `mean` is, e.g. "Balanced accuracy (test)".
      chance: what guessing reaches, marked on the colour bar; None: no mark.
      interval_label: what low and high are; must name the interval.
    Raises:
      ValueError: a column is missing or empty; no mean at all; two rows for one cell; a mean outside its interval; a
        cell of some seeds without a mean; an unknown attack or aggregator.
    """
    df = checked(
        df, "attack_heatmap", text=["panel", "attack", "aggregator"], gaps=["mean", "low", "high", "seeds"],
        unique=["panel", "attack", "aggregator"],
    )
    _check(df, "attack_heatmap")
    lost = df[df["mean"].isna() & (df["seeds"] > 0)]
    if len(lost):
        row = lost.iloc[0]
        raise ValueError(
            f"attack_heatmap: {row['attack']} with {row['aggregator']} has {row['seeds']:g} seeds and no mean; "
            f"expected a mean, or no seeds for a cell that was {NOT_RUN}."
        )
    attacks = known_names(df, "attack_heatmap", "attack", ATTACK_LABELS)
    aggregators = known_names(df, "attack_heatmap", "aggregator", AGGREGATOR_LABELS)
    panels, most = split_panels(df), df["seeds"].max()
    marked = df["mean"].dropna().tolist() + ([] if chance is None else [chance])
    colours = ScalarMappable(Normalize(min(marked), max(max(marked), min(marked) + LEAST_COLOUR_SPAN)), "viridis")
    height = 0.53 if (df["seeds"] < most).any() else 0.44  # a line more where cells say their number of seeds
    figure = new_figure((height * len(attacks) + 0.85) * len(panels) + 1.0)
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for ax, (name, table) in zip(axes, panels.items(), strict=True):
        cells = {(row.attack, row.aggregator): row for row in table.itertuples()}
        for y, attack in enumerate(attacks):
            for x, aggregator in enumerate(aggregators):
                _cell(ax, x, y, cells.get((attack, aggregator)), colours, most)
        ax.set(xlim=(-0.5, len(aggregators) - 0.5), ylim=(len(attacks) - 0.5, -0.5))
        ax.xaxis.tick_top()
        headings = [AGGREGATOR_LABELS[aggregator].replace(" ", "\n") for aggregator in aggregators]
        ax.set_xticks(range(len(aggregators)), headings, fontsize=9)
        names = [wrapped(ATTACK_LABELS[attack], _LABEL_WIDTH) for attack in attacks]
        ax.set_yticks(range(len(attacks)), names, fontsize=9)
        ax.set_title(name)
        ax.tick_params(length=0)
        ax.grid(False)
        ax.spines[:].set_visible(False)
    bar = figure.colorbar(colours, ax=list(axes), location="bottom", shrink=0.6, aspect=45, pad=0.03)
    small = f"; below it the {interval_label}" if df["low"].notna().any() else ""
    count = "one seed" if most == 1 else f"mean of {most:.0f} seeds"
    bar.set_label(f"{value_label}: {count}{small}", fontsize=10)
    if chance is not None:
        place = {"transform": bar.ax.get_xaxis_transform(), "clip_on": False}
        bar.ax.plot([chance], [1], marker="v", markersize=7, color=BLACK, **place)
        bar.ax.text(chance, 1.5, f"chance {chance:.2f}", ha="center", va="bottom", fontsize=9, **place)
    return figure


def _cell(ax: Axes, x: int, y: int, row, colours: ScalarMappable, most: float) -> None:
    place = (x - 0.49, y - 0.48), 0.98, 0.96
    if row is None or not np.isfinite(row.mean):
        ax.add_patch(Rectangle(*place, **EMPTY))
        ax.text(x, y, NOT_RUN, **hatched_words(7.5))
        return
    colour = colours.to_rgba(row.mean)
    ax.add_patch(Rectangle(*place, facecolor=colour, linewidth=0))
    small = [f"{row.low:.2f} to {row.high:.2f}"] if np.isfinite(row.low) and np.isfinite(row.high) else []
    if row.seeds < most:
        small.append("1 seed" if row.seeds == 1 else f"{row.seeds:.0f} seeds")
    letters = {"ha": "center", "va": "center", "color": text_colour(colour)}
    ax.text(x, y - (0.0, 0.17, 0.27)[len(small)], f"{row.mean:.2f}", fontsize=9.5, **letters)
    if small:
        ax.text(x, y + (0.2, 0.15)[len(small) - 1], "\n".join(small), fontsize=7, linespacing=1.1, **letters)


@figure_function
def attack_curves(
    df: pd.DataFrame, *, value_label: str, interval_label: str = INTERVAL_LABEL, columns: int = 3
) -> Figure:
    """The rounds under attack: a small panel an attack, a line with its band an aggregator.

    Args:
      df: columns attack, aggregator (as in `attack_heatmap`), round, mean (NaN: no value, the line breaks), low, high
        (NaN: no band); optional: panel (each attack gets a picture in each). An aggregator without a value is named
        below its panel as not run.
      value_label: what `mean` is.
      interval_label: what the bands are; must name the interval.
      columns: panels side by side.
    Raises:
      ValueError: a column is missing or empty; no mean at all; two rows for one place; a mean outside its interval; an
        unknown attack or aggregator.
    """
    df = _checked_lines(df, "attack_curves", "round")

    def draw(ax: Axes, rows: pd.DataFrame, drawn: Look, number: int) -> None:
        every = max(1, len(rows) // 6)
        # Markers apart from line to line, so that they do not hide each other.
        line = drawn.line() | {"linewidth": 1.6, "markersize": 5, "markevery": (number % every, every)}
        ax.plot(rows["round"], rows["mean"], **line)
        ax.fill_between(rows["round"], rows["low"], rows["high"], color=drawn.colour, alpha=0.13, linewidth=0)

    figure, axes, wide = _attack_panels(df, "round", draw, columns, value_label)
    for ax, table in zip(axes, wide, strict=True):
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        # A line that ends early says so itself; one that is not there does not.
        mark_gaps(ax, table.max().to_frame().T, AGGREGATOR_LABELS)
    bottom_label(figure, ROUND_LABEL)
    _line_legend(figure, df, interval_label)
    return figure


@figure_function
def fraction_lines(
    df: pd.DataFrame, *, value_label: str, assumed: float | None = None, interval_label: str = INTERVAL_LABEL,
    columns: int = 2,
) -> Figure:
    """How much each aggregator bears: a panel an attack, a line an aggregator, over the percent of bad hospitals.

    Args:
      df: columns attack, aggregator (as in `attack_heatmap`), fraction (of bad hospitals, 0 to 1), mean (NaN: not
        run), low, high (NaN: no interval); optional: panel (each attack gets a picture in each). Points stand side by
        side, so that intervals do not hide each other.
      value_label: what `mean` is.
      assumed: the fraction of bad hospitals that the rules are set for, as a dotted line; None: no line.
      interval_label: what the error bars are; must name the interval.
      columns: panels side by side.
    Raises:
      ValueError: a column is missing, empty or not finite; no mean at all; two rows for one place; a mean outside its
        interval; a fraction outside 0 to 1; an unknown attack or aggregator.
    """
    df = _checked_lines(df, "fraction_lines", "fraction")
    for name, values in (("column 'fraction'", df["fraction"]), ("assumed", [] if assumed is None else [assumed])):
        if not all(0 <= value <= 1 for value in values):
            raise ValueError(f"fraction_lines: {name} goes up to {max(values):g}; expected 0 to 1. Is it percent?")
    df["percent"] = 100 * df["fraction"]
    places = np.unique(df["percent"])
    gap = np.diff(places).min() if len(places) > 1 else 10.0
    middle = (df["aggregator"].nunique() - 1) / 2

    def draw(ax: Axes, rows: pd.DataFrame, drawn: Look, number: int) -> None:
        rows = rows.set_index("percent").reindex(places)  # so that the line breaks where nothing was run
        x = places + 0.6 * gap * (number - middle) / (2 * middle + 1)
        ax.vlines(x, rows["low"], rows["high"], color=drawn.colour, linewidth=1.8, alpha=0.6)
        ax.plot(x, rows["mean"], **drawn.line() | {"linewidth": 1.4, "markersize": 5.5})

    figure, axes, wide = _attack_panels(df, "percent", draw, columns, value_label)
    for ax, table in zip(axes, wide, strict=True):
        ax.set_xlim(places[0] - 0.6 * gap, places[-1] + 0.6 * gap)
        ax.set_xticks(places, [f"{place:g}" for place in places])
        if assumed is not None:
            ax.axvline(100 * assumed, zorder=1, **_ASSUMED)
        mark_gaps(ax, table, AGGREGATOR_LABELS, half_width=0.35 * gap, at="{} %")
    bottom_label(figure, "Bad hospitals (% of all)")
    line = Line2D([], [], label=f"what the rules are set for ({100 * (assumed or 0):g} %)", **_ASSUMED)
    _line_legend(figure, df, interval_label, [] if assumed is None else [line])
    return figure


def _checked_lines(df: pd.DataFrame, figure: str, x: str) -> pd.DataFrame:
    panel = ["panel"] if "panel" in df.columns else []
    df = checked(
        df, figure, text=[*panel, "attack", "aggregator"], numbers=[x], gaps=["mean", "low", "high"],
        unique=[*panel, "attack", "aggregator", x],
    )
    _check(df, figure)
    for column, labels in (("attack", ATTACK_LABELS), ("aggregator", AGGREGATOR_LABELS)):
        known_names(df, figure, column, labels)
    return df


def _check(df: pd.DataFrame, figure: str) -> None:
    check_intervals(df, figure)
    if df["mean"].isna().all():
        raise ValueError(f"{figure}: column 'mean' is empty; nothing was run.")


def _attack_panels(
    df: pd.DataFrame, x: str, draw: Callable[[Axes, pd.DataFrame, Look, int], None], columns: int, value_label: str
) -> tuple[Figure, list[Axes], list[pd.DataFrame]]:
    """A panel an attack; `draw` adds an aggregator. With each panel its means [x, aggregator], NaN where not run."""
    attacks = [name for name in ATTACK_LABELS if name in set(df["attack"])]
    aggregators = [name for name in AGGREGATOR_LABELS if name in set(df["aggregator"])]
    blocks = {
        (f"{panel}: " if panel else "") + ATTACK_LABELS[attack]: table[table["attack"] == attack]
        for panel, table in split_panels(df).items() for attack in attacks
    }  # fmt: skip
    figure, axes = panel_grid(list(blocks), columns=columns, panel_height=2.35, extra_height=1.1, sharey=True)
    for ax, table in zip(axes, blocks.values(), strict=True):
        for number, aggregator in enumerate(aggregators):
            rows = table[table["aggregator"] == aggregator].sort_values(x)
            if rows["mean"].notna().any():
                draw(ax, rows, look(aggregator), number)
    left_label(figure, value_label)
    wide = [table.pivot(index=x, columns="aggregator", values="mean") for table in blocks.values()]
    return figure, axes, [table.reindex(index=np.unique(df[x]), columns=aggregators) for table in wide]


def _line_legend(figure: Figure, df: pd.DataFrame, interval_label: str, extra: Sequence[Line2D] = ()) -> None:
    handles = [Line2D([], [], **look(name).line()) for name in AGGREGATOR_LABELS if name in set(df["aggregator"])]
    if df["low"].notna().any():
        handles.append(Line2D([], [], color=GREY, linewidth=5, alpha=0.4, label=interval_label))
    top_legend(figure, [*handles, *extra], handle_length=2.6)
