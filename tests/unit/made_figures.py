"""Shared by the tests of figures: whether one fits its page, what its legend says, and what each of them refuses."""

import pandas as pd
import pytest

from fl_utils import plotting
from fl_utils.plotting.style import WIDTH


def on_its_page(figure):
    """Nothing is cut off, and it is not wider than a page."""
    figure.draw_without_rendering()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    whole = box.x0 >= -0.02 and box.y0 >= -0.02 and box.x1 <= width + 0.02 and box.y1 <= height + 0.02
    return whole and width <= WIDTH


def legend_clear_of_data(figure):
    figure.draw_without_rendering()
    return all(
        not legend.get_window_extent().overlaps(ax.get_window_extent())
        for legend in figure.legends for ax in figure.axes
    )  # fmt: skip


def legend_texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def ticks(axis):
    return [tick.get_text().replace("\n", " ") for tick in axis.get_ticklabels()]


def columns_of(figures):
    """(figure, column) of every column that is needed; figures: name -> (maker of its table, its columns)."""
    return [(name, column) for name, (_, columns) in figures.items() for column in columns.split()]


def check_a_missing_column_is_named(name, frame, column, **options):
    with pytest.raises(ValueError, match=f"{name}: column '{column}' is missing"):
        getattr(plotting, name)(frame.drop(columns=column), **options)


def check_an_empty_table_is_refused(name, frame, **options):
    with pytest.raises(ValueError, match=f"{name}: the table .*no rows"):
        getattr(plotting, name)(frame.iloc[:0], **options)


def check_double_rows_are_refused(name, frame, drawn_by=None, **options):
    """drawn_by: the figure that is named, where `name` is drawn by another one."""
    with pytest.raises(ValueError, match=f"{drawn_by or name}: more than one row for "):
        getattr(plotting, name)(pd.concat([frame, frame.iloc[:1]]), **options)
