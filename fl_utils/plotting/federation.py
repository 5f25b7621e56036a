"""The deployed federation: a training in which a hospital is killed and comes back, and what a round costs in seconds."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from fl_utils.plotting.frames import checked, in_order
from fl_utils.plotting.images import wrapped
from fl_utils.plotting.page import figure_function, new_figure, top_legend
from fl_utils.plotting.privacy import EMPTY
from fl_utils.plotting.style import BLACK, ROUND_LABEL, WIDTH, look, series_look

_MARK = {"color": BLACK, "linewidth": 0.9, "zorder": 3}
_TARGET = {"color": BLACK, "linestyle": (0, (1, 1.2)), "linewidth": 1.8}
_DOT = {"color": BLACK, "marker": "o", "markersize": 4.5, "markeredgecolor": "white", "markeredgewidth": 0.6, "linestyle": ""}


@figure_function
def interrupted_training(
    presence: pd.DataFrame, curves: pd.DataFrame, *, killed_after: int, back_after: int, hospital: str,
    y_label: str = "Balanced accuracy",
) -> Figure:
    """The metric of an interrupted federation beside the undisturbed simulation; below it whose update counted when.

    Args:
      presence: columns round (1 to R), client ("2" or "Hospital 2"), counted (bool); one row a hospital and round.
        Hospitals stand in the order in which they first appear.
      curves: columns round (0 to R), value, method ("deployed": the interrupted one; any other: undisturbed); one run each.
      killed_after, back_after: the rounds after which the hospital was killed and started again.
      hospital: which one; a client of `presence`.
      y_label: what `value` is.
    Raises:
      ValueError: a column is missing, empty or not finite; two rows for one place, or none; a method without a look; a
        round, or a hospital, that is not there.
    """
    presence = checked(
        presence, "interrupted_training", text=["client", "counted"], numbers=["round"], unique=["client", "round"]
    )
    curves = checked(
        curves, "interrupted_training (curves)", text=["method"], numbers=["round", "value"], unique=["method", "round"]
    )
    # "2" and "Hospital 2" are one.
    presence["client"] = presence["client"].astype(str).str.removeprefix("Hospital ")
    hospital = str(hospital).removeprefix("Hospital ")
    clients, methods, last = in_order(presence["client"]), in_order(curves["method"]), presence["round"].max()
    looks = {method: look(method) for method in methods}
    _check_rounds(presence, curves, clients, last, killed_after, back_after)
    if hospital not in clients:
        raise ValueError(f"interrupted_training: hospital is {hospital!r}; expected one of {', '.join(clients)}.")
    below = 0.3 * len(clients)
    figure = new_figure(4.2 + below)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2.8, below])
    step = -(-int(last) // 10)  # a marker at about every tenth round, and not of all lines at the same
    for number, method in enumerate(reversed(methods)):
        rows = curves[curves["method"] == method].sort_values("round")
        upper.plot(rows["round"], rows["value"], **looks[method].line(), markevery=(number * step // 2, step))
    upper.set_ylabel(y_label)
    filled = {"facecolor": look("deployed").colour, "edgecolor": "white", "linewidth": 0}
    heights, counted = presence["client"].map(clients.index), presence["counted"].astype(bool)
    for where, drawn in ((counted, filled), (~counted, EMPTY)):
        lower.barh(heights[where], 0.88, left=presence["round"][where] - 0.44, height=0.74, **drawn)
    lower.set_yticks(range(len(clients)), [f"Hospital {client}" for client in clients])
    lower.set(xlabel=ROUND_LABEL, ylim=(len(clients) - 0.5, -0.5), xlim=(min(0.5, curves["round"].min() - 0.5), last + 0.5))
    lower.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    lower.grid(visible=False)
    lower.tick_params(axis="y", length=0)
    lower.spines["left"].set_visible(False)
    _name_marks(upper, killed_after + 0.5, f"hospital {hospital} killed", back_after + 0.5, "started again")
    for x in (killed_after + 0.5, back_after + 0.5):
        upper.axvline(x, **_MARK)
        lower.axvline(x, **_MARK)
    kinds = {method: "interrupted" if method == "deployed" else "undisturbed" for method in methods}
    handles = [Line2D([], [], **drawn.line() | {"label": f"{drawn.label}, {kinds[m]}"}) for m, drawn in looks.items()]
    handles += [Patch(label="update counted", **filled), Patch(label="did not count", **EMPTY)]
    top_legend(figure, handles, handle_length=2.6)
    return figure


def _check_rounds(
    presence: pd.DataFrame, curves: pd.DataFrame, clients: list[str], last: float, killed_after: int, back_after: int
) -> None:
    name = "interrupted_training"
    known = presence["counted"].isin([True, False])
    if not known.all():
        raise ValueError(f"{name}: column 'counted' holds {presence['counted'][~known].iloc[0]!r}; expected True or False.")
    for what, table, first in ((name, presence, 1), (f"{name} (curves)", curves, 0)):
        wrong = table["round"][~table["round"].isin(np.arange(first, last + 1))]
        if len(wrong):
            raise ValueError(f"{what}: round {wrong.iloc[0]:g}; expected whole numbers from {first} to {last:g}.")
    if len(presence) != len(clients) * last:
        raise ValueError(
            f"{name}: {len(presence)} rows for {len(clients)} hospitals and {last:g} rounds; "
            "expected one a hospital and round."
        )
    if not 0 <= killed_after < back_after <= last:
        raise ValueError(
            f"{name}: killed_after is {killed_after}, back_after {back_after}; "
            f"expected 0 <= killed_after < back_after <= {last:g}."
        )


def _name_marks(ax: Axes, left: float, left_words: str, right: float, right_words: str) -> None:
    """Words above the axes at two lines: they point away from each other, or inwards where the page ends."""
    low, high = ax.get_xlim()
    inch = (WIDTH - 1.2) / (high - low)  # of one round
    widths = [0.08 * len(words) for words in (left_words, right_words)]
    gap = (right - left) * inch
    inwards = [(left - low) * inch < widths[0] < gap, (high - right) * inch < widths[1] < gap]
    for x, words, to_the_right in ((left, left_words, inwards[0]), (right, right_words, not inwards[1])):
        ax.annotate(
            words, (x, 1), xycoords=ax.get_xaxis_transform(), xytext=(0, 3), textcoords="offset points",
            ha="left" if to_the_right else "right", va="bottom", fontsize=9.5,
        )


@figure_function
def round_seconds(df: pd.DataFrame, *, target_s: float | None = 2.0) -> Figure:
    """A bar a transport: the slowest hospital's own work in a round, and what the round takes over it.

    Both parts are medians over the rounds. A dot is one round: its seconds over the work, drawn from the end of the median
    work as the target is, so that dots right of the target are rounds that miss it.

    Args:
      df: columns label (the bar's words, in order of first appearance), round, duration_s, work_s (of the slowest
        hospital), over_s (the difference).
      target_s: what a round may take over the work, seconds, > 0; None: no target.
    Raises:
      ValueError: a column is missing, empty or not finite; two rows for one round; seconds below 0, or that do not add
        up; a target that is not above 0.
    """
    df = checked(
        df, "round_seconds", text=["label"], numbers=["round", "duration_s", "work_s", "over_s"], unique=["label", "round"]
    )
    if target_s is not None and not target_s > 0:
        raise ValueError(f"round_seconds: target_s is {target_s}; expected above 0 seconds, or None.")
    for column in ("work_s", "over_s"):
        if (df[column] < 0).any():
            raise ValueError(f"round_seconds: column {column!r} goes down to {df[column].min():g}; expected 0 or more.")
    if not np.allclose(df["work_s"] + df["over_s"], df["duration_s"], rtol=0, atol=1e-3):
        raise ValueError("round_seconds: work_s and over_s do not add up to duration_s; expected it within 0.001 s.")
    labels = in_order(df["label"])
    parts = [series_look(0, "slowest hospital's own work"), series_look(1, "the round's time over it")]
    figure = new_figure(0.62 * len(labels) + 1.5)
    ax = figure.subplots()
    work, over = (df.groupby("label", sort=False)[column].median() for column in ("work_s", "over_s"))
    places = [{"width": work}, {"width": over, "left": work}]
    fills = [{"facecolor": part.colour, "edgecolor": "white", "hatch": part.hatch, "linewidth": 0} for part in parts]
    for place, fill in zip(places, fills, strict=True):
        ax.barh(range(len(labels)), height=0.62, **place, **fill)
    ends = {label: work[label] + rows["over_s"].max() for label, rows in df.groupby("label", sort=False)}
    right = max(max(ends.values()), max(work) + (target_s or 0)) or 1.0
    room = 0.14 * right  # what a number takes
    for y, label in enumerate(labels):
        rows, end = df[df["label"] == label], ends[label]
        # Rounds stand below each other, so that dots do not hide each other.
        ax.plot(work[label] + rows["over_s"], y + np.linspace(-0.2, 0.2, len(rows) + 2)[1:-1], **_DOT)
        if target_s is not None:
            target = work[label] + target_s
            ax.plot([target, target], [y - 0.42, y + 0.42], **_TARGET)
            end = max(end, target) if end < target + 0.1 * room and target < end + room else end
        ax.annotate(f"+{over[label]:.2f} s", (end, y), xytext=(7, 0), textcoords="offset points", va="center", fontsize=10)
    ax.set(xlim=(0, right + room), ylim=(len(labels) - 0.4, -0.6))
    ax.set_yticks(range(len(labels)), [wrapped(str(label), 2.2) for label in labels])
    counts = df.groupby("label").size()
    ax.set_xlabel("Seconds of a round, median" + (f" of {counts.iloc[0]} rounds" if counts.nunique() == 1 else ""))
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    handles = [Patch(label=part.label, **fill) for part, fill in zip(parts, fills, strict=True)]
    handles.append(Line2D([], [], label="a single round", **_DOT))
    if target_s is not None:
        handles.append(Line2D([], [], label=f"target: work + {target_s:g} s", **_TARGET))
    top_legend(figure, handles, handle_length=1.8)
    return figure
