"""Who sticks out: the hospitals' updates on a plane, and how well flags find the bad ones."""

import itertools

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from scipy.cluster.hierarchy import fcluster, linkage

from fl_utils.config import ATTACK_LABELS
from fl_utils.plotting.frames import checked, in_order, split_panels
from fl_utils.plotting.gaps import NOT_RUN, check_range, hatch, hatched_words, known_names, left_label, note_below
from fl_utils.plotting.images import wrapped
from fl_utils.plotting.page import bottom_label, figure_function, new_figure, top_legend
from fl_utils.plotting.poisoning import INTERVAL_LABEL
from fl_utils.plotting.privacy import EMPTY, check_intervals
from fl_utils.plotting.style import BLACK, BLUE, GREY, VERMILLION, Look, look

DETECTORS = {
    "pca": Look("PCA of the last layer", BLUE, "o", ""), "cosine": Look("Cosine distance", VERMILLION, "D", ""),
}
#: Each measure of a detector, and what a missing value of it means.
DETECTION_METRICS = {
    "precision": ("Precision\n(flagged ones that are bad)", "no flag"),
    "recall": ("Recall\n(bad ones that are flagged)", "none to find"),
    "false_alarms": ("False alarms\n(honest ones that are flagged)", NOT_RUN),
}
_RING = {"marker": "o", "markersize": 13, "markerfacecolor": "none", "markeredgecolor": BLACK, "markeredgewidth": 1.3}
#: Points closer together than this part of a panel share one text.
_CLOSE = 0.2


@figure_function
def update_map(df: pd.DataFrame) -> Figure:
    """The hospitals' updates on their two principal components: a row an attack, a column a round; flagged ones ringed.

    Each picture has its own scale, as the components are of its own round. Hospitals that lie together share one text.

    Args:
      df: columns attack (a key of `config.ATTACK_LABELS`, drawn in their order), round, client, pca_0, pca_1 (NaN or no
        row: left out of that round; named below the picture), attacker, flagged (0 or 1). One seed and one detector.
    Raises:
      ValueError: a column is missing or empty; two rows for one hospital and round; attacker or flagged other than 0
        and 1; no component at all; an unknown attack.
    """
    df = checked(
        df, "update_map", text=["attack", "client"], numbers=["round", "attacker", "flagged"], gaps=["pca_0", "pca_1"],
        unique=["attack", "round", "client"],
    )
    attacks, rounds = known_names(df, "update_map", "attack", ATTACK_LABELS), np.unique(df["round"])
    for column in ("attacker", "flagged"):
        if not df[column].isin([0, 1]).all():
            raise ValueError(f"update_map: column {column!r} holds {in_order(df[column])}; expected 0 and 1.")
    if df["pca_0"].isna().all():
        raise ValueError("update_map: column 'pca_0' is empty; no round has components.")
    figure = new_figure(2.0 * len(attacks) + 1.1)
    axes = figure.subplots(len(attacks), len(rounds), squeeze=False)
    for line, attack in zip(axes, attacks, strict=True):
        line[0].set_ylabel(wrapped(ATTACK_LABELS[attack], 1.7), fontsize=10, fontweight="bold")
        for ax, at in zip(line, rounds, strict=True):
            ax.set_title(f"Round {at:g}" if ax.get_subplotspec().is_first_row() else "", fontsize=10.5)
            _updates(ax, df[(df["attack"] == attack) & (df["round"] == at)], in_order(df["client"]))
    bottom_label(figure, "First principal component (each picture has its own scale)")
    left_label(figure, "Second principal component")
    handles = [Line2D([], [], linestyle="", label=look(kind).label, **_mark(kind)) for kind in ("attacker", "honest")]
    top_legend(figure, [*handles, Line2D([], [], linestyle="", label="flagged", **_RING)], handle_length=1.5)
    return figure


def _mark(kind: str) -> dict:
    drawn = look(kind)
    edge = {"markeredgecolor": BLACK, "markeredgewidth": 0.6}
    return {"color": drawn.colour, "marker": drawn.marker, "markersize": 9 if kind == "attacker" else 7, **edge}


def _updates(ax: Axes, rows: pd.DataFrame, clients: list) -> None:
    there = rows[rows["pca_0"].notna() & rows["pca_1"].notna()]
    if len(there) == 0:
        ax.set(xticks=[], yticks=[])
        hatch(ax, NOT_RUN if len(rows) == 0 else "no components")
        return
    for kind, part in (("honest", there[there["attacker"] == 0]), ("attacker", there[there["attacker"] == 1])):
        ax.plot(part["pca_0"], part["pca_1"], linestyle="", zorder=3, **_mark(kind))
    flagged = there[there["flagged"] == 1]
    ax.plot(flagged["pca_0"], flagged["pca_1"], linestyle="", zorder=4, **_RING)
    for x, y, text in _point_names(there):
        place = {"xytext": (9, 0), "textcoords": "offset points", "ha": "left", "va": "center"}
        ax.annotate(text, (x, y), fontsize=7.5, zorder=5, **place)
    ax.margins(0.25)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(3))
    ax.tick_params(labelsize=8)
    gone = [_name(client) for client in clients if client not in set(there["client"])]
    if gone:
        note_below(ax, f"left out: {', '.join(gone)}")


