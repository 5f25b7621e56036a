"""Checks of the tables that figures are drawn from, and the grid of panels."""

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fl_utils.plotting.page import new_figure
from fl_utils.plotting.style import WIDTH


def checked(
    table: pd.DataFrame,
    figure: str,
    *,
    text: Sequence[str] = (),
    numbers: Sequence[str] = (),
    gaps: Sequence[str] = (),
    unique: Sequence[str] = (),
) -> pd.DataFrame:
    """A copy of the table if it can be drawn.

    Args:
      table: what the caller handed over.
      figure: name of the plotting function, for the message.
      text: columns that must be there, of any type.
      numbers: columns that must be there and hold finite numbers.
      gaps: columns that must be there and hold numbers, NaN where there is none.
      unique: columns of which no combination may occur twice.
    Raises:
      ValueError: names the figure, the column and what was found.
    """
    wanted = [*text, *numbers, *gaps]
    missing = [column for column in wanted if column not in table.columns]
    if missing:
        raise ValueError(
            f"{figure}: column {', '.join(map(repr, missing))} is missing; the table has "
            f"{', '.join(map(str, table.columns)) or 'no columns'}, expected {', '.join(wanted)}."
        )
    if len(table) == 0:
        raise ValueError(f"{figure}: the table (columns {', '.join(wanted)}) has no rows; was a filter too narrow?")
    for column in [*numbers, *gaps]:
        if not pd.api.types.is_numeric_dtype(table[column]):
            raise ValueError(f"{figure}: column {column!r} has type {table[column].dtype}, expected numbers.")
        bad = ~np.isfinite(table[column].to_numpy(dtype=float, na_value=np.nan))
        if column in numbers and bad.any():
            raise ValueError(
                f"{figure}: column {column!r} has {bad.sum()} values that are not finite, the first in row "
                f"{table.index[bad][0]}; leave those rows out, or look why they are there."
            )
    if unique and table.duplicated(list(unique)).any():
        row = table[table.duplicated(list(unique))].iloc[0]
        where = ", ".join(f"{column} {row[column]!r}" for column in unique)
        raise ValueError(f"{figure}: more than one row for {where}; expected one.")
    return table.copy()


def in_order(values) -> list:
    """The distinct values in the order in which they first appear."""
    return list(dict.fromkeys(values))


def split_panels(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """One table a panel, in order; a table without a column "panel" is one panel without a name."""
    if "panel" not in table.columns:
        return {"": table}
    return {str(panel): table[table["panel"] == panel] for panel in in_order(table["panel"])}


def panel_grid(
    names: Sequence[str], *, columns: int, panel_height: float, extra_height: float = 0.0, **subplots
) -> tuple[Figure, list[Axes]]:
    """Small multiples: one named axes a panel.

    Args:
      names: one a panel; "" leaves it without a name.
      columns: panels side by side, at most.
      panel_height: inches a row of panels.
      extra_height: inches for what stands above and below, such as a legend.
      **subplots: for `Figure.subplots`, e.g. sharey.
    """
    columns = min(columns, len(names))
    rows = -(-len(names) // columns)
    # One panel alone is not stretched over the whole width.
    width = WIDTH if columns > 1 else 0.72 * WIDTH
    figure = new_figure(rows * panel_height + extra_height, width)
    axes = list(figure.subplots(rows, columns, squeeze=False, **subplots).flat)
    for ax in axes[len(names) :]:
        ax.remove()
    axes = axes[: len(names)]
    for ax, name in zip(axes, names, strict=True):
        # A long name is broken, not written into the next panel; 0.1 inch a letter.
        ax.set_title(textwrap.fill(name, int(0.75 * width / columns / 0.1)), fontsize=12 if columns < 3 else 11)
    return figure, axes
