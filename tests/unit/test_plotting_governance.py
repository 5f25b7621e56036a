"""Figures of the governed consortium from small made-up tables: what is drawn, what is refused."""

import pandas as pd
import pytest

from fl_utils import plotting
from tests.unit.made_figures import (
    check_a_missing_column_is_named, check_an_empty_table_is_refused, check_double_rows_are_refused, legend_clear_of_data, legend_texts,
    on_its_page, ticks,
)


def charges(*hospitals, rounds=4, step=0.5):
    rows = [(name, number, step * number * (2 if name == "odd" else 1)) for name in hospitals for number in range(1, rounds + 1)]
    return pd.DataFrame(rows, columns=["hospital", "round", "epsilon"])


def refusals():
    return pd.DataFrame([
        ("an unknown plan", "hospital_1", "plan"), ("an unknown plan", "hospital_2", "plan"), ("too much", "hospital_1", "budget"),
        ("too much", "hospital_2", "dataset"), ("by an observer", "server", "role"),
    ], columns=["tried", "by", "rule"])


def test_equal_hospitals_share_a_line_and_the_others_have_their_own():
    figure = plotting.budget_spent(charges("hospital_1", "odd", "hospital_2"), budget=5.0)
    (ax,) = figure.axes
    assert [line.get_ydata().tolist() for line in ax.lines[:2]] == [[0, 0.5, 1, 1.5, 2], [0, 1, 2, 3, 4]]
    assert legend_texts(figure) == ["hospital 1 and hospital 2", "odd", "the owners' budget: 5"]
    assert set(ax.lines[2].get_ydata()) == {5.0} and ax.get_ylim()[1] > 5
    assert [text.get_text() for text in ax.texts] == ["2.00", "4.00"]
    assert on_its_page(figure) and legend_clear_of_data(figure)


def test_a_row_an_attempt_a_column_a_rule_and_who_refused():
    figure = plotting.rule_matrix(refusals())
    (ax,) = figure.axes
    marks = {(line.get_xdata()[0], line.get_ydata()[0]): line.get_marker() for line in ax.lines}
    assert marks == {(0, 0): "o", (1, 1): "o", (2, 1): "o", (3, 2): "s"}
    assert [text.get_text() for text in ax.texts] == ["2", "1", "1"]
    assert ticks(ax.yaxis) == ["an unknown plan", "too much", "by an observer"] and ticks(ax.xaxis) == ["plan", "budget", "dataset", "role"]
    assert on_its_page(figure) and legend_clear_of_data(figure)


@pytest.mark.parametrize("column", ["hospital", "round", "epsilon"])
def test_budget_names_a_missing_column(column):
    check_a_missing_column_is_named("budget_spent", charges("a"), column, budget=1.0)


@pytest.mark.parametrize("column", ["tried", "by", "rule"])
def test_rules_name_a_missing_column(column):
    check_a_missing_column_is_named("rule_matrix", refusals(), column)


def test_what_cannot_be_drawn_is_refused():
    check_an_empty_table_is_refused("budget_spent", charges("a"), budget=1.0)
    check_an_empty_table_is_refused("rule_matrix", refusals())
    check_double_rows_are_refused("budget_spent", charges("a"), budget=1.0)
    check_double_rows_are_refused("rule_matrix", refusals())
    with pytest.raises(ValueError, match="budget is 0"):
        plotting.budget_spent(charges("a"), budget=0.0)
    with pytest.raises(ValueError, match="the epsilon of a falls"):
        plotting.budget_spent(charges("a", step=-1.0).assign(epsilon=[3, 2, 1, 0]), budget=1.0)