def _point_names(rows: pd.DataFrame) -> list[tuple[float, float, str]]:
    """Where the hospitals' numbers stand: one text for points that lie together, beside the rightmost of them."""
    points = rows[["pca_0", "pca_1"]].to_numpy(float)
    span = np.ptp(points, axis=0)
    scaled = points / np.where(span > 0, span, 1.0)
    groups = fcluster(linkage(scaled, "complete"), _CLOSE, "distance") if len(rows) > 1 else np.ones(1, int)
    found = []
    for group in np.unique(groups):
        members = rows[groups == group]
        right = members.loc[members["pca_0"].idxmax()]
        found.append((right["pca_0"], members["pca_1"].mean(), wrapped(", ".join(map(_name, members["client"])), 1.0)))
    return found


def _name(client) -> str:
    return f"{client:g}" if isinstance(client, float) else str(client)


@figure_function
def detection_scores(df: pd.DataFrame, *, interval_label: str = INTERVAL_LABEL) -> Figure:
    """How well flags find bad hospitals: a block a panel, a row an attack, a column a measure, a marker a detector.

    Args:
      df: columns attack (a key of `config.ATTACK_LABELS`, drawn in their order), detector (a key of DETECTORS), metric
        (of DETECTION_METRICS), mean, low, high (NaN: no interval); optional: panel. Mean NaN is written out: precision
        "no flag", recall "none to find", false alarms "not run"; so is a place without a row: "none to find" for
        precision and recall without an attack, else "not run".
      interval_label: what the lines are; must name the interval.
    Raises:
      ValueError: a column is missing or empty; two rows for one place; a mean outside its interval or 0 to 1; an
        unknown attack, detector or metric.
    """
    places = [*(["panel"] if "panel" in df.columns else []), "attack", "detector", "metric"]
    df = checked(df, "detection_scores", text=places, gaps=["mean", "low", "high"], unique=places)
    check_intervals(df, "detection_scores")
    check_range(df, "detection_scores", "mean", 0, 1)
    attacks = known_names(df, "detection_scores", "attack", ATTACK_LABELS)
    detectors = known_names(df, "detection_scores", "detector", DETECTORS)
    metrics = known_names(df, "detection_scores", "metric", DETECTION_METRICS)
    panels = split_panels(df)
    figure = new_figure((0.46 * len(attacks) + 0.8) * len(panels) + 0.7)
    axes = figure.subplots(len(panels), len(metrics), squeeze=False, sharey=True)
    for line, (panel, table) in zip(axes, panels.items(), strict=True):
        cells = {(row.attack, row.detector, row.metric): row for row in table.itertuples()}
        for (ax, metric), y, number in itertools.product(
            zip(line, metrics, strict=True), range(len(attacks)), range(len(detectors))
        ):
            row = cells.get((attacks[y], detectors[number], metric))
            at = y + 0.36 * (number - (len(detectors) - 1) / 2)
            _score(ax, at, row, DETECTORS[detectors[number]], _no_score(row, attacks[y], metric))
        for ax, metric in zip(line, metrics, strict=True):
            ax.set_title(DETECTION_METRICS[metric][0], fontsize=9.5)
            ax.set(xlim=(-0.03, 1.03), ylim=(len(attacks) - 0.4, -0.6))
            ax.grid(axis="y", visible=False)
            ax.tick_params(axis="y", length=0)
        line[0].set_yticks(range(len(attacks)), [wrapped(ATTACK_LABELS[attack], 1.9) for attack in attacks], fontsize=9)
        line[0].set_ylabel(panel, fontsize=11, fontweight="bold")
    handles = [
        Line2D([], [], color=drawn.colour, marker=drawn.marker, linestyle="", label=drawn.label)
        for drawn in (DETECTORS[name] for name in detectors)
    ]
    if df["low"].notna().any():
        handles.append(Line2D([], [], color=GREY, linewidth=2.5, alpha=0.7, label=interval_label))
    top_legend(figure, handles, handle_length=2)
    return figure


def _no_score(row, attack: str, metric: str) -> str:
    """What is said where there is no value."""
    if row is not None:
        return DETECTION_METRICS[metric][1]
    return "none to find" if attack == "clean" and metric != "false_alarms" else NOT_RUN


def _score(ax: Axes, y: float, row, drawn: Look, missing: str) -> None:
    if row is None or not np.isfinite(row.mean):
        if missing == NOT_RUN:
            ax.add_patch(Rectangle((0, y - 0.17), 1, 0.34, zorder=1, **EMPTY))
        ax.text(0.5, y, f"{drawn.label.split()[0]}: {missing}", **hatched_words(8))
        return
    ax.plot([row.low, row.high], [y, y], color=drawn.colour, linewidth=2.5, alpha=0.6, solid_capstyle="butt")
    ax.plot([row.mean], [y], color=drawn.colour, marker=drawn.marker, markersize=7, linestyle="", clip_on=False)
