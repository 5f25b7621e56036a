"""Shared by the tests of tables: one row by its values, and the interval that a table must show."""

import math

import numpy as np


def row(table, **fields):
    """The only row with these values."""
    for name, value in fields.items():
        table = table[table[name] == value]
    assert len(table) == 1, fields
    return table.iloc[0]


def interval(values):
    """Mean, low and high by Student's t, written out for four seeds."""
    values = np.asarray(values, float)
    assert len(values) == 4
    half = 3.182446305 * values.std(ddof=1) / math.sqrt(len(values))
    return values.mean(), values.mean() - half, values.mean() + half
