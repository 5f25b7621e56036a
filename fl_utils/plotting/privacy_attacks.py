"""How much attacks find: scores of reconstructed images, and who can be told to have been in training."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from fl_utils.plotting.frames import checked, in_order, panel_grid, split_panels
from fl_utils.plotting.images import wrapped
from fl_utils.plotting.page import bottom_label, figure_function, top_legend
from fl_utils.plotting.privacy import check_intervals
from fl_utils.plotting.style import BLACK, BLUE, GREY, ORANGE, look, series_look

MEASURES = {"ssim": "SSIM with the original", "psnr_db": "PSNR to the original (dB)"}
METRICS = {"tpr_at_fpr": "TPR at 1 % FPR", "auc": "AUC"}
_ROC_START = 1e-3
_CHANCE = {"color": BLACK, "linestyle": (0, (4, 2)), "linewidth": 1.4}
_DASHED_TICK = Path(
    [(0, -1), (0, -0.5), (0, -0.25), (0, 0.25), (0, 0.5), (0, 1)], [Path.MOVETO, Path.LINETO] * 3
)
_DOT = {"color": BLUE, "marker": "o", "markersize": 4.5, "alpha": 0.5, "markeredgewidth": 0, "linestyle": ""}
_MEAN = {"color": BLACK, "marker": "D", "markersize": 7, "markeredgecolor": "white", "linestyle": ""}
_RANDOM = {"color": BLACK, "marker": _DASHED_TICK, "markersize": 20, "markeredgewidth": 1.6, "linestyle": ""}
_BEST = {"color": ORANGE, "marker": "|", "markersize": 20, "markeredgewidth": 3, "linestyle": ""}


@figure_function
def inversion_scores(df: pd.DataFrame, *, measure: str = "ssim", columns: int = 2) -> Figure:
    """How well reconstructions show the originals: a dot an image, beside what other real images reach.

    Args:
      df: columns panel, condition (a row each, in order of appearance), image (its id), value (NaN: the attack has
        nothing to work on), random_other, best_other (NaN: none), all three of one measure, as from
        `trust.matching.score_reconstructions`. Optional: measure; then only rows of `measure` are drawn.
      measure: "ssim" or "psnr_db".
      columns: panels side by side.
    Raises:
      ValueError: a column is missing, empty or infinite; two rows for one place; no row of the measure; another
        measure; SSIM outside -1 to 1.
    """
    _known("inversion_scores", "measure", measure, MEASURES)
    gaps = ["value", "random_other", "best_other"]
    df = _only(checked(df, "inversion_scores", text=["panel", "condition", "image"], gaps=gaps), "measure", measure)
    df = checked(df, "inversion_scores", text=["panel"], unique=["panel", "condition", "image"])
    if np.isinf(df[gaps]).any(axis=None):
        raise ValueError("inversion_scores: a value is infinite (PSNR of an exact copy); cap it, or use SSIM.")
    if measure == "ssim" and (df[gaps].abs() > 1 + 1e-6).any(axis=None):
        raise ValueError(f"inversion_scores: SSIM up to {df[gaps].max(axis=None):g}; expected -1 to 1. Is it PSNR?")
    panels, names = split_panels(df), in_order(df["condition"])
    figure, axes = panel_grid(
        list(panels), columns=columns, panel_height=0.46 * len(names) + 0.6, extra_height=0.9, sharey=True
    )
    for ax, table in zip(axes, panels.values(), strict=True):
        for name, rows in table.groupby("condition", sort=False):
            y, there = names.index(name), rows["value"].notna()
            for column, mark in (("random_other", _RANDOM), ("best_other", _BEST)):
                ax.plot([rows[column].mean()], [y], zorder=2, **mark)
            # Images stand below each other within the row, so that dots do not hide each other.
            ax.plot(rows["value"], y + 0.4 * ((np.arange(len(rows)) + 0.5) / len(rows) - 0.5), zorder=3, **_DOT)
            if there.any():
                ax.plot([rows["value"].mean()], [y], zorder=4, **_MEAN)
            else:
                place = {"transform": ax.get_yaxis_transform(), "ha": "right", "va": "center"}
                ax.text(0.98, y, "nothing to attack", fontsize=9, **place)
        _row_axis(ax, names)
    _same_span(axes)
    bottom_label(figure, MEASURES[measure])
    handles = [Line2D([], [], label="an image", **_DOT), Line2D([], [], label="mean over images", **_MEAN)]
    for column, mark, label in (
        ("random_other", _RANDOM, "a random other real image"),
        ("best_other", _BEST, "the most alike other real image"),
    ):
        if df[column].notna().any():
            handles.append(Line2D([], [], label=label, **mark | {"markersize": 13}))
    top_legend(figure, handles, handle_length=1.5)
    return figure


@figure_function
def membership_points(
    df: pd.DataFrame, *, metric: str = "tpr_at_fpr", interval_label: str = "95 % interval over seeds", columns: int = 2
) -> Figure:
    """How well members of the training set are told: a row an arm, a marker an attack, chance as a line.

    Args:
      df: columns panel, attack, arm (a key of `style.LOOKS`), unit ("image" or "patient"; two units are two panels),
        metric, mean, low, high (NaN: no interval), chance (NaN: none); as from `trust.membership.membership_table`.
      metric: which rows: "tpr_at_fpr" (at 1 %) or "auc".
      interval_label: what the lines are; must name the interval.
      columns: panels side by side.
    Raises:
      ValueError: a column is missing, empty or not finite; two rows for one place; no row of the metric; another
        metric; a mean outside its interval or outside 0 to 1; an arm without a look.
    """
    _known("membership_points", "metric", metric, METRICS)
    df = checked(
        df, "membership_points", text=["panel", "attack", "arm", "unit", "metric"], numbers=["mean"],
        gaps=["low", "high", "chance"],
    )
    df = _only(df, "metric", metric)
    df = checked(df, "membership_points", text=["panel"], unique=["panel", "attack", "arm", "unit"])
    check_intervals(df, "membership_points")
    _shares(df, "membership_points", ["mean"])
    units, arms = in_order(df["unit"]), in_order(df["arm"])
    if len(units) > 1:
        df["panel"] = df["panel"] + ", by " + df["unit"]
    panels, attacks = split_panels(df), in_order(df["attack"])
    looks = {attack: series_look(number, attack) for number, attack in enumerate(attacks)}
    figure, axes = panel_grid(
        list(panels), columns=columns, panel_height=0.44 * len(arms) + 0.6, extra_height=0.9, sharey=True
    )
    for ax, table in zip(axes, panels.values(), strict=True):
        for row in table.itertuples():
            drawn, shift = looks[row.attack], attacks.index(row.attack) - (len(attacks) - 1) / 2
            y = arms.index(row.arm) + 0.28 * shift
            ax.plot([row.low, row.high], [y, y], color=drawn.colour, linewidth=2.5, alpha=0.6, solid_capstyle="butt")
            ax.plot([row.mean], [y], color=drawn.colour, marker=drawn.marker, markersize=7, linestyle="")
        for chance in table["chance"].dropna().unique():
            ax.axvline(chance, zorder=1, **_CHANCE)
        _row_axis(ax, [look(arm).label for arm in arms])
    _same_span(axes)
    bottom_label(figure, METRICS[metric] + (f", by {units[0]}" if len(units) == 1 else ""))
    handles = [
        Line2D([], [], color=drawn.colour, marker=drawn.marker, linestyle="", label=drawn.label)
        for drawn in looks.values()
    ]
    handles.append(Line2D([], [], color=GREY, linewidth=2.5, alpha=0.7, label=interval_label))
    if df["chance"].notna().any():
        handles.append(Line2D([], [], label="chance", **_CHANCE))
    top_legend(figure, handles, handle_length=2)
    return figure


@figure_function
def membership_roc(df: pd.DataFrame, *, columns: int = 2) -> Figure:
    """Membership inference at low false-positive rates: log-log ROC, a line an arm.

    Each line is a step function, as is `trust.membership.tpr_at_fpr`: at an FPR it shows the largest TPR that a
    threshold reaches with at most that FPR. TPR below 0.001 lies on the lower edge.

    Args:
      df: columns panel, arm (a key of `style.LOOKS`), attack (two attacks are two panels), fpr, tpr.
      columns: panels side by side.
    Raises:
      ValueError: a column is missing, empty or not finite; a rate outside 0 to 1; an arm without a look.
    Source: Carlini et al. 2022, arXiv:2112.03570.
    """
    df = checked(df, "membership_roc", text=["panel", "arm", "attack"], numbers=["fpr", "tpr"])
    _shares(df, "membership_roc", ["fpr", "tpr"])
    attacks, arms = in_order(df["attack"]), in_order(df["arm"])
    if len(attacks) > 1:
        df["panel"] = df["panel"] + ": " + df["attack"]
    panels, grid = split_panels(df), np.geomspace(_ROC_START, 1, 241)
    figure, axes = panel_grid(list(panels), columns=columns, panel_height=3.3, extra_height=1.1)
    for ax, table in zip(axes, panels.values(), strict=True):
        for arm, rows in table.groupby("arm", sort=False):
            tpr = reached_tpr(rows["fpr"].to_numpy(), rows["tpr"].to_numpy(), grid)
            # Markers apart from line to line, so that they do not hide each other.
            first = 8 + 50 * arms.index(arm) // len(arms)
            line = look(arm).line() | {"linewidth": 1.8, "markevery": slice(first, 220, 50)}
            ax.plot(grid, np.maximum(tpr, _ROC_START), **line)
        ax.plot([_ROC_START, 1], [_ROC_START, 1], zorder=1, **_CHANCE)
        ax.set(xscale="log", yscale="log", xlim=(_ROC_START, 1), ylim=(_ROC_START, 1.15))
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
        if ax.get_subplotspec().is_first_col():
            ax.set_ylabel("True-positive rate")
    bottom_label(figure, "False-positive rate" + (f" ({attacks[0]})" if len(attacks) == 1 else ""))
    handles = [Line2D([], [], **look(arm).line()) for arm in arms]
    top_legend(figure, [*handles, Line2D([], [], label="chance", **_CHANCE)], handle_length=3)
    return figure


def reached_tpr(fpr: np.ndarray, tpr: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """The largest TPR among the points of a curve whose FPR is at most each limit; 0 where there is none.

    Args:
      fpr, tpr: float [N], in any order.
      limits: float [M].
    """
    order = np.argsort(fpr, kind="stable")
    reached = np.concatenate([[0.0], np.maximum.accumulate(tpr[order])])
    # A rounding error must not hide the point at the limit.
    return reached[np.searchsorted(fpr[order], np.asarray(limits) * (1 + 1e-9), side="right")]


def _known(figure: str, name: str, value: str, known: Mapping[str, str]) -> None:
    if value not in known:
        raise ValueError(f"{figure}: {name} is {value!r}; expected {' or '.join(map(repr, known))}.")


def _only(df: pd.DataFrame, column: str, value: str) -> pd.DataFrame:
    """The rows of one measure; a table without the column has only one."""
    return df[df[column] == value] if column in df.columns else df


def _shares(df: pd.DataFrame, figure: str, columns: Sequence[str]) -> None:
    for column in columns:
        if not df[column].between(0, 1).all():
            found = f"{df[column].min():g} to {df[column].max():g}"
            raise ValueError(f"{figure}: column {column!r} goes from {found}; expected 0 to 1.")


def _row_axis(ax: Axes, labels: Sequence[str]) -> None:
    ax.set_yticks(range(len(labels)), [wrapped(label, 2.25) for label in labels], fontsize=9)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    ax.margins(x=0.08)
    ax.xaxis.set_major_locator(MaxNLocator(5))


def _same_span(axes: Sequence[Axes]) -> None:
    """One x axis for all panels, so that they compare; each keeps its numbers below it."""
    limits = np.array([ax.get_xlim() for ax in axes])
    for ax in axes:
        ax.set_xlim(limits[:, 0].min(), limits[:, 1].max())
