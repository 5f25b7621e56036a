"""A governed consortium: what a training spends of the patients' budget, and which rule refused what."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fl_utils.plotting.frames import checked, in_order
from fl_utils.plotting.images import wrapped
from fl_utils.plotting.page import figure_function, new_figure, top_legend
from fl_utils.plotting.style import BLACK, BLUE, ROUND_LABEL, VERMILLION, series_look

_LIMIT = {"color": BLACK, "linestyle": (0, (1, 1.2)), "linewidth": 1.8}


@figure_function
def budget_spent(df: pd.DataFrame, *, budget: float) -> Figure:
    """Epsilon that a hospital's patients have spent after each round, against the owner's budget; a line a hospital.

    Hospitals that spent the same share a line.

    Args:
      df: columns hospital, round (from 1), epsilon (spent after it, >= 0).
      budget: the owner's epsilon, > 0.
    Raises:
      ValueError: a column is missing, empty or not finite; two rows for one place; an epsilon that falls; a budget that is not
        above 0.
    """
    df = checked(df, "budget_spent", text=["hospital"], numbers=["round", "epsilon"], unique=["hospital", "round"])
    if not budget > 0:
        raise ValueError(f"budget_spent: budget is {budget}; expected above 0.")
    lines: dict[tuple, list[str]] = {}
    for hospital in in_order(df["hospital"]):
        rows = df[df["hospital"] == hospital].sort_values("round")
        if (rows["epsilon"].diff() < 0).any() or rows["epsilon"].iloc[0] < 0:
            raise ValueError(f"budget_spent: the epsilon of {hospital} falls; expected what was spent up to each round.")
        lines.setdefault(tuple(zip(rows["round"], rows["epsilon"])), []).append(str(hospital))
    figure = new_figure(3.2)
    ax = figure.subplots()
    handles = []
    for number, (points, hospitals) in enumerate(lines.items()):
        look = series_look(number, _joined(hospitals))
        rounds, epsilons = zip((points[0][0] - 1, 0.0), *points)
        ax.plot(rounds, epsilons, drawstyle="steps-post", **look.line())
        ax.annotate(f"{epsilons[-1]:.2f}", (rounds[-1], epsilons[-1]), xytext=(7, 0), textcoords="offset points", va="center", fontsize=10)
        handles.append(Line2D([], [], **look.line()))
    ax.axhline(budget, **_LIMIT)
    handles.append(Line2D([], [], label=f"the owners' budget: {budget:g}", **_LIMIT))
    last = df["round"].max()
    ax.set(xlabel=ROUND_LABEL, ylabel="Epsilon spent", ylim=(0, 1.12 * max(budget, df["epsilon"].max())), xlim=(0, last + 0.08 * last))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    top_legend(figure, handles)
    return figure


@figure_function
def rule_matrix(df: pd.DataFrame) -> Figure:
    """What was tried, a row each, and the rule that refused it, a column each; the mark says who refused.

    Args:
      df: columns tried, by ("server", or a hospital's name), rule; rows and columns stand in order of first appearance.
    Raises:
      ValueError: a column is missing or empty; two rows for one place.
    """
    df = checked(df, "rule_matrix", text=["tried", "by", "rule"], unique=["tried", "by"])
    tried, rules = in_order(df["tried"]), in_order(df["rule"])
    figure = new_figure(0.46 * len(tried) + 1.7)
    ax = figure.subplots()
    for y, what in enumerate(tried):
        for x, rule in enumerate(rules):
            by = df[(df["tried"] == what) & (df["rule"] == rule)]["by"]
            if len(by):
                server = (by == "server").all()
                ax.plot(x, y, marker="s" if server else "o", markersize=11, color=VERMILLION if server else BLUE, linestyle="", clip_on=False)
                if not server:
                    ax.annotate(str(len(by)), (x, y), ha="center", va="center", color="white", fontsize=9, fontweight="bold")
    ax.set(xlim=(-0.6, len(rules) - 0.4), ylim=(len(tried) - 0.5, -0.5))
    ax.set_yticks(range(len(tried)), [wrapped(what, 3.2) for what in tried])
    ax.set_xticks(range(len(rules)), rules, rotation=35, ha="right")
    ax.set_xlabel("Rule that refused")
    ax.tick_params(length=0)
    marks = {"linestyle": "", "markersize": 9}
    top_legend(figure, [
        Line2D([], [], marker="o", color=BLUE, label="hospitals (how many)", **marks), Line2D([], [], marker="s", color=VERMILLION, label="the server", **marks),
    ])  # fmt: skip
    return figure


def _joined(hospitals: list[str]) -> str:
    words = [one.replace("_", " ") for one in hospitals]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
