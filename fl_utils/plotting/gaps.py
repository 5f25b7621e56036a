"""Shared by the figures of attacks: checks, letters that read on any colour, words for what is not there."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fl_utils.plotting.frames import in_order
from fl_utils.plotting.images import wrapped
from fl_utils.plotting.privacy import EMPTY
from fl_utils.plotting.style import GREY, WIDTH

NOT_RUN = "not run"


def known_names(df: pd.DataFrame, figure: str, column: str, known: Collection[str]) -> list[str]:
    """The names in a column, in the order of the known ones; ValueError for another."""
    for name in in_order(df[column]):
        if name not in known:
            raise ValueError(f"{figure}: {column} is {name!r}; expected one of {', '.join(known)}.")
    return [name for name in known if name in set(df[column])]


def check_range(df: pd.DataFrame, figure: str, column: str, low: float, high: float) -> None:
    """ValueError where a value of the column lies outside low to high; NaN is none."""
    if not df[column].dropna().between(low, high).all():
        found = f"{df[column].min():g} to {df[column].max():g}"
        raise ValueError(f"{figure}: column {column!r} goes from {found}; expected {low:g} to {high:g}.")


def mark_gaps(
    ax: Axes, wide: pd.DataFrame, labels: Mapping, *, half_width: float = 0.5, at: str = "{}",
    words: Mapping | None = None,
) -> None:
    """Hatches the panel, or each x, where nothing was run; names below the axis what else was not.

    Args:
      wide: [x, name], NaN where not run.
      labels: words for the names.
      half_width: of the hatched strip, in units of x.
      at: what stands around the values of x in words, e.g. "{} %".
      words: for each x, where it is not the number itself.
    """
    nothing = wide.isna().all(axis=1)
    if nothing.all():
        hatch(ax, NOT_RUN)
        return
    for x in wide.index[nothing]:
        ax.axvspan(x - half_width, x + half_width, zorder=0, **EMPTY)
        ax.text(x, 0.5, NOT_RUN, rotation=90, transform=ax.get_xaxis_transform(), **hatched_words(8.5))
    rest, groups = wide[~nothing], {}
    for name in wide.columns:
        groups.setdefault(tuple(rest.index[rest[name].isna()]), []).append(str(labels[name]))
    notes = []
    for gaps, names in groups.items():
        values = ", ".join(str((words or {}).get(x, f"{x:g}")) for x in gaps)
        if gaps:
            where = "" if len(gaps) == len(rest) else f" at {at.format(values)}"
            notes.append(f"{NOT_RUN}{where}: {', '.join(names)}")
    if notes:
        note_below(ax, "\n".join(notes))


def left_label(figure: Figure, text: str) -> None:
    """One label left of all panels, no longer than the figure is high."""
    figure.supylabel(wrapped(text, 0.85 * figure.get_size_inches()[1]), fontsize=11)


def note_below(ax: Axes, text: str) -> None:
    """Small print below a panel, no wider than the panel."""
    columns = ax.get_subplotspec().get_gridspec().ncols
    ax.set_xlabel(wrapped(text, 1.05 * WIDTH / columns), fontsize=8.5, color=GREY)


def hatch(ax: Axes, text: str) -> None:
    """Fills a panel that has nothing to show, and says why."""
    ax.tick_params(axis="x", length=0, labelbottom=False)
    ax.add_patch(Rectangle((0, 0), 1, 1, transform=ax.transAxes, **EMPTY))
    ax.text(0.5, 0.5, text, transform=ax.transAxes, **hatched_words(10))


def hatched_words(size: float) -> dict:
    """Letters that read on hatching."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.2}
    return {"ha": "center", "va": "center", "fontsize": size, "bbox": box}


def text_colour(background: Sequence[float]) -> str:
    """Black or white, whichever has more contrast on the background (WCAG 2.1; at least 4.5 to 1).

    Args:
      background: red, green, blue in 0 to 1; more is not read.
    """
    channels = np.asarray(background[:3])
    linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ [0.2126, 0.7152, 0.0722])
    return "black" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "white"
